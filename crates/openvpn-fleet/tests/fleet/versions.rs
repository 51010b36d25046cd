//! Each release line of OpenVPN as a member of one fleet.

use openvpn_fleet::{KillRequest, Outcome};
use openvpn_management::KillMessage;
use openvpn_simulator::{ClientSpec, Daemon, RestartSignal, Timing, Version};

use crate::lab::{Lab, context, kill, names, quick, ref_of, until, until_clients};

/// Attaches to a daemon, lists its clients with their addresses and names, kills one of them,
/// and follows the daemon through a restart: all that a fleet promises, whatever it runs.
async fn attach_list_kill_restart(version: Version) {
    let lab = Lab::new();
    let timing = Timing {
        // Long enough for a refused `status` to be asked again.
        restart_pause: version.restart_pause() / 2,
        ..quick()
    };
    let daemon = Daemon::builder("a")
        .unix(lab.directory.path().join("a"))
        .version(version)
        .dual_stack()
        .timing(timing)
        .start()
        .await
        .expect("the daemon starts");
    // One client was there before us, the others come while we watch.
    let early = ClientSpec::new("early").username("eve").stays_away();
    daemon.connect(early).await.expect("connects");
    let instances = lab.attach(&["a"]).await;
    let instance = &instances[0];
    until_clients(instance, 1).await;
    for (name, address) in [("alice", "192.0.2.1:40000"), ("bob", "[2001:db8::2]:40001")] {
        let client = ClientSpec::new(name)
            .real_address(address.parse().expect("an address"))
            .stays_away();
        daemon.connect(client).await.expect("connects");
    }
    until_clients(instance, 3).await;
    assert_eq!(names(instance), ["alice", "bob", "early"], "{version}");
    for address in ["192.0.2.1", "2001:db8::2"] {
        // With or without protocol, brackets and port, as each version prints it.
        until(instance, |table| {
            let mut addresses = table.clients().map(|client| client.real_address());
            addresses.any(|text| String::from_utf8_lossy(text).contains(address))
        })
        .await;
    }

    let request = KillRequest {
        wait: true,
        message: KillMessage::Halt,
        ..kill("alice")
    };
    let report = lab.fleet.kill(request, context()).await.expect("it begins");
    let outcomes: Vec<_> = report.results.iter().map(|result| result.outcome).collect();
    assert_eq!(outcomes, [Outcome::Confirmed], "{version}: {report:#?}");
    assert_eq!(names(instance), ["bob", "early"], "{version}");

    let before = ref_of(instance, "bob").generation;
    daemon.restart(RestartSignal::Sigusr1).await.expect("runs");
    until(instance, |table| {
        table
            .generation()
            .is_some_and(|generation| generation != before)
            && table.client_count() == 0
    })
    .await;
    // Served again, it is the same CID in another generation.
    let back = ClientSpec::new("bob").stays_away();
    while daemon.connect(back.clone()).await.is_err() {
        tokio::task::yield_now().await;
    }
    until_clients(instance, 1).await;
    let bob = ref_of(instance, "bob");
    assert!(bob.generation > before, "{version}");
    assert_eq!(bob.cid.0, 0, "{version}");
}

/// 2.3 has no client IDs in `status`, so that its clients cannot be told apart, nor killed: each
/// row is set aside, and says so; the daemon itself is watched and restarted as any other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_watches_2_3_and_sets_its_clients_aside() {
    let lab = Lab::new();
    let daemon = Daemon::builder("a")
        .unix(lab.directory.path().join("a"))
        .version(Version::V2_3)
        .timing(quick())
        .start()
        .await
        .expect("the daemon starts");
    let alice = ClientSpec::new("alice").stays_away();
    daemon.connect(alice).await.expect("connects");
    let instances = lab.attach(&["a"]).await;
    let instance = &instances[0];
    until(instance, |table| table.status().quarantined_rows == 1).await;
    assert_eq!(names(instance), Vec::<String>::new());
    let before = instance.with_table(|table| table.generation());
    daemon.restart(RestartSignal::Sigusr1).await.expect("runs");
    until(instance, |table| {
        let status = table.status();
        status.is_attached() && status.quarantined_rows == 0 && table.generation() > before
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_takes_in_2_4() {
    attach_list_kill_restart(Version::V2_4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_takes_in_2_5() {
    attach_list_kill_restart(Version::V2_5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_takes_in_2_6() {
    attach_list_kill_restart(Version::V2_6).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_takes_in_2_7() {
    attach_list_kill_restart(Version::V2_7).await;
}
