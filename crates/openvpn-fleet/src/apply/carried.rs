//! What a daemon in client mode carries: it has no clients whose bytes could be added up, but counts its own.
//!
//! `>BYTECOUNT` and `load-stats` tell the same two numbers, and these are of the process: they go on over SIGUSR1, SIGHUP
//! and sessions of ours, and begin at 0 with another process.

use openvpn_management::LoadStats;
use openvpn_session::Mode;

use super::Fold;
use super::memory::Carried;

impl Fold<'_> {
    /// What the process has carried in all, told within a session.
    ///
    /// Numbers that were told while the session synchronised may come late, so that lower ones are old ones.
    pub(super) fn handle_carried(&mut self, received: u64, sent: u64) {
        let heard = Carried {
            received,
            sent,
            since: self.at.wall,
        };
        let carried = self.table.memory.carried.get_or_insert(heard);
        let since = carried.since;
        if self.table.status.mode != Mode::Client {
            // A server counts by client. What is not known yet to be either is counted once it is.
            return;
        }
        let more = (
            received.saturating_sub(carried.received),
            sent.saturating_sub(carried.sent),
        );
        carried.received = carried.received.max(received);
        carried.sent = carried.sent.max(sent);
        if self.table.status.counting_since.is_none() {
            self.table.status.counting_since = Some(since);
            self.table.bump_status();
        }
        self.count_traffic(more);
    }

    /// Whether a session that has just synchronised is to another process than the last one was: that one counts from 0.
    /// If it carried more meanwhile than the other had, and hides its process ID, what it carried at first is not counted.
    pub(super) fn find_carried(&mut self, pid: Option<u32>, load_stats: Option<&LoadStats>) {
        let Some(carried) = &mut self.table.memory.carried else {
            return;
        };
        let known_pid = self.table.status.pid;
        let is_other_pid = pid.is_some() && known_pid.is_some() && pid != known_pid;
        let is_less = load_stats.is_some_and(|stats| {
            stats.bytes_received < carried.received || stats.bytes_sent < carried.sent
        });
        if is_other_pid || is_less {
            carried.received = 0;
            carried.sent = 0;
        }
    }
}
