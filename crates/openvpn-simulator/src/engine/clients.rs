//! Clients: how they come, and who they are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::time::{Duration, Instant};

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

fn print_family_address(address: SocketAddr) -> String {
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

    /// The handshake of a client that is taken in: to the manager's question, or through.
    fn greet_client(&mut self, cid: u64) {
        let Some(client) = self.clients.get_mut(&cid) else {
            return;
        };
        client.stage = Stage::AwaitingApproval;
        let address = client.log_address();
        let family_address = print_family_address(client.real_address);
        let name = client.spec.common_name.clone();
        let peer_info = client.spec.peer_info.clone();
        // What a TLS handshake costs, more or less.
        let (received, sent) = (2016 + cid % 7, 2073 + cid % 3);
        self.count_traffic(cid, received, sent);

        let line = |text: &str| [address.as_bytes(), b" ", text.as_bytes()].concat();
        self.log("", line("VERIFY OK: depth=1, CN=Test CA"));
        let subject = line("VERIFY OK: depth=0, C=DE, O=Example Org, OU=Ops, CN=");
        self.log("", [&subject[..], &name].concat());
        for (key, value) in &peer_info {
            self.log("I", line(&format!("peer info: {key}={value}")));
        }
        for text in [
            "TLS: move_session: dest=TM_ACTIVE src=TM_INITIAL reinit_src=1",
            "TLS: tls_multi_process: initial untrusted session promoted to trusted",
            "Control Channel: TLSv1.3, cipher TLSv1.3 TLS_AES_256_GCM_SHA384, peer certificate: \
             256 bits ECprime256v1, signature: ecdsa-with-SHA256, peer temporary key: 253 bits \
             X25519",
        ] {
            self.log("", line(text));
        }
        let initiated = format!("] Peer Connection Initiated with {family_address}");
        let line = [&line("["), &name[..], initiated.as_bytes()].concat();
        self.log("I", line);

        if self.settings.client_auth {
            if let Some(client) = self.clients.get_mut(&cid) {
                client.announced = Some(client.kid);
            }
            self.say_block(cid, Occasion::Connect);
            let window = self.settings.timing.hand_window;
            self.set_timer(window, Timer::HandWindow(cid));
        } else {
            self.establish(cid);
        }
    }

    /// Gives a client its addresses and tells the manager.
    pub(super) fn establish(&mut self, cid: u64) {
        let superseded = self.supersede(cid);
        let Some(client) = self.clients.get_mut(&cid) else {
            return;
        };
        client.stage = Stage::Established;
        let number = self.pool.take(&client.spec.common_name);
        client.pool_number = number;
        client.virtual_address = client
            .spec
            .virtual_address
            .or_else(|| number.map(|number| self.pool.address(number)));
        client.virtual_ipv6_address = client
            .spec
            .virtual_ipv6_address
            .or_else(|| number.and_then(|number| self.pool.ipv6_address(number)));
        let (address, ipv6_address) = (client.virtual_address, client.virtual_ipv6_address);
        let routes = client.spec.routes.clone();
        let announced = client.announced.is_some();
        self.log_addresses(cid, superseded);
        if announced {
            if let Some(address) = address {
                self.say(format_args!(">CLIENT:ADDRESS,{cid},{address},1"));
            }
            if let Some(address) = ipv6_address {
                self.say(format_args!(">CLIENT:ADDRESS,{cid},{address},1"));
            }
            for (network, length) in routes {
                let mask = u32::MAX
                    .checked_shl(32 - u32::from(length.min(32)))
                    .unwrap_or(0);
                let mask = Ipv4Addr::from_bits(mask);
                self.say(format_args!(">CLIENT:ADDRESS,{cid},{network}/{mask},0"));
            }
        }
        self.say_block(cid, Occasion::Established);
        self.set_timer(Duration::from_secs(1), Timer::DataChannel(cid));
        self.begin_keepalives();
    }

    /// Drops earlier instances of the same name, silently as OpenVPN does. Returns whether there
    /// were any.
    fn supersede(&mut self, cid: u64) -> bool {
        if self.settings.duplicate_cn {
            return false;
        }
        let Some(client) = self.clients.get(&cid) else {
            return false;
        };
        let name = &client.spec.common_name;
        let earlier: Vec<u64> = self
            .clients
            .iter()
            .filter(|(other, client)| {
                **other != cid
                    && client.stage == Stage::Established
                    && client.spec.common_name == *name
            })
            .map(|(other, _)| *other)
            .collect();
        if earlier.is_empty() {
            return false;
        }
        let line = [
            b"MULTI: new connection by client '",
            &name[..],
            b"' will cause previous active sessions by this client to be dropped.  Remember to \
              use the --duplicate-cn option if you want multiple clients using the same \
              certificate or username to concurrently connect.",
        ]
        .concat();
        self.log("", line);
        for other in earlier {
            self.remove(other);
        }
        true
    }

    fn log_addresses(&mut self, cid: u64, superseded: bool) {
        let Some(client) = self.clients.get(&cid) else {
            return;
        };
        let who = client.log_prefix();
        // OpenVPN loses its log prefix when it drops an earlier instance on the way.
        let prefix = if superseded {
            Vec::new()
        } else {
            [&who[..], b" "].concat()
        };
        let name = client.spec.common_name.clone();
        let (address, ipv6_address) = (client.virtual_address, client.virtual_ipv6_address);
        let routes = client.spec.routes.clone();
        let (peer_id, cipher) = (client.peer_id, client.spec.cipher.clone());

        let address = address.map_or("(Not enabled)".to_owned(), |address| address.to_string());
        let ipv6 = ipv6_address.map_or("(Not enabled)".to_owned(), |address| address.to_string());
        let line = format!("MULTI_sva: pool returned IPv4={address}, IPv6={ipv6}");
        self.log("I", [&prefix[..], line.as_bytes()].concat());
        let mut learned: Vec<(String, &str)> = vec![(address.clone(), "primary virtual IP")];
        for (network, length) in &routes {
            learned.push((format!("{network}/{length}"), ""));
        }
        if ipv6_address.is_some() {
            learned.push((ipv6.clone(), "primary virtual IPv6"));
        }
        for (address, role) in learned {
            let line = format!("MULTI: Learn: {address} -> ");
            self.log("", [&prefix[..], line.as_bytes(), &who].concat());
            if !role.is_empty() {
                let (begin, end) = (format!("MULTI: {role} for "), format!(": {address}"));
                let line = [&prefix[..], begin.as_bytes(), &who, end.as_bytes()].concat();
                self.log("", line);
            }
        }
        let (local, netmask) = (self.pool.local, self.pool.netmask);
        let (tun_ipv6, ifconfig_ipv6) = match self.pool.local_ipv6() {
            Some(local) if ipv6_address.is_some() => {
                ("tun-ipv6,", format!("ifconfig-ipv6 {ipv6}/64 {local},"))
            }
            _ => ("", String::new()),
        };
        let (ping, restart) = self.pings();
        let begin = [&prefix[..], b"SENT CONTROL [", &name, b"]: '"].concat();
        let push = format!(
            "PUSH_REPLY,{tun_ipv6}route-gateway {local},topology subnet,ping {ping},ping-restart \
             {restart},{ifconfig_ipv6}ifconfig {address} {netmask},peer-id {peer_id},cipher \
             {cipher},protocol-flags cc-exit tls-ekm dyn-tls-crypt,tun-mtu 1500' (status=1)"
        );
        self.log("", [&begin[..], push.as_bytes()].concat());
    }

    fn pings(&self) -> (u64, u64) {
        let timing = &self.settings.timing;
        (timing.keepalive.as_secs(), timing.ping_restart.as_secs())
    }

    pub(super) fn data_channel_up(&mut self, cid: u64) {
        let Some(client) = self.clients.get(&cid) else {
            return;
        };
        let prefix = client.log_prefix();
        let cipher = client.spec.cipher.clone();
        let (ping, restart) = self.pings();
        for line in [
            format!(" Data Channel: cipher '{cipher}', peer-id: 0"),
            format!(" Timers: ping {ping}, ping-restart {}", 2 * restart),
            " Protocol options: protocol-flags cc-exit tls-ekm dyn-tls-crypt".to_owned(),
        ] {
            self.log("", [&prefix, line.as_bytes()].concat());
        }
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
