//! Memory and disk together against a model: one writer, readers that dawdle, are cut off and come back, a disk that is
//! late, throws away what is too much or too old, and a gateway that ends in order or dies.
//!
//! The model is a list of everything that ever happened, over all runs. What of it can still be had is looked up where
//! it is kept; what each reader is told goes through the judge of the scenarios, and besides each gap must stand for
//! something that this reader wants and that is gone.

mod truth;

use openvpn_fleet::{EventClass, InstanceName, RunId};
use ovfleet_proto::v1;
use ovfleet_tests::{
    history::{Fact, Follower},
    random::{Random, soak},
};
use prost::Message as _;

use self::truth::{GAPS, INSTANCES, Truth, What, Wish, is_same};
use super::*;

const READERS: usize = 8;

/// One reader: what it asks for, where it is, and what it must still be told.
struct Caller {
    wish: Wish,
    filter: Arc<EventFilter>,
    source: Source,
    follower: Follower,
    /// Everything before is behind it.
    next: usize,
    fails_on_gap: bool,
    gaps: usize,
    /// Where it could resume: behind what it was told.
    cursors: Vec<Position>,
    /// It came from a journal that nobody knows, and has to be told first.
    replaced: bool,
    start: Start,
    has_begun: bool,
    /// It began with a moment: facts before the index count only from that moment on.
    since: Option<(usize, SystemTime)>,
}

impl Caller {
    fn new(wish: Wish, truth: &Truth, start: Start, fails_on_gap: bool) -> Self {
        let filter = wish.filter();
        let source = Source::new(&truth.journal, Some(&truth.store), start, &filter);
        let mut caller = Self {
            wish,
            filter: Arc::new(filter),
            next: 0,
            follower: Follower::new(&[0]),
            fails_on_gap,
            gaps: 0,
            cursors: vec![source.position()],
            source,
            replaced: false,
            start,
            has_begun: false,
            since: None,
        };
        match start {
            Start::Now => caller.next = truth.facts.len(),
            Start::Position(place) if truth.store.knows(place.run) => {
                caller.cursors = vec![place];
                caller.next = truth.behind(place.sequence);
            }
            Start::Position(_) => caller.replaced = true,
            Start::Oldest | Start::Time(_) => {}
        }
        if caller.next > 0 {
            caller.follower = Follower::new(&[caller.next]);
        }
        caller
    }

    /// Reads for the first time: what is there then is what it asked for.
    fn begin(&mut self, truth: &Truth) {
        match self.start {
            Start::Position(_) if !self.replaced => {}
            Start::Oldest | Start::Position(_) => {
                // What is gone by now is covered by having asked for the rest.
                for class in 0..=GAPS {
                    let first = first_of(truth, class, 0);
                    self.follower.gap(0, class, first);
                }
            }
            Start::Time(time) => {
                let is_of_then = |at: usize| truth.facts[at].what.observed >= time;
                let first = truth.kept.first(0, is_of_then);
                self.since = Some((first.unwrap_or(truth.facts.len()), time));
                // What is gone and older it did not ask for.
                for class in 0..=GAPS {
                    let first = first_of(truth, class, 0);
                    let is_asked_for = |at: usize| truth.facts[at].class == class && is_of_then(at);
                    if !(0..first).any(is_asked_for) {
                        self.follower.gap(0, class, first);
                    }
                }
            }
            Start::Now => {}
        }
    }

    /// Reads on, as a stream does; gives false when it has to begin anew.
    async fn read(&mut self, truth: &Truth, random: &mut Random) -> bool {
        if !std::mem::replace(&mut self.has_begun, true) {
            self.begin(truth);
        }
        let (pieces, is_end) = self.source.read(&self.filter).await;
        // The connection is cut somewhere in the middle, now and then.
        let arrives = if random.once_in(20) {
            random.index(pieces.len() + 1)
        } else {
            usize::MAX
        };
        for (number, piece) in pieces.into_iter().enumerate() {
            if number == arrives {
                return false;
            }
            match piece {
                Piece::Event { sequence, wire } => {
                    assert!(!self.replaced, "an event before the gap of another journal");
                    let place = truth.sequences.binary_search(&sequence);
                    let index = place.expect("it was appended");
                    let batch = v1::EventBatch::decode(wire).expect("an event");
                    assert_eq!(batch.events.len(), 1);
                    let what = &truth.facts[index].what;
                    assert!(is_same(&batch.events[0], what), "{batch:?}, not {what:?}");
                    assert_eq!(batch.events[0].sequence, sequence);
                    self.told(truth, index);
                    let run = truth.journal.run();
                    self.cursors.push(Position { run, sequence });
                }
                Piece::Gap { gap, resume } => {
                    let is_loss = gap.cause != GapCause::Unobserved;
                    if is_loss {
                        self.told_gap(truth, &gap, resume);
                    } else {
                        let index = truth.behind(resume.sequence) - 1;
                        let what = &truth.facts[index].what;
                        let instance = what.instance.map(|it| INSTANCES[it]);
                        assert_eq!(truth.sequences[index], resume.sequence);
                        assert_eq!(gap.instance.as_ref().map(InstanceName::as_str), instance);
                        assert_eq!((what.kind, gap.not_after), (None, Some(what.observed)));
                        self.told(truth, index);
                    }
                    self.cursors.push(resume);
                    if is_loss && self.fails_on_gap {
                        self.fail(truth).await;
                        return false;
                    }
                }
            }
        }
        if arrives != usize::MAX {
            return false;
        }
        self.cursors.push(self.source.position());
        if is_end {
            assert!(!self.replaced, "another journal was not told");
            assert_eq!(self.source.position(), truth.journal.newest());
            let (wish, since) = (&self.wish, self.since);
            let wants = |at: usize, fact: &Fact<What>| wants(wish, since, at, &fact.what);
            let end = self.follower.caught_up(0, &truth.facts, wants);
            end.unwrap_or_else(|error| panic!("{error}"));
            self.next = truth.facts.len();
        }
        if self.cursors.len() > 400 {
            self.cursors.drain(..200);
        }
        true
    }

    fn told(&mut self, truth: &Truth, index: usize) {
        assert!(index >= self.next, "{index} when {} was due", self.next);
        let (wish, since) = (&self.wish, self.since);
        let wants = |at: usize, fact: &Fact<What>| wants(wish, since, at, &fact.what);
        let what = &truth.facts[index].what;
        if since.is_some() && !wants(index, &truth.facts[index]) && wish.wants(what) {
            // It began with a gap of that time, and what follows is older: somebody set the clock back.
            self.next = index + 1;
            return;
        }
        let event = self.follower.event(0, &truth.facts, wants, index, what);
        event.unwrap_or_else(|error| panic!("{error}: {}", self.tell(truth, index)));
        self.next = index + 1;
    }

    /// For who looks for a mistake: what was due.
    fn tell(&self, truth: &Truth, index: usize) -> String {
        let from = self.next.max(index.saturating_sub(20));
        let near = (from..=index).filter_map(|at| {
            let fact = truth.facts.get(at)?;
            let is_kept = truth.kept.contains(at);
            Some(format!("{at}: kept {is_kept}, {fact:?}"))
        });
        let near: Vec<_> = near.collect();
        format!("{:?} from {:?}: {near:#?}", self.wish, self.start)
    }

    fn told_gap(&mut self, truth: &Truth, gap: &Gap, resume: Position) {
        self.gaps += 1;
        let classes = match gap.class {
            // Gaps of any class are among the life cycle.
            Some(EventClass::Lifecycle) => vec![0, GAPS],
            Some(class) => vec![class as usize],
            None => (0..=GAPS).collect(),
        };
        let place = truth.behind(resume.sequence);
        let is_wanted = |at| wants(&self.wish, self.since, at, &truth.facts[at].what);
        let skipped = truth.kept.first(self.next, is_wanted);
        assert!(
            gap.cause == GapCause::JournalReplaced || skipped.is_none_or(|at| at >= place),
            "{skipped:?} was not told before the gap: {}",
            self.tell(truth, place)
        );
        match gap.cause {
            GapCause::JournalReplaced => {
                assert!(std::mem::take(&mut self.replaced), "nothing was replaced");
            }
            GapCause::GatewayRestarted => {
                assert!(truth.crashes.contains(&resume.sequence), "no crash");
                for class in 0..=GAPS {
                    self.follower.gap(0, class, place);
                }
            }
            _ => {
                assert!(!self.replaced);
                let place = place.max(self.next);
                // The gap of a crash, which is everybody's, may be what was thrown away.
                let mut crashes = truth.crashes.iter().map(|start| truth.behind(*start));
                let is_of_crash = gap.class.is_none() && crashes.any(|at| at >= place);
                let mut is_true = self.since.is_some() || is_of_crash;
                for class in classes {
                    let first = first_of(truth, class, place);
                    is_true |= (place..first).any(|at| {
                        truth.facts[at].class == class && self.wish.may_want(&truth.facts[at].what)
                    });
                    self.follower.gap(0, class, first);
                }
                assert!(is_true, "nothing is missing: {gap:?} at {place}");
            }
        }
    }

    /// The stream ends here, and names the oldest place from which nothing is missing.
    async fn fail(&mut self, truth: &Truth) {
        let oldest = self.source.oldest_whole(&self.filter).await;
        self.cursors = vec![oldest];
        if truth.written.position() != truth.journal.newest() {
            // What the disk is late for, it does not know yet.
            return;
        }
        let is_missing =
            |at: &usize| !truth.kept.contains(*at) && self.wish.may_want(&truth.facts[*at].what);
        let last_missing = (0..truth.facts.len()).rev().find(is_missing);
        // After a crash everybody is told, but who asks for what there cannot be, such as a client's name in what is not
        // of clients.
        let asks_for_something = EventClass::ALL
            .iter()
            .any(|class| self.filter.wants_class(*class));
        let crash = truth.crashes.last().filter(|_| asks_for_something);
        let crash = crash.map_or(0, |start| truth.behind(*start));
        let expected = last_missing.map_or(0, |at| at + 1).max(crash);
        assert_eq!(
            truth.behind(oldest.sequence),
            expected,
            "{oldest:?}: {}",
            self.tell(truth, truth.behind(oldest.sequence).max(expected))
        );
    }
}

fn wants(wish: &Wish, since: Option<(usize, SystemTime)>, at: usize, what: &What) -> bool {
    wish.wants(what) && since.is_none_or(|(first, time)| at >= first || what.observed >= time)
}

/// The first fact of a class that can be had, from an index on.
fn first_of(truth: &Truth, class: usize, from: usize) -> usize {
    let first = truth.kept.first(from, |at| truth.facts[at].class == class);
    first.unwrap_or(truth.facts.len())
}

fn random_start(truth: &Truth, random: &mut Random) -> Start {
    match random.below(8) {
        0 => Start::Now,
        1 | 2 => Start::Oldest,
        3 => Start::Position(Position {
            run: RunId(7),
            sequence: u64::MAX,
        }),
        4 if !truth.facts.is_empty() => {
            let back = 1 + random.index(truth.facts.len().min(2_000));
            let fact = &truth.facts[truth.facts.len() - back];
            Start::Time(fact.what.observed + Duration::from_micros(random.below(2)))
        }
        _ => {
            let index = random.index(truth.sequences.len() + 1);
            let sequence = index.checked_sub(1).map_or(0, |at| truth.sequences[at]);
            let run = truth.journal.run();
            Start::Position(Position { run, sequence })
        }
    }
}

/// Comes back with a cursor: mostly the last, sometimes one of before, which repeats from there.
fn resume(caller: &mut Caller, truth: &Truth, random: &mut Random) {
    let last = caller.cursors.len() - 1;
    let back = if random.once_in(4) {
        random.index(last + 1)
    } else {
        last
    };
    let start = Start::Position(caller.cursors[back]);
    *caller = Caller {
        gaps: caller.gaps,
        ..Caller::new(caller.wish.clone(), truth, start, caller.fails_on_gap)
    };
}

/// Whatever is appended, written late, thrown away, read, cut off, resumed and restarted, in whatever order: every reader
/// is told all it asked for, once, in order, or of the hole first; and of no hole in what it did not ask for.
#[tokio::test]
async fn memory_and_disk_keep_their_promises_through_restarts() {
    let (lives, steps) = if soak() { (100, 10_000) } else { (1, 4_000) };
    let mut random = Random::seeded("memory and disk");
    let started = std::time::Instant::now();
    let mut count = Count::default();
    for life in 0..lives {
        // Each with a disk of its own.
        let mut random = Random::new(random.next());
        live(steps, &mut random, &mut count).await;
        if life % 10 == 9 {
            eprintln!("{} steps in {:.1?}", (life + 1) * steps, started.elapsed());
        }
    }
    eprintln!(
        "{} steps in {:.1?}: {count:?}",
        lives * steps,
        started.elapsed()
    );
}

/// What happened in all.
#[derive(Debug, Default)]
struct Count {
    facts: usize,
    gaps: usize,
    ends_in_order: usize,
    crashes: usize,
}

async fn live(steps: usize, random: &mut Random, count: &mut Count) {
    let mut truth = Truth::new().await;
    let mut callers = Vec::new();
    for _ in 0..READERS {
        let wish = Wish::random(random);
        callers.push(Caller::new(wish, &truth, Start::Oldest, random.once_in(5)));
    }
    for _ in 0..steps {
        let chosen = random.index(READERS);
        let caller = &mut callers[chosen];
        match random.below(1_000) {
            0..440 => truth.append(random),
            // A few never hurry.
            440..890 if chosen.is_multiple_of(3) && !random.once_in(20) => {}
            440..890 => {
                // Who waits for the disk waits in vain, in no time.
                tokio::time::pause();
                let goes_on = caller.read(&truth, random).await;
                tokio::time::resume();
                if !goes_on {
                    resume(caller, &truth, random);
                }
            }
            890..950 => truth.write().await,
            950..975 => resume(caller, &truth, random),
            975..990 => {
                let (wish, start) = (Wish::random(random), random_start(&truth, random));
                *caller = Caller::new(wish, &truth, start, random.once_in(5));
            }
            _ => {
                let is_orderly = random.once_in(2);
                count.ends_in_order += usize::from(is_orderly);
                count.crashes += usize::from(!is_orderly);
                truth.restart(random, is_orderly).await;
                for caller in &mut callers {
                    resume(caller, &truth, random);
                }
            }
        }
    }
    count.facts += truth.facts.len();
    count.gaps += callers.iter().map(|caller| caller.gaps).sum::<usize>();
}
