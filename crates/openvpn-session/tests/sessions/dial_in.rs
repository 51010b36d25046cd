//! Daemons that dial in: one listener is one instance, and what it lets in is never dropped by us.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use openvpn_management::{Command, DaemonState, Notification, Reply, Signal};
use openvpn_session::{Address, Condition, Observation, SessionConfig};
use tempfile::TempDir;
use tokio::net::UnixStream;

use crate::real::{Server, free_port};
use crate::support::{Manager, STATUS, Subject, control, eventually, read, within};

/// An address to dial in at.
struct Place {
    path: PathBuf,
    _directory: TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            path: directory.path().join("dial-in.sock"),
            _directory: directory,
        }
    }

    fn config(&self) -> SessionConfig {
        let mut config = SessionConfig::new(Address::ListenUnix(self.path.clone()));
        config.status_interval = Duration::from_secs(3_600);
        config.timings.liveness_interval = Duration::from_secs(3_600);
        config
    }

    async fn dial(&self) -> Manager {
        Manager::new(UnixStream::connect(&self.path).await.unwrap())
    }
}

/// The pid of the daemon that answers.
async fn pid(subject: &Subject) -> Option<u32> {
    let answer = within(subject.handle.call(read(Command::Pid, 1))).await;
    match answer.ok()?.reply {
        Reply::Pid(pid) => Some(pid),
        _ => None,
    }
}

/// A real daemon is attached over either kind of socket, keeps its session through a restart, is not disturbed by a
/// second one, which ends, comes back when it was killed, and ends when the session does.
async fn a_real_daemon_dials_in(address: Address, management: &[&str], file: Option<&Path>) {
    let mut subject = Subject::start(SessionConfig::new(address));
    let reason = subject.wait_until(Condition::Unreachable).await;
    assert!(reason.contains("no daemon has dialled in"), "{reason}");

    let options = [management, &["--management-client"]].concat();
    let mut server = Server::start(&options);
    subject.wait_until(Condition::Attached).await;
    assert_eq!(pid(&subject).await, Some(server.pid()));

    let mut second = Server::start(&options);
    assert!(within(second.wait()).await.success());
    let reason = subject.wait_until(Condition::Attached).await;
    assert!(reason.contains("another daemon dialled in"), "{reason}");
    assert_eq!(pid(&subject).await, Some(server.pid()));

    let restart = Command::Signal(Signal::Sigusr1);
    subject.handle.call(control(restart)).await.unwrap();
    let mut restarting = false;
    subject
        .wait_for("restart in the same session", |observation| {
            match observation {
                Observation::Detached { reason } => panic!("the session ended: {reason}"),
                Observation::Notification(Notification::State(record)) => {
                    restarting |= record.state == DaemonState::Reconnecting;
                    return (restarting && record.state == DaemonState::Connected).then_some(());
                }
                _ => {}
            }
            None
        })
        .await;

    server.kill().await;
    subject.wait_until(Condition::Unreachable).await;
    server.start_again();
    subject.wait_until(Condition::Attached).await;
    assert_eq!(pid(&subject).await, Some(server.pid()));

    subject.cancel.cancel();
    assert!(within(server.wait()).await.success());
    if let Some(file) = file {
        eventually("the socket is removed", || !file.exists()).await;
    }
}

#[tokio::test]
async fn a_real_daemon_dials_in_over_unix() {
    let place = Place::new();
    let path = place.path.to_str().unwrap();
    let address = Address::ListenUnix(place.path.clone());
    a_real_daemon_dials_in(address, &["--management", path, "unix"], Some(&place.path)).await;
}

#[tokio::test]
async fn a_real_daemon_dials_in_over_tcp() {
    let port = free_port().to_string();
    let address = format!("listen-tcp:127.0.0.1:{port}").parse().unwrap();
    a_real_daemon_dials_in(address, &["--management", "127.0.0.1", &port], None).await;
}

/// Only the configured user is let in; others are named, and the daemon still finds the door open.
#[tokio::test]
async fn only_the_configured_user_is_let_in() {
    let place = Place::new();
    // Ours, as the kernel knows it.
    let uid = place._directory.path().metadata().unwrap().uid();
    let mut config = place.config();
    config.dial_in.peer_uid = Some(uid + 1);
    config.dial_in.mode = 0o600;
    let mut subject = Subject::start(config);
    subject.wait_until(Condition::Unreachable).await;
    assert_eq!(place.path.metadata().unwrap().mode() & 0o777, 0o600);
    place.dial().await.expect_end().await;
    let reason = subject.wait_until(Condition::Unreachable).await;
    assert!(reason.contains(&format!("user {uid} ")), "{reason}");
    subject.cancel.cancel();
    eventually("the socket is removed", || !place.path.exists()).await;

    let mut config = place.config();
    config.dial_in.peer_uid = Some(uid);
    let mut subject = Subject::start(config);
    subject.wait_until(Condition::Unreachable).await;
    let mut daemon = place.dial().await;
    daemon.greet().await;
    daemon.synchronise(STATUS).await;
    subject.wait_until(Condition::Attached).await;
}

/// A daemon that says nothing, or stops answering, is said to, and keeps its session however long it takes.
#[tokio::test]
async fn a_daemon_that_hangs_is_not_dropped() {
    let place = Place::new();
    let mut config = place.config();
    config.timings.greeting_deadline = Duration::from_millis(20);
    config.timings.reply_deadline = Duration::from_millis(20);
    config.timings.unresponsive_reconnect = Duration::from_millis(40);
    let mut subject = Subject::start(config);
    subject.wait_until(Condition::Unreachable).await;
    let mut daemon = place.dial().await;
    let reason = subject.wait_until(Condition::Unresponsive).await;
    assert!(reason.contains("does not greet"), "{reason}");
    daemon.expect_silence().await;
    daemon.greet().await;
    daemon.expect("env-filter 0").await;
    subject.wait_until(Condition::Unresponsive).await;
    daemon.write("SUCCESS: env_filter_level=0\r\n").await;
    // The fence behind a command that missed its deadline.
    daemon.expect("load-stats").await;
    daemon.expect_silence().await;
}

/// A daemon that leaves and dials in again at once is taken, not turned away as a second one.
#[tokio::test]
async fn a_daemon_that_comes_back_at_once_is_let_in() {
    let place = Place::new();
    let mut subject = Subject::start(place.config());
    subject.wait_until(Condition::Unreachable).await;
    for _ in 0..20 {
        let mut daemon = place.dial().await;
        daemon.greet().await;
        daemon.synchronise(STATUS).await;
        assert_eq!(subject.wait_until(Condition::Attached).await, "");
    }
}
