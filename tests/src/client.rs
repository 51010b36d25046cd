//! Real OpenVPN clients: they connect, keep alive and leave, but carry no traffic.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::{
    directory::new_directory,
    log::contains,
    pki::{Authority, Leaf},
    poll::poll_until,
    process::{Process, Signal, find_program, mortal},
    server::{Proto, Server, write_private},
    token::Token,
};

/// A connection takes well under a second; this is for a machine that is busy.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// After SIGTERM a client with an exit notice lingers for about a second.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(10);
/// What every client with a username has for a password; it must appear nowhere else.
pub const LAB_PASSWORD: &str = "never-to-be-seen-7261";
/// What OpenVPN says each time its connection is complete.
const CONNECTED: &[u8] = b"Initialization Sequence Completed";

/// What a client is to be like; [`Client::builder`] makes one.
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    common_name: String,
    proto: Proto,
    port: u16,
    exit_notify: bool,
    username: Option<Vec<u8>>,
    identity: Identity,
    options: Vec<String>,
    environment: Vec<(String, String)>,
}

/// Where a client has its certificate and its key from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Identity {
    /// Both from its configuration.
    Configured,
    /// The manager signs with the key, an RSA key or one of the usual kind.
    SignedElsewhere { rsa: bool },
    /// The manager has both.
    HeldElsewhere,
    /// A PKCS#11 token has both, and the options say which.
    OnToken,
}

/// A running `openvpn` client.
#[derive(Debug)]
pub struct Client {
    common_name: String,
    leaf: Leaf,
    process: Process,
    directory: TempDir,
}

impl ClientBuilder {
    /// `--explicit-exit-notify`: it says goodbye over UDP.
    #[must_use]
    pub fn exit_notify(mut self) -> Self {
        self.exit_notify = true;
        self
    }

    /// Logs in with this username, any bytes but line ends, and some password.
    #[must_use]
    pub fn username(mut self, username: &[u8]) -> Self {
        self.username = Some(username.to_vec());
        self
    }

    /// Connects to another port of 127.0.0.1, a relay's.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// `--management-external-key`, with these words behind it: its manager signs, with [`Client::sign`].
    #[must_use]
    pub fn external_key(mut self, words: &str) -> Self {
        self.identity = Identity::SignedElsewhere { rsa: false };
        self.option(format!("management-external-key {words}").trim_end())
    }

    /// The same with an RSA key.
    #[must_use]
    pub fn external_rsa_key(mut self, words: &str) -> Self {
        self = self.external_key(words);
        self.identity = Identity::SignedElsewhere { rsa: true };
        self
    }

    /// `--management-external-cert` with this hint, which needs the key to be external too.
    #[must_use]
    pub fn external_certificate(mut self, hint: &str) -> Self {
        self = self.external_key("");
        self.identity = Identity::HeldElsewhere;
        self.option(&format!("management-external-cert \"{hint}\""))
    }

    /// Its certificate and its key are on a PKCS#11 token.
    #[must_use]
    pub fn token(mut self, token: &Token) -> Self {
        self.identity = Identity::OnToken;
        let (name, value) = token.environment();
        self.environment.push((name.to_owned(), value));
        self.option(&format!("pkcs11-providers {}", Token::PROVIDER))
    }

    /// One more line of the client's configuration.
    #[must_use]
    pub fn option(mut self, line: &str) -> Self {
        self.options.push(line.to_owned());
        self
    }

    /// Starts it, without waiting for its connection.
    ///
    /// # Errors
    /// OpenVPN is missing, or its files cannot be written.
    pub fn start(self) -> Result<Client> {
        let directory = new_directory()?;
        let config = directory.path().join("openvpn.conf");
        let authority = Authority::get()?;
        let leaf = match self.identity {
            Identity::SignedElsewhere { rsa: true } => authority.client_rsa(&self.common_name)?,
            _ => authority.client(&self.common_name)?,
        };
        write_private(&config, &self.config(directory.path(), authority, &leaf)?)?;
        let openvpn = find_program("openvpn", "install OpenVPN 2.6, `apt-get install openvpn`")?;
        let mut command = mortal(openvpn);
        command
            .arg("--config")
            .arg(&config)
            .envs(self.environment)
            .current_dir(directory.path());
        let what = format!("openvpn client {:?}", self.common_name);
        let process = Process::start(&what, command, &directory.path().join("log"))?;
        Ok(Client {
            common_name: self.common_name,
            leaf,
            process,
            directory,
        })
    }

    /// Starts it and waits until it is connected.
    ///
    /// # Errors
    /// As [`start`](Self::start), or it does not connect.
    pub async fn connect(self) -> Result<Client> {
        let mut client = self.start()?;
        client.wait_connected(1).await?;
        Ok(client)
    }

    fn config(&self, directory: &Path, authority: &Authority, leaf: &Leaf) -> Result<String> {
        let proto = match self.proto {
            Proto::Udp => "udp4",
            Proto::Tcp => "tcp4-client",
        };
        let mut lines = vec![
            "client".to_owned(),
            "dev null".to_owned(),
            format!("proto {proto}"),
            format!("remote 127.0.0.1 {}", self.port),
            "nobind".to_owned(),
            "ifconfig-noexec".to_owned(),
            "route-noexec".to_owned(),
            "connect-retry 1 1".to_owned(),
            "tls-timeout 1".to_owned(),
            "remote-cert-tls server".to_owned(),
            "verb 3".to_owned(),
        ];
        if self.exit_notify {
            lines.push("explicit-exit-notify 1".to_owned());
        }
        if let Some(username) = &self.username {
            let path = directory.join("login");
            fs::write(
                &path,
                [username.as_slice(), b"\n", LAB_PASSWORD.as_bytes(), b"\n"].concat(),
            )?;
            lines.push(format!("auth-user-pass {}", path.display()));
        }
        lines.extend(self.options.iter().cloned());
        let has_certificate = matches!(
            self.identity,
            Identity::Configured | Identity::SignedElsewhere { .. }
        );
        let has_key = self.identity == Identity::Configured;
        for (block, pem) in [
            Some(("ca", authority.certificate())),
            has_certificate.then_some(("cert", &leaf.certificate)),
            has_key.then_some(("key", &leaf.key)),
        ]
        .into_iter()
        .flatten()
        {
            lines.push(format!("<{block}>\n{pem}</{block}>"));
        }
        lines.push(String::new());
        Ok(lines.join("\n"))
    }
}

impl Client {
    /// A client of `server` whose certificate says `common_name`.
    #[must_use]
    pub fn builder(server: &Server, common_name: &str) -> ClientBuilder {
        ClientBuilder {
            common_name: common_name.to_owned(),
            proto: server.proto(),
            port: server.vpn_port(),
            exit_notify: false,
            username: None,
            identity: Identity::Configured,
            options: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// The name in its certificate.
    #[must_use]
    pub fn common_name(&self) -> &str {
        &self.common_name
    }

    /// Its certificate, PEM.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.leaf.certificate
    }

    /// Signs with its key, as its daemon asks for it: `algorithm` in the daemon's words.
    ///
    /// # Errors
    /// OpenSSL is missing, or the key is not for that.
    pub fn sign(&self, data: &[u8], algorithm: &str) -> Result<Vec<u8>> {
        self.leaf.signature(data, algorithm)
    }

    /// Waits until its log has `text`.
    ///
    /// # Errors
    /// Not within `timeout`.
    pub async fn wait_log(&self, text: &str, timeout: Duration) -> Result<()> {
        let what = format!("{text:?} in the log of client {:?}", self.common_name);
        poll_until(&what, timeout, async || {
            let log = fs::read(self.directory.path().join("log")).unwrap_or_default();
            Ok(contains(&log, text.as_bytes()).then_some(()))
        })
        .await
        .with_context(|| self.process.tail())
    }

    /// What it said so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.output()
    }

    /// How often it has completed a connection.
    #[must_use]
    pub fn connections(&self) -> usize {
        let log = fs::read(self.directory.path().join("log")).unwrap_or_default();
        log.split(|byte| *byte == b'\n')
            .filter(|line| contains(line, CONNECTED))
            .count()
    }

    /// Waits until it has completed `count` connections since its start.
    ///
    /// # Errors
    /// It ended, or took too long; its last words are in the error.
    pub async fn wait_connected(&mut self, count: usize) -> Result<()> {
        let what = format!("connection {count} of client {:?}", self.common_name);
        poll_until(&what, CONNECT_TIMEOUT, async || {
            self.process.expect_running()?;
            Ok((self.connections() >= count).then_some(()))
        })
        .await
        .with_context(|| self.process.tail())
    }

    /// Whether the process still runs; a halted client ends.
    ///
    /// # Errors
    /// The operating system refuses to say.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.process.exit_status()?.is_none())
    }

    /// Waits until the client ends by itself.
    ///
    /// # Errors
    /// It did not within `timeout`.
    pub async fn wait_ended(&mut self, timeout: Duration) -> Result<()> {
        self.process.wait(timeout).await.map(drop)
    }

    /// Leaves in order (SIGTERM): with a notice, if it was built so, or by closing TCP.
    ///
    /// # Errors
    /// It has ended already, or does not end.
    pub async fn leave(&mut self) -> Result<()> {
        self.process.signal(Signal::TERM)?;
        self.wait_ended(LEAVE_TIMEOUT).await
    }

    /// Sends the process `signal`.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Dies without a word: over UDP the server only sees silence.
    pub fn vanish(&mut self) {
        self.process.kill();
    }
}
