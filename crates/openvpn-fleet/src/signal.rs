//! Sends signals to daemons: a few at a time, with a pause between, stopping when too many fail.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use futures_util::{StreamExt as _, stream};
use openvpn_management::{Command, DaemonState, Signal};
use openvpn_session::{Call, CallError, Guard, GuardRefused, Lane, Moment, NotSent};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::action::{
    ActionContext, ActionError, ActionResult, AsOf, Method, Outcome, SignalReport, SignalRequest,
    SignalResult, SignalWait, TargetError,
};
use crate::failpoint;
use crate::fleet::{Selection, Shared};
use crate::instance::Instance;
use crate::name::{ActionRef, Generation, RequestId};
use crate::requests::{Begun, Running};
use crate::selector::InstancePath;
use crate::send::{
    Fate, INSTANCES_IN_FLIGHT_MAX, Limits, caller_id, carry_out, fate_of_error, join,
    mint_request_id, not_attached, record_finished, record_started,
};
use crate::table::Table;

/// Sends a signal to daemons.
pub(crate) async fn signal(
    shared: &Arc<Shared>,
    request: SignalRequest,
    context: ActionContext,
) -> Result<Arc<SignalReport>, ActionError> {
    if request.selector.is_empty() {
        return Err(ActionError::SelectorEmpty);
    }
    if shared.cancel.is_cancelled() {
        return Err(ActionError::ShuttingDown);
    }
    let limits = Limits::new(shared, &context);
    let request_id = match &request.request_id {
        Some(request_id) => request_id.clone(),
        None => mint_request_id()?,
    };
    if request.validate_only {
        let (_, report) = resolve(shared, &request, request_id)?;
        return Ok(Arc::new(report));
    }
    let action = ActionRef {
        request_id: request_id.clone(),
        caller: context.caller.clone(),
    };
    let empty = ActionResult::Signal(Arc::new(empty_report(shared, &request, request_id)));
    let begun = shared.requests.begin(
        action,
        Method::SignalInstances,
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
        ActionResult::Signal(report) => Ok(report),
        // Ids are kept by method.
        ActionResult::Kill(_) => Err(ActionError::ShuttingDown),
    }
}

fn empty_report(shared: &Shared, request: &SignalRequest, request_id: RequestId) -> SignalReport {
    SignalReport {
        request_id,
        results: Vec::new(),
        validate_only: request.validate_only,
        cut_short: false,
        as_of: AsOf {
            position: shared.journal.newest(),
            time: SystemTime::now(),
        },
        durability: shared.requests.durability(),
    }
}

/// Finds out who is meant: the instances, and a result for each and for every name that is none.
fn resolve(
    shared: &Shared,
    request: &SignalRequest,
    request_id: RequestId,
) -> Result<(Vec<Arc<Instance>>, SignalReport), ActionError> {
    let Selection { instances, unknown } = shared.select(&request.selector);
    let mut report = empty_report(shared, request, request_id);
    for instance in &instances {
        let (allowed, clients, generation) = instance.with_table(|table| {
            let clients = table.client_count() as u64;
            (check(instance, table, request), clients, table.generation())
        });
        let (outcome, error) = match allowed {
            Ok(()) => (Outcome::Planned, None),
            Err(error) => (Outcome::NotSent, Some(error)),
        };
        report.results.push(SignalResult {
            gateway: shared.gateway.clone(),
            instance: instance.name().clone(),
            outcome,
            error,
            sent: None,
            clients,
            generation,
        });
    }
    report
        .results
        .extend(unknown.iter().map(|path| unknown_result(shared, path)));
    let (found, max) = (instances.len(), request.max_instances);
    if max > 0 && found > max as usize {
        let plan = ActionResult::Signal(Arc::new(report));
        return Err(ActionError::TooManyInstances { found, max, plan });
    }
    Ok((instances, report))
}

fn unknown_result(shared: &Shared, path: &InstancePath) -> SignalResult {
    SignalResult {
        gateway: path
            .gateway
            .clone()
            .unwrap_or_else(|| shared.gateway.clone()),
        instance: path.instance.clone(),
        outcome: Outcome::NotSent,
        error: Some(TargetError::UnknownInstance {
            instance: path.clone(),
        }),
        sent: None,
        clients: 0,
        generation: None,
    }
}

/// Whether an instance may get the signal now.
fn check(instance: &Instance, table: &Table, request: &SignalRequest) -> Result<(), TargetError> {
    let status = table.status();
    if !status.is_attached() {
        return Err(TargetError::NotAttached {
            instance: instance.name().clone(),
            condition: status.condition,
            reason: status.reason.clone(),
        });
    }
    if request.force {
        return Ok(());
    }
    let needs_force = |reason: String| {
        Err(TargetError::NeedsForce {
            instance: instance.name().clone(),
            signal: request.signal.as_str(),
            reason,
        })
    };
    if request.signal == Signal::Sigterm {
        return needs_force("SIGTERM always does".to_owned());
    }
    // OpenVPN takes any signal while it waits for an answer as the end of the question, and that for fatal.
    match status.open_questions.first() {
        Some(asked) => needs_force(format!("it waits for an answer: {}", asked.question)),
        None => Ok(()),
    }
}

/// Carries the request out.
async fn run(
    shared: Arc<Shared>,
    request: SignalRequest,
    running: Arc<Running>,
    limits: Limits,
) -> Result<ActionResult, ActionError> {
    running.intend().await?;
    let (instances, mut report) = resolve(&shared, &request, running.action.request_id.clone())?;
    let results = report.results.len();
    for result in &mut report.results[..instances.len()] {
        (result.outcome, result.error) = (Outcome::NotSent, Some(TargetError::NoTime));
    }
    running.update(|result| *result = ActionResult::Signal(Arc::new(report)));
    running.plan(instances.len()).await?;
    record_started(&shared, &running, results);

    let in_flight_max = (request.in_flight_max.max(1) as usize).min(INSTANCES_IN_FLIGHT_MAX);
    let round = Arc::new(Round {
        request,
        running: Arc::clone(&running),
        limits,
        failures: AtomicU32::new(0),
    });
    stream::iter(instances.into_iter().enumerate())
        .then(|(index, instance)| Arc::clone(&round).after_pause(index, instance))
        .map(|(index, instance)| Arc::clone(&round).signal_one(index, instance))
        .buffer_unordered(in_flight_max)
        .for_each(|()| std::future::ready(()))
        .await;

    let ActionResult::Signal(report) = running.result() else {
        return Err(ActionError::ShuttingDown);
    };
    let mut report = Arc::unwrap_or_clone(report);
    report.cut_short = report.results.iter().any(|result| {
        matches!(
            result.error,
            Some(TargetError::NoTime | TargetError::Cancelled | TargetError::NotSeen { .. })
        )
    });
    let targets = report.results.iter().map(|result| {
        let target = format!("{}/{}", result.gateway, result.instance);
        (target, result.outcome)
    });
    record_finished(&shared, &running, targets);
    Ok(ActionResult::Signal(Arc::new(report)))
}

/// One signal to many, under way.
struct Round {
    request: SignalRequest,
    running: Arc<Running>,
    limits: Limits,
    failures: AtomicU32,
}

/// An instance as it was when the signal was written.
#[derive(Debug, Clone, Copy, Default)]
struct Before {
    clients: u64,
    generation: Option<Generation>,
}

/// Why a guard lets nothing through.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Refused(TargetError);

impl Round {
    /// Waits for an instance's turn: each but the first comes a pause after the one before, also when several are under
    /// way at once.
    async fn after_pause(
        self: Arc<Self>,
        index: usize,
        instance: Arc<Instance>,
    ) -> (usize, Arc<Instance>) {
        if index > 0 && !self.request.pause.is_zero() {
            tokio::select! {
                () = sleep(self.request.pause) => {}
                () = sleep_until(self.limits.stop) => {}
                () = self.limits.cancelled() => {}
            }
        }
        (index, instance)
    }

    async fn signal_one(self: Arc<Self>, index: usize, instance: Arc<Instance>) {
        let before = Arc::new(Mutex::new(None));
        let fate = self.send(&instance, &before).await;
        let before = *before.lock().unwrap_or_else(PoisonError::into_inner);
        let is_failure = fate.error.is_some();
        self.running.update_signal(index, |result| {
            (result.outcome, result.error, result.sent) = (fate.outcome, fate.error, fate.sent);
            if let Some(Before {
                clients,
                generation,
            }) = before
            {
                (result.clients, result.generation) = (clients, generation);
            }
        });
        if is_failure {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn send(&self, instance: &Arc<Instance>, before: &Arc<Mutex<Option<Before>>>) -> Fate {
        let failures = self.failures.load(Ordering::Relaxed);
        if self.request.stop_after_failures > 0 && failures >= self.request.stop_after_failures {
            return Fate::not_sent(TargetError::Stopped { failures });
        }
        let allowed = self
            .limits
            .check()
            .and_then(|()| instance.with_table(|table| check(instance, table, &self.request)));
        if let Err(error) = allowed {
            return Fate::not_sent(error);
        }
        let call = Call {
            command: Command::Signal(self.request.signal),
            lane: Lane::Control,
            caller: caller_id(&self.running.action.caller),
            guard: Some(self.guard(instance, before)),
            deadline: self.limits.stop.into_std(),
        };
        match instance.call(call).await {
            Ok(answer) => {
                failpoint::hit("action.after_send");
                let before = before
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .unwrap_or_default();
                self.wait(instance, before, answer.sent).await
            }
            Err(CallError::NotSent(NotSent::Guard(GuardRefused(refused)))) => {
                let refused = refused.downcast::<Refused>();
                Fate::not_sent(refused.map_or_else(|_| not_attached(instance), |refused| refused.0))
            }
            Err(error) => fate_of_error(instance, error),
        }
    }

    /// Lets the signal through only if it is still harmless, or meant; notes what the instance was like then.
    fn guard(&self, instance: &Arc<Instance>, before: &Arc<Mutex<Option<Before>>>) -> Guard {
        let (instance, before) = (Arc::clone(instance), Arc::clone(before));
        let (request, limits) = (self.request.clone(), self.limits.clone());
        Box::new(move || {
            let refuse = |error| GuardRefused(Box::new(Refused(error)));
            if limits.is_cancelled() {
                return Err(refuse(TargetError::Cancelled));
            }
            let noted = instance.update(|table| {
                check(&instance, table, &request)?;
                if request.signal != Signal::Sigusr2 {
                    table.memory.restart_signalled = Some(Instant::now().into_std());
                }
                Ok(Before {
                    clients: table.client_count() as u64,
                    generation: table.generation(),
                })
            });
            let noted = noted.map_err(refuse)?;
            *before.lock().unwrap_or_else(PoisonError::into_inner) = Some(noted);
            Ok(())
        })
    }

    /// Waits until a signalled instance counts as done.
    async fn wait(&self, instance: &Instance, before: Before, sent: SystemTime) -> Fate {
        let fate = |outcome, error| Fate {
            outcome,
            error,
            sent: Some(sent),
        };
        // It restarts nothing: there is nothing to wait for.
        if self.request.wait_for == SignalWait::Accepted || self.request.signal == Signal::Sigusr2 {
            return fate(Outcome::Accepted, None);
        }
        let is_done = |table: &Table| {
            let status = table.status();
            let is_reattached = status.is_attached() && table.generation() != before.generation;
            let is_done = match self.request.wait_for {
                SignalWait::Accepted | SignalWait::Reattached => is_reattached,
                SignalWait::Connected => {
                    is_reattached && status.state == Some(DaemonState::Connected)
                }
            };
            is_done.then_some(())
        };
        let done = timeout_at(self.limits.stop, instance.wait_for(is_done));
        let is_done = tokio::select! {
            done = done => done.is_ok(),
            () = self.limits.cancelled() => false,
        };
        if is_done {
            return fate(Outcome::Confirmed, None);
        }
        let instance = instance.name().clone();
        fate(Outcome::Accepted, Some(TargetError::NotSeen { instance }))
    }
}
