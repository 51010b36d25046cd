//! Actions on disk: intended, sending, finished; and the runs that daemons were in.
//!
//! ```text
//! intend ─► stage 0 ─► plan ─► stage 1 ─► (sent, outcomes noted in batches) ─► finish ─► stage 2, the whole answer
//! ```
//!
//! What a start finds before stage 2 is over: of stage 0 nothing was sent, and of stage 1 nobody knows but what was
//! noted. Nothing is ever sent again.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use openvpn_fleet::{
    ACTIONS_MAX, Action, CallerName, Digest, InstanceName, Intent, KnownRun, Ledger, LedgerError,
    Method, RequestId, TargetError, TargetResult,
};
use ovfleet_proto::v1;
use prost::Message as _;
use rusqlite::{OptionalExtension as _, Row, Transaction, named_params};
use tokio::{sync::Notify, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{State, WriteError, age, generations, micros, time};
use crate::{convert, cursor::Cursors, status};

/// How long outcomes are gathered for one write.
const GATHER: Duration = Duration::from_millis(100);
/// How long after a failure the disk is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Most actions that are yet to be forgotten; one more is, at the latest, finished by the next start.
const FORGOTTEN_MAX: usize = ACTIONS_MAX;

const INTENDED: u8 = 0;
const SENDING: u8 = 1;
const FINISHED: u8 = 2;

/// The actions of a gateway with a state directory. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Actions(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: State,
    cursors: Arc<Cursors>,
    last_number: u64,
    /// The runs of daemons by instance, with the address. Locked to take one.
    runs: Mutex<HashMap<String, (String, KnownRun)>>,
    /// What is not on disk yet. Locked to add or take, never across an await.
    pending: Mutex<Pending>,
    /// There is something pending.
    wake: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    /// Outcomes of single targets, by action and target. No more than targets of running actions.
    outcomes: BTreeMap<(u64, usize), Vec<u8>>,
    /// Answers of actions that the disk refused; no more than actions that are remembered.
    finished: BTreeMap<u64, Vec<u8>>,
    /// Actions of which nothing was sent and that may still be there; at most [`FORGOTTEN_MAX`].
    forgotten: BTreeSet<u64>,
}

/// A finished action as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StoredAction {
    /// Its number.
    pub(crate) number: u64,
    /// Who called.
    pub(crate) caller: String,
    /// Of the request.
    pub(crate) digest: Digest,
    /// The action with its whole answer.
    pub(crate) action: v1::Action,
}

impl Actions {
    /// Reads what there is, and finishes what an earlier run left unfinished.
    pub(crate) async fn open(state: &State, cursors: Arc<Cursors>) -> Result<Self, WriteError> {
        let now = SystemTime::now();
        let opening = state.write_at_start(move |transaction| {
            let mut unfinished =
                transaction.prepare("SELECT number FROM actions WHERE stage < 2")?;
            let unfinished: Vec<i64> = unfinished
                .query_map([], |row| row.get(0))?
                .collect::<Result<_, _>>()?;
            for number in &unfinished {
                settle(transaction, *number, now)?;
            }
            let last: Option<i64> =
                transaction.query_row("SELECT max(number) FROM actions", [], |row| row.get(0))?;
            let runs = generations::read(transaction)?;
            Ok((unfinished.len(), last.unwrap_or(0).cast_unsigned(), runs))
        });
        let (unfinished, last_number, runs) = opening.await?;
        if unfinished > 0 {
            tracing::warn!(
                actions = unfinished,
                "actions that the last run left unfinished are finished: what was not sent is NOT_SENT, what may have \
                 been is OUTCOME_UNKNOWN"
            );
        }
        Ok(Self(Arc::new(Inner {
            state: state.clone(),
            cursors,
            last_number,
            runs: Mutex::new(runs),
            pending: Mutex::default(),
            wake: Notify::new(),
        })))
    }

    /// Writes what nobody waits for, until `stop`, and then the rest.
    pub(crate) async fn run(self, stop: CancellationToken) {
        loop {
            let woken = stop.run_until_cancelled(self.0.wake.notified()).await;
            if woken.is_some() {
                stop.run_until_cancelled(sleep(GATHER)).await;
            }
            while let Err(error) = self.write_pending().await {
                if woken.is_none() || error == WriteError::Closed {
                    tracing::error!(%error, "outcomes of actions could not be kept");
                    return;
                }
                stop.run_until_cancelled(sleep(RETRY_INTERVAL)).await;
                if stop.is_cancelled() {
                    break;
                }
            }
            if woken.is_none() {
                return;
            }
        }
    }

    async fn write_pending(&self) -> Result<(), WriteError> {
        let Pending {
            outcomes,
            finished,
            forgotten,
        } = {
            let mut pending = self.0.lock();
            let outcomes = std::mem::take(&mut pending.outcomes);
            Pending {
                outcomes,
                finished: pending.finished.clone(),
                forgotten: pending.forgotten.clone(),
            }
        };
        if outcomes.is_empty() && finished.is_empty() && forgotten.is_empty() {
            return Ok(());
        }
        let gone = forgotten.clone();
        let done: Vec<u64> = finished.keys().copied().collect();
        let kept = outcomes.clone();
        let writing = self.0.state.write_patiently(move |transaction| {
            forget(transaction, &forgotten)?;
            // An action that has ended meanwhile has them in its answer.
            let mut note = transaction.prepare_cached(
                "INSERT OR REPLACE INTO action_results (number, target, body)
                 SELECT :number, :target, :body WHERE EXISTS
                     (SELECT 1 FROM actions WHERE number = :number AND stage = 1)",
            )?;
            for ((number, target), body) in outcomes {
                note.execute(named_params! {
                    ":number": number.cast_signed(),
                    ":target": i64::try_from(target).unwrap_or(i64::MAX),
                    ":body": body,
                })?;
            }
            for (number, body) in finished {
                finish(transaction, number, &body)?;
            }
            Ok(())
        });
        let written = writing.await;
        let mut pending = self.0.lock();
        match &written {
            Ok(()) => {
                pending.finished.retain(|number, _| !done.contains(number));
                pending.forgotten.retain(|number| !gone.contains(number));
            }
            // Newer outcomes have come meanwhile, or none.
            Err(_) => {
                for (place, body) in kept {
                    pending.outcomes.entry(place).or_insert(body);
                }
            }
        }
        written
    }

    /// The finished action of that id on disk: the caller's own, or else the newest.
    pub(crate) async fn find(
        &self,
        caller: &CallerName,
        request_id: &RequestId,
    ) -> Result<Option<StoredAction>, WriteError> {
        let (caller, request_id) = (caller.to_string(), request_id.to_string());
        self.0
            .state
            .read(move |connection| {
                connection
                    .query_row(
                        "SELECT * FROM actions WHERE request_id = ?1 AND stage = 2
                         ORDER BY caller = ?2 DESC, number DESC LIMIT 1",
                        [request_id, caller],
                        read,
                    )
                    .optional()
            })
            .await
    }

    /// The finished action that has taken an id.
    pub(crate) async fn find_exactly(
        &self,
        caller: &CallerName,
        method: Method,
        request_id: &RequestId,
    ) -> Result<Option<StoredAction>, WriteError> {
        let key = [
            caller.to_string(),
            method.as_str().to_owned(),
            request_id.to_string(),
        ];
        self.0
            .state
            .read(move |connection| {
                connection
                    .query_row(
                        "SELECT * FROM actions
                         WHERE caller = ?1 AND method = ?2 AND request_id = ?3 AND stage = 2",
                        key,
                        read,
                    )
                    .optional()
            })
            .await
    }

    /// Finished actions, newest first: at most `limit`, of those numbered below `before` if given.
    pub(crate) async fn list(
        &self,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<StoredAction>, WriteError> {
        let before = before.map_or(i64::MAX, u64::cast_signed);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.0
            .state
            .read(move |connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT * FROM actions WHERE number < ?1 AND stage = 2 ORDER BY number DESC LIMIT ?2",
                )?;
                let rows = statement.query_map([before, limit], read)?;
                rows.collect()
            })
            .await
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger for Actions {
    fn last_action(&self) -> u64 {
        self.0.last_number
    }

    fn intend(&self, intent: Intent) -> BoxFuture<'static, Result<(), LedgerError>> {
        let inner = Arc::clone(&self.0);
        let forgotten = inner.lock().forgotten.clone();
        async move {
            let (gone, age) = (forgotten.clone(), inner.state.age());
            let intended = inner.state.write(move |transaction| {
                forget(transaction, &forgotten)?;
                intend(transaction, &intent, age)
            });
            let intended = intended.await.map_err(|error| unavailable(&error))?;
            let mut pending = inner.lock();
            pending.forgotten.retain(|number| !gone.contains(number));
            intended.then_some(()).ok_or(LedgerError::Known)
        }
        .boxed()
    }

    fn plan(&self, action: Action, targets: usize) -> BoxFuture<'static, Result<(), LedgerError>> {
        let state = self.0.state.clone();
        let body = convert::action::action(&action, &self.0.cursors).encode_to_vec();
        let number = action.number.cast_signed();
        let targets = i64::try_from(targets).unwrap_or(i64::MAX);
        async move {
            let planned = state.write(move |transaction| {
                transaction.execute(
                    "UPDATE actions SET stage = 1, targets = ?2, body = ?3 WHERE number = ?1 AND stage = 0",
                    (number, targets, body),
                )
            });
            match planned.await {
                Ok(1) => Ok(()),
                Ok(_) => Err(LedgerError::Unavailable {
                    reason: "the state has lost the action".to_owned(),
                }),
                Err(error) => Err(unavailable(&error)),
            }
        }
        .boxed()
    }

    fn note(&self, number: u64, target: usize, result: TargetResult<'_>) {
        let body = match result {
            TargetResult::Kill(result) => convert::action::kill_result(result).encode_to_vec(),
            TargetResult::Signal(result) => convert::action::signal_result(result).encode_to_vec(),
        };
        self.0.lock().outcomes.insert((number, target), body);
        self.0.wake.notify_one();
    }

    fn finish(&self, action: Action) -> BoxFuture<'static, bool> {
        let inner = Arc::clone(&self.0);
        async move {
            let body = convert::action::action(&action, &inner.cursors).encode_to_vec();
            let number = action.number;
            inner
                .lock()
                .outcomes
                .retain(|(of, _), _| *of != number);
            let written = body.clone();
            let finishing = inner
                .state
                .write(move |transaction| finish(transaction, number, &written));
            let Err(error) = finishing.await else {
                return true;
            };
            tracing::warn!(%error, request_id = %action.request_id, "an outcome is not on disk yet: tried again until it is");
            inner.lock().finished.insert(number, body);
            inner.wake.notify_one();
            false
        }
        .boxed()
    }

    fn forget(&self, number: u64) {
        {
            let mut pending = self.0.lock();
            pending.outcomes.retain(|(of, _), _| *of != number);
            if pending.forgotten.len() < FORGOTTEN_MAX {
                pending.forgotten.insert(number);
            }
        }
        // What the disk still has of it is passed over until then.
        self.0.wake.notify_one();
    }

    fn lose(&self, number: u64) {
        // In the queue before the id can be used again. What is not written is finished by the next start.
        let settling = self.0.state.write_patiently(move |transaction| {
            settle(transaction, number.cast_signed(), SystemTime::now())
        });
        tokio::spawn(settling);
    }

    fn take_run(&self, instance: &InstanceName, address: &str) -> Option<KnownRun> {
        let mut runs = self.0.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let (known_address, run) = runs.remove(instance.as_str())?;
        (known_address == address).then_some(run)
    }
}

fn unavailable(error: &WriteError) -> LedgerError {
    LedgerError::Unavailable {
        reason: error.to_string(),
    }
}

/// Notes an action, and forgets those that are too old or too many; whether its id was free.
fn intend(transaction: &Transaction<'_>, intent: &Intent, age: i64) -> rusqlite::Result<bool> {
    transaction
        .prepare_cached(
            "DELETE FROM actions WHERE stage = 2 AND (age < ?1 OR number <= ?2 AND +number <= (
                 SELECT number FROM actions WHERE stage = 2 ORDER BY number DESC LIMIT 1 OFFSET ?3))",
        )?
        .execute(age::kept_from(age, intent.number.cast_signed()))?;
    let key = [
        intent.caller.as_str(),
        intent.method.as_str(),
        intent.request_id.as_str(),
    ];
    // Given up before anything was sent.
    transaction
        .prepare_cached(
            "DELETE FROM actions WHERE caller = ?1 AND method = ?2 AND request_id = ?3 AND stage = 0",
        )?
        .execute(key)?;
    let added = transaction
        .prepare_cached(
            "INSERT INTO actions (number, caller, method, request_id, digest, started, age, stage, targets)
             VALUES (:number, :caller, :method, :request_id, :digest, :started, :age, :stage, 0)
             ON CONFLICT (caller, method, request_id) DO NOTHING",
        )?
        .execute(named_params! {
            ":number": intent.number.cast_signed(),
            ":caller": key[0],
            ":method": key[1],
            ":request_id": key[2],
            ":digest": &intent.digest.0[..],
            ":started": micros(intent.started),
            ":age": age,
            ":stage": INTENDED,
        })?;
    Ok(added == 1)
}

/// Forgets actions of which nothing was sent.
fn forget(transaction: &Transaction<'_>, numbers: &BTreeSet<u64>) -> rusqlite::Result<()> {
    let mut forget =
        transaction.prepare_cached("DELETE FROM actions WHERE number = ?1 AND stage < 2")?;
    for number in numbers {
        forget.execute([number.cast_signed()])?;
    }
    Ok(())
}

fn finish(transaction: &Transaction<'_>, number: u64, body: &[u8]) -> rusqlite::Result<()> {
    let number = number.cast_signed();
    transaction
        .prepare_cached("UPDATE actions SET stage = ?2, body = ?3 WHERE number = ?1")?
        .execute((number, FINISHED, body))?;
    transaction
        .prepare_cached("DELETE FROM action_results WHERE number = ?1")?
        .execute([number])?;
    Ok(())
}

/// Finishes an action that nobody works on any more, with what is known of it.
fn settle(transaction: &Transaction<'_>, number: i64, now: SystemTime) -> rusqlite::Result<()> {
    let found = transaction
        .query_row(
            "SELECT * FROM actions WHERE number = ?1 AND stage < 2",
            [number],
            |row| {
                Ok((
                    row.get::<_, String>("method")?,
                    row.get::<_, u8>("stage")?,
                    row.get::<_, u32>("targets")?,
                    read(row)?.action,
                ))
            },
        )
        .optional()?;
    let Some((method, stage, targets, mut action)) = found else {
        return Ok(());
    };
    action.finished_time = Some(convert::timestamp(now));
    let was_sending = stage == SENDING;
    let settled = if was_sending {
        v1::Outcome::Unknown
    } else {
        v1::Outcome::NotSent
    };
    action.settled = settled.into();
    let noted = noted(transaction, number)?;
    let targets = if was_sending { targets as usize } else { 0 };
    let durability = v1::Durability::Disk.into();
    match &mut action.result {
        Some(v1::action::Result::KillClients(report)) => {
            report.cut_short = true;
            for (index, result) in report.results.iter_mut().take(targets).enumerate() {
                let known = noted
                    .get(&index)
                    .and_then(|body| v1::KillResult::decode(&body[..]).ok());
                *result = known.unwrap_or_else(|| v1::KillResult {
                    outcome: settled.into(),
                    status: Some(unknown(result.r#ref.as_ref().map(|r| r.instance.as_str()))),
                    ..std::mem::take(result)
                });
            }
        }
        Some(v1::action::Result::SignalInstances(report)) => {
            report.cut_short = true;
            for (index, result) in report.results.iter_mut().take(targets).enumerate() {
                let known = noted
                    .get(&index)
                    .and_then(|body| v1::SignalResult::decode(&body[..]).ok());
                *result = known.unwrap_or_else(|| v1::SignalResult {
                    outcome: settled.into(),
                    status: Some(unknown(Some(&result.instance))),
                    ..std::mem::take(result)
                });
            }
        }
        None => {
            let request_id = action.request_id.clone();
            action.result = if method == Method::KillClients.as_str() {
                Some(v1::action::Result::KillClients(v1::KillClientsResponse {
                    request_id,
                    cut_short: true,
                    durability,
                    ..Default::default()
                }))
            } else if method == Method::SignalInstances.as_str() {
                Some(v1::action::Result::SignalInstances(
                    v1::SignalInstancesResponse {
                        request_id,
                        cut_short: true,
                        durability,
                        ..Default::default()
                    },
                ))
            } else {
                None
            };
        }
    }
    finish(transaction, number.cast_unsigned(), &action.encode_to_vec())
}

fn unknown(instance: Option<&str>) -> tonic_types::Status {
    let instance = instance.and_then(|name| InstanceName::new(name).ok());
    instance.map_or_else(tonic_types::Status::default, |instance| {
        status::of_target(&TargetError::FateUnknown {
            instance,
            reason: "the gateway ended while it was sent".to_owned(),
        })
    })
}

fn noted(transaction: &Transaction<'_>, number: i64) -> rusqlite::Result<HashMap<usize, Vec<u8>>> {
    let mut statement =
        transaction.prepare_cached("SELECT target, body FROM action_results WHERE number = ?1")?;
    let rows = statement.query_map([number], |row| {
        let target = row.get::<_, u32>(0)?;
        Ok((target as usize, row.get(1)?))
    })?;
    rows.collect()
}

/// An action; without a body, as far as its other columns say.
fn read(row: &Row<'_>) -> rusqlite::Result<StoredAction> {
    let body: Option<Vec<u8>> = row.get("body")?;
    let (caller, request_id): (String, String) = (row.get("caller")?, row.get("request_id")?);
    let known = body.and_then(|body| v1::Action::decode(&body[..]).ok());
    let started = time(row.get("started")?);
    Ok(StoredAction {
        number: row.get::<_, i64>("number")?.cast_unsigned(),
        digest: Digest(row.get("digest")?),
        action: known.unwrap_or_else(|| v1::Action {
            request_id,
            caller: caller.clone(),
            started_time: Some(convert::timestamp(started)),
            ..Default::default()
        }),
        caller,
    })
}

#[cfg(test)]
mod tests;
