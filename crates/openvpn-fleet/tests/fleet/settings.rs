//! What callers set for a while.

use std::time::{Duration, Instant};

use openvpn_fleet::VerbRequest;

use crate::lab::{Lab, context};

/// A daemon that was made to log more for an hour must not do so for ever because the gateway ends within it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_level_for_a_while_does_not_outlive_the_gateway() {
    let lab = Lab::new();
    let daemon = lab.daemon("a").await;
    let silent = lab.daemon("b").await;
    let instances = lab.attach(&["a", "b"]).await;
    for instance in &instances {
        for level in [4, 5] {
            let request = VerbRequest {
                level,
                force: false,
                reset_after: Some(Duration::from_secs(3_600)),
            };
            let context = context();
            let set = lab.fleet.set_verb(instance, request, &context).await;
            set.expect("it is set");
        }
    }
    // One that does not answer costs the others nothing, and the end little.
    silent.freeze().await.expect("runs");
    let begin = Instant::now();
    lab.fleet.shutdown(Duration::from_secs(20)).await;
    assert!(begin.elapsed() < Duration::from_secs(10));
    let commands = daemon.commands();
    let levels: Vec<_> = commands
        .iter()
        .filter(|command| command.starts_with(b"verb "))
        .map(|command| String::from_utf8_lossy(command))
        .collect();
    assert_eq!(levels, ["verb 4", "verb 5", "verb 3"]);
}
