//! Where a stream reads: the journal in memory, and what came before it on disk.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use openvpn_fleet::{
    EventFilter, Gap, GapCause, Labels,
    journal::{Batch, Item, Journal, Position, Reader, Start},
};
use tokio::time::timeout;

use super::events::BATCH_EVENTS_MAX;
use crate::state::{EventStore, StoredItem, StoredReader};

/// How long a stream at the end of the disk waits for what memory has forgotten already and the disk does not have yet.
const WRITTEN_WAIT_MAX: Duration = Duration::from_secs(2);

/// A place that moves on as it is read.
#[derive(Debug)]
pub(crate) struct Source {
    journal: Arc<Journal>,
    /// The same on disk; `None` without a state directory.
    store: Option<EventStore>,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// In memory, where nothing behind it is missing that the disk has.
    Memory(Reader),
    /// In memory too, where it has first to be told what is missing.
    Gappy(Reader),
    /// On disk.
    Stored(EventStore, StoredReader),
    /// With the first event of that time, wherever that is.
    Since(EventStore, SystemTime),
}

/// One thing that a stream shows.
#[derive(Debug)]
pub(crate) enum Piece {
    /// An event.
    Event {
        /// Its number.
        sequence: u64,
        /// As streams send it.
        wire: Bytes,
    },
    /// A hole, before the next event.
    Gap {
        /// Which.
        gap: Gap,
        /// Reading from here gives what follows it.
        resume: Position,
    },
}

impl Source {
    pub(crate) fn new(
        journal: &Arc<Journal>,
        store: Option<&EventStore>,
        start: Start,
        filter: &EventFilter,
    ) -> Self {
        Self {
            journal: Arc::clone(journal),
            store: store.cloned(),
            place: match store {
                None => Place::Memory(journal.reader(start)),
                Some(store) => Place::new(journal, store, start, filter),
            },
        }
    }

    /// Whether it reads on disk.
    pub(super) fn is_stored(&self) -> bool {
        matches!(self.place, Place::Stored(..) | Place::Since(..))
    }

    pub(crate) fn position(&self) -> Position {
        let sequence = match &self.place {
            Place::Memory(reader) | Place::Gappy(reader) => return reader.position(),
            Place::Stored(_, reader) => reader.after(),
            Place::Since(..) => 0,
        };
        let run = self.journal.run();
        Position { run, sequence }
    }

    /// What comes next, in order, and whether that is all there is at this moment.
    pub(crate) async fn read(&mut self, filter: &Arc<EventFilter>) -> (Vec<Piece>, bool) {
        let journal = Arc::clone(&self.journal);
        loop {
            match &mut self.place {
                Place::Gappy(reader) => {
                    let batch = journal.read(reader, BATCH_EVENTS_MAX, filter);
                    self.place = Place::Memory(reader.clone());
                    return pieces(&journal, batch);
                }
                Place::Memory(reader) => {
                    let Some(store) = &self.store else {
                        let batch = journal.read(reader, BATCH_EVENTS_MAX, filter);
                        return pieces(&journal, batch);
                    };
                    if let Some(batch) = journal.read_whole(reader, BATCH_EVENTS_MAX, filter) {
                        return pieces(&journal, batch);
                    }
                    // It fell behind: the disk has it.
                    let after = reader.position().sequence;
                    self.place = Place::Stored(store.clone(), StoredReader::behind(after));
                }
                Place::Since(store, time) => {
                    let (store, time) = (store.clone(), *time);
                    match store.reader_since(time, filter, journal.gateway()).await {
                        Ok(reader) => self.place = Place::Stored(store, reader),
                        Err(_) => {
                            self.place = Place::Gappy(journal.reader(Start::Time(time)));
                            return (vec![lost(&journal, self.position())], false);
                        }
                    }
                }
                Place::Stored(store, reader) => {
                    let store = store.clone();
                    let page = store.page(reader, filter, journal.gateway()).await;
                    let after = reader.after();
                    let Ok(page) = page else {
                        // The disk cannot be read: what it holds is missing here.
                        let begin = journal.start().sequence.max(after);
                        let place = Position {
                            sequence: begin,
                            ..journal.start()
                        };
                        self.place = Place::Gappy(journal.reader(Start::Position(place)));
                        return (vec![lost(&journal, place)], false);
                    };
                    if page.is_end && page.items.is_empty() {
                        // At once, without anything in between: what memory lacks now the disk has a moment later.
                        self.join(filter, &store, after).await;
                        continue;
                    }
                    let run = journal.run();
                    let pieces = page.items.into_iter().map(|item| match item {
                        StoredItem::Event { sequence, wire } => Piece::Event { sequence, wire },
                        StoredItem::Gap { gap, resume } => Piece::Gap {
                            gap,
                            resume: Position {
                                run,
                                sequence: resume,
                            },
                        },
                    });
                    // There is more: on the next page, or behind the seam.
                    return (pieces.collect(), false);
                }
            }
        }
    }

    /// Goes on in memory behind the end of the disk, if nothing is missing there; otherwise the disk gets it soon.
    async fn join(&mut self, filter: &EventFilter, store: &EventStore, after: u64) {
        let journal = &self.journal;
        if let Some(reader) = journal.whole_reader(after, filter) {
            self.place = Place::Memory(reader);
            return;
        }
        let mut written = store.written();
        let more = written.wait_for(|written| *written > after);
        if !matches!(timeout(WRITTEN_WAIT_MAX, more).await, Ok(Ok(_))) {
            // The disk does not get it: memory says what is missing.
            let place = Position {
                sequence: after,
                ..journal.start()
            };
            self.place = Place::Gappy(journal.reader(Start::Position(place)));
        }
    }

    /// The oldest place behind which nothing is missing that `filter` wants, for who met a gap.
    pub(crate) async fn oldest_whole(&self, filter: &EventFilter) -> Position {
        let in_memory = self.journal.oldest_whole(filter);
        let Some(store) = &self.store else {
            return in_memory;
        };
        let written = *store.written().borrow();
        if in_memory.sequence > written {
            // The disk does not have it yet, if it ever will.
            return in_memory;
        }
        let run = self.journal.run();
        match store.oldest_whole(filter, self.journal.gateway()).await {
            Ok(sequence) => Position { run, sequence },
            Err(_) => self.journal.newest(),
        }
    }
}

impl Place {
    fn new(journal: &Journal, store: &EventStore, start: Start, filter: &EventFilter) -> Self {
        let stored = |reader| Self::Stored(store.clone(), reader);
        match start {
            Start::Now => Self::Memory(journal.reader(start)),
            Start::Oldest => stored(StoredReader::oldest()),
            Start::Time(time) => match journal.whole_reader_since(time, filter) {
                Some(reader) if time > store.latest_before() => Self::Memory(reader),
                _ => Self::Since(store.clone(), time),
            },
            Start::Position(Position { run, sequence }) => {
                if run == journal.run() {
                    journal
                        .whole_reader(sequence, filter)
                        .map_or_else(|| stored(StoredReader::behind(sequence)), Self::Memory)
                } else if store.knows(run) {
                    stored(StoredReader::behind(sequence))
                } else {
                    stored(StoredReader::replaced())
                }
            }
        }
    }
}

fn pieces(journal: &Journal, batch: Batch) -> (Vec<Piece>, bool) {
    let pieces = batch.items.into_iter().map(|item| match item {
        Item::Event(entry) => Piece::Event {
            sequence: entry.sequence(),
            wire: journal.wire(&entry),
        },
        Item::Gap { gap, resume } => Piece::Gap { gap, resume },
    });
    (pieces.collect(), batch.is_end)
}

/// Something is missing before a place.
fn lost(journal: &Journal, resume: Position) -> Piece {
    let gap = Gap {
        cause: GapCause::Compacted,
        gateway: journal.gateway().clone(),
        instance: None,
        labels: Labels::default(),
        class: None,
        count: None,
        not_before: None,
        not_after: None,
    };
    Piece::Gap { gap, resume }
}

#[cfg(test)]
mod tests;
