//! When a daemon's CID space began anew.
//!
//! A wrong "the same" would let a kill hit a stranger; a wrong "new" costs a caller a fresh list. When in doubt: new.

use openvpn_management::Cid;

use super::{Fold, Told};
use crate::client::micros;
use crate::event::{ClientsLost, Detail, DisconnectCause, GenerationCause};
use crate::name::Generation;
use crate::table::RemovedReason;

/// Seconds that a daemon's clock and ours may differ by more than is known.
const CLOCK_SLACK: i64 = 5;

impl Fold<'_> {
    /// The evidence, if a session that has just synchronised is to another run of the daemon than the last one was.
    pub(super) fn generation_on_attach(
        &self,
        pid: Option<u32>,
        connected_time: Option<i64>,
    ) -> Option<GenerationCause> {
        let memory = &self.table.memory;
        let known_pid = self.table.status.pid;
        if self.table.generation.is_none() {
            return Some(GenerationCause::First);
        }
        if pid.is_some() && known_pid.is_some() && pid != known_pid {
            return Some(GenerationCause::Pid);
        }
        // RECONNECTING was seen and has its generation already; what it becomes CONNECTED with is not known before.
        let is_other_run = !memory.reconnecting && connected_time != memory.connected_time;
        if memory.doubted || pid.is_none() || known_pid.is_none() || is_other_run {
            return Some(GenerationCause::ConnectedTime);
        }
        None
    }

    /// The evidence, if `cid` with this name and time cannot be of the present generation.
    ///
    /// That a later CID was established first says nothing: a slow handshake finishes late. Its half-open row was in
    /// every snapshot meanwhile.
    pub(super) fn generation_on_appearance(
        &self,
        cid: Cid,
        connected_since: Option<i64>,
        common_name: &[u8],
    ) -> Option<GenerationCause> {
        let Some(known) = self.table.clients.get(cid) else {
            let is_lower = self
                .table
                .memory
                .highest_cid
                .is_some_and(|highest| cid <= highest);
            // Whoever has a number of before, and came after, shows that the numbers began anew while nobody watched.
            let offset = self.table.status.clock_offset.unwrap_or(0);
            let is_newer = self.table.memory.restored.is_some_and(|(highest, before)| {
                cid <= highest
                    && connected_since.is_some_and(|since| since > before + offset + CLOCK_SLACK)
            });
            return (is_lower || is_newer).then_some(GenerationCause::CidLower);
        };
        let is_other_time = match (known.connected_since(), connected_since) {
            (Some(known), Some(shown)) => known != shown,
            _ => false,
        };
        let is_other_name = !known.half_open
            && !known.common_name().is_empty()
            && !common_name.is_empty()
            && known.common_name() != common_name;
        (is_other_time || is_other_name).then_some(GenerationCause::CidReused)
    }

    /// Begins a new generation: every row goes, every older reference is stale.
    pub(super) fn begin_generation(&mut self, cause: GenerationCause) {
        let previous = self.table.generation;
        let had_clients = self.table.clients.len() > 0;
        let clients_lost = match cause {
            GenerationCause::First => ClientsLost::No,
            // These were found on attach: what became of whom was in the table nobody saw.
            GenerationCause::Pid | GenerationCause::ConnectedTime => ClientsLost::Unknown,
            GenerationCause::Reconnecting
            | GenerationCause::CidReused
            | GenerationCause::CidLower => {
                if had_clients {
                    ClientsLost::Yes
                } else {
                    ClientsLost::No
                }
            }
        };
        if cause == GenerationCause::Reconnecting {
            self.disconnect_all(DisconnectCause::DaemonRestart, RemovedReason::Generation);
        } else {
            let cids: Vec<Cid> = self.table.clients.iter().map(|client| client.cid).collect();
            for cid in cids {
                self.table.note_removed(cid, RemovedReason::Generation);
            }
            drop(self.table.clients.take());
        }
        self.table.routes = Vec::new();
        self.table.memory.forget_generation();
        let floor = previous.map_or(0, |previous| previous.0 + 1);
        self.table.generation = Some(Generation(floor.max(micros(self.at.wall))));
        self.table.bump_status();
        self.emit(Detail::Generation {
            previous,
            cause,
            clients_lost,
        });
    }

    /// Every client is gone, and the daemon said so.
    pub(super) fn disconnect_all(&mut self, cause: DisconnectCause, reason: RemovedReason) {
        let cids: Vec<Cid> = self.table.clients.iter().map(|client| client.cid).collect();
        for cid in cids {
            self.disconnect(cid, Some(cause), None, Told::ByDaemon, reason);
        }
    }
}
