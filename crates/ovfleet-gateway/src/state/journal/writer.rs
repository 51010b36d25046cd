//! Takes events from memory to disk, in batches.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use openvpn_fleet::{
    EventFilter, Gap, GapCause, Journal, Record, failpoint,
    journal::{Item, Missing, Reader, Start},
};
use rusqlite::Transaction;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    EventStore, Keep, RESERVE, missing, retention,
    row::{EventRow, GapRow, LabelIds, class_number, insert_event, insert_gap},
};
use crate::state::WriteError;

/// Most records of a batch.
const BATCH_MAX: usize = 1_000;
/// How long records are gathered for a batch.
const GATHER: Duration = Duration::from_millis(100);
/// How long after a failure the disk is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How often what has become too old is thrown away when nothing happens.
const AGING_INTERVAL: Duration = Duration::from_secs(30);
/// How long the last batches may take.
const FLUSH_MAX: Duration = Duration::from_secs(3);
/// Free pages given back to the file system at a time.
const VACUUM_PAGES: u32 = 1_000;

impl EventStore {
    /// Takes what happens to the disk until `stop`, then the rest, and ends the run in order.
    ///
    /// It is a reader like any other: what it is late for is in the ring, and what has fallen out of the ring by then
    /// becomes a gap on disk.
    pub(crate) async fn run(self, journal: Arc<Journal>, stop: CancellationToken) {
        let mut reader = journal.reader(Start::Position(self.start()));
        let mut newest = journal.subscribe();
        while !stop.is_cancelled() {
            let has_news = async {
                if *newest.borrow_and_update() <= reader.position().sequence {
                    let _ = newest.changed().await;
                }
                // A full batch does not wait for more.
                let full = reader.position().sequence + BATCH_MAX as u64;
                let _ = timeout(GATHER, newest.wait_for(|newest| *newest >= full)).await;
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = has_news => {
                    let taken = self.take_all(&journal, &mut reader, SystemTime::now).await;
                    if taken.is_err() {
                        stop.run_until_cancelled(sleep(RETRY_INTERVAL)).await;
                    }
                }
                () = sleep(AGING_INTERVAL) => self.age().await,
            }
        }
        match timeout(FLUSH_MAX, self.finish(&journal, &mut reader)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the last events could not be kept"),
            Err(_) => tracing::error!("the last events could not be kept in time"),
        }
    }

    async fn finish(&self, journal: &Arc<Journal>, reader: &mut Reader) -> Result<(), WriteError> {
        self.take_all(journal, reader, SystemTime::now).await?;
        self.end(reader.position().sequence).await
    }

    /// Takes what has happened by now; `calendar` dates what has no time of its own, batch by batch: one may wait for the
    /// disk for hours.
    pub(crate) async fn take_all(
        &self,
        journal: &Arc<Journal>,
        reader: &mut Reader,
        calendar: impl Fn() -> SystemTime + Send,
    ) -> Result<(), WriteError> {
        let everything = EventFilter::everything();
        loop {
            // Moved on only once the batch is on disk.
            let mut next = reader.clone();
            let batch = journal.read(&mut next, BATCH_MAX, &everything);
            let now = calendar();
            // What falls out of the ring in this very moment may be among it, and is told of once too often.
            let mut missing = if batch.items.iter().any(is_hole) {
                journal.missing(reader)
            } else {
                Vec::new()
            };
            // What is missing behind the batch is the next one's.
            for missing in &mut missing {
                missing.through = missing.through.min(next.position().sequence);
            }
            let rows = batch.items.into_iter().filter_map(|item| match item {
                Item::Event(entry) => {
                    let Record::Event(event) = entry.record() else {
                        return None;
                    };
                    Some(Taken::Event(EventRow {
                        sequence: entry.sequence(),
                        observed: entry.observed(),
                        kind: event.kind(),
                        instance: event.instance.clone(),
                        labels: event.labels.clone(),
                        half_open: event.client.as_ref().is_some_and(|client| client.half_open),
                        wire: journal.wire(&entry),
                    }))
                }
                Item::Gap { gap, resume } if gap.cause == GapCause::Compacted => {
                    let class = gap.class;
                    let of = missing.extract_if(.., |missing| Some(missing.class) == class);
                    Some(Taken::hole(gap, resume.sequence, now, of.collect()))
                }
                Item::Gap { gap, resume } => {
                    Some(Taken::Gap(GapRow::new(gap, resume.sequence, now)))
                }
            });
            let rows: Vec<_> = rows.collect();
            let (through, run, keep) = (next.position(), self.start().run, self.0.keep);
            let age = self.0.state.age();
            if !rows.is_empty() {
                let writing = self.0.state.write_patiently(move |transaction| {
                    insert(transaction, &rows, age)?;
                    reserve(transaction, run.0, through.sequence)?;
                    retention::step(transaction, keep, age)
                });
                writing.await?;
            }
            *reader = next;
            self.0.written.send_replace(through.sequence);
            if batch.is_end {
                return Ok(());
            }
        }
    }

    /// A quiet journal ages too.
    async fn age(&self) {
        let (keep, age): (Keep, _) = (self.0.keep, self.0.state.age());
        let aging = self.0.state.write_patiently(move |transaction| {
            let is_more = retention::step(transaction, keep, age)?;
            // Gives back pages when a good part of the file is free; otherwise they are used again.
            let count = |pragma| transaction.query_row(pragma, [], |row| row.get::<_, i64>(0));
            if count("PRAGMA freelist_count")? > count("PRAGMA page_count")? / 4 {
                let vacuum = format!("PRAGMA incremental_vacuum({VACUUM_PAGES})");
                let mut statement = transaction.prepare(&vacuum)?;
                let mut rows = statement.query([])?;
                while rows.next()?.is_some() {}
            }
            Ok(is_more)
        });
        // What fails now is tried again in a while.
        let _ = aging.await;
    }
}

enum Taken {
    Event(EventRow),
    Gap(GapRow),
    /// What the disk was too late for.
    Hole(GapRow, Vec<Missing>),
}

impl Taken {
    fn hole(gap: Gap, sequence: u64, now: SystemTime, of: Vec<Missing>) -> Self {
        let through = of.iter().map(|missing| missing.through).max();
        let row = GapRow {
            hole: true,
            through: through.unwrap_or(0).max(sequence + 1),
            ..GapRow::new(gap, sequence, now)
        };
        Self::Hole(row, of)
    }
}

fn is_hole(item: &Item) -> bool {
    matches!(item, Item::Gap { gap, .. } if gap.cause == GapCause::Compacted)
}

fn insert(transaction: &Transaction<'_>, rows: &[Taken], age: i64) -> rusqlite::Result<()> {
    let mut ids = LabelIds::default();
    let mut added = [(0_i64, 0_i64); 3];
    for (index, row) in rows.iter().enumerate() {
        if index == rows.len() / 2 {
            failpoint::hit("journal.in_batch");
        }
        match row {
            Taken::Event(event) => {
                let labels = ids.of(transaction, &event.labels)?;
                insert_event(transaction, event, labels, age)?;
                let (events, bytes) = &mut added[event.kind.class() as usize];
                *events += 1;
                *bytes += event.weight().cast_signed();
            }
            Taken::Gap(gap) => {
                let labels = ids.of(transaction, &gap.labels)?;
                insert_gap(transaction, gap, labels, age)?;
            }
            Taken::Hole(gap, of) => {
                let labels = ids.of(transaction, &gap.labels)?;
                let number = insert_gap(transaction, gap, labels, age)?;
                for missing in of {
                    missing::insert_hole(transaction, &mut ids, number, missing)?;
                }
            }
        }
    }
    for class in openvpn_fleet::EventClass::ALL {
        let (events, bytes) = added[class as usize];
        transaction
            .prepare_cached(
                "UPDATE classes SET events = events + ?2, bytes = bytes + ?3 WHERE class = ?1",
            )?
            .execute((class_number(class), events, bytes))?;
    }
    Ok(())
}

/// Moves the mark on long before the numbers come to it.
fn reserve(transaction: &Transaction<'_>, run: u64, through: u64) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("UPDATE runs SET reserved = ?2 WHERE run = ?1 AND reserved < ?3")?
        .execute((
            run.cast_signed(),
            (through + RESERVE).cast_signed(),
            (through + RESERVE / 2).cast_signed(),
        ))?;
    Ok(())
}
