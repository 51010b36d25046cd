//! Events and gaps as rows.

use std::{collections::HashMap, time::SystemTime};

use bytes::Bytes;
use openvpn_fleet::{
    ClientIdentity, EventClass, EventFilter, Gap, GapCause, GatewayName, Generation, InstanceName,
    Kind, KindSet, Labels,
};
use openvpn_management::Cid;
use ovfleet_proto::v1;
use prost::Message as _;
use rusqlite::{Connection, Row, Transaction, named_params};

use super::missing;
use crate::state::{micros, time};

/// What a row takes on disk beside the event itself: columns, indexes.
pub(super) const ROW_OVERHEAD: u64 = 128;

/// An event on its way to the disk.
#[derive(Debug)]
pub(super) struct EventRow {
    pub(super) sequence: u64,
    pub(super) observed: SystemTime,
    pub(super) kind: Kind,
    pub(super) instance: Option<InstanceName>,
    pub(super) labels: Labels,
    pub(super) half_open: bool,
    pub(super) wire: Bytes,
}

impl EventRow {
    /// What it counts for.
    pub(super) fn weight(&self) -> u64 {
        self.wire.len() as u64 + ROW_OVERHEAD
    }
}

/// A gap, and where it is.
#[derive(Debug, Clone)]
pub(super) struct GapRow {
    pub(super) sequence: u64,
    /// Events behind `sequence` are missing; otherwise the gap has that number itself.
    pub(super) hole: bool,
    /// The last number that it stands for.
    pub(super) through: u64,
    pub(super) cause: GapCause,
    pub(super) observed: SystemTime,
    pub(super) instance: Option<InstanceName>,
    pub(super) labels: Labels,
    pub(super) class: Option<EventClass>,
    pub(super) count: Option<u64>,
    pub(super) not_before: Option<SystemTime>,
    pub(super) not_after: Option<SystemTime>,
}

impl Default for GapRow {
    fn default() -> Self {
        Self {
            sequence: 0,
            hole: false,
            through: 0,
            cause: GapCause::Compacted,
            observed: SystemTime::UNIX_EPOCH,
            instance: None,
            labels: Labels::default(),
            class: None,
            count: None,
            not_before: None,
            not_after: None,
        }
    }
}

impl GapRow {
    /// A gap that has a number of its own.
    pub(super) fn new(gap: Gap, sequence: u64, observed: SystemTime) -> Self {
        let Gap {
            cause,
            // Always ours.
            gateway: _,
            instance,
            labels,
            class,
            count,
            not_before,
            not_after,
        } = gap;
        Self {
            sequence,
            hole: false,
            through: sequence,
            cause,
            observed: not_after.unwrap_or(observed),
            instance,
            labels,
            class,
            count,
            not_before,
            not_after,
        }
    }

    /// Up to where something that `filter` wants is missing behind `after`; none: nothing is.
    pub(super) fn wanted_through(
        &self,
        connection: &Connection,
        id: i64,
        after: u64,
        filter: &EventFilter,
        gateway: &GatewayName,
    ) -> rusqlite::Result<Option<u64>> {
        if self.hole && missing::is_known(connection, id)? {
            let wanted = missing::wanted(connection, (id, None), after, filter, gateway)?;
            return Ok(wanted.map(|wanted| wanted.through));
        }
        let gap = self.clone().into_gap(gateway.clone());
        Ok(filter.wants_gap(&gap).then_some(self.through))
    }

    pub(super) fn into_gap(self, gateway: GatewayName) -> Gap {
        Gap {
            cause: self.cause,
            gateway,
            instance: self.instance,
            labels: self.labels,
            class: self.class,
            count: self.count,
            not_before: self.not_before,
            not_after: self.not_after,
        }
    }
}

/// Numbers of label sets, as far as one transaction met them.
#[derive(Debug, Default)]
pub(super) struct LabelIds(HashMap<Labels, i64>);

impl LabelIds {
    pub(super) fn of(
        &mut self,
        transaction: &Transaction<'_>,
        labels: &Labels,
    ) -> rusqlite::Result<Option<i64>> {
        if labels.is_empty() {
            return Ok(None);
        }
        if let Some(id) = self.0.get(labels) {
            return Ok(Some(*id));
        }
        let text = labels_text(labels);
        transaction
            .prepare_cached("INSERT OR IGNORE INTO labels (text) VALUES (?1)")?
            .execute([&text])?;
        let id = transaction
            .prepare_cached("SELECT id FROM labels WHERE text = ?1")?
            .query_row([&text], |row| row.get(0))?;
        self.0.insert(labels.clone(), id);
        Ok(Some(id))
    }
}

fn labels_text(labels: &Labels) -> String {
    let map: serde_json::Map<_, _> = labels
        .iter()
        .map(|(key, value)| (key.to_owned(), value.into()))
        .collect();
    serde_json::Value::Object(map).to_string()
}

pub(super) fn labels_of_text(text: Option<&str>) -> Labels {
    let map: std::collections::BTreeMap<String, String> = text
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    Labels::from(map)
}

pub(super) fn insert_event(
    transaction: &Transaction<'_>,
    event: &EventRow,
    labels: Option<i64>,
    age: i64,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "INSERT INTO events (sequence, observed, age, class, kind, instance, labels, half_open, wire)
             VALUES (:sequence, :observed, :age, :class, :kind, :instance, :labels, :half_open, :wire)",
        )?
        .execute(named_params! {
            ":sequence": event.sequence.cast_signed(),
            ":observed": micros(event.observed),
            ":age": age,
            ":class": class_number(event.kind.class()),
            ":kind": event.kind.as_str(),
            ":instance": event.instance.as_ref().map(InstanceName::as_str),
            ":labels": labels,
            ":half_open": event.half_open,
            ":wire": &event.wire[..],
        })?;
    Ok(())
}

pub(super) fn insert_gap(
    transaction: &Transaction<'_>,
    gap: &GapRow,
    labels: Option<i64>,
    age: i64,
) -> rusqlite::Result<i64> {
    transaction
        .prepare_cached(
            "INSERT INTO gaps (id, sequence, hole, through, cause, observed, age, instance, labels, class, count, not_before,
                               not_after)
             VALUES ((SELECT max(coalesce((SELECT max(id) FROM gaps), 0), evicted) + 1 FROM classes WHERE class = 3),
                     :sequence, :hole, :through, :cause, :observed, :age, :instance, :labels, :class, :count,
                     :not_before, :not_after)",
        )?
        .execute(named_params! {
            ":sequence": gap.sequence.cast_signed(),
            ":hole": gap.hole,
            ":through": gap.through.cast_signed(),
            ":cause": cause_text(gap.cause),
            ":observed": micros(gap.observed),
            ":age": age,
            ":instance": gap.instance.as_ref().map(InstanceName::as_str),
            ":labels": labels,
            ":class": gap.class.map(class_number),
            ":count": gap.count.map(u64::cast_signed),
            ":not_before": gap.not_before.map(micros),
            ":not_after": gap.not_after.map(micros),
        })?;
    Ok(transaction.last_insert_rowid())
}

/// What [`read_gap`] reads; the rest of the query is its caller's.
pub(super) const GAP_COLUMNS: &str = "gaps.id, sequence, hole, through, cause, observed, instance, text, class, \
                                      count, not_before, not_after FROM gaps LEFT JOIN labels ON labels.id = gaps.labels";

pub(super) fn read_gap(row: &Row<'_>) -> rusqlite::Result<(i64, GapRow)> {
    let text: Option<String> = row.get("text")?;
    let cause: String = row.get("cause")?;
    let gap = GapRow {
        sequence: row.get::<_, i64>("sequence")?.cast_unsigned(),
        hole: row.get("hole")?,
        through: row.get::<_, i64>("through")?.cast_unsigned(),
        cause: CAUSES
            .into_iter()
            .find(|known| cause_text(*known) == cause)
            // Of a cause that only a later version knows: something is missing, for sure.
            .unwrap_or(GapCause::Compacted),
        observed: time(row.get("observed")?),
        instance: instance(row.get("instance")?),
        labels: labels_of_text(text.as_deref()),
        class: row
            .get::<_, Option<u8>>("class")?
            .and_then(|class| EventClass::ALL.get(usize::from(class)).copied()),
        count: row.get::<_, Option<i64>>("count")?.map(i64::cast_unsigned),
        not_before: row.get::<_, Option<i64>>("not_before")?.map(time),
        not_after: row.get::<_, Option<i64>>("not_after")?.map(time),
    };
    Ok((row.get("id")?, gap))
}

fn instance(name: Option<String>) -> Option<InstanceName> {
    name.and_then(|name| InstanceName::new(&name).ok())
}

pub(super) const fn class_number(class: EventClass) -> i64 {
    match class {
        EventClass::Lifecycle => 0,
        EventClass::Log => 1,
        EventClass::Raw => 2,
    }
}

const CAUSES: [GapCause; 5] = [
    GapCause::Compacted,
    GapCause::Unobserved,
    GapCause::GatewayRestarted,
    GapCause::JournalReplaced,
    GapCause::RateCapped,
];

const fn cause_text(cause: GapCause) -> &'static str {
    match cause {
        GapCause::Compacted => "COMPACTED",
        GapCause::Unobserved => "UNOBSERVED",
        GapCause::GatewayRestarted => "GATEWAY_RESTARTED",
        GapCause::JournalReplaced => "JOURNAL_REPLACED",
        GapCause::RateCapped => "RATE_CAPPED",
    }
}

/// An event as a filter sees it: what `EventFilter::wants` looks at of one in memory.
pub(super) struct Stored {
    pub(super) sequence: u64,
    kind: Option<Kind>,
    instance: Option<InstanceName>,
    labels: Labels,
    half_open: bool,
    pub(super) wire: Bytes,
}

/// What [`Stored::read`] reads; the rest of the query is its caller's.
pub(super) const EVENT_COLUMNS: &str = "sequence, kind, instance, text, half_open, wire FROM events \
                                        LEFT JOIN labels ON labels.id = events.labels";

impl Stored {
    pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let (kind, text) = (row.get_ref("kind")?, row.get_ref("text")?);
        let kind = kind.as_str()?;
        Ok(Self {
            sequence: row.get::<_, i64>("sequence")?.cast_unsigned(),
            kind: Kind::ALL
                .iter()
                .copied()
                .find(|known| known.as_str() == kind),
            instance: instance(row.get("instance")?),
            labels: labels_of_text(text.as_str_or_null()?),
            half_open: row.get("half_open")?,
            wire: Bytes::copy_from_slice(row.get_ref("wire")?.as_blob()?),
        })
    }

    /// Whether `filter` shows it: the same as for the event in memory.
    pub(super) fn is_wanted(&self, filter: &EventFilter, gateway: &GatewayName) -> bool {
        let is_kind_wanted = match self.kind {
            Some(kind) => filter.kinds.contains(kind),
            // A later version wrote it: for who takes everything.
            None => filter.kinds == KindSet::all(),
        };
        is_kind_wanted
            && filter.wants_instance(gateway, self.instance.as_ref(), &self.labels)
            && (filter.clients.is_empty() || self.is_client_wanted(filter, gateway))
    }

    fn is_client_wanted(&self, filter: &EventFilter, gateway: &GatewayName) -> bool {
        // As it is stored, it is one element of a batch.
        let Ok(batch) = v1::EventBatch::decode(self.wire.clone()) else {
            return false;
        };
        let client = batch
            .events
            .into_iter()
            .next()
            .and_then(|event| event.client);
        let (Some(client), Some(instance)) = (client, &self.instance) else {
            return false;
        };
        let Some(named) = &client.r#ref else {
            return false;
        };
        let Ok(generation) = named.generation.parse() else {
            return false;
        };
        let identity = ClientIdentity {
            instance,
            generation: Generation(generation),
            cid: Cid(named.cid),
            common_name: exact(&client.common_name, &client.common_name_raw),
            username: exact(&client.username, &client.username_raw),
            real_address: client.real_address.as_bytes(),
            virtual_address: client.virtual_address.as_bytes(),
            virtual_ipv6_address: client.virtual_ipv6_address.as_bytes(),
            half_open: self.half_open,
        };
        filter.clients.matches(gateway, &identity)
    }
}

fn exact<'a>(text: &'a str, raw: &'a Bytes) -> &'a [u8] {
    if raw.is_empty() { text.as_bytes() } else { raw }
}
