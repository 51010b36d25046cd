//! One command of a caller, and what becomes of it.

use std::error::Error;
use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use openvpn_management::{Command, EncodeError, Reply, Text};

use crate::condition::Condition;

/// Who calls, for a fair turn: reads go round robin by caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallerId(pub u64);

/// Which queue a command waits in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Changes something: a kill, a signal, an answer. Goes first, in order of arrival.
    Control,
    /// Only asks, or can wait. Round robin by caller, after the control lane and the session's own commands.
    Read,
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Control => "control",
            Self::Read => "read",
        })
    }
}

/// A last check before a command goes on the wire, in the session's own task.
///
/// It runs after everything the daemon had sent by then has been read and observed, and nothing is read between it and
/// the write. It must be quick and must not block.
pub type Guard = Box<dyn FnOnce() -> Result<(), GuardRefused> + Send>;

/// A guard's refusal with its reason, which the caller can downcast to the type it put in.
#[derive(Debug, thiserror::Error)]
#[error("what the command was meant for is not there any more")]
pub struct GuardRefused(#[source] pub Box<dyn Error + Send + Sync>);

/// One command for one daemon.
pub struct Call {
    /// What to send.
    pub command: Command,
    /// Which queue it waits in.
    pub lane: Lane,
    /// Whose turn it takes.
    pub caller: CallerId,
    /// A last check before it is sent.
    pub guard: Option<Guard>,
    /// When the caller stops waiting. Not sent by then, it never is; sent by then, its outcome is unknown.
    ///
    /// By tokio's clock, which is the real one outside of tests that pause time.
    pub deadline: Instant,
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("command", &self.command)
            .field("lane", &self.lane)
            .field("caller", &self.caller)
            .field("guard", &self.guard.as_ref().map(|_| "…"))
            .field("deadline", &self.deadline)
            .finish()
    }
}

/// The daemon's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What it said.
    pub reply: Reply,
    /// When the command was handed to the socket.
    pub sent: SystemTime,
    /// How many lines the [`Tap`](crate::Tap) had told when the answer was complete.
    pub position: u64,
}

/// Why a call has no [`Answer`].
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nothing was sent, and never will be: calling again is safe.
    #[error("the command was not sent")]
    NotSent(#[source] NotSent),
    /// The daemon refused; nothing changed.
    #[error("refused by the daemon: {text}")]
    Rejected {
        /// Its words.
        text: Text,
        /// When the command was handed to the socket.
        sent: SystemTime,
    },
    /// The command was sent, wholly or in part, and may have been carried out.
    #[error("the command was sent but not answered; it may have been carried out")]
    OutcomeUnknown {
        /// When the command was handed to the socket.
        sent: SystemTime,
        /// Why there is no answer.
        #[source]
        why: OutcomeUnknown,
    },
}

/// Why a command was not sent.
#[derive(Debug, thiserror::Error)]
pub enum NotSent {
    /// There is no session that could take it.
    #[error("the instance is {condition}")]
    Detached {
        /// How the session stands.
        condition: Condition,
    },
    /// Its lane is full.
    #[error("{capacity} commands wait in the {lane} lane already")]
    LaneFull {
        /// Which lane.
        lane: Lane,
        /// How many it takes.
        capacity: usize,
    },
    /// Its turn did not come before its deadline.
    #[error("its turn did not come before its deadline")]
    Deadline,
    /// Its guard refused.
    #[error("its guard refused")]
    Guard(#[source] GuardRefused),
    /// It cannot be put on the wire.
    #[error("it cannot be put on the wire")]
    Encode(#[source] EncodeError),
    /// The session is over: the instance was removed or changed, or the gateway ends.
    #[error("the session is over")]
    Closed,
}

/// Why a command that was sent has no answer.
#[derive(Debug, thiserror::Error)]
pub enum OutcomeUnknown {
    /// The caller's deadline passed.
    #[error("no answer came within {waited:?}")]
    Deadline {
        /// Time since it was sent.
        waited: Duration,
    },
    /// The daemon answered a later command first: this one's answer will never come.
    #[error("the daemon skipped its answer")]
    Skipped,
    /// The session ended first.
    #[error("the session ended: {reason}")]
    SessionEnded {
        /// Why it ended.
        reason: String,
    },
}

impl From<NotSent> for CallError {
    fn from(not_sent: NotSent) -> Self {
        Self::NotSent(not_sent)
    }
}
