//! When the session asks by itself.

use std::time::{Duration, Instant};

use crate::backoff::random_fraction;
use crate::config::{SessionConfig, Timings};
use crate::observation::Hint;

/// Hints take no more of a daemon than a twentieth of its time: it does nothing else while it writes a `status`.
const HINT_SHARE: u32 = 20;

/// Callers in haste take no more than a quarter of it.
const HASTE_SHARE: u32 = 4;

/// From when on a `status` would serve callers that wait for one.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wanted {
    /// Those who can bear the spacing of refreshes.
    pub(crate) spaced: Option<Instant>,
    /// Those who cannot.
    pub(crate) at_once: Option<Instant>,
}

/// When `status` and `load-stats` are due.
///
/// The daemon does nothing else while it writes a `status`, so that all reasons to ask share one, and two are always
/// some time apart.
#[derive(Debug)]
pub(crate) struct Polls {
    /// When `status` is due though nothing calls for it.
    status_due: Instant,
    /// When `status` was last asked.
    status_asked: Instant,
    /// How long the last `status` took.
    status_took: Duration,
    /// Whether a hint has come since.
    hinted: bool,
    /// When to look for a client that is leaving: soon, and for certain.
    leaving: [Option<Instant>; 2],
    /// When `load-stats` is due.
    liveness_due: Instant,
}

impl Polls {
    /// The schedule of a session that asked both at `now`.
    pub(crate) fn new(config: &SessionConfig, now: Instant) -> Self {
        Self {
            status_due: now + config.status_interval,
            status_asked: now,
            status_took: Duration::ZERO,
            hinted: false,
            leaving: [None; 2],
            liveness_due: now + varied(config.timings.liveness_interval),
        }
    }

    /// Something happened that a snapshot would explain.
    pub(crate) fn handle_hint(&mut self, hint: Hint, timings: &Timings, now: Instant) {
        match hint {
            Hint::None => {}
            Hint::Poll => self.hinted = true,
            Hint::Leaving => {
                let [soon, certain] = timings.leaving_polls.map(|wait| now + wait);
                // The first to leave decides when to look first, the last one when to look last.
                self.leaving[0] = Some(self.leaving[0].map_or(soon, |due| due.min(soon)));
                self.leaving[1] = Some(certain);
            }
        }
    }

    /// `status` is asked now.
    pub(crate) fn handle_status_sent(&mut self, config: &SessionConfig, now: Instant) {
        self.status_due = now + config.status_interval;
        self.status_asked = now;
        self.hinted = false;
        for due in &mut self.leaving {
            *due = due.filter(|due| *due > now);
        }
    }

    /// The `status` that was asked last was answered whole after that long.
    pub(crate) fn handle_status_answered(&mut self, took: Duration) {
        self.status_took = took;
    }

    /// `load-stats` is asked now.
    pub(crate) fn handle_liveness_sent(&mut self, config: &SessionConfig, now: Instant) {
        self.liveness_due = now + varied(config.timings.liveness_interval);
    }

    /// When to ask `load-stats`.
    pub(crate) fn liveness_due(&self) -> Instant {
        self.liveness_due
    }

    /// When to ask `status`.
    pub(crate) fn status_due(&self, wanted: Wanted, timings: &Timings) -> Instant {
        let spaced = |due: Instant, spacing: Duration| due.max(self.status_asked + spacing);
        let hint_spacing = timings.hint_spacing.max(self.status_took * HINT_SHARE);
        // A hint is due since it came, so that its spacing alone decides.
        let hint = self.hinted.then_some(self.status_asked);
        let hints = [hint, self.leaving[0], self.leaving[1]]
            .into_iter()
            .flatten()
            .map(|due| spaced(due, hint_spacing));
        let refresh_spacing = timings.refresh_spacing;
        let haste_spacing = refresh_spacing.min(self.status_took * HASTE_SHARE);
        let demand = wanted.spaced.map(|due| spaced(due, refresh_spacing));
        let haste = wanted.at_once.map(|due| spaced(due, haste_spacing));
        hints
            .chain(demand)
            .chain(haste)
            .fold(self.status_due, Instant::min)
    }
}

/// An interval ± 20 %, so that the daemons of a fleet are not all asked at once.
fn varied(interval: Duration) -> Duration {
    interval.mul_f64(0.8 + 0.4 * random_fraction())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const NOBODY: Wanted = Wanted {
        spaced: None,
        at_once: None,
    };

    fn callers(from: Instant) -> Wanted {
        Wanted {
            spaced: Some(from),
            at_once: None,
        }
    }

    fn polls(now: Instant) -> (SessionConfig, Polls) {
        let address = crate::Address::Unix("/run/openvpn/server.sock".into());
        let config = SessionConfig::new(address);
        let polls = Polls::new(&config, now);
        (config, polls)
    }

    /// Each reason to ask has its time, the earliest counts, and no two statuses are nearer than the spacing.
    #[test]
    fn the_earliest_reason_decides() {
        let start = Instant::now();
        let (config, mut polls) = polls(start);
        let timings = &config.timings;
        assert_eq!(polls.status_due(NOBODY, timings), start + 60 * SECOND);
        polls.handle_hint(Hint::Leaving, timings, start + 2 * SECOND);
        polls.handle_hint(Hint::Leaving, timings, start + 2 * SECOND + SECOND / 2);
        assert_eq!(polls.status_due(NOBODY, timings), start + 3 * SECOND);
        polls.handle_hint(Hint::Poll, timings, start + 2 * SECOND);
        assert_eq!(polls.status_due(NOBODY, timings), start + SECOND);
        assert_eq!(
            polls.status_due(callers(start), timings),
            start + timings.refresh_spacing
        );

        // Asked once for all of them; the last look is still to come, after the last who left.
        polls.handle_status_sent(&config, start + 3 * SECOND);
        let last_look = start + 8 * SECOND + SECOND / 2;
        assert_eq!(polls.status_due(NOBODY, timings), last_look);
        polls.handle_status_sent(&config, last_look);
        assert_eq!(polls.status_due(NOBODY, timings), last_look + 60 * SECOND);
    }

    /// A daemon that needs long for a `status` is asked less often because of hints; callers and the interval get theirs.
    #[test]
    fn a_slow_status_is_asked_less_often() {
        let start = Instant::now();
        let (config, mut polls) = polls(start);
        let timings = &config.timings;
        polls.handle_hint(Hint::Poll, timings, start);
        polls.handle_hint(Hint::Leaving, timings, start);
        polls.handle_status_answered(SECOND / 40);
        assert_eq!(polls.status_due(NOBODY, timings), start + SECOND);
        polls.handle_status_answered(SECOND / 2);
        assert_eq!(polls.status_due(NOBODY, timings), start + 10 * SECOND);
        assert_eq!(
            polls.status_due(callers(start), timings),
            start + timings.refresh_spacing
        );
        polls.handle_status_answered(5 * SECOND);
        assert_eq!(polls.status_due(NOBODY, timings), start + 60 * SECOND);
    }

    /// Who is in haste waits a few times as long as the last status took, and never longer than anybody.
    #[test]
    fn haste_is_spaced_by_what_a_status_takes() {
        let start = Instant::now();
        let (config, mut polls) = polls(start);
        let timings = &config.timings;
        let haste = Wanted {
            at_once: Some(start),
            ..callers(start)
        };
        assert_eq!(polls.status_due(haste, timings), start);
        polls.handle_status_answered(SECOND / 100);
        assert_eq!(polls.status_due(haste, timings), start + SECOND / 25);
        polls.handle_status_answered(SECOND);
        assert_eq!(
            polls.status_due(haste, timings),
            start + timings.refresh_spacing
        );
    }

    /// The intervals of a fleet drift apart, but stay within a fifth of what was asked for.
    #[test]
    fn liveness_is_varied_by_a_fifth() {
        let start = Instant::now();
        let mut distinct = std::collections::HashSet::new();
        for _ in 0..100 {
            let (_, polls) = polls(start);
            let wait = polls.liveness_due() - start;
            assert!((8 * SECOND..=12 * SECOND).contains(&wait), "{wait:?}");
            distinct.insert(wait);
        }
        assert!(distinct.len() > 50);
    }
}
