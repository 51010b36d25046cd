//! From a daemon's line to an event in a caller's hands, with and without a state
//! directory, beside the same line through a raw relay of Unix sockets.

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

/// A way that lines go, and a daemon that writes them.
struct Way<'a> {
    name: &'static str,
    daemon: &'a Daemon,
    receipts: Arc<Receipts>,
}

pub(crate) async fn run(callers: &Handle) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let daemons = fleet::start_daemons(directory.path(), 3).await?;
    let [relayed, watched, kept] = daemons.as_slice() else {
        unreachable!("three were asked for");
    };

    let sink = directory.path().join("sink");
    let relay_received = relay::receive(UnixListener::bind(&sink)?);
    let source = directory.path().join(format!("{}.sock", relayed.name()));
    let _relay = start_peer(&["relay", &source.to_string_lossy(), &sink.to_string_lossy()])?;
    relayed.wait_attached().await;

    let in_memory = fleet::config([watched]).start().await?;
    let state = directory.path().join("state").display().to_string();
    let on_disk = fleet::config([kept])
        .set("state_dir", state)
        .start()
        .await?;
    for gateway in [&in_memory, &on_disk] {
        fleet::wait_attached(gateway, 1, 0).await?;
    }

    let ways = [
        Way {
            name: "raw relay",
            daemon: relayed,
            receipts: relay_received,
        },
        Way {
            name: "gateway",
            daemon: watched,
            receipts: callers.spawn(follow(in_memory.socket())).await??,
        },
        Way {
            name: "gateway with a state_dir",
            daemon: kept,
            receipts: callers.spawn(follow(on_disk.socket())).await??,
        },
    ];

    println!(
        "a daemon's line -> event in a gRPC caller's hands, beside the same line through a raw"
    );
    println!("relay of two Unix sockets, read by lines; microseconds");
    println!(
        "{:<34}{:>8}{:>10}{:>10}{:>12}{:>8}",
        "", "events", "p50", "p99", "events/s", "p50 by"
    );
    // In turn, so that a busy machine is busy for all.
    let speed = 3 * IDLE_PER_SECOND;
    let stamps = paced(&ways.each_ref().map(|way| way.daemon), speed, IDLE_EVENTS).await?;
    println!("{IDLE_PER_SECOND}/s: each at once");
    print(&ways, stamps).await?;

    let mut stamps = Vec::with_capacity(ways.len());
    for way in &ways {
        stamps.extend(paced(&[way.daemon], BUSY_PER_SECOND, BUSY_EVENTS).await?);
    }
    println!("{BUSY_PER_SECOND}/s: batches of up to 50 ms");
    print(&ways, stamps).await?;

    let mut stamps = Vec::with_capacity(ways.len());
    for way in &ways {
        let written = burst(way.daemon).await?;
        // The next shall have the machine for itself.
        way.receipts.wait(&written).await?;
        stamps.push(written);
    }
    println!("as fast as they are read");
    print(&ways, stamps).await?;
    println!();
    Ok(())
}

/// Prints a row for each way; the first is the floor of the others.
async fn print(ways: &[Way<'_>], stamps: Vec<Stamps>) -> Result<()> {
    let mut floor = None;
    for (way, stamps) in ways.iter().zip(stamps) {
        let latencies = way.receipts.latencies(&stamps).await?;
        let [p50, p99] = [50, 99].map(|percent| micros(percentile(&latencies.sorted, percent)));
        let floor = *floor.get_or_insert(p50);
        println!(
            "  {:<32}{:>8}{p50:>10.0}{p99:>10.0}{:>12.0}{:>7.1}x",
            way.name,
            latencies.sorted.len(),
            latencies.per_second,
            p50 / floor,
        );
    }
    Ok(())
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

    /// Waits until as many came as were written.
    async fn wait(&self, stamps: &Stamps) -> Result<()> {
        poll_until("the last event", ARRIVAL_TIMEOUT, async || {
            Ok((self.lock().len() >= stamps.len()).then_some(()))
        })
        .await
    }

    /// Waits until as many came as were written, then forgets them.
    async fn latencies(&self, stamps: &Stamps) -> Result<Latencies> {
        self.wait(stamps).await?;
        let received = std::mem::take(&mut *self.lock());
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
