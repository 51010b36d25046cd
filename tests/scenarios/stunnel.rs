//! TLS before a real daemon's management port: `stunnel` ends it, a tap sees what comes out of it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ovfleet_tests::{
    Api, Authority, Gateway, GatewayConfig, InstanceConfig, Management, Ports, Process, Server,
    Tap, poll_until,
};
use tempfile::TempDir;

use crate::callers::command;

/// Everything here happens at once; this covers a busy machine.
const SOON: Duration = Duration::from_secs(15);
const HOST: &str = "vpn.example";

/// A server that is not known for the right one must not hear the password; the right one leads to the daemon.
#[tokio::test]
async fn stunnel_gets_the_password_only_if_it_is_the_right_one() -> Result<()> {
    let lab = Lab::start().await?;
    let other = Authority::new()?;
    lab.write("other-ca.pem", other.certificate())?;
    lab.write("other.pem", &other.host(HOST)?.certificate)?;
    let other_pin = lab.fingerprint("other.pem").await?;
    let pin = lab.fingerprint("server.pem").await?;
    let (ca, other_ca) = (lab.file("ca.pem"), lab.file("other-ca.pem"));

    let wrong = [
        (
            &[("ca", other_ca.as_str()), ("server_name", HOST)][..],
            "not signed by the authority",
        ),
        (&[("ca", &ca)], "for another name"),
        (&[("pin", &other_pin)], "not the pinned one"),
        (
            &[("ca", &ca), ("server_name", HOST), ("pin", &other_pin)],
            "not the pinned one",
        ),
    ];
    for (tls, reason) in wrong {
        let (gateway, mut api) = lab.gateway(tls).await?;
        // Until stunnel listens, the reason is another.
        poll_until(reason, SOON, async || {
            let status = api.status("eu1").await?;
            Ok(status.reason.contains(reason).then_some(()))
        })
        .await?;
        drop(gateway);
    }
    ensure!(lab.tap.forwarded() == 0, "{} bytes", lab.tap.forwarded());

    for tls in [
        &[("ca", ca.as_str()), ("server_name", HOST)][..],
        &[("pin", &pin)],
    ] {
        let before = lab.tap.forwarded();
        let (gateway, mut api) = lab.gateway(tls).await?;
        api.wait_attached().await?;
        ensure!(api.status("eu1").await?.pid == lab.server.pid());
        // The same tap sees what it should: the test can fail.
        ensure!(lab.tap.forwarded() > before);
        drop(gateway);
    }
    Ok(())
}

/// A real daemon with a password, a tap before it, and stunnel before that.
struct Lab {
    server: Server,
    tap: Tap,
    ports: Ports,
    directory: TempDir,
    _stunnel: Process,
}

impl Lab {
    async fn start() -> Result<Self> {
        let server = Server::builder("eu1")
            .management(Management::Tcp)
            .password("s3cret pass")
            .start()
            .await?;
        let tap = Tap::tcp(&server.address()).await?;
        let (ports, directory) = (Ports::take()?, tempfile::tempdir()?);
        let file = |name: &str| directory.path().join(name);
        let authority = Authority::get()?;
        let leaf = authority.host(HOST)?;
        std::fs::write(file("ca.pem"), authority.certificate())?;
        std::fs::write(file("server.pem"), &leaf.certificate)?;
        std::fs::write(file("server.key"), &leaf.key)?;
        let config = format!(
            "foreground = yes\npid =\nsyslog = no\n[management]\n\
             accept = 127.0.0.1:{}\nconnect = 127.0.0.1:{}\ncert = {}\nkey = {}\n",
            ports.numbers()[0],
            tap.port().context("no port")?,
            file("server.pem").display(),
            file("server.key").display(),
        );
        std::fs::write(file("stunnel.conf"), config)?;
        let config = file("stunnel.conf").display().to_string();
        Ok(Self {
            server,
            tap,
            ports,
            directory,
            _stunnel: Process::spawn("stunnel4", &[&config])?,
        })
    }

    fn file(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        Ok(std::fs::write(self.file(name), text)?)
    }

    /// A gateway that trusts stunnel if it is as `tls` says.
    async fn gateway(&self, tls: &[(&str, &str)]) -> Result<(Gateway, Api)> {
        let mut table = toml::Table::new();
        for (key, value) in tls {
            table.insert((*key).to_owned(), (*value).into());
        }
        let address = format!("tls:127.0.0.1:{}", self.ports.numbers()[0]);
        let password = self.server.password_file().unwrap_or_default();
        let instance = InstanceConfig::new("eu1", &address)
            .set("password_file", password.display().to_string())
            .set("tls", table);
        let gateway = GatewayConfig::new().instance(instance).start().await?;
        let api = Api::connect(&gateway).await?;
        Ok((gateway, api))
    }

    /// As `openssl` tells it, to be pinned.
    async fn fingerprint(&self, name: &str) -> Result<String> {
        let path = self.file(name);
        let arguments = ["x509", "-noout", "-fingerprint", "-sha256", "-in", &path];
        let output = command("openssl", &arguments)?.output().await?;
        let text = String::from_utf8(output.stdout)?;
        let (_, hex) = text.trim().split_once('=').context("no fingerprint")?;
        Ok(format!("sha256:{hex}"))
    }
}
