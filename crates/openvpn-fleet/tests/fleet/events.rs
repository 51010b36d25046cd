//! What the journal says of what happens to daemons.

use openvpn_fleet::{Detail, DisconnectCause, GenerationCause, Kind};
use openvpn_simulator::{ClientSpec, How, RestartSignal};

use crate::lab::{Lab, Told, names, ref_of, until, until_clients};

/// A stream that cannot be told apart from the truth: who came, who left and why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_comes_and_goes() {
    let lab = Lab::new();
    let daemon = lab.daemon("a").await;
    let instances = lab.attach(&["a"]).await;
    let cid = daemon
        .connect(ClientSpec::new("alice").stays_away())
        .await
        .expect("connects");
    until_clients(&instances[0], 1).await;
    daemon.leave(cid, How::ExitNotify).await.expect("leaves");
    until_clients(&instances[0], 0).await;
    let cause = lab
        .event(|event| match &event.detail {
            Detail::ClientDisconnected(gone) => Some(gone.cause),
            _ => None,
        })
        .await;
    assert_eq!(cause, DisconnectCause::PeerExit);
    let clients: Vec<_> = lab
        .history()
        .iter()
        .map(Told::summary)
        .filter(|told| told.starts_with("client."))
        .collect();
    assert_eq!(
        clients,
        [
            "client.established alice",
            "client.leaving alice",
            "client.disconnected alice"
        ]
    );
}

/// A restart makes every older reference stale, and says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_is_a_new_generation() {
    let lab = Lab::new();
    let daemon = lab.daemon("a").await;
    let instances = lab.attach(&["a"]).await;
    daemon
        .connect(ClientSpec::new("alice").stays_away())
        .await
        .expect("connects");
    until_clients(&instances[0], 1).await;
    let old = ref_of(&instances[0], "alice").generation;
    daemon
        .restart(RestartSignal::Sigusr1)
        .await
        .expect("restarts");
    until(&instances[0], |table| table.generation() > Some(old)).await;
    let cause = lab
        .event(|event| match event.detail {
            Detail::Generation {
                previous: Some(_),
                cause,
                ..
            } => Some(cause),
            _ => None,
        })
        .await;
    assert_eq!(cause, GenerationCause::Reconnecting);
    assert!(names(&instances[0]).is_empty());
    let gone = lab
        .event(|event| (event.kind() == Kind::ClientDisconnected).then(|| event.clone()))
        .await;
    assert_eq!(
        gone.generation,
        Some(old),
        "the end belongs to the old generation"
    );
}

/// What happened while nobody was attached is a hole, exactly there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_session_is_a_gap() {
    let lab = Lab::new();
    let daemon = lab.daemon("a").await;
    let instances = lab.attach(&["a"]).await;
    let cid = daemon
        .connect(ClientSpec::new("alice").stays_away())
        .await
        .expect("connects");
    daemon
        .connect(ClientSpec::new("bob").stays_away())
        .await
        .expect("connects");
    until_clients(&instances[0], 2).await;
    let generation = instances[0].with_table(|table| table.generation());
    daemon.drop_session().await.expect("drops");
    daemon.leave(cid, How::TcpClose).await.expect("leaves");
    until(&instances[0], |table| {
        table.status().sessions == 2 && table.status().is_attached() && table.client_count() == 1
    })
    .await;
    assert_eq!(
        instances[0].with_table(|table| table.generation()),
        generation,
        "the same run"
    );
    let told: Vec<_> = lab
        .history()
        .iter()
        .map(Told::summary)
        .filter(|told| {
            !told.starts_with("instance.condition") && !told.starts_with("instance.info")
        })
        .collect();
    let detached = told
        .iter()
        .position(|told| told == "instance.detached")
        .expect("it detached");
    assert_eq!(
        told[detached + 1..detached + 3],
        ["gap Unobserved", "instance.attached"],
        "{told:?}"
    );
    assert!(
        told[detached..].contains(&"client.disconnected alice".to_owned()),
        "{told:?}"
    );
}

/// A slow handshake finishes after a later one: CID 1 is established before CID 0.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cid_1_before_cid_0_is_no_new_generation() {
    let lab = Lab::new();
    let daemon = lab.daemon("a").await;
    let instances = lab.attach(&["a"]).await;
    let generation = instances[0].with_table(|table| table.generation());
    let slow = daemon.half_open().await.expect("begins");
    let quick = daemon
        .connect(ClientSpec::new("bob"))
        .await
        .expect("connects");
    assert!(quick > slow);
    until_clients(&instances[0], 1).await;
    let now = std::time::Instant::now();
    let deadline = now + std::time::Duration::from_secs(10);
    instances[0]
        .refresh(now, deadline)
        .await
        .expect("a fresh status");
    assert_eq!(instances[0].with_table(|table| table.half_open_count()), 1);
    daemon
        .complete(slow, ClientSpec::new("alice"))
        .await
        .expect("finishes");
    until_clients(&instances[0], 2).await;
    instances[0]
        .refresh(std::time::Instant::now(), deadline)
        .await
        .expect("a fresh status");
    assert_eq!(
        instances[0].with_table(|table| table.generation()),
        generation
    );
}
