//! Virtual management sockets: they come and go with the instances.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use openvpn_fleet::{Fleet, InstanceName, InstanceUid};
use openvpn_mux::{Counts, Policy, Slot, ToolConfig};
use openvpn_session::{PasswordError, read_password};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixStream},
    task::{JoinSet, spawn_blocking},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, info_span};

use crate::{
    caller::{CertificateNames, Identity},
    config::{MuxAddress, MuxConfig},
    listen::{
        Accepting, Admission, BindError, Handshake, TlsError, UnixSocket, bind_tcp, bind_unix,
        certificate, load_tls_within, set_options,
    },
};

/// How often a socket that cannot be opened is tried again.
const BIND_RETRY: Duration = Duration::from_secs(2);
/// How long a tool that does not read may hold up the farewell of its connection.
const FAREWELL_MAX: Duration = Duration::from_secs(1);

/// What is told of the tools, while their sockets come and go.
#[derive(Debug, Default)]
pub(crate) struct MuxFigures {
    pub(crate) counts: Arc<Counts>,
    /// Locked to look, add or remove.
    slots: Mutex<BTreeMap<InstanceName, Arc<Slot>>>,
}

impl MuxFigures {
    /// Tools connected now, for each instance that has virtual sockets.
    pub(crate) fn tools(&self) -> Vec<(InstanceName, usize)> {
        let slots = self.slots();
        let tools = slots.iter();
        tools
            .map(|(name, slot)| (name.clone(), slot.tools()))
            .collect()
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<InstanceName, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The virtual sockets of every instance. Dropped, they are closed.
pub(crate) struct MuxSockets {
    fleet: Fleet,
    figures: Arc<MuxFigures>,
    admission: Admission,
    open: BTreeMap<InstanceName, Open>,
}

/// The sockets of one instance.
struct Open {
    uid: InstanceUid,
    config: Vec<MuxConfig>,
    cancel: CancellationToken,
    tasks: JoinSet<()>,
}

impl MuxSockets {
    pub(crate) fn new(fleet: Fleet, admission: Admission) -> Self {
        Self {
            fleet,
            figures: Arc::default(),
            admission,
            open: BTreeMap::new(),
        }
    }

    pub(crate) fn figures(&self) -> Arc<MuxFigures> {
        Arc::clone(&self.figures)
    }

    /// Makes these the sockets: those of instances that are as they were stay open, with their tools.
    pub(crate) async fn set(&mut self, wanted: BTreeMap<InstanceName, Vec<MuxConfig>>) {
        let mut closing = Vec::new();
        for (name, open) in std::mem::take(&mut self.open) {
            let instance = self.fleet.instance(name.as_str());
            let is_as_it_was = instance.is_some_and(|instance| instance.uid() == open.uid)
                && wanted.get(&name) == Some(&open.config);
            if is_as_it_was {
                self.open.insert(name, open);
            } else {
                self.figures.slots().remove(&name);
                closing.push(open);
            }
        }
        // All of them first: an address may move from one instance to another.
        for open in closing {
            open.close().await;
        }
        for (name, config) in wanted {
            if config.is_empty() || self.open.contains_key(&name) {
                continue;
            }
            if let Some(instance) = self.fleet.instance(name.as_str()) {
                let counts = Arc::clone(&self.figures.counts);
                let slot = Slot::new(self.fleet.clone(), instance, counts);
                self.figures.slots().insert(name.clone(), Arc::clone(&slot));
                self.open
                    .insert(name, Open::new(&slot, config, &self.admission));
            }
        }
    }

    /// Closes every socket and lets the tools go.
    pub(crate) async fn close(self) {
        for open in self.open.into_values() {
            open.close().await;
        }
    }
}

impl Open {
    fn new(slot: &Arc<Slot>, config: Vec<MuxConfig>, admission: &Admission) -> Self {
        let (instance, cancel) = (slot.instance(), CancellationToken::new());
        let mut tasks = JoinSet::new();
        for socket in &config {
            let serving = keep_open(
                Arc::clone(slot),
                socket.clone(),
                admission.clone(),
                cancel.clone(),
            );
            let address = socket.address.shown();
            let span = info_span!("mux", instance = %instance.name(), address);
            tasks.spawn(serving.instrument(span));
        }
        Self {
            uid: instance.uid(),
            config,
            cancel,
            tasks,
        }
    }

    async fn close(mut self) {
        self.cancel.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Why a socket cannot be opened yet.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

enum Listener {
    Unix(UnixSocket),
    Tcp(TcpListener),
    Tls(TcpListener, TlsAcceptor),
}

impl Listener {
    fn open(config: &MuxConfig) -> Result<Self, OpenError> {
        let within = config.files_within.as_deref();
        Ok(match &config.address {
            MuxAddress::Unix(socket) => Self::Unix(bind_unix(socket)?),
            MuxAddress::Tcp(address) => Self::Tcp(bind_tcp(*address)?),
            MuxAddress::Tls(address, files) => {
                let tls = TlsAcceptor::from(load_tls_within(files, None, within)?);
                Self::Tls(bind_tcp(*address)?, tls)
            }
        })
    }
}

/// Opens one socket as soon as that is possible, and serves its tools.
async fn keep_open(
    slot: Arc<Slot>,
    config: MuxConfig,
    admission: Admission,
    cancel: CancellationToken,
) {
    let mut complained = false;
    let listener = loop {
        match Listener::open(&config) {
            Ok(listener) => break listener,
            Err(error) if !complained => {
                complained = true;
                let error: &dyn std::error::Error = &error;
                tracing::error!(
                    error,
                    "the virtual socket cannot be opened; it is tried again"
                );
            }
            Err(_) => {}
        }
        if cancel
            .run_until_cancelled(sleep(BIND_RETRY))
            .await
            .is_none()
        {
            return;
        }
    };
    let others = config.rights.others.as_ref().map(tracing::field::display);
    let certificates = config.rights.certificates.len();
    tracing::info!(policy = others, certificates, "virtual socket open");
    let mut accepting = Accepting::new(config.address.shown(), &admission);
    let config = Arc::new(config);
    let mut tools = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = accept(&listener) => accepted,
            Some(_) = tools.join_next() => continue,
        };
        match accepted {
            Ok(accepted) => {
                accepting.succeeded();
                // One more handshake than allowed waits here, and those behind it in the kernel's queue.
                let handshake = match &accepted {
                    Accepted::Tls(..) => {
                        match cancel.run_until_cancelled(admission.handshake()).await {
                            Some(handshake) => Some(handshake),
                            None => break,
                        }
                    }
                    Accepted::Unix(_) | Accepted::Tcp(..) => None,
                };
                let (slot, config) = (Arc::clone(&slot), Arc::clone(&config));
                let serving = serve(slot, accepted, handshake, config, cancel.clone());
                tools.spawn(serving.in_current_span());
            }
            Err(error) => accepting.failed(&error).await,
        }
    }
    // The file of a Unix socket goes at once: nobody shall wait for an answer.
    drop(listener);
    while tools.join_next().await.is_some() {}
}

enum Accepted {
    Unix(UnixStream),
    Tcp(TcpStream, SocketAddr),
    Tls(TcpStream, SocketAddr, TlsAcceptor),
}

async fn accept(listener: &Listener) -> io::Result<Accepted> {
    Ok(match listener {
        Listener::Unix(socket) => Accepted::Unix(socket.listener.accept().await?.0),
        Listener::Tcp(listener) => {
            let (stream, address) = listener.accept().await?;
            set_options(&stream);
            Accepted::Tcp(stream, address)
        }
        Listener::Tls(listener, tls) => {
            let (stream, address) = listener.accept().await?;
            set_options(&stream);
            Accepted::Tls(stream, address, tls.clone())
        }
    })
}

/// A tool's connection, whichever way it came.
trait ToolStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> ToolStream for S {}

/// A tool at the other end of a connection.
struct Peer {
    stream: Box<dyn ToolStream>,
    /// Who it is, as far as the system or its certificate says.
    who: String,
    /// What its certificate says.
    names: Option<CertificateNames>,
}

impl Peer {
    fn new(stream: impl ToolStream + 'static, who: String) -> Self {
        Self {
            stream: Box::new(stream),
            who,
            names: None,
        }
    }

    /// Who has connected; `None` if it does not come to a TLS connection.
    async fn of(accepted: Accepted, handshake: Option<Handshake>) -> Option<Self> {
        match accepted {
            Accepted::Unix(stream) => {
                let who = match stream.peer_cred() {
                    Ok(peer) => {
                        let pid = peer.pid().unwrap_or_default();
                        format!("uid {} pid {pid}", peer.uid())
                    }
                    Err(_) => "unknown".to_owned(),
                };
                Some(Self::new(stream, who))
            }
            Accepted::Tcp(stream, address) => Some(Self::new(stream, address.to_string())),
            Accepted::Tls(stream, address, tls) => {
                let stream = match handshake?.make(&tls, stream).await {
                    Ok(stream) => stream,
                    Err(error) => {
                        tracing::info!(%address, %error, "TLS handshake failed");
                        return None;
                    }
                };
                let certificate = certificate(&stream)?;
                let who = format!("{} {address}", Identity::of_certificate(certificate));
                let names = CertificateNames::of(certificate);
                Some(Self {
                    names: Some(names),
                    ..Self::new(stream, who)
                })
            }
        }
    }
}

async fn serve(
    slot: Arc<Slot>,
    accepted: Accepted,
    handshake: Option<Handshake>,
    config: Arc<MuxConfig>,
    cancel: CancellationToken,
) {
    let arriving = cancel.run_until_cancelled(Peer::of(accepted, handshake));
    let Some(Some(Peer {
        mut stream,
        who,
        names,
    })) = arriving.await
    else {
        return;
    };
    let Some(policy) = config.rights.of(names.as_ref()) else {
        tracing::warn!(tool = who, "a tool with this certificate is not let in");
        bid_farewell(&mut stream).await;
        return;
    };
    let tool = match tool_config(&config, policy.clone()).await {
        Ok(tool) => tool,
        Err(error) => {
            tracing::error!(tool = who, %error, "no tool can log in");
            return;
        }
    };
    let span = info_span!("tool", who);
    tracing::info!(parent: &span, policy = %tool.policy, "tool connected");
    let left = slot
        .serve(&mut stream, &tool, &cancel)
        .instrument(span.clone())
        .await;
    bid_farewell(&mut stream).await;
    tracing::info!(parent: &span, reason = %left, "tool gone");
}

/// Says that nothing more comes: behind TLS an end without that passes for an attack.
async fn bid_farewell(stream: &mut Box<dyn ToolStream>) {
    // Who has gone already cannot be told.
    let _ = timeout(FAREWELL_MAX, stream.shutdown()).await;
}

/// How a tool that comes now is treated: the password is read anew, so that it can be changed.
async fn tool_config(config: &MuxConfig, policy: Policy) -> Result<ToolConfig, PasswordError> {
    let password = match config.password_file.clone() {
        None => None,
        Some(path) => {
            let within = config.files_within.clone();
            let reading = spawn_blocking(move || read_password(&path, within.as_deref())).await;
            Some(reading.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?)
        }
    };
    Ok(ToolConfig {
        policy,
        password,
        away: config.away,
    })
}
