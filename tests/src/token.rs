//! A PKCS#11 token in software, SoftHSM's, with a VPN client's certificate and key.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use crate::{
    directory::new_directory,
    pki::{Authority, openssl},
    process::{find_program, mortal},
    server::write_private,
};

/// A directory with tokens, as SoftHSM sees them who are told of it.
#[derive(Debug)]
pub struct Token {
    directory: TempDir,
}

impl Token {
    /// What an application loads to get at it.
    pub const PROVIDER: &str = "/usr/lib/softhsm/libsofthsm2.so";

    /// A place for tokens without any.
    ///
    /// # Errors
    /// SoftHSM is not installed.
    pub fn none() -> Result<Self> {
        ensure!(
            Path::new(Self::PROVIDER).exists(),
            "SoftHSM is not installed, and the scenarios need it: `apt-get install softhsm2`"
        );
        let directory = new_directory()?;
        let tokens = directory.path().join("tokens");
        fs::create_dir(&tokens)?;
        let config = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
            tokens.display()
        );
        write_private(&directory.path().join("softhsm2.conf"), &config)?;
        Ok(Self { directory })
    }

    /// A token `label` that opens with `pin`, with a client's key and its certificate, which says `common_name`.
    ///
    /// # Errors
    /// SoftHSM or OpenSC is not installed, or refuses.
    pub fn with_client(label: &str, pin: &str, common_name: &str) -> Result<Self> {
        let token = Self::none()?;
        let leaf = Authority::get()?.client(common_name)?;
        let key = token.directory.path().join("key.pem");
        write_private(&key, &leaf.key)?;
        let certificate = token.directory.path().join("certificate.der");
        let der = openssl(&["x509", "-outform", "der"], leaf.certificate.as_bytes())?;
        fs::write(&certificate, der)?;
        let (key, certificate) = (key.display().to_string(), certificate.display().to_string());
        let softhsm = |arguments: &[&str]| token.run("softhsm2-util", "softhsm2", arguments);
        softhsm(&[
            "--init-token",
            "--free",
            "--label",
            label,
            "--so-pin",
            "1234567890",
            "--pin",
            pin,
        ])?;
        softhsm(&[
            "--import",
            &key,
            "--token",
            label,
            "--label",
            common_name,
            "--id",
            "01",
            "--pin",
            pin,
        ])?;
        token.run(
            "pkcs11-tool",
            "opensc",
            &[
                "--module",
                Self::PROVIDER,
                "--token-label",
                label,
                "--login",
                "--pin",
                pin,
                "--write-object",
                &certificate,
                "--type",
                "cert",
                "--id",
                "01",
                "--label",
                common_name,
            ],
        )?;
        Ok(token)
    }

    /// The variable that tells SoftHSM of it.
    pub(crate) fn environment(&self) -> (&'static str, String) {
        let config = self.directory.path().join("softhsm2.conf");
        ("SOFTHSM2_CONF", config.display().to_string())
    }

    fn run(&self, program: &str, package: &str, arguments: &[&str]) -> Result<()> {
        let path = find_program(program, &format!("`apt-get install {package}`"))?;
        let mut command: Command = mortal(path);
        let (name, value) = self.environment();
        let output = command
            .args(arguments)
            .env(name, value)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start {program}"))?;
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} failed: {words}");
        Ok(())
    }
}
