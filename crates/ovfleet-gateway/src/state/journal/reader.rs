//! Reads events back, a page at a time.

use std::{sync::Arc, time::SystemTime};

use bytes::Bytes;
use openvpn_fleet::{EventClass, EventFilter, Gap, GapCause, GatewayName, Labels};
use rusqlite::{Connection, named_params};

use super::{
    EventStore, missing,
    row::{EVENT_COLUMNS, GAP_COLUMNS, GapRow, Stored, read_gap},
};
use crate::state::{WriteError, micros};

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
    /// A reader that begins with the first event or gap of that time or later.
    pub(crate) async fn reader_since(
        &self,
        since: SystemTime,
        filter: &Arc<EventFilter>,
        gateway: &GatewayName,
    ) -> Result<StoredReader, WriteError> {
        let end = *self.0.written.borrow();
        let (filter, gateway) = (Arc::clone(filter), gateway.clone());
        self.0
            .state
            .read(move |connection| {
                // Right before the first event, gap or hole of that time.
                let place: Option<i64> = connection.query_row(
                    "SELECT min(place) FROM (
                         SELECT min(sequence) - 1 AS place FROM events WHERE observed >= ?1 UNION ALL
                         SELECT min(iif(hole, sequence, sequence - 1)) FROM gaps WHERE observed >= ?1)",
                    [micros(since)],
                    |row| row.get(0),
                )?;
                let mut accounted = evicted(connection)?;
                for (class, accounted) in (0..).zip(&mut accounted) {
                    let place = (missing::RETENTION, Some(class));
                    let wanted = missing::wanted(connection, place, 0, &filter, &gateway)?;
                    if wanted.is_some_and(|wanted| wanted.time >= since) {
                        // Something from that time on is missing.
                        *accounted = 0;
                    }
                }
                Ok(StoredReader {
                    after: place.map_or(end, i64::cast_unsigned),
                    last_gap: 0,
                    accounted: Some(accounted),
                    replaced: false,
                })
            })
            .await
    }

    /// The oldest place behind which nothing is missing that `filter` wants.
    pub(crate) async fn oldest_whole(
        &self,
        filter: &EventFilter,
        gateway: &GatewayName,
    ) -> Result<u64, WriteError> {
        let (filter, gateway) = (filter.clone(), gateway.clone());
        let reading = self.0.state.read(move |connection| {
            let transaction = connection.unchecked_transaction()?;
            let mut oldest = 0;
            for class in 0..=missing::GAPS {
                let place = (missing::RETENTION, Some(class));
                let wanted = missing::wanted(&transaction, place, 0, &filter, &gateway)?;
                oldest = wanted.map_or(oldest, |wanted| wanted.through.max(oldest));
            }
            let query = format!(
                "SELECT {GAP_COLUMNS} WHERE through > ?1
                   AND cause IN ('COMPACTED', 'GATEWAY_RESTARTED', 'JOURNAL_REPLACED') ORDER BY through DESC"
            );
            let mut statement = transaction.prepare_cached(&query)?;
            let mut rows = statement.query([oldest.cast_signed()])?;
            while let Some(row) = rows.next()? {
                let (id, gap) = read_gap(row)?;
                if gap.through <= oldest {
                    break;
                }
                let through = gap.wanted_through(&transaction, id, oldest, &filter, &gateway)?;
                oldest = through.map_or(oldest, |through| through.max(oldest));
            }
            Ok(oldest)
        });
        reading.await
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

/// Up to where something was thrown away: by class, then of gaps.
fn evicted(connection: &Connection) -> rusqlite::Result<[u64; 4]> {
    let mut through = [0; 4];
    let mut statement = connection.prepare_cached("SELECT class, through FROM classes")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let class = usize::from(row.get::<_, u8>(0)?);
        if let Some(through) = through.get_mut(class) {
            *through = row.get::<_, i64>(1)?.cast_unsigned();
        }
    }
    Ok(through)
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
    let accounted = match &mut reader.accounted {
        Some(accounted) => accounted,
        None => {
            // What is gone before the oldest event is nothing that it asked for.
            let oldest: Option<i64> =
                transaction.query_row("SELECT min(sequence) FROM events", [], |row| row.get(0))?;
            let mut all = evicted;
            if let (Some(gaps), Some(oldest)) = (all.last_mut(), oldest) {
                *gaps = (*gaps).min(oldest.cast_unsigned() - 1);
            }
            reader.accounted.insert(all)
        }
    };
    for (index, through) in evicted.into_iter().enumerate() {
        if through <= accounted[index] {
            continue;
        }
        let place = (missing::RETENTION, i64::try_from(index).ok());
        let wanted = missing::wanted(&transaction, place, accounted[index], filter, gateway)?;
        // Whatever of it is wanted is told now; what follows has a greater number.
        accounted[index] = through;
        if let Some(wanted) = wanted {
            let class = EventClass::ALL.get(index).copied();
            items.push(StoredItem::Gap {
                gap: Gap {
                    class: class.filter(|class| filter.wants_class(*class)),
                    not_after: Some(wanted.time),
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
    for (id, gap) in gaps {
        let wanted = gap.wanted_through(&transaction, id, reader.after, filter, gateway)?;
        if wanted.is_some() {
            // A reader may come in the middle of a hole.
            let place = (gap.sequence.max(reader.after), gap.hole);
            let (mut gap, resume) = (gap.into_gap(gateway.clone()), place.0);
            gap.class = gap.class.filter(|class| filter.wants_class(*class));
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
           AND through > :after
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
