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

use compare::{Comparison, normalise};
use openvpn_simulator::{ClientMode, ClientSpec, Daemon, DaemonBuilder};
use script::play;

fn unix(name: &str) -> (tempfile::TempDir, DaemonBuilder) {
    let directory = tempfile::tempdir().unwrap();
    let path: PathBuf = directory.path().join("daemon.sock");
    let builder = Daemon::builder(name).unix(path).status_version(2);
    (directory, builder)
}

fn client(name: &str, real_address: &str) -> ClientSpec {
    ClientSpec::new(name).real_address(real_address.parse().unwrap())
}

async fn no_steps(_: &Daemon, step: &str) {
    panic!("unknown step {step}");
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
