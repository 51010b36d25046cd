//! The VPN clients of the recordings: real ones, and the same in a simulated daemon.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use openvpn_simulator::ClientSpec;

use crate::lab::{Pki, Process, free_port, openvpn};

/// A VPN client as a recording has it.
#[derive(Clone, Copy)]
pub(crate) struct Person {
    pub(crate) name: &'static str,
    /// Its address, with a port if the manager names that.
    pub(crate) address: &'static str,
    pub(crate) login: Option<(&'static str, &'static str)>,
    /// What its software says of itself beside what all say; only told of simulated ones.
    pub(crate) peer_info: Option<(&'static str, &'static str)>,
}

/// Addresses of the recordings, and the ones every machine has instead.
const ADDRESSES: [(&str, &str); 2] = [("10.250.7.2", "127.0.7.2"), ("fd00:250::2", "::1")];

impl Person {
    pub(crate) const fn new(name: &'static str, address: &'static str) -> Self {
        Self {
            name,
            address,
            login: None,
            peer_info: None,
        }
    }

    /// Somebody local with a name and a password.
    pub(crate) const fn with_login(
        name: &'static str,
        username: &'static str,
        password: &'static str,
    ) -> Self {
        Self {
            name,
            address: "127.0.0.1",
            login: Some((username, password)),
            peer_info: None,
        }
    }

    pub(crate) const fn peer_info(mut self, name: &'static str, value: &'static str) -> Self {
        self.peer_info = Some((name, value));
        self
    }

    /// Where it really comes from; port 0 is any.
    fn home(&self) -> SocketAddr {
        let local = translate(self.address);
        let ip = local.parse::<IpAddr>();
        ip.map_or_else(|_| local.parse().unwrap(), |ip| SocketAddr::new(ip, 0))
    }

    /// The same from a port that is free, and the recording with that port.
    pub(crate) fn settle(&self, recording: String) -> (Resident, String) {
        let mut home = self.home();
        if home.port() == 0 {
            return (
                Resident {
                    person: *self,
                    home,
                },
                recording,
            );
        }
        let recorded = home.port().to_string();
        home.set_port(free_port().unwrap());
        let recording = recording.replace(&recorded, &home.port().to_string());
        (
            Resident {
                person: *self,
                home,
            },
            recording,
        )
    }
}

/// A recording's text, or a part of it, with the addresses there are.
pub(crate) fn translate(text: &str) -> String {
    let mut text = text.to_owned();
    for (recorded, local) in ADDRESSES {
        text = text.replace(recorded, local);
    }
    text
}

/// Somebody with an address.
#[derive(Clone)]
pub(crate) struct Resident {
    pub(crate) person: Person,
    home: SocketAddr,
}

impl Resident {
    /// Starts a real client of the server at `port`.
    pub(crate) fn start(&self, directory: &Path, pki: &Pki, port: u16) -> Process {
        let Person { name, login, .. } = self.person;
        // Any name, as a file's.
        let file: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
        let (protocol, server) = match self.home {
            SocketAddr::V4(_) => ("udp4", "127.0.0.1"),
            SocketAddr::V6(_) => ("udp6", "::1"),
        };
        let login = login.map_or(String::new(), |(user, password)| {
            format!("<auth-user-pass>\n{user}\n{password}\n</auth-user-pass>\n")
        });
        let config = format!(
            "client\ndev null\nproto {protocol}\nremote {server} {port}\nlocal {}\nlport {}\n\
             ifconfig-noexec\nroute-noexec\nexplicit-exit-notify 1\nverb 3\n{login}{}",
            self.home.ip(),
            self.home.port(),
            pki.client(name),
        );
        openvpn(directory, &file, &config)
    }

    /// The same for a simulated daemon.
    pub(crate) fn spec(&self) -> ClientSpec {
        let mut home = self.home;
        if home.port() == 0 {
            home.set_port(40_000);
        }
        let mut spec = ClientSpec::new(self.person.name)
            .real_address(home)
            .exit_notify();
        if let Some((user, password)) = self.person.login {
            spec = spec.username(user);
            spec.password = Some(password.into());
        }
        if let Some((name, value)) = self.person.peer_info {
            spec.peer_info.push((name.to_owned(), value.to_owned()));
        }
        spec
    }
}
