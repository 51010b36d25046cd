//! What is remembered between one observation and the next, and shown to nobody.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use openvpn_management::limits::LINE_BYTES_MAX;
use openvpn_management::{Cid, Env, Notification};
use openvpn_session::Moment;

use super::log_cap::LogCap;
use crate::client::Client;
use crate::filter::parse_real_address;
use crate::ledger::KnownRun;
use crate::question::PendingChallenge;

/// Bytes of the notifications kept while a session synchronises, which takes some round trips: thousands of log lines.
/// Of more, log lines are counted as rate-capped and everything else is made up for by the next snapshot.
const SYNC_BYTES_MAX: usize = 512 * 1024;
/// Clients that are ending or have ended lately, for which a successor is looked for; of more, the oldest is forgotten.
pub(crate) const ENDINGS_MAX: usize = 1_024;
/// How long after the first sign of a client's end another one can be its successor. A stock client that is told to
/// restart is back within a second, one before 2.5 within five.
pub(crate) const SUCCESSOR_WINDOW: Duration = Duration::from_secs(15);

/// What is remembered between one observation and the next.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Where the present session is.
    pub(super) stage: Stage,
    /// When the last session ended.
    pub(super) detached_at: Option<SystemTime>,
    /// The next attach is to another daemon, or to another run of it, for all we know.
    pub(super) doubted: bool,
    /// The daemon said RECONNECTING and was not CONNECTED since: the generation is that of the run to come.
    pub(super) reconnecting: bool,
    /// When the daemon was last CONNECTED, by its own clock: with its pid this names one run.
    pub(super) connected_time: Option<i64>,
    /// The highest CID in the complete snapshots of this generation. A daemon counts upwards, so that whoever is at or
    /// below it and not in the table has left.
    pub(super) highest_cid: Option<Cid>,
    /// The highest CID that an earlier run of the gateway knew of this generation, and when it last heard of the daemon;
    /// until the first complete snapshot of this one.
    pub(super) restored: Option<(Cid, i64)>,
    /// When the last complete snapshot of this generation was answered.
    pub(super) complete_snapshot: Option<SystemTime>,
    /// The daemon's clock at its first snapshot: bytes of clients from before do not count.
    pub(super) counting_from: Option<i64>,
    /// What the daemon's process has carried in all, as it said last.
    pub(super) carried: Option<Carried>,
    /// When a caller of ours sent a signal that disconnects everybody.
    pub(crate) restart_signalled: Option<Instant>,
    /// How many questions the daemon has asked; numbers them.
    pub(super) questions: u64,
    /// What the server asked when it refused credentials, until the daemon asks for them again and gets an answer.
    pub(crate) challenge: Option<PendingChallenge>,
    pub(super) log_cap: LogCap,
    /// Oldest first.
    endings: VecDeque<Ending>,
}

/// What a daemon's process has carried since it started: no signal and no session of ours begins it anew.
#[derive(Debug, Clone, Copy)]
pub(super) struct Carried {
    pub(super) received: u64,
    pub(super) sent: u64,
    /// When it was heard first.
    pub(super) since: SystemTime,
}

/// Where a session is.
#[derive(Debug, Default)]
pub(super) enum Stage {
    /// There is none, or it was not greeted.
    #[default]
    Detached,
    /// It asks what there is to know; what the daemon says meanwhile waits until the generation is known.
    Syncing {
        notifications: Waiting,
        /// How many more there were.
        dropped: u64,
    },
    /// It is in step.
    Attached,
}

/// Notifications that wait, in the order of the wire.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    notifications: Vec<(Notification, Moment)>,
    bytes: usize,
}

impl Waiting {
    /// Whether one more may wait.
    pub(super) fn has_room_for(&self, notification: &Notification) -> bool {
        self.bytes + bytes(notification) <= SYNC_BYTES_MAX
    }

    pub(super) fn push(&mut self, notification: Notification, at: Moment) {
        self.bytes += bytes(&notification);
        self.notifications.push((notification, at));
    }

    pub(super) fn into_vec(self) -> Vec<(Notification, Moment)> {
        self.notifications
    }
}

/// Bytes a notification takes; of one that does not come by the hundred the most that it may.
fn bytes(notification: &Notification) -> usize {
    let text_bytes = match notification {
        Notification::Bytecount { .. } | Notification::BytecountCli { .. } => 0,
        Notification::Log(record) => record.text.len(),
        Notification::ClientAddress { address, .. } => address.len(),
        Notification::Notify { kind, text, .. } => kind.len() + text.len(),
        Notification::Info(text) | Notification::Unrecognized(text) => text.len(),
        other => other.env().map_or(LINE_BYTES_MAX, Env::heap_bytes),
    };
    size_of::<(Notification, Moment)>() + text_bytes
}

/// A client that is ending or has ended.
#[derive(Debug)]
struct Ending {
    cid: Cid,
    common_name: Box<[u8]>,
    username: Box<[u8]>,
    host: Option<IpAddr>,
    since: Instant,
    successor: Option<Cid>,
}

impl Memory {
    pub(crate) fn is_greeted(&self) -> bool {
        !matches!(self.stage, Stage::Detached)
    }

    /// Takes up what an earlier run of the gateway knew.
    pub(crate) fn restore(&mut self, run: &KnownRun) {
        self.connected_time = run.connected_time;
        self.detached_at = run.observed;
        self.restored = run
            .highest_cid
            .zip(run.observed.map(super::clients::unix_seconds));
    }

    /// When the daemon was last heard of before the session ended, or before this run of the gateway.
    pub(crate) fn last_observed(&self) -> Option<SystemTime> {
        self.detached_at
    }

    /// What names the daemon's present run, and how far its client numbers are; `None`: nobody can tell.
    pub(crate) fn run(&self) -> Option<(Option<i64>, Option<Cid>)> {
        let restored = self.restored.map(|(cid, _)| cid);
        let is_known = !self.doubted && !self.reconnecting;
        is_known.then(|| (self.connected_time, self.highest_cid.max(restored)))
    }

    /// What attaches next may be another daemon altogether.
    pub(crate) fn doubt_generation(&mut self) {
        self.doubted = true;
    }

    /// A sign that `client` ends, or the end itself.
    pub(crate) fn note_ending(&mut self, client: &Client, now: Instant) {
        if client.half_open || self.endings.iter().any(|ending| ending.cid == client.cid) {
            return;
        }
        if self.endings.len() >= ENDINGS_MAX {
            self.endings.pop_front();
        }
        self.endings.push_back(Ending {
            cid: client.cid,
            common_name: client.common_name().into(),
            username: client.username().into(),
            host: host(client),
            since: now,
            successor: None,
        });
    }

    /// The client whose place `client` takes: the same names from the same host, ending, and not replaced yet.
    pub(super) fn take_place(&mut self, client: &Client, now: Instant) -> Option<Cid> {
        let is_recent =
            |ending: &Ending| now.saturating_duration_since(ending.since) <= SUCCESSOR_WINDOW;
        while self
            .endings
            .front()
            .is_some_and(|ending| !is_recent(ending))
        {
            self.endings.pop_front();
        }
        let host = host(client);
        let ending = self.endings.iter_mut().find(|ending| {
            ending.successor.is_none()
                && ending.cid != client.cid
                && *ending.common_name == *client.common_name()
                && *ending.username == *client.username()
                && ending.host == host
        })?;
        ending.successor = Some(client.cid);
        Some(ending.cid)
    }

    /// The client that took the place of `cid`.
    pub(crate) fn successor_of(&self, cid: Cid) -> Option<Cid> {
        self.endings
            .iter()
            .find(|ending| ending.cid == cid)?
            .successor
    }

    pub(super) fn forget_generation(&mut self) {
        self.highest_cid = None;
        self.restored = None;
        self.complete_snapshot = None;
        self.endings.clear();
    }
}

fn host(client: &Client) -> Option<IpAddr> {
    parse_real_address(client.real_address()).map(|(host, _)| host)
}
