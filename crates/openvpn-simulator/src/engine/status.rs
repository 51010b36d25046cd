//! `status` in its three formats.

use crate::clock::UnixTime;
use crate::lexer::atoi;
use crate::{Misbehaviour, Version};

use super::clients::{Client, Stage};
use super::{Engine, Phase, text};

/// What an invalid name ends with: no UTF-8 sequence starts or goes on like this.
pub(super) const INVALID_SUFFIX: &[u8] = b"\xff\xfe";

/// The lines of one status, without line ends.
type Lines = Vec<Vec<u8>>;

impl Engine {
    pub(super) fn status_command(&mut self, arguments: &[&[u8]]) {
        if self.settings.client.is_some() && self.phase == Phase::Serving {
            self.statistics();
            return;
        }
        if !self.serves("status") {
            return;
        }
        let version = match arguments.first().map_or(0, |version| atoi(version)) {
            0 => i32::from(self.settings.status_version),
            version => version,
        };
        let Some(lines) = self.status_lines(version) else {
            self.say("ERROR: bad status format version number");
            return;
        };
        for line in &lines {
            self.output.push(line);
            self.output.push(b"\r\n");
        }
        self.say_end();
    }

    /// All that a client has to say, in whatever format it is asked.
    fn statistics(&mut self) {
        let now = self.clock();
        let updated = self.time_text(now);
        let (received, sent) = (self.bytes_received, self.bytes_sent);
        self.say("OpenVPN STATISTICS");
        self.say(format_args!("Updated,{updated}"));
        self.say("TUN/TAP read bytes,0");
        self.say("TUN/TAP write bytes,0");
        self.say(format_args!("TCP/UDP read bytes,{received}"));
        self.say(format_args!("TCP/UDP write bytes,{sent}"));
        self.say("Auth read bytes,32");
        self.say_end();
    }

    fn status_lines(&mut self, version: i32) -> Option<Lines> {
        match version {
            1 => Some(self.status_1()),
            2 => Some(self.status_2(b",")),
            3 => Some(self.status_2(b"\t")),
            _ => None,
        }
    }

    /// SIGUSR2: the status in the log, in the format of `status`.
    pub(super) fn log_status(&mut self) {
        let version = i32::from(self.settings.status_version);
        for line in self.status_lines(version).unwrap_or_default() {
            self.log("I", line);
        }
        self.log("I", "END");
    }

    fn status_1(&mut self) -> Lines {
        let now = self.clock();
        let mut lines: Lines = vec![
            b"OpenVPN CLIENT LIST".to_vec(),
            format!("Updated,{}", self.time_text(now)).into_bytes(),
            b"Common Name,Real Address,Bytes Received,Bytes Sent,Connected Since".to_vec(),
        ];
        for client in self.clients.values() {
            lines.push(
                [
                    &self.shown_name(client)[..],
                    client.log_address().as_bytes(),
                    client.bytes_received.to_string().as_bytes(),
                    client.bytes_sent.to_string().as_bytes(),
                    self.time_text(client.connected_since).as_bytes(),
                ]
                .join(&b","[..]),
            );
        }
        lines.push(b"ROUTING TABLE".to_vec());
        lines.push(b"Virtual Address,Common Name,Real Address,Last Ref".to_vec());
        for client in self.clients.values() {
            for address in addresses(client) {
                lines.push(
                    [
                        address.as_bytes(),
                        &self.shown_name(client),
                        client.log_address().as_bytes(),
                        self.time_text(client.connected_since).as_bytes(),
                    ]
                    .join(&b","[..]),
                );
            }
        }
        lines.push(b"GLOBAL STATS".to_vec());
        lines.push(b"Max bcast/mcast queue length,0".to_vec());
        lines
    }

    /// Formats 2 and 3 differ in the separator alone.
    fn status_2(&mut self, separator: &[u8]) -> Lines {
        let now = self.clock();
        let line = |fields: &[&str]| fields.join(as_text(separator)).into_bytes();
        let mut columns = text::client_list(self.settings.version);
        if self.does(&Misbehaviour::ForeignHeader) {
            columns = vec!["CLIENT_LIST", "Kunde", "Empfangen", "Nummer", "Adresse"];
        }
        let mut lines: Lines = vec![
            line(&["TITLE", text::title(self.settings.version)]),
            line(&["TIME", &self.time_text(now), &now.0.to_string()]),
            line(&["HEADER", &columns.join(as_text(separator))]),
        ];
        for (cid, client) in &self.clients {
            let mut fields = self.client_row(*cid, client);
            self.spoil(&mut fields, lines.len());
            lines.push(fields.join(separator));
        }
        let made_up = self.misbehaviours.iter().find_map(|wrong| match wrong {
            Misbehaviour::HugeStatus { rows } => Some(*rows),
            _ => None,
        });
        let time_text = self.time_text(now);
        for row in 0..made_up.unwrap_or(0) {
            let mut fields = self.client_fields(made_up_row(row, now.0, &time_text));
            self.spoil(&mut fields, lines.len());
            lines.push(fields.join(separator));
        }
        lines.push(line(&[
            "HEADER",
            &text::ROUTING_TABLE.join(as_text(separator)),
        ]));
        for client in self.clients.values() {
            for address in addresses(client) {
                lines.push(
                    [
                        b"ROUTING_TABLE",
                        address.as_bytes(),
                        &self.shown_name(client),
                        client.log_address().as_bytes(),
                        self.time_text(client.connected_since).as_bytes(),
                        client.connected_since.0.to_string().as_bytes(),
                    ]
                    .join(separator),
                );
            }
        }
        lines.push(line(&["GLOBAL_STATS", "Max bcast/mcast queue length", "0"]));
        if self.settings.version >= Version::V2_6 {
            lines.push(line(&["GLOBAL_STATS", "dco_enabled", "0"]));
        }
        lines
    }

    fn client_row(&self, cid: u64, client: &Client) -> Vec<Vec<u8>> {
        let text = |text: String| text.into_bytes();
        let established = client.stage == Stage::Established;
        let username = match client.stage {
            Stage::HalfOpen => None,
            Stage::AwaitingApproval | Stage::Established => client.spec.username.clone(),
        };
        self.client_fields([
            b"CLIENT_LIST".to_vec(),
            self.shown_name(client),
            text(client.log_address()),
            text(
                client
                    .virtual_address
                    .map_or(String::new(), |address| address.to_string()),
            ),
            text(
                client
                    .virtual_ipv6_address
                    .map_or(String::new(), |address| address.to_string()),
            ),
            text(client.bytes_received.to_string()),
            text(client.bytes_sent.to_string()),
            text(self.time_text(client.connected_since)),
            text(client.connected_since.0.to_string()),
            username.unwrap_or_else(|| b"UNDEF".to_vec()),
            text(cid.to_string()),
            text(client.peer_id.to_string()),
            if established {
                client.spec.cipher.clone().into_bytes()
            } else {
                b"BF-CBC".to_vec()
            },
        ])
    }

    /// The fields of a client's row that this version has.
    fn client_fields(&self, fields: [Vec<u8>; text::CLIENT_LIST.len()]) -> Vec<Vec<u8>> {
        fields
            .into_iter()
            .zip(text::CLIENT_LIST)
            .filter(|(_, (_, since))| *since <= self.settings.version)
            .map(|(field, _)| field)
            .collect()
    }

    /// A time as this version prints it.
    pub(super) fn time_text(&self, time: UnixTime) -> String {
        if self.settings.version <= Version::V2_4 {
            time.ctime()
        } else {
            time.to_string()
        }
    }

    /// Gives a row the wrong number of fields, one too few or one too many.
    fn spoil(&self, fields: &mut Vec<Vec<u8>>, line: usize) {
        if self.does(&Misbehaviour::WrongFieldCount) {
            if line.is_multiple_of(2) {
                fields.pop();
            } else {
                fields.push(b"surplus".to_vec());
            }
        }
    }

    fn shown_name(&self, client: &Client) -> Vec<u8> {
        let mut name = client.common_name().to_vec();
        if self.does(&Misbehaviour::InvalidNames) {
            name.extend_from_slice(INVALID_SUFFIX);
        }
        name
    }
}

fn as_text(separator: &[u8]) -> &str {
    if separator == b"\t" { "\t" } else { "," }
}

/// Everything the routing table has for a client.
fn addresses(client: &Client) -> Vec<String> {
    if client.stage != Stage::Established {
        return Vec::new();
    }
    let mut addresses = Vec::new();
    if let Some(address) = client.virtual_address {
        addresses.push(address.to_string());
    }
    for (network, length) in &client.routes {
        addresses.push(format!("{network}/{length}"));
    }
    if let Some(address) = client.virtual_ipv6_address {
        addresses.push(address.to_string());
    }
    addresses
}

fn made_up_row(row: usize, time: i64, time_text: &str) -> [Vec<u8>; text::CLIENT_LIST.len()] {
    /// Far above the CIDs of real clients.
    const FIRST_CID: usize = 1_000_000_000;
    let (high, low) = (row / 250 % 250, row % 250);
    [
        "CLIENT_LIST".to_owned(),
        format!("made-up-{row}"),
        format!("198.18.{high}.{low}:{}", 1024 + row % 60_000),
        format!("10.{}.{high}.{low}", 100 + row / 62_500 % 100),
        String::new(),
        (row * 1000).to_string(),
        (row * 2000).to_string(),
        time_text.to_owned(),
        time.to_string(),
        "UNDEF".to_owned(),
        (FIRST_CID + row).to_string(),
        row.to_string(),
        "AES-256-GCM".to_owned(),
    ]
    .map(String::into_bytes)
}
