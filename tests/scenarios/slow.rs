//! Callers that do not read: they cost themselves their stream, and nobody else anything.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use openvpn_simulator::Daemon;
use ovfleet_proto::v1::{
    self, StreamEventsRequest, stream_events_request::Start, stream_events_response::Frame,
};
use ovfleet_tests::{
    Api, Gateway, GatewayConfig, InstanceConfig, api::timed, poll_until, random::allowed,
};
use tempfile::TempDir;
use tonic::{Code, Streaming};

/// Enough events that no buffer between gateway and caller takes them all.
const CLIENTS: usize = 20_000;
/// A caller blocked for 60 s is cut, by a watchdog that looks now and then.
const CUT: Duration = Duration::from_secs(75);
/// A call that has nothing to do with a caller who does not read.
const UNDISTURBED: Duration = Duration::from_secs(2);
/// How long a drain may take.
const DRAIN: Duration = Duration::from_secs(12);

/// A gateway with one simulated daemon and a stream that nobody reads.
struct Stalled {
    gateway: Gateway,
    daemon: Daemon,
    api: Api,
    stream: Streaming<v1::StreamEventsResponse>,
    _directory: TempDir,
}

impl Stalled {
    async fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let daemon = Daemon::builder("sim")
            .unix(directory.path().join("sim"))
            .start()
            .await?;
        let mut journal = toml::Table::new();
        journal.insert("memory".to_owned(), "1GiB".into());
        let gateway = GatewayConfig::new()
            .set("journal", journal)
            .instance(InstanceConfig::new("sim", &daemon.address().to_string()))
            .start()
            .await?;
        let mut api = Api::connect(&gateway).await?;
        api.wait_attached().await?;
        // A connection of its own: what it blocks is only itself.
        let mut slow = Api::connect(&gateway).await?;
        let request = StreamEventsRequest {
            start: Some(Start::Oldest(true)),
            kinds: vec!["client.*".to_owned()],
            ..Default::default()
        };
        let stream = slow.events.stream_events(request).await?.into_inner();
        daemon.burst(CLIENTS).await?;
        Ok(Self {
            gateway,
            daemon,
            api,
            stream,
            _directory: directory,
        })
    }
}

/// A caller that stops reading must be cut, must learn where to resume, and must not have
/// slowed anybody down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_is_cut_and_can_resume() -> Result<()> {
    let mut stalled = Stalled::start().await?;
    let asked = Instant::now();
    let log = stalled.api.follow().await?;
    let report = stalled.daemon.burst(1).await?;
    log.wait_event("an event of others", allowed(UNDISTURBED), |event| {
        let r = event
            .client
            .as_ref()
            .and_then(|client| client.r#ref.as_ref());
        r.is_some_and(|r| r.cid == report.first_cid)
    })
    .await?;
    let took = asked.elapsed();
    ensure!(took <= allowed(UNDISTURBED), "{took:?}");

    let blocked = Instant::now();
    poll_until("the patience to end", CUT + UNDISTURBED, async || {
        Ok((blocked.elapsed() >= CUT).then_some(()))
    })
    .await?;
    // What is still buffered comes first, then the end.
    let mut cursor = String::new();
    let mut events = 0;
    let end = loop {
        match stalled.stream.message().await {
            Ok(Some(response)) => match response.frame.context("no frame")? {
                Frame::Batch(batch) => {
                    events += batch.events.len();
                    cursor = batch.cursor;
                }
                Frame::Bookmark(bookmark) => cursor = bookmark.cursor,
                other => bail!("{other:?}"),
            },
            Ok(None) => bail!("ended as if nothing were amiss after {events} events"),
            Err(status) => break status,
        }
        ensure!(events < 2 * CLIENTS, "it was never cut");
    };
    ensure!(
        matches!(
            end.code(),
            Code::ResourceExhausted
                | Code::Internal
                | Code::Cancelled
                | Code::Unavailable
                | Code::Unknown
        ),
        "{end:?}"
    );
    eprintln!("cut after {events} events: {end:?}");
    // Resumed where it was cut, it gets the rest: each client came and left once.
    let request = StreamEventsRequest {
        start: Some(Start::Cursor(cursor)),
        kinds: vec!["client.*".to_owned()],
        follow: Some(false),
        ..Default::default()
    };
    let mut rest = stalled
        .api
        .events
        .stream_events(request)
        .await?
        .into_inner();
    while let Some(response) = rest.message().await? {
        match response.frame.context("no frame")? {
            Frame::Batch(batch) => events += batch.events.len(),
            Frame::Gap(gap) => bail!("{gap:?}"),
            Frame::Bookmark(_) | Frame::Drain(_) => {}
        }
    }
    ensure!(events == 2 * (CLIENTS + 1), "{events} events");
    Ok(())
}

/// A caller that neither reads nor leaves must not keep the gateway from ending.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_cannot_keep_the_gateway() -> Result<()> {
    let mut stalled = Stalled::start().await?;
    stalled
        .api
        .fleet
        .get_summary(timed(v1::GetSummaryRequest::default()))
        .await?;
    let asked = Instant::now();
    let status = stalled.gateway.stop().await?;
    ensure!(asked.elapsed() <= DRAIN, "{:?}", asked.elapsed());
    ensure!(status.success(), "{status}");
    Ok(())
}
