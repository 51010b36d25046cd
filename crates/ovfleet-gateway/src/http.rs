//! The HTTP port: `/metrics`, `/healthz`, `/readyz`.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use std::time::{Duration, Instant};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use openvpn_fleet::Condition;

use crate::{
    metrics::{self, Metrics},
    services::Context,
};

/// How long the first round of dials may hold back readiness: a host that
/// swallows packets must not keep the whole gateway out of service.
const FIRST_DIALS_MAX: Duration = Duration::from_secs(5);

/// What the HTTP port answers from.
pub(crate) struct Port {
    context: Arc<Context>,
    metrics: Metrics,
    readiness: Readiness,
}

/// Whether callers should come here.
pub(crate) struct Readiness {
    context: Arc<Context>,
    started: Instant,
    /// The first round of dials is done; never again undone.
    dialled: AtomicBool,
}

impl Port {
    pub(crate) fn new(context: Arc<Context>, metrics: Metrics) -> Self {
        let readiness = Readiness {
            context: Arc::clone(&context),
            started: Instant::now(),
            dialled: AtomicBool::new(false),
        };
        Self {
            context,
            metrics,
            readiness,
        }
    }

    pub(crate) fn router(self) -> Router {
        Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .route("/metrics", get(figures))
            .with_state(Arc::new(self))
    }
}

async fn ready(State(port): State<Arc<Port>>) -> Response {
    match port.readiness.obstacle() {
        None => "ready\n".into_response(),
        Some(obstacle) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{obstacle}\n")).into_response()
        }
    }
}

async fn figures(State(port): State<Arc<Port>>) -> Response {
    // A quiet journal ages too, and its depth is about to be told.
    port.context
        .fleet
        .journal()
        .handle_time(std::time::SystemTime::now());
    match port.metrics.render() {
        Ok(text) => ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

impl Readiness {
    /// Why callers should not come here; `None`: they should.
    fn obstacle(&self) -> Option<String> {
        if self.context.leaving.is_cancelled() {
            return Some("draining".to_owned());
        }
        if self.dialled.load(Ordering::Relaxed) {
            return None;
        }
        let instances = self.context.fleet.instances();
        let undecided = instances
            .iter()
            .filter(|instance| {
                instance.with_table(|table| table.status().condition) == Condition::Connecting
            })
            .count();
        if undecided > 0 && self.started.elapsed() < FIRST_DIALS_MAX {
            return Some(format!(
                "{undecided} of {} instances not dialled yet",
                instances.len()
            ));
        }
        self.dialled.store(true, Ordering::Relaxed);
        None
    }
}
