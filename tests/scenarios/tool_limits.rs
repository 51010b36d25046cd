//! Virtual management sockets on a real daemon: what tools cost, and what is told of it.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use ovfleet_tests::{Api, Client, Gateway, GatewayConfig, InstanceConfig, Server, poll_until};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
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
