//! Many OpenVPN instances as one fleet.
//!
//! It keeps a session to each instance and, from what the sessions learn, a table of clients for each and one journal
//! of events for all. It finds the instances and clients that a caller means, and carries out kills and signals on many
//! of them with one result for each target.
//!
//! It knows no gRPC and no configuration files, and it holds no rights: who may do what is decided before it is asked.
//!
//! - [`Fleet`] is every [`Instance`], by name; [`Table`] is what is known of one.
//! - [`Journal`] is what happened, in one order; a [`Reader`] is a place in it.
//! - [`Selector`] and [`ClientFilter`] say who is meant, everywhere.

pub mod action;
mod apply;
mod client;
mod command;
mod effect;
pub mod event;
mod event_filter;
pub mod failpoint;
mod filter;
mod fleet;
mod instance;
pub mod journal;
mod keeper;
mod kill;
mod label;
mod ledger;
mod name;
mod observer;
mod question;
mod redact;
mod requests;
mod route;
mod selector;
mod send;
mod signal;
mod spec;
mod table;

pub use action::{
    Action, ActionContext, ActionError, ActionResult, AsOf, Durability, InstanceResult, KillReport,
    KillRequest, KillResult, Method, Outcome, SignalReport, SignalRequest, SignalResult,
    SignalWait, TargetError,
};
pub use client::{Client, Interner, PeerInfo};
pub use command::{
    CommandError, RAW_COMMANDS, RAW_QUERIES, VERB_DEADLOCK, VERB_HIGHEST, VERB_MAX, VerbRequest,
};
pub use event::{
    Detail, DisconnectCause, Event, EventClass, EventClient, Gap, GapCause, GenerationCause,
    Inference, Kind,
};
pub use event_filter::{EventFilter, KindError, KindSet};
pub use filter::{
    ADDRESS_PATTERNS_MAX, AddressPattern, AddressPatternError, ClientFilter, ClientIdentity,
    FILTER_VALUES_MAX, parse_real_address,
};
pub use fleet::{Changes, Fleet, FleetConfig, NameClash, Selection};
pub use instance::Instance;
pub use journal::{
    Batch, Counts, Encode, Entry, Item, Journal, JournalConfig, Missing, Position, Reader, Record,
    RunId, Source, Start,
};
pub use label::{EXPRESSION_BYTES_MAX, LabelExpression, LabelExpressionError};
pub use ledger::{Digest, Intent, KnownRun, Ledger, LedgerError, TargetResult};
pub use name::{
    ActionRef, CallerName, ClientRef, GatewayName, Generation, InstanceName, InstanceUid, Labels,
    NAME_BYTES_MAX, NameError, REQUEST_ID_BYTES_MAX, RequestId, RequestIdError,
};
pub use openvpn_session::{Condition, Mode};
pub use question::{Answer, Challenge, ChallengeText, OpenQuestion, Question, remote_skip};
pub use redact::redact_log;
pub use requests::{ACTION_AGE_MAX, ACTION_RESULTS_MAX, ACTIONS_MAX};
pub use route::{Orphan, Route};
pub use selector::{InstancePath, SELECTOR_NAMES_MAX, Selector};
pub use spec::{InstanceSource, InstanceSpec};
pub use table::{InstanceStatus, QUESTIONS_MAX, REMOVED_MAX, Removed, RemovedReason, Table};
