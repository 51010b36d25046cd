//! Claims: a VPN network and two ports that no other lab on this machine uses.

use std::{
    net::{Ipv4Addr, TcpListener, UdpSocket},
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener},
    },
    sync::atomic::{AtomicU16, Ordering},
};

use anyhow::{Result, bail};

/// Ports of 127.0.0.1 for whatever a scenario listens with, held until dropped.
#[derive(Debug)]
pub struct Ports(Claim);

impl Ports {
    /// Two ports that nobody else has.
    ///
    /// # Errors
    /// All are taken.
    pub fn take() -> Result<Self> {
        Claim::take().map(Self)
    }

    /// The ports.
    #[must_use]
    pub fn numbers(&self) -> [u16; 2] {
        [self.0.vpn_port(), self.0.management_port()]
    }
}

/// How many servers can run at once on one machine, all test processes together.
const CLAIMS_MAX: u16 = 1024;
/// First VPN port; below Linux' ephemeral range (32768 up), so that no outgoing
/// connection of anybody takes it meanwhile.
const VPN_PORT_FIRST: u16 = 21_000;
/// First port for management over TCP.
const MANAGEMENT_PORT_FIRST: u16 = 23_000;

/// The next number to try. Starting anywhere would do: a claim is what decides.
static NEXT: AtomicU16 = AtomicU16::new(0);

/// One number of the machine, held until dropped.
///
/// The hold is a listening abstract Unix socket: the kernel gives it up when the
/// process ends, however it ends.
#[derive(Debug)]
pub(crate) struct Claim {
    number: u16,
    _hold: UnixListener,
}

impl Claim {
    /// The next number whose ports are free.
    pub(crate) fn take() -> Result<Self> {
        for _ in 0..CLAIMS_MAX {
            let number = NEXT.fetch_add(1, Ordering::Relaxed) % CLAIMS_MAX;
            let name = SocketAddr::from_abstract_name(format!("ovfleet-lab/{number}"))?;
            let Ok(hold) = UnixListener::bind_addr(&name) else {
                continue; // Held by another server, perhaps of another test process.
            };
            let claim = Self {
                number,
                _hold: hold,
            };
            if claim.ports_are_free() {
                return Ok(claim);
            }
        }
        bail!("all {CLAIMS_MAX} networks of the lab are taken")
    }

    /// A /24 of 10.244.0.0/14 for the VPN.
    pub(crate) fn network(&self) -> Ipv4Addr {
        let [high, low] = self.number.to_be_bytes();
        Ipv4Addr::new(10, 244 + high, low, 0)
    }

    pub(crate) fn vpn_port(&self) -> u16 {
        VPN_PORT_FIRST + self.number
    }

    pub(crate) fn management_port(&self) -> u16 {
        MANAGEMENT_PORT_FIRST + self.number
    }

    fn ports_are_free(&self) -> bool {
        let vpn = (Ipv4Addr::LOCALHOST, self.vpn_port());
        UdpSocket::bind(vpn).is_ok()
            && TcpListener::bind(vpn).is_ok()
            && TcpListener::bind((Ipv4Addr::LOCALHOST, self.management_port())).is_ok()
    }
}
