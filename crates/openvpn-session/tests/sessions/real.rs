//! Sessions to real OpenVPN servers. A missing `openvpn` is a failure, not a reason to skip.

use std::fs::{self, Permissions};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use crate::support::{PATIENCE, Subject, control, eventually, read, within};
use openvpn_management::{Cid, Command, DaemonState, KillMessage, Notification, Reply, Signal};
use openvpn_session::{Address, CallError, Condition, Mode, Observation, SessionConfig};
use tempfile::TempDir;
use tokio::process::{Child, Command as Process};

/// A real server that needs no address of this machine's and no other server's peace.
pub(crate) struct Server {
    directory: TempDir,
    port: u16,
    management: Vec<String>,
    child: Child,
}

impl Server {
    pub(crate) fn start(management: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        fs::write(directory.path().join("server.crt"), certificate.pem()).unwrap();
        fs::write(directory.path().join("server.key"), key.serialize_pem()).unwrap();
        let port = free_port();
        let management: Vec<_> = management.iter().map(|word| (*word).to_owned()).collect();
        let child = spawn(directory.path(), port, &management);
        Self {
            directory,
            port,
            management,
            child,
        }
    }

    fn unix(options: &[&str]) -> Self {
        Self::start(&[&["--management", "management.sock", "unix"], options].concat())
    }

    pub(crate) fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("management.sock")
    }

    fn config(&self) -> SessionConfig {
        SessionConfig::new(Address::Unix(self.socket()))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid().cast_signed()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait().await.unwrap()
    }

    pub(crate) fn start_again(&mut self) {
        self.child = spawn(self.directory.path(), self.port, &self.management);
    }
}

fn spawn(directory: &Path, port: u16, management: &[String]) -> Child {
    let log = fs::File::create(directory.join("log")).unwrap();
    Process::new("openvpn")
        .current_dir(directory)
        .args([
            "--dev",
            "tun",
            "--topology",
            "subnet",
            "--server",
            "10.8.0.0",
            "255.255.255.0",
        ])
        .args([
            "--ifconfig-noexec",
            "--route-noexec",
            "--local",
            "127.0.0.1",
        ])
        .args([
            "--proto",
            "udp4",
            "--port",
            &port.to_string(),
            "--dh",
            "none",
            "--verb",
            "3",
        ])
        .args([
            "--ca",
            "server.crt",
            "--cert",
            "server.crt",
            "--key",
            "server.key",
        ])
        .args(management)
        .stdout(log)
        .kill_on_drop(true)
        .spawn()
        .expect("openvpn is installed")
}

/// All that is asked on attach is answered by a real server, and calls get its answers.
#[tokio::test]
async fn attaches_to_a_real_server() {
    let server = Server::unix(&[]);
    let mut subject = Subject::start(server.config());
    let (version, pid, mode, state, has_snapshot) = subject
        .wait_for("synchronisation", |observation| match observation {
            Observation::Synchronised(facts) => Some((
                facts.version.clone(),
                facts.pid,
                facts.mode,
                facts.states.last().map(|record| record.state.clone()),
                facts.snapshot.is_some(),
            )),
            _ => None,
        })
        .await;
    assert!(version.unwrap().openvpn.to_string().contains("OpenVPN 2."));
    assert_eq!(pid, Some(server.pid()));
    if state == Some(DaemonState::Connected) {
        assert_eq!(mode, Mode::Server);
        assert!(has_snapshot);
    }
    subject.wait_until(Condition::Attached).await;
    let answer = subject
        .handle
        .call(read(Command::Verb(None), 1))
        .await
        .unwrap();
    assert_eq!(answer.reply, Reply::Verb(3));
    let kill = Command::ClientKill {
        cid: Cid(77),
        message: Some(KillMessage::Halt),
    };
    let refused = subject.handle.call(control(kill)).await.unwrap_err();
    assert!(matches!(refused, CallError::Rejected { .. }), "{refused:?}");
}

/// A client has no list of clients; its `status` says so, and what kind of daemon it is.
#[tokio::test]
async fn a_client_is_known_by_its_status() {
    // For its files; the client talks to nobody, so that it goes on trying.
    let server = Server::unix(&[]);
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = nobody.local_addr().unwrap().port().to_string();
    let _client = Process::new("openvpn")
        .current_dir(server.directory.path())
        .args(["--client", "--dev", "null", "--nobind", "--proto", "udp4"])
        .args(["--remote", "127.0.0.1", &port])
        .args(["--ca", "server.crt", "--cert", "server.crt"])
        .args(["--key", "server.key"])
        .args(["--management", "client.sock", "unix"])
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let path = server.directory.path().join("client.sock");
    let mut subject = Subject::start(SessionConfig::new(Address::Unix(path)));
    let mode = subject
        .wait_for("synchronisation", |observation| match observation {
            Observation::Synchronised(facts) => Some(facts.mode),
            _ => None,
        })
        .await;
    assert_eq!(mode, Mode::Client);
}

/// A held server is attached while it refuses `status`, is released, and again after each restart, in one session.
#[tokio::test]
async fn a_held_server_is_released_each_time() {
    let server = Server::unix(&["--management-hold"]);
    let mut subject = Subject::start(server.config());
    let has_snapshot = subject
        .wait_for("synchronisation", |observation| match observation {
            Observation::Synchronised(facts) => Some(facts.snapshot.is_some()),
            _ => None,
        })
        .await;
    assert!(!has_snapshot);
    for _ in 0..2 {
        subject
            .wait_for("release", |observation| {
                matches!(observation, Observation::Released).then_some(())
            })
            .await;
        // Asked by itself as soon as the server serves, not an interval later.
        subject
            .wait_for("snapshot", |observation| {
                matches!(observation, Observation::Snapshot(_)).then_some(())
            })
            .await;
        let restart = control(Command::Signal(Signal::Sigusr1));
        subject.handle.call(restart).await.unwrap();
        subject
            .wait_for("restart", |observation| match observation {
                Observation::Detached { reason } => panic!("the session ended: {reason}"),
                Observation::Notification(Notification::State(record)) => {
                    (record.state == DaemonState::Reconnecting).then_some(())
                }
                _ => None,
            })
            .await;
    }
}

/// The holder of the slot is named, and we are in at once after it leaves, without another attempt.
#[tokio::test]
async fn a_busy_slot_names_its_holder_and_is_taken_over() {
    let server = Server::unix(&[]);
    let mut holder = hold_slot(&server).await;
    let mut config = server.config();
    config.timings.greeting_deadline = Duration::from_millis(300);
    let mut subject = Subject::start(config);
    let reason = subject.wait_until(Condition::SlotBusy).await;
    let named = format!("sleep (pid {})", holder.id().unwrap());
    assert!(reason.contains(&named), "{reason}");
    let left = Instant::now();
    holder.kill().await.unwrap();
    subject
        .wait_for("the slot", |observation| match observation {
            Observation::NextAttempt(at) => panic!("it waits until {at:?}, and not in line"),
            Observation::Condition(change) => {
                (change.condition == Condition::Attached).then_some(())
            }
            _ => None,
        })
        .await;
    println!("attached {:?} after the slot was free", left.elapsed());
}

/// A full queue is a busy slot too, on a Unix socket, and left as soon as there is room.
#[tokio::test]
async fn a_full_queue_is_a_busy_slot() {
    let server = Server::unix(&[]);
    let mut holder = hold_slot(&server).await;
    let waiting: Vec<_> = (0..2)
        .map(|_| UnixStream::connect(server.socket()).unwrap())
        .collect();
    let mut subject = Subject::start(server.config());
    let reason = subject.wait_until(Condition::SlotBusy).await;
    assert!(reason.contains("sleep (pid "), "{reason}");
    drop(waiting);
    holder.kill().await.unwrap();
    subject.wait_until(Condition::Attached).await;
}

/// A process that has the server's only slot, and does nothing with it.
async fn hold_slot(server: &Server) -> Child {
    eventually("the socket is there", || {
        UnixStream::connect(server.socket()).is_ok()
    })
    .await;
    // Attached once, so that nobody waits in line any more.
    let mut first = Subject::start(server.config());
    first.wait_until(Condition::Attached).await;
    drop(first);
    let slot = UnixStream::connect(server.socket()).unwrap();
    let mut greeted = [0];
    within(tokio::task::spawn_blocking({
        let slot = slot.try_clone().unwrap();
        move || std::io::Read::read_exact(&mut &slot, &mut greeted)
    }))
    .await
    .unwrap()
    .unwrap();
    Process::new("sleep")
        .arg("1000")
        .stdin(Stdio::from(OwnedFd::from(slot)))
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// A wrong password is tried once; the corrected file is enough to get in.
#[tokio::test]
async fn a_corrected_password_file_is_enough() {
    let port = free_port();
    let directory = tempfile::tempdir().unwrap();
    let right = directory.path().join("right");
    let ours = directory.path().join("ours");
    for (path, password) in [(&right, "s3cret pass\n"), (&ours, "wrong\n")] {
        fs::write(path, password).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    }
    let _server = Server::start(&[
        "--management",
        "127.0.0.1",
        &port.to_string(),
        right.to_str().unwrap(),
    ]);
    let mut config = SessionConfig::new(format!("tcp:127.0.0.1:{port}").parse().unwrap());
    config.password_file = Some(ours.clone());
    config.timings.password_check_interval = Duration::from_millis(50);
    let mut subject = Subject::start(config);
    let reason = subject.wait_until(Condition::AuthFailed).await;
    assert!(reason.contains(ours.to_str().unwrap()), "{reason}");
    fs::write(&ours, "s3cret pass\n").unwrap();
    subject.wait_until(Condition::Attached).await;
}

/// A daemon that is killed and started again is attached soon after it listens, however long it was away.
#[tokio::test]
async fn a_daemon_that_comes_back_is_attached_soon() {
    let port = free_port().to_string();
    let tcp = format!("tcp:127.0.0.1:{port}").parse().unwrap();
    let servers = [
        (Server::unix(&[]), None),
        (
            Server::start(&["--management", "127.0.0.1", &port]),
            Some(tcp),
        ),
    ];
    for (mut server, address) in servers {
        let address = address.unwrap_or_else(|| server.config().address);
        let mut subject = Subject::start(SessionConfig::new(address));
        subject.wait_until(Condition::Attached).await;
        server.kill().await;
        subject.wait_until(Condition::Unreachable).await;
        // Until the waits between the attempts are as long as they get.
        let mut attempts = 0;
        subject
            .wait_for("attempts", |observation| {
                attempts += u32::from(matches!(observation, Observation::NextAttempt(_)));
                (attempts == 6).then_some(())
            })
            .await;
        server.start_again();
        let log = server.directory.path().join("log");
        let listens = wait_for_line(&log, "ocket listening on").await;
        subject.wait_until(Condition::Attached).await;
        // A second is promised; this machine may be busy with other tests.
        let waited = listens.elapsed();
        println!("attached {waited:?} after it listened");
        assert!(waited < Duration::from_secs(5), "{waited:?}");
    }
}

/// A port of 127.0.0.1 that is nobody else's as long as this process runs: below those that the system gives away by
/// itself, and claimed by an abstract socket, which other test processes see too.
pub(crate) fn free_port() -> u16 {
    const FIRST: u16 = 26_000;
    const COUNT: u16 = 4_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    for _ in 0..COUNT {
        let port = FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        let name = SocketAddr::from_abstract_name(format!("ovfleet-session/{port}")).unwrap();
        let Ok(claim) = UnixListener::bind_addr(&name) else {
            continue;
        };
        let address = ("127.0.0.1", port);
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            // The kernel gives it up when the process ends.
            std::mem::forget(claim);
            return port;
        }
    }
    panic!("all {COUNT} ports are taken");
}

async fn wait_for_line(log: &Path, line: &str) -> Instant {
    eventually(line, || {
        fs::read_to_string(log).is_ok_and(|log| log.contains(line))
    })
    .await;
    Instant::now()
}

/// A stopped daemon is unresponsive, calls to it fail at once, and it is back in the same session when it goes on.
#[tokio::test]
async fn a_stopped_daemon_keeps_its_session() {
    let server = Server::unix(&[]);
    let mut config = server.config();
    config.timings.liveness_interval = Duration::from_millis(100);
    config.timings.reply_deadline = Duration::from_millis(200);
    let mut subject = Subject::start(config);
    subject.wait_until(Condition::Attached).await;
    server.signal(rustix::process::Signal::STOP);
    subject.wait_until(Condition::Unresponsive).await;
    let called = Instant::now();
    let refused = subject
        .handle
        .call(read(Command::Pid, 1))
        .await
        .unwrap_err();
    assert!(matches!(refused, CallError::NotSent(_)), "{refused:?}");
    assert!(called.elapsed() < PATIENCE / 2);
    server.signal(rustix::process::Signal::CONT);
    subject
        .wait_for("recovery", |observation| match observation {
            Observation::Detached { reason } => panic!("the session ended: {reason}"),
            Observation::Condition(change) => {
                (change.condition == Condition::Attached).then_some(())
            }
            _ => None,
        })
        .await;
    let answer = subject.handle.call(read(Command::Pid, 1)).await.unwrap();
    assert_eq!(answer.reply, Reply::Pid(server.pid()));
}
