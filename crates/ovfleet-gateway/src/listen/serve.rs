//! One connection, served to its end.

use std::{
    convert::Infallible,
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use hyper::{
    Request, Response,
    body::{Body, Frame, Incoming, SizeHint},
    server::conn::{http1, http2},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{Semaphore, SetOnce},
    time::{sleep, timeout},
};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};
use tonic::{Status, service::Routes};
use tower::Service as _;

use crate::{caller::Caller, config::Limits, idle::Activity, status};

/// A caller that does not answer a ping in time is gone.
const PING_INTERVAL: Duration = Duration::from_secs(15);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams that callers opened and reset before we looked at them; more end the connection.
const PENDING_RESETS_MAX: usize = 20;
/// Streams that we reset for protocol errors; more end the connection.
const LOCAL_RESETS_MAX: usize = 200;
/// What one stream may hold for a caller that does not read, in bytes.
const SEND_BUFFER_BYTES: usize = 128 << 10;
/// What a caller may send before we read it: requests are small.
const STREAM_WINDOW_BYTES: u32 = 64 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// How long a caller may take, in a drain, for the end of its last answer. One
/// whose process stands still would hold up the drain otherwise.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long a caller that has just connected may take, in a drain, for its first call. It came while we still
/// accepted, or waited in the queue of a socket that outlives us: told at once that we leave, its call would cross
/// the message and fail.
const FIRST_CALL_MAX: Duration = Duration::from_secs(1);
/// How long a caller of the HTTP port may take for the headers of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// The gRPC services, as every connection serves them.
#[derive(Clone)]
pub(crate) struct GrpcService {
    routes: Routes,
    activity: Activity,
    calls: Calls,
    streams_per_connection: u32,
    header_bytes: u32,
}

impl GrpcService {
    pub(crate) fn new(routes: Routes, activity: Activity, limits: &Limits) -> Self {
        let bound = |limit: usize| u32::try_from(limit).unwrap_or(u32::MAX);
        Self {
            routes: routes.prepare(),
            activity,
            calls: Calls {
                max: limits.calls,
                free: Arc::new(Semaphore::new(limits.calls)),
            },
            streams_per_connection: bound(limits.streams_per_connection),
            header_bytes: bound(limits.header_size),
        }
    }
}

/// Calls under way, of all callers together. A stream counts until it begins.
#[derive(Clone)]
struct Calls {
    max: usize,
    free: Arc<Semaphore>,
}

/// The services as one caller sees them: each request says who makes it.
struct Called {
    routes: Routes,
    caller: Caller,
    calls: Calls,
    /// Whether it has made one.
    first_call: Arc<SetOnce<()>>,
    /// Its calls whose answers are not out yet.
    under_way: TaskTracker,
}

/// The body of an answer. Its call is under way until it is sent, or given up.
struct Answer {
    body: tonic::body::Body,
    _call: TaskTrackerToken,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl hyper::service::Service<Request<Incoming>> for Called {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let call = self.under_way.token();
        if !self.first_call.initialized() {
            // Another call of this connection may be the first one; that is as good.
            let _ = self.first_call.set(());
        }
        let Ok(permit) = Arc::clone(&self.calls.free).try_acquire_owned() else {
            let refusal = status::call_limit(self.calls.max).into_http();
            return Box::pin(async { Ok(refusal.map(|body| Answer { body, _call: call })) });
        };
        request.extensions_mut().insert(self.caller.clone());
        // Mapped, not awaited in a block of its own, which would move this large future twice.
        let response = self.routes.clone().call(request);
        Box::pin(response.map(move |response| {
            drop(permit);
            Ok(response?.map(|body| Answer { body, _call: call }))
        }))
    }
}

/// A stream that takes one piece at a time. With it h2 copies answers of up to 1 KiB, which most are, behind one another
/// into one write; for a stream that takes several it would write each of more than 256 bytes by itself.
struct Gathered<S>(S);

impl<S: AsyncRead + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// Serves gRPC until the caller leaves, or until `stop` and the last call has ended.
pub(super) async fn serve_http2<S>(
    stream: S,
    service: GrpcService,
    caller: Caller,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let GrpcService {
        routes,
        activity,
        calls,
        streams_per_connection,
        header_bytes,
    } = service;
    let present = activity.caller_present();
    let under_way = TaskTracker::new();
    let first_call = Arc::new(SetOnce::new());
    let called = Called {
        routes,
        caller,
        calls,
        first_call: Arc::clone(&first_call),
        under_way: under_way.clone(),
    };
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(streams_per_connection)
        .max_header_list_size(header_bytes)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .max_local_error_reset_streams(LOCAL_RESETS_MAX)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(Gathered(stream)), called));
    let leaving = async {
        stop.cancelled().await;
        // Without a call it is not waited for.
        let _ = timeout(FIRST_CALL_MAX, first_call.wait()).await;
    };
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = leaving => {
            connection.as_mut().graceful_shutdown();
            under_way.close();
            let farewell = async {
                under_way.wait().await;
                sleep(FAREWELL).await;
            };
            tokio::select! {
                result = connection => result,
                () = farewell => Ok(()),
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended with an error");
    }
    drop(present);
}

/// Serves the HTTP port until the caller leaves, or until `stop` and the last answer is out.
pub(super) async fn serve_http1<S>(stream: S, router: axum::Router, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT);
    let service = TowerToHyperService::new(router);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "HTTP connection ended with an error");
    }
}

#[cfg(test)]
mod tests;
