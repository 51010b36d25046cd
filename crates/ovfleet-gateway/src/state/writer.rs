//! The one thread that writes.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use openvpn_fleet::failpoint;
use rusqlite::{Connection, Transaction, TransactionBehavior, ffi};
use tokio::sync::oneshot;

use super::{
    frozen,
    health::{Health, WriteError, is_of_disk},
    open::{self, OpenError},
};

/// Jobs that wait for the disk; one more is refused as if the disk were slow, which it is then.
pub(super) const JOBS_MAX: usize = 1_024;
/// How often it is tried whether a disk that refused takes writes again.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// The way to the thread. It ends when the last one is dropped.
#[derive(Debug)]
pub(super) struct Writer {
    jobs: SyncSender<Message>,
    health: Arc<Health>,
}

enum Message {
    Job(Box<dyn Job>),
    /// What a start does.
    AtStart(Box<dyn Job>),
    /// What only looks, where there is no other connection.
    Read(Box<dyn FnOnce(&Connection) + Send>),
    Close(oneshot::Sender<()>),
}

trait Job: Send {
    /// Nobody waits for it any more.
    fn is_given_up(&self) -> bool;
    /// Does the work, without committing it.
    fn run(&mut self, transaction: &Transaction<'_>) -> rusqlite::Result<()>;
    /// Tells whoever waits.
    fn answer(&mut self, failed: Option<WriteError>);
}

struct Pending<T, F> {
    work: Option<F>,
    done: Option<T>,
    reply: Option<oneshot::Sender<Result<T, WriteError>>>,
}

impl<T, F> Job for Pending<T, F>
where
    T: Send,
    F: FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send,
{
    fn is_given_up(&self) -> bool {
        self.reply.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    fn run(&mut self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        if let Some(work) = self.work.take() {
            self.done = Some(work(transaction)?);
        }
        Ok(())
    }

    fn answer(&mut self, failed: Option<WriteError>) {
        answer(&mut self.reply, failed, self.done.take());
    }
}

/// What a start does, and does again once the disk takes it.
struct Repeatable<T, F> {
    work: F,
    done: Option<T>,
    reply: Option<oneshot::Sender<Result<T, WriteError>>>,
}

impl<T, F> Job for Repeatable<T, F>
where
    T: Send,
    F: Fn(&Transaction<'_>) -> rusqlite::Result<T> + Send,
{
    fn is_given_up(&self) -> bool {
        false
    }

    fn run(&mut self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        self.done = Some((self.work)(transaction)?);
        Ok(())
    }

    fn answer(&mut self, failed: Option<WriteError>) {
        answer(&mut self.reply, failed, self.done.take());
    }
}

fn answer<T>(
    reply: &mut Option<oneshot::Sender<Result<T, WriteError>>>,
    failed: Option<WriteError>,
    done: Option<T>,
) {
    let result = match (failed, done) {
        (None, Some(done)) => Ok(done),
        (Some(error), _) => Err(error),
        (None, None) => Err(WriteError::Closed),
    };
    if let Some(reply) = reply.take() {
        // Whoever gave up hears nothing.
        let _ = reply.send(result);
    }
}

impl Writer {
    pub(super) fn start(
        connection: Connection,
        path: Option<PathBuf>,
        health: Arc<Health>,
    ) -> Result<Self, OpenError> {
        let (jobs, queue) = sync_channel(JOBS_MAX);
        let work = Work {
            connection,
            path,
            health: Arc::clone(&health),
            probed: Instant::now(),
            once_more: Vec::new(),
        };
        let place = health.place.clone();
        thread::Builder::new()
            .name("state".to_owned())
            .spawn(move || work.run(&queue))
            .map_err(|error| OpenError::Unusable {
                path: PathBuf::from(place),
                reason: format!("no thread: {error}"),
            })?;
        Ok(Self { jobs, health })
    }

    pub(super) fn submit<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<T, WriteError>>, WriteError> {
        let (reply, answer) = oneshot::channel();
        self.send(Message::Job(Box::new(Pending {
            work: Some(work),
            done: None,
            reply: Some(reply),
        })))?;
        Ok(answer)
    }

    /// Submits what a start does: whatever the disk says.
    pub(super) fn submit_at_start<T: Send + 'static>(
        &self,
        work: impl Fn(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<T, WriteError>>, WriteError> {
        let (reply, answer) = oneshot::channel();
        self.send(Message::AtStart(Box::new(Repeatable {
            work,
            done: None,
            reply: Some(reply),
        })))?;
        Ok(answer)
    }

    /// Submits what only looks.
    pub(super) fn submit_read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<T, WriteError>>, WriteError> {
        let (reply, answer) = oneshot::channel();
        let health = Arc::clone(&self.health);
        self.send(Message::Read(Box::new(move |connection| {
            let found = work(connection).map_err(|error| health.unread(&error));
            // Whoever gave up hears nothing.
            let _ = reply.send(found);
        })))?;
        Ok(answer)
    }

    fn send(&self, message: Message) -> Result<(), WriteError> {
        match self.jobs.try_send(message) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_)) => Err(self.health.slow()),
            Err(TrySendError::Disconnected(_)) => Err(WriteError::Closed),
        }
    }

    /// Ends the thread once it has done what waits.
    pub(super) async fn close(&self) {
        let (closed, wait) = oneshot::channel();
        let mut message = Message::Close(closed);
        while let Err(TrySendError::Full(back)) = self.jobs.try_send(message) {
            message = back;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let _ = wait.await;
    }
}

/// What the thread has.
struct Work {
    connection: Connection,
    path: Option<PathBuf>,
    health: Arc<Health>,
    /// When it was tried last whether the disk takes writes again.
    probed: Instant,
    /// What a start did in memory, and what is done once the disk takes it.
    once_more: Vec<Box<dyn Job>>,
}

impl Work {
    fn run(mut self, queue: &Receiver<Message>) {
        loop {
            let message = if self.health.is_refusing() {
                let wait = PROBE_INTERVAL.saturating_sub(self.probed.elapsed());
                let received = match wait.is_zero() {
                    true => Err(RecvTimeoutError::Timeout),
                    false => queue.recv_timeout(wait),
                };
                match received {
                    Ok(message) => message,
                    Err(RecvTimeoutError::Timeout) => {
                        self.probe();
                        self.probed = Instant::now();
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            } else {
                match queue.recv() {
                    Ok(message) => message,
                    Err(_) => return,
                }
            };
            match message {
                Message::Job(mut job) => {
                    if job.is_given_up() {
                        continue;
                    }
                    let failed = match self.health.is_frozen() {
                        true => self.health.check().err(),
                        false => self
                            .write(job.as_mut())
                            .err()
                            .and_then(|(_, failed)| failed),
                    };
                    job.answer(failed);
                }
                Message::AtStart(job) => self.at_start(job),
                Message::Read(job) => job(&self.connection),
                Message::Close(closed) => {
                    // What stays in the log is read from there.
                    let _ = self.connection.query_row(
                        "PRAGMA wal_checkpoint(TRUNCATE)",
                        [],
                        |_| Ok(()),
                    );
                    drop(self.connection);
                    let _ = closed.send(());
                    return;
                }
            }
        }
    }

    /// Does a job and commits it; an error comes as callers see it too.
    fn write(&mut self, job: &mut dyn Job) -> Result<(), (rusqlite::Error, Option<WriteError>)> {
        let began = self.health.begin();
        let result = write(&mut self.connection, |transaction| {
            job.run(transaction)?;
            // Whoever gave up meanwhile was told that nothing happened.
            Ok(!job.is_given_up())
        });
        failpoint::hit("state.committed");
        let failed = self.health.end(began, result.as_ref().copied());
        result.map(drop).map_err(|error| (error, failed))
    }

    /// Does what a start does: in memory, if the disk does not take it.
    fn at_start(&mut self, mut job: Box<dyn Job>) {
        if !self.health.is_frozen() {
            match self.write(job.as_mut()) {
                Err((error, _))
                    if is_of_disk(&error) && frozen::shadow(&self.connection).is_ok() =>
                {
                    self.health.set_frozen(true);
                }
                result => {
                    job.answer(result.err().and_then(|(_, failed)| failed));
                    return;
                }
            }
        }
        let done = in_memory(&mut self.connection, job.as_mut());
        job.answer(done.err().map(|error| self.health.refused(&error)));
        self.once_more.push(job);
    }

    /// Tries a write; one that succeeds ends the trouble.
    fn probe(&mut self) {
        let path = self.path.clone();
        let began = self.health.begin();
        let result = match path {
            Some(path) if self.health.is_frozen() => self.thaw(&path),
            Some(path) => probe(&mut self.connection).or_else(|_| self.reopen(&path)),
            None => probe(&mut self.connection),
        };
        self.health.end(began, result.as_ref().map(|()| true));
    }

    /// A connection may have got stuck with the trouble of before.
    fn reopen(&mut self, path: &Path) -> rusqlite::Result<()> {
        let mut connection = open::reopen(path)?;
        probe(&mut connection)?;
        // Last: once it is done it cannot be done again.
        write(&mut connection, |transaction| {
            let mut jobs = self.once_more.iter_mut();
            jobs.try_for_each(|job| job.run(transaction)).map(|()| true)
        })?;
        self.connection = connection;
        Ok(())
    }

    /// Goes on with the file itself, and does there what the start did in memory.
    fn thaw(&mut self, path: &Path) -> rusqlite::Result<()> {
        // Closed before: SQLite opens what lies beside the file once for all connections, and this one may only read it.
        self.connection = Connection::open_in_memory()?;
        let result = self.reopen(path);
        if result.is_ok() {
            self.once_more.clear();
            self.health.set_frozen(false);
        } else {
            self.connection = frozen::look(path)?;
            frozen::shadow(&self.connection)?;
            for job in &mut self.once_more {
                in_memory(&mut self.connection, job.as_mut())?;
            }
        }
        result
    }
}

/// Runs a job that changes at most what is in memory.
fn in_memory(connection: &mut Connection, job: &mut dyn Job) -> rusqlite::Result<()> {
    let transaction = Transaction::new(connection, TransactionBehavior::Deferred)?;
    job.run(&transaction)?;
    transaction.commit()
}

fn probe(connection: &mut Connection) -> rusqlite::Result<()> {
    write(connection, |transaction| {
        transaction.execute(
            "INSERT INTO meta VALUES ('probe', 1) ON CONFLICT (key) DO UPDATE SET value = value + 1",
            [],
        )?;
        Ok(true)
    })
    .map(drop)
}

/// Runs `work` in a transaction, and commits it if it says so; whether that wrote anything.
fn write(
    connection: &mut Connection,
    work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<bool>,
) -> rusqlite::Result<bool> {
    if failpoint::fails("state.write") {
        return Err(rusqlite::Error::SqliteFailure(
            ffi::Error::new(ffi::SQLITE_FULL),
            Some("failpoint".to_owned()),
        ));
    }
    let before = connection.total_changes();
    let transaction = Transaction::new(connection, TransactionBehavior::Immediate)?;
    let is_wanted = work(&transaction)?;
    let has_changed = transaction.total_changes() > before;
    if is_wanted {
        transaction.commit()?;
    } else {
        transaction.rollback()?;
    }
    Ok(is_wanted && has_changed)
}
