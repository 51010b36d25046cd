//! Reads events back, a page at a time.

use std::{sync::Arc, time::SystemTime};

use bytes::Bytes;
use openvpn_fleet::{EventClass, EventFilter, Gap, GapCause, GatewayName, Labels, Position};
use rusqlite::{Connection, OptionalExtension as _, named_params};

use super::{
    EventStore,
    row::{EVENT_COLUMNS, GAP_COLUMNS, GapRow, Stored, read_gap},
};
use crate::state::{WriteError, micros, time};

/// Most events that a page looks at.
const PAGE_EVENTS_MAX: u16 = 512;
/// A page ends when it has this many bytes.
const PAGE_BYTES: usize = 1 << 20;

/// A place on disk that moves on as it is read.
#[derive(Debug, Clone)]
pub(crate) struct StoredReader {
    /// What has a number up to this was given or filtered out.
    after: u64,
    /// The last gap that was given or filtered out.
    last_gap: i64,
    /// By class, and of gaps: up to here, events were given, filtered out, or reported missing.
    accounted: Option<[u64; 4]>,
    /// It came with a place in another journal and was not told yet.
    replaced: bool,
}

/// One thing that a page shows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum StoredItem {
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
        /// Reading behind this number gives what follows it.
        resume: u64,
    },
}

/// What one read gave.
#[derive(Debug)]
pub(crate) struct StoredPage {
    /// In order.
    pub(crate) items: Vec<StoredItem>,
    /// There was nothing more at that moment.
    pub(crate) is_end: bool,
}

impl StoredReader {
    /// Behind a number.
    pub(crate) fn behind(sequence: u64) -> Self {
        Self {
            after: sequence,
            last_gap: 0,
            accounted: Some([sequence; 4]),
            replaced: false,
        }
    }

    /// With the oldest event there is.
    pub(crate) fn oldest() -> Self {
        Self {
            after: 0,
            last_gap: 0,
            accounted: None,
            replaced: false,
        }
    }

    /// The same, for who comes with a place in another journal.
    pub(crate) fn replaced() -> Self {
        Self {
            replaced: true,
            ..Self::oldest()
        }
    }

    /// Where it is.
    pub(crate) fn after(&self) -> u64 {
        self.after
    }
}

impl EventStore {
    /// A reader that begins with the first event of that time or later.
    pub(crate) async fn reader_since(&self, since: SystemTime) -> Result<StoredReader, WriteError> {
        let end = *self.0.written.borrow();
        self.0
            .state
            .read(move |connection| {
                let first: Option<i64> = connection
                    .query_row(
                        "SELECT sequence FROM events WHERE observed >= ?1 ORDER BY sequence LIMIT 1",
                        [micros(since)],
                        |row| row.get(0),
                    )
                    .optional()?;
                let accounted = evicted(connection)?.map(|evicted| {
                    // Something from that time on is missing.
                    if evicted.time >= since {
                        0
                    } else {
                        evicted.through
                    }
                });
                Ok(StoredReader {
                    after: first.map_or(end, |first| first.cast_unsigned() - 1),
                    last_gap: 0,
                    accounted: Some(accounted),
                    replaced: false,
                })
            })
            .await
    }

    /// A place behind which nothing is missing, for who met `gap` where reading on begins at `resume`.
    pub(crate) async fn oldest_whole(&self, resume: Position) -> Result<Position, WriteError> {
        let reading = self.0.state.read(move |connection| {
            let through = evicted(connection)?.map(|evicted| evicted.through);
            // Behind the first event after the last hole, or behind the last gap that has a number of its own.
            let last: Option<i64> = connection.query_row(
                "SELECT max(CASE hole
                     WHEN 0 THEN sequence
                     ELSE (SELECT min(sequence) FROM events WHERE events.sequence > gaps.sequence)
                 END)
                 FROM gaps WHERE cause IN ('COMPACTED', 'GATEWAY_RESTARTED', 'JOURNAL_REPLACED')",
                [],
                |row| row.get(0),
            )?;
            let known = [resume.sequence, last.unwrap_or(0).cast_unsigned()];
            Ok(through.into_iter().chain(known).max().unwrap_or(0))
        });
        let sequence = reading.await?;
        Ok(Position { sequence, ..resume })
    }

    /// Gives what lies behind the reader's place and moves it on: what `filter` wants, and a gap before the first event
    /// behind every hole that may touch that.
    pub(crate) async fn page(
        &self,
        reader: &mut StoredReader,
        filter: &Arc<EventFilter>,
        gateway: &GatewayName,
    ) -> Result<StoredPage, WriteError> {
        // Before the page: what is on disk by now, the page sees.
        let end = *self.0.written.borrow();
        let (mut at, filter, gateway) = (reader.clone(), Arc::clone(filter), gateway.clone());
        let read = self.0.state.read(move |connection| {
            let page = read_page(connection, &mut at, &filter, &gateway, end)?;
            Ok((page, at))
        });
        let (page, at) = read.await?;
        *reader = at;
        Ok(page)
    }
}

/// Up to where and until when something was thrown away.
#[derive(Debug, Clone, Copy)]
struct Evicted {
    through: u64,
    time: SystemTime,
}

/// By class, then of gaps.
fn evicted(connection: &Connection) -> rusqlite::Result<[Evicted; 4]> {
    let nothing = Evicted {
        through: 0,
        time: SystemTime::UNIX_EPOCH,
    };
    let mut all = [nothing; 4];
    let mut statement =
        connection.prepare_cached("SELECT class, through, through_time FROM classes")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let class = usize::from(row.get::<_, u8>(0)?);
        if let Some(evicted) = all.get_mut(class) {
            *evicted = Evicted {
                through: row.get::<_, i64>(1)?.cast_unsigned(),
                time: time(row.get(2)?),
            };
        }
    }
    Ok(all)
}

fn read_page(
    connection: &Connection,
    reader: &mut StoredReader,
    filter: &EventFilter,
    gateway: &GatewayName,
    end: u64,
) -> rusqlite::Result<StoredPage> {
    // One look at all tables.
    let transaction = connection.unchecked_transaction()?;
    let mut items = Vec::new();
    let missing = |cause| Gap {
        cause,
        gateway: gateway.clone(),
        instance: None,
        labels: Labels::default(),
        class: None,
        count: None,
        not_before: None,
        not_after: None,
    };
    if std::mem::take(&mut reader.replaced) {
        items.push(StoredItem::Gap {
            gap: missing(GapCause::JournalReplaced),
            resume: reader.after,
        });
    }
    let evicted = evicted(&transaction)?;
    let accounted = reader
        .accounted
        .get_or_insert(evicted.map(|evicted| evicted.through));
    for (index, evicted) in evicted.into_iter().enumerate() {
        if evicted.through <= accounted[index] {
            continue;
        }
        accounted[index] = evicted.through;
        let class = EventClass::ALL.get(index).copied();
        let is_wanted = match class {
            Some(class) => filter.wants_class(class),
            None => EventClass::ALL
                .into_iter()
                .any(|class| filter.wants_class(class)),
        };
        if is_wanted {
            items.push(StoredItem::Gap {
                gap: Gap {
                    class,
                    not_after: Some(evicted.time),
                    ..missing(GapCause::Compacted)
                },
                resume: reader.after,
            });
        }
    }

    let (events, is_end) = read_events(&transaction, reader.after)?;
    let last = events.last().map(|event| event.sequence);
    // What lies behind a page that is not the last one comes with the next.
    let upto = if is_end { None } else { last };
    let gaps = read_gaps(&transaction, reader, upto)?;
    let last = last.max(gaps.last().map(|(_, gap)| gap.sequence));
    if let Some((id, _)) = gaps.last() {
        reader.last_gap = *id;
    }

    let mut found: Vec<((u64, bool), StoredItem)> = Vec::new();
    for (_, gap) in gaps {
        let place = (gap.sequence, gap.hole);
        let (gap, resume) = (gap.into_gap(gateway.clone()), place.0);
        if filter.wants_gap(&gap) {
            found.push((place, StoredItem::Gap { gap, resume }));
        }
    }
    for event in events {
        if event.is_wanted(filter, gateway) {
            let Stored { sequence, wire, .. } = event;
            found.push(((sequence, false), StoredItem::Event { sequence, wire }));
        }
    }
    // Stable: several gaps of one place stay as they were told.
    found.sort_by_key(|(place, _)| *place);
    items.extend(found.into_iter().map(|(_, item)| item));

    let reached = last.unwrap_or(0).max(if is_end { end } else { 0 });
    reader.after = reader.after.max(reached);
    if let Some(accounted) = &mut reader.accounted {
        for accounted in accounted {
            *accounted = reader.after.max(*accounted);
        }
    }
    Ok(StoredPage { items, is_end })
}

fn read_events(connection: &Connection, after: u64) -> rusqlite::Result<(Vec<Stored>, bool)> {
    let query = format!("SELECT {EVENT_COLUMNS} WHERE sequence > ?1 ORDER BY sequence LIMIT ?2");
    let mut statement = connection.prepare_cached(&query)?;
    let mut rows = statement.query((after.cast_signed(), PAGE_EVENTS_MAX))?;
    let (mut events, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let event = Stored::read(row)?;
        bytes += event.wire.len();
        events.push(event);
        if bytes >= PAGE_BYTES {
            return Ok((events, false));
        }
    }
    let is_end = events.len() < usize::from(PAGE_EVENTS_MAX);
    Ok((events, is_end))
}

fn read_gaps(
    connection: &Connection,
    reader: &StoredReader,
    upto: Option<u64>,
) -> rusqlite::Result<Vec<(i64, GapRow)>> {
    let query = format!(
        "SELECT {GAP_COLUMNS} WHERE gaps.id > :last_gap
           AND (sequence > :after OR (sequence = :after AND hole))
           AND (sequence < :upto OR (sequence = :upto AND NOT hole))
         ORDER BY gaps.id"
    );
    let mut statement = connection.prepare_cached(&query)?;
    let rows = statement.query_map(
        named_params! {
            ":last_gap": reader.last_gap,
            ":after": reader.after.cast_signed(),
            ":upto": upto.map_or(i64::MAX, u64::cast_signed),
        },
        read_gap,
    )?;
    rows.collect()
}
