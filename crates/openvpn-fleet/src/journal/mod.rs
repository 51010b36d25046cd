//! The journal: what happened, in one order, for any number of readers.
//!
//! ```text
//! append ──► one sequence ──► ring per class ──► evicted: what, of whom, up to where
//!                                  ▲
//!            Reader (a position and no queue) ── read ──► events, and a gap for every hole its filter touches
//! ```

mod counts;
mod reader;
mod ring;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use tokio::sync::watch;

pub use self::counts::Counts;
pub use self::reader::{Batch, Item, Missing, Reader, Start};
use self::ring::Ring;
pub use self::ring::Source;
use crate::event::{Event, EventClass, Gap};
use crate::name::GatewayName;

/// Share of the journal's memory and count that each class may use, in percent.
const SHARES: [(EventClass, usize); 3] = [
    (EventClass::Lifecycle, 50),
    (EventClass::Log, 40),
    (EventClass::Raw, 10),
];

/// Bytes reserved for an entry's encoded form beyond its texts: names of fields, times, the instance's name.
const ENCODED_OVERHEAD: usize = 160;

/// Turns an event into the bytes that streams send. Called at most once for each event, and only when one is sent.
pub type Encode = fn(&Event) -> Bytes;

/// How much is kept.
#[derive(Debug, Clone)]
pub struct JournalConfig {
    /// Memory for all entries, their encoded form included.
    pub memory_bytes: usize,
    /// How many entries.
    pub events_max: usize,
    /// How old entries may become.
    pub age_max: Duration,
    /// How events are encoded.
    pub encode: Encode,
    /// Where this run begins: its id, and a number that is above those of every run before. `None`: an id is made, and
    /// the clock has to do for the number.
    pub start: Option<Position>,
}

/// One run of a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RunId(pub u64);

impl RunId {
    /// One that no other run of a gateway has had.
    #[must_use]
    pub fn mint() -> Self {
        let mut bytes = [0; 8];
        Self(match getrandom::fill(&mut bytes) {
            Ok(()) => u64::from_ne_bytes(bytes),
            // Without randomness the clock has to do: two runs never start within the same nanosecond.
            Err(_) => SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(0)),
        })
    }
}

/// A place in a journal: behind the entry of that sequence number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    /// Whose sequence numbers.
    pub run: RunId,
    /// The last one that is behind.
    pub sequence: u64,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// A fact.
    Event(Event),
    /// A hole that belongs exactly here: nobody saw, or not everything was taken.
    Gap(Gap),
}

/// One entry of the journal.
#[derive(Debug)]
pub struct Entry {
    sequence: u64,
    observed: SystemTime,
    /// When it was made, by the clock that ages go by.
    since: SystemTime,
    /// Bytes it counts for.
    weight: usize,
    record: Record,
    wire: OnceLock<Bytes>,
}

impl Entry {
    /// Its position; rises with every entry.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// When it was made.
    #[must_use]
    pub fn observed(&self) -> SystemTime {
        self.observed
    }

    /// What it is.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }
}

/// How full one class of the journal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassDepth {
    /// Which.
    pub class: EventClass,
    /// Entries kept.
    pub entries: usize,
    /// Bytes they count for.
    pub bytes: usize,
    /// Entries thrown away since the start.
    pub evicted: u64,
}

/// What happened, in one order, for any number of readers.
#[derive(Debug)]
pub struct Journal {
    gateway: GatewayName,
    run: RunId,
    /// The first entry of this run gets the next number.
    start: u64,
    encode: Encode,
    age_max: Duration,
    /// What ages go by.
    clock: Clock,
    /// The entries, all classes. Locked to append a batch or to copy out the pointers of one.
    rings: Mutex<Rings>,
    /// The newest sequence number; wakes readers without a queue for each.
    newest: watch::Sender<u64>,
    counts: Counts,
}

#[derive(Debug)]
struct Rings {
    next_sequence: u64,
    /// In the order of [`EventClass::ALL`].
    rings: [Ring; 3],
}

impl Rings {
    fn ring_mut(&mut self, class: EventClass) -> &mut Ring {
        &mut self.rings[class as usize]
    }

    fn newest(&self) -> u64 {
        self.next_sequence - 1
    }
}

impl Journal {
    /// An empty journal whose numbers begin above those of every run before.
    #[must_use]
    pub fn new(gateway: GatewayName, config: &JournalConfig) -> Self {
        let Position {
            run,
            sequence: start,
        } = config.start.unwrap_or_else(|| Position {
            run: RunId::mint(),
            sequence: crate::client::micros(SystemTime::now()),
        });
        let ring = |(_, percent): (EventClass, usize)| {
            Ring::new(
                config.memory_bytes / 100 * percent,
                (config.events_max * percent / 100).max(1),
            )
        };
        Self {
            gateway,
            run,
            start,
            encode: config.encode,
            age_max: config.age_max,
            clock: Clock::steady(),
            rings: Mutex::new(Rings {
                next_sequence: start + 1,
                rings: SHARES.map(ring),
            }),
            newest: watch::Sender::new(start),
            counts: Counts::new(),
        }
    }

    /// The same, but ages go by the times of events and of [`handle_time`](Self::handle_time): for a test that plays
    /// days in a moment.
    #[must_use]
    pub fn with_ages_of_events(self) -> Self {
        Self {
            clock: Clock::Events,
            ..self
        }
    }

    fn lock(&self) -> MutexGuard<'_, Rings> {
        // An append that panics leaves at worst an entry uncounted, never a broken order.
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one event; gives its sequence number.
    pub fn append(&self, event: Event) -> u64 {
        self.append_all(std::iter::once(Record::Event(event)))
    }

    /// Adds records in their order, together; gives the last sequence number.
    pub fn append_all(&self, records: impl IntoIterator<Item = Record>) -> u64 {
        let newest = {
            let mut rings = self.lock();
            let mut newest_time = None;
            for record in records {
                if let Record::Event(event) = &record {
                    self.counts.add(event);
                }
                let sequence = rings.next_sequence;
                rings.next_sequence += 1;
                let entry = Entry::new(sequence, record, &self.clock);
                newest_time = Some(entry.observed);
                let class = entry.class();
                rings.ring_mut(class).push(Arc::new(entry));
            }
            if let Some(time) = newest_time {
                self.expire(&mut rings, time);
            }
            rings.newest()
        };
        // Two writers may come here in either order.
        self.newest.send_if_modified(|known| {
            let is_newer = newest > *known;
            *known = newest.max(*known);
            is_newer
        });
        newest
    }

    /// Throws away what has become too old. To be called now and then: a quiet journal ages too.
    pub fn handle_time(&self, now: SystemTime) {
        self.expire(&mut self.lock(), now);
    }

    fn expire(&self, rings: &mut Rings, now: SystemTime) {
        if let Some(oldest) = self.clock.now(now).checked_sub(self.age_max) {
            for ring in &mut rings.rings {
                ring.expire(oldest);
            }
        }
    }

    /// An event's encoded form, made once.
    pub fn wire(&self, entry: &Entry) -> Bytes {
        match &entry.record {
            Record::Event(event) => entry.wire.get_or_init(|| (self.encode)(event)).clone(),
            Record::Gap(_) => Bytes::new(),
        }
    }

    /// The present end.
    #[must_use]
    pub fn newest(&self) -> Position {
        self.position(self.lock().newest())
    }

    /// The gateway whose journal it is.
    #[must_use]
    pub fn gateway(&self) -> &GatewayName {
        &self.gateway
    }

    /// This run.
    #[must_use]
    pub fn run(&self) -> RunId {
        self.run
    }

    /// Where this run begins.
    #[must_use]
    pub fn start(&self) -> Position {
        self.position(self.start)
    }

    fn position(&self, sequence: u64) -> Position {
        Position {
            run: self.run,
            sequence,
        }
    }

    /// Tells when there is something new; the value is the newest sequence number.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// How much older the first entry behind `position` is than the newest: how far a reader there is behind.
    #[must_use]
    pub fn lag(&self, position: Position) -> Duration {
        let rings = self.lock();
        let next = rings
            .rings
            .iter()
            .filter_map(|ring| ring.first_behind(position.sequence))
            .min_by_key(|entry| entry.sequence);
        let newest = rings
            .rings
            .iter()
            .filter_map(Ring::last)
            .max_by_key(|entry| entry.sequence);
        match (next, newest) {
            (Some(next), Some(newest)) => {
                newest.since.duration_since(next.since).unwrap_or_default()
            }
            _ => Duration::ZERO,
        }
    }

    /// How often what happened since the start.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// How full it is, by class.
    #[must_use]
    pub fn depth(&self) -> [ClassDepth; 3] {
        let rings = self.lock();
        EventClass::ALL.map(|class| rings.rings[class as usize].depth(class))
    }
}

/// What ages go by.
#[derive(Debug)]
enum Clock {
    /// Time that passes, counted from a moment by the calendar: somebody who sets the clock forward by a day would
    /// otherwise make everything a day old, what comes at that moment included.
    Steady { start: SystemTime, passed: Instant },
    /// The calendar, as events tell it.
    Events,
}

impl Clock {
    fn steady() -> Self {
        Self::Steady {
            start: SystemTime::now(),
            passed: Instant::now(),
        }
    }

    /// Now, where the calendar says `wall`.
    fn now(&self, wall: SystemTime) -> SystemTime {
        match self {
            Self::Steady { start, passed } => *start + passed.elapsed(),
            Self::Events => wall,
        }
    }
}

impl Entry {
    fn new(sequence: u64, record: Record, clock: &Clock) -> Self {
        let (record, observed, text) = match record {
            Record::Event(mut event) => {
                event.sequence = sequence;
                let (observed, text) = (event.observed, event.heap_bytes());
                (Record::Event(event), observed, text)
            }
            Record::Gap(gap) => {
                let observed = gap.not_after.unwrap_or_else(SystemTime::now);
                (Record::Gap(gap), observed, 0)
            }
        };
        // Texts count twice, because the encoded form repeats them.
        let weight = size_of::<Self>() + 2 * text + ENCODED_OVERHEAD;
        Self {
            sequence,
            observed,
            since: clock.now(observed),
            weight,
            record,
            wire: OnceLock::new(),
        }
    }

    /// A gap is kept like what is missing.
    fn class(&self) -> EventClass {
        match &self.record {
            Record::Event(event) => event.kind().class(),
            Record::Gap(gap) => gap.class.unwrap_or(EventClass::Lifecycle),
        }
    }
}

#[cfg(test)]
mod tests;
