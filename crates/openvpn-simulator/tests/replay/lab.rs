//! Processes of a real OpenVPN and the certificates they need.

use std::cell::RefCell;
use std::path::Path;
use std::process::{Child, Command, Stdio};
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

pub(crate) fn free_port() -> io::Result<u16> {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    Ok(socket.local_addr()?.port())
}

/// The same for TCP, whose ports are others.
pub(crate) fn free_tcp_port() -> io::Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    Ok(listener.local_addr()?.port())
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
