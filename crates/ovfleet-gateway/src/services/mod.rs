//! The gRPC services: authorize, convert in, one call of the fleet, convert out.

mod control;
mod deadline;
mod events;
mod fleet;
mod frames;
mod instance;
mod inventory;
mod source;
mod streams;
mod totals;
mod watch;
mod wire;

use std::{sync::Arc, time::SystemTime};

use openvpn_fleet::{AsOf, Fleet, Instance, InstancePath};
use ovfleet_proto::v1::{
    self, control_service_server::ControlServiceServer, fleet_service_server::FleetServiceServer,
    instance_service_server::InstanceServiceServer,
    inventory_service_server::InventoryServiceServer,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Status, service::Routes};

use self::{
    control::Control, events::Events, fleet::FleetQueries, instance::Instances,
    inventory::InventoryChanges, wire::EventServer,
};
use crate::{
    caller::Caller,
    convert,
    cursor::Cursors,
    inventory::Inventory,
    state::{Actions, Calls, EventStore, State},
    status,
};

pub(crate) use self::{streams::Streams, wire::batch_element};

/// Full names of our services, for health and reflection.
pub(crate) const SERVICE_NAMES: [&str; 5] = [
    v1::fleet_service_server::SERVICE_NAME,
    v1::event_service_server::SERVICE_NAME,
    v1::control_service_server::SERVICE_NAME,
    v1::instance_service_server::SERVICE_NAME,
    v1::inventory_service_server::SERVICE_NAME,
];

/// What the services share.
#[derive(Debug)]
pub(crate) struct Context {
    /// The fleet.
    pub(crate) fleet: Fleet,
    /// Changes which instances there are.
    pub(crate) inventory: Inventory,
    /// Writes and reads the tokens that callers keep.
    pub(crate) cursors: Arc<Cursors>,
    /// Bytes of the rows of one page.
    pub(crate) rows_bytes_max: usize,
    /// What outlives the process.
    pub(crate) state: State,
    /// The journal on disk; `None` without a state directory.
    pub(crate) store: Option<EventStore>,
    /// Actions on disk; `None` without a state directory.
    pub(crate) actions: Option<Actions>,
    /// Single calls that change something.
    pub(crate) calls: Calls,
    /// Open streams.
    pub(crate) streams: Streams,
    /// Cancelled when the gateway is told to end: from then on it is not ready,
    /// and takes no call that changes something.
    pub(crate) leaving: CancellationToken,
    /// Tasks of open streams; they end soon after `drain`.
    pub(crate) tasks: TaskTracker,
    /// Cancelled when the gateway is going away.
    pub(crate) drain: CancellationToken,
}

impl Context {
    /// This moment, for an answer whose first row is not read yet.
    fn now(&self) -> AsOf {
        AsOf {
            position: self.fleet.journal().newest(),
            time: SystemTime::now(),
        }
    }

    /// That `caller` may change something, and that it is not too late to begin.
    fn admit_change(&self, caller: &Caller) -> Result<(), Status> {
        let allowed = caller.require_control();
        allowed.map_err(|_| status::read_only_listener())?;
        if self.leaving.is_cancelled() {
            return Err(status::shutting_down());
        }
        Ok(())
    }

    /// The instance of that name.
    fn find(&self, path: &InstancePath) -> Result<Arc<Instance>, Status> {
        let own = self.fleet.gateway();
        Some(path)
            .filter(|path| path.gateway.as_ref().is_none_or(|gateway| gateway == own))
            .and_then(|path| self.fleet.instance(path.instance.as_str()))
            .ok_or_else(|| status::instance_unknown(path))
    }

    fn as_of(&self, as_of: AsOf) -> v1::AsOf {
        convert::action::as_of(as_of, &self.cursors)
    }
}

/// Adds our services to `routes`.
pub(crate) fn add_to(routes: Routes, context: &Arc<Context>, request_bytes_max: usize) -> Routes {
    routes
        .add_service(
            FleetServiceServer::new(FleetQueries::new(Arc::clone(context)))
                .max_decoding_message_size(request_bytes_max),
        )
        .add_service(EventServer::new(
            Arc::new(Events::new(Arc::clone(context))),
            request_bytes_max,
        ))
        .add_service(
            ControlServiceServer::new(Control::new(Arc::clone(context)))
                .max_decoding_message_size(request_bytes_max),
        )
        .add_service(
            InstanceServiceServer::new(Instances::new(Arc::clone(context)))
                .max_decoding_message_size(request_bytes_max),
        )
        .add_service(
            InventoryServiceServer::new(InventoryChanges::new(Arc::clone(context)))
                .max_decoding_message_size(request_bytes_max),
        )
}
