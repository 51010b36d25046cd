//! What is wrong with the daemon, as far as it has no place elsewhere.

use tokio::time::Duration;

use crate::Misbehaviour;
use crate::output::OUTPUT_BYTES_MAX;

use super::{Engine, Flow, Timer};

/// As [`OUTPUT_BYTES_MAX`], where a huge status is what was asked for: a million rows.
const HUGE_OUTPUT_BYTES_MAX: usize = 512 << 20;

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
            Some(Flow::EndlessReply { line }) => {
                let mut line = line;
                while self.output.pending().len() < HELPING_BYTES {
                    self.say(format_args!("{line},CONNECTED,SUCCESS,10.8.0.1,,,,"));
                    line += 1;
                }
                self.flow = Some(Flow::EndlessReply { line });
            }
        }
    }

    pub(crate) fn flows(&self) -> bool {
        self.flow.is_some()
    }

    /// Whether it is in the middle of something it will never be done with: it hears nothing more.
    pub(crate) fn never_ends(&self) -> bool {
        match self.flow {
            None | Some(Flow::Burst { .. }) => false,
            Some(Flow::EndlessLine | Flow::EndlessEnv { .. } | Flow::EndlessReply { .. }) => true,
        }
    }

    /// Most bytes that may wait for a manager that does not read.
    pub(crate) fn output_bytes_max(&self) -> usize {
        let is_huge = |wrong: &Misbehaviour| matches!(wrong, Misbehaviour::HugeStatus { .. });
        if self.misbehaviours.iter().any(is_huge) {
            HUGE_OUTPUT_BYTES_MAX
        } else {
            OUTPUT_BYTES_MAX
        }
    }

    /// How long to wait after every byte.
    pub(crate) fn byte_pause(&self) -> Option<Duration> {
        self.misbehaviours.iter().find_map(|wrong| match wrong {
            Misbehaviour::SlowLoris { pause } => Some(*pause),
            _ => None,
        })
    }

    /// Whether it has ended its own direction.
    pub(crate) fn is_half_closed(&self) -> bool {
        self.does(&Misbehaviour::HalfClose) && self.is_attached()
    }

    pub(super) fn surplus_env_lines(&self) -> usize {
        let surplus = self.misbehaviours.iter().find_map(|wrong| match wrong {
            Misbehaviour::LongEnv { lines } => Some(*lines),
            _ => None,
        });
        surplus.unwrap_or(0)
    }

    /// Does with a reply, everything behind the first `before` bytes to be written, what is to be
    /// done with replies.
    pub(super) fn spoil_reply(&mut self, before: usize) {
        if self.misbehaviours.is_empty() {
            return;
        }
        let mut reply = self.output.take_back(before);
        for wrong in &self.misbehaviours {
            match wrong {
                Misbehaviour::Interjects(bytes) => reply = [bytes, &*reply].concat(),
                Misbehaviour::InterjectsInside(bytes) => {
                    let first = reply.iter().position(|byte| *byte == b'\n');
                    if let Some(end) = first.filter(|end| end + 1 < reply.len()) {
                        reply.splice(end + 1..=end, bytes.iter().copied());
                    }
                }
                Misbehaviour::DoubledReplies => reply = reply.repeat(2),
                _ => {}
            }
        }
        if self.does(&Misbehaviour::SwappedReplies) {
            match self.kept_back.take() {
                Some(kept_back) => reply.extend_from_slice(&kept_back),
                None => self.kept_back = Some(std::mem::take(&mut reply)),
            }
        }
        let delay = self.misbehaviours.iter().find_map(|wrong| match wrong {
            Misbehaviour::LateReplies { delay } => Some(*delay),
            _ => None,
        });
        match delay {
            Some(delay) => self.set_timer(delay, Timer::LateReply(reply)),
            None => self.output.push(&reply),
        }
    }

    /// Writes a reply that was kept back; to whoever is there by now.
    pub(super) fn say_late(&mut self, reply: &[u8]) {
        if self.is_attached() {
            self.output.push(reply);
        }
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
