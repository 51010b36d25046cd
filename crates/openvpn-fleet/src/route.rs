//! One row of a routing table, kept small.

use std::net::{Ipv4Addr, Ipv6Addr};

use openvpn_management::Cid;

/// An address that an instance sends to a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The client; `u64::MAX` if it is not known or ambiguous, which sorts last. No daemon counts that far.
    cid: u64,
    /// When it was last used, by the daemon's clock, in seconds since 1970; -1 if the daemon does not say.
    last_ref: i64,
    address: RouteAddress,
    /// What the row said of its client, where that is not known.
    orphan: Option<Box<Orphan>>,
}

/// Most routes are single addresses: those take no allocation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum RouteAddress {
    V4(Ipv4Addr),
    V6(Ipv6Addr),
    /// A network, a MAC address, a cached route.
    Other(Box<[u8]>),
}

/// Whom a route leads to that fits no client, or several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// Common name.
    pub common_name: Box<[u8]>,
    /// Where the client comes from.
    pub real_address: Box<[u8]>,
}

impl Route {
    pub(crate) fn new(address: &[u8], last_ref: Option<i64>, client: Result<Cid, Orphan>) -> Self {
        let (cid, orphan) = match client {
            Ok(cid) => (cid.0, None),
            Err(orphan) => (u64::MAX, Some(Box::new(orphan))),
        };
        Self {
            cid,
            last_ref: last_ref.unwrap_or(-1),
            address: RouteAddress::new(address),
            orphan,
        }
    }

    /// The client it leads to; `None` where that is not known.
    #[must_use]
    pub fn cid(&self) -> Option<Cid> {
        (self.cid != u64::MAX).then_some(Cid(self.cid))
    }

    /// What the row said of its client, where that is not known.
    #[must_use]
    pub fn orphan(&self) -> Option<&Orphan> {
        self.orphan.as_deref()
    }

    /// Address, network or MAC address, as the daemon writes it.
    #[must_use]
    pub fn address(&self) -> Vec<u8> {
        self.address.to_bytes()
    }

    /// When it was last used, by the daemon's clock, in seconds since 1970.
    #[must_use]
    pub fn last_ref(&self) -> Option<i64> {
        (self.last_ref >= 0).then_some(self.last_ref)
    }

    pub(crate) fn order_cid(&self) -> u64 {
        self.cid
    }

    pub(crate) fn order(&self, other: &Self) -> std::cmp::Ordering {
        (self.cid, &self.address).cmp(&(other.cid, &other.address))
    }
}

impl RouteAddress {
    fn new(address: &[u8]) -> Self {
        let parsed = str::from_utf8(address).ok().and_then(|text| {
            let v4 = text.parse().map(Self::V4);
            v4.or_else(|_| text.parse().map(Self::V6)).ok()
        });
        // Only if the daemon's own words come back from it.
        parsed
            .filter(|parsed| parsed.to_bytes() == address)
            .unwrap_or_else(|| Self::Other(address.into()))
    }

    fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::V4(address) => address.to_string().into_bytes(),
            Self::V6(address) => address.to_string().into_bytes(),
            Self::Other(address) => address.to_vec(),
        }
    }
}
