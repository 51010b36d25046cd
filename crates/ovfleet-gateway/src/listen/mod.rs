//! Listeners: sockets, the accept loop, TLS, and who is at the other end.
//!
//! An error of one connection never ends a listener, and a listener ends only
//! when it is told to.

mod accept;
mod bind;
mod inherited;
mod serve;
#[cfg(test)]
mod tests;
mod tls;

pub(crate) use accept::{
    Accepting, Admission, Handshake, Listener, Service, certificate, set_options,
};
pub use bind::BindError;
pub(crate) use bind::{UnixSocket, bind_tcp, bind_unix};
pub use inherited::{InheritError, InheritedSockets};
pub(crate) use serve::GrpcService;
pub use tls::TlsError;
pub(crate) use tls::{load as load_tls, load_within as load_tls_within};
