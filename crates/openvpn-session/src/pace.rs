//! How fast a daemon is read.
//!
//! A daemon is read eagerly, because it hangs or grows while nobody reads. One that writes without end, as no OpenVPN
//! does, would have a core of ours for itself: it is read no faster than this.

use std::time::{Duration, Instant};

/// Bytes a second that a daemon may write for as long as it likes: a flood of 80,000 log lines.
const BYTES_PER_SECOND: u64 = 8 * 1024 * 1024;
/// Bytes it may write at once, twenty times the largest table that is kept whole.
const BURST_BYTES: u64 = 256 * 1024 * 1024;

/// A bucket that fills with time and is emptied by what is read.
#[derive(Debug)]
pub(crate) struct Pace {
    /// When the bucket is full again. It is empty as long as that is further away than filling it takes.
    full_at: Instant,
    /// No reading before; `None` while there is something in the bucket.
    paused_until: Option<Instant>,
}

impl Pace {
    /// A full bucket.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            full_at: now,
            paused_until: None,
        }
    }

    /// So many bytes were read.
    pub(crate) fn take(&mut self, bytes: usize, now: Instant) {
        self.full_at = self.full_at.max(now) + time_of(bytes as u64);
        self.paused_until = self
            .full_at
            .checked_sub(time_of(BURST_BYTES))
            .filter(|until| *until > now);
    }

    /// Whether the daemon is not to be read now.
    pub(crate) fn is_paused(&mut self, now: Instant) -> bool {
        self.paused_until = self.paused_until.filter(|until| *until > now);
        self.paused_until.is_some()
    }

    /// When to read again, if not now.
    pub(crate) fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }
}

/// How long a daemon may take to write so many bytes, at least.
fn time_of(bytes: u64) -> Duration {
    Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / BYTES_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// The largest table comes in one go; what never ends comes at a rate.
    #[test]
    fn a_burst_is_read_at_once_and_a_flood_at_its_rate() {
        let start = Instant::now() + 10 * SECOND;
        let mut pace = Pace::new(start);
        let second = usize::try_from(BYTES_PER_SECOND).expect("a small number");
        for _ in 0..32 {
            pace.take(second, start);
        }
        assert!(!pace.is_paused(start), "the burst");
        pace.take(second, start);
        assert_eq!(pace.paused_until(), Some(start + SECOND));
        assert!(pace.is_paused(start + SECOND / 2));
        assert!(!pace.is_paused(start + SECOND));
        pace.take(second / 2, start + SECOND);
        assert_eq!(pace.paused_until(), Some(start + SECOND + SECOND / 2));
        // Silence fills the bucket, and no more than that.
        let later = start + 100 * SECOND;
        assert!(!pace.is_paused(later));
        pace.take(33 * second, later);
        assert_eq!(pace.paused_until(), Some(later + SECOND));
    }
}
