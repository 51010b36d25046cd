//! How a session behaves.

use std::path::PathBuf;
use std::time::Duration;

use crate::address::Address;

/// How one session behaves.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SessionConfig {
    /// Where the daemon's management socket is.
    pub address: Address,
    /// The file with the management password in its first line; only its owner may have access to it.
    pub password_file: Option<PathBuf>,
    /// What to do when the daemon waits for `hold release`.
    pub hold: HoldPolicy,
    /// What the daemon does when we leave.
    pub disconnect: DisconnectPolicy,
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
        Self {
            address,
            password_file: None,
            hold: HoldPolicy::Release,
            disconnect: DisconnectPolicy::Harmless,
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
