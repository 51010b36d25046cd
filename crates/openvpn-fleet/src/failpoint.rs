//! Failpoints: places where tests make a gateway die, wait or fail, armed by an environment variable at its start.
//!
//! ```text
//! OVFLEET_FAILPOINT='action.after_intent=kill'        ends the process there, by SIGKILL
//! OVFLEET_FAILPOINT='action.after_send=kill@3'        at the third time
//! OVFLEET_FAILPOINT='state.write=delay:5s*2'          waits there, the first two times
//! OVFLEET_FAILPOINT='state.write=error@10*20'         fails there, the tenth to the twenty-ninth time
//! OVFLEET_FAILPOINT='session.task:eu1=panic'          panics there, once, in the task of eu1
//! ```
//!
//! Several are separated by `;`. They exist in debug builds, and in others with the feature `failpoints`; without, every
//! function here is empty.

/// What arms failpoints.
pub const VARIABLE: &str = "OVFLEET_FAILPOINT";

/// Dies, waits or panics here if armed so; whether the caller shall fail.
#[must_use]
pub fn fails(point: &str) -> bool {
    armed::fails(point, "")
}

/// Dies, waits or panics here if armed so.
pub fn hit(point: &str) {
    let _ = armed::fails(point, "");
}

/// The same, of one instance's task.
pub(crate) fn hit_of(point: &str, instance: &str) {
    let _ = armed::fails(point, instance);
}

#[cfg(not(any(debug_assertions, feature = "failpoints")))]
mod armed {
    #[inline(always)]
    pub(super) fn fails(_point: &str, _of: &str) -> bool {
        false
    }
}

#[cfg(any(debug_assertions, feature = "failpoints"))]
mod armed {
    use std::str::FromStr;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use rustix::process::Signal;

    static FAILPOINTS: OnceLock<Vec<Failpoint>> = OnceLock::new();

    #[derive(Debug)]
    struct Failpoint {
        name: String,
        /// Of which instance; empty: of any.
        of: String,
        action: Action,
        /// The first time that counts, from 1.
        first: u64,
        /// How many times.
        times: u64,
        reached: AtomicU64,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Action {
        Kill,
        Panic,
        Fail,
        Delay(Duration),
    }

    pub(super) fn fails(point: &str, of: &str) -> bool {
        let failpoints = FAILPOINTS.get_or_init(|| {
            let armed = std::env::var(super::VARIABLE).unwrap_or_default();
            parse(&armed).unwrap_or_else(|wrong| {
                tracing::error!("{}: {wrong:?} is no failpoint", super::VARIABLE);
                std::process::abort()
            })
        });
        let met = failpoints.iter().find(|failpoint| {
            failpoint.name == point && (failpoint.of.is_empty() || failpoint.of == of)
        });
        met.is_some_and(Failpoint::act)
    }

    fn parse(text: &str) -> Result<Vec<Failpoint>, &str> {
        let parts = text
            .split(';')
            .map(str::trim)
            .filter(|part| !part.is_empty());
        parts
            .map(|part| Failpoint::from_str(part).map_err(|()| part))
            .collect()
    }

    impl Failpoint {
        #[allow(
            clippy::disallowed_methods,
            reason = "a delay is what was asked for, on a thread that may block"
        )]
        fn act(&self) -> bool {
            let time = self.reached.fetch_add(1, Ordering::Relaxed) + 1;
            if time < self.first || time - self.first >= self.times {
                return false;
            }
            tracing::warn!(failpoint = self.name, action = ?self.action, time, "failpoint reached");
            match self.action {
                Action::Kill => kill(),
                Action::Panic => panic!("failpoint {}", self.name),
                Action::Fail => true,
                Action::Delay(delay) => {
                    std::thread::sleep(delay);
                    false
                }
            }
        }
    }

    fn kill() -> ! {
        // This thread gets no further; others may, until the signal has reached them.
        let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::KILL);
        std::process::abort()
    }

    impl FromStr for Failpoint {
        type Err = ();

        fn from_str(text: &str) -> Result<Self, ()> {
            let (name, rest) = text.split_once('=').ok_or(())?;
            let (name, of) = name.split_once(':').unwrap_or((name, ""));
            let (rest, times) = match rest.rsplit_once('*') {
                Some((rest, times)) => (rest, Some(times.parse().map_err(|_| ())?)),
                None => (rest, None),
            };
            let (action, first) = match rest.rsplit_once('@') {
                Some((action, first)) => (action, first.parse().map_err(|_| ())?),
                None => (rest, 1),
            };
            let action = match action.split_once(':') {
                None if action == "kill" => Action::Kill,
                None if action == "panic" || action == "panic-once" => Action::Panic,
                None if action == "error" => Action::Fail,
                Some(("delay", span)) => Action::Delay(duration(span).ok_or(())?),
                _ => return Err(()),
            };
            Ok(Self {
                name: name.to_owned(),
                of: of.to_owned(),
                action,
                first,
                times: times.unwrap_or(if action == Action::Panic { 1 } else { u64::MAX }),
                reached: AtomicU64::new(0),
            })
        }
    }

    fn duration(text: &str) -> Option<Duration> {
        if let Some(millis) = text.strip_suffix("ms") {
            return millis.parse().ok().map(Duration::from_millis);
        }
        text.strip_suffix('s')?
            .parse()
            .ok()
            .map(Duration::from_secs)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        /// A harness that arms a point wrongly would pass for having tested it.
        #[test]
        fn what_is_armed_is_what_was_written() {
            let armed = parse("a.b=kill@3; c=delay:20ms*2;session.task:eu1=panic-once").unwrap();
            assert_eq!((armed[0].action, armed[0].first), (Action::Kill, 3));
            assert_eq!(armed[1].action, Action::Delay(Duration::from_millis(20)));
            assert_eq!(armed[1].times, 2);
            assert_eq!((armed[2].of.as_str(), armed[2].times), ("eu1", 1));
            for wrong in ["a", "a=", "a=die", "a=delay", "a=kill@x", "a=error*"] {
                assert_eq!(parse(wrong).unwrap_err(), wrong);
            }
        }

        #[test]
        fn it_acts_from_the_first_time_on_and_so_often() {
            let failing: Failpoint = "a=error@2*2".parse().unwrap();
            let acts: Vec<_> = (0..5).map(|_| failing.act()).collect();
            assert_eq!(acts, [false, true, true, false, false]);
        }
    }
}
