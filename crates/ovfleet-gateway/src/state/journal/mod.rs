//! The event journal on disk: what the one in memory has forgotten, and the runs before this one.
//!
//! ```text
//! journal in memory ──► Writer (a reader like any other: a position, no queue) ──► tables events, gaps
//!                                                                                       │
//! a stream that needs more than memory has ◄── pages ── StoredReader ◄──────────────────┘
//!        └── joins the journal in memory where the disk ends
//! ```
//!
//! Sequence numbers rise over all runs, because each run begins above a number that the one before had reserved: so a
//! place on disk is a number, whatever run it is of.

mod missing;
mod reader;
mod retention;
mod row;
mod writer;

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use openvpn_fleet::{GapCause, Position, RunId};
use rusqlite::{OptionalExtension as _, Transaction, named_params};
use tokio::sync::watch;

pub(crate) use self::reader::{StoredItem, StoredReader};
use super::{State, WriteError, micros, time};

/// Numbers that a run has in reserve: it begins above what the one before had reserved, so that no number is given
/// twice, however that one ended.
const RESERVE: u64 = 1 << 24;
/// Runs remembered. Cursors of older ones are as of another journal.
const RUNS_MAX: u32 = 10_000;

/// How much is kept on disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keep {
    /// Bytes of all events.
    pub(crate) bytes: u64,
    /// How old an event may become.
    pub(crate) age: Duration,
}

/// The journal on disk. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct EventStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: State,
    keep: Keep,
    start: Position,
    /// When the latest was made that the runs before left.
    latest_before: SystemTime,
    /// Runs whose events are or were here.
    runs: HashSet<u64>,
    /// Up to this number of this run everything is on disk, or known to be missing.
    written: watch::Sender<u64>,
}

impl EventStore {
    /// Begins a run.
    pub(crate) async fn begin(
        state: &State,
        keep: Keep,
        now: SystemTime,
    ) -> Result<Self, WriteError> {
        let run = RunId::mint();
        let age = state.age();
        let beginning = state.write_at_start(move |transaction| begin(transaction, run, now, age));
        let (sequence, runs, latest_before) = beginning.await?;
        let start = Position { run, sequence };
        Ok(Self(Arc::new(Inner {
            state: state.clone(),
            keep,
            start,
            latest_before: time(latest_before),
            runs,
            written: watch::Sender::new(sequence),
        })))
    }

    /// Where this run begins.
    pub(crate) fn start(&self) -> Position {
        self.0.start
    }

    /// When the latest was made that the runs before left: not always before this one began, because clocks are set.
    pub(crate) fn latest_before(&self) -> SystemTime {
        self.0.latest_before
    }

    /// Whether events of a run are or were here.
    pub(crate) fn knows(&self, run: RunId) -> bool {
        self.0.runs.contains(&run.0)
    }

    /// Up to where this run is on disk.
    pub(crate) fn written(&self) -> watch::Receiver<u64> {
        self.0.written.subscribe()
    }

    /// Ends the run in order: everything is on disk.
    pub(crate) async fn end(&self, last: u64) -> Result<(), WriteError> {
        let run = self.0.start.run;
        // A slow disk is no reason to pass for a crash, which would be a gap for everybody.
        let ending = self.0.state.write_patiently(move |transaction| {
            transaction.execute(
                "UPDATE runs SET last = ?2 WHERE run = ?1",
                (run.0.cast_signed(), last.cast_signed()),
            )
        });
        ending.await.map(|_| ())
    }
}

/// Notes a new run, and what the one before it took with it if it did not end in order.
fn begin(
    transaction: &Transaction<'_>,
    run: RunId,
    now: SystemTime,
    age: i64,
) -> rusqlite::Result<(u64, HashSet<u64>, i64)> {
    let before: Option<(i64, i64, Option<i64>)> = transaction
        .query_row(
            "SELECT reserved, started, last FROM runs ORDER BY first DESC LIMIT 1",
            [],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .optional()?;
    // The clock alone would do, if it were never set back.
    let start = before
        .map_or(0, |(reserved, ..)| reserved + 1)
        .max(micros(now));
    transaction.execute(
        "INSERT INTO runs (run, first, reserved, started, last)
         VALUES (:run, :first, :reserved, :started, NULL)",
        named_params! {
            ":run": run.0.cast_signed(),
            ":first": start,
            ":reserved": start + RESERVE.cast_signed(),
            ":started": micros(now),
        },
    )?;
    if let Some((_, started, None)) = before {
        let newest: Option<i64> = transaction
            .query_row(
                "SELECT observed FROM events ORDER BY sequence DESC LIMIT 1",
                [],
                |row| row.get(0),
            )
            .optional()?;
        let gap = row::GapRow {
            sequence: start.cast_unsigned(),
            through: start.cast_unsigned(),
            hole: false,
            cause: GapCause::GatewayRestarted,
            observed: now,
            not_before: Some(time(newest.unwrap_or(started).max(started))),
            not_after: Some(now),
            ..row::GapRow::default()
        };
        row::insert_gap(transaction, &gap, None, age)?;
    }
    transaction.execute(
        "DELETE FROM runs WHERE first < (SELECT first FROM runs ORDER BY first DESC LIMIT 1 OFFSET ?1)",
        [RUNS_MAX],
    )?;
    let mut statement = transaction.prepare("SELECT run FROM runs")?;
    let runs = statement.query_map([], |row| Ok(row.get::<_, i64>(0)?.cast_unsigned()))?;
    let latest_before: Option<i64> = transaction.query_row(
        "SELECT max(time) FROM (SELECT max(observed) AS time FROM events UNION ALL SELECT max(observed) FROM gaps
                                UNION ALL SELECT max(through_time) FROM classes)",
        [],
        |row| row.get(0),
    )?;
    let runs = runs.collect::<Result<_, _>>()?;
    Ok((start.cast_unsigned(), runs, latest_before.unwrap_or(0)))
}

#[cfg(test)]
mod tests;
