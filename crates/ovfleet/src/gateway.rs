//! The connection to the gateway that a command calls.

use std::{
    env,
    error::Error,
    fmt, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use ovfleet_gateway::DEFAULT_SOCKET;
use ovfleet_proto::v1::{
    control_service_client::ControlServiceClient, event_service_client::EventServiceClient,
    fleet_service_client::FleetServiceClient, instance_service_client::InstanceServiceClient,
    inventory_service_client::InventoryServiceClient,
};
use tonic::{
    Request, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Uri},
};

use crate::{
    args::CallerArgs,
    failure::{Failure, explain},
};

/// Where one listens that has no Unix socket.
const LOOPBACK: &str = "http://127.0.0.1:7600";
/// Certificates that the system trusts, on Debian and its kin.
const SYSTEM_CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// How long a gateway may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a call may take, unless said.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// A page of a thousand clients with all that is known of them fits.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// A dead gateway behind a living network is found in so much.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// A gateway's address, as it is typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Unix(PathBuf),
    /// `http://…` or `https://…`.
    Url(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Url(url) => f.write_str(url),
        }
    }
}

impl Address {
    fn parse(text: &str) -> Result<Self, Failure> {
        if let Some(path) = text.strip_prefix("unix:") {
            // gRPC's naming also allows unix:///path.
            let path = if path.starts_with("///") {
                &path[2..]
            } else {
                path
            };
            if path.is_empty() {
                return Err(Failure::Usage(format!(
                    "`{text}`: a path must follow `unix:`"
                )));
            }
            return Ok(Self::Unix(path.into()));
        }
        let known = |uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https"));
        // A port beyond 65535 is no port, and would become that of the scheme.
        let bad_port = |uri: &Uri| {
            let authority = uri.authority().map_or("", |authority| authority.as_str());
            let port = authority
                .rsplit(']')
                .next()
                .is_some_and(|end| end.contains(':'));
            port && uri.port_u16().is_none()
        };
        match text.parse::<Uri>() {
            Ok(uri) if known(&uri) && !bad_port(&uri) => Ok(Self::Url(text.to_owned())),
            _ => Err(Failure::Usage(format!(
                "`{text}` is no address of a gateway; write unix:/path, http://host:port or \
                 https://host:port"
            ))),
        }
    }

    /// Where to look when nothing is said: the socket that is there, else
    /// loopback.
    fn find() -> Self {
        let own = env::var_os("XDG_RUNTIME_DIR")
            .filter(|dir| !dir.is_empty())
            .map(|dir| Path::new(&dir).join("ovfleet.sock"));
        std::iter::once(PathBuf::from(DEFAULT_SOCKET))
            .chain(own)
            .find(|path| path.exists())
            .map_or_else(|| Self::Url(LOOPBACK.to_owned()), Self::Unix)
    }

    fn is_tls(&self) -> bool {
        matches!(self, Self::Url(url) if url.starts_with("https://"))
    }
}

/// A gateway that answered the first connection.
#[derive(Debug, Clone)]
pub(crate) struct Gateway {
    address: Address,
    channel: Channel,
    /// What `--timeout` said.
    timeout: Option<Duration>,
}

impl Gateway {
    /// Connects, so that a gateway that is not there is known before anything
    /// is asked of it. Later losses are healed by the channel.
    pub(crate) async fn connect(args: &CallerArgs) -> Result<Self, Failure> {
        // An empty variable is as good as none.
        let address = match args.gateway.as_deref() {
            None | Some("") => Address::find(),
            Some(text) => Address::parse(text)?,
        };
        let endpoint = endpoint(&address, args)?;
        let channel = endpoint
            .connect()
            .await
            .map_err(|error| unreached(&address, args, &error))?;
        Ok(Self {
            address,
            channel,
            timeout: args.timeout,
        })
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    pub(crate) fn fleet(&self) -> FleetServiceClient<Channel> {
        FleetServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn events(&self) -> EventServiceClient<Channel> {
        EventServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn control(&self) -> ControlServiceClient<Channel> {
        ControlServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn instances(&self) -> InstanceServiceClient<Channel> {
        InstanceServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn inventory(&self) -> InventoryServiceClient<Channel> {
        InventoryServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// A request with the deadline of a call that answers once.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        self.request_within(CALL_TIMEOUT, message)
    }

    /// The same for a call that needs its time; `--timeout` still wins.
    pub(crate) fn request_within<T>(&self, timeout: Duration, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout.unwrap_or(timeout));
        request
    }

    /// What a call's status means to the person who made it.
    pub(crate) fn failure(&self, status: Status) -> Failure {
        explain(&status, &self.address.to_string())
    }
}

fn endpoint(address: &Address, args: &CallerArgs) -> Result<Endpoint, Failure> {
    let wants_tls = args.tls_ca.is_some() || args.tls_cert.is_some() || args.tls_name.is_some();
    if wants_tls && !address.is_tls() {
        return Err(Failure::Usage(format!(
            "--tls-… goes with https://, and not with {address}"
        )));
    }
    let target = address.to_string();
    let endpoint = Endpoint::from_shared(target)
        .map_err(|error| Failure::Usage(format!("`{address}`: {error}")))?
        .user_agent(concat!("ovfleet/", env!("CARGO_PKG_VERSION")))
        .map_err(|error| Failure::Failed(error.to_string()))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    if !address.is_tls() {
        return Ok(endpoint);
    }
    endpoint
        .tls_config(tls(args)?)
        .map_err(|error| Failure::Usage(format!("TLS for {address}: {}", chain(&error))))
}

fn tls(args: &CallerArgs) -> Result<ClientTlsConfig, Failure> {
    let read = |option: &str, path: &Path| {
        fs::read(path).map_err(|error| {
            Failure::Usage(format!(
                "cannot read {} ({option}): {error}",
                path.display()
            ))
        })
    };
    let authorities = match &args.tls_ca {
        Some(path) => read("--tls-ca", path)?,
        None => fs::read(SYSTEM_CERTIFICATES).map_err(|error| {
            Failure::Usage(format!(
                "cannot read {SYSTEM_CERTIFICATES}: {error}; name the certificates that sign the \
                 gateway's with --tls-ca"
            ))
        })?,
    };
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authorities));
    if let (Some(certificate), Some(key)) = (&args.tls_cert, &args.tls_key) {
        let certificate = read("--tls-cert", certificate)?;
        tls = tls.identity(Identity::from_pem(certificate, read("--tls-key", key)?));
    }
    if let Some(name) = &args.tls_name {
        tls = tls.domain_name(name);
    }
    Ok(tls)
}

/// What stands between us and the gateway, and what helps.
fn unreached(address: &Address, args: &CallerArgs, error: &(dyn Error + 'static)) -> Failure {
    let mut remedy = match (io_kind(error), address) {
        (Some(io::ErrorKind::PermissionDenied), Address::Unix(_)) => {
            "Its socket does not let you in: join the group that owns it.".to_owned()
        }
        (Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused), _) => {
            "Is it running (`ovfleet serve`)?".to_owned()
        }
        _ if address.is_tls() => {
            "Check --tls-ca, --tls-name, and that this listener speaks TLS.".to_owned()
        }
        _ => "Is that an ovfleet gateway?".to_owned(),
    };
    if args.gateway.is_none() {
        remedy += " Where else it is, --gateway or OVFLEET_GATEWAY says.";
    }
    Failure::Unreached(format!(
        "cannot reach the gateway at {address}: {}\n  {remedy}",
        root(error)
    ))
}

/// The kind of the first I/O error in the chain.
fn io_kind(error: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    std::iter::successors(Some(error), |&error| error.source())
        .find_map(|error| error.downcast_ref::<io::Error>())
        .map(io::Error::kind)
}

/// The last cause of a chain: the one that says something.
fn root(error: &(dyn Error + 'static)) -> String {
    std::iter::successors(Some(error), |&error| error.source())
        .last()
        .map_or_else(String::new, ToString::to_string)
}

/// All causes of a chain.
fn chain(error: &(dyn Error + 'static)) -> String {
    let causes: Vec<_> = std::iter::successors(Some(error), |&error| error.source())
        .map(ToString::to_string)
        .collect();
    causes.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_urls_or_sockets() {
        let unix = Address::Unix("/run/x.sock".into());
        assert_eq!(Address::parse("unix:/run/x.sock").unwrap(), unix);
        assert_eq!(Address::parse("unix:///run/x.sock").unwrap(), unix);
        assert_eq!(unix.to_string(), "unix:/run/x.sock");
        let url = Address::parse("https://gw:7643").unwrap();
        assert!(url.is_tls());
        for text in ["http://h", "http://[::1]:7600", "https://h:443"] {
            assert!(Address::parse(text).is_ok(), "{text}");
        }
        for text in [
            "",
            "unix:",
            "127.0.0.1:7600",
            "http://",
            "ftp://x",
            "http://h:99999",
        ] {
            assert!(
                matches!(Address::parse(text), Err(Failure::Usage(_))),
                "{text}"
            );
        }
    }
}
