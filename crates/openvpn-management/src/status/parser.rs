//! Rows become offsets as they arrive.

use super::columns::{Columns, Row};
use super::fields::RowError;
use super::{
    ClientEntry, ClientStatistics, NO_CID, NO_PEER_ID, NO_TIME, QUARANTINED_ROWS_MAX, RouteEntry,
    STATISTICS_MAX, StatusSize, StatusSnapshot,
};
use crate::limits::Limits;
use crate::text::{Text, parse_time, parse_u64};

/// Builds a [`StatusSnapshot`] from the lines of an answer to `status`, as they come.
#[derive(Debug, Clone)]
pub struct StatusParser {
    snapshot: StatusSnapshot,
    layout: Layout,
    client_columns: Columns<6, 5>,
    route_columns: Columns<3, 1>,
    clients_max: usize,
    routes_max: usize,
    text_bytes_max: usize,
}

/// What the lines before say about the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// Nothing was read yet.
    Unknown,
    /// Format 2 or 3: every line starts with its kind, and this byte behind it.
    Tagged(u8),
    /// Format 1.
    Plain(Section),
    /// A client daemon's counters.
    ClientStatistics,
}

/// Where we are in format 1, whose lines do not say what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Section {
    BeforeClients,
    Clients,
    BeforeRoutes,
    Routes,
    GlobalStats,
}

impl StatusParser {
    /// A parser for one answer, in any format.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        Self::with_size(StatusSize::default(), limits)
    }

    /// A parser for an answer that may well be of this size: growing a table of that size would cost as much as parsing.
    pub(crate) fn with_size(size: StatusSize, limits: &Limits) -> Self {
        Self {
            snapshot: StatusSnapshot {
                text: Vec::with_capacity(size.text_bytes),
                clients: Vec::with_capacity(size.clients),
                routes: Vec::with_capacity(size.routes),
                ..StatusSnapshot::default()
            },
            layout: Layout::Unknown,
            client_columns: Columns::none(),
            route_columns: Columns::none(),
            clients_max: limits.clients_max,
            routes_max: limits.routes_max,
            // Rows keep 32-bit offsets.
            text_bytes_max: limits.status_bytes_max.min(u32::MAX as usize),
        }
    }

    /// Takes one line, without its line end. `END` and empty lines are ignored.
    pub fn handle_line(&mut self, line: &[u8]) {
        if self.handle_row(line) {
            return;
        }
        if line.is_empty() || line == b"END" {
            return;
        }
        let understood = match self.layout {
            Layout::Unknown => self.handle_first_line(line),
            Layout::Tagged(separator) => self.handle_tagged_line(line, separator),
            Layout::Plain(section) => self.handle_plain_line(line, section),
            Layout::ClientStatistics => self.handle_statistics_line(line),
        };
        if !understood {
            self.quarantine(line);
        }
    }

    /// Takes one line if it is of one of the two kinds that come by the thousand.
    #[inline]
    pub(crate) fn handle_row(&mut self, line: &[u8]) -> bool {
        let Layout::Tagged(separator) = self.layout else {
            return false;
        };
        if let Some(row) = strip_tag(line, b"CLIENT_LIST", separator) {
            self.handle_client_row(row, separator);
        } else if let Some(row) = strip_tag(line, b"ROUTING_TABLE", separator) {
            self.handle_route_row(row, separator);
        } else {
            return false;
        }
        true
    }

    /// The snapshot of the lines so far.
    #[must_use]
    pub fn finish(self) -> StatusSnapshot {
        let mut snapshot = self.snapshot;
        snapshot.text.shrink_to_fit();
        snapshot.clients.shrink_to_fit();
        snapshot.routes.shrink_to_fit();
        snapshot
    }

    fn handle_first_line(&mut self, line: &[u8]) -> bool {
        match line {
            b"OpenVPN CLIENT LIST" => self.layout = Layout::Plain(Section::BeforeClients),
            b"OpenVPN STATISTICS" => {
                self.layout = Layout::ClientStatistics;
                self.snapshot.client_statistics = Some(Box::default());
            }
            _ => {
                let tags: [&[u8]; 6] = [
                    b"TITLE",
                    b"TIME",
                    b"HEADER",
                    b"CLIENT_LIST",
                    b"ROUTING_TABLE",
                    b"GLOBAL_STATS",
                ];
                let rest = tags.iter().find_map(|tag| line.strip_prefix(*tag));
                let Some([separator @ (b',' | b'\t'), ..]) = rest else {
                    return false;
                };
                self.layout = Layout::Tagged(*separator);
                self.handle_line(line);
            }
        }
        true
    }

    /// A line of format 2 or 3 that is no client and no route.
    fn handle_tagged_line(&mut self, line: &[u8], separator: u8) -> bool {
        if let Some(title) = strip_tag(line, b"TITLE", separator) {
            self.snapshot.title = title.into();
        } else if let Some(time) = strip_tag(line, b"TIME", separator) {
            let Some(at) = memchr::memrchr(separator, time) else {
                return false;
            };
            let Some(seconds) = parse_time(&time[at + 1..]) else {
                return false;
            };
            self.snapshot.time_text = time[..at].into();
            self.snapshot.time = Some(seconds);
        } else if let Some(header) = strip_tag(line, b"HEADER", separator) {
            if let Some(columns) = strip_tag(header, b"CLIENT_LIST", separator) {
                self.client_columns = client_columns(columns, separator);
            } else if let Some(columns) = strip_tag(header, b"ROUTING_TABLE", separator) {
                self.route_columns = route_columns(columns, separator);
            }
            // A table this library does not know: its rows are quarantined one by one.
        } else if let Some(statistic) = strip_tag(line, b"GLOBAL_STATS", separator) {
            return self.handle_global_statistic(statistic, separator);
        } else {
            return false;
        }
        true
    }

    /// A line of format 1. A client's name starts its row, so only a whole line ends a section.
    fn handle_plain_line(&mut self, line: &[u8], section: Section) -> bool {
        let next = match (section, line) {
            (_, b"ROUTING TABLE") => Section::BeforeRoutes,
            (_, b"GLOBAL STATS") => Section::GlobalStats,
            (Section::BeforeClients, _) => {
                if let Some(time) = line.strip_prefix(b"Updated,") {
                    self.snapshot.time_text = time.into();
                    return true;
                }
                self.client_columns = client_columns(line, b',');
                Section::Clients
            }
            (Section::Clients, _) => {
                self.handle_client_row(line, b',');
                return true;
            }
            (Section::BeforeRoutes, _) => {
                self.route_columns = route_columns(line, b',');
                Section::Routes
            }
            (Section::Routes, _) => {
                self.handle_route_row(line, b',');
                return true;
            }
            (Section::GlobalStats, _) => return self.handle_global_statistic(line, b','),
        };
        self.layout = Layout::Plain(next);
        true
    }

    fn handle_global_statistic(&mut self, statistic: &[u8], separator: u8) -> bool {
        let Some(at) = memchr::memrchr(separator, statistic) else {
            return false;
        };
        if self.snapshot.global_stats.len() >= STATISTICS_MAX {
            return false;
        }
        self.snapshot
            .global_stats
            .push((statistic[..at].into(), statistic[at + 1..].into()));
        true
    }

    fn handle_statistics_line(&mut self, line: &[u8]) -> bool {
        let Some(at) = memchr::memrchr(b',', line) else {
            return false;
        };
        let (name, value) = (&line[..at], &line[at + 1..]);
        if name == b"Updated" {
            self.snapshot.time_text = value.into();
            return true;
        }
        let statistics = self.snapshot.client_statistics.get_or_insert_default();
        let ClientStatistics {
            tun_read_bytes,
            tun_write_bytes,
            link_read_bytes,
            link_write_bytes,
            auth_read_bytes,
            others,
        } = &mut **statistics;
        let counter = match name {
            b"TUN/TAP read bytes" => tun_read_bytes,
            b"TUN/TAP write bytes" => tun_write_bytes,
            b"TCP/UDP read bytes" => link_read_bytes,
            b"TCP/UDP write bytes" => link_write_bytes,
            b"Auth read bytes" => auth_read_bytes,
            _ => {
                let room = others.len() < STATISTICS_MAX;
                if room {
                    others.push((Text::from(name), Text::from(value)));
                }
                return room;
            }
        };
        *counter = parse_u64(value);
        counter.is_some()
    }

    fn handle_client_row(&mut self, row: &[u8], separator: u8) {
        if self.snapshot.clients.len() >= self.clients_max {
            self.snapshot.rows_dropped += 1;
            return;
        }
        let snapshot = &mut self.snapshot;
        let text_start = snapshot.text.len();
        let kept_max = self.text_bytes_max;
        let taken = self
            .client_columns
            .take(row, separator, &mut snapshot.text, kept_max);
        match taken.and_then(ClientEntry::of) {
            Ok(entry) => snapshot.clients.push(entry),
            Err(error) => self.reject_row(row, text_start, &error),
        }
    }

    fn handle_route_row(&mut self, row: &[u8], separator: u8) {
        if self.snapshot.routes.len() >= self.routes_max {
            self.snapshot.rows_dropped += 1;
            return;
        }
        let snapshot = &mut self.snapshot;
        let text_start = snapshot.text.len();
        let kept_max = self.text_bytes_max;
        let taken = self
            .route_columns
            .take(row, separator, &mut snapshot.text, kept_max);
        match taken {
            Ok(row) => snapshot.routes.push(RouteEntry::of(row)),
            Err(error) => self.reject_row(row, text_start, &error),
        }
    }

    #[cold]
    fn reject_row(&mut self, row: &[u8], text_start: usize, error: &RowError) {
        self.snapshot.text.truncate(text_start);
        match error {
            RowError::Malformed => self.quarantine(row),
            RowError::Full => self.snapshot.rows_dropped += 1,
        }
    }

    #[cold]
    fn quarantine(&mut self, line: &[u8]) {
        let quarantine = &mut self.snapshot.quarantine;
        quarantine.count += 1;
        if quarantine.first.len() < QUARANTINED_ROWS_MAX {
            quarantine.first.push(line.into());
        }
    }
}

/// The rest of a line of this kind.
#[inline(always)]
fn strip_tag<'a, const N: usize>(line: &'a [u8], tag: &[u8; N], separator: u8) -> Option<&'a [u8]> {
    match line.split_first_chunk()? {
        (first, [second, rest @ ..]) if first == tag && *second == separator => Some(rest),
        _ => None,
    }
}

fn client_columns(header: &[u8], separator: u8) -> Columns<6, 5> {
    Columns::find(
        header,
        separator,
        [
            b"Common Name",
            b"Real Address",
            b"Virtual Address",
            b"Virtual IPv6 Address",
            b"Username",
            b"Data Channel Cipher",
        ],
        [
            (b"Bytes Received", 0),
            (b"Bytes Sent", 0),
            (b"Connected Since (time_t)", NO_TIME),
            (b"Client ID", NO_CID),
            (b"Peer ID", NO_PEER_ID.into()),
        ],
    )
}

fn route_columns(header: &[u8], separator: u8) -> Columns<3, 1> {
    Columns::find(
        header,
        separator,
        [b"Virtual Address", b"Common Name", b"Real Address"],
        [(b"Last Ref (time_t)", NO_TIME)],
    )
}

impl ClientEntry {
    #[inline(always)]
    fn of(row: Row<6, 5>) -> Result<Self, RowError> {
        // The same order as in the names of `client_columns`.
        let [
            common_name,
            real_address,
            virtual_address,
            virtual_ipv6_address,
            username,
            cipher,
        ] = row.texts;
        let [bytes_received, bytes_sent, connected_since, cid, peer_id] = row.numbers;
        Ok(Self {
            bytes_received,
            bytes_sent,
            connected_since,
            cid,
            peer_id: peer_id.try_into().map_err(|_| RowError::Malformed)?,
            start: row.start,
            common_name,
            real_address,
            virtual_address,
            virtual_ipv6_address,
            username,
            cipher,
        })
    }
}

impl RouteEntry {
    #[inline(always)]
    fn of(row: Row<3, 1>) -> Self {
        // The same order as in the names of `route_columns`.
        let [virtual_address, common_name, real_address] = row.texts;
        let [last_ref] = row.numbers;
        Self {
            last_ref,
            start: row.start,
            virtual_address,
            common_name,
            real_address,
        }
    }
}
