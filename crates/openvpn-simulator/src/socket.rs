//! Listening and one connection, Unix or TCP alike.

use std::io;

use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixSocket, UnixStream};

use crate::Address;

/// OpenVPN's backlog. Linux lets one more in: while a manager is attached, two connects complete
/// and hear nothing; the next gets EAGAIN (Unix) or no answer (TCP).
const BACKLOG: u32 = 1;

#[derive(Debug)]
pub(crate) enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    /// Listens; a file in the way of a Unix socket is removed, as OpenVPN does.
    pub(crate) fn bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Unix(path) => {
                match std::fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    Ok(()) | Err(_) => {}
                }
                let socket = UnixSocket::new_stream()?;
                socket.bind(path)?;
                socket.listen(BACKLOG).map(Self::Unix)
            }
            Address::Tcp(address) => {
                let socket = if address.is_ipv4() {
                    TcpSocket::new_v4()?
                } else {
                    TcpSocket::new_v6()?
                };
                socket.set_reuseaddr(true)?;
                socket.bind(*address)?;
                socket.listen(BACKLOG).map(Self::Tcp)
            }
        }
    }

    /// Where it listens, with the port the kernel chose.
    pub(crate) fn address(&self, asked: &Address) -> Address {
        match self {
            Self::Unix(_) => asked.clone(),
            Self::Tcp(listener) => listener
                .local_addr()
                .map_or_else(|_| asked.clone(), Address::Tcp),
        }
    }

    /// The next connection, and its peer as OpenVPN's log names it. Cancel safe.
    pub(crate) async fn accept(&self) -> io::Result<(Connection, String)> {
        match self {
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                // A manager has no path of its own; OpenVPN prints the socket's.
                let address = listener.local_addr()?;
                let path = address
                    .as_pathname()
                    .map_or_else(String::new, |path| path.display().to_string());
                Ok((Connection::Unix(stream), path))
            }
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let family = if peer.is_ipv4() {
                    "AF_INET"
                } else {
                    "AF_INET6"
                };
                Ok((Connection::Tcp(stream), format!("[{family}]{peer}")))
            }
        }
    }
}

#[derive(Debug)]
pub(crate) enum Connection {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Connection {
    pub(crate) async fn dial(address: &Address) -> io::Result<Self> {
        match address {
            Address::Unix(path) => UnixStream::connect(path).await.map(Self::Unix),
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Ok(Self::Tcp(stream))
            }
        }
    }

    /// Returns when reading or writing is worth a try. Cancel safe.
    pub(crate) async fn ready(&self, interest: Interest) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.ready(interest).await,
            Self::Tcp(stream) => stream.ready(interest).await,
        }
        .map(drop)
    }

    /// Ends our direction; the other goes on.
    pub(crate) async fn shutdown(&mut self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.shutdown().await,
            Self::Tcp(stream) => stream.shutdown().await,
        }
    }

    pub(crate) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.try_read(buffer),
            Self::Tcp(stream) => stream.try_read(buffer),
        }
    }

    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.try_write(bytes),
            Self::Tcp(stream) => stream.try_write(bytes),
        }
    }
}
