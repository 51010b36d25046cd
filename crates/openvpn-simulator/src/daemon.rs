//! The handle of one simulated daemon: drive it, watch what its manager does.

mod builder;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

pub(crate) use builder::Settings;
pub use builder::{DaemonBuilder, Timing};

use crate::owner::{Job, Observed, Owner, Trace};
use crate::socket::Connection;
use crate::{ClientSpec, ClientState, ControlError, How, Misbehaviour, StartError};

/// Where a daemon's management interface listens, or whom it dials.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A Unix socket at this path.
    Unix(PathBuf),
    /// A TCP address.
    Tcp(SocketAddr),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

/// The two signals that restart a daemon inside its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartSignal {
    /// Soft restart.
    Sigusr1,
    /// Restart that reads the configuration again.
    Sighup,
}

/// What a burst wrote.
#[derive(Clone, Debug)]
pub struct BurstReport {
    /// CID of the first client of the burst; the others follow without a hole.
    pub first_cid: u64,
    /// When each notification had been handed to the kernel, in their order on the wire:
    /// `ESTABLISHED` and `DISCONNECT` of one client after the other.
    pub written: Vec<Instant>,
}

/// A running simulated daemon. Dropping it ends it and removes its socket.
///
/// All methods may be called at any time, in any order; they are carried out one by one by the
/// daemon's own task, between two reads of its manager.
#[derive(Debug)]
pub struct Daemon {
    name: Arc<str>,
    address: Address,
    /// Whether that is where its manager listens.
    dials: bool,
    jobs: mpsc::Sender<Job>,
    observed: watch::Receiver<Observed>,
    trace: Arc<Trace>,
    task: JoinHandle<()>,
}

impl Daemon {
    /// A daemon of that name with an empty network `10.8.0.0/16` and no address yet.
    pub fn builder(name: impl Into<String>) -> DaemonBuilder {
        DaemonBuilder::new(name.into())
    }

    /// Name given to the builder.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it listens, with the port the kernel chose; its `Display` is what a gateway's
    /// configuration takes. If it dials: where its manager listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Process ID it claims in its present or last run.
    pub fn pid(&self) -> u32 {
        self.observed.borrow().pid
    }

    /// Whether the process runs: not stopped, killed or ended by SIGTERM.
    pub fn is_running(&self) -> bool {
        self.observed.borrow().running
    }

    /// Whether a manager is attached: connected, and past the password if there is one.
    pub fn is_attached(&self) -> bool {
        self.observed.borrow().attached
    }

    /// How many sessions it has accepted since it was built.
    pub fn sessions(&self) -> u64 {
        self.observed.borrow().sessions
    }

    /// The last lines managers sent, oldest first, without line ends; at most
    /// [`Daemon::COMMANDS_KEPT_MAX`], older ones are forgotten.
    ///
    /// Passwords for the management interface itself are not among them.
    pub fn commands(&self) -> Vec<Vec<u8>> {
        self.trace.commands()
    }

    /// How many lines managers have sent since the daemon was built.
    pub fn commands_total(&self) -> u64 {
        self.observed.borrow().commands
    }

    /// How many received lines [`Daemon::commands`] keeps.
    pub const COMMANDS_KEPT_MAX: usize = 1024;

    /// Returns once a manager is attached, at once if one is.
    pub async fn wait_attached(&self) {
        self.wait(|observed| observed.attached).await;
    }

    /// Returns once no manager is attached.
    pub async fn wait_detached(&self) {
        self.wait(|observed| !observed.attached).await;
    }

    /// Returns once the process has ended.
    pub async fn wait_stopped(&self) {
        self.wait(|observed| !observed.running).await;
    }

    /// Returns once a manager has sent a line that starts with `prefix`, among those still kept.
    pub async fn wait_command(&self, prefix: &[u8]) {
        self.wait(|_| self.trace.has_command(prefix)).await;
    }

    async fn wait(&self, mut condition: impl FnMut(&Observed) -> bool) {
        let mut observed = self.observed.clone();
        // The task has ended only when the runtime is shutting down; nothing will change then.
        if observed.wait_for(|state| condition(state)).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Connects a client and returns its CID; with client-auth on it then waits for approval.
    ///
    /// # Errors
    /// [`ControlError::Stopped`], [`ControlError::NotServing`].
    pub async fn connect(&self, client: ClientSpec) -> Result<u64, ControlError> {
        self.call(move |owner| owner.connect(client)).await?
    }

    /// Connects a client; also returns the instant its `>CLIENT:` block was handed to the kernel.
    ///
    /// # Errors
    /// Those of [`Daemon::connect`], and [`ControlError::NotAttached`] when nobody heard of it.
    pub async fn connect_stamped(
        &self,
        client: ClientSpec,
    ) -> Result<(u64, Instant), ControlError> {
        let (cid, written) = self
            .call(move |owner| {
                let cid = owner.connect(client)?;
                Ok((cid, owner.mark()?))
            })
            .await??;
        Ok((cid, self.written(written).await?))
    }

    /// Begins a client's handshake and leaves it there: an `UNDEF` row in `status`, no
    /// notification. It is given up after the hand window.
    ///
    /// # Errors
    /// [`ControlError::Stopped`], [`ControlError::NotServing`].
    pub async fn half_open(&self) -> Result<u64, ControlError> {
        self.call(|owner| owner.half_open(None)).await?
    }

    /// The same from that address.
    ///
    /// # Errors
    /// Those of [`Daemon::half_open`].
    pub async fn half_open_from(&self, address: SocketAddr) -> Result<u64, ControlError> {
        self.call(move |owner| owner.half_open(Some(address)))
            .await?
    }

    /// Completes the handshake of a half-open client.
    ///
    /// # Errors
    /// [`ControlError::UnknownClient`] when no half-open client has that CID; else as
    /// [`Daemon::connect`].
    pub async fn complete(&self, cid: u64, client: ClientSpec) -> Result<(), ControlError> {
        self.call(move |owner| owner.complete(cid, client)).await?
    }

    /// Lets a client leave.
    ///
    /// # Errors
    /// [`ControlError::Stopped`], [`ControlError::UnknownClient`].
    pub async fn leave(&self, cid: u64, how: How) -> Result<(), ControlError> {
        self.call(move |owner| owner.leave(cid, how)).await?
    }

    /// Lets a client connect again from another port, while its old instance is still listed;
    /// returns the new CID. Without `duplicate_cn` the new instance drops the old one.
    ///
    /// # Errors
    /// Those of [`Daemon::connect`], and [`ControlError::UnknownClient`].
    pub async fn reconnect(&self, cid: u64) -> Result<u64, ControlError> {
        self.call(move |owner| owner.reconnect(cid)).await?
    }

    /// Counts packets of the daemon's own connection, as one that is a client has it.
    ///
    /// # Errors
    /// [`ControlError::Stopped`].
    pub async fn add_link_traffic(
        &self,
        bytes_received: u64,
        bytes_sent: u64,
    ) -> Result<(), ControlError> {
        self.call(move |owner| owner.add_link_traffic(bytes_received, bytes_sent))
            .await?
    }

    /// Lets an established client negotiate its next key; with client-auth on, the manager is
    /// asked again (`>CLIENT:REAUTH`). Returns the number of the key.
    ///
    /// # Errors
    /// [`ControlError::Stopped`], [`ControlError::UnknownClient`] when no established client that
    /// the manager approved has that CID.
    pub async fn reauthenticate(&self, cid: u64) -> Result<u64, ControlError> {
        self.call(move |owner| owner.reauthenticate(cid)).await?
    }

    /// Lets a client that waits for its approval answer a challenge (`>CLIENT:CR_RESPONSE`); its
    /// text is in base 64.
    ///
    /// # Errors
    /// [`ControlError::Stopped`]; [`ControlError::UnknownClient`] when no client that waits has
    /// that CID.
    pub async fn challenge_response(&self, cid: u64, text: &str) -> Result<(), ControlError> {
        let text = text.to_owned();
        self.call(move |owner| owner.challenge_response(cid, &text))
            .await?
    }

    /// The server of a daemon that is a client wants some time to decide about it, and has
    /// `message` for its user, such as `CR_TEXT:R,E:Enter PIN`.
    ///
    /// # Errors
    /// [`ControlError::Stopped`]; [`ControlError::NotAwaiting`] unless the daemon
    /// [awaits its server](crate::ClientMode::awaits_server) now.
    pub async fn server_defers(
        &self,
        seconds: u64,
        message: Option<&str>,
    ) -> Result<(), ControlError> {
        let message = message.map(str::to_owned);
        self.call(move |owner| owner.server_defers(seconds, message.as_deref()))
            .await?
    }

    /// The server of a daemon that is a client takes it.
    ///
    /// # Errors
    /// Those of [`Daemon::server_defers`].
    pub async fn server_accepts(&self) -> Result<(), ControlError> {
        self.call(Owner::server_accepts).await?
    }

    /// Counts packets of a client, as seen from the daemon, and reports them if the manager
    /// asked for byte counts and its interval has passed.
    ///
    /// # Errors
    /// [`ControlError::Stopped`], [`ControlError::UnknownClient`].
    pub async fn add_traffic(
        &self,
        cid: u64,
        bytes_received: u64,
        bytes_sent: u64,
    ) -> Result<(), ControlError> {
        self.call(move |owner| owner.add_traffic(cid, bytes_received, bytes_sent))
            .await?
    }

    /// The clients there are, by CID.
    ///
    /// # Errors
    /// [`ControlError::Stopped`].
    pub async fn clients(&self) -> Result<Vec<ClientState>, ControlError> {
        self.call(Owner::clients).await?
    }

    /// The log lines it keeps, oldest first, as `log all` gives them.
    ///
    /// # Errors
    /// [`ControlError::Stopped`].
    pub async fn log_lines(&self) -> Result<Vec<Vec<u8>>, ControlError> {
        self.call(Owner::log_lines).await?
    }

    /// Sends the process a restart signal, as `kill -USR1` would.
    ///
    /// # Errors
    /// [`ControlError::Stopped`].
    pub async fn restart(&self, signal: RestartSignal) -> Result<(), ControlError> {
        self.call(move |owner| owner.restart(signal)).await?
    }

    /// Writes these bytes to the attached manager, whatever they are; returns the instant they
    /// were handed to the kernel. A line needs its own CR and LF.
    ///
    /// # Errors
    /// [`ControlError::Stopped`]; [`ControlError::NotAttached`], also when the manager leaves
    /// before they are written.
    pub async fn raw(&self, bytes: impl Into<Vec<u8>>) -> Result<Instant, ControlError> {
        let bytes = bytes.into();
        let written = self.call(move |owner| owner.raw(&bytes)).await??;
        self.written(written).await
    }

    /// Connects and disconnects `clients` short-lived clients as fast as the manager reads:
    /// `2 × clients` notifications with short ENV blocks, back to back. Commands are answered in
    /// between, and the client table is the same before and after. One at a time: a burst cuts
    /// short the one before it.
    ///
    /// # Errors
    /// [`ControlError::Stopped`], [`ControlError::NotServing`]; [`ControlError::NotAttached`],
    /// also when the manager leaves before the end.
    pub async fn burst(&self, clients: usize) -> Result<BurstReport, ControlError> {
        let report = self.call(move |owner| owner.burst(clients)).await??;
        report.await.map_err(|_| self.not_attached())
    }

    /// Stops the process as SIGSTOP does: it reads, writes and accepts nothing until
    /// [`Daemon::thaw`]. Scripted steps still change its state.
    ///
    /// # Errors
    /// [`ControlError::Stopped`].
    pub async fn freeze(&self) -> Result<(), ControlError> {
        self.call(Owner::freeze).await?
    }

    /// Goes on after [`Daemon::freeze`].
    ///
    /// # Errors
    /// [`ControlError::Stopped`].
    pub async fn thaw(&self) -> Result<(), ControlError> {
        self.call(Owner::thaw).await?
    }

    /// Closes the manager's connection, if there is one; the daemon goes on.
    ///
    /// # Errors
    /// [`ControlError::Stopped`].
    pub async fn drop_session(&self) -> Result<(), ControlError> {
        self.call(Owner::drop_session).await?
    }

    /// Ends the process as SIGTERM does: last words to the manager, socket removed.
    /// Nothing happens when it is already stopped.
    pub async fn stop(&self) {
        // The only error is that the task is gone, and with it the process.
        let _ = self.call(Owner::stop).await;
    }

    /// Ends the process as SIGKILL does: no last words, and a Unix socket's file stays behind.
    pub async fn kill(&self) {
        // As in `stop`.
        let _ = self.call(Owner::kill).await;
    }

    /// Starts the process again at the same address: another pid, a later start time, no
    /// clients. Nothing happens when it runs.
    ///
    /// # Errors
    /// [`StartError::Listen`] when the address has been taken meanwhile, [`StartError::Dial`]
    /// when nobody listens there any more.
    pub async fn start_again(&self) -> Result<(), StartError> {
        if self.is_running() {
            return Ok(());
        }
        let dialled = match self.dials {
            true => Some(self.dial().await?),
            false => None,
        };
        match self.call(|owner| owner.start(dialled)).await {
            Ok(started) => started,
            // The task lives as long as this handle, unless the runtime is shutting down.
            Err(_) => Ok(()),
        }
    }

    async fn dial(&self) -> Result<Connection, StartError> {
        let dialled = Connection::dial(&self.address).await;
        dialled.map_err(|source| StartError::Dial {
            daemon: self.name.to_string(),
            address: self.address.clone(),
            source,
        })
    }

    /// Begins to misbehave in one more way.
    ///
    /// # Errors
    /// [`ControlError::Stopped`] when the daemon's task is gone.
    pub async fn misbehave(&self, misbehaviour: Misbehaviour) -> Result<(), ControlError> {
        self.call(move |owner| owner.misbehave(misbehaviour)).await
    }

    /// Ends every misbehaviour.
    ///
    /// # Errors
    /// [`ControlError::Stopped`] when the daemon's task is gone.
    pub async fn behave(&self) -> Result<(), ControlError> {
        self.call(Owner::behave).await
    }

    /// Runs `step` in the daemon's task.
    async fn call<R: Send + 'static>(
        &self,
        step: impl FnOnce(&mut Owner) -> R + Send + 'static,
    ) -> Result<R, ControlError> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |owner| {
            let answer = step(owner);
            // What the step led to is visible before the script goes on.
            owner.settle();
            // A script that no longer waits for the answer wanted the step all the same.
            let _ = reply.send(answer);
        });
        let stopped = || ControlError::Stopped {
            daemon: self.name.to_string(),
        };
        self.jobs.send(job).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())
    }

    async fn written(&self, written: oneshot::Receiver<Instant>) -> Result<Instant, ControlError> {
        written.await.map_err(|_| self.not_attached())
    }

    fn not_attached(&self) -> ControlError {
        ControlError::NotAttached {
            daemon: self.name.to_string(),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.task.abort();
        if let (false, Address::Unix(path)) = (self.dials, &self.address) {
            // The task removes it too, but only when the runtime comes to drop it; a file that
            // is already gone is what we want.
            let _ = std::fs::remove_file(path);
        }
    }
}
