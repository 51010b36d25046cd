//! What happened, and what of it can still be had.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use openvpn_fleet::{
    ClientFilter, Detail, DisconnectCause, Event, EventClient, GatewayName, Generation,
    GenerationCause, InstanceName, JournalConfig, Kind, KindSet, Record, Selector,
    event::ClientsLost,
};
use openvpn_management::{Cid, LogFlags};
use ovfleet_proto::v1;
use ovfleet_tests::{history::Fact, random::Random};
use rusqlite::Connection;
use tokio::{
    runtime::Handle,
    task::spawn_blocking,
    time::{Instant, advance},
};

use super::super::*;
use crate::{
    convert, services,
    state::{Keep, State, begin, micros},
};

/// Events kept in memory; small, so that readers are overtaken and the disk is late.
const EVENTS_MAX: usize = 120;
pub(super) const INSTANCES: [&str; 3] = ["i0", "i1", "i2"];
const SITES: [&str; 2] = ["eu", "us"];
const NAMES: [&str; 2] = ["alice", "bob"];
/// The kinds that the writer writes.
const KINDS: [Kind; 7] = [
    Kind::ClientEstablished,
    Kind::ClientLeaving,
    Kind::InstanceGeneration,
    Kind::GatewayConfig,
    Kind::InstanceLog,
    Kind::InstanceEcho,
    Kind::InstanceInfo,
];
/// For the judge: gaps that have a place of their own, beside the classes of events.
pub(super) const GAPS: usize = 3;
/// When the model begins, by the calendar: 2027.
const BEGAN: Duration = Duration::from_secs(1_800_000_000);
/// How long closing may take, by the clock on the wall.
const CLOSE_MAX: Duration = Duration::from_secs(10);
/// What the disk may have at least: more than memory, so that what memory has is there too.
const KEEP_BYTES_MIN: u64 = 400_000;
const KEEP: Keep = Keep {
    bytes: KEEP_BYTES_MIN,
    age: Duration::from_hours(24),
};

#[derive(Clone, Debug, PartialEq, Hash)]
pub(super) struct What {
    /// None: a gap.
    pub(super) kind: Option<Kind>,
    /// None: the gateway's own.
    pub(super) instance: Option<usize>,
    site: usize,
    name: Option<usize>,
    pub(super) observed: SystemTime,
}

/// What a reader asks for, in the model's words.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    /// Empty: all, and the gateway's own.
    instances: Vec<usize>,
    site: Option<usize>,
    kinds: Vec<Kind>,
    name: Option<usize>,
}

impl Wish {
    pub(super) fn random(random: &mut Random) -> Self {
        let mut wish = Self {
            instances: Vec::new(),
            site: None,
            kinds: KINDS.to_vec(),
            name: None,
        };
        match random.below(4) {
            0 => wish.instances.push(random.index(INSTANCES.len())),
            1 => wish.site = Some(random.index(SITES.len())),
            _ => {}
        }
        if random.once_in(2) {
            let one = *random.pick(&KINDS);
            wish.kinds.retain(|kind| *kind == one || random.once_in(3));
        }
        if random.once_in(4) {
            wish.name = Some(random.index(NAMES.len()));
        }
        wish
    }

    pub(super) fn filter(&self) -> EventFilter {
        let names = self.instances.iter();
        let names = names.map(|it| INSTANCES[*it].parse().expect("a name"));
        let labels = self.site.map(|it| format!("site={}", SITES[it]));
        let clients = self.name.iter().map(|it| NAMES[*it].as_bytes().to_vec());
        EventFilter {
            selector: Selector {
                names: names.collect(),
                labels: labels.unwrap_or_default().parse().expect("labels"),
                ..Selector::default()
            },
            clients: ClientFilter {
                common_names: clients.collect(),
                ..ClientFilter::default()
            },
            kinds: self.kinds.iter().copied().collect::<KindSet>(),
        }
    }

    /// By what is remembered of what is gone: names of clients are not among it.
    pub(super) fn may_want(&self, what: &What) -> bool {
        let takes = |kind: &Kind| {
            self.kinds.contains(kind)
                && (self.name.is_none() || kind.as_str().starts_with("client."))
        };
        let is_everything = self.instances.is_empty() && self.site.is_none();
        let is_from_there = what.instance.map_or(is_everything, |instance| {
            (self.instances.is_empty() || self.instances.contains(&instance))
                && self.site.is_none_or(|site| site == what.site)
        });
        is_from_there && what.kind.as_ref().map_or(KINDS.iter().any(takes), takes)
    }

    pub(super) fn wants(&self, what: &What) -> bool {
        let is_theirs = |name| what.kind.is_none() || what.name == Some(name);
        self.may_want(what) && self.name.is_none_or(is_theirs)
    }
}

/// A run that was cut off.
#[derive(Clone, Copy, Debug)]
pub(super) struct Crash {
    /// When the next run began, by the calendar.
    pub(super) observed: SystemTime,
    /// What time had passed by then.
    passed: Duration,
}

/// The gateway's journal in memory and on disk, and what it should hold.
pub(super) struct Truth {
    directory: tempfile::TempDir,
    /// To look into the file.
    connection: Connection,
    /// What can still be had.
    pub(super) kept: Kept,
    state: State,
    pub(super) store: EventStore,
    pub(super) journal: Arc<Journal>,
    /// The disk's place in the journal.
    pub(super) written: Reader,
    pub(super) facts: Vec<Fact<What>>,
    /// Of each fact; they rise over all runs.
    pub(super) sequences: Vec<u64>,
    /// Crashes, by where the next run began.
    pub(super) crashes: BTreeMap<u64, Crash>,
    began: Instant,
    /// What passed as if in a moment.
    skipped: Duration,
    /// How far somebody set the calendar back.
    slow: Duration,
}

fn gateway() -> GatewayName {
    GatewayName::new("gw").expect("a name")
}

async fn open(directory: &Path, keep: Keep, now: SystemTime) -> (State, EventStore, Arc<Journal>) {
    let begun = begin(Some(directory.to_owned()), keep, now).await;
    let (state, store) = begun.expect("it opens");
    let store = store.expect("there is a directory");
    let config = JournalConfig {
        memory_bytes: 64 << 20,
        events_max: EVENTS_MAX,
        age_max: Duration::from_hours(1_000),
        encode: |event| services::batch_element(&convert::event::event(event)),
        start: Some(store.start()),
    };
    let journal = Arc::new(Journal::new(gateway(), &config));
    (state, store, journal)
}

impl Truth {
    pub(super) async fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let now = SystemTime::UNIX_EPOCH + BEGAN;
        let (state, store, journal) = open(directory.path(), KEEP, now).await;
        let path = directory.path().join("state.db");
        let connection = Connection::open(path).expect("it opens");
        Self {
            directory,
            connection,
            kept: Kept::default(),
            written: journal.reader(Start::Position(store.start())),
            state,
            store,
            journal,
            facts: Vec::new(),
            sequences: Vec::new(),
            crashes: BTreeMap::new(),
            began: Instant::now(),
            skipped: Duration::ZERO,
            slow: Duration::ZERO,
        }
    }

    /// What the calendar says.
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + BEGAN + self.began.elapsed() - self.slow
    }

    /// What time has passed, whatever the calendar says.
    fn passed(&self) -> Duration {
        self.began.elapsed() + self.skipped
    }

    pub(super) async fn append(&mut self, random: &mut Random) {
        if random.once_in(300) {
            // Somebody sets the clock, forward or back.
            self.slow = Duration::from_millis(random.below(3_000));
        }
        // Whole milliseconds, as timers: one life does not depend on when it begins.
        advance(Duration::from_millis(random.below(5))).await;
        let now = self.now();
        for _ in 0..=random.index(8) / 5 * random.index(40) {
            let what = random_what(random, now);
            let class = what.kind.map_or(GAPS, |kind| kind.class() as usize);
            let sequence = self.journal.append_all([record(&what)]);
            self.facts.push(Fact { class, what });
            self.sequences.push(sequence);
        }
        self.look_at_memory();
    }

    pub(super) async fn write(&mut self) {
        let now = self.now();
        let written = self
            .store
            .take_all(&self.journal, &mut self.written, || now);
        written.await.expect("it is written");
        self.look_at_disk();
    }

    /// Ends the gateway and starts it again; gives what it keeps from then on.
    pub(super) async fn restart(&mut self, random: &mut Random, is_orderly: bool) {
        if is_orderly {
            self.write().await;
            let last = self.written.position().sequence;
            self.store.end(last).await.expect("it is written");
        }
        // From where time does not skip to the end of the wait: the thread that writes has its own.
        let (state, runtime) = (self.state.clone(), Handle::current());
        let closing = spawn_blocking(move || runtime.block_on(state.close(CLOSE_MAX)));
        closing.await.expect("it ends");
        // As if it had run for that long without a word.
        let hours = random.below(2) * random.below(20);
        self.skipped += Duration::from_hours(hours);
        let passed = self.connection.execute(
            "UPDATE clock SET age = age + ?1 * 3600000000",
            [hours.cast_signed()],
        );
        passed.expect("it is written");
        let keep = Keep {
            bytes: KEEP_BYTES_MIN + random.below(400_000),
            ..KEEP
        };
        let opened = open(self.directory.path(), keep, self.now()).await;
        (self.state, self.store, self.journal) = opened;
        let start = self.store.start();
        assert!(self.sequences.last() < Some(&start.sequence));
        self.written = self.journal.reader(Start::Position(start));
        self.look_at_memory();
        if !is_orderly {
            let crash = Crash {
                observed: self.now(),
                passed: self.passed(),
            };
            self.crashes.insert(start.sequence, crash);
            self.kept.crashes.insert(start.sequence);
        }
    }

    /// Crashes whose gap was thrown away.
    pub(super) fn crashes_lost(&self) -> impl DoubleEndedIterator<Item = (u64, Crash)> {
        let crashes = self.crashes.iter().map(|(start, crash)| (*start, *crash));
        crashes.filter(|(start, _)| !self.kept.crashes.contains(start))
    }

    /// How many facts are behind a place.
    pub(super) fn behind(&self, sequence: u64) -> usize {
        self.sequences.partition_point(|it| *it <= sequence)
    }

    /// Looks what the disk has now: what it got just now, without what it threw away.
    fn look_at_disk(&mut self) {
        let fresh = self.kept.memory.iter().copied();
        self.kept.disk.extend(fresh);
        let oldest = |query: &str| -> Option<i64> {
            let mut statement = self.connection.prepare_cached(query).expect("a query");
            let oldest = statement.query_row([], |row| row.get(0));
            oldest.expect("it is read")
        };
        let of_class = [
            "SELECT min(sequence) FROM events WHERE class = 0",
            "SELECT min(sequence) FROM events WHERE class = 1",
            "SELECT min(sequence) FROM events WHERE class = 2",
            "SELECT min(sequence) FROM gaps WHERE NOT hole AND cause = 'UNOBSERVED'",
        ];
        let of_class = of_class.map(oldest);
        self.kept.disk.retain(|at| {
            let oldest = of_class[self.facts[*at].class];
            oldest.is_some_and(|oldest| self.sequences[*at] >= oldest.cast_unsigned())
        });
        let mut statement = self
            .connection
            .prepare_cached("SELECT sequence FROM gaps WHERE cause = 'GATEWAY_RESTARTED'")
            .expect("a query");
        let crashes = statement.query_map([], |row| row.get::<_, i64>(0));
        let crashes =
            crashes.and_then(|rows| rows.map(|row| row.map(i64::cast_unsigned)).collect());
        let before = std::mem::replace(&mut self.kept.crashes, crashes.expect("it is read"));
        for gone in before.difference(&self.kept.crashes) {
            let age = self.passed() - self.crashes[gone].passed;
            assert!(age > KEEP.age, "the gap of a crash was kept for {age:?}");
            let first = of_class[..GAPS].iter().flatten().min();
            assert!(
                first.is_none_or(|first| first.cast_unsigned() > *gone),
                "it was thrown away before what lies before it"
            );
        }
    }

    /// Looks what memory has now.
    fn look_at_memory(&mut self) {
        self.kept.memory.clear();
        let mut reader = self.journal.reader(Start::Position(self.journal.start()));
        let everything = EventFilter::everything();
        let batch = self.journal.read(&mut reader, 10 * EVENTS_MAX, &everything);
        assert!(batch.is_end);
        for item in batch.items {
            let sequence = match item {
                Item::Event(entry) => entry.sequence(),
                Item::Gap { gap, resume } if gap.cause == GapCause::Unobserved => resume.sequence,
                Item::Gap { .. } => continue,
            };
            let place = self.sequences.binary_search(&sequence);
            self.kept.memory.insert(place.expect("it was appended"));
        }
    }
}

/// Facts that can still be had.
#[derive(Default)]
pub(super) struct Kept {
    memory: BTreeSet<usize>,
    disk: BTreeSet<usize>,
    /// Gaps of crashes, by their numbers.
    crashes: BTreeSet<u64>,
}

impl Kept {
    pub(super) fn contains(&self, at: usize) -> bool {
        self.memory.contains(&at) || self.disk.contains(&at)
    }

    /// The first from an index on of which that is true.
    pub(super) fn first(&self, from: usize, is_meant: impl Fn(usize) -> bool) -> Option<usize> {
        let first = |set: &BTreeSet<usize>| set.range(from..).copied().find(|at| is_meant(*at));
        [first(&self.memory), first(&self.disk)]
            .into_iter()
            .flatten()
            .min()
    }
}

fn random_what(random: &mut Random, observed: SystemTime) -> What {
    let observed = time(observed);
    let site = random.index(SITES.len());
    if random.once_in(30) {
        return What {
            kind: None,
            instance: Some(random.index(INSTANCES.len())),
            site,
            name: None,
            observed,
        };
    }
    let kind = *random.pick(&KINDS);
    let (is_own, is_client) = (
        kind == Kind::GatewayConfig,
        kind.as_str().starts_with("client."),
    );
    What {
        kind: Some(kind),
        instance: (!is_own).then(|| random.index(INSTANCES.len())),
        site: if is_own { 0 } else { site },
        name: is_client.then(|| random.index(NAMES.len())),
        observed,
    }
}

/// As exact as it is kept.
fn time(time: SystemTime) -> SystemTime {
    crate::state::time(micros(time))
}

fn record(what: &What) -> Record {
    let instance = what.instance.map(|it| InstanceName::new(INSTANCES[it]));
    let instance = instance.map(|name| name.expect("a name"));
    let labels = match &instance {
        Some(_) => Labels::from_iter([("site", SITES[what.site])]),
        None => Labels::default(),
    };
    let Some(kind) = what.kind else {
        return Record::Gap(Gap {
            cause: GapCause::Unobserved,
            gateway: gateway(),
            instance,
            labels,
            class: None,
            count: None,
            not_before: None,
            not_after: Some(what.observed),
        });
    };
    // Of some size, so that the bounds of the disk are met soon.
    let text = "a text of some length, ".repeat(20);
    let detail = match kind {
        Kind::ClientEstablished => Detail::ClientEstablished(Box::default()),
        Kind::ClientLeaving => Detail::ClientLeaving {
            cause: DisconnectCause::PeerExit,
        },
        Kind::InstanceGeneration => Detail::Generation {
            previous: None,
            cause: GenerationCause::First,
            clients_lost: ClientsLost::No,
        },
        Kind::GatewayConfig => Detail::GatewayConfig { message: text },
        Kind::InstanceLog => Detail::Log {
            flags: LogFlags::default(),
            text: text.as_str().into(),
        },
        Kind::InstanceEcho => Detail::Echo(text.as_str().into()),
        _ => Detail::Info(text.as_str().into()),
    };
    let client = what.name.map(|name| {
        Box::new(EventClient {
            generation: Generation(1),
            cid: Cid(0),
            common_name: NAMES[name].into(),
            username: "".into(),
            real_address: "".into(),
            virtual_address: "".into(),
            virtual_ipv6_address: "".into(),
            half_open: false,
        })
    });
    Record::Event(Event {
        gateway: gateway(),
        instance,
        labels,
        generation: None,
        sequence: 0,
        observed: what.observed,
        daemon_time: None,
        inferred: None,
        client,
        detail,
    })
}

/// Whether an event on the wire is what happened.
pub(super) fn is_same(event: &v1::Event, what: &What) -> bool {
    let client = event.client.as_ref().map(|it| it.common_name.as_str());
    what.kind.map(Kind::as_str) == Some(event.kind.as_str())
        && event.instance == what.instance.map_or("", |it| INSTANCES[it])
        && client == what.name.map(|it| NAMES[it])
        && event.observed_time == Some(convert::timestamp(what.observed))
}
