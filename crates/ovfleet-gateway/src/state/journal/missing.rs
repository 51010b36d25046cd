//! Of what something is missing on disk, as exactly as it is known: nobody is to be told of a hole in what they did not
//! ask for.

use std::time::SystemTime;

use openvpn_fleet::{
    EventClass, EventFilter, GatewayName, InstanceName, Kind, Labels, journal::Missing,
};
use rusqlite::{Connection, Transaction};

use super::row::{LabelIds, class_number, labels_of_text};
use crate::state::{micros, time};

/// What was thrown away here, and is no hole between two events.
pub(super) const RETENTION: i64 = 0;
/// Where `classes` and `missing` count gaps, behind the classes of events.
pub(super) const GAPS: i64 = 3;
/// Sources whose losses are told apart. Beyond, those whose loss is longest ago count as of any: only a reader from
/// before all of it may be told of a hole that is none of its own.
const SOURCES_MAX: i64 = 50_000;
/// So many are put together at once.
const SOURCES_STEP: i64 = 5_000;

/// No name of an instance has it.
const ANY_INSTANCE: &str = "/";
const OWN: &str = "";
/// No kind is called so.
const ANY_KIND: &str = "*";
const CLASSES: [(EventClass, &str); 3] = [
    (EventClass::Lifecycle, "lifecycle"),
    (EventClass::Log, "log"),
    (EventClass::Raw, "raw"),
];

const INSERT: &str = "INSERT INTO missing (gap, class, kind, instance, labels, through, time)";
const ON_CONFLICT: &str = "ON CONFLICT (gap, class, kind, instance, labels)
     DO UPDATE SET through = max(through, excluded.through), time = max(time, excluded.time)";

/// Notes of which sources something is missing in the hole that is gap number `gap`.
pub(super) fn insert_hole(
    transaction: &Transaction<'_>,
    ids: &mut LabelIds,
    gap: i64,
    missing: &Missing,
) -> rusqlite::Result<()> {
    let kind = |kind: Option<Kind>| match kind {
        Some(kind) => kind.as_str(),
        // A gap. One of any class is among the life cycle.
        None => match missing.class {
            EventClass::Lifecycle => ANY_KIND,
            class => class_text(class),
        },
    };
    let (kind, instance, labels) = match &missing.source {
        Some(source) => (
            kind(source.kind),
            source.instance.as_ref().map_or(OWN, InstanceName::as_str),
            ids.of(transaction, &source.labels)?.unwrap_or(0),
        ),
        None => (kind(None), ANY_INSTANCE, 0),
    };
    transaction
        .prepare_cached(&format!("{INSERT} VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"))?
        .execute((
            gap,
            class_number(missing.class),
            kind,
            instance,
            labels,
            missing.through.cast_signed(),
            micros(missing.time),
        ))?;
    Ok(())
}

/// Notes the events of a class up to `through`, which are about to be thrown away.
pub(super) fn evict_events(
    transaction: &Transaction<'_>,
    class: i64,
    through: i64,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(&format!(
            "{INSERT}
             SELECT {RETENTION}, class, kind, coalesce(instance, '{OWN}'), coalesce(labels, 0),
                    max(sequence), max(observed)
             FROM events WHERE class = ?1 AND sequence <= ?2 GROUP BY kind, instance, labels
             {ON_CONFLICT}"
        ))?
        .execute((class, through))?;
    bound(transaction, class)
}

/// Notes the gaps up to number `last`, which are about to be thrown away, and forgets what their holes were of.
pub(super) fn evict_gaps(transaction: &Transaction<'_>, last: i64) -> rusqlite::Result<()> {
    // Some are of one class, others of any.
    let mut of_class = "CASE class".to_owned();
    for (class, text) in CLASSES {
        of_class += &format!(" WHEN {} THEN '{text}'", class_number(class));
    }
    of_class += &format!(" ELSE '{ANY_KIND}' END");
    transaction
        .prepare_cached(&format!(
            "{INSERT}
             SELECT {RETENTION}, {GAPS}, {of_class} AS kind, coalesce(instance, '{ANY_INSTANCE}'),
                    coalesce(labels, 0), max(through), max(observed)
             FROM gaps WHERE id <= ?1 AND id NOT IN (SELECT gap FROM missing) GROUP BY 3, 4, 5
             {ON_CONFLICT}"
        ))?
        .execute([last])?;
    transaction
        .prepare_cached(&format!(
            "{INSERT}
             SELECT {RETENTION}, {GAPS}, kind, instance, labels, max(through), max(time)
             FROM missing WHERE gap > {RETENTION} AND gap <= ?1 GROUP BY kind, instance, labels
             {ON_CONFLICT}"
        ))?
        .execute([last])?;
    transaction
        .prepare_cached(&format!(
            "DELETE FROM missing WHERE gap > {RETENTION} AND gap <= ?1"
        ))?
        .execute([last])?;
    bound(transaction, GAPS)
}

/// Puts together what is longest ago, when there is much.
fn bound(transaction: &Transaction<'_>, class: i64) -> rusqlite::Result<()> {
    let count: i64 = transaction
        .prepare_cached(&format!(
            "SELECT count(*) FROM missing WHERE gap = {RETENTION} AND class = ?1"
        ))?
        .query_row([class], |row| row.get(0))?;
    if count <= SOURCES_MAX {
        return Ok(());
    }
    let through: i64 = transaction
        .prepare_cached(&format!(
            "SELECT through FROM missing WHERE gap = {RETENTION} AND class = ?1 ORDER BY through LIMIT 1 OFFSET ?2"
        ))?
        .query_row((class, SOURCES_STEP), |row| row.get(0))?;
    transaction
        .prepare_cached(&format!(
            "{INSERT}
             SELECT {RETENTION}, class, '{ANY_KIND}', '{ANY_INSTANCE}', 0, max(through), max(time)
             FROM missing WHERE gap = {RETENTION} AND class = ?1 AND through <= ?2 GROUP BY class
             {ON_CONFLICT}"
        ))?
        .execute((class, through))?;
    transaction
        .prepare_cached(&format!(
            "DELETE FROM missing WHERE gap = {RETENTION} AND class = ?1 AND through <= ?2
               AND NOT (kind = '{ANY_KIND}' AND instance = '{ANY_INSTANCE}')"
        ))?
        .execute((class, through))?;
    Ok(())
}

/// Whether it is known what a hole is of: versions before this one did not note it.
pub(super) fn is_known(connection: &Connection, gap: i64) -> rusqlite::Result<bool> {
    connection
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM missing WHERE gap = ?1)")?
        .query_row([gap], |row| row.get(0))
}

/// What is missing of what a filter wants.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// Up to where.
    pub(super) through: u64,
    /// When the youngest of it was made.
    pub(super) time: SystemTime,
}

/// What is missing behind `after` that `filter` wants: of one class of what retention threw away, or of a hole, where
/// `class` is none.
pub(super) fn wanted(
    connection: &Connection,
    (gap, class): (i64, Option<i64>),
    after: u64,
    filter: &EventFilter,
    gateway: &GatewayName,
) -> rusqlite::Result<Option<Wanted>> {
    let mut statement = connection.prepare_cached(
        "SELECT kind, instance, text, through, time FROM missing LEFT JOIN labels ON labels.id = missing.labels
         WHERE gap = ?1 AND class BETWEEN ?2 AND ?3 AND through > ?4",
    )?;
    let classes = class.map_or((0, GAPS), |class| (class, class));
    let mut rows = statement.query((gap, classes.0, classes.1, after.cast_signed()))?;
    let mut found: Option<Wanted> = None;
    while let Some(row) = rows.next()? {
        let (kind, instance) = (row.get_ref(0)?, row.get_ref(1)?);
        let is_wanted = is_kind_wanted(kind.as_str()?, filter)
            && is_instance_wanted(
                instance.as_str()?,
                row.get_ref(2)?.as_str_or_null()?,
                filter,
                gateway,
            );
        if is_wanted {
            let (through, when) = (row.get::<_, i64>(3)?.cast_unsigned(), time(row.get(4)?));
            found = Some(Wanted {
                through: found.map_or(through, |found| found.through.max(through)),
                time: found.map_or(when, |found| found.time.max(when)),
            });
        }
    }
    Ok(found)
}

fn is_kind_wanted(text: &str, filter: &EventFilter) -> bool {
    if let Some(kind) = Kind::ALL.iter().find(|kind| kind.as_str() == text) {
        return filter.wants_kind(*kind);
    }
    let is_meant = |class: EventClass| match CLASSES.iter().find(|(_, name)| *name == text) {
        Some((named, _)) => *named == class,
        // Of any, or of a kind that only a later version knows.
        None => true,
    };
    EventClass::ALL
        .into_iter()
        .any(|class| is_meant(class) && filter.wants_class(class))
}

fn is_instance_wanted(
    instance: &str,
    labels: Option<&str>,
    filter: &EventFilter,
    gateway: &GatewayName,
) -> bool {
    match instance {
        ANY_INSTANCE => true,
        OWN => filter.wants_instance(gateway, None, &Labels::default()),
        name => InstanceName::new(name).map_or(true, |name| {
            filter.wants_instance(gateway, Some(&name), &labels_of_text(labels))
        }),
    }
}

fn class_text(class: EventClass) -> &'static str {
    CLASSES[class as usize].1
}
