//! The lab: real OpenVPN servers and clients on loopback, a gateway process, and the
//! relays and clocks to look between them.
//!
//! Everything a scenario starts belongs to a value ([`Server`], [`Client`], [`Gateway`],
//! [`Tap`]); dropping the value ends it, also when the test panics. When the test
//! process itself is killed the kernel ends the children. Scenarios run in parallel:
//! networks, ports and paths are claimed, never assumed.
//!
//! The lab deliberately reads what daemons write with a parser of its own
//! ([`status`]), so that it can contradict the one under test.

pub mod api;
pub mod chaos;
mod claim;
mod client;
mod dialogue;
mod directory;
mod disk;
pub mod events;
mod gateway;
pub mod history;
mod log;
mod pki;
mod poll;
mod process;
pub mod random;
mod server;
pub mod status;
mod tap;
mod token;

pub use api::Api;
pub use claim::Ports;
pub use client::{Client, ClientBuilder, LAB_PASSWORD};
pub use dialogue::Dialogue;
pub use disk::{Disk, ReadOnly};
pub use gateway::{
    CliOutput, Gateway, GatewayConfig, InstanceConfig, TcpListener, TlsFiles, run_cli,
};
pub use log::LogLine;
pub use pki::{Authority, Leaf};
pub use poll::poll_until;
pub use process::{Process, Signal};
pub use server::{Management, Proto, Server, ServerBuilder};
pub use tap::{Tap, TapLine};
pub use token::Token;

/// Common names a certificate may carry that a text protocol could trip over.
///
/// All of them survive OpenVPN unchanged: it replaces control bytes only.
pub const ODD_COMMON_NAMES: &[&str] = &[
    "anna lena",
    "smith, john",
    "eve \"the\" one's",
    r"back\slash\\twice",
    "host:1194",
    "a:b:c",
    "bob,10.9.9.9:1,0,0",
    "Jürgen Größe 東京",
    "END",
    "UNDEF-not",
    "SUCCESS: pid=1",
    ">CLIENT:DISCONNECT",
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
];
