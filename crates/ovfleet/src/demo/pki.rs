//! A certificate authority for as long as a demonstration lasts.

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};

/// Signs servers and clients; its key lives in memory alone.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Authority {
    pub(crate) fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name = name("ovfleet demo CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self {
            issuer: Issuer::new(params, key),
            certificate,
        })
    }

    /// The lines of a server's configuration that prove who it is.
    pub(crate) fn server(&self, common_name: &str) -> Result<String> {
        self.identity(common_name, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// The lines of a client's configuration that prove who it is.
    pub(crate) fn client(&self, common_name: &str) -> Result<String> {
        self.identity(common_name, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn identity(&self, common_name: &str, usage: ExtendedKeyUsagePurpose) -> Result<String> {
        let mut params = CertificateParams::default();
        params.distinguished_name = name(common_name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(format!(
            "<ca>\n{}</ca>\n<cert>\n{certificate}</cert>\n<key>\n{}</key>\n",
            self.certificate,
            key.serialize_pem()
        ))
    }
}

fn name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}
