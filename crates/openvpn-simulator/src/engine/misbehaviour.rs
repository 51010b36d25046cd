//! What is wrong with the daemon, as far as it has no place elsewhere.

use tokio::time::Duration;

use crate::Misbehaviour;
use crate::output::OUTPUT_BYTES_MAX;

use super::{Engine, Flow, Timer};

impl Engine {
    pub(crate) fn misbehave(&mut self, misbehaviour: Misbehaviour) {
        if matches!(misbehaviour, Misbehaviour::LogFlood { .. }) {
            self.set_timer(Duration::ZERO, Timer::LogFlood);
        }
        self.misbehaviours.push(misbehaviour);
        if self.is_attached() {
            self.begin_flow();
        }
    }

    pub(crate) fn behave(&mut self) {
        self.misbehaviours.clear();
        if !matches!(self.flow, Some(Flow::Burst { .. })) {
            self.flow = None;
        }
    }

    pub(super) fn does(&self, misbehaviour: &Misbehaviour) -> bool {
        self.misbehaviours.contains(misbehaviour)
    }

    /// After how many bytes every session is closed.
    pub(crate) fn session_bytes_max(&self) -> Option<u64> {
        self.misbehaviours.iter().find_map(|wrong| match wrong {
            Misbehaviour::EarlyClose { after_bytes } => Some(*after_bytes),
            _ => None,
        })
    }

    /// Starts what an attached manager is to be annoyed with.
    pub(super) fn begin_flow(&mut self) {
        if self.does(&Misbehaviour::EndlessLine) {
            self.flow = Some(Flow::EndlessLine);
        }
        let garbage = self.misbehaviours.iter().find_map(|wrong| match wrong {
            Misbehaviour::Garbage { bytes } => Some(*bytes),
            _ => None,
        });
        let garbage = garbage.unwrap_or(0).min(OUTPUT_BYTES_MAX);
        for _ in 0..garbage {
            let byte = self.random.byte();
            self.output.push(&[byte]);
        }
    }

    /// Adds the next helping of endless output; the owner calls it when the last one is gone.
    pub(crate) fn refill(&mut self) {
        /// Enough to keep the kernel's socket buffer full between two calls.
        const HELPING_BYTES: usize = 64 << 10;
        match self.flow {
            None => {}
            Some(Flow::Burst { .. }) => self.refill_burst(HELPING_BYTES),
            Some(Flow::EndlessLine) => self.output.push(&[b'x'; HELPING_BYTES]),
            Some(Flow::EndlessEnv { line }) => {
                let mut line = line;
                while self.output.pending().len() < HELPING_BYTES {
                    self.say(format_args!(">CLIENT:ENV,made_up_{line}=value"));
                    line += 1;
                }
                self.flow = Some(Flow::EndlessEnv { line });
            }
        }
    }

    pub(crate) fn flows(&self) -> bool {
        self.flow.is_some()
    }

    pub(super) fn is_endless(&self) -> bool {
        self.does(&Misbehaviour::EndlessEnv)
    }

    pub(super) fn floods(&self) -> bool {
        self.misbehaviours
            .iter()
            .any(|wrong| matches!(wrong, Misbehaviour::LogFlood { .. }))
    }

    pub(super) fn flood(&mut self) {
        /// Helpings per second; lines of one helping go out together.
        const HELPINGS: u32 = 20;
        let rate = self.misbehaviours.iter().find_map(|wrong| match wrong {
            Misbehaviour::LogFlood { lines_per_second } => Some(*lines_per_second),
            _ => None,
        });
        let Some(rate) = rate else {
            return;
        };
        for line in 0..rate.div_ceil(HELPINGS) {
            self.log("", format!("MULTI: flood line {line} of a chatty daemon"));
        }
        self.set_timer(Duration::from_secs(1) / HELPINGS, Timer::LogFlood);
    }
}
