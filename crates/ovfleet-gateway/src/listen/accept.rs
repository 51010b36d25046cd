//! The accept loop of one listener.

use std::{
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rustix::io::Errno;
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

use super::{
    bind::{BindError, UnixSocket, bind_tcp, bind_unix},
    inherited::InheritedSocket,
    serve::{serve_http1, serve_http2},
};
use crate::{
    caller::{Caller, Identity},
    config::{Limits, SocketConfig},
};

/// How long the loop rests after an error that will not go away by itself at
/// once, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How much the kernel may hold for a caller that does not read: left alone it
/// would be megabytes, of which our own figures show nothing.
const SEND_BUFFER_BYTES: usize = 256 << 10;
/// How long a caller may take for its first byte on a connection without TLS.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(5);

/// What all listeners together may take in.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    connections: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    handshake_timeout: Duration,
    /// Times that a connection could not be accepted, of any listener.
    failures: Arc<AtomicU64>,
}

impl Admission {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            connections: Arc::new(Semaphore::new(limits.connections)),
            handshakes: Arc::new(Semaphore::new(limits.handshakes)),
            handshake_timeout: limits.handshake_timeout,
            failures: Arc::default(),
        }
    }

    /// The same with connections of its own.
    pub(crate) fn with_connections(&self, max: usize) -> Self {
        Self {
            connections: Arc::new(Semaphore::new(max)),
            ..self.clone()
        }
    }

    /// Times that a connection could not be accepted.
    pub(crate) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// A place for one more TLS handshake, as soon as there is one. Cancel safe.
    pub(crate) async fn handshake(&self) -> Handshake {
        let place = Arc::clone(&self.handshakes).acquire_owned().await;
        Handshake {
            _place: place.expect("the semaphore is never closed"),
            timeout: self.handshake_timeout,
        }
    }
}

/// The place of a TLS handshake; it is free again when that is done, or dropped.
pub(crate) struct Handshake {
    _place: OwnedSemaphorePermit,
    timeout: Duration,
}

impl Handshake {
    /// Makes it, in its time.
    pub(crate) async fn make(
        self,
        tls: &TlsAcceptor,
        stream: TcpStream,
    ) -> io::Result<TlsStream<TcpStream>> {
        timeout(self.timeout, tls.accept(stream))
            .await
            .unwrap_or_else(|_| Err(io::Error::other("it took too long")))
    }
}

/// Whether a listener can accept. That it cannot, and that it can again, is said once each, however often it tries.
pub(crate) struct Accepting {
    listener: String,
    failures: Arc<AtomicU64>,
    failing: bool,
}

impl Accepting {
    pub(crate) fn new(listener: String, admission: &Admission) -> Self {
        Self {
            listener,
            failures: Arc::clone(&admission.failures),
            failing: false,
        }
    }

    /// It accepted one.
    pub(crate) fn succeeded(&mut self) {
        if std::mem::take(&mut self.failing) {
            tracing::info!(listener = self.listener, "connections are accepted again");
        }
    }

    /// It could not; rests where trying again at once would not help.
    pub(crate) async fn failed(&mut self, error: &io::Error) {
        // These concern one connection that went away while it was in the queue.
        if matches!(
            error.kind(),
            io::ErrorKind::ConnectionAborted
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::Interrupted
        ) {
            return;
        }
        self.failures.fetch_add(1, Ordering::Relaxed);
        if !std::mem::replace(&mut self.failing, true) {
            let full = [Errno::MFILE, Errno::NFILE].map(|errno| Some(errno.raw_os_error()));
            let listener = &self.listener;
            if full.contains(&error.raw_os_error()) {
                tracing::warn!(
                    listener,
                    "too many open files: no connection is accepted until some end; \
                     callers that stay take a higher LimitNOFILE="
                );
            } else {
                tracing::warn!(listener, %error, "cannot accept connections for now");
            }
        }
        sleep(ACCEPT_PAUSE).await;
    }
}

/// A bound socket, not yet accepting.
pub(crate) struct Listener {
    socket: Socket,
    tls: Option<TlsAcceptor>,
    /// Callers that nobody has identified may only read here.
    read_only: bool,
}

#[derive(Debug)]
enum Socket {
    Unix(UnixSocket, String),
    Tcp(TcpListener, SocketAddr),
}

/// What is served on a listener.
#[derive(Clone)]
pub(crate) enum Service {
    Grpc(super::serve::GrpcService),
    Http(axum::Router),
}

impl Listener {
    pub(crate) fn unix(config: &SocketConfig) -> Result<Self, BindError> {
        let socket = bind_unix(config)?;
        let shown = format!("unix:{}", config.path.display());
        Ok(Self {
            socket: Socket::Unix(socket, shown),
            tls: None,
            read_only: false,
        })
    }

    pub(crate) fn tcp(address: SocketAddr, read_only: bool) -> Result<Self, BindError> {
        let listener = bind_tcp(address)?;
        // With port 0 the kernel chose one.
        let bound = listener.local_addr().unwrap_or(address);
        Ok(Self {
            socket: Socket::Tcp(listener, bound),
            tls: None,
            read_only,
        })
    }

    /// A socket that was handed down: bound already, and maybe another process accepts from it too.
    pub(crate) fn inherited(socket: InheritedSocket, read_only: bool) -> Result<Self, BindError> {
        let shown = socket.to_string();
        let bind_error = |source| BindError::Io {
            address: shown.clone(),
            source,
        };
        let socket = match socket {
            InheritedSocket::Unix(listener) => {
                let listener = UnixSocket::inherited(listener).map_err(bind_error)?;
                Socket::Unix(listener, shown)
            }
            InheritedSocket::Tcp(listener) => {
                let listener = TcpListener::from_std(listener).map_err(&bind_error)?;
                let address = listener.local_addr().map_err(&bind_error)?;
                Socket::Tcp(listener, address)
            }
        };
        Ok(Self {
            socket,
            tls: None,
            read_only,
        })
    }

    /// The same with TLS. Callers that show a certificate may also act.
    pub(crate) fn with_tls(self, config: Arc<ServerConfig>) -> Self {
        Self {
            tls: Some(TlsAcceptor::from(config)),
            ..self
        }
    }

    /// Where it listens: `unix:/path`, `http://127.0.0.1:7600`, `https://…`.
    pub(crate) fn address(&self) -> String {
        match &self.socket {
            Socket::Unix(_, shown) => shown.clone(),
            Socket::Tcp(_, address) if self.tls.is_some() => format!("https://{address}"),
            Socket::Tcp(_, address) => format!("http://{address}"),
        }
    }

    /// Serves until `stop`, then lets every connection finish its calls. Dropped,
    /// it cuts them.
    pub(crate) async fn run(self, service: Service, admission: Admission, stop: CancellationToken) {
        let mut connections = JoinSet::new();
        let mut accepting = Accepting::new(self.address(), &admission);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.accept() => match accepted {
                    Ok(accepted) => {
                        accepting.succeeded();
                        let Ok(permit) = Arc::clone(&admission.connections).try_acquire_owned() else {
                            tracing::warn!(listener = %self.address(), "too many connections: one was closed");
                            continue;
                        };
                        // One more handshake than allowed waits here, and those behind it in the kernel's queue.
                        let handshake = match &self.tls {
                            Some(_) => match stop.run_until_cancelled(admission.handshake()).await {
                                Some(handshake) => Some(handshake),
                                None => break,
                            },
                            None => None,
                        };
                        let serving = self.serve(accepted, service.clone(), handshake, stop.clone());
                        connections.spawn(async move {
                            serving.await;
                            drop(permit);
                        });
                    }
                    Err(error) => accepting.failed(&error).await,
                },
                Some(_) = connections.join_next() => {}
            }
        }
        // The file of a Unix socket goes at once: nobody shall wait for an answer.
        drop(self);
        while connections.join_next().await.is_some() {}
    }

    async fn accept(&self) -> io::Result<Accepted> {
        match &self.socket {
            Socket::Unix(socket, _) => {
                let (stream, _) = socket.listener.accept().await?;
                Ok(Accepted::Unix(stream))
            }
            Socket::Tcp(listener, _) => {
                let (stream, address) = listener.accept().await?;
                Ok(Accepted::Tcp(stream, address))
            }
        }
    }

    fn serve(
        &self,
        accepted: Accepted,
        service: Service,
        handshake: Option<Handshake>,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (tls, read_only) = (self.tls.clone(), self.read_only);
        async move {
            match accepted {
                Accepted::Unix(stream) => {
                    let Ok(credentials) = stream.peer_cred() else {
                        return;
                    };
                    let identity = Identity::Unix {
                        uid: credentials.uid(),
                        gid: credentials.gid(),
                        pid: credentials.pid(),
                    };
                    if speaks(stream.readable()).await {
                        service
                            .serve(stream, Caller::new(identity, read_only), stop)
                            .await;
                    }
                }
                Accepted::Tcp(stream, address) => {
                    set_options(&stream);
                    let (Some(tls), Some(handshake)) = (tls, handshake) else {
                        let caller = Caller::new(Identity::Address(address), read_only);
                        if speaks(stream.readable()).await {
                            service.serve(stream, caller, stop).await;
                        }
                        return;
                    };
                    match handshake.make(&tls, stream).await {
                        Ok(stream) => {
                            let caller = match certificate(&stream) {
                                Some(certificate) => {
                                    Caller::new(Identity::of_certificate(certificate), false)
                                }
                                None => Caller::new(Identity::Address(address), read_only),
                            };
                            service.serve(stream, caller, stop).await;
                        }
                        Err(error) => tracing::debug!(%address, %error, "TLS handshake failed"),
                    }
                }
            }
        }
    }
}

/// The verified certificate of who is at the other end.
pub(crate) fn certificate<S>(stream: &TlsStream<S>) -> Option<&CertificateDer<'static>> {
    stream.get_ref().1.peer_certificates()?.first()
}

enum Accepted {
    Unix(UnixStream),
    Tcp(TcpStream, SocketAddr),
}

impl Service {
    async fn serve<S>(self, stream: S, caller: Caller, stop: CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        match self {
            Self::Grpc(service) => serve_http2(stream, service, caller, stop).await,
            Self::Http(router) => serve_http1(stream, router, stop).await,
        }
    }
}

/// Whether the other side says anything in time: a connection that never does
/// must not keep its place.
async fn speaks(readable: impl Future<Output = io::Result<()>>) -> bool {
    let readable = pin!(readable);
    matches!(timeout(FIRST_BYTE_TIMEOUT, readable).await, Ok(Ok(())))
}

pub(crate) fn set_options(stream: &TcpStream) {
    // Small frames wait up to 40 ms for their acknowledgement otherwise.
    let nodelay = stream.set_nodelay(true);
    let send_buffer = socket2::SockRef::from(stream).set_send_buffer_size(SEND_BUFFER_BYTES);
    if let Err(error) = nodelay.and(send_buffer) {
        tracing::debug!(%error, "cannot set socket options");
    }
}
