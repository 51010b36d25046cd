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

use std::path::PathBuf;

use compare::normalise;
use openvpn_simulator::{Daemon, DaemonBuilder};

fn unix(name: &str) -> (tempfile::TempDir, DaemonBuilder) {
    let directory = tempfile::tempdir().unwrap();
    let path: PathBuf = directory.path().join("daemon.sock");
    let builder = Daemon::builder(name).unix(path).status_version(2);
    (directory, builder)
}

async fn no_steps(_: &Daemon, step: &str) {
    panic!("unknown step {step}");
}

/// A comparison that forgives too much would let every replay pass.
#[test]
fn only_times_numbers_and_certificates_are_forgiven() {
    for (line, other) in [
        ("SUCCESS: pid=26626", "SUCCESS: pid=12"),
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
