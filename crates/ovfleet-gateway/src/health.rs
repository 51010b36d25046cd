//! `grpc.health.v1`: whether to send calls here.

use std::pin::Pin;

use ovfleet_proto::v1::{
    control_service_server, event_service_server, fleet_service_server,
};
use tokio::sync::watch;
use tokio_stream::{Stream, StreamExt as _, wrappers::WatchStream};
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_server::{self, Health, HealthServer},
};

/// The services that have a health of their own; all share that of the gateway,
/// whose name is empty.
const SERVICES: [&str; 5] = [
    "",
    fleet_service_server::SERVICE_NAME,
    event_service_server::SERVICE_NAME,
    control_service_server::SERVICE_NAME,
    health_server::SERVICE_NAME,
];

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
    (HealthReporter(sender), HealthServer::new(HealthService { status }))
}

impl HealthReporter {
    /// No new calls, please.
    pub(crate) fn drain(&self) {
        self.0.send_replace(ServingStatus::NotServing);
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = &request.get_ref().service;
        if SERVICES.contains(&service.as_str()) {
            Ok(Response::new(response(*self.status.borrow())))
        } else {
            Err(Status::not_found(format!("there is no service {service:?} here")))
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let known = SERVICES.contains(&request.get_ref().service.as_str());
        let mut ended = false;
        let statuses = WatchStream::new(self.status.clone())
            // The protocol asks for an answer, not an error: the service may appear.
            .map(move |status| if known || status == ServingStatus::NotServing { status } else { ServingStatus::ServiceUnknown })
            .take_while(move |status| {
                let last = *status == ServingStatus::NotServing;
                !std::mem::replace(&mut ended, last)
            });
        Ok(Response::new(Box::pin(statuses.map(|status| Ok(response(status))))))
    }
}
