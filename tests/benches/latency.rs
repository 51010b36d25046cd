//! From a daemon's line to an event in a caller's hands, beside the same line through a
//! raw relay of Unix sockets.

use std::{
    collections::HashMap,
    os::unix::net::UnixListener,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use openvpn_simulator::{ClientSpec, Daemon};
use ovfleet_proto::v1::{
    StreamEventsRequest, StreamEventsResponse, event_service_client::EventServiceClient,
    stream_events_request::Start, stream_events_response::Frame,
};
use ovfleet_tests::poll_until;
use tokio::{runtime::Handle, time::interval};
use tonic::{Streaming, transport::Endpoint};

use crate::{
    fleet,
    measure::{micros, percentile},
    relay, start_peer,
};

/// Slow enough that a stream sends every event at once, see `StreamEvents`.
const IDLE_PER_SECOND: u32 = 15;
const IDLE_EVENTS: usize = 300;
/// Fast enough that a stream sends events in batches.
const BUSY_PER_SECOND: u32 = 1_000;
const BUSY_EVENTS: usize = 3_000;
/// Each connects and leaves: two events.
const BURST_CLIENTS: usize = 20_000;
/// How long the last event may take behind the last line.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(30);

/// What a `>CLIENT:` line tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Established,
    Disconnected,
}

/// What came, and when.
#[derive(Debug, Default)]
pub(crate) struct Receipts(Mutex<Vec<(Kind, u64, Instant)>>);

/// When each line had been handed to the kernel.
type Stamps = HashMap<(Kind, u64), Instant>;

/// How long lines took, shortest first, and how many came in a second.
struct Latencies {
    sorted: Vec<Duration>,
    per_second: f64,
}

pub(crate) async fn run(callers: &Handle) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let daemons = fleet::start_daemons(directory.path(), 2).await?;
    let [watched, relayed] = daemons.as_slice() else {
        unreachable!("two were asked for");
    };

    let gateway = fleet::config([watched]).start().await?;
    fleet::wait_attached(&gateway, 1, 0).await?;
    let socket = gateway.socket();
    let received = callers.spawn(follow(socket)).await??;

    let sink = directory.path().join("sink");
    let relay_received = relay::receive(UnixListener::bind(&sink)?);
    let source = directory.path().join(format!("{}.sock", relayed.name()));
    let _relay = start_peer(&["relay", &source.to_string_lossy(), &sink.to_string_lossy()])?;
    relayed.wait_attached().await;

    println!(
        "a daemon's line -> event in a gRPC caller's hands, beside the same line through a raw"
    );
    println!("relay of two Unix sockets, read by lines; microseconds");
    println!(
        "{:<34}{:>8}{:>10}{:>10}{:>12}{:>11}{:>11}{:>8}",
        "", "events", "p50", "p99", "events/s", "relay p50", "relay p99", "p50 by"
    );
    // In turn, so that a busy machine is busy for both.
    let stamps = paced(&[watched, relayed], 2 * IDLE_PER_SECOND, IDLE_EVENTS).await?;
    let [watched_stamps, relayed_stamps] = stamps.try_into().ok().context("two daemons")?;
    let ours = received.latencies(&watched_stamps).await?;
    let theirs = relay_received.latencies(&relayed_stamps).await?;
    print(
        &format!("{IDLE_PER_SECOND}/s: each at once"),
        &ours,
        &theirs,
    );

    let ours = received.latencies(&busy(watched).await?).await?;
    let theirs = relay_received.latencies(&busy(relayed).await?).await?;
    print(
        &format!("{BUSY_PER_SECOND}/s: batches of up to 50 ms"),
        &ours,
        &theirs,
    );

    let ours = received.latencies(&burst(watched).await?).await?;
    let theirs = relay_received.latencies(&burst(relayed).await?).await?;
    print("as fast as they are read", &ours, &theirs);
    println!();
    Ok(())
}

fn print(name: &str, ours: &Latencies, theirs: &Latencies) {
    let [p50, p99] = [50, 99].map(|percent| micros(percentile(&ours.sorted, percent)));
    let [relay_p50, relay_p99] =
        [50, 99].map(|percent| micros(percentile(&theirs.sorted, percent)));
    println!(
        "{name:<34}{:>8}{p50:>10.0}{p99:>10.0}{:>12.0}{relay_p50:>11.0}{relay_p99:>11.0}{:>7.1}x",
        ours.sorted.len(),
        ours.per_second,
        p50 / relay_p50,
    );
}

// ---- lines

/// Connects `count` clients to each of `daemons`, one at a time, in turn.
async fn paced(daemons: &[&Daemon], per_second: u32, count: usize) -> Result<Vec<Stamps>> {
    let mut ticks = interval(Duration::from_secs(1) / per_second);
    let mut stamps = vec![Stamps::new(); daemons.len()];
    for number in 0..count {
        for (daemon, stamps) in daemons.iter().zip(&mut stamps) {
            ticks.tick().await;
            let client = ClientSpec::new(format!("client-{number:05}.example.org"));
            let (cid, written) = daemon.connect_stamped(client).await?;
            stamps.insert((Kind::Established, cid), written);
        }
    }
    Ok(stamps)
}

async fn busy(daemon: &Daemon) -> Result<Stamps> {
    let stamps = paced(&[daemon], BUSY_PER_SECOND, BUSY_EVENTS).await?;
    stamps.into_iter().next().context("one daemon")
}

async fn burst(daemon: &Daemon) -> Result<Stamps> {
    let report = daemon.burst(BURST_CLIENTS).await?;
    let kinds = [Kind::Established, Kind::Disconnected];
    let lines = (report.first_cid..).flat_map(|cid| kinds.map(|kind| (kind, cid)));
    Ok(lines.zip(report.written).collect())
}

// ---- events

impl Receipts {
    pub(crate) fn push(&self, kind: Kind, cid: u64, at: Instant) {
        self.lock().push((kind, cid, at));
    }

    /// Waits until as many came as were written, then forgets them.
    async fn latencies(&self, stamps: &Stamps) -> Result<Latencies> {
        let received = poll_until("the last event", ARRIVAL_TIMEOUT, async || {
            let mut received = self.lock();
            Ok((received.len() >= stamps.len()).then(|| std::mem::take(&mut *received)))
        })
        .await?;
        let mut sorted = Vec::with_capacity(received.len());
        for (kind, cid, at) in &received {
            let written = stamps.get(&(*kind, *cid)).context("nobody wrote that")?;
            // The kernel may wake the reader before it returns to the writer.
            sorted.push(at.saturating_duration_since(*written));
        }
        ensure!(sorted.len() == stamps.len(), "some came twice");
        sorted.sort_unstable();
        let first = stamps.values().min().context("nothing was written")?;
        let last = received
            .iter()
            .map(|(_, _, at)| *at)
            .max()
            .context("nothing came")?;
        let per_second = sorted.len() as f64 / last.duration_since(*first).as_secs_f64();
        Ok(Latencies { sorted, per_second })
    }

    /// Guards what is whole after every assignment, so a panic elsewhere leaves it usable.
    fn lock(&self) -> MutexGuard<'_, Vec<(Kind, u64, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Begins a stream of events, which is there when this returns.
async fn follow(socket: String) -> Result<Arc<Receipts>> {
    let channel = Endpoint::try_from(format!("unix:{socket}"))?
        .connect()
        .await?;
    let request = StreamEventsRequest {
        start: Some(Start::Now(true)),
        kinds: vec!["client.*".to_owned()],
        ..Default::default()
    };
    let response = EventServiceClient::new(channel)
        .stream_events(request)
        .await?;
    let mut stream = response.into_inner();
    // A stream that starts now begins with a bookmark.
    stream.message().await?.context("the stream ended")?;
    let receipts = Arc::new(Receipts::default());
    tokio::spawn(read(stream, Arc::clone(&receipts)));
    Ok(receipts)
}

async fn read(mut stream: Streaming<StreamEventsResponse>, receipts: Arc<Receipts>) {
    // An error means that the gateway is gone; who waits for events finds them missing.
    while let Ok(Some(StreamEventsResponse { frame })) = stream.message().await {
        let now = Instant::now();
        let Some(Frame::Batch(batch)) = frame else {
            continue;
        };
        for event in batch.events {
            let kind = match event.kind.as_str() {
                "client.established" => Kind::Established,
                "client.disconnected" => Kind::Disconnected,
                _ => continue,
            };
            let client = event.client.and_then(|client| client.r#ref);
            if let Some(client) = client {
                receipts.push(kind, client.cid, now);
            }
        }
    }
}
