//! The fleet: every instance, by name.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use dashmap::DashMap;
use openvpn_session::{Condition, ConditionChange, Moment, Observation, Observer as _, Pacer};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, error, info_span};

use crate::action::{
    ActionContext, ActionError, KillReport, KillRequest, SignalReport, SignalRequest,
};
use crate::client::Interner;
use crate::command::set_verbs_back;
use crate::event::{Detail, Event, Inventory};
use crate::instance::Instance;
use crate::journal::{Journal, JournalConfig};
use crate::keeper::keep_session;
use crate::ledger::Ledger;
use crate::name::{CallerName, GatewayName, InstanceName, InstanceUid, Labels, RequestId};
use crate::observer::InstanceObserver;
use crate::requests::Requests;
use crate::selector::{InstancePath, Selector};
use crate::spec::InstanceSpec;

/// How long a session may take to end when its instance is removed or changed.
const SESSION_END_MAX: Duration = Duration::from_secs(2);

/// What a fleet needs to know.
#[derive(Debug, Clone)]
pub struct FleetConfig {
    /// Name of this gateway.
    pub gateway: GatewayName,
    /// How much of what happens is kept.
    pub journal: JournalConfig,
}

/// Every instance, by name. Cheap to clone; sessions end with the last clone.
#[derive(Debug, Clone)]
pub struct Fleet {
    pub(crate) shared: Arc<Shared>,
    /// Ends the sessions when the last handle is dropped: actions under way hold `shared`, but not this.
    _guard: Arc<tokio_util::sync::DropGuard>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) gateway: GatewayName,
    pub(crate) journal: Arc<Journal>,
    pub(crate) instances: DashMap<InstanceName, Arc<Instance>>,
    pub(crate) requests: Requests,
    ledger: Option<Arc<dyn Ledger>>,
    interner: Arc<Interner>,
    pacer: Arc<Pacer>,
    /// The sessions' tasks by instance. Locked to look up or replace, never across an await.
    sessions: Mutex<HashMap<InstanceName, SessionTask>>,
    /// One change of the set of instances at a time.
    changing: tokio::sync::Mutex<()>,
    /// Rises when an instance joins, leaves, or changes its spec.
    membership: watch::Sender<u64>,
    next_uid: AtomicU64,
    pub(crate) tasks: TaskTracker,
    pub(crate) cancel: CancellationToken,
}

#[derive(Debug)]
struct SessionTask {
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

/// What a change of the set of instances did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Instances that joined.
    pub added: Vec<InstanceName>,
    /// Instances whose spec changed.
    pub changed: Vec<InstanceName>,
    /// Instances that left.
    pub removed: Vec<InstanceName>,
}

/// Two specs have the same name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there are two instances named {instance}")]
pub struct NameClash {
    /// Which name.
    pub instance: InstanceName,
}

/// What a selector means now.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// The instances, in order of name.
    pub instances: Vec<Arc<Instance>>,
    /// Names that were asked for and do not exist, in order.
    pub unknown: Vec<InstancePath>,
}

impl Fleet {
    /// A fleet without instances.
    #[must_use]
    pub fn new(config: &FleetConfig) -> Self {
        Self::with_ledger(config, None)
    }

    /// The same, with a place for what must outlive the process.
    #[must_use]
    pub fn with_ledger(config: &FleetConfig, ledger: Option<Arc<dyn Ledger>>) -> Self {
        let cancel = CancellationToken::new();
        let shared = Shared {
            gateway: config.gateway.clone(),
            journal: Arc::new(Journal::new(config.gateway.clone(), &config.journal)),
            instances: DashMap::new(),
            requests: Requests::new(ledger.clone()),
            ledger,
            interner: Arc::default(),
            pacer: Arc::new(Pacer::new()),
            sessions: Mutex::default(),
            changing: tokio::sync::Mutex::new(()),
            membership: watch::Sender::new(0),
            next_uid: AtomicU64::new(crate::client::micros(SystemTime::now())),
            tasks: TaskTracker::new(),
            cancel: cancel.clone(),
        };
        Self {
            shared: Arc::new(shared),
            _guard: Arc::new(cancel.drop_guard()),
        }
    }

    /// Name of this gateway.
    #[must_use]
    pub fn gateway(&self) -> &GatewayName {
        &self.shared.gateway
    }

    /// What happened.
    #[must_use]
    pub fn journal(&self) -> &Arc<Journal> {
        &self.shared.journal
    }

    /// Makes these the instances of the fleet: adds what is new, removes what is missing, and begins a new session where
    /// what the session needs to know changed. Sessions of others go on untouched. Those that are paused have none.
    ///
    /// # Errors
    /// [`NameClash`]; nothing was changed then.
    pub async fn set_instances(&self, specs: Vec<InstanceSpec>) -> Result<Changes, NameClash> {
        let mut names = HashSet::new();
        if let Some(twice) = specs.iter().find(|spec| !names.insert(spec.name.clone())) {
            return Err(NameClash {
                instance: twice.name.clone(),
            });
        }
        let shared = &self.shared;
        let _changing = shared.changing.lock().await;
        let mut changes = Changes::default();
        let mut gone: Vec<InstanceName> = shared
            .instances
            .iter()
            .map(|entry| entry.key().clone())
            .filter(|name| !names.contains(name))
            .collect();
        gone.sort();
        for name in gone {
            shared.remove(&name).await;
            changes.removed.push(name);
        }
        for spec in specs {
            let known = shared
                .instances
                .get(&spec.name)
                .map(|entry| Arc::clone(entry.value()));
            match known {
                None => {
                    changes.added.push(spec.name.clone());
                    shared.add(spec);
                }
                Some(instance) if *instance.spec() != spec => {
                    changes.changed.push(spec.name.clone());
                    shared.change(&instance, spec).await;
                }
                Some(_) => {}
            }
        }
        if changes != Changes::default() {
            shared.membership.send_modify(|revision| *revision += 1);
        }
        Ok(changes)
    }

    /// One instance.
    #[must_use]
    pub fn instance(&self, name: &str) -> Option<Arc<Instance>> {
        self.shared
            .instances
            .get(name)
            .map(|entry| Arc::clone(entry.value()))
    }

    /// Every instance, in order of name.
    #[must_use]
    pub fn instances(&self) -> Vec<Arc<Instance>> {
        self.shared.instances()
    }

    /// What a selector means now; an empty one means every instance.
    #[must_use]
    pub fn select(&self, selector: &Selector) -> Selection {
        self.shared.select(selector)
    }

    /// Tells when instances joined, left, or changed their spec.
    #[must_use]
    pub fn membership(&self) -> watch::Receiver<u64> {
        self.shared.membership.subscribe()
    }

    /// Adds an event of the gateway itself to the journal.
    pub fn record(&self, detail: Detail) {
        self.shared.record(detail);
    }

    /// Ends clients, and nobody else.
    ///
    /// The action runs on if the caller stops waiting for it; cancelling its token ends what is not yet sent.
    ///
    /// # Errors
    /// [`ActionError`]: nothing was sent.
    pub async fn kill(
        &self,
        request: KillRequest,
        context: ActionContext,
    ) -> Result<Arc<KillReport>, ActionError> {
        crate::kill::kill(&self.shared, request, context).await
    }

    /// Sends a signal to daemons.
    ///
    /// The action runs on if the caller stops waiting for it; cancelling its token ends what is not yet sent.
    ///
    /// # Errors
    /// [`ActionError`]: nothing was sent.
    pub async fn signal(
        &self,
        request: SignalRequest,
        context: ActionContext,
    ) -> Result<Arc<SignalReport>, ActionError> {
        crate::signal::signal(&self.shared, request, context).await
    }

    /// The action of that id: the caller's own, or else the newest.
    #[must_use]
    pub fn action(
        &self,
        caller: &CallerName,
        request_id: &RequestId,
    ) -> Option<crate::action::Action> {
        self.shared.requests.action(caller, request_id)
    }

    /// Actions, newest first: at most `limit`, of those numbered below `before` if given.
    #[must_use]
    pub fn actions(&self, before: Option<u64>, limit: usize) -> Vec<crate::action::Action> {
        self.shared.requests.actions(before, limit)
    }

    /// Ends every session and action, once what was to be undone later is; waits at most `grace` for them.
    pub async fn shutdown(&self, grace: Duration) {
        let end = Instant::now() + grace;
        // While there are sessions to say it on.
        let undone = timeout_at(end, set_verbs_back(&self.shared)).await;
        self.shared.cancel.cancel();
        self.shared.tasks.close();
        let ended = timeout_at(end, self.shared.tasks.wait()).await;
        if undone.and(ended).is_err() {
            error!(tasks = self.shared.tasks.len(), "tasks did not end in time");
        }
    }
}

impl Shared {
    pub(crate) fn instances(&self) -> Vec<Arc<Instance>> {
        let mut instances: Vec<_> = self
            .instances
            .iter()
            .map(|entry| Arc::clone(entry.value()))
            .collect();
        instances.sort_by(|a, b| a.name().cmp(b.name()));
        instances
    }

    pub(crate) fn select(&self, selector: &Selector) -> Selection {
        let labelled = |instance: &Arc<Instance>| selector.labels.matches(&instance.labels());
        if selector.names.is_empty() {
            let mut instances = self.instances();
            instances.retain(labelled);
            return Selection {
                instances,
                unknown: Vec::new(),
            };
        }
        let mut selection = Selection::default();
        for path in &selector.names {
            let known = self
                .instances
                .get(&path.instance)
                .map(|entry| Arc::clone(entry.value()));
            match known.filter(|_| {
                path.gateway
                    .as_ref()
                    .is_none_or(|gateway| *gateway == self.gateway)
            }) {
                None => selection.unknown.push(path.clone()),
                Some(instance) if labelled(&instance) => selection.instances.push(instance),
                Some(_) => {}
            }
        }
        selection.instances.sort_by(|a, b| a.name().cmp(b.name()));
        selection.instances.dedup_by(|a, b| a.name() == b.name());
        selection.unknown.sort();
        selection.unknown.dedup();
        selection
    }

    pub(crate) fn record(&self, detail: Detail) -> u64 {
        self.journal.append(Event {
            gateway: self.gateway.clone(),
            instance: None,
            labels: Labels::default(),
            generation: None,
            sequence: 0,
            observed: SystemTime::now(),
            daemon_time: None,
            inferred: None,
            client: None,
            detail,
        })
    }

    fn record_inventory(&self, instance: &Instance, detail: fn(Inventory) -> Detail) {
        let spec = instance.spec();
        self.journal.append(Event {
            gateway: self.gateway.clone(),
            instance: Some(instance.name().clone()),
            labels: spec.labels.clone(),
            generation: instance.with_table(|table| table.generation()),
            sequence: 0,
            observed: SystemTime::now(),
            daemon_time: None,
            inferred: None,
            client: None,
            detail: detail(Inventory {
                address: spec.session.address.to_string(),
                uid: instance.uid(),
            }),
        });
    }

    fn add(&self, spec: InstanceSpec) {
        let uid = InstanceUid::new(self.next_uid.fetch_add(1, Ordering::Relaxed));
        let instance = Arc::new(Instance::new(self.gateway.clone(), uid, spec));
        let address = instance.spec().session.address.to_string();
        let known = self.ledger.as_ref();
        if let Some(run) = known.and_then(|ledger| ledger.take_run(instance.name(), &address)) {
            instance.update(|table| table.restore(&run));
        }
        self.instances
            .insert(instance.name().clone(), Arc::clone(&instance));
        self.record_inventory(&instance, Detail::Added);
        self.begin(&instance);
    }

    async fn remove(&self, name: &InstanceName) {
        self.end_session(name).await;
        if let Some((_, instance)) = self.instances.remove(name) {
            self.record_inventory(&instance, Detail::Removed);
        }
    }

    async fn change(&self, instance: &Arc<Instance>, spec: InstanceSpec) {
        let old = instance.spec();
        let is_same_session = old.session == spec.session && old.paused == spec.paused;
        let is_same_daemon = old.session.address == spec.session.address;
        if is_same_session {
            instance.set_spec(spec);
            return;
        }
        self.end_session(instance.name()).await;
        instance.set_spec(spec);
        if !is_same_daemon {
            instance.update(|table| table.memory.doubt_generation());
        }
        self.begin(instance);
    }

    /// Begins the session, or says why there is none.
    fn begin(&self, instance: &Arc<Instance>) {
        let Some(reason) = instance.spec().paused.clone() else {
            self.begin_session(instance);
            return;
        };
        let mut observer = self.observer(instance);
        if instance.with_table(|table| table.memory.is_greeted()) {
            // Its session had to be cut off before it could say so.
            let reason = reason.clone();
            observer.observe(Observation::Detached { reason }, Moment::now());
        }
        let change = ConditionChange {
            condition: Condition::Paused,
            reason,
            next_attempt: None,
        };
        observer.observe(Observation::Condition(change), Moment::now());
    }

    fn observer(&self, instance: &Arc<Instance>) -> InstanceObserver {
        InstanceObserver {
            instance: Arc::clone(instance),
            journal: Arc::clone(&self.journal),
            interner: Arc::clone(&self.interner),
        }
    }

    fn begin_session(&self, instance: &Arc<Instance>) {
        let cancel = self.cancel.child_token();
        let keep = keep_session(
            Arc::clone(instance),
            self.observer(instance),
            Arc::clone(&self.pacer),
            cancel.clone(),
        );
        let span = info_span!("session", instance = %instance.name());
        let task = self.tasks.spawn(keep.instrument(span));
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.insert(instance.name().clone(), SessionTask { cancel, task });
    }

    async fn end_session(&self, name: &InstanceName) {
        let session = {
            let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
            sessions.remove(name)
        };
        let Some(SessionTask { cancel, mut task }) = session else {
            return;
        };
        cancel.cancel();
        if timeout(SESSION_END_MAX, &mut task).await.is_err() {
            error!(instance = %name, "the session did not end in time");
            task.abort();
        }
    }
}
