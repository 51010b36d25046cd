//! ControlService: actions on the fleet.

use std::sync::Arc;

use openvpn_fleet::{ActionContext, ActionError, CallerName, Digest, Method, RequestId};
use ovfleet_proto::v1::{
    self, GetActionRequest, GetActionResponse, KillClientsRequest, KillClientsResponse,
    ListActionsRequest, ListActionsResponse, SignalInstancesRequest, SignalInstancesResponse,
    control_service_server::ControlService,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status};

use super::{Context, deadline};
use crate::{
    caller::Caller,
    convert::{self, request},
    page::{self, Continuation, RowKey},
    status,
};

/// The service.
#[derive(Debug)]
pub(crate) struct Control {
    context: Arc<Context>,
}

impl Control {
    pub(crate) const fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    /// Who acts and how long; dropping the guard, as a call that is cancelled
    /// does, stops what is not yet sent.
    fn begin<T>(&self, request: &Request<T>) -> Result<(ActionContext, DropGuard), Status> {
        let caller = Caller::of(request);
        self.context.admit_change(&caller)?;
        let cancel = CancellationToken::new();
        let context = ActionContext {
            caller: caller.name().clone(),
            deadline: deadline::of(request),
            cancel: cancel.clone(),
        };
        Ok((context, cancel.drop_guard()))
    }
}

#[tonic::async_trait]
impl ControlService for Control {
    async fn kill_clients(
        &self,
        request: Request<KillClientsRequest>,
    ) -> Result<Response<KillClientsResponse>, Status> {
        let (action, _guard) = self.begin(&request)?;
        let (method, caller) = (Method::KillClients, action.caller.clone());
        let request = request.into_inner();
        let digest = self.context.calls.digest(method.as_str(), &request);
        let kill = request::kill(request, digest)?;
        let cursors = &self.context.cursors;
        let error = match self.context.fleet.kill(kill, action).await {
            Ok(report) => {
                let report = convert::action::kill_report(&report, cursors);
                return Ok(Response::new(report));
            }
            Err(error) => error,
        };
        match self.known(&error, &caller, method, digest).await? {
            Some(v1::action::Result::KillClients(report)) => Ok(Response::new(report)),
            _ => Err(status::of_action(&error, cursors)),
        }
    }

    async fn signal_instances(
        &self,
        request: Request<SignalInstancesRequest>,
    ) -> Result<Response<SignalInstancesResponse>, Status> {
        let (action, _guard) = self.begin(&request)?;
        let (method, caller) = (Method::SignalInstances, action.caller.clone());
        let request = request.into_inner();
        let digest = self.context.calls.digest(method.as_str(), &request);
        let signal = request::signal(request, digest)?;
        let cursors = &self.context.cursors;
        let error = match self.context.fleet.signal(signal, action).await {
            Ok(report) => {
                let report = convert::action::signal_report(&report, cursors);
                return Ok(Response::new(report));
            }
            Err(error) => error,
        };
        match self.known(&error, &caller, method, digest).await? {
            Some(v1::action::Result::SignalInstances(report)) => Ok(Response::new(report)),
            _ => Err(status::of_action(&error, cursors)),
        }
    }

    async fn get_action(
        &self,
        request: Request<GetActionRequest>,
    ) -> Result<Response<GetActionResponse>, Status> {
        let id = &request.get_ref().request_id;
        let parsed = RequestId::new(id).map_err(|error| {
            status::invalid("request_id", "REQUEST_ID_INVALID", error.to_string())
        })?;
        let caller = Caller::of(&request);
        let caller = caller.name();
        let found = self.context.fleet.action(caller, &parsed);
        let is_own = found.as_ref().is_some_and(|found| found.caller == *caller);
        let stored = match &self.context.actions {
            Some(actions) if !is_own => actions.find(caller, &parsed).await,
            _ => Ok(None),
        };
        // What is known is shown also while the disk cannot be read.
        let stored = match (stored, &found) {
            (Err(error), None) => return Err(status::state_unavailable(&error)),
            (stored, _) => stored.ok().flatten(),
        };
        let stored = stored.filter(|stored| found.is_none() || stored.caller == caller.as_str());
        let action = match (stored, found) {
            (Some(stored), _) => stored.action,
            (None, Some(found)) => convert::action::action(&found, &self.context.cursors),
            (None, None) => return Err(status::action_unknown(id)),
        };
        Ok(Response::new(GetActionResponse {
            action: Some(action),
        }))
    }

    async fn list_actions(
        &self,
        request: Request<ListActionsRequest>,
    ) -> Result<Response<ListActionsResponse>, Status> {
        let ListActionsRequest {
            page_size,
            page_token,
        } = request.into_inner();
        let size = page::size(page_size)?;
        let sealer = self.context.cursors.sealer();
        let query = page::fingerprint(&ListActionsRequest::default());
        let continuation = page::read(sealer, &query, &page_token)?;
        let before = continuation.as_ref().map(|last| last.after.cid);
        // Newest first, so that one more than the page tells whether there is a next one.
        let mut actions: Vec<_> = self
            .context
            .fleet
            .actions(before, size + 1)
            .iter()
            .map(|action| {
                let out = convert::action::action(action, &self.context.cursors);
                (action.number, out)
            })
            .collect();
        if let Some(stored) = &self.context.actions {
            let stored = stored.list(before, size + 1).await;
            let stored = stored.map_err(|error| status::state_unavailable(&error))?;
            actions.extend(stored.into_iter().map(|one| (one.number, one.action)));
            // Stable: of those in both places the one in memory stays.
            actions.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
            actions.dedup_by_key(|(number, _)| *number);
        }
        let more = actions.len() > size;
        actions.truncate(size);
        let next = actions.last().filter(|_| more).map(|last| Continuation {
            after: RowKey {
                cid: last.0,
                ..RowKey::default()
            },
            as_of: continuation.map_or_else(|| self.context.now(), |first| first.as_of),
        });
        Ok(Response::new(ListActionsResponse {
            actions: actions
                .into_iter()
                .map(|(_, action)| brief(action))
                .collect(),
            next_page_token: next.map_or_else(String::new, |next| page::write(sealer, query, next)),
        }))
    }
}

impl Control {
    /// The answer of an earlier request, if that is why this one was refused.
    async fn known(
        &self,
        error: &ActionError,
        caller: &CallerName,
        method: Method,
        digest: Digest,
    ) -> Result<Option<v1::action::Result>, Status> {
        let (ActionError::Known { request_id }, Some(actions)) = (error, &self.context.actions)
        else {
            return Ok(None);
        };
        let known = actions.find_exactly(caller, method, request_id).await;
        let known = known.map_err(|error| status::state_unavailable(&error))?;
        let Some(known) = known.filter(|known| known.digest == digest) else {
            return Ok(None);
        };
        if known.action.settled() == v1::Outcome::NotSent {
            return Err(status::cut_off(request_id.as_str()));
        }
        Ok(known.action.result)
    }
}

/// An action without the results of single targets.
fn brief(mut action: v1::Action) -> v1::Action {
    match &mut action.result {
        Some(v1::action::Result::KillClients(report)) => {
            report.results.clear();
            report.instances.clear();
        }
        Some(v1::action::Result::SignalInstances(report)) => report.results.clear(),
        None => {}
    }
    action
}
