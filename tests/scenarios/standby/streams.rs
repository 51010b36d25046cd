//! Streams that go on at the process that takes over.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join;
use openvpn_simulator::{ClientSpec, Daemon};
use ovfleet_proto::v1::{GapCause, stream_events_request::Start};
use ovfleet_tests::{
    Api, Gateway, GatewayConfig, InstanceConfig,
    events::{EventLog, Item, Received},
    poll_until,
    random::{Random, allowed, soak},
};
use tokio::sync::oneshot;

use super::{SOON, TAKEN_OVER, standby_of};

/// Each is to be held by the new process in time.
const DAEMONS: usize = 20;
/// Clients that connect before the change and are on disk by then; the cursor is in their midst.
const WRITTEN: usize = 30;

/// A gateway on simulated daemons, whose first tells of clients by number: each is the next.
struct Fleet {
    daemons: Vec<Daemon>,
    gateway: Gateway,
    /// Numbers of clients that connected.
    clients: usize,
    _directory: tempfile::TempDir,
}

impl Fleet {
    async fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut config = GatewayConfig::new().set("state_dir", "state");
        let mut daemons = Vec::new();
        for number in 0..DAEMONS {
            let name = format!("sim{number}");
            let builder = Daemon::builder(&name).unix(directory.path().join(&name));
            let daemon = builder.start().await?;
            config = config.instance(InstanceConfig::new(&name, &daemon.address().to_string()));
            daemons.push(daemon);
        }
        let gateway = config.start().await?;
        Api::connect(&gateway).await?.wait_attached().await?;
        Ok(Self {
            daemons,
            gateway,
            clients: 0,
            _directory: directory,
        })
    }

    /// Waits until everything that has happened is on disk.
    async fn wait_written(&self) -> Result<()> {
        poll_until("the disk to have everything", SOON, async || {
            let (_, metrics) = self.gateway.http_get("/metrics").await?;
            let lag = metrics
                .lines()
                .find_map(|line| line.strip_prefix("ovfleet_state_journal_lag_seconds "));
            Ok((lag.context("no lag")?.parse::<f64>()? == 0.0).then_some(()))
        })
        .await
    }
}

/// Connects client `number`.
async fn connect(daemon: &Daemon, number: usize) -> Result<()> {
    let client = ClientSpec::new(format!("client {number}"));
    daemon.connect(client).await?;
    Ok(())
}

/// Connects clients, one after the other, from number `clients` on, until told to stop.
async fn flood(
    daemon: &Daemon,
    clients: &mut usize,
    mut stop: oneshot::Receiver<()>,
) -> Result<()> {
    while stop.try_recv() == Err(oneshot::error::TryRecvError::Empty) {
        connect(daemon, *clients).await?;
        *clients += 1;
        // So that not all of them come before the change.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// The number of the client that an item tells of, and whether it was found by comparison.
fn client_of(item: &Item) -> Option<(usize, bool)> {
    let event = item.event()?;
    if event.kind != "client.established" {
        return None;
    }
    let number = event.client.as_ref()?.common_name.strip_prefix("client ")?;
    Some((number.parse().ok()?, event.inferred.is_some()))
}

/// Waits until `log` has told of client `number`.
async fn wait_client(log: &EventLog, number: usize) -> Result<Received> {
    let what = format!("client {number}");
    log.wait(&what, SOON, |item| {
        client_of(item).is_some_and(|(told, _)| told == number)
    })
    .await
}

/// Judges what came behind a cursor, before which clients below `first` were told of: nobody is
/// skipped without a gap, nobody told of twice but those that are found again, and everyone is told
/// of that there is, which is those below `clients`. Gives the first that was not before the gap.
fn judge(received: &[Received], first: usize, clients: usize) -> Result<usize> {
    let (mut next, mut sequence) = (first, 0);
    let mut before_gap = None;
    let mut told = BTreeSet::new();
    for Received { item, .. } in received {
        match item {
            Item::Gap(gap) => {
                let named = [GapCause::GatewayRestarted, GapCause::Unobserved];
                ensure!(named.contains(&gap.cause()), "{gap:?}");
                if gap.instance.is_empty() || gap.instance == "sim0" {
                    before_gap.get_or_insert(next);
                }
            }
            Item::Event(event) => {
                ensure!(event.sequence > sequence, "behind {sequence}: {event:?}");
                sequence = event.sequence;
                let Some((number, inferred)) = client_of(item) else {
                    continue;
                };
                let due = if before_gap.is_some() {
                    inferred || number >= next
                } else {
                    !inferred && number == next
                };
                ensure!(due, "client {number}, inferred: {inferred}; {next} was due");
                if !inferred {
                    next = number + 1;
                }
                told.insert(number);
            }
            Item::Bookmark(_) | Item::Drain(_) => {}
        }
    }
    let missing = (first..clients).find(|number| !told.contains(number));
    ensure!(missing.is_none(), "nobody told of client {missing:?}");
    before_gap.context("the change was not told of")
}

/// Who follows a stream with a cursor is told by the process that takes over, from the state
/// directory that both share, of everything that was written, then of the gap, and then of
/// everybody who is there. An orderly end loses nothing that anybody was told; a crash nothing
/// that was on disk. And each instance is held in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_go_on_at_the_standby() -> Result<()> {
    let rounds = if soak() { 40 } else { 4 };
    let mut random = Random::seeded("standby");
    let mut fleet = Fleet::start().await?;
    let mut slowest = Duration::ZERO;
    for round in 0..rounds {
        let crash = round % 2 == 0;
        let pause = Duration::from_millis(random.below(60));
        let took = change(&mut fleet, crash, pause)
            .await
            .with_context(|| format!("round {round}, crash: {crash}, after {pause:?}"))?;
        slowest = slowest.max(took);
    }
    eprintln!(
        "{rounds} changes, {} clients: {DAEMONS} instances attached within {slowest:?}",
        fleet.clients
    );
    // Twenty at once, on processors that are busy: what one takes is measured where there are two.
    ensure!(slowest <= allowed(2 * TAKEN_OVER), "{slowest:?}");
    Ok(())
}

/// One change of the process; gives how long it took until all instances were held.
async fn change(fleet: &mut Fleet, crash: bool, pause: Duration) -> Result<Duration> {
    let standby = standby_of(&fleet.gateway, &format!("standby{}.log", fleet.clients)).await?;
    let mut api = Api::connect(&fleet.gateway).await?;
    let log = api.follow().await?;
    let begin = fleet.clients;
    for _ in 0..WRITTEN {
        connect(&fleet.daemons[0], fleet.clients).await?;
        fleet.clients += 1;
    }
    let last_written = fleet.clients - 1;
    wait_client(&log, last_written).await?;
    let cursor = wait_client(&log, begin + WRITTEN / 2).await?.cursor;
    // A batch has one cursor, behind its last event.
    let first = log
        .received()
        .iter()
        .filter(|one| one.cursor == cursor)
        .filter_map(|one| client_of(&one.item))
        .map(|(number, _)| number + 1)
        .max()
        .context("no such cursor")?;
    fleet.wait_written().await?;

    let Fleet {
        daemons,
        gateway,
        clients,
        ..
    } = fleet;
    let (stop, stopped) = oneshot::channel();
    let flooding = flood(&daemons[0], clients, stopped);
    let changing = async {
        // The moment is what varies.
        tokio::time::sleep(pause).await;
        if crash {
            gateway.kill();
        } else {
            let status = gateway.stop().await?;
            ensure!(status.success(), "{status}: {}", gateway.log());
        }
        let ended = Instant::now();
        gateway.follow(standby).await?;
        let mut api = Api::connect(gateway).await?;
        api.wait_attached().await?;
        let took = ended.elapsed();
        drop(stop);
        Ok((api, took))
    };
    let ((), (mut api, took)) = try_join(flooding, changing).await?;
    let told_live = log.received();
    let last_live = told_live.iter().filter_map(|one| client_of(&one.item));
    let last_live = last_live.map(|(number, _)| number).max();

    let resumed = api.follow_from(Start::Cursor(cursor)).await?;
    wait_client(&resumed, *clients - 1).await?;
    let before_gap = judge(&resumed.received(), first, *clients)?;
    // What must have come from the disk.
    let kept = match last_live {
        Some(last) if !crash => last,
        _ => last_written,
    };
    ensure!(
        before_gap > kept,
        "up to {before_gap} before the gap, and {kept} was kept"
    );
    Ok(took)
}
