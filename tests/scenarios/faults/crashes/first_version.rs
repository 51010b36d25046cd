//! The way back to the first version of the state.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use rusqlite::Connection;

/// Its tables, empty.
const FIRST_VERSION: &str = include_str!("first_version.sql");

/// Makes a file one of the first version, with everything that has a place in it; how many migrations it takes from
/// there. What a migration adds is left behind, without a word here about any.
pub(super) fn go_back(file: &Path) -> Result<u64> {
    let back = file.with_extension("first");
    let old = Connection::open(&back)?;
    // Nothing dies while this is written.
    old.pragma_update(None, "synchronous", "OFF")?;
    old.execute_batch(FIRST_VERSION)?;
    let path = file.to_str().context("no path in UTF-8")?;
    old.execute("ATTACH ?1 AS new", [path])?;
    let version: u32 = old.query_row("PRAGMA new.user_version", [], |row| row.get(0))?;
    ensure!(version > 1, "{path} is of version {version}");
    let tables =
        "SELECT name FROM main.sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'";
    for table in column(&old, tables, [])? {
        let columns = "SELECT name FROM pragma_table_info(?1, 'main')";
        let columns = column(&old, columns, [&table])?.join(", ");
        let copy = format!(
            "INSERT OR REPLACE INTO main.{table} ({columns}) SELECT {columns} FROM new.{table}"
        );
        let copied = old.execute_batch(&copy);
        copied.with_context(|| {
            format!("{table} of version {version} does not fit into the first one: say here how it goes back")
        })?;
    }
    // The last one to close the file takes in the log beside it, and removes that.
    old.execute_batch("DETACH new")?;
    drop(old);
    let log = file.with_extension("db-wal");
    ensure!(!log.exists(), "{} is still there", log.display());
    fs::rename(back, file)?;
    Ok(u64::from(version) - 1)
}

/// The only column of what a query finds.
fn column(
    connection: &Connection,
    query: &str,
    parameters: impl rusqlite::Params,
) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare(query)?;
    let rows = statement.query_map(parameters, |row| row.get(0))?;
    rows.collect()
}
