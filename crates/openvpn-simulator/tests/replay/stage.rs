//! The two that a recording is played to: a real server with its clients, and the same simulated.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use openvpn_simulator::{Address, Daemon, How};
use tokio::net::{TcpStream, UdpSocket, UnixStream};
use tokio::time::{sleep, timeout};

use crate::lab::{Pki, Process, free_port, openvpn};
use crate::manager::{Manager, PATIENCE, Reception};
use crate::people::Resident;
use crate::setup::{PASSWORD_FILE, Setup, WAITING};

/// What somebody's first data packet makes a server log; it is the last of a handshake.
const DATA_CHANNEL: &str = "Protocol options:";

/// Waits until that real daemon has logged this so often.
async fn until_logged(directory: &Path, name: &str, text: &str, times: usize) {
    let path = directory.join(format!("{name}.log"));
    let read = || fs::read_to_string(&path).unwrap_or_default();
    let logged = async {
        while read().matches(text).count() < times {
            sleep(Duration::from_millis(20)).await;
        }
    };
    if timeout(PATIENCE, logged).await.is_err() {
        panic!("{name} never says '{text}': {}", read());
    }
}

/// Where the sessions of a recording begin.
enum Door {
    /// The daemon listens.
    Theirs(Address),
    /// The daemon dials in.
    Ours(Reception),
}

impl Door {
    /// `name` tells Unix sockets apart.
    async fn new(setup: &Setup, directory: &Path, name: &str) -> Self {
        let address = match setup.password {
            true => {
                let port = free_port().unwrap();
                Address::Tcp(format!("127.0.0.1:{port}").parse().unwrap())
            }
            false => Address::Unix(directory.join(format!("{name}.sock"))),
        };
        match setup.dials {
            true => Self::Ours(Reception::open(&address).await),
            false => Self::Theirs(address),
        }
    }

    fn address(&self) -> Address {
        match self {
            Self::Theirs(address) => address.clone(),
            Self::Ours(reception) => reception.address(),
        }
    }

    async fn enter(&self) -> Manager {
        match self {
            Self::Theirs(address) => Manager::connect_to(address).await,
            Self::Ours(reception) => reception.accept().await,
        }
    }
}

/// A real server and its clients.
pub(crate) struct Real<'a> {
    door: Door,
    /// Another daemon that has a manager, its client, and where that is to be had.
    partner: Option<(Process, Door)>,
    server: Process,
    port: u16,
    directory: &'a Path,
    pki: &'a Pki,
    people: &'a [Resident],
    /// Clients that run, or have ended by themselves.
    clients: RefCell<HashMap<&'static str, Process>>,
    /// A connection to its port on which nothing is said.
    half_open: RefCell<Option<TcpStream>>,
    /// Who has its port.
    _squatter: Option<UdpSocket>,
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
        let squatter = match setup.port_taken {
            true => Some(UdpSocket::bind(("0.0.0.0", port)).await.unwrap()),
            false => None,
        };
        let door = Door::new(setup, directory, "real").await;
        let password = directory.join("password");
        fs::write(&password, PASSWORD_FILE).unwrap();
        // It warns of one that others can read.
        fs::set_permissions(&password, Permissions::from_mode(0o600)).unwrap();
        let config = setup.config(&door.address(), pki, port);
        let config = format!("cd {}\n{config}", directory.display());
        let server = openvpn(directory, "real", &config);
        until_logged(directory, "real", setup.ready(), 1).await;
        let partner = setup.partner.map(|partner| {
            let path = directory.join("partner.sock");
            let config = partner.config(&path, pki, port);
            let process = openvpn(directory, "partner", &config);
            (process, Door::Theirs(Address::Unix(path)))
        });
        if partner.is_some() {
            until_logged(directory, "partner", WAITING, 1).await;
        }
        let real = Self {
            door,
            partner,
            server,
            port,
            directory,
            pki,
            people,
            clients: RefCell::default(),
            half_open: RefCell::default(),
            _squatter: squatter,
        };
        for (number, person) in setup.clients.iter().enumerate() {
            real.connect(person.name);
            until_logged(directory, "real", "'PUSH_REPLY,", number + 1).await;
        }
        until_logged(directory, "real", DATA_CHANNEL, setup.clients.len()).await;
        real
    }

    /// Begins the session of that name.
    pub(crate) async fn enter(&self, session: &str) -> Manager {
        match (session, &self.partner) {
            ("-client", Some((_, door))) => door.enter().await,
            _ => self.door.enter().await,
        }
    }

    fn connect(&self, name: &str) {
        let resident = find(self.people, name);
        let mut clients = self.clients.borrow_mut();
        // Whoever comes again does not run twice.
        clients.remove(name);
        let client = resident.start(self.directory, self.pki, self.port);
        clients.insert(resident.person.name, client);
    }

    /// A step of a scenario.
    pub(crate) async fn carry_out(&self, step: &str) {
        match step.split_once(' ') {
            None if step == "stop" => self.server.terminate(),
            None if step == "ended" => assert!(self.server.ended().await),
            None if step == "failed" => assert!(!self.server.ended().await),
            None if step == "half-open" => {
                let stream = TcpStream::connect(("127.0.0.1", self.port)).await;
                *self.half_open.borrow_mut() = Some(stream.unwrap());
            }
            None if step == "hang-up" => {
                self.half_open
                    .borrow_mut()
                    .take()
                    .expect("a half-open client");
            }
            None if step == "refused" => refused(&self.door.address()).await,
            // Real ones do that by themselves.
            Some(("meanwhile", _)) => {}
            None if step == "packets" => sleep(Duration::from_millis(100)).await,
            Some(("logged", what)) => {
                let (times, text) = what.split_once(' ').unwrap();
                until_logged(self.directory, "real", text, times.parse().unwrap()).await;
            }
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

/// How many lines contain `text`.
fn count(lines: &[Vec<u8>], text: &str) -> usize {
    let lines = lines.iter().map(|line| String::from_utf8_lossy(line));
    lines.filter(|line| line.contains(text)).count()
}

/// One more connection than the daemon's backlog has room for.
async fn refused(address: &Address) {
    /// Nothing comes back to a TCP connect; the kernel would try for minutes.
    const SILENCE: Duration = Duration::from_millis(300);
    match address {
        Address::Unix(path) => {
            let error = UnixStream::connect(path).await.expect_err("a full backlog");
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
        }
        Address::Tcp(address) => {
            let connecting = timeout(SILENCE, TcpStream::connect(address)).await;
            assert!(connecting.is_err(), "{connecting:?}");
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
    door: Door,
    daemon: Daemon,
    partner: Option<(Daemon, Door)>,
    people: &'a [Resident],
}

impl<'a> Simulated<'a> {
    pub(crate) async fn start(setup: &Setup, directory: &Path, people: &'a [Resident]) -> Self {
        let door = Door::new(setup, directory, "simulated").await;
        let daemon = setup.builder(door.address()).start().await.unwrap();
        let connected = setup.clients.len();
        for resident in &people[..connected] {
            daemon.connect(resident.spec()).await.unwrap();
        }
        let mut partner = None;
        if let Some(client) = setup.partner {
            let path = directory.join("simulated-partner.sock");
            let daemon = client.builder(&path, setup).start().await.unwrap();
            partner = Some((daemon, Door::Theirs(Address::Unix(path))));
        }
        let simulated = Self {
            door,
            daemon,
            partner,
            people,
        };
        simulated.until_logged(DATA_CHANNEL, connected).await;
        simulated
    }

    /// Waits until the simulated server has logged this so often.
    async fn until_logged(&self, text: &str, times: usize) {
        let logged = async {
            while count(&self.daemon.log_lines().await.unwrap(), text) < times {
                sleep(Duration::from_millis(20)).await;
            }
        };
        if timeout(PATIENCE, logged).await.is_err() {
            panic!("the simulated daemon never says '{text}'");
        }
    }

    /// Begins the session of that name.
    pub(crate) async fn enter(&self, session: &str) -> Manager {
        match (session, &self.partner) {
            ("-client", Some((_, door))) => door.enter().await,
            _ => self.door.enter().await,
        }
    }

    /// What two real daemons do with each other: `connect NAME`, `leave NAME`, `defer SECONDS
    /// MESSAGE`, `respond CID TEXT`, `accept`.
    async fn act(&self, deed: &str) {
        let (client, _) = self.partner.as_ref().expect("a client with a manager");
        let (verb, rest) = deed.split_once(' ').unwrap_or((deed, ""));
        let (first, second) = rest.split_once(' ').unwrap_or((rest, ""));
        match verb {
            "defer" => {
                let message = Some(second).filter(|message| !message.is_empty());
                let seconds = first.parse().unwrap();
                client.server_defers(seconds, message).await.unwrap();
            }
            "respond" => {
                let cid = first.parse().unwrap();
                self.daemon.challenge_response(cid, second).await.unwrap();
            }
            "accept" => client.server_accepts().await.unwrap(),
            _ => Box::pin(self.carry_out(deed)).await,
        }
    }

    /// A step of a scenario.
    pub(crate) async fn carry_out(&self, step: &str) {
        match step.split_once(' ') {
            Some(("meanwhile", deed)) => self.act(deed).await,
            None if step == "stop" => self.daemon.stop().await,
            None if step == "ended" || step == "failed" => {
                let ended = timeout(PATIENCE, self.daemon.wait_stopped()).await;
                ended.expect("the end of the simulated daemon");
            }
            None if step == "half-open" => {
                let from = "127.0.0.1:40000".parse().unwrap();
                self.daemon.half_open_from(from).await.unwrap();
            }
            None if step == "hang-up" => {
                let clients = self.daemon.clients().await.unwrap();
                let cid = clients.last().expect("a half-open client").cid;
                self.daemon.leave(cid, How::TcpClose).await.unwrap();
            }
            None if step == "refused" => refused(&self.door.address()).await,
            None if step == "packets" => {
                for client in self.daemon.clients().await.unwrap() {
                    self.daemon.add_traffic(client.cid, 40, 40).await.unwrap();
                }
            }
            Some(("logged", what)) => {
                let (times, text) = what.split_once(' ').unwrap();
                self.until_logged(text, times.parse().unwrap()).await;
            }
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
