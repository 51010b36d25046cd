//! `>CLIENT:` blocks: the notification and the variables that come with it.

use std::net::SocketAddr;

use crate::{Misbehaviour, Version};

use super::clients::{Client, serial};
use super::{Engine, Flow, text};

/// Which notification a block belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Occasion<'a> {
    Connect,
    Reauth,
    /// To a challenge, with what the client says.
    Response(&'a str),
    Established,
    Disconnect,
}

/// The lines of one block, with what `env-filter` leaves of them.
struct Block {
    bytes: Vec<u8>,
    filter: i32,
}

impl Block {
    fn put(&mut self, name: &str, value: impl AsRef<[u8]>) {
        if self.passes(name) {
            self.put_unfiltered(name, value.as_ref());
        }
    }

    fn put_unfiltered(&mut self, name: &str, value: &[u8]) {
        self.bytes.extend_from_slice(b">CLIENT:ENV,");
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(b'=');
        // Control bytes do not get into OpenVPN's environment.
        let printable = value.iter().filter(|byte| **byte >= 0x20 && **byte != 0x7f);
        self.bytes.extend(printable);
        self.bytes.extend_from_slice(b"\r\n");
    }

    fn passes(&self, name: &str) -> bool {
        match self.filter {
            ..=0 => true,
            1 if name.starts_with("X509_") => true,
            1 | 2 => text::ENV_SHORT
                .iter()
                .any(|short| name == *short || short.ends_with('_') && name.starts_with(short)),
            3.. => false,
        }
    }
}

impl Engine {
    /// Writes the block of a client's notification, if there is a manager to hear it.
    pub(super) fn say_block(&mut self, cid: u64, occasion: Occasion<'_>) {
        if !self.is_heard() {
            return;
        }
        let Some(client) = self.clients.get(&cid) else {
            return;
        };
        let mut block = Block {
            bytes: Vec::with_capacity(4096),
            filter: self.env_filter,
        };
        let head = match (occasion, client.announced) {
            (Occasion::Connect, Some(kid)) => format!(">CLIENT:CONNECT,{cid},{kid}\r\n"),
            (Occasion::Reauth, Some(kid)) => format!(">CLIENT:REAUTH,{cid},{kid}\r\n"),
            (Occasion::Response(text), Some(kid)) => {
                format!(">CLIENT:CR_RESPONSE,{cid},{kid},{text}\r\n")
            }
            (Occasion::Connect | Occasion::Reauth | Occasion::Response(_), None) => return,
            (Occasion::Established, _) => format!(">CLIENT:ESTABLISHED,{cid}\r\n"),
            (Occasion::Disconnect, _) => format!(">CLIENT:DISCONNECT,{cid}\r\n"),
        };
        block.bytes.extend_from_slice(head.as_bytes());
        // A client that was never established has nothing to say at its end.
        if occasion != Occasion::Disconnect || client.virtual_address.is_some() {
            let asks = matches!(occasion, Occasion::Connect | Occasion::Reauth);
            if self.env_filter > 0 && asks {
                for (name, value) in &client.spec.peer_info {
                    block.put_unfiltered(name, value.as_bytes());
                }
            }
            self.put_connection(&mut block, client, occasion);
            self.put_peer(&mut block, client);
            // Like all that is set anew, what the reauthentication sets moves to the front.
            match occasion {
                Occasion::Reauth => {
                    self.put_addresses(&mut block, client);
                    self.put_time(&mut block, client);
                    put_address(&mut block, "trusted", client.real_address);
                }
                Occasion::Disconnect if client.reauthenticated => {
                    self.put_addresses(&mut block, client);
                    self.put_time(&mut block, client);
                }
                _ => {}
            }
            self.put_daemon(&mut block);
        }
        for line in 0..self.surplus_env_lines() {
            let text = format!(">CLIENT:ENV,made_up_{line}=value\r\n");
            block.bytes.extend_from_slice(text.as_bytes());
        }
        if self.is_endless() {
            self.flow = Some(Flow::EndlessEnv { line: 0 });
        } else {
            block.bytes.extend_from_slice(b">CLIENT:ENV,END\r\n");
        }
        self.output.push(&block.bytes);
    }

    /// Variables of the connection. Their order differs by occasion, as OpenVPN sets them at
    /// different times.
    fn put_connection(&self, block: &mut Block, client: &Client, occasion: Occasion<'_>) {
        match occasion {
            Occasion::Connect | Occasion::Reauth => {
                block.put("n_clients", self.established().to_string());
                if self.settings.version >= Version::V2_5 {
                    put_password(block, client);
                }
            }
            Occasion::Response(_) => {
                block.put("n_clients", self.established().to_string());
                self.put_name(block, client);
                put_address(block, "trusted", client.real_address);
                put_address(block, "untrusted", client.real_address);
                block.put("username", client.spec.username.as_deref().unwrap_or(b""));
                return;
            }
            Occasion::Established => {
                block.put("n_clients", self.established().to_string());
                if !self.settings.client_auth {
                    self.put_time(block, client);
                }
                self.put_addresses(block, client);
                if self.settings.client_auth {
                    self.put_time(block, client);
                }
                put_address(block, "trusted", client.real_address);
            }
            Occasion::Disconnect => {
                let duration = self
                    .now_for_duration()
                    .saturating_sub(client.connected_since.0)
                    .max(0);
                block.put("time_duration", duration.to_string());
                block.put("bytes_sent", client.bytes_sent.to_string());
                block.put("bytes_received", client.bytes_received.to_string());
                put_address(block, "trusted", client.real_address);
                if !client.reauthenticated {
                    self.put_addresses(block, client);
                    self.put_time(block, client);
                }
            }
        }
        if self.settings.client_auth {
            let asks = matches!(occasion, Occasion::Connect | Occasion::Reauth);
            if asks || client.reauthenticated {
                put_address(block, "untrusted", client.real_address);
                self.put_name(block, client);
                if asks && self.settings.version <= Version::V2_4 {
                    put_password(block, client);
                }
            } else {
                self.put_name(block, client);
                put_address(block, "untrusted", client.real_address);
            }
            block.put("username", client.spec.username.as_deref().unwrap_or(b""));
        } else {
            self.put_name(block, client);
            if let Some(username) = &client.spec.username {
                block.put("username", username);
            }
        }
    }

    fn put_time(&self, block: &mut Block, client: &Client) {
        let since = client.connected_since;
        block.put("time_unix", since.0.to_string());
        block.put("time_ascii", self.time_text(since));
    }

    fn put_name(&self, block: &mut Block, client: &Client) {
        let mut name = client.spec.common_name.clone();
        if self.does(&Misbehaviour::InvalidNames) {
            name.extend_from_slice(super::status::INVALID_SUFFIX);
        }
        block.put("common_name", name);
    }

    fn put_addresses(&self, block: &mut Block, client: &Client) {
        if let (Some(local), Some(address)) = (self.pool.local_ipv6(), client.virtual_ipv6_address)
        {
            block.put("ifconfig_pool_ip6_netbits", "64");
            block.put("ifconfig_pool_local_ip6", local.to_string());
            block.put("ifconfig_pool_remote_ip6", address.to_string());
        }
        if let Some(address) = client.virtual_address {
            block.put("ifconfig_pool_netmask", self.pool.netmask.to_string());
            block.put("ifconfig_pool_remote_ip", address.to_string());
        }
    }

    /// Variables from the peer's software and certificate.
    fn put_peer(&self, block: &mut Block, client: &Client) {
        // The environment is a list that grows at the front, hence the order.
        for (name, value) in client.spec.peer_info.iter().rev() {
            block.put(name, value);
        }
        if !self.settings.client_auth {
            put_address(block, "untrusted", client.real_address);
        }
        let name = &client.spec.common_name;
        put_certificate(block, 0, serial(name), name);
        for (key, value) in [("OU", "Ops"), ("O", "Example Org"), ("C", "DE")] {
            block.put(&format!("X509_0_{key}"), value);
        }
        put_certificate(block, 1, serial(b"Test CA"), b"Test CA");
    }

    fn put_daemon(&self, block: &mut Block) {
        let port = self.settings.port.to_string();
        let version = self.settings.version;
        if version <= Version::V2_6 {
            block.put("remote_port_1", &port);
        }
        block.put("local_port_1", &port);
        if self.settings.dual_stack {
            block.put("local_1", "::");
        }
        let protocol = match (version, self.settings.dual_stack) {
            (Version::V2_7, _) => "udp",
            (_, true) => "udp6",
            // The name that 2.4 brought.
            (Version::V2_3, false) => "udp",
            (_, false) => "udp4",
        };
        block.put("proto_1", protocol);
        if version >= Version::V2_7 {
            block.put("remote_port_1", &port);
        }
        block.put("daemon_pid", self.pid.to_string());
        block.put("daemon_start_time", self.configured.0.to_string());
        block.put("daemon_log_redirect", "0");
        block.put("daemon", "0");
        block.put("verb", self.verb.to_string());
        block.put("ifconfig_local", self.pool.local.to_string());
        block.put("ifconfig_netmask", self.pool.netmask.to_string());
        if version <= Version::V2_4 {
            let broadcast = self.pool.local | !self.pool.netmask;
            block.put("ifconfig_broadcast", broadcast.to_string());
        }
        if let (Some(local), Some(remote)) = (self.pool.local_ipv6(), self.pool.ipv6(2)) {
            block.put("ifconfig_ipv6_local", local.to_string());
            block.put("ifconfig_ipv6_netbits", "64");
            block.put("ifconfig_ipv6_remote", remote.to_string());
        }
        block.put("script_context", "init");
        block.put("tun_mtu", "1500");
        if version <= Version::V2_5 {
            block.put("link_mtu", "1621");
        }
        for (name, value) in [
            ("dev", super::lifecycle::DEVICE),
            ("dev_type", "tun"),
            ("redirect_gateway", "0"),
        ] {
            block.put(name, value);
        }
    }

    fn now_for_duration(&self) -> i64 {
        crate::clock::UnixTime::now().max(self.started).0
    }
}

fn put_password(block: &mut Block, client: &Client) {
    block.put("password", client.spec.password.as_deref().unwrap_or(b""));
}

/// `trusted_ip`, `trusted_port` and their likes; IPv6 addresses have a name of their own.
fn put_address(block: &mut Block, kind: &str, address: SocketAddr) {
    let family = if address.is_ipv6() { "6" } else { "" };
    block.put(&format!("{kind}_port"), address.port().to_string());
    block.put(&format!("{kind}_ip{family}"), address.ip().to_string());
}

fn put_certificate(block: &mut Block, depth: u8, serial: u128, name: &[u8]) {
    let digest = colons(&serial.to_be_bytes());
    block.put(&format!("tls_serial_hex_{depth}"), &digest);
    block.put(&format!("tls_serial_{depth}"), serial.to_string());
    // Digests are longer than our number; repeated, they have the right shape.
    block.put(
        &format!("tls_digest_sha256_{depth}"),
        format!("{digest}:{digest}"),
    );
    block.put(
        &format!("tls_digest_{depth}"),
        format!("{digest}:{}", colons(&serial.to_be_bytes()[..4])),
    );
    let subject = if depth == 0 {
        &b"C=DE, O=Example Org, OU=Ops, CN="[..]
    } else {
        b"CN="
    };
    block.put(&format!("tls_id_{depth}"), [subject, name].concat());
    block.put(&format!("X509_{depth}_CN"), name);
}

fn colons(bytes: &[u8]) -> String {
    let pairs: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    pairs.join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passing(filter: i32, names: &[&str]) -> Vec<String> {
        let block = Block {
            bytes: Vec::new(),
            filter,
        };
        let passing = names.iter().filter(|name| block.passes(name));
        passing.map(|name| (*name).to_owned()).collect()
    }

    /// A filter looser than OpenVPN's would hide that a caller asks for too little.
    #[test]
    fn filters_pass_what_openvpn_passes() {
        let names = [
            "X509_0_CN",
            "X509_1_CN",
            "tls_serial_hex_0",
            "tls_id_0",
            "dev",
            "dev_type",
            "untrusted_ip",
            "untrusted_ip6",
            "IV_VER",
        ];
        assert_eq!(passing(0, &names).len(), names.len());
        let short = ["X509_0_CN", "tls_serial_hex_0", "dev", "untrusted_ip"];
        assert_eq!(
            passing(1, &names),
            [
                "X509_0_CN",
                "X509_1_CN",
                "tls_serial_hex_0",
                "dev",
                "untrusted_ip"
            ]
        );
        assert_eq!(passing(2, &names), short);
        assert!(passing(3, &names).is_empty());
    }
}
