//! The journal of events against a model: one writer, many readers that dawdle, are cut off and
//! come back, and a million steps of it.
//!
//! The model is a list of everything appended and, for each class, how much of it must have been
//! forgotten. What each reader is told goes through the judge in `history`.

use std::{
    collections::VecDeque,
    fmt::Debug,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use openvpn_fleet::event::ClientsLost;
use openvpn_fleet::{
    ClientFilter, Detail, DisconnectCause, Event, EventClass, EventClient, EventFilter, Gap,
    GapCause, GatewayName, Generation, GenerationCause, InstanceName, Item, Journal, JournalConfig,
    Kind, KindSet, Labels, Position, Reader, Record, Selector, Start,
};
use openvpn_management::{Cid, LogFlags};
use ovfleet_tests::{
    history::{Fact, Follower},
    random::{Random, soak},
};

/// Events kept; small, so that readers are overtaken all the time.
const EVENTS_MAX: usize = 300;
/// What each class may keep of them: 50, 40 and 10 %.
const KEPT: [usize; 3] = [150, 120, 30];
const AGE_MAX: Duration = Duration::from_secs(3_000);
const READERS: usize = 16;
const INSTANCES: [&str; 4] = ["i0", "i1", "i2", "i3"];
const NAMES: [&str; 3] = ["alice", "bob", "carol"];
/// The kinds that the writer writes.
const KINDS: [Kind; 10] = [
    Kind::ClientEstablished,
    Kind::ClientLeaving,
    Kind::InstanceGeneration,
    Kind::InstanceFatal,
    Kind::GatewayConfig,
    Kind::InstanceLog,
    Kind::InstanceEcho,
    Kind::GatewayLog,
    Kind::InstanceInfo,
    Kind::InstanceUnrecognized,
];

/// What was appended, and what a reader must be told it was.
#[derive(Clone, Debug, PartialEq)]
struct What {
    /// None: a gap.
    kind: Option<Kind>,
    /// Index of the instance; none: the gateway's own.
    instance: Option<usize>,
    /// Index of the client's name.
    name: Option<usize>,
    observed: SystemTime,
}

/// The class of a kind, written down a second time.
fn class_of(kind: Kind) -> usize {
    let name = kind.as_str();
    match name {
        "instance.log" | "instance.echo" | "gateway.log" => 1,
        "instance.info" | "instance.unrecognized" => 2,
        _ => 0,
    }
}

fn gateway() -> GatewayName {
    GatewayName::new("gw").expect("a name")
}

/// What a reader asks for, in the model's words.
#[derive(Clone, Debug)]
struct Wish {
    /// Empty: all, and the gateway's own.
    instances: Vec<usize>,
    kinds: Vec<Kind>,
    /// Empty: all, and what is of no client.
    names: Vec<usize>,
}

impl Wish {
    fn random(random: &mut Random) -> Self {
        let mut wish = Self {
            instances: Vec::new(),
            kinds: KINDS.to_vec(),
            names: Vec::new(),
        };
        if random.once_in(2) {
            wish.instances = (0..INSTANCES.len()).filter(|_| random.once_in(2)).collect();
        }
        if random.once_in(2) {
            let one = *random.pick(&KINDS);
            wish.kinds.retain(|kind| *kind == one || random.once_in(3));
        }
        if random.once_in(4) {
            wish.names.push(random.index(NAMES.len()));
        }
        wish
    }

    fn filter(&self) -> EventFilter {
        let names = self
            .instances
            .iter()
            .map(|it| INSTANCES[*it].parse().expect("a name"));
        let clients = self.names.iter().map(|it| NAMES[*it].as_bytes().to_vec());
        EventFilter {
            selector: Selector {
                names: names.collect(),
                ..Selector::default()
            },
            clients: ClientFilter {
                common_names: clients.collect(),
                ..ClientFilter::default()
            },
            kinds: self.kinds.iter().copied().collect::<KindSet>(),
        }
    }

    /// Whether it can be told something of a kind.
    fn takes(&self, kind: Kind) -> bool {
        self.kinds.contains(&kind)
            && (self.names.is_empty() || kind.as_str().starts_with("client."))
    }

    fn takes_class(&self, class: usize) -> bool {
        self.kinds
            .iter()
            .any(|kind| class_of(*kind) == class && self.takes(*kind))
    }

    /// By what the journal remembers of what it forgot: names of clients are not among it.
    fn may_want(&self, fact: &Fact<What>) -> bool {
        let instance = match fact.what.instance {
            Some(instance) => self.instances.is_empty() || self.instances.contains(&instance),
            None => self.instances.is_empty(),
        };
        instance
            && match fact.what.kind {
                Some(kind) => self.takes(kind),
                // A gap among the life cycle is of any class.
                None if fact.class == 0 => (0..3).any(|class| self.takes_class(class)),
                None => self.takes_class(fact.class),
            }
    }

    fn wants(&self, fact: &Fact<What>) -> bool {
        let name = self.names.is_empty()
            || fact.what.kind.is_none()
            || fact
                .what
                .name
                .is_some_and(|name| self.names.contains(&name));
        name && self.may_want(fact)
    }
}

/// One run of the writer: everything it appended, and what of it must still be there.
struct Truth {
    journal: Journal,
    /// Sequence number of the first fact.
    first: u64,
    facts: Vec<Fact<What>>,
    /// Of each class, oldest first.
    kept: [VecDeque<usize>; 3],
}

impl Truth {
    fn new() -> Self {
        let config = JournalConfig {
            memory_bytes: 64 << 20,
            events_max: EVENTS_MAX,
            age_max: AGE_MAX,
            encode: |_| bytes::Bytes::new(),
            start: None,
        };
        let journal = Journal::new(gateway(), &config).with_ages_of_events();
        Self {
            first: journal.newest().sequence + 1,
            journal,
            facts: Vec::new(),
            kept: Default::default(),
        }
    }

    fn append(&mut self, whats: Vec<(usize, What)>) -> Result<()> {
        let records = whats.iter().map(|(class, what)| record(*class, what));
        let newest = self.journal.append_all(records);
        let Some(now) = whats.last().map(|(_, what)| what.observed) else {
            return Ok(());
        };
        for (class, what) in whats {
            self.kept[class].push_back(self.facts.len());
            if self.kept[class].len() > KEPT[class] {
                self.kept[class].pop_front();
            }
            self.facts.push(Fact { class, what });
        }
        self.expire(now);
        let expected = self.first + self.facts.len() as u64 - 1;
        ensure!(newest == expected, "numbered {newest}, not {expected}");
        Ok(())
    }

    fn expire(&mut self, now: SystemTime) {
        let oldest = now - AGE_MAX;
        for kept in &mut self.kept {
            while kept
                .front()
                .is_some_and(|first| self.facts[*first].what.observed < oldest)
            {
                kept.pop_front();
            }
        }
    }

    /// The first of a class that is not forgotten.
    fn horizon(&self, class: usize) -> usize {
        self.kept[class]
            .front()
            .copied()
            .unwrap_or(self.facts.len())
    }

    fn index(&self, sequence: u64) -> Result<usize> {
        let index = sequence
            .checked_sub(self.first)
            .context("a number of another run")?;
        Ok(usize::try_from(index)?)
    }

    /// Behind how many facts a position is.
    fn behind(&self, position: Position) -> Result<usize> {
        ensure!(
            position.run == self.journal.run(),
            "a position of another run"
        );
        self.index(position.sequence + 1)
    }
}

fn record(class: usize, what: &What) -> Record {
    let instance = what
        .instance
        .map(|it| InstanceName::new(INSTANCES[it]).expect("a name"));
    let labels = what.instance.map_or_else(Labels::default, |it| {
        Labels::from_iter([("name", INSTANCES[it])])
    });
    let Some(kind) = what.kind else {
        return Record::Gap(Gap {
            cause: if class == 1 {
                GapCause::RateCapped
            } else {
                GapCause::Unobserved
            },
            gateway: gateway(),
            instance,
            labels,
            class: (class == 1).then_some(EventClass::Log),
            count: None,
            not_before: None,
            not_after: Some(what.observed),
        });
    };
    let text = "text".into();
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
        Kind::InstanceFatal => Detail::Fatal(text),
        Kind::GatewayConfig => Detail::GatewayConfig {
            message: String::new(),
        },
        Kind::InstanceLog => Detail::Log {
            flags: LogFlags::default(),
            text,
        },
        Kind::InstanceEcho => Detail::Echo(text),
        Kind::GatewayLog => Detail::GatewayLog {
            flags: LogFlags::default(),
            text,
        },
        Kind::InstanceInfo => Detail::Info(text),
        _ => Detail::Unrecognized(text),
    };
    Record::Event(Event {
        gateway: gateway(),
        instance,
        labels,
        generation: None,
        sequence: 0,
        observed: what.observed,
        daemon_time: None,
        inferred: None,
        client: what.name.map(|name| {
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
        }),
        detail,
    })
}

/// The same, read back.
fn what_of(event: &Event) -> What {
    let place = |list: &[&str], wanted: &[u8]| list.iter().position(|it| it.as_bytes() == wanted);
    let instance = event.instance.as_ref().map(|it| it.as_str().as_bytes());
    let name = event.client.as_ref().map(|it| it.common_name.as_bytes());
    What {
        kind: Some(event.kind()),
        instance: instance.and_then(|it| place(&INSTANCES, it)),
        name: name.and_then(|it| place(&NAMES, it)),
        observed: event.observed,
    }
}

fn random_what(random: &mut Random, now: SystemTime) -> (usize, What) {
    if random.once_in(40) {
        let class = random.index(2);
        let instance = Some(random.index(INSTANCES.len()));
        return (
            class,
            What {
                kind: None,
                instance,
                name: None,
                observed: now,
            },
        );
    }
    let kind = *random.pick(&KINDS);
    let is_own = kind.as_str().starts_with("gateway.");
    let is_client = kind.as_str().starts_with("client.");
    let what = What {
        kind: Some(kind),
        instance: (!is_own).then(|| random.index(INSTANCES.len())),
        name: is_client.then(|| random.index(NAMES.len())),
        observed: now,
    };
    (class_of(kind), what)
}

/// One reader: what it asks for, where it is, and what it must still be told.
struct Caller {
    wish: Wish,
    filter: EventFilter,
    reader: Reader,
    follower: Follower,
    fails_on_gap: bool,
    /// Where it could resume: behind what it was told.
    cursors: Vec<Position>,
    /// It came with a position of another run, and has to be told first.
    restarted: bool,
    /// It began with a moment: facts before this index count only from that moment on.
    since: Option<(usize, SystemTime)>,
}

impl Caller {
    fn new(wish: Wish, truth: &Truth, start: Start, random: &mut Random) -> Result<Self> {
        let filter = wish.filter();
        let reader = truth.journal.reader(start);
        let mut restarted = false;
        let mut since = None;
        let mut next = truth.facts.len();
        match start {
            Start::Now => {}
            Start::Oldest => next = 0,
            Start::Position(position) if position.run != truth.journal.run() => {
                restarted = true;
                next = 0;
            }
            Start::Position(position) => next = truth.behind(position)?,
            Start::Time(time) => {
                // Further back nothing of that time can be: the clock never jumps by so much.
                let earliest = next.saturating_sub(20_000);
                let first = (earliest..next).find(|it| truth.facts[*it].what.observed >= time);
                let kept = (0..3).filter_map(|class| {
                    let kept = truth.kept[class].iter().copied();
                    kept.into_iter()
                        .find(|it| truth.facts[*it].what.observed >= time)
                });
                since = Some((kept.min().unwrap_or(next), time));
                next = first.unwrap_or(next);
            }
        }
        let mut follower = Follower::new(&[next]);
        if restarted || start == Start::Oldest {
            // All that is already forgotten by now is covered by having asked for the rest.
            for class in 0..3 {
                follower.gap(0, class, truth.horizon(class));
            }
        }
        Ok(Self {
            filter,
            follower,
            fails_on_gap: random.once_in(6),
            cursors: vec![reader.position()],
            reader,
            restarted,
            since,
            wish,
        })
    }

    /// Reads on, as a stream does; gives false when it has to begin anew.
    fn read(&mut self, truth: &Truth, random: &mut Random) -> Result<bool> {
        let limit = 1 + random.index(300) / *random.pick(&[1, 10, 100]);
        let batch = truth.journal.read(&mut self.reader, limit, &self.filter);
        ensure!(
            batch.next == self.reader.position(),
            "the batch ends elsewhere"
        );
        // The connection is cut somewhere in the middle, now and then.
        let arrives = if random.once_in(20) {
            random.index(batch.items.len() + 1)
        } else {
            usize::MAX
        };
        let mut told = [false; 3];
        for (number, item) in batch.items.iter().enumerate() {
            if number == arrives {
                return Ok(false);
            }
            match item {
                Item::Event(entry) => {
                    ensure!(!self.restarted, "an event before the gap of another run");
                    let Record::Event(event) = entry.record() else {
                        bail!("a gap as an event")
                    };
                    ensure!(event.sequence == entry.sequence());
                    let at = truth.index(entry.sequence())?;
                    self.told(truth, at, &what_of(event))?;
                    let sequence = entry.sequence();
                    self.cursors.push(Position {
                        sequence,
                        ..batch.next
                    });
                }
                Item::Gap { gap, resume } => match gap.cause {
                    GapCause::GatewayRestarted => {
                        ensure!(number == 0 && self.restarted, "no run began");
                        self.restarted = false;
                        self.cursors.push(*resume);
                        if self.fails_on_gap {
                            return self.fail(truth);
                        }
                    }
                    GapCause::Compacted => {
                        ensure!(!self.restarted);
                        let class = match gap.class {
                            Some(class) => class as usize,
                            // Who wants nothing of the life cycle lost gaps that were among it.
                            None => 0,
                        };
                        ensure!(!std::mem::replace(&mut told[class], true), "told twice");
                        self.told_gap(truth, class)?;
                        self.cursors.push(*resume);
                        if self.fails_on_gap {
                            return self.fail(truth);
                        }
                    }
                    GapCause::JournalReplaced => bail!("a journal in memory tells it"),
                    GapCause::Unobserved | GapCause::RateCapped => {
                        let at = truth.index(resume.sequence)?;
                        let instance = gap.instance.as_ref().context("no instance")?;
                        let instance = INSTANCES.iter().position(|it| *it == instance.as_str());
                        let what = What {
                            kind: None,
                            instance,
                            name: None,
                            observed: gap.not_after.context("no time")?,
                        };
                        self.told(truth, at, &what)?;
                        self.cursors.push(*resume);
                    }
                },
            }
        }
        if arrives != usize::MAX {
            return Ok(false);
        }
        self.cursors.push(batch.next);
        if batch.is_end {
            ensure!(!self.restarted, "another run was not told");
            ensure!(batch.next == truth.journal.newest(), "the end is elsewhere");
            let (wish, since) = (&self.wish, self.since);
            self.follower
                .caught_up(0, &truth.facts, |at, fact| wants(wish, since, at, fact))?;
        }
        if self.cursors.len() > 64 {
            self.cursors.drain(..32);
        }
        Ok(true)
    }

    fn told(&mut self, truth: &Truth, at: usize, what: &What) -> Result<()> {
        let (wish, since) = (&self.wish, self.since);
        let wants = |at: usize, fact: &Fact<What>| wants(wish, since, at, fact);
        Ok(self.follower.event(0, &truth.facts, wants, at, what)?)
    }

    fn told_gap(&mut self, truth: &Truth, class: usize) -> Result<()> {
        let horizon = truth.horizon(class);
        if self.since.is_some() {
            // Before its start something is missing; the journal no longer knows of which moment.
            self.follower.gap(0, class, horizon);
            return Ok(());
        }
        let wish = &self.wish;
        let may_want = |_, fact: &Fact<What>| wish.may_want(fact);
        Ok(self
            .follower
            .true_gap(0, &truth.facts, may_want, class, horizon)?)
    }

    /// The stream ends here, and names the oldest place from which nothing is missing.
    fn fail(&mut self, truth: &Truth) -> Result<bool> {
        let oldest = truth.journal.oldest_whole(&self.filter);
        let forgotten = |at: usize| truth.horizon(truth.facts[at].class) > at;
        let last_missing = (0..truth.facts.len())
            .rev()
            .find(|at| forgotten(*at) && self.wish.may_want(&truth.facts[*at]));
        ensure!(
            truth.behind(oldest)? == last_missing.map_or(0, |at| at + 1),
            "{oldest:?} is not the oldest whole place: {last_missing:?} is the last missing"
        );
        self.cursors = vec![oldest];
        Ok(false)
    }
}

fn wants(wish: &Wish, since: Option<(usize, SystemTime)>, at: usize, fact: &Fact<What>) -> bool {
    wish.wants(fact) && since.is_none_or(|(kept, time)| at >= kept || fact.what.observed >= time)
}

fn random_start(truth: &Truth, random: &mut Random, now: SystemTime) -> Start {
    match random.below(4) {
        0 => Start::Now,
        1 => Start::Oldest,
        2 => Start::Time(now - Duration::from_secs(random.below(2_000))),
        _ => {
            let sequence = truth.first - 1 + random.below(truth.facts.len() as u64 + 1);
            Start::Position(Position {
                run: truth.journal.run(),
                sequence,
            })
        }
    }
}

/// Whatever is appended, read, cut, resumed, forgotten and restarted, in whatever order: every
/// reader is told all it asked for, once, in order, or of the hole first.
#[test]
fn the_journal_keeps_its_promises_over_a_million_steps() -> Result<()> {
    let steps: u64 = if soak() { 20_000_000 } else { 1_000_000 };
    let mut random = Random::seeded("journal");
    let started = Instant::now();
    let mut now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let mut truth = Truth::new();
    let mut callers = Vec::new();
    for _ in 0..READERS {
        callers.push(Caller::new(
            Wish::random(&mut random),
            &truth,
            Start::Now,
            &mut random,
        )?);
    }
    let mut count = [0u64; 5];
    for step in 0..steps {
        let chosen = random.index(READERS);
        let what = random.below(1_000);
        let number = match what {
            0..500 => 0,
            500..960 => 1,
            960..990 => 2,
            _ => 3,
        };
        count[number] += 1;
        let done = match number {
            0 => {
                now += Duration::from_millis(random.below(2_000));
                if random.once_in(2_000) {
                    // Somebody sets the clock.
                    let jump = Duration::from_secs(random.below(3_600));
                    now = if random.once_in(2) {
                        now + jump
                    } else {
                        now - jump
                    };
                }
                let many = if random.once_in(10) {
                    1 + random.index(12)
                } else {
                    1
                };
                let whats = (0..many).map(|_| random_what(&mut random, now)).collect();
                truth.append(whats)
            }
            1 => {
                // A few never hurry, and are overtaken.
                let lazy = chosen.is_multiple_of(3) && !random.once_in(40);
                if lazy {
                    Ok(())
                } else {
                    read_or_resume(&mut callers[chosen], &truth, &mut random)
                }
            }
            2 => resume(&mut callers[chosen], &truth, &mut random),
            _ if random.once_in(300) => {
                // Another run: its journal is new, the cursors are old.
                truth = Truth::new();
                count[4] += 1;
                callers
                    .iter_mut()
                    .try_for_each(|caller| resume(caller, &truth, &mut random))
            }
            _ if random.once_in(3) => {
                truth.journal.handle_time(now);
                truth.expire(now);
                Ok(())
            }
            _ => {
                let start = random_start(&truth, &mut random, now);
                callers[chosen] =
                    Caller::new(Wish::random(&mut random), &truth, start, &mut random)?;
                Ok(())
            }
        };
        done.with_context(|| format!("step {step}, reader {chosen}"))
            .with_context(|| format!("{:#?}", callers[chosen].wish))?;
    }
    eprintln!(
        "{steps} steps in {:.1?}: {} appends, {} reads, {} cuts, {} restarts",
        started.elapsed(),
        count[0],
        count[1],
        count[2],
        count[4],
    );
    Ok(())
}

fn read_or_resume(caller: &mut Caller, truth: &Truth, random: &mut Random) -> Result<()> {
    if caller.read(truth, random)? {
        Ok(())
    } else {
        resume(caller, truth, random)
    }
}

/// Comes back with a cursor: mostly the last, sometimes one of before, which repeats from there.
fn resume(caller: &mut Caller, truth: &Truth, random: &mut Random) -> Result<()> {
    let last = caller.cursors.len() - 1;
    let cursor = caller.cursors[if random.once_in(4) {
        random.index(last + 1)
    } else {
        last
    }];
    let is_whole = caller.fails_on_gap && caller.cursors.len() == 1;
    let wish = caller.wish.clone();
    let mut resumed = Caller::new(wish, truth, Start::Position(cursor), random)?;
    if is_whole
        && cursor.run == truth.journal.run()
        && caller.cursors[0] == truth.journal.oldest_whole(&caller.filter)
    {
        // Where a refused caller is sent, it must not be refused again.
        let batch = truth
            .journal
            .read(&mut resumed.reader.clone(), 50, &resumed.filter);
        let refused = batch
            .items
            .iter()
            .any(|item| matches!(item, Item::Gap { gap, .. } if gap.cause == GapCause::Compacted));
        ensure!(!refused, "refused again at the place it was sent to");
    }
    resumed.fails_on_gap = caller.fails_on_gap;
    *caller = resumed;
    Ok(())
}
