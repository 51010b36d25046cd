//! Instances that join, change and leave.

use std::os::unix::net::UnixStream;

use openvpn_fleet::{Condition, InstanceSpec, Labels, Selector};
use openvpn_session::{Address, SessionConfig};
use openvpn_simulator::ClientSpec;

use crate::lab::{Lab, until, until_clients};

/// A changed label that ended a session would blind the fleet for no reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_change_without_touching_the_session() {
    let lab = Lab::new();
    let daemon = lab.daemon("a").await;
    let instances = lab.attach(&["a"]).await;
    let mut spec = lab.spec("a");
    spec.labels = Labels::from_iter([("region", "eu")]);
    let changes = lab.fleet.set_instances(vec![spec]).await.expect("no clash");
    assert_eq!(changes.changed.len(), 1);
    let selector = Selector {
        labels: "region=eu".parse().expect("an expression"),
        ..Selector::default()
    };
    assert_eq!(lab.fleet.select(&selector).instances.len(), 1);
    daemon
        .connect(ClientSpec::new("alice"))
        .await
        .expect("connects");
    until_clients(&instances[0], 1).await;
    assert_eq!(daemon.sessions(), 1, "there was no second session");
}

/// An instance that left must let go of its daemon's only slot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_instance_lets_go_of_its_slot() {
    let lab = Lab::new();
    let (a, b) = (lab.daemon("a").await, lab.daemon("b").await);
    lab.attach(&["a", "b"]).await;
    let changes = lab
        .fleet
        .set_instances(vec![lab.spec("b")])
        .await
        .expect("no clash");
    assert_eq!(changes.removed.len(), 1);
    a.wait_detached().await;
    assert!(lab.fleet.instance("a").is_none());
    assert_eq!(b.sessions(), 1, "the other's session went on");
    let kinds: Vec<_> = lab
        .history()
        .iter()
        .map(crate::lab::Told::summary)
        .collect();
    let position = |kind: &str| kinds.iter().rposition(|known| known == kind);
    assert!(
        position("instance.detached") < position("instance.removed"),
        "{kinds:?}"
    );
}

/// Two specs of one name would be one instance with two addresses.
#[tokio::test]
async fn a_name_clash_changes_nothing() {
    let lab = Lab::new();
    let clash = lab
        .fleet
        .set_instances(vec![lab.spec("a"), lab.spec("b"), lab.spec("a")])
        .await;
    assert_eq!(clash.expect_err("a clash").instance.as_str(), "a");
    assert!(lab.fleet.instances().is_empty());
}

/// A daemon that is to dial in, and finds nobody at its address, ends: whoever was told that the instance exists may start
/// it. One thread, so that no task can run between the two.
#[tokio::test]
async fn an_instance_that_exists_can_be_dialled_in_at() {
    let lab = Lab::new();
    let path = lab.directory.path().join("dial-in.sock");
    let mut spec = lab.spec("a");
    spec.session = SessionConfig::new(Address::ListenUnix(path.clone())).into();
    lab.fleet.set_instances(vec![spec]).await.expect("no clash");
    UnixStream::connect(&path).expect("somebody listens");
}

/// A paused instance that was dialled once more would take the slot from whoever it was paused for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_instance_leaves_its_slot_until_it_is_resumed() {
    let lab = Lab::new();
    let daemon = lab.daemon("a").await;
    let instances = lab.attach(&["a"]).await;
    daemon
        .connect(ClientSpec::new("alice"))
        .await
        .expect("connects");
    until_clients(&instances[0], 1).await;
    let paused = InstanceSpec {
        paused: Some("paused by a test".to_owned()),
        ..lab.spec("a")
    };
    let changes = lab.fleet.set_instances(vec![paused.clone()]).await;
    assert_eq!(changes.expect("no clash").changed.len(), 1);
    daemon.wait_detached().await;
    let status = instances[0].with_table(|table| table.status().clone());
    assert_eq!(status.condition, Condition::Paused);
    assert_eq!(status.reason, "paused by a test");
    // What is known of it stays, and is old.
    assert!(!status.is_attached());
    assert_eq!(instances[0].with_table(|table| table.client_count()), 1);
    let told: Vec<_> = lab
        .history()
        .iter()
        .map(crate::lab::Told::summary)
        .collect();
    assert!(
        told.ends_with(&[
            "instance.detached".to_owned(),
            "instance.condition".to_owned()
        ]),
        "{told:?}"
    );

    // One more that is paused from the start.
    let other = lab.daemon("b").await;
    let paused_too = InstanceSpec {
        paused: Some("from the start".to_owned()),
        ..lab.spec("b")
    };
    let specs = vec![paused, paused_too];
    lab.fleet.set_instances(specs).await.expect("no clash");
    let instance = lab.fleet.instance("b").expect("it was added");
    until(&instance, |table| {
        table.status().condition == Condition::Paused
    })
    .await;

    lab.attach(&["a", "b"]).await;
    assert_eq!((daemon.sessions(), other.sessions()), (2, 1));
    assert_eq!(
        instances[0].uid(),
        lab.fleet.instance("a").expect("there").uid()
    );
}
