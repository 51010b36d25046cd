//! Virtual management sockets: they come and go with the instances.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use openvpn_fleet::{Fleet, Instance, InstanceName, InstanceUid};
use openvpn_mux::{Slot, ToolConfig};
use openvpn_session::{PasswordError, read_password};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    task::{JoinSet, spawn_blocking},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, info_span};

use crate::{
    config::{MuxAddress, MuxConfig},
    listen::{BindError, UnixSocket, bind_tcp, bind_unix},
};

/// How often a socket that cannot be opened is tried again.
const BIND_RETRY: Duration = Duration::from_secs(2);
/// How long an accept loop rests after an error that will not go away at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The virtual sockets of every instance. Dropped, they are closed.
pub(crate) struct MuxSockets {
    fleet: Fleet,
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
    pub(crate) fn new(fleet: Fleet) -> Self {
        Self {
            fleet,
            open: BTreeMap::new(),
        }
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
                self.open.insert(name, Open::new(&instance, config));
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
    fn new(instance: &Arc<Instance>, config: Vec<MuxConfig>) -> Self {
        let (slot, cancel) = (Slot::new(Arc::clone(instance)), CancellationToken::new());
        let mut tasks = JoinSet::new();
        for socket in &config {
            let serving = keep_open(Arc::clone(&slot), socket.clone(), cancel.clone());
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

enum Listener {
    Unix(UnixSocket),
    Tcp(TcpListener),
}

impl Listener {
    fn open(address: &MuxAddress) -> Result<Self, BindError> {
        match address {
            MuxAddress::Unix(socket) => bind_unix(socket).map(Self::Unix),
            MuxAddress::Tcp(address) => bind_tcp(*address).map(Self::Tcp),
        }
    }
}

/// Opens one socket as soon as that is possible, and serves its tools.
async fn keep_open(slot: Arc<Slot>, config: MuxConfig, cancel: CancellationToken) {
    let mut complained = false;
    let listener = loop {
        match Listener::open(&config.address) {
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
    tracing::info!(policy = %config.policy, "virtual socket open");
    let config = Arc::new(config);
    let mut tools = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = accept(&listener) => accepted,
            Some(_) = tools.join_next() => continue,
        };
        match accepted {
            Ok((stream, who)) => {
                let serving = serve(
                    Arc::clone(&slot),
                    stream,
                    who,
                    Arc::clone(&config),
                    cancel.clone(),
                );
                tools.spawn(serving.in_current_span());
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept tools for now");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // The file of a Unix socket goes at once: nobody shall wait for an answer.
    drop(listener);
    while tools.join_next().await.is_some() {}
}

/// A tool's connection, whichever way it came.
trait ToolStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> ToolStream for S {}

/// A tool's connection, and who it is as far as the system knows.
async fn accept(listener: &Listener) -> io::Result<(Box<dyn ToolStream>, String)> {
    match listener {
        Listener::Unix(socket) => {
            let (stream, _) = socket.listener.accept().await?;
            let who = match stream.peer_cred() {
                Ok(peer) => format!("uid {} pid {}", peer.uid(), peer.pid().unwrap_or_default()),
                Err(_) => "unknown".to_owned(),
            };
            Ok((Box::new(stream), who))
        }
        Listener::Tcp(listener) => {
            let (stream, address) = listener.accept().await?;
            // Answers are short and wait for the next otherwise.
            stream.set_nodelay(true)?;
            Ok((Box::new(stream), address.to_string()))
        }
    }
}

async fn serve(
    slot: Arc<Slot>,
    stream: Box<dyn ToolStream>,
    who: String,
    config: Arc<MuxConfig>,
    cancel: CancellationToken,
) {
    let tool = match tool_config(&config).await {
        Ok(tool) => tool,
        Err(error) => {
            tracing::error!(tool = who, %error, "no tool can log in");
            return;
        }
    };
    let span = info_span!("tool", who);
    tracing::info!(parent: &span, "tool connected");
    let left = slot
        .serve(stream, &tool, &cancel)
        .instrument(span.clone())
        .await;
    tracing::info!(parent: &span, reason = %left, "tool gone");
}

/// How a tool that comes now is treated: the password is read anew, so that it can be changed.
async fn tool_config(config: &MuxConfig) -> Result<ToolConfig, PasswordError> {
    let password = match config.password_file.clone() {
        None => None,
        Some(path) => {
            let reading = spawn_blocking(move || read_password(&path)).await;
            Some(reading.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?)
        }
    };
    Ok(ToolConfig {
        policy: config.policy.clone(),
        password,
        away: config.away,
    })
}
