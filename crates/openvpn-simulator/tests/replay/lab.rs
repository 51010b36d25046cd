//! Processes of a real OpenVPN and the certificates they need.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::{fs, io};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair,
};

/// A process that does not outlive its test.
pub(crate) struct Process(Child);

impl Process {
    /// SIGTERM, from outside.
    pub(crate) fn terminate(&self) {
        let pid = self.0.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(sent.unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
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
    Process(child)
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
