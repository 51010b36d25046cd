//! The daemon's own `--status FILE --status-version 3`, read naively.
//!
//! This is the yardstick for the parser under test, so it shares nothing with it:
//! split at tabs, trust the column order of OpenVPN 2.6.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use ovfleet_proto::v1;

/// A `CLIENT_LIST` row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusRow {
    /// Name in the certificate, as bytes.
    pub common_name: Vec<u8>,
    /// Where the client comes from.
    pub real_address: String,
    /// IPv4 address inside the VPN; empty while half-open.
    pub virtual_address: String,
    /// Bytes the daemon received from the client.
    pub bytes_received: u64,
    /// Bytes the daemon sent to the client.
    pub bytes_sent: u64,
    /// Unix time of the connection.
    pub connected_since: i64,
    /// Authenticated name, as bytes; `UNDEF` without one.
    pub username: Vec<u8>,
    /// Client ID.
    pub cid: u64,
    /// Peer ID.
    pub peer_id: u32,
    /// Data channel cipher.
    pub cipher: String,
}

impl StatusRow {
    /// Whether `row` shows this client: every column that stays as it is.
    #[must_use]
    pub fn is_shown_by(&self, row: &v1::Client) -> bool {
        let username = match self.username.as_slice() {
            b"UNDEF" => &[],
            username => username,
        };
        row.r#ref.as_ref().map(|r| r.cid) == Some(self.cid)
            && row.common_name.as_bytes() == self.common_name
            && row.username.as_bytes() == username
            && row.real_address == self.real_address
            && row.virtual_address == self.virtual_address
            && row.cipher == self.cipher
            && row.peer_id == Some(self.peer_id)
            && row.connected_since.map(|since| since.seconds) == Some(self.connected_since)
    }
}

/// A whole status file.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Unix time the daemon wrote it.
    pub time: i64,
    /// The clients, by CID.
    pub clients: BTreeMap<u64, StatusRow>,
    /// The addresses in the routing table.
    pub routes: Vec<String>,
}

/// Reads a status file; `None` while the daemon is still writing it.
///
/// # Errors
/// A line is not what OpenVPN 2.6 writes.
pub fn parse(text: &[u8]) -> Result<Option<Status>> {
    let mut lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    // OpenVPN rewrites the file in place: complete is what ends in END and a newline.
    if lines.pop() != Some(b"") || lines.pop() != Some(b"END") {
        return Ok(None);
    }
    let mut status = Status::default();
    for line in lines {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b'\t').collect();
        match fields.as_slice() {
            [b"TIME", _, time] => status.time = number(time)?,
            [b"CLIENT_LIST", rest @ ..] => {
                let row = client(rest)?;
                status.clients.insert(row.cid, row);
            }
            [b"ROUTING_TABLE", address, ..] => status.routes.push(text_of(address)),
            [b"TITLE" | b"HEADER" | b"GLOBAL_STATS", ..] => {}
            _ => bail!("unexpected status line {:?}", text_of(line)),
        }
    }
    Ok(Some(status))
}

fn client(fields: &[&[u8]]) -> Result<StatusRow> {
    let [
        common_name,
        real,
        virtual_address,
        _ipv6,
        received,
        sent,
        _since,
        since,
        username,
        cid,
        peer_id,
        cipher,
    ] = fields
    else {
        bail!("a client row of {} fields", fields.len());
    };
    Ok(StatusRow {
        common_name: common_name.to_vec(),
        real_address: text_of(real),
        virtual_address: text_of(virtual_address),
        bytes_received: number(received)?,
        bytes_sent: number(sent)?,
        connected_since: number(since)?,
        username: username.to_vec(),
        cid: number(cid)?,
        peer_id: number(peer_id)?,
        cipher: text_of(cipher),
    })
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn number<N: std::str::FromStr>(bytes: &[u8]) -> Result<N>
where
    N::Err: std::error::Error + Send + Sync + 'static,
{
    let text = text_of(bytes);
    text.parse()
        .with_context(|| format!("{text:?} is not a number"))
}
