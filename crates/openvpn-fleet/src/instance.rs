//! One instance: its spec, its table, and the handle to its session.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Instant, SystemTime};

use openvpn_session::{
    Answer, Call, CallError, Listener, Moment, NotSent, Reception, SessionHandle,
};
use tokio::sync::Notify;

use crate::command::VerbReset;
use crate::name::{GatewayName, InstanceName, InstanceUid, Labels};
use crate::selector::InstancePath;
use crate::spec::InstanceSpec;
use crate::table::Table;

/// One OpenVPN daemon with its management socket.
#[derive(Debug)]
pub struct Instance {
    gateway: GatewayName,
    name: InstanceName,
    uid: InstanceUid,
    /// What was configured last, and its tag. Locked to copy or replace the pointers.
    spec: RwLock<(Arc<InstanceSpec>, Arc<str>)>,
    /// What is known. Written by the session's task for each thing it learns, by kills for their marks; never held
    /// across an await.
    table: RwLock<Table>,
    /// The table's revision, to see without a lock whether there is anything new.
    revision: AtomicU64,
    /// Times that the session's task panicked.
    panics: AtomicU64,
    /// Wakes those who wait for something to become true of the table.
    changed: Notify,
    /// The level of `verb` that will be set again. Locked to replace it.
    pub(crate) verb_reset: Mutex<Option<VerbReset>>,
    /// The present session. Locked to copy or replace it; `None` until there is a first.
    handle: RwLock<Option<SessionHandle>>,
}

impl Instance {
    pub(crate) fn new(gateway: GatewayName, uid: InstanceUid, spec: InstanceSpec) -> Self {
        let table = Table::new(
            gateway.clone(),
            spec.name.clone(),
            spec.labels.clone(),
            spec.session.hold,
            spec.session.clients_max,
            SystemTime::now(),
        );
        Self {
            gateway,
            name: spec.name.clone(),
            uid,
            spec: RwLock::new(tagged(spec)),
            revision: AtomicU64::new(table.revision()),
            table: RwLock::new(table),
            panics: AtomicU64::new(0),
            changed: Notify::new(),
            verb_reset: Mutex::default(),
            handle: RwLock::new(None),
        }
    }

    /// The gateway that keeps the session.
    #[must_use]
    pub fn gateway(&self) -> &GatewayName {
        &self.gateway
    }

    /// Its name on that gateway.
    #[must_use]
    pub fn name(&self) -> &InstanceName {
        &self.name
    }

    /// Its name with that of its gateway.
    #[must_use]
    pub fn path(&self) -> InstancePath {
        InstancePath {
            gateway: Some(self.gateway.clone()),
            instance: self.name.clone(),
        }
    }

    /// New when an instance is removed and one of the same name is added.
    #[must_use]
    pub fn uid(&self) -> InstanceUid {
        self.uid
    }

    /// Times that its session's task failed, for a bug of ours, and was begun anew.
    #[must_use]
    pub fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    pub(crate) fn count_panic(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }

    /// What was configured.
    #[must_use]
    pub fn spec(&self) -> Arc<InstanceSpec> {
        self.spec_and_etag().0
    }

    /// What was configured, and its [`InstanceSpec::etag`], made once because every read shows it.
    #[must_use]
    pub fn spec_and_etag(&self) -> (Arc<InstanceSpec>, Arc<str>) {
        self.spec
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Its labels.
    #[must_use]
    pub fn labels(&self) -> Labels {
        self.spec().labels.clone()
    }

    /// Reads the table under its lock: `read` must be quick.
    pub fn with_table<T>(&self, read: impl FnOnce(&Table) -> T) -> T {
        read(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The table's revision, without its lock. Changes of the spec count too.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// Sends one command to the daemon.
    ///
    /// # Errors
    /// [`CallError`]; with no session yet, [`NotSent::Closed`].
    pub async fn call(&self, call: Call) -> Result<Answer, CallError> {
        self.handle()?.call(call).await
    }

    /// Waits until the table was compared with a status that the daemon was asked for at `not_before` or later, and
    /// gives the moment it was asked.
    ///
    /// # Errors
    /// [`CallError`]; with no session yet, [`NotSent::Closed`].
    pub async fn refresh(
        &self,
        not_before: Instant,
        deadline: Instant,
    ) -> Result<Moment, CallError> {
        self.handle()?.refresh(not_before, deadline).await
    }

    /// The same for what cannot wait until refreshes have their turn, five times a second.
    ///
    /// # Errors
    /// As for [`refresh`](Self::refresh).
    pub async fn refresh_at_once(
        &self,
        not_before: Instant,
        deadline: Instant,
    ) -> Result<Moment, CallError> {
        self.handle()?.refresh_at_once(not_before, deadline).await
    }

    /// Hears what the daemon says from now on, in its own words; `None` while no session is greeted.
    #[must_use]
    pub fn listen(&self) -> Option<(Reception, Listener)> {
        self.handle().ok()?.tap().listen()
    }

    /// Tries to connect again at once.
    pub fn retry_now(&self) {
        if let Ok(handle) = self.handle() {
            handle.retry_now();
        }
    }

    /// Waits until `ready` finds what it looks for in the table.
    ///
    /// Cancel safe: nothing is lost by dropping it.
    pub async fn wait_for<T>(&self, mut ready: impl FnMut(&Table) -> Option<T>) -> T {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Enlisted before looking, so that a change between looking and waiting is not missed.
            changed.as_mut().enable();
            if let Some(found) = self.with_table(&mut ready) {
                return found;
            }
            changed.await;
        }
    }

    /// Changes the table and wakes those who wait for that.
    pub(crate) fn update<T>(&self, change: impl FnOnce(&mut Table) -> T) -> T {
        let (result, revision) = {
            // A panic of a session leaves a table that the next one's synchronisation repairs.
            let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
            let result = change(&mut table);
            (result, table.revision())
        };
        if self.revision.swap(revision, Ordering::AcqRel) != revision {
            self.changed.notify_waiters();
        }
        result
    }

    pub(crate) fn set_spec(&self, spec: InstanceSpec) {
        let (spec, etag) = tagged(spec);
        *self.spec.write().unwrap_or_else(PoisonError::into_inner) = (Arc::clone(&spec), etag);
        self.update(|table| {
            table.labels = spec.labels.clone();
            table.hold = spec.session.hold;
            table.clients_max = spec.session.clients_max;
            table.bump_status();
        });
    }

    pub(crate) fn set_handle(&self, handle: SessionHandle) {
        *self.handle.write().unwrap_or_else(PoisonError::into_inner) = Some(handle);
    }

    fn handle(&self) -> Result<SessionHandle, CallError> {
        let handle = self.handle.read().unwrap_or_else(PoisonError::into_inner);
        handle.clone().ok_or(CallError::NotSent(NotSent::Closed))
    }
}

fn tagged(spec: InstanceSpec) -> (Arc<InstanceSpec>, Arc<str>) {
    let etag = spec.etag().into();
    (Arc::new(spec), etag)
}
