//! Which clients are meant: the same for lists, watches, events and kills.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use openvpn_management::Cid;

use crate::event::EventClient;
use crate::name::{ClientRef, Generation, InstanceName};

/// Most references, common names or usernames in a filter.
pub const FILTER_VALUES_MAX: usize = 10_000;
/// Most real or virtual addresses in a filter: each client is compared with every one of them.
pub const ADDRESS_PATTERNS_MAX: usize = 1_000;

/// Which clients are meant. Fields are joined by AND, the values of one field by OR; an empty field does not restrict.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientFilter {
    /// These clients and no others.
    pub refs: BTreeSet<ClientRef>,
    /// Common names, byte by byte.
    pub common_names: BTreeSet<Vec<u8>>,
    /// Usernames, byte by byte.
    pub usernames: BTreeSet<Vec<u8>>,
    /// Where the client comes from.
    pub real_addresses: Vec<AddressPattern>,
    /// Addresses inside the VPN.
    pub virtual_addresses: Vec<AddressPattern>,
    /// Only half-open clients, only complete ones, or both.
    pub half_open: Option<bool>,
}

/// What a filter looks at, whether it comes from a table or from an event.
#[derive(Debug, Clone, Copy)]
pub struct ClientIdentity<'a> {
    /// The client's instance.
    pub instance: &'a InstanceName,
    /// Its generation.
    pub generation: Generation,
    /// Its number.
    pub cid: Cid,
    /// Common name; empty while half-open.
    pub common_name: &'a [u8],
    /// Username; empty when it used none.
    pub username: &'a [u8],
    /// Where it comes from.
    pub real_address: &'a [u8],
    /// IPv4 address inside the VPN.
    pub virtual_address: &'a [u8],
    /// IPv6 address inside the VPN.
    pub virtual_ipv6_address: &'a [u8],
    /// It has no name yet.
    pub half_open: bool,
}

impl EventClient {
    /// What a [`ClientFilter`] looks at.
    #[must_use]
    pub fn identity<'a>(&'a self, instance: &'a InstanceName) -> ClientIdentity<'a> {
        ClientIdentity {
            instance,
            generation: self.generation,
            cid: self.cid,
            common_name: self.common_name.as_bytes(),
            username: self.username.as_bytes(),
            real_address: self.real_address.as_bytes(),
            virtual_address: self.virtual_address.as_bytes(),
            virtual_ipv6_address: self.virtual_ipv6_address.as_bytes(),
            half_open: self.half_open,
        }
    }
}

/// An IP address, a network, or an address with a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressPattern {
    /// Any address within.
    Network(IpNet),
    /// This address and port.
    Socket(IpAddr, u16),
}

/// A text is not an [`AddressPattern`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressPatternError {
    /// It is neither an address, nor a network, nor an address with a port.
    #[error(
        "{text:?} is not an IP address, a network (192.0.2.0/24) or an address with port (192.0.2.7:51820, [2001:db8::1]:1194)"
    )]
    Malformed {
        /// The text.
        text: String,
    },
    /// It has a port where a port has no meaning.
    #[error("{text:?} has a port; an address inside the VPN has none")]
    PortNotAllowed {
        /// The text.
        text: String,
    },
}

impl AddressPattern {
    /// A pattern for real addresses: address, network, or address with port.
    ///
    /// # Errors
    /// [`AddressPatternError::Malformed`].
    pub fn parse_real(text: &str) -> Result<Self, AddressPatternError> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Network(IpNet::from(address.to_canonical())));
        }
        if let Ok(network) = text.parse::<IpNet>() {
            return Ok(Self::Network(network.trunc()));
        }
        match text.parse::<std::net::SocketAddr>() {
            Ok(socket) => Ok(Self::Socket(socket.ip().to_canonical(), socket.port())),
            Err(_) => Err(AddressPatternError::Malformed {
                text: text.to_owned(),
            }),
        }
    }

    /// A pattern for addresses inside the VPN: address or network.
    ///
    /// # Errors
    /// [`AddressPatternError`].
    pub fn parse_virtual(text: &str) -> Result<Self, AddressPatternError> {
        match Self::parse_real(text)? {
            pattern @ Self::Network(_) => Ok(pattern),
            Self::Socket(..) => Err(AddressPatternError::PortNotAllowed {
                text: text.to_owned(),
            }),
        }
    }

    fn matches(&self, (address, port): (IpAddr, Option<u16>)) -> bool {
        match self {
            Self::Network(network) => network.contains(&address),
            Self::Socket(wanted, wanted_port) => *wanted == address && Some(*wanted_port) == port,
        }
    }
}

/// Address and port of a real address as daemons write it: `192.0.2.7:51820`, `2001:db8::1` (no port before 2.7),
/// `udp4:192.0.2.7:51820`, `udp6:[2001:db8::1]:1194`, and with the interface of `--multihome` behind it.
#[must_use]
pub fn parse_real_address(text: &[u8]) -> Option<(IpAddr, Option<u16>)> {
    let text = str::from_utf8(text).ok()?;
    // A protocol word in front has letters beyond f, which no address begins with.
    let text = match text.split_once(':') {
        Some((word, rest)) if word.starts_with("udp") || word.starts_with("tcp") => rest,
        _ => text,
    };
    if let Ok(socket) = text.parse::<std::net::SocketAddr>() {
        return Some((socket.ip().to_canonical(), Some(socket.port())));
    }
    let address: IpAddr = text.parse().ok()?;
    Some((address.to_canonical(), None))
}

/// The address or network of a virtual address as daemons write it: `10.8.0.2`, `10.77.0.0/24`,
/// `10.77.0.0/255.255.255.0`; a `C` behind it marks a cached route.
fn parse_virtual_address(text: &[u8]) -> Option<IpNet> {
    let text = str::from_utf8(text).ok()?;
    let text = text.strip_suffix('C').unwrap_or(text);
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(IpNet::from(address));
    }
    if let Ok(network) = text.parse::<IpNet>() {
        return Some(network);
    }
    let (address, mask) = text.split_once('/')?;
    IpNet::with_netmask(address.parse().ok()?, mask.parse().ok()?).ok()
}

impl ClientFilter {
    /// Whether it restricts nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self {
            refs,
            common_names,
            usernames,
            real_addresses,
            virtual_addresses,
            half_open,
        } = self;
        refs.is_empty()
            && common_names.is_empty()
            && usernames.is_empty()
            && real_addresses.is_empty()
            && virtual_addresses.is_empty()
            && half_open.is_none()
    }

    /// Whether `client`, on this gateway, is meant.
    #[must_use]
    pub fn matches(&self, gateway: &crate::name::GatewayName, client: &ClientIdentity<'_>) -> bool {
        let is_named = || {
            self.refs.contains(&ClientRef {
                gateway: gateway.clone(),
                instance: client.instance.clone(),
                generation: client.generation,
                cid: client.cid,
            })
        };
        (self.refs.is_empty() || is_named())
            && contains_or_empty(&self.common_names, client.common_name)
            && contains_or_empty(&self.usernames, client.username)
            && self
                .half_open
                .is_none_or(|half_open| half_open == client.half_open)
            && matches_real(&self.real_addresses, client.real_address)
            && matches_virtual(
                &self.virtual_addresses,
                [client.virtual_address, client.virtual_ipv6_address],
            )
    }
}

fn contains_or_empty(values: &BTreeSet<Vec<u8>>, value: &[u8]) -> bool {
    values.is_empty() || values.contains(value)
}

fn matches_real(patterns: &[AddressPattern], text: &[u8]) -> bool {
    if patterns.is_empty() {
        return true;
    }
    parse_real_address(text)
        .is_some_and(|address| patterns.iter().any(|pattern| pattern.matches(address)))
}

fn matches_virtual(patterns: &[AddressPattern], texts: [&[u8]; 2]) -> bool {
    if patterns.is_empty() {
        return true;
    }
    texts
        .into_iter()
        .filter_map(parse_virtual_address)
        .any(|network| {
            patterns.iter().any(|pattern| match pattern {
                // A network behind a client is meant by what contains all of it.
                AddressPattern::Network(wanted) => wanted.contains(&network),
                AddressPattern::Socket(..) => false,
            })
        })
}

#[cfg(test)]
mod tests;
