//! Which run each daemon was in, so that one that did not restart keeps its generation when the gateway does.

use std::{collections::HashMap, sync::Arc, time::Duration};

use openvpn_fleet::{
    EventFilter, Fleet, Generation, Instance, Kind, KnownRun, Selector,
    journal::{Item, Start},
};
use openvpn_management::Cid;
use rusqlite::{Transaction, named_params};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::{State, micros, time};

/// How often what changes all the time is kept: the highest CID, and when a daemon was last heard of.
const INTERVAL: Duration = Duration::from_secs(5);
/// How long the changes of many daemons are gathered.
const GATHER: Duration = Duration::from_millis(20);

/// By name, with the address that it is true of.
pub(super) fn read(
    transaction: &Transaction<'_>,
) -> rusqlite::Result<HashMap<String, (String, KnownRun)>> {
    let mut statement = transaction.prepare("SELECT * FROM generations")?;
    let rows = statement.query_map([], |row| {
        let run = KnownRun {
            generation: Generation(row.get::<_, i64>("generation")?.cast_unsigned()),
            pid: row.get("pid")?,
            connected_time: row.get("connected_time")?,
            highest_cid: row
                .get::<_, Option<i64>>("highest_cid")?
                .map(|cid| Cid(cid.cast_unsigned())),
            observed: row.get::<_, Option<i64>>("observed")?.map(time),
        };
        Ok((row.get("instance")?, (row.get("address")?, run)))
    })?;
    rows.collect()
}

/// Keeps the runs of all daemons: at once where a generation begins, and now and then what changes all the time.
pub(crate) async fn keep(fleet: Fleet, state: State, stop: CancellationToken) {
    let journal = Arc::clone(fleet.journal());
    let filter = EventFilter {
        selector: Selector::all(),
        kinds: [
            Kind::InstanceGeneration,
            Kind::InstanceAttached,
            Kind::InstanceState,
        ]
        .into_iter()
        .collect(),
        ..EventFilter::everything()
    };
    let mut reader = journal.reader(Start::Oldest);
    let mut newest = journal.subscribe();
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut kept = HashMap::new();
    loop {
        let is_over = tokio::select! {
            () = stop.cancelled() => true,
            _ = ticks.tick() => false,
            () = async {
                loop {
                    // Set free by others than this one's events too: most are passed over.
                    let _ = newest.changed().await;
                    let batch = journal.read(&mut reader, 1_000, &filter);
                    if batch.items.iter().any(|item| matches!(item, Item::Event(_))) {
                        tokio::time::sleep(GATHER).await;
                        break;
                    }
                }
            } => false,
        };
        let changed: Vec<_> = fleet
            .instances()
            .iter()
            .filter_map(|instance| of(instance))
            .filter(|(name, known)| kept.get(name) != Some(known))
            .collect();
        if !changed.is_empty() {
            let rows = changed.clone();
            let writing = state.write_patiently(move |transaction| write(transaction, &rows));
            // What fails is tried again with the next.
            if writing.await.is_ok() {
                kept.extend(changed);
            }
        }
        if is_over {
            return;
        }
    }
}

type Row = (String, (String, KnownRun));

fn of(instance: &Instance) -> Option<Row> {
    let address = instance.spec().session.address.to_string();
    let run = instance.with_table(openvpn_fleet::Table::known_run)?;
    Some((instance.name().to_string(), (address, run)))
}

fn write(transaction: &Transaction<'_>, rows: &[Row]) -> rusqlite::Result<()> {
    let mut statement = transaction.prepare_cached(
        "INSERT OR REPLACE INTO generations
             (instance, address, generation, pid, connected_time, highest_cid, observed)
         VALUES (:instance, :address, :generation, :pid, :connected_time, :highest_cid, :observed)",
    )?;
    for (instance, (address, run)) in rows {
        statement.execute(named_params! {
            ":instance": instance,
            ":address": address,
            ":generation": run.generation.0.cast_signed(),
            ":pid": run.pid,
            ":connected_time": run.connected_time,
            ":highest_cid": run.highest_cid.map(|cid| cid.0.cast_signed()),
            ":observed": run.observed.map(micros),
        })?;
    }
    Ok(())
}
