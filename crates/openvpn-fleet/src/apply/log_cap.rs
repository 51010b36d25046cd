//! How fast one instance may fill the journal with lines.

use std::time::{Instant, SystemTime};

use crate::event::EventClass;

/// Lines of log, echo and unknown kinds that one instance may add a second, on average. A connect at verb 3 is 30.
pub(super) const LINES_PER_SECOND: f64 = 500.0;
/// Lines it may add at once.
pub(super) const LINES_BURST: f64 = 5_000.0;

/// A bucket that fills with time and is emptied by lines. What does not fit is counted and told by a gap.
#[derive(Debug)]
pub(super) struct LogCap {
    level: f64,
    filled: Option<Instant>,
    /// By class: log, raw.
    dropped: [Option<Dropped>; 2],
}

/// Lines that were not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dropped {
    pub(super) class: EventClass,
    pub(super) count: u64,
    pub(super) since: SystemTime,
}

impl Default for LogCap {
    fn default() -> Self {
        Self {
            level: LINES_BURST,
            filled: None,
            dropped: [None; 2],
        }
    }
}

impl LogCap {
    fn fill(&mut self, now: Instant) {
        let elapsed = self.filled.map_or(0.0, |filled| {
            now.saturating_duration_since(filled).as_secs_f64()
        });
        self.filled = Some(now);
        self.level = (self.level + elapsed * LINES_PER_SECOND).min(LINES_BURST);
    }

    /// Whether one more line is taken. Once lines were dropped, none is taken until the gap was told.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        self.fill(now);
        if self.level < 1.0 || self.dropped.iter().any(Option::is_some) {
            return false;
        }
        self.level -= 1.0;
        true
    }

    /// Counts lines that are not taken.
    pub(super) fn drop_lines(&mut self, class: EventClass, count: u64, now: SystemTime) {
        let slot = usize::from(class == EventClass::Raw);
        let dropped = self.dropped[slot].get_or_insert(Dropped {
            class,
            count: 0,
            since: now,
        });
        dropped.count += count;
    }

    /// What was dropped, once there is room again: a second's worth, so that a flood gives few gaps.
    pub(super) fn take_dropped(&mut self, now: Instant) -> [Option<Dropped>; 2] {
        if self.dropped.iter().all(Option::is_none) {
            return [None; 2];
        }
        self.fill(now);
        if self.level < LINES_PER_SECOND {
            return [None; 2];
        }
        self.take_all_dropped()
    }

    /// What was dropped so far.
    pub(super) fn take_all_dropped(&mut self) -> [Option<Dropped>; 2] {
        std::mem::take(&mut self.dropped)
    }
}
