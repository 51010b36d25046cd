//! Listening sockets that a service manager opened and handed down: socket activation, as systemd does it.
//!
//! What is allowed on them depends on what they are really bound to, so that it is judged here and not where the
//! configuration is read.

use std::{
    collections::BTreeSet,
    env, fs, io,
    net::TcpListener,
    os::unix::{fs::MetadataExt as _, net::UnixListener},
};

use listenfd::ListenFd;
use socket2::SockRef;

use crate::config::{Config, GrpcListener, HttpListener, TlsFiles};

/// The names of the sockets, separated by colons; without it each is called [`UNNAMED`].
const NAMES: &str = "LISTEN_FDNAMES";
/// What systemd calls a socket without a name.
const UNNAMED: &str = "unknown";

/// The sockets that were handed down to this process, each with its name; several may have one name.
#[derive(Debug, Default)]
pub struct InheritedSockets(Vec<(String, InheritedSocket)>);

/// One of them.
#[derive(Debug)]
pub(crate) enum InheritedSocket {
    /// A Unix socket. Its file belongs to whoever opened it.
    Unix(UnixListener),
    /// A TCP socket.
    Tcp(TcpListener),
}

/// Why the sockets that were handed down and the configuration do not go together.
#[derive(Debug, thiserror::Error)]
pub enum InheritError {
    /// Something else than a listening socket was handed down.
    #[error(
        "`{name}`, number {number} of what was handed down, is no listening stream socket, Unix or TCP: \
         check the ListenStream= of its socket unit"
    )]
    NotListening {
        /// Its name.
        name: String,
        /// Its place, from 1.
        number: usize,
    },
    /// The configuration names a socket that is not there.
    #[error(
        "no socket `{name}` was handed down for the listener \"fd:{name}\" ({given}): check FileDescriptorName= of the socket unit"
    )]
    Missing {
        /// Its name.
        name: String,
        /// What was handed down instead, in words.
        given: String,
    },
    /// Nobody would answer on a socket that is there.
    #[error(
        "a socket `{name}` was handed down, and no listener of the configuration is \"fd:{name}\": name it, or take it from the socket unit"
    )]
    Unused {
        /// Its name.
        name: String,
    },
    /// Two listeners of the configuration want the same socket.
    #[error("two listeners are \"fd:{name}\": a socket can serve only one")]
    Twice {
        /// Its name.
        name: String,
    },
    /// What the configuration says of a socket does not fit what it is bound to.
    #[error("\"fd:{name}\" is bound to {address}: {reason}")]
    Unfit {
        /// Its name.
        name: String,
        /// What it is bound to.
        address: String,
        /// Why that does not do, and what helps.
        reason: &'static str,
    },
}

impl InheritedSockets {
    /// Takes the sockets that the environment tells of (`LISTEN_FDS`, `LISTEN_PID`, `LISTEN_FDNAMES`).
    ///
    /// To be called once, before the process has a second thread: it changes the environment.
    ///
    /// # Errors
    /// [`InheritError::NotListening`].
    pub fn from_environment() -> Result<Self, InheritError> {
        let names = env::var(NAMES).unwrap_or_default();
        let mut names = names.split(':').filter(|name| !name.is_empty());
        let mut handed_down = ListenFd::from_env();
        let count = handed_down.len();
        let take = |index| {
            let name = names.next().unwrap_or(UNNAMED).to_owned();
            match take(&mut handed_down, index) {
                Some(socket) => Ok((name, socket)),
                None => Err(InheritError::NotListening {
                    name,
                    number: index + 1,
                }),
            }
        };
        (0..count).map(take).collect::<Result<_, _>>().map(Self)
    }

    /// That they are those which `config` names, and that each may be used as it says.
    pub(crate) fn check(&self, config: &Config) -> Result<(), InheritError> {
        let mut used = BTreeSet::new();
        let mut check =
            |name: &str, judge: &dyn Fn(&InheritedSocket) -> Result<(), InheritError>| {
                if !used.insert(name.to_owned()) {
                    return Err(InheritError::Twice {
                        name: name.to_owned(),
                    });
                }
                let mut sockets = self.named(name).peekable();
                if sockets.peek().is_none() {
                    return Err(self.missing(name));
                }
                sockets.try_for_each(judge)
            };
        for listener in &config.listen.grpc {
            if let GrpcListener::Inherited { name, tls, control } = listener {
                check(name, &|socket| {
                    socket.is_read_only(name, tls.as_ref(), *control).map(drop)
                })?;
            }
        }
        for listener in &config.listen.http {
            if let HttpListener::Inherited(name) = listener {
                check(name, &|socket| socket.serves_http(name))?;
            }
        }
        match self.0.iter().find(|(name, _)| !used.contains(name)) {
            Some((name, _)) => Err(InheritError::Unused { name: name.clone() }),
            None => Ok(()),
        }
    }

    /// Takes those of that name.
    pub(crate) fn take(&mut self, name: &str) -> Vec<InheritedSocket> {
        let (taken, left) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(|(own, _)| own == name);
        self.0 = left;
        let taken: Vec<(String, InheritedSocket)> = taken;
        taken.into_iter().map(|(_, socket)| socket).collect()
    }

    fn named(&self, name: &str) -> impl Iterator<Item = &InheritedSocket> {
        self.0
            .iter()
            .filter(move |(own, _)| own == name)
            .map(|(_, socket)| socket)
    }

    fn missing(&self, name: &str) -> InheritError {
        let names: Vec<_> = self.0.iter().map(|(name, _)| format!("`{name}`")).collect();
        InheritError::Missing {
            name: name.to_owned(),
            given: match names.len() {
                0 => "none was".to_owned(),
                _ => format!("these were: {}", names.join(", ")),
            },
        }
    }
}

impl InheritedSocket {
    /// Whether callers that nobody has identified may only read here.
    ///
    /// A Unix socket that every user may open is no better than a port on loopback: the mode that systemd gives one
    /// unless it is told otherwise.
    pub(crate) fn is_read_only(
        &self,
        name: &str,
        tls: Option<&TlsFiles>,
        control: bool,
    ) -> Result<bool, InheritError> {
        let unfit = |reason| InheritError::Unfit {
            name: name.to_owned(),
            address: self.to_string(),
            reason,
        };
        match (self, tls) {
            (Self::Unix(_), Some(_)) => Err(unfit("a Unix socket takes no tls: remove it")),
            (Self::Unix(listener), None) => Ok(is_open_to_all(listener) && !control),
            (Self::Tcp(listener), tls) => {
                let loopback = listener
                    .local_addr()
                    .is_ok_and(|address| address.ip().is_loopback());
                match tls {
                    None if !loopback => Err(unfit(
                        "that would be plaintext beyond loopback: add tls = { cert, key, client_ca }",
                    )),
                    Some(TlsFiles {
                        client_ca: None, ..
                    }) if !loopback => Err(unfit(
                        "anybody who reaches it could read the whole fleet: set client_ca in tls, \
                         or bind it to a loopback address",
                    )),
                    _ => Ok(!control),
                }
            }
        }
    }

    pub(crate) fn is_unix(&self) -> bool {
        matches!(self, Self::Unix(_))
    }

    fn serves_http(&self, name: &str) -> Result<(), InheritError> {
        match self {
            Self::Tcp(_) => Ok(()),
            Self::Unix(_) => Err(InheritError::Unfit {
                name: name.to_owned(),
                address: self.to_string(),
                reason: "http takes a TCP socket",
            }),
        }
    }
}

/// `unix:/path`, `unix:@name` or `127.0.0.1:7600`.
impl std::fmt::Display for InheritedSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(listener) => f.write_str(&unix_address(listener)),
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) => address.fmt(f),
                Err(_) => f.write_str("no address"),
            },
        }
    }
}

fn unix_address(listener: &UnixListener) -> String {
    use std::os::linux::net::SocketAddrExt as _;

    let Ok(address) = listener.local_addr() else {
        return "unix:".to_owned();
    };
    match (address.as_pathname(), address.as_abstract_name()) {
        (Some(path), _) => format!("unix:{}", path.display()),
        (None, Some(name)) => format!("unix:@{}", String::from_utf8_lossy(name)),
        (None, None) => "unix:".to_owned(),
    }
}

/// Whether any user of this machine may connect, as far as the socket itself says.
fn is_open_to_all(listener: &UnixListener) -> bool {
    let address = listener.local_addr();
    let path = address
        .as_ref()
        .ok()
        .and_then(|address| address.as_pathname());
    // One without a file has no mode.
    let Some(path) = path else { return true };
    fs::metadata(path).is_ok_and(|metadata| metadata.mode() & 0o002 != 0)
}

fn take(handed_down: &mut ListenFd, index: usize) -> Option<InheritedSocket> {
    let socket = match handed_down.take_tcp_listener(index) {
        Ok(socket) => InheritedSocket::Tcp(socket?),
        Err(_) => InheritedSocket::Unix(handed_down.take_unix_listener(index).ok()??),
    };
    let listens = match &socket {
        InheritedSocket::Unix(socket) => listens(SockRef::from(socket)),
        InheritedSocket::Tcp(socket) => listens(SockRef::from(socket)),
    };
    listens.is_ok_and(|listens| listens).then_some(socket)
}

fn listens(socket: SockRef<'_>) -> io::Result<bool> {
    // Whoever opened it may have left it blocking; a task must not wait in it.
    socket.set_nonblocking(true)?;
    socket.is_listener()
}

#[cfg(test)]
mod tests {
    use std::{
        net::{Ipv4Addr, SocketAddr},
        os::unix::fs::PermissionsExt as _,
    };

    use super::*;
    use crate::config::ListenConfig;

    fn tcp(address: Ipv4Addr) -> InheritedSocket {
        InheritedSocket::Tcp(TcpListener::bind(SocketAddr::from((address, 0))).unwrap())
    }

    fn files(client_ca: bool) -> TlsFiles {
        TlsFiles {
            cert: "gw.crt".into(),
            key: "gw.key".into(),
            client_ca: client_ca.then(|| "ca.crt".into()),
        }
    }

    /// What the configuration allows must not become more by what the socket really is.
    #[test]
    fn the_rules_are_those_of_what_it_is_bound_to() {
        let near = tcp(Ipv4Addr::LOCALHOST);
        let far = tcp(Ipv4Addr::UNSPECIFIED);
        let judge = |socket: &InheritedSocket, tls: Option<&TlsFiles>, control| {
            let judged = socket.is_read_only("grpc", tls, control);
            judged.map_err(|error| error.to_string())
        };
        assert_eq!(judge(&near, None, false), Ok(true));
        assert_eq!(judge(&near, None, true), Ok(false));
        assert_eq!(judge(&near, Some(&files(false)), false), Ok(true));
        assert!(
            judge(&far, None, true)
                .unwrap_err()
                .contains("plaintext beyond loopback")
        );
        assert!(
            judge(&far, Some(&files(false)), true)
                .unwrap_err()
                .contains("client_ca")
        );
        assert!(judge(&far, Some(&files(true)), false).is_ok());

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let socket = InheritedSocket::Unix(UnixListener::bind(&path).unwrap());
        let set_mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        set_mode(0o660);
        assert_eq!(judge(&socket, None, false), Ok(false));
        // What systemd does unless it is told otherwise.
        set_mode(0o666);
        assert_eq!(judge(&socket, None, false), Ok(true));
        assert_eq!(judge(&socket, None, true), Ok(false));
        assert!(
            judge(&socket, Some(&files(true)), false)
                .unwrap_err()
                .contains("no tls")
        );
        assert!(socket.serves_http("web").is_err());
    }

    /// A socket that nobody serves keeps its callers waiting for ever; one that is not there must be missed by name.
    #[test]
    fn names_have_to_match() {
        let config = |names: &[&str]| Config {
            listen: ListenConfig {
                grpc: names
                    .iter()
                    .map(|name| GrpcListener::Inherited {
                        name: (*name).to_owned(),
                        tls: None,
                        control: false,
                    })
                    .collect(),
                http: Vec::new(),
            },
            ..Config::default()
        };
        let given = |names: &[&str]| {
            let socket = |name: &&str| ((*name).to_owned(), tcp(Ipv4Addr::LOCALHOST));
            InheritedSockets(names.iter().map(socket).collect())
        };
        let check = |given: InheritedSockets, named| {
            let checked = given.check(&config(named));
            checked.map_err(|error| error.to_string())
        };
        assert_eq!(check(given(&[]), &[]), Ok(()));
        assert_eq!(check(given(&["a", "b", "a"]), &["b", "a"]), Ok(()));
        let missing = check(given(&["a"]), &["a", "grpc"]).unwrap_err();
        assert!(
            missing.contains("`grpc`") && missing.contains("these were: `a`"),
            "{missing}"
        );
        let unused = check(given(&["a", "b"]), &["a"]).unwrap_err();
        assert!(unused.contains("a socket `b`"), "{unused}");
        assert!(
            check(given(&["a"]), &["a", "a"])
                .unwrap_err()
                .contains("two listeners")
        );
        let mut sockets = given(&["a", "b", "a"]);
        assert_eq!(sockets.take("a").len(), 2);
        assert_eq!(sockets.take("a").len(), 0);
    }
}
