//! What a session learns, on its way into table and journal.

use std::sync::Arc;

use openvpn_session::{Hint, Moment, Observation, Observer};

use crate::apply::apply;
use crate::client::Interner;
use crate::failpoint;
use crate::instance::Instance;
use crate::journal::{Journal, Record};

/// Writes one instance's table and events, in the task of its session: there is no queue between.
#[derive(Debug, Clone)]
pub(crate) struct InstanceObserver {
    pub(crate) instance: Arc<Instance>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) interner: Arc<Interner>,
}

impl Observer for InstanceObserver {
    fn observe(&mut self, observation: Observation, at: Moment) -> Hint {
        if matches!(observation, Observation::Notification(_)) {
            failpoint::hit_of("session.task", self.instance.name().as_str());
        }
        let mut records: Vec<Record> = Vec::new();
        // The table first, then the journal: who takes the journal's position and then reads the table finds every
        // difference either in the table already or behind the position. What spills in between does so while the
        // table is locked: whoever reads it then waits for all of it.
        let mut spill = |records: &mut Vec<Record>| {
            self.journal.append_all(records.drain(..));
        };
        let hint = self.instance.update(|table| {
            apply(
                table,
                observation,
                at,
                &self.interner,
                &mut records,
                &mut spill,
            )
        });
        if !records.is_empty() {
            self.journal.append_all(records);
        }
        hint
    }
}
