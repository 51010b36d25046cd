//! Addresses inside the VPN, and peer IDs.

use std::collections::{BTreeSet, HashMap};
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::daemon::Settings;

/// Names whose last address is remembered; at the bound all are forgotten, and returning clients
/// may get another address.
const NAMES_KEPT_MAX: usize = 4096;

/// The lowest free numbers first.
#[derive(Debug, Default)]
struct Numbers {
    /// Numbers given back.
    free: BTreeSet<u32>,
    /// The lowest number never given out.
    next: u32,
}

impl Numbers {
    fn take(&mut self) -> u32 {
        self.free.pop_first().unwrap_or_else(|| {
            let number = self.next;
            self.next = self.next.saturating_add(1);
            number
        })
    }

    fn take_this(&mut self, number: u32) -> bool {
        self.free.remove(&number)
    }

    fn give_back(&mut self, number: u32) {
        self.free.insert(number);
    }
}

/// `--ifconfig-pool` as `--server` sets it up, and the table of peer IDs.
#[derive(Debug)]
pub(super) struct Pool {
    /// Server's own address: the first of the network.
    pub(super) local: Ipv4Addr,
    pub(super) netmask: Ipv4Addr,
    /// Number of addresses clients can get; `.0`, the server and broadcast are not among them.
    pub(super) size: u32,
    pub(super) network_ipv6: Option<Ipv6Addr>,
    addresses: Numbers,
    peer_ids: Numbers,
    /// Which number each name had last.
    last: HashMap<Vec<u8>, u32>,
}

impl Pool {
    pub(super) fn new(settings: &Settings) -> Self {
        let prefix_length = u32::from(settings.prefix_length.clamp(1, 30));
        let netmask = u32::MAX << (32 - prefix_length);
        let network = settings.network.to_bits() & netmask;
        Self {
            local: Ipv4Addr::from_bits(network + 1),
            netmask: Ipv4Addr::from_bits(netmask),
            size: !netmask - 2,
            network_ipv6: settings.network_ipv6,
            addresses: Numbers::default(),
            peer_ids: Numbers::default(),
            last: HashMap::new(),
        }
    }

    /// Forgets every client, as a restart does.
    pub(super) fn clear(&mut self) {
        self.addresses = Numbers::default();
        self.peer_ids = Numbers::default();
        self.last.clear();
    }

    pub(super) fn take_peer_id(&mut self) -> u32 {
        self.peer_ids.take()
    }

    pub(super) fn give_back_peer_id(&mut self, peer_id: u32) {
        self.peer_ids.give_back(peer_id);
    }

    /// A number for a client of that name, its last one if that is free; `None` when all are
    /// taken.
    pub(super) fn take(&mut self, name: &[u8]) -> Option<u32> {
        let last = self.last.get(name).copied();
        let number = match last {
            Some(number) if self.addresses.take_this(number) => number,
            _ => self.addresses.take(),
        };
        if number >= self.size {
            self.addresses.give_back(number);
            return None;
        }
        if self.last.len() >= NAMES_KEPT_MAX {
            self.last.clear();
        }
        self.last.insert(name.to_vec(), number);
        Some(number)
    }

    pub(super) fn give_back(&mut self, number: u32) {
        self.addresses.give_back(number);
    }

    pub(super) fn address(&self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.local.to_bits().saturating_add(1 + number))
    }

    pub(super) fn ipv6_address(&self, number: u32) -> Option<Ipv6Addr> {
        self.ipv6(0x1000 + u128::from(number))
    }

    pub(super) fn local_ipv6(&self) -> Option<Ipv6Addr> {
        self.ipv6(1)
    }

    pub(super) fn ipv6(&self, host: u128) -> Option<Ipv6Addr> {
        self.network_ipv6
            .map(|network| Ipv6Addr::from_bits(network.to_bits() | host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Addresses that moved at every reconnect would make a restart look like other people.
    #[test]
    fn a_returning_name_gets_its_address_back() {
        let mut pool = Pool {
            local: Ipv4Addr::new(10, 8, 0, 1),
            netmask: Ipv4Addr::new(255, 255, 255, 0),
            size: 3,
            network_ipv6: None,
            addresses: Numbers::default(),
            peer_ids: Numbers::default(),
            last: HashMap::new(),
        };
        let (alice, bob) = (pool.take(b"alice").unwrap(), pool.take(b"bob").unwrap());
        assert_eq!(pool.address(alice), Ipv4Addr::new(10, 8, 0, 2));
        pool.give_back(alice);
        pool.give_back(bob);
        assert_eq!(pool.take(b"bob"), Some(bob));
        assert_eq!(pool.take(b"carol"), Some(alice));
        assert!(pool.take(b"dave").is_some());
        assert_eq!(pool.take(b"eve"), None);
        pool.give_back(bob);
        assert_eq!(pool.take(b"eve"), Some(bob));
    }
}
