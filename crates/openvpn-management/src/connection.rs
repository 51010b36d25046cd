//! The manager's side of one management connection.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::command::{Command, EncodeError};
use crate::limits::Limits;
use crate::notification::Notification;
use crate::reply::{Rejected, Reply};
use crate::text::{Secret, Text};

/// Names one command sent on one [`Connection`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandId(pub u64);

/// What a [`Connection`] has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// The daemon asks for the management password: [`Connection::send_password`].
    PasswordRequested,
    /// The password was wrong. Close: a third try would close the session, and each one is logged.
    PasswordRefused,
    /// The password was right; the greeting follows.
    PasswordAccepted,
    /// The daemon's greeting: the slot is ours and commands can be sent.
    Greeted {
        /// Version of the management interface.
        management_version: Option<u32>,
        /// The whole greeting, without `>INFO:`.
        banner: Text,
    },
    /// The daemon says something unasked.
    Notification(Notification),
    /// A command is answered.
    Reply {
        /// Which.
        id: CommandId,
        /// The answer.
        result: Result<Reply, Rejected>,
        /// Whether its deadline had passed, so that [`Output::Unanswered`] came before.
        late: bool,
    },
    /// A command missed its deadline. Its answer may still come; a fence was sent behind it.
    Unanswered {
        /// Which.
        id: CommandId,
    },
    /// The fence was answered first: that command's reply will never come.
    Lost {
        /// Which.
        id: CommandId,
    },
    /// The fence was answered: commands can be sent again.
    Responsive,
    /// A line that answers nothing we asked.
    Unsolicited(Text),
    /// The daemon broke a bound or is none. Close: nothing further is read.
    Violation(Violation),
}

/// Why a connection cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// A line without end.
    #[error("a line is longer than {limit} bytes")]
    LineTooLong {
        /// The bound it broke.
        limit: usize,
    },
    /// An ENV block without end.
    #[error("an ENV block has more than {lines_max} lines or {bytes_max} bytes")]
    EnvTooLarge {
        /// The bound on lines.
        lines_max: usize,
        /// The bound on bytes.
        bytes_max: usize,
    },
    /// The first line is not one of a management interface.
    #[error("not an OpenVPN management interface: it says {line}")]
    NotManagement {
        /// What it said.
        line: Text,
    },
}

/// Why a command was not sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// There was no greeting yet.
    #[error("the daemon has not greeted us yet")]
    NotGreeted,
    /// Another command is in flight.
    #[error("another command is in flight")]
    Busy,
    /// An earlier command missed its deadline and the fence behind it is not answered yet.
    #[error("the daemon does not answer")]
    Unresponsive,
    /// The connection ended with a [`Violation`] or with `exit`.
    #[error("the connection is over")]
    Closed,
    /// The command cannot be put on the wire.
    #[error("the command cannot be encoded")]
    Encode(#[from] EncodeError),
}

/// The manager's side of one management connection: bytes and the time in, outputs and bytes out.
///
/// Call [`poll_transmit`](Self::poll_transmit) and [`poll_output`](Self::poll_output) until they are empty after each
/// call that takes `&mut self`; what they hold is bounded by the input given between.
#[derive(Debug)]
pub struct Connection {
    limits: Limits,
    outputs: VecDeque<Output>,
    transmits: VecDeque<Bytes>,
}

impl Connection {
    /// A connection that has just been opened; the daemon speaks first.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            outputs: VecDeque::new(),
            transmits: VecDeque::new(),
        }
    }

    /// Takes bytes read from the daemon, cut anywhere.
    pub fn handle_input(&mut self, _bytes: &[u8], _now: Instant) {}

    /// Acts on the deadline that [`poll_timeout`](Self::poll_timeout) announced; harmless when called early.
    pub fn handle_timeout(&mut self, _now: Instant) {}

    /// Answers [`Output::PasswordRequested`], once: the password goes out as it is, not quoted.
    ///
    /// # Errors
    /// [`EncodeError::PasswordNotAsked`] if it was answered before or never asked; the others as for any value.
    pub fn send_password(&mut self, _password: &Secret) -> Result<(), EncodeError> {
        Err(EncodeError::PasswordNotAsked)
    }

    /// Sends a command. Its answer, or [`Output::Unanswered`] after `deadline`, names the id given back.
    ///
    /// # Errors
    /// See [`SendError`]; nothing was sent then.
    pub fn send(
        &mut self,
        _command: &Command,
        _deadline: Duration,
        _now: Instant,
    ) -> Result<CommandId, SendError> {
        Err(SendError::NotGreeted)
    }

    /// The next thing to say, if any.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The next bytes to write, if any, to be written whole and in order.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        self.transmits.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout), if ever.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// The command whose reply is owed, late or not.
    #[must_use]
    pub fn in_flight(&self) -> Option<CommandId> {
        None
    }

    /// Whether the greeting was read.
    #[must_use]
    pub fn is_greeted(&self) -> bool {
        false
    }

    /// Whether no deadline is missed, or a missed one is made good.
    #[must_use]
    pub fn is_responsive(&self) -> bool {
        true
    }

    /// Whether [`send`](Self::send) would take a command now.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        false
    }

    /// The bounds given to [`new`](Self::new).
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }
}
