//! Request ids: a repetition of a request joins it and sends nothing twice.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use openvpn_session::Moment;
use tokio::sync::watch;

use crate::action::{
    Action, ActionError, ActionResult, Durability, KillResult, Method, SignalResult,
};
use crate::failpoint;
use crate::ledger::{Digest, Intent, Ledger, LedgerError, TargetResult};
use crate::name::{ActionRef, CallerName, RequestId};

/// Actions remembered; at the bound the oldest finished ones go first, and if none is finished a new one is refused.
pub const ACTIONS_MAX: usize = 10_000;
/// Results of single targets remembered over all actions; at the bound the oldest finished actions go first.
pub const ACTION_RESULTS_MAX: usize = 100_000;
/// How long an action is remembered.
pub const ACTION_AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Every action of the last 24 hours, by caller, method and request id.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    /// Locked to look up, add or forget, never across an await.
    state: Mutex<State>,
    ledger: Option<Arc<dyn Ledger>>,
}

type Key = (CallerName, Method, RequestId);

#[derive(Debug, Default)]
struct State {
    /// By number, which is the order in which they began.
    actions: BTreeMap<u64, Arc<Running>>,
    numbers: HashMap<Key, u64>,
    last_number: u64,
}

/// One action, under way or finished.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) action: ActionRef,
    pub(crate) method: Method,
    /// Of the request, to know another one under the same id.
    digest: Digest,
    number: u64,
    started: SystemTime,
    /// The same by the clock that nobody sets: by the other one, an id could be forgotten on the day it was used.
    begun: Instant,
    /// Results it has, once it is finished.
    results: AtomicUsize,
    /// What is known so far. Locked to change one result or to copy.
    state: Mutex<RunningState>,
    /// Wakes those who joined when it is finished.
    finished: watch::Sender<bool>,
    /// What must outlive the process goes there.
    ledger: Option<Arc<dyn Ledger>>,
}

#[derive(Debug)]
struct RunningState {
    result: ActionResult,
    /// Set instead of a result when nothing was sent.
    error: Option<ActionError>,
    finished: Option<SystemTime>,
}

/// What became of an attempt to begin an action.
pub(crate) enum Begun {
    /// It is to be carried out.
    New(Arc<Running>),
    /// It was begun before.
    Joined(Arc<Running>),
}

impl Requests {
    pub(crate) fn new(ledger: Option<Arc<dyn Ledger>>) -> Self {
        let state = State {
            last_number: ledger.as_ref().map_or(0, |ledger| ledger.last_action()),
            ..State::default()
        };
        Self {
            state: Mutex::new(state),
            ledger,
        }
    }

    /// Where actions are kept.
    pub(crate) fn durability(&self) -> Durability {
        match self.ledger {
            Some(_) => Durability::Ledger,
            None => Durability::Memory,
        }
    }

    /// Begins an action, or finds the one of the same id.
    pub(crate) fn begin(
        &self,
        action: ActionRef,
        method: Method,
        digest: Digest,
        empty: ActionResult,
        now: Moment,
    ) -> Result<Begun, ActionError> {
        let mut state = self.lock();
        state.forget_old(now.monotonic);
        let key = (action.caller.clone(), method, action.request_id.clone());
        let known = state
            .numbers
            .get(&key)
            .and_then(|number| state.actions.get(number));
        if let Some(known) = known {
            return if known.digest == digest {
                Ok(Begun::Joined(Arc::clone(known)))
            } else {
                Err(ActionError::RequestIdReused {
                    request_id: action.request_id,
                })
            };
        }
        if state.actions.len() >= ACTIONS_MAX {
            return Err(ActionError::TooManyActions {
                running: state.actions.len(),
            });
        }
        state.last_number += 1;
        let number = state.last_number;
        let running = Arc::new(Running {
            action,
            method,
            digest,
            number,
            started: now.wall,
            begun: now.monotonic,
            results: AtomicUsize::new(0),
            state: Mutex::new(RunningState {
                result: empty,
                error: None,
                finished: None,
            }),
            finished: watch::Sender::new(false),
            ledger: self.ledger.clone(),
        });
        state.numbers.insert(key, number);
        state.actions.insert(number, Arc::clone(&running));
        Ok(Begun::New(running))
    }

    /// Forgets an action of which nothing was sent: its id is free again.
    pub(crate) fn forget(&self, running: &Running) {
        self.lock().remove(running.number);
    }

    pub(crate) fn action(&self, caller: &CallerName, request_id: &RequestId) -> Option<Action> {
        let found: Vec<_> = {
            let state = self.lock();
            let newest_first = state.actions.values().rev();
            newest_first
                .filter(|running| running.action.request_id == *request_id)
                .cloned()
                .collect()
        };
        let own = found
            .iter()
            .find(|running| running.action.caller == *caller);
        own.or(found.first()).map(|running| running.to_action())
    }

    pub(crate) fn actions(&self, before: Option<u64>, limit: usize) -> Vec<Action> {
        let found: Vec<_> = {
            let state = self.lock();
            let end = before.unwrap_or(u64::MAX);
            state
                .actions
                .range(..end)
                .rev()
                .take(limit)
                .map(|(_, running)| Arc::clone(running))
                .collect()
        };
        found.iter().map(|running| running.to_action()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn forget_old(&mut self, now: Instant) {
        let mut results: usize = self.actions.values().map(|running| running.results()).sum();
        let mut count = self.actions.len();
        let mut forgotten = Vec::new();
        for (number, running) in &self.actions {
            let age = now.saturating_duration_since(running.begun);
            let is_over =
                count >= ACTIONS_MAX || results > ACTION_RESULTS_MAX || age > ACTION_AGE_MAX;
            if !is_over {
                break;
            }
            if running.is_finished() {
                results -= running.results();
                count -= 1;
                forgotten.push(*number);
            }
        }
        for number in forgotten {
            self.remove(number);
        }
    }

    fn remove(&mut self, number: u64) {
        if let Some(running) = self.actions.remove(&number) {
            let action = &running.action;
            self.numbers.remove(&(
                action.caller.clone(),
                running.method,
                action.request_id.clone(),
            ));
        }
    }
}

impl Running {
    fn lock(&self) -> MutexGuard<'_, RunningState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_finished(&self) -> bool {
        *self.finished.borrow()
    }

    fn results(&self) -> usize {
        self.results.load(Ordering::Relaxed)
    }

    /// Keeps that the action is about to begin.
    pub(crate) async fn intend(&self) -> Result<(), ActionError> {
        if let Some(ledger) = &self.ledger {
            let intent = Intent {
                number: self.number,
                caller: self.action.caller.clone(),
                method: self.method,
                request_id: self.action.request_id.clone(),
                digest: self.digest,
                started: self.started,
            };
            let intended = ledger.intend(intent).await;
            intended.map_err(|error| self.refused(error))?;
        }
        failpoint::hit("action.after_intent");
        Ok(())
    }

    /// Keeps what is known so far, before anything is sent to the first `targets` of the results.
    pub(crate) async fn plan(&self, targets: usize) -> Result<(), ActionError> {
        match &self.ledger {
            Some(ledger) if targets > 0 => {
                let planned = ledger.plan(self.to_action(), targets).await;
                planned.map_err(|error| self.refused(error))
            }
            _ => Ok(()),
        }
    }

    fn refused(&self, error: LedgerError) -> ActionError {
        match error {
            LedgerError::Unavailable { reason } => ActionError::LedgerUnavailable { reason },
            LedgerError::Known => ActionError::Known {
                request_id: self.action.request_id.clone(),
            },
        }
    }

    /// Keeps what became of the action: its result, and where that is.
    pub(crate) async fn conclude(&self, mut result: ActionResult) -> ActionResult {
        failpoint::hit("action.before_outcome");
        if let Some(ledger) = &self.ledger {
            let action = Action {
                finished: Some(SystemTime::now()),
                result: result.clone(),
                ..self.to_action()
            };
            if !ledger.finish(action).await {
                result.set_durability(Durability::Memory);
            }
        }
        result
    }

    /// Nothing of it was sent.
    pub(crate) fn take_back(&self) {
        if let Some(ledger) = &self.ledger {
            ledger.forget(self.number);
        }
    }

    /// Nobody knows what became of it.
    pub(crate) fn lose(&self) {
        if let Some(ledger) = &self.ledger {
            ledger.lose(self.number);
        }
    }

    /// Changes what is known of one target of a kill.
    pub(crate) fn update_kill(&self, target: usize, change: impl FnOnce(&mut KillResult)) {
        let mut state = self.lock();
        if let ActionResult::Kill(report) = &mut state.result
            && let Some(result) = Arc::make_mut(report).results.get_mut(target)
        {
            change(result);
            if let Some(ledger) = &self.ledger {
                ledger.note(self.number, target, TargetResult::Kill(result));
            }
        }
    }

    /// Changes what is known of one target of a signal.
    pub(crate) fn update_signal(&self, target: usize, change: impl FnOnce(&mut SignalResult)) {
        let mut state = self.lock();
        if let ActionResult::Signal(report) = &mut state.result
            && let Some(result) = Arc::make_mut(report).results.get_mut(target)
        {
            change(result);
            if let Some(ledger) = &self.ledger {
                ledger.note(self.number, target, TargetResult::Signal(result));
            }
        }
    }

    /// Changes what is known so far.
    pub(crate) fn update(&self, change: impl FnOnce(&mut ActionResult)) {
        change(&mut self.lock().result);
    }

    /// What is known so far.
    pub(crate) fn result(&self) -> ActionResult {
        self.lock().result.clone()
    }

    pub(crate) fn finish(&self, result: Result<ActionResult, ActionError>) {
        {
            let mut state = self.lock();
            state.finished = Some(SystemTime::now());
            match result {
                Ok(result) => {
                    let results = match &result {
                        ActionResult::Kill(report) => report.results.len(),
                        ActionResult::Signal(report) => report.results.len(),
                    };
                    self.results.store(results, Ordering::Relaxed);
                    state.result = result;
                }
                Err(error) => state.error = Some(error),
            }
        }
        self.finished.send_replace(true);
    }

    /// Waits for the end and gives the result.
    pub(crate) async fn finished(&self) -> Result<ActionResult, ActionError> {
        let mut finished = self.finished.subscribe();
        // The sender lives in `self`: it cannot be gone.
        let _ = finished.wait_for(|finished| *finished).await;
        let state = self.lock();
        match &state.error {
            Some(error) => Err(error.clone()),
            None => Ok(state.result.clone()),
        }
    }

    fn to_action(&self) -> Action {
        let state = self.lock();
        Action {
            request_id: self.action.request_id.clone(),
            caller: self.action.caller.clone(),
            method: self.method,
            number: self.number,
            started: self.started,
            finished: state.finished,
            result: state.result.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
