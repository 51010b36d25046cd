//! `grpc.health.v1`: whether to send calls here.

use std::pin::Pin;

use futures_util::{Stream, StreamExt as _, stream};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_server::{Health, HealthServer},
};

use crate::services::SERVICE_NAMES;

/// Serves until it is told to drain.
///
/// Unlike the stock implementation it ends its `Watch` streams after the last
/// word: an endless one would hold up every shutdown.
#[derive(Clone, Debug)]
pub(crate) struct HealthService {
    status: watch::Receiver<ServingStatus>,
}

/// Changes what [`HealthService`] says.
#[derive(Debug)]
pub(crate) struct HealthReporter(watch::Sender<ServingStatus>);

/// A reporter and its service, which is serving.
pub(crate) fn health() -> (HealthReporter, HealthServer<HealthService>) {
    let (sender, status) = watch::channel(ServingStatus::Serving);
    (
        HealthReporter(sender),
        HealthServer::new(HealthService { status }),
    )
}

impl HealthReporter {
    /// No new calls, please.
    pub(crate) fn leave(&self) {
        self.0.send_replace(ServingStatus::NotServing);
    }
}

/// Whether a service of that name has a health here: ours, which all share that
/// of the gateway, whose name is empty.
fn is_known(service: &str) -> bool {
    service.is_empty() || SERVICE_NAMES.contains(&service)
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = &request.get_ref().service;
        if is_known(service) {
            Ok(Response::new(response(*self.status.borrow())))
        } else {
            Err(Status::not_found(format!(
                "there is no service {service:?} here"
            )))
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let known = is_known(&request.get_ref().service);
        let statuses = stream::unfold(Some((self.status.clone(), true)), |state| async move {
            let (mut status, is_first) = state?;
            if !is_first {
                status.changed().await.ok()?;
            }
            let now = *status.borrow_and_update();
            let rest = (now != ServingStatus::NotServing).then_some((status, false));
            Some((now, rest))
        });
        // For an unknown name the protocol asks for an answer, not an error: the service may appear.
        let shown = move |status| match status {
            ServingStatus::Serving if !known => ServingStatus::ServiceUnknown,
            status => status,
        };
        Ok(Response::new(Box::pin(
            statuses.map(move |status| Ok(response(shown(status)))),
        )))
    }
}
