//! Real OpenVPN servers and clients on loopback, gone when the demonstration is.

use std::{
    env, fs,
    net::{TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{
    member::{Member, write_private},
    pki::Authority,
};

/// Name, region, protocol, and whether the management interface is a TCP port
/// with a password or a Unix socket without.
const SERVERS: [(&str, &str, &str, bool); 3] = [
    ("fra-udp-1", "eu", "udp", false),
    ("fra-tcp-1", "eu", "tcp", true),
    ("nyc-udp-1", "us", "udp", false),
];
/// Common name of each client, and which server it likes.
const CLIENTS: [(&str, usize); 8] = [
    ("alice", 0),
    ("alice-phone", 1),
    ("bob", 0),
    ("carol@example.org", 1),
    ("dave's tablet", 2),
    ("erin", 2),
    ("Zoë, front desk", 0),
    ("mallory", 1),
];
/// How many of them are there at the start.
const CLIENTS_AT_START: usize = 5;
/// How long a server may take until it serves.
const START_TIMEOUT: Duration = Duration::from_secs(15);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
const PASSWORD: &str = "demo";

/// Real servers and the people who use them.
pub(crate) struct RealFleet {
    // Clients first: they leave before their servers.
    clients: Vec<Person>,
    servers: Vec<Child>,
    programs: Programs,
}

/// Somebody who is connected, or not.
struct Person {
    config: PathBuf,
    log: PathBuf,
    process: Option<Child>,
}

/// Where the programs are.
struct Programs {
    openvpn: PathBuf,
    /// Ends what it starts when this process is killed; without it a demo that
    /// is killed with SIGKILL leaves daemons behind.
    setpriv: Option<PathBuf>,
}

/// Starts the servers, with everything they need in `dir`; nobody is connected
/// yet.
pub(crate) async fn start(dir: &Path) -> Result<(Vec<Member>, RealFleet)> {
    let programs = Programs::find()?;
    let authority = Authority::new().context("cannot make certificates")?;
    let password_file = dir.join("password");
    write_private(&password_file, &format!("{PASSWORD}\n"))?;

    let (mut members, mut servers, mut ports) = (Vec::new(), Vec::new(), Vec::new());
    for (number, (name, region, proto, tcp_management)) in (0u32..).zip(SERVERS) {
        let port = free_port(proto)?;
        let (address, management) = if tcp_management {
            let port = free_port("tcp")?;
            let file = password_file.display();
            (
                format!("tcp:127.0.0.1:{port}"),
                format!("management 127.0.0.1 {port} \"{file}\""),
            )
        } else {
            let socket = dir.join(format!("{name}.sock"));
            let socket = socket.display();
            (
                format!("unix:{socket}"),
                format!("management \"{socket}\" unix"),
            )
        };
        let config = dir.join(format!("{name}.conf"));
        let identity = authority.server(name)?;
        write_private(
            &config,
            &server_config(proto, port, number, &management, &identity),
        )?;
        let log = dir.join(format!("{name}.log"));
        let mut server = programs.openvpn(&config, &log)?;
        wait_until_it_serves(name, &mut server, &log).await?;
        servers.push(server);
        ports.push((proto, port));
        members.push(Member {
            name: name.to_owned(),
            address,
            password_file: tcp_management.then(|| password_file.clone()),
            region,
            proto,
        });
    }

    let mut clients = Vec::new();
    for (number, (common_name, server)) in CLIENTS.into_iter().enumerate() {
        let (proto, port) = ports[server];
        let config = dir.join(format!("client-{number}.conf"));
        write_private(
            &config,
            &client_config(proto, port, &authority.client(common_name)?),
        )?;
        let log = dir.join(format!("client-{number}.log"));
        clients.push(Person {
            config,
            log,
            process: None,
        });
    }
    Ok((
        members,
        RealFleet {
            clients,
            servers,
            programs,
        },
    ))
}

impl RealFleet {
    /// Lets people come and go until `cancel` is cancelled, and then ends all.
    pub(crate) async fn run(mut self, cancel: CancellationToken) -> Result<()> {
        let outcome = tokio::select! {
            outcome = self.live() => outcome,
            () = cancel.cancelled() => Ok(()),
        };
        self.stop().await;
        outcome
    }

    async fn live(&mut self) -> Result<()> {
        for client in &mut self.clients[..CLIENTS_AT_START] {
            client.come(&self.programs)?;
        }
        loop {
            sleep(Duration::from_millis(500 + random(2_000)?)).await;
            for (server, (name, ..)) in self.servers.iter_mut().zip(SERVERS) {
                if let Some(status) = server.try_wait()? {
                    bail!("the openvpn server {name} ended ({status})");
                }
            }
            let number = usize::try_from(random(self.clients.len() as u64)?)?;
            self.clients[number].come_or_go(&self.programs)?;
        }
    }

    /// Ends all, without goodbyes: nobody listens any more, and a server that
    /// says its own takes seconds.
    async fn stop(&mut self) {
        let clients = self
            .clients
            .iter_mut()
            .filter_map(|client| client.process.as_mut());
        for process in clients.chain(&mut self.servers) {
            // An error says that it has ended already.
            let _ = process.kill().await;
        }
    }
}

impl Person {
    /// Connects.
    fn come(&mut self, programs: &Programs) -> Result<()> {
        self.process = Some(programs.openvpn(&self.config, &self.log)?);
        Ok(())
    }

    /// Leaves when it is there, else connects. One that was told to stay out
    /// has ended by itself, and comes back some time.
    fn come_or_go(&mut self, programs: &Programs) -> Result<()> {
        if let Some(process) = &mut self.process
            && process.try_wait()?.is_none()
        {
            terminate(process);
            return Ok(());
        }
        self.come(programs)
    }
}

impl Programs {
    fn find() -> Result<Self> {
        ensure!(
            geteuid().is_root(),
            "real daemons need root, for their network devices: run it with sudo, or without \
             --openvpn for simulated ones"
        );
        ensure!(
            Path::new("/dev/net/tun").exists(),
            "there is no /dev/net/tun: `modprobe tun` makes it; a container must be given it"
        );
        let openvpn = find_program("openvpn").context(
            "openvpn is not installed: `apt-get install openvpn`, or run without --openvpn",
        )?;
        Ok(Self {
            openvpn,
            setpriv: find_program("setpriv"),
        })
    }

    /// A process that ends with this one, even if this one is killed.
    fn openvpn(&self, config: &Path, log: &Path) -> Result<Child> {
        let mut command = match &self.setpriv {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command
                    .args(["--pdeathsig", "KILL", "--"])
                    .arg(&self.openvpn);
                command
            }
            None => Command::new(&self.openvpn),
        };
        let file = fs::OpenOptions::new().create(true).append(true).open(log)?;
        command
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", self.openvpn.display()))
    }
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        // Where it is on Debian, and not in everybody's PATH.
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
}

fn terminate(process: &Child) {
    let pid = process
        .id()
        .and_then(|pid| Pid::from_raw(pid.cast_signed()));
    if let Some(pid) = pid {
        // One that has ended meanwhile is not reaped yet, so the number is its own.
        let _ = kill_process(pid, Signal::TERM);
    }
}

async fn wait_until_it_serves(name: &str, server: &mut Child, log: &Path) -> Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        let text = fs::read_to_string(log).unwrap_or_default();
        if text.contains("Initialization Sequence Completed") {
            return Ok(());
        }
        let ended = server.try_wait()?;
        if ended.is_some() || Instant::now() > deadline {
            let tail: Vec<_> = text.lines().rev().take(5).collect();
            let tail: Vec<_> = tail.into_iter().rev().collect();
            bail!(
                "the openvpn server {name} does not come up:\n{}",
                tail.join("\n")
            );
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// A port of loopback that is free now. Somebody may take it before OpenVPN
/// does; then that says so.
fn free_port(proto: &str) -> Result<u16> {
    let address = match proto {
        "udp" => UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()),
        _ => TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()),
    };
    Ok(address.context("no free port on 127.0.0.1")?.port())
}

/// A number below `end`.
fn random(end: u64) -> Result<u64> {
    Ok(getrandom::u64().context("no random number")? % end)
}

/// `number` tells the servers' networks apart; those of two demonstrations
/// differ by process. 198.18.0.0/15 is for measurements: nobody routes it.
fn server_config(proto: &str, port: u16, number: u32, management: &str, identity: &str) -> String {
    let network = (std::process::id() * 4 + number) % 512;
    let (high, low) = (18 + network / 256, network % 256);
    let (proto, goodbye) = match proto {
        "udp" => ("udp4", "explicit-exit-notify 1\n"),
        _ => ("tcp4-server", ""),
    };
    format!(
        "dev tun\nproto {proto}\nlocal 127.0.0.1\nport {port}\ntopology subnet\n\
         server 198.{high}.{low}.0 255.255.255.0\nkeepalive 2 10\ndh none\nverb 3\n\
         {goodbye}{management}\n{identity}"
    )
}

fn client_config(proto: &str, port: u16, identity: &str) -> String {
    let (proto, goodbye) = match proto {
        "udp" => ("udp4", "explicit-exit-notify 1\n"),
        _ => ("tcp4-client", ""),
    };
    format!(
        "client\ndev null\nproto {proto}\nremote 127.0.0.1 {port}\nnobind\nifconfig-noexec\n\
         route-noexec\nconnect-retry 1 1\ntls-timeout 1\nremote-cert-tls server\nverb 3\n\
         {goodbye}{identity}"
    )
}
