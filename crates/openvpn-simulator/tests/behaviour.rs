//! Sockets, time and trouble: what transcripts cannot show.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use openvpn_simulator::{
    Address, ClientSpec, ControlError, Daemon, DaemonBuilder, How, Misbehaviour, Population,
    RestartSignal, StartError, Timing,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);
const GREETING: &str = ">INFO:OpenVPN Management Interface Version 5 -- type 'help' for more info";

fn builder(directory: &Path, name: &str) -> DaemonBuilder {
    Daemon::builder(name).unix(directory.join(format!("{name}.sock")))
}

fn quick() -> Timing {
    Timing {
        restart_pause: Duration::from_millis(50),
        delayed_exit: Duration::from_millis(100),
        return_after_kill: Duration::from_millis(20),
        return_after_restart: Duration::from_millis(20),
        hand_window: Duration::from_millis(50),
        keepalive: Duration::from_millis(50),
        ping_restart: Duration::from_millis(50),
    }
}

/// A manager that reads lines.
struct Manager(BufReader<UnixStream>);

impl Manager {
    async fn connect(daemon: &Daemon) -> Self {
        let Address::Unix(path) = daemon.address() else {
            panic!("not a Unix socket");
        };
        Self(BufReader::new(UnixStream::connect(path).await.unwrap()))
    }

    /// Connects and reads the greeting.
    async fn attach(daemon: &Daemon) -> Self {
        let mut manager = Self::connect(daemon).await;
        assert_eq!(manager.line().await.unwrap(), GREETING);
        manager
    }

    async fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).await.unwrap();
    }

    async fn line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        let read = self.0.read_until(b'\n', &mut line);
        let read = timeout(PATIENCE, read).await.expect("a line");
        if matches!(read, Ok(0) | Err(_)) {
            return None;
        }
        Some(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    /// Reads on to the first line that `wanted` is in.
    async fn until(&mut self, wanted: &str) -> String {
        loop {
            let line = self
                .line()
                .await
                .unwrap_or_else(|| panic!("closed before {wanted}"));
            if line.contains(wanted) {
                return line;
            }
        }
    }
}

/// A second manager that were greeted, or refused, would make every SLOT_BUSY test worthless.
#[tokio::test]
async fn the_slot_holds_one_manager_and_queues_two() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = builder(directory.path(), "slot").start().await.unwrap();
    let mut first = Manager::attach(&daemon).await;
    let mut second = Manager::connect(&daemon).await;
    second.send("pid\n").await;
    let mut third = Manager::connect(&daemon).await;
    let Address::Unix(path) = daemon.address() else {
        panic!("not a Unix socket");
    };
    let fourth = UnixStream::connect(path).await.unwrap_err();
    assert_eq!(fourth.kind(), ErrorKind::WouldBlock);
    // Whatever the second were to hear, it would have heard before this answer.
    first.send("pid\n").await;
    first.until("SUCCESS: pid=").await;
    let silence = second.0.get_ref().try_read(&mut [0]).unwrap_err();
    assert_eq!(silence.kind(), ErrorKind::WouldBlock);

    drop(first);
    assert_eq!(second.line().await.unwrap(), GREETING);
    second.until("SUCCESS: pid=").await;
    drop(second);
    assert_eq!(third.line().await.unwrap(), GREETING);
    assert_eq!(daemon.sessions(), 3);
}

#[tokio::test]
async fn three_wrong_passwords_close_the_session_without_a_word() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = builder(directory.path(), "password").password("secret");
    let daemon = daemon.start().await.unwrap();
    let mut manager = Manager::connect(&daemon).await;
    for wrong in ["a\n", "\n", "c\n"] {
        let mut prompt = [0; 15];
        manager.0.read_exact(&mut prompt).await.unwrap();
        assert_eq!(&prompt, b"ENTER PASSWORD:");
        manager.send(wrong).await;
    }
    assert_eq!(manager.line().await, None);
    assert!(daemon.commands().is_empty());

    let mut manager = Manager::connect(&daemon).await;
    manager.send("secret\npid\n").await;
    assert_eq!(
        manager.line().await.unwrap(),
        "ENTER PASSWORD:SUCCESS: password is correct"
    );
    manager.until("SUCCESS: pid=").await;
    assert_eq!(daemon.commands(), [b"pid"]);
}

/// Generations of a fleet hang on this: CIDs begin again, and the clients come back by themselves.
#[tokio::test]
async fn a_restart_begins_cids_anew_and_clients_return() {
    let directory = tempfile::tempdir().unwrap();
    let timing = Timing {
        // Long enough to find it restarting, also on a busy machine.
        restart_pause: Duration::from_secs(1),
        ..quick()
    };
    let daemon = builder(directory.path(), "restart").timing(timing);
    let daemon = daemon.start().await.unwrap();
    daemon
        .connect(ClientSpec::new("gone").stays_away())
        .await
        .unwrap();
    assert_eq!(daemon.connect(ClientSpec::new("alice")).await.unwrap(), 1);
    let mut manager = Manager::attach(&daemon).await;
    manager.send("state on\n").await;
    manager.until("SUCCESS").await;
    daemon.restart(RestartSignal::Sigusr1).await.unwrap();
    assert_eq!(
        daemon.connect(ClientSpec::new("bob")).await,
        Err(ControlError::NotServing {
            daemon: "restart".into()
        })
    );
    manager.until("RECONNECTING,SIGUSR1").await;
    manager.until("CONNECTED,SUCCESS").await;
    assert_eq!(
        manager.until(">CLIENT:ESTABLISHED").await,
        ">CLIENT:ESTABLISHED,0"
    );
    manager.until("common_name=alice").await;
    assert_eq!(daemon.clients().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_leaving_client_says_so_and_lingers() {
    let directory = tempfile::tempdir().unwrap();
    let timing = Timing {
        // Long enough to find it leaving, also on a busy machine.
        delayed_exit: Duration::from_secs(1),
        ..quick()
    };
    let daemon = builder(directory.path(), "leave").timing(timing);
    let daemon = daemon.start().await.unwrap();
    let mut manager = Manager::attach(&daemon).await;
    manager.send("log on\n").await;
    manager.until("SUCCESS").await;
    for (how, hint) in [
        (
            How::TcpClose,
            "SIGUSR1[soft,connection-reset] received, client-instance restarting",
        ),
        (
            How::PingTimeout,
            "SIGUSR1[soft,ping-restart] received, client-instance restarting",
        ),
        (
            How::ExitNotifyData,
            "SIGUSR1[soft,remote-exit] received, client-instance restarting",
        ),
    ] {
        let cid = daemon.connect(ClientSpec::new("alice")).await.unwrap();
        daemon.leave(cid, how).await.unwrap();
        manager.until(hint).await;
        assert!(daemon.clients().await.unwrap().is_empty());
    }
    let cid = daemon.connect(ClientSpec::new("alice")).await.unwrap();
    daemon.leave(cid, How::ExitNotify).await.unwrap();
    manager.until(">NOTIFY:info,remote-exit,EXIT").await;
    assert!(daemon.clients().await.unwrap()[0].leaving);
    manager
        .until("SIGTERM[soft,delayed-exit] received, client-instance exiting")
        .await;
    assert!(daemon.clients().await.unwrap().is_empty());
    assert_eq!(
        daemon.leave(cid, How::TcpClose).await,
        Err(ControlError::UnknownClient {
            daemon: "leave".into(),
            cid
        })
    );
}

#[tokio::test]
async fn a_later_handshake_may_finish_first() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = builder(directory.path(), "order").start().await.unwrap();
    let mut manager = Manager::attach(&daemon).await;
    let early = daemon.half_open().await.unwrap();
    let late = daemon.connect(ClientSpec::new("late")).await.unwrap();
    assert!(late > early);
    assert_eq!(manager.line().await.unwrap(), ">CLIENT:ESTABLISHED,1");
    manager.send("status 3\n").await;
    assert!(
        manager
            .until("\tUNDEF\t")
            .await
            .ends_with("\tUNDEF\t0\t0\tBF-CBC")
    );
    manager.until("END").await;
    daemon
        .complete(early, ClientSpec::new("early"))
        .await
        .unwrap();
    assert_eq!(manager.line().await.unwrap(), ">CLIENT:ESTABLISHED,0");
}

#[tokio::test]
async fn a_half_open_client_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = builder(directory.path(), "half").timing(quick());
    let daemon = daemon.start().await.unwrap();
    let mut manager = Manager::attach(&daemon).await;
    manager.send("log on\n").await;
    manager.until("SUCCESS").await;
    daemon.half_open().await.unwrap();
    manager.until("TLS handshake failed").await;
    assert!(daemon.clients().await.unwrap().is_empty());
}

#[tokio::test]
async fn byte_counts_come_with_packets() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = builder(directory.path(), "bytes").timing(quick());
    let daemon = daemon.start().await.unwrap();
    let cid = daemon.connect(ClientSpec::new("alice")).await.unwrap();
    let mut manager = Manager::attach(&daemon).await;
    manager.send("bytecount 1\n").await;
    manager.until("SUCCESS").await;
    daemon.add_traffic(cid, 1_000_000, 2_000_000).await.unwrap();
    let line = manager.until(">BYTECOUNT_CLI:0,").await;
    let received: u64 = line.split(',').nth(1).unwrap().parse().unwrap();
    // A keepalive packet of the idle client, a second later.
    let line = manager.until(">BYTECOUNT_CLI:0,").await;
    let later: u64 = line.split(',').nth(1).unwrap().parse().unwrap();
    assert!(later > received);
}

/// A frozen daemon that still answered would not be one stopped by SIGSTOP.
#[tokio::test]
async fn a_frozen_daemon_answers_after_the_thaw() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = builder(directory.path(), "frozen").start().await.unwrap();
    let mut manager = Manager::attach(&daemon).await;
    daemon.freeze().await.unwrap();
    manager.send("pid\n").await;
    daemon.connect(ClientSpec::new("alice")).await.unwrap();
    // Both would be here if it were not frozen: the step above was carried out after them.
    assert_eq!(daemon.commands_total(), 0);
    daemon.thaw().await.unwrap();
    assert_eq!(manager.line().await.unwrap(), ">CLIENT:ESTABLISHED,0");
    manager.until("SUCCESS: pid=").await;
}

#[tokio::test]
async fn a_stopped_daemon_starts_again_as_another_process() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = builder(directory.path(), "again").start().await.unwrap();
    let path = directory.path().join("again.sock");
    let mut manager = Manager::attach(&daemon).await;
    manager.send("state on all\n").await;
    let started = manager.until(",CONNECTED,").await;
    let pid = daemon.pid();
    daemon.stop().await;
    manager.until("EXITING,SIGTERM").await;
    assert_eq!(manager.line().await, None);
    assert!(!daemon.is_running() && !path.exists());
    assert_eq!(
        daemon.connect(ClientSpec::new("alice")).await,
        Err(ControlError::Stopped {
            daemon: "again".into()
        })
    );
    daemon.start_again().await.unwrap();
    assert_ne!(daemon.pid(), pid);
    let mut manager = Manager::attach(&daemon).await;
    manager.send("state all\n").await;
    assert!(manager.until(",CONNECTED,").await > started);

    daemon.kill().await;
    manager.until("END").await;
    assert_eq!(manager.line().await, None);
    let refused = UnixStream::connect(&path).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    daemon.start_again().await.unwrap();
    Manager::attach(&daemon).await;
    drop(daemon);
    assert!(!path.exists());
}

#[tokio::test]
async fn an_address_that_cannot_be_used_is_named() {
    let missing = Daemon::builder("nowhere").start().await.unwrap_err();
    assert!(matches!(missing, StartError::NoAddress { .. }));
    let taken = Daemon::builder("taken")
        .unix("/nonexistent/daemon.sock")
        .start()
        .await;
    let error = taken.unwrap_err();
    assert!(
        error.to_string().contains("unix:/nonexistent/daemon.sock"),
        "{error}"
    );
}

/// A daemon that dials needs its manager at each start, and leaves his socket alone.
#[tokio::test]
async fn dialling_takes_a_manager_that_listens() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("manager.sock");
    let dialling = Daemon::builder("eu1").dial(Address::Unix(path.clone()));
    let nobody = dialling.clone().start().await.unwrap_err();
    assert!(matches!(nobody, StartError::Dial { .. }), "{nobody}");

    let listener = UnixListener::bind(&path).unwrap();
    let daemon = dialling.start().await.unwrap();
    for _ in 0..2 {
        let (stream, _) = listener.accept().await.unwrap();
        let mut manager = Manager(BufReader::new(stream));
        assert_eq!(manager.line().await.unwrap(), GREETING);
        drop(manager);
        timeout(PATIENCE, daemon.wait_stopped()).await.unwrap();
        daemon.start_again().await.unwrap();
    }
    drop(daemon);
    assert!(path.exists());
}

/// Every event of a burst arrives, in order, and commands are answered meanwhile.
#[tokio::test]
async fn a_burst_is_complete_stamped_and_leaves_no_one_behind() {
    const CLIENTS: usize = 5_000;
    let directory = tempfile::tempdir().unwrap();
    let daemon = builder(directory.path(), "burst").start().await.unwrap();
    let mut manager = Manager::attach(&daemon).await;
    let reading = tokio::spawn(async move {
        manager.send("pid\n").await;
        let (mut events, mut answered) = (Vec::new(), false);
        while events.len() < 2 * CLIENTS {
            let line = manager.line().await.unwrap();
            answered |= line.starts_with("SUCCESS: pid=");
            if line.starts_with(">CLIENT:ESTABLISHED,") || line.starts_with(">CLIENT:DISCONNECT,") {
                events.push(line);
            }
        }
        (events, answered)
    });
    let report = timeout(PATIENCE, daemon.burst(CLIENTS))
        .await
        .unwrap()
        .unwrap();
    let (events, answered) = reading.await.unwrap();
    assert!(answered);
    assert_eq!(report.written.len(), events.len());
    assert!(report.written.is_sorted());
    for (cid, pair) in (report.first_cid..).zip(events.chunks(2)) {
        let expected = [
            format!(">CLIENT:ESTABLISHED,{cid}"),
            format!(">CLIENT:DISCONNECT,{cid}"),
        ];
        assert_eq!(pair, expected);
    }
    assert!(daemon.clients().await.unwrap().is_empty());
    let next = daemon.connect(ClientSpec::new("next")).await.unwrap();
    assert_eq!(next, report.first_cid + 5_000);
}

#[tokio::test]
async fn a_stamp_needs_a_manager() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = builder(directory.path(), "stamp").start().await.unwrap();
    let none = ControlError::NotAttached {
        daemon: "stamp".into(),
    };
    assert_eq!(daemon.raw("x\r\n").await, Err(none.clone()));
    assert_eq!(daemon.burst(1).await.unwrap_err(), none);
    let mut manager = Manager::attach(&daemon).await;
    daemon.wait_attached().await;
    let (cid, _) = daemon
        .connect_stamped(ClientSpec::new("alice"))
        .await
        .unwrap();
    manager.until(&format!(">CLIENT:ESTABLISHED,{cid}")).await;
    manager.until(">CLIENT:ENV,END").await;
    daemon.raw("anything at all\r\n").await.unwrap();
    assert_eq!(manager.line().await.unwrap(), "anything at all");
    daemon.drop_session().await.unwrap();
    assert_eq!(manager.line().await, None);
    daemon.wait_detached().await;
}

async fn misbehaving(directory: &Path, misbehaviour: Misbehaviour) -> Daemon {
    let daemon = builder(directory, "evil").misbehave(misbehaviour);
    let daemon = daemon.start().await.unwrap();
    daemon.connect(ClientSpec::new("alice")).await.unwrap();
    daemon
}

#[tokio::test]
async fn evil_at_the_start_of_a_session() {
    let directory = tempfile::tempdir().unwrap();
    let banner = Misbehaviour::Banner(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec());
    let daemon = misbehaving(directory.path(), banner).await;
    let mut manager = Manager::connect(&daemon).await;
    assert_eq!(manager.line().await.unwrap(), "SSH-2.0-OpenSSH_9.2");
    assert!(!daemon.is_attached());
    drop(manager);

    daemon.behave().await.unwrap();
    daemon
        .misbehave(Misbehaviour::SilentAfterGreeting)
        .await
        .unwrap();
    let mut manager = Manager::attach(&daemon).await;
    manager.send("pid\n").await;
    daemon.wait_command(b"pid").await;
    daemon.connect(ClientSpec::new("bob")).await.unwrap();
    daemon.drop_session().await.unwrap();
    assert_eq!(manager.line().await, None);

    daemon.behave().await.unwrap();
    daemon
        .misbehave(Misbehaviour::EarlyClose { after_bytes: 10 })
        .await
        .unwrap();
    let mut manager = Manager::connect(&daemon).await;
    assert_eq!(manager.line().await.unwrap(), GREETING[..10]);
    assert_eq!(manager.line().await, None);

    daemon.behave().await.unwrap();
    daemon.misbehave(Misbehaviour::EndlessLine).await.unwrap();
    let mut manager = Manager::attach(&daemon).await;
    let mut line = vec![0; 1 << 20];
    timeout(PATIENCE, manager.0.read_exact(&mut line))
        .await
        .unwrap()
        .unwrap();
    assert!(!line.contains(&b'\n'));
}

#[tokio::test]
async fn evil_in_replies() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = misbehaving(directory.path(), Misbehaviour::HugeStatus { rows: 1000 }).await;
    for evil in [
        Misbehaviour::WrongFieldCount,
        Misbehaviour::InvalidNames,
        Misbehaviour::ExtraEnd,
    ] {
        daemon.misbehave(evil).await.unwrap();
    }
    let mut manager = Manager::attach(&daemon).await;
    manager.send("status 3\n").await;
    let (mut rows, mut whole) = (0, 0);
    loop {
        let line = manager.line().await.unwrap();
        rows += usize::from(line.starts_with("CLIENT_LIST"));
        whole += usize::from(line.starts_with("CLIENT_LIST") && line.split('\t').count() == 13);
        if line == "END" {
            break;
        }
    }
    assert_eq!((rows, whole), (1001, 0));
    assert_eq!(manager.line().await.unwrap(), "END");

    daemon.behave().await.unwrap();
    daemon.misbehave(Misbehaviour::MissingEnd).await.unwrap();
    daemon
        .misbehave(Misbehaviour::UnaskedReplies)
        .await
        .unwrap();
    manager.send("version\n").await;
    manager.until("Management Version: 5").await;
    assert_eq!(
        manager.line().await.unwrap(),
        "SUCCESS: client-kill command succeeded"
    );

    daemon.behave().await.unwrap();
    daemon
        .misbehave(Misbehaviour::PasswordPromptMidSession)
        .await
        .unwrap();
    manager.send("hold\nhold\n").await;
    assert_eq!(manager.line().await.unwrap(), "SUCCESS: hold=0");
    assert_eq!(
        manager.line().await.unwrap(),
        "ENTER PASSWORD:SUCCESS: hold=0"
    );
}

/// OpenVPN writes a reply in one go: whoever gave an answer in the middle of an endless one would let its manager believe
/// that the two are in step again.
#[tokio::test]
async fn an_endless_reply_has_no_other_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = misbehaving(directory.path(), Misbehaviour::EndlessReplies).await;
    let mut manager = Manager::attach(&daemon).await;
    manager.send("version\n").await;
    manager.until("CONNECTED,SUCCESS").await;
    manager.send("load-stats\n").await;
    for _ in 0..50_000 {
        let line = manager.line().await.unwrap();
        assert!(!line.starts_with("SUCCESS"), "{line}");
    }
}

#[tokio::test]
async fn evil_in_notifications() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = misbehaving(directory.path(), Misbehaviour::CidReuse).await;
    assert_eq!(daemon.connect(ClientSpec::new("bob")).await.unwrap(), 0);
    daemon.behave().await.unwrap();

    let mut manager = Manager::attach(&daemon).await;
    manager.send("log on\n").await;
    daemon
        .misbehave(Misbehaviour::LogFlood {
            lines_per_second: 2_000,
        })
        .await
        .unwrap();
    for _ in 0..300 {
        manager.until("flood line").await;
    }
    daemon.behave().await.unwrap();

    let jump_max = Duration::from_secs(1_000_000_000);
    daemon
        .misbehave(Misbehaviour::NonsenseClock { jump_max })
        .await
        .unwrap();
    manager.send("load-stats\n").await;
    manager.until("SUCCESS: nclients").await;
    let mut times = Vec::new();
    for _ in 0..5 {
        manager.send("pid\n").await;
        let line = manager.until("CMD 'pid'").await;
        times.push(line[5..].split(',').next().unwrap().parse::<i64>().unwrap());
    }
    assert!(
        times.iter().any(|time| time.abs_diff(times[0]) > 1_000_000),
        "{times:?}"
    );
    daemon.behave().await.unwrap();

    daemon.misbehave(Misbehaviour::EndlessEnv).await.unwrap();
    daemon.connect(ClientSpec::new("carol")).await.unwrap();
    manager.until(">CLIENT:ESTABLISHED").await;
    for _ in 0..5_000 {
        let line = manager.line().await.unwrap();
        assert!(
            line.starts_with(">CLIENT:ENV,") && line != ">CLIENT:ENV,END",
            "{line}"
        );
    }
}

/// Steps of a crowd depend on the seed alone, and leave the daemons with clients.
#[tokio::test]
async fn a_crowd_comes_to_life() {
    let directory = tempfile::tempdir().unwrap();
    let mut daemons = Vec::new();
    for name in ["one", "two", "three"] {
        daemons.push(builder(directory.path(), name).start().await.unwrap());
    }
    let population = Population::new(daemons, 42).rate(200.0).clients(20);
    let mut manager = Manager::attach(&population.daemons()[0]).await;
    let cancel = CancellationToken::new();
    let living = population.run(cancel.clone());
    let watching = async {
        for _ in 0..10 {
            manager.until(">CLIENT:ESTABLISHED").await;
        }
        cancel.cancel();
    };
    timeout(PATIENCE, async { tokio::join!(living, watching) })
        .await
        .unwrap();
}
