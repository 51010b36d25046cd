//! `mux`: virtual management sockets of an instance, for the tools people have.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use openvpn_mux::{Away, Policy};

use super::{
    error::Mistakes,
    instance::Templated,
    listen::{SOCKET_MODE, SocketConfig, parse_mode, parse_tcp},
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
    pub policy: Policy,
    /// The file with what they must say first; only its owner may have access to it.
    pub password_file: Option<PathBuf>,
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
}

/// The same before its placeholders are filled in.
#[derive(Clone, Debug)]
pub(super) struct MuxTemplate {
    address: Templated,
    policy: Policy,
    password_file: Option<Templated>,
    away: Away,
    mode: Option<u32>,
    owner: Option<String>,
    group: Option<String>,
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
                policy: Policy::ReadOnly,
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
        // A policy that cannot be read must not become the default one.
        let policy = section
            .take("policy")
            .map_or(Some(Policy::ReadOnly), |value| read_policy(&value));
        let password_file = section
            .take("password_file")
            .map(|value| Templated::read(&value));
        let away = section
            .take("away")
            .and_then(|value| value.parsed(parse_away));
        let mode = section
            .take("mode")
            .and_then(|value| value.parsed(parse_mode));
        let owner = read_text(&mut section, "owner");
        let group = read_text(&mut section, "group");
        section.finish();
        // Neither must a password be forgotten.
        let password_file = match password_file {
            None => None,
            Some(file) => Some(file?),
        };
        Some(Self {
            address: address?,
            policy: policy?,
            password_file,
            away: away.unwrap_or_default(),
            mode,
            owner,
            group,
        })
    }

    /// The socket of one instance; `None` after mistakes.
    pub(super) fn build(&self, values: &Values<'_>, mistakes: &Mistakes) -> Option<MuxConfig> {
        let text = self.address.require(values, mistakes)?;
        let is_for_unix = self.mode.is_some() || self.owner.is_some() || self.group.is_some();
        let address = match text.strip_prefix("unix:") {
            Some("") => Err("`unix:` needs a path".to_owned()),
            Some(path) => Ok(MuxAddress::Unix(SocketConfig {
                path: self.resolve(path),
                mode: self.mode.unwrap_or(SOCKET_MODE),
                owner: self.owner.clone(),
                group: self.group.clone(),
            })),
            None if is_for_unix => Err("mode, owner and group are for Unix sockets".to_owned()),
            None => parse_loopback(&text).map(MuxAddress::Tcp),
        };
        let address = address
            .map_err(|message| self.address.error(mistakes, message))
            .ok()?;
        let password_file = match &self.password_file {
            Some(file) => Some(self.resolve(&file.require(values, mistakes)?)),
            None => None,
        };
        Some(MuxConfig {
            address,
            policy: self.policy.clone(),
            password_file,
            away: self.away,
        })
    }

    /// A relative path is relative to the directory of the file it stands in.
    fn resolve(&self, path: &str) -> PathBuf {
        let directory = self.address.place().file.parent();
        directory.unwrap_or(Path::new("")).join(path)
    }
}

impl MuxAddress {
    /// For messages, and to find two that are equal.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Unix(socket) => format!("unix:{}", socket.path.display()),
            Self::Tcp(address) => format!("tcp:{address}"),
        }
    }
}

fn read_text(section: &mut Section<'_>, key: &'static str) -> Option<String> {
    let value = section.take(key)?;
    value.string().map(str::to_owned)
}

/// A level, or a list of commands.
fn read_policy(value: &Value<'_>) -> Option<Policy> {
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
            "{address} would be plaintext beyond loopback: use a loopback address, or a Unix socket"
        ));
    }
    Ok(address)
}
