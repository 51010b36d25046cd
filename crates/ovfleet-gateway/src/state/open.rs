//! Opening the database: what is newer is refused, what is damaged is set aside and never silently emptied.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::{age::Clock, frozen, health::is_of_disk, schema};

/// Its name in the state directory.
pub(crate) const FILE_NAME: &str = "state.db";
/// Up to this size the whole file is checked at start, and beyond it all but the events, so that a start stays short.
const CHECKED_BYTES_MAX: u64 = 64 << 20;
/// Tables that are always checked.
const CHECKED_TABLES: [&str; 11] = [
    "meta",
    "clock",
    "runs",
    "gaps",
    "classes",
    "missing",
    "generations",
    "actions",
    "action_results",
    "calls",
    "registry",
];
/// How long a connection waits for another one's lock; there is one writer, so that only a checkpoint takes any.
const BUSY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(1);
/// The log beside the database shrinks to this when it has been written back.
const WAL_BYTES_KEPT: i64 = 16 << 20;

/// Why the database cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A later version of the program wrote it.
    #[error(
        "{} was written by a newer ovfleet (version {found} of the file; this one knows {known}): \
         run that version, or move the file away and lose what it holds",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version that this program knows.
        known: u32,
    },
    /// It cannot be read or written.
    #[error("cannot use {}: {reason}; see that the disk is writable and has room", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What the system or SQLite said.
        reason: String,
    },
}

/// An open database.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) connection: Connection,
    pub(super) clock: Clock,
    /// Where a damaged one went, of which this is the replacement.
    pub(super) set_aside: Option<PathBuf>,
    /// Why it can only be looked at.
    pub(super) unwritable: Option<rusqlite::Error>,
}

/// Opens the database of a directory, or begins one.
pub(super) fn open(directory: &Path) -> Result<Opened, OpenError> {
    let path = directory.join(FILE_NAME);
    match open_file(&path) {
        Ok((connection, clock)) => Ok(Opened {
            connection,
            clock,
            set_aside: None,
            unwritable: None,
        }),
        Err(Problem::Refused(error)) => Err(error),
        Err(Problem::Unwritable(error)) => match look(&path) {
            Ok((connection, clock)) => Ok(Opened {
                connection,
                clock,
                set_aside: None,
                unwritable: Some(error),
            }),
            Err(_) => Err(unusable(&path, &error)),
        },
        Err(Problem::Damaged(reason)) => {
            let aside = set_aside(&path).map_err(|error| OpenError::Unusable {
                path: path.clone(),
                reason: format!("it is damaged ({reason}) and cannot be set aside: {error}"),
            })?;
            tracing::error!(
                file = %path.display(), %reason, set_aside = %aside.display(),
                "the state was damaged: it is set aside and a new one begun; events, actions, generations and \
                 run-time instances of before are in the old file only"
            );
            let (connection, clock) = open_file(&path).map_err(|problem| match problem {
                Problem::Refused(error) => error,
                Problem::Unwritable(error) => unusable(&path, &error),
                Problem::Damaged(reason) => OpenError::Unusable {
                    path: path.clone(),
                    reason,
                },
            })?;
            Ok(Opened {
                connection,
                clock,
                set_aside: Some(aside),
                unwritable: None,
            })
        }
    }
}

/// One that lives as long as the process.
pub(super) fn open_memory() -> rusqlite::Result<(Connection, Clock)> {
    let mut connection = Connection::open_in_memory()?;
    schema::migrate(&mut connection)?;
    let clock = Clock::go_on(&connection)?;
    Ok((connection, clock))
}

/// A further connection, for reading.
pub(super) fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

/// The writer's connection once more, after trouble.
pub(super) fn reopen(path: &Path) -> rusqlite::Result<Connection> {
    // What has vanished is no reason to begin anew: the next start says so.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    set_up(&connection)?;
    Ok(connection)
}

enum Problem {
    Refused(OpenError),
    Damaged(String),
    /// The disk has trouble, and what is there may be whole.
    Unwritable(rusqlite::Error),
}

/// Opens a file that cannot be written.
fn look(path: &Path) -> Result<(Connection, Clock), Problem> {
    let at = |error: rusqlite::Error| problem(path, error);
    let connection = frozen::look(path).map_err(at)?;
    check(&connection, path)?;
    let clock = Clock::go_on(&connection).map_err(at)?;
    frozen::shadow(&connection).map_err(at)?;
    Ok((connection, clock))
}

fn open_file(path: &Path) -> Result<(Connection, Clock), Problem> {
    // An empty file is what a torn one can look like, and SQLite would begin anew in it without a word.
    if fs::metadata(path).is_ok_and(|metadata| metadata.len() == 0) {
        return Err(Problem::Damaged("it is empty".to_owned()));
    }
    let at = |error: rusqlite::Error| problem(path, error);
    let mut connection = Connection::open(path).map_err(at)?;
    let found = schema::version(&connection).map_err(at)?;
    if found > schema::VERSION {
        return Err(Problem::Refused(OpenError::Newer {
            path: path.to_owned(),
            found,
            known: schema::VERSION,
        }));
    }
    if found == 0 {
        // Takes effect only before the first table: pages that become free are given back later.
        connection
            .pragma_update(None, "auto_vacuum", "INCREMENTAL")
            .map_err(at)?;
    }
    set_up(&connection).map_err(at)?;
    if found > 0 {
        check(&connection, path)?;
    }
    schema::migrate(&mut connection).map_err(at)?;
    let clock = Clock::go_on(&connection).map_err(at)?;
    Ok((connection, clock))
}

fn set_up(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "journal_size_limit", WAL_BYTES_KEPT)
}

fn check(connection: &Connection, path: &Path) -> Result<(), Problem> {
    let at = |error: rusqlite::Error| problem(path, error);
    let ask = |pragma: &str| -> Result<(), Problem> {
        let found: String = connection
            .query_row(pragma, [], |row| row.get(0))
            .map_err(at)?;
        if found == "ok" {
            Ok(())
        } else {
            Err(Problem::Damaged(found))
        }
    };
    if fs::metadata(path).is_ok_and(|metadata| metadata.len() <= CHECKED_BYTES_MAX) {
        return ask("PRAGMA quick_check(1)");
    }
    CHECKED_TABLES
        .iter()
        .try_for_each(|table| ask(&format!("PRAGMA quick_check({table})")))
}

fn problem(path: &Path, error: rusqlite::Error) -> Problem {
    if is_damage(&error) {
        Problem::Damaged(error.to_string())
    } else if is_of_disk(&error) {
        Problem::Unwritable(error)
    } else {
        Problem::Refused(unusable(path, &error))
    }
}

fn unusable(path: &Path, error: &rusqlite::Error) -> OpenError {
    OpenError::Unusable {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}

/// Whether an error says that the file is no database, or a broken one.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
    )
}

/// What lies beside a file, with a longer name.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Moves a database out of the way, with what belongs to it.
fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let time = Timestamp::now().strftime("%Y%m%dT%H%M%S%.6fZ");
    let aside = beside(path, &format!(".corrupt-{time}"));
    for suffix in ["-wal", "-shm", ""] {
        match fs::rename(beside(path, suffix), beside(&aside, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(aside)
}
