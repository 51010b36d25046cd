//! What a connection has to say.

use crate::command::EncodeError;
use crate::notification::Notification;
use crate::reply::{Rejected, Reply};
use crate::text::Text;

/// Names one command sent on one [`Connection`](super::Connection).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandId(pub u64);

/// What a [`Connection`](super::Connection) has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// The daemon asks for the management password: [`Connection::send_password`](super::Connection::send_password).
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
    /// A line that starts with `>`, as it came and without its line end, before what it means is said. Only where
    /// [`Connection::tell_lines`](super::Connection::tell_lines) asks for them; the greeting and answers are none of them.
    Line(Text),
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
    /// A reply without end.
    #[error("a reply does not end")]
    ReplyTooLong,
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
