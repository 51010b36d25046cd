//! A state that cannot be written when the gateway starts: it is looked at, and what the start would have written is
//! done in memory, and once more when the disk takes it.

use std::{fs, os::unix::ffi::OsStrExt as _, path::Path};

use rusqlite::{Connection, OpenFlags};

use super::{open, schema};

/// What a start writes, and what is read of it later.
const WRITTEN_AT_START: [&str; 5] = ["runs", "gaps", "actions", "action_results", "calls"];

/// Opens a file to look at it, on a disk that may be full or read-only.
///
/// # Errors
/// It is not there, not of this version, or cannot be read without a write.
pub(super) fn look(path: &Path) -> rusqlite::Result<Connection> {
    // Nobody else may write: its directory is locked. Without a log everything is in the file, and SQLite needs nothing
    // beside it, which it could not make.
    let log = fs::metadata(open::beside(path, "-wal"));
    let is_whole = log.map_or(true, |log| log.len() == 0);
    let immutable = if is_whole { "&immutable=1" } else { "" };
    let uri = format!("file:{}?mode=ro{immutable}", escaped(path));
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(uri, flags)?;
    if schema::version(&connection)? != schema::VERSION {
        return Err(rusqlite::Error::InvalidQuery);
    }
    Ok(connection)
}

/// Puts tables in memory before those that a start writes.
pub(super) fn shadow(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    for table in WRITTEN_AT_START {
        let definition: String = connection.query_row(
            "SELECT sql FROM main.sqlite_schema WHERE type = 'table' AND name = ?1",
            [table],
            |row| row.get(0),
        )?;
        let temporary = definition.replacen("CREATE TABLE", "CREATE TEMP TABLE", 1);
        let fill = format!("INSERT INTO temp.{table} SELECT * FROM main.{table}");
        connection.execute_batch(&format!("{temporary}; {fill};"))?;
    }
    Ok(())
}

/// A path as it is written in a URI.
fn escaped(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes().iter();
    let escape = |byte: &u8| match byte {
        b'/' | b'-' | b'.' | b'_' => char::from(*byte).to_string(),
        byte if byte.is_ascii_alphanumeric() => char::from(*byte).to_string(),
        byte => format!("%{byte:02x}"),
    };
    bytes.map(escape).collect()
}
