//! The one thread that writes.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::Duration,
};

use openvpn_fleet::failpoint;
use rusqlite::{Connection, Transaction, TransactionBehavior, ffi};
use tokio::sync::oneshot;

use super::{
    health::{Health, WriteError},
    open::{self, OpenError},
};

/// Jobs that wait for the disk; one more is refused as if the disk were slow, which it is then.
const JOBS_MAX: usize = 1_024;
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
        let result = match (failed, self.done.take()) {
            (None, Some(done)) => Ok(done),
            (Some(error), _) => Err(error),
            (None, None) => Err(WriteError::Closed),
        };
        if let Some(reply) = self.reply.take() {
            // Whoever gave up hears nothing.
            let _ = reply.send(result);
        }
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
        let job = Box::new(Pending {
            work: Some(work),
            done: None,
            reply: Some(reply),
        });
        match self.jobs.try_send(Message::Job(job)) {
            Ok(()) => Ok(answer),
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
}

impl Work {
    fn run(mut self, queue: &Receiver<Message>) {
        loop {
            let message = if self.health.is_refusing() {
                match queue.recv_timeout(PROBE_INTERVAL) {
                    Ok(message) => message,
                    Err(RecvTimeoutError::Timeout) => {
                        self.probe();
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
                    let began = self.health.begin();
                    let result = write(&mut self.connection, |transaction| {
                        job.run(transaction)?;
                        // Whoever gave up meanwhile was told that nothing happened.
                        Ok(!job.is_given_up())
                    });
                    failpoint::hit("state.committed");
                    let failed = self.health.end(began, result.as_ref().err());
                    job.answer(failed);
                }
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

    /// Tries a write; one that succeeds ends the trouble.
    fn probe(&mut self) {
        let began = self.health.begin();
        let mut result = probe(&mut self.connection);
        if let (Err(_), Some(path)) = (&result, &self.path) {
            result = self.reopened(path.clone().as_path());
        }
        self.health.end(began, result.as_ref().err());
    }

    /// A connection may have got stuck with the trouble of before.
    fn reopened(&mut self, path: &Path) -> rusqlite::Result<()> {
        let mut connection = open::reopen(path)?;
        probe(&mut connection)?;
        self.connection = connection;
        Ok(())
    }
}

fn probe(connection: &mut Connection) -> rusqlite::Result<()> {
    write(connection, |transaction| {
        transaction.execute(
            "INSERT INTO meta VALUES ('probe', 1) ON CONFLICT (key) DO UPDATE SET value = value + 1",
            [],
        )?;
        Ok(true)
    })
}

/// Runs `work` in a transaction, and commits it if it says so.
fn write(
    connection: &mut Connection,
    work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<bool>,
) -> rusqlite::Result<()> {
    if failpoint::fails("state.write") {
        return Err(rusqlite::Error::SqliteFailure(
            ffi::Error::new(ffi::SQLITE_FULL),
            Some("failpoint".to_owned()),
        ));
    }
    let transaction = Transaction::new(connection, TransactionBehavior::Immediate)?;
    if work(&transaction)? {
        transaction.commit()
    } else {
        transaction.rollback()
    }
}
