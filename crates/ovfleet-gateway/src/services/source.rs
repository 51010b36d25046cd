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

use super::{Context, events::BATCH_EVENTS_MAX};
use crate::state::{EventStore, StoredItem, StoredReader};

/// How long a stream at the end of the disk waits for what memory has forgotten already and the disk does not have yet.
const WRITTEN_WAIT_MAX: Duration = Duration::from_secs(2);

/// A place that moves on as it is read.
#[derive(Debug)]
pub(super) enum Source {
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
pub(super) enum Piece {
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
    pub(super) fn new(context: &Context, start: Start, filter: &EventFilter) -> Self {
        let journal = context.fleet.journal();
        let Some(store) = &context.store else {
            return Self::Memory(journal.reader(start));
        };
        let stored = |reader| Self::Stored(store.clone(), reader);
        match start {
            Start::Now => Self::Memory(journal.reader(start)),
            Start::Oldest => stored(StoredReader::oldest()),
            Start::Time(time) => match journal.whole_reader_since(time, filter) {
                Some(reader) if time >= store.began() => Self::Memory(reader),
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

    /// Whether it reads on disk.
    pub(super) fn is_stored(&self) -> bool {
        matches!(self, Self::Stored(..) | Self::Since(..))
    }

    pub(super) fn position(&self, context: &Context) -> Position {
        let run = context.fleet.journal().run();
        match self {
            Self::Memory(reader) | Self::Gappy(reader) => reader.position(),
            Self::Stored(_, reader) => Position {
                run,
                sequence: reader.after(),
            },
            Self::Since(..) => Position { run, sequence: 0 },
        }
    }

    /// What comes next, in order, and whether that is all there is at this moment.
    pub(super) async fn read(
        &mut self,
        context: &Context,
        filter: &Arc<EventFilter>,
    ) -> (Vec<Piece>, bool) {
        let journal = context.fleet.journal();
        loop {
            match self {
                Self::Gappy(reader) => {
                    let batch = journal.read(reader, BATCH_EVENTS_MAX, filter);
                    *self = Self::Memory(reader.clone());
                    return pieces(journal, batch);
                }
                Self::Memory(reader) => {
                    let Some(store) = &context.store else {
                        let batch = journal.read(reader, BATCH_EVENTS_MAX, filter);
                        return pieces(journal, batch);
                    };
                    if let Some(batch) = journal.read_whole(reader, BATCH_EVENTS_MAX, filter) {
                        return pieces(journal, batch);
                    }
                    // It fell behind: the disk has it.
                    let after = reader.position().sequence;
                    *self = Self::Stored(store.clone(), StoredReader::behind(after));
                }
                Self::Since(store, time) => {
                    let store = store.clone();
                    match store.reader_since(*time).await {
                        Ok(reader) => *self = Self::Stored(store, reader),
                        Err(_) => {
                            *self = Self::Gappy(journal.reader(Start::Time(*time)));
                            return (vec![lost(context, self.position(context))], false);
                        }
                    }
                }
                Self::Stored(store, reader) => {
                    let store = store.clone();
                    let page = store.page(reader, filter, context.fleet.gateway()).await;
                    let after = reader.after();
                    let Ok(page) = page else {
                        // The disk cannot be read: what it holds is missing here.
                        let begin = journal.start().sequence.max(after);
                        let place = Position {
                            sequence: begin,
                            ..journal.start()
                        };
                        *self = Self::Gappy(journal.reader(Start::Position(place)));
                        return (vec![lost(context, place)], false);
                    };
                    if page.is_end {
                        self.join(context, filter, &store, after).await;
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
                    // There is more: behind the seam, or on the next page.
                    return (pieces.collect(), false);
                }
            }
        }
    }

    /// Goes on in memory behind the end of the disk, if nothing is missing there; otherwise the disk gets it soon.
    async fn join(
        &mut self,
        context: &Context,
        filter: &EventFilter,
        store: &EventStore,
        after: u64,
    ) {
        let journal = context.fleet.journal();
        if let Some(reader) = journal.whole_reader(after, filter) {
            *self = Self::Memory(reader);
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
            *self = Self::Gappy(journal.reader(Start::Position(place)));
        }
    }

    /// A place behind which nothing is missing that `filter` wants, for who met a gap where reading on begins at `resume`.
    pub(super) async fn oldest_whole(
        &self,
        context: &Context,
        filter: &EventFilter,
        resume: Position,
    ) -> Position {
        let journal = context.fleet.journal();
        match (self, &context.store) {
            (Self::Stored(..) | Self::Since(..), Some(store)) => {
                let place = store.oldest_whole(resume).await;
                place.unwrap_or_else(|_| journal.newest())
            }
            _ => journal.oldest_whole(filter),
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
fn lost(context: &Context, resume: Position) -> Piece {
    let gap = Gap {
        cause: GapCause::Compacted,
        gateway: context.fleet.gateway().clone(),
        instance: None,
        labels: Labels::default(),
        class: None,
        count: None,
        not_before: None,
        not_after: None,
    };
    Piece::Gap { gap, resume }
}
