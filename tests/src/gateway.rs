//! The gateway under test, as its users run it: a process with a configuration file.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use command_fds::{CommandFdExt as _, FdMapping};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    claim::Claim,
    directory::new_directory,
    disk::Disk,
    pki::{Authority, Leaf},
    poll::poll_until,
    process::{Process, Signal, mortal},
    server::{Server, write_private},
};

/// Reading a configuration and opening a socket: this is generous.
const READY_TIMEOUT: Duration = Duration::from_secs(15);
/// The gateway drains for up to 10 s and ends at 30 s whatever happens.
const STOP_TIMEOUT: Duration = Duration::from_secs(31);
/// No command of the command line takes longer in a scenario.
const CLI_TIMEOUT: Duration = Duration::from_secs(60);

/// One `[[instance]]` of the configuration.
#[derive(Clone, Debug)]
pub struct InstanceConfig(toml::Table);

/// A TCP listener for gRPC beside the Unix socket; see [`GatewayConfig::listen_tcp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpListener {
    /// In plain text, for reads only.
    ReadOnly,
    /// In plain text, for everything.
    Control,
    /// With TLS and client certificates, see [`Gateway::tls`].
    Tls,
}

/// Paths of PEM files with which a caller is let in.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The authority of both sides.
    pub ca: String,
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

/// The configuration of a gateway; its Unix socket and HTTP port are added at start.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    root: toml::Table,
    instances: Vec<InstanceConfig>,
    tcp: Option<TcpListener>,
    grpc: Vec<toml::Value>,
    http: Vec<toml::Value>,
    launch: Launch,
}

/// How the process is started, each time.
#[derive(Clone, Debug, Default)]
struct Launch {
    /// The release build.
    optimized: bool,
    /// What it sees beside what everybody does.
    disk: Option<Arc<Disk>>,
    /// The limit of open files.
    open_files: Option<u64>,
    /// Listening sockets that are handed down, and their names.
    sockets: Vec<(String, Arc<OwnedFd>)>,
    /// Options of `serve`, behind `--config`.
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

/// A running `ovfleet serve`.
#[derive(Debug)]
pub struct Gateway {
    process: Process,
    directory: TempDir,
    claim: Claim,
    launch: Launch,
}

/// What a run of the command line gave.
#[derive(Clone, Debug)]
pub struct CliOutput {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl TlsFiles {
    /// Writes `leaf`, and the authority of this test process, into `directory`.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn write(directory: &Path, name: &str, leaf: &Leaf) -> Result<Self> {
        let files = Self::of(directory, name);
        write_private(files.ca.as_ref(), Authority::get()?.certificate())?;
        write_private(files.certificate.as_ref(), &leaf.certificate)?;
        write_private(files.key.as_ref(), &leaf.key)?;
        Ok(files)
    }

    fn of(directory: &Path, name: &str) -> Self {
        let path = |file: &str| directory.join(file).display().to_string();
        Self {
            ca: path("ca.crt"),
            certificate: path(&format!("{name}.crt")),
            key: path(&format!("{name}.key")),
        }
    }

    /// The table of a listener with this certificate, for callers of the same authority.
    #[must_use]
    pub fn listener(&self) -> toml::Table {
        let files = [
            ("cert", &self.certificate),
            ("key", &self.key),
            ("client_ca", &self.ca),
        ];
        let entry = |(key, path): (&str, &String)| (key.to_owned(), path.clone().into());
        files.into_iter().map(entry).collect()
    }
}

impl InstanceConfig {
    /// An instance at any address.
    #[must_use]
    pub fn new(name: &str, address: &str) -> Self {
        let mut table = toml::Table::new();
        table.insert("name".to_owned(), name.into());
        table.insert("address".to_owned(), address.into());
        Self(table)
    }

    /// The instance that `server` is, with its password.
    #[must_use]
    pub fn of(server: &Server) -> Self {
        Self::at(server, &server.address())
    }

    /// The same, reached at another address: through a tap.
    #[must_use]
    pub fn at(server: &Server, address: &str) -> Self {
        let instance = Self::new(server.name(), address);
        match server.password_file() {
            Some(file) => instance.set("password_file", file.display().to_string()),
            None => instance,
        }
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        let labels = self
            .0
            .entry("labels")
            .or_insert_with(|| toml::Table::new().into());
        if let toml::Value::Table(labels) = labels {
            labels.insert(key.to_owned(), value.into());
        }
        self
    }

    /// Sets any other key.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl Into<toml::Value>) -> Self {
        self.0.insert(key.to_owned(), value.into());
        self
    }
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl GatewayConfig {
    /// A gateway called `lab` without instances.
    #[must_use]
    pub fn new() -> Self {
        let mut root = toml::Table::new();
        root.insert("name".to_owned(), "lab".into());
        Self {
            root,
            instances: Vec::new(),
            tcp: None,
            grpc: Vec::new(),
            http: Vec::new(),
            launch: Launch::default(),
        }
    }

    /// A gateway with one instance per server.
    #[must_use]
    pub fn of<'a>(servers: impl IntoIterator<Item = &'a Server>) -> Self {
        servers.into_iter().fold(Self::new(), |config, server| {
            config.instance(InstanceConfig::of(server))
        })
    }

    /// Adds an instance.
    #[must_use]
    pub fn instance(mut self, instance: InstanceConfig) -> Self {
        self.instances.push(instance);
        self
    }

    /// Sets any key of the root, a whole table for instance.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl Into<toml::Value>) -> Self {
        self.root.insert(key.to_owned(), value.into());
        self
    }

    /// Sets a variable of the process' environment.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        let variable = (name.to_owned(), value.to_owned());
        self.launch.environment.push(variable);
        self
    }

    /// Takes the release build, which is to be there, whatever these tests are: for what is measured.
    #[must_use]
    pub fn optimized(mut self) -> Self {
        self.launch.optimized = true;
        self
    }

    /// Adds an option of `ovfleet serve`.
    #[must_use]
    pub fn argument(mut self, argument: impl Into<String>) -> Self {
        self.launch.arguments.push(argument.into());
        self
    }

    /// Listens on a TCP port of 127.0.0.1 too, [`Gateway::tcp_address`].
    #[must_use]
    pub fn listen_tcp(mut self, listener: TcpListener) -> Self {
        self.tcp = Some(listener);
        self
    }

    /// Lets the process see `disk` too.
    #[must_use]
    pub fn disk(mut self, disk: &Arc<Disk>) -> Self {
        self.launch.disk = Some(Arc::clone(disk));
        self
    }

    /// Limits the files that the process may have open.
    #[must_use]
    pub fn open_files(mut self, max: u64) -> Self {
        self.launch.open_files = Some(max);
        self
    }

    /// Listens here too: an address, or a table with one.
    #[must_use]
    pub fn listen_grpc(mut self, listener: impl Into<toml::Value>) -> Self {
        self.grpc.push(listener.into());
        self
    }

    /// Serves HTTP here too.
    #[must_use]
    pub fn listen_http(mut self, address: &str) -> Self {
        self.http.push(address.into());
        self
    }

    /// Hands `socket` down to each process, under `name`, as systemd does.
    #[must_use]
    pub fn hand_down(mut self, name: &str, socket: impl Into<OwnedFd>) -> Self {
        let socket = Arc::new(socket.into());
        self.launch.sockets.push((name.to_owned(), socket));
        self
    }

    /// Starts the gateway and waits until its socket answers.
    ///
    /// # Errors
    /// There is no binary, or it does not come up; its last words are in the error.
    pub async fn start(mut self) -> Result<Gateway> {
        let launch = std::mem::take(&mut self.launch);
        let directory = new_directory()?;
        let claim = Claim::take()?;
        let config = config_path(&directory);
        write_private(&config, &self.render(directory.path(), &claim)?)?;
        let process = spawn(&directory, &launch, "log")?;
        let mut gateway = Gateway {
            process,
            directory,
            claim,
            launch,
        };
        gateway.wait_ready().await?;
        Ok(gateway)
    }

    fn render(mut self, directory: &Path, claim: &Claim) -> Result<String> {
        let mut grpc: Vec<toml::Value> = vec![format!("unix:{}", socket_path(directory)).into()];
        if let Some(tcp) = self.tcp {
            let mut listener = toml::Table::new();
            listener.insert("address".to_owned(), tcp_address(claim).into());
            match tcp {
                TcpListener::ReadOnly => {}
                TcpListener::Control => {
                    listener.insert("plaintext_control".to_owned(), true.into());
                }
                TcpListener::Tls => {
                    let authority = Authority::get()?;
                    let leaf = authority.host("localhost")?;
                    let server = TlsFiles::write(directory, "gateway", &leaf)?;
                    TlsFiles::write(directory, "caller", &authority.client("caller")?)?;
                    listener.insert("tls".to_owned(), server.listener().into());
                }
            }
            grpc.push(listener.into());
        }
        grpc.append(&mut self.grpc);
        let mut listen = toml::Table::new();
        listen.insert("grpc".to_owned(), grpc.into());
        let mut http = self.http;
        http.push(format!("127.0.0.1:{}", http_port(claim)).into());
        listen.insert("http".to_owned(), http.into());
        self.root.insert("listen".to_owned(), listen.into());
        let instances: Vec<toml::Value> = self
            .instances
            .into_iter()
            .map(|instance| instance.0.into())
            .collect();
        if !instances.is_empty() {
            self.root.insert("instance".to_owned(), instances.into());
        }
        Ok(toml::to_string(&self.root)?)
    }
}

impl Gateway {
    /// The path of its gRPC socket.
    #[must_use]
    pub fn socket(&self) -> String {
        socket_path(self.directory.path())
    }

    /// Its configuration file: to edit before a reload, or to check.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        config_path(&self.directory)
    }

    /// Where [`GatewayConfig::listen_tcp`] listens, `127.0.0.1:PORT`.
    #[must_use]
    pub fn tcp_address(&self) -> String {
        tcp_address(&self.claim)
    }

    /// What a caller needs for [`TcpListener::Tls`]; the gateway's name is `localhost`.
    #[must_use]
    pub fn tls(&self) -> TlsFiles {
        TlsFiles::of(self.directory.path(), "caller")
    }

    /// The port of `/metrics`, `/healthz` and `/readyz` on 127.0.0.1.
    #[must_use]
    pub fn http_port(&self) -> u16 {
        http_port(&self.claim)
    }

    /// What `GET path` of that port gives: the status code and the body.
    ///
    /// # Errors
    /// It does not answer in HTTP.
    pub async fn http_get(&self, path: &str) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.http_port())).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        let code = head.split(' ').nth(1).context("no status code")?.parse()?;
        Ok((code, body.to_owned()))
    }

    /// A new connection to it.
    ///
    /// # Errors
    /// It does not accept one.
    pub async fn channel(&self) -> Result<Channel> {
        let endpoint = Endpoint::try_from(format!("unix:{}", self.socket()))?;
        Ok(endpoint.connect().await?)
    }

    /// Runs `ovfleet ARGS` against it.
    ///
    /// # Errors
    /// It cannot be run, or does not end. A failing exit code is no error.
    pub async fn cli(&self, arguments: &[&str]) -> Result<CliOutput> {
        let gateway = format!("unix:{}", self.socket());
        run_cli(arguments, &[("OVFLEET_GATEWAY", &gateway)]).await
    }

    /// Runs `ovfleet ARGS` against it, with this on its standard input.
    ///
    /// # Errors
    /// It cannot be run, or does not end. A failing exit code is no error.
    pub async fn cli_told(&self, arguments: &[&str], input: &str) -> Result<CliOutput> {
        let gateway = format!("unix:{}", self.socket());
        run(arguments, &[("OVFLEET_GATEWAY", &gateway)], input).await
    }

    /// Runs `ovfleet ARGS -o json`, which has to succeed, and gives what it printed.
    ///
    /// # Errors
    /// It fails, or prints something else than JSON.
    pub async fn cli_json(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let output = self.cli(&[arguments, &["-o", "json"]].concat()).await?;
        ensure!(output.code == Some(0), "ovfleet {arguments:?}: {output:?}");
        serde_json::from_str(&output.stdout).with_context(|| output.stdout.clone())
    }

    /// What it logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.output()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Sends the process `signal`.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Sets a variable of its environment from the next start on, or takes it out.
    pub fn set_environment(&mut self, name: &str, value: Option<&str>) {
        self.launch.environment.retain(|(known, _)| known != name);
        let value = value.map(|value| (name.to_owned(), value.to_owned()));
        self.launch.environment.extend(value);
    }

    /// Asks it to end (SIGTERM) and waits for that.
    ///
    /// # Errors
    /// It has ended before, or does not end in its time.
    pub async fn stop(&mut self) -> Result<ExitStatus> {
        self.process.signal(Signal::TERM)?;
        self.process.wait(STOP_TIMEOUT).await
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// It did not within `timeout`.
    pub async fn wait_ended(&mut self, timeout: Duration) -> Result<ExitStatus> {
        self.process.wait(timeout).await
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// The operating system refuses to say.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.process.exit_status()?.is_some())
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again after [`stop`](Self::stop) or [`kill`](Self::kill).
    ///
    /// # Errors
    /// It does not come up.
    pub async fn start_again(&mut self) -> Result<()> {
        self.process = spawn(&self.directory, &self.launch, "log")?;
        self.wait_ready().await
    }

    /// Starts another process on the same configuration, with `--standby`; `name` is that of its log.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_standby(&self, name: &str) -> Result<Process> {
        let mut launch = self.launch.clone();
        launch.arguments.push("--standby".to_owned());
        spawn(&self.directory, &launch, name)
    }

    /// Goes on with `standby`, which serves in the place of the process before, and gives that one.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn follow(&mut self, standby: Process) -> Result<Process> {
        let before = std::mem::replace(&mut self.process, standby);
        self.wait_ready().await?;
        Ok(before)
    }

    async fn wait_ready(&mut self) -> Result<()> {
        poll_until("the gateway to answer", READY_TIMEOUT, async || {
            self.process.expect_running()?;
            // Its socket takes connections, and what is said on them, before there is anybody to answer.
            let Ok(channel) = self.channel().await else {
                return Ok(None);
            };
            let mut health = HealthClient::new(channel);
            Ok(health.check(HealthCheckRequest::default()).await.ok())
        })
        .await
        .with_context(|| self.process.tail())?;
        Ok(())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.process.terminate(STOP_TIMEOUT);
    }
}

/// Runs `ovfleet ARGS` with these variables in its environment, without a terminal.
///
/// # Errors
/// It cannot be run, or does not end. A failing exit code is no error.
pub async fn run_cli(arguments: &[&str], environment: &[(&str, &str)]) -> Result<CliOutput> {
    run(arguments, environment, "").await
}

async fn run(arguments: &[&str], environment: &[(&str, &str)], input: &str) -> Result<CliOutput> {
    let mut command = tokio::process::Command::from(mortal(binary(false)?));
    command.args(arguments).envs(environment.iter().copied());
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::piped()).kill_on_drop(true).spawn()?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    // One that does not read its input may have ended before.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    let output = tokio::time::timeout(CLI_TIMEOUT, child.wait_with_output())
        .await
        .with_context(|| format!("`ovfleet {}` did not end", arguments.join(" ")))??;
    Ok(CliOutput {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// `ovfleet`: what `OVFLEET_BIN` says, else the one built beside this test, or the release build.
fn binary(optimized: bool) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("OVFLEET_BIN") {
        return Ok(path.into());
    }
    // target/PROFILE/deps/scenarios-HASH
    let test = std::env::current_exe()?;
    let profile = test
        .parent()
        .and_then(Path::parent)
        .context("the test has no target directory")?;
    let (path, option) = if optimized {
        (profile.with_file_name("release/ovfleet"), " --release")
    } else {
        (profile.join("ovfleet"), "")
    };
    ensure!(
        path.is_file(),
        "{} is missing: run `cargo build -p ovfleet{option}` first, or the target of `make`, which does",
        path.display(),
    );
    Ok(path)
}

fn spawn(directory: &TempDir, launch: &Launch, log: &str) -> Result<Process> {
    let binary = binary(launch.optimized)?;
    // The process id, which is to be in the environment, is known once there is a process.
    const WITH_PID: &str = "LISTEN_PID=$$ exec \"$@\"";
    let mut command = if let Some(disk) = &launch.disk {
        let mut command = disk.inside(directory.path());
        command.arg(binary);
        command
    } else if let Some(max) = launch.open_files {
        let mut command = mortal("prlimit");
        command.arg(format!("--nofile={max}")).arg(binary);
        command
    } else if launch.sockets.is_empty() {
        mortal(binary)
    } else {
        let mut command = mortal("sh");
        command.args(["-c", WITH_PID, "sh"]).arg(binary);
        let names: Vec<_> = launch
            .sockets
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        command.env("LISTEN_FDNAMES", names.join(":"));
        command.env("LISTEN_FDS", names.len().to_string());
        let mut mappings = Vec::new();
        for ((_, socket), child_fd) in launch.sockets.iter().zip(3..) {
            let parent_fd = socket.try_clone()?;
            mappings.push(FdMapping {
                parent_fd,
                child_fd,
            });
        }
        command.fd_mappings(mappings)?;
        command
    };
    command
        .arg("serve")
        .arg("--config")
        .arg(config_path(directory))
        .args(&launch.arguments);
    command.current_dir(directory.path());
    let environment = launch.environment.iter();
    command.envs(environment.map(|(name, value)| (name, value)));
    Process::start("the gateway", command, &directory.path().join(log))
}

fn config_path(directory: &TempDir) -> PathBuf {
    directory.path().join("ovfleet.toml")
}

fn socket_path(directory: &Path) -> String {
    directory.join("ovfleet.sock").display().to_string()
}

fn tcp_address(claim: &Claim) -> String {
    format!("127.0.0.1:{}", claim.vpn_port())
}

fn http_port(claim: &Claim) -> u16 {
    claim.management_port()
}
