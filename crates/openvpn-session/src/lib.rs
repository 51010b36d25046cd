//! One persistent session to one OpenVPN management socket.
//!
//! It connects, or lets the daemon dial in, logs in, synchronises, keeps the daemon's only management slot for as long
//! as it can, and comes back when it lost it. While attached it puts the commands of many callers on the wire one at a time and hands everything
//! the daemon says to one [`Observer`], in the order of the wire and without a queue between.
//!
//! It keeps no table of clients and knows no other instance: that is the fleet's part. It never changes a daemon's
//! `verb`, and it never pipelines: a daemon executes what it has read before it handles the next packet.
//!
//! - [`Session`] is the task that owns the socket; [`SessionConfig`] says how it behaves.
//! - [`SessionHandle`] sends it commands, from any task.
//! - [`Observation`] is what it has to tell.

mod address;
mod attach;
mod backoff;
mod call;
mod condition;
mod config;
mod dial;
mod door;
mod driver;
mod file;
mod in_flight;
mod link;
mod login;
mod mailbox;
mod observation;
mod pace;
mod password;
mod polls;
mod probe;
mod report;
mod session;
mod slot;
mod socket_watch;
mod stale;
mod tap;
mod tls;
mod turns;

pub use address::{Address, AddressError};
pub use call::{
    Answer, Call, CallError, CallerId, Guard, GuardRefused, Lane, NotSent, OutcomeUnknown,
};
pub use condition::{Condition, ConditionChange};
pub use config::{
    DialInConfig, DisconnectPolicy, HoldPolicy, PinError, SessionConfig, Timings, TlsConfig,
};
pub use dial::{DIALS_PER_SECOND_MAX, Pacer};
pub use file::open_file;
pub use mailbox::{CONTROL_LANE_MAX, READ_LANE_MAX, REFRESH_WAITERS_MAX, SessionHandle};
pub use observation::{Facts, Hint, Mode, Moment, Observation, Observer, Snapshot};
pub use password::{PasswordError, read as read_password};
pub use probe::{Probe, probe};
pub use session::Session;
pub use stale::{NotFree, remove_stale_socket};
pub use tap::{Heard, Interest, Listener, Reception, TAP_BYTES_MAX, Tap};
pub use tls::TlsError;
