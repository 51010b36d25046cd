//! InventoryService: which instances there are.

use std::{sync::Arc, time::Duration};

use openvpn_fleet::{CallerName, InstanceName, InstancePath};
use openvpn_session::probe;
use ovfleet_proto::v1::{self, inventory_service_server::InventoryService};
use tonic::{Request, Response, Status};

use super::Context;
use crate::{
    caller::Caller,
    convert::{inventory as convert, request, row},
    inventory::{Done, Order, ReloadCause},
    status,
};

/// How long an address is looked at.
const PROBE_MAX: Duration = Duration::from_secs(3);
/// Longest reason of a pause, in bytes.
const REASON_BYTES_MAX: usize = 200;

/// The service.
#[derive(Debug)]
pub(crate) struct InventoryChanges {
    context: Arc<Context>,
}

impl InventoryChanges {
    pub(crate) const fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    /// Who asks, if it may change something.
    fn admit<T>(&self, request: &Request<T>) -> Result<CallerName, Status> {
        let caller = Caller::of(request);
        self.context.admit_change(&caller)?;
        Ok(caller.name().clone())
    }

    /// The name of an instance of this gateway.
    fn own(&self, name: &str) -> Result<InstanceName, Status> {
        let InstancePath { gateway, instance } = request::instance_path(name)?;
        let is_own = gateway
            .as_ref()
            .is_none_or(|gateway| gateway == self.context.fleet.gateway());
        let path = InstancePath {
            gateway,
            instance: instance.clone(),
        };
        is_own
            .then_some(instance)
            .ok_or_else(|| status::instance_unknown(&path))
    }

    async fn order(&self, order: Order) -> Result<Done, Status> {
        let done = self.context.inventory.order(order).await;
        done.map_err(|error| status::of_inventory(&error))
    }

    /// Looks what answers where `trial`, an order that only validates, would lead.
    async fn look(&self, trial: Order) -> Result<v1::Reachability, Status> {
        let session = self.order(trial).await?.new_address;
        let found = match session {
            // Here, and not in the keeper's task, which has other things to do.
            Some(session) => probe(&session, PROBE_MAX).await,
            None => openvpn_session::Probe::NotTried {
                reason: "it is the address that the instance has: see its condition".to_owned(),
            },
        };
        Ok(convert::reachability(found))
    }
}

/// Notes who changed what.
fn audit(caller: &CallerName, instance: &str, what: &str, validate_only: bool) {
    if !validate_only {
        tracing::info!(%caller, instance, "instance {what}");
    }
}

#[tonic::async_trait]
impl InventoryService for InventoryChanges {
    async fn create_instance(
        &self,
        request: Request<v1::CreateInstanceRequest>,
    ) -> Result<Response<v1::CreateInstanceResponse>, Status> {
        let caller = self.admit(&request)?;
        let v1::CreateInstanceRequest {
            instance,
            validate_only,
            check_reachable,
        } = request.into_inner();
        let definition = Box::new(instance.unwrap_or_default());
        let name = definition.name.clone();
        let order = |validate_only| Order::Create {
            definition: definition.clone(),
            validate_only,
        };
        let reachability = match check_reachable {
            true => Some(self.look(order(true)).await?),
            false => None,
        };
        let done = self.order(order(validate_only)).await?;
        audit(&caller, &name, "created", validate_only);
        let created = done.instance.filter(|_| !validate_only);
        Ok(Response::new(v1::CreateInstanceResponse {
            instance: created.map(|instance| row::instance(&instance)),
            durability: convert::durability(done.is_durable).into(),
            reachability,
        }))
    }

    async fn update_instance(
        &self,
        request: Request<v1::UpdateInstanceRequest>,
    ) -> Result<Response<v1::UpdateInstanceResponse>, Status> {
        let caller = self.admit(&request)?;
        let v1::UpdateInstanceRequest {
            instance,
            update_mask,
            etag,
            validate_only,
            check_reachable,
            force,
        } = request.into_inner();
        let definition = Box::new(instance.unwrap_or_default());
        let name = definition.name.clone();
        let mask = update_mask.unwrap_or_default().paths;
        let order = |validate_only| Order::Update {
            definition: definition.clone(),
            mask: mask.clone(),
            etag: etag.clone(),
            validate_only,
            force,
        };
        let reachability = match check_reachable {
            true => Some(self.look(order(true)).await?),
            false => None,
        };
        let done = self.order(order(validate_only)).await?;
        audit(&caller, &name, "changed", validate_only);
        Ok(Response::new(v1::UpdateInstanceResponse {
            instance: done.instance.map(|instance| row::instance(&instance)),
            durability: convert::durability(done.is_durable).into(),
            reachability,
        }))
    }

    async fn delete_instance(
        &self,
        request: Request<v1::DeleteInstanceRequest>,
    ) -> Result<Response<v1::DeleteInstanceResponse>, Status> {
        let caller = self.admit(&request)?;
        let v1::DeleteInstanceRequest {
            name,
            etag,
            validate_only,
            force,
        } = request.into_inner();
        let order = Order::Delete {
            name: self.own(&name)?,
            etag,
            validate_only,
            force,
        };
        let done = self.order(order).await?;
        audit(&caller, &name, "deleted", validate_only);
        Ok(Response::new(v1::DeleteInstanceResponse {
            durability: convert::durability(done.is_durable).into(),
            was_set_aside: done.was_set_aside,
        }))
    }

    async fn pause_instance(
        &self,
        request: Request<v1::PauseInstanceRequest>,
    ) -> Result<Response<v1::PauseInstanceResponse>, Status> {
        let caller = self.admit(&request)?;
        let v1::PauseInstanceRequest {
            name,
            etag,
            reason,
            validate_only,
            force,
        } = request.into_inner();
        if reason.len() > REASON_BYTES_MAX || reason.chars().any(char::is_control) {
            let words = format!("at most {REASON_BYTES_MAX} bytes, without control characters");
            return Err(status::invalid("reason", "REASON_INVALID", words));
        }
        let pause = match reason.as_str() {
            "" => format!("paused by {caller}"),
            reason => format!("paused by {caller}: {reason}"),
        };
        let order = Order::Pause {
            name: self.own(&name)?,
            etag,
            pause: Some(pause),
            validate_only,
            force,
        };
        let done = self.order(order).await?;
        audit(&caller, &name, "paused", validate_only);
        Ok(Response::new(v1::PauseInstanceResponse {
            instance: done.instance.map(|instance| row::instance(&instance)),
            durability: convert::durability(done.is_durable).into(),
        }))
    }

    async fn resume_instance(
        &self,
        request: Request<v1::ResumeInstanceRequest>,
    ) -> Result<Response<v1::ResumeInstanceResponse>, Status> {
        let caller = self.admit(&request)?;
        let v1::ResumeInstanceRequest {
            name,
            etag,
            validate_only,
        } = request.into_inner();
        let order = Order::Pause {
            name: self.own(&name)?,
            etag,
            pause: None,
            validate_only,
            // To begin a session harms nobody.
            force: true,
        };
        let done = self.order(order).await?;
        audit(&caller, &name, "resumed", validate_only);
        Ok(Response::new(v1::ResumeInstanceResponse {
            instance: done.instance.map(|instance| row::instance(&instance)),
            durability: convert::durability(done.is_durable).into(),
        }))
    }

    async fn reload(
        &self,
        request: Request<v1::ReloadRequest>,
    ) -> Result<Response<v1::ReloadResponse>, Status> {
        let caller = self.admit(&request)?;
        let v1::ReloadRequest {
            validate_only,
            force,
        } = request.into_inner();
        let order = Order::Reload {
            cause: ReloadCause::Caller(caller),
            validate_only,
            force,
        };
        let done = self.order(order).await?;
        let response = convert::plan(done.plan, done.set_aside, validate_only);
        Ok(Response::new(response))
    }
}
