//! What happens to a client, whoever tells it.

use std::time::{Duration, SystemTime};

use openvpn_management::{Cid, Text};

use super::{Fold, Told};
use crate::client::Client;
use crate::event::{ClientConnected, ClientDisconnected, Detail, DisconnectCause, EventClient};
use crate::name::{ClientRef, Generation};
use crate::table::RemovedReason;

/// The daemon's last word about a client.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LastWord {
    pub(super) bytes_received: Option<u64>,
    pub(super) bytes_sent: Option<u64>,
    pub(super) duration: Option<Duration>,
}

impl Fold<'_> {
    /// The generation rows are of. There is always one when there are rows: a session that is not in step keeps what
    /// it hears about clients until it has one.
    pub(super) fn generation(&self) -> Generation {
        self.table.generation.unwrap_or(Generation(0))
    }

    pub(super) fn client_ref(&self, cid: Cid) -> ClientRef {
        ClientRef {
            gateway: self.table.gateway.clone(),
            instance: self.table.name.clone(),
            generation: self.generation(),
            cid,
        }
    }

    pub(super) fn event_client(&self, client: &Client) -> EventClient {
        client.to_event(self.generation())
    }

    /// Whether one more row fits. If not, the row is left out and the table is marked as truncated.
    pub(super) fn has_room_for(&mut self, cid: Cid) -> bool {
        let fits = self.table.clients.get(cid).is_some()
            || self.table.clients.len() < self.table.clients_max;
        if !fits {
            self.table.status.truncated = true;
            self.table.bump_status();
        }
        fits
    }

    /// Puts a client that has begun a handshake into the table.
    pub(super) fn attempt(&mut self, mut client: Client, told: Told) {
        client.half_open = true;
        client.revision = self.table.bump();
        let (event, connected) = (self.event_client(&client), connected(&client, None));
        self.table.clients.insert(client);
        self.emit_client(
            event,
            Detail::ClientAttempt(Box::new(connected)),
            None,
            told,
        );
    }

    /// Puts a connected client into the table, in place of its own half-open row if there is one.
    pub(super) fn establish(&mut self, mut client: Client, told: Told) {
        client.half_open = false;
        client.revision = self.table.bump();
        if let Some(half_open) = self.table.clients.get(client.cid) {
            // What killed it or is known to end it stays true.
            client.mark.clone_from(&half_open.mark);
            if client.peer_info.is_empty() {
                client.peer_info = half_open.peer_info.clone();
            }
        }
        let counts_whole = match (client.connected_since(), self.table.memory.counting_from) {
            (Some(since), Some(counting_from)) => since >= counting_from,
            // Whoever connects before our eyes starts at 0.
            _ => matches!(told, Told::ByDaemon),
        };
        if counts_whole {
            self.count_traffic((client.bytes_received, client.bytes_sent));
        }
        let predecessor = self
            .table
            .memory
            .take_place(&client, self.at.monotonic)
            .map(|cid| self.client_ref(cid));
        let event = self.event_client(&client);
        let daemon_time = client.connected_since();
        let detail = Detail::ClientEstablished(Box::new(connected(&client, predecessor)));
        self.table.clients.insert(client);
        self.emit_client(event, detail, daemon_time, told);
    }

    /// Takes a client out of the table and closes its record. Nothing if there is none.
    pub(super) fn disconnect(
        &mut self,
        cid: Cid,
        cause: Option<DisconnectCause>,
        last_word: Option<LastWord>,
        told: Told,
        reason: RemovedReason,
    ) {
        let Some(mut client) = self.table.clients.remove(cid) else {
            return;
        };
        self.table.note_removed(cid, reason);
        self.table.remove_routes(cid);
        let word = last_word.unwrap_or_default();
        if let (Some(received), Some(sent)) = (word.bytes_received, word.bytes_sent)
            && let Some(more) = client.raise_bytes(received, sent)
        {
            self.count_traffic(more);
        }
        self.table.memory.note_ending(&client, self.at.monotonic);
        let mark = client.mark.take().map(|mark| *mark).unwrap_or_default();
        let evidence = match (&mark.killed_by, mark.leaving) {
            (Some(_), _) => DisconnectCause::Killed,
            (None, Some(leaving)) => leaving,
            (None, None) => cause.unwrap_or(DisconnectCause::Unknown),
        };
        let successor = self.table.memory.successor_of(cid);
        let detail = Detail::ClientDisconnected(Box::new(ClientDisconnected {
            bytes_received: client.bytes_received,
            bytes_sent: client.bytes_sent,
            bytes_final: word.bytes_received.is_some() && word.bytes_sent.is_some(),
            duration: word.duration.or_else(|| self.connected_for(&client, told)),
            cause: evidence,
            caused_by: mark.killed_by,
            successor: successor.map(|cid| self.client_ref(cid)),
        }));
        let event = self.event_client(&client);
        self.emit_client(event, detail, None, told);
    }

    /// How long a client that is gone was connected, by the daemon's clock.
    fn connected_for(&self, client: &Client, told: Told) -> Option<Duration> {
        if client.half_open {
            return None;
        }
        let end: SystemTime = told
            .inference()
            .map_or(self.at.wall, |inference| inference.not_after);
        let end = unix_seconds(end) + self.table.status.clock_offset.unwrap_or(0);
        let seconds = end.saturating_sub(client.connected_since()?);
        Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
    }

    /// Adds traffic of clients to what the instance's counters accumulate.
    pub(super) fn count_traffic(&mut self, (received, sent): (u64, u64)) {
        let status = &mut self.table.status;
        status.bytes_received = status.bytes_received.saturating_add(received);
        status.bytes_sent = status.bytes_sent.saturating_add(sent);
        if received > 0 || sent > 0 {
            self.table.bump_status();
        }
    }

    /// There is a sign that a client ends. The first sign stands; more than one line tells of the same end.
    pub(super) fn leaving(&mut self, cid: Cid, cause: DisconnectCause) {
        let Some(client) = self.table.clients.get_mut(cid) else {
            return;
        };
        let mark = client.mark_mut();
        if mark.leaving.is_some() {
            return;
        }
        // A client that we killed says goodbye like any other.
        let cause = if mark.killed_by.is_some() {
            DisconnectCause::Killed
        } else {
            cause
        };
        mark.leaving = Some(cause);
        self.table.revision += 1;
        client.revision = self.table.revision;
        self.table.memory.note_ending(client, self.at.monotonic);
        let event = client.to_event(self.table.generation.unwrap_or(Generation(0)));
        self.emit_client(event, Detail::ClientLeaving { cause }, None, Told::ByDaemon);
    }
}

pub(super) fn connected(client: &Client, predecessor: Option<ClientRef>) -> ClientConnected {
    ClientConnected {
        connected_since: client.connected_since(),
        peer_info: client.peer_info.clone(),
        cipher: Text::copy_from(client.cipher()),
        predecessor,
    }
}

pub(super) fn unix_seconds(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
        })
}
