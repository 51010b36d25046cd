//! VPN clients as a scenario describes them, and as a daemon reports them back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A VPN client to connect: what its certificate, its socket and its software say of it.
#[derive(Clone, Debug)]
pub struct ClientSpec {
    /// Name in the client's certificate; any bytes, control bytes become `_` as in OpenVPN.
    pub common_name: Vec<u8>,
    /// Name it authenticated with; `None` shows as `UNDEF`.
    pub username: Option<Vec<u8>>,
    /// Password it sends; only a daemon with client-auth shows it, in the `CONNECT` block.
    pub password: Option<Vec<u8>>,
    /// Where it comes from; `None` lets the daemon draw an address and port.
    pub real_address: Option<SocketAddr>,
    /// IPv4 address inside the VPN; `None` takes the next one of the daemon's pool.
    pub virtual_address: Option<Ipv4Addr>,
    /// IPv6 address inside the VPN; `None` takes one if the daemon has an IPv6 network.
    pub virtual_ipv6_address: Option<Ipv6Addr>,
    /// Networks behind the client, as `iroute` makes them: address and prefix length.
    pub routes: Vec<(Ipv4Addr, u8)>,
    /// Data channel cipher.
    pub cipher: String,
    /// `IV_*` and `UV_*` values in the order the client sends them.
    pub peer_info: Vec<(String, String)>,
    /// Whether it says goodbye when it is told to halt (`--explicit-exit-notify`).
    pub exit_notify: bool,
    /// What the client does when its instance is killed or its daemon restarts.
    pub after_loss: AfterLoss,
}

/// What a client does when the daemon drops it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterLoss {
    /// Connects again after a while, unless it was told `HALT`, as a stock client does.
    Returns,
    /// Never comes back by itself.
    StaysAway,
}

impl ClientSpec {
    /// A stock 2.6.14 client on Linux of that name, everything else left to the daemon.
    pub fn new(common_name: impl Into<Vec<u8>>) -> Self {
        Self {
            common_name: common_name.into(),
            username: None,
            password: None,
            real_address: None,
            virtual_address: None,
            virtual_ipv6_address: None,
            routes: Vec::new(),
            cipher: "AES-256-GCM".to_owned(),
            peer_info: peer_info("2.6.14", "linux"),
            exit_notify: false,
            after_loss: AfterLoss::Returns,
        }
    }

    /// The same client, authenticated as `username`.
    #[must_use]
    pub fn username(mut self, username: impl Into<Vec<u8>>) -> Self {
        self.username = Some(username.into());
        self
    }

    /// The same client, coming from `address`.
    #[must_use]
    pub fn real_address(mut self, address: SocketAddr) -> Self {
        self.real_address = Some(address);
        self
    }

    /// The same client with a fixed address inside the VPN.
    #[must_use]
    pub fn virtual_address(mut self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => self.virtual_address = Some(address),
            IpAddr::V6(address) => self.virtual_ipv6_address = Some(address),
        }
        self
    }

    /// The same client with a network behind it.
    #[must_use]
    pub fn route(mut self, network: Ipv4Addr, prefix_length: u8) -> Self {
        self.routes.push((network, prefix_length));
        self
    }

    /// The same client with another OpenVPN version and platform in its peer info.
    #[must_use]
    pub fn software(mut self, version: &str, platform: &str) -> Self {
        self.peer_info = peer_info(version, platform);
        self
    }

    /// The same client with another data channel cipher.
    #[must_use]
    pub fn cipher(mut self, cipher: impl Into<String>) -> Self {
        self.cipher = cipher.into();
        self
    }

    /// The same client with `--explicit-exit-notify`.
    #[must_use]
    pub fn exit_notify(mut self) -> Self {
        self.exit_notify = true;
        self
    }

    /// The same client, which never returns by itself.
    #[must_use]
    pub fn stays_away(mut self) -> Self {
        self.after_loss = AfterLoss::StaysAway;
        self
    }
}

fn peer_info(version: &str, platform: &str) -> Vec<(String, String)> {
    [
        ("IV_VER", version),
        ("IV_PLAT", platform),
        ("IV_TCPNL", "1"),
        ("IV_MTU", "1600"),
        ("IV_NCP", "2"),
        ("IV_CIPHERS", "AES-256-GCM:AES-128-GCM:CHACHA20-POLY1305"),
        ("IV_PROTO", "990"),
        ("IV_LZO_STUB", "1"),
        ("IV_COMP_STUB", "1"),
        ("IV_COMP_STUBv2", "1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

/// How a client leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Says goodbye in the control channel, as 2.6 clients with `explicit-exit-notify` do:
    /// `>NOTIFY:info,remote-exit,EXIT` at once, the instance stays listed for the delayed exit.
    ExitNotify,
    /// Says goodbye in the data channel, as clients before 2.6 do: gone at once.
    ExitNotifyData,
    /// Falls silent; the daemon has just noticed by its ping timer.
    PingTimeout,
    /// Closes its TCP connection.
    TcpClose,
}

/// One client instance as the daemon sees it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientState {
    /// Its client ID in the daemon's present run.
    pub cid: u64,
    /// Common name; `UNDEF` while half open.
    pub common_name: Vec<u8>,
    /// Address as `status` prints it.
    pub real_address: String,
    /// Whether it counts as connected: not half open, not waiting for approval.
    pub established: bool,
    /// Whether a delayed exit is running: killed or said goodbye, but still listed.
    pub leaving: bool,
    /// Bytes the daemon received from it since it connected.
    pub bytes_received: u64,
    /// Bytes the daemon sent to it since it connected.
    pub bytes_sent: u64,
}
