//! Single calls that change something: at most once for each request id.
//!
//! An id is free again when nothing came of its call. What was sent is kept with its answer; what may have been, as
//! unknown. Of what is itself written to the state, that it is done is written together with it, so that nothing is
//! ever unknown.

mod rows;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime},
};

use aws_lc_rs::digest;
use openvpn_fleet::{ACTIONS_MAX, CallerName, Digest, RequestId, failpoint};
use ovfleet_proto::v1::Durability;
use prost::Message;
use tokio::{sync::watch, time::sleep};
use tonic::{Code, Status};

use self::rows::{Begun, Stage, begin, finish, forget};
pub(super) use self::rows::{note_done, note_undone};
use super::{State, WriteError};
use crate::{convert::kept::Kept, status};

/// How long after a failure the disk is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// What is kept of calls that the disk is behind with; more than that is left to what a restart makes of it.
const LEFT_MAX: usize = ACTIONS_MAX;

/// Calls with a request id. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Calls(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: State,
    /// Makes digests that tell nothing of what was in a request to who has the file alone.
    key: Vec<u8>,
    /// Number of the latest attempt.
    latest: AtomicI64,
    /// Calls under way; each is one that a caller waits for. Locked to look up, add or remove.
    running: Mutex<HashMap<Name, Running>>,
    /// Calls that are over, and of which the disk may say something else. Locked to look up, add or remove.
    left: Mutex<HashMap<Name, Left>>,
}

/// Caller, method, request id: what names a call.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Name([String; 3]);

/// One attempt at a call, by the number of its row. What is written late for one never concerns the next of its name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct CallKey(i64);

#[derive(Debug)]
struct Running {
    digest: Digest,
    answer: watch::Receiver<Option<Ended>>,
}

/// The answer of a call, and whether it is where it outlives the process as well as it can.
type Ended = (Answer, bool);

/// What the disk does not know yet of a call that is over.
#[derive(Clone, Debug)]
enum Left {
    /// Nothing came of it, in the attempts from the first to the second.
    Nothing(CallKey, CallKey),
    /// How it ended.
    Answer(Digest, Answer),
}

/// How a call ended, as it is kept.
#[derive(Clone, PartialEq, prost::Message)]
struct Answer {
    /// Of gRPC.
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(bytes = "vec", tag = "3")]
    details: Vec<u8>,
    /// The response, if the code is OK.
    #[prost(bytes = "vec", tag = "4")]
    response: Vec<u8>,
}

impl Calls {
    /// Takes what an earlier run left unfinished as what it is: unknown, done, or not done.
    pub(crate) async fn open(state: &State, key: &[u8]) -> Result<Self, WriteError> {
        let unknown = Answer::of::<()>(&Err(status::outcome_unknown(
            "the gateway ended while it was sent",
        )));
        let unknown = unknown.encode_to_vec();
        let opening = state.write_at_start(move |transaction| rows::settle(transaction, &unknown));
        let latest = opening.await?;
        Ok(Self(Arc::new(Inner {
            state: state.clone(),
            key: key.to_owned(),
            latest: latest.into(),
            running: Mutex::default(),
            left: Mutex::default(),
        })))
    }

    /// Of a request, the same in every run.
    pub(crate) fn digest(&self, method: &str, request: &impl Message) -> Digest {
        let mut context = digest::Context::new(&digest::SHA256);
        for part in [&self.0.key[..], method.as_bytes(), &request.encode_to_vec()] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut digest = Digest::default();
        digest.0.copy_from_slice(context.finish().as_ref());
        digest
    }

    /// Does `work`, which sends something to a daemon, or gives the answer of the same request under the same id.
    /// Without an id it is always done, if changes are taken at all.
    pub(crate) async fn once<M: Kept>(
        &self,
        caller: &CallerName,
        method: &'static str,
        request_id: &str,
        request: &impl Message,
        work: impl Future<Output = Result<M, Status>>,
    ) -> Result<M, Status> {
        if request_id.is_empty() {
            let checked = self.0.state.check();
            checked.map_err(|error| status::state_unavailable(&error))?;
            return work.await;
        }
        let name = Name::new(caller, method, request_id)?;
        let digest = self.digest(method, request);
        let mut answer = self.carry_out(name, digest, Stage::Sending, |_| work).await;
        if let (Ok(answer), false) = (&mut answer.0, answer.1) {
            answer.set_durability(Durability::Memory);
        }
        answer.0
    }

    /// Does `work`, which changes the state, or gives the answer of the same request under the same id. What `work`
    /// changes, it changes in one write with [`note_done`] of the key that it is given.
    ///
    /// What was done and not answered, because the process ended in between, has an answer without anything in it.
    pub(crate) async fn once_in_state<M: Kept, W>(
        &self,
        caller: &CallerName,
        method: &'static str,
        request_id: &str,
        request: &impl Message,
        work: impl FnOnce(CallKey) -> W,
    ) -> Result<M, Status>
    where
        W: Future<Output = Result<M, Status>>,
    {
        let name = Name::new(caller, method, request_id)?;
        let digest = self.digest(method, request);
        self.carry_out(name, digest, Stage::Intended, work).await.0
    }

    /// The answer, and whether it is where it outlives the process as well as it can.
    async fn carry_out<M: Kept, W>(
        &self,
        name: Name,
        digest: Digest,
        stage: Stage,
        work: impl FnOnce(CallKey) -> W,
    ) -> (Result<M, Status>, bool)
    where
        W: Future<Output = Result<M, Status>>,
    {
        let (sender, receiver) = watch::channel(None);
        let reused = || Err(status::request_id_reused(name.request_id()));
        let joined = {
            let mut running = self.lock();
            match running.get(&name) {
                Some(known) if known.digest != digest => return (reused(), true),
                Some(known) => Some(known.answer.clone()),
                None => {
                    let answer = receiver;
                    running.insert(name.clone(), Running { digest, answer });
                    None
                }
            }
        };
        if let Some(mut ended) = joined {
            return match ended.wait_for(Option::is_some).await {
                Ok(ended) => {
                    let (answer, is_kept) = ended.clone().unwrap_or_default();
                    (answer.into_result(), is_kept)
                }
                // Nothing came of it: the id is free.
                Err(_) => (Err(status::call_given_up()), true),
            };
        }
        let key = CallKey(self.0.latest.fetch_add(1, Ordering::Relaxed) + 1);
        // However it ends, also when its caller goes away, the id does not stay taken.
        let mut call = Call {
            calls: self,
            name: name.clone(),
            key: key.clone(),
            digest,
            stage,
            step: Step::Unwritten,
            sender,
        };
        let left = self.left_of(&name);
        if let Some(Left::Answer(known, answer)) = left {
            if known != digest {
                return (reused(), true);
            }
            let _ = call.sender.send(Some((answer.clone(), false)));
            return (answer.into_result(), false);
        }
        if let Err(error) = self.0.state.check() {
            return (Err(status::state_unavailable(&error)), true);
        }
        let (row, of) = (key.clone(), name.clone());
        let (now, age) = (SystemTime::now(), self.0.state.age());
        call.step = Step::Unsent;
        let begun = self.0.state.write(move |transaction| {
            if let Some(Left::Nothing(first, last)) = &left {
                forget(transaction, &of, first, last)?;
            }
            begin(transaction, &of, &row, digest, stage, (now, age))
        });
        match begun.await {
            Ok(Begun::New) => drop(self.lock_left().remove(&name)),
            Ok(Begun::Known(known, answer)) => {
                call.step = Step::Unwritten;
                if known != digest {
                    return (reused(), true);
                }
                let _ = call.sender.send(Some((answer.clone(), true)));
                return (answer.into_result(), true);
            }
            // The disk may have taken it at the last moment, and is told to forget it.
            Err(error) => return (Err(status::state_unavailable(&error)), true),
        }
        failpoint::hit("action.after_intent");
        call.step = Step::Sent(None);
        let mut result = work(key).await;
        failpoint::hit("action.after_send");
        if let (Ok(answer), Stage::Sending) = (&mut result, stage) {
            answer.set_durability(match self.0.state.is_durable() {
                true => Durability::Disk,
                false => Durability::Memory,
            });
        }
        let is_kept = call.finish(&result).await;
        (result, is_kept)
    }

    /// Lets go of an attempt of which nothing came, once the disk takes it. Until then the next one does so.
    fn forget(&self, name: &Name, key: &CallKey) {
        {
            let mut left = self.lock_left();
            let is_full = left.len() >= LEFT_MAX;
            match left.get_mut(name) {
                Some(Left::Nothing(_, last)) => {
                    *last = key.clone();
                    return;
                }
                Some(Left::Answer(..)) => return,
                None if is_full => return,
                None => {
                    let nothing = Left::Nothing(key.clone(), key.clone());
                    left.insert(name.clone(), nothing);
                }
            }
        }
        let (calls, name) = (self.clone(), name.clone());
        tokio::spawn(async move {
            while let Some(Left::Nothing(first, last)) = calls.left_of(&name) {
                let (of, until) = (name.clone(), last.clone());
                let state = &calls.0.state;
                let forgetting = state
                    .write_patiently(move |transaction| forget(transaction, &of, &first, &until));
                match forgetting.await {
                    Ok(()) => calls.forgot(&name, &last),
                    Err(WriteError::Closed) => return,
                    Err(_) => sleep(RETRY_INTERVAL).await,
                }
            }
        });
    }

    /// The disk has nothing any more of the attempts up to `last`.
    fn forgot(&self, name: &Name, last: &CallKey) {
        let mut left = self.lock_left();
        if matches!(left.get(name), Some(Left::Nothing(_, latest)) if latest == last) {
            left.remove(name);
        }
    }

    /// Keeps an answer until the disk has it.
    fn keep(&self, name: Name, key: CallKey, digest: Digest, answer: Answer) {
        let body = answer.encode_to_vec();
        {
            let mut left = self.lock_left();
            if left.len() < LEFT_MAX {
                left.insert(name.clone(), Left::Answer(digest, answer));
            }
        }
        let calls = self.clone();
        tokio::spawn(async move {
            loop {
                let (row, body) = (key.clone(), body.clone());
                let state = &calls.0.state;
                let writing = state.write_patiently(move |write| finish(write, &row, &body));
                match writing.await {
                    Ok(()) => break,
                    Err(WriteError::Closed) => return,
                    Err(_) => sleep(RETRY_INTERVAL).await,
                }
            }
            calls.lock_left().remove(&name);
        });
    }

    fn left_of(&self, name: &Name) -> Option<Left> {
        self.lock_left().get(name).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Name, Running>> {
        self.0
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_left(&self) -> MutexGuard<'_, HashMap<Name, Left>> {
        self.0.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Name {
    fn new(caller: &CallerName, method: &str, request_id: &str) -> Result<Self, Status> {
        let parsed = RequestId::new(request_id);
        parsed.map_err(|error| {
            status::invalid("request_id", "REQUEST_ID_INVALID", error.to_string())
        })?;
        let parts = [caller.as_str(), method, request_id];
        Ok(Self(parts.map(str::to_owned)))
    }

    fn method(&self) -> &str {
        &self.0[1]
    }

    fn request_id(&self) -> &str {
        &self.0[2]
    }
}

/// One call under way.
struct Call<'a> {
    calls: &'a Calls,
    name: Name,
    key: CallKey,
    digest: Digest,
    stage: Stage,
    step: Step,
    sender: watch::Sender<Option<Ended>>,
}

/// What may have come of a call whose caller goes away now.
enum Step {
    /// Nothing, or what is kept already.
    Unwritten,
    /// Its row may be on disk. Nothing was sent.
    Unsent,
    /// Its row is on disk, and something may have been sent; the answer, if there is one.
    Sent(Option<Answer>),
}

impl Call<'_> {
    /// Keeps how it ended; whether that is done.
    async fn finish<M: Message>(mut self, result: &Result<M, Status>) -> bool {
        failpoint::hit("action.before_outcome");
        let answer = Answer::of(result);
        let state = &self.calls.0.state;
        let is_kept = match result {
            Err(status) if !status::was_sent(status) => {
                // Cut off in the middle, it may be done: then the disk says so, and the next start goes by that.
                let is_cut_off = self.stage == Stage::Intended && status::is_leaving(status);
                if !is_cut_off {
                    self.step = Step::Unsent;
                    let (of, row) = (self.name.clone(), self.key.clone());
                    let forgetting =
                        state.write(move |transaction| forget(transaction, &of, &row, &row));
                    if forgetting.await.is_err() {
                        self.calls.forget(&self.name, &self.key);
                    }
                }
                true
            }
            _ => {
                self.step = Step::Sent(Some(answer.clone()));
                let (row, body) = (self.key.clone(), answer.encode_to_vec());
                let writing = state.write(move |transaction| finish(transaction, &row, &body));
                let written = writing.await;
                if let Err(error) = &written {
                    tracing::warn!(%error, method = self.name.method(), "the answer of a call is not on disk yet: tried again until it is");
                    self.keep(answer.clone());
                }
                written.is_ok()
            }
        };
        self.step = Step::Unwritten;
        let _ = self.sender.send(Some((answer, is_kept)));
        is_kept
    }

    fn keep(&self, answer: Answer) {
        let (name, key) = (self.name.clone(), self.key.clone());
        self.calls.keep(name, key, self.digest, answer);
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.step, Step::Unwritten) {
            Step::Unwritten => {}
            Step::Unsent => self.calls.forget(&self.name, &self.key),
            Step::Sent(answer) => {
                let is_known = answer.is_some();
                let answer = answer.unwrap_or_else(|| {
                    Answer::of::<()>(&Err(status::outcome_unknown(
                        "its caller went away while it was sent",
                    )))
                });
                // Of what is written to the state, the state knows whether it was.
                if is_known || self.stage == Stage::Sending {
                    self.keep(answer.clone());
                }
                let _ = self.sender.send(Some((answer, false)));
            }
        }
        self.calls.lock().remove(&self.name);
    }
}

impl Answer {
    fn of<M: Message>(result: &Result<M, Status>) -> Self {
        match result {
            Ok(response) => Self {
                response: response.encode_to_vec(),
                ..Self::default()
            },
            Err(status) => Self {
                code: status.code().into(),
                message: status.message().to_owned(),
                details: status.details().to_vec(),
                response: Vec::new(),
            },
        }
    }

    fn into_result<M: Message + Default>(self) -> Result<M, Status> {
        let Self {
            code,
            message,
            details,
            response,
        } = self;
        match Code::from_i32(code) {
            Code::Ok => M::decode(&response[..]).map_err(|_| status::reply_unreadable()),
            code => Err(status::again(code, message, details)),
        }
    }
}

#[cfg(test)]
mod tests;
