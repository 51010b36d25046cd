//! Virtual management sockets on a real daemon: what tools cost, and what is told of it.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use ovfleet_tests::{Api, Client, Gateway, GatewayConfig, InstanceConfig, Server, poll_until};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    time::timeout,
};

const DEADLINE: Duration = Duration::from_secs(20);

/// A tool on a virtual socket.
pub(crate) struct Tool(BufReader<UnixStream>);

impl Tool {
    /// One that was greeted.
    pub(crate) async fn open(path: &Path) -> Result<Self> {
        let stream = poll_until("the virtual socket", DEADLINE, async || {
            Ok(UnixStream::connect(path).await.ok())
        });
        let mut tool = Self(BufReader::new(stream.await?));
        ensure!(tool.line().await?.starts_with(">INFO:"));
        Ok(tool)
    }

    pub(crate) async fn say(&mut self, text: &str) -> Result<()> {
        Ok(self.0.get_mut().write_all(text.as_bytes()).await?)
    }

    pub(crate) async fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        timeout(DEADLINE, self.0.read_until(b'\n', &mut line)).await??;
        let line = line.strip_suffix(b"\r\n").context("cut")?;
        Ok(String::from_utf8_lossy(line).into_owned())
    }

    pub(crate) async fn ask(&mut self, command: &str) -> Result<String> {
        self.say(&format!("{command}\n")).await?;
        self.line().await
    }
}

/// A gateway before `server` with a virtual socket at `mux`.
async fn gateway(server: &Server, policy: &str, directory: &TempDir) -> Result<Gateway> {
    let mut socket = toml::Table::new();
    let address = format!("unix:{}/mux", directory.path().display());
    socket.insert("address".to_owned(), address.into());
    socket.insert("policy".to_owned(), policy.into());
    let instance = InstanceConfig::of(server).set("mux", socket);
    let gateway = GatewayConfig::new().instance(instance).start().await?;
    Api::connect(&gateway).await?.wait_attached().await?;
    Ok(gateway)
}

/// The value of a series of `/metrics`.
async fn figure(gateway: &Gateway, series: &str) -> Result<Option<u64>> {
    let (_, metrics) = gateway.http_get("/metrics").await?;
    let value = metrics
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    Ok(value.map(str::parse).transpose()?)
}

/// Whoever is to see that tools fight for a daemon, or are turned away, looks here; of people nothing is told.
#[tokio::test]
async fn metrics_tell_of_tools_and_not_of_people() -> Result<()> {
    let server = Server::builder("eu1").start().await?;
    let _alice = Client::builder(&server, "alice").connect().await?;
    let directory = tempfile::tempdir()?;
    let gateway = gateway(&server, "read-only", &directory).await?;
    let path = directory.path().join("mux");
    let mut first = Tool::open(&path).await?;
    let mut second = Tool::open(&path).await?;
    let tools = "ovfleet_mux_tools{instance=\"eu1\"}";
    let is = async |series: &str, value: u64| {
        poll_until(series, DEADLINE, async || {
            Ok((figure(&gateway, series).await? == Some(value)).then_some(()))
        })
        .await
    };
    is(tools, 2).await?;
    for command in ["pid", "verb", "kill alice", "state on", "nonsense alice"] {
        first.ask(command).await?;
    }
    second.ask("pid").await?;
    is("ovfleet_mux_commands_total{verdict=\"ran\"}", 3).await?;
    is("ovfleet_mux_commands_total{verdict=\"coalesced\"}", 0).await?;
    is("ovfleet_mux_commands_total{verdict=\"answered\"}", 2).await?;
    is("ovfleet_mux_commands_total{verdict=\"refused\"}", 1).await?;
    drop(second);
    is(tools, 1).await?;
    is("ovfleet_mux_tools_gone_total{reason=\"itself\"}", 1).await?;
    is("ovfleet_mux_tools_gone_total{reason=\"unread\"}", 0).await?;
    let (_, metrics) = gateway.http_get("/metrics").await?;
    ensure!(!metrics.contains("alice") && !metrics.contains("nonsense"));
    Ok(())
}

/// Bytes of noise: more than the kernel holds for a tool that does not read, and the gateway.
const NOISE_BYTES: usize = 3 << 20;
/// Commands of one write: their answers fit what the kernel holds.
const AT_ONCE: usize = 20;
/// A page of memory on x86-64; where it is larger, so is what is measured.
const PAGE_BYTES: u64 = 4_096;
/// What the daemon's memory may change by.
const DAEMON_BYTES_MAX: u64 = 1 << 20;

/// A tool that fell asleep must cost neither its daemon memory nor another tool a line.
#[tokio::test]
async fn a_tool_that_does_not_read_is_cut_and_costs_nobody_anything() -> Result<()> {
    let server = Server::builder("eu1").option("verb 4").start().await?;
    let directory = tempfile::tempdir()?;
    let gateway = gateway(&server, "operator", &directory).await?;
    let path = directory.path().join("mux");
    let mut noisy = Tool::open(&path).await?;
    // The history that the daemon keeps is full before its memory is looked at.
    noise(&mut noisy, "warm", 400).await?;
    let mut deaf = Tool::open(&path).await?;
    let on = deaf.ask("log on").await?;
    ensure!(
        on == "SUCCESS: real-time log notification set to ON",
        "{on}"
    );
    let mut readers = Vec::new();
    for _ in 0..2 {
        let mut reader = Tool::open(&path).await?;
        reader.ask("log on").await?;
        readers.push(tokio::spawn(async move {
            let mut lines = Vec::new();
            loop {
                let line = reader.line().await?;
                if line.contains("CMD 'kill end'") {
                    return anyhow::Ok(lines);
                }
                lines.extend(noise_in(&line));
            }
        }));
    }
    let (before, mut highest) = (resident(&server)?, 0);
    let mut made = 0;
    for batch in 0.. {
        made += noise(&mut noisy, &format!("b{batch}"), AT_ONCE).await?;
        highest = highest.max(resident(&server)?);
        if made > NOISE_BYTES {
            break;
        }
    }
    let grown = highest.saturating_sub(before);
    println!("{made} bytes of log, the daemon grew by {grown} bytes");
    ensure!(grown <= DAEMON_BYTES_MAX, "{before} to {highest}");
    noisy.ask("kill end").await?;

    // What they read is what the daemon logged, line by line.
    let log = server.log_lines();
    let logged: Vec<String> = log
        .iter()
        .filter_map(|line| noise_in(&String::from_utf8_lossy(&line.text)))
        .filter(|line| !line.starts_with("warm"))
        .collect();
    ensure!(logged.len() * 700 > NOISE_BYTES, "{}", logged.len());
    for reader in readers {
        let read = reader.await??;
        let lost = logged
            .iter()
            .zip(&read)
            .find(|(logged, read)| logged != read);
        ensure!(lost.is_none() && read.len() == logged.len(), "{lost:?}");
    }
    // It gets what the kernel held for it, and the end.
    let unread = "ovfleet_mux_tools_gone_total{reason=\"unread\"}";
    poll_until("the end of it", DEADLINE, async || {
        Ok((figure(&gateway, unread).await? == Some(1)).then_some(()))
    })
    .await?;
    let mut rest = Vec::new();
    timeout(DEADLINE, deaf.0.read_to_end(&mut rest)).await??;
    ensure!(rest.len() < NOISE_BYTES / 2, "{}", rest.len());
    Ok(())
}

/// Gives that many commands at once that do nothing but show in the daemon's log, each by its name; how many bytes that
/// took there.
async fn noise(tool: &mut Tool, name: &str, count: usize) -> Result<usize> {
    // No longer than what OpenVPN takes where more follows in one write: 768 bytes.
    let filler = ["x".repeat(220), "y".repeat(220), "w".repeat(220)].join(" ");
    let mut made = 0;
    for first in (0..count).step_by(AT_ONCE) {
        let commands: String = (first..(first + AT_ONCE).min(count))
            .map(|number| format!("kill {name}.{number} {filler}\n"))
            .collect();
        made += commands.len();
        tool.say(&commands).await?;
        for _ in commands.lines() {
            let refused = tool.line().await?;
            ensure!(refused.starts_with("ERROR: common name"), "{refused}");
        }
    }
    Ok(made)
}

/// The name of the noise that a line of the log shows.
fn noise_in(line: &str) -> Option<String> {
    let (_, command) = line.split_once("MANAGEMENT: CMD 'kill ")?;
    let (name, filler) = command.split_once(' ')?;
    // Whole.
    filler.ends_with("w'").then(|| name.to_owned())
}

/// What the daemon holds in memory, in bytes.
fn resident(server: &Server) -> Result<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{}/statm", server.pid()))?;
    let pages: u64 = statm.split(' ').nth(1).context("no figure")?.parse()?;
    Ok(pages * PAGE_BYTES)
}
