//! Processes of a real OpenVPN and the certificates they need.

use std::cell::RefCell;
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use std::{fs, io};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair,
};
use tokio::time::{sleep, timeout};

use crate::manager::PATIENCE;

/// A process that does not outlive its test.
pub(crate) struct Process(RefCell<Child>);

impl Process {
    /// Returns once it has ended by itself, and whether well.
    pub(crate) async fn ended(&self) -> bool {
        let ended = async {
            loop {
                if let Some(status) = self.0.borrow_mut().try_wait().unwrap() {
                    return status;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        let status = timeout(PATIENCE, ended).await.expect("the end of openvpn");
        status.success()
    }

    /// SIGTERM, from outside.
    pub(crate) fn terminate(&self) {
        let pid = self.0.borrow().id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(sent.unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let child = self.0.get_mut();
        let _ = child.kill();
        let _ = child.wait();
    }
}

pub(crate) fn openvpn(directory: &Path, name: &str, config: &str) -> Process {
    let path = directory.join(format!("{name}.conf"));
    fs::write(&path, config).unwrap();
    let log = fs::File::create(directory.join(format!("{name}.log"))).unwrap();
    let child = Command::new("openvpn")
        .arg("--config")
        .arg(&path)
        .stdin(Stdio::null())
        .stdout(log)
        .spawn()
        .expect("openvpn 2.6.14 must be installed");
    Process(RefCell::new(child))
}

/// A port of 127.0.0.1 that is nobody else's as long as this process runs: below those that the system gives away by
/// itself, and claimed by an abstract socket, which other test processes see too.
pub(crate) fn free_port() -> io::Result<u16> {
    const FIRST: u16 = 30_000;
    const COUNT: u16 = 2_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    for _ in 0..COUNT {
        let port = FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        let name = SocketAddr::from_abstract_name(format!("ovfleet-replay/{port}"))?;
        let Ok(claim) = UnixListener::bind_addr(&name) else {
            continue;
        };
        let address = ("127.0.0.1", port);
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            // The kernel gives it up when the process ends.
            std::mem::forget(claim);
            return Ok(port);
        }
    }
    Err(io::Error::other(format!("all {COUNT} ports are taken")))
}

/// An authority, and what it signed for the server.
pub(crate) struct Pki {
    authority: String,
    issuer: Issuer<'static, KeyPair>,
    pub(crate) server: String,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "Test CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let authority = params.self_signed(&key).unwrap().pem();
        let mut pki = Self {
            authority,
            issuer: Issuer::new(params, key),
            server: String::new(),
        };
        pki.server = pki.identity("server", ExtendedKeyUsagePurpose::ServerAuth);
        pki
    }

    /// Certificates and key of a client, as its configuration has them.
    pub(crate) fn client(&self, common_name: &str) -> String {
        self.identity(common_name, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn identity(&self, common_name: &str, usage: ExtendedKeyUsagePurpose) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        // As the certificates of the recordings have it.
        for (kind, value) in [
            (DnType::CountryName, "DE"),
            (DnType::OrganizationName, "Example Org"),
            (DnType::OrganizationalUnitName, "Ops"),
            (DnType::CommonName, common_name),
        ] {
            params.distinguished_name.push(kind, value);
        }
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        let (authority, key) = (&self.authority, key.serialize_pem());
        format!("<ca>\n{authority}</ca>\n<cert>\n{certificate}</cert>\n<key>\n{key}</key>\n")
    }
}
