//! OpenVPN's fixed words, as real ones wrote them.

use crate::Version;

pub(super) const PROMPT: &[u8] = b"ENTER PASSWORD:";

/// What a version calls itself in `version`, `help` and `status`.
pub(super) const fn title(version: Version) -> &'static str {
    match version {
        Version::V2_3 => {
            "OpenVPN 2.3.18 x86_64-pc-linux-gnu [SSL (OpenSSL)] [LZO] [EPOLL] [MH] [IPv6]"
        }
        Version::V2_4 => {
            "OpenVPN 2.4.12 [git:HEAD/058407a89cb81211] x86_64-pc-linux-gnu [SSL (mbed TLS)] \
             [LZO] [LZ4] [EPOLL] [MH/PKTINFO] [AEAD] built on Nov 20 2026"
        }
        Version::V2_5 => {
            "OpenVPN 2.5.11 [git:HEAD/6fb2a2560845e15d] x86_64-pc-linux-gnu [SSL (OpenSSL)] \
             [LZO] [LZ4] [EPOLL] [MH/PKTINFO] [AEAD] built on Nov 20 2026"
        }
        Version::V2_6 => {
            "OpenVPN 2.6.14 x86_64-pc-linux-gnu [SSL (OpenSSL)] [LZO] [LZ4] [EPOLL] [PKCS11] \
             [MH/PKTINFO] [AEAD] [DCO]"
        }
        Version::V2_7 => {
            "OpenVPN 2.7.6 [git:HEAD/327a33de2aa21883] x86_64-pc-linux-gnu [SSL (OpenSSL)] [LZO] \
             [LZ4] [EPOLL] [MH/PKTINFO] [AEAD] built on Nov 20 2026"
        }
    }
}

/// `help`, without its first line and `END`.
pub(super) fn help(version: Version) -> &'static str {
    match version {
        Version::V2_3 => include_str!("help/2.3.txt"),
        Version::V2_4 => include_str!("help/2.4.txt"),
        Version::V2_5 => include_str!("help/2.5.txt"),
        Version::V2_6 => include_str!("help/2.6.txt"),
        Version::V2_7 => include_str!("help/2.7.txt"),
    }
}

/// Columns of `CLIENT_LIST` in formats 2 and 3, with the keyword that starts each row.
pub(super) fn client_list(version: Version) -> Vec<&'static str> {
    CLIENT_LIST
        .into_iter()
        .filter(|(_, since)| *since <= version)
        .map(|(column, _)| column)
        .collect()
}

/// Every column and the version that brought it; a row has its fields in this order.
pub(super) const CLIENT_LIST: [(&str, Version); 13] = [
    ("CLIENT_LIST", Version::V2_3),
    ("Common Name", Version::V2_3),
    ("Real Address", Version::V2_3),
    ("Virtual Address", Version::V2_3),
    ("Virtual IPv6 Address", Version::V2_4),
    ("Bytes Received", Version::V2_3),
    ("Bytes Sent", Version::V2_3),
    ("Connected Since", Version::V2_3),
    ("Connected Since (time_t)", Version::V2_3),
    ("Username", Version::V2_3),
    ("Client ID", Version::V2_4),
    ("Peer ID", Version::V2_4),
    ("Data Channel Cipher", Version::V2_5),
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
    ("I", title(Version::V2_6)),
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
