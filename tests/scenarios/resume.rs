//! Streams that are cut, and answers that are continued: nothing lost, nothing twice, and
//! where something is missing it is said first.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use openvpn_simulator::{BurstReport, ClientSpec, Daemon, How, Timing};
use ovfleet_proto::v1::{
    self, ClientFilter, ClientRef, GapCause, GapPolicy, StreamEventsRequest,
    stream_events_request::Start, stream_events_response::Frame,
};
use ovfleet_tests::{
    Api, Gateway, GatewayConfig, InstanceConfig,
    api::{reason, timed},
    events::Item,
    poll_until,
};
use tempfile::TempDir;
use tonic::Code;
use tonic_types::StatusExt as _;

/// A simulated daemon says at once what it has to say.
const SOON: Duration = Duration::from_secs(20);
/// For all events of a burst to pass.
const BURST: Duration = Duration::from_secs(120);

/// Simulated daemons and a gateway on them.
struct Fleet {
    daemons: Vec<Daemon>,
    gateway: Gateway,
    api: Api,
    _directory: TempDir,
}

impl Fleet {
    async fn start(daemons: usize, config: GatewayConfig) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut started = Vec::new();
        let mut config = config;
        for number in 0..daemons {
            let name = format!("sim{number}");
            let socket = directory.path().join(&name);
            let timing = Timing {
                delayed_exit: Duration::from_millis(200),
                ..Timing::default()
            };
            let daemon = Daemon::builder(&name)
                .unix(socket)
                .timing(timing)
                .start()
                .await?;
            config = config.instance(InstanceConfig::new(&name, &daemon.address().to_string()));
            started.push(daemon);
        }
        let gateway = config.start().await?;
        let mut api = Api::connect(&gateway).await?;
        api.wait_attached().await?;
        Ok(Self {
            daemons: started,
            gateway,
            api,
            _directory: directory,
        })
    }

    async fn burst(&self, clients: usize) -> Result<Vec<BurstReport>> {
        let bursts = self.daemons.iter().map(|daemon| daemon.burst(clients));
        Ok(futures_util::future::try_join_all(bursts).await?)
    }
}

fn clients_from(start: Start) -> StreamEventsRequest {
    StreamEventsRequest {
        start: Some(start),
        kinds: vec!["client.*".to_owned()],
        ..Default::default()
    }
}

/// Where each client stands by what the stream said of it so far.
#[derive(Default)]
struct Ledger {
    established: BTreeSet<(String, u64)>,
    disconnected: BTreeSet<(String, u64)>,
    last_sequence: u64,
}

impl Ledger {
    fn take(&mut self, event: &v1::Event) -> Result<()> {
        ensure!(
            event.sequence > self.last_sequence,
            "out of order or twice: {event:#?}"
        );
        self.last_sequence = event.sequence;
        let r = event
            .client
            .as_ref()
            .and_then(|client| client.r#ref.as_ref());
        let r = r.with_context(|| format!("no client: {event:?}"))?;
        let key = (r.instance.clone(), r.cid);
        match event.kind.as_str() {
            "client.established" => {
                ensure!(self.established.insert(key), "twice: {event:#?}");
            }
            "client.disconnected" => {
                ensure!(
                    self.established.contains(&key),
                    "before it came: {event:#?}"
                );
                ensure!(self.disconnected.insert(key), "twice: {event:#?}");
            }
            _ => {}
        }
        Ok(())
    }
}

/// A cut that falls between a batch and its cursor, or inside a batch, would lose events or
/// repeat them; 100 cuts in 100,000 events leave little room for luck.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_cuts_lose_nothing_and_repeat_nothing() -> Result<()> {
    const DAEMONS: usize = 10;
    const CLIENTS: usize = 5_000;
    const EVENTS: usize = 2 * DAEMONS * CLIENTS;
    const CUTS: usize = 100;
    let mut journal = toml::Table::new();
    journal.insert("memory".to_owned(), "1GiB".into());
    journal.insert("events".to_owned(), 1_000_000.into());
    let config = GatewayConfig::new().set("journal", journal);
    let fleet = Fleet::start(DAEMONS, config).await?;
    let summary = v1::GetSummaryRequest::default();
    let summary = fleet
        .api
        .clone()
        .fleet
        .get_summary(timed(summary))
        .await?
        .into_inner();
    let mut cursor = summary.as_of.context("no as_of")?.cursor;

    let reading = async {
        let mut ledger = Ledger::default();
        let mut events = 0;
        let mut streams = 0;
        while events < EVENTS {
            streams += 1;
            // Streams of uneven length, so that cuts fall everywhere in a batch's life.
            let until = events + EVENTS / CUTS / 2 + 17 * (streams % 13);
            let request = clients_from(Start::Cursor(cursor.clone()));
            let mut stream = fleet
                .api
                .clone()
                .events
                .stream_events(request)
                .await?
                .into_inner();
            while events < until.min(EVENTS) {
                let response = stream.message().await?.context("the stream ended")?;
                match response.frame.context("no frame")? {
                    Frame::Batch(batch) => {
                        for event in &batch.events {
                            ledger.take(event)?;
                        }
                        events = ledger.established.len() + ledger.disconnected.len();
                        cursor = batch.cursor;
                    }
                    Frame::Bookmark(bookmark) => cursor = bookmark.cursor,
                    other => bail!("{other:?}"),
                }
            }
        }
        Ok((ledger, streams))
    };
    let reading = tokio::time::timeout(BURST, reading);
    let (reports, read) = tokio::join!(fleet.burst(CLIENTS), reading);
    let (ledger, streams) = read.context("the stream stalled")??;
    ensure!(streams > CUTS, "only {streams} streams");
    for (daemon, report) in fleet.daemons.iter().zip(reports?) {
        for cid in (report.first_cid..).take(CLIENTS) {
            let key = (daemon.name().to_owned(), cid);
            ensure!(ledger.established.contains(&key), "{key:?} never came");
            ensure!(ledger.disconnected.contains(&key), "{key:?} never left");
        }
    }
    Ok(())
}

/// Who sleeps too long must be told so before anything else, or be refused if they asked
/// for that; never be handed the rest as if it were all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_that_fell_out_gives_the_gap_first() -> Result<()> {
    let mut journal = toml::Table::new();
    journal.insert("events".to_owned(), 2_000.into());
    let config = GatewayConfig::new().set("journal", journal);
    let mut fleet = Fleet::start(1, config).await?;
    let summary = fleet
        .api
        .fleet
        .get_summary(timed(v1::GetSummaryRequest::default()))
        .await?;
    let cursor = summary.into_inner().as_of.context("no as_of")?.cursor;
    let report = fleet.burst(4_000).await?.remove(0);
    let last = report.first_cid + 3_999;

    let log = fleet
        .api
        .follow_request(clients_from(Start::Cursor(cursor.clone())))
        .await?;
    log.wait_event("the end of the burst", BURST, |event| {
        let r = event
            .client
            .as_ref()
            .and_then(|client| client.r#ref.as_ref());
        event.kind == "client.disconnected" && r.is_some_and(|r| r.cid == last)
    })
    .await?;
    let received = log.received();
    let first = received.first().and_then(|received| received.item.gap());
    let gap = first.with_context(|| format!("first: {:?}", received.first()))?;
    ensure!(gap.cause() == GapCause::Compacted, "{gap:?}");
    let gaps = received
        .iter()
        .filter(|received| received.item.gap().is_some())
        .count();
    ensure!(gaps == 1, "{gaps} gaps");

    let strict = |cursor| StreamEventsRequest {
        on_gap: GapPolicy::Fail.into(),
        ..clients_from(Start::Cursor(cursor))
    };
    let status = match fleet.api.events.stream_events(strict(cursor)).await {
        Err(status) => status,
        Ok(stream) => stream
            .into_inner()
            .message()
            .await
            .err()
            .context("no error")?,
    };
    ensure!(status.code() == Code::OutOfRange, "{status:?}");
    ensure!(
        reason(&status).as_deref() == Some("CURSOR_COMPACTED"),
        "{status:?}"
    );
    // The cursor that comes with the refusal is one that is not refused.
    let info = status.get_details_error_info().context("no details")?;
    let oldest = info.metadata.get("oldest").context("no oldest cursor")?;
    let mut stream = fleet
        .api
        .events
        .stream_events(strict(oldest.clone()))
        .await?
        .into_inner();
    let frame = stream.message().await?.and_then(|message| message.frame);
    ensure!(matches!(frame, Some(Frame::Batch(_))), "{frame:?}");
    Ok(())
}

/// A journal in memory ends with its gateway, also when that crashes: an old cursor must
/// not land somewhere in the new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_from_before_a_restart_gives_the_gap_first() -> Result<()> {
    let mut fleet = Fleet::start(2, GatewayConfig::new()).await?;
    let summary = fleet
        .api
        .fleet
        .get_summary(timed(v1::GetSummaryRequest::default()))
        .await?;
    let cursor = summary.into_inner().as_of.context("no as_of")?.cursor;
    fleet.daemons[0].connect(ClientSpec::new("before")).await?;
    fleet.gateway.kill();
    fleet.gateway.start_again().await?;
    let mut api = Api::connect(&fleet.gateway).await?;
    api.wait_attached().await?;
    fleet.daemons[1].connect(ClientSpec::new("after")).await?;

    let log = api.follow_from(Start::Cursor(cursor)).await?;
    log.wait_event("what happened since", SOON, |event| {
        event
            .client
            .as_ref()
            .is_some_and(|client| client.common_name == "after")
    })
    .await?;
    let received = log.received();
    let first = received.first().and_then(|received| received.item.gap());
    let gap = first.with_context(|| format!("first: {:?}", received.first()))?;
    ensure!(
        matches!(
            gap.cause(),
            GapCause::GatewayRestarted | GapCause::JournalReplaced
        ),
        "{gap:?}"
    );

    for start in ["", "no cursor", "\u{7f}", &"A".repeat(5_000)] {
        let request = clients_from(Start::Cursor(start.to_owned()));
        let status = match api.events.stream_events(request).await {
            Err(status) => status,
            Ok(stream) => stream
                .into_inner()
                .message()
                .await
                .err()
                .context("no error")?,
        };
        ensure!(
            status.code() == Code::InvalidArgument,
            "{start:?}: {status:?}"
        );
    }
    let nowhere = StreamEventsRequest::default();
    let status = match api.events.stream_events(nowhere).await {
        Err(status) => status,
        Ok(stream) => stream
            .into_inner()
            .message()
            .await
            .err()
            .context("no error")?,
    };
    ensure!(status.code() == Code::InvalidArgument, "{status:?}");
    Ok(())
}

/// Clients that come, go and come again on every daemon, by a fixed plan, until told to
/// stop; `steps` is how many moves each daemon makes.
async fn churn(daemons: &[Daemon], steps: u64) -> Result<()> {
    let moves = daemons.iter().enumerate().map(async |(number, daemon)| {
        let mut connected = Vec::new();
        for step in 0..steps {
            let pick = (step * 7 + number as u64) % 5;
            if pick < 3 || connected.is_empty() {
                let name = format!("client {}", step % 17);
                connected.push(daemon.connect(ClientSpec::new(name)).await?);
            } else {
                let cid = connected.remove(usize::try_from(step)? % connected.len());
                let how =
                    [How::ExitNotify, How::PingTimeout, How::TcpClose][usize::try_from(step % 3)?];
                // The same name may have taken its place meanwhile.
                let _ = daemon.leave(cid, how).await;
            }
        }
        Ok::<_, anyhow::Error>(())
    });
    futures_util::future::try_join_all(moves).await?;
    Ok(())
}

/// What the daemons themselves have, once nobody is leaving any more.
async fn truth(daemons: &[Daemon]) -> Result<BTreeSet<(String, u64)>> {
    poll_until("the daemons to settle", SOON, async || {
        let mut truth = BTreeSet::new();
        for daemon in daemons {
            for client in daemon.clients().await? {
                if client.leaving {
                    return Ok(None);
                }
                truth.insert((daemon.name().to_owned(), client.cid));
            }
        }
        Ok(Some(truth))
    })
    .await
}

fn key(r: &ClientRef) -> (String, u64) {
    (r.instance.clone(), r.cid)
}

async fn listed(api: &mut Api) -> Result<BTreeSet<(String, u64)>> {
    let rows = api.clients(ClientFilter::default()).await?;
    Ok(rows
        .iter()
        .filter_map(|row| row.r#ref.as_ref().map(key))
        .collect())
}

/// A hole between a list and the stream that continues it would leave ghosts in every
/// cache built on the two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_and_its_cursor_rebuild_the_later_list() -> Result<()> {
    let fleet = Fleet::start(4, GatewayConfig::new()).await?;
    churn(&fleet.daemons, 40).await?;
    let mut api = fleet.api.clone();
    // The list is taken in the middle of it all.
    let request = v1::ListClientsRequest {
        page_size: 1_000,
        ..Default::default()
    };
    let (moved, list) = tokio::join!(
        churn(&fleet.daemons, 200),
        api.fleet.list_clients(timed(request))
    );
    moved?;
    let list = list?.into_inner();
    let mut rebuilt: BTreeSet<(String, u64)> = list
        .clients
        .iter()
        .filter_map(|row| row.r#ref.as_ref().map(key))
        .collect();
    let cursor = list.as_of.context("no as_of")?.cursor;

    let truth = truth(&fleet.daemons).await?;
    let mut api = fleet.api.clone();
    let later = poll_until("the list to settle", SOON, async || {
        let now = listed(&mut api).await?;
        Ok((now == truth).then_some(now))
    })
    .await?;
    let replay = StreamEventsRequest {
        follow: Some(false),
        ..clients_from(Start::Cursor(cursor))
    };
    let log = api.follow_request(replay).await?;
    poll_until("the replay to end", SOON, async || Ok(log.end()))
        .await?
        .context("replay")?;
    for received in log.received() {
        match &received.item {
            Item::Event(event) => {
                let r = event
                    .client
                    .as_ref()
                    .and_then(|client| client.r#ref.as_ref());
                let r = r.context("no client")?;
                match event.kind.as_str() {
                    "client.established" => rebuilt.insert(key(r)),
                    "client.disconnected" => rebuilt.remove(&key(r)),
                    // Facts about clients that stay or are on their way.
                    _ => true,
                };
            }
            Item::Gap(gap) => bail!("{gap:?}"),
            Item::Bookmark(_) | Item::Drain(_) => {}
        }
    }
    ensure!(
        rebuilt == later,
        "rebuilt {rebuilt:#?}\nbut the list is {later:#?}"
    );
    Ok(())
}

/// The other way to keep a copy: the watch must end up where the list is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_ends_up_where_the_list_is() -> Result<()> {
    let fleet = Fleet::start(4, GatewayConfig::new()).await?;
    churn(&fleet.daemons, 40).await?;
    let request = v1::WatchFleetRequest {
        min_interval: Some(prost_types::Duration {
            seconds: 0,
            nanos: 100_000_000,
        }),
        ..Default::default()
    };
    let mut watch = fleet
        .api
        .clone()
        .fleet
        .watch_fleet(request)
        .await?
        .into_inner();
    let moved = tokio::spawn({
        let daemons = fleet.daemons;
        async move { churn(&daemons, 200).await.map(|()| daemons) }
    });
    let mut copy: BTreeMap<(String, u64), v1::Client> = BTreeMap::new();
    let mut synced = false;
    let mut expected = None;
    let mut moved = Some(moved);
    let settled = async {
        loop {
            if moved
                .as_ref()
                .is_some_and(tokio::task::JoinHandle::is_finished)
                && let Some(moved) = moved.take()
            {
                let daemons = moved.await??;
                expected = Some((truth(&daemons).await?, daemons));
            }
            if let Some((expected, _)) = &expected
                && synced
                && copy.keys().cloned().collect::<BTreeSet<_>>() == *expected
            {
                return Ok(());
            }
            let next = tokio::time::timeout(Duration::from_secs(1), watch.message()).await;
            let Ok(response) = next else { continue };
            match response?.context("the watch ended")?.frame {
                Some(v1::watch_fleet_response::Frame::Changes(changes)) => {
                    for client in changes.clients {
                        let r = client.r#ref.as_ref().map(key).context("no ref")?;
                        copy.insert(r, client);
                    }
                    for deleted in changes.deleted_clients {
                        let r = deleted.r#ref.as_ref().map(key).context("no ref")?;
                        ensure!(copy.remove(&r).is_some(), "{r:?} was never there");
                    }
                }
                Some(v1::watch_fleet_response::Frame::Synced(_)) => {
                    ensure!(!synced, "two sync markers");
                    synced = true;
                }
                Some(_) | None => {}
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), settled)
        .await
        .context("never settled")?
}
