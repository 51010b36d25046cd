//! OpenVPN 2.6.14's fixed words, as a real one wrote them.

pub(super) const PROMPT: &[u8] = b"ENTER PASSWORD:";

pub(super) const GREETING: &str =
    ">INFO:OpenVPN Management Interface Version 5 -- type 'help' for more info";

pub(super) const TITLE: &str = "OpenVPN 2.6.14 x86_64-pc-linux-gnu [SSL (OpenSSL)] [LZO] [LZ4] \
    [EPOLL] [PKCS11] [MH/PKTINFO] [AEAD] [DCO]";

/// `help`, without its first line and `END`.
pub(super) const HELP: &str = include_str!("help.txt");

pub(super) const CLIENT_LIST: [&str; 13] = [
    "CLIENT_LIST",
    "Common Name",
    "Real Address",
    "Virtual Address",
    "Virtual IPv6 Address",
    "Bytes Received",
    "Bytes Sent",
    "Connected Since",
    "Connected Since (time_t)",
    "Username",
    "Client ID",
    "Peer ID",
    "Data Channel Cipher",
];

pub(super) const ROUTING_TABLE: [&str; 6] = [
    "ROUTING_TABLE",
    "Virtual Address",
    "Common Name",
    "Real Address",
    "Last Ref",
    "Last Ref (time_t)",
];

/// Log lines of reading a configuration, with their flags.
pub(super) const CONFIGURATION: [(&str, &str); 5] = [
    (
        "I",
        "Note: --cipher is not set. OpenVPN versions before 2.5 defaulted to BF-CBC as fallback \
         when cipher negotiation failed in this case. If you need this fallback please add \
         '--data-ciphers-fallback BF-CBC' to your configuration and/or add BF-CBC to \
         --data-ciphers.",
    ),
    (
        "",
        "Note: Kernel support for ovpn-dco missing, disabling data channel offload.",
    ),
    ("I", TITLE),
    (
        "I",
        "library versions: OpenSSL 3.0.19 27 Jan 2026, LZO 2.10",
    ),
    ("I", "DCO version: N/A"),
];

/// Names that pass `env-filter 1` and `2`, by prefix.
pub(super) const ENV_SHORT: [&str; 15] = [
    "username",
    "password",
    "X509_0_CN",
    "tls_serial_",
    "untrusted_ip",
    "ifconfig_local",
    "ifconfig_netmask",
    "daemon_start_time",
    "daemon_pid",
    "dev",
    "ifconfig_pool_remote_ip",
    "ifconfig_pool_netmask",
    "time_duration",
    "bytes_sent",
    "bytes_received",
];
