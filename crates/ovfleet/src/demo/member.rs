//! The instances of a demonstration, and the configuration that names them.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

/// One instance, as the gateway is told of it.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) name: String,
    /// `unix:/path` or `tcp:host:port`.
    pub(crate) address: String,
    pub(crate) password_file: Option<PathBuf>,
    pub(crate) region: &'static str,
    /// What its clients speak: `udp` or `tcp`.
    pub(crate) proto: &'static str,
}

/// The configuration of a gateway over these instances.
pub(crate) fn configuration(members: &[Member], port: u16) -> String {
    let mut text = format!(
        "name = \"demo\"\n\
         [listen]\n\
         # Everybody on this machine may command these toys.\n\
         grpc = {{ address = \"127.0.0.1:{port}\", plaintext_control = true }}\n\
         [defaults]\n\
         bytecount = \"2s\"\n"
    );
    for member in members {
        let Member {
            name,
            address,
            password_file,
            region,
            proto,
        } = member;
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "[[instance]]\n\
             name = {}\n\
             address = {}\n\
             labels = {{ region = \"{region}\", proto = \"{proto}\" }}\n",
            quoted(name),
            quoted(address),
        );
        if let Some(file) = password_file {
            let _ = writeln!(
                text,
                "password_file = {}",
                quoted(&file.display().to_string())
            );
        }
    }
    text
}

/// A TOML string: JSON's escapes are among TOML's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Writes a file that only its owner can read.
pub(crate) fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())
}
