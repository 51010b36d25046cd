//! Real OpenVPN servers.

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::{
    claim::Claim,
    directory::new_directory,
    log::{LogLine, contains, log_lines},
    pki::{Authority, openssl},
    poll::poll_until,
    process::{Process, Signal, find_program, mortal},
    status::{self, Status},
};

/// How long a daemon may take to come up on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// The status file is rewritten every second while there are clients; without any, OpenVPN
/// looks at its timers only every 10 s.
const STATUS_TIMEOUT: Duration = Duration::from_secs(20);
/// A status file that was not written to for so long is whole.
const STATUS_SETTLED: Duration = Duration::from_millis(50);

/// The transport of the VPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proto {
    /// UDP over IPv4.
    Udp,
    /// TCP over IPv4.
    Tcp,
}

/// Where the management interface listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Management {
    /// A Unix socket in the server's directory.
    Unix,
    /// TCP on loopback.
    Tcp,
}

/// What a server is to be like; [`Server::builder`] makes one.
#[derive(Clone, Debug)]
pub struct ServerBuilder {
    name: String,
    proto: Proto,
    management: Management,
    password: Option<String>,
    keepalive: (u32, u32),
    hold: bool,
    /// What its private key is encrypted with.
    key_password: Option<String>,
    /// Where it dials in, if it does not listen.
    dial_in: Option<PathBuf>,
    /// What OpenSSL is configured to, for this daemon alone.
    openssl: Option<String>,
    options: Vec<String>,
}

/// A running `openvpn` in server mode, with its own network, port and directory.
#[derive(Debug)]
pub struct Server {
    name: String,
    proto: Proto,
    management: Management,
    password: Option<String>,
    keepalive: (u32, u32),
    hold: bool,
    /// Where the log of the present run begins.
    run_offset: usize,
    // Dropped in this order: the process, then its files, then its network.
    process: Process,
    directory: TempDir,
    claim: Claim,
}

impl ServerBuilder {
    /// The transport of the VPN; UDP unless said.
    #[must_use]
    pub fn proto(mut self, proto: Proto) -> Self {
        self.proto = proto;
        self
    }

    /// Where management listens; a Unix socket unless said.
    #[must_use]
    pub fn management(mut self, management: Management) -> Self {
        self.management = management;
        self
    }

    /// Protects the management interface.
    #[must_use]
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self
    }

    /// `--keepalive`: clients give up after `timeout` seconds, the server after twice that.
    #[must_use]
    pub fn keepalive(mut self, interval: u32, timeout: u32) -> Self {
        self.keepalive = (interval, timeout);
        self
    }

    /// `--management-hold`: it starts only when told so.
    #[must_use]
    pub fn hold(mut self) -> Self {
        self.hold = true;
        self
    }

    /// `--management-client`: it dials in at the Unix socket `path`, and ends with that session.
    #[must_use]
    pub fn dial_in(mut self, path: &Path) -> Self {
        self.dial_in = Some(path.to_owned());
        self
    }

    /// Its private key needs this password, which it asks its manager for.
    #[must_use]
    pub fn key_password(mut self, password: &str) -> Self {
        self.key_password = Some(password.to_owned());
        self.option("management-query-passwords")
    }

    /// One line of configuration for its OpenSSL, where OpenVPN has no option for it.
    #[must_use]
    pub fn openssl(mut self, line: &str) -> Self {
        self.openssl = Some(line.to_owned());
        self
    }

    /// `--duplicate-cn`: a second client of a name does not replace the first.
    #[must_use]
    pub fn duplicate_cn(self) -> Self {
        self.option("duplicate-cn")
    }

    /// Wants a username of every client, and accepts any with any password.
    #[must_use]
    pub fn any_username(self) -> Self {
        self.option("script-security 2")
            .option("auth-user-pass-verify /bin/true via-file")
    }

    /// One more line of the daemon's configuration.
    #[must_use]
    pub fn option(mut self, line: &str) -> Self {
        self.options.push(line.to_owned());
        self
    }

    /// Starts it and waits until it serves, or holds.
    ///
    /// # Errors
    /// OpenVPN is missing or refuses to come up; its last words are in the error.
    pub async fn start(self) -> Result<Server> {
        let claim = Claim::take()?;
        let directory = new_directory()?;
        if let Some(password) = &self.password {
            write_private(
                &directory.path().join("management.pw"),
                &format!("{password}\n"),
            )?;
        }
        write_private(
            &config_path(&directory),
            &self.config(&claim, directory.path())?,
        )?;
        if let Some(line) = &self.openssl {
            let config = format!(
                "openssl_conf = all\n[all]\nssl_conf = tls\n[tls]\nsystem_default = this\n[this]\n{line}\n"
            );
            write_private(&openssl_path(&directory), &config)?;
        }
        let process = spawn(&self.name, &directory)?;
        let mut server = Server {
            name: self.name,
            proto: self.proto,
            management: self.management,
            password: self.password,
            keepalive: self.keepalive,
            hold: self.hold,
            run_offset: 0,
            process,
            directory,
            claim,
        };
        server.wait_up().await?;
        Ok(server)
    }

    fn config(&self, claim: &Claim, directory: &Path) -> Result<String> {
        let authority = Authority::get()?;
        let leaf = authority.server()?;
        let key = match &self.key_password {
            Some(password) => encrypt_key(&leaf.key, password)?,
            None => leaf.key,
        };
        let directory = directory.display();
        let proto = match self.proto {
            Proto::Udp => "udp4",
            Proto::Tcp => "tcp4-server",
        };
        let (interval, timeout) = self.keepalive;
        let mut config = format!(
            "proto {proto}\n\
             local 127.0.0.1\n\
             port {port}\n\
             dev tun\n\
             topology subnet\n\
             server {network} 255.255.255.0\n\
             dh none\n\
             keepalive {interval} {timeout}\n\
             persist-tun\n\
             verb 3\n\
             machine-readable-output\n\
             status {directory}/status 1\n\
             status-version 3\n",
            port = claim.vpn_port(),
            network = claim.network(),
        );
        let listen = match (&self.dial_in, self.management) {
            (Some(path), _) => format!("{} unix", path.display()),
            (None, Management::Unix) => format!("{directory}/management.sock unix"),
            (None, Management::Tcp) => format!("127.0.0.1 {}", claim.management_port()),
        };
        let password = match self.password {
            Some(_) => format!(" {directory}/management.pw"),
            None => String::new(),
        };
        writeln!(config, "management {listen}{password}")?;
        if self.dial_in.is_some() {
            writeln!(config, "management-client")?;
        }
        if self.hold {
            writeln!(config, "management-hold")?;
        }
        for option in &self.options {
            writeln!(config, "{option}")?;
        }
        write!(
            config,
            "<ca>\n{}</ca>\n<cert>\n{}</cert>\n<key>\n{}</key>\n",
            authority.certificate(),
            leaf.certificate,
            key,
        )?;
        Ok(config)
    }
}

impl Server {
    /// A server called `name`; also what the gateway will call the instance.
    #[must_use]
    pub fn builder(name: &str) -> ServerBuilder {
        ServerBuilder {
            name: name.to_owned(),
            proto: Proto::Udp,
            management: Management::Unix,
            password: None,
            keepalive: (2, 20),
            hold: false,
            key_password: None,
            dial_in: None,
            openssl: None,
            options: Vec::new(),
        }
    }

    /// The name given to it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The transport of the VPN.
    #[must_use]
    pub fn proto(&self) -> Proto {
        self.proto
    }

    /// The port of the VPN on 127.0.0.1.
    #[must_use]
    pub fn vpn_port(&self) -> u16 {
        self.claim.vpn_port()
    }

    /// A TCP port of 127.0.0.1 that goes with it: where management listens if that is [`Management::Tcp`], and free for
    /// whatever a scenario listens with if not.
    #[must_use]
    pub fn management_port(&self) -> u16 {
        self.claim.management_port()
    }

    /// The daemon's process id; another after [`start_again`](Self::start_again).
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The management address, as the gateway's configuration writes it.
    #[must_use]
    pub fn address(&self) -> String {
        match self.management {
            Management::Unix => format!("unix:{}", self.socket_path().display()),
            Management::Tcp => format!("tcp:127.0.0.1:{}", self.claim.management_port()),
        }
    }

    /// The management socket of a [`Management::Unix`] server.
    #[must_use]
    pub fn socket_path(&self) -> PathBuf {
        self.directory.path().join("management.sock")
    }

    /// The file with the management password, if there is one.
    #[must_use]
    pub fn password_file(&self) -> Option<PathBuf> {
        self.password
            .as_ref()
            .map(|_| self.directory.path().join("management.pw"))
    }

    /// How long the daemon keeps a client that fell silent.
    #[must_use]
    pub fn silence_timeout(&self) -> Duration {
        let (_, timeout) = self.keepalive;
        Duration::from_secs(2 * u64::from(timeout))
    }

    /// Sends the process `signal`: SIGSTOP, SIGCONT, SIGUSR1, SIGHUP and so on.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// It did not within `timeout`.
    pub async fn wait_ended(&mut self, timeout: Duration) -> Result<ExitStatus> {
        self.process.wait(timeout).await
    }

    /// Ends it at once, as a crash would: no word to its clients or its manager.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again after [`kill`](Self::kill): same configuration, same addresses,
    /// another process.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn start_again(&mut self) -> Result<()> {
        self.process.kill();
        self.run_offset = self.log_bytes().len();
        self.process = spawn(&self.name, &self.directory)?;
        self.wait_up().await
    }

    /// When the present run began to listen for its manager, by the daemon's clock.
    ///
    /// # Errors
    /// The log does not say.
    pub fn listening_since(&self) -> Result<SystemTime> {
        self.run_lines()
            .into_iter()
            .find(|line| is_listening_line(&line.text))
            .map(|line| line.time)
            .with_context(|| format!("server {} does not listen for management", self.name))
    }

    /// The log since the first start.
    #[must_use]
    pub fn log_lines(&self) -> Vec<LogLine> {
        log_lines(&self.log_bytes())
    }

    /// Whether some line of the log, since the first start, contains `text`.
    #[must_use]
    pub fn log_contains(&self, text: &str) -> bool {
        self.log_count(text) > 0
    }

    /// How many lines of the log, since the first start, contain `text`.
    #[must_use]
    pub fn log_count(&self, text: &str) -> usize {
        self.log_lines()
            .iter()
            .filter(|line| contains(&line.text, text.as_bytes()))
            .count()
    }

    /// Where the log ends now.
    #[must_use]
    pub fn log_end(&self) -> usize {
        let end = fs::metadata(log_path(&self.directory)).map_or(0, |file| file.len());
        usize::try_from(end).unwrap_or(usize::MAX)
    }

    /// How many lines of the log from `start`, a [`log_end`](Self::log_end), on contain `text`. Reads
    /// only these.
    #[must_use]
    pub fn log_count_since(&self, start: usize, text: &str) -> usize {
        let log = read_from(&log_path(&self.directory), start).unwrap_or_default();
        let lines = log_lines(&log);
        let found = lines
            .iter()
            .filter(|line| contains(&line.text, text.as_bytes()));
        found.count()
    }

    /// Waits until the log has at least `count` lines with `text`.
    ///
    /// # Errors
    /// Not within `timeout`, or the daemon has ended.
    pub async fn wait_log(&mut self, text: &str, count: usize, timeout: Duration) -> Result<()> {
        let what = format!("{count} log lines of {} with {text:?}", self.name);
        poll_until(&what, timeout, async || {
            self.process.expect_running()?;
            Ok((self.log_count(text) >= count).then_some(()))
        })
        .await
    }

    /// What the daemon itself wrote about its clients: at most a second ago, or ten without
    /// any client.
    ///
    /// # Errors
    /// It writes none, or one that the lab cannot read.
    pub async fn status(&self) -> Result<Status> {
        let path = self.directory.path().join("status");
        let mut mistake = None;
        let read = poll_until("a complete status file", STATUS_TIMEOUT, async || {
            let Some(text) = read_settled(&path)? else {
                return Ok(None);
            };
            // Of two versions at once, all the same, while the daemon has no turn.
            Ok(status::parse(&text).unwrap_or_else(|error| {
                mistake = Some(error);
                None
            }))
        })
        .await;
        match mistake {
            Some(mistake) => read.with_context(|| format!("last: {mistake:#}")),
            None => read,
        }
    }

    /// A status file written after this call began.
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub async fn fresh_status(&self) -> Result<Status> {
        let asked = unix_seconds(SystemTime::now());
        poll_until("a fresh status file", STATUS_TIMEOUT, async || {
            let status = self.status().await?;
            // A stamp of one second: equal could still be from before.
            Ok((status.time > asked).then_some(status))
        })
        .await
    }

    /// Waits until the daemon serves clients, or holds.
    async fn wait_up(&mut self) -> Result<()> {
        let up: &[u8] = if self.hold {
            b"Need hold release from management interface"
        } else {
            b"Initialization Sequence Completed"
        };
        let what = format!("server {} to come up", self.name);
        poll_until(&what, START_TIMEOUT, async || {
            self.process.expect_running()?;
            let lines = self.run_lines();
            Ok(lines
                .iter()
                .any(|line| contains(&line.text, up))
                .then_some(()))
        })
        .await
        .with_context(|| self.process.tail())
    }

    fn run_lines(&self) -> Vec<LogLine> {
        log_lines(self.log_bytes().get(self.run_offset..).unwrap_or_default())
    }

    fn log_bytes(&self) -> Vec<u8> {
        fs::read(log_path(&self.directory)).unwrap_or_default()
    }
}

fn spawn(name: &str, directory: &TempDir) -> Result<Process> {
    let openvpn = find_program("openvpn", "install OpenVPN 2.6, `apt-get install openvpn`")?;
    let mut command = mortal(openvpn);
    command
        .arg("--config")
        .arg(config_path(directory))
        .current_dir(directory.path());
    if openssl_path(directory).exists() {
        command.env("OPENSSL_CONF", openssl_path(directory));
    }
    Process::start(
        &format!("openvpn server {name}"),
        command,
        &log_path(directory),
    )
}

fn config_path(directory: &TempDir) -> PathBuf {
    directory.path().join("openvpn.conf")
}

fn openssl_path(directory: &TempDir) -> PathBuf {
    directory.path().join("openssl.cnf")
}

fn log_path(directory: &TempDir) -> PathBuf {
    directory.path().join("log")
}

/// The file, once nobody has written to it for a moment: OpenVPN writes the status in place, line by
/// line, over the one before.
fn read_settled(path: &Path) -> Result<Option<Vec<u8>>> {
    let written = || match fs::metadata(path) {
        Ok(file) => Ok(Some(file.modified()?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    let Some(before) = written()? else {
        return Ok(None);
    };
    let age = SystemTime::now().duration_since(before).unwrap_or_default();
    if age < STATUS_SETTLED {
        return Ok(None);
    }
    let text = fs::read(path)?;
    Ok((written()? == Some(before)).then_some(text))
}

fn read_from(path: &Path, start: usize) -> std::io::Result<Vec<u8>> {
    let mut file = fs::File::open(path)?;
    file.seek(SeekFrom::Start(start as u64))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The same key, for which OpenSSL wants a password.
fn encrypt_key(key: &str, password: &str) -> Result<String> {
    let password = format!("pass:{password}");
    let arguments = [
        "pkcs8",
        "-topk8",
        "-v2",
        "aes-256-cbc",
        "-passout",
        &password,
    ];
    Ok(String::from_utf8(openssl(&arguments, key.as_bytes())?)?)
}

fn is_listening_line(text: &[u8]) -> bool {
    text.starts_with(b"MANAGEMENT: ") && contains(text, b"listening on")
}

/// Writes a file that only its owner may read.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<()> {
    let mut file = fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    file.write_all(text.as_bytes())?;
    Ok(())
}

fn unix_seconds(time: SystemTime) -> i64 {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
