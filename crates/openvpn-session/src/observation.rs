//! What a session tells its observer.

use std::time::{Instant, SystemTime};

use openvpn_management::{LoadStats, Notification, StateRecord, StatusSnapshot, Text, Version};
use tokio::time;

use crate::condition::ConditionChange;

/// Sees everything a session learns, in the order of the wire, in the session's own task.
///
/// There is no queue between the socket and the observer: while it works the socket is not read. It must be quick and
/// must not block.
pub trait Observer: Send + 'static {
    /// Takes one observation; `at` is when the session had it. What comes back is what the session should do about it.
    fn observe(&mut self, observation: Observation, at: Moment) -> Hint;
}

/// One point in time by both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// By the calendar; may jump.
    pub wall: SystemTime,
    /// By the clock that only rises; for intervals.
    pub monotonic: Instant,
}

impl Moment {
    /// Now. The monotonic part is tokio's clock, so that it stands still where a test pauses time.
    #[must_use]
    pub fn now() -> Self {
        Self {
            wall: SystemTime::now(),
            monotonic: time::Instant::now().into_std(),
        }
    }
}

/// What the session should do about an observation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hint {
    /// Nothing.
    None,
    /// Ask for a snapshot as soon as the spacing of hints allows.
    Poll,
    /// A client is leaving: ask for a snapshot soon, and again when the daemon's delayed exit is over.
    Leaving,
}

/// One thing a session learned.
#[derive(Debug)]
pub enum Observation {
    /// The session stands otherwise than before, or for another reason.
    Condition(ConditionChange),
    /// Another attempt failed for the same reason; the next one is at this time. No change of mind.
    NextAttempt(SystemTime),
    /// The daemon greeted us: its slot is ours. Everything up to [`Detached`](Self::Detached) is of this session.
    Greeted {
        /// Version of the management interface.
        management_version: Option<u32>,
    },
    /// All there is to know has been asked; from here on notifications tell what changes.
    ///
    /// Notifications that came since [`Greeted`](Self::Greeted) were observed before.
    Synchronised(Box<Facts>),
    /// The session ended. Comes exactly once for each [`Greeted`](Self::Greeted).
    Detached {
        /// Why, as a sentence.
        reason: String,
    },
    /// The daemon said something unasked.
    Notification(Notification),
    /// `status` was answered.
    Snapshot(Box<Snapshot>),
    /// `status` was refused, usually because the daemon restarts or is held; it is asked again.
    SnapshotRefused {
        /// The daemon's words.
        text: Text,
    },
    /// `load-stats` was answered.
    LoadStats(LoadStats),
    /// We released the daemon's hold.
    Released,
    /// A line that answers nothing we asked.
    Unsolicited(Text),
}

/// A `status` with the moment from which its rows are true.
#[derive(Debug)]
pub struct Snapshot {
    /// What the daemon wrote.
    pub status: StatusSnapshot,
    /// When it was asked. What was on the wire before is part of it; what comes after the answer is not.
    pub asked: Moment,
    /// When its last line was read.
    pub answered: Moment,
}

/// What a session asked on attach. `None` or empty where the daemon refused or its version does not know the command.
#[derive(Debug, Default)]
pub struct Facts {
    /// `version`.
    pub version: Option<Version>,
    /// `pid`.
    pub pid: Option<u32>,
    /// `hold`: whether the daemon holds at its next restart, not whether it holds now.
    pub hold: Option<bool>,
    /// `state on all`: what the daemon went through, oldest first; the last one is its state.
    pub states: Vec<StateRecord>,
    /// `status 3`; refused by a daemon that is held or in the middle of a restart.
    pub snapshot: Option<Snapshot>,
    /// `load-stats`.
    pub load_stats: Option<LoadStats>,
    /// What kind of daemon this is, as far as `snapshot` tells.
    pub mode: Mode,
}

/// What kind of daemon it is, told by the form of its `status`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Its `status` was refused so far.
    #[default]
    Unknown,
    /// It lists clients.
    Server,
    /// It has counters only: a client, or one of two peers.
    Client,
}

impl Mode {
    /// The mode a daemon with this `status` is in.
    #[must_use]
    pub fn of(status: &StatusSnapshot) -> Self {
        if status.client_statistics().is_some() {
            Self::Client
        } else {
            Self::Server
        }
    }
}
