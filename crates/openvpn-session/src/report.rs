//! What the session says about itself.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::condition::{Condition, ConditionChange};
use crate::mailbox::Mailbox;
use crate::observation::{Hint, Moment, Observation, Observer};

/// Tells the observer, the log and the callers how the session stands; each only when it changes.
#[derive(Debug)]
pub(crate) struct Report<O> {
    observer: O,
    pub(crate) mailbox: Arc<Mailbox>,
    /// What was reported last; `None` before the first report.
    last: Option<(Condition, String)>,
}

impl<O: Observer> Report<O> {
    pub(crate) fn new(observer: O, mailbox: Arc<Mailbox>) -> Self {
        Self {
            observer,
            mailbox,
            last: None,
        }
    }

    /// Hands one observation to the observer.
    pub(crate) fn observe(&mut self, observation: Observation, at: Moment) -> Hint {
        self.observer.observe(observation, at)
    }

    /// How the session stands, as reported last.
    pub(crate) fn condition(&self) -> Condition {
        self.last
            .as_ref()
            .map_or(Condition::Connecting, |(condition, _)| *condition)
    }

    /// The reason reported last, if it was for this condition.
    pub(crate) fn reason_of(&self, condition: Condition) -> Option<&str> {
        let (last, reason) = self.last.as_ref()?;
        (*last == condition).then_some(reason)
    }

    /// The session stands like this now; it waits for something else than time.
    pub(crate) fn stands(&mut self, condition: Condition, reason: impl Into<String>) {
        self.change(condition, reason.into(), None);
    }

    /// The session stands like this and will try again after `wait`.
    pub(crate) fn retries(&mut self, condition: Condition, reason: String, wait: Duration) {
        self.change(condition, reason, SystemTime::now().checked_add(wait));
    }

    fn change(&mut self, condition: Condition, reason: String, next_attempt: Option<SystemTime>) {
        // The gate first: whoever hears of the new condition finds calls treated accordingly.
        match condition {
            Condition::Attached => self.mailbox.open(),
            Condition::Connecting
            | Condition::SlotBusy
            | Condition::AuthFailed
            | Condition::Syncing
            | Condition::Unresponsive
            | Condition::Unreachable
            | Condition::Paused => self.mailbox.shut(condition),
        }
        let is_news = self
            .last
            .as_ref()
            .is_none_or(|(last, why)| (*last, why.as_str()) != (condition, reason.as_str()));
        if is_news {
            tracing::info!(%condition, reason, "session");
            self.last = Some((condition, reason.clone()));
            let change = ConditionChange {
                condition,
                reason,
                next_attempt,
            };
            self.observe(Observation::Condition(change), Moment::now());
        } else if let Some(next_attempt) = next_attempt {
            self.observe(Observation::NextAttempt(next_attempt), Moment::now());
        }
    }
}
