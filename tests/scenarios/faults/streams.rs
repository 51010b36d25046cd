//! Event streams against a model, as callers get them: numbered facts from daemons, streams that
//! are cut, dawdle and come back, floods, and a gateway that dies.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use openvpn_simulator::{ClientSpec, Daemon, How};
use ovfleet_proto::v1::{
    self, EventClass, GapCause, GapPolicy, StreamEventsRequest, stream_events_request::Start,
    stream_events_response::Frame,
};
use ovfleet_tests::{
    Api, Gateway, GatewayConfig, InstanceConfig,
    api::{named, reason},
    history::{CLASSES, Fact, Follower},
    poll_until,
    random::{Random, soak},
};
use tokio::sync::watch;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

pub(super) const DAEMONS: usize = 3;
pub(super) const READERS: usize = 6;
/// Everything a gateway on simulated daemons has to do here takes less, on a busy machine too.
pub(super) const SOON: Duration = Duration::from_secs(120);
/// Events kept: so few that a reader who looks away for a moment is overtaken.
const EVENTS_MAX: usize = 1_000;
/// More lines at once than the gateway takes of one daemon.
const FLOOD: u64 = 6_000;

/// A kind of line that carries a fact, and the kind of event it becomes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Carrier {
    Client,
    Log,
    Echo,
    Info,
    Unrecognized,
}

impl Carrier {
    pub(super) const ALL: [Self; 5] = [
        Self::Client,
        Self::Log,
        Self::Echo,
        Self::Info,
        Self::Unrecognized,
    ];

    const fn kind(self) -> &'static str {
        match self {
            Self::Client => "client.established",
            Self::Log => "instance.log",
            Self::Echo => "instance.echo",
            Self::Info => "instance.info",
            Self::Unrecognized => "instance.unrecognized",
        }
    }

    const fn class(self) -> usize {
        match self {
            Self::Client => 0,
            Self::Log | Self::Echo => 1,
            Self::Info | Self::Unrecognized => 2,
        }
    }

    pub(super) fn line(self, number: usize) -> String {
        match self {
            Self::Client => String::new(),
            Self::Log => format!(">LOG:1700000000,I,fact {number}\r\n"),
            Self::Echo => format!(">ECHO:1700000000,fact {number}\r\n"),
            Self::Info => format!(">INFO:fact {number}\r\n"),
            Self::Unrecognized => format!(">NEWS:fact {number}\r\n"),
        }
    }
}

/// What each daemon said, in its order: a fact is on the list before it is on the wire.
pub(super) type Said = Arc<Mutex<Vec<Vec<Fact<Carrier>>>>>;

fn lock(said: &Said) -> MutexGuard<'_, Vec<Vec<Fact<Carrier>>>> {
    // Whole after every push: a panic elsewhere leaves it usable.
    said.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lengths(said: &Said) -> Vec<usize> {
    lock(said).iter().map(Vec::len).collect()
}

pub(super) fn note(said: &Said, lane: usize, carrier: Carrier) -> usize {
    let lane = &mut lock(said)[lane];
    lane.push(Fact {
        class: carrier.class(),
        what: carrier,
    });
    lane.len() - 1
}

/// Takes the last fact of a daemon off the list, which was not on the wire.
pub(super) fn take_back(said: &Said, lane: usize) {
    lock(said)[lane].pop();
}

/// What a reader asks for.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub(super) lanes: Vec<usize>,
    pub(super) carriers: Vec<Carrier>,
    pub(super) fails_on_gap: bool,
}

impl Wish {
    pub(super) fn random(random: &mut Random) -> Self {
        let mut wish = Self {
            lanes: (0..DAEMONS).collect(),
            carriers: Carrier::ALL.to_vec(),
            fails_on_gap: random.once_in(4),
        };
        if random.once_in(2) {
            let one = random.index(DAEMONS);
            wish.lanes.retain(|lane| *lane == one || random.once_in(3));
        }
        if random.once_in(2) {
            let one = *random.pick(&Carrier::ALL);
            wish.carriers
                .retain(|carrier| *carrier == one || random.once_in(2));
        }
        wish
    }

    fn wants(&self, lane: usize, fact: &Fact<Carrier>) -> bool {
        self.lanes.contains(&lane) && self.carriers.contains(&fact.what)
    }

    fn request(&self, start: Start) -> StreamEventsRequest {
        let names: Vec<String> = self.lanes.iter().map(|lane| format!("sim{lane}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        StreamEventsRequest {
            start: Some(start),
            selector: named(&names),
            kinds: self
                .carriers
                .iter()
                .map(|it| it.kind().to_owned())
                .collect(),
            on_gap: if self.fails_on_gap {
                GapPolicy::Fail
            } else {
                GapPolicy::Continue
            }
            .into(),
            ..Default::default()
        }
    }
}

/// Where readers begin.
#[derive(Clone, Debug)]
pub(super) struct Place {
    cursor: String,
    /// Facts behind it, of each daemon.
    next: Vec<usize>,
}

/// One reader over many streams.
pub(super) struct Caller {
    said: Said,
    /// Nobody writes any more.
    pub(super) written: watch::Receiver<bool>,
    pub(super) wish: Wish,
    follower: Follower,
    cursor: String,
    /// Sequence number of the last event.
    sequence: u64,
    pub(super) streams: u64,
    pub(super) gaps: u64,
    refusals: u64,
    /// Nobody says anything while the gateway is away: that it was away excuses nothing.
    pub(super) is_always_seen: bool,
    /// Gaps that stand for the end of a run.
    pub(super) lost_runs: u64,
    /// The last frame was the gateway's last word.
    is_drained: bool,
}

/// How a stream ended for its reader.
#[derive(Debug)]
pub(super) enum End {
    /// The reader left it.
    Cut,
    /// By itself, at the newest event.
    Complete,
    /// Something is missing, and the reader did not want to go on.
    Refused(String),
    /// The gateway said that it goes.
    Drained,
    /// The gateway is gone.
    Lost,
}

impl Caller {
    pub(super) fn begin(
        said: &Said,
        written: watch::Receiver<bool>,
        wish: Wish,
        place: Place,
    ) -> Self {
        Self {
            said: Arc::clone(said),
            written,
            wish,
            follower: Follower::new(&place.next),
            cursor: place.cursor,
            sequence: 0,
            streams: 0,
            gaps: 0,
            refusals: 0,
            is_always_seen: false,
            lost_runs: 0,
            is_drained: false,
        }
    }

    /// A reader behind `cursor` that is there when everything is over.
    pub(super) fn new(said: &Said, wish: Wish, cursor: String, next: &[usize]) -> Self {
        let place = Place {
            cursor,
            next: next.to_vec(),
        };
        Self::begin(said, watch::channel(true).1, wish, place)
    }

    /// One stream from its place on, for at most `frames` frames.
    pub(super) async fn stream(
        &mut self,
        api: &mut Api,
        follow: bool,
        frames: usize,
    ) -> Result<End> {
        self.streams += 1;
        let request = StreamEventsRequest {
            follow: Some(follow),
            ..self.wish.request(Start::Cursor(self.cursor.clone()))
        };
        let mut stream = match api.events.stream_events(request).await {
            Ok(stream) => stream.into_inner(),
            Err(status) => return self.ended(&status),
        };
        for _ in 0..frames {
            let mut written = self.written.clone();
            let message = tokio::select! {
                message = stream.message() => message,
                _ = written.wait_for(|written| *written), if follow => return Ok(End::Cut),
            };
            match message {
                Ok(Some(response)) => self.frame(response.frame.context("no frame")?)?,
                Ok(None) if self.is_drained => {
                    self.is_drained = false;
                    return Ok(End::Drained);
                }
                Ok(None) => {
                    ensure!(!follow, "the stream ended by itself");
                    return Ok(End::Complete);
                }
                Err(status) => return self.ended(&status),
            }
        }
        Ok(End::Cut)
    }

    fn ended(&mut self, status: &Status) -> Result<End> {
        match status.code() {
            Code::OutOfRange if self.wish.fails_on_gap => {
                ensure!(
                    reason(status).as_deref() == Some("CURSOR_COMPACTED"),
                    "{status:?}"
                );
                let info = status.get_details_error_info().context("no details")?;
                let oldest = info.metadata.get("oldest").context("no oldest")?;
                self.refusals += 1;
                Ok(End::Refused(oldest.clone()))
            }
            Code::Unavailable | Code::Unknown | Code::Cancelled => Ok(End::Lost),
            _ => Err(status.clone().into()),
        }
    }

    fn frame(&mut self, frame: Frame) -> Result<()> {
        match frame {
            Frame::Batch(batch) => {
                ensure!(!batch.events.is_empty(), "an empty batch");
                for event in &batch.events {
                    self.event(event).with_context(|| format!("{event:?}"))?;
                }
                self.cursor = batch.cursor;
            }
            Frame::Gap(gap) => {
                self.gap(&gap)?;
                self.cursor = gap.cursor;
            }
            Frame::Bookmark(bookmark) => self.cursor = bookmark.cursor,
            Frame::Drain(drain) => {
                self.cursor = drain.cursor;
                self.is_drained = true;
            }
        }
        Ok(())
    }

    fn event(&mut self, event: &v1::Event) -> Result<()> {
        ensure!(
            event.sequence > self.sequence,
            "sequence {} came before",
            self.sequence
        );
        self.sequence = event.sequence;
        let carrier = Carrier::ALL
            .into_iter()
            .find(|carrier| carrier.kind() == event.kind);
        let carrier = carrier.context("a kind nobody asked for")?;
        let Some((lane, number)) = fact_of(event)? else {
            return Ok(());
        };
        let said = lock(&self.said);
        let wish = &self.wish;
        let wants = |_, fact: &Fact<Carrier>| wish.wants(lane, fact);
        self.follower
            .event(lane, &said[lane], wants, number, &carrier)?;
        Ok(())
    }

    fn gap(&mut self, gap: &v1::Gap) -> Result<()> {
        self.gaps += 1;
        let is_partial = matches!(gap.cause(), GapCause::RateCapped | GapCause::Unobserved);
        ensure!(
            !self.wish.fails_on_gap || is_partial,
            "told and not refused: {gap:?}"
        );
        if gap.cause() == GapCause::Unobserved && self.is_always_seen {
            return Ok(());
        }
        let is_run = matches!(
            gap.cause(),
            GapCause::GatewayRestarted | GapCause::JournalReplaced
        );
        self.lost_runs += u64::from(is_run);
        let classes = match gap.event_class() {
            EventClass::Lifecycle => 0..1,
            EventClass::Log => 1..2,
            EventClass::Raw => 2..3,
            EventClass::Unspecified => 0..CLASSES,
        };
        for lane in 0..DAEMONS {
            if gap.instance.is_empty() || gap.instance == format!("sim{lane}") {
                for class in classes.clone() {
                    self.follower.gap(lane, class, usize::MAX);
                }
            }
        }
        Ok(())
    }

    /// Reads to the newest event, whatever it takes; nothing that was asked for may be missing.
    pub(super) async fn finish(&mut self, api: &mut Api) -> Result<()> {
        loop {
            match self.stream(api, false, usize::MAX).await? {
                End::Complete => break,
                End::Refused(oldest) => self.go_to_oldest(oldest),
                End::Cut | End::Drained | End::Lost => anyhow::bail!("no end"),
            }
        }
        let said = lock(&self.said);
        for (lane, facts) in said.iter().enumerate() {
            let wants = |_, fact: &Fact<Carrier>| self.wish.wants(lane, fact);
            self.follower.caught_up(lane, facts, wants)?;
        }
        Ok(())
    }

    /// Where a refused reader is sent; that something is missing before is what it was told.
    fn go_to_oldest(&mut self, oldest: String) {
        self.cursor = oldest;
        for lane in 0..DAEMONS {
            for class in 0..CLASSES {
                self.follower.gap(lane, class, usize::MAX);
            }
        }
    }
}

/// The daemon and the number of the fact that an event carries, if it does.
fn fact_of(event: &v1::Event) -> Result<Option<(usize, usize)>> {
    use v1::event::Detail;

    if event.inferred.is_some() {
        // Found by comparison, after a restart of the gateway: known before.
        return Ok(None);
    }
    let text = match (&event.detail, &event.client) {
        (Some(Detail::Log(line)), _) => &line.text,
        (Some(Detail::Text(line)), _) => &line.text,
        (_, Some(client)) => &client.common_name,
        _ => return Ok(None),
    };
    let text = text.trim_start_matches(">").trim_start_matches("NEWS:");
    let number = text
        .strip_prefix("fact ")
        .and_then(|number| number.parse().ok());
    let Some(number) = number else {
        // A log line about a client, for example.
        return Ok(None);
    };
    let lane = event
        .instance
        .strip_prefix("sim")
        .context("of no daemon of ours")?;
    Ok(Some((lane.parse()?, number)))
}

pub(super) struct Fleet {
    daemons: Vec<Daemon>,
    pub(super) gateway: Gateway,
    pub(super) said: Said,
    _directory: tempfile::TempDir,
}

impl Fleet {
    /// A gateway that keeps so many events in memory, and on disk so much, if it has any.
    pub(super) async fn start(events_max: usize, disk: Option<&str>) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut journal = toml::Table::new();
        journal.insert("events".to_owned(), i64::try_from(events_max)?.into());
        let mut config = GatewayConfig::new();
        if let Some(disk) = disk {
            journal.insert("disk".to_owned(), disk.into());
            config = config.set("state_dir", "state");
        }
        config = config.set("journal", journal);
        let mut daemons = Vec::new();
        for lane in 0..DAEMONS {
            let name = format!("sim{lane}");
            let builder = Daemon::builder(&name).unix(directory.path().join(&name));
            let daemon = builder.duplicate_cn().start().await?;
            config = config.instance(InstanceConfig::new(&name, &daemon.address().to_string()));
            daemons.push(daemon);
        }
        let gateway = config.start().await?;
        Api::connect(&gateway).await?.wait_attached().await?;
        let said = Arc::new(Mutex::new(vec![Vec::new(); DAEMONS]));
        Ok(Self {
            daemons,
            gateway,
            said,
            _directory: directory,
        })
    }

    /// Lets daemon `lane` say `count` facts.
    pub(super) async fn write(&self, lane: usize, count: usize, random: &mut Random) -> Result<()> {
        for _ in 0..count {
            let carrier = *random.pick(&Carrier::ALL);
            let number = note(&self.said, lane, carrier);
            if carrier == Carrier::Client {
                let client = ClientSpec::new(format!("fact {number}"));
                self.daemons[lane].connect(client).await?;
            } else {
                self.daemons[lane].raw(carrier.line(number)).await?;
            }
        }
        if random.once_in(2) {
            let lines: Vec<String> = (0..FLOOD)
                .map(|_| Carrier::Log.line(note(&self.said, lane, Carrier::Log)))
                .collect();
            self.daemons[lane].raw(lines.concat()).await?;
        }
        Ok(())
    }

    /// Waits until the gateway has taken what every daemon said.
    pub(super) async fn settle(&self) -> Result<()> {
        let mut api = Api::connect(&self.gateway).await?;
        let last: Vec<usize> = (0..DAEMONS)
            .map(|lane| note(&self.said, lane, Carrier::Client))
            .collect();
        for (lane, number) in last.iter().enumerate() {
            self.daemons[lane]
                .connect(ClientSpec::new(format!("fact {number}")))
                .await?;
        }
        poll_until("the last facts to arrive", SOON, async || {
            let rows = api.clients(v1::ClientFilter::default()).await?;
            let arrived = |(lane, number): (usize, &usize)| {
                rows.iter().any(|row| {
                    row.common_name == format!("fact {number}")
                        && row
                            .r#ref
                            .as_ref()
                            .is_some_and(|r| r.instance == format!("sim{lane}"))
                })
            };
            Ok(last.iter().enumerate().all(arrived).then_some(()))
        })
        .await
    }

    /// Lets all clients leave, while no gateway sees it: what a round costs is not to depend on those before, and the
    /// table of a daemon has a bound.
    pub(super) async fn everybody_leaves(&self) -> Result<()> {
        for daemon in &self.daemons {
            daemon.wait_detached().await;
            for client in daemon.clients().await? {
                daemon.leave(client.cid, How::ExitNotifyData).await?;
            }
        }
        Ok(())
    }

    /// How many facts there were.
    pub(super) fn said_in_all(&self) -> usize {
        lengths(&self.said).iter().sum()
    }

    /// The end of the journal, at a moment when nobody writes.
    pub(super) async fn here(&self) -> Result<Place> {
        let mut api = Api::connect(&self.gateway).await?;
        let summary = api
            .fleet
            .get_summary(v1::GetSummaryRequest::default())
            .await?
            .into_inner();
        let cursor = summary.as_of.context("no as_of")?.cursor;
        Ok(Place {
            cursor,
            next: lengths(&self.said),
        })
    }
}

/// Reads in streams of random length, and dawdles in between, while facts are written.
pub(super) async fn read(mut api: Api, mut caller: Caller, mut random: Random) -> Result<Caller> {
    let written = caller.written.clone();
    while !*written.borrow() {
        let frames = 1 + random.index(30);
        match caller.stream(&mut api, true, frames).await? {
            End::Cut => {}
            End::Refused(oldest) => caller.go_to_oldest(oldest),
            End::Complete | End::Drained | End::Lost => anyhow::bail!("the gateway went away"),
        }
        if random.once_in(4) {
            // Looks away until a good deal more has happened.
            let total = || lengths(&caller.said).iter().sum::<usize>();
            let until = total() + random.index(3_000);
            poll_until("more to happen", SOON, async || {
                Ok((*written.borrow() || total() >= until).then_some(()))
            })
            .await?;
        }
    }
    Ok(caller)
}

/// Numbered facts from three daemons to six readers that are cut off, dawdle until they are
/// overtaken, refuse gaps or not; a flood now and then; and in the middle the gateway dies.
/// Every reader is told each fact it asked for, once, in order, or of the hole first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_keep_their_promises_through_cuts_floods_and_a_crash() -> Result<()> {
    let (rounds, facts) = if soak() { (20, 5_000) } else { (4, 600) };
    let mut random = Random::seeded("streams");
    let started = Instant::now();
    let mut fleet = Fleet::start(EVENTS_MAX, None).await?;
    let mut places = vec![fleet.here().await?; READERS];
    let (mut streams, mut gaps, mut refusals) = (0, 0, 0);
    for round in 0..rounds {
        let (done, written) = watch::channel(false);
        let mut readers = Vec::new();
        for place in places {
            let mut seed = Random::new(random.next());
            let caller =
                Caller::begin(&fleet.said, written.clone(), Wish::random(&mut seed), place);
            let api = Api::connect(&fleet.gateway).await?;
            readers.push(read(api, caller, seed));
        }
        let writing = async {
            let mut seeds: Vec<Random> = (0..DAEMONS).map(|_| Random::new(random.next())).collect();
            let writers = seeds.iter_mut().enumerate();
            let writers = writers.map(|(lane, random)| fleet.write(lane, facts, random));
            futures_util::future::try_join_all(writers).await?;
            fleet.settle().await?;
            done.send_replace(true);
            Ok(())
        };
        let reading = futures_util::future::try_join_all(readers);
        let (mut callers, ()) = futures_util::future::try_join(reading, writing)
            .await
            .with_context(|| format!("round {round}"))?;
        let mut api = Api::connect(&fleet.gateway).await?;
        for caller in &mut callers {
            let wish = caller.wish.clone();
            caller
                .finish(&mut api)
                .await
                .with_context(|| format!("round {round}, {wish:?}"))?;
            streams += caller.streams;
            gaps += caller.gaps;
            refusals += caller.refusals;
        }

        // A crash: the journal was in memory, and whoever comes back is told so first.
        fleet.gateway.kill();
        fleet.everybody_leaves().await?;
        fleet.gateway.start_again().await?;
        let mut api = Api::connect(&fleet.gateway).await?;
        api.wait_attached().await?;
        for caller in &mut callers {
            caller.wish.fails_on_gap = false;
            let seen = caller.gaps;
            let end = caller.stream(&mut api, false, 1).await?;
            ensure!(matches!(end, End::Cut), "nothing was said of the crash");
            ensure!(
                caller.gaps == seen + 1,
                "something else than a gap came first"
            );
        }
        places = vec![fleet.here().await?; READERS];
    }
    let said = lengths(&fleet.said);
    eprintln!(
        "{} facts, {} readers, {rounds} crashes in {:.1?}: {streams} streams, {gaps} gaps, {refusals} refusals",
        said.iter().sum::<usize>(),
        READERS * rounds,
        started.elapsed(),
    );
    ensure!(gaps > 0, "nobody was overtaken");
    Ok(())
}
