//! The ovfleet gateway: configuration, listeners, metrics and gRPC services.
//!
//! It joins `openvpn-fleet`, which knows OpenVPN, and `ovfleet-proto`, which
//! knows the API: it alone knows both sides. It speaks no management protocol
//! itself and keeps no client tables.
//!
//! - [`Config`] is what the operator wants, checked.
//! - [`Gateway`] is the running whole.
//! - [`Caller`] is who makes a call.

mod account;
mod caller;
mod config;
mod convert;
mod cursor;
mod dependants;
mod directory_watch;
mod discover;
mod gateway;
mod health;
mod http;
mod idle;
mod inventory;
mod listen;
mod log;
mod metrics;
mod mux;
mod page;
mod seal;
mod services;
mod state;
mod state_dir;
mod state_lock;
mod status;
#[cfg(test)]
mod unprivileged;

pub use caller::{Caller, Identity, ReadOnlyListener};
pub use config::{
    CertificateName, Config, ConfigError, ConfigErrors, ConfigFiles, DEFAULT_SOCKET, Defaults,
    DiscoverConfig, DiscoverSource, GrpcListener, HttpListener, InstanceConfig, JournalLimits,
    Limits, ListenConfig, MuxAddress, MuxConfig, Place, Rights, SocketConfig, TlsFiles,
};
pub use dependants::Dependants;
pub use gateway::{Addresses, Failed, Gateway, Inheritance, StartError};
pub use idle::IdleWatch;
pub use listen::{BindError, InheritError, InheritedSockets, TlsError};
pub use log::{LogBroadcast, LogLayer, log_broadcast};
pub use state::OpenError;
pub use state_dir::StateError;
pub use state_lock::StateLock;
