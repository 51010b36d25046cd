//! Which instances there are: from the file, from discovery, and from callers, while the gateway runs.
//!
//! ```text
//! InventoryService, SIGHUP, a changed file ──► requests ─┐
//! a directory changed ───────────────────────────────────┴─► keeper: check, keep, compose ─► the fleet
//! ```
//!
//! One task, the [`Keeper`], changes the set of instances, one change after the other. A change is checked completely,
//! then durable, and then in force; whoever asked for it may be gone by then.

mod compose;
mod error;
mod files;
mod keeper;
mod plan;
mod runtime;

use std::{collections::BTreeMap, sync::Arc};

use openvpn_fleet::{CallerName, Instance, InstanceName};
use openvpn_session::SessionConfig;
use ovfleet_proto::v1::InstanceDefinition;
use tokio::sync::{mpsc, oneshot, watch};

pub(crate) use self::{
    compose::SetAside,
    error::{InventoryError, Violation},
    keeper::Keeper,
    plan::{InstanceChange, Plan},
};

use crate::state::CallKey;

/// Requests that wait for the keeper; further callers wait for a place.
const REQUESTS_MAX: usize = 64;

/// Asks the keeper. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Inventory {
    requests: mpsc::Sender<Request>,
    view: watch::Receiver<Arc<View>>,
    reloads: watch::Receiver<Reloads>,
}

/// What became of reading the configuration again.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reloads {
    /// Times that what was read came into force.
    pub(crate) taken: u64,
    /// Times that it did not, and the old one stayed.
    pub(crate) refused: u64,
    /// The last one was refused: the files say something else than what is in force.
    pub(crate) is_last_refused: bool,
}

/// What reads show beside the instances themselves.
#[derive(Debug, Default)]
pub(crate) struct View {
    /// Where each instance is defined.
    places: BTreeMap<InstanceName, String>,
    /// What the API says of it.
    definitions: BTreeMap<InstanceName, InstanceDefinition>,
}

/// One thing to do, and where to say what became of it.
#[derive(Debug)]
struct Request {
    order: Order,
    /// Noted as done together with what the order changes in the registry.
    call: Option<CallKey>,
    reply: oneshot::Sender<Result<Done, InventoryError>>,
}

/// What the keeper can be told to do.
#[derive(Clone, Debug)]
pub(crate) enum Order {
    /// Add an instance.
    Create {
        definition: Box<InstanceDefinition>,
        validate_only: bool,
    },
    /// Change one that was created.
    Update {
        definition: Box<InstanceDefinition>,
        /// Fields of the definition that count; empty: those that are set.
        mask: Vec<String>,
        etag: String,
        validate_only: bool,
        force: bool,
    },
    /// Remove one that was created.
    Delete {
        name: InstanceName,
        etag: String,
        validate_only: bool,
        force: bool,
    },
    /// Take one out of service, or back into it.
    Pause {
        name: InstanceName,
        etag: String,
        /// Why it is out; `None`: it comes back.
        pause: Option<String>,
        validate_only: bool,
        force: bool,
    },
    /// Read the files again.
    Reload {
        cause: ReloadCause,
        validate_only: bool,
        force: bool,
    },
}

/// Who wants the files read again.
#[derive(Clone, Debug)]
pub(crate) enum ReloadCause {
    /// SIGHUP.
    Signal,
    /// They changed.
    FileChange,
    /// A caller.
    Caller(CallerName),
}

/// What became of an order.
#[derive(Debug)]
pub(crate) struct Done {
    /// The instance, where the order was about one that is there.
    pub(crate) instance: Option<Arc<Instance>>,
    /// How its daemon is reached, where that is new and no session of ours holds it.
    pub(crate) new_address: Option<Arc<SessionConfig>>,
    /// A restart does not forget it.
    pub(crate) is_durable: bool,
    /// What was deleted had not been in force.
    pub(crate) was_set_aside: bool,
    /// What a reload changed.
    pub(crate) plan: Plan,
    /// The definitions of what is set aside, in the order of the plan.
    pub(crate) set_aside: Vec<InstanceDefinition>,
}

impl Inventory {
    /// Has `order` carried out, whether or not the caller waits for it; what it changes in the registry is noted there
    /// as done by `call`.
    ///
    /// # Errors
    /// [`InventoryError`]: nothing was changed.
    pub(crate) async fn order(
        &self,
        order: Order,
        call: Option<CallKey>,
    ) -> Result<Done, InventoryError> {
        let (reply, done) = oneshot::channel();
        let request = Request { order, call, reply };
        let sent = self.requests.send(request).await;
        sent.map_err(|_| InventoryError::ShuttingDown)?;
        done.await.unwrap_or(Err(InventoryError::ShuttingDown))
    }

    /// What became of reading the configuration again, up to now.
    pub(crate) fn reloads(&self) -> Reloads {
        *self.reloads.borrow()
    }

    /// Where an instance is defined, and what the API says of it.
    pub(crate) fn definition(&self, name: &InstanceName) -> (String, Option<InstanceDefinition>) {
        let view = self.view.borrow();
        let place = view.places.get(name).cloned().unwrap_or_default();
        (place, view.definitions.get(name).cloned())
    }
}

impl std::fmt::Display for ReloadCause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Signal => f.write_str("SIGHUP"),
            Self::FileChange => f.write_str("a changed file"),
            Self::Caller(name) => write!(f, "{name}"),
        }
    }
}
