//! Every recording of a real 2.6.14: played to a real one and to a simulated one, on the same terms, or the reason why not.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use openvpn_simulator::{Address, Daemon, DaemonBuilder, Timing};
use tokio::time::{sleep, timeout};

use crate::real::{Pki, Process, free_port, openvpn};
use crate::script::{Comparison, PATIENCE, play, play_at};

/// What becomes of a recording.
#[derive(Clone, Copy)]
enum Fate {
    /// Played to both, which are set up like this.
    Both(Setup),
    /// Played to the simulated one, by the test of that name: the clients of the recording are not to be had again.
    Simulated(&'static str),
    /// Not played.
    Left(&'static str),
}
use Fate::{Both, Left, Simulated};

/// How a server is started.
#[derive(Clone, Copy)]
struct Setup {
    /// Second byte of its network.
    network: u8,
    /// Whether it has an IPv6 network too.
    ipv6: bool,
    status_version: u8,
    /// Management on TCP, with a password.
    password: bool,
    hold: bool,
    /// Its key is encrypted.
    locked: bool,
    /// What it echoes.
    echoes: &'static [&'static str],
}

const PLAIN: Setup = Setup {
    network: 82,
    ipv6: true,
    status_version: 2,
    password: false,
    hold: false,
    locked: false,
    echoes: &[],
};
const PASSWORD: Setup = Setup {
    network: 81,
    status_version: 1,
    password: true,
    ..PLAIN
};
/// One that has echoed, as the recordings of single commands want it.
const ECHOING: Setup = Setup {
    echoes: &["server side echo text", "forget-passwords"],
    ..PLAIN
};
const HELD: Setup = Setup {
    network: 84,
    ipv6: false,
    hold: true,
    ..PLAIN
};
const RESTARTED: Setup = Setup {
    network: 85,
    ipv6: false,
    ..PLAIN
};
const LOCKED: Setup = Setup {
    network: 93,
    ipv6: false,
    locked: true,
    ..PLAIN
};

const SEVERAL_SESSIONS: &str = "several sessions at once: `managers_wait_in_line` compares these";
const DIALS: &str = "the daemon dials its manager: a simulated one listens only";

const RECORDINGS: [(&str, Fate); 39] = [
    ("01-tcp-password-ok", Both(PASSWORD)),
    ("02-tcp-password-wrong-x3", Both(PASSWORD)),
    ("03-tcp-password-wrong-then-ok", Both(PASSWORD)),
    ("04-tcp-password-pipelined-with-commands", Both(PASSWORD)),
    ("05-tcp-password-partial-compare", Both(PASSWORD)),
    ("06-help", Both(ECHOING)),
    ("07-version-pid-misc", Both(ECHOING)),
    ("08-version-negotiation", Both(ECHOING)),
    ("09-malformed", Both(PLAIN)),
    ("10-long-lines", Both(PLAIN)),
    ("11-status-0-clients", Both(PLAIN)),
    ("11b-status-0-clients-default-version-1", Both(PASSWORD)),
    (
        "12-status-1-client",
        Simulated("status_and_unsolicited_blocks"),
    ),
    ("13-status-3-clients", Simulated("status_of_three_clients")),
    ("14-state", Both(PASSWORD)),
    ("15-log", Simulated("log_history")),
    (
        "16-bytecount-server",
        Left("traffic of a tunnel; >BYTECOUNT_CLI has tests of its own"),
    ),
    ("17-kill", Simulated("kill_by_name_and_address")),
    ("18-client-kill", Simulated("kill_by_cid")),
    ("19-second-client-tcp", Left(SEVERAL_SESSIONS)),
    ("20-second-client-unix", Left(SEVERAL_SESSIONS)),
    (
        "21-weird-common-names",
        Left("seven clients in the order of a hash; their rows are in 22"),
    ),
    ("22-exit-and-pipelining", Simulated("exit_and_pipelining")),
    ("30-client-auth-approve-deny", Simulated("client_auth")),
    (
        "31-client-auth-env-filter",
        Left("a client that authenticates twice between two managers"),
    ),
    ("32-client-pending-auth", Simulated("client_connected")),
    ("40-hold", Both(HELD)),
    ("41-signals", Simulated("signals")),
    ("42-signal-pipelined", Both(RESTARTED)),
    ("43-management-client-tcp", Left(DIALS)),
    ("43-management-client-unix", Left(DIALS)),
    (
        "45-management-signal",
        Left("--management-signal: a simulated one has no such option"),
    ),
    (
        "46-half-open-UNDEF-tcp",
        Left("bare TCP connections to a VPN port: a simulated one has none"),
    ),
    (
        "50-restart-with-client-auth",
        Left("two clients of one server in the order of their handshakes"),
    ),
    ("51-disconnect-mid-reply", Both(PLAIN)),
    ("60-server-private-key-password", Both(LOCKED)),
    ("61-server-private-key-ok", Both(LOCKED)),
    (
        "62-server-fatal",
        Left("a VPN port that is taken: a simulated one has none"),
    ),
    ("63-client-prompts", Simulated("client_prompts")),
];

/// Neither a time nor a number, and yet each daemon's own: paths, and what a kernel or an OpenSSL has to say.
const NOISE: &[&str] = &[
    "MANAGEMENT: Client connected from",
    "this configuration may cache passwords",
    "net_route_v4",
    "Max bcast/mcast queue length",
];

/// The key of the recordings is encrypted with this.
const KEY_PASSWORD: &str = "keypw";
const PASSWORD_FILE: &str = "s3cret pass\n";

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../openvpn-management/tests/transcripts")
}

/// The recording, with the steps of the scenario where the simulator's copy has some.
fn recording(name: &str) -> String {
    let file = format!("{name}.txt");
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/replay/transcripts");
    let path = [own.join(&file), directory().join(&file)];
    let path = path.iter().find(|path| path.exists()).expect("a recording");
    fs::read_to_string(path).unwrap()
}

impl Setup {
    async fn real(&self, directory: &Path, pki: &Pki) -> (Process, Address) {
        let network = self.network;
        let (address, management) = if self.password {
            fs::write(directory.join("password"), PASSWORD_FILE).unwrap();
            let address = format!("127.0.0.1:{}", free_port().unwrap())
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
            "cd {}\nproto udp4\nport {}\ndev tun\ntopology subnet\n\
             server 10.{network}.0.0 255.255.255.0\ndh none\nkeepalive 2 20\nverb 3\nmanagement {management}\n\
             management-log-cache 300\nstatus-version {}\n{identity}",
            directory.display(),
            free_port().unwrap(),
            self.status_version,
        );
        for (is_set, line) in [
            (self.ipv6, format!("server-ipv6 fd00:{network}::/64")),
            (self.hold, "management-hold".to_owned()),
            (self.locked, "management-query-passwords".to_owned()),
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
        let up = async {
            loop {
                let log = fs::read_to_string(directory.join("real.log")).unwrap_or_default();
                if log.contains(ready) {
                    return;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        if timeout(PATIENCE, up).await.is_err() {
            let log = fs::read_to_string(directory.join("real.log")).unwrap_or_default();
            panic!("openvpn does not come up: {log}");
        }
        (process, address)
    }

    fn simulated(&self, directory: &Path) -> DaemonBuilder {
        let network = self.network;
        let mut builder = Daemon::builder("parity")
            .network(Ipv4Addr::new(10, network, 0, 0), 24)
            .status_version(self.status_version)
            .log_cache(300)
            .timing(Timing {
                ping_restart: Duration::from_secs(20),
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
        for echo in self.echoes {
            builder = builder.echo(*echo);
        }
        builder
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

/// Plays to both all recordings that want such a server.
async fn play_all(is_meant: impl Fn(&Setup) -> bool) {
    let pki = Pki::new();
    let comparison = Comparison {
        noise: NOISE,
        ..Comparison::default()
    };
    let mut played = 0;
    for (name, fate) in RECORDINGS {
        let Both(setup) = fate else {
            continue;
        };
        if !is_meant(&setup) {
            continue;
        }
        let transcript = recording(name);
        let directory = tempfile::tempdir().unwrap();
        let (process, address) = setup.real(directory.path(), &pki).await;
        let real = format!("{name}, the real one");
        let stop = async |step: &str| {
            assert_eq!(step, "stop");
            process.terminate();
        };
        play_at(&address, &real, &transcript, comparison, stop).await;
        let daemon = setup.simulated(directory.path()).start().await.unwrap();
        let simulated = format!("{name}, the simulated one");
        let stop = async |daemon: &Daemon, step: &str| {
            assert_eq!(step, "stop");
            daemon.stop().await;
        };
        play(&daemon, &simulated, &transcript, comparison, stop).await;
        played += 1;
    }
    assert!(played > 0);
}

/// A new recording must be played, or be left for a reason.
#[test]
fn every_recording_has_its_fate() {
    let mut found: Vec<String> = fs::read_dir(directory())
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".txt").map(str::to_owned))
        .collect();
    found.sort();
    let mut known: Vec<_> = RECORDINGS.iter().map(|(name, _)| *name).collect();
    known.sort_unstable();
    assert_eq!(found, known);
    let tests = include_str!("main.rs");
    for (name, fate) in RECORDINGS {
        match fate {
            Simulated(test) => assert!(tests.contains(&format!("async fn {test}()")), "{name}"),
            Left(reason) => assert!(!reason.is_empty(), "{name}"),
            Both(_) => {}
        }
    }
}

#[tokio::test]
async fn passwords() {
    play_all(|setup| setup.password).await;
}

#[tokio::test]
async fn plain_sessions() {
    play_all(|setup| !setup.password && !setup.hold && !setup.locked).await;
}

#[tokio::test]
async fn holds() {
    play_all(|setup| setup.hold).await;
}

#[tokio::test]
async fn private_keys() {
    play_all(|setup| setup.locked).await;
}
