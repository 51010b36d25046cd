//! A reader: a position in the journal, and no queue.

use std::sync::Arc;
use std::time::SystemTime;

use super::ring::{Evicted, Source};
use super::{Entry, Journal, Position, Record, Rings};
use crate::event::{EventClass, Gap, GapCause, Kind};
use crate::event_filter::EventFilter;
use crate::name::Labels;

/// Fewest entries looked at under one lock.
const CHUNK_MIN: usize = 64;
/// Most entries looked at under one lock.
const CHUNK_MAX: usize = 1_024;
/// Entries looked at in one call, so that a filter that matches little does not keep a thread busy.
const LOOKED_AT_MAX: usize = 16 * CHUNK_MAX;

/// Where a reader begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With the next entry.
    Now,
    /// Behind this position.
    Position(Position),
    /// With the oldest entry kept.
    Oldest,
    /// With the first entry made at or after this moment.
    Time(SystemTime),
}

/// A place in the journal that moves on as it is read.
#[derive(Debug, Clone)]
pub struct Reader {
    /// Entries up to here were given or filtered out.
    position: Position,
    /// By class: up to here, entries were given, filtered out, or reported missing.
    accounted: [u64; 3],
    /// The reader came with a position of another run and was not told yet.
    restarted: bool,
}

/// What one read gave.
#[derive(Debug)]
pub struct Batch {
    /// In order.
    pub items: Vec<Item>,
    /// Behind the last of them, or further: what lies between was filtered out.
    pub next: Position,
    /// There was nothing more at that moment.
    pub is_end: bool,
}

/// One thing that a reader shows.
#[derive(Debug, Clone)]
pub enum Item {
    /// An event; its [`Record`] is never a gap.
    Event(Arc<Entry>),
    /// A hole, before the next event.
    Gap {
        /// Which.
        gap: Gap,
        /// Reading from here gives what follows it.
        resume: Position,
    },
}

/// Of what something was thrown away before a reader came to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The class that it was kept with.
    pub class: EventClass,
    /// Of what; none: of more than is told apart.
    pub source: Option<Source>,
    /// The highest sequence number thrown away.
    pub through: u64,
    /// When the youngest of them was made.
    pub time: SystemTime,
}

impl Journal {
    /// A reader.
    #[must_use]
    pub fn reader(&self, start: Start) -> Reader {
        let rings = self.lock();
        let evicted = |class: usize| {
            rings.rings[class]
                .evicted()
                .map_or(self.start, |evicted| evicted.through)
        };
        let reader = |sequence, accounted| Reader {
            position: self.position(sequence),
            accounted,
            restarted: false,
        };
        match start {
            Start::Now => reader(rings.newest(), [rings.newest(); 3]),
            Start::Position(position) if position.run == self.run => {
                let sequence = position.sequence.min(rings.newest());
                reader(sequence, [sequence; 3])
            }
            Start::Position(_) => Reader {
                restarted: true,
                ..reader(self.start, [0, 1, 2].map(evicted))
            },
            Start::Oldest => reader(self.start, [0, 1, 2].map(evicted)),
            Start::Time(time) => {
                let first = rings
                    .rings
                    .iter()
                    .filter_map(|ring| ring.first_since(time))
                    .map(|entry| entry.sequence)
                    .min();
                let accounted = [0, 1, 2].map(|class: usize| match rings.rings[class].evicted() {
                    // Something from that time on is missing.
                    Some(evicted) if evicted.time >= time => self.start,
                    Some(evicted) => evicted.through,
                    None => self.start,
                });
                reader(first.map_or(rings.newest(), |first| first - 1), accounted)
            }
        }
    }

    /// A reader behind `sequence` of this run, if nothing behind it that `filter` wants was thrown away.
    #[must_use]
    pub fn whole_reader(&self, sequence: u64, filter: &EventFilter) -> Option<Reader> {
        let reader = self.reader(Start::Position(self.position(sequence)));
        let is_ours = sequence >= self.start;
        (is_ours && self.is_whole(&self.lock(), &reader, filter)).then_some(reader)
    }

    /// A reader from that time on, if nothing since that `filter` wants was thrown away.
    #[must_use]
    pub fn whole_reader_since(&self, time: SystemTime, filter: &EventFilter) -> Option<Reader> {
        let reader = self.reader(Start::Time(time));
        self.is_whole(&self.lock(), &reader, filter)
            .then_some(reader)
    }

    fn is_whole(&self, rings: &Rings, reader: &Reader, filter: &EventFilter) -> bool {
        self.holes(rings, reader, filter).1.is_empty()
    }

    /// Gives what lies behind the reader's position and moves it on: at most `limit` items that `filter` wants, and a
    /// gap before the first event behind every hole that touches what `filter` wants.
    pub fn read(&self, reader: &mut Reader, limit: usize, filter: &EventFilter) -> Batch {
        self.read_on(reader, limit, filter, false)
    }

    /// The same for who can read elsewhere what was thrown away: stops before a hole, and gives `None` if there is one
    /// right behind the reader.
    pub fn read_whole(
        &self,
        reader: &mut Reader,
        limit: usize,
        filter: &EventFilter,
    ) -> Option<Batch> {
        let is_whole = self.is_whole(&self.lock(), reader, filter);
        is_whole.then(|| self.read_on(reader, limit, filter, true))
    }

    fn read_on(
        &self,
        reader: &mut Reader,
        limit: usize,
        filter: &EventFilter,
        stop_at_hole: bool,
    ) -> Batch {
        let mut items = Vec::new();
        if std::mem::take(&mut reader.restarted) {
            let gap = self.gap(GapCause::GatewayRestarted, None);
            items.push(Item::Gap {
                gap,
                resume: reader.position,
            });
        }
        // Gaps of any class are among the life cycle.
        let wanted = EventClass::ALL
            .map(|class| class == EventClass::Lifecycle || filter.wants_class(class));
        let chunk_max = limit.clamp(CHUNK_MIN, CHUNK_MAX);
        let mut looked_at = 0;
        loop {
            let (chunk, newest) = {
                let rings = self.lock();
                let (accounted, holes) = self.holes(&rings, reader, filter);
                if stop_at_hole && !holes.is_empty() {
                    return self.batch(items, reader, false);
                }
                reader.accounted = accounted;
                items.extend(holes);
                (
                    copy_chunk(&rings, reader.position.sequence, wanted, chunk_max),
                    rings.newest(),
                )
            };
            let is_last = chunk.len() < chunk_max;
            looked_at += chunk.len();
            for entry in chunk {
                if items.len() >= limit {
                    return self.batch(items, reader, false);
                }
                reader.move_to(entry.sequence);
                match &entry.record {
                    Record::Event(event) if filter.wants(event) => items.push(Item::Event(entry)),
                    Record::Gap(gap) if filter.wants_gap(gap) => items.push(Item::Gap {
                        gap: gap.clone(),
                        resume: reader.position,
                    }),
                    Record::Event(_) | Record::Gap(_) => {}
                }
            }
            if is_last {
                reader.move_to(newest);
                return self.batch(items, reader, true);
            }
            if looked_at >= LOOKED_AT_MAX {
                return self.batch(items, reader, false);
            }
        }
    }

    fn batch(&self, items: Vec<Item>, reader: &Reader, is_end: bool) -> Batch {
        let _ = self;
        Batch {
            items,
            next: reader.position,
            is_end,
        }
    }

    fn gap(&self, cause: GapCause, class: Option<EventClass>) -> Gap {
        Gap {
            cause,
            gateway: self.gateway.clone(),
            instance: None,
            labels: Labels::default(),
            class,
            count: None,
            not_before: None,
            not_after: None,
        }
    }

    /// The oldest position behind which nothing that `filter` wants was thrown away.
    #[must_use]
    pub fn oldest_whole(&self, filter: &EventFilter) -> Position {
        let rings = self.lock();
        let evicted = EventClass::ALL
            .into_iter()
            .filter_map(|class| self.evicted_of(&rings, class, filter));
        let through = evicted.map(|evicted| evicted.through).max();
        self.position(through.unwrap_or(self.start))
    }

    /// Of what something behind the reader was thrown away: for who keeps the gaps that it is told of, to tell others.
    #[must_use]
    pub fn missing(&self, reader: &Reader) -> Vec<Missing> {
        let rings = self.lock();
        let of_class = |class: EventClass| {
            let ring = &rings.rings[class as usize];
            let behind = ring.evicted_behind(reader.accounted[class as usize]);
            behind.map(move |(source, evicted)| Missing {
                class,
                source: source.cloned(),
                through: evicted.through,
                time: evicted.time,
            })
        };
        EventClass::ALL.into_iter().flat_map(of_class).collect()
    }

    /// What was thrown away of a class, as far as `filter` wants it.
    fn evicted_of(
        &self,
        rings: &Rings,
        class: EventClass,
        filter: &EventFilter,
    ) -> Option<Evicted> {
        let ring = &rings.rings[class as usize];
        // Gaps of no class are among the life cycle.
        let wants_gaps = match class {
            EventClass::Lifecycle => EventClass::ALL
                .into_iter()
                .any(|class| filter.wants_class(class)),
            class => filter.wants_class(class),
        };
        let wants_kind =
            |kind: Option<Kind>| kind.map_or(wants_gaps, |kind| filter.wants_kind(kind));
        if filter.selector.is_everything() {
            ring.evicted_of_kinds(wants_kind)
        } else {
            ring.evicted_of_sources(|source| {
                let instance = source.instance.as_ref();
                wants_kind(source.kind)
                    && filter.wants_instance(&self.gateway, instance, &source.labels)
            })
        }
    }

    /// A gap for each class of which something the filter wants was thrown away before the reader came to it, and up to
    /// where that accounts for each class.
    fn holes(&self, rings: &Rings, reader: &Reader, filter: &EventFilter) -> ([u64; 3], Vec<Item>) {
        let mut through = reader.accounted;
        let mut items = Vec::new();
        for class in EventClass::ALL {
            let ring = &rings.rings[class as usize];
            let accounted = reader.accounted[class as usize];
            let Some(all) = ring.evicted().filter(|all| all.through > accounted) else {
                continue;
            };
            // Whatever of it is wanted is told now; what follows has a greater number.
            through[class as usize] = all.through;
            let evicted = self.evicted_of(rings, class, filter);
            let Some(evicted) = evicted.filter(|evicted| evicted.through > accounted) else {
                continue;
            };
            // All that was ever thrown away is missing only to a reader from before all of it; gaps count for unknown
            // numbers of events.
            let is_countable = accounted == self.start
                && filter.clients.is_empty()
                && ring.evicted_of_kinds(|kind| kind.is_none()).is_none();
            items.push(Item::Gap {
                gap: Gap {
                    count: is_countable.then_some(evicted.count),
                    not_after: Some(evicted.time),
                    ..self.gap(
                        GapCause::Compacted,
                        filter.wants_class(class).then_some(class),
                    )
                },
                resume: reader.position,
            });
        }
        (through, items)
    }
}

impl Reader {
    /// Where it is.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    fn move_to(&mut self, sequence: u64) {
        self.position.sequence = self.position.sequence.max(sequence);
        for accounted in &mut self.accounted {
            *accounted = sequence.max(*accounted);
        }
    }
}

/// The next entries behind `sequence` of the classes that are wanted, in order.
fn copy_chunk(
    rings: &Rings,
    sequence: u64,
    wanted: [bool; 3],
    chunk_max: usize,
) -> Vec<Arc<Entry>> {
    let mut next = [0, 1, 2].map(|class: usize| rings.rings[class].index_behind(sequence));
    let mut chunk = Vec::new();
    while chunk.len() < chunk_max {
        let oldest = (0..3)
            .filter(|class| wanted[*class])
            .filter_map(|class| {
                rings.rings[class]
                    .get(next[class])
                    .map(|entry| (entry, class))
            })
            .min_by_key(|(entry, _)| entry.sequence);
        let Some((entry, class)) = oldest else {
            break;
        };
        chunk.push(Arc::clone(entry));
        next[class] += 1;
    }
    chunk
}
