//! Folds what a session learns into the table, and gives the events it amounts to.

use openvpn_management::Cid;
use openvpn_session::{Hint, Moment, Observation};

use crate::client::Interner;
use crate::journal::Record;
use crate::table::Table;

/// What is remembered between one observation and the next, and shown to nobody.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    greeted: bool,
}

impl Memory {
    pub(crate) fn is_greeted(&self) -> bool {
        self.greeted
    }

    pub(crate) fn doubt_generation(&mut self) {}

    pub(crate) fn successor_of(&self, _cid: Cid) -> Option<Cid> {
        None
    }
}

pub(crate) fn apply(
    _table: &mut Table,
    _observation: Observation,
    _at: Moment,
    _interner: &Interner,
    _records: &mut Vec<Record>,
) -> Hint {
    Hint::None
}
