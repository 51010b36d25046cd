//! A server as a recording wants it, real and simulated.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use openvpn_simulator::{Address, ClientMode, Daemon, DaemonBuilder, Timing};

use crate::lab::Pki;
use crate::manager::PATIENCE;
use crate::people::Person;

/// An OpenVPN client with a manager of its own, beside a server; it is alice, and held.
#[derive(Clone, Copy)]
pub(crate) struct Partner {
    /// Lines of a real one, beside those of any client.
    pub(crate) config: &'static str,
    /// The same, simulated.
    pub(crate) mode: fn() -> ClientMode,
}

/// How a server is started.
#[derive(Clone, Copy)]
pub(crate) struct Setup {
    /// Second byte of its network.
    pub(crate) network: u8,
    /// Whether it has an IPv6 network too.
    pub(crate) ipv6: bool,
    pub(crate) status_version: u8,
    /// Management on TCP, with a password.
    pub(crate) password: bool,
    /// It dials its manager.
    pub(crate) dials: bool,
    /// It restarts when its manager leaves.
    pub(crate) management_signal: bool,
    pub(crate) hold: bool,
    /// Its key is encrypted.
    pub(crate) locked: bool,
    /// What it echoes.
    pub(crate) echoes: &'static [&'static str],
    pub(crate) client_auth: bool,
    /// For how many seconds a client may be silent before it sends a packet …
    pub(crate) ping: u64,
    /// … and before it is given up.
    pub(crate) silence: u64,
    /// It has an IPv6 socket, which takes IPv4 too.
    pub(crate) dual_stack: bool,
    /// It serves clients over TCP.
    pub(crate) tcp: bool,
    /// Somebody else has its port.
    pub(crate) port_taken: bool,
    /// Who is connected before its manager is.
    pub(crate) clients: &'static [Person],
    /// Who comes when the recording says so.
    pub(crate) guests: &'static [Person],
    /// Whose manager has the session `-client`.
    pub(crate) partner: Option<Partner>,
    /// Whether what clients do may come in another order than recorded, between two writes of the manager.
    pub(crate) any_order: bool,
    /// Lines that come and go as they like, beside those that do so everywhere.
    pub(crate) noise: &'static [&'static str],
}

/// The key of the recordings is encrypted with this.
const KEY_PASSWORD: &str = "keypw";
/// How a server asks its manager about clients, as the recorded one did.
const CLIENT_AUTH: &str = "management-client-auth\nauth-user-pass-optional\nverify-client-cert require\nreneg-sec 0\n\
                           hand-window 12";
pub(crate) const PASSWORD_FILE: &str = "s3cret pass\n";
/// What a real one logs while it is held.
pub(crate) const WAITING: &str = "Need hold release";

impl Setup {
    /// The file of a real one that serves `port`, with its management there.
    pub(crate) fn config(&self, management: &Address, pki: &Pki, port: u16) -> String {
        let network = self.network;
        let management = match management {
            Address::Unix(path) => format!("{} unix", path.display()),
            Address::Tcp(address) => format!("{} {}", address.ip(), address.port()),
        };
        let identity = match self.locked {
            true => encrypted(&pki.server),
            false => pki.server.clone(),
        };
        let mut config = format!(
            "proto {}\nport {port}\ndev tun\ntopology subnet\n\
             server 10.{network}.0.0 255.255.255.0\ndh none\nkeepalive {} {}\nverb 3\n\
             management {management}{}\nmanagement-log-cache 300\nstatus-version {}\n{identity}",
            match (self.tcp, self.dual_stack) {
                (true, _) => "tcp4-server",
                (false, true) => "udp6",
                (false, false) => "udp4",
            },
            self.ping,
            self.silence,
            if self.password { " password" } else { "" },
            self.status_version,
        );
        for (is_set, line) in [
            (self.ipv6, format!("server-ipv6 fd00:{network}::/64")),
            (self.dials, "management-client".to_owned()),
            (self.management_signal, "management-signal".to_owned()),
            (self.hold, "management-hold".to_owned()),
            (self.locked, "management-query-passwords".to_owned()),
            (self.client_auth, CLIENT_AUTH.to_owned()),
        ] {
            if is_set {
                config.push_str(&line);
                config.push('\n');
            }
        }
        for echo in self.echoes {
            config.push_str(&format!("echo {echo}\n"));
        }
        config
    }

    /// What a real one logs when it has come as far as it comes by itself.
    pub(crate) fn ready(&self) -> &'static str {
        match (self.hold, self.locked) {
            (true, _) => WAITING,
            (_, true) => "Need password",
            _ => "Initialization Sequence Completed",
        }
    }

    /// The same, simulated.
    pub(crate) fn builder(&self, management: Address) -> DaemonBuilder {
        let network = self.network;
        let mut builder = Daemon::builder("parity")
            .network(Ipv4Addr::new(10, network, 0, 0), 24)
            .status_version(self.status_version)
            .log_cache(300)
            .timing(Timing {
                ping_restart: Duration::from_secs(self.silence),
                delayed_exit: Duration::from_secs(2),
                return_after_kill: Duration::from_millis(200),
                // After a restart they are told to come, in the order of the recording.
                return_after_restart: PATIENCE,
                keepalive: Duration::from_secs(self.ping),
                ..Timing::default()
            });
        builder = match (self.dials, management) {
            (true, manager) => builder.dial(manager),
            (false, Address::Unix(path)) => builder.unix(path),
            (false, Address::Tcp(address)) => builder.tcp(address),
        };
        if self.password {
            builder = builder.password(PASSWORD_FILE.trim_end());
        }
        if self.ipv6 {
            builder = builder.network_ipv6(ipv6_network(network));
        }
        if self.management_signal {
            builder = builder.management_signal();
        }
        if self.hold {
            builder = builder.hold();
        }
        if self.locked {
            builder = builder.private_key_password(KEY_PASSWORD);
        }
        if self.client_auth {
            builder = builder.client_auth();
        }
        if self.dual_stack {
            builder = builder.dual_stack();
        }
        if self.tcp {
            builder = builder.over_tcp();
        }
        if self.port_taken {
            builder = builder.port_taken();
        }
        for echo in self.echoes {
            builder = builder.echo(*echo);
        }
        builder
    }
}

impl Partner {
    pub(crate) fn config(&self, management: &Path, pki: &Pki, port: u16) -> String {
        format!(
            "client\ndev null\nproto udp4\nremote 127.0.0.1 {port} udp4\nnobind\nifconfig-noexec\n\
             route-noexec\nexplicit-exit-notify 1\nverb 3\nmanagement {} unix\nmanagement-hold\n\
             {}{}",
            management.display(),
            self.config,
            pki.client("alice"),
        )
    }

    /// One that gets the first addresses of the server's network.
    pub(crate) fn builder(&self, management: &Path, server: &Setup) -> DaemonBuilder {
        let network = server.network;
        Daemon::builder("client")
            .unix(management)
            .client((self.mode)())
            .network(Ipv4Addr::new(10, network, 0, 0), 24)
            .network_ipv6(ipv6_network(network))
            .hold()
    }
}

fn ipv6_network(number: u8) -> Ipv6Addr {
    format!("fd00:{number}::").parse().unwrap()
}

/// The same certificates with an encrypted key.
fn encrypted(identity: &str) -> String {
    let (before, rest) = identity.split_once("<key>\n").unwrap();
    let (key, _) = rest.split_once("</key>").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    fs::write(&path, key).unwrap();
    let output = Command::new("openssl")
        .args(["pkcs8", "-topk8", "-v2", "aes-256-cbc", "-passout"])
        .arg(format!("pass:{KEY_PASSWORD}"))
        .arg("-in")
        .arg(&path)
        .stderr(Stdio::inherit())
        .output()
        .expect("openssl must be installed");
    let key = String::from_utf8(output.stdout).unwrap();
    format!("{before}<key>\n{key}</key>\n")
}
