//! What can go wrong when driving a simulated daemon.

use std::io;

use crate::Address;

/// A daemon that could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The builder was given no address, neither to listen on nor to dial.
    #[error("simulated daemon {daemon} has no address to listen on")]
    NoAddress {
        /// Name of the daemon.
        daemon: String,
    },
    /// The management address cannot be listened on.
    #[error("simulated daemon {daemon} cannot listen on {address}")]
    Listen {
        /// Name of the daemon.
        daemon: String,
        /// Where it was to listen.
        address: Address,
        /// Why it cannot.
        #[source]
        source: io::Error,
    },
    /// The manager cannot be dialled.
    #[error("simulated daemon {daemon} cannot dial its manager at {address}")]
    Dial {
        /// Name of the daemon.
        daemon: String,
        /// Where its manager was to listen.
        address: Address,
        /// Why it cannot be reached.
        #[source]
        source: io::Error,
    },
}

/// A scripted step that the daemon cannot do now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// The process has ended; `start_again` first.
    #[error("simulated daemon {daemon} is stopped")]
    Stopped {
        /// Name of the daemon.
        daemon: String,
    },
    /// The daemon is held, or in the pause of a restart: it serves no clients.
    #[error("simulated daemon {daemon} serves no clients now")]
    NotServing {
        /// Name of the daemon.
        daemon: String,
    },
    /// The daemon is no OpenVPN client that awaits its server, or has not come that far.
    #[error("simulated daemon {daemon} awaits no server")]
    NotAwaiting {
        /// Name of the daemon.
        daemon: String,
    },
    /// No client has this CID.
    #[error("simulated daemon {daemon} has no client {cid}")]
    UnknownClient {
        /// Name of the daemon.
        daemon: String,
        /// The CID asked for.
        cid: u64,
    },
    /// No manager is attached, or it left before the bytes were written.
    #[error("no manager is attached to simulated daemon {daemon}")]
    NotAttached {
        /// Name of the daemon.
        daemon: String,
    },
}
