//! A bug that one daemon's words bring out costs that daemon's session, for less than a second, and nobody else's.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use openvpn_simulator::{ClientSpec, Daemon};
use ovfleet_tests::{Api, GatewayConfig, InstanceConfig, random::allowed};

/// What comes without delay; this covers a busy machine.
const SOON: Duration = Duration::from_secs(10);
/// From the panic to the session after it; a quarter of it is a rest on purpose.
const RESTARTED: Duration = Duration::from_secs(1);

/// Far behind what an attach brings, far before the end of the burst below.
const PANICS_AT: &str = "session.task:two=panic@300";

/// One of three tasks panics at something its daemon said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_restarts_one_instance_alone() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut config = GatewayConfig::new().environment("OVFLEET_FAILPOINT", PANICS_AT);
    let mut daemons = Vec::new();
    for name in ["one", "two", "three"] {
        let path = directory.path().join(name);
        let daemon = Daemon::builder(name).unix(path).start().await?;
        config = config.instance(InstanceConfig::new(name, &daemon.address().to_string()));
        daemons.push(daemon);
    }
    let gateway = config.start().await?;
    let mut api = Api::connect(&gateway).await?;
    api.wait_attached().await?;
    let log = api.follow().await?;
    let panics = async |name: &str| -> Result<String> {
        let (_, metrics) = gateway.http_get("/metrics").await?;
        let start = format!("ovfleet_instance_panics_total{{instance=\"{name}\"}} ");
        let value = metrics.lines().find_map(|line| line.strip_prefix(&start));
        Ok(value.context("no such metric")?.to_owned())
    };
    ensure!(panics("two").await? == "0");

    // What the session does not read any more that falls over it is written to nobody.
    let _ = daemons[1].burst(500).await;
    let detached = log
        .wait_event("the end of the session", SOON, |event| {
            event.kind == "instance.detached"
        })
        .await?;
    let attached = log
        .wait_event("the next session", SOON, |event| {
            event.kind == "instance.attached" && event.sequence > detached.0.sequence
        })
        .await?;
    let took = attached.1 - detached.1;
    eprintln!("attached again {took:?} after the panic");
    ensure!(took <= allowed(RESTARTED), "{took:?}");
    api.wait_attached().await?;
    ensure!(
        gateway.log().contains("the session's task panicked"),
        "{}",
        gateway.log()
    );
    ensure!(panics("two").await? == "1");
    ensure!(panics("one").await? == "0");
    // The others saw nothing of it, and it does its work again.
    let changed = log
        .events()
        .into_iter()
        .filter(|event| event.kind == "instance.detached");
    ensure!(changed.map(|event| event.instance).collect::<Vec<_>>() == ["two"]);
    for (daemon, sessions) in daemons.iter().zip([1, 2, 1]) {
        ensure!(
            daemon.sessions() == sessions,
            "{}: {}",
            daemon.name(),
            daemon.sessions()
        );
        let cid = daemon.connect(ClientSpec::new("alice")).await?;
        log.wait_event("the client", SOON, |event| {
            let client = event
                .client
                .as_ref()
                .and_then(|client| client.r#ref.as_ref());
            event.kind == "client.established"
                && client.is_some_and(|r| r.instance == daemon.name() && r.cid == cid)
        })
        .await?;
    }
    Ok(())
}
