//! Single calls that change something: at most once for each request id.
//!
//! An id is free again when nothing came of its call. What was sent is kept with its answer; what may have been, as
//! unknown.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use aws_lc_rs::digest;
use openvpn_fleet::{ACTION_AGE_MAX, ACTIONS_MAX, CallerName, Digest, RequestId, failpoint};
use prost::Message;
use rusqlite::{OptionalExtension as _, Transaction, named_params};
use tokio::sync::watch;
use tonic::{Code, Status};

use super::{State, age, micros};
use crate::status;

/// Calls with a request id. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Calls(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: State,
    /// Makes digests that tell nothing of what was in a request to who has the file alone.
    key: Vec<u8>,
    /// Calls under way; each is one that a caller waits for. Locked to look up, add or remove.
    running: Mutex<HashMap<Key, Running>>,
}

/// Caller, method, request id.
type Key = [String; 3];

#[derive(Debug)]
struct Running {
    digest: Digest,
    answer: watch::Receiver<Option<Answer>>,
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
    /// Takes what an earlier run left unfinished as unknown.
    pub(crate) async fn open(state: &State, key: &[u8]) -> Result<Self, super::WriteError> {
        let unknown = Answer::of::<()>(&Err(status::outcome_unknown(
            "the gateway ended while it was sent",
        )));
        let unknown = unknown.encode_to_vec();
        let opening = state.write_at_start(move |transaction| {
            transaction.execute(
                "UPDATE calls SET stage = 2, body = ?1 WHERE stage < 2",
                [&unknown],
            )
        });
        opening.await?;
        Ok(Self(Arc::new(Inner {
            state: state.clone(),
            key: key.to_owned(),
            running: Mutex::default(),
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

    /// Does `work`, or gives the answer of the same request under the same id. Without an id it is always done, if
    /// changes are taken at all.
    pub(crate) async fn once<M: Message + Default>(
        &self,
        caller: &CallerName,
        method: &'static str,
        request_id: &str,
        request: &impl Message,
        work: impl Future<Output = Result<M, Status>>,
    ) -> Result<M, Status> {
        let unavailable = |error| status::state_unavailable(&error);
        if request_id.is_empty() {
            self.0.state.check().map_err(unavailable)?;
            return work.await;
        }
        let parsed = RequestId::new(request_id);
        parsed.map_err(|error| {
            status::invalid("request_id", "REQUEST_ID_INVALID", error.to_string())
        })?;
        let key = [caller.to_string(), method.to_owned(), request_id.to_owned()];
        let digest = self.digest(method, request);
        let (sender, receiver) = watch::channel(None);
        let joined = {
            let mut running = self.lock();
            match running.get(&key) {
                Some(known) if known.digest != digest => {
                    return Err(status::request_id_reused(request_id));
                }
                Some(known) => Some(known.answer.clone()),
                None => {
                    let answer = receiver;
                    running.insert(key.clone(), Running { digest, answer });
                    None
                }
            }
        };
        if let Some(mut answer) = joined {
            return match answer.wait_for(Option::is_some).await {
                Ok(answer) => answer.clone().unwrap_or_default().into_result(),
                // Nothing came of it: the id is free.
                Err(_) => Err(status::call_given_up()),
            };
        }
        // However it ends, also when its caller goes away, the id does not stay taken.
        let mut call = Call {
            calls: self,
            key,
            is_sent: false,
            sender,
        };
        let (row, now, age) = (call.key.clone(), SystemTime::now(), self.0.state.age());
        let begun = self
            .0
            .state
            .write(move |transaction| begin(transaction, &row, digest, now, age));
        match begun.await.map_err(unavailable)? {
            Begun::New => {}
            Begun::Known(known, _) if known != digest => {
                return Err(status::request_id_reused(request_id));
            }
            Begun::Known(_, answer) => {
                let _ = call.sender.send(Some(answer.clone()));
                return answer.into_result();
            }
        }
        failpoint::hit("action.after_intent");
        call.is_sent = true;
        let result = work.await;
        failpoint::hit("action.after_send");
        call.finish(
            Answer::of(&result),
            result.as_ref().err().is_none_or(status::was_sent),
        )
        .await;
        result
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Running>> {
        self.0
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// One call under way.
struct Call<'a> {
    calls: &'a Calls,
    key: Key,
    /// Its row is on disk, and something may have been sent.
    is_sent: bool,
    sender: watch::Sender<Option<Answer>>,
}

impl Call<'_> {
    async fn finish(mut self, answer: Answer, keep: bool) {
        failpoint::hit("action.before_outcome");
        self.is_sent = false;
        let (row, body) = (self.key.clone(), answer.encode_to_vec());
        let writing = self.calls.0.state.write(move |transaction| {
            if keep {
                finish(transaction, &row, &body)
            } else {
                forget(transaction, &row)
            }
        });
        if let Err(error) = writing.await {
            // The answer goes out; what a restart would find is that nobody knows.
            tracing::warn!(%error, method = self.key[1], "the answer of a call is not on disk");
        }
        let _ = self.sender.send(Some(answer));
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if self.is_sent {
            let answer = Answer::of::<()>(&Err(status::outcome_unknown(
                "its caller went away while it was sent",
            )));
            let (state, row) = (self.calls.0.state.clone(), self.key.clone());
            let body = answer.encode_to_vec();
            tokio::spawn(async move {
                // What stays is finished by the next start.
                let _ = state
                    .write_patiently(move |transaction| finish(transaction, &row, &body))
                    .await;
            });
            let _ = self.sender.send(Some(answer));
        }
        self.calls.lock().remove(&self.key);
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

enum Begun {
    New,
    Known(Digest, Answer),
}

fn begin(
    transaction: &Transaction<'_>,
    [caller, method, request_id]: &Key,
    digest: Digest,
    now: SystemTime,
    age: i64,
) -> rusqlite::Result<Begun> {
    transaction
        .prepare_cached(
            "DELETE FROM calls WHERE stage = 2 AND (age < ?1
                 OR id <= (SELECT max(id) FROM calls) - ?2)",
        )?
        .execute((
            age::oldest(age, ACTION_AGE_MAX),
            i64::try_from(ACTIONS_MAX).unwrap_or(i64::MAX),
        ))?;
    let known = transaction
        .prepare_cached(
            "SELECT digest, body FROM calls WHERE caller = ?1 AND method = ?2 AND request_id = ?3",
        )?
        .query_row([caller, method, request_id], |row| {
            // Without an answer it is one that was given up a moment ago: nobody knows what became of it.
            let body: Option<Vec<u8>> = row.get(1)?;
            let answer = body.and_then(|body| Answer::decode(&body[..]).ok());
            let answer = answer.unwrap_or_else(|| {
                Answer::of::<()>(&Err(status::outcome_unknown(
                    "nobody waited for its answer",
                )))
            });
            Ok(Begun::Known(Digest(row.get(0)?), answer))
        })
        .optional()?;
    if let Some(known) = known {
        return Ok(known);
    }
    transaction
        .prepare_cached(
            "INSERT INTO calls (caller, method, request_id, digest, started, age, stage)
             VALUES (:caller, :method, :request_id, :digest, :started, :age, 1)",
        )?
        .execute(named_params! {
            ":caller": caller,
            ":method": method,
            ":request_id": request_id,
            ":digest": &digest.0[..],
            ":started": micros(now),
            ":age": age,
        })?;
    Ok(Begun::New)
}

fn finish(
    transaction: &Transaction<'_>,
    [caller, method, request_id]: &Key,
    body: &[u8],
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "UPDATE calls SET stage = 2, body = ?4 WHERE caller = ?1 AND method = ?2 AND request_id = ?3",
        )?
        .execute((caller, method, request_id, body))?;
    Ok(())
}

fn forget(transaction: &Transaction<'_>, key: &Key) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("DELETE FROM calls WHERE caller = ?1 AND method = ?2 AND request_id = ?3")?
        .execute(key.each_ref())?;
    Ok(())
}

#[cfg(test)]
mod tests;
