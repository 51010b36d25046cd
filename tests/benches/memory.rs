//! What an idle session and a row of a client table keep in memory.

use std::time::Duration;

use anyhow::Result;
use openvpn_simulator::{ClientSpec, Daemon};
use ovfleet_tests::{Gateway, GatewayConfig, poll_until};

use crate::{fleet, measure::resident_memory};

const SESSIONS: usize = 1_000;
/// Daemons for the rows.
const DAEMONS: usize = 20;
const CLIENTS_PER_DAEMON: usize = 5_000;
/// The least that a journal may have. It fills with either fleet, so that what it holds
/// counts for next to nothing.
const JOURNAL: &str = "1MiB";
/// How often whole tables are asked for while rows are measured.
const STATUS_INTERVAL: &str = "3s";
/// A probe is sent every 10 s, give or take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(30);
const TABLES_TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) async fn run() -> Result<()> {
    println!("resident memory of the gateway, journal of {JOURNAL}");
    println!("{:<58}{:>9}{:>12}{:>12}", "", "MiB", "of each", "bytes");
    sessions().await?;
    rows().await?;
    println!();
    Ok(())
}

/// A thousand idle daemons, beside one.
async fn sessions() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let daemons = fleet::start_daemons(directory.path(), 1 + SESSIONS + 1).await?;
    let (one, many) = daemons.split_at(1);
    let one_gateway = start(fleet::config(one)).await?;
    let many_gateway = start(fleet::config(many)).await?;
    fleet::wait_attached(&one_gateway, one.len(), 0).await?;
    fleet::wait_attached(&many_gateway, many.len(), 0).await?;
    poll_until("every session to be probed", PROBE_TIMEOUT, async || {
        // One is part of attaching.
        Ok(daemons
            .iter()
            .all(|daemon| probes(daemon) >= 2)
            .then_some(()))
    })
    .await?;
    let one = resident_memory(one_gateway.pid()).await?;
    print("1 session", one, None);
    let many = resident_memory(many_gateway.pid()).await?;
    let name = format!("{SESSIONS} more sessions, idle");
    print(&name, many, Some((one, SESSIONS)));
    Ok(())
}

/// A hundred thousand clients, first as they connect, then as a table read at the start.
async fn rows() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let daemons = fleet::start_daemons(directory.path(), DAEMONS).await?;
    let rows = DAEMONS * CLIENTS_PER_DAEMON;

    let config = || fleet::config(&daemons).set("defaults", status_interval());
    let gateway = start(config()).await?;
    fleet::wait_attached(&gateway, DAEMONS, 0).await?;
    wait_tables(&daemons).await?;
    let empty = resident_memory(gateway.pid()).await?;
    print(&format!("{DAEMONS} sessions without clients"), empty, None);

    for daemon in &daemons {
        for number in 0..CLIENTS_PER_DAEMON {
            let name = format!("client-{number:05}.example.org");
            daemon.connect(ClientSpec::new(name)).await?;
        }
    }
    fleet::wait_attached(&gateway, DAEMONS, rows as u64).await?;
    wait_tables(&daemons).await?;
    let connected = resident_memory(gateway.pid()).await?;
    print(
        &format!("{rows} clients that it saw connect"),
        connected,
        Some((empty, rows)),
    );
    drop(gateway);

    let name = format!("{rows} clients that were there before it");
    let read = memory_of_rows(config(), &daemons).await?;
    print(&name, read, Some((empty, rows)));
    Ok(())
}

/// Memory of a gateway that finds these daemons with all their clients.
async fn memory_of_rows(config: GatewayConfig, daemons: &[Daemon]) -> Result<u64> {
    let gateway = start(config).await?;
    let rows = DAEMONS * CLIENTS_PER_DAEMON;
    fleet::wait_attached(&gateway, DAEMONS, rows as u64).await?;
    wait_tables(daemons).await?;
    resident_memory(gateway.pid()).await
}

async fn start(config: GatewayConfig) -> Result<Gateway> {
    let mut journal = toml::Table::new();
    journal.insert("memory".to_owned(), JOURNAL.into());
    config.set("journal", journal).start().await
}

fn status_interval() -> toml::Table {
    let mut defaults = toml::Table::new();
    defaults.insert("status_interval".to_owned(), STATUS_INTERVAL.into());
    defaults
}

/// Waits until every daemon's table was asked for twice more: what reading it takes for a
/// while is then part of the figure.
async fn wait_tables(daemons: &[Daemon]) -> Result<()> {
    let before: Vec<usize> = daemons.iter().map(tables).collect();
    poll_until("tables to be read again", TABLES_TIMEOUT, async || {
        let mut tables_now = daemons.iter().map(tables).zip(&before);
        Ok(tables_now
            .all(|(now, before)| now >= before + 3)
            .then_some(()))
    })
    .await
}

fn probes(daemon: &Daemon) -> usize {
    fleet::times_sent(daemon, b"load-stats")
}

fn tables(daemon: &Daemon) -> usize {
    fleet::times_sent(daemon, b"status")
}

fn print(name: &str, bytes: u64, of: Option<(u64, usize)>) {
    let mib = bytes as f64 / f64::from(1 << 20);
    match of {
        None => println!("{name:<58}{mib:>9.1}"),
        Some((base, count)) => {
            let each = bytes.saturating_sub(base) as f64 / count as f64;
            println!("{name:<58}{mib:>9.1}{count:>12}{each:>12.0}");
        }
    }
}
