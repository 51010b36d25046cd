//! When and how sockets are opened.

use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep_until, timeout};

use crate::address::Address;
use crate::config::SessionConfig;
use crate::link::Stream;
use crate::socket_watch::SocketWatch;
use crate::tls::{TlsError, TlsStream};
use crate::turns::TableTurns;

/// Most dials a second over all sessions that share a [`Pacer`]; further ones wait for their turn.
pub const DIALS_PER_SECOND_MAX: u32 = 500;

/// A TCP peer that is silent for that long is asked whether it is still there …
const KEEPALIVE_AFTER: Duration = Duration::from_secs(10);
/// … that often …
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// … and that many times before the connection is given up.
const KEEPALIVE_RETRIES: u32 = 3;
/// How long sent bytes may stay unacknowledged before the connection is given up.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);

/// What the sessions of a fleet share: it spreads their dials, so that a thousand daemons coming back at once do not
/// stall it, wakes those whose Unix socket appears, and lets them read large tables a few at a time.
#[derive(Debug)]
pub struct Pacer {
    /// When the next dial may happen. Guards one addition, never held across an await.
    next: Mutex<Instant>,
    pub(crate) sockets: SocketWatch,
    pub(crate) tables: TableTurns,
}

impl Pacer {
    /// Time between two dials.
    const SPACING: Duration = Duration::from_nanos(1_000_000_000 / DIALS_PER_SECOND_MAX as u64);

    /// A pacer for any number of sessions.
    #[must_use]
    pub fn new() -> Self {
        Self {
            next: Mutex::new(Instant::now()),
            sockets: SocketWatch::new(),
            tables: TableTurns::new(),
        }
    }

    /// Waits for this dial's turn.
    pub(crate) async fn turn(&self) {
        let turn = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let turn = (*next).max(Instant::now());
            *next = turn + Self::SPACING;
            turn
        };
        sleep_until(turn).await;
    }
}

impl Default for Pacer {
    fn default() -> Self {
        Self::new()
    }
}

/// Why nothing answers at an address.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("there is no socket at {0}: the daemon does not run, or has another --management path")]
    Missing(String),
    #[error("nobody listens at {0}: the daemon does not run, or has another --management address")]
    Refused(String),
    #[error(
        "no permission to connect to {0}: the gateway's user must be able to write to the socket; \
         see --management-client-user and --management-client-group, and the directory's mode"
    )]
    Permission(String),
    /// Three connections wait already: one is served, two are in line.
    #[error("another manager holds the daemon's only management slot, and its queue is full")]
    QueueFull,
    #[error("no answer from {address} within {waited:?}")]
    Silent { address: String, waited: Duration },
    #[error("no TLS with {address}: {error}")]
    Tls { address: String, error: TlsError },
    #[error("the daemon dials in there, not we")]
    NotDialled,
    #[error("cannot connect to {address}: {error}")]
    Other { address: String, error: io::Error },
}

/// Opens a socket to `address`, which is not one to dial in at.
pub(crate) async fn open(config: &SessionConfig) -> Result<Stream, DialError> {
    let address = &config.address;
    let waited = config.timings.connect_deadline;
    match address {
        Address::Unix(path) => open_unix(path)
            .await
            .map(Stream::Unix)
            .map_err(|error| dial_error(address, error)),
        Address::Tls { host, port } => {
            // Boxed: every session's task has room for this future, and few dial TLS.
            let opening = Box::pin(open_tls(config, host, *port));
            timeout(waited, opening).await.unwrap_or_else(|_| {
                Err(DialError::Silent {
                    address: address.to_string(),
                    waited,
                })
            })
        }
        Address::ListenUnix(_) | Address::ListenTcp(_) => Err(DialError::NotDialled),
        Address::Tcp { host, port } => {
            match timeout(waited, open_tcp(host, *port)).await {
                Ok(opened) => opened
                    .map(Stream::Tcp)
                    .map_err(|error| dial_error(address, error)),
                // A full queue drops further connects. Nothing else does on this machine.
                Err(_) if address.is_local() => Err(DialError::QueueFull),
                Err(_) => Err(DialError::Silent {
                    address: address.to_string(),
                    waited,
                }),
            }
        }
    }
}

async fn open_unix(path: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(path).await
}

async fn open_tls(config: &SessionConfig, host: &str, port: u16) -> Result<Stream, DialError> {
    let address = &config.address;
    let tcp = open_tcp(host, port)
        .await
        .map_err(|error| dial_error(address, error))?;
    let (tls, within) = (config.tls.clone(), config.files_within.clone());
    TlsStream::connect(tcp, host, tls, within)
        .await
        .map(|stream| Stream::Tls(Box::new(stream)))
        .map_err(|error| DialError::Tls {
            address: address.to_string(),
            error,
        })
}

async fn open_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    tune(&stream)?;
    Ok(stream)
}

/// Makes a connection prompt, and makes it notice when the other end is no more.
pub(crate) fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE_AFTER)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_RETRIES),
    )?;
    socket.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT))
}

fn dial_error(address: &Address, error: io::Error) -> DialError {
    let address = address.to_string();
    match error.kind() {
        io::ErrorKind::NotFound => DialError::Missing(address),
        io::ErrorKind::ConnectionRefused => DialError::Refused(address),
        io::ErrorKind::PermissionDenied => DialError::Permission(address),
        io::ErrorKind::WouldBlock => DialError::QueueFull,
        _ => DialError::Other { address, error },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thousand daemons that come back at once are dialled over two seconds, and one alone at once.
    #[tokio::test(start_paused = true)]
    async fn dials_are_spread() {
        let pacer = Pacer::new();
        let begun = Instant::now();
        pacer.turn().await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        for _ in 0..DIALS_PER_SECOND_MAX * 2 {
            pacer.turn().await;
        }
        assert!(begun.elapsed() >= Duration::from_secs(2));
        // Time that passed unused is no credit.
        tokio::time::advance(Duration::from_secs(60)).await;
        let begun = Instant::now();
        for _ in 0..=DIALS_PER_SECOND_MAX {
            pacer.turn().await;
        }
        assert!(begun.elapsed() >= Duration::from_secs(1));
    }
}
