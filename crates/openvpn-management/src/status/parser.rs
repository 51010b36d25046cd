//! Rows become offsets as they arrive.

use super::StatusSnapshot;
use crate::limits::Limits;

/// Builds a [`StatusSnapshot`] from the lines of an answer to `status`, as they come.
#[derive(Debug)]
pub struct StatusParser {
    snapshot: StatusSnapshot,
}

impl StatusParser {
    /// A parser for one answer, in any format.
    #[must_use]
    pub fn new(_limits: &Limits) -> Self {
        Self {
            snapshot: StatusSnapshot::default(),
        }
    }

    /// Takes one line, without its line end. `END` and empty lines are ignored.
    pub fn handle_line(&mut self, _line: &[u8]) {}

    /// The snapshot of the lines so far.
    #[must_use]
    pub fn finish(self) -> StatusSnapshot {
        self.snapshot
    }
}
