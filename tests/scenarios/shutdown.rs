//! The gateway ends when asked, in its time, and nobody is left guessing.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ovfleet_proto::v1::{ClientFilter, KillClientsRequest, KillMode, Outcome};
use ovfleet_tests::{
    Api, Client, GatewayConfig, Server, Signal,
    api::{all, by_name},
    events::Item,
    poll_until,
};

/// A new client is known as soon as its daemon says so; this covers a busy machine.
const SOON: Duration = Duration::from_secs(10);
/// How long a drain may take.
const DRAIN: Duration = Duration::from_secs(10);

/// SIGTERM must end a stream with a place to resume from, let an action under way finish,
/// and not wait for callers who never hang up.
#[tokio::test]
async fn sigterm_drains() -> Result<()> {
    let server = Server::builder("drain").start().await?;
    let mut client = Client::builder(&server, "alice").connect().await?;
    let mut gateway = GatewayConfig::of([&server]).start().await?;
    let mut api = Api::connect(&gateway).await?;
    api.wait_attached().await?;
    api.wait_clients(ClientFilter::default(), 1, SOON).await?;
    let log = api.follow().await?;
    let mut killer = api.clone();
    let kill = tokio::spawn(async move {
        let request = KillClientsRequest {
            selector: all(),
            filter: Some(by_name("alice")),
            mode: KillMode::Halt.into(),
            wait: true,
            ..Default::default()
        };
        killer.kill(request).await
    });
    poll_until("the kill to be sent", SOON, async || {
        Ok(server.log_contains("CMD 'client-kill").then_some(()))
    })
    .await?;

    let asked = Instant::now();
    let status = gateway.stop().await?;
    let took = asked.elapsed();
    ensure!(status.success(), "{status}: {}", gateway.log());
    ensure!(took <= DRAIN, "{took:?}");
    let drain = log
        .wait("the drain", SOON, |item| matches!(item, Item::Drain(_)))
        .await?;
    ensure!(!drain.cursor.is_empty(), "{drain:?}");
    poll_until("the stream to end", SOON, async || Ok(log.end()))
        .await?
        .context("stream")?;
    // It was sent before: whatever is known by now, it is not "not sent".
    let killed = kill.await??;
    let outcome = killed.results.first().context("no result")?.outcome();
    ensure!(
        matches!(
            outcome,
            Outcome::Confirmed | Outcome::Accepted | Outcome::Unknown
        ),
        "{killed:#?}"
    );
    client.wait_ended(SOON).await?;
    ensure!(
        !std::path::Path::new(&gateway.socket()).exists(),
        "the socket is left behind"
    );
    Ok(())
}

/// A crash leaves a socket file; the next start must take it over, and a second gateway
/// beside a living one must not.
#[tokio::test]
async fn a_crash_does_not_stand_in_the_way() -> Result<()> {
    let server = Server::builder("crash").start().await?;
    let mut gateway = GatewayConfig::of([&server]).start().await?;
    Api::connect(&gateway).await?.wait_attached().await?;
    gateway.kill();
    gateway.start_again().await?;
    let mut api = Api::connect(&gateway).await?;
    api.wait_attached().await?;

    let config = gateway.config_path().display().to_string();
    let second = ovfleet_tests::run_cli(&["serve", "--config", &config], &[]).await?;
    ensure!(second.code.is_some_and(|code| code != 0), "{second:?}");
    ensure!(second.stderr.contains("ovfleet.sock"), "{second:?}");
    api.status("crash").await?;
    Ok(())
}

/// SIGINT is what a person at a terminal sends; it means the same. SIGHUP is what one
/// sends by habit.
#[tokio::test]
async fn sigint_drains_too() -> Result<()> {
    let mut gateway = GatewayConfig::new().start().await?;
    // Asked to reload, which it does not do by signal, it must not die.
    gateway.signal(Signal::HUP)?;
    Api::connect(&gateway).await?.instances().await?;
    gateway.signal(Signal::INT)?;
    let status = gateway.wait_ended(DRAIN).await?;
    ensure!(status.success(), "{status}: {}", gateway.log());
    Ok(())
}
