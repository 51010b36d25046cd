//! What a session says of itself, and what it finds on attach.

use openvpn_management::{DaemonState, LoadStats, Notification, StateRecord};
use openvpn_session::{Condition, ConditionChange, Facts, Hint, HoldPolicy, Mode};

use super::log_cap::Dropped;
use super::memory::{Stage, Waiting};
use super::{Fold, Told};
use crate::event::{
    Detail, DisconnectCause, EventClass, Gap, GapCause, GenerationCause, Inference,
};
use crate::journal::Record;
use crate::question::{OpenQuestion, Question};
use crate::table::{QUESTIONS_MAX, RemovedReason};

impl Fold<'_> {
    pub(super) fn handle_condition(&mut self, change: ConditionChange) {
        let ConditionChange {
            condition,
            reason,
            next_attempt,
        } = change;
        let status = &mut self.table.status;
        let previous = status.condition;
        status.next_attempt = next_attempt;
        if previous == condition && status.reason == reason {
            self.table.bump_status();
            return;
        }
        if previous != condition {
            status.since = self.at.wall;
        }
        let is_trouble = match condition {
            Condition::SlotBusy
            | Condition::AuthFailed
            | Condition::Unresponsive
            | Condition::Unreachable => true,
            Condition::Connecting
            | Condition::Syncing
            | Condition::Attached
            | Condition::Paused => false,
        };
        if is_trouble && !reason.is_empty() {
            status.last_error.clone_from(&reason);
        }
        status.condition = condition;
        status.reason.clone_from(&reason);
        self.table.bump_status();
        self.emit(Detail::Condition {
            previous,
            current: condition,
            reason,
        });
    }

    pub(super) fn handle_greeted(&mut self, management_version: Option<u32>) {
        self.saw_daemon();
        let status = &mut self.table.status;
        status.management_version = management_version;
        status.sessions += 1;
        self.table.memory.stage = Stage::Syncing {
            notifications: Waiting::default(),
            dropped: 0,
        };
        self.table.bump_status();
    }

    /// The session is in step: what happened while nobody watched is made up for here, in one place.
    pub(super) fn handle_synchronised(&mut self, facts: Facts) {
        self.saw_daemon();
        let Facts {
            version,
            pid,
            hold: _,
            states,
            snapshot,
            load_stats,
            mode,
        } = facts;
        let stage = std::mem::replace(&mut self.table.memory.stage, Stage::Attached);
        let (notifications, dropped) = match stage {
            Stage::Syncing {
                notifications,
                dropped,
            } => (notifications.into_vec(), dropped),
            Stage::Detached | Stage::Attached => (Vec::new(), 0),
        };
        if let Some(detached_at) = self.table.memory.detached_at.take() {
            let mut gap = self.gap(GapCause::Unobserved);
            gap.not_before = Some(detached_at);
            self.records.push(Record::Gap(gap));
        }
        let connected_time = states
            .iter()
            .rev()
            .find(|record| record.state == DaemonState::Connected)
            .and_then(|record| record.time);
        if let Some(cause) = self.generation_on_attach(pid, connected_time) {
            self.begin_generation(cause);
        }
        let memory = &mut self.table.memory;
        memory.doubted = false;
        memory.connected_time = connected_time;
        // The run that RECONNECTING announced has come: the next one is another.
        let last = states.last().map(|record| &record.state);
        memory.reconnecting &= last != Some(&DaemonState::Connected);
        self.find_carried(pid, load_stats.as_ref());
        let status = &mut self.table.status;
        status.pid = pid.or(status.pid);
        if let Some(version) = version {
            status.daemon_version = version.openvpn;
        }
        if mode != Mode::Unknown {
            status.mode = mode;
        }
        let clients = snapshot.as_ref().map_or(0, |snapshot| {
            let established = snapshot.status.clients().filter(|row| !row.is_half_open());
            established.count() as u64
        });
        let attached = Detail::Attached {
            daemon_version: status.daemon_version.clone(),
            pid,
            clients,
        };
        self.table.bump_status();
        self.emit(attached);
        self.find_state(states.last());

        // On the wire these stood before and after the snapshot.
        let answered = snapshot
            .as_ref()
            .map(|snapshot| snapshot.answered.monotonic);
        let (before, after): (Vec<_>, Vec<_>) = notifications
            .into_iter()
            .partition(|(_, at)| answered.is_none_or(|answered| at.monotonic < answered));
        self.replay(before);
        if let Some(snapshot) = snapshot {
            self.handle_snapshot(&snapshot);
        }
        self.replay(after);
        if dropped > 0 {
            self.hint(Hint::Poll);
        }
        if let Some(stats) = load_stats {
            self.handle_load_stats(stats);
        }
    }

    /// Handles what the daemon said while the session synchronised, each as of its own moment.
    fn replay(&mut self, notifications: Vec<(Notification, openvpn_session::Moment)>) {
        let now = self.at;
        for (notification, at) in notifications {
            self.at = at;
            self.handle_notification(notification);
        }
        self.at = now;
    }

    /// The daemon's state on attach, if it is not the one we know.
    fn find_state(&mut self, record: Option<&StateRecord>) {
        let Some(record) = record else {
            return;
        };
        let status = &mut self.table.status;
        if status.state.as_ref() == Some(&record.state) && status.state_time == record.time {
            return;
        }
        status.state = Some(record.state.clone());
        status.state_time = record.time;
        let inference = Inference {
            not_before: None,
            not_after: self.at.wall,
        };
        self.emit_inferred(
            Detail::State(Box::new(record.clone())),
            record.time,
            inference,
        );
    }

    pub(super) fn handle_detached(&mut self, reason: String) {
        let stage = std::mem::take(&mut self.table.memory.stage);
        if let Stage::Syncing { notifications, .. } = stage {
            // Without a generation nothing can be said about clients; the daemon's words stand for themselves.
            let words = notifications
                .into_vec()
                .into_iter()
                .filter(|(notification, _)| {
                    matches!(
                        notification,
                        Notification::Fatal(_) | Notification::Info(_) | Notification::Log(_)
                    )
                });
            self.replay(words.collect());
        }
        self.close_questions();
        let status = &mut self.table.status;
        status.holding = false;
        status.last_error.clone_from(&reason);
        // A session that was lost before it was in step has seen nothing either.
        self.table.memory.detached_at.get_or_insert(self.at.wall);
        self.table.bump_status();
        self.emit(Detail::Detached { reason });
    }

    pub(super) fn handle_released(&mut self) {
        self.set_holding(false, None);
    }

    pub(super) fn set_holding(&mut self, holding: bool, wait: Option<std::time::Duration>) {
        if self.table.status.holding == holding {
            return;
        }
        self.table.status.holding = holding;
        self.table.bump_status();
        let released_by_gateway = self.table.hold == HoldPolicy::Release;
        self.emit(Detail::Hold {
            holding,
            wait,
            released_by_gateway,
        });
    }

    /// Compares the number of clients with ours. The daemon leaves out half-open ones, and so do we. What a client
    /// carried is in it too.
    pub(super) fn handle_load_stats(&mut self, stats: LoadStats) {
        self.handle_carried(stats.bytes_received, stats.bytes_sent);
        let ours = self.table.client_count() as u64;
        let is_comparable = self.table.status.mode == Mode::Server && !self.table.status.truncated;
        if is_comparable && stats.clients != ours {
            self.hint(Hint::Poll);
        }
    }

    pub(super) fn handle_state(&mut self, record: StateRecord) {
        self.close_questions();
        let status = &mut self.table.status;
        status.state = Some(record.state.clone());
        status.state_time = record.time;
        self.table.bump_status();
        let (state, time) = (record.state.clone(), record.time);
        self.emit_at(Detail::State(Box::new(record)), time);
        match state {
            DaemonState::Reconnecting => {
                self.begin_generation(GenerationCause::Reconnecting);
                self.table.memory.reconnecting = true;
            }
            DaemonState::Connected => {
                self.set_holding(false, None);
                let memory = &mut self.table.memory;
                memory.challenge = None;
                let known = std::mem::replace(&mut memory.connected_time, time);
                let restarted = std::mem::take(&mut memory.reconnecting);
                if !restarted && known.is_some() && known != time {
                    self.begin_generation(GenerationCause::ConnectedTime);
                }
            }
            DaemonState::Exiting => {
                self.disconnect_all(DisconnectCause::DaemonRestart, RemovedReason::Gone);
                // Whoever attaches next finds another run, even if everything else looks the same.
                self.table.memory.doubted = true;
            }
            DaemonState::Connecting
            | DaemonState::Wait
            | DaemonState::Auth
            | DaemonState::GetConfig
            | DaemonState::AssignIp
            | DaemonState::AddRoutes
            | DaemonState::Resolve
            | DaemonState::TcpConnect
            | DaemonState::AuthPending
            | DaemonState::Unknown(_) => {}
            // The enum is open for states of later versions.
            _ => {}
        }
    }

    pub(super) fn open_question(&mut self, question: Question) {
        let open = &mut self.table.status.open_questions;
        let same = open.iter().position(|asked| asked.question == question);
        let superseded = match same {
            Some(index) if !open[index].answered => return,
            Some(index) => Some(open.remove(index)),
            None if open.len() >= QUESTIONS_MAX => Some(open.remove(0)),
            None => None,
        };
        self.table.memory.questions += 1;
        let question = OpenQuestion {
            id: self.table.memory.questions,
            asked: self.at.wall,
            question,
            answered: false,
        };
        self.table.status.open_questions.push(question.clone());
        self.table.bump_status();
        if let Some(superseded) = superseded {
            self.emit_question(superseded, false);
        }
        self.emit_question(question, true);
    }

    pub(super) fn close_questions(&mut self) {
        for question in std::mem::take(&mut self.table.status.open_questions) {
            self.table.bump_status();
            self.emit_question(question, false);
        }
    }

    fn emit_question(&mut self, question: OpenQuestion, open: bool) {
        let question = Box::new(question);
        self.emit(Detail::Question { question, open });
    }

    /// Adds a line of text, unless the instance says more than is taken.
    pub(super) fn emit_text(&mut self, detail: Detail) {
        self.emit_text_at(detail, None);
    }

    pub(super) fn emit_text_at(&mut self, detail: Detail, daemon_time: Option<i64>) {
        let class = match &detail {
            Detail::Log { .. } | Detail::Echo(_) => EventClass::Log,
            _ => EventClass::Raw,
        };
        let cap = &mut self.table.memory.log_cap;
        if cap.take(self.at.monotonic) {
            self.emit_at(detail, daemon_time);
        } else {
            cap.drop_lines(class, 1, self.at.wall);
        }
    }

    /// Tells of lines that were not taken, once there is room for lines again.
    pub(super) fn report_capped_lines(&mut self) {
        let dropped = self.table.memory.log_cap.take_dropped(self.at.monotonic);
        let gaps = dropped.into_iter().flatten();
        let gaps = gaps.map(|dropped| Record::Gap(self.capped_gap(dropped)));
        let gaps: Vec<_> = gaps.collect();
        self.records.extend(gaps);
    }

    /// Tells of lines that were not taken before the events of this observation: a gap comes before the next event,
    /// whatever that is of.
    pub(super) fn report_capped_lines_before(&mut self) {
        let first = self.first;
        if self.records.len() == first {
            return;
        }
        let dropped = self.table.memory.log_cap.take_all_dropped();
        for dropped in dropped.into_iter().flatten() {
            let gap = Record::Gap(self.capped_gap(dropped));
            self.records.insert(first, gap);
        }
    }

    fn capped_gap(&self, dropped: Dropped) -> Gap {
        Gap {
            class: Some(dropped.class),
            count: Some(dropped.count),
            not_before: Some(dropped.since),
            ..self.gap(GapCause::RateCapped)
        }
    }

    pub(super) fn told_between(&self, not_after: std::time::SystemTime) -> Told {
        Told::BySnapshot(Inference {
            not_before: self.table.memory.complete_snapshot,
            not_after,
        })
    }
}
