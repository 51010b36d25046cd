//! How long to wait before the next attempt.

use std::time::Duration;

use crate::config::Timings;

/// A number from 0 to 1, both included.
pub(crate) fn random_fraction() -> f64 {
    // Without randomness the waits are merely regular.
    f64::from(getrandom::u32().unwrap_or(u32::MAX / 2)) / f64::from(u32::MAX)
}

/// What kind of place is dialled, which decides how eagerly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Eagerness {
    /// On this machine: a dial costs microseconds, so the waits are short.
    Local,
    /// Not there at the moment, and we will be told when it is; or there, and nothing comes of it.
    Watched,
    /// In line for a place in line: soon, always.
    QueueFull,
    /// Across a network: long waits, spread out, so that a returning network is not flooded.
    Remote,
}

/// The waits between attempts: they double, and start over after a session that went well.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    /// Attempts that failed in a row.
    failures: u32,
}

impl Backoff {
    /// Starts from the shortest wait again.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The wait before the next attempt after another failure; `fraction` (0 to 1) is the chance in it.
    pub(crate) fn next(
        &mut self,
        eagerness: Eagerness,
        timings: &Timings,
        fraction: f64,
    ) -> Duration {
        let (min, max) = match eagerness {
            Eagerness::Local => (timings.local_retry_min, timings.local_retry_max),
            Eagerness::Watched => (timings.local_retry_min, timings.watched_retry_max),
            Eagerness::QueueFull => (timings.queue_full_retry, timings.queue_full_retry),
            Eagerness::Remote => (timings.remote_retry_min, timings.remote_retry_max),
        };
        let doublings = 2u32.saturating_pow(self.failures);
        self.failures = self.failures.saturating_add(1);
        let ceiling = min.saturating_mul(doublings).min(max).max(min);
        match eagerness {
            Eagerness::Remote => min + (ceiling - min).mul_f64(fraction),
            Eagerness::Local | Eagerness::Watched | Eagerness::QueueFull => ceiling,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A local daemon that listens again is dialled at most half a second later.
    #[test]
    fn local_waits_double_up_to_their_cap() {
        let timings = Timings::default();
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..8)
            .map(|_| backoff.next(Eagerness::Local, &timings, 1.0).as_millis())
            .collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 500, 500]);
        backoff.reset();
        let first = backoff.next(Eagerness::Local, &timings, 1.0);
        assert_eq!(first, Duration::from_millis(10));
    }

    /// Remote waits are spread over the whole range, never below its floor, and never overflow.
    #[test]
    fn remote_waits_are_spread_between_floor_and_cap() {
        let timings = Timings::default();
        for (fraction, expected) in [(0.0, 200), (0.5, 15_100), (1.0, 30_000)] {
            let mut backoff = Backoff::default();
            let waits: Vec<_> = (0..100)
                .map(|_| backoff.next(Eagerness::Remote, &timings, fraction))
                .collect();
            assert_eq!(waits[0], timings.remote_retry_min);
            assert_eq!(waits[99].as_millis(), expected);
        }
    }
}
