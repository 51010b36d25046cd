//! How the state fares: whether it takes writes, and what they cost.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rusqlite::ErrorCode;

use super::open::is_damage;

/// How long a change waits for the disk before it is refused.
pub(crate) const WRITE_WAIT_MAX: Duration = Duration::from_millis(800);

/// What is written to ask a file system what it has against it.
const PROBE_NAME: &str = "probe";

/// Why nothing can be written now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WriteError {
    /// The disk does not answer in time.
    #[error(
        "the disk of {place} does not answer within {WRITE_WAIT_MAX:?}; see what keeps it busy"
    )]
    Slow {
        /// The database, for people.
        place: String,
    },
    /// The disk refuses.
    #[error("cannot write {place}: {reason}; {}", trouble.remedy())]
    Refused {
        /// The database, for people.
        place: String,
        /// What SQLite said.
        reason: String,
        /// What it amounts to.
        trouble: Trouble,
    },
    /// The gateway is going away.
    #[error("the state is closed: the gateway is shutting down")]
    Closed,
}

/// What can be wrong with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    Full,
    ReadOnly,
    Slow,
    Damaged,
    Other,
}

impl Trouble {
    pub(crate) const ALL: [Self; 5] = [
        Self::Full,
        Self::ReadOnly,
        Self::Slow,
        Self::Damaged,
        Self::Other,
    ];

    /// As a label of a metric.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::ReadOnly => "read_only",
            Self::Slow => "slow",
            Self::Damaged => "damaged",
            Self::Other => "other",
        }
    }

    const fn remedy(self) -> &'static str {
        match self {
            Self::Full => "the disk is full: make room; it goes on by itself",
            Self::ReadOnly => "the disk is read-only: make it writable again; it goes on by itself",
            Self::Slow => "see what keeps it busy",
            Self::Damaged => "restart the gateway: it sets the file aside and begins a new one",
            Self::Other => "see that the disk works; it goes on by itself",
        }
    }

    /// What an error amounts to, of a file at `path`.
    pub(super) fn of(error: &rusqlite::Error, path: Option<&Path>) -> Self {
        match error.sqlite_error_code() {
            _ if is_damage(error) => Self::Damaged,
            Some(ErrorCode::DiskFull) => Self::Full,
            Some(ErrorCode::ReadOnly) => Self::ReadOnly,
            // SQLite does not always say why.
            _ => path.and_then(Self::of_file_system).unwrap_or(Self::Other),
        }
    }

    /// What the file system says of a write beside the file.
    fn of_file_system(path: &Path) -> Option<Self> {
        let probe = path.with_file_name(PROBE_NAME);
        let written = fs::write(&probe, [0]);
        // One that stays is written over by the next.
        let _ = fs::remove_file(&probe);
        match written.err()?.kind() {
            ErrorKind::ReadOnlyFilesystem => Some(Self::ReadOnly),
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Some(Self::Full),
            _ => None,
        }
    }
}

/// Whether an error says something of the disk, and not only of what was asked of it.
pub(super) fn is_of_disk(error: &rusqlite::Error) -> bool {
    use ErrorCode::{
        CannotOpen, DatabaseBusy, DatabaseCorrupt, DatabaseLocked, DiskFull,
        FileLockingProtocolFailed, NotADatabase, OutOfMemory, PermissionDenied, ReadOnly,
        SystemIoFailure,
    };
    matches!(
        error.sqlite_error_code(),
        Some(
            CannotOpen
                | DatabaseBusy
                | DatabaseCorrupt
                | DatabaseLocked
                | DiskFull
                | FileLockingProtocolFailed
                | NotADatabase
                | OutOfMemory
                | PermissionDenied
                | ReadOnly
                | SystemIoFailure
        )
    )
}

/// Shared between the thread that writes and everybody who asks.
#[derive(Debug)]
pub(super) struct Health {
    /// The database, for people.
    pub(super) place: String,
    path: Option<PathBuf>,
    /// Why the last write failed. Locked to copy or replace it.
    last: Mutex<Option<WriteError>>,
    started: Instant,
    /// What is on disk is only looked at: it could not be written at the start.
    frozen: AtomicBool,
    /// Since when the thread has been at one job, in ms after `started`, plus one; 0 while it waits for one.
    busy_since: AtomicU64,
    writes: AtomicU64,
    failures: AtomicU64,
    micros: AtomicU64,
}

/// Figures for metrics.
#[derive(Debug, Clone)]
pub(crate) struct Figures {
    /// Why changes are refused now.
    pub(crate) trouble: Option<Trouble>,
    /// Writes that succeeded.
    pub(crate) writes: u64,
    /// Writes that failed.
    pub(crate) failures: u64,
    /// Time that all writes took.
    pub(crate) write_time: Duration,
    /// Bytes on disk, the log beside the database included.
    pub(crate) bytes: u64,
}

impl Health {
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        let place = path
            .as_ref()
            .map_or_else(|| "memory".to_owned(), |path| path.display().to_string());
        Self {
            place,
            path,
            last: Mutex::default(),
            started: Instant::now(),
            frozen: AtomicBool::new(false),
            busy_since: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            micros: AtomicU64::new(0),
        }
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    pub(super) fn begin(&self) -> Instant {
        self.busy_since.store(self.millis(), Ordering::Relaxed);
        Instant::now()
    }

    /// Notes how a write went, and whether there was anything to write; gives the error as callers see it.
    pub(super) fn end(
        &self,
        began: Instant,
        result: Result<bool, &rusqlite::Error>,
    ) -> Option<WriteError> {
        self.busy_since.store(0, Ordering::Relaxed);
        if let Ok(false) = result {
            // Which says nothing of the disk.
            return None;
        }
        let failed = result.err();
        let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.micros.fetch_add(micros, Ordering::Relaxed);
        let error = failed.map(|error| self.refused(error));
        let counter = if error.is_some() {
            &self.failures
        } else {
            &self.writes
        };
        counter.fetch_add(1, Ordering::Relaxed);
        if failed.is_some_and(|error| !is_of_disk(error)) {
            tracing::error!(?failed, "a bug: the state was asked for what it cannot do");
            return error;
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*last, &error) {
            (None, Some(error)) => {
                tracing::error!(%error, "the state cannot be written: changes are refused until it can");
            }
            (Some(_), None) => tracing::info!(place = self.place, "the state can be written again"),
            _ => {}
        }
        last.clone_from(&error);
        error
    }

    /// An error as callers see it. Blocks: it may ask the disk.
    pub(super) fn refused(&self, error: &rusqlite::Error) -> WriteError {
        WriteError::Refused {
            place: self.place.clone(),
            reason: error.to_string(),
            trouble: Trouble::of(error, self.path.as_deref()),
        }
    }

    /// The same of what could not be read.
    pub(super) fn unread(&self, error: &rusqlite::Error) -> WriteError {
        tracing::error!(%error, place = self.place, "the state cannot be read");
        self.refused(error)
    }

    /// Why a change would be refused now.
    pub(super) fn check(&self) -> Result<(), WriteError> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = &*last {
            return Err(error.clone());
        }
        let since = self.busy_since.load(Ordering::Relaxed);
        let stuck = since != 0
            && Duration::from_millis(self.millis().saturating_sub(since)) > WRITE_WAIT_MAX;
        if stuck { Err(self.slow()) } else { Ok(()) }
    }

    /// Whether what is on disk is only looked at, through the one connection that could be opened.
    pub(super) fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::Acquire)
    }

    pub(super) fn set_frozen(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::Release);
    }

    /// Whether the last write failed.
    pub(super) fn is_refusing(&self) -> bool {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some()
    }

    pub(super) fn slow(&self) -> WriteError {
        WriteError::Slow {
            place: self.place.clone(),
        }
    }

    pub(super) fn figures(&self) -> Figures {
        let size = |suffix: &str| {
            let Some(path) = &self.path else { return 0 };
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            fs::metadata(name).map_or(0, |metadata| metadata.len())
        };
        Figures {
            trouble: match self.check() {
                Ok(()) | Err(WriteError::Closed) => None,
                Err(WriteError::Slow { .. }) => Some(Trouble::Slow),
                Err(WriteError::Refused { trouble, .. }) => Some(trouble),
            },
            writes: self.writes.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            write_time: Duration::from_micros(self.micros.load(Ordering::Relaxed)),
            bytes: size("") + size("-wal"),
        }
    }
}
