//! The answer to `status`: who is connected, and how.

mod parser;

use bytes::Bytes;

pub use self::parser::StatusParser;
use crate::limits::Limits;
use crate::text::{Cid, Text};

/// Most quarantined rows kept as text; further ones are only counted.
pub const QUARANTINED_ROWS_MAX: usize = 8;

/// What a daemon answered to `status`, in whichever format.
///
/// Rows are offsets into one text: a client costs about 130 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StatusSnapshot {
    /// The text of all rows; not on the heap more than once.
    text: Bytes,
    title: Text,
    time: Option<i64>,
    time_text: Text,
    clients: Vec<ClientEntry>,
    routes: Vec<RouteEntry>,
    global_stats: Vec<(Text, Text)>,
    client_statistics: Option<Box<ClientStatistics>>,
    quarantine: Quarantine,
    /// Rows beyond a limit, which are not in `clients` or `routes`.
    rows_dropped: u64,
}

/// A field of a row: where it is in the snapshot's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Span {
    start: u32,
    length: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct ClientEntry {
    bytes_received: u64,
    bytes_sent: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct RouteEntry {
    last_ref: Option<i64>,
}

/// One client of a server, as `status` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientRow<'a> {
    /// The name in its certificate; `UNDEF` while there is none.
    pub common_name: &'a [u8],
    /// Where it comes from, with port; native IPv6 without one before OpenVPN 2.7.
    pub real_address: &'a [u8],
    /// Its IPv4 address inside the VPN; empty until it has one.
    pub virtual_address: &'a [u8],
    /// Its IPv6 address inside the VPN; empty if it has none, and before OpenVPN 2.4.
    pub virtual_ipv6_address: &'a [u8],
    /// Bytes the daemon received from the client since it connected.
    pub bytes_received: u64,
    /// Bytes the daemon sent to the client since it connected.
    pub bytes_sent: u64,
    /// When it connected, by the daemon's clock, in seconds since 1970; format 1 does not say.
    pub connected_since: Option<i64>,
    /// The name it logged in with; `UNDEF` if it did not; empty in format 1.
    pub username: &'a [u8],
    /// Its client ID; `None` in format 1 and before OpenVPN 2.4.
    pub cid: Option<Cid>,
    /// Its peer ID; `None` where the daemon has none or does not say.
    pub peer_id: Option<u32>,
    /// Cipher of the data channel, from OpenVPN 2.5.
    pub cipher: Option<&'a [u8]>,
}

impl ClientRow<'_> {
    /// Whether the client is still in its handshake: no name and no address yet.
    #[must_use]
    pub fn is_half_open(&self) -> bool {
        self.common_name == b"UNDEF"
            && self.virtual_address.is_empty()
            && self.virtual_ipv6_address.is_empty()
    }
}

/// One row of a server's routing table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteRow<'a> {
    /// Address, network (`10.77.0.0/24`) or MAC address; a `C` behind it marks a cached route.
    pub virtual_address: &'a [u8],
    /// The client it leads to.
    pub common_name: &'a [u8],
    /// Where that client comes from.
    pub real_address: &'a [u8],
    /// When it was last used, by the daemon's clock, in seconds since 1970; format 1 does not say.
    pub last_ref: Option<i64>,
}

/// The counters of a client daemon.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientStatistics {
    /// `TUN/TAP read bytes`.
    pub tun_read_bytes: Option<u64>,
    /// `TUN/TAP write bytes`.
    pub tun_write_bytes: Option<u64>,
    /// `TCP/UDP read bytes`.
    pub link_read_bytes: Option<u64>,
    /// `TCP/UDP write bytes`.
    pub link_write_bytes: Option<u64>,
    /// `Auth read bytes`.
    pub auth_read_bytes: Option<u64>,
    /// `pre-compress bytes`, `post-compress bytes`, and what else there may be.
    pub others: Vec<(Text, Text)>,
}

/// Rows that are not what the header promised.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Quarantine {
    /// How many.
    pub count: u64,
    /// The first of them, whole, at most [`QUARANTINED_ROWS_MAX`].
    pub first: Vec<Text>,
}

impl StatusSnapshot {
    /// Parses a complete answer, with or without its `END`.
    #[must_use]
    pub fn parse(text: &[u8], limits: &Limits) -> Self {
        let mut parser = StatusParser::new(limits);
        for line in text.split(|byte| *byte == b'\n') {
            parser.handle_line(line.strip_suffix(b"\r").unwrap_or(line));
        }
        parser.finish()
    }

    /// `OpenVPN 2.6.14 x86_64-…`; empty in format 1.
    #[must_use]
    pub fn title(&self) -> &Text {
        &self.title
    }

    /// The daemon's clock in seconds since 1970; formats 2 and 3 only.
    #[must_use]
    pub fn time(&self) -> Option<i64> {
        self.time
    }

    /// The daemon's clock in its local time, as text.
    #[must_use]
    pub fn time_text(&self) -> &Text {
        &self.time_text
    }

    /// The clients, in the daemon's order, which means nothing.
    pub fn clients(&self) -> impl ExactSizeIterator<Item = ClientRow<'_>> {
        self.clients.iter().map(|entry| ClientRow {
            common_name: b"",
            real_address: b"",
            virtual_address: b"",
            virtual_ipv6_address: b"",
            bytes_received: entry.bytes_received,
            bytes_sent: entry.bytes_sent,
            connected_since: None,
            username: b"",
            cid: None,
            peer_id: None,
            cipher: None,
        })
    }

    /// The routing table, in the daemon's order, which means nothing.
    pub fn routes(&self) -> impl ExactSizeIterator<Item = RouteRow<'_>> {
        self.routes.iter().map(|entry| RouteRow {
            virtual_address: b"",
            common_name: b"",
            real_address: b"",
            last_ref: entry.last_ref,
        })
    }

    /// `Max bcast/mcast queue length`, `dco_enabled`, with their values.
    pub fn global_stats(&self) -> impl Iterator<Item = (&Text, &Text)> {
        self.global_stats.iter().map(|(name, value)| (name, value))
    }

    /// The counters, if the daemon is a client.
    #[must_use]
    pub fn client_statistics(&self) -> Option<&ClientStatistics> {
        self.client_statistics.as_deref()
    }

    /// Rows with another number of fields than their header, which are not guessed at.
    #[must_use]
    pub fn quarantined(&self) -> &Quarantine {
        &self.quarantine
    }

    /// Whether the daemon sent more rows than [`Limits`] let us keep.
    #[must_use]
    pub fn is_truncated(&self) -> bool {
        self.rows_dropped > 0
    }

    /// How many rows were not kept for that reason.
    #[must_use]
    pub fn rows_dropped(&self) -> u64 {
        self.rows_dropped
    }

    /// Bytes this snapshot holds on the heap.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.text.len()
            + self.clients.capacity() * size_of::<ClientEntry>()
            + self.routes.capacity() * size_of::<RouteEntry>()
    }
}
