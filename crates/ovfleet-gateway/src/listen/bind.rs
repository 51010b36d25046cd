//! Opening listening sockets, and leaving nothing behind.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::PathBuf,
};

use openvpn_session::{NotFree, remove_stale_socket};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, UnixListener};

use crate::{account, config::SocketConfig};

/// Connections that the kernel may hold for us before we accept them.
const BACKLOG: i32 = 1_024;

/// Why a listener could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another program listens there.
    #[error("{address} is taken by another program: end that program, or listen elsewhere")]
    Taken {
        /// The address.
        address: String,
    },
    /// There is a file of that name which is no socket.
    #[error("{} exists and is no socket: remove it, or listen elsewhere", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// No such user or group.
    #[error("there is no {what} {name} on this machine")]
    UnknownAccount {
        /// `user` or `group`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// Anything else.
    #[error("cannot listen on {address}")]
    Io {
        /// The address.
        address: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A Unix socket that removes its file when it is dropped.
#[derive(Debug)]
pub(crate) struct UnixSocket {
    pub(crate) listener: UnixListener,
    /// `None`: the file is somebody else's.
    _file: Option<SocketFile>,
}

impl UnixSocket {
    /// A socket that was handed down.
    pub(super) fn inherited(listener: std::os::unix::net::UnixListener) -> io::Result<Self> {
        Ok(Self {
            listener: UnixListener::from_std(listener)?,
            _file: None,
        })
    }
}

/// The file of a bound socket.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and inode: a socket that someone else put in its place stays.
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

pub(crate) fn bind_tcp(address: SocketAddr) -> Result<TcpListener, BindError> {
    let bind = || {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        }?;
        // Connections of the process before us may linger in TIME_WAIT.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG.unsigned_abs())
    };
    bind().map_err(|source| bind_error(&address.to_string(), source))
}

/// Opens a Unix socket. Nobody can connect before its mode and owner are set.
pub(crate) fn bind_unix(config: &SocketConfig) -> Result<UnixSocket, BindError> {
    let path = &config.path;
    let address = format!("unix:{}", path.display());
    let unknown = |what, name: &str| BindError::UnknownAccount {
        what,
        name: name.to_owned(),
    };
    let owner = config.owner.as_deref();
    let owner = owner.map(|name| account::user(name).ok_or_else(|| unknown("user", name)));
    let group = config.group.as_deref();
    let group = group.map(|name| account::group(name).ok_or_else(|| unknown("group", name)));
    let (owner, group) = (owner.transpose()?, group.transpose()?);
    remove_stale_socket(path).map_err(|error| match error {
        NotFree::Taken => BindError::Taken {
            address: address.clone(),
        },
        NotFree::NotASocket => BindError::NotASocket { path: path.clone() },
        NotFree::Io(source) => bind_error(&address, source),
    })?;
    let bind = || {
        // The directory of the default socket is gone after every boot.
        if let Some(parent) = path.parent().filter(|parent| !parent.exists()) {
            fs::create_dir(parent)?;
        }
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&SockAddr::unix(path)?)?;
        let metadata = fs::symlink_metadata(path)?;
        let file = SocketFile {
            path: path.clone(),
            identity: (metadata.dev(), metadata.ino()),
        };
        if owner.is_some() || group.is_some() {
            std::os::unix::fs::chown(path, owner, group)?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(config.mode))?;
        // Only from here on can anybody connect.
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        let listener = UnixListener::from_std(std::os::unix::net::UnixListener::from(
            std::os::fd::OwnedFd::from(socket),
        ))?;
        Ok(UnixSocket {
            listener,
            _file: Some(file),
        })
    };
    bind().map_err(|source| bind_error(&address, source))
}

fn bind_error(address: &str, source: io::Error) -> BindError {
    let address = address.to_owned();
    match source.kind() {
        io::ErrorKind::AddrInUse => BindError::Taken { address },
        _ => BindError::Io { address, source },
    }
}
