//! ControlService: actions on the fleet.

use std::sync::Arc;

use openvpn_fleet::{Action, ActionContext, RequestId};
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
        let kill = request::kill(request.into_inner())?;
        let cursors = &self.context.cursors;
        let report = self.context.fleet.kill(kill, action).await;
        let report = report.map_err(|error| status::of_action(&error, cursors))?;
        Ok(Response::new(convert::action::kill_report(
            &report, cursors,
        )))
    }

    async fn signal_instances(
        &self,
        request: Request<SignalInstancesRequest>,
    ) -> Result<Response<SignalInstancesResponse>, Status> {
        let (action, _guard) = self.begin(&request)?;
        let signal = request::signal(request.into_inner())?;
        let cursors = &self.context.cursors;
        let report = self.context.fleet.signal(signal, action).await;
        let report = report.map_err(|error| status::of_action(&error, cursors))?;
        Ok(Response::new(convert::action::signal_report(
            &report, cursors,
        )))
    }

    async fn get_action(
        &self,
        request: Request<GetActionRequest>,
    ) -> Result<Response<GetActionResponse>, Status> {
        let id = &request.get_ref().request_id;
        let parsed = RequestId::new(id).map_err(|error| {
            status::invalid("request_id", "REQUEST_ID_INVALID", error.to_string())
        })?;
        let action = self
            .context
            .fleet
            .action(Caller::of(&request).name(), &parsed)
            .ok_or_else(|| status::action_unknown(id))?;
        Ok(Response::new(GetActionResponse {
            action: Some(convert::action::action(&action, &self.context.cursors)),
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
        let mut actions = self.context.fleet.actions(before, size + 1);
        let more = actions.len() > size;
        actions.truncate(size);
        let next = actions.last().filter(|_| more).map(|last| Continuation {
            after: RowKey {
                cid: last.number,
                ..RowKey::default()
            },
            as_of: continuation.map_or_else(|| self.context.now(), |first| first.as_of),
        });
        Ok(Response::new(ListActionsResponse {
            actions: actions.iter().map(|action| self.brief(action)).collect(),
            next_page_token: next.map_or_else(String::new, |next| page::write(sealer, query, next)),
        }))
    }
}

impl Control {
    /// An action without the results of single targets.
    fn brief(&self, action: &Action) -> v1::Action {
        let mut brief = convert::action::action(action, &self.context.cursors);
        match &mut brief.result {
            Some(v1::action::Result::KillClients(report)) => {
                report.results.clear();
                report.instances.clear();
            }
            Some(v1::action::Result::SignalInstances(report)) => report.results.clear(),
            None => {}
        }
        brief
    }
}
