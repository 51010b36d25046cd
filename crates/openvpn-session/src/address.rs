//! Where a daemon's management socket is.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// Longest path a Unix socket can have: `sun_path` is 108 bytes with its NUL.
const UNIX_PATH_BYTES_MAX: usize = 107;

/// Where a daemon's management socket is: `unix:/path`, `tcp:host:port` or `tls:host:port`; or, for one with `--management-client`, where
/// it finds ours: `listen-unix:/path` or `listen-tcp:ip:port`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A Unix socket, by its absolute path.
    Unix(PathBuf),
    /// A TCP port.
    Tcp {
        /// Name or IP address; an IPv6 address without its brackets.
        host: String,
        /// The port, never 0.
        port: u16,
    },
    /// A TCP port behind which TLS leads to the management port.
    Tls {
        /// Name or IP address; an IPv6 address without its brackets.
        host: String,
        /// The port, never 0.
        port: u16,
    },
    /// A Unix socket on which the daemon dials in, by its absolute path.
    ListenUnix(PathBuf),
    /// A TCP port on which the daemon dials in, never 0.
    ListenTcp(SocketAddr),
}

impl Address {
    /// Whether the daemon dials in here. Such a daemon ends when its session does.
    #[must_use]
    pub fn is_dial_in(&self) -> bool {
        match self {
            Self::ListenUnix(_) | Self::ListenTcp(_) => true,
            Self::Unix(_) | Self::Tcp { .. } | Self::Tls { .. } => false,
        }
    }

    /// Whether the daemon is on this machine as far as the address says: then a retry costs next to nothing.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) | Self::ListenUnix(_) => true,
            Self::ListenTcp(address) => address.ip().is_loopback(),
            Self::Tcp { host, .. } | Self::Tls { host, .. } => {
                host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
            }
        }
    }
}

/// Why a text is no [`Address`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// What stands in front is no kind of address.
    #[error("{text:?} does not begin with unix:, tcp:, tls:, listen-unix: or listen-tcp:")]
    Scheme {
        /// The whole text.
        text: String,
    },
    /// The path is not absolute.
    #[error("{path:?} is not an absolute path, as in unix:/run/openvpn/server.sock")]
    PathRelative {
        /// The path.
        path: String,
    },
    /// The path has a control character, which would spoil every log line with it.
    #[error("{path:?} has a control character")]
    PathControl {
        /// The path.
        path: String,
    },
    /// The path does not fit a Unix socket address.
    #[error(
        "{path:?} is longer than the {UNIX_PATH_BYTES_MAX} bytes a Unix socket's path can have"
    )]
    PathTooLong {
        /// The path.
        path: String,
    },
    /// No host, or one with characters no host name has.
    #[error("{host:?} is no host name or IP address; write an IPv6 address as tcp:[::1]:7505")]
    Host {
        /// What stands where the host should.
        host: String,
    },
    /// A host name where only an IP address makes sense.
    #[error("{host:?} is no IP address to listen on, as in listen-tcp:127.0.0.1:7505")]
    ListenHost {
        /// What stands where the IP address should.
        host: String,
    },
    /// No port, or none from 1 to 65535.
    #[error("{port:?} is no port from 1 to 65535, as in tcp:127.0.0.1:7505")]
    Port {
        /// What stands where the port should.
        port: String,
    },
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let scheme_error = || AddressError::Scheme {
            text: text.to_owned(),
        };
        let (scheme, rest) = text.split_once(':').ok_or_else(scheme_error)?;
        match scheme {
            "unix" => parse_path(rest).map(Self::Unix),
            "tcp" => parse_host(rest).map(|(host, port)| Self::Tcp { host, port }),
            "tls" => parse_host(rest).map(|(host, port)| Self::Tls { host, port }),
            "listen-unix" => parse_path(rest).map(Self::ListenUnix),
            "listen-tcp" => parse_listen_tcp(rest),
            _ => Err(scheme_error()),
        }
    }
}

fn parse_path(path: &str) -> Result<PathBuf, AddressError> {
    if !path.starts_with('/') {
        return Err(AddressError::PathRelative {
            path: path.to_owned(),
        });
    }
    if path.chars().any(char::is_control) {
        return Err(AddressError::PathControl {
            path: path.to_owned(),
        });
    }
    if path.len() > UNIX_PATH_BYTES_MAX {
        return Err(AddressError::PathTooLong {
            path: path.to_owned(),
        });
    }
    Ok(PathBuf::from(path))
}

fn parse_listen_tcp(rest: &str) -> Result<Address, AddressError> {
    let (host, port) = parse_host(rest)?;
    let ip: IpAddr = host
        .parse()
        .map_err(|_| AddressError::ListenHost { host })?;
    Ok(Address::ListenTcp(SocketAddr::new(ip, port)))
}

fn parse_host(rest: &str) -> Result<(String, u16), AddressError> {
    let Some((host, port)) = rest.rsplit_once(':') else {
        return Err(AddressError::Port {
            port: String::new(),
        });
    };
    let bracketed = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let is_host = match bracketed {
        Some(host) => host.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()),
        None => !host.is_empty() && host.bytes().all(is_host_byte),
    };
    if !is_host {
        return Err(AddressError::Host {
            host: host.to_owned(),
        });
    }
    match port.parse() {
        Ok(number) if number > 0 && !port.starts_with('+') => {
            Ok((bracketed.unwrap_or(host).to_owned(), number))
        }
        _ => Err(AddressError::Port {
            port: port.to_owned(),
        }),
    }
}

/// What a host name or an IPv4 address is made of; a colon in particular is not among it.
fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
            Self::Tls { host, port } if host.contains(':') => write!(f, "tls:[{host}]:{port}"),
            Self::Tls { host, port } => write!(f, "tls:{host}:{port}"),
            Self::ListenUnix(path) => write!(f, "listen-unix:{}", path.display()),
            Self::ListenTcp(address) => write!(f, "listen-tcp:{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written in a configuration is what `Display` gives back.
    #[test]
    fn addresses_round_trip() {
        for text in [
            "unix:/run/openvpn/eu1.sock",
            "unix:/with space:and colon",
            "tcp:127.0.0.1:7505",
            "tcp:vpn-1.example:1",
            "tcp:[::1]:65535",
            "tls:vpn-1.example:7505",
            "tls:[::1]:7505",
            "listen-unix:/run/ovfleet/eu1.sock",
            "listen-tcp:127.0.0.1:7505",
            "listen-tcp:[::1]:7505",
        ] {
            let address: Address = text.parse().expect(text);
            assert_eq!(address.to_string(), text);
        }
    }

    /// A mistake in an address names what is wrong with it.
    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("/run/x.sock", "does not begin with"),
            ("udp:1.2.3.4:5", "does not begin with"),
            ("tls:host", "no port"),
            ("listen-unix:x", "not an absolute path"),
            ("listen-tcp:localhost:7505", "no IP address"),
            ("listen-tcp:127.0.0.1:0", "no port"),
            ("unix:run/x.sock", "not an absolute path"),
            ("unix:/run/x\n.sock", "control character"),
            ("unix:/run/x\0.sock", "control character"),
            (&format!("unix:/{}", "x".repeat(107)), "longer than"),
            ("tcp:host", "no port"),
            ("tcp:host:0", "no port"),
            ("tcp:host:+1", "no port"),
            ("tcp:host:65536", "no port"),
            ("tcp::7505", "no host name"),
            ("tcp:::1:7505", "no host name"),
            ("tcp:a b:7505", "no host name"),
        ] {
            let error = text.parse::<Address>().expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
