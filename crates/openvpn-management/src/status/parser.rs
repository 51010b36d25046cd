//! Rows become offsets as they arrive.

use super::fields::{Fields, RowError, RowText};
use super::{
    ClientEntry, ClientStatistics, NO_CID, NO_FIELD, NO_PEER_ID, NO_TIME, QUARANTINED_ROWS_MAX,
    RouteEntry, STATISTICS_MAX, Span, StatusSize, StatusSnapshot,
};
use crate::limits::Limits;
use crate::text::{Text, parse_time, parse_u64};

/// Builds a [`StatusSnapshot`] from the lines of an answer to `status`, as they come.
#[derive(Debug, Clone)]
pub struct StatusParser {
    snapshot: StatusSnapshot,
    layout: Layout,
    client_columns: Vec<ClientColumn>,
    route_columns: Vec<RouteColumn>,
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

/// What a column of the client list is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ClientColumn {
    CommonName,
    RealAddress,
    VirtualAddress,
    VirtualIpv6Address,
    BytesReceived,
    BytesSent,
    ConnectedSince,
    Username,
    ClientId,
    PeerId,
    Cipher,
    Ignored,
}

/// What a column of the routing table is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RouteColumn {
    VirtualAddress,
    CommonName,
    RealAddress,
    LastRef,
    Ignored,
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
            client_columns: Vec::new(),
            route_columns: Vec::new(),
            clients_max: limits.clients_max,
            routes_max: limits.routes_max,
            // Rows keep 32-bit offsets.
            text_bytes_max: limits.status_bytes_max.min(u32::MAX as usize),
        }
    }

    /// Takes one line, without its line end. `END` and empty lines are ignored.
    pub fn handle_line(&mut self, line: &[u8]) {
        if let Layout::Tagged(separator) = self.layout {
            // The two kinds of line that come by the thousand.
            if let Some(row) = strip_tag(line, b"CLIENT_LIST", separator) {
                return self.handle_client_row(row, separator);
            }
            if let Some(row) = strip_tag(line, b"ROUTING_TABLE", separator) {
                return self.handle_route_row(row, separator);
            }
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
        let text_start = self.snapshot.text.len();
        let result = parse_client_row(
            row,
            separator,
            &self.client_columns,
            &mut RowText::new(&mut self.snapshot.text, self.text_bytes_max),
        );
        match result {
            Ok(entry) => self.snapshot.clients.push(entry),
            Err(error) => self.reject_row(row, text_start, &error),
        }
    }

    fn handle_route_row(&mut self, row: &[u8], separator: u8) {
        if self.snapshot.routes.len() >= self.routes_max {
            self.snapshot.rows_dropped += 1;
            return;
        }
        let text_start = self.snapshot.text.len();
        let result = parse_route_row(
            row,
            separator,
            &self.route_columns,
            &mut RowText::new(&mut self.snapshot.text, self.text_bytes_max),
        );
        match result {
            Ok(entry) => self.snapshot.routes.push(entry),
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
fn strip_tag<'a>(line: &'a [u8], tag: &[u8], separator: u8) -> Option<&'a [u8]> {
    match line.strip_prefix(tag)? {
        [first, rest @ ..] if *first == separator => Some(rest),
        _ => None,
    }
}

fn client_columns(header: &[u8], separator: u8) -> Vec<ClientColumn> {
    header
        .split(|byte| *byte == separator)
        .map(|name| match name {
            b"Common Name" => ClientColumn::CommonName,
            b"Real Address" => ClientColumn::RealAddress,
            b"Virtual Address" => ClientColumn::VirtualAddress,
            b"Virtual IPv6 Address" => ClientColumn::VirtualIpv6Address,
            b"Bytes Received" => ClientColumn::BytesReceived,
            b"Bytes Sent" => ClientColumn::BytesSent,
            b"Connected Since (time_t)" => ClientColumn::ConnectedSince,
            b"Username" => ClientColumn::Username,
            b"Client ID" => ClientColumn::ClientId,
            b"Peer ID" => ClientColumn::PeerId,
            b"Data Channel Cipher" => ClientColumn::Cipher,
            _ => ClientColumn::Ignored,
        })
        .collect()
}

fn route_columns(header: &[u8], separator: u8) -> Vec<RouteColumn> {
    header
        .split(|byte| *byte == separator)
        .map(|name| match name {
            b"Virtual Address" => RouteColumn::VirtualAddress,
            b"Common Name" => RouteColumn::CommonName,
            b"Real Address" => RouteColumn::RealAddress,
            b"Last Ref (time_t)" => RouteColumn::LastRef,
            _ => RouteColumn::Ignored,
        })
        .collect()
}

fn parse_client_row(
    row: &[u8],
    separator: u8,
    columns: &[ClientColumn],
    text: &mut RowText<'_>,
) -> Result<ClientEntry, RowError> {
    let mut entry = ClientEntry {
        bytes_received: 0,
        bytes_sent: 0,
        connected_since: NO_TIME,
        cid: NO_CID,
        peer_id: NO_PEER_ID,
        start: text.row_start()?,
        common_name: Span::default(),
        real_address: Span::default(),
        virtual_address: Span::default(),
        virtual_ipv6_address: Span::default(),
        username: Span::default(),
        cipher: NO_FIELD,
    };
    let mut fields = Fields::of(row, separator);
    for column in columns {
        match column {
            ClientColumn::CommonName => entry.common_name = fields.text(text),
            ClientColumn::RealAddress => entry.real_address = fields.text(text),
            ClientColumn::VirtualAddress => entry.virtual_address = fields.text(text),
            ClientColumn::VirtualIpv6Address => entry.virtual_ipv6_address = fields.text(text),
            ClientColumn::BytesReceived => entry.bytes_received = fields.number(),
            ClientColumn::BytesSent => entry.bytes_sent = fields.number(),
            ClientColumn::ConnectedSince => entry.connected_since = fields.number(),
            ClientColumn::Username => entry.username = fields.text(text),
            ClientColumn::ClientId => entry.cid = fields.number(),
            ClientColumn::PeerId => {
                entry.peer_id = fields
                    .number()
                    .try_into()
                    .map_err(|_| RowError::Malformed)?;
            }
            ClientColumn::Cipher => entry.cipher = fields.text(text),
            ClientColumn::Ignored => fields.skip(),
        }
    }
    fields.end(text)?;
    Ok(entry)
}

fn parse_route_row(
    row: &[u8],
    separator: u8,
    columns: &[RouteColumn],
    text: &mut RowText<'_>,
) -> Result<RouteEntry, RowError> {
    let mut entry = RouteEntry {
        last_ref: NO_TIME,
        start: text.row_start()?,
        virtual_address: Span::default(),
        common_name: Span::default(),
        real_address: Span::default(),
    };
    let mut fields = Fields::of(row, separator);
    for column in columns {
        match column {
            RouteColumn::VirtualAddress => entry.virtual_address = fields.text(text),
            RouteColumn::CommonName => entry.common_name = fields.text(text),
            RouteColumn::RealAddress => entry.real_address = fields.text(text),
            RouteColumn::LastRef => entry.last_ref = fields.number(),
            RouteColumn::Ignored => fields.skip(),
        }
    }
    fields.end(text)?;
    Ok(entry)
}
