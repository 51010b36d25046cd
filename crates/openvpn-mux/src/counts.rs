//! How often what happened to tools.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::tool::Left;

/// What became of a command. What was never answered, because the daemon or the tool left, has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The daemon was asked, and answered.
    Ran,
    /// The daemon was asked once for several tools, and another was the one that asked.
    Coalesced,
    /// It was answered here: the tool's own switches, and what no OpenVPN knows.
    Answered,
    /// It was not passed on: the tool may not give it, or nobody may.
    Refused,
}

impl Verdict {
    /// Every verdict, in the order of the enum.
    pub const ALL: [Self; 4] = [Self::Ran, Self::Coalesced, Self::Answered, Self::Refused];

    /// In a word, for metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ran => "ran",
            Self::Coalesced => "coalesced",
            Self::Answered => "answered",
            Self::Refused => "refused",
        }
    }
}

/// Commands and lost tools since the start, of all slots that share it.
#[derive(Debug, Default)]
pub struct Counts {
    commands: [AtomicU64; Verdict::ALL.len()],
    left: [AtomicU64; Left::ALL.len()],
}

impl Counts {
    pub(crate) fn add_command(&self, verdict: Verdict) {
        self.commands[verdict as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_left(&self, left: Left) {
        self.left[left as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Commands with that verdict.
    #[must_use]
    pub fn commands(&self, verdict: Verdict) -> u64 {
        self.commands[verdict as usize].load(Ordering::Relaxed)
    }

    /// Tools that are gone for that reason.
    #[must_use]
    pub fn left(&self, left: Left) -> u64 {
        self.left[left as usize].load(Ordering::Relaxed)
    }
}
