//! Where a daemon's management socket is.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// Longest path a Unix socket can have: `sun_path` is 108 bytes with its NUL.
const UNIX_PATH_BYTES_MAX: usize = 107;

/// Where a daemon's management socket is, written `unix:/path` or `tcp:host:port`.
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
}

impl Address {
    /// Whether the daemon is on this machine as far as the address says: then a retry costs next to nothing.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp { host, .. } => {
                host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
            }
        }
    }
}

/// Why a text is no [`Address`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// There is no `unix:` or `tcp:` in front.
    #[error("{text:?} does not begin with unix: or tcp:")]
    Scheme {
        /// The whole text.
        text: String,
    },
    /// A kind of address this version knows of but cannot use.
    #[error("addresses of the kind {scheme}: are not supported yet; use unix: or tcp:")]
    NotSupportedYet {
        /// What stands before the colon.
        scheme: &'static str,
    },
    /// The path is not absolute.
    #[error("{path:?} is not an absolute path, as in unix:/run/openvpn/server.sock")]
    PathRelative {
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
    /// No port, or none from 1 to 65535.
    #[error("{port:?} is no port from 1 to 65535, as in tcp:127.0.0.1:7505")]
    Port {
        /// What stands where the port should.
        port: String,
    },
}

/// Kinds of address that exist but that no code serves yet.
const SCHEMES_TO_COME: [&str; 3] = ["tls", "listen-unix", "listen-tcp"];

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let scheme_error = || AddressError::Scheme {
            text: text.to_owned(),
        };
        let (scheme, rest) = text.split_once(':').ok_or_else(scheme_error)?;
        match scheme {
            "unix" => parse_unix(rest),
            "tcp" => parse_tcp(rest),
            _ => Err(SCHEMES_TO_COME
                .into_iter()
                .find(|known| *known == scheme)
                .map_or_else(scheme_error, |scheme| AddressError::NotSupportedYet {
                    scheme,
                })),
        }
    }
}

fn parse_unix(path: &str) -> Result<Address, AddressError> {
    if !path.starts_with('/') || path.contains('\0') {
        return Err(AddressError::PathRelative {
            path: path.to_owned(),
        });
    }
    if path.len() > UNIX_PATH_BYTES_MAX {
        return Err(AddressError::PathTooLong {
            path: path.to_owned(),
        });
    }
    Ok(Address::Unix(PathBuf::from(path)))
}

fn parse_tcp(rest: &str) -> Result<Address, AddressError> {
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
        Ok(number) if number > 0 && !port.starts_with('+') => Ok(Address::Tcp {
            host: bracketed.unwrap_or(host).to_owned(),
            port: number,
        }),
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
            ("tls:host:7505", "not supported yet"),
            ("listen-unix:/x", "not supported yet"),
            ("unix:run/x.sock", "not an absolute path"),
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
