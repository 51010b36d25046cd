//! Simulated OpenVPN servers, as seen on their management socket.
//!
//! A [`Daemon`] answers like OpenVPN 2.6.14, or another [`Version`], in server mode: prompts,
//! greeting, replies, error texts, histories, status, notifications and log lines, one manager at
//! a time, who connects or is dialled; with a [`ClientMode`] it is an OpenVPN client. A script makes a server's clients come
//! and go; a [`Population`] lets a whole crowd live on many daemons; a
//! [`Misbehaviour`] makes a daemon hang, lie or talk nonsense. Thousands fit in one process: a
//! daemon is one task and some kilobytes.
//!
//! What it does not do: no VPN, no TLS, no packets. It shares no code with the management
//! parser, so that a misreading there cannot hide behind the same misreading here.
//!
//! Its three main types are [`Daemon`], [`ClientSpec`] and [`Population`].
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use openvpn_simulator::{ClientSpec, Daemon, How};
//!
//! let daemon = Daemon::builder("eu1").unix("/tmp/eu1.sock").password("secret").start().await?;
//! daemon.wait_attached().await; // until a manager has logged in
//! let cid = daemon.connect(ClientSpec::new("alice")).await?;
//! daemon.leave(cid, How::ExitNotify).await?;
//! # Ok(())
//! # }
//! ```

mod client;
mod client_mode;
mod clock;
mod daemon;
mod engine;
mod error;
mod history;
mod lexer;
mod misbehaviour;
mod output;
mod owner;
mod population;
mod random;
mod socket;
mod version;

pub use client::{AfterLoss, ClientSpec, ClientState, How};
pub use client_mode::ClientMode;
pub use daemon::{Address, BurstReport, Daemon, DaemonBuilder, RestartSignal, Timing};
pub use error::{ControlError, StartError};
pub use misbehaviour::Misbehaviour;
pub use population::Population;
pub use version::Version;
