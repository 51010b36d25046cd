//! Instances that join, change and leave.

use openvpn_fleet::{Labels, Selector};
use openvpn_simulator::ClientSpec;

use crate::lab::{Lab, until_clients};

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
