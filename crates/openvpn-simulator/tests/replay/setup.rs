//! A server as a recording wants it, real and simulated.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use openvpn_simulator::{Address, Daemon, DaemonBuilder, How, Timing};
use tokio::time::{sleep, timeout};

use crate::lab::{Pki, Process, free_port, free_tcp_port, openvpn};
use crate::people::{Person, Resident};
use crate::script::{Manager, PATIENCE};

/// How a server is started.
#[derive(Clone, Copy)]
pub(crate) struct Setup {
    /// Second byte of its network.
    network: u8,
    /// Whether it has an IPv6 network too.
    ipv6: bool,
    status_version: u8,
    /// Management on TCP, with a password.
    pub(crate) password: bool,
    pub(crate) hold: bool,
    /// Its key is encrypted.
    pub(crate) locked: bool,
    /// What it echoes.
    echoes: &'static [&'static str],
    pub(crate) client_auth: bool,
    /// For how many seconds a client may be silent.
    silence: u64,
    /// It has an IPv6 socket, which takes IPv4 too.
    dual_stack: bool,
    /// Who is connected before its manager is.
    pub(crate) clients: &'static [Person],
    /// Who comes when the recording says so.
    pub(crate) guests: &'static [Person],
    /// Whether what clients do may come in another order than recorded, between two writes of the manager.
    pub(crate) any_order: bool,
}

pub(crate) const PLAIN: Setup = Setup {
    network: 82,
    ipv6: true,
    status_version: 2,
    password: false,
    hold: false,
    locked: false,
    echoes: &[],
    client_auth: false,
    silence: 20,
    dual_stack: false,
    clients: &[],
    guests: &[],
    any_order: false,
};
pub(crate) const PASSWORD: Setup = Setup {
    network: 81,
    status_version: 1,
    password: true,
    ..PLAIN
};
/// One that has echoed, as the recordings of single commands want it.
pub(crate) const ECHOING: Setup = Setup {
    echoes: &["server side echo text", "forget-passwords"],
    ..PLAIN
};
pub(crate) const HELD: Setup = Setup {
    network: 84,
    ipv6: false,
    hold: true,
    ..PLAIN
};
pub(crate) const RESTARTED: Setup = Setup {
    network: 85,
    ipv6: false,
    ..PLAIN
};
pub(crate) const LOCKED: Setup = Setup {
    network: 93,
    ipv6: false,
    locked: true,
    ..PLAIN
};

const ALICE: Person = Person::new("alice", "10.250.7.2");
const BOB: Person = Person::new("bob", "127.0.0.1:39931");
const CAROL: Person = Person::new("carol", "127.0.0.1");
pub(crate) const ONE_CLIENT: Setup = Setup {
    clients: &[ALICE],
    guests: &[BOB, CAROL],
    ..PASSWORD
};
pub(crate) const THREE_CLIENTS: Setup = Setup {
    clients: &[ALICE, CAROL, BOB],
    ..PASSWORD
};
/// As `client-kill` was recorded: they have come in another order, and each kill lets somebody come back.
pub(crate) const KILLED: Setup = Setup {
    clients: &[CAROL, Person::new("bob", "127.0.0.1"), ALICE],
    silence: 6,
    any_order: true,
    ..PASSWORD
};
pub(crate) const ODD_NAMES: Setup = Setup {
    dual_stack: true,
    clients: &[
        Person::new("bob", "fd00:250::2"),
        Person::new("alice", "127.0.0.1"),
        Person::new("eve, \"the\" one's;x#y", "127.0.0.1"),
        Person::new("alice:1234", "127.0.0.1"),
        Person::new("Jürgen Größe 東京", "127.0.0.1"),
        Person::new("smith, john", "127.0.0.1"),
        Person::new("tab\there", "127.0.0.1"),
    ],
    ..PLAIN
};

/// A server that asks its manager about whoever comes.
pub(crate) const ASKING: Setup = Setup {
    network: 83,
    client_auth: true,
    silence: 6,
    guests: &[Person::with_login("alice", "joe", "secret")],
    any_order: true,
    ..PLAIN
};

/// The key of the recordings is encrypted with this.
const KEY_PASSWORD: &str = "keypw";
/// How a server asks its manager about clients, as the recorded one did.
const CLIENT_AUTH: &str = "management-client-auth\nauth-user-pass-optional\nverify-client-cert require\nreneg-sec 0\n\
                           hand-window 12";
const PASSWORD_FILE: &str = "s3cret pass\n";

impl Setup {
    async fn start_real(&self, directory: &Path, pki: &Pki, port: u16) -> (Process, Address) {
        let network = self.network;
        let (address, management) = if self.password {
            fs::write(directory.join("password"), PASSWORD_FILE).unwrap();
            let address = format!("127.0.0.1:{}", free_tcp_port().unwrap())
                .parse()
                .unwrap();
            let words = format!(
                "127.0.0.1 {} password",
                std::net::SocketAddr::port(&address)
            );
            (Address::Tcp(address), words)
        } else {
            let path = directory.join("real.sock");
            let words = format!("{} unix", path.display());
            (Address::Unix(path), words)
        };
        let identity = match self.locked {
            true => encrypted(&pki.server),
            false => pki.server.clone(),
        };
        let mut config = format!(
            "cd {}\nproto {}\nport {port}\ndev tun\ntopology subnet\n\
             server 10.{network}.0.0 255.255.255.0\ndh none\nkeepalive 2 {}\nverb 3\nmanagement {management}\n\
             management-log-cache 300\nstatus-version {}\n{identity}",
            directory.display(),
            if self.dual_stack { "udp6" } else { "udp4" },
            self.silence,
            self.status_version,
        );
        for (is_set, line) in [
            (self.ipv6, format!("server-ipv6 fd00:{network}::/64")),
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
        let process = openvpn(directory, "real", &config);
        let ready = match (self.hold, self.locked) {
            (true, _) => "Need hold release",
            (_, true) => "Need password",
            _ => "Initialization Sequence Completed",
        };
        until_logged(directory, ready, 1).await;
        (process, address)
    }

    fn builder(&self, directory: &Path) -> DaemonBuilder {
        let network = self.network;
        let mut builder = Daemon::builder("parity")
            .network(Ipv4Addr::new(10, network, 0, 0), 24)
            .status_version(self.status_version)
            .log_cache(300)
            .timing(Timing {
                ping_restart: Duration::from_secs(self.silence),
                delayed_exit: Duration::from_secs(2),
                return_after_kill: Duration::from_millis(200),
                keepalive: Duration::from_secs(2),
                ..Timing::default()
            });
        builder = if self.password {
            let any = "127.0.0.1:0".parse().unwrap();
            builder.tcp(any).password(PASSWORD_FILE.trim_end())
        } else {
            builder.unix(directory.join("simulated.sock"))
        };
        if self.ipv6 {
            let network = format!("fd00:{network}::").parse::<Ipv6Addr>().unwrap();
            builder = builder.network_ipv6(network);
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
        for echo in self.echoes {
            builder = builder.echo(*echo);
        }
        builder
    }
}

/// What somebody's first data packet makes a server log; it is the last of a handshake.
const DATA_CHANNEL: &str = "Protocol options:";

/// Waits until the real server has logged this so often.
async fn until_logged(directory: &Path, text: &str, times: usize) {
    let read = || fs::read_to_string(directory.join("real.log")).unwrap_or_default();
    let logged = async {
        while read().matches(text).count() < times {
            sleep(Duration::from_millis(20)).await;
        }
    };
    if timeout(PATIENCE, logged).await.is_err() {
        panic!("the real openvpn never says '{text}': {}", read());
    }
}

/// A real server and its clients.
pub(crate) struct Real<'a> {
    pub(crate) address: Address,
    server: Process,
    port: u16,
    directory: &'a Path,
    pki: &'a Pki,
    people: &'a [Resident],
    /// Clients that run, or have ended by themselves.
    clients: RefCell<HashMap<&'static str, Process>>,
}

impl<'a> Real<'a> {
    /// The first people connect, one after the other; the others are guests.
    pub(crate) async fn start(
        setup: &Setup,
        directory: &'a Path,
        pki: &'a Pki,
        people: &'a [Resident],
    ) -> Self {
        let port = free_port().unwrap();
        let (server, address) = setup.start_real(directory, pki, port).await;
        let real = Self {
            address,
            server,
            port,
            directory,
            pki,
            people,
            clients: RefCell::default(),
        };
        for (number, person) in setup.clients.iter().enumerate() {
            real.connect(person.name);
            until_logged(directory, "'PUSH_REPLY,", number + 1).await;
        }
        until_logged(directory, DATA_CHANNEL, setup.clients.len()).await;
        real
    }

    fn connect(&self, name: &str) {
        let resident = find(self.people, name);
        let client = resident.start(self.directory, self.pki, self.port);
        let mut clients = self.clients.borrow_mut();
        clients.insert(resident.person.name, client);
    }

    /// A step of a scenario.
    pub(crate) async fn carry_out(&self, step: &str) {
        match step.split_once(' ') {
            None if step == "stop" => self.server.terminate(),
            Some(("connect", name)) => self.connect(name),
            Some(("leave", name)) => {
                // Before, it does not know how this server wants to be told.
                let log = self.directory.join(format!("{name}.log"));
                let is_ready = || {
                    let log = fs::read_to_string(&log).unwrap_or_default();
                    let latest = log.rsplit("Peer Connection Initiated").next();
                    latest.is_some_and(|lines| lines.contains("Initialization Sequence Completed"))
                };
                let ready = async {
                    while !is_ready() {
                        sleep(Duration::from_millis(20)).await;
                    }
                };
                timeout(PATIENCE, ready).await.expect("a ready client");
                self.clients.borrow()[name].terminate();
            }
            _ => panic!("unknown step {step}"),
        }
    }
}

fn find<'a>(people: &'a [Resident], name: &str) -> &'a Resident {
    let mut people = people.iter();
    people
        .find(|resident| resident.person.name == name)
        .unwrap_or_else(|| panic!("unknown client {name}"))
}

/// The same, simulated.
pub(crate) struct Simulated<'a> {
    pub(crate) daemon: Daemon,
    people: &'a [Resident],
}

impl<'a> Simulated<'a> {
    pub(crate) async fn start(setup: &Setup, directory: &Path, people: &'a [Resident]) -> Self {
        let daemon = setup.builder(directory).start().await.unwrap();
        let connected = setup.clients.len();
        for resident in &people[..connected] {
            daemon.connect(resident.spec()).await.unwrap();
        }
        if connected > 0 {
            let mut manager = Manager::connect(&daemon).await;
            if setup.password {
                manager.send(PASSWORD_FILE.as_bytes()).await;
            }
            manager.send(b"log on all\n").await;
            let mut data_channels = 0;
            while data_channels < connected {
                let line = manager.line().await.unwrap();
                data_channels += usize::from(line.contains(DATA_CHANNEL));
            }
            drop(manager);
            daemon.wait_detached().await;
        }
        Self { daemon, people }
    }

    /// A step of a scenario.
    pub(crate) async fn carry_out(&self, step: &str) {
        match step.split_once(' ') {
            None if step == "stop" => self.daemon.stop().await,
            Some(("connect", name)) => {
                let spec = find(self.people, name).spec();
                self.daemon.connect(spec).await.unwrap();
            }
            Some(("leave", name)) => {
                let clients = self.daemon.clients().await.unwrap();
                let client = clients
                    .iter()
                    .find(|client| client.common_name == name.as_bytes() && !client.leaving);
                let cid = client.unwrap_or_else(|| panic!("{name} is not there")).cid;
                self.daemon.leave(cid, How::ExitNotify).await.unwrap();
            }
            _ => panic!("unknown step {step}"),
        }
    }
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
