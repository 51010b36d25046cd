//! TLS before a real daemon's management port: `socat` ends it, a tap of ours sees what comes out of it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openvpn_management::{Command, Reply};
use openvpn_session::{Condition, SessionConfig, TlsConfig};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::process::{Child, Command as Process};

use crate::real::{Server, free_port};
use crate::support::{Subject, read, within};

const PASSWORD: &str = "s3cret pass";

/// An authority, and the file it is in.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    file: PathBuf,
}

impl Authority {
    fn new(directory: &Path, name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::self_signed(params, key).unwrap();
        let file = directory.join(name);
        fs::write(&file, issuer.pem()).unwrap();
        Self { issuer, file }
    }

    /// A certificate for `name`, as files of both kinds; gives its fingerprint too.
    fn issue(&self, directory: &Path, name: &str) -> (PathBuf, PathBuf, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let (cert, key_file) = (
            directory.join(format!("{name}.crt")),
            directory.join(format!("{name}.key")),
        );
        fs::write(&cert, certificate.pem()).unwrap();
        fs::write(&key_file, key.serialize_pem()).unwrap();
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate.der());
        let hex: Vec<_> = digest
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02X}"))
            .collect();
        (cert, key_file, format!("sha256:{}", hex.join(":")))
    }
}

/// A real daemon with a password, and TLS before it.
struct Lab {
    port: u16,
    /// What came through TLS towards the daemon.
    heard: Arc<Mutex<Vec<u8>>>,
    authority: Authority,
    fingerprint: String,
    server: Server,
    directory: TempDir,
    _socat: Child,
}

impl Lab {
    /// `socat_options` follow the server's certificate.
    async fn start(socat_options: impl FnOnce(&Path, &Authority) -> String) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        fs::write(path.join("password"), format!("{PASSWORD}\n")).unwrap();
        fs::set_permissions(path.join("password"), fs::Permissions::from_mode(0o600)).unwrap();
        let password = path.join("password");
        let password = password.to_str().unwrap();
        let server = Server::start(&["--management", "management.sock", "unix", password]);

        let tap = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tap_port = tap.local_addr().unwrap().port();
        let heard = Arc::new(Mutex::new(Vec::new()));
        tokio::spawn(relay(tap, server.socket(), Arc::clone(&heard)));

        let authority = Authority::new(path, "ca.crt");
        let (cert, key, fingerprint) = authority.issue(path, "vpn.example");
        let options = socat_options(path, &authority);
        let port = free_port();
        let socat = Process::new("socat")
            .arg(format!(
                "OPENSSL-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork,cert={},key={},{options}",
                cert.display(),
                key.display(),
            ))
            .arg(format!("TCP:127.0.0.1:{tap_port}"))
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("socat is installed");
        Self {
            port,
            heard,
            authority,
            fingerprint,
            server,
            directory,
            _socat: socat,
        }
    }

    fn config(&self, tls: TlsConfig) -> SessionConfig {
        let address = format!("tls:127.0.0.1:{}", self.port);
        let mut config = SessionConfig::new(address.parse().unwrap());
        config.password_file = Some(self.directory.path().join("password"));
        config.tls = tls;
        config
    }

    fn heard(&self) -> String {
        String::from_utf8_lossy(&self.heard.lock().unwrap()).into_owned()
    }

    /// A session attaches, and the tap sees the password.
    async fn attaches(&self, tls: TlsConfig) -> Subject {
        let mut subject = Subject::start(self.config(tls));
        subject.wait_until(Condition::Attached).await;
        let answer = subject.handle.call(read(Command::Pid, 1)).await.unwrap();
        assert_eq!(answer.reply, Reply::Pid(self.server.pid()));
        assert!(self.heard().starts_with(PASSWORD), "{}", self.heard());
        subject
    }

    /// A session does not attach and gives `reason`, again and again, and the tap sees nothing at all.
    async fn refuses(&self, tls: TlsConfig, reason: &str) {
        let mut subject = Subject::start(self.config(tls));
        let found = loop {
            let found = subject.wait_until(Condition::Unreachable).await;
            // Until socat listens.
            if !found.contains("nobody listens") {
                break found;
            }
        };
        assert!(found.contains(reason), "{found}");
        subject
            .wait_for("another attempt", |observation| {
                matches!(observation, openvpn_session::Observation::NextAttempt(_)).then_some(())
            })
            .await;
        assert_eq!(self.heard(), "");
    }
}

/// Relays to the daemon's socket what comes, and keeps a copy.
async fn relay(listener: TcpListener, socket: PathBuf, heard: Arc<Mutex<Vec<u8>>>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(relay_one(stream, socket.clone(), Arc::clone(&heard)));
    }
}

async fn relay_one(
    mut stream: TcpStream,
    socket: PathBuf,
    heard: Arc<Mutex<Vec<u8>>>,
) -> std::io::Result<()> {
    let mut daemon = loop {
        match UnixStream::connect(&socket).await {
            Ok(daemon) => break daemon,
            // It has only just been started.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    let (mut from, mut to) = ([0; 4096], [0; 4096]);
    loop {
        tokio::select! {
            read = stream.read(&mut from) => {
                let length = read?;
                if length == 0 {
                    return Ok(());
                }
                heard.lock().unwrap().extend_from_slice(&from[..length]);
                daemon.write_all(&from[..length]).await?;
            }
            read = daemon.read(&mut to) => {
                let length = read?;
                if length == 0 {
                    return Ok(());
                }
                stream.write_all(&to[..length]).await?;
            }
        }
    }
}

fn named(ca: &Path) -> TlsConfig {
    TlsConfig {
        ca: Some(ca.to_owned()),
        server_name: Some("vpn.example".to_owned()),
        ..TlsConfig::default()
    }
}

fn pinned(fingerprint: &str) -> TlsConfig {
    TlsConfig {
        pin: Some(TlsConfig::parse_pin(fingerprint).unwrap()),
        ..TlsConfig::default()
    }
}

/// A server that is not known for the right one hears nothing, least of all the password; with the right authority or
/// fingerprint the same server leads to the daemon.
#[tokio::test]
async fn the_password_is_for_the_right_server_only() {
    let lab = within(Lab::start(|_, _| "verify=0".to_owned())).await;
    let other = Authority::new(lab.directory.path(), "other.crt");
    let other_print = other.issue(lab.directory.path(), "other.example").2;

    lab.refuses(named(&other.file), "not signed by the authority")
        .await;
    let mut unnamed = named(&lab.authority.file);
    unnamed.server_name = None;
    lab.refuses(unnamed, "for another name").await;
    lab.refuses(pinned(&other_print), "not the pinned one")
        .await;
    // One of the two does not do where both are asked for.
    let mut both = named(&lab.authority.file);
    both.pin = pinned(&other_print).pin;
    lab.refuses(both, "not the pinned one").await;
    let mut both = named(&other.file);
    both.pin = pinned(&lab.fingerprint).pin;
    lab.refuses(both, "not signed by the authority").await;
    lab.refuses(TlsConfig::default(), "set ca or pin").await;

    drop(lab.attaches(named(&lab.authority.file)).await);
    lab.heard.lock().unwrap().clear();
    drop(lab.attaches(pinned(&lab.fingerprint)).await);
}

/// A server that wants a certificate of ours gets it; without one the reason says what is missing.
#[tokio::test]
async fn a_client_certificate_is_shown() {
    let lab = within(Lab::start(|_, authority| {
        format!("verify=1,cafile={}", authority.file.display())
    }))
    .await;
    let (cert, key, _) = lab.authority.issue(lab.directory.path(), "gateway");
    let mut subject = Subject::start(lab.config(named(&lab.authority.file)));
    loop {
        let reason = subject.wait_until(Condition::Unreachable).await;
        if reason.contains("client certificate") {
            break;
        }
        // Until socat listens.
        assert!(reason.contains("nobody listens"), "{reason}");
    }
    assert_eq!(lab.heard(), "");
    drop(subject);
    let mut tls = named(&lab.authority.file);
    (tls.cert, tls.key) = (Some(cert), Some(key));
    lab.attaches(tls).await;
}

/// A port that does not speak TLS is named as such.
#[tokio::test]
async fn a_port_without_tls_is_named() {
    let port = free_port().to_string();
    let _server = Server::start(&["--management", "127.0.0.1", &port]);
    let mut config = SessionConfig::new(format!("tls:127.0.0.1:{port}").parse().unwrap());
    config.tls = pinned(&format!("sha256:{}", "0".repeat(64)));
    let mut subject = Subject::start(config);
    loop {
        let reason = subject.wait_until(Condition::Unreachable).await;
        if reason.contains("does not speak TLS") {
            break;
        }
        assert!(reason.contains("nobody listens"), "{reason}");
    }
}
