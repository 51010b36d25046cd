//! What was said of instances at run time.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use openvpn_fleet::failpoint;
use rusqlite::{Transaction, ffi, named_params};
use tokio::time::{sleep, timeout};

use super::{
    CallKey, State, WRITE_WAIT_MAX, WriteError,
    calls::{note_done, note_undone},
    micros,
};

/// How long after a failure the disk is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// What was said of one name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Registered {
    /// Its definition, in a form that its writer reads again; `None`: it is defined elsewhere.
    pub(crate) definition: Option<Vec<u8>>,
    /// Why it is paused; `None`: it is not.
    pub(crate) pause: Option<String>,
}

impl Registered {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What was said of instances at run time, by name. One task changes it.
#[derive(Debug)]
pub(crate) struct Registry {
    state: State,
    /// Names of which the disk may have what was refused, and what it shall have. Locked to look, to change it, and to
    /// put it in the queue, so that it never comes behind what is written later.
    unsure: Arc<Mutex<Unsure>>,
}

/// By name what is in force, the call that would have changed it, and when.
type Unsure = BTreeMap<String, (Registered, Option<CallKey>, Instant)>;

impl Registry {
    pub(crate) fn new(state: State) -> Self {
        let unsure = Arc::default();
        Self { state, unsure }
    }

    /// Whether it outlives the process.
    pub(crate) fn is_durable(&self) -> bool {
        self.state.is_durable()
    }

    /// All, in order of name.
    pub(crate) async fn list(&self) -> Result<Vec<(String, Registered)>, WriteError> {
        self.state
            .read(|connection| {
                let mut statement = connection
                    .prepare("SELECT name, definition, pause FROM registry ORDER BY name")?;
                let rows = statement.query_map([], |row| {
                    let registered = Registered {
                        definition: row.get("definition")?,
                        pause: row.get("pause")?,
                    };
                    Ok((row.get("name")?, registered))
                })?;
                rows.collect()
            })
            .await
    }

    /// Makes `now` what was said of a name, instead of `before`, and notes in the same write that `call` is done.
    ///
    /// A write that is given up may still come to be, if the disk hangs at its very end; what was before is then
    /// written again as soon as the disk takes it, so that a restart does not bring back what was refused. Nothing else
    /// is written before that.
    pub(crate) async fn put(
        &self,
        name: &str,
        now: Registered,
        before: Registered,
        call: Option<CallKey>,
    ) -> Result<(), WriteError> {
        self.settle().await?;
        let written = {
            let (name, call, at) = (name.to_owned(), call.clone(), SystemTime::now());
            let writing = self.state.write(move |transaction| {
                if let Some(call) = &call {
                    note_done(transaction, call)?;
                }
                write(transaction, &name, &now, at)
            });
            writing.await
        };
        if let Err(WriteError::Slow { .. }) = written {
            lock(&self.unsure).insert(name.to_owned(), (before, call, Instant::now()));
            let undoing = undo(&self.state, &self.unsure);
            let (state, unsure) = (self.state.clone(), Arc::clone(&self.unsure));
            tokio::spawn(async move {
                let mut undone = undoing.await;
                while undone.is_err_and(|error| error != WriteError::Closed) {
                    sleep(RETRY_INTERVAL).await;
                    undone = undo(&state, &unsure).await;
                }
            });
        }
        written
    }

    /// Makes sure that the disk has nothing that was refused.
    async fn settle(&self) -> Result<(), WriteError> {
        if lock(&self.unsure).is_empty() {
            return Ok(());
        }
        self.state.check()?;
        let undone = timeout(WRITE_WAIT_MAX, undo(&self.state, &self.unsure)).await;
        undone.unwrap_or_else(|_| Err(self.state.slow()))
    }
}

fn lock(unsure: &Mutex<Unsure>) -> MutexGuard<'_, Unsure> {
    unsure.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes what is in force over what may have been written. It is in the queue when this returns.
fn undo(
    state: &State,
    unsure: &Arc<Mutex<Unsure>>,
) -> impl Future<Output = Result<(), WriteError>> + Send + use<> {
    let (rows, writing) = {
        let all = lock(unsure);
        let (rows, at) = (all.clone(), SystemTime::now());
        let writing = state.write_patiently(move |transaction| {
            for (name, (registered, call, _)) in &rows {
                if let Some(call) = call {
                    note_undone(transaction, call)?;
                }
                write(transaction, name, registered, at)?;
            }
            Ok(())
        });
        (all.clone(), writing)
    };
    let unsure = Arc::clone(unsure);
    async move {
        // What fails is logged where it fails.
        let written = writing.await;
        if written.is_ok() {
            lock(&unsure).retain(|name, row| rows.get(name) != Some(row));
        }
        written
    }
}

fn write(
    transaction: &Transaction<'_>,
    name: &str,
    registered: &Registered,
    at: SystemTime,
) -> rusqlite::Result<()> {
    if failpoint::fails("state.registry") {
        let full = ffi::Error::new(ffi::SQLITE_FULL);
        return Err(rusqlite::Error::SqliteFailure(
            full,
            Some("failpoint".to_owned()),
        ));
    }
    if registered.is_empty() {
        transaction.execute("DELETE FROM registry WHERE name = ?1", [name])?;
        return Ok(());
    }
    transaction.execute(
        "INSERT INTO registry (name, definition, pause, updated)
         VALUES (:name, :definition, :pause, :updated)
         ON CONFLICT (name) DO UPDATE
         SET definition = :definition, pause = :pause, updated = :updated",
        named_params! {
            ":name": name,
            ":definition": registered.definition,
            ":pause": registered.pause,
            ":updated": micros(at),
        },
    )?;
    Ok(())
}
