//! Folds what a session learns into the table, and gives the events it amounts to.
//!
//! Pure: the table, an observation and the time go in; the changed table, events and a hint for the session come out.
//! Notifications and snapshots meet in the same few functions (`appear`, `establish`, `disconnect`), so that a fact is
//! the same event whoever tells it.

mod carried;
mod clients;
mod generation;
mod leave;
mod log_cap;
mod memory;
mod notification;
mod session;
mod snapshot;

use openvpn_session::{Hint, Moment, Observation};

pub(crate) use self::memory::Memory;
use crate::client::Interner;
use crate::event::{Detail, Event, EventClient, Gap, GapCause, Inference};
use crate::journal::Record;
use crate::table::Table;

/// So many events of one large table are gathered before they go on: all of them would take more memory than the table.
const SPILL_AT: usize = 256;

/// Folds one observation into the table. Adds the events to `records`, in the order of the wire; `spill` takes them out
/// in between when there are many.
pub(crate) fn apply(
    table: &mut Table,
    observation: Observation,
    at: Moment,
    interner: &Interner,
    records: &mut Vec<Record>,
    spill: &mut dyn FnMut(&mut Vec<Record>),
) -> Hint {
    let mut fold = Fold {
        table,
        at,
        interner,
        records,
        first: 0,
        spill,
        hint: Hint::None,
    };
    fold.report_capped_lines();
    fold.first = fold.records.len();
    match observation {
        Observation::Condition(change) => fold.handle_condition(change),
        Observation::NextAttempt(time) => {
            fold.table.status.next_attempt = Some(time);
            fold.table.bump_status();
        }
        Observation::Greeted { management_version } => fold.handle_greeted(management_version),
        Observation::Synchronised(facts) => fold.handle_synchronised(*facts),
        Observation::Detached { reason } => fold.handle_detached(reason),
        Observation::Notification(notification) => fold.handle_notification(notification),
        Observation::Snapshot(snapshot) => {
            fold.saw_daemon();
            fold.handle_snapshot(&snapshot);
        }
        Observation::SnapshotRefused { .. } => fold.saw_daemon(),
        Observation::LoadStats(stats) => {
            fold.saw_daemon();
            fold.handle_load_stats(stats);
        }
        Observation::Released => fold.handle_released(),
        Observation::Unsolicited(text) => {
            fold.saw_daemon();
            fold.emit_text(Detail::Unrecognized(text));
        }
    }
    fold.report_capped_lines_before();
    fold.hint
}

/// One observation on its way into the table.
struct Fold<'a> {
    table: &'a mut Table,
    /// When the session had it.
    at: Moment,
    interner: &'a Interner,
    /// The events, in the order of the wire.
    records: &'a mut Vec<Record>,
    /// Where among them those of this observation begin.
    first: usize,
    /// Takes them out.
    spill: &'a mut dyn FnMut(&mut Vec<Record>),
    /// What the session should do about it.
    hint: Hint,
}

/// How a fact about a client was learned.
#[derive(Debug, Clone, Copy)]
enum Told {
    /// The daemon said so.
    ByDaemon,
    /// A snapshot shows it.
    BySnapshot(Inference),
}

impl Told {
    fn inference(self) -> Option<Inference> {
        match self {
            Self::ByDaemon => None,
            Self::BySnapshot(inference) => Some(inference),
        }
    }
}

impl Fold<'_> {
    fn saw_daemon(&mut self) {
        self.table.status.last_observed = Some(self.at.wall);
    }

    /// Asks the session for a snapshot; a client that leaves is the more urgent reason.
    fn hint(&mut self, hint: Hint) {
        self.hint = match (self.hint, hint) {
            (Hint::Leaving, _) | (_, Hint::Leaving) => Hint::Leaving,
            (Hint::Poll, _) | (_, Hint::Poll) => Hint::Poll,
            (Hint::None, Hint::None) => Hint::None,
        };
    }

    /// Lets the events so far go on, if they are many.
    fn spill(&mut self) {
        if self.records.len() >= SPILL_AT {
            self.report_capped_lines_before();
            (self.spill)(self.records);
            self.first = self.records.len();
        }
    }

    fn emit(&mut self, detail: Detail) {
        self.emit_at(detail, None);
    }

    fn emit_at(&mut self, detail: Detail, daemon_time: Option<i64>) {
        let event = self.event(detail, daemon_time, None, None);
        self.records.push(Record::Event(event));
    }

    fn emit_inferred(&mut self, detail: Detail, daemon_time: Option<i64>, inference: Inference) {
        let event = self.event(detail, daemon_time, Some(inference), None);
        self.records.push(Record::Event(event));
    }

    fn emit_client(
        &mut self,
        client: EventClient,
        detail: Detail,
        daemon_time: Option<i64>,
        told: Told,
    ) {
        let event = self.event(
            detail,
            daemon_time,
            told.inference(),
            Some(Box::new(client)),
        );
        self.records.push(Record::Event(event));
    }

    fn event(
        &self,
        detail: Detail,
        daemon_time: Option<i64>,
        inferred: Option<Inference>,
        client: Option<Box<EventClient>>,
    ) -> Event {
        let generation = client.as_ref().map(|client| client.generation);
        Event {
            gateway: self.table.gateway.clone(),
            instance: Some(self.table.name.clone()),
            labels: self.table.labels.clone(),
            generation: generation.or(self.table.generation),
            sequence: 0,
            observed: self.at.wall,
            daemon_time,
            inferred,
            client,
            detail,
        }
    }

    fn gap(&self, cause: GapCause) -> Gap {
        Gap {
            cause,
            gateway: self.table.gateway.clone(),
            instance: Some(self.table.name.clone()),
            labels: self.table.labels.clone(),
            class: None,
            count: None,
            not_before: None,
            not_after: Some(self.at.wall),
        }
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod told;
