//! Kills and signals: whom they hit, and what they say of it.

use std::sync::Arc;
use std::time::Duration;

use openvpn_fleet::{
    ActionError, ClientFilter, Detail, DisconnectCause, Outcome, RequestId, Selector,
    SignalRequest, SignalWait, TargetError,
};
use openvpn_management::{KillMessage, Signal};
use openvpn_simulator::{ClientSpec, RestartSignal};

use crate::lab::{Lab, context, kill, kill_of, names, ref_of, until, until_clients};

/// The main promise: everybody of that name, everywhere, and nobody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_hits_everybody_of_that_name_and_nobody_else() {
    let lab = Lab::new();
    let daemons = [
        lab.daemon("a").await,
        lab.daemon("b").await,
        lab.daemon("c").await,
    ];
    let instances = lab.attach(&["a", "b", "c"]).await;
    for daemon in &daemons {
        for name in ["alice", "alice2", "a:b:c", "bob,10.9.9.9:1,0,0"] {
            daemon
                .connect(ClientSpec::new(name).stays_away())
                .await
                .expect("connects");
        }
    }
    for instance in &instances {
        until_clients(instance, 4).await;
    }
    for (name, left) in [
        ("alice", &["a:b:c", "alice2", "bob,10.9.9.9:1,0,0"][..]),
        ("a:b:c", &["alice2", "bob,10.9.9.9:1,0,0"]),
        ("bob,10.9.9.9:1,0,0", &["alice2"]),
    ] {
        let request = openvpn_fleet::KillRequest {
            wait: true,
            message: KillMessage::Halt,
            ..kill(name)
        };
        let report = lab.fleet.kill(request, context()).await.expect("it begins");
        let outcomes: Vec<_> = report
            .results
            .iter()
            .map(|result| (result.common_name.to_string(), result.outcome))
            .collect();
        assert_eq!(
            outcomes,
            vec![(name.to_owned(), Outcome::Confirmed); 3],
            "{report:#?}"
        );
        for instance in &instances {
            assert_eq!(names(instance), left);
        }
    }
    let by = lab
        .event(|event| match &event.detail {
            Detail::ClientDisconnected(gone) if gone.cause == DisconnectCause::Killed => {
                gone.caused_by.clone()
            }
            _ => None,
        })
        .await;
    assert_eq!(by.caller.as_str(), "tester");
}

/// RESTART names the client that came back in place of the killed one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_client_that_returns_is_named() {
    let lab = Lab::new();
    let daemon = lab.daemon("a").await;
    let instances = lab.attach(&["a"]).await;
    daemon
        .connect(ClientSpec::new("alice"))
        .await
        .expect("connects");
    until_clients(&instances[0], 1).await;
    let old = ref_of(&instances[0], "alice");
    let request = openvpn_fleet::KillRequest {
        wait: true,
        ..kill("alice")
    };
    let report = lab.fleet.kill(request, context()).await.expect("it begins");
    let result = &report.results[0];
    assert_eq!(
        (result.outcome, &result.client),
        (Outcome::Confirmed, &old),
        "{report:#?}"
    );
    let successor = result.successor.clone().expect("it came back");
    assert_ne!(successor.cid, old.cid);
    assert_eq!(ref_of(&instances[0], "alice"), successor);
}

/// A plan hits exactly whom it showed: who came later lives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confirmed_plan_spares_who_came_later() {
    let lab = Lab::new();
    let daemon = Arc::new(
        openvpn_simulator::Daemon::builder("a")
            .unix(lab.directory.path().join("a"))
            .timing(crate::lab::quick())
            .duplicate_cn()
            .start()
            .await
            .expect("starts"),
    );
    let instances = lab.attach(&["a"]).await;
    daemon
        .connect(ClientSpec::new("alice").stays_away())
        .await
        .expect("connects");
    until_clients(&instances[0], 1).await;
    let plan = openvpn_fleet::KillRequest {
        validate_only: true,
        ..kill("alice")
    };
    let plan = lab.fleet.kill(plan, context()).await.expect("a plan");
    assert_eq!(plan.results[0].outcome, Outcome::Planned);
    assert!(
        !daemon
            .commands()
            .iter()
            .any(|command| command.starts_with(b"client-kill"))
    );
    let later = daemon
        .connect(ClientSpec::new("alice").stays_away())
        .await
        .expect("connects");
    until_clients(&instances[0], 2).await;
    let refs = plan
        .results
        .iter()
        .map(|result| result.client.clone())
        .collect();
    let request = openvpn_fleet::KillRequest {
        wait: true,
        ..kill_of(ClientFilter {
            refs,
            ..ClientFilter::default()
        })
    };
    let report = lab.fleet.kill(request, context()).await.expect("it begins");
    assert_eq!(report.results.len(), 1);
    assert_eq!(report.results[0].outcome, Outcome::Confirmed);
    let left: Vec<_> =
        instances[0].with_table(|table| table.clients().map(|client| client.cid().0).collect());
    assert_eq!(left, [later]);
}

/// After a restart CIDs belong to others: an old reference must hit nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_reference_hits_nobody() {
    let lab = Lab::new();
    let daemon = lab.daemon("a").await;
    let instances = lab.attach(&["a"]).await;
    daemon
        .connect(ClientSpec::new("alice").stays_away())
        .await
        .expect("connects");
    until_clients(&instances[0], 1).await;
    let old = ref_of(&instances[0], "alice");
    daemon
        .restart(RestartSignal::Sighup)
        .await
        .expect("restarts");
    until(&instances[0], |table| {
        table.generation() > Some(old.generation)
    })
    .await;
    let cid = connect(&daemon, "mallory").await;
    assert_eq!(cid, old.cid.0, "the number is taken again");
    until_clients(&instances[0], 1).await;
    let gone = openvpn_fleet::ClientRef {
        cid: openvpn_management::Cid(77),
        ..ref_of(&instances[0], "mallory")
    };
    let request = kill_of(ClientFilter {
        refs: [old, gone].into(),
        ..ClientFilter::default()
    });
    let report = lab.fleet.kill(request, context()).await.expect("it begins");
    let outcomes: Vec<_> = report.results.iter().map(|result| result.outcome).collect();
    assert_eq!(outcomes, [Outcome::Stale, Outcome::AlreadyGone]);
    assert!(
        !daemon
            .commands()
            .iter()
            .any(|command| command.starts_with(b"client-kill"))
    );
}

/// The race itself: kills by reference, one after the other, while the daemon restarts and somebody of the same name
/// takes the number. Only the generation tells the two apart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_that_races_a_restart_never_hits_a_stranger() {
    let lab = Lab::new();
    let timing = openvpn_simulator::Timing {
        restart_pause: Duration::from_millis(10),
        ..crate::lab::quick()
    };
    let daemon = openvpn_simulator::Daemon::builder("a")
        .unix(lab.directory.path().join("a"))
        .timing(timing)
        .start()
        .await
        .expect("the daemon starts");
    let instances = lab.attach(&["a"]).await;
    let mut outcomes = std::collections::BTreeMap::new();
    for round in 0..40 {
        connect(&daemon, "alice").await;
        until_clients(&instances[0], 1).await;
        let victim = ref_of(&instances[0], "alice");
        let request = kill_of(ClientFilter {
            refs: [victim.clone()].into(),
            ..ClientFilter::default()
        });
        let kills = async {
            loop {
                let report = lab
                    .fleet
                    .kill(request.clone(), context())
                    .await
                    .expect("it begins");
                for result in &report.results {
                    *outcomes.entry(result.outcome).or_insert(0) += 1;
                }
                if report
                    .results
                    .iter()
                    .any(|result| result.outcome == Outcome::Stale)
                {
                    return;
                }
            }
        };
        let restart = async {
            tokio::time::sleep(Duration::from_micros(round * 100)).await;
            daemon
                .restart(RestartSignal::Sigusr1)
                .await
                .expect("restarts");
            connect(&daemon, "alice").await
        };
        let ((), stranger) = tokio::join!(kills, restart);
        assert_eq!(stranger, victim.cid.0, "the number is taken again");
        let clients = daemon.clients().await.expect("it runs");
        let stranger = clients.iter().find(|client| client.cid == stranger);
        assert!(
            stranger.is_some_and(|client| !client.leaving),
            "round {round}: a stranger was killed: {outcomes:?}"
        );
        daemon
            .restart(RestartSignal::Sigusr1)
            .await
            .expect("restarts");
        until_clients(&instances[0], 0).await;
    }
    assert!(
        outcomes.contains_key(&Outcome::Accepted),
        "some were in time: {outcomes:?}"
    );
}

/// Connects a client as soon as the daemon takes any: not in its restart pause.
async fn connect(daemon: &openvpn_simulator::Daemon, name: &str) -> u64 {
    loop {
        match daemon.connect(ClientSpec::new(name).stays_away()).await {
            Ok(cid) => return cid,
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

/// Limits are checked before anything is sent, and the answer says what would have been hit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_stop_a_kill_before_it_begins() {
    let lab = Lab::new();
    let daemons = [lab.daemon("a").await, lab.daemon("b").await];
    let instances = lab.attach(&["a", "b"]).await;
    for (daemon, instance) in daemons.iter().zip(&instances) {
        daemon
            .connect(ClientSpec::new("alice"))
            .await
            .expect("connects");
        until_clients(instance, 1).await;
    }
    let request = openvpn_fleet::KillRequest {
        max_clients: 1,
        ..kill("alice")
    };
    match lab.fleet.kill(request, context()).await {
        Err(ActionError::TooManyClients {
            found: 2,
            max: 1,
            plan,
        }) => assert_eq!(plan.results.len(), 2),
        other => panic!("{other:?}"),
    }
    let request = openvpn_fleet::KillRequest {
        max_instances: 1,
        ..kill("alice")
    };
    assert!(matches!(
        lab.fleet.kill(request, context()).await,
        Err(ActionError::TooManyInstances { found: 2, .. })
    ));
    let request = openvpn_fleet::KillRequest {
        selector: Selector::default(),
        ..kill("alice")
    };
    assert_eq!(
        lab.fleet.kill(request, context()).await,
        Err(ActionError::SelectorEmpty)
    );
    assert_eq!(
        lab.fleet
            .kill(kill_of(ClientFilter::default()), context())
            .await,
        Err(ActionError::FilterEmpty)
    );
    for daemon in &daemons {
        assert!(
            !daemon
                .commands()
                .iter()
                .any(|command| command.starts_with(b"client-kill"))
        );
    }
    assert!(lab.fleet.actions(None, 10).is_empty(), "nothing was done");
}

/// A repetition of a request must not kill who came back in the meantime.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_request_sends_nothing_twice() {
    let lab = Lab::new();
    let daemon = lab.daemon("a").await;
    let instances = lab.attach(&["a"]).await;
    daemon
        .connect(ClientSpec::new("alice"))
        .await
        .expect("connects");
    until_clients(&instances[0], 1).await;
    let request = openvpn_fleet::KillRequest {
        wait: true,
        request_id: Some(RequestId::new("once").expect("an id")),
        ..kill("alice")
    };
    let first = lab
        .fleet
        .kill(request.clone(), context())
        .await
        .expect("it begins");
    let again = lab
        .fleet
        .kill(request.clone(), context())
        .await
        .expect("it is known");
    assert_eq!(first, again);
    let kills = daemon
        .commands()
        .iter()
        .filter(|command| command.starts_with(b"client-kill"))
        .count();
    assert_eq!(kills, 1);
    let other = openvpn_fleet::KillRequest {
        message: KillMessage::Halt,
        digest: openvpn_fleet::Digest([1; 32]),
        ..request
    };
    assert!(matches!(
        lab.fleet.kill(other, context()).await,
        Err(ActionError::RequestIdReused { .. })
    ));
    let action = lab
        .fleet
        .action(&context().caller, &first.request_id)
        .expect("it is remembered");
    assert!(action.finished.is_some());
}

/// An instance that cannot be asked is named; the others are hit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_cannot_be_asked_is_named() {
    let lab = Lab::new();
    let (a, b) = (lab.daemon("a").await, lab.daemon("b").await);
    let instances = lab.attach(&["a", "b"]).await;
    a.connect(ClientSpec::new("alice").stays_away())
        .await
        .expect("connects");
    until_clients(&instances[0], 1).await;
    b.kill().await;
    until(&instances[1], |table| !table.status().is_attached()).await;
    let report = lab
        .fleet
        .kill(kill("alice"), context())
        .await
        .expect("it begins");
    assert_eq!(report.results[0].outcome, Outcome::Accepted);
    let [asked, silent] = &report.instances[..] else {
        panic!("{report:#?}")
    };
    assert!(asked.asked && asked.error.is_none() && asked.matched == 1);
    assert!(
        !silent.asked && matches!(silent.error, Some(TargetError::NotAttached { .. })),
        "{silent:?}"
    );
}

/// A cancelled kill sends nothing more, and says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_kill_sends_nothing() {
    let lab = Lab::new();
    let daemon = lab.daemon("a").await;
    let instances = lab.attach(&["a"]).await;
    daemon
        .connect(ClientSpec::new("alice"))
        .await
        .expect("connects");
    until_clients(&instances[0], 1).await;
    let context = context();
    context.cancel.cancel();
    let report = lab
        .fleet
        .kill(kill("alice"), context)
        .await
        .expect("it begins");
    assert!(matches!(
        report.instances[0].error,
        Some(TargetError::Cancelled)
    ));
    assert!(
        !daemon
            .commands()
            .iter()
            .any(|command| command.starts_with(b"client-kill"))
    );
}

/// Signals go out one by one, wait for the effect, and need `force` where they end a daemon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_wait_for_their_effect() {
    let lab = Lab::new();
    let daemons = [lab.daemon("a").await, lab.daemon("b").await];
    let instances = lab.attach(&["a", "b"]).await;
    let before: Vec<_> = instances
        .iter()
        .map(|instance| instance.with_table(|table| table.generation()))
        .collect();
    let request = SignalRequest {
        selector: Selector::all(),
        signal: Signal::Sigusr1,
        in_flight_max: 0,
        pause: Duration::from_millis(10),
        stop_after_failures: 0,
        wait_for: SignalWait::Connected,
        force: false,
        validate_only: false,
        max_instances: 0,
        request_id: None,
        digest: openvpn_fleet::Digest::default(),
    };
    let report = lab
        .fleet
        .signal(request.clone(), context())
        .await
        .expect("it begins");
    let outcomes: Vec<_> = report.results.iter().map(|result| result.outcome).collect();
    assert_eq!(outcomes, [Outcome::Confirmed; 2], "{report:#?}");
    for ((instance, before), result) in instances.iter().zip(before).zip(&report.results) {
        assert_eq!(result.generation, before);
        assert!(instance.with_table(|table| table.generation()) > before);
    }
    let term = SignalRequest {
        signal: Signal::Sigterm,
        wait_for: SignalWait::Accepted,
        ..request
    };
    let report = lab
        .fleet
        .signal(term.clone(), context())
        .await
        .expect("it begins");
    for result in &report.results {
        assert!(
            matches!(result.error, Some(TargetError::NeedsForce { .. })),
            "{result:?}"
        );
    }
    assert!(daemons.iter().all(openvpn_simulator::Daemon::is_running));
    let stop = SignalRequest {
        force: true,
        selector: Selector {
            names: ["a", "zz"].map(|name| name.parse().expect("a name")).into(),
            ..Selector::default()
        },
        ..term
    };
    let report = lab.fleet.signal(stop, context()).await.expect("it begins");
    assert_eq!(report.results[0].outcome, Outcome::Accepted, "{report:#?}");
    assert!(matches!(
        report.results[1].error,
        Some(TargetError::UnknownInstance { .. })
    ));
    daemons[0].wait_stopped().await;
}
