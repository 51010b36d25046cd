//! Instances that were made at run time.

use std::time::SystemTime;

use rusqlite::{OptionalExtension as _, Row, Transaction, named_params};

use super::{State, WriteError, micros, time};

/// One of them, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Registered {
    /// Its name.
    pub(crate) name: String,
    /// Which life of that name.
    pub(crate) uid: u64,
    /// What was said of it, in a form that its writer reads again.
    pub(crate) spec: String,
    /// Changes with the spec.
    pub(crate) etag: String,
    /// No session is kept.
    pub(crate) paused: bool,
    /// When it was made.
    pub(crate) created: SystemTime,
    /// When it last changed.
    pub(crate) updated: SystemTime,
}

/// The instances that were made at run time.
#[derive(Debug, Clone)]
pub(crate) struct Registry(State);

impl Registry {
    pub(crate) const fn new(state: State) -> Self {
        Self(state)
    }

    /// All, in order of name.
    pub(crate) async fn list(&self) -> Result<Vec<Registered>, WriteError> {
        self.0
            .read(|connection| {
                let mut statement =
                    connection.prepare_cached("SELECT * FROM registry ORDER BY name")?;
                let rows = statement.query_map([], read)?;
                rows.collect()
            })
            .await
    }

    /// Adds one, or replaces the one of that name, if there `may` be one to replace: of the etag given, or none (`None`).
    /// Gives what is there instead if not.
    pub(crate) async fn put(
        &self,
        instance: Registered,
        expected: Option<String>,
    ) -> Result<Result<(), Option<Registered>>, WriteError> {
        self.0
            .write(move |transaction| {
                let found = find(transaction, &instance.name)?;
                if found.as_ref().map(|found| &found.etag) != expected.as_ref() {
                    return Ok(Err(found));
                }
                transaction.execute(
                    "INSERT OR REPLACE INTO registry (name, uid, spec, etag, paused, created, updated)
                     VALUES (:name, :uid, :spec, :etag, :paused, :created, :updated)",
                    named_params! {
                        ":name": instance.name,
                        ":uid": instance.uid.cast_signed(),
                        ":spec": instance.spec,
                        ":etag": instance.etag,
                        ":paused": instance.paused,
                        ":created": micros(instance.created),
                        ":updated": micros(instance.updated),
                    },
                )?;
                Ok(Ok(()))
            })
            .await
    }

    /// Removes one; whether it was there.
    pub(crate) async fn remove(&self, name: String) -> Result<bool, WriteError> {
        self.0
            .write(move |transaction| {
                let removed =
                    transaction.execute("DELETE FROM registry WHERE name = ?1", [name])?;
                Ok(removed > 0)
            })
            .await
    }
}

fn find(transaction: &Transaction<'_>, name: &str) -> rusqlite::Result<Option<Registered>> {
    transaction
        .query_row("SELECT * FROM registry WHERE name = ?1", [name], read)
        .optional()
}

fn read(row: &Row<'_>) -> rusqlite::Result<Registered> {
    Ok(Registered {
        name: row.get("name")?,
        uid: row.get::<_, i64>("uid")?.cast_unsigned(),
        spec: row.get("spec")?,
        etag: row.get("etag")?,
        paused: row.get("paused")?,
        created: time(row.get("created")?),
        updated: time(row.get("updated")?),
    })
}
