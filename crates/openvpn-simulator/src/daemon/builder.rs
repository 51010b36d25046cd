//! A daemon to be, and everything that is fixed about it.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::{Address, Daemon};
use crate::owner::{Observed, Owner, Trace};
use crate::{ClientMode, Misbehaviour, StartError, Version};

/// Scripted steps waiting for the daemon's task; a script that is ahead waits.
const JOBS_CAPACITY: usize = 16;

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
    pub(crate) dials: bool,
    pub(crate) management_signal: bool,
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
    pub(crate) port_taken: bool,
    pub(crate) tcp: bool,
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
    /// See [`Daemon::builder`].
    pub(super) fn new(name: String) -> Self {
        Self {
            settings: Settings {
                seed: name.bytes().fold(1, |hash, byte| {
                    (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
                }),
                name,
                version: Version::V2_6,
                client: None,
                private_key_password: None,
                password: None,
                dials: false,
                management_signal: false,
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
                port_taken: false,
                tcp: false,
                dual_stack: false,
                timing: Timing::default(),
            },
            address: None,
            misbehaviours: Vec::new(),
        }
    }

    /// Listens on a Unix socket; a stale file at `path` is replaced.
    #[must_use]
    pub fn unix(mut self, path: impl Into<PathBuf>) -> Self {
        self.address = Some(Address::Unix(path.into()));
        self.settings.dials = false;
        self
    }

    /// Listens on a TCP address; port 0 takes a free one, see [`Daemon::address`].
    #[must_use]
    pub fn tcp(mut self, address: SocketAddr) -> Self {
        self.address = Some(Address::Tcp(address));
        self.settings.dials = false;
        self
    }

    /// Dials its manager, who listens there when the daemon is started (`--management-client`),
    /// and ends when that connection does.
    #[must_use]
    pub fn dial(mut self, manager: Address) -> Self {
        self.address = Some(manager);
        self.settings.dials = true;
        self
    }

    /// Restarts as on SIGUSR1 whenever its manager leaves (`--management-signal`).
    #[must_use]
    pub fn management_signal(mut self) -> Self {
        self.settings.management_signal = true;
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

    /// Port the daemon claims to serve; 1194 unless set.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.settings.port = port;
        self
    }

    /// Some other process has that port: the daemon dies of it when it begins to serve.
    #[must_use]
    pub fn port_taken(mut self) -> Self {
        self.settings.port_taken = true;
        self
    }

    /// Serves its clients over TCP, which shows in its log (`--proto tcp4-server`).
    #[must_use]
    pub fn over_tcp(mut self) -> Self {
        self.settings.tcp = true;
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

    /// Starts listening, or dials, and serves, on the current Tokio runtime.
    ///
    /// # Errors
    /// [`StartError::NoAddress`] without an address, [`StartError::Listen`] when it is taken,
    /// [`StartError::Dial`] when nobody listens there.
    pub async fn start(self) -> Result<Daemon, StartError> {
        let name = self.settings.name.clone();
        let Some(address) = self.address else {
            return Err(StartError::NoAddress { daemon: name });
        };
        let trace = Arc::new(Trace::default());
        let (observed_sender, observed) = watch::channel(Observed::default());
        let (jobs, jobs_receiver) = mpsc::channel(JOBS_CAPACITY);
        let dials = self.settings.dials;
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
            dials,
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
