//! How many events there were of each kind, and what actions led to.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::action::{Method, Outcome};
use crate::event::{Detail, Event, Kind};

/// How often what happened since the start. Counts what was appended, whatever has been thrown away since.
#[derive(Debug)]
pub struct Counts {
    kinds: [AtomicU64; Kind::ALL.len()],
    targets: [[AtomicU64; Outcome::ALL.len()]; Method::ALL.len()],
}

impl Counts {
    pub(super) fn new() -> Self {
        Self {
            kinds: [const { AtomicU64::new(0) }; _],
            targets: [const { [const { AtomicU64::new(0) }; _] }; _],
        }
    }

    pub(super) fn add(&self, event: &Event) {
        self.kinds[event.kind() as usize].fetch_add(1, Ordering::Relaxed);
        if let Detail::ActionFinished(progress) = &event.detail {
            for (outcome, count) in &progress.outcomes {
                self.targets[progress.method as usize][*outcome as usize]
                    .fetch_add(*count, Ordering::Relaxed);
            }
        }
    }

    /// Events of that kind.
    #[must_use]
    pub fn events(&self, kind: Kind) -> u64 {
        self.kinds[kind as usize].load(Ordering::Relaxed)
    }

    /// Targets of finished actions with that outcome.
    #[must_use]
    pub fn targets(&self, method: Method, outcome: Outcome) -> u64 {
        self.targets[method as usize][outcome as usize].load(Ordering::Relaxed)
    }
}
