//! Ends clients: who is meant is found in a fresh status of each instance, and checked again at the moment of the write.
//!
//! ```text
//! refresh each instance ─► resolve the filter ─► limits ─► client-kill CID, each behind a guard ─► wait until gone
//! ```

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::{StreamExt as _, stream};
use openvpn_management::{Cid, Command, KillMessage, Text};
use openvpn_session::{Call, CallError, Guard, GuardRefused, Lane, Mode, NotSent};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::action::{
    ActionContext, ActionError, ActionResult, AsOf, CLIENTS_PER_KILL_DEFAULT, InstanceResult,
    KILL_MESSAGE_BYTES_MAX, KillReport, KillRequest, KillResult, Method, Outcome, TargetError,
};
use crate::client::Client;
use crate::fleet::Shared;
use crate::instance::Instance;
use crate::name::{ActionRef, ClientRef, Generation, RequestId};
use crate::requests::{Begun, Running, digest};
use crate::send::{
    Fate, INSTANCES_IN_FLIGHT_MAX, Limits, caller_id, carry_out, fate_of_error, join,
    mint_request_id, not_attached, record_finished, record_started,
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
        digest(&request),
        empty,
        SystemTime::now(),
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

fn empty_report(shared: &Shared, request_id: RequestId, validate_only: bool) -> KillReport {
    KillReport {
        request_id,
        results: Vec::new(),
        instances: Vec::new(),
        validate_only,
        cut_short: false,
        as_of: AsOf {
            position: shared.journal.newest(),
            time: SystemTime::now(),
        },
    }
}

/// What a request means, before anything is sent.
struct Plan {
    report: KillReport,
    /// Where the first results of `report` are to be sent; one per result, in the same order.
    targets: Vec<Target>,
}

/// One client to end, as it was when it was found.
#[derive(Clone)]
struct Target {
    instance: Arc<Instance>,
    generation: Generation,
    cid: Cid,
    common_name: Box<[u8]>,
    connected_since: Option<i64>,
}

impl Target {
    /// The client, if it is still the one that was found.
    fn find<'a>(&self, table: &'a Table) -> Result<&'a Client, Refused> {
        if table.generation() != Some(self.generation) {
            return Err(Refused::Stale(table.generation()));
        }
        let client = table.client(self.cid).ok_or(Refused::Gone)?;
        let is_same = *client.common_name() == *self.common_name
            && client.connected_since() == self.connected_since;
        if is_same {
            Ok(client)
        } else {
            Err(Refused::Gone)
        }
    }
}

/// Why a guard lets nothing through.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("the daemon began a new generation")]
    Stale(Option<Generation>),
    #[error("the client is gone")]
    Gone,
    #[error("the caller cancelled")]
    Cancelled,
}

/// How long one instance may take to list its clients, and never more than half of the time there is: one that hangs
/// must not keep the others' clients from being hit in time.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// Finds out who is meant, from a fresh status of each selected instance.
async fn resolve(
    shared: &Arc<Shared>,
    request: &KillRequest,
    limits: &Limits,
    request_id: RequestId,
) -> Result<Plan, ActionError> {
    let mut report = empty_report(shared, request_id, request.validate_only);
    let mut targets = Vec::new();
    let selection = shared.select(&request.selector);
    let named: &HashSet<&str> = &request
        .filter
        .refs
        .iter()
        .map(|named| named.instance.as_str())
        .collect();
    let now = Instant::now();
    let found: Vec<_> = stream::iter(selection.instances)
        .map(|instance: Arc<Instance>| async move {
            let is_meant = named.is_empty() || named.contains(instance.name().as_str());
            let error = if is_meant {
                ask(&instance, now, limits).await.err()
            } else {
                None
            };
            (instance, is_meant, error)
        })
        .buffered(INSTANCES_IN_FLIGHT_MAX)
        .collect()
        .await;
    for (instance, is_meant, error) in found {
        let asked = is_meant && error.is_none();
        let mut matched = 0;
        let mut snapshot_age = None;
        instance.with_table(|table| {
            let snapshot_time = table.status().snapshot_time;
            snapshot_age =
                snapshot_time.and_then(|time| SystemTime::now().duration_since(time).ok());
            let Some(generation) = table.generation().filter(|_| asked) else {
                return;
            };
            for client in table.clients() {
                if !request.filter.matches(
                    &shared.gateway,
                    &client.identity(instance.name(), generation),
                ) {
                    continue;
                }
                matched += 1;
                report
                    .results
                    .push(planned(shared, &instance, generation, client));
                targets.push(Target {
                    instance: Arc::clone(&instance),
                    generation,
                    cid: client.cid(),
                    common_name: client.common_name().into(),
                    connected_since: client.connected_since(),
                });
            }
        });
        report.instances.push(InstanceResult {
            gateway: shared.gateway.clone(),
            instance: instance.name().clone(),
            asked,
            matched,
            snapshot_age,
            error,
        });
    }
    for path in &selection.unknown {
        report.instances.push(InstanceResult {
            gateway: path
                .gateway
                .clone()
                .unwrap_or_else(|| shared.gateway.clone()),
            instance: path.instance.clone(),
            asked: false,
            matched: 0,
            snapshot_age: None,
            error: Some(TargetError::UnknownInstance {
                instance: path.clone(),
            }),
        });
    }
    let hit: BTreeSet<_> = report
        .results
        .iter()
        .map(|result| result.client.clone())
        .collect();
    let missing = request.filter.refs.difference(&hit);
    let missing: Vec<_> = missing
        .filter_map(|named| missing_ref(shared, &report, named))
        .collect();
    report.results.extend(missing);
    let plan = Plan { report, targets };
    check_limits(&plan, request)?;
    Ok(plan)
}

/// Makes sure that an instance's table is as fresh as the question.
async fn ask(instance: &Instance, not_before: Instant, limits: &Limits) -> Result<(), TargetError> {
    limits.check()?;
    let now = Instant::now();
    let patience = ANSWER_MAX.min(limits.stop.duration_since(now) / 2);
    let refreshed = instance.refresh(not_before.into_std(), limits.stop.into_std());
    let refreshed = tokio::select! {
        refreshed = refreshed => refreshed,
        () = limits.cancelled() => return Err(TargetError::Cancelled),
        () = sleep_until(now + patience) => {
            return Err(TargetError::Silent {
                instance: instance.name().clone(),
                waited: patience,
            });
        }
    };
    let no_clients = |text: String| TargetError::NoClients {
        instance: instance.name().clone(),
        text,
    };
    match refreshed {
        Ok(_) if instance.with_table(|table| table.status().mode) == Mode::Client => {
            Err(no_clients("it is a client itself".to_owned()))
        }
        Ok(_) => Ok(()),
        Err(CallError::Rejected { text, .. }) => Err(no_clients(text.to_string())),
        Err(error) => Err(fate_of_error(instance, error)
            .error
            .unwrap_or_else(|| not_attached(instance))),
    }
}

fn planned(
    shared: &Shared,
    instance: &Instance,
    generation: Generation,
    client: &Client,
) -> KillResult {
    KillResult {
        client: ClientRef {
            gateway: shared.gateway.clone(),
            instance: instance.name().clone(),
            generation,
            cid: client.cid(),
        },
        common_name: Text::copy_from(client.common_name()),
        username: Text::copy_from(client.username()),
        real_address: Text::copy_from(client.real_address()),
        virtual_address: Text::copy_from(client.virtual_address()),
        outcome: Outcome::Planned,
        error: None,
        sent: None,
        successor: None,
    }
}

/// The result for a ref that is no target; `None` if it names somebody whom the rest of the filter spares.
fn missing_ref(shared: &Shared, report: &KillReport, named: &ClientRef) -> Option<KillResult> {
    let asked = report
        .instances
        .iter()
        .find(|asked| asked.instance == named.instance && asked.gateway == named.gateway);
    let instance = shared
        .instances
        .get(&named.instance)
        .map(|entry| Arc::clone(entry.value()))
        .filter(|_| named.gateway == shared.gateway);
    let (outcome, error) = match (asked, instance) {
        (Some(asked), Some(instance)) => {
            let (current, is_there) = instance
                .with_table(|table| (table.generation(), table.client(named.cid).is_some()));
            if current.is_some_and(|current| current != named.generation) {
                let instance = named.instance.clone();
                (Outcome::Stale, TargetError::Stale { instance, current })
            } else if let Some(error) = &asked.error {
                (Outcome::NotSent, error.clone())
            } else if is_there {
                return None;
            } else {
                (Outcome::AlreadyGone, TargetError::Gone)
            }
        }
        // Not selected, or not an instance.
        _ => {
            let instance = crate::selector::InstancePath {
                gateway: Some(named.gateway.clone()),
                instance: named.instance.clone(),
            };
            (Outcome::NotSent, TargetError::UnknownInstance { instance })
        }
    };
    Some(KillResult {
        client: named.clone(),
        common_name: Text::default(),
        username: Text::default(),
        real_address: Text::default(),
        virtual_address: Text::default(),
        outcome,
        error: Some(error),
        sent: None,
        successor: None,
    })
}

fn check_limits(plan: &Plan, request: &KillRequest) -> Result<(), ActionError> {
    let max = match request.max_clients {
        0 => CLIENTS_PER_KILL_DEFAULT,
        max => max,
    };
    let found = plan.targets.len();
    if found > max as usize {
        let plan = Arc::new(plan.report.clone());
        return Err(ActionError::TooManyClients { found, max, plan });
    }
    let max = request.max_instances;
    let found = plan
        .report
        .instances
        .iter()
        .filter(|instance| instance.matched > 0)
        .count();
    if max > 0 && found > max as usize {
        let plan = ActionResult::Kill(Arc::new(plan.report.clone()));
        return Err(ActionError::TooManyInstances { found, max, plan });
    }
    Ok(())
}

/// Carries the request out.
async fn run(
    shared: Arc<Shared>,
    request: KillRequest,
    running: Arc<Running>,
    limits: Limits,
) -> Result<ActionResult, ActionError> {
    let request_id = running.action.request_id.clone();
    let Plan {
        mut report,
        targets,
    } = resolve(&shared, &request, &limits, request_id).await?;
    record_started(&shared, &running, report.results.len());
    // Until its turn comes, a target is one that nothing was sent to.
    for result in &mut report.results[..targets.len()] {
        (result.outcome, result.error) = (Outcome::NotSent, Some(TargetError::NoTime));
    }
    running.update(|result| *result = ActionResult::Kill(Arc::new(report)));

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
            self.update(index, |result| {
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

    fn update(&self, index: usize, change: impl FnOnce(&mut KillResult)) {
        self.running.update(|result| {
            if let ActionResult::Kill(report) = result
                && let Some(result) = Arc::make_mut(report).results.get_mut(index)
            {
                change(result);
            }
        });
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
        match instance.call(call).await {
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
                    self.update(index, |result| {
                        result.error = Some(TargetError::NotSeen { instance })
                    });
                    return;
                }
                self.update(index, |result| result.outcome = Outcome::Confirmed);
                let successor = self.successor(&target).await;
                self.update(index, |result| {
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
