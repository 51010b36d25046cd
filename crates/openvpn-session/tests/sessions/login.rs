//! From the dial to the greeting, and everything that may be in between.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::{Daemon, Manager, Subject, config};
use openvpn_session::{Address, Condition, DisconnectPolicy, Observation, SessionConfig};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, UnixListener};

fn password_file(directory: &Path, password: &str, mode: u32) -> PathBuf {
    let path = directory.join("password");
    fs::write(&path, password).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    path
}

fn with_password(daemon: &Daemon, password: &str, mode: u32) -> SessionConfig {
    let mut config = daemon.config();
    config.password_file = Some(password_file(daemon.directory.path(), password, mode));
    config.timings.password_check_interval = Duration::from_millis(20);
    config
}

/// A second try with a password that was wrong would bring the daemon nearer to closing, and fill its log.
#[tokio::test]
async fn wrong_password_is_tried_once() {
    let daemon = Daemon::listen();
    let config = with_password(&daemon, "wrong\n", 0o600);
    let file = config.password_file.clone().unwrap();
    let mut subject = Subject::start(config);
    let mut manager = daemon.accept().await;
    manager.write("ENTER PASSWORD:").await;
    manager.expect("wrong").await;
    manager.write("ENTER PASSWORD:").await;
    manager.expect_end().await;
    let reason = subject.wait_until(Condition::AuthFailed).await;
    assert!(reason.contains(file.to_str().unwrap()), "{reason}");

    // The next connection is the one after the file has changed: it brings the new password.
    fs::write(&file, "right one\n").unwrap();
    let mut manager = daemon.accept().await;
    manager.write("ENTER PASSWORD:").await;
    manager.expect("right one").await;
    manager.write("SUCCESS: password is correct\r\n").await;
    manager.greet().await;
    manager.synchronise(crate::support::STATUS).await;
    subject.wait_until(Condition::Attached).await;
}

/// A password others may read is not used, and the reason says what to do about it.
#[tokio::test]
async fn a_password_file_others_may_read_is_not_used() {
    let daemon = Daemon::listen();
    let config = with_password(&daemon, "secret\n", 0o644);
    let file = config.password_file.clone().unwrap();
    let mut subject = Subject::start(config);
    let mut manager = daemon.accept().await;
    manager.write("ENTER PASSWORD:").await;
    manager.expect_end().await;
    let reason = subject.wait_until(Condition::AuthFailed).await;
    let remedy = format!("(mode 0644): chmod 600 {}", file.display());
    assert!(reason.ends_with(&remedy), "{reason}");

    // The remedy works.
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    let mut manager = daemon.accept().await;
    manager.write("ENTER PASSWORD:").await;
    manager.expect("secret").await;
}

/// Without a password file nothing is sent, and the next attempt is when somebody asks for it.
#[tokio::test]
async fn a_missing_password_waits_for_the_operator() {
    let daemon = Daemon::listen();
    let mut subject = Subject::start(daemon.config());
    let mut manager = daemon.accept().await;
    manager.write("ENTER PASSWORD:").await;
    manager.expect_end().await;
    let reason = subject.wait_until(Condition::AuthFailed).await;
    assert!(reason.contains("password_file"), "{reason}");
    subject.handle.retry_now();
    daemon.accept().await;
}

/// Where leaving harms the daemon, a refused password keeps the connection.
#[tokio::test]
async fn a_destructive_session_is_not_dropped_for_its_password() {
    let daemon = Daemon::listen();
    let mut config = with_password(&daemon, "wrong\n", 0o600);
    config.disconnect = DisconnectPolicy::Destructive;
    let mut subject = Subject::start(config);
    let mut manager = daemon.accept().await;
    manager.write("ENTER PASSWORD:").await;
    manager.expect("wrong").await;
    manager.write("ENTER PASSWORD:").await;
    subject.wait_until(Condition::AuthFailed).await;
    manager.expect_silence().await;
    // Only who knows what he does ends it.
    subject.handle.retry_now();
    manager.expect_end().await;
    daemon.accept().await;
}

/// A daemon that says nothing is waited for in silence, in the same connection.
#[tokio::test]
async fn a_silent_daemon_is_waited_for() {
    let daemon = Daemon::listen();
    let mut config = daemon.config();
    config.timings.greeting_deadline = Duration::from_millis(20);
    let mut subject = Subject::start(config);
    let mut manager = daemon.accept().await;
    let reason = subject.wait_until(Condition::SlotBusy).await;
    assert!(
        reason.contains("the daemon's only management slot"),
        "{reason}"
    );
    manager.expect_silence().await;
    manager.greet().await;
    manager.synchronise(crate::support::STATUS).await;
    subject.wait_until(Condition::Attached).await;
}

/// A port that speaks something else is named as such, with what it says, and not asked twice a second.
#[tokio::test]
async fn a_port_that_speaks_something_else_is_unreachable() {
    for greeting in [
        "SSH-2.0-OpenSSH_9.2\r\n",
        "\u{1b}[2Jno line end",
        ">IN\u{7}",
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let address: Address = format!("tcp:127.0.0.1:{port}").parse().unwrap();
        let mut subject = Subject::start(SessionConfig::new(address));
        let (mut stream, _) = crate::support::within(listener.accept()).await.unwrap();
        stream.write_all(greeting.as_bytes()).await.unwrap();
        let reason = subject.wait_until(Condition::Unreachable).await;
        let shown: String = greeting.trim_end().escape_default().collect();
        assert!(
            reason.contains("no OpenVPN management interface"),
            "{reason}"
        );
        assert!(reason.contains(&shown[..3]), "{reason}");
        assert!(
            !reason.contains('\u{1b}') && !reason.contains('\u{7}'),
            "{reason}"
        );
    }
}

/// An endless first line is cut off at the first bytes; nothing grows.
#[tokio::test]
async fn an_endless_line_ends_the_session_only() {
    let daemon = Daemon::listen();
    let mut subject = Subject::start(daemon.config());
    let mut manager = daemon.attach().await;
    subject.wait_until(Condition::Attached).await;
    manager.write(&">LOG:1,,x".repeat(4_096)).await;
    let reason = subject
        .wait_for("end", |observation| match observation {
            Observation::Detached { reason } => Some(reason.clone()),
            _ => None,
        })
        .await;
    assert!(reason.contains("longer than"), "{reason}");
    let _manager = daemon.attach().await;
    subject.wait_until(Condition::Attached).await;
}

/// A daemon that closes at once does so by its configuration; the reason says which.
#[tokio::test]
async fn a_close_without_a_word_is_explained() {
    let daemon = Daemon::listen();
    let mut subject = Subject::start(daemon.config());
    drop(daemon.accept().await);
    let reason = subject.wait_until(Condition::Unreachable).await;
    assert!(reason.contains("--management-client-user"), "{reason}");
}

/// A socket that appears is dialled at once, also when its directory has to appear first, twice.
#[tokio::test]
async fn a_socket_that_appears_is_dialled_at_once() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("run/openvpn");
    let path = directory.join("management.sock");
    let mut config = config(&path);
    // Patience alone would take longer than the test's.
    config.timings.watched_retry_max = Duration::from_secs(3_600);
    config.timings.local_retry_min = Duration::from_secs(3_600);
    config.timings.local_retry_max = Duration::from_secs(3_600);
    let mut subject = Subject::start(config);
    let reason = subject.wait_until(Condition::Unreachable).await;
    assert!(reason.contains(path.to_str().unwrap()), "{reason}");
    for _ in 0..2 {
        next_attempt(&mut subject).await;
        fs::create_dir_all(&directory).unwrap();
        next_attempt(&mut subject).await;
        let bound = Instant::now();
        // Bound under another name and renamed, so that whoever finds it finds it listening.
        let hidden = directory.join("hidden.sock");
        let listener = UnixListener::bind(&hidden).unwrap();
        fs::rename(&hidden, &path).unwrap();
        let (stream, _) = crate::support::within(listener.accept()).await.unwrap();
        // At once means without the patience above; the machine may be busy.
        println!("dialled {:?} after it was bound", bound.elapsed());
        let mut manager = Manager::new(stream);
        manager.greet().await;
        manager.synchronise(crate::support::STATUS).await;
        subject.wait_until(Condition::Attached).await;
        fs::remove_dir_all(root.path().join("run")).unwrap();
        drop((manager, listener));
        subject.wait_until(Condition::Connecting).await;
        subject.handle.retry_now();
        subject.wait_until(Condition::Unreachable).await;
    }
}

async fn next_attempt(subject: &mut Subject) {
    subject.handle.retry_now();
    subject
        .wait_for("attempt", |observation| match observation {
            Observation::NextAttempt(_) => Some(()),
            _ => None,
        })
        .await;
}
