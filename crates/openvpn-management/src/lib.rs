//! OpenVPN's management protocol, sans I/O: bytes and the time in, typed outputs and bytes out.
//!
//! It knows the protocol of OpenVPN 2.3 to 2.7: every notification, every command and the form of its reply, `status`
//! in all its formats. It has no sockets, no clock, no tasks and no log; whoever owns the socket drives it.
//!
//! - [`Connection`] is the manager's side of one management connection: it logs in, attributes replies to commands and
//!   keeps in step with a daemon that answers late.
//! - [`Command`] and [`Reply`] are what is asked and answered; [`Notification`] is what a daemon says unasked.
//! - [`StatusSnapshot`] is who is connected.
//!
//! The [`daemon`] module is the other side: how OpenVPN reads a line, and what it writes.

pub mod command;
pub mod connection;
pub mod daemon;
mod env;
#[doc(hidden)]
pub mod fuzzing;
pub mod limits;
pub mod notification;
pub mod record;
mod reply;
pub mod status;
mod text;

pub use command::{
    AuthRetry, Command, EncodeError, HistoryDepth, HistoryRequest, HoldRequest, KillMessage,
    NeedOkAnswer, PendingAuthForm, ProxyAnswer, RawCommand, RawCommandError, RemoteAnswer,
    RemoteEntryRange, Signal, StatusFormat,
};
pub use connection::{CommandId, Connection, LinesTold, Output, SendError, Violation, is_question};
pub use env::Env;
pub use limits::Limits;
pub use notification::{
    DynamicChallenge, Notification, PasswordNotification, StaticChallenge, UpDown,
};
pub use record::{
    DaemonState, EchoRecord, History, LoadStats, LogFlags, LogRecord, Pkcs11Entry, RemoteEntry,
    StateRecord, Version,
};
pub use reply::{RawReply, Rejected, Reply, ReplyForm};
pub use status::{ClientRow, ClientStatistics, Quarantine, RouteRow, StatusParser, StatusSnapshot};
pub use text::{Cid, Kid, Secret, Text};
