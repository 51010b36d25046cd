//! How old what is kept has become: by the time that gateways have run on it, which nobody sets.
//!
//! The clock of the machine may be set by a day, or be wrong until the network has told it better. By that clock a
//! request id could be forgotten on the day it was used, and its request be carried out twice. While no gateway runs
//! nothing becomes older: what is kept longer than promised does no harm.

use std::time::Duration;

use openvpn_fleet::{ACTION_AGE_MAX, ACTIONS_MAX};
use rusqlite::{Connection, Transaction};
use tokio::time::Instant;

/// How much of this a crash may take back: it is noted no more often.
const NOTED_EVERY: Duration = Duration::from_secs(10);

/// A clock that goes on where the one of the run before was last noted.
#[derive(Debug)]
pub(super) struct Clock {
    /// The age at the start of this run.
    before: i64,
    started: Instant,
}

impl Clock {
    pub(super) fn go_on(connection: &Connection) -> rusqlite::Result<Self> {
        let before = connection.query_row("SELECT age FROM clock", [], |row| row.get(0))?;
        Ok(Self {
            before,
            started: Instant::now(),
        })
    }

    /// The age of the state now, in microseconds.
    pub(super) fn age(&self) -> i64 {
        self.before.saturating_add(micros(self.started.elapsed()))
    }
}

/// Keeps that the state is that old.
pub(super) fn note(transaction: &Transaction<'_>, age: i64) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("UPDATE clock SET age = ?1 WHERE age < ?1 - ?2")?
        .execute((age, micros(NOTED_EVERY)))?;
    Ok(())
}

/// What was written at a lower age than this is older than `span`.
pub(super) fn oldest(age: i64, span: Duration) -> i64 {
    age.saturating_sub(micros(span))
}

/// From when on request ids are kept, now that one of this number is added: the age; the number that one needs not to be
/// too many, if none in between was forgotten; and how many newer ones there have to be otherwise.
pub(super) fn kept_from(age: i64, number: i64) -> (i64, i64, i64) {
    let most = i64::try_from(ACTIONS_MAX).unwrap_or(i64::MAX);
    (
        oldest(age, ACTION_AGE_MAX),
        number.saturating_sub(most),
        most - 1,
    )
}

fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}
