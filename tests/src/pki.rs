//! A small PKI: one authority per test process, leaves on demand.

use std::sync::OnceLock;

use anyhow::{Result, anyhow};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};

/// A certificate and its key, PEM.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

/// Signs leaves (EC P-256, as everything here).
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Authority {
    /// The authority of this test process.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn get() -> Result<&'static Self> {
        static AUTHORITY: OnceLock<Result<Authority, rcgen::Error>> = OnceLock::new();
        AUTHORITY
            .get_or_init(Self::new)
            .as_ref()
            .map_err(|error| anyhow!("cannot make the test CA: {error}"))
    }

    /// Another authority, which nobody trusts.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new() -> Result<Self, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = name("Lab CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self {
            issuer: Issuer::new(params, key),
            certificate,
        })
    }

    /// The CA certificate, PEM.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    pub(crate) fn server(&self) -> Result<Leaf> {
        self.sign("server", None, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A leaf for a server that callers find under the DNS name `host`.
    ///
    /// # Errors
    /// It cannot be signed.
    pub fn host(&self, host: &str) -> Result<Leaf> {
        self.sign(host, Some(host), ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A leaf whose common name is exactly `common_name`, as a UTF8String.
    ///
    /// # Errors
    /// It cannot be signed.
    pub fn client(&self, common_name: &str) -> Result<Leaf> {
        self.sign(common_name, None, ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// The same with a DNS name besides.
    ///
    /// # Errors
    /// It cannot be signed.
    pub fn client_at(&self, common_name: &str, host: &str) -> Result<Leaf> {
        self.sign(common_name, Some(host), ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn sign(
        &self,
        common_name: &str,
        host: Option<&str>,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<Leaf> {
        let hosts: Vec<String> = host.map(str::to_owned).into_iter().collect();
        let mut params = CertificateParams::new(hosts)?;
        params.distinguished_name = name(common_name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Leaf {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }
}

fn name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}
