//! Daemons that dial in end with the gateway, which says so before it ends.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use ovfleet_tests::{Api, Gateway, GatewayConfig, InstanceConfig, Server, Signal, poll_until};

const SOON: Duration = Duration::from_secs(10);
/// What the gateway says before it ends daemons.
const WARNING: &str = "these daemons dialled in";

/// A gateway and the real daemon that dialled in at its instance `caller`.
async fn lab(directory: &Path) -> Result<(Gateway, Server, Api)> {
    lab_of(GatewayConfig::new(), directory).await
}

async fn lab_of(config: GatewayConfig, directory: &Path) -> Result<(Gateway, Server, Api)> {
    let socket = directory.join("caller.sock");
    let address = format!("listen-unix:{}", socket.display());
    let gateway = config
        .instance(InstanceConfig::new("caller", &address))
        .start()
        .await?;
    let mut api = Api::connect(&gateway).await?;
    let server = Server::builder("caller").dial_in(&socket).start().await?;
    api.wait_attached().await?;
    Ok((gateway, server, api))
}

async fn wait_warned(gateway: &Gateway) -> Result<()> {
    poll_until("the warning", SOON, async || {
        let log = gateway.log();
        Ok((log.contains(WARNING) && log.contains("caller")).then_some(()))
    })
    .await
}

/// Told to end, the gateway names the daemon and serves on; it ends as soon as the daemon was ended by whoever may.
#[tokio::test]
async fn sigterm_waits_for_daemons_that_would_end() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (mut gateway, mut server, mut api) = lab(directory.path()).await?;
    gateway.signal(Signal::TERM)?;
    wait_warned(&gateway).await?;
    api.status("caller").await?;
    server.signal(Signal::TERM)?;
    server.wait_ended(SOON).await?;
    let gone = Instant::now();
    let status = gateway.wait_ended(SOON).await?;
    ensure!(status.success(), "{status}: {}", gateway.log());
    // What is left of the grace is not waited out.
    ensure!(gone.elapsed() < Duration::from_secs(5), "{}", gateway.log());
    ensure!(!gateway.log().contains("ending these daemons"));
    Ok(())
}

/// A second signal means it: the daemon ends with the gateway, cleanly.
#[tokio::test]
async fn a_second_signal_ends_them_at_once() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (mut gateway, mut server, api) = lab(directory.path()).await?;
    drop(api);
    gateway.signal(Signal::INT)?;
    wait_warned(&gateway).await?;
    let again = Instant::now();
    gateway.signal(Signal::INT)?;
    let status = gateway.wait_ended(SOON).await?;
    ensure!(status.success(), "{status}: {}", gateway.log());
    ensure!(
        again.elapsed() < Duration::from_secs(5),
        "{}",
        gateway.log()
    );
    ensure!(gateway.log().contains("ending these daemons"));
    ensure!(server.wait_ended(SOON).await?.success());
    Ok(())
}

/// Who says so beforehand waits for nobody: the daemon ends with the gateway, cleanly.
#[tokio::test]
async fn force_ends_them_without_waiting() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let config = GatewayConfig::new().argument("--force");
    let (mut gateway, mut server, api) = lab_of(config, directory.path()).await?;
    drop(api);
    let asked = Instant::now();
    gateway.signal(Signal::TERM)?;
    let status = gateway.wait_ended(SOON).await?;
    ensure!(status.success(), "{status}: {}", gateway.log());
    ensure!(
        asked.elapsed() < Duration::from_secs(5),
        "{}",
        gateway.log()
    );
    ensure!(!gateway.log().contains(WARNING), "{}", gateway.log());
    ensure!(server.wait_ended(SOON).await?.success());
    Ok(())
}
