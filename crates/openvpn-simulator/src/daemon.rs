//! The handle of one simulated daemon: build it, drive it, watch what its manager does.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::owner::{Job, Observed, Owner, Trace};
use crate::{
    ClientMode, ClientSpec, ClientState, ControlError, How, Misbehaviour, StartError, Version,
};

/// Scripted steps waiting for the daemon's task; a script that is ahead waits.
const JOBS_CAPACITY: usize = 16;

/// Where a daemon's management interface listens.
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

/// How long the daemon takes for things; the defaults are those of OpenVPN 2.6.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// From a restart signal until the daemon serves again.
    pub restart_pause: Duration,
    /// How long a killed or leaving instance stays listed.
    pub delayed_exit: Duration,
    /// From a `RESTART` kill until the client is back.
    pub return_after_kill: Duration,
    /// From the end of a restart until the clients begin to come back, a few at a time.
    pub return_after_restart: Duration,
    /// How long a half-open client may take for its handshake.
    pub hand_window: Duration,
    /// Between two keepalive packets of an idle client; with `bytecount` on, each is reported.
    pub keepalive: Duration,
    /// How long silence lasts until the other side is given up.
    pub ping_restart: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            restart_pause: Duration::from_secs(1),
            delayed_exit: Duration::from_secs(5),
            return_after_kill: Duration::from_secs(1),
            return_after_restart: Duration::from_secs(2),
            hand_window: Duration::from_secs(60),
            keepalive: Duration::from_secs(10),
            ping_restart: Duration::from_secs(60),
        }
    }
}

/// Everything that is fixed about a daemon before it starts.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) name: String,
    pub(crate) version: Version,
    pub(crate) client: Option<ClientMode>,
    pub(crate) private_key_password: Option<Vec<u8>>,
    pub(crate) password: Option<Vec<u8>>,
    pub(crate) hold: bool,
    pub(crate) client_auth: bool,
    pub(crate) duplicate_cn: bool,
    pub(crate) status_version: u8,
    pub(crate) log_cache: usize,
    pub(crate) echo: Vec<String>,
    pub(crate) seed: u64,
    pub(crate) network: Ipv4Addr,
    pub(crate) prefix_length: u8,
    pub(crate) network_ipv6: Option<Ipv6Addr>,
    pub(crate) port: u16,
    pub(crate) dual_stack: bool,
    pub(crate) timing: Timing,
}

/// A daemon to be. Start from [`Daemon::builder`]; an address is all it needs.
#[derive(Clone, Debug)]
pub struct DaemonBuilder {
    settings: Settings,
    address: Option<Address>,
    misbehaviours: Vec<Misbehaviour>,
}

impl DaemonBuilder {
    /// Listens on a Unix socket; a stale file at `path` is replaced.
    #[must_use]
    pub fn unix(mut self, path: impl Into<PathBuf>) -> Self {
        self.address = Some(Address::Unix(path.into()));
        self
    }

    /// Listens on a TCP address; port 0 takes a free one, see [`Daemon::address`].
    #[must_use]
    pub fn tcp(mut self, address: SocketAddr) -> Self {
        self.address = Some(Address::Tcp(address));
        self
    }

    /// Plays this version of OpenVPN, 2.6 unless set; its restart pause comes with it, until a
    /// later [`DaemonBuilder::timing`].
    #[must_use]
    pub fn version(mut self, version: Version) -> Self {
        self.settings.version = version;
        self.settings.timing.restart_pause = version.restart_pause();
        self
    }

    /// Is an OpenVPN client itself, and no server.
    #[must_use]
    pub fn client(mut self, client: ClientMode) -> Self {
        self.settings.client = Some(client);
        self
    }

    /// Asks the manager for the password of its private key, at the start and after every SIGHUP
    /// (`--management-query-passwords`).
    #[must_use]
    pub fn private_key_password(mut self, password: impl Into<Vec<u8>>) -> Self {
        self.settings.private_key_password = Some(password.into());
        self
    }

    /// Asks managers for this password.
    #[must_use]
    pub fn password(mut self, password: impl Into<Vec<u8>>) -> Self {
        self.settings.password = Some(password.into());
        self
    }

    /// Waits for `hold release` at the start and after every restart (`--management-hold`).
    #[must_use]
    pub fn hold(mut self) -> Self {
        self.settings.hold = true;
        self
    }

    /// Asks the manager about every client (`--management-client-auth`).
    #[must_use]
    pub fn client_auth(mut self) -> Self {
        self.settings.client_auth = true;
        self
    }

    /// Lets clients of one name stay connected beside each other (`--duplicate-cn`).
    #[must_use]
    pub fn duplicate_cn(mut self) -> Self {
        self.settings.duplicate_cn = true;
        self
    }

    /// Format of a `status` without an argument (`--status-version`); 1 unless set.
    #[must_use]
    pub fn status_version(mut self, version: u8) -> Self {
        self.settings.status_version = version;
        self
    }

    /// Number of log lines kept (`--management-log-cache`); 250 unless set.
    #[must_use]
    pub fn log_cache(mut self, lines: usize) -> Self {
        self.settings.log_cache = lines;
        self
    }

    /// Adds a line to the echo history at every start (`--echo`).
    #[must_use]
    pub fn echo(mut self, text: impl Into<String>) -> Self {
        self.settings.echo.push(text.into());
        self
    }

    /// Seeds everything random about the daemon: pid, ports, serial numbers, misbehaviour.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.settings.seed = seed;
        self
    }

    /// IPv4 network of the VPN; `10.8.0.0/16` unless set.
    #[must_use]
    pub fn network(mut self, network: Ipv4Addr, prefix_length: u8) -> Self {
        self.settings.network = network;
        self.settings.prefix_length = prefix_length.min(30);
        self
    }

    /// IPv6 network of the VPN, a `/64`; none unless set.
    #[must_use]
    pub fn network_ipv6(mut self, network: Ipv6Addr) -> Self {
        self.settings.network_ipv6 = Some(network);
        self
    }

    /// UDP port the daemon claims to serve; 1194 unless set.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.settings.port = port;
        self
    }

    /// Serves clients of both families on one IPv6 socket (`--proto udp6 --local ::`): `kill`
    /// then finds no IPv4 address, as to the daemon all are IPv6.
    #[must_use]
    pub fn dual_stack(mut self) -> Self {
        self.settings.dual_stack = true;
        self
    }

    /// How long things take.
    #[must_use]
    pub fn timing(mut self, timing: Timing) -> Self {
        self.settings.timing = timing;
        self
    }

    /// Misbehaves from the start.
    #[must_use]
    pub fn misbehave(mut self, misbehaviour: Misbehaviour) -> Self {
        self.misbehaviours.push(misbehaviour);
        self
    }

    /// Starts listening and serving on the current Tokio runtime.
    ///
    /// # Errors
    /// [`StartError::NoAddress`] without an address, [`StartError::Listen`] when it is taken.
    pub async fn start(self) -> Result<Daemon, StartError> {
        let name = self.settings.name.clone();
        let Some(address) = self.address else {
            return Err(StartError::NoAddress { daemon: name });
        };
        let trace = Arc::new(Trace::default());
        let (observed_sender, observed) = watch::channel(Observed::default());
        let (jobs, jobs_receiver) = mpsc::channel(JOBS_CAPACITY);
        let mut owner = Owner::new(
            self.settings,
            address.clone(),
            jobs_receiver,
            observed_sender,
            Arc::clone(&trace),
        );
        for misbehaviour in self.misbehaviours {
            owner.misbehave(misbehaviour);
        }
        let mut daemon = Daemon {
            name: name.into(),
            address,
            jobs,
            observed,
            trace,
            task: tokio::spawn(owner.run()),
        };
        daemon.start_again().await?;
        // The task is alive, as it has just answered; it knows the port the kernel chose.
        if let Ok(address) = daemon.call(|owner| owner.address().clone()).await {
            daemon.address = address;
        }
        Ok(daemon)
    }
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
    jobs: mpsc::Sender<Job>,
    observed: watch::Receiver<Observed>,
    trace: Arc<Trace>,
    task: JoinHandle<()>,
}

impl Daemon {
    /// A daemon of that name with an empty network `10.8.0.0/16` and no address yet.
    pub fn builder(name: impl Into<String>) -> DaemonBuilder {
        let name = name.into();
        DaemonBuilder {
            settings: Settings {
                seed: name.bytes().fold(1, |hash, byte| {
                    (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
                }),
                name,
                version: Version::V2_6,
                client: None,
                private_key_password: None,
                password: None,
                hold: false,
                client_auth: false,
                duplicate_cn: false,
                status_version: 1,
                log_cache: 250,
                echo: Vec::new(),
                network: Ipv4Addr::new(10, 8, 0, 0),
                prefix_length: 16,
                network_ipv6: None,
                port: 1194,
                dual_stack: false,
                timing: Timing::default(),
            },
            address: None,
            misbehaviours: Vec::new(),
        }
    }

    /// Name given to the builder.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it listens, with the port the kernel chose; its `Display` is what a gateway's
    /// configuration takes.
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
        self.call(Owner::half_open).await?
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
    /// [`StartError::Listen`] when the address has been taken meanwhile.
    pub async fn start_again(&self) -> Result<(), StartError> {
        match self.call(Owner::start).await {
            Ok(started) => started,
            // The task lives as long as this handle, unless the runtime is shutting down.
            Err(_) => Ok(()),
        }
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
        if let Address::Unix(path) = &self.address {
            // The task removes it too, but only when the runtime comes to drop it; a file that
            // is already gone is what we want.
            let _ = std::fs::remove_file(path);
        }
    }
}
