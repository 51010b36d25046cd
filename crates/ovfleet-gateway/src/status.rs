//! The only file that makes a [`tonic::Status`]: codes, reasons and details of
//! every error that a caller can get.
//!
//! Every status carries a `google.rpc.ErrorInfo` with domain `ovfleet` and a
//! reason in capitals, which is stable; the message is for people and is not.

use std::{collections::HashMap, time::Duration};

use openvpn_fleet::{ActionError, ActionResult, CommandError, InstancePath, TargetError};
use ovfleet_proto::v1;
use prost::Message;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    config::{Clash, ConfigErrors},
    convert::{
        action::{kill_report, signal_report},
        inventory,
    },
    cursor::{CursorError, Cursors},
    inventory::{InventoryError, Violation},
    state::WriteError,
};

/// Domain of every reason.
pub(crate) const DOMAIN: &str = "ovfleet";
/// When to come back to something that is on its way.
const RETRY_SOON: Duration = Duration::from_secs(1);

fn details(reason: &str) -> ErrorDetails {
    ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new())
}

fn status(code: Code, reason: &str, message: impl Into<String>) -> Status {
    Status::with_error_details(code, message, details(reason))
}

/// INVALID_ARGUMENT: this field of the request is malformed.
pub(crate) fn invalid(field: &str, reason: &str, description: impl Into<String>) -> Status {
    let description = description.into();
    let mut details = details(reason);
    details.add_bad_request_violation(field, description.clone());
    Status::with_error_details(
        Code::InvalidArgument,
        format!("{field}: {description}"),
        details,
    )
}

/// INVALID_ARGUMENT: a cursor that is not one of this gateway's.
pub(crate) fn cursor_invalid(error: &CursorError) -> Status {
    invalid("cursor", "CURSOR_INVALID", error.to_string())
}

/// OUT_OF_RANGE: events behind a cursor are gone, and the caller wants no hole.
pub(crate) fn cursor_compacted(oldest: String) -> Status {
    let mut details = details("CURSOR_COMPACTED");
    details.set_error_info(
        "CURSOR_COMPACTED",
        DOMAIN,
        HashMap::from([("oldest".to_owned(), oldest)]),
    );
    Status::with_error_details(
        Code::OutOfRange,
        "events behind this cursor are no longer kept; the oldest cursor that can be resumed is in the details",
        details,
    )
}

/// NOT_FOUND: no instance of this name.
pub(crate) fn instance_unknown(path: &InstancePath) -> Status {
    status(
        Code::NotFound,
        "INSTANCE_UNKNOWN",
        format!("there is no instance {path}; ListInstances names those there are"),
    )
}

/// NOT_FOUND: no action of this id.
pub(crate) fn action_unknown(request_id: &str) -> Status {
    status(
        Code::NotFound,
        "ACTION_UNKNOWN",
        format!("there is no action {request_id:?} of yours, or it is no longer kept"),
    )
}

/// UNAVAILABLE: the caller wants all or nothing.
pub(crate) fn incomplete(unreachable: &[v1::Unreachable]) -> Status {
    let named: Vec<_> = unreachable
        .iter()
        .take(10)
        .map(|one| one.instance.as_str())
        .collect();
    let more = if unreachable.len() > named.len() {
        ", …"
    } else {
        ""
    };
    let mut details = details("INCOMPLETE");
    details.set_retry_info(Some(RETRY_SOON));
    Status::with_error_details(
        Code::Unavailable,
        format!(
            "{} instances could not be asked: {}{more}",
            unreachable.len(),
            named.join(", ")
        ),
        details,
    )
}

/// PERMISSION_DENIED: this listener takes reads only.
pub(crate) fn read_only_listener() -> Status {
    status(
        Code::PermissionDenied,
        "READ_ONLY_LISTENER",
        "this listener is read-only; act through the Unix socket or a TLS listener, \
         or set `plaintext_control = true` on it",
    )
}

/// RESOURCE_EXHAUSTED: as many streams as this gateway serves.
pub(crate) fn stream_limit(max: usize) -> Status {
    let mut details = details("STREAM_LIMIT");
    details.set_retry_info(Some(RETRY_SOON));
    Status::with_error_details(
        Code::ResourceExhausted,
        format!("all {max} streams are taken (limits.streams)"),
        details,
    )
}

/// RESOURCE_EXHAUSTED: as many calls as allowed are under way.
pub(crate) fn call_limit(max: usize) -> Status {
    let mut details = details("CALL_LIMIT");
    details.set_retry_info(Some(RETRY_SOON));
    Status::with_error_details(
        Code::ResourceExhausted,
        format!("all {max} calls are taken (limits.calls)"),
        details,
    )
}

/// RESOURCE_EXHAUSTED: the caller did not read.
pub(crate) fn slow_caller(blocked: Duration) -> Status {
    status(
        Code::ResourceExhausted,
        "SLOW_CALLER",
        format!("nothing was read for {blocked:?}; resume from the last cursor you have"),
    )
}

/// ALREADY_EXISTS: the id is that of another request.
pub(crate) fn request_id_reused(request_id: &str) -> Status {
    status(
        Code::AlreadyExists,
        "REQUEST_ID_REUSED",
        format!("request id {request_id} belongs to another request"),
    )
}

/// ABORTED: the gateway ended before it sent anything of the request of this id.
pub(crate) fn cut_off(request_id: &str) -> Status {
    status(
        Code::Aborted,
        "NOT_SENT",
        format!(
            "the gateway ended before it sent anything of request {request_id}; \
             ask again under another id"
        ),
    )
}

/// DEADLINE_EXCEEDED: a change may have happened.
pub(crate) fn outcome_unknown(why: &str) -> Status {
    status(
        Code::DeadlineExceeded,
        "OUTCOME_UNKNOWN",
        format!("sent, fate unknown: {why}"),
    )
}

/// ABORTED: the call that this one had joined came to nothing.
pub(crate) fn call_given_up() -> Status {
    status(
        Code::Aborted,
        "NOT_SENT",
        "the call under way with this request id came to nothing; nothing was sent",
    )
}

/// A status that was kept, once more.
pub(crate) fn again(code: Code, message: String, details: Vec<u8>) -> Status {
    Status::with_details(code, message, details.into())
}

/// Whether a call ended so because the gateway is going away.
pub(crate) fn is_leaving(status: &Status) -> bool {
    let reason = status.get_details_error_info().map(|info| info.reason);
    reason.is_some_and(|reason| reason == "SHUTTING_DOWN")
}

/// Whether a call that ended so had sent something.
pub(crate) fn was_sent(status: &Status) -> bool {
    let reason = status.get_details_error_info().map(|info| info.reason);
    reason.is_none_or(|reason| {
        matches!(
            reason.as_str(),
            "OUTCOME_UNKNOWN" | "REJECTED" | "REPLY_UNREADABLE"
        )
    })
}

/// UNAVAILABLE: what must be on disk before anything is done cannot be written.
pub(crate) fn state_unavailable(error: &WriteError) -> Status {
    state_refuses(&error.to_string())
}

fn state_refuses(reason: &str) -> Status {
    let mut details = details("STATE_UNAVAILABLE");
    details.set_retry_info(Some(RETRY_SOON));
    Status::with_error_details(
        Code::Unavailable,
        format!("nothing was done: {reason}"),
        details,
    )
}

/// UNAVAILABLE: going away.
pub(crate) fn shutting_down() -> Status {
    let mut details = details("SHUTTING_DOWN");
    details.set_retry_info(Some(RETRY_SOON));
    Status::with_error_details(Code::Unavailable, "the gateway is shutting down", details)
}

/// An action that did not begin.
pub(crate) fn of_action(error: &ActionError, cursors: &Cursors) -> Status {
    let message = error.to_string();
    match error {
        ActionError::SelectorEmpty => invalid("selector", "SELECTOR_EMPTY", message),
        ActionError::FilterEmpty => invalid("filter", "FILTER_EMPTY", message),
        ActionError::MessageInvalid { .. } => invalid("message", "MESSAGE_INVALID", message),
        ActionError::RequestIdMalformed(_) => invalid("request_id", "REQUEST_ID_INVALID", message),
        ActionError::TooManyClients { plan, .. } => with_plan(
            "TOO_MANY_CLIENTS",
            message,
            KILL_PLAN,
            &kill_report(plan, cursors),
        ),
        ActionError::TooManyInstances { plan, .. } => match plan {
            ActionResult::Kill(plan) => with_plan(
                "TOO_MANY_INSTANCES",
                message,
                KILL_PLAN,
                &kill_report(plan, cursors),
            ),
            ActionResult::Signal(plan) => with_plan(
                "TOO_MANY_INSTANCES",
                message,
                SIGNAL_PLAN,
                &signal_report(plan, cursors),
            ),
        },
        ActionError::RequestIdReused { .. } => {
            status(Code::AlreadyExists, "REQUEST_ID_REUSED", message)
        }
        ActionError::TooManyActions { .. } => {
            status(Code::ResourceExhausted, "ACTION_LIMIT", message)
        }
        ActionError::Known { request_id } => request_id_reused(request_id.as_str()),
        ActionError::LedgerUnavailable { reason } => state_refuses(reason),
        ActionError::ShuttingDown => shutting_down(),
        ActionError::Lost { .. } => {
            tracing::error!(%message, "action lost");
            status(Code::Internal, "ACTION_LOST", message)
        }
    }
}

/// Most bytes of a plan in an error: it travels as a header, and HTTP/2 stacks
/// refuse large ones. A larger plan is left out; `validate_only` gives it whole.
const PLAN_BYTES_MAX: usize = 4 * 1024;
const KILL_PLAN: &str = "type.googleapis.com/ovfleet.v1.KillClientsResponse";
/// Most mistakes in an error, for the same reason.
const VIOLATIONS_MAX: usize = 20;
const RELOAD_PLAN: &str = "type.googleapis.com/ovfleet.v1.ReloadResponse";
const SIGNAL_PLAN: &str = "type.googleapis.com/ovfleet.v1.SignalInstancesResponse";

/// FAILED_PRECONDITION with what would have been done, in the details.
fn with_plan(reason: &str, message: String, type_url: &str, plan: &impl Message) -> Status {
    let details = details(reason);
    let plain = Status::with_error_details(Code::FailedPrecondition, message.as_str(), details);
    if plan.encoded_len() > PLAN_BYTES_MAX {
        return plain;
    }
    // The helper knows the standard details only, so the plan is added to the
    // encoded message.
    let Ok(mut status) = tonic_types::Status::decode(plain.details()) else {
        return plain;
    };
    status.details.push(prost_types::Any {
        type_url: type_url.to_owned(),
        value: plan.encode_to_vec(),
    });
    Status::with_details(
        Code::FailedPrecondition,
        message,
        status.encode_to_vec().into(),
    )
}

/// A command for one instance that has no reply. Only a change that was sent and not answered leaves a doubt.
pub(crate) fn of_command(error: &CommandError) -> Status {
    let message = error.to_string();
    let (code, reason) = match error {
        CommandError::Target(error) => code_of_target(error),
        CommandError::Version { .. } => (Code::FailedPrecondition, "VERSION_LACKS_IT"),
        CommandError::Mode { .. } => (Code::FailedPrecondition, "MODE_LACKS_IT"),
        CommandError::VerbNeedsForce { .. } => (Code::FailedPrecondition, "VERB_NEEDS_FORCE"),
        CommandError::VerbLocksUp { .. } => (Code::FailedPrecondition, "VERB_LOCKS_UP"),
        CommandError::VerbUnknown => return invalid("level", "LEVEL_INVALID", message),
        CommandError::NoQuestion { .. } => (Code::FailedPrecondition, "NO_QUESTION"),
        CommandError::QuestionClosed { .. } => (Code::FailedPrecondition, "QUESTION_CLOSED"),
        CommandError::RawRefused { .. } => (Code::PermissionDenied, "COMMAND_NOT_ALLOWED"),
        CommandError::RawMalformed(_) => return invalid("line", "LINE_INVALID", message),
    };
    status(code, reason, message)
}

/// FAILED_PRECONDITION: the daemon refused, in these words.
pub(crate) fn daemon_refused(words: &str) -> Status {
    let message = format!("the daemon refused: {words}");
    status(Code::FailedPrecondition, "REJECTED", message)
}

/// INTERNAL: the daemon answered in a form that we do not know.
pub(crate) fn reply_unreadable() -> Status {
    tracing::warn!("a daemon answered in a form that is not known");
    status(
        Code::Internal,
        "REPLY_UNREADABLE",
        "the daemon answered in a form that this gateway does not know",
    )
}

/// A change of the inventory that was not made.
pub(crate) fn of_inventory(error: &InventoryError) -> Status {
    let message = error.to_string();
    match error {
        InventoryError::Invalid(violations) => {
            let mut details = details("INSTANCE_INVALID");
            let mut lines = Vec::new();
            for Violation { field, description } in violations.iter().take(VIOLATIONS_MAX) {
                details.add_bad_request_violation(field, description);
                lines.push(format!("{field}: {description}"));
            }
            // All of it where it is one, as for every other field; else in the details.
            let message = match lines.as_slice() {
                [only] => only.clone(),
                _ => message,
            };
            Status::with_error_details(Code::InvalidArgument, message, details)
        }
        InventoryError::Unknown(_) => status(Code::NotFound, "INSTANCE_UNKNOWN", message),
        InventoryError::Taken { clash } => {
            let reason = match clash {
                Clash::Name(_) => "NAME_TAKEN",
                Clash::Address(..) | Clash::Mux(..) => "ADDRESS_TAKEN",
            };
            status(Code::AlreadyExists, reason, message)
        }
        InventoryError::ReadOnly { .. } => {
            status(Code::FailedPrecondition, "INSTANCE_READ_ONLY", message)
        }
        InventoryError::EtagMismatch { .. } => status(Code::Aborted, "ETAG_MISMATCH", message),
        InventoryError::NeedsForce { plan: None, .. } => {
            status(Code::FailedPrecondition, "NEEDS_FORCE", message)
        }
        InventoryError::NeedsForce {
            plan: Some(plan), ..
        } => {
            let plan = inventory::plan((**plan).clone(), Vec::new(), true);
            with_plan("NEEDS_FORCE", message, RELOAD_PLAN, &plan)
        }
        InventoryError::Config(errors) => config_invalid(errors),
        InventoryError::NoFile => status(Code::FailedPrecondition, "NO_CONFIG_FILE", message),
        InventoryError::Limit { .. } => status(Code::ResourceExhausted, "INSTANCE_LIMIT", message),
        InventoryError::State(error) => state_unavailable(error),
        InventoryError::ShuttingDown => shutting_down(),
    }
}

/// FAILED_PRECONDITION: the files of the configuration cannot be used.
fn config_invalid(errors: &ConfigErrors) -> Status {
    let mut details = details("CONFIG_INVALID");
    let all = errors.as_slice();
    for error in all.iter().take(VIOLATIONS_MAX) {
        let description = match error.key.as_str() {
            "" => error.message.clone(),
            key => format!("{key}: {}", error.message),
        };
        details.add_precondition_failure_violation("CONFIG", error.place.to_string(), description);
    }
    let message = match all {
        [only] => format!("the old configuration stays in force: {only}"),
        _ if all.len() <= VIOLATIONS_MAX => format!(
            "the old configuration stays in force: there are {} mistakes",
            all.len()
        ),
        _ => format!(
            "the old configuration stays in force: there are {} mistakes, of which these are the first; \
             `ovfleet check-config` names them all",
            all.len()
        ),
    };
    Status::with_error_details(Code::FailedPrecondition, message, details)
}

/// What became of one target, as it stands in a result.
pub(crate) fn of_target(error: &TargetError) -> tonic_types::Status {
    let (code, reason) = code_of_target(error);
    let info = tonic_types::pb::ErrorInfo {
        reason: reason.to_owned(),
        domain: DOMAIN.to_owned(),
        metadata: HashMap::new(),
    };
    tonic_types::Status {
        code: code as i32,
        message: error.to_string(),
        details: vec![prost_types::Any {
            type_url: "type.googleapis.com/google.rpc.ErrorInfo".to_owned(),
            value: info.encode_to_vec(),
        }],
    }
}

fn code_of_target(error: &TargetError) -> (Code, &'static str) {
    match error {
        TargetError::UnknownInstance { .. } => (Code::NotFound, "INSTANCE_UNKNOWN"),
        TargetError::NotAttached { .. } => (Code::Unavailable, "NOT_ATTACHED"),
        TargetError::NoClients { .. } => (Code::FailedPrecondition, "NO_CLIENT_TABLE"),
        TargetError::Silent { .. } => (Code::Unavailable, "NOT_ANSWERED"),
        TargetError::Stale { .. } => (Code::FailedPrecondition, "STALE"),
        TargetError::Gone => (Code::NotFound, "CLIENT_GONE"),
        TargetError::Rejected { .. } => (Code::FailedPrecondition, "REJECTED"),
        TargetError::NeedsForce { .. } => (Code::FailedPrecondition, "NEEDS_FORCE"),
        TargetError::Busy { .. } => (Code::ResourceExhausted, "INSTANCE_BUSY"),
        TargetError::NoTime => (Code::DeadlineExceeded, "NOT_SENT"),
        TargetError::Cancelled => (Code::Cancelled, "NOT_SENT"),
        TargetError::Stopped { .. } => (Code::Aborted, "NOT_SENT"),
        TargetError::FateUnknown { .. } => (Code::DeadlineExceeded, "OUTCOME_UNKNOWN"),
        TargetError::NotSeen { .. } => (Code::DeadlineExceeded, "NOT_CONFIRMED"),
        TargetError::Unencodable { .. } => (Code::InvalidArgument, "UNENCODABLE"),
    }
}
