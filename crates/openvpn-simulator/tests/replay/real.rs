//! The same commands to a real OpenVPN 2.6.14 and to a simulated one, at the same time.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use openvpn_simulator::{Address, ClientSpec, Daemon, Timing};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use crate::compare::{normalise, sort_rows};
use crate::lab::{Pki, Process, free_port, openvpn};
use crate::manager::{Manager, PATIENCE};
use crate::script::{Deed, parse};

/// Neither a time nor a number, and yet each daemon's own: what the real one's tunnel, which
/// goes nowhere, leaves out, and what depends on its traffic.
const NOISE: &[&str] = &[
    ",ASSIGN_IP,",
    "Max bcast/mcast queue length",
    "BYTECOUNT_CLI",
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Start {
    AtOnce,
    Held,
}

/// A real server and a simulated one, alike.
struct Pair {
    directory: TempDir,
    pki: Pki,
    port: u16,
    _server: Process,
    simulated: Daemon,
    managers: [Manager; 2],
}

impl Pair {
    /// `network` is the third byte of the address of their VPN: each test has its own.
    async fn start(network: u8, start: Start) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::new();
        let port = free_port().unwrap();
        let socket = directory.path().join("real.sock");
        let server = openvpn(
            directory.path(),
            "server",
            &format!(
                "proto udp4\nlocal 127.0.0.1\nport {port}\ndev tun\n\
                 topology subnet\nserver 10.99.{network}.0 255.255.255.0\ndh none\nkeepalive 2 20\nverb 3\nstatus-version 2\n\
                 echo one\necho two\nmanagement {} unix\n{}{}",
                socket.display(),
                match start {
                    Start::Held => "management-hold\n",
                    Start::AtOnce => "",
                },
                pki.server
            ),
        );
        let mut builder = Daemon::builder("real")
            .unix(directory.path().join("simulated.sock"))
            .network(Ipv4Addr::new(10, 99, network, 0), 24)
            .status_version(2)
            .echo("one")
            .echo("two")
            .timing(Timing {
                return_after_restart: Duration::from_secs(60),
                ..Timing::default()
            });
        if start == Start::Held {
            builder = builder.hold();
        }
        let simulated = builder.start().await.unwrap();
        let managers = [
            Manager::connect_to(&until_listening(socket).await).await,
            Manager::connect_to(simulated.address()).await,
        ];
        let mut pair = Self {
            directory,
            pki,
            port,
            _server: server,
            simulated,
            managers,
        };
        pair.read_both("the greeting", |line| line.starts_with(">INFO:"))
            .await;
        if start == Start::AtOnce {
            pair.managers[0].serve().await;
        }
        pair
    }

    fn addresses(&self) -> [Address; 2] {
        let real = self.directory.path().join("real.sock");
        [Address::Unix(real), self.simulated.address().clone()]
    }

    /// Reads from both up to a line and compares.
    async fn read_both(&mut self, what: &str, last: impl Fn(&str) -> bool) {
        let mut heard = Vec::new();
        for manager in &mut self.managers {
            heard.push(manager.until(&last).await);
        }
        compare(what, &heard[0], &heard[1]);
    }

    /// Sends bytes to both and compares what they lead to; `load-stats` after it shows where that
    /// ends, as it always answers and never logs.
    async fn ask(&mut self, bytes: &[u8]) {
        let fences = 1 + bytes
            .split(|byte| *byte == b'\n')
            .filter(|line| *line == b"load-stats")
            .count();
        let mut heard = Vec::new();
        for manager in &mut self.managers {
            manager.send(bytes).await;
            manager.send(b"load-stats\n").await;
            let mut lines = Vec::new();
            for _ in 0..fences {
                let fence = |line: &str| line.contains(",bytesin=");
                lines.extend(manager.until(fence).await);
            }
            heard.push(lines);
        }
        let what = bytes.escape_ascii().to_string();
        compare(&what, &heard[0], &heard[1]);
    }
}

impl Manager {
    /// Reads up to, and with, the first line that is `last`.
    async fn until(&mut self, last: impl Fn(&str) -> bool) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let line = self.line().await;
            let line = line.unwrap_or_else(|| panic!("closed after {lines:?}"));
            let found = last(&line);
            lines.push(line);
            if found {
                return lines;
            }
        }
    }

    /// Waits until the daemon serves clients.
    async fn serve(&mut self) {
        loop {
            self.send(b"state\n").await;
            let lines = self.until(|line| line == "END").await;
            if lines.iter().any(|line| line.contains(",CONNECTED,")) {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

fn compare(what: &str, real: &[String], simulated: &[String]) {
    let prepare = |lines: &[String]| {
        let lines = lines.iter();
        let lines = lines.filter(|line| !NOISE.iter().any(|noise| line.contains(noise)));
        // The real one is bound to an address, which its states name.
        let mut lines: Vec<String> = lines
            .map(|line| normalise(line).replace(",127.0.0.1,#", ",,"))
            .collect();
        sort_rows(&mut lines);
        lines
    };
    assert_eq!(prepare(simulated), prepare(real), "after {what}");
}

async fn until_listening(path: PathBuf) -> Address {
    let listening = async {
        while std::os::unix::net::UnixStream::connect(&path).is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, listening).await.expect("openvpn listens");
    Address::Unix(path)
}

/// What managers sent in a transcript, in the same writes.
fn writes(transcript: &str) -> Vec<Vec<u8>> {
    let steps = parse(transcript).into_iter();
    steps
        .filter_map(|step| match step.deed {
            Deed::Send(bytes) => Some(bytes),
            _ => None,
        })
        .collect()
}

// ---- the comparisons

/// Whatever the recordings have of commands that need no client, good and bad.
#[tokio::test]
async fn commands_without_clients() {
    let mut pair = Pair::start(1, Start::AtOnce).await;
    for transcript in [
        include_str!("transcripts/06-help.txt"),
        include_str!("transcripts/07-version-pid-misc.txt"),
        include_str!("transcripts/11-status-0-clients.txt"),
        include_str!("transcripts/14-state.txt"),
        include_str!("transcripts/v2.4.12/01-commands.txt"),
        include_str!("transcripts/v2.7.6/01-commands.txt"),
    ] {
        for bytes in writes(transcript) {
            let session_ends = bytes.starts_with(b"exit") || bytes.starts_with(b"quit");
            let password = bytes.starts_with(b"s3cret") || bytes.starts_with(b"pw 1");
            if !session_ends && !password {
                pair.ask(&bytes).await;
            }
        }
    }
}

/// Every word that `help` lists, with none to five arguments; then the same as somebody types it
/// wrong.
#[tokio::test]
async fn every_command_of_help() {
    let mut pair = Pair::start(2, Start::AtOnce).await;
    let help = pair.managers[0].ask_help().await;
    let commands: Vec<&str> = help
        .iter()
        .filter_map(|line| line.split_once(':').map(|(words, _)| words))
        .filter(|words| !words.starts_with(' '))
        .flat_map(|words| words.split_whitespace().next().unwrap_or("").split('|'))
        .filter(|word| !word.is_empty() && *word != "Commands")
        // They end the session, or are compared elsewhere.
        .filter(|word| !["exit", "quit", "signal"].contains(word))
        .collect();
    assert!(commands.len() >= 38, "{commands:?}");
    for command in commands {
        for arguments in [
            "", " 0", " 1 2", " a b", " x y z", " 1 2 3 4", " \"open", " #",
        ] {
            // A block that begins is ended; an `END` too many is an unknown command to both.
            let line = format!("{command}{arguments}\nEND\n");
            pair.ask(line.as_bytes()).await;
        }
        pair.ask(format!("{}\n", command.to_uppercase()).as_bytes())
            .await;
        // Whatever it changed, the next begins where this one began.
        pair.ask(b"verb 3\nmute 0\nlog off\nstate off\necho off\nenv-filter 0\nbytecount 0\n")
            .await;
    }
}

/// Each command as it is meant, beside those above that are not.
const MEANT: &str = "\
auth-retry interact
auth-retry
auth-retry nointeract
auth-retry none
bytecount 5
bytecount 0
certificate
client-auth 0 1
push \"route 10.0.0.0\"
END
client-auth-nt 0 1
client-deny 0 1 reason \"client reason\"
client-kill 0
client-kill 0 HALT
client-pending-auth 0 1 CR_TEXT:R:x 30
cr-response YQ==
echo on
echo 1
echo all
echo all off
echo off all
env-filter 2
env-filter
forget-passwords
hold on
hold
hold release
hold off
hold
kill alice
kill 127.0.0.1:1
load-stats
log on
log 1
log off
log 2
mute
mute 40
mute
mute 0
nclients
needok token-insertion-request ok
needstr name value
net
password Auth x
pid
pk-sig
pkcs11-id-count
pkcs11-id-get 0
proxy HTTP 127.0.0.1 80
proxy NONE
remote ACCEPT
remote MOD 127.0.0.1 1194
remote SKIP 1
remote-entry-count
remote-entry-get all
rsa-sig
signal SIGUSR2
signal SIGKILL
state on all
state off
state 2
status
status 1
status 2
status 3
status 4
test 3
username Auth x
verb
verb 4
verb 16
verb 3
version 3
version
help";

/// The other half of the commands: with arguments that make sense.
#[tokio::test]
async fn every_command_as_it_is_meant() {
    let mut pair = Pair::start(6, Start::AtOnce).await;
    let mut lines = MEANT.lines();
    while let Some(line) = lines.next() {
        let mut bytes = format!("{line}\n");
        if line.starts_with("client-auth ") {
            let block = lines.by_ref().take(2);
            block.for_each(|line| bytes.push_str(&format!("{line}\n")));
        }
        pair.ask(bytes.as_bytes()).await;
    }
}

/// Lines of one kind are left out of the log after some in a row, and counted when one of another kind comes.
#[tokio::test]
async fn a_muted_log() {
    let mut pair = Pair::start(7, Start::AtOnce).await;
    for command in [
        "log on", "mute 2", "pid", "pid", "verb", "mute", "mute 7", "pid", "mute 0", "pid",
        "log 3", "kill a:b", "mute 1", "pid", "kill a:b", "pid", "kill a:b", "mute 9", "pid",
        "pid", "pid", "pid", "kill a:b", "kill a:b", "pid", "log off", "log 25",
    ] {
        pair.ask(format!("{command}\n").as_bytes()).await;
    }
}

/// Both words for leaving, alone and behind a command; whoever comes next is greeted.
#[tokio::test]
async fn leaving() {
    let mut pair = Pair::start(8, Start::AtOnce).await;
    for bytes in [&b"exit\n"[..], b"quit\n", b"pid\nexit\npid\n"] {
        for (number, address) in pair.addresses().into_iter().enumerate() {
            let manager = &mut pair.managers[number];
            manager.send(bytes).await;
            assert_eq!(manager.line().await, None, "{}", bytes.escape_ascii());
            *manager = Manager::connect_to(&address).await;
        }
        pair.read_both("the greeting", |line| line.starts_with(">INFO:"))
            .await;
        pair.ask(b"pid\n").await;
    }
}

/// One manager at a time: the next one's connection is taken, and waits without a word until the first has left; what it
/// has sent by then is done.
#[tokio::test]
async fn managers_wait_in_line() {
    let mut pair = Pair::start(9, Start::AtOnce).await;
    let mut waiting = Vec::new();
    for address in pair.addresses() {
        let mut next = Manager::connect_to(&address).await;
        next.send(b"pid\n").await;
        waiting.push(next);
    }
    pair.ask(b"status\n").await;
    for manager in &mut pair.managers {
        manager.send(b"exit\n").await;
        assert_eq!(manager.line().await, None);
    }
    pair.managers = waiting.try_into().ok().unwrap();
    pair.read_both("the greeting, and pid", |line| {
        line.starts_with("SUCCESS: pid=")
    })
    .await;
    pair.ask(b"verb\n").await;
}

impl Manager {
    async fn ask_help(&mut self) -> Vec<String> {
        self.send(b"help\n").await;
        self.until(|line| line == "END").await
    }
}

/// A client in each format of `status`, and killed in each way.
#[tokio::test]
async fn a_client_is_listed_and_killed() {
    let mut pair = Pair::start(3, Start::AtOnce).await;
    pair.ask(b"env-filter 3\n").await;
    let _client = openvpn(
        pair.directory.path(),
        "client",
        &format!(
            "client\ndev null\nproto udp4\nremote 127.0.0.1 {}\nnobind\nifconfig-noexec\n\
             route-noexec\nconnect-retry 60 60\nverb 3\n{}",
            pair.port,
            pair.pki.client("alice")
        ),
    );
    let alice = ClientSpec::new("alice").real_address("127.0.0.1:40000".parse().unwrap());
    pair.simulated.connect(alice.stays_away()).await.unwrap();
    pair.read_both("connect", |line| line == ">CLIENT:ENV,END")
        .await;
    for command in [
        "status 1",
        "status 2",
        "status 3",
        "nclients",
        "kill bob",
        "kill 127.0.0.1:1",
        "client-kill 7",
        "client-deny 0 1 no",
        "client-auth-nt 0 1",
        "client-kill 0 HALT",
        "client-kill 0 HALT",
        "kill alice",
        "kill alice",
        "status 3",
    ] {
        pair.ask(format!("{command}\n").as_bytes()).await;
    }
}

/// Signals as the session sees them, to the last.
#[tokio::test]
async fn restarts_and_the_end() {
    let mut pair = Pair::start(4, Start::AtOnce).await;
    // The status in the log has the format of `status`.
    pair.ask(b"log on\n").await;
    for manager in &mut pair.managers {
        manager.send(b"signal SIGUSR2\n").await;
    }
    pair.read_both("SIGUSR2", |line| line.ends_with(",END"))
        .await;
    pair.ask(b"log off\nstate on\n").await;
    for signal in ["SIGUSR1", "SIGHUP"] {
        let command = format!("signal {signal}\n");
        for manager in &mut pair.managers {
            manager.send(command.as_bytes()).await;
        }
        pair.read_both(signal, |line| line.contains(",CONNECTED,"))
            .await;
        pair.ask(b"state all\nstatus 3\nhold\n").await;
    }
    for manager in &mut pair.managers {
        manager.send(b"signal SIGTERM\n").await;
    }
    pair.read_both("SIGTERM", |line| line.contains(",EXITING,"))
        .await;
    for manager in &mut pair.managers {
        assert_eq!(manager.line().await, None);
    }
}

/// A held daemon: what it says, refuses, and does once released.
#[tokio::test]
async fn hold_and_release() {
    let mut pair = Pair::start(5, Start::Held).await;
    pair.read_both("hold", |line| line.starts_with(">HOLD:"))
        .await;
    pair.ask(b"state on\n").await;
    for command in [
        "hold",
        "state all",
        "signal SIGHUP",
        "signal SIGUSR1",
        "status",
        "kill x",
    ] {
        pair.ask(format!("{command}\n").as_bytes()).await;
    }
    for manager in &mut pair.managers {
        manager.send(b"hold release\n").await;
    }
    pair.read_both("release", |line| line.contains(",CONNECTED,"))
        .await;
    pair.ask(b"hold off\nhold\n").await;
}
