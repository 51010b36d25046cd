//! The rows of calls.

use std::time::SystemTime;

use openvpn_fleet::Digest;
use prost::Message as _;
use rusqlite::{OptionalExtension as _, Transaction, named_params};

use super::{Answer, CallKey, Name};
use crate::{
    state::{age, micros},
    status,
};

/// What a crash leaves of a call. (2 is: it is over.)
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stage {
    /// Nothing, until its row has a body: it is then done.
    Intended = 0,
    /// Something that may have been sent.
    Sending = 1,
}

pub(super) enum Begun {
    New,
    Known(Digest, Answer),
}

/// Finishes what an earlier run left: what may have been sent as `unknown`, what was done with the answer it has. Gives
/// the highest number of an attempt.
pub(super) fn settle(transaction: &Transaction<'_>, unknown: &[u8]) -> rusqlite::Result<i64> {
    transaction.execute("DELETE FROM calls WHERE stage = 0 AND body IS NULL", [])?;
    transaction.execute(
        "UPDATE calls SET stage = 2, body = coalesce(body, ?1) WHERE stage < 2",
        [unknown],
    )?;
    transaction.query_row("SELECT coalesce(max(id), 0) FROM calls", [], |row| {
        row.get(0)
    })
}

pub(super) fn begin(
    transaction: &Transaction<'_>,
    Name([caller, method, request_id]): &Name,
    CallKey(id): &CallKey,
    digest: Digest,
    stage: Stage,
    (now, age): (SystemTime, i64),
) -> rusqlite::Result<Begun> {
    transaction
        .prepare_cached(
            "DELETE FROM calls WHERE stage = 2 AND (age < ?1 OR id <= ?2 AND +id <= (
                 SELECT id FROM calls WHERE stage = 2 ORDER BY id DESC LIMIT 1 OFFSET ?3))",
        )?
        .execute(age::kept_from(age, *id))?;
    let known = transaction
        .prepare_cached(
            "SELECT digest, body FROM calls WHERE caller = ?1 AND method = ?2 AND request_id = ?3",
        )?
        .query_row([caller, method, request_id], |row| {
            // Without an answer it is one that was given up a moment ago: nobody knows what became of it.
            let body: Option<Vec<u8>> = row.get(1)?;
            let answer = body.and_then(|body| Answer::decode(&body[..]).ok());
            let answer = answer.unwrap_or_else(|| {
                Answer::of::<()>(&Err(status::outcome_unknown(
                    "nobody waited for its answer",
                )))
            });
            Ok(Begun::Known(Digest(row.get(0)?), answer))
        })
        .optional()?;
    if let Some(known) = known {
        return Ok(known);
    }
    transaction
        .prepare_cached(
            "INSERT INTO calls (id, caller, method, request_id, digest, started, age, stage)
             VALUES (:id, :caller, :method, :request_id, :digest, :started, :age, :stage)",
        )?
        .execute(named_params! {
            ":id": id,
            ":caller": caller,
            ":method": method,
            ":request_id": request_id,
            ":digest": &digest.0[..],
            ":started": micros(now),
            ":age": age,
            ":stage": stage as u8,
        })?;
    Ok(Begun::New)
}

/// Keeps how a call ended.
pub(super) fn finish(
    transaction: &Transaction<'_>,
    CallKey(id): &CallKey,
    body: &[u8],
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("UPDATE calls SET stage = 2, body = ?2 WHERE id = ?1")?
        .execute((id, body))?;
    Ok(())
}

/// Forgets those attempts at a call, of which nothing came.
pub(super) fn forget(
    transaction: &Transaction<'_>,
    Name([caller, method, request_id]): &Name,
    CallKey(first): &CallKey,
    CallKey(last): &CallKey,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "DELETE FROM calls WHERE caller = ?1 AND method = ?2 AND request_id = ?3
                 AND id BETWEEN ?4 AND ?5 AND stage < 2",
        )?
        .execute((caller, method, request_id, first, last))?;
    Ok(())
}

/// Notes that what a call changes in the state is changed, in the write that does it.
pub(in crate::state) fn note_done(
    transaction: &Transaction<'_>,
    CallKey(id): &CallKey,
) -> rusqlite::Result<()> {
    // That is an answer, without anything in it.
    transaction
        .prepare_cached("UPDATE calls SET body = x'' WHERE id = ?1 AND stage = 0")?
        .execute([id])?;
    Ok(())
}

/// Notes that it was changed back.
pub(in crate::state) fn note_undone(
    transaction: &Transaction<'_>,
    CallKey(id): &CallKey,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("DELETE FROM calls WHERE id = ?1 AND stage = 0 AND body IS NOT NULL")?
        .execute([id])?;
    Ok(())
}
