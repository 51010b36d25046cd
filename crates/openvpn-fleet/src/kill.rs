//! Ends clients: who is meant is found in a fresh status of each instance, and checked again at the moment of the write.
//!
//! ```text
//! refresh each instance ─► resolve the filter ─► limits ─► client-kill CID, each behind a guard ─► wait until gone
//! ```

mod resolve;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::{StreamExt as _, stream};
use openvpn_management::{Cid, Command, KillMessage, Text};
use openvpn_session::{Call, CallError, Guard, GuardRefused, Lane, Moment, NotSent};
use tokio::time::{Instant, sleep, timeout_at};

use self::resolve::{Plan, Refused, Target, ask, empty_report, resolve};
use crate::action::{
    ActionContext, ActionError, ActionResult, KILL_MESSAGE_BYTES_MAX, KillReport, KillRequest,
    Method, Outcome, TargetError,
};
use crate::failpoint;
use crate::fleet::Shared;
use crate::instance::Instance;
use crate::name::{ActionRef, ClientRef};
use crate::requests::{Begun, Running};
use crate::send::{
    Fate, INSTANCES_IN_FLIGHT_MAX, Limits, caller_id, carry_out, fate_of_error, join,
    mint_request_id, record_finished, record_started,
};
use crate::table::Table;

/// How often a status is asked for while a kill waits for its clients to be gone. A killed client stays listed for up
/// to 5 s.
const CONFIRM_INTERVAL: Duration = Duration::from_secs(1);
/// How long a confirmed kill waits for the client that takes the place of the one it ended.
const SUCCESSOR_WAIT: Duration = Duration::from_secs(2);

/// Ends clients.
pub(crate) async fn kill(
    shared: &Arc<Shared>,
    request: KillRequest,
    context: ActionContext,
) -> Result<Arc<KillReport>, ActionError> {
    check(&request)?;
    if shared.cancel.is_cancelled() {
        return Err(ActionError::ShuttingDown);
    }
    let limits = Limits::new(shared, &context);
    let request_id = match &request.request_id {
        Some(request_id) => request_id.clone(),
        None => mint_request_id()?,
    };
    if request.validate_only {
        let plan = resolve(shared, &request, &limits, request_id).await?;
        return Ok(Arc::new(plan.report));
    }
    let action = ActionRef {
        request_id: request_id.clone(),
        caller: context.caller.clone(),
    };
    let empty = ActionResult::Kill(Arc::new(empty_report(shared, request_id, false)));
    let begun = shared.requests.begin(
        action,
        Method::KillClients,
        request.digest,
        empty,
        Moment::now(),
    )?;
    let result = match begun {
        Begun::Joined(running) => join(&running, &limits).await?,
        Begun::New(running) => {
            let work = run(
                Arc::clone(shared),
                request,
                Arc::clone(&running),
                limits.clone(),
            );
            carry_out(shared, running, &limits, work).await?
        }
    };
    match result {
        ActionResult::Kill(report) => Ok(report),
        // Ids are kept by method.
        ActionResult::Signal(_) => Err(ActionError::ShuttingDown),
    }
}

fn check(request: &KillRequest) -> Result<(), ActionError> {
    if request.selector.is_empty() {
        return Err(ActionError::SelectorEmpty);
    }
    if request.filter.is_empty() && !request.every_client {
        return Err(ActionError::FilterEmpty);
    }
    let KillMessage::Text(text) = &request.message else {
        return Ok(());
    };
    let problem = if text.is_empty() {
        "is empty"
    } else if text.len() > KILL_MESSAGE_BYTES_MAX {
        "has more than 200 bytes"
    } else if text.as_bytes().iter().any(u8::is_ascii_control) {
        "has control characters"
    } else {
        return Ok(());
    };
    Err(ActionError::MessageInvalid { problem })
}

/// Carries the request out.
async fn run(
    shared: Arc<Shared>,
    request: KillRequest,
    running: Arc<Running>,
    limits: Limits,
) -> Result<ActionResult, ActionError> {
    running.intend().await?;
    let request_id = running.action.request_id.clone();
    let Plan {
        mut report,
        targets,
    } = resolve(&shared, &request, &limits, request_id).await?;
    let results = report.results.len();
    // Until its turn comes, a target is one that nothing was sent to.
    for result in &mut report.results[..targets.len()] {
        (result.outcome, result.error) = (Outcome::NotSent, Some(TargetError::NoTime));
    }
    running.update(|result| *result = ActionResult::Kill(Arc::new(report)));
    running.plan(targets.len()).await?;
    record_started(&shared, &running, results);

    let kill = Kill {
        request: &request,
        running: &running,
        limits: &limits,
    };
    let by_instance = group_by_instance(targets);
    stream::iter(by_instance)
        .for_each_concurrent(INSTANCES_IN_FLIGHT_MAX, |targets| {
            kill.kill_on_instance(targets)
        })
        .await;

    let ActionResult::Kill(report) = running.result() else {
        return Err(ActionError::ShuttingDown);
    };
    let mut report = Arc::unwrap_or_clone(report);
    report.cut_short = report.results.iter().any(|result| {
        matches!(
            result.error,
            Some(TargetError::NoTime | TargetError::Cancelled | TargetError::NotSeen { .. })
        )
    });
    // Names of clients are escaped: they come from outside.
    let targets = report.results.iter().map(|result| {
        let target = format!("{} {}", result.client, result.common_name);
        (target, result.outcome)
    });
    record_finished(&shared, &running, targets);
    Ok(ActionResult::Kill(Arc::new(report)))
}

/// Targets with their index in the report, one list per instance.
fn group_by_instance(targets: Vec<Target>) -> Vec<Vec<(usize, Target)>> {
    let mut groups: Vec<Vec<(usize, Target)>> = Vec::new();
    for (index, target) in targets.into_iter().enumerate() {
        match groups.last_mut() {
            Some(group) if Arc::ptr_eq(&group[0].1.instance, &target.instance) => {
                group.push((index, target));
            }
            _ => groups.push(vec![(index, target)]),
        }
    }
    groups
}

/// One kill under way.
struct Kill<'a> {
    request: &'a KillRequest,
    running: &'a Running,
    limits: &'a Limits,
}

impl Kill<'_> {
    /// One after the other: a daemon takes one command at a time anyway.
    async fn kill_on_instance(&self, targets: Vec<(usize, Target)>) {
        let mut accepted = Vec::new();
        for (index, target) in targets {
            let fate = self.kill_one(&target).await;
            let is_accepted = fate.outcome == Outcome::Accepted;
            self.running.update_kill(index, |result| {
                (result.outcome, result.error, result.sent) = (fate.outcome, fate.error, fate.sent);
            });
            if is_accepted {
                accepted.push((index, target));
            }
        }
        if self.request.wait && !accepted.is_empty() {
            self.confirm(accepted).await;
        }
    }

    async fn kill_one(&self, target: &Target) -> Fate {
        if let Err(error) = self.limits.check() {
            return Fate::not_sent(error);
        }
        let instance = &target.instance;
        let call = Call {
            command: Command::ClientKill {
                cid: target.cid,
                message: Some(self.request.message.clone()),
            },
            lane: Lane::Control,
            caller: caller_id(&self.running.action.caller),
            guard: Some(self.guard(target)),
            deadline: self.limits.stop.into_std(),
        };
        let answer = instance.call(call).await;
        if answer.is_ok() {
            failpoint::hit("action.after_send");
        }
        match answer {
            Ok(answer) => match instance.with_table(|table| table.generation()) {
                generation if generation == Some(target.generation) => Fate {
                    outcome: Outcome::Accepted,
                    error: None,
                    sent: Some(answer.sent),
                },
                // Whether the daemon took it before or after it restarted cannot be told any more.
                _ => Fate {
                    outcome: Outcome::Unknown,
                    error: Some(TargetError::FateUnknown {
                        instance: instance.name().clone(),
                        reason: "the daemon restarted meanwhile".to_owned(),
                    }),
                    sent: Some(answer.sent),
                },
            },
            Err(CallError::NotSent(NotSent::Guard(GuardRefused(refused)))) => {
                let refused = refused.downcast::<Refused>();
                refused.map_or_else(
                    |_| Fate::not_sent(TargetError::Cancelled),
                    |refused| fate_of_refusal(instance, &refused),
                )
            }
            Err(CallError::Rejected { text, sent }) => {
                self.unmark(target);
                self.fate_of_rejection(target, text, sent).await
            }
            Err(error @ CallError::NotSent(_)) => {
                self.unmark(target);
                fate_of_error(instance, error)
            }
            Err(error @ CallError::OutcomeUnknown { .. }) => fate_of_error(instance, error),
        }
    }

    /// Lets the command through only if the CID still means the client that was found, and marks it then: its end will
    /// be ours.
    fn guard(&self, target: &Target) -> Guard {
        let (target, action) = (target.clone(), self.running.action.clone());
        let limits = self.limits.clone();
        Box::new(move || {
            if limits.is_cancelled() {
                return Err(GuardRefused(Box::new(Refused::Cancelled)));
            }
            let instance = Arc::clone(&target.instance);
            let marked = instance.update(|table| {
                target.find(table)?;
                table.mark_killed(target.cid, action);
                Ok(())
            });
            marked.map_err(|refused: Refused| GuardRefused(Box::new(refused)))
        })
    }

    fn unmark(&self, target: &Target) {
        target.instance.update(|table| {
            if target.find(table).is_ok() {
                table.unmark_killed(target.cid, &self.running.action);
            }
        });
    }

    /// A refused `client-kill` usually means that the client had just left: the daemon's own list tells.
    async fn fate_of_rejection(&self, target: &Target, text: Text, sent: SystemTime) -> Fate {
        let instance = &target.instance;
        let is_fresh = ask(instance, Instant::now(), self.limits).await.is_ok();
        let found = instance.with_table(|table| target.find(table).map(|_| ()));
        match found {
            // It went to a daemon that knew no such client any more, or not yet.
            Err(refused @ Refused::Stale(_)) => Fate {
                sent: Some(sent),
                ..fate_of_refusal(instance, &refused)
            },
            Err(refused) if is_fresh => Fate {
                sent: Some(sent),
                ..fate_of_refusal(instance, &refused)
            },
            Ok(()) | Err(_) => fate_of_error(instance, CallError::Rejected { text, sent }),
        }
    }

    /// Waits until accepted targets are gone.
    async fn confirm(&self, accepted: Vec<(usize, Target)>) {
        let Some((_, Target { instance, .. })) = accepted.first() else {
            return;
        };
        let instance = Arc::clone(instance);
        let polls = async {
            loop {
                sleep(CONFIRM_INTERVAL).await;
                // An instance that cannot be asked now may be later.
                let _ = instance
                    .refresh(Instant::now().into_std(), self.limits.stop.into_std())
                    .await;
            }
        };
        let confirmations =
            stream::iter(accepted).for_each_concurrent(None, |(index, target)| async move {
                let gone = target
                    .instance
                    .wait_for(|table| target.find(table).is_err().then_some(()));
                if timeout_at(self.limits.stop, gone).await.is_err() {
                    let instance = target.instance.name().clone();
                    self.running.update_kill(index, |result| {
                        result.error = Some(TargetError::NotSeen { instance })
                    });
                    return;
                }
                self.running
                    .update_kill(index, |result| result.outcome = Outcome::Confirmed);
                let successor = self.successor(&target).await;
                self.running.update_kill(index, |result| {
                    result.successor = successor.map(|cid| ClientRef {
                        cid,
                        ..result.client.clone()
                    });
                });
            });
        tokio::select! {
            () = confirmations => {}
            () = polls => {}
            () = self.limits.cancelled() => {}
        }
    }

    /// The client that took the place of one that was told to come back.
    async fn successor(&self, target: &Target) -> Option<Cid> {
        let find = |table: &Table| table.successor_of(target.generation, target.cid);
        match self.request.message {
            KillMessage::Restart => {
                let until = self.limits.stop.min(Instant::now() + SUCCESSOR_WAIT);
                timeout_at(until, target.instance.wait_for(find)).await.ok()
            }
            KillMessage::Halt | KillMessage::Text(_) => target.instance.with_table(find),
        }
    }
}

fn fate_of_refusal(instance: &Instance, refused: &Refused) -> Fate {
    let (outcome, error) = match refused {
        Refused::Stale(current) => {
            let (instance, current) = (instance.name().clone(), *current);
            (Outcome::Stale, TargetError::Stale { instance, current })
        }
        Refused::Gone => (Outcome::AlreadyGone, TargetError::Gone),
        Refused::Cancelled => (Outcome::NotSent, TargetError::Cancelled),
    };
    Fate {
        outcome,
        error: Some(error),
        sent: None,
    }
}

#[cfg(test)]
mod tests;
