//! One reader, and what it must be told.

use openvpn_fleet::{EventClass, InstanceName};
use ovfleet_proto::v1;
use ovfleet_tests::{
    history::{Fact, Follower},
    random::Random,
};
use prost::Message as _;

use super::{
    super::*,
    Count,
    truth::{GAPS, INSTANCES, Truth, What, Wish, is_same},
};

/// One reader: what it asks for, where it is, and what it must still be told.
pub(super) struct Caller {
    wish: Wish,
    filter: Arc<EventFilter>,
    source: Source,
    follower: Follower,
    /// Everything before is behind it.
    next: usize,
    fails_on_gap: bool,
    /// Where it could resume: behind what it was told.
    cursors: Vec<Position>,
    /// It came from a journal that nobody knows, and has to be told first.
    replaced: bool,
    start: Start,
    has_begun: bool,
    /// It began with a moment: facts before the index count only from that moment on.
    since: Option<(usize, SystemTime)>,
    /// Up to this number it was told of every crash.
    accounted: u64,
}

impl Caller {
    pub(super) fn new(wish: Wish, truth: &Truth, start: Start, fails_on_gap: bool) -> Self {
        let filter = wish.filter();
        let source = Source::new(&truth.journal, Some(&truth.store), start, &filter);
        let mut caller = Self {
            wish,
            filter: Arc::new(filter),
            next: 0,
            follower: Follower::new(&[0]),
            fails_on_gap,
            cursors: vec![source.position()],
            source,
            replaced: false,
            start,
            has_begun: false,
            since: None,
            accounted: truth.journal.newest().sequence,
        };
        match start {
            Start::Now => caller.next = truth.facts.len(),
            Start::Position(place) if truth.store.knows(place.run) => {
                caller.accounted = place.sequence;
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
                self.accounted = truth.crashes_lost().last().map_or(0, |(start, _)| start);
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
    pub(super) async fn read(
        &mut self,
        truth: &Truth,
        random: &mut Random,
        count: &mut Count,
    ) -> bool {
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
            count.told(&piece);
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
                    self.passes(truth, sequence);
                    self.told(truth, index);
                    let run = truth.journal.run();
                    self.cursors.push(Position { run, sequence });
                }
                Piece::Gap { gap, resume } => {
                    let is_loss = gap.cause != GapCause::Unobserved;
                    if is_loss {
                        count.gaps += 1;
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
            self.passes(truth, truth.journal.newest().sequence);
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
                assert!(truth.crashes.contains_key(&resume.sequence), "no crash");
                self.passes(truth, resume.sequence - 1);
                self.accounted = self.accounted.max(resume.sequence);
                for class in 0..=GAPS {
                    self.follower.gap(0, class, place);
                }
            }
            _ => {
                assert!(!self.replaced);
                let is_true = self.is_missing(truth, &classes, gap, resume);
                assert!(is_true, "nothing is missing: {gap:?} at {place}");
                for class in classes {
                    let first = first_of(truth, class, place.max(self.next));
                    self.follower.gap(0, class, first);
                }
                if gap.class.is_none() {
                    let last_lost = truth.crashes_lost().last().map_or(0, |(start, _)| start);
                    self.accounted = self.accounted.max(last_lost);
                }
            }
        }
    }

    /// Whether something is missing for which that gap can stand.
    fn is_missing(&self, truth: &Truth, classes: &[usize], gap: &Gap, resume: Position) -> bool {
        let may_want = |at: usize, class| {
            let fact = &truth.facts[at];
            fact.class == class && self.wish.may_want(&fact.what)
        };
        let place = truth.behind(resume.sequence).max(self.next);
        let is_behind = classes.iter().any(|class| {
            let first = first_of(truth, *class, place);
            (place..first).any(|at| may_want(at, *class))
        });
        // What is missing since a moment may lie before the first that is there.
        let is_of_then = |when: SystemTime| self.since.is_some_and(|(_, time)| when >= time);
        let is_since = self.since.is_some()
            && (0..truth.facts.len()).any(|at| {
                is_of_then(truth.facts[at].what.observed)
                    && !truth.kept.contains(at)
                    && classes.iter().any(|class| may_want(at, *class))
            });
        // The gap that a crash left is among what is thrown away, and is everybody's.
        let is_crash = gap.class.is_none()
            && self.asks_for_something()
            && truth
                .crashes_lost()
                .any(|(start, crash)| start > resume.sequence || is_of_then(crash.observed));
        is_behind || is_since || is_crash
    }

    /// Fails if it comes to a number past a crash that it was not told of.
    fn passes(&self, truth: &Truth, sequence: u64) {
        let crash = truth.crashes.keys().find(|start| **start > self.accounted);
        let crash = crash.filter(|start| **start <= sequence && self.asks_for_something());
        assert_eq!(crash, None, "not told of a crash: {:?}", self.wish);
    }

    /// After a crash everybody is told, but who asks for what there cannot be, such as a client's name in what is not of
    /// clients.
    fn asks_for_something(&self) -> bool {
        let mut classes = EventClass::ALL.iter();
        classes.any(|class| self.filter.wants_class(*class))
    }

    /// Comes back with a cursor: mostly the last, sometimes one of before, which repeats from there.
    pub(super) fn resume(&mut self, truth: &Truth, random: &mut Random) {
        let last = self.cursors.len() - 1;
        let back = if random.once_in(4) {
            random.index(last + 1)
        } else {
            last
        };
        let start = Start::Position(self.cursors[back]);
        *self = Self::new(self.wish.clone(), truth, start, self.fails_on_gap);
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
        let crash = truth.crashes.keys().last();
        let crash = crash.filter(|_| self.asks_for_something());
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
