//! The answer to `status`: who is connected, and how.

mod columns;
mod fields;
mod parser;

use std::fmt;

use self::columns::NO_TEXT;
pub use self::parser::StatusParser;
use crate::limits::Limits;
use crate::text::{Cid, Text, write_quoted};

/// Most quarantined rows kept as text; further ones are only counted.
pub const QUARANTINED_ROWS_MAX: usize = 8;
/// Most rows of global statistics, and of a client's further counters; more are quarantined. OpenVPN sends two or three.
pub const STATISTICS_MAX: usize = 64;

/// What a daemon answered to `status`, in whichever format.
///
/// Rows are offsets into one text: a client and its route cost about 280 bytes.
#[derive(Clone, Default)]
pub struct StatusSnapshot {
    /// All rows up to their last field of text, as they came, one after the other: cheaper than only what is shown.
    text: Vec<u8>,
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

/// How large a snapshot is: the best guess for the next one of the same daemon.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct StatusSize {
    clients: usize,
    routes: usize,
    text_bytes: usize,
}

/// A text field of a row, relative to where the row's text starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Span {
    start: u16,
    end: u16,
}

/// A client row. What the daemon does not tell is a value that cannot occur, to keep the row small.
#[derive(Debug, Clone)]
struct ClientEntry {
    bytes_received: u64,
    bytes_sent: u64,
    /// [`NO_TIME`] if not told.
    connected_since: u64,
    /// [`NO_CID`] if not told.
    cid: u64,
    /// [`NO_PEER_ID`] if not told, or if the daemon says so.
    peer_id: u32,
    /// Where the row's text starts.
    start: u32,
    common_name: Span,
    real_address: Span,
    virtual_address: Span,
    virtual_ipv6_address: Span,
    username: Span,
    /// [`NO_TEXT`] if not told.
    cipher: Span,
}

const NO_TIME: u64 = u64::MAX;
const NO_CID: u64 = u64::MAX;
/// OpenVPN's own word for a client without peer ID.
const NO_PEER_ID: u32 = u32::MAX;

#[derive(Debug, Clone)]
struct RouteEntry {
    /// [`NO_TIME`] if not told.
    last_ref: u64,
    /// Where the row's text starts.
    start: u32,
    virtual_address: Span,
    common_name: Span,
    real_address: Span,
}

fn time_of(seconds: u64) -> Option<i64> {
    (seconds != NO_TIME)
        .then_some(seconds)
        .and_then(|seconds| seconds.try_into().ok())
}

/// One client of a server, as `status` shows it.
#[derive(Clone, Copy, PartialEq, Eq)]
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
#[derive(Clone, Copy, PartialEq, Eq)]
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
    /// Parses a complete answer, or a status file, with or without its `END`.
    #[must_use]
    pub fn parse(mut text: &[u8], limits: &Limits) -> Self {
        let mut parser = StatusParser::new(limits);
        while !text.is_empty() {
            let end = memchr::memchr(b'\n', text).unwrap_or(text.len());
            let line = &text[..end];
            parser.handle_line(line.strip_suffix(b"\r").unwrap_or(line));
            text = text.get(end + 1..).unwrap_or_default();
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
            common_name: self.field(entry.start, entry.common_name),
            real_address: self.field(entry.start, entry.real_address),
            virtual_address: self.field(entry.start, entry.virtual_address),
            virtual_ipv6_address: self.field(entry.start, entry.virtual_ipv6_address),
            bytes_received: entry.bytes_received,
            bytes_sent: entry.bytes_sent,
            connected_since: time_of(entry.connected_since),
            username: self.field(entry.start, entry.username),
            cid: (entry.cid != NO_CID).then_some(Cid(entry.cid)),
            peer_id: (entry.peer_id != NO_PEER_ID).then_some(entry.peer_id),
            cipher: (entry.cipher != NO_TEXT).then(|| self.field(entry.start, entry.cipher)),
        })
    }

    /// The routing table, in the daemon's order, which means nothing.
    pub fn routes(&self) -> impl ExactSizeIterator<Item = RouteRow<'_>> {
        self.routes.iter().map(|entry| RouteRow {
            virtual_address: self.field(entry.start, entry.virtual_address),
            common_name: self.field(entry.start, entry.common_name),
            real_address: self.field(entry.start, entry.real_address),
            last_ref: time_of(entry.last_ref),
        })
    }

    fn field(&self, row_start: u32, span: Span) -> &[u8] {
        let row_start = row_start as usize;
        self.text
            .get(row_start + usize::from(span.start)..row_start + usize::from(span.end))
            .unwrap_or_default()
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

    /// How much there is of it.
    pub(crate) fn size(&self) -> StatusSize {
        StatusSize {
            clients: self.clients.len(),
            routes: self.routes.len(),
            text_bytes: self.text.len(),
        }
    }

    /// Bytes its rows hold on the heap.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.text.capacity()
            + self.clients.capacity() * size_of::<ClientEntry>()
            + self.routes.capacity() * size_of::<RouteEntry>()
    }
}

/// Compares the rows, not where they are kept.
impl PartialEq for StatusSnapshot {
    fn eq(&self, other: &Self) -> bool {
        let Self {
            text: _,
            title,
            time,
            time_text,
            clients: _,
            routes: _,
            global_stats,
            client_statistics,
            quarantine,
            rows_dropped,
        } = self;
        *title == other.title
            && *time == other.time
            && *time_text == other.time_text
            && self.clients().eq(other.clients())
            && self.routes().eq(other.routes())
            && *global_stats == other.global_stats
            && *client_statistics == other.client_statistics
            && *quarantine == other.quarantine
            && *rows_dropped == other.rows_dropped
    }
}

impl Eq for StatusSnapshot {}

/// Shows the rows, not where they are kept.
impl fmt::Debug for StatusSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusSnapshot")
            .field("title", &self.title)
            .field("time", &self.time)
            .field("time_text", &self.time_text)
            .field("clients", &self.clients().collect::<Vec<_>>())
            .field("routes", &self.routes().collect::<Vec<_>>())
            .field("global_stats", &self.global_stats)
            .field("client_statistics", &self.client_statistics)
            .field("quarantine", &self.quarantine)
            .field("rows_dropped", &self.rows_dropped)
            .finish()
    }
}

impl fmt::Debug for ClientRow<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientRow")
            .field("common_name", &Shown(self.common_name))
            .field("real_address", &Shown(self.real_address))
            .field("virtual_address", &Shown(self.virtual_address))
            .field("virtual_ipv6_address", &Shown(self.virtual_ipv6_address))
            .field("bytes_received", &self.bytes_received)
            .field("bytes_sent", &self.bytes_sent)
            .field("connected_since", &self.connected_since)
            .field("username", &Shown(self.username))
            .field("cid", &self.cid)
            .field("peer_id", &self.peer_id)
            .field("cipher", &self.cipher.map(Shown))
            .finish()
    }
}

impl fmt::Debug for RouteRow<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouteRow")
            .field("virtual_address", &Shown(self.virtual_address))
            .field("common_name", &Shown(self.common_name))
            .field("real_address", &Shown(self.real_address))
            .field("last_ref", &self.last_ref)
            .finish()
    }
}

/// Bytes that `Debug` shows like a [`Text`].
struct Shown<'a>(&'a [u8]);

impl fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_quoted(self.0, f)
    }
}
