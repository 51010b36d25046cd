//! Daemons that go away, hang, or are held by somebody else: said plainly, survived, and
//! nobody else notices.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use ovfleet_proto::v1::{self, ClientFilter, Condition, Event, GapCause, ListClientsRequest};
use ovfleet_tests::{
    Api, Client, Gateway, GatewayConfig, InstanceConfig, Management, Process, Server, Signal,
    api::{all, by_name, by_refs, named, timed},
    events::{EventLog, Item},
    poll_until,
    random::allowed,
};

/// A new client is known as soon as its daemon says so; this covers a busy machine.
const SOON: Duration = Duration::from_secs(10);
/// Clients of a daemon that died need their ping timeout to notice.
const BACK: Duration = Duration::from_secs(30);
/// From a daemon's listening to a session in step, for local daemons.
const REATTACH: Duration = Duration::from_secs(1);
/// A call that concerns healthy daemons only, while another hangs.
const UNDISTURBED: Duration = Duration::from_secs(2);

async fn attach(servers: &[&Server]) -> Result<(Gateway, Api)> {
    let gateway = GatewayConfig::of(servers.iter().copied()).start().await?;
    let mut api = Api::connect(&gateway).await?;
    api.wait_attached().await?;
    Ok((gateway, api))
}

fn observed(event: &Event) -> Result<SystemTime> {
    let time = event.observed_time.context("no time")?;
    Ok(SystemTime::try_from(time)?)
}

fn concerns(item: &Item, instance: &str) -> bool {
    match item {
        Item::Event(event) => event.instance == instance,
        Item::Gap(gap) => gap.instance == instance,
        Item::Bookmark(_) | Item::Drain(_) => false,
    }
}

/// What the stream said of `instance` about its session, in order.
fn session_story(log: &EventLog, instance: &str) -> Vec<String> {
    log.received()
        .iter()
        .filter(|received| concerns(&received.item, instance))
        .filter_map(|received| match &received.item {
            Item::Event(event) => matches!(
                event.kind.as_str(),
                "instance.attached" | "instance.detached"
            )
            .then(|| event.kind.clone()),
            Item::Gap(gap) => Some(gap.cause().as_str_name().to_owned()),
            Item::Bookmark(_) | Item::Drain(_) => None,
        })
        .collect()
}

/// Number and name of each client listed for a server.
fn rows_of(listed: &[v1::Client], server: &str) -> BTreeSet<(u64, Vec<u8>)> {
    let row = |row: &v1::Client| {
        let r = row.r#ref.as_ref().filter(|r| r.instance == server)?;
        Some((r.cid, row.common_name.clone().into_bytes()))
    };
    listed.iter().filter_map(row).collect()
}

/// Kills two servers, over Unix and TCP, for `down`, and checks everything after.
async fn outage(down: Duration) -> Result<()> {
    let mut unix = Server::builder("unix").keepalive(1, 3).start().await?;
    let mut tcp = Server::builder("tcp")
        .keepalive(1, 3)
        .management(Management::Tcp)
        .password("s3cret pass")
        .start()
        .await?;
    let mut clients = Vec::new();
    for server in [&unix, &tcp] {
        for name in ["alice", "bob"] {
            clients.push(Client::builder(server, name).connect().await?);
        }
    }
    let (_gateway, mut api) = attach(&[&unix, &tcp]).await?;
    let before = api.wait_clients(ClientFilter::default(), 4, SOON).await?;
    let generation = api.status("unix").await?.generation;
    let log = api.follow().await?;

    unix.kill();
    tcp.kill();
    let died = Instant::now();
    for name in ["unix", "tcp"] {
        let status = api
            .wait_condition(name, Condition::Unreachable, SOON)
            .await?;
        ensure!(!status.reason.is_empty(), "{status:?}");
    }
    let request = ListClientsRequest::default();
    let stale = api.fleet.list_clients(timed(request)).await?.into_inner();
    ensure!(stale.clients.len() == 4, "rows stay: {stale:#?}");
    ensure!(stale.clients.iter().all(|row| row.stale), "{stale:#?}");
    ensure!(stale.unreachable.len() == 2, "{stale:#?}");
    poll_until("the outage to last", down + SOON, async || {
        Ok((died.elapsed() >= down).then_some(()))
    })
    .await?;

    for server in [&mut unix, &mut tcp] {
        server.start_again().await?;
        let listening = server.listening_since()?;
        let name = server.name().to_owned();
        let (attached, _) = log
            .wait_event("the session to be back", SOON, |event| {
                event.instance == name && event.kind == "instance.attached"
            })
            .await?;
        let took = observed(&attached)?
            .duration_since(listening)
            .unwrap_or_default();
        eprintln!("{name}, down for {down:?}: attached {took:?} after listening");
        ensure!(took <= allowed(REATTACH), "{name}: {took:?}");
    }
    for client in &mut clients {
        client.wait_connected(2).await?;
    }
    // A client may lose its connection once more on a busy machine, so that the list and
    // the daemon's file agree in the end, not at every moment.
    let after = poll_until(
        "the table to be as the daemons write it",
        BACK,
        async || {
            let listed = api.clients(ClientFilter::default()).await?;
            let mut agrees = listed.len() == 4;
            for server in [&unix, &tcp] {
                let written = server.fresh_status().await?;
                let expected = written.clients.values();
                let expected = expected.map(|row| (row.cid, row.common_name.clone()));
                agrees &= rows_of(&listed, server.name()) == expected.collect();
            }
            Ok(agrees.then_some(listed))
        },
    )
    .await?;
    ensure!(
        before
            .iter()
            .all(|old| after.iter().all(|new| new.r#ref != old.r#ref))
    );
    ensure!(api.status("unix").await?.generation != generation);
    for name in ["unix", "tcp"] {
        let story = session_story(&log, name);
        let unobserved = GapCause::Unobserved.as_str_name();
        ensure!(
            story == ["instance.detached", unobserved, "instance.attached"],
            "{story:?}"
        );
    }
    Ok(())
}

/// A crash that is over soon: back within a second, and honest about what it missed.
#[tokio::test]
async fn a_daemon_down_for_2_s_comes_back() -> Result<()> {
    outage(Duration::from_secs(2)).await
}

/// A long outage must not have grown the delay before the next attempt.
#[tokio::test]
async fn a_daemon_down_for_60_s_comes_back() -> Result<()> {
    outage(Duration::from_secs(60)).await
}

/// A hanging daemon must cost nobody else anything, and must not be mistaken for a dead
/// one: reconnecting would lose our place, and a late reply must not answer a later
/// question.
#[tokio::test]
async fn a_stopped_daemon_is_unresponsive_and_harms_nobody() -> Result<()> {
    let mut stopped = Server::builder("stopped").keepalive(5, 60).start().await?;
    let healthy = Server::builder("healthy").keepalive(5, 60).start().await?;
    let _one = Client::builder(&stopped, "alice").connect().await?;
    let _two = Client::builder(&healthy, "alice").connect().await?;
    let (gateway, mut api) = attach(&[&stopped, &healthy]).await?;
    api.wait_clients(by_name("alice"), 2, SOON).await?;
    let sessions = api.status("stopped").await?.sessions;
    let log = api.follow().await?;

    stopped.signal(Signal::STOP)?;
    let since = Instant::now();
    // Fresh lists keep asking both daemons: none waits for the one that hangs for long,
    // and each names it.
    let mut slowest = Duration::ZERO;
    poll_until("UNRESPONSIVE", Duration::from_secs(30), async || {
        let asked = Instant::now();
        let request = ListClientsRequest {
            selector: named(&["healthy"]),
            max_age: Some(prost_types::Duration::default()),
            ..Default::default()
        };
        let answer = api.fleet.list_clients(timed(request)).await?.into_inner();
        slowest = slowest.max(asked.elapsed());
        ensure!(
            answer.clients.len() == 1 && answer.unreachable.is_empty(),
            "{answer:#?}"
        );
        let status = api.status("stopped").await?;
        Ok((status.condition() == Condition::Unresponsive).then_some(()))
    })
    .await?;
    eprintln!(
        "UNRESPONSIVE after {:?}, healthy calls up to {slowest:?}",
        since.elapsed()
    );
    ensure!(slowest <= allowed(UNDISTURBED), "{slowest:?}");

    // Every list names it, and calls to it fail at once.
    let fresh = ListClientsRequest {
        max_age: Some(prost_types::Duration::default()),
        ..Default::default()
    };
    let asked = Instant::now();
    let list = api
        .fleet
        .list_clients(timed(fresh.clone()))
        .await?
        .into_inner();
    let took = asked.elapsed();
    ensure!(took <= allowed(UNDISTURBED), "{took:?}");
    ensure!(list.clients.len() == 2, "{list:#?}");
    let summary = api
        .fleet
        .get_summary(timed(v1::GetSummaryRequest::default()))
        .await?;
    let routes = api
        .fleet
        .list_routes(timed(v1::ListRoutesRequest::default()))
        .await?;
    for unreachable in [
        list.unreachable,
        summary.into_inner().unreachable,
        routes.into_inner().unreachable,
    ] {
        ensure!(unreachable.len() == 1, "{unreachable:#?}");
        ensure!(unreachable[0].instance == "stopped", "{unreachable:#?}");
        ensure!(
            unreachable[0].condition() == Condition::Unresponsive,
            "{unreachable:#?}"
        );
        ensure!(unreachable[0].age.is_some(), "{unreachable:#?}");
    }
    let incomplete = ListClientsRequest {
        require_complete: true,
        ..fresh
    };
    let status = api
        .fleet
        .list_clients(timed(incomplete))
        .await
        .err()
        .context("complete?")?;
    ensure!(status.code() == tonic::Code::Unavailable, "{status:?}");
    let listed = gateway.cli(&["clients"]).await?;
    ensure!(listed.code == Some(1), "{listed:?}");
    ensure!(
        (listed.stdout.clone() + &listed.stderr).contains("stopped"),
        "{listed:?}"
    );

    stopped.signal(Signal::CONT)?;
    let back = api
        .wait_condition("stopped", Condition::Attached, SOON)
        .await?;
    ensure!(
        back.sessions == sessions,
        "the session was given up: {back:#?}"
    );
    ensure!(
        !log.events()
            .iter()
            .any(|event| event.kind == "instance.detached")
    );

    // In step again: many callers at once, each gets the answer to its own question.
    let calls = (0..20).map(|number| {
        let mut api = api.clone();
        async move {
            if number % 2 == 0 {
                let clients = api.clients(by_name("alice")).await?;
                ensure!(clients.len() == 2, "{clients:#?}");
            } else {
                let signal = v1::SignalInstancesRequest {
                    selector: named(&["stopped"]),
                    signal: v1::Signal::Sigusr2.into(),
                    ..Default::default()
                };
                let answer = api.signal(signal).await?;
                ensure!(
                    answer.results[0].outcome() == v1::Outcome::Accepted,
                    "{answer:#?}"
                );
            }
            Ok(())
        }
    });
    try_join_all(calls).await?;
    ensure!(stopped.log_count("CMD 'signal SIGUSR2'") == 10);
    Ok(())
}

/// A deadline is the caller's: an action answers before it, and tells what was not sent,
/// whatever a daemon does.
#[tokio::test]
async fn an_action_answers_before_its_deadline() -> Result<()> {
    const DEADLINE: Duration = Duration::from_secs(3);
    let mut hanging = Server::builder("hanging").keepalive(5, 60).start().await?;
    let healthy = Server::builder("healthy").start().await?;
    let mut clients = Vec::new();
    for server in [&hanging, &healthy] {
        clients.push(Client::builder(server, "alice").connect().await?);
    }
    let (_gateway, mut api) = attach(&[&hanging, &healthy]).await?;
    let rows = api.wait_clients(by_name("alice"), 2, SOON).await?;
    let refs = rows.into_iter().filter_map(|row| row.r#ref).collect();
    hanging.signal(Signal::STOP)?;

    let mut request = tonic::Request::new(v1::KillClientsRequest {
        selector: all(),
        filter: Some(by_refs(refs)),
        mode: v1::KillMode::Halt.into(),
        request_id: "hanging".to_owned(),
        ..Default::default()
    });
    request.set_timeout(DEADLINE);
    let asked = Instant::now();
    let answer = api.control.kill_clients(request).await?.into_inner();
    ensure!(asked.elapsed() < DEADLINE, "{:?}", asked.elapsed());
    let outcome = |instance: &str| {
        let of = |result: &&v1::KillResult| {
            result
                .r#ref
                .as_ref()
                .is_some_and(|r| r.instance == instance)
        };
        answer.results.iter().find(of).map(v1::KillResult::outcome)
    };
    ensure!(answer.results.len() == 2, "{answer:#?}");
    ensure!(
        outcome("healthy") == Some(v1::Outcome::Accepted),
        "{answer:#?}"
    );
    // Nothing can be resolved against a daemon that does not answer, so nothing is sent.
    ensure!(
        outcome("hanging") == Some(v1::Outcome::NotSent),
        "{answer:#?}"
    );
    let kept = v1::GetActionRequest {
        request_id: "hanging".to_owned(),
    };
    let action = api
        .control
        .get_action(timed(kept))
        .await?
        .into_inner()
        .action;
    ensure!(action.is_some_and(|action| action.finished_time.is_some()));

    hanging.signal(Signal::CONT)?;
    clients[1].wait_ended(SOON).await?;
    api.wait_condition("hanging", Condition::Attached, SOON)
        .await?;
    ensure!(
        !hanging.log_contains("CMD 'client-kill"),
        "it was sent after all"
    );
    ensure!(clients[0].is_running()?);
    Ok(())
}

/// Somebody else on the only slot: said so, by name where the system tells, and taken
/// over the moment it is free.
#[tokio::test]
async fn a_held_slot_is_busy_and_taken_over_at_once() -> Result<()> {
    let unix = Server::builder("unix").start().await?;
    let tcp = Server::builder("tcp")
        .management(Management::Tcp)
        .password("s3cret pass")
        .start()
        .await?;
    let mut holders = Vec::new();
    for mut server in [unix, tcp] {
        let target = match server.address().split_once(':') {
            Some(("unix", path)) => format!("UNIX-CONNECT:{path}"),
            Some((_, address)) => format!("TCP:{address}"),
            None => anyhow::bail!("no address"),
        };
        let holder = Process::spawn("socat", &["-u", &target, "OPEN:/dev/null"])?;
        server
            .wait_log("MANAGEMENT: Client connected from", 1, SOON)
            .await?;
        holders.push((server, holder));
    }
    let servers = holders.iter().map(|(server, _)| server);
    let started = Instant::now();
    let gateway = GatewayConfig::of(servers).start().await?;
    let mut api = Api::connect(&gateway).await?;
    let log = api
        .follow_from(v1::stream_events_request::Start::Oldest(true))
        .await?;
    for (server, _) in &holders {
        let status = api
            .wait_condition(server.name(), Condition::SlotBusy, SOON)
            .await?;
        ensure!(
            started.elapsed() <= allowed(Duration::from_secs(6)),
            "{:?}",
            started.elapsed()
        );
        if server.name() == "unix" {
            ensure!(
                status.reason.contains("socat"),
                "the holder has a name: {status:?}"
            );
        }
    }
    for (server, holder) in &mut holders {
        let freed = Instant::now();
        holder.kill();
        let name = server.name().to_owned();
        let (_, at) = log
            .wait_event("the slot", SOON, |event| {
                event.instance == name && event.kind == "instance.attached"
            })
            .await?;
        eprintln!("{name}: attached {:?} after the slot was free", at - freed);
        ensure!(
            at - freed <= allowed(Duration::from_millis(200)),
            "{name}: {:?}",
            at - freed
        );
    }
    Ok(())
}

/// A held daemon waits for its manager: the gateway releases it, unless told not to, and
/// again after a restart.
#[tokio::test]
async fn a_held_daemon_is_released_unless_it_shall_hold() -> Result<()> {
    let mut released = Server::builder("released").hold().start().await?;
    let kept = Server::builder("kept").hold().start().await?;
    let gateway = GatewayConfig::new()
        .instance(InstanceConfig::of(&released))
        .instance(InstanceConfig::of(&kept).set("hold", "keep"))
        .start()
        .await?;
    let mut api = Api::connect(&gateway).await?;
    released
        .wait_log("Initialization Sequence Completed", 1, SOON)
        .await?;
    let status = api
        .wait_condition("kept", Condition::Attached, SOON)
        .await?;
    ensure!(status.holding, "{status:?}");
    ensure!(!kept.log_contains("CMD 'hold release'"));
    let _client = Client::builder(&released, "alice").connect().await?;
    api.wait_clients(ClientFilter::default(), 1, SOON).await?;

    released.signal(Signal::USR1)?;
    released
        .wait_log("Initialization Sequence Completed", 2, SOON)
        .await?;
    // The daemon goes on before the gateway has read the answer to its release.
    let status = poll_until("the release to be known", SOON, async || {
        let status = api.status("released").await?;
        Ok((!status.holding).then_some(status))
    })
    .await?;
    ensure!(status.sessions == 1, "{status:?}");
    Ok(())
}

/// The gateway holds many slots for its whole life: what it leaves behind in a daemon when
/// it goes must let the next manager in at once.
#[tokio::test]
async fn a_gateway_that_ends_frees_the_slots() -> Result<()> {
    let server = Server::builder("next").start().await?;
    let (mut gateway, _api) = attach(&[&server]).await?;
    let ended = gateway.stop().await?;
    ensure!(ended.success(), "{ended}: {}", gateway.log());
    let (second, mut api) = attach(&[&server]).await?;
    ensure!(api.status("next").await?.condition() == Condition::Attached);
    drop(second);
    Ok(())
}
