//! Virtual management sockets behind TLS, on a real daemon and with `socat` as the tool: what a tool may do depends on
//! its certificate.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use ovfleet_tests::{
    Api, Authority, Client, Gateway, GatewayConfig, InstanceConfig, Server, TlsFiles, poll_until,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

const DEADLINE: Duration = Duration::from_secs(20);
const GREETING: &str = ">INFO:OpenVPN Management Interface Version 5 -- type 'help' for more info";
const PASSWORD: &str = "behind TLS";

/// A real server with a client, and a gateway with two TLS sockets before it: one that lets in only whom it lists, and
/// one for everybody with a certificate, and a password.
struct Lab {
    server: Server,
    _client: Client,
    gateway: Gateway,
    directory: TempDir,
}

impl Lab {
    async fn start() -> Result<Self> {
        let server = Server::builder("eu1").start().await?;
        let client = Client::builder(&server, "alice").connect().await?;
        let directory = tempfile::tempdir()?;
        let path = directory.path();
        std::fs::write(path.join("mux.pw"), format!("{PASSWORD}\n"))?;
        std::fs::set_permissions(
            path.join("mux.pw"),
            std::os::unix::fs::PermissionsExt::from_mode(0o600),
        )?;
        let authority = Authority::get()?;
        let host = TlsFiles::write(path, "host", &authority.host("localhost")?)?;
        for name in ["watcher", "ops", "stranger"] {
            TlsFiles::write(path, name, &authority.client(name)?)?;
        }
        TlsFiles::write(
            path,
            "root",
            &authority.client_at("stranger", "root.tools")?,
        )?;
        TlsFiles::write(path, "forged", &Authority::new()?.client("ops")?)?;
        let listed: toml::Table = toml::from_str(&format!(
            r#"
            address = "tls:127.0.0.1:{}"
            certificates = [
                {{ common_name = "watcher", policy = "read-only" }},
                {{ common_name = "{{label.team}}", policy = "operator" }},
                {{ dns_name = "root.tools", policy = "full" }},
            ]"#,
            server.vpn_port(),
        ))?;
        let guarded: toml::Table = toml::from_str(&format!(
            r#"
            address = "tls:127.0.0.1:{}"
            password_file = "{}/mux.pw""#,
            server.management_port(),
            path.display(),
        ))?;
        let with_tls = |mut socket: toml::Table| {
            socket.insert("tls".to_owned(), host.listener().into());
            toml::Value::from(socket)
        };
        let instance = InstanceConfig::of(&server)
            .label("team", "ops")
            .set("mux", vec![with_tls(listed), with_tls(guarded)]);
        let gateway = GatewayConfig::new().instance(instance).start().await?;
        Api::connect(&gateway).await?.wait_attached().await?;
        Ok(Self {
            server,
            _client: client,
            gateway,
            directory,
        })
    }

    /// `socat` with this certificate, on the socket that lists.
    fn tool(&self, certificate: Option<&str>) -> Result<Socat> {
        Socat::connect(self.directory.path(), self.server.vpn_port(), certificate)
    }

    async fn wait_logged(&self, text: &str, count: usize) -> Result<()> {
        poll_until(text, DEADLINE, async || {
            let log = self.gateway.log();
            Ok((log.matches(text).count() >= count).then_some(()))
        })
        .await
    }
}

struct Socat {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
}

impl Socat {
    fn connect(directory: &Path, port: u16, certificate: Option<&str>) -> Result<Self> {
        let directory = directory.display();
        let shown = match certificate {
            None => String::new(),
            Some(name) => format!(",cert={directory}/{name}.crt,key={directory}/{name}.key"),
        };
        let address = format!(
            "OPENSSL:127.0.0.1:{port},commonname=localhost,cafile={directory}/ca.crt{shown}"
        );
        let mut child = Command::new("socat")
            .args(["-", &address])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start socat: run `make setup`")?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        Ok(Self {
            child,
            input: input.context("no input")?,
            output: output.context("no output")?,
        })
    }

    async fn say(&mut self, text: &str) -> Result<()> {
        Ok(self.input.write_all(text.as_bytes()).await?)
    }

    /// Everything it hears up to and with `end`, and nothing behind it.
    async fn hear(&mut self, end: &str) -> Result<String> {
        let mut heard = Vec::new();
        let hearing = async {
            while !heard.ends_with(end.as_bytes()) {
                heard.push(self.output.read_u8().await?);
            }
            anyhow::Ok(())
        };
        let outcome = timeout(DEADLINE, hearing).await;
        let heard = String::from_utf8_lossy(&heard).into_owned();
        outcome
            .with_context(|| heard.clone())?
            .with_context(|| heard.clone())?;
        Ok(heard)
    }

    async fn ask(&mut self, command: &str) -> Result<String> {
        self.say(&format!("{command}\n")).await?;
        self.hear("\r\n").await
    }

    /// What it hears until it ends.
    async fn rest(mut self) -> Result<String> {
        let mut rest = String::new();
        timeout(DEADLINE, self.output.read_to_string(&mut rest)).await??;
        timeout(DEADLINE, self.child.wait()).await??;
        Ok(rest)
    }
}

/// Beyond the host a certificate is all that tells an operator from a stranger.
#[tokio::test]
async fn what_a_tool_may_do_depends_on_its_certificate() -> Result<()> {
    let mut lab = Lab::start().await?;
    lab.wait_logged("virtual socket open", 2).await?;

    // Without a certificate, and with one of another authority, nothing is said.
    for certificate in [None, Some("forged")] {
        let tool = lab.tool(certificate)?;
        let heard = tool.rest().await?;
        ensure!(heard.is_empty(), "{certificate:?}: {heard}");
    }
    lab.wait_logged("TLS handshake failed", 2).await?;
    // Nor to one whose certificate is in order and not listed.
    let heard = lab.tool(Some("stranger"))?.rest().await?;
    ensure!(heard.is_empty(), "{heard}");
    lab.wait_logged("not let in", 1).await?;
    // Nor in plain text.
    let address = ("127.0.0.1", lab.server.vpn_port());
    let mut plain = TcpStream::connect(address).await?;
    plain.write_all(b"status\n").await?;
    let mut heard = Vec::new();
    let _ = timeout(DEADLINE, plain.read_to_end(&mut heard)).await?;
    ensure!(!heard.starts_with(b">INFO"), "{}", heard.escape_ascii());

    let not_allowed = |command: &str, policy: &str| {
        format!("ERROR: the '{command}' command is not allowed on this socket ({policy})\r\n")
    };
    let greeting = format!("{GREETING}\r\n");
    let mut watcher = lab.tool(Some("watcher"))?;
    ensure!(watcher.hear("\r\n").await? == greeting);
    ensure!(watcher.ask("pid").await? == format!("SUCCESS: pid={}\r\n", lab.server.pid()));
    ensure!(watcher.ask("hold on").await? == not_allowed("hold", "read-only"));
    ensure!(watcher.ask("hold").await? == "SUCCESS: hold=0\r\n");

    let mut operator = lab.tool(Some("ops"))?;
    ensure!(operator.hear("\r\n").await? == greeting);
    ensure!(operator.ask("hold on").await? == "SUCCESS: hold flag set to ON\r\n");
    ensure!(operator.ask("hold off").await? == "SUCCESS: hold flag set to OFF\r\n");
    let denied = operator.ask("client-deny 0 0 no").await?;
    ensure!(denied == not_allowed("client-deny", "operator"), "{denied}");

    // Known by its other name: of its common name there is a stranger.
    let mut full = lab.tool(Some("root"))?;
    ensure!(full.hear("\r\n").await? == greeting);
    full.say("status 3\n").await?;
    let status = full.hear("END\r\n").await?;
    ensure!(status.contains("CLIENT_LIST\talice\t"), "{status}");
    let killed = full.ask("kill alice").await?;
    ensure!(
        killed == "SUCCESS: common name 'alice' found, 1 client(s) killed\r\n",
        "{killed}"
    );
    lab.server.wait_log("CMD 'kill alice'", 1, DEADLINE).await?;
    // `exit` ends it in order, and nobody else.
    full.say("exit\n").await?;
    ensure!(full.rest().await?.is_empty());
    ensure!(watcher.ask("hold").await? == "SUCCESS: hold=0\r\n");
    Ok(())
}

/// Whoever has the certificate must still say the password, where there is one.
#[tokio::test]
async fn a_password_is_asked_for_behind_tls() -> Result<()> {
    let lab = Lab::start().await?;
    lab.wait_logged("virtual socket open", 2).await?;
    let port = lab.server.management_port();
    let mut tool = Socat::connect(lab.directory.path(), port, Some("stranger"))?;
    ensure!(tool.hear("ENTER PASSWORD:").await? == "ENTER PASSWORD:");
    tool.say("wrong\n").await?;
    ensure!(tool.hear("ENTER PASSWORD:").await? == "ENTER PASSWORD:");
    tool.say(&format!("{PASSWORD}\n")).await?;
    let welcome = tool.hear("more info\r\n").await?;
    ensure!(
        welcome == format!("SUCCESS: password is correct\r\n{GREETING}\r\n"),
        "{welcome}"
    );
    ensure!(tool.ask("kill alice").await?.contains("(read-only)"));
    let log = lab.gateway.log();
    ensure!(log.contains("cert:stranger#") && !log.contains(PASSWORD));
    Ok(())
}
