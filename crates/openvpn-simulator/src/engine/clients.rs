//! Clients: how they come, and who they are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::time::Instant;

use crate::client::{ClientSpec, ClientState};
use crate::clock::UnixTime;
use crate::random::{mix, seed};
use crate::{ControlError, Misbehaviour, Version};

use super::env::Occasion;
use super::{Engine, Phase, Timer};

/// How far a client has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    HalfOpen,
    AwaitingApproval,
    Established,
}

/// How a client's address is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AddressForm {
    /// Up to 2.6.
    Bare,
    /// With the protocol of its own family, as 2.7 does on a socket of that family.
    Own,
    /// 2.7 on a socket that serves both families.
    Udp6,
}

/// One client instance.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) spec: Box<ClientSpec>,
    pub(super) stage: Stage,
    pub(super) real_address: SocketAddr,
    pub(super) address_form: AddressForm,
    pub(super) virtual_address: Option<Ipv4Addr>,
    pub(super) virtual_ipv6_address: Option<Ipv6Addr>,
    /// Networks behind it.
    pub(super) routes: Vec<(Ipv4Addr, u8)>,
    /// What the manager lets be pushed to it.
    pub(super) options: Vec<String>,
    /// Number taken from the address pool, to be given back.
    pub(super) pool_number: Option<u32>,
    pub(super) peer_id: u32,
    pub(super) connected_since: UnixTime,
    pub(super) bytes_received: u64,
    pub(super) bytes_sent: u64,
    /// Key ID of the `CONNECT` the manager heard; with it goes a `DISCONNECT` at the end.
    pub(super) announced: Option<u64>,
    /// Key ID that commands about it must name, announced or not.
    pub(super) kid: u64,
    /// Whether it has negotiated another key since.
    pub(super) reauthenticated: bool,
    /// Whether a delayed exit is running.
    pub(super) leaving: bool,
    /// When its byte counts were last reported.
    pub(super) reported: Option<Instant>,
}

impl Client {
    /// Real address as `status` and log lines print it.
    pub(super) fn log_address(&self) -> String {
        match (self.address_form, self.real_address) {
            // An IPv6 peer's port is left out.
            (AddressForm::Bare, SocketAddr::V4(address)) => address.to_string(),
            (AddressForm::Bare, SocketAddr::V6(address)) => address.ip().to_string(),
            (AddressForm::Own, address @ SocketAddr::V4(_)) => format!("udp4:{address}"),
            (AddressForm::Own | AddressForm::Udp6, address) => format!("udp6:{address}"),
        }
    }

    /// Common name as it is in force: a half-open client has none yet.
    pub(super) fn common_name(&self) -> &[u8] {
        match self.stage {
            Stage::HalfOpen => b"UNDEF",
            Stage::AwaitingApproval | Stage::Established => &self.spec.common_name,
        }
    }

    /// Whether a command may speak of this key.
    pub(super) fn has_key(&self, kid: u64) -> bool {
        self.stage != Stage::HalfOpen && self.kid == kid
    }

    /// What log lines about it begin with, once its name is known.
    pub(super) fn log_prefix(&self) -> Vec<u8> {
        let address = self.log_address();
        match self.stage {
            Stage::Established => [&self.spec.common_name, &b"/"[..], address.as_bytes()].concat(),
            Stage::HalfOpen | Stage::AwaitingApproval => address.into_bytes(),
        }
    }
}

pub(super) fn print_family_address(address: SocketAddr) -> String {
    match address {
        SocketAddr::V4(address) => format!("[AF_INET]{address}"),
        SocketAddr::V6(address) => format!("[AF_INET6]{}:{}", address.ip(), address.port()),
    }
}

/// Replaces what OpenVPN does not let into names.
fn sanitize(client: &mut ClientSpec) {
    let names = client
        .common_name
        .iter_mut()
        .chain(client.username.iter_mut().flatten());
    for byte in names {
        if *byte < 0x20 || *byte == 0x7f {
            *byte = b'_';
        }
    }
}

impl Engine {
    // ---- coming

    pub(crate) fn connect(&mut self, client: ClientSpec) -> Result<u64, ControlError> {
        let cid = self.begin(client)?;
        self.greet_client(cid);
        Ok(cid)
    }

    pub(crate) fn half_open(&mut self, from: Option<SocketAddr>) -> Result<u64, ControlError> {
        let mut spec = ClientSpec::new("").stays_away();
        spec.real_address = from;
        let cid = self.begin(spec)?;
        let window = self.settings.timing.hand_window;
        self.set_timer(window, Timer::HandWindow(cid));
        Ok(cid)
    }

    pub(crate) fn complete(&mut self, cid: u64, client: ClientSpec) -> Result<(), ControlError> {
        let unknown = self.unknown_client(cid);
        let half_open = self
            .clients
            .get_mut(&cid)
            .filter(|client| client.stage == Stage::HalfOpen)
            .ok_or(unknown)?;
        if let Some(address) = client.real_address {
            half_open.real_address = address;
        }
        half_open.routes.clone_from(&client.routes);
        *half_open.spec = client;
        sanitize(&mut half_open.spec);
        self.greet_client(cid);
        Ok(())
    }

    pub(crate) fn reconnect(&mut self, cid: u64) -> Result<u64, ControlError> {
        let client = self
            .clients
            .get(&cid)
            .filter(|client| client.stage != Stage::HalfOpen)
            .ok_or_else(|| self.unknown_client(cid))?;
        let spec = (*client.spec).clone();
        let from = client.real_address.ip();
        self.connect_again(spec, from)
    }

    pub(super) fn connect_again(
        &mut self,
        mut spec: ClientSpec,
        from: IpAddr,
    ) -> Result<u64, ControlError> {
        spec.real_address = Some(SocketAddr::new(from, self.draw_port()));
        self.connect(spec)
    }

    /// Takes a client in: a CID, a peer ID, nothing more.
    fn begin(&mut self, mut spec: ClientSpec) -> Result<u64, ControlError> {
        if self.phase != Phase::Serving || self.settings.client.is_some() {
            return Err(ControlError::NotServing {
                daemon: self.settings.name.clone(),
            });
        }
        sanitize(&mut spec);
        let real_address = spec.real_address.unwrap_or_else(|| self.draw_address());
        let cid = if self.does(&Misbehaviour::CidReuse) && self.next_cid > 0 {
            0
        } else {
            self.next_cid += 1;
            self.next_cid - 1
        };
        let client = Client {
            routes: spec.routes.clone(),
            spec: Box::new(spec),
            stage: Stage::HalfOpen,
            real_address,
            address_form: match (
                self.settings.version >= Version::V2_7,
                self.settings.dual_stack,
            ) {
                (false, _) => AddressForm::Bare,
                (true, false) => AddressForm::Own,
                (true, true) => AddressForm::Udp6,
            },
            virtual_address: None,
            virtual_ipv6_address: None,
            options: Vec::new(),
            pool_number: None,
            peer_id: self.pool.take_peer_id(),
            connected_since: self.clock(),
            bytes_received: 0,
            bytes_sent: 0,
            announced: None,
            kid: self.settings.version.first_kid(),
            reauthenticated: false,
            leaving: false,
            reported: None,
        };
        if let Some(reused) = self.clients.insert(cid, client) {
            self.give_back(&reused);
        }
        if self.settings.tcp {
            let address = print_family_address(real_address);
            self.latest = None;
            self.log("I", format!("TCP connection established with {address}"));
            self.latest = Some(cid);
        }
        Ok(cid)
    }

    /// What a server on TCP leaves before its log lines.
    pub(super) fn stuck_prefix(&self) -> Option<Vec<u8>> {
        let client = self.clients.get(&self.latest?)?;
        Some([&client.log_prefix()[..], b" "].concat())
    }

    // ---- staying

    pub(crate) fn reauthenticate(&mut self, cid: u64) -> Result<u64, ControlError> {
        let unknown = self.unknown_client(cid);
        let first = self.settings.version.first_kid();
        let client = self
            .clients
            .get_mut(&cid)
            .filter(|client| client.stage == Stage::Established);
        let Some((last, client)) = client.and_then(|client| Some((client.announced?, client)))
        else {
            return Err(unknown);
        };
        let kid = match last {
            // OpenVPN prepares the next key beside the first and then lets it go.
            kid if kid == first => kid + 2,
            kid => kid + 1,
        };
        client.kid = kid;
        client.announced = Some(kid);
        client.reauthenticated = true;
        self.say_block(cid, Occasion::Reauth);
        Ok(kid)
    }

    /// Sends new options to the clients that can take them in while connected: those of 2.7.
    pub(super) fn push_update(&mut self, only: Option<u64>) {
        let understands = |client: &Client| {
            client
                .spec
                .peer_info
                .iter()
                .any(|(name, value)| name == "IV_VER" && value.starts_with("2.7"))
        };
        let updated = self
            .clients
            .iter()
            .filter(|(cid, _)| only.is_none_or(|only| only == **cid))
            .filter(|(_, client)| client.stage == Stage::Established && understands(client))
            .count();
        if updated == 0 {
            self.say("ERROR: no client updated");
            self.say("ERROR: push-update command failed");
        } else {
            self.say("SUCCESS: push-update command succeeded");
        }
    }

    // ---- looking

    pub(crate) fn clients(&self) -> Vec<ClientState> {
        let mut clients: Vec<ClientState> = self
            .clients
            .iter()
            .map(|(cid, client)| ClientState {
                cid: *cid,
                common_name: client.common_name().to_vec(),
                real_address: client.log_address(),
                established: client.stage == Stage::Established,
                leaving: client.leaving,
                bytes_received: client.bytes_received,
                bytes_sent: client.bytes_sent,
            })
            .collect();
        clients.sort_unstable_by_key(|client| client.cid);
        clients
    }

    pub(super) fn established(&self) -> usize {
        self.clients
            .values()
            .filter(|client| client.stage == Stage::Established)
            .count()
    }

    pub(super) fn unknown_client(&self, cid: u64) -> ControlError {
        ControlError::UnknownClient {
            daemon: self.settings.name.clone(),
            cid,
        }
    }

    // ---- drawing

    /// An address of the ranges set aside for documentation.
    fn draw_address(&mut self) -> SocketAddr {
        const NETWORKS: [[u8; 3]; 3] = [[192, 0, 2], [198, 51, 100], [203, 0, 113]];
        let [a, b, c] = NETWORKS[self.random.index(NETWORKS.len())];
        let host = self.random.byte().clamp(1, 254);
        let address = Ipv4Addr::new(a, b, c, host);
        SocketAddr::from((address, self.draw_port()))
    }

    fn draw_port(&mut self) -> u16 {
        u16::try_from(32_768 + self.random.below(28_000)).unwrap_or(u16::MAX)
    }
}

/// A number standing for a name's certificate.
pub(super) fn serial(name: &[u8]) -> u128 {
    let high = mix(seed(name));
    u128::from(high) << 64 | u128::from(mix(high))
}
