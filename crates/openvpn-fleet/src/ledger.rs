//! What must outlive the process: that something is about to be sent, what became of it, and which run each daemon was
//! in.
//!
//! The fleet says when; where it is kept is somebody else's business. Without a ledger all of it is in memory.

use std::fmt::Debug;
use std::time::SystemTime;

use futures_util::future::BoxFuture;
use openvpn_management::Cid;

use crate::action::{Action, KillResult, Method, SignalResult};
use crate::name::{CallerName, Generation, InstanceName, RequestId};

/// Of a request, to know another one under the same id: a hash of all that it says, the same in every run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Digest(pub [u8; 32]);

/// An action that is about to begin.
#[derive(Debug, Clone)]
pub struct Intent {
    /// Its number: later ones are greater.
    pub number: u64,
    /// Who called.
    pub caller: CallerName,
    /// What it does.
    pub method: Method,
    /// Its request id.
    pub request_id: RequestId,
    /// Of the request.
    pub digest: Digest,
    /// When it began.
    pub started: SystemTime,
}

/// Why an action may not go on; nothing was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LedgerError {
    /// It cannot be kept that something will be sent.
    Unavailable {
        /// Why, for a person.
        reason: String,
    },
    /// The ledger has an action of that id, which is over.
    Known,
}

/// What became of one target.
#[derive(Debug, Clone, Copy)]
pub enum TargetResult<'a> {
    /// Of a kill.
    Kill(&'a KillResult),
    /// Of a signal.
    Signal(&'a SignalResult),
}

/// A daemon's run, as it was last known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownRun {
    /// What its generation is called.
    pub generation: Generation,
    /// Its process id.
    pub pid: Option<u32>,
    /// When it was last CONNECTED, by its own clock, in seconds since 1970.
    pub connected_time: Option<i64>,
    /// The highest CID it had given out.
    pub highest_cid: Option<Cid>,
    /// When it was last heard of.
    pub observed: Option<SystemTime>,
}

/// Keeps what must outlive the process.
pub trait Ledger: Debug + Send + Sync {
    /// The greatest number of an action that it knows; 0 if it knows none.
    fn last_action(&self) -> u64;

    /// Keeps that an action is about to begin. Nothing of it is done before.
    fn intend(&self, intent: Intent) -> BoxFuture<'static, Result<(), LedgerError>>;

    /// Keeps what an action will send; its first `targets` results are those of targets that something is sent to.
    /// Nothing is sent before.
    fn plan(&self, action: Action, targets: usize) -> BoxFuture<'static, Result<(), LedgerError>>;

    /// Notes what became of one target, soon.
    fn note(&self, number: u64, target: usize, result: TargetResult<'_>);

    /// Keeps an action that is over; whether that is done, or will be as soon as it can.
    fn finish(&self, action: Action) -> BoxFuture<'static, bool>;

    /// Forgets an action of which nothing was sent.
    fn forget(&self, number: u64);

    /// An action was lost on the way: what was sent of it is not known beyond what was noted.
    fn lose(&self, number: u64);

    /// The run that the daemon at this address was in when the gateway was last there. Given once: a later instance of
    /// that name is another.
    fn take_run(&self, instance: &InstanceName, address: &str) -> Option<KnownRun>;
}
