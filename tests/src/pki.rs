//! A small PKI: one authority per test process, leaves on demand, and a holder of keys who signs.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    sync::OnceLock,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};

use crate::{
    directory::new_directory,
    process::{find_program, mortal},
    server::write_private,
};

/// A certificate and its key, PEM.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

/// Signs leaves (EC P-256, as everything here but a key that is asked to be RSA).
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
        let usage = ExtendedKeyUsagePurpose::ServerAuth;
        self.sign("server", None, usage, KeyPair::generate()?)
    }

    /// A leaf for a server that callers find under the DNS name `host`.
    ///
    /// # Errors
    /// It cannot be signed.
    pub fn host(&self, host: &str) -> Result<Leaf> {
        let usage = ExtendedKeyUsagePurpose::ServerAuth;
        self.sign(host, Some(host), usage, KeyPair::generate()?)
    }

    /// A leaf whose common name is exactly `common_name`, as a UTF8String.
    ///
    /// # Errors
    /// It cannot be signed.
    pub fn client(&self, common_name: &str) -> Result<Leaf> {
        let usage = ExtendedKeyUsagePurpose::ClientAuth;
        self.sign(common_name, None, usage, KeyPair::generate()?)
    }

    /// The same with an RSA key.
    pub(crate) fn client_rsa(&self, common_name: &str) -> Result<Leaf> {
        let key = openssl(
            &[
                "genpkey",
                "-algorithm",
                "RSA",
                "-pkeyopt",
                "rsa_keygen_bits:2048",
            ],
            &[],
        )?;
        let key = KeyPair::from_pem(&String::from_utf8(key)?)?;
        let usage = ExtendedKeyUsagePurpose::ClientAuth;
        self.sign(common_name, None, usage, key)
    }

    /// The same with a DNS name besides.
    ///
    /// # Errors
    /// It cannot be signed.
    pub fn client_at(&self, common_name: &str, host: &str) -> Result<Leaf> {
        let usage = ExtendedKeyUsagePurpose::ClientAuth;
        self.sign(common_name, Some(host), usage, KeyPair::generate()?)
    }

    fn sign(
        &self,
        common_name: &str,
        host: Option<&str>,
        usage: ExtendedKeyUsagePurpose,
        key: KeyPair,
    ) -> Result<Leaf> {
        let hosts: Vec<String> = host.map(str::to_owned).into_iter().collect();
        let mut params = CertificateParams::new(hosts)?;
        params.distinguished_name = name(common_name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Leaf {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }
}

impl Leaf {
    /// Signs as a daemon's manager is asked to: `algorithm` in the words of `>PK_SIGN`, empty for `>RSA_SIGN`.
    pub(crate) fn signature(&self, data: &[u8], algorithm: &str) -> Result<Vec<u8>> {
        let (name, parameters) = algorithm.split_once(',').unwrap_or((algorithm, ""));
        let mut options = Vec::new();
        match name {
            // Of an RSA key it means PKCS#1; an EC key knows no padding.
            "" if self.is_rsa() => options.push("rsa_padding_mode:pkcs1".to_owned()),
            "" | "ECDSA" => {}
            "RSA_PKCS1_PADDING" => options.push("rsa_padding_mode:pkcs1".to_owned()),
            "RSA_PKCS1_PSS_PADDING" => {
                options.push("rsa_padding_mode:pss".to_owned());
                for parameter in parameters.split(',') {
                    match parameter.split_once('=').context("no parameter")? {
                        ("hashalg", hash) => options.push(format!("digest:{hash}")),
                        ("saltlen", length) => options.push(format!("rsa_pss_saltlen:{length}")),
                        other => return Err(anyhow!("what is {other:?}?")),
                    }
                }
            }
            other => return Err(anyhow!("what is {other:?}?")),
        }
        let directory = new_directory()?;
        let path = directory.path().join("key");
        write_private(&path, &self.key)?;
        let path = path.display().to_string();
        let mut arguments = vec!["pkeyutl", "-sign", "-inkey", &path];
        for option in &options {
            arguments.extend(["-pkeyopt", option]);
        }
        openssl(&arguments, data)
    }

    fn is_rsa(&self) -> bool {
        // An EC key of 256 bits fits three lines.
        self.key.lines().count() > 10
    }
}

/// What `openssl ARGUMENTS` writes when it reads `input`.
pub(crate) fn openssl(arguments: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    let program = find_program("openssl", "install OpenSSL, `apt-get install openssl`")?;
    let mut command: Command = mortal(program);
    let mut child = command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child
        .stdin
        .take()
        .context("no standard input")?
        .write_all(input)?;
    let output = child.wait_with_output()?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "openssl {arguments:?}: {words}");
    Ok(output.stdout)
}

fn name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}
