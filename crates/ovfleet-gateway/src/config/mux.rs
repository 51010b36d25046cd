//! `mux`: virtual management sockets of an instance, for the tools people have.

use std::{net::SocketAddr, path::PathBuf};

use openvpn_mux::{Away, Policy};

use super::{
    certificate::{CertificatesTemplate, Rights, TlsFilesTemplate},
    error::Mistakes,
    instance::Templated,
    listen::{SOCKET_MODE, SocketConfig, TlsFiles, parse_mode, parse_tcp},
    reader::{Section, Value},
    template::Values,
};

/// Most virtual sockets of one instance.
const SOCKETS_MAX: usize = 16;

/// One virtual management socket.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MuxConfig {
    /// Where its tools connect.
    pub address: MuxAddress,
    /// What they may do.
    pub rights: Rights,
    /// The file with what they must say first; only its owner may have access to it.
    pub password_file: Option<PathBuf>,
    /// Files that are named under this directory must really be there.
    pub files_within: Option<PathBuf>,
    /// What happens to those that come while the daemon is away.
    pub away: Away,
}

/// Where a virtual management socket is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum MuxAddress {
    /// A Unix socket.
    Unix(SocketConfig),
    /// TCP on loopback: the management protocol knows no encryption.
    Tcp(SocketAddr),
    /// TCP with TLS, for tools with a certificate.
    Tls(SocketAddr, TlsFiles),
}

/// The same before its placeholders are filled in.
#[derive(Clone, Debug)]
pub(super) struct MuxTemplate {
    address: Templated,
    tls: Option<TlsFilesTemplate>,
    /// `None` is not said.
    policy: Option<Policy>,
    certificates: Option<CertificatesTemplate>,
    password_file: Option<Templated>,
    away: Away,
    mode: Option<u32>,
    owner: Option<Templated>,
    group: Option<Templated>,
}

pub(super) fn read(value: &Value<'_>) -> Vec<MuxTemplate> {
    let items = value.items();
    if items.len() > SOCKETS_MAX {
        value.error(format!("has more than {SOCKETS_MAX} sockets"));
        return Vec::new();
    }
    items.iter().filter_map(MuxTemplate::read).collect()
}

impl MuxTemplate {
    fn read(value: &Value<'_>) -> Option<Self> {
        if !value.is_table() {
            return Some(Self {
                address: Templated::read(value)?,
                tls: None,
                policy: None,
                certificates: None,
                password_file: None,
                away: Away::Wait,
                mode: None,
                owner: None,
                group: None,
            });
        }
        let mut section = value.section()?;
        let address = section
            .require("address")
            .and_then(|value| Templated::read(&value));
        // What restricts and cannot be read must not become "not said".
        let tls = take(&mut section, "tls", TlsFilesTemplate::read);
        let policy = take(&mut section, "policy", read_policy);
        let certificates = take(&mut section, "certificates", CertificatesTemplate::read);
        let password_file = take(&mut section, "password_file", Templated::read);
        let away = section
            .take("away")
            .and_then(|value| value.parsed(parse_away));
        let mode = take(&mut section, "mode", |value| value.parsed(parse_mode));
        let owner = take(&mut section, "owner", Templated::read);
        let group = take(&mut section, "group", Templated::read);
        section.finish();
        Some(Self {
            address: address?,
            tls: tls?,
            policy: policy?,
            certificates: certificates?,
            password_file: password_file?,
            away: away.unwrap_or_default(),
            mode: mode?,
            owner: owner?,
            group: group?,
        })
    }

    /// The socket of one instance; `None` after mistakes.
    pub(super) fn build(&self, values: &Values<'_>, mistakes: &Mistakes) -> Option<MuxConfig> {
        let text = |template| expand(template, values, mistakes);
        let address = self.address(values, mistakes)?;
        let certificates = match &self.certificates {
            None => Vec::new(),
            Some(certificates) => certificates.build(values, mistakes)?,
        };
        // Who lists some and says nothing of others means these.
        let others = match &self.policy {
            None if !certificates.is_empty() => None,
            policy => Some(policy.clone().unwrap_or_default()),
        };
        let password_file = match text(&self.password_file)?.zip(self.password_file.as_ref()) {
            None => None,
            Some((file, template)) => Some(template.file(&file, values, mistakes)?),
        };
        let has_files = password_file.is_some() || matches!(address, MuxAddress::Tls(..));
        Some(MuxConfig {
            address,
            rights: Rights {
                certificates,
                others,
            },
            password_file,
            files_within: has_files.then(|| values.files.directory()).flatten(),
            away: self.away,
        })
    }

    /// `None` after mistakes.
    fn address(&self, values: &Values<'_>, mistakes: &Mistakes) -> Option<MuxAddress> {
        let address = self.address.require(values, mistakes)?;
        let is_mistaken = |message: String| self.address.error(mistakes, message);
        if let Some(port) = address.strip_prefix("tls:") {
            self.refuse_file_keys(mistakes)?;
            let listening = parse_port(port).map_err(is_mistaken).ok()?;
            let Some(tls) = &self.tls else {
                is_mistaken("needs tls = { cert, key, client_ca }".to_owned());
                return None;
            };
            return Some(MuxAddress::Tls(listening, tls.build(values, mistakes)?));
        }
        // Whoever wrote them must not believe that they protect.
        let message = || format!("has no meaning for {address}: TLS is for tls:IP:PORT");
        if let Some(tls) = &self.tls {
            tls.error(mistakes, message());
            return None;
        }
        if let Some(certificates) = &self.certificates {
            certificates.error(mistakes, message());
            return None;
        }
        let text = |template| expand(template, values, mistakes);
        match address.strip_prefix("unix:") {
            Some("") => {
                is_mistaken("`unix:` needs a path".to_owned());
                None
            }
            Some(path) => Some(MuxAddress::Unix(SocketConfig {
                path: self.address.resolve(path, mistakes)?,
                mode: self.mode.unwrap_or(SOCKET_MODE),
                owner: text(&self.owner)?,
                group: text(&self.group)?,
            })),
            None => {
                self.refuse_file_keys(mistakes)?;
                let address = parse_loopback(&address).map_err(is_mistaken).ok()?;
                Some(MuxAddress::Tcp(address))
            }
        }
    }

    /// `None` if something is set that only a file has.
    fn refuse_file_keys(&self, mistakes: &Mistakes) -> Option<()> {
        if self.mode.is_none() && self.owner.is_none() && self.group.is_none() {
            return Some(());
        }
        let message = "mode, owner and group are for Unix sockets";
        self.address.error(mistakes, message);
        None
    }
}

impl MuxAddress {
    /// For messages, and to find two that are equal.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Unix(socket) => format!("unix:{}", socket.path.display()),
            Self::Tcp(address) => format!("tcp:{address}"),
            Self::Tls(address, _) => format!("tls:{address}"),
        }
    }
}

/// The text, if there is one; the outer `None` is a mistake in it.
#[expect(clippy::option_option, reason = "a mistake is not the same as nothing")]
fn expand(
    template: &Option<Templated>,
    values: &Values<'_>,
    mistakes: &Mistakes,
) -> Option<Option<String>> {
    match template {
        None => Some(None),
        Some(template) => template.require(values, mistakes).map(Some),
    }
}

/// The value of a key; the outer `None` is a mistake in it, the inner one that it is not there.
#[expect(clippy::option_option, reason = "a mistake is not the same as nothing")]
fn take<T>(
    section: &mut Section<'_>,
    key: &'static str,
    read: impl FnOnce(&Value<'_>) -> Option<T>,
) -> Option<Option<T>> {
    match section.take(key) {
        None => Some(None),
        Some(value) => read(&value).map(Some),
    }
}

/// A level, or a list of commands.
pub(super) fn read_policy(value: &Value<'_>) -> Option<Policy> {
    if value.is_list() {
        let names: Option<Vec<&str>> = value.items().iter().map(Value::string).collect();
        return Policy::of_verbs(names?)
            .map_err(|error| value.error(error.to_string()))
            .ok();
    }
    value.parsed(|text| match text {
        "read-only" => Ok(Policy::ReadOnly),
        "operator" => Ok(Policy::Operator),
        "full" => Ok(Policy::Full),
        _ => Err(format!(
            "`{text}` is none of \"read-only\", \"operator\", \"full\", or a list of commands"
        )),
    })
}

fn parse_away(text: &str) -> Result<Away, String> {
    match text {
        "wait" => Ok(Away::Wait),
        "close" => Ok(Away::Close),
        _ => Err(format!("`{text}` is neither \"wait\" nor \"close\"")),
    }
}

fn parse_loopback(text: &str) -> Result<SocketAddr, String> {
    let address = parse_tcp(text)?;
    if !address.ip().is_loopback() {
        return Err(format!(
            "{address} would be plaintext beyond loopback: use a loopback address, a Unix socket, or tls:"
        ));
    }
    Ok(address)
}

/// What stands behind `tls:`.
fn parse_port(text: &str) -> Result<SocketAddr, String> {
    match text.strip_prefix("tcp:") {
        None => parse_tcp(text).ok(),
        Some(_) => None,
    }
    .ok_or_else(|| {
        format!("`tls:{text}` is no address to listen on: write an IP address with port, such as \"tls:0.0.0.0:7508\"")
    })
}
