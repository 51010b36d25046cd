//! Callers in other languages, with nothing but `proto/` and the stock tools: the
//! scripts of `tests/python` and `tests/node`, and the examples of the README.
//!
//! Their packages are installed by `make test`, or `make setup`.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use ovfleet_proto::v1::ClientFilter;
use ovfleet_tests::{Api, Client, Gateway, GatewayConfig, Server, TcpListener, poll_until};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};

/// Starting an interpreter, making stubs, a kill and its confirmation.
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(60);
/// A client connects in a second and is kicked at once.
const KICK_TIMEOUT: Duration = Duration::from_secs(5);
/// A client is known as soon as its daemon says so; this covers a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// Two daemons with three clients, and a gateway in front that also listens on TCP.
struct Fleet {
    servers: [Server; 2],
    clients: Vec<Client>,
    gateway: Gateway,
    tcp: String,
}

impl Fleet {
    async fn start() -> Result<Self> {
        let servers = [
            Server::builder("eu1").start().await?,
            Server::builder("eu2").start().await?,
        ];
        let mut clients = Vec::new();
        for (server, name) in [
            (&servers[0], "alice"),
            (&servers[0], "bob"),
            (&servers[1], "alice"),
        ] {
            clients.push(Client::builder(server, name).connect().await?);
        }
        let config = GatewayConfig::of(&servers).listen_tcp(TcpListener::Control);
        let gateway = config.start().await?;
        let mut api = Api::connect(&gateway).await?;
        api.wait_attached().await?;
        api.wait_clients(ClientFilter::default(), 3, SOON).await?;
        let tcp = gateway.tcp_address();
        Ok(Self {
            servers,
            clients,
            gateway,
            tcp,
        })
    }

    fn unix(&self) -> String {
        format!("unix:{}", self.gateway.socket())
    }

    /// Runs a script that expects these three clients, kills the alices and ends with 0.
    async fn drive(&self, mut script: Command, gateway: &str) -> Result<()> {
        script.args(["--gateway", gateway, "--kill", "alice"]);
        for client in &self.clients {
            script.args(["--expect", client.common_name()]);
        }
        let output = tokio::time::timeout(SCRIPT_TIMEOUT, script.output())
            .await
            .with_context(|| format!("{script:?} did not end"))??;
        ensure!(
            output.status.success(),
            "{script:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        // The alices were told to connect again: they do.
        let mut api = Api::connect(&self.gateway).await?;
        api.wait_clients(ClientFilter::default(), self.clients.len(), SOON)
            .await?;
        Ok(())
    }

    /// Runs an example against `mallory`, who connects and has to stay out.
    async fn watch_and_kick(&self, mut example: Command) -> Result<()> {
        let mut watcher = example.args([&self.tcp, "mallory"]).spawn()?;
        // Whoever connects before the example watches stays: then the next one tries.
        poll_until("mallory to be kicked", SCRIPT_TIMEOUT, async || {
            if let Some(status) = watcher.try_wait()? {
                bail!("{example:?} ended ({status})");
            }
            let mut mallory = Client::builder(&self.servers[1], "mallory").start()?;
            Ok(mallory.wait_ended(KICK_TIMEOUT).await.ok())
        })
        .await?;
        let said = BufReader::new(watcher.stdout.take().context("no output")?);
        let said = tokio::time::timeout(SOON, said.lines().next_line()).await??;
        said.context("the example kicked in silence").map(drop)
    }
}

/// A file of this repository.
fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// `program` with a script, at the top of the repository; it ends with the test. What
/// `make setup` installs is named by its path.
pub(crate) fn command(program: &str, arguments: &[&str]) -> Result<Command> {
    let needed = [&[program], arguments].concat();
    for path in needed.iter().filter(|argument| argument.contains('/')) {
        ensure!(
            file(path).exists(),
            "{path} is missing: run `make setup` first, or `make test`, which does",
        );
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--", program])
        .args(arguments);
    command.current_dir(file(".")).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    Ok(command)
}

pub(crate) const PYTHON: &str = "tests/python/.venv/bin/python";
const TSX: &str = "./examples/typescript/node_modules/tsx/dist/loader.mjs";

/// If the contract could not be used with the stock tools, or the gateway spoke a gRPC
/// that only its own library understands, every caller that is not Rust would be shut out.
#[tokio::test]
async fn python_lists_streams_and_kills() -> Result<()> {
    let fleet = Fleet::start().await?;
    for gateway in [fleet.unix(), fleet.tcp.clone()] {
        fleet
            .drive(command(PYTHON, &["tests/python/scenario.py"])?, &gateway)
            .await?;
    }
    Ok(())
}

/// The same, for a library that shares no code with the one of Python.
#[tokio::test]
async fn javascript_lists_streams_and_kills() -> Result<()> {
    let fleet = Fleet::start().await?;
    for gateway in [fleet.unix(), fleet.tcp.clone()] {
        fleet
            .drive(command("node", &["tests/node/scenario.mjs"])?, &gateway)
            .await?;
    }
    Ok(())
}

/// An example of the README that does not work costs its reader the first hour.
#[tokio::test]
async fn the_examples_of_the_readme_watch_and_kick() -> Result<()> {
    let fleet = Fleet::start().await?;
    let stubs = tempfile::tempdir()?;
    let out = stubs.path().display();
    let mut protoc = command(PYTHON, &["-m", "grpc_tools.protoc", "-Iproto"])?;
    protoc
        .arg(format!("--python_out={out}"))
        .arg(format!("--grpc_python_out={out}"));
    for entry in std::fs::read_dir(file("proto/ovfleet/v1"))? {
        protoc.arg(Path::new("proto/ovfleet/v1").join(entry?.file_name()));
    }
    ensure!(
        protoc.status().await?.success(),
        "no stubs could be made of proto/"
    );

    let mut python = command(PYTHON, &["examples/python/watch_and_kick.py"])?;
    python.env("PYTHONPATH", stubs.path());
    fleet.watch_and_kick(python).await?;
    let script = "examples/typescript/watch_and_kick.ts";
    let typescript = command("node", &["--import", TSX, script])?;
    fleet.watch_and_kick(typescript).await
}
