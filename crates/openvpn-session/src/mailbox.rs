//! What callers want of a session, until its task takes it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use tokio::sync::{Notify, oneshot};
use tokio::time::timeout_at;

use crate::call::{Answer, Call, CallError, CallerId, Lane, NotSent, OutcomeUnknown};
use crate::condition::Condition;
use crate::observation::Moment;
use crate::polls::Wanted;
use crate::tap::Tap;

/// Most commands that change something waiting for one instance; further ones are refused ([`NotSent::LaneFull`]).
pub const CONTROL_LANE_MAX: usize = 16;
/// Most commands that only ask waiting for one instance; further ones are refused ([`NotSent::LaneFull`]).
pub const READ_LANE_MAX: usize = 64;
/// Most callers waiting for one instance's next snapshot; further ones are refused ([`NotSent::LaneFull`]).
pub const REFRESH_WAITERS_MAX: usize = 1_024;

/// Sends commands to one instance's session. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SessionHandle {
    mailbox: Arc<Mailbox>,
}

impl SessionHandle {
    /// A handle and the session's side of it.
    pub(crate) fn new() -> (Self, Arc<Mailbox>) {
        let mailbox = Arc::new(Mailbox::default());
        let handle = Self {
            mailbox: Arc::clone(&mailbox),
        };
        (handle, mailbox)
    }

    /// Sends one command and gives the daemon's answer.
    ///
    /// Cancel safe in the sense that matters: dropped while the command waits, it is never sent; dropped when it was
    /// sent, it runs to its end and the session goes on with the next.
    ///
    /// # Errors
    /// See [`CallError`]; only [`CallError::NotSent`] says that calling again cannot do a thing twice.
    pub async fn call(&self, call: Call) -> Result<Answer, CallError> {
        let deadline = call.deadline;
        let (reply, mut answer) = oneshot::channel();
        let ticket = self.mailbox.enqueue(call, reply)?;
        // A task that panicked drops the sender of a command that is on the wire.
        let ended = |_| {
            Err(CallError::OutcomeUnknown {
                sent: SystemTime::now(),
                why: OutcomeUnknown::SessionEnded {
                    reason: "its task is gone".to_owned(),
                },
            })
        };
        match timeout_at(deadline.into(), &mut answer).await {
            Ok(answer) => answer.unwrap_or_else(ended),
            Err(_) if ticket.withdraw() => Err(NotSent::Deadline.into()),
            // It is on the wire: the session says so at this very deadline.
            Err(_) => answer.await.unwrap_or_else(ended),
        }
    }

    /// Waits for a snapshot that was asked at `not_before` or later and gives the moment it was asked.
    ///
    /// When it returns, the observer has seen that snapshot. All who wait share one `status`; a snapshot that is fresh
    /// enough already costs none. Cancel safe.
    ///
    /// # Errors
    /// [`NotSent`] as for a command, also when the deadline passes with the `status` on the wire: to ask again is safe.
    /// [`CallError::Rejected`] if the daemon refuses `status`, as it does while it is held or restarts.
    pub async fn refresh(
        &self,
        not_before: Instant,
        deadline: Instant,
    ) -> Result<Moment, CallError> {
        self.refresh_with(Haste::Spaced, not_before, deadline).await
    }

    /// The same for what cannot wait for the spacing of refreshes; still, the daemon is not kept busy with it.
    ///
    /// # Errors
    /// As for [`refresh`](Self::refresh).
    pub async fn refresh_at_once(
        &self,
        not_before: Instant,
        deadline: Instant,
    ) -> Result<Moment, CallError> {
        self.refresh_with(Haste::AtOnce, not_before, deadline).await
    }

    async fn refresh_with(
        &self,
        haste: Haste,
        not_before: Instant,
        deadline: Instant,
    ) -> Result<Moment, CallError> {
        let (reply, answer) = oneshot::channel();
        let Some(_ticket) = self.mailbox.enqueue_refresh(haste, not_before, reply)? else {
            return answer.await.unwrap_or_else(|_| Err(NotSent::Closed.into()));
        };
        match timeout_at(deadline.into(), answer).await {
            Ok(answer) => answer.unwrap_or_else(|_| Err(NotSent::Closed.into())),
            Err(_) => Err(NotSent::Deadline.into()),
        }
    }

    /// What the daemon says, in its own words.
    #[must_use]
    pub fn tap(&self) -> &Arc<Tap> {
        &self.mailbox.tap
    }

    /// Tries again at once, whatever the session waits for between two attempts; nothing if it is connected.
    pub fn retry_now(&self) {
        self.mailbox.lock().retry = true;
        self.mailbox.wake.notify_one();
    }
}

/// A command that waits for its turn.
#[derive(Debug)]
pub(crate) struct Queued {
    ticket: u64,
    pub(crate) call: Call,
    pub(crate) reply: oneshot::Sender<Result<Answer, CallError>>,
}

/// How soon a snapshot is to be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Haste {
    /// When refreshes have their turn.
    Spaced,
    /// Before that.
    AtOnce,
}

#[derive(Debug)]
struct RefreshWaiter {
    ticket: u64,
    haste: Haste,
    not_before: Instant,
    reply: oneshot::Sender<Result<Moment, CallError>>,
}

/// Whether calls are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Attached,
    Detached(Condition),
    /// The task has ended; there will be no other.
    Closed,
}

/// What callers and the session share.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    /// Guards the queues: held for a push or a pop, never across an await.
    state: Mutex<State>,
    /// Wakes the session when there is something new.
    pub(crate) wake: Notify,
    /// What the daemon says, in its own words.
    pub(crate) tap: Arc<Tap>,
}

#[derive(Debug)]
struct State {
    standing: Standing,
    /// Oldest first.
    control: VecDeque<Queued>,
    reads: ReadLane,
    refreshes: Vec<RefreshWaiter>,
    /// When the latest snapshot of this session was asked.
    refreshed: Option<Moment>,
    /// Somebody wants another attempt now.
    retry: bool,
    /// Somebody dialled in though the daemon is there already.
    turned_away: bool,
    next_ticket: u64,
}

impl Default for State {
    fn default() -> Self {
        Self {
            standing: Standing::Detached(Condition::Connecting),
            control: VecDeque::new(),
            reads: ReadLane::default(),
            refreshes: Vec::new(),
            refreshed: None,
            retry: false,
            turned_away: false,
            next_ticket: 0,
        }
    }
}

impl State {
    /// Refuses a call unless the session is attached.
    fn admit(&self) -> Result<(), NotSent> {
        match self.standing {
            Standing::Attached => Ok(()),
            Standing::Detached(condition) => Err(NotSent::Detached { condition }),
            Standing::Closed => Err(NotSent::Closed),
        }
    }

    fn mint_ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No operation leaves the queues half changed, so a panic elsewhere does not spoil them.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enqueue(
        &self,
        call: Call,
        reply: oneshot::Sender<Result<Answer, CallError>>,
    ) -> Result<Ticket<'_>, NotSent> {
        let mut state = self.lock();
        state.admit()?;
        let lane = call.lane;
        let (length, capacity) = match lane {
            Lane::Control => (state.control.len(), CONTROL_LANE_MAX),
            Lane::Read => (state.reads.length, READ_LANE_MAX),
        };
        if length >= capacity {
            return Err(NotSent::LaneFull { lane, capacity });
        }
        let ticket = state.mint_ticket();
        let queued = Queued {
            ticket,
            call,
            reply,
        };
        match lane {
            Lane::Control => state.control.push_back(queued),
            Lane::Read => state.reads.push(queued),
        }
        drop(state);
        self.wake.notify_one();
        Ok(Ticket {
            mailbox: self,
            ticket,
        })
    }

    /// `None` if the latest snapshot is fresh enough: `reply` is answered then.
    fn enqueue_refresh(
        &self,
        haste: Haste,
        not_before: Instant,
        reply: oneshot::Sender<Result<Moment, CallError>>,
    ) -> Result<Option<Ticket<'_>>, NotSent> {
        let mut state = self.lock();
        state.admit()?;
        if let Some(asked) = state
            .refreshed
            .filter(|asked| asked.monotonic >= not_before)
        {
            drop(reply.send(Ok(asked)));
            return Ok(None);
        }
        if state.refreshes.len() >= REFRESH_WAITERS_MAX {
            return Err(NotSent::LaneFull {
                lane: Lane::Read,
                capacity: REFRESH_WAITERS_MAX,
            });
        }
        let ticket = state.mint_ticket();
        state.refreshes.push(RefreshWaiter {
            ticket,
            haste,
            not_before,
            reply,
        });
        drop(state);
        self.wake.notify_one();
        Ok(Some(Ticket {
            mailbox: self,
            ticket,
        }))
    }

    /// The next command of the control lane.
    pub(crate) fn next_control(&self) -> Option<Queued> {
        self.lock().control.pop_front()
    }

    /// The next command of the read lane.
    pub(crate) fn next_read(&self) -> Option<Queued> {
        self.lock().reads.pop()
    }

    /// From when on a snapshot would serve somebody who waits for one.
    pub(crate) fn refresh_wanted(&self) -> Wanted {
        let mut wanted = Wanted::default();
        for waiter in &self.lock().refreshes {
            let from = match waiter.haste {
                Haste::Spaced => &mut wanted.spaced,
                Haste::AtOnce => &mut wanted.at_once,
            };
            *from = Some(from.map_or(waiter.not_before, |from| from.min(waiter.not_before)));
        }
        wanted
    }

    /// The observer has seen a snapshot asked at `asked`.
    pub(crate) fn refreshed(&self, asked: Moment) {
        let mut state = self.lock();
        state.refreshed = Some(asked);
        for waiter in state.served_by(asked) {
            drop(waiter.reply.send(Ok(asked)));
        }
    }

    /// The snapshot asked at `asked` will not come: `error` for everybody it would have served.
    pub(crate) fn refresh_failed(&self, asked: Moment, error: impl Fn() -> CallError) {
        for waiter in self.lock().served_by(asked) {
            drop(waiter.reply.send(Err(error())));
        }
    }

    /// Whether somebody asked for another attempt since the last time.
    pub(crate) fn take_retry(&self) -> bool {
        std::mem::take(&mut self.lock().retry)
    }

    /// A second dialler was turned away.
    pub(crate) fn turned_away(&self) {
        self.lock().turned_away = true;
        self.wake.notify_one();
    }

    /// Whether a second dialler was turned away since the last time.
    pub(crate) fn take_turned_away(&self) -> bool {
        std::mem::take(&mut self.lock().turned_away)
    }

    /// Calls are taken from now on.
    pub(crate) fn open(&self) {
        self.lock().standing = Standing::Attached;
    }

    /// Calls are refused from now on, and so are those that wait.
    pub(crate) fn shut(&self, condition: Condition) {
        self.refuse_all(Standing::Detached(condition), || NotSent::Detached {
            condition,
        });
    }

    /// Like [`shut`](Self::shut), for good.
    pub(crate) fn close(&self) {
        self.tap.ended();
        self.refuse_all(Standing::Closed, || NotSent::Closed);
    }

    /// Forgets the latest snapshot: it is of a session that ended.
    pub(crate) fn forget_snapshot(&self) {
        self.lock().refreshed = None;
    }

    fn refuse_all(&self, standing: Standing, not_sent: impl Fn() -> NotSent) {
        let mut state = self.lock();
        state.standing = standing;
        let control = std::mem::take(&mut state.control);
        let reads = std::mem::take(&mut state.reads);
        let refreshes = std::mem::take(&mut state.refreshes);
        drop(state);
        for queued in control.into_iter().chain(reads.into_calls()) {
            drop(queued.reply.send(Err(not_sent().into())));
        }
        for waiter in refreshes {
            drop(waiter.reply.send(Err(not_sent().into())));
        }
    }

    /// Takes a command or a wait back; whether it was still there.
    fn withdraw(&self, ticket: u64) -> bool {
        let mut state = self.lock();
        if let Some(index) = state
            .control
            .iter()
            .position(|queued| queued.ticket == ticket)
        {
            state.control.remove(index);
            return true;
        }
        if let Some(index) = state
            .refreshes
            .iter()
            .position(|waiter| waiter.ticket == ticket)
        {
            state.refreshes.swap_remove(index);
            return true;
        }
        state.reads.withdraw(ticket)
    }
}

impl State {
    fn served_by(&mut self, asked: Moment) -> Vec<RefreshWaiter> {
        let served = |waiter: &mut RefreshWaiter| waiter.not_before <= asked.monotonic;
        self.refreshes.extract_if(.., served).collect()
    }
}

/// A place in a queue; dropped, the place is free.
struct Ticket<'a> {
    mailbox: &'a Mailbox,
    ticket: u64,
}

impl Ticket<'_> {
    /// Leaves the queue; whether the session had not taken it yet.
    fn withdraw(&self) -> bool {
        self.mailbox.withdraw(self.ticket)
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.withdraw();
    }
}

/// Reads, round robin by caller, so that one who asks a lot does not keep the others waiting.
#[derive(Debug, Default)]
struct ReadLane {
    /// Callers in the order of their turns, each with its own queue, which is never empty.
    turns: VecDeque<(CallerId, VecDeque<Queued>)>,
    /// Commands of all callers.
    length: usize,
}

impl ReadLane {
    fn push(&mut self, queued: Queued) {
        self.length += 1;
        let caller = queued.call.caller;
        match self.turns.iter_mut().find(|(known, _)| *known == caller) {
            Some((_, queue)) => queue.push_back(queued),
            None => self.turns.push_back((caller, VecDeque::from([queued]))),
        }
    }

    fn pop(&mut self) -> Option<Queued> {
        let (caller, mut queue) = self.turns.pop_front()?;
        let queued = queue.pop_front()?;
        self.length -= 1;
        if !queue.is_empty() {
            self.turns.push_back((caller, queue));
        }
        Some(queued)
    }

    fn withdraw(&mut self, ticket: u64) -> bool {
        for turn in 0..self.turns.len() {
            let queue = &mut self.turns[turn].1;
            if let Some(index) = queue.iter().position(|queued| queued.ticket == ticket) {
                queue.remove(index);
                self.length -= 1;
                if queue.is_empty() {
                    self.turns.remove(turn);
                }
                return true;
            }
        }
        false
    }

    fn into_calls(self) -> impl Iterator<Item = Queued> {
        self.turns.into_iter().flat_map(|(_, queue)| queue)
    }
}
