//! `[listen]`: where the gateway answers, and to whom.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use super::reader::{Section, Value};

/// The Unix socket of a gateway that runs as root and names no listener.
pub const DEFAULT_SOCKET: &str = "/run/ovfleet/ovfleet.sock";
/// Mode of a Unix socket: its owner and its group may command the fleet.
pub(super) const SOCKET_MODE: u32 = 0o660;

/// Where the gateway answers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ListenConfig {
    /// Where gRPC is served; at least one.
    pub grpc: Vec<GrpcListener>,
    /// Where `/metrics`, `/healthz` and `/readyz` are served, in plain HTTP.
    pub http: Vec<HttpListener>,
}

/// One HTTP listener.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum HttpListener {
    /// TCP.
    Tcp(SocketAddr),
    /// TCP, and handed down to the process under this name.
    Inherited(String),
}

/// One gRPC listener.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum GrpcListener {
    /// A Unix socket: the kernel says who calls.
    Unix(SocketConfig),
    /// TCP without TLS, on loopback only.
    Plaintext {
        /// Where to listen.
        address: SocketAddr,
        /// Callers may kill and signal. Any user of this machine can call.
        control: bool,
    },
    /// TCP with TLS.
    Tls {
        /// Where to listen.
        address: SocketAddr,
        /// Certificate, key, and whose clients are let in.
        files: TlsFiles,
        /// Callers without a certificate may kill and signal.
        control: bool,
    },
    /// A socket that was handed down to the process. What it is bound to says what is allowed on it.
    Inherited {
        /// Its name (`FileDescriptorName=` of systemd).
        name: String,
        /// Certificate, key, and whose clients are let in; of TCP only.
        tls: Option<TlsFiles>,
        /// Callers that nobody has identified may kill and signal.
        control: bool,
    },
}

impl GrpcListener {
    /// The files of its TLS, if it has any.
    pub(crate) fn tls(&self) -> Option<&TlsFiles> {
        match self {
            Self::Unix(_) | Self::Plaintext { .. } => None,
            Self::Tls { files, .. } => Some(files),
            Self::Inherited { tls, .. } => tls.as_ref(),
        }
    }
}

/// A Unix socket and who may connect to it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SocketConfig {
    /// Its path.
    pub path: PathBuf,
    /// Its mode.
    pub mode: u32,
    /// Its owner, by name or number; `None` is the user of the gateway.
    pub owner: Option<String>,
    /// Its group, by name or number; `None` is the group of the gateway.
    pub group: Option<String>,
}

/// PEM files of a TLS listener.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TlsFiles {
    /// The certificate chain of the gateway, its own first.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authorities whose certificates callers must show; `None` asks for none.
    pub client_ca: Option<PathBuf>,
}

impl Default for SocketConfig {
    fn default() -> Self {
        Self {
            path: PathBuf::from(DEFAULT_SOCKET),
            mode: SOCKET_MODE,
            owner: None,
            group: None,
        }
    }
}

/// Reads `[listen]`; without one, and without `grpc` in it, the default socket.
pub(super) fn read(root: &mut Section<'_>) -> ListenConfig {
    let mut section = root.take("listen").and_then(|value| value.section());
    let (mut grpc, mut http) = (Vec::new(), Vec::new());
    let mut default_wanted = true;
    if let Some(section) = &mut section {
        if let Some(value) = section.take("grpc") {
            default_wanted = false;
            let items = value.items();
            if items.is_empty() {
                value.error("needs at least one address");
            }
            grpc = items.iter().filter_map(read_grpc).collect();
        }
        if let Some(value) = section.take("http") {
            http = value.items().iter().filter_map(read_http).collect();
        }
    }
    if default_wanted {
        match default_socket() {
            Some(path) => grpc.push(GrpcListener::Unix(SocketConfig {
                path,
                ..SocketConfig::default()
            })),
            None => root.error(
                "listen.grpc",
                "there is no XDG_RUNTIME_DIR for the default socket: name a listener",
            ),
        }
    }
    if let Some(section) = section {
        section.finish();
    }
    ListenConfig { grpc, http }
}

fn default_socket() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from(DEFAULT_SOCKET));
    }
    let directory = std::env::var_os("XDG_RUNTIME_DIR")?;
    Some(PathBuf::from(directory).join("ovfleet.sock"))
}

fn read_grpc(value: &Value<'_>) -> Option<GrpcListener> {
    if !value.is_table() {
        return match Address::read(value)? {
            Address::Unix(path) => Some(GrpcListener::Unix(SocketConfig {
                path,
                ..SocketConfig::default()
            })),
            Address::Tcp(address) => plaintext(value, address, false),
            Address::Inherited(name) => Some(GrpcListener::Inherited {
                name,
                tls: None,
                control: false,
            }),
        };
    }
    let mut section = value.section()?;
    let address = section
        .require("address")
        .and_then(|value| Address::read(&value));
    let listener = match address {
        None => None,
        Some(Address::Unix(path)) => Some(GrpcListener::Unix(read_socket(&mut section, path))),
        Some(Address::Tcp(address)) => read_tcp(value, &mut section, address),
        Some(Address::Inherited(name)) => read_inherited(&mut section, name),
    };
    if listener.is_some() {
        section.finish();
    }
    listener
}

fn read_socket(section: &mut Section<'_>, path: PathBuf) -> SocketConfig {
    let mode = section
        .take("mode")
        .and_then(|value| value.parsed(parse_mode));
    let text = |value: Value<'_>| value.string().map(str::to_owned);
    SocketConfig {
        path,
        mode: mode.unwrap_or(SOCKET_MODE),
        owner: section.take("owner").and_then(text),
        group: section.take("group").and_then(text),
    }
}

fn read_tcp(
    value: &Value<'_>,
    section: &mut Section<'_>,
    address: SocketAddr,
) -> Option<GrpcListener> {
    let control = section.take("plaintext_control");
    let allowed = control.as_ref().and_then(Value::boolean).unwrap_or(false);
    let Some(tls) = section.take("tls") else {
        return plaintext(value, address, allowed);
    };
    let files = read_tls(&tls)?;
    if files.client_ca.is_some() {
        if let Some(control) = control {
            control.error("has no meaning here: callers of this listener show a certificate");
        }
    } else if !address.ip().is_loopback() {
        tls.error(format!(
            "anybody who reaches {address} could read the whole fleet: \
             set client_ca, or listen on a loopback address"
        ));
        return None;
    }
    Some(GrpcListener::Tls {
        address,
        files,
        control: allowed,
    })
}

fn read_inherited(section: &mut Section<'_>, name: String) -> Option<GrpcListener> {
    let control = section.take("plaintext_control");
    let allowed = control.as_ref().and_then(Value::boolean).unwrap_or(false);
    let tls = match section.take("tls") {
        None => None,
        Some(tls) => Some(read_tls(&tls)?),
    };
    if let Some(control) = control
        && tls.as_ref().is_some_and(|files| files.client_ca.is_some())
    {
        control.error("has no meaning here: callers of this listener show a certificate");
    }
    Some(GrpcListener::Inherited {
        name,
        tls,
        control: allowed,
    })
}

fn read_tls(value: &Value<'_>) -> Option<TlsFiles> {
    let mut section = value.section()?;
    let cert = section.require("cert").and_then(|value| value.path());
    let key = section.require("key").and_then(|value| value.path());
    let client_ca = section.take("client_ca").map(|value| value.path());
    section.finish();
    // A client_ca that cannot be read must not become "no client_ca".
    let client_ca = match client_ca {
        None => None,
        Some(path) => Some(path?),
    };
    Some(TlsFiles {
        cert: cert?,
        key: key?,
        client_ca,
    })
}

fn plaintext(value: &Value<'_>, address: SocketAddr, control: bool) -> Option<GrpcListener> {
    if !address.ip().is_loopback() {
        value.error(format!(
            "{address} would be plaintext beyond loopback: add tls = {{ cert, key, client_ca }}"
        ));
        return None;
    }
    Some(GrpcListener::Plaintext { address, control })
}

fn read_http(value: &Value<'_>) -> Option<HttpListener> {
    let section = if value.is_table() {
        Some(value.section()?)
    } else {
        None
    };
    let address = match section {
        None => Address::read(value),
        Some(mut section) => {
            let address = section
                .require("address")
                .and_then(|value| Address::read(&value));
            section.finish();
            address
        }
    };
    match address? {
        Address::Tcp(address) => Some(HttpListener::Tcp(address)),
        Address::Inherited(name) => Some(HttpListener::Inherited(name)),
        Address::Unix(_) => {
            value.error("must be an IP address with port, such as \"127.0.0.1:7601\"");
            None
        }
    }
}

enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
    Inherited(String),
}

impl Address {
    fn read(value: &Value<'_>) -> Option<Self> {
        let text = value.string()?;
        if let Some(name) = text.strip_prefix("fd:") {
            // The separator of the names in the environment.
            if name.is_empty() || name.contains(':') {
                value.error(
                    "`fd:` needs a name, without colons: FileDescriptorName= of the socket unit",
                );
                return None;
            }
            return Some(Self::Inherited(name.to_owned()));
        }
        match text.strip_prefix("unix:") {
            Some("") => {
                value.error("`unix:` needs a path");
                None
            }
            Some(path) => Some(Self::Unix(value.resolve(path))),
            None => value.parsed(parse_tcp).map(Self::Tcp),
        }
    }
}

pub(super) fn parse_tcp(text: &str) -> Result<SocketAddr, String> {
    let address = text.strip_prefix("tcp:").unwrap_or(text);
    if let Some(port) = address.strip_prefix("localhost:")
        && let Ok(port) = port.parse()
    {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    address.parse().map_err(|_| {
        format!("`{text}` is no address to listen on: write \"unix:/path\" or an IP address with port, such as \"127.0.0.1:7600\"")
    })
}

pub(super) fn parse_mode(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    match u32::from_str_radix(digits, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err(format!(
            "`{text}` is not a mode: write it in octal, such as \"0660\""
        )),
    }
}
