//! The ovfleet gateway: configuration, listeners, metrics and gRPC services.
//!
//! It joins `openvpn-fleet`, which knows OpenVPN, and `ovfleet-proto`, which
//! knows the API: it alone knows both sides. It speaks no management protocol
//! itself and keeps no client tables.
//!
//! - [`Config`] is what the operator wants, checked.

mod caller;
mod config;
mod health;
mod idle;
mod listen;

pub use caller::{Caller, Identity, ReadOnlyListener};
pub use config::{
    Config, ConfigError, ConfigErrors, DEFAULT_SOCKET, DiscoverConfig, DiscoverSource,
    GrpcListener, InstanceConfig, JournalLimits, Limits, ListenConfig, Place,
    SocketConfig, TlsFiles,
};
pub use listen::{BindError, TlsError};
