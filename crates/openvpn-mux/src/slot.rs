//! One daemon's slot, shared by its tools.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use openvpn_fleet::{Fleet, Instance};
use openvpn_management::{Command, Text};
use openvpn_session::{Answer, Call, CallError, CallerId, Condition, Lane, Listener, NotSent};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep};

use crate::counts::{Counts, Verdict};

/// Most tools of one instance at once, over all its sockets; one more is closed at once.
pub const TOOLS_MAX: usize = 256;
/// Most commands of tools in the session's own queues at once; further ones wait here, in order of arrival, so that
/// the gateway's callers always find room there.
const CALLS_IN_FLIGHT_MAX: usize = 8;
/// How long the daemon may take for an answer. A tool that gets none is cut, because what came next would pass for it.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);
/// How long a command rests that found no room, or a daemon that does not answer, before it is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// How often a shared answer that is older than the question is asked for anew. Twice is never needed.
const SHARED_TRIES: usize = 3;
/// The first tool's number, far from those of the gateway's callers.
const FIRST_TOOL: u64 = 1 << 63;

type Outcome = Result<Arc<Answer>, Arc<CallError>>;
type SharedAnswer = Shared<BoxFuture<'static, Outcome>>;

/// One daemon's slot: what its tools share.
pub struct Slot {
    fleet: Fleet,
    instance: Arc<Instance>,
    counts: Arc<Counts>,
    places: Arc<Semaphore>,
    calls: Semaphore,
    /// Questions under way, by their line. Locked to look up or add, never across an await.
    questions: Mutex<HashMap<Vec<u8>, WeakShared<BoxFuture<'static, Outcome>>>>,
    /// The one tool that decides who is let in. Locked to look or set.
    decider: Mutex<Option<u64>>,
    next_tool: AtomicU64,
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot")
            .field("instance", self.instance.name())
            .field("tools", &self.tools())
            .finish_non_exhaustive()
    }
}

/// One tool's place; dropped, it is free.
#[derive(Debug)]
pub(crate) struct Place {
    slot: Arc<Slot>,
    tool: u64,
    _permit: OwnedSemaphorePermit,
}

impl Slot {
    /// The slot of an instance, without tools; what they do is added to `counts`.
    #[must_use]
    pub fn new(fleet: Fleet, instance: Arc<Instance>, counts: Arc<Counts>) -> Arc<Self> {
        Arc::new(Self {
            fleet,
            instance,
            counts,
            places: Arc::new(Semaphore::new(TOOLS_MAX)),
            calls: Semaphore::new(CALLS_IN_FLIGHT_MAX),
            questions: Mutex::default(),
            decider: Mutex::default(),
            next_tool: AtomicU64::new(FIRST_TOOL),
        })
    }

    /// Whose slot it is.
    #[must_use]
    pub fn instance(&self) -> &Arc<Instance> {
        &self.instance
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Tools connected now.
    #[must_use]
    pub fn tools(&self) -> usize {
        TOOLS_MAX - self.places.available_permits()
    }

    /// A place for one more tool; `None` if all are taken.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<Place> {
        let permit = Arc::clone(&self.places).try_acquire_owned().ok()?;
        Some(Place {
            slot: Arc::clone(self),
            tool: self.next_tool.fetch_add(1, Ordering::Relaxed),
            _permit: permit,
        })
    }

    fn decider(&self) -> MutexGuard<'_, Option<u64>> {
        self.decider.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends one command and gives the daemon's answer, whenever it comes within [`ANSWER_DEADLINE`].
    ///
    /// Also what changes something waits among those that ask: two hundred tools would keep the control lane full, and
    /// nothing that the gateway's callers want would ever come first.
    async fn call(&self, tool: u64, command: &Command) -> Outcome {
        let deadline = Instant::now() + ANSWER_DEADLINE;
        let closed = |_| Arc::new(CallError::from(NotSent::Closed));
        let _turn = self.calls.acquire().await.map_err(closed)?;
        loop {
            let call = Call {
                command: command.clone(),
                lane: Lane::Read,
                caller: CallerId(tool),
                guard: None,
                deadline: deadline.into_std(),
            };
            match self.fleet.relay(&self.instance, call).await {
                Ok(answer) => return Ok(Arc::new(answer)),
                // A daemon that hangs lets its tools wait; so do we, as long as it is the same session.
                Err(CallError::NotSent(
                    NotSent::LaneFull { .. }
                    | NotSent::Detached {
                        condition: Condition::Unresponsive,
                    },
                )) if Instant::now() < deadline => sleep(RETRY_PAUSE).await,
                Err(error) => return Err(Arc::new(error)),
            }
        }
    }

    /// The answer to a question that others may be asking in this moment, and whether one of them asked it.
    fn shared(self: &Arc<Self>, tool: u64, command: Command) -> (SharedAnswer, Verdict) {
        let mut line = BytesMut::new();
        // One that cannot be encoded is told so by the call.
        let _ = command.encode(&mut line);
        let mut questions = self
            .questions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = questions.get(&line[..]).and_then(WeakShared::upgrade) {
            return (answer, Verdict::Coalesced);
        }
        questions.retain(|_, answer| answer.upgrade().is_some());
        let slot = Arc::clone(self);
        let asking = async move { slot.call(tool, &command).await };
        let answer = asking.boxed().shared();
        if let Some(weak) = answer.downgrade() {
            questions.insert(line.to_vec(), weak);
        }
        (answer, Verdict::Ran)
    }
}

impl Place {
    pub(crate) fn instance(&self) -> &Arc<Instance> {
        &self.slot.instance
    }

    /// Asks the daemon; tools that ask the same at the same time share the answer. It is never older than the question.
    pub(crate) async fn ask(&self, command: Command, asked_at: u64) -> Outcome {
        let mut tries = 0;
        loop {
            tries += 1;
            let (answer, verdict) = self.slot.shared(self.tool, command.clone());
            let outcome = answer.await;
            match &outcome {
                // It was complete when we joined, and the daemon has said something since.
                Ok(answer) if answer.position < asked_at && tries < SHARED_TRIES => {}
                _ => {
                    self.count(&outcome, verdict);
                    return outcome;
                }
            }
        }
    }

    /// Changes the daemon, and leaves a trace of it.
    pub(crate) async fn change(&self, command: Command) -> Outcome {
        let outcome = self.slot.call(self.tool, &command).await;
        // The name alone: arguments may be secrets.
        let name = match &command {
            Command::Raw(raw) => raw.parameters().next().map(Text::copy_from),
            typed => Some(Text::from(typed.name())),
        };
        let command = name.unwrap_or_default();
        match &outcome {
            Ok(_) => tracing::info!(%command, "a tool's command was answered"),
            Err(error) => tracing::info!(%command, %error, "a tool's command was not carried out"),
        }
        self.count(&outcome, Verdict::Ran);
        outcome
    }

    fn count(&self, outcome: &Outcome, answered: Verdict) {
        let verdict = match outcome.as_ref().map_err(|error| &**error) {
            Ok(_) | Err(CallError::Rejected { .. }) => answered,
            Err(CallError::NotSent(NotSent::Encode(_))) => Verdict::Refused,
            Err(_) => return,
        };
        self.counts().add_command(verdict);
    }

    pub(crate) fn counts(&self) -> &Counts {
        self.slot.counts()
    }

    /// Claims the right to decide who is let in, until the tool leaves; `false` if another has it.
    pub(crate) fn claim_decisions(&self) -> bool {
        *self.slot.decider().get_or_insert(self.tool) == self.tool
    }

    /// Hears the daemon from now on, once it is there; `None` if it is not and the tool does not want to wait.
    pub(crate) async fn arrive(
        &self,
        waits: bool,
    ) -> Option<(openvpn_session::Reception, Listener)> {
        let instance = self.instance();
        loop {
            let is_attached = |table: &openvpn_fleet::Table| table.status().is_attached();
            if waits {
                instance
                    .wait_for(|table| is_attached(table).then_some(()))
                    .await;
            } else if !instance.with_table(is_attached) {
                return None;
            }
            if let Some(arrived) = instance.listen() {
                return Some(arrived);
            }
            // The session ended in this very moment, and the table is about to say so.
            sleep(RETRY_PAUSE).await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut decider = self.slot.decider();
        if *decider == Some(self.tool) {
            *decider = None;
        }
    }
}
