//! Throws away what is too much or too old, a little at a time.

use openvpn_fleet::EventClass;
use rusqlite::{OptionalExtension as _, Transaction};

use super::{
    Keep, missing,
    row::{ROW_OVERHEAD, class_number},
};
use crate::state::age;

/// Share of the bytes that each class may use, in percent, as in memory.
const SHARES: [(EventClass, u64); 3] = [
    (EventClass::Lifecycle, 50),
    (EventClass::Log, 40),
    (EventClass::Raw, 10),
];
/// Most rows of a class that one step throws away; more than one batch adds.
const STEP_MAX: u32 = 2_000;
/// Gaps kept, of all classes.
const GAPS_MAX: u32 = 20_000;

/// Throws away at most [`STEP_MAX`] events of each class. Gives whether there may be more to throw away.
pub(super) fn step(transaction: &Transaction<'_>, keep: Keep, age: i64) -> rusqlite::Result<bool> {
    age::note(transaction, age)?;
    let oldest = age::oldest(age, keep.age);
    let mut is_more = false;
    for (class, percent) in SHARES {
        let bytes_max = i64::try_from(keep.bytes / 100 * percent).unwrap_or(i64::MAX);
        is_more |= step_of_class(transaction, class_number(class), bytes_max, oldest)?;
    }
    expire_gaps(transaction, oldest)?;
    Ok(is_more)
}

fn step_of_class(
    transaction: &Transaction<'_>,
    class: i64,
    bytes_max: i64,
    oldest: i64,
) -> rusqlite::Result<bool> {
    let mut bytes: i64 = transaction
        .prepare_cached("SELECT bytes FROM classes WHERE class = ?1")?
        .query_row([class], |row| row.get(0))?;
    let mut gone = None;
    let (mut events, mut freed) = (0_u32, 0_i64);
    {
        let mut statement = transaction.prepare_cached(
            "SELECT sequence, observed, length(wire), age FROM events WHERE class = ?1 ORDER BY sequence LIMIT ?2",
        )?;
        let mut rows = statement.query((class, STEP_MAX))?;
        while let Some(row) = rows.next()? {
            let (sequence, observed): (i64, i64) = (row.get(0)?, row.get(1)?);
            if bytes <= bytes_max && row.get::<_, i64>(3)? >= oldest {
                break;
            }
            let weight = row.get::<_, i64>(2)? + ROW_OVERHEAD.cast_signed();
            bytes -= weight;
            freed += weight;
            events += 1;
            // Not the last one's: somebody may have set the clock back in between.
            let latest = gone.map_or(observed, |(_, latest): (_, i64)| latest.max(observed));
            gone = Some((sequence, latest));
        }
    }
    let Some((through, time)) = gone else {
        return Ok(false);
    };
    missing::evict_events(transaction, class, through)?;
    transaction
        .prepare_cached("DELETE FROM events WHERE class = ?1 AND sequence <= ?2")?
        .execute((class, through))?;
    transaction
        .prepare_cached(
            "UPDATE classes SET events = events - ?2, bytes = bytes - ?3, through = ?4,
                                through_time = max(through_time, ?5), evicted = evicted + ?2
             WHERE class = ?1",
        )?
        .execute((class, events, freed, through, time))?;
    Ok(events == STEP_MAX)
}

fn expire_gaps(transaction: &Transaction<'_>, oldest: i64) -> rusqlite::Result<()> {
    let gone: Option<i64> = transaction
        .prepare_cached(
            // One with events before it keeps its place among them.
            "SELECT id FROM gaps
             WHERE (age < ?1 AND through < coalesce((SELECT min(sequence) FROM events), through + 1))
                OR id <= (SELECT max(id) FROM gaps) - ?2
             ORDER BY id DESC LIMIT 1",
        )?
        .query_row((oldest, GAPS_MAX), |row| row.get(0))
        .optional()?;
    let Some(id) = gone else {
        return Ok(());
    };
    missing::evict_gaps(transaction, id)?;
    transaction
        .prepare_cached(
            // No number of a gap is given twice: readers remember the last they were told.
            "UPDATE classes SET through = max(classes.through, gone.through), through_time = max(through_time, gone.time),
                                evicted = ?1
             FROM (SELECT max(through) AS through, max(observed) AS time FROM gaps WHERE id <= ?1) AS gone
             WHERE class = ?2",
        )?
        .execute((id, missing::GAPS))?;
    transaction
        .prepare_cached("DELETE FROM gaps WHERE id <= ?1")?
        .execute([id])?;
    Ok(())
}
