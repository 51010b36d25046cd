//! What sets versions apart and no transcript shows: 2.3, muting, and 2.7's timer and pushes.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::time::Duration;

use openvpn_simulator::{Address, ClientSpec, Daemon, RestartSignal, Timing, Version};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

struct Manager(BufReader<UnixStream>);

impl Manager {
    async fn connect(daemon: &Daemon) -> Self {
        let Address::Unix(path) = daemon.address() else {
            panic!("not a Unix socket");
        };
        Self(BufReader::new(UnixStream::connect(path).await.unwrap()))
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self.0.read_line(&mut line);
        timeout(PATIENCE, read).await.expect("a line").unwrap();
        line.trim_end().to_owned()
    }

    /// Sends a command and returns the lines up to the one that starts with `last`.
    async fn ask(&mut self, command: &str, last: &str) -> Vec<String> {
        let command = format!("{command}\n");
        self.0
            .get_mut()
            .write_all(command.as_bytes())
            .await
            .unwrap();
        let mut lines = Vec::new();
        loop {
            let line = self.line().await;
            assert!(!line.is_empty(), "closed before {last}: {lines:?}");
            let found = line.starts_with(last);
            lines.push(line);
            if found {
                return lines;
            }
        }
    }
}

async fn start(version: Version) -> (tempfile::TempDir, Daemon) {
    let directory = tempfile::tempdir().unwrap();
    let timing = Timing {
        restart_pause: Duration::from_millis(20),
        return_after_restart: Duration::from_secs(60),
        ..Timing::default()
    };
    let daemon = Daemon::builder(version.to_string())
        .unix(directory.path().join("daemon.sock"))
        .version(version)
        .timing(timing)
        .start()
        .await
        .unwrap();
    (directory, daemon)
}

/// A simulated 2.3 with client IDs or with eight fields in a state would let a gateway pass that
/// no real 2.3 would.
#[tokio::test]
async fn the_oldest_has_no_client_ids_and_five_fields_in_a_state() {
    let (_directory, daemon) = start(Version::V2_3).await;
    daemon.connect(ClientSpec::new("alice")).await.unwrap();
    let mut manager = Manager::connect(&daemon).await;
    assert!(manager.line().await.contains("Interface Version 1 "));

    let status = manager.ask("status 3", "END").await;
    let header = status
        .iter()
        .find(|line| line.contains("HEADER\tCLIENT_LIST"));
    assert_eq!(
        header.unwrap(),
        "HEADER\tCLIENT_LIST\tCommon Name\tReal Address\tVirtual Address\tBytes Received\tBytes \
         Sent\tConnected Since\tConnected Since (time_t)\tUsername"
    );
    let row = status.iter().find(|line| line.starts_with("CLIENT_LIST\t"));
    assert_eq!(row.unwrap().split('\t').count(), 9);
    assert!(status[1].contains("TIME\t") && !status[1].contains('-'));

    let states = manager.ask("state on all", "END").await;
    assert!(states.iter().any(|line| line.contains(",CONNECTED,")));
    for state in states.iter().filter(|line| line.contains(",CONNECT")) {
        assert_eq!(state.split(',').count(), 5, "{state}");
    }
    daemon.restart(RestartSignal::Sigusr1).await.unwrap();
    assert!(manager.line().await.ends_with(",RECONNECTING,SIGUSR1,,"));

    for unknown in ["certificate", "pk-sig", "client-pending-auth 0 x"] {
        let answer = manager.ask(unknown, "ERROR").await;
        let expected = "ERROR: unknown command, enter 'help' for more options";
        assert_eq!(answer.last().unwrap(), expected);
    }
}

/// 2.7 counts by its own clock: a client that is silent is reported all the same, where earlier
/// versions wait for its next packet.
#[tokio::test]
async fn the_newest_counts_the_bytes_of_silent_clients() {
    let (_directory, daemon) = start(Version::V2_7).await;
    daemon.connect(ClientSpec::new("alice")).await.unwrap();
    let mut manager = Manager::connect(&daemon).await;
    manager.ask("bytecount 1", "SUCCESS").await;
    let first = manager.line().await;
    assert!(first.starts_with(">BYTECOUNT_CLI:0,"), "{first}");
    assert_eq!(manager.line().await, first);
}

/// Of two clients only the one of 2.7 can take in new options; a gateway has to see both ends.
#[tokio::test]
async fn updates_reach_clients_that_understand_them() {
    let (_directory, daemon) = start(Version::V2_7).await;
    let old = daemon.connect(ClientSpec::new("old")).await.unwrap();
    let new = ClientSpec::new("new").software("2.7.6", "linux");
    let new = daemon.connect(new).await.unwrap();
    let mut manager = Manager::connect(&daemon).await;
    for (command, expected) in [
        (
            format!("push-update-cid {old} \"dns x\""),
            "ERROR: no client updated",
        ),
        (
            format!("push-update-cid {new} \"dns x\""),
            "SUCCESS: push-update command succeeded",
        ),
        (
            "push-update-broad \"dns x\"".to_owned(),
            "SUCCESS: push-update command succeeded",
        ),
    ] {
        assert_eq!(
            manager.ask(&command, &expected[..5]).await.last().unwrap(),
            expected
        );
    }
}

/// Up to 2.5 `mute 2` lets two lines of a kind pass. Since then OpenVPN counts each line more than
/// once, which `a_muted_log` compares with a real one.
#[tokio::test]
async fn the_older_mute_what_they_are_told_to() {
    const NOTE: &str = "NOTE: --mute triggered...";
    const COMMAND: &str = "MANAGEMENT: CMD 'pid'";
    for (version, heard) in [
        (
            Version::V2_3,
            [Some(COMMAND), Some(COMMAND), Some(NOTE), None],
        ),
        (
            Version::V2_4,
            [Some(COMMAND), Some(COMMAND), Some(NOTE), None],
        ),
        (
            Version::V2_5,
            [Some(COMMAND), Some(COMMAND), Some(NOTE), None],
        ),
        (Version::V2_6, [Some(NOTE), None, None, None]),
        (Version::V2_7, [Some(NOTE), None, None, None]),
    ] {
        let (_directory, daemon) = start(version).await;
        let mut manager = Manager::connect(&daemon).await;
        manager.line().await;
        manager.ask("log on", "SUCCESS").await;
        manager.ask("mute 2", "SUCCESS").await;
        for expected in heard {
            let mut lines = manager.ask("pid", "SUCCESS: pid=").await;
            lines.pop();
            let texts = lines.iter().map(|line| line.splitn(3, ',').nth(2).unwrap());
            assert_eq!(
                texts.collect::<Vec<_>>(),
                Vec::from_iter(expected),
                "{version}"
            );
        }
    }
}
