//! Clients: how they come, what they say, how they go.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::time::{Duration, Instant};

use crate::client::{AfterLoss, ClientSpec, ClientState, How};
use crate::clock::UnixTime;
use crate::lexer::atoi;
use crate::output::Stamp;
use crate::random::{mix, seed};
use crate::{ControlError, Misbehaviour};

use super::env::Occasion;
use super::{Engine, Flow, Phase, Timer};

/// How far a client has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    HalfOpen,
    AwaitingApproval,
    Established,
}

/// One client instance.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) spec: Box<ClientSpec>,
    pub(super) stage: Stage,
    pub(super) real_address: SocketAddr,
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
    /// Whether a delayed exit is running.
    pub(super) leaving: bool,
    /// When its byte counts were last reported.
    pub(super) reported: Option<Instant>,
}

impl Client {
    /// Real address as `status` and log lines print it: 2.6 leaves out an IPv6 peer's port.
    pub(super) fn log_address(&self) -> String {
        print_address(self.real_address)
    }

    /// Common name as it is in force: a half-open client has none yet.
    pub(super) fn common_name(&self) -> &[u8] {
        match self.stage {
            Stage::HalfOpen => b"UNDEF",
            Stage::AwaitingApproval | Stage::Established => &self.spec.common_name,
        }
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

fn print_address(address: SocketAddr) -> String {
    match address {
        SocketAddr::V4(address) => address.to_string(),
        SocketAddr::V6(address) => address.ip().to_string(),
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

    pub(crate) fn half_open(&mut self) -> Result<u64, ControlError> {
        let cid = self.begin(ClientSpec::new("").stays_away())?;
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

    fn connect_again(&mut self, mut spec: ClientSpec, from: IpAddr) -> Result<u64, ControlError> {
        spec.real_address = Some(SocketAddr::new(from, self.draw_port()));
        self.connect(spec)
    }

    /// Takes a client in: a CID, a peer ID, nothing more.
    fn begin(&mut self, mut spec: ClientSpec) -> Result<u64, ControlError> {
        if self.phase != Phase::Serving {
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
            virtual_address: None,
            virtual_ipv6_address: None,
            pool_number: None,
            peer_id: self.pool.take_peer_id(),
            connected_since: self.clock(),
            bytes_received: 0,
            bytes_sent: 0,
            announced: None,
            leaving: false,
            reported: None,
        };
        if let Some(reused) = self.clients.insert(cid, client) {
            self.give_back(&reused);
        }
        Ok(cid)
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
            // 2.6 counts keys from 1.
            if let Some(client) = self.clients.get_mut(&cid) {
                client.announced = Some(1);
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

    // ---- going

    pub(crate) fn leave(&mut self, cid: u64, how: How) -> Result<(), ControlError> {
        let unknown = self.unknown_client(cid);
        let client = self.clients.get_mut(&cid).ok_or(unknown)?;
        client.spec.after_loss = AfterLoss::StaysAway;
        let prefix = client.log_prefix();
        let name = client.common_name().to_vec();
        let line = |text: &str| [&prefix[..], b" ", text.as_bytes()].concat();
        match how {
            How::ExitNotify => {
                self.log("N", line("CC-EEN exit message received by peer"));
                let prefix = [&prefix[..], b" "].concat();
                if self.schedule_exit(cid, &prefix) {
                    self.say(">NOTIFY:info,remote-exit,EXIT");
                }
                return Ok(());
            }
            How::ExitNotifyData => {
                self.log("N", line("OCC exit message received by peer"));
                self.log(
                    "",
                    line("SIGUSR1[soft,remote-exit] received, client-instance restarting"),
                );
            }
            How::PingTimeout => {
                let tail = b"] Inactivity timeout (--ping-restart), restarting";
                let inactive = [&line("["), &name[..], tail].concat();
                self.log("I", inactive);
                self.log(
                    "",
                    line("SIGUSR1[soft,ping-restart] received, client-instance restarting"),
                );
            }
            How::TcpClose => {
                self.log("N", line("Connection reset, restarting [0]"));
                self.log(
                    "",
                    line("SIGUSR1[soft,connection-reset] received, client-instance restarting"),
                );
            }
        }
        self.remove(cid);
        Ok(())
    }

    /// Takes an instance out of the tables, with its `DISCONNECT` if it had a `CONNECT`.
    pub(super) fn remove(&mut self, cid: u64) {
        let announced = self
            .clients
            .get(&cid)
            .is_some_and(|client| client.announced.is_some());
        if announced {
            self.say_block(cid, Occasion::Disconnect);
        }
        if let Some(client) = self.clients.remove(&cid) {
            self.give_back(&client);
        }
    }

    fn give_back(&mut self, client: &Client) {
        self.pool.give_back_peer_id(client.peer_id);
        if let Some(number) = client.pool_number {
            self.pool.give_back(number);
        }
    }

    pub(super) fn delayed_exit(&mut self, cid: u64) {
        let Some(client) = self.clients.get(&cid).filter(|client| client.leaving) else {
            return;
        };
        let text = b" SIGTERM[soft,delayed-exit] received, client-instance exiting";
        let line = [&client.log_prefix()[..], text].concat();
        self.log("", line);
        self.remove(cid);
    }

    /// Lets a client come back later, if it is one that does.
    pub(super) fn schedule_return(&mut self, cid: u64, after: Duration) {
        let Some(client) = self.clients.get(&cid) else {
            return;
        };
        if client.spec.after_loss == AfterLoss::StaysAway || client.stage != Stage::Established {
            return;
        }
        let mut spec = client.spec.clone();
        spec.real_address = Some(client.real_address);
        self.set_timer(after, Timer::Returns(spec));
    }

    pub(super) fn returns(&mut self, spec: Box<ClientSpec>) {
        if self.phase == Phase::Serving {
            if let Some(address) = spec.real_address {
                // Serving was just checked, so it gets in.
                let _ = self.connect_again(*spec, address.ip());
            }
        } else {
            self.set_timer(Duration::from_secs(1), Timer::Returns(spec));
        }
    }

    // ---- killing

    pub(super) fn kill_command(&mut self, victim: &[u8]) {
        if !self.serves("kill") {
            return;
        }
        let (first, rest) = cut_part(victim);
        let (second, _) = cut_part(rest);
        if first.is_empty() {
            self.say("ERROR: kill parse");
            return;
        }
        if second.is_empty() {
            let killed = self.kill_where(|client| client.common_name() == first);
            if killed == 0 {
                self.say_bytes(&[b"ERROR: common name '", first, b"' not found"]);
            } else {
                let tail = format!("' found, {killed} client(s) killed");
                self.say_bytes(&[b"SUCCESS: common name '", first, tail.as_bytes()]);
            }
            return;
        }
        let Some(address) = parse_ipv4(first) else {
            let unparsable = [
                b"RESOLVE: Cannot parse IP address: ",
                first,
                b": (Name or service not known)",
            ];
            self.log("N", unparsable.concat());
            self.say_bytes(&[b"ERROR: error parsing IP address: ", first]);
            return;
        };
        let port = u16::try_from(atoi(second)).unwrap_or(0);
        if port == 0 {
            self.say_bytes(&[b"ERROR: port number is out of range: ", second]);
            return;
        }
        let target = SocketAddr::from((address, port));
        let killed = self.kill_where(|client| client.real_address == target);
        if killed == 0 {
            self.say(format_args!("ERROR: client at address {target} not found"));
        } else {
            self.say(format_args!(
                "SUCCESS: {killed} client(s) at address {target} killed"
            ));
        }
    }

    /// Ends instances at once and without telling their peers.
    fn kill_where(&mut self, condition: impl Fn(&Client) -> bool) -> usize {
        let victims: Vec<u64> = self
            .clients
            .iter()
            .filter(|(_, client)| condition(client))
            .map(|(cid, _)| *cid)
            .collect();
        for cid in &victims {
            if let Some(client) = self.clients.get(cid) {
                let text = b" SIGTERM[soft,] received, client-instance exiting";
                let line = [&client.log_prefix()[..], text].concat();
                self.log("", line);
            }
            // The peer notices only when nothing comes back for long enough.
            let after = self.settings.timing.ping_restart;
            self.schedule_return(*cid, after);
            self.remove(*cid);
        }
        victims.len()
    }

    pub(super) fn client_kill_command(&mut self, cid: &[u8], message: Option<&[u8]>) {
        let Some(cid) = self.parse_cid(cid) else {
            return;
        };
        if !self.serves("client-kill") {
            return;
        }
        let Some(client) = self.clients.get(&cid) else {
            self.say("ERROR: client-kill command failed");
            return;
        };
        let name = client.common_name().to_vec();
        let prefix = client.log_prefix();
        let first = !client.leaving;
        let message = message.unwrap_or(b"RESTART");
        self.schedule_exit(cid, b"");
        self.log(
            "",
            [
                b"SENT CONTROL [",
                &name[..],
                b"]: '",
                message,
                b"' (status=1)",
            ]
            .concat(),
        );
        self.say("SUCCESS: client-kill command succeeded");
        if !first {
            return;
        }
        let timing = self.settings.timing;
        if message.starts_with(b"HALT") {
            let says_goodbye = self
                .clients
                .get(&cid)
                .is_some_and(|client| client.spec.exit_notify);
            if says_goodbye {
                let text = b" CC-EEN exit message received by peer";
                self.log("N", [&prefix[..], text].concat());
            }
        } else if message.starts_with(b"RESTART") {
            self.schedule_return(cid, timing.return_after_kill);
        } else {
            // A stock client does not know the message; it only notices the silence later.
            self.schedule_return(cid, timing.delayed_exit + timing.ping_restart);
        }
    }

    // ---- traffic

    pub(crate) fn add_traffic(
        &mut self,
        cid: u64,
        received: u64,
        sent: u64,
    ) -> Result<(), ControlError> {
        if !self.clients.contains_key(&cid) {
            return Err(self.unknown_client(cid));
        }
        self.count_traffic(cid, received, sent);
        self.report_traffic(cid);
        Ok(())
    }

    fn count_traffic(&mut self, cid: u64, received: u64, sent: u64) {
        if let Some(client) = self.clients.get_mut(&cid) {
            client.bytes_received = client.bytes_received.saturating_add(received);
            client.bytes_sent = client.bytes_sent.saturating_add(sent);
            self.bytes_received = self.bytes_received.saturating_add(received);
            self.bytes_sent = self.bytes_sent.saturating_add(sent);
        }
    }

    /// 2.6 reports a client when one of its packets passes and the interval is over.
    fn report_traffic(&mut self, cid: u64) {
        let interval = self.session.as_ref().map_or(0, |session| session.bytecount);
        if interval == 0 {
            return;
        }
        let now = Instant::now();
        let Some(client) = self.clients.get_mut(&cid) else {
            return;
        };
        let due = client
            .reported
            .is_none_or(|last| now.duration_since(last) >= Duration::from_secs(interval));
        if client.stage == Stage::Established && due {
            client.reported = Some(now);
            let (received, sent) = (client.bytes_received, client.bytes_sent);
            self.say(format_args!(">BYTECOUNT_CLI:{cid},{received},{sent}"));
        }
    }

    /// Keepalive packets only show in byte counts, so they are sent only while somebody counts.
    pub(super) fn begin_keepalives(&mut self) {
        let counting = self
            .session
            .as_ref()
            .is_some_and(|session| session.bytecount > 0);
        let running = self
            .timers
            .values()
            .any(|timer| matches!(timer, Timer::Keepalive));
        if counting && !running && !self.clients.is_empty() {
            let interval = self.settings.timing.keepalive;
            self.set_timer(interval, Timer::Keepalive);
        }
    }

    pub(super) fn send_keepalives(&mut self) {
        /// Link bytes of one keepalive packet.
        const PING_BYTES: u64 = 40;
        let cids: Vec<u64> = self.clients.keys().copied().collect();
        for cid in cids {
            let established = self
                .clients
                .get(&cid)
                .is_some_and(|client| client.stage == Stage::Established && !client.leaving);
            if established {
                self.count_traffic(cid, PING_BYTES, PING_BYTES);
                self.report_traffic(cid);
            }
        }
        self.begin_keepalives();
    }

    // ---- bursts

    /// Begins a burst; each of its notifications will be stamped. Returns the first CID.
    pub(crate) fn begin_burst(&mut self, clients: usize) -> Result<u64, ControlError> {
        if !self.is_attached() {
            return Err(self.not_attached());
        }
        if self.phase != Phase::Serving {
            return Err(ControlError::NotServing {
                daemon: self.settings.name.clone(),
            });
        }
        let first = self.next_cid;
        let count = u64::try_from(clients).unwrap_or(u64::MAX);
        self.next_cid = self.next_cid.saturating_add(count);
        self.output.burst_stamps = Vec::with_capacity(clients.saturating_mul(2));
        self.flow = Some(Flow::Burst {
            next_cid: first,
            remaining: clients,
        });
        Ok(first)
    }

    pub(super) fn refill_burst(&mut self, helping_bytes: usize) {
        let Some(Flow::Burst {
            mut next_cid,
            mut remaining,
        }) = self.flow
        else {
            return;
        };
        let time = self.clock();
        while remaining > 0 && self.output.pending().len() < helping_bytes {
            let cid = next_cid;
            let [_, _, high, low] = u32::try_from(cid & 0xffff).unwrap_or(0).to_be_bytes();
            for (occasion, more) in [
                ("ESTABLISHED", format!("time_unix={}", time.0)),
                ("DISCONNECT", "time_duration=0".to_owned()),
            ] {
                self.say(format_args!(
                    ">CLIENT:{occasion},{cid}\r\n>CLIENT:ENV,{more}\r\n\
                     >CLIENT:ENV,common_name=burst-{cid}\r\n\
                     >CLIENT:ENV,trusted_ip=198.18.{high}.{low}\r\n\
                     >CLIENT:ENV,trusted_port=40000\r\n\
                     >CLIENT:ENV,ifconfig_pool_remote_ip=198.19.{high}.{low}\r\n\
                     >CLIENT:ENV,END"
                ));
                self.output.mark(Stamp::Burst);
            }
            next_cid += 1;
            remaining -= 1;
        }
        self.flow = (remaining > 0).then_some(Flow::Burst {
            next_cid,
            remaining,
        });
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

    fn unknown_client(&self, cid: u64) -> ControlError {
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

/// `buf_parse`: text up to a colon, at most 127 bytes of it, and what is left.
fn cut_part(text: &[u8]) -> (&[u8], &[u8]) {
    const PART_BYTES_MAX: usize = 127;
    match text.iter().position(|&byte| byte == b':') {
        Some(end) if end <= PART_BYTES_MAX => (&text[..end], &text[end + 1..]),
        None if text.len() <= PART_BYTES_MAX => (text, &[]),
        // The byte that does not fit is lost between the two parts.
        _ => (
            &text[..PART_BYTES_MAX],
            text.get(PART_BYTES_MAX + 2..).unwrap_or(&[]),
        ),
    }
}

/// An IPv4 address as `inet_aton` reads it in decimal: `1.2.3.4`, but also `1.2` or `2001`.
fn parse_ipv4(text: &[u8]) -> Option<Ipv4Addr> {
    let text = std::str::from_utf8(text).ok()?;
    let parts: Vec<u32> = text
        .split('.')
        .map(|part| part.parse().ok())
        .collect::<Option<_>>()?;
    let (last, firsts) = parts.split_last()?;
    if firsts.len() > 3 || firsts.iter().any(|part| *part > 255) {
        return None;
    }
    // The last number fills all bytes that are left.
    let bits_left = 32 - 8 * u32::try_from(firsts.len()).ok()?;
    if u64::from(*last) >= 1 << bits_left {
        return None;
    }
    let high = firsts
        .iter()
        .zip([24, 16, 8])
        .fold(0, |bits, (part, shift)| bits | part << shift);
    Some(Ipv4Addr::from_bits(high | last))
}

/// A number standing for a name's certificate.
pub(super) fn serial(name: &[u8]) -> u128 {
    let high = mix(seed(name));
    u128::from(high) << 64 | u128::from(mix(high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn victims_are_split_at_colons_like_openvpn_does() {
        assert_eq!(cut_part(b"alice"), (&b"alice"[..], &b""[..]));
        assert_eq!(cut_part(b"alice:"), (&b"alice"[..], &b""[..]));
        assert_eq!(cut_part(b"1.2.3.4:5:6"), (&b"1.2.3.4"[..], &b"5:6"[..]));
        assert_eq!(cut_part(b":x"), (&b""[..], &b"x"[..]));
        let long = [b'a'; 200];
        assert_eq!(cut_part(&long).0.len(), 127);
    }

    #[test]
    fn addresses_parse_like_inet_aton() {
        let parsed = |text: &str| parse_ipv4(text.as_bytes());
        assert_eq!(parsed("1.2.3.4"), Some(Ipv4Addr::new(1, 2, 3, 4)));
        assert_eq!(parsed("2001"), Some(Ipv4Addr::new(0, 0, 7, 209)));
        assert_eq!(parsed("1.2"), Some(Ipv4Addr::new(1, 0, 0, 2)));
        assert_eq!(parsed("foo"), None);
        assert_eq!(parsed("1.2.3.256"), None);
        assert_eq!(parsed("1.2.3.4.5"), None);
    }
}
