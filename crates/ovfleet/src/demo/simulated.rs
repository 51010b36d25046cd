//! Simulated daemons, with a crowd that comes and goes.

use std::path::Path;

use anyhow::{Context as _, Result};
use openvpn_simulator::{Daemon, Population};

use super::member::{Member, write_private};

/// Name, region and protocol of each daemon.
const DAEMONS: [(&str, &str, &str); 6] = [
    ("fra-udp-1", "eu", "udp"),
    ("fra-tcp-1", "eu", "tcp"),
    ("ams-udp-1", "eu", "udp"),
    ("nyc-udp-1", "us", "udp"),
    ("nyc-tcp-1", "us", "tcp"),
    ("sin-udp-1", "ap", "udp"),
];
/// The one that lets a name in twice.
const LENIENT: &str = "nyc-tcp-1";
/// About how many clients are there at a time.
const CLIENTS: usize = 40;
/// About how many things happen in a second.
const RATE: f64 = 2.0;
const PASSWORD: &str = "demo";

/// Starts the daemons, listening in `dir` or on loopback, some behind a
/// password; their crowd waits until it is run.
pub(crate) async fn start(dir: &Path) -> Result<(Vec<Member>, Population)> {
    let password_file = dir.join("password");
    write_private(&password_file, &format!("{PASSWORD}\n"))?;
    let (mut members, mut daemons) = (Vec::new(), Vec::new());
    for (number, (name, region, proto)) in (0u8..).zip(DAEMONS) {
        let builder = Daemon::builder(name)
            .seed(number.into())
            .network([10, 8 + number, 0, 0].into(), 16);
        // What one meets in the field: sockets and ports, with and without
        // passwords.
        let (builder, has_password) = match proto {
            "tcp" => (
                builder.tcp(([127, 0, 0, 1], 0).into()).password(PASSWORD),
                true,
            ),
            _ => (builder.unix(dir.join(format!("{name}.sock"))), false),
        };
        let builder = match name {
            LENIENT => builder.duplicate_cn(),
            _ => builder,
        };
        let daemon = builder
            .start()
            .await
            .with_context(|| format!("cannot start the simulated daemon {name}"))?;
        members.push(Member {
            name: name.to_owned(),
            address: daemon.address().to_string(),
            password_file: has_password.then(|| password_file.clone()),
            region,
            proto,
        });
        daemons.push(daemon);
    }
    let seed = getrandom::u64().context("no random number for the crowd")?;
    Ok((
        members,
        Population::new(daemons, seed).clients(CLIENTS).rate(RATE),
    ))
}
