//! Records that come both as notifications and as lines of a history or reply.

use std::fmt;

use crate::text::{Text, parse_time, parse_u32, parse_u64};

/// One line of the daemon's state: `>STATE:` or a row of the state history.
///
/// An address the daemon left out is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateRecord {
    /// When, by the daemon's clock, in seconds since 1970.
    pub time: Option<i64>,
    /// The state entered.
    pub state: DaemonState,
    /// `SUCCESS`, `ERROR`, the reason of a restart, or other free text.
    pub detail: Text,
    /// The daemon's own IPv4 address inside the VPN.
    pub tunnel_ipv4: Text,
    /// The server's address, on a client.
    pub remote_address: Text,
    /// The server's port, on a client, from OpenVPN 2.4.
    pub remote_port: Option<u16>,
    /// The address it sends from, where known, from OpenVPN 2.4.
    pub local_address: Text,
    /// The port it sends from, where known, from OpenVPN 2.4.
    pub local_port: Option<u16>,
    /// The daemon's own IPv6 address inside the VPN, from OpenVPN 2.4; only sent when there is one.
    pub tunnel_ipv6: Text,
}

impl StateRecord {
    /// Parses what follows `>STATE:`. `None` if it is not a state line.
    #[must_use]
    pub fn parse(line: &Text) -> Option<Self> {
        let mut fields = line.as_bytes().split(|byte| *byte == b',');
        let time = parse_time(fields.next()?)?;
        let state = DaemonState::parse(&line.slice_of(fields.next()?));
        let detail = line.slice_of(fields.next()?);
        let mut address = || line.slice_of(fields.next().unwrap_or_default());
        let tunnel_ipv4 = address();
        let remote_address = address();
        let remote_port = parse_port(&address());
        let local_address = address();
        let local_port = parse_port(&address());
        let tunnel_ipv6 = address();
        Some(Self {
            time: Some(time),
            state,
            detail,
            tunnel_ipv4,
            remote_address,
            remote_port,
            local_address,
            local_port,
            tunnel_ipv6,
        })
    }
}

fn parse_port(digits: &Text) -> Option<u16> {
    parse_u64(digits.as_bytes())?.try_into().ok()
}

/// What a daemon is doing. A server reports only CONNECTING, ASSIGN_IP, ADD_ROUTES, CONNECTED, RECONNECTING, EXITING.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DaemonState {
    /// Starting.
    Connecting,
    /// Client: waiting for the server's first answer.
    Wait,
    /// Client: authenticating.
    Auth,
    /// Client: fetching its configuration.
    GetConfig,
    /// Giving the tunnel interface its address.
    AssignIp,
    /// Adding routes.
    AddRoutes,
    /// Serving, or connected.
    Connected,
    /// Restarting: every CID is void from here on.
    Reconnecting,
    /// On its way out.
    Exiting,
    /// Client: resolving the server's name.
    Resolve,
    /// Client: opening a TCP connection.
    TcpConnect,
    /// Client: waiting for further authentication.
    AuthPending,
    /// A word this library does not know.
    Unknown(Text),
}

impl DaemonState {
    /// The state for a word of the wire.
    #[must_use]
    pub fn parse(word: &Text) -> Self {
        match word.as_bytes() {
            b"CONNECTING" => Self::Connecting,
            b"WAIT" => Self::Wait,
            b"AUTH" => Self::Auth,
            b"GET_CONFIG" => Self::GetConfig,
            b"ASSIGN_IP" => Self::AssignIp,
            b"ADD_ROUTES" => Self::AddRoutes,
            b"CONNECTED" => Self::Connected,
            b"RECONNECTING" => Self::Reconnecting,
            b"EXITING" => Self::Exiting,
            b"RESOLVE" => Self::Resolve,
            b"TCP_CONNECT" => Self::TcpConnect,
            b"AUTH_PENDING" => Self::AuthPending,
            _ => Self::Unknown(word.clone()),
        }
    }

    /// The word of the wire.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Connecting => b"CONNECTING",
            Self::Wait => b"WAIT",
            Self::Auth => b"AUTH",
            Self::GetConfig => b"GET_CONFIG",
            Self::AssignIp => b"ASSIGN_IP",
            Self::AddRoutes => b"ADD_ROUTES",
            Self::Connected => b"CONNECTED",
            Self::Reconnecting => b"RECONNECTING",
            Self::Exiting => b"EXITING",
            Self::Resolve => b"RESOLVE",
            Self::TcpConnect => b"TCP_CONNECT",
            Self::AuthPending => b"AUTH_PENDING",
            Self::Unknown(word) => word.as_bytes(),
        }
    }
}

impl fmt::Display for DaemonState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        crate::text::write_escaped(self.as_bytes(), f)
    }
}

/// One line of the daemon's log: `>LOG:` or a row of the log history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// When, by the daemon's clock, in seconds since 1970.
    pub time: Option<i64>,
    /// How severe; none of the flags is common.
    pub flags: LogFlags,
    /// The text, commas and all.
    pub text: Text,
}

impl LogRecord {
    /// Parses what follows `>LOG:`. `None` if it is not a log line.
    #[must_use]
    pub fn parse(line: &Text) -> Option<Self> {
        let mut fields = line.as_bytes().splitn(3, |byte| *byte == b',');
        Some(Self {
            time: Some(parse_time(fields.next()?)?),
            flags: LogFlags::parse(fields.next()?)?,
            text: line.slice_of(fields.next()?),
        })
    }
}

/// The flags of a log line: any of I, F, N, W, D, often none.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct LogFlags(u8);

impl LogFlags {
    /// Informational (`I`).
    pub const INFORMATIONAL: Self = Self(1);
    /// Fatal error (`F`).
    pub const FATAL: Self = Self(2);
    /// Non-fatal error (`N`).
    pub const NON_FATAL: Self = Self(4);
    /// Warning (`W`).
    pub const WARNING: Self = Self(8);
    /// Debug (`D`).
    pub const DEBUG: Self = Self(16);

    const LETTERS: [(u8, Self); 5] = [
        (b'I', Self::INFORMATIONAL),
        (b'F', Self::FATAL),
        (b'N', Self::NON_FATAL),
        (b'W', Self::WARNING),
        (b'D', Self::DEBUG),
    ];

    /// The flags for letters of the wire. `None` if one is unknown.
    #[must_use]
    pub fn parse(letters: &[u8]) -> Option<Self> {
        letters.iter().try_fold(Self::default(), |flags, letter| {
            let (_, flag) = Self::LETTERS.iter().find(|(known, _)| known == letter)?;
            Some(Self(flags.0 | flag.0))
        })
    }

    /// Whether every flag of `other` is set.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets of flags.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for LogFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Self::LETTERS
            .iter()
            .filter(|(_, flag)| self.contains(*flag))
            .try_for_each(|(letter, _)| write!(f, "{}", char::from(*letter)))
    }
}

impl fmt::Debug for LogFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogFlags({self})")
    }
}

/// One `echo` line of the daemon's configuration or of a server's push: `>ECHO:` or a row of the echo history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EchoRecord {
    /// When, by the daemon's clock, in seconds since 1970.
    pub time: Option<i64>,
    /// The text.
    pub text: Text,
}

impl EchoRecord {
    /// Parses what follows `>ECHO:`. `None` if it is not an echo line.
    #[must_use]
    pub fn parse(line: &Text) -> Option<Self> {
        let mut fields = line.as_bytes().splitn(2, |byte| *byte == b',');
        Some(Self {
            time: Some(parse_time(fields.next()?)?),
            text: line.slice_of(fields.next()?),
        })
    }
}

/// The answer to `load-stats`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadStats {
    /// Established clients; half-open ones are not counted. 0 while the daemon restarts.
    pub clients: u64,
    /// Bytes the daemon received since its process started.
    pub bytes_received: u64,
    /// Bytes the daemon sent since its process started.
    pub bytes_sent: u64,
}

impl LoadStats {
    /// Parses `nclients=N,bytesin=N,bytesout=N`, exactly that.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let mut fields = text.split(|byte| *byte == b',');
        let stats = Self {
            clients: parse_u64(fields.next()?.strip_prefix(b"nclients=")?)?,
            bytes_received: parse_u64(fields.next()?.strip_prefix(b"bytesin=")?)?,
            bytes_sent: parse_u64(fields.next()?.strip_prefix(b"bytesout=")?)?,
        };
        fields.next().is_none().then_some(stats)
    }
}

/// The answer to `version`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// `OpenVPN 2.6.14 x86_64-pc-linux-gnu …`.
    pub openvpn: Text,
    /// The version of the management interface; OpenVPN 2.3 prints it too.
    pub management: Option<u32>,
}

/// One row of `remote-entry-get`: a server the client may connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteEntry {
    /// Its place in the list, from 0.
    pub index: u32,
    /// Host name or address.
    pub host: Text,
    /// Port or service name.
    pub port: Text,
    /// Protocol word, such as `udp4`.
    pub protocol: Text,
    /// Whether the client will try it.
    pub enabled: bool,
}

impl RemoteEntry {
    /// Parses `I,host,port,proto,enabled|disabled`.
    #[must_use]
    pub fn parse(line: &Text) -> Option<Self> {
        let mut fields = line.as_bytes().split(|byte| *byte == b',');
        let entry = Self {
            index: parse_u32(fields.next()?)?,
            host: line.slice_of(fields.next()?),
            port: line.slice_of(fields.next()?),
            protocol: line.slice_of(fields.next()?),
            enabled: match fields.next()? {
                b"enabled" => true,
                b"disabled" => false,
                _ => return None,
            },
        };
        fields.next().is_none().then_some(entry)
    }
}

/// One certificate of a PKCS#11 token: the answer to `pkcs11-id-get`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pkcs11Entry {
    /// The index asked for.
    pub index: u32,
    /// The certificate's identifier; `None` if there is no such index.
    pub id: Option<Text>,
    /// The certificate, base64 of DER.
    pub blob: Option<Text>,
}

impl Pkcs11Entry {
    /// Parses what follows `>PKCS11ID-ENTRY:`: `'I'` or `'I', ID:'…', BLOB:'…'`.
    #[must_use]
    pub fn parse(line: &Text) -> Option<Self> {
        let rest = line.as_bytes().strip_prefix(b"'")?;
        let quote = memchr::memchr(b'\'', rest)?;
        let index = parse_u32(&rest[..quote])?;
        let rest = &rest[quote + 1..];
        if rest.is_empty() {
            return Some(Self {
                index,
                id: None,
                blob: None,
            });
        }
        let rest = rest.strip_prefix(b", ID:'")?.strip_suffix(b"'")?;
        // The identifier is a PKCS#11 URI-like text and may hold quotes; base64 cannot.
        let separator = memchr::memmem::rfind(rest, b"', BLOB:'")?;
        let (id, blob) = (&rest[..separator], &rest[separator + b"', BLOB:'".len()..]);
        Some(Self {
            index,
            id: Some(line.slice_of(id)),
            blob: Some(line.slice_of(blob)),
        })
    }
}

/// A list of records as the daemon gave it, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History<T> {
    /// The records.
    pub records: Vec<T>,
    /// Whether the daemon sent more than [`Limits`](crate::Limits) let us keep; the newest are missing then.
    pub truncated: bool,
}

impl<T> Default for History<T> {
    fn default() -> Self {
        Self {
            records: Vec::new(),
            truncated: false,
        }
    }
}
