//! The one command on the wire.

use std::time::Instant;

use openvpn_management::{CommandId, Rejected, Reply};
use tokio::sync::oneshot;

use crate::call::{Answer, CallError, OutcomeUnknown};
use crate::observation::Moment;

/// A command on the wire. It stays here until it is answered, or never will be, whether or not anybody still waits.
pub(crate) struct InFlight {
    pub(crate) id: CommandId,
    pub(crate) purpose: Purpose,
    pub(crate) sent: Moment,
}

/// Whose command it is.
pub(crate) enum Purpose {
    Synchronise,
    Liveness,
    Status,
    Release,
    Call(Caller),
}

/// The caller whose command is on the wire.
pub(crate) struct Caller {
    /// For the log.
    pub(crate) command: &'static str,
    pub(crate) deadline: Instant,
    /// `None` once the caller was told that its deadline passed.
    pub(crate) reply: Option<oneshot::Sender<Result<Answer, CallError>>>,
}

impl InFlight {
    /// When a caller must be told that its deadline passed.
    pub(crate) fn expires(&self) -> Option<Instant> {
        match &self.purpose {
            Purpose::Call(caller) if caller.reply.is_some() => Some(caller.deadline),
            _ => None,
        }
    }

    /// Tells a caller whose deadline has passed that the outcome is unknown.
    pub(crate) fn expire(&mut self, now: Moment) {
        if let Purpose::Call(caller) = &mut self.purpose
            && caller.deadline <= now.monotonic
            && let Some(reply) = caller.reply.take()
        {
            let waited = now.monotonic - self.sent.monotonic;
            let why = OutcomeUnknown::Deadline { waited };
            drop(reply.send(Err(unknown(self.sent, why))));
        }
    }

    /// Tells a caller that the session ended before the answer came.
    pub(crate) fn abandon(self, reason: &str) {
        if let Purpose::Call(caller) = self.purpose {
            let reason = reason.to_owned();
            caller.tell(Err(unknown(
                self.sent,
                OutcomeUnknown::SessionEnded { reason },
            )));
        }
    }
}

impl Caller {
    /// Passes the daemon's answer on; `None` if it will never come. `position` is where the tap stood.
    pub(crate) fn settle(
        self,
        answer: Option<Result<Reply, Rejected>>,
        sent: Moment,
        position: u64,
    ) {
        self.tell(match answer {
            Some(Ok(reply)) => Ok(Answer {
                reply,
                sent: sent.wall,
                position,
            }),
            Some(Err(Rejected { text })) => Err(CallError::Rejected {
                text,
                sent: sent.wall,
            }),
            None => Err(unknown(sent, OutcomeUnknown::Skipped)),
        });
    }

    /// Tells the caller, or, if it is gone, the log: what was sent has an outcome.
    fn tell(self, answer: Result<Answer, CallError>) {
        let unheard = match self.reply {
            Some(reply) => reply.send(answer).err(),
            None => Some(answer),
        };
        if let Some(answer) = unheard {
            let outcome = match &answer {
                Ok(_) => "done",
                Err(CallError::Rejected { .. }) => "refused",
                Err(CallError::NotSent(_) | CallError::OutcomeUnknown { .. }) => "unknown",
            };
            tracing::info!(
                command = self.command,
                outcome,
                "nobody waits for this answer any more"
            );
        }
    }
}

/// What is said of a command that was sent at that moment and has no answer.
pub(crate) fn unknown(sent: Moment, why: OutcomeUnknown) -> CallError {
    CallError::OutcomeUnknown {
        sent: sent.wall,
        why,
    }
}
