//! What kills and signals have in common: time, cancelling, and what an error of a session means to a target.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::SystemTime;

use openvpn_session::{CallError, CallerId, NotSent};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::action::{
    ActionContext, ActionError, ActionResult, DEADLINE_DEFAULT, DEADLINE_MARGIN, Outcome,
    TargetError,
};
use crate::event::{ActionProgress, Detail};
use crate::fleet::Shared;
use crate::instance::Instance;
use crate::name::{CallerName, RequestId};
use crate::requests::Running;

/// Instances that an action has something under way with at once.
pub(crate) const INSTANCES_IN_FLIGHT_MAX: usize = 64;

/// How long an action may go on.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Nothing is sent, and no answer waited for, after this.
    pub(crate) stop: Instant,
    /// When the caller stops waiting.
    pub(crate) deadline: Instant,
    /// Nothing is sent after the caller cancelled.
    cancel: CancellationToken,
    /// Nothing is sent once the gateway goes away.
    shutdown: CancellationToken,
}

impl Limits {
    pub(crate) fn new(shared: &Shared, context: &ActionContext) -> Self {
        let now = Instant::now();
        let deadline = context
            .deadline
            .map_or(now + DEADLINE_DEFAULT, Instant::from_std);
        let stop = deadline.checked_sub(DEADLINE_MARGIN).unwrap_or(now);
        Self {
            stop,
            deadline,
            cancel: context.cancel.clone(),
            shutdown: shared.cancel.clone(),
        }
    }

    /// No limits, for a while.
    #[cfg(test)]
    pub(crate) fn unlimited() -> Self {
        let hour = Instant::now() + std::time::Duration::from_secs(3_600);
        Self {
            stop: hour,
            deadline: hour,
            cancel: CancellationToken::new(),
            shutdown: CancellationToken::new(),
        }
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled() || self.shutdown.is_cancelled()
    }

    pub(crate) async fn cancelled(&self) {
        tokio::select! {
            () = self.cancel.cancelled() => {}
            () = self.shutdown.cancelled() => {}
        }
    }

    /// Why nothing more may be sent, if so.
    pub(crate) fn check(&self) -> Result<(), TargetError> {
        if self.is_cancelled() {
            Err(TargetError::Cancelled)
        } else if Instant::now() >= self.stop {
            Err(TargetError::NoTime)
        } else {
            Ok(())
        }
    }
}

/// Whose turn a caller's commands take.
pub(crate) fn caller_id(caller: &CallerName) -> CallerId {
    let mut hasher = DefaultHasher::new();
    caller.hash(&mut hasher);
    CallerId(hasher.finish())
}

/// What became of a target, why, and when it was sent.
#[derive(Debug)]
pub(crate) struct Fate {
    pub(crate) outcome: Outcome,
    pub(crate) error: Option<TargetError>,
    pub(crate) sent: Option<SystemTime>,
}

impl Fate {
    pub(crate) fn not_sent(error: TargetError) -> Self {
        Self {
            outcome: Outcome::NotSent,
            error: Some(error),
            sent: None,
        }
    }
}

/// What a session's error means to a target. Refusals of guards are the caller's business: it made them.
pub(crate) fn fate_of_error(instance: &Instance, error: CallError) -> Fate {
    let name = instance.name().clone();
    match error {
        CallError::NotSent(not_sent) => Fate::not_sent(match not_sent {
            NotSent::Detached { .. } | NotSent::Closed => not_attached(instance),
            NotSent::LaneFull { .. } => TargetError::Busy { instance: name },
            NotSent::Deadline => TargetError::NoTime,
            NotSent::Encode(error) => TargetError::Unencodable {
                reason: error.to_string(),
            },
            NotSent::Guard(refused) => TargetError::Unencodable {
                reason: refused.to_string(),
            },
        }),
        CallError::Rejected { text, sent } => Fate {
            outcome: Outcome::Rejected,
            error: Some(TargetError::Rejected {
                instance: name,
                text,
            }),
            sent: Some(sent),
        },
        CallError::OutcomeUnknown { sent, why } => Fate {
            outcome: Outcome::Unknown,
            error: Some(TargetError::FateUnknown {
                instance: name,
                reason: why.to_string(),
            }),
            sent: Some(sent),
        },
    }
}

pub(crate) fn not_attached(instance: &Instance) -> TargetError {
    let (condition, reason) = instance.with_table(|table| {
        let status = table.status();
        (status.condition, status.reason.clone())
    });
    TargetError::NotAttached {
        instance: instance.name().clone(),
        condition,
        reason,
    }
}

/// An id for a caller who gave none.
pub(crate) fn mint_request_id() -> Result<RequestId, ActionError> {
    let mut bytes = [0; 16];
    // Without randomness the clock has to do.
    if getrandom::fill(&mut bytes).is_err() {
        bytes[..8].copy_from_slice(&crate::client::micros(SystemTime::now()).to_be_bytes());
    }
    let id: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(RequestId::new(&id)?)
}

/// Carries out an action in a task of its own and waits for it: a caller who stops waiting does not stop the action.
pub(crate) async fn carry_out(
    shared: &Arc<Shared>,
    running: Arc<Running>,
    limits: &Limits,
    work: impl Future<Output = Result<ActionResult, ActionError>> + Send + 'static,
) -> Result<ActionResult, ActionError> {
    let task = {
        let (shared, running) = (Arc::clone(shared), Arc::clone(&running));
        async move {
            // Dropped by a panic or an abort, it still tells those who wait.
            let mut unfinished = Unfinished {
                shared: &shared,
                running: &running,
                is_finished: false,
            };
            let result = match work.await {
                Ok(result) => Ok(running.conclude(result).await),
                Err(error) => {
                    // In this order: once the id is free, nothing of before may be in the way of who takes it.
                    running.take_back();
                    shared.requests.forget(&running);
                    Err(error)
                }
            };
            unfinished.is_finished = true;
            running.finish(result);
        }
    };
    shared.tasks.spawn(task);
    join(&running, limits).await
}

/// Waits for an action that is under way, or for the deadline, and gives what is known.
pub(crate) async fn join(running: &Running, limits: &Limits) -> Result<ActionResult, ActionError> {
    match timeout_at(limits.deadline, running.finished()).await {
        Ok(result) => result,
        Err(_) => Ok(cut_short(running.result())),
    }
}

/// What is known of an action that goes on without this caller.
fn cut_short(mut result: ActionResult) -> ActionResult {
    match &mut result {
        ActionResult::Kill(report) => Arc::make_mut(report).cut_short = true,
        ActionResult::Signal(report) => Arc::make_mut(report).cut_short = true,
    }
    result
}

struct Unfinished<'a> {
    shared: &'a Shared,
    running: &'a Running,
    is_finished: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.is_finished {
            let request_id = self.running.action.request_id.clone();
            tracing::error!(%request_id, "the action's task was lost");
            self.running.lose();
            self.shared.requests.forget(self.running);
            self.running.finish(Err(ActionError::Lost { request_id }));
        }
    }
}

/// Tells the journal that an action begins.
pub(crate) fn record_started(shared: &Shared, running: &Running, targets: usize) {
    shared.record(Detail::ActionStarted(Box::new(progress(
        running,
        Vec::new(),
        targets,
    ))));
}

/// Tells the journal what became of an action, and the log, for the record, whom it hit.
pub(crate) fn record_finished(
    shared: &Shared,
    running: &Running,
    targets: impl Iterator<Item = (String, Outcome)>,
) {
    let mut counts = std::collections::BTreeMap::new();
    for (target, outcome) in targets {
        *counts.entry(outcome).or_insert(0) += 1;
        tracing::info!(
            request_id = %running.action.request_id,
            caller = %running.action.caller,
            method = running.method.as_str(),
            target,
            outcome = outcome.as_str(),
            "action target"
        );
    }
    let targets = counts.values().sum::<u64>();
    let counts: Vec<_> = counts.into_iter().collect();
    tracing::info!(
        request_id = %running.action.request_id,
        caller = %running.action.caller,
        method = running.method.as_str(),
        ?counts,
        "action finished"
    );
    let targets = usize::try_from(targets).unwrap_or(usize::MAX);
    shared.record(Detail::ActionFinished(Box::new(progress(
        running, counts, targets,
    ))));
}

fn progress(running: &Running, outcomes: Vec<(Outcome, u64)>, targets: usize) -> ActionProgress {
    ActionProgress {
        action: running.action.clone(),
        method: running.method,
        outcomes,
        targets: targets as u64,
    }
}

#[cfg(test)]
mod tests;
