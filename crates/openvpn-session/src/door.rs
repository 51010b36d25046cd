//! Where a daemon with `--management-client` dials in.

use std::convert::Infallible;
use std::fs::{self, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::time::sleep;

use crate::address::Address;
use crate::config::DialInConfig;
use crate::dial;
use crate::link::Stream;
use crate::mailbox::Mailbox;
use crate::stale::{NotFree, remove_stale_socket};

/// Diallers that the kernel may hold for us; further ones are refused by it or wait.
const BACKLOG: i32 = 16;
/// How long no dialler is looked at after one was turned away, so that one that comes back at once costs nothing.
const REFUSAL_SPACING: Duration = Duration::from_millis(100);

/// Why nobody can dial in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DoorError {
    #[error(
        "another process listens at {address}: end it, or use another address; a daemon without --management-client \
         listens itself, and its address is unix: or tcp:"
    )]
    Taken { address: String },
    #[error("{} exists and is no socket: remove it, or use another address", path.display())]
    NotASocket { path: PathBuf },
    #[error("{0} is an address that we dial")]
    NotADoor(Address),
    #[error("cannot listen at {address}: {error}")]
    Other { address: String, error: io::Error },
}

impl DoorError {
    fn new(address: String, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::AddrInUse => Self::Taken { address },
            _ => Self::Other { address, error },
        }
    }
}

/// An open listener. It belongs to one instance: whoever comes in by it is that instance's daemon.
#[derive(Debug)]
pub(crate) enum Door {
    Unix {
        listener: UnixListener,
        /// The only user who is let in, if one is configured.
        peer_uid: Option<u32>,
        _file: SocketFile,
    },
    Tcp {
        listener: TcpListener,
    },
}

/// Who was not let in, for the log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error(
        "a process of user {uid} dialled in and was refused: only user {expected} may (peer_user)"
    )]
    Stranger { uid: u32, expected: u32 },
    #[error("a dialler left before it was let in: {0}")]
    Gone(io::Error),
}

impl Door {
    /// Opens the door at an address where a daemon dials in.
    pub(crate) fn open(address: &Address, config: &DialInConfig) -> Result<Self, DoorError> {
        match address {
            Address::ListenUnix(path) => Self::open_unix(path, config),
            Address::ListenTcp(address) => Self::open_tcp(*address),
            Address::Unix(_) | Address::Tcp { .. } | Address::Tls { .. } => {
                Err(DoorError::NotADoor(address.clone()))
            }
        }
    }

    /// Opens a Unix socket. Nobody can connect before its mode and owner are set.
    fn open_unix(path: &Path, config: &DialInConfig) -> Result<Self, DoorError> {
        let address = || format!("listen-unix:{}", path.display());
        remove_stale_socket(path).map_err(|error| match error {
            NotFree::Taken => DoorError::Taken { address: address() },
            NotFree::NotASocket => DoorError::NotASocket {
                path: path.to_owned(),
            },
            NotFree::Io(error) => DoorError::new(address(), error),
        })?;
        let open = || {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            socket.bind(&SockAddr::unix(path)?)?;
            let file = SocketFile::of(path)?;
            if config.owner.is_some() || config.group.is_some() {
                std::os::unix::fs::chown(path, config.owner, config.group)?;
            }
            fs::set_permissions(path, Permissions::from_mode(config.mode))?;
            // Only from here on can anybody connect.
            socket.listen(BACKLOG)?;
            socket.set_nonblocking(true)?;
            let listener = UnixListener::from_std(OwnedFd::from(socket).into())?;
            Ok(Self::Unix {
                listener,
                peer_uid: config.peer_uid,
                _file: file,
            })
        };
        open().map_err(|error| DoorError::new(address(), error))
    }

    fn open_tcp(address: SocketAddr) -> Result<Self, DoorError> {
        let open = || {
            let socket = if address.is_ipv4() {
                TcpSocket::new_v4()?
            } else {
                TcpSocket::new_v6()?
            };
            // Sessions of the process before us may linger in TIME_WAIT.
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            let listener = socket.listen(BACKLOG.unsigned_abs())?;
            Ok(Self::Tcp { listener })
        };
        open().map_err(|error| DoorError::new(format!("listen-tcp:{address}"), error))
    }

    /// The next dialler, or why it was not let in. Cancel safe.
    ///
    /// # Errors
    /// When the listener itself fails: out of file descriptors, mostly.
    pub(crate) async fn accept(&self) -> io::Result<Result<Stream, Refused>> {
        Ok(match self {
            Self::Unix {
                listener, peer_uid, ..
            } => {
                let (stream, _) = listener.accept().await?;
                match (peer_uid, stream.peer_cred()) {
                    (Some(expected), Ok(peer)) if peer.uid() != *expected => {
                        let (uid, expected) = (peer.uid(), *expected);
                        Err(Refused::Stranger { uid, expected })
                    }
                    (Some(_), Err(error)) => Err(Refused::Gone(error)),
                    _ => Ok(Stream::Unix(stream)),
                }
            }
            Self::Tcp { listener } => {
                let (stream, _) = listener.accept().await?;
                match dial::tune(&stream) {
                    Ok(()) => Ok(Stream::Tcp(stream)),
                    Err(error) => Err(Refused::Gone(error)),
                }
            }
        })
    }

    /// Turns away whoever dials in, as long as it is polled: the daemon is there already.
    pub(crate) async fn turn_away(&self, mailbox: &Mailbox) -> Infallible {
        loop {
            match self.accept().await {
                Ok(Ok(second)) => {
                    drop(second);
                    mailbox.turned_away();
                }
                Ok(Err(refused)) => tracing::warn!("{refused}"),
                Err(error) => tracing::debug!(%error, "cannot look who dials in"),
            }
            sleep(REFUSAL_SPACING).await;
        }
    }
}

/// The file of a bound socket, removed when this is dropped.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode: a socket that somebody else put in its place stays.
    identity: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            identity: (metadata.dev(), metadata.ino()),
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener as StdListener;

    use super::*;

    /// A socket left behind is replaced with the wanted mode, one in use is not, and neither is another kind of file;
    /// what was opened is removed in the end.
    #[tokio::test]
    async fn only_a_stale_socket_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("management.sock");
        let config = DialInConfig {
            mode: 0o640,
            ..DialInConfig::default()
        };
        let live = StdListener::bind(&path).unwrap();
        live.set_nonblocking(true).unwrap();
        let taken = Door::open_unix(&path, &config).unwrap_err();
        assert!(matches!(taken, DoorError::Taken { .. }), "{taken}");
        // Nobody has knocked there.
        assert_eq!(live.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(live);

        let door = Door::open_unix(&path, &config).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        drop(door);
        assert!(!path.exists());

        fs::write(&path, "").unwrap();
        let error = Door::open_unix(&path, &config).unwrap_err();
        assert!(matches!(error, DoorError::NotASocket { .. }), "{error}");
        assert!(path.exists());
    }
}
