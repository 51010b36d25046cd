//! What was said of instances at run time.

use std::time::SystemTime;

use openvpn_fleet::failpoint;
use rusqlite::{Transaction, ffi, named_params};

use super::{State, WriteError, micros};

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

/// What was said of instances at run time, by name.
#[derive(Debug, Clone)]
pub(crate) struct Registry(State);

impl Registry {
    pub(crate) const fn new(state: State) -> Self {
        Self(state)
    }

    /// Whether it outlives the process.
    pub(crate) fn is_durable(&self) -> bool {
        self.0.is_durable()
    }

    /// All, in order of name.
    pub(crate) async fn list(&self) -> Result<Vec<(String, Registered)>, WriteError> {
        self.0
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

    /// Makes `now` what was said of a name, instead of `before`.
    ///
    /// A write that is given up may still come to be, if the disk hangs at its very end; what was before is then
    /// written again as soon as the disk takes it, so that a restart does not bring back what was refused.
    pub(crate) async fn put(
        &self,
        name: &str,
        now: Registered,
        before: Registered,
    ) -> Result<(), WriteError> {
        let (name, at) = (name.to_owned(), SystemTime::now());
        let written = {
            let (name, now) = (name.clone(), now.clone());
            self.0
                .write(move |transaction| write(transaction, &name, &now, at))
                .await
        };
        if let Err(WriteError::Slow { .. }) = written {
            let state = self.0.clone();
            tokio::spawn(async move {
                let undo = move |transaction: &Transaction<'_>| {
                    let found = read(transaction, &name)?;
                    // Unless it is something newer already.
                    match found == now {
                        true => write(transaction, &name, &before, at),
                        false => Ok(()),
                    }
                };
                // What fails is logged where it fails.
                let _ = state.write_patiently(undo).await;
            });
        }
        written
    }
}

fn read(transaction: &Transaction<'_>, name: &str) -> rusqlite::Result<Registered> {
    let mut statement =
        transaction.prepare_cached("SELECT definition, pause FROM registry WHERE name = ?1")?;
    let mut rows = statement.query([name])?;
    match rows.next()? {
        None => Ok(Registered::default()),
        Some(row) => Ok(Registered {
            definition: row.get(0)?,
            pause: row.get(1)?,
        }),
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
