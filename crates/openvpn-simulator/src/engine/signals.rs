//! Signals: thrown by the manager, from outside, or because the manager left.

use crate::Version;
use crate::daemon::RestartSignal;

use super::{Ending, Engine, Phase, Timer, text};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    Hup,
    Usr1,
    Usr2,
    Term,
    Int,
}

impl Signal {
    pub(super) fn parse(name: &[u8]) -> Option<Self> {
        match name {
            b"SIGHUP" => Some(Self::Hup),
            b"SIGUSR1" => Some(Self::Usr1),
            b"SIGUSR2" => Some(Self::Usr2),
            b"SIGTERM" => Some(Self::Term),
            b"SIGINT" => Some(Self::Int),
            _ => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Hup => "SIGHUP",
            Self::Usr1 => "SIGUSR1",
            Self::Usr2 => "SIGUSR2",
            Self::Term => "SIGTERM",
            Self::Int => "SIGINT",
        }
    }
}

/// A signal thrown but not yet acted upon: OpenVPN finishes the read first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Thrown {
    pub(super) signal: Signal,
    /// Why the daemon threw it itself; a signal from elsewhere has no reason.
    reason: Option<&'static str>,
}

impl Thrown {
    /// By the manager, or from outside.
    pub(super) fn hard(signal: Signal) -> Self {
        Self {
            signal,
            reason: None,
        }
    }

    fn soft(signal: Signal, reason: &'static str) -> Self {
        Self {
            signal,
            reason: Some(reason),
        }
    }

    /// What the state it leads to gives as its reason.
    pub(super) fn reason(self) -> &'static str {
        self.reason.unwrap_or(self.signal.name())
    }

    /// What the log says of it.
    fn received(self) -> String {
        let name = self.signal.name();
        match self.reason {
            Some(reason) => format!("{name}[soft,{reason}] received"),
            None => format!("{name}[hard,] received"),
        }
    }
}

impl Engine {
    /// A signal from outside; it is acted upon at once.
    pub(crate) fn restart(&mut self, signal: RestartSignal) {
        self.signal = Some(Thrown::hard(match signal {
            RestartSignal::Sigusr1 => Signal::Usr1,
            RestartSignal::Sighup => Signal::Hup,
        }));
        self.handle_signal();
    }

    pub(crate) fn terminate(&mut self) {
        self.signal = Some(Thrown::hard(Signal::Term));
        self.handle_signal();
    }

    /// What a daemon does that was told to mind its manager's leave.
    pub(super) fn mind_departure(&mut self) {
        if self.settings.dials {
            self.log("", "MANAGEMENT: Triggering management exit");
            self.signal = Some(Thrown::soft(Signal::Term, "management-exit"));
        } else if self.settings.management_signal && !self.is_held() {
            self.log("", "MANAGEMENT: Triggering management signal");
            self.signal = Some(Thrown::soft(Signal::Usr1, "management-disconnect"));
        }
    }

    fn is_held(&self) -> bool {
        matches!(self.phase, Phase::Held { .. })
    }

    pub(crate) fn has_signal(&self) -> bool {
        self.signal.is_some()
    }

    /// Acts on the signal thrown, if there is one. The owner calls it after each read.
    pub(crate) fn handle_signal(&mut self) {
        let Some(thrown) = self.signal.take() else {
            return;
        };
        match (thrown.signal, self.phase) {
            (_, Phase::Asking) => self.interrupt_question(thrown),
            (Signal::Usr2, Phase::Serving) => self.log_status(),
            // Nobody is there to print a status, and OpenVPN ignores restarts while it is held.
            (Signal::Usr2, _) | (Signal::Hup | Signal::Usr1, Phase::Held { .. }) => {}
            (Signal::Term | Signal::Int, _) => self.exit_on(thrown),
            (Signal::Hup | Signal::Usr1, Phase::Serving) => {
                self.close_tunnel();
                let received = thrown.received();
                self.log("I", format!("{received}, process restarting"));
                self.begin_restart(thrown.signal, thrown.reason());
            }
            (Signal::Hup | Signal::Usr1, Phase::Pausing) => {
                // A signal in the pause becomes this, and another pause.
                let thrown = Thrown::soft(Signal::Hup, "close_context usr1 to hup");
                let received = thrown.received();
                self.log("I", format!("{received}, process restarting"));
                self.begin_restart(thrown.signal, thrown.reason());
            }
        }
    }

    pub(super) fn begin_restart(&mut self, signal: Signal, reason: &str) {
        self.questions.clear();
        if signal == Signal::Hup {
            self.forget_passwords();
        }
        self.enter(&format!("RECONNECTING,{reason},,,,,"));
        if signal == Signal::Hup {
            self.configured = self.clock();
            for (flags, line) in text::CONFIGURATION {
                self.log(flags, line);
            }
        }
        self.timers
            .retain(|_, timer| !matches!(timer, Timer::PauseOver));
        let pause = self.settings.timing.restart_pause;
        if self.hold {
            let seconds = pause.as_secs();
            self.phase = Phase::Held { seconds };
            self.ask_release(seconds);
        } else {
            self.phase = Phase::Pausing;
            self.log("", format!("Restart pause, {} second(s)", pause.as_secs()));
            self.set_timer(pause, Timer::PauseOver);
        }
    }

    pub(super) fn exit_on(&mut self, mut thrown: Thrown) {
        if self.says_goodbye() {
            thrown = Thrown::soft(thrown.signal, "exit-with-notification");
        }
        if self.phase == Phase::Serving {
            self.close_tunnel();
        }
        let received = thrown.received();
        self.log("I", format!("{received}, process exiting"));
        // Up to 2.5 a signal in the pause is noticed only by what comes after it.
        let reason = match self.phase {
            Phase::Pausing if self.settings.version <= Version::V2_5 => "init_instance",
            _ => thrown.reason(),
        };
        self.enter(&format!("EXITING,{reason},,,,,"));
        self.ending = Some(Ending::Process);
    }
}
