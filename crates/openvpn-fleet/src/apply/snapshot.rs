//! A `status`: what the notifications did not tell.

use std::collections::HashMap;

use openvpn_management::{Cid, ClientRow, RouteRow, StatusSnapshot};
use openvpn_session::{Hint, Mode, Snapshot};

use super::clients::unix_seconds;
use super::{Fold, Told};
use crate::client::{Client, ClientTexts};
use crate::event::Inference;
use crate::route::{Orphan, Route};
use crate::table::RemovedReason;

impl Fold<'_> {
    pub(super) fn handle_snapshot(&mut self, snapshot: &Snapshot) {
        let Snapshot {
            status: shown,
            asked,
            answered,
        } = snapshot;
        let mode = Mode::of(shown);
        let without_cid = shown.clients().filter(|row| row.cid.is_none()).count() as u64;
        let is_first = self.table.status.counting_since.is_none();
        let status = &mut self.table.status;
        status.mode = mode;
        status.snapshot_time = Some(answered.wall);
        // A row that cannot be named cannot be shown either: before OpenVPN 2.4 there are no CIDs.
        status.quarantined_rows = shown.quarantined().count + without_cid;
        status.truncated = shown.is_truncated();
        if status.daemon_version.is_empty() {
            status.daemon_version = shown.title().clone();
        }
        if let Some(time) = shown.time() {
            status.clock_offset = Some(time - unix_seconds(answered.wall));
        }
        status.statistics = shown.client_statistics().cloned().map(Box::new);
        if mode == Mode::Client {
            self.table.bump_status();
            return;
        }
        if is_first {
            status.counting_since = Some(answered.wall);
            self.table.memory.counting_from =
                shown.time().or_else(|| Some(unix_seconds(answered.wall)));
        }
        self.table.bump_status();
        self.table.clients.forget_words();
        let is_complete = !shown.is_truncated() && status_is_whole(shown) && without_cid == 0;
        self.check_generation(shown);

        let told = self.told_between(answered.wall);
        let mut seen = Vec::with_capacity(shown.clients().len());
        for row in shown.clients() {
            let Some(cid) = row.cid else {
                continue;
            };
            seen.push(cid);
            self.fold_row(cid, &row, told);
            self.spill();
        }
        seen.sort_unstable();
        if is_complete {
            self.disconnect_absent(&seen, asked.monotonic, answered.wall);
            let memory = &mut self.table.memory;
            memory.highest_cid = memory.highest_cid.max(seen.last().copied());
            memory.restored = None;
            memory.complete_snapshot = Some(answered.wall);
        }
        self.fold_routes(shown);
    }

    /// One row that cannot be of this generation makes all of them of a new one.
    fn check_generation(&mut self, shown: &StatusSnapshot) {
        let cause = shown.clients().find_map(|row| {
            let texts = texts_of_row(&row);
            self.generation_on_appearance(row.cid?, row.connected_since, texts.common_name)
        });
        if let Some(cause) = cause {
            self.begin_generation(cause);
        }
    }

    fn fold_row(&mut self, cid: Cid, row: &ClientRow<'_>, told: Told) {
        let texts = texts_of_row(row);
        let is_waiting = row.virtual_address.is_empty() && row.virtual_ipv6_address.is_empty();
        let Some(known) = self.table.clients.get_mut(cid) else {
            if !self.has_room_for(cid) {
                return;
            }
            let client = self.client_of_row(cid, row, texts);
            // One that waits for approval has a name already, but no address and not yet a cipher of its own.
            if row.is_half_open() || (is_waiting && row.cipher == Some(b"BF-CBC")) {
                self.attempt(client, told);
            } else {
                self.establish(client, told);
            }
            return;
        };
        if known.half_open && !row.is_half_open() && !is_waiting {
            let client = self.client_of_row(cid, row, texts);
            self.establish(client, told);
            return;
        }
        let mut is_changed = known.set_texts(texts);
        is_changed |= known.set_cipher(row.cipher, self.interner);
        is_changed |= known.set_peer_id(row.peer_id);
        if known.connected_since().is_none() {
            known.set_connected_since(row.connected_since);
            is_changed |= row.connected_since.is_some();
        }
        let is_counted = !known.half_open;
        let more = known.raise_bytes(row.bytes_received, row.bytes_sent);
        if is_changed || more.is_some() {
            self.table.revision += 1;
            known.revision = self.table.revision;
        }
        if let Some(more) = more.filter(|_| is_counted) {
            self.count_traffic(more);
        }
    }

    fn client_of_row(&self, cid: Cid, row: &ClientRow<'_>, texts: ClientTexts<'_>) -> Client {
        let mut client = Client::new(cid, texts, self.at);
        client.set_connected_since(row.connected_since);
        client.bytes_received = row.bytes_received;
        client.bytes_sent = row.bytes_sent;
        client.set_peer_id(row.peer_id);
        client.set_cipher(row.cipher, self.interner);
        client
    }

    /// Clients that a complete snapshot does not show are gone, but for those that came after it was asked. `seen` is
    /// sorted.
    fn disconnect_absent(
        &mut self,
        seen: &[Cid],
        asked: std::time::Instant,
        answered: std::time::SystemTime,
    ) {
        let absent: Vec<_> = self
            .table
            .clients
            .iter()
            .filter(|client| seen.binary_search(&client.cid).is_err())
            .map(|client| (client.cid, client.came(), client.observed()))
            .collect();
        let last_complete = self.table.memory.complete_snapshot;
        for (cid, came, observed) in absent {
            if came > asked {
                self.hint(Hint::Poll);
                continue;
            }
            // Somebody may have set the clock back in between.
            let not_before = last_complete.map_or(observed, |last| last.max(observed));
            let inference = Inference {
                not_before: Some(not_before.min(answered)),
                not_after: answered,
            };
            self.disconnect(
                cid,
                None,
                None,
                Told::BySnapshot(inference),
                RemovedReason::Gone,
            );
            self.spill();
        }
    }

    fn fold_routes(&mut self, shown: &StatusSnapshot) {
        // Two clients of one name behind one address (before 2.7 an IPv6 address has no port) cannot be told apart.
        let mut owners: HashMap<(&[u8], &[u8]), Option<Cid>> = HashMap::new();
        for row in shown.clients() {
            if let Some(cid) = row.cid {
                owners
                    .entry((row.common_name, row.real_address))
                    .and_modify(|owner| *owner = None)
                    .or_insert(Some(cid));
            }
        }
        let mut routes: Vec<Route> = shown
            .routes()
            .map(|row| {
                let RouteRow {
                    virtual_address,
                    common_name,
                    real_address,
                    last_ref,
                } = row;
                let owner = owners.get(&(common_name, real_address)).copied().flatten();
                let known = owner.filter(|cid| self.table.clients.get(*cid).is_some());
                let client = known.ok_or_else(|| Orphan {
                    common_name: common_name.into(),
                    real_address: real_address.into(),
                });
                Route::new(virtual_address, last_ref, client)
            })
            .collect();
        routes.sort_unstable_by(Route::order);
        self.table.routes = routes;
    }
}

/// Names as we show them: `UNDEF` stands for none.
fn texts_of_row<'a>(row: &ClientRow<'a>) -> ClientTexts<'a> {
    ClientTexts {
        common_name: if row.is_half_open() {
            b""
        } else {
            row.common_name
        },
        username: if row.username == b"UNDEF" {
            b""
        } else {
            row.username
        },
        real_address: row.real_address,
        virtual_address: row.virtual_address,
        virtual_ipv6_address: row.virtual_ipv6_address,
    }
}

fn status_is_whole(shown: &StatusSnapshot) -> bool {
    shown.quarantined().count == 0
}
