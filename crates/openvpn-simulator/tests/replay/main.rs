//! Replays of what real daemons said, here of 2.6.14: the simulated daemon gets the same commands
//! and must give the same lines, but for times, numbers and certificates.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod compare;
mod lab;
mod manager;
mod parity;
mod people;
mod prompts;
mod real;
mod script;
mod setup;
mod stage;
mod versions;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use compare::{Comparison, normalise};
use manager::Manager;
use openvpn_simulator::{ClientMode, ClientSpec, Daemon, DaemonBuilder, Timing};
use script::play;

fn unix(name: &str) -> (tempfile::TempDir, DaemonBuilder) {
    let directory = tempfile::tempdir().unwrap();
    let path: PathBuf = directory.path().join("daemon.sock");
    let builder = Daemon::builder(name).unix(path).status_version(2);
    (directory, builder)
}

fn tcp(name: &str) -> DaemonBuilder {
    Daemon::builder(name)
        .tcp("127.0.0.1:0".parse().unwrap())
        .password("s3cret pass")
        .network(Ipv4Addr::new(10, 81, 0, 0), 24)
        .network_ipv6("fd00:81::".parse::<Ipv6Addr>().unwrap())
}

fn client(name: &str, real_address: &str) -> ClientSpec {
    ClientSpec::new(name).real_address(real_address.parse().unwrap())
}

async fn no_steps(_: &Daemon, step: &str) {
    panic!("unknown step {step}");
}

#[tokio::test]
async fn help() {
    let (_directory, builder) = unix("06");
    let daemon = builder.start().await.unwrap();
    let transcript = include_str!("transcripts/06-help.txt");
    play(&daemon, "06", transcript, Comparison::default(), no_steps).await;
}

#[tokio::test]
async fn harmless_commands() {
    let (_directory, builder) = unix("07");
    let daemon = builder
        .echo("server side echo text")
        .echo("forget-passwords")
        .start()
        .await
        .unwrap();
    let transcript = include_str!("transcripts/07-version-pid-misc.txt");
    play(&daemon, "07", transcript, Comparison::default(), no_steps).await;
}

#[tokio::test]
async fn malformed_lines() {
    let (_directory, builder) = unix("09");
    let daemon = builder.start().await.unwrap();
    let transcript = include_str!("transcripts/09-malformed.txt");
    play(&daemon, "09", transcript, Comparison::default(), no_steps).await;
}

#[tokio::test]
async fn long_lines() {
    let (_directory, builder) = unix("10");
    let daemon = builder.start().await.unwrap();
    let transcript = include_str!("transcripts/10-long-lines.txt");
    play(&daemon, "10", transcript, Comparison::default(), no_steps).await;
}

#[tokio::test]
async fn status_without_clients() {
    let (_directory, builder) = unix("11");
    let daemon = builder.start().await.unwrap();
    let transcript = include_str!("transcripts/11-status-0-clients.txt");
    play(&daemon, "11", transcript, Comparison::default(), no_steps).await;
}

#[tokio::test]
async fn state_history() {
    let daemon = tcp("14").start().await.unwrap();
    let transcript = include_str!("transcripts/14-state.txt");
    play(&daemon, "14", transcript, Comparison::default(), no_steps).await;
}

/// The whole log of a daemon from its start on, and the three ways to see it.
#[tokio::test]
async fn log_history() {
    let timing = Timing {
        keepalive: Duration::from_secs(2),
        ping_restart: Duration::from_secs(20),
        ..Timing::default()
    };
    let daemon = tcp("15").timing(timing).start().await.unwrap();
    for (name, address) in [
        ("alice", "10.250.7.2:35149"),
        ("carol", "127.0.0.1:46485"),
        ("bob", "127.0.0.1:39931"),
    ] {
        daemon.connect(client(name, address)).await.unwrap();
    }
    // The lines of the first data packets come a second later.
    let mut manager = Manager::connect(&daemon).await;
    manager.send(b"s3cret pass\nlog on all\n").await;
    let mut data_channels = 0;
    while data_channels < 3 {
        let line = manager.line().await.unwrap();
        data_channels += usize::from(line.contains("Protocol options"));
    }
    drop(manager);
    daemon.wait_detached().await;

    let transcript = include_str!("transcripts/15-log.txt");
    let comparison = Comparison {
        // What managers did is another story; handshakes run beside each other.
        noise: &["MANAGEMENT: C", "Max bcast/mcast queue length"],
        any_order: true,
    };
    play(&daemon, "15", transcript, comparison, no_steps).await;
}

/// Kills by CID: who comes back, when, with which CID, addresses and peer ID, and what the log
/// says to it.
#[tokio::test]
async fn kill_by_cid() {
    let timing = Timing {
        // Shorter than the real ones, in the same order.
        return_after_kill: Duration::from_millis(100),
        delayed_exit: Duration::from_secs(1),
        keepalive: Duration::from_secs(2),
        ping_restart: Duration::from_secs(6),
        ..Timing::default()
    };
    let daemon = tcp("18").timing(timing).start().await.unwrap();
    let carol = client("carol", "127.0.0.1:38712").exit_notify();
    daemon.connect(carol).await.unwrap();
    for (name, address) in [("bob", "127.0.0.1:34931"), ("alice", "10.250.7.2:38396")] {
        daemon.connect(client(name, address)).await.unwrap();
    }
    // The lines of the first data packets come a second later, and are not part of it.
    let mut manager = Manager::connect(&daemon).await;
    manager.send(b"s3cret pass\nlog on all\n").await;
    let mut data_channels = 0;
    while data_channels < 3 {
        let line = manager.line().await.unwrap();
        data_channels += usize::from(line.contains("Protocol options"));
    }
    drop(manager);
    daemon.wait_detached().await;
    let transcript = include_str!("transcripts/18-client-kill.txt");
    let comparison = Comparison {
        noise: &["Max bcast/mcast queue length", "ECONNREFUSED"],
        ..Comparison::default()
    };
    play(&daemon, "18", transcript, comparison, no_steps).await;
}

#[tokio::test]
async fn client_auth() {
    let (_directory, builder) = unix("30");
    let daemon = builder
        .network(Ipv4Addr::new(10, 83, 0, 0), 24)
        .network_ipv6("fd00:83::".parse::<Ipv6Addr>().unwrap())
        .client_auth()
        .start()
        .await
        .unwrap();
    let transcript = include_str!("transcripts/30-client-auth-approve.txt");
    let comparison = Comparison {
        noise: &["Max bcast/mcast queue length"],
        ..Comparison::default()
    };
    play(&daemon, "30", transcript, comparison, async |daemon, _| {
        let mut alice = client("alice", "127.0.0.1:59207").username("user, \"name\"x");
        alice.password = Some(b"pass word".to_vec());
        daemon.connect(alice).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn hold() {
    let (_directory, builder) = unix("40");
    let daemon = builder
        .network(Ipv4Addr::new(10, 84, 0, 0), 24)
        .hold()
        .start()
        .await
        .unwrap();
    let transcript = include_str!("transcripts/40-hold.txt");
    play(&daemon, "40", transcript, Comparison::default(), no_steps).await;
    daemon.wait_stopped().await;
}

#[tokio::test]
async fn signals() {
    let (_directory, builder) = unix("41");
    let timing = Timing {
        keepalive: Duration::from_secs(2),
        ping_restart: Duration::from_secs(6),
        ..Timing::default()
    };
    let daemon = builder
        .network(Ipv4Addr::new(10, 85, 0, 0), 24)
        .network_ipv6("fd00:85::".parse::<Ipv6Addr>().unwrap())
        .timing(timing)
        .start()
        .await
        .unwrap();
    daemon
        .connect(client("alice", "127.0.0.1:56003").stays_away())
        .await
        .unwrap();
    let transcript = include_str!("transcripts/41-signals.txt");
    let comparison = Comparison {
        noise: &[">BYTECOUNT_CLI"],
        ..Comparison::default()
    };
    play(
        &daemon,
        "41",
        transcript,
        comparison,
        async |daemon, step| {
            assert_eq!(step, "connect alice");
            let alice = client("alice", "127.0.0.1:34455");
            daemon.connect(alice).await.unwrap();
        },
    )
    .await;
    daemon.wait_stopped().await;
}

#[tokio::test]
async fn signals_pipelined() {
    let (_directory, builder) = unix("42");
    let daemon = builder
        .network(Ipv4Addr::new(10, 85, 0, 0), 24)
        .start()
        .await
        .unwrap();
    let transcript = include_str!("transcripts/42-signal-pipelined.txt");
    play(
        &daemon,
        "42",
        transcript,
        Comparison::default(),
        async |daemon, step| {
            assert_eq!(step, "stop");
            daemon.stop().await;
        },
    )
    .await;
}

#[tokio::test]
async fn private_key_password_interrupted() {
    let (_directory, builder) = unix("60");
    let daemon = builder.private_key_password("keypw").start().await.unwrap();
    let transcript = include_str!("transcripts/60-server-private-key-password.txt");
    play(&daemon, "60", transcript, Comparison::default(), no_steps).await;
    daemon.wait_stopped().await;
}

#[tokio::test]
async fn private_key_password() {
    let (_directory, builder) = unix("61");
    let daemon = builder
        .network(Ipv4Addr::new(10, 93, 0, 0), 24)
        .private_key_password("keypw")
        .start()
        .await
        .unwrap();
    let transcript = include_str!("transcripts/61-server-private-key-ok.txt");
    let comparison = Comparison {
        noise: &["this configuration may cache passwords", "net_route_v4"],
        ..Comparison::default()
    };
    play(&daemon, "61", transcript, comparison, no_steps).await;
    daemon.wait_stopped().await;
}

/// An OpenVPN client that is held, asks for credentials with a static challenge and for a
/// remote, is set a dynamic challenge, and dies of a signal while it asks.
#[tokio::test]
async fn client_prompts() {
    let (_directory, builder) = unix("63");
    let client = ClientMode::new()
        .remote("127.0.0.1", 21222, "udp4")
        .remote("127.0.0.1", 21223, "udp4")
        .query_remote()
        .credentials("us er", "SCRV1:cHc=:MTIzNA==")
        .static_challenge("1,Enter PIN, please")
        .dynamic_challenge(
            "R,E:state42:dXMgZXI=:Second factor",
            "CRV1::state42::8675309",
        );
    let daemon = builder.client(client).hold().start().await.unwrap();
    let transcript = include_str!("transcripts/63-client-prompts.txt");
    play(&daemon, "63", transcript, Comparison::default(), no_steps).await;
    daemon.wait_stopped().await;
}

/// What a connected OpenVPN client has and has not.
#[tokio::test]
async fn client_connected() {
    let (_directory, builder) = unix("32");
    let client = ClientMode::new().remote("127.0.0.1", 21196, "udp4");
    let daemon = builder
        .network(Ipv4Addr::new(10, 83, 0, 0), 24)
        .network_ipv6("fd00:83::".parse::<Ipv6Addr>().unwrap())
        .client(client)
        .start()
        .await
        .unwrap();
    let transcript = include_str!("transcripts/32-client-connected.txt");
    let comparison = Comparison {
        noise: &[">BYTECOUNT:", "ASSIGN_IP"],
        ..Comparison::default()
    };
    play(&daemon, "32", transcript, comparison, no_steps).await;
}

/// A comparison that forgives too much would let every replay pass.
#[test]
fn only_times_numbers_and_certificates_are_forgiven() {
    for (line, other) in [
        ("SUCCESS: pid=26626", "SUCCESS: pid=1234"),
        ("Updated,2026-11-20 14:58:23", "Updated,2027-01-02 03:04:05"),
        (">CLIENT:ENV,tls_serial_0=5", ">CLIENT:ENV,tls_serial_0=7"),
        (
            "Updated,Fri Nov 20 16:25:43 2026",
            "Updated,Sat Dec  5 01:02:03 2026",
        ),
    ] {
        assert_eq!(normalise(line), normalise(other));
    }
    for (line, other) in [
        ("SUCCESS: hold=0", "SUCCESS: hold=1"),
        (">CLIENT:ESTABLISHED,1", ">CLIENT:ESTABLISHED,2"),
        ("10.81.0.2,alice", "10.81.0.3,alice"),
        (">CLIENT:ENV,n_clients=2", ">CLIENT:ENV,n_clients=3"),
        (
            "Updated,Fri Nov 20 16:25:43 2026",
            "Updated,2026-11-20 16:25:43",
        ),
    ] {
        assert_ne!(normalise(line), normalise(other));
    }
}
