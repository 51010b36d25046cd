//! How a client gets in: its handshake, its addresses, and what the log says of both.

use std::net::Ipv4Addr;

use tokio::time::Duration;

use super::clients::{Stage, print_family_address};
use super::env::Occasion;
use super::{Engine, Timer};

impl Engine {
    /// The handshake of a client that is taken in: to the manager's question, or through.
    pub(super) fn greet_client(&mut self, cid: u64) {
        let Some(client) = self.clients.get_mut(&cid) else {
            return;
        };
        client.stage = Stage::AwaitingApproval;
        let address = client.log_address();
        let family_address = print_family_address(client.real_address);
        let name = client.spec.common_name.clone();
        let username = client.spec.username.clone().unwrap_or_default();
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
        let asks = self.settings.client_auth;
        if asks {
            let begin = line("TLS: Username/Password authentication deferred for username '");
            self.log("", [&begin[..], &username, b"' "].concat());
        }
        let trust = if asks { "semi-trusted" } else { "trusted" };
        self.log(
            "",
            line("TLS: move_session: dest=TM_ACTIVE src=TM_INITIAL reinit_src=1"),
        );
        self.log(
            "",
            line(&format!(
                "TLS: tls_multi_process: initial untrusted session promoted to {trust}"
            )),
        );
        if asks {
            if let Some(client) = self.clients.get_mut(&cid) {
                client.announced = Some(client.kid);
            }
            self.say_block(cid, Occasion::Connect);
        }
        self.log(
            "",
            line(
                "Control Channel: TLSv1.3, cipher TLSv1.3 TLS_AES_256_GCM_SHA384, peer \
                 certificate: 256 bits ECprime256v1, signature: ecdsa-with-SHA256, peer temporary \
                 key: 253 bits X25519",
            ),
        );
        let initiated = format!("] Peer Connection Initiated with {family_address}");
        self.log("I", [&line("["), &name[..], initiated.as_bytes()].concat());

        if asks {
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
        // The manager may have set one.
        client.virtual_address = client
            .virtual_address
            .or(client.spec.virtual_address)
            .or_else(|| number.map(|number| self.pool.address(number)));
        client.virtual_ipv6_address = client
            .spec
            .virtual_ipv6_address
            .or_else(|| number.and_then(|number| self.pool.ipv6_address(number)));
        let (address, ipv6_address) = (client.virtual_address, client.virtual_ipv6_address);
        let routes = client.routes.clone();
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
        let routes = client.routes.clone();
        let (peer_id, cipher) = (client.peer_id, client.spec.cipher.clone());
        let options: String = client
            .options
            .iter()
            .map(|option| format!("{option},"))
            .collect();
        let drawn = client.pool_number.map(|number| self.pool.address(number));

        let ipv6 = ipv6_address.map_or("(Not enabled)".to_owned(), |address| address.to_string());
        let shown = drawn.map_or("(Not enabled)".to_owned(), |address| address.to_string());
        let line = format!("MULTI_sva: pool returned IPv4={shown}, IPv6={ipv6}");
        self.log("I", [&prefix[..], line.as_bytes()].concat());
        if address != drawn && ipv6_address.is_some() {
            let warning =
                b"MULTI_sva: WARNING: if --ifconfig-push is used for IPv4, automatic IPv6 \
                            assignment from --ifconfig-ipv6-pool does not work.  Use \
                            --ifconfig-ipv6-push for IPv6 then.";
            self.log("I", [&prefix[..], warning].concat());
        }
        let address = address.map_or(shown, |address| address.to_string());
        let mut learned: Vec<(String, &str)> = vec![(address.clone(), "primary virtual IP")];
        if ipv6_address.is_some() {
            learned.push((ipv6.clone(), "primary virtual IPv6"));
        }
        for (network, length) in &routes {
            learned.push((format!("{network}/{length}"), ""));
        }
        for (address, role) in learned {
            if role.is_empty() {
                let line = format!("MULTI: internal route {address} -> ");
                self.log("", [&prefix[..], line.as_bytes(), &who].concat());
            }
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
             {restart},{options}{ifconfig_ipv6}ifconfig {address} {netmask},peer-id {peer_id},cipher \
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
}
