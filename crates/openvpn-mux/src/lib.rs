//! Virtual management sockets: many tools on one daemon's only slot.
//!
//! To its tool each looks like the management socket of a daemon that nobody else uses: prompt, greeting, replies byte
//! for byte, its own `state`, `log`, `echo` and `bytecount` switches, its own `env-filter`, its own `exit`. Behind it
//! all tools share the session that the fleet keeps. A tool gives the commands its socket's [`Policy`] allows; what is
//! decided on is what OpenVPN's own lexer makes of its bytes, and what is sent is made of that.
//!
//! It opens no sockets and reads no files: whoever owns a listener hands over streams.
//!
//! - [`Slot`] is one daemon's slot; [`Slot::serve`] serves one tool on it.
//! - [`ToolConfig`] says how the tools of one socket are treated.
//! - [`Policy`] says what they may do.
//! - [`Counts`] says how often what happened.

mod counts;
mod policy;
mod request;
mod slot;
mod tool;
mod view;

pub use counts::{Counts, Verdict};
pub use policy::{Policy, UnknownVerb};
pub use slot::{Slot, TOOLS_MAX};
pub use tool::{Away, Left, ToolConfig};
