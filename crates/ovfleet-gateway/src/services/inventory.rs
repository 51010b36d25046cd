//! InventoryService: which instances there are.

use std::{panic::resume_unwind, sync::Arc, time::Duration};

use openvpn_fleet::{CallerName, InstanceName, InstancePath, RequestId};
use openvpn_session::probe;
use ovfleet_proto::v1::{self, Durability, inventory_service_server::InventoryService};
use prost::Message;
use tonic::{Request, Response, Status};

use super::Context;
use crate::{
    caller::Caller,
    convert::{inventory as convert, kept::Kept, request, row},
    inventory::{Done, Order, ReloadCause},
    state::CallKey,
    status,
};

/// How long an address is looked at.
const PROBE_MAX: Duration = Duration::from_secs(3);
/// Longest reason of a pause, in bytes.
const REASON_BYTES_MAX: usize = 200;

/// The service. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct InventoryChanges {
    context: Arc<Context>,
}

/// What makes a call the same as another one.
struct Asked<R> {
    caller: CallerName,
    method: &'static str,
    /// Empty: it is not remembered.
    request_id: String,
    validate_only: bool,
    request: R,
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

    /// Does what a call asks for, once for each request id. With an id it is done also when its caller leaves: who asks
    /// again gets the answer.
    async fn once<R, M, W>(
        &self,
        asked: Asked<R>,
        work: impl FnOnce(Option<CallKey>) -> W + Send + 'static,
    ) -> Result<M, Status>
    where
        R: Message + 'static,
        M: Kept + 'static,
        W: Future<Output = Result<M, Status>> + Send + 'static,
    {
        let Asked {
            caller,
            method,
            request_id,
            validate_only,
            request,
        } = asked;
        if request_id.is_empty() || validate_only {
            let parsed = match request_id.as_str() {
                "" => Ok(()),
                id => RequestId::new(id).map(drop),
            };
            parsed.map_err(|error| {
                status::invalid("request_id", "REQUEST_ID_INVALID", error.to_string())
            })?;
            return work(None).await;
        }
        let calls = self.context.calls.clone();
        let task = self.context.tasks.spawn(async move {
            let work = |call| work(Some(call));
            calls
                .once_in_state(&caller, method, &request_id, &request, work)
                .await
        });
        // It is cancelled only when nobody is there any more.
        task.await
            .unwrap_or_else(|error| resume_unwind(error.into_panic()))
    }

    async fn order(&self, order: Order, call: Option<CallKey>) -> Result<Done, Status> {
        let done = self.context.inventory.order(order, call).await;
        done.map_err(|error| status::of_inventory(&error))
    }

    /// Looks what answers where `trial`, an order that only validates, would lead.
    async fn look(&self, trial: Order) -> Result<v1::Reachability, Status> {
        let session = self.order(trial, None).await?.new_address;
        let found = match session {
            // Here, and not in the keeper's task, which has other things to do.
            Some(session) => probe(&session, PROBE_MAX).await,
            None => openvpn_session::Probe::NotTried {
                reason: "it is the address that the instance has: see its condition".to_owned(),
            },
        };
        Ok(convert::reachability(found))
    }

    /// The rest of an answer that the end of the gateway cut off: the change is on disk, and this is what there is.
    fn complete(&self, durability: &mut i32, instance: &mut Option<v1::Instance>, name: &str) {
        if *durability == i32::from(Durability::Unspecified) {
            *durability = Durability::Disk.into();
            let name = name.rsplit('/').next().unwrap_or(name);
            let present = self.context.fleet.instance(name);
            *instance = present.map(|instance| row::instance(&instance));
        }
    }

    async fn create(
        self,
        caller: CallerName,
        request: v1::CreateInstanceRequest,
        call: Option<CallKey>,
    ) -> Result<v1::CreateInstanceResponse, Status> {
        let v1::CreateInstanceRequest {
            instance,
            validate_only,
            check_reachable,
            request_id: _,
        } = request;
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
        let done = self.order(order(validate_only), call).await?;
        audit(&caller, &name, "created", validate_only);
        let created = done.instance.filter(|_| !validate_only);
        Ok(v1::CreateInstanceResponse {
            instance: created.map(|instance| row::instance(&instance)),
            durability: convert::durability(done.is_durable).into(),
            reachability,
        })
    }

    async fn update(
        self,
        caller: CallerName,
        request: v1::UpdateInstanceRequest,
        call: Option<CallKey>,
    ) -> Result<v1::UpdateInstanceResponse, Status> {
        let v1::UpdateInstanceRequest {
            instance,
            update_mask,
            etag,
            validate_only,
            check_reachable,
            force,
            request_id: _,
        } = request;
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
        let done = self.order(order(validate_only), call).await?;
        audit(&caller, &name, "changed", validate_only);
        Ok(v1::UpdateInstanceResponse {
            instance: done.instance.map(|instance| row::instance(&instance)),
            durability: convert::durability(done.is_durable).into(),
            reachability,
        })
    }

    async fn delete(
        self,
        caller: CallerName,
        request: v1::DeleteInstanceRequest,
        call: Option<CallKey>,
    ) -> Result<v1::DeleteInstanceResponse, Status> {
        let v1::DeleteInstanceRequest {
            name,
            etag,
            validate_only,
            force,
            request_id: _,
        } = request;
        let order = Order::Delete {
            name: self.own(&name)?,
            etag,
            validate_only,
            force,
        };
        let done = self.order(order, call).await?;
        audit(&caller, &name, "deleted", validate_only);
        Ok(v1::DeleteInstanceResponse {
            durability: convert::durability(done.is_durable).into(),
            was_set_aside: done.was_set_aside,
        })
    }

    async fn pause(
        self,
        caller: CallerName,
        request: v1::PauseInstanceRequest,
        call: Option<CallKey>,
    ) -> Result<v1::PauseInstanceResponse, Status> {
        let v1::PauseInstanceRequest {
            name,
            etag,
            reason,
            validate_only,
            force,
            request_id: _,
        } = request;
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
        let done = self.order(order, call).await?;
        audit(&caller, &name, "paused", validate_only);
        Ok(v1::PauseInstanceResponse {
            instance: done.instance.map(|instance| row::instance(&instance)),
            durability: convert::durability(done.is_durable).into(),
        })
    }

    async fn resume(
        self,
        caller: CallerName,
        request: v1::ResumeInstanceRequest,
        call: Option<CallKey>,
    ) -> Result<v1::ResumeInstanceResponse, Status> {
        let v1::ResumeInstanceRequest {
            name,
            etag,
            validate_only,
            request_id: _,
        } = request;
        let order = Order::Pause {
            name: self.own(&name)?,
            etag,
            pause: None,
            validate_only,
            // To begin a session harms nobody.
            force: true,
        };
        let done = self.order(order, call).await?;
        audit(&caller, &name, "resumed", validate_only);
        Ok(v1::ResumeInstanceResponse {
            instance: done.instance.map(|instance| row::instance(&instance)),
            durability: convert::durability(done.is_durable).into(),
        })
    }
}

/// Notes who changed what.
fn audit(caller: &CallerName, instance: &str, what: &str, validate_only: bool) {
    if !validate_only {
        tracing::info!(%caller, instance, "instance {what}");
    }
}

/// The call itself, and what it takes to do it.
macro_rules! asked {
    ($self:ident, $method:literal, $request:ident) => {{
        let caller = $self.admit(&$request)?;
        let request = $request.into_inner();
        let asked = Asked {
            caller: caller.clone(),
            method: $method,
            request_id: request.request_id.clone(),
            validate_only: request.validate_only,
            request: request.clone(),
        };
        (asked, $self.clone(), caller, request)
    }};
}

#[tonic::async_trait]
impl InventoryService for InventoryChanges {
    async fn create_instance(
        &self,
        request: Request<v1::CreateInstanceRequest>,
    ) -> Result<Response<v1::CreateInstanceResponse>, Status> {
        let (asked, this, caller, request) = asked!(self, "CreateInstance", request);
        let name = request.instance.as_ref().map(|it| it.name.clone());
        let work = move |call| this.create(caller, request, call);
        let mut answer: v1::CreateInstanceResponse = self.once(asked, work).await?;
        let name = name.unwrap_or_default();
        self.complete(&mut answer.durability, &mut answer.instance, &name);
        Ok(Response::new(answer))
    }

    async fn update_instance(
        &self,
        request: Request<v1::UpdateInstanceRequest>,
    ) -> Result<Response<v1::UpdateInstanceResponse>, Status> {
        let (asked, this, caller, request) = asked!(self, "UpdateInstance", request);
        let name = request.instance.as_ref().map(|it| it.name.clone());
        let work = move |call| this.update(caller, request, call);
        let mut answer: v1::UpdateInstanceResponse = self.once(asked, work).await?;
        let name = name.unwrap_or_default();
        self.complete(&mut answer.durability, &mut answer.instance, &name);
        Ok(Response::new(answer))
    }

    async fn delete_instance(
        &self,
        request: Request<v1::DeleteInstanceRequest>,
    ) -> Result<Response<v1::DeleteInstanceResponse>, Status> {
        let (asked, this, caller, request) = asked!(self, "DeleteInstance", request);
        let work = move |call| this.delete(caller, request, call);
        let mut answer: v1::DeleteInstanceResponse = self.once(asked, work).await?;
        self.complete(&mut answer.durability, &mut None, "");
        Ok(Response::new(answer))
    }

    async fn pause_instance(
        &self,
        request: Request<v1::PauseInstanceRequest>,
    ) -> Result<Response<v1::PauseInstanceResponse>, Status> {
        let (asked, this, caller, request) = asked!(self, "PauseInstance", request);
        let name = request.name.clone();
        let work = move |call| this.pause(caller, request, call);
        let mut answer: v1::PauseInstanceResponse = self.once(asked, work).await?;
        self.complete(&mut answer.durability, &mut answer.instance, &name);
        Ok(Response::new(answer))
    }

    async fn resume_instance(
        &self,
        request: Request<v1::ResumeInstanceRequest>,
    ) -> Result<Response<v1::ResumeInstanceResponse>, Status> {
        let (asked, this, caller, request) = asked!(self, "ResumeInstance", request);
        let name = request.name.clone();
        let work = move |call| this.resume(caller, request, call);
        let mut answer: v1::ResumeInstanceResponse = self.once(asked, work).await?;
        self.complete(&mut answer.durability, &mut answer.instance, &name);
        Ok(Response::new(answer))
    }

    async fn reload(
        &self,
        request: Request<v1::ReloadRequest>,
    ) -> Result<Response<v1::ReloadResponse>, Status> {
        let (asked, this, caller, request) = asked!(self, "Reload", request);
        let work = move |_| async move {
            let v1::ReloadRequest {
                validate_only,
                force,
                request_id,
            } = request;
            let order = Order::Reload {
                cause: ReloadCause::Caller(caller),
                validate_only,
                force,
            };
            // What was read is kept where it is written: only the id depends on the state.
            let done = this.order(order, None).await?;
            let mut answer = convert::plan(done.plan, done.set_aside, validate_only);
            if !request_id.is_empty() && !validate_only {
                answer.set_durability(convert::durability(done.is_durable));
            }
            Ok(answer)
        };
        self.once(asked, work).await.map(Response::new)
    }
}
