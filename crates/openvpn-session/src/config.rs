//! How a session behaves.

use std::path::PathBuf;
use std::time::Duration;

use crate::address::Address;
use crate::tls::Pin;

/// How one session behaves.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SessionConfig {
    /// Where the daemon's management socket is.
    pub address: Address,
    /// The file with the management password in its first line; only its owner may have access to it.
    pub password_file: Option<PathBuf>,
    /// Files that are named under this directory must really be there, see [`open_file`](crate::open_file).
    pub files_within: Option<PathBuf>,
    /// What to do when the daemon waits for `hold release`.
    pub hold: HoldPolicy,
    /// What the daemon does when we leave; always [`Destructive`](DisconnectPolicy::Destructive) for one that dials in.
    pub disconnect: DisconnectPolicy,
    /// TLS to a `tls:` address; of no effect for other addresses.
    pub tls: TlsConfig,
    /// The socket on which the daemon dials in; of no effect for other addresses.
    pub dial_in: DialInConfig,
    /// Whether to ask for log lines. They carry the hints that a client leaves.
    pub log: bool,
    /// How often traffic is reported, in whole seconds, rounded up; `None` is never.
    pub bytecount: Option<Duration>,
    /// How often `status` is asked when nothing else calls for it.
    pub status_interval: Duration,
    /// Most client rows kept of one snapshot; further ones are counted and the snapshot is marked truncated.
    pub clients_max: usize,
    /// The session's waits and intervals.
    pub timings: Timings,
}

impl SessionConfig {
    /// The defaults for the daemon at `address`, without a password.
    #[must_use]
    pub fn new(address: Address) -> Self {
        let disconnect = if address.is_dial_in() {
            DisconnectPolicy::Destructive
        } else {
            DisconnectPolicy::Harmless
        };
        Self {
            address,
            password_file: None,
            files_within: None,
            hold: HoldPolicy::Release,
            disconnect,
            tls: TlsConfig::default(),
            dial_in: DialInConfig::default(),
            log: true,
            bytecount: Some(Duration::from_secs(10)),
            status_interval: Duration::from_secs(60),
            clients_max: openvpn_management::limits::CLIENTS_MAX,
            timings: Timings::default(),
        }
    }

    /// The interval of `bytecount` as the daemon takes it: whole seconds, at least 1.
    pub(crate) fn bytecount_secs(&self) -> Option<u32> {
        let interval = self.bytecount?;
        let whole_secs = interval.as_secs() + u64::from(interval.subsec_nanos() > 0);
        Some(u32::try_from(whole_secs).unwrap_or(u32::MAX).max(1))
    }
}

/// How the server at a `tls:` address is known, and how we are. Without `ca` and `pin` nothing is dialled.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct TlsConfig {
    /// The authorities, in PEM form, one of which vouches for the server's name.
    pub ca: Option<PathBuf>,
    /// SHA-256 of the server's certificate.
    pub pin: Option<Pin>,
    /// Our certificate, in PEM form, for a server that wants one.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// The server's name in its certificate; `None` is the host of the address.
    pub server_name: Option<String>,
}

/// A text is no fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no fingerprint: write sha256: and 64 hexadecimal digits, which may have colons between them"
)]
pub struct PinError {
    /// The text.
    pub text: String,
}

impl TlsConfig {
    /// A [`pin`](Self::pin) as it is written: `sha256:` and hexadecimal digits, colons between them allowed.
    ///
    /// # Errors
    /// [`PinError`].
    pub fn parse_pin(text: &str) -> Result<Pin, PinError> {
        let error = || PinError {
            text: text.to_owned(),
        };
        let hex = text.strip_prefix("sha256:").ok_or_else(error)?;
        let digits: Option<Vec<u8>> = hex
            .chars()
            .filter(|c| *c != ':')
            .map(|c| u8::try_from(c.to_digit(16)?).ok())
            .collect();
        let digits = digits.ok_or_else(error)?;
        let bytes: Vec<u8> = digits
            .chunks_exact(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect();
        if digits.len() % 2 != 0 {
            return Err(error());
        }
        bytes.try_into().map_err(|_| error())
    }
}

/// The Unix socket on which a daemon dials in, and who may.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DialInConfig {
    /// Mode of the socket file.
    pub mode: u32,
    /// User that owns it; `None` leaves it to us.
    pub owner: Option<u32>,
    /// Its group; `None` leaves it to us.
    pub group: Option<u32>,
    /// The only user whose processes are let in, as the kernel knows them; `None` is whoever may open the file.
    pub peer_uid: Option<u32>,
}

impl Default for DialInConfig {
    fn default() -> Self {
        Self {
            mode: 0o660,
            owner: None,
            group: None,
            peer_uid: None,
        }
    }
}

/// What to do when the daemon waits for `hold release`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HoldPolicy {
    /// Release it, every time: a held server holds again at each restart.
    Release,
    /// Leave it to a caller.
    Keep,
}

/// What the daemon does when a management session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DisconnectPolicy {
    /// Nothing but accept the next one.
    Harmless,
    /// End, restart or forget its passwords (`--management-client`, `--management-signal`,
    /// `--management-forget-disconnect`): such a session is never dropped to probe or to retry.
    Destructive,
}

/// A session's waits and intervals, so that tests can have shorter ones.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Timings {
    /// A TCP connect that takes longer has failed.
    pub connect_deadline: Duration,
    /// Silence after the connect that makes a slot busy. A free daemon speaks within a millisecond.
    pub greeting_deadline: Duration,
    /// How long a daemon may take for a reply before it is unresponsive.
    pub reply_deadline: Duration,
    /// The same for `status`, whose answer may be megabytes: about 7 µs of the daemon's time a client.
    pub status_deadline: Duration,
    /// How often `load-stats` asks whether the daemon is alive; each interval is varied by ± 20 %.
    pub liveness_interval: Duration,
    /// Least time between two `status` commands, for whatever reason: 5/s.
    pub refresh_spacing: Duration,
    /// Least time between two `status` commands that only hints call for.
    pub hint_spacing: Duration,
    /// When to ask after a client was seen leaving: soon, and when the daemon's delayed exit (5 s) is over.
    pub leaving_polls: [Duration; 2],
    /// The first wait before dialling a local address again; it doubles.
    pub local_retry_min: Duration,
    /// The longest wait before dialling a local address again.
    pub local_retry_max: Duration,
    /// The same for a Unix socket that does not exist while its directory is watched for it.
    pub watched_retry_max: Duration,
    /// The wait before dialling a Unix socket again whose queue is full.
    pub queue_full_retry: Duration,
    /// The shortest wait before dialling a remote address again.
    pub remote_retry_min: Duration,
    /// The longest wait before dialling a remote address again.
    pub remote_retry_max: Duration,
    /// A session that was attached for that long starts its waits from the shortest again.
    pub healthy_after: Duration,
    /// How often the password file is looked at after a refused password.
    pub password_check_interval: Duration,
    /// When a refused password is tried again though nothing changed.
    pub password_retry: Duration,
    /// How long an unresponsive daemon keeps its session.
    pub unresponsive_reconnect: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            connect_deadline: Duration::from_secs(5),
            greeting_deadline: Duration::from_secs(5),
            reply_deadline: Duration::from_secs(5),
            status_deadline: Duration::from_secs(10),
            liveness_interval: Duration::from_secs(10),
            refresh_spacing: Duration::from_millis(200),
            hint_spacing: Duration::from_secs(1),
            leaving_polls: [Duration::from_secs(1), Duration::from_secs(6)],
            local_retry_min: Duration::from_millis(10),
            local_retry_max: Duration::from_millis(500),
            watched_retry_max: Duration::from_secs(5),
            queue_full_retry: Duration::from_millis(150),
            remote_retry_min: Duration::from_millis(200),
            remote_retry_max: Duration::from_secs(30),
            healthy_after: Duration::from_secs(60),
            password_check_interval: Duration::from_secs(1),
            password_retry: Duration::from_secs(300),
            unresponsive_reconnect: Duration::from_secs(600),
        }
    }
}
