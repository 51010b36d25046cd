//! WatchFleet: the fleet now, then changes, the latest of each key.
//!
//! A watch looks at the revisions of tables every `min_interval` and copies the
//! rows that changed since it last looked. Between two looks it holds no lock
//! and costs the writers nothing.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, SystemTime},
};

use openvpn_fleet::{
    ClientFilter, Generation, Instance, InstanceName, RemovedReason, Selector, Table,
};
use openvpn_management::Cid;
use ovfleet_proto::v1::{
    self, ClientDelete, DeleteReason, FleetChanges, InstanceDelete, WatchDrain, WatchFleetRequest,
    WatchFleetResponse, WatchHeartbeat, WatchSynced, watch_fleet_response::Frame,
};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tonic::Status;

use super::{
    Context,
    frames::{FrameSender, FrameStream, NotSent, frame_channel},
    streams::StreamSlot,
};
use crate::{
    convert::{
        self, request,
        row::{self, Origin},
    },
    status,
};

/// Time between two looks when the caller does not say.
const INTERVAL_DEFAULT: Duration = Duration::from_secs(1);
/// The shortest time between two looks.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// The longest: a caller learns within it that an instance is gone.
const INTERVAL_MAX: Duration = Duration::from_secs(3600);
/// How long a watch may be silent.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);
/// Rows after which a frame is sent.
const ROWS_PER_FRAME: usize = 500;
/// When a drained caller should come back.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Starts a watch in a task of its own.
pub(super) fn start(
    context: &Arc<Context>,
    request: WatchFleetRequest,
) -> Result<FrameStream<WatchFleetResponse>, Status> {
    let WatchFleetRequest {
        selector,
        filter,
        min_interval,
        once,
        instances_only,
        view,
    } = request;
    let selector = request::selector(selector)?;
    let filter = request::filter(filter)?;
    let full = request::is_full(view)?;
    let every = match min_interval
        .map(|span| request::span("min_interval", span))
        .transpose()?
    {
        None | Some(Duration::ZERO) => INTERVAL_DEFAULT,
        Some(every) if every < INTERVAL_MIN || every > INTERVAL_MAX => {
            return Err(status::invalid(
                "min_interval",
                "INTERVAL_INVALID",
                format!("{every:?} is not between {INTERVAL_MIN:?} and {INTERVAL_MAX:?}"),
            ));
        }
        Some(every) => every,
    };
    let slot = context.streams.open()?;
    let (frames, stream) = frame_channel();
    let watch = Watch {
        context: Arc::clone(context),
        selector,
        filter,
        clients: !instances_only,
        full,
        frames,
        seen: HashMap::new(),
        last_sent: Instant::now(),
        _slot: slot,
    };
    context.tasks.spawn(watch.run(every, once));
    Ok(stream)
}

/// One watch, from its start to its end.
struct Watch {
    context: Arc<Context>,
    selector: Selector,
    filter: ClientFilter,
    /// Clients are watched too.
    clients: bool,
    /// Clients are sent whole.
    full: bool,
    frames: FrameSender<WatchFleetResponse>,
    /// What the caller was told, by instance.
    seen: HashMap<InstanceName, Seen>,
    last_sent: Instant,
    _slot: StreamSlot,
}

/// What the caller was told of an instance.
struct Seen {
    instance: Arc<Instance>,
    /// Revision of the table when it was last looked at.
    revision: u64,
    etag: Arc<str>,
    attached: bool,
    generation: Option<Generation>,
    clients: BTreeSet<Cid>,
}

impl Watch {
    async fn run(mut self, every: Duration, once: bool) {
        // However it ends, the caller has been told, or is gone.
        let _ = self.watch(every, once).await;
    }

    async fn watch(&mut self, every: Duration, once: bool) -> Result<(), NotSent> {
        let context = Arc::clone(&self.context);
        let as_of = context.now();
        self.look().await?;
        let synced = WatchSynced {
            as_of: Some(context.as_of(as_of)),
            unreachable: self.unreachable(),
        };
        self.send(Frame::Synced(synced)).await?;
        if once {
            return Ok(());
        }
        let mut tick = interval(every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.reset();
        let mut heartbeat = interval(HEARTBEAT_INTERVAL);
        loop {
            tokio::select! {
                () = self.frames.closed() => return Err(NotSent),
                () = context.drain.cancelled() => {
                    self.look().await?;
                    let retry_after = Some(convert::duration(RETRY_AFTER));
                    return self.send(Frame::Drain(WatchDrain { retry_after })).await;
                }
                _ = tick.tick() => self.look().await?,
                _ = heartbeat.tick() => {
                    if self.last_sent.elapsed() >= HEARTBEAT_INTERVAL {
                        let time = Some(convert::timestamp(SystemTime::now()));
                        self.send(Frame::Heartbeat(WatchHeartbeat { time })).await?;
                    }
                }
            }
        }
    }

    async fn send(&mut self, frame: Frame) -> Result<(), NotSent> {
        self.frames
            .send(WatchFleetResponse { frame: Some(frame) })
            .await?;
        self.last_sent = Instant::now();
        Ok(())
    }

    fn unreachable(&self) -> Vec<v1::Unreachable> {
        let selection = self.context.fleet.select(&self.selector);
        let now = SystemTime::now();
        let gateway = self.context.fleet.gateway();
        let unknown = selection
            .unknown
            .iter()
            .map(|path| row::unknown(gateway, path));
        selection
            .instances
            .iter()
            .filter_map(|instance| row::unreachable(instance, now))
            .chain(unknown)
            .collect()
    }

    /// Sends everything that is not as the caller was told.
    async fn look(&mut self) -> Result<(), NotSent> {
        let selected = self.context.fleet.select(&self.selector).instances;
        let mut changes = FleetChanges::default();
        self.forget_all_but(&selected, &mut changes);
        for instance in selected {
            self.look_at(&instance, &mut changes);
            while rows(&changes) >= ROWS_PER_FRAME {
                let frame = split(&mut changes);
                self.send(Frame::Changes(frame)).await?;
            }
        }
        if rows(&changes) > 0 {
            self.send(Frame::Changes(changes)).await?;
        }
        Ok(())
    }

    /// Takes back what the caller was told of instances that are not selected
    /// any more, or are others of the same name.
    fn forget_all_but(&mut self, selected: &[Arc<Instance>], changes: &mut FleetChanges) {
        let selected: BTreeMap<_, _> = selected
            .iter()
            .map(|instance| (instance.name(), instance))
            .collect();
        self.seen.retain(|name, seen| {
            let stays = selected
                .get(name)
                .is_some_and(|instance| instance.uid() == seen.instance.uid());
            if !stays {
                let reason = match self.context.fleet.instance(name.as_str()) {
                    Some(now) if now.uid() == seen.instance.uid() => DeleteReason::NoMatch,
                    _ => DeleteReason::InstanceRemoved,
                };
                if let Some(generation) = seen.generation {
                    let clients = std::mem::take(&mut seen.clients).into_iter();
                    let deletes =
                        clients.map(|cid| delete(&seen.instance, generation, cid, reason));
                    changes.deleted_clients.extend(deletes);
                }
                changes.deleted_instances.push(InstanceDelete {
                    gateway: seen.instance.gateway().to_string(),
                    instance: name.to_string(),
                });
            }
            stays
        });
    }

    fn look_at(&mut self, instance: &Arc<Instance>, changes: &mut FleetChanges) {
        let (_, etag) = instance.spec_and_etag();
        let known = self.seen.get(instance.name());
        if known.is_some_and(|seen| seen.revision == instance.revision() && seen.etag == etag) {
            return;
        }
        changes.instances.push(row::instance(instance));
        let seen = self
            .seen
            .entry(instance.name().clone())
            .or_insert_with(|| Seen {
                instance: Arc::clone(instance),
                revision: 0,
                etag: Arc::clone(&etag),
                attached: false,
                generation: None,
                clients: BTreeSet::new(),
            });
        seen.etag = etag;
        instance.with_table(|table| {
            if self.clients {
                look_at_clients(seen, table, &self.filter, self.full, changes);
            }
            seen.revision = table.revision();
            seen.attached = table.status().is_attached();
            seen.generation = table.generation();
        });
    }
}

fn look_at_clients(
    seen: &mut Seen,
    table: &Table,
    filter: &ClientFilter,
    full: bool,
    changes: &mut FleetChanges,
) {
    let instance = Arc::clone(&seen.instance);
    if let Some(old) = seen
        .generation
        .filter(|old| table.generation() != Some(*old))
    {
        let clients = std::mem::take(&mut seen.clients).into_iter();
        let deletes = clients.map(|cid| delete(&instance, old, cid, DeleteReason::Generation));
        changes.deleted_clients.extend(deletes);
    }
    let Some(origin) = Origin::of(&instance, table) else {
        return;
    };
    // Every row shows whether its instance is attached.
    let all = seen.attached != table.status().is_attached();
    for client in table.clients() {
        if !all && client.revision() <= seen.revision {
            continue;
        }
        let identity = client.identity(instance.name(), origin.generation);
        if filter.matches(instance.gateway(), &identity) {
            seen.clients.insert(client.cid());
            changes.clients.push(row::client(origin, client, full));
        } else if seen.clients.remove(&client.cid()) {
            let gone = delete(
                &instance,
                origin.generation,
                client.cid(),
                DeleteReason::NoMatch,
            );
            changes.deleted_clients.push(gone);
        }
    }
    let reasons: HashMap<Cid, RemovedReason> = table
        .removed_since(seen.revision)
        .into_iter()
        .flatten()
        .filter(|removed| removed.generation == origin.generation)
        .map(|removed| (removed.cid, removed.reason))
        .collect();
    seen.clients.retain(|cid| {
        let stays = table.client(*cid).is_some();
        if !stays {
            let reason = match reasons.get(cid) {
                Some(RemovedReason::Generation) => DeleteReason::Generation,
                Some(RemovedReason::Gone) | None => DeleteReason::Gone,
            };
            changes
                .deleted_clients
                .push(delete(&instance, origin.generation, *cid, reason));
        }
        stays
    });
}

fn delete(
    instance: &Instance,
    generation: Generation,
    cid: Cid,
    reason: DeleteReason,
) -> ClientDelete {
    ClientDelete {
        r#ref: Some(convert::client_ref(openvpn_fleet::ClientRef {
            gateway: instance.gateway().clone(),
            instance: instance.name().clone(),
            generation,
            cid,
        })),
        reason: reason.into(),
    }
}

fn rows(changes: &FleetChanges) -> usize {
    let FleetChanges {
        instances,
        clients,
        deleted_instances,
        deleted_clients,
    } = changes;
    instances.len() + clients.len() + deleted_instances.len() + deleted_clients.len()
}

/// Takes a frame's worth of rows: deletions first, so that a key that is
/// deleted and comes anew, comes last.
fn split(changes: &mut FleetChanges) -> FleetChanges {
    let mut left = ROWS_PER_FRAME;
    FleetChanges {
        deleted_clients: take(&mut changes.deleted_clients, &mut left),
        deleted_instances: take(&mut changes.deleted_instances, &mut left),
        instances: take(&mut changes.instances, &mut left),
        clients: take(&mut changes.clients, &mut left),
    }
}

fn take<T>(rows: &mut Vec<T>, left: &mut usize) -> Vec<T> {
    let count = rows.len().min(*left);
    *left -= count;
    rows.drain(..count).collect()
}
