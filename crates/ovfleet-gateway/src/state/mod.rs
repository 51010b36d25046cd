//! What outlives the process: one SQLite file in the state directory, written by one thread.
//!
//! ```text
//! callers ── write(job), at most 800 ms ──► queue ──► thread "state" ──► state.db
//! callers ── read(job) ──► one of a few read-only connections, where blocking is allowed
//! ```
//!
//! Nothing on the way from a daemon's socket to a stream waits for it. Without a state directory the same tables are
//! in memory, and answers that depend on them say so.

mod age;
mod calls;
mod frozen;
mod generations;
mod health;
mod journal;
mod ledger;
mod open;
mod registry;
mod schema;
mod writer;

use std::{
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use rusqlite::{Connection, Transaction};
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};

pub use self::open::OpenError;
use self::{age::Clock, health::Health, writer::Writer};
pub(crate) use self::{
    calls::{CallKey, Calls},
    generations::keep as keep_generations,
    health::{Figures, Trouble, WRITE_WAIT_MAX, WriteError},
    journal::{EventStore, Keep, StoredItem, StoredReader},
    ledger::Actions,
    registry::{Registered, Registry},
};

/// Reads that are under way at once; further ones wait their turn.
const READERS_MAX: usize = 4;

/// The state of a gateway. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct State(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    writer: Writer,
    health: Arc<Health>,
    /// By which what is kept grows old.
    clock: Clock,
    /// `None`: in memory.
    path: Option<PathBuf>,
    /// Where a damaged file went, of which this is the replacement.
    set_aside: Option<PathBuf>,
    /// Reads under way.
    permits: Semaphore,
    /// Connections that nobody reads through now. Locked to take or return one.
    readers: Mutex<Vec<Connection>>,
}

/// Opens the state of a directory, which must be locked, and begins a run of its journal; without a directory it is in
/// memory, and there is no such journal. `now` is what the calendar says.
pub(crate) async fn begin(
    directory: Option<PathBuf>,
    keep: Keep,
    now: SystemTime,
) -> Result<(State, Option<EventStore>), OpenError> {
    let opening = spawn_blocking(move || State::open(directory.as_deref())).await;
    let state = opening.unwrap_or_else(|error| resume_unwind(error.into_panic()))?;
    if !state.is_durable() {
        return Ok((state, None));
    }
    let begun = EventStore::begin(&state, keep, now).await;
    let store = begun.map_err(|error| state.unusable(&error))?;
    Ok((state, Some(store)))
}

impl State {
    /// Opens the state of a directory, which must be locked; without one it is in memory.
    ///
    /// Blocks while the file is checked.
    pub(crate) fn open(directory: Option<&Path>) -> Result<Self, OpenError> {
        let path = directory.map(|directory| directory.join(open::FILE_NAME));
        let in_memory = |error: rusqlite::Error| OpenError::Unusable {
            path: PathBuf::from(":memory:"),
            reason: error.to_string(),
        };
        let health = Arc::new(Health::new(path.clone()));
        let (connection, clock, set_aside) = match directory {
            Some(directory) => {
                let opened = open::open(directory)?;
                if let Some(error) = &opened.unwritable {
                    health.end(health.begin(), Err(error));
                    health.set_frozen(true);
                }
                (opened.connection, opened.clock, opened.set_aside)
            }
            None => {
                let (connection, clock) = open::open_memory().map_err(in_memory)?;
                (connection, clock, None)
            }
        };
        Ok(Self(Arc::new(Inner {
            writer: Writer::start(connection, path.clone(), Arc::clone(&health))?,
            health,
            clock,
            path,
            set_aside,
            permits: Semaphore::new(READERS_MAX),
            readers: Mutex::default(),
        })))
    }

    /// Whether it outlives the process.
    pub(crate) fn is_durable(&self) -> bool {
        self.0.path.is_some()
    }

    /// Where a damaged file went, of which this is the replacement.
    pub(crate) fn set_aside(&self) -> Option<&Path> {
        self.0.set_aside.as_deref()
    }

    /// A gateway that cannot write at its start does not begin.
    pub(crate) fn unusable(&self, error: &WriteError) -> OpenError {
        OpenError::Unusable {
            path: PathBuf::from(&self.0.health.place),
            reason: error.to_string(),
        }
    }

    /// Why a change would be refused now.
    pub(crate) fn check(&self) -> Result<(), WriteError> {
        self.0.health.check()
    }

    /// How old it is: what is kept notes this, and is too old by it.
    fn age(&self) -> i64 {
        self.0.clock.age()
    }

    /// What to say where a write was waited for too long.
    fn slow(&self) -> WriteError {
        self.0.health.slow()
    }

    /// Figures for metrics.
    pub(crate) fn figures(&self) -> Figures {
        self.0.health.figures()
    }

    /// Runs `job` in a transaction of its own; when this gives `Ok`, what it did is on disk.
    ///
    /// Given up in time, the job is not begun any more, or rolled back; only if the disk hangs in the last step of all it
    /// may still come to be. Callers for whom that is not enough write again what should be there.
    ///
    /// # Errors
    /// [`WriteError`], after at most [`WRITE_WAIT_MAX`].
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, WriteError> {
        self.check()?;
        let reply = self.0.writer.submit(job)?;
        match timeout(WRITE_WAIT_MAX, reply).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(WriteError::Closed),
            Err(_) => Err(self.slow()),
        }
    }

    /// The same for what nobody waits for: as long as it takes. It has its place in the queue when this returns: what is
    /// asked for later finds what it did. Dropped, it may not be done.
    pub(crate) fn write_patiently<T, F>(
        &self,
        job: F,
    ) -> impl Future<Output = Result<T, WriteError>> + Send + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    {
        let reply = self.0.writer.submit(job);
        async move { reply?.await.unwrap_or(Err(WriteError::Closed)) }
    }

    /// The same for what a start does. If nothing can be written it is done as if it could, and again once it can.
    async fn write_at_start<T: Send + 'static>(
        &self,
        job: impl Fn(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, WriteError> {
        let reply = self.0.writer.submit_at_start(job)?;
        reply.await.unwrap_or(Err(WriteError::Closed))
    }

    /// Reads through a connection of its own.
    ///
    /// # Errors
    /// [`WriteError`], with what SQLite said.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, WriteError> {
        let Some(path) = self.0.path.clone() else {
            // In memory there is one connection only.
            return self.write_patiently(|transaction| job(transaction)).await;
        };
        if self.0.health.is_frozen() {
            let reply = self.0.writer.submit_read(job)?;
            return reply.await.unwrap_or(Err(WriteError::Closed));
        }
        // The semaphore is never closed.
        let _permit = self.0.permits.acquire().await;
        let inner = Arc::clone(&self.0);
        let reading = spawn_blocking(move || {
            let idle = inner.lock_readers().pop();
            let connection = match idle {
                Some(connection) => Ok(connection),
                None => open::open_reader(&path),
            };
            let result = connection.and_then(|connection| {
                let found = job(&connection)?;
                // One that had trouble is not used again.
                inner.lock_readers().push(connection);
                Ok(found)
            });
            result.map_err(|error| inner.health.unread(&error))
        });
        reading.await.unwrap_or(Err(WriteError::Closed))
    }

    /// Writes back what is in the log, and ends the thread; waits at most `wait` for it.
    pub(crate) async fn close(&self, wait: Duration) {
        if timeout(wait, self.0.writer.close()).await.is_err() {
            tracing::error!(
                place = self.0.health.place,
                "the state did not close in time"
            );
        }
        self.0.lock_readers().clear();
    }
}

impl Inner {
    fn lock_readers(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A moment as it is stored: microseconds since 1970.
pub(crate) fn micros(time: SystemTime) -> i64 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
        Err(before) => {
            i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |micros| -micros)
        }
    }
}

/// A moment from how it is stored.
pub(crate) fn time(micros: i64) -> SystemTime {
    let span = Duration::from_micros(micros.unsigned_abs());
    let time = if micros < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(span)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(span)
    };
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests;
