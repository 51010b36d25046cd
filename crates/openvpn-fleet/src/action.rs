//! Actions: commands to many, with one result for each target.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use openvpn_management::{KillMessage, Signal, Text};
use openvpn_session::Condition;
use tokio_util::sync::CancellationToken;

use crate::filter::ClientFilter;
use crate::journal::Position;
use crate::ledger::Digest;
use crate::name::{
    CallerName, ClientRef, GatewayName, Generation, InstanceName, RequestId, RequestIdError,
};
use crate::selector::{InstancePath, Selector};

/// Clients one kill may hit unless the caller says otherwise.
pub const CLIENTS_PER_KILL_DEFAULT: u32 = 100;
/// Longest message to a killed client, in bytes.
pub const KILL_MESSAGE_BYTES_MAX: usize = 200;
/// How long an action may take if the caller does not say.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(30);
/// An action sends nothing more that long before its deadline, so that its answer arrives in time.
pub const DEADLINE_MARGIN: Duration = Duration::from_millis(500);

/// What an action does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    /// Ends clients.
    KillClients,
    /// Sends a signal to daemons.
    SignalInstances,
}

impl Method {
    /// Every method.
    pub const ALL: [Self; 2] = [Self::KillClients, Self::SignalInstances];

    /// Its name in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::KillClients => "KillClients",
            Self::SignalInstances => "SignalInstances",
        }
    }
}

/// What happened to one target of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// It would be sent; nothing was, on request.
    Planned,
    /// The daemon took the command.
    Accepted,
    /// And the effect was seen.
    Confirmed,
    /// The client had left already.
    AlreadyGone,
    /// The reference is of an older generation: nothing was sent.
    Stale,
    /// The daemon refused.
    Rejected,
    /// The caller may not do this.
    Denied,
    /// Nothing was sent, for want of time or of a session.
    NotSent,
    /// It was sent and not answered: it may have happened.
    Unknown,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 9] = [
        Self::Planned,
        Self::Accepted,
        Self::Confirmed,
        Self::AlreadyGone,
        Self::Stale,
        Self::Rejected,
        Self::Denied,
        Self::NotSent,
        Self::Unknown,
    ];

    /// Its name in the API, without prefix.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Planned => "PLANNED",
            Self::Accepted => "ACCEPTED",
            Self::Confirmed => "CONFIRMED",
            Self::AlreadyGone => "ALREADY_GONE",
            Self::Stale => "STALE",
            Self::Rejected => "REJECTED",
            Self::Denied => "DENIED",
            Self::NotSent => "NOT_SENT",
            Self::Unknown => "UNKNOWN",
        }
    }
}

/// Why one target of an action, or one instance, is not as was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// There is no instance of that name.
    #[error("there is no instance {instance}")]
    UnknownInstance {
        /// The name as it was asked for.
        instance: InstancePath,
    },
    /// The instance is not in session.
    #[error("instance {instance} is {condition}: {reason}")]
    NotAttached {
        /// Which.
        instance: InstanceName,
        /// How its session is.
        condition: Condition,
        /// Why, for a person.
        reason: String,
    },
    /// The instance has no client table: it is a client itself, is held, or restarts.
    #[error("instance {instance} gives no list of clients: {text}")]
    NoClients {
        /// Which.
        instance: InstanceName,
        /// The daemon's words.
        text: String,
    },
    /// The instance is in session but was asked for its clients in vain.
    #[error("instance {instance} did not list its clients within {waited:?}")]
    Silent {
        /// Which.
        instance: InstanceName,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The reference is of an older generation.
    #[error("the reference is of another generation; the present one of {instance} is {}", Shown(.current))]
    Stale {
        /// Whose.
        instance: InstanceName,
        /// The present one.
        current: Option<Generation>,
    },
    /// The client had left already.
    #[error("the client is gone")]
    Gone,
    /// The daemon refused.
    #[error("instance {instance} refused: {text}")]
    Rejected {
        /// Which.
        instance: InstanceName,
        /// Its words.
        text: Text,
    },
    /// A signal would end the daemon and nobody said `force`.
    #[error("{signal} would end the daemon of {instance}: {reason}; it needs `force`")]
    NeedsForce {
        /// Which.
        instance: InstanceName,
        /// Which signal.
        signal: &'static str,
        /// Why it would.
        reason: String,
    },
    /// Too many commands wait for the instance already.
    #[error("instance {instance} has too many commands waiting")]
    Busy {
        /// Which.
        instance: InstanceName,
    },
    /// Time ran out before it was sent.
    #[error("there was no time left to send it")]
    NoTime,
    /// The caller cancelled before it was sent.
    #[error("the caller cancelled before it was sent")]
    Cancelled,
    /// Enough others had failed.
    #[error("not sent because {failures} others had failed")]
    Stopped {
        /// How many.
        failures: u32,
    },
    /// It was sent; what became of it is not known.
    #[error("sent to instance {instance}, fate unknown: {reason}")]
    FateUnknown {
        /// Which.
        instance: InstanceName,
        /// Why.
        reason: String,
    },
    /// The daemon took it, but the effect was not seen in time.
    #[error("taken by instance {instance}; the effect was not seen in time")]
    NotSeen {
        /// Which.
        instance: InstanceName,
    },
    /// It cannot be put into a command.
    #[error("it cannot be put into a command: {reason}")]
    Unencodable {
        /// Why.
        reason: String,
    },
}

struct Shown<'a>(&'a Option<Generation>);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(generation) => generation.fmt(f),
            None => f.write_str("not known"),
        }
    }
}

/// Why an action did not begin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ActionError {
    /// The selector is empty.
    #[error("the selector is empty; say `all` for every instance")]
    SelectorEmpty,
    /// The filter is empty and nobody said `every_client`.
    #[error("the filter is empty; say `every_client` for every client")]
    FilterEmpty,
    /// The message to the client cannot be sent.
    #[error("the message {problem}")]
    MessageInvalid {
        /// What is wrong with it.
        problem: &'static str,
    },
    /// More clients than allowed.
    #[error("{found} clients match, {max} are allowed; nothing was sent")]
    TooManyClients {
        /// How many match.
        found: usize,
        /// How many are allowed.
        max: u32,
        /// What would be done.
        plan: Arc<KillReport>,
    },
    /// More instances than allowed.
    #[error("{found} instances would be hit, {max} are allowed; nothing was sent")]
    TooManyInstances {
        /// How many would be hit.
        found: usize,
        /// How many are allowed.
        max: u32,
        /// What would be done.
        plan: ActionResult,
    },
    /// The request id is malformed.
    #[error(transparent)]
    RequestIdMalformed(#[from] RequestIdError),
    /// The request id is that of another request.
    #[error("request id {request_id} belongs to another request")]
    RequestIdReused {
        /// Which.
        request_id: RequestId,
    },
    /// As many actions are under way as can be remembered.
    #[error("{running} actions are under way; try again later")]
    TooManyActions {
        /// How many.
        running: usize,
    },
    /// The ledger knows an action of that id, which is over.
    #[error("request id {request_id} is that of an action that is over")]
    Known {
        /// Which.
        request_id: RequestId,
    },
    /// It cannot be kept that something will be sent.
    #[error("nothing was sent: {reason}")]
    LedgerUnavailable {
        /// Why, for a person.
        reason: String,
    },
    /// The gateway is going away.
    #[error("the gateway is shutting down")]
    ShuttingDown,
    /// The action's task failed: a bug of ours.
    #[error("action {request_id} ended without a result")]
    Lost {
        /// Which.
        request_id: RequestId,
    },
}

/// Who acts, and how long.
#[derive(Debug, Clone)]
pub struct ActionContext {
    /// Who.
    pub caller: CallerName,
    /// When the caller stops waiting; `None`: [`DEADLINE_DEFAULT`] from now.
    pub deadline: Option<Instant>,
    /// Cancelled, nothing more is sent.
    pub cancel: CancellationToken,
}

/// Whom to kill, how, and how many at the most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KillRequest {
    /// On which instances.
    pub selector: Selector,
    /// Which of their clients.
    pub filter: ClientFilter,
    /// Must be set when the filter is empty.
    pub every_client: bool,
    /// What the client is told.
    pub message: KillMessage,
    /// Resolve and check all, send nothing.
    pub validate_only: bool,
    /// The most clients that may be hit; 0: [`CLIENTS_PER_KILL_DEFAULT`].
    pub max_clients: u32,
    /// The most instances on which clients may be hit; 0: any number.
    pub max_instances: u32,
    /// Wait until each client is seen to be gone.
    pub wait: bool,
    /// What the caller calls the request; `None`: we make one.
    pub request_id: Option<RequestId>,
    /// Of the request, to know another one under the same id.
    pub digest: Digest,
}

/// What a kill did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KillReport {
    /// Of this action.
    pub request_id: RequestId,
    /// One per client that matched, in order of instance and CID, then one per ref that named nobody.
    pub results: Vec<KillResult>,
    /// One per selected instance, in order of name; unknown names last.
    pub instances: Vec<InstanceResult>,
    /// Nothing was sent, on request.
    pub validate_only: bool,
    /// The deadline came, or the caller cancelled, before all was sent.
    pub cut_short: bool,
    /// From before the first command.
    pub as_of: AsOf,
    /// Where it is kept.
    pub durability: Durability,
}

/// Where an action is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// In memory: a restart forgets it, or that it came to an end.
    Memory,
    /// In a ledger, which outlives the process.
    Ledger,
}

/// From which moment an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AsOf {
    /// Taken before the first row was read.
    pub position: Position,
    /// The gateway's clock at that moment.
    pub time: SystemTime,
}

/// What happened to one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KillResult {
    /// The client.
    pub client: ClientRef,
    /// Its common name, where known.
    pub common_name: Text,
    /// Its username, where it has one.
    pub username: Text,
    /// Where it comes from.
    pub real_address: Text,
    /// Its address inside the VPN.
    pub virtual_address: Text,
    /// What happened.
    pub outcome: Outcome,
    /// Why it is not as was asked for; `None`: it is.
    pub error: Option<TargetError>,
    /// When the command was written to the daemon; `None` when it was not.
    pub sent: Option<SystemTime>,
    /// The client that took its place, where one was seen.
    pub successor: Option<ClientRef>,
}

/// What an action meant on one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceResult {
    /// Its gateway.
    pub gateway: GatewayName,
    /// Its name.
    pub instance: InstanceName,
    /// It could be asked for its clients.
    pub asked: bool,
    /// Clients that matched.
    pub matched: u64,
    /// Age of the status that the filter was resolved against.
    pub snapshot_age: Option<Duration>,
    /// Why it could not be asked.
    pub error: Option<TargetError>,
}

/// When a signalled instance counts as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalWait {
    /// The daemon took the signal.
    Accepted,
    /// It has begun a new generation (SIGHUP, SIGUSR1) and is ATTACHED.
    Reattached,
    /// And its state is CONNECTED.
    Connected,
}

/// Which signal to whom, and how carefully.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignalRequest {
    /// Which instances.
    pub selector: Selector,
    /// Which signal.
    pub signal: Signal,
    /// How many instances may be under way at once; 0: one.
    pub in_flight_max: u32,
    /// How long to wait between one instance and the next.
    pub pause: Duration,
    /// After so many failures the rest is not sent; 0: never.
    pub stop_after_failures: u32,
    /// When an instance counts as done.
    pub wait_for: SignalWait,
    /// Needed where the signal ends the daemon.
    pub force: bool,
    /// Resolve and check all, send nothing.
    pub validate_only: bool,
    /// The most instances; 0: any number.
    pub max_instances: u32,
    /// What the caller calls the request; `None`: we make one.
    pub request_id: Option<RequestId>,
    /// Of the request, to know another one under the same id.
    pub digest: Digest,
}

/// What a signal did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignalReport {
    /// Of this action.
    pub request_id: RequestId,
    /// One per selected instance, in order of name; unknown names last.
    pub results: Vec<SignalResult>,
    /// Nothing was sent, on request.
    pub validate_only: bool,
    /// The deadline came, or the caller cancelled, before all was sent.
    pub cut_short: bool,
    /// From before the first command.
    pub as_of: AsOf,
    /// Where it is kept.
    pub durability: Durability,
}

/// What happened to one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignalResult {
    /// Its gateway.
    pub gateway: GatewayName,
    /// Its name.
    pub instance: InstanceName,
    /// What happened.
    pub outcome: Outcome,
    /// Why it is not as was asked for; `None`: it is.
    pub error: Option<TargetError>,
    /// When the command was written to the daemon; `None` when it was not.
    pub sent: Option<SystemTime>,
    /// Clients it had when the signal was sent.
    pub clients: u64,
    /// Its generation when the signal was sent.
    pub generation: Option<Generation>,
}

/// One call of kill or signal, finished or under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    /// Its request id.
    pub request_id: RequestId,
    /// Who called.
    pub caller: CallerName,
    /// What it does.
    pub method: Method,
    /// Its number: later ones are greater.
    pub number: u64,
    /// When it began.
    pub started: SystemTime,
    /// When it ended; `None` while it runs.
    pub finished: Option<SystemTime>,
    /// The answer; of a running action, what is known so far.
    pub result: ActionResult,
}

/// The answer of an action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ActionResult {
    /// Of a kill.
    Kill(Arc<KillReport>),
    /// Of a signal.
    Signal(Arc<SignalReport>),
}

impl ActionResult {
    pub(crate) fn set_durability(&mut self, durability: Durability) {
        match self {
            Self::Kill(report) => Arc::make_mut(report).durability = durability,
            Self::Signal(report) => Arc::make_mut(report).durability = durability,
        }
    }
}
