//! How a command ends: the exit code, and the sentence on standard error.

use std::{io, process::ExitCode};

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::text::escape;

/// A command that came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// All targets done, all instances asked: exit code 0.
    Done,
    /// Some failed, none was found, or some instance could not be asked; what,
    /// is said already. Exit code 1.
    Incomplete,
}

impl Verdict {
    /// Done when `all` is well.
    pub(crate) fn done_if(all: bool) -> Self {
        if all { Self::Done } else { Self::Incomplete }
    }

    /// Both done.
    pub(crate) fn and(self, other: Self) -> Self {
        Self::done_if(self == Self::Done && other == Self::Done)
    }
}

/// A command that could not come to its end: what, why, and what helps, in
/// words for the person at the keyboard.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Exit code 1.
    Failed(String),
    /// The call was malformed: exit code 2.
    Usage(String),
    /// Nobody answers at the gateway's address: exit code 3.
    Unreached(String),
    /// Whoever read our output has seen enough (`| head`): exit code 0, quietly.
    OutputClosed,
}

pub(crate) type Outcome = Result<Verdict, Failure>;

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(format!("{error:#}"))
    }
}

impl From<io::Error> for Failure {
    /// Of standard output: the only thing here that is written to directly.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::Failed(format!("cannot write the output: {error}")),
        }
    }
}

/// Says on standard error why a command failed, and gives its exit code.
pub(crate) fn conclude(outcome: Outcome) -> ExitCode {
    let (code, message) = match outcome {
        Ok(Verdict::Done) | Err(Failure::OutputClosed) => (0, None),
        Ok(Verdict::Incomplete) => (1, None),
        Err(Failure::Failed(message)) => (1, Some(message)),
        Err(Failure::Usage(message)) => (2, Some(message)),
        Err(Failure::Unreached(message)) => (3, Some(message)),
    };
    if let Some(message) = message {
        eprintln!("ovfleet: {message}");
    }
    ExitCode::from(code)
}

/// A call did not reach the gateway, or its answer did not come back: the
/// status was made on this side, so no gateway put details or metadata in it.
pub(crate) fn is_transport(status: &Status) -> bool {
    status.details().is_empty()
        && status.metadata().is_empty()
        && matches!(
            status.code(),
            Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled
        )
}

/// The call took longer than its deadline, as seen on either side.
pub(crate) fn is_timeout(status: &Status) -> bool {
    status.code() == Code::DeadlineExceeded
        || (status.code() == Code::Cancelled && status.message() == "Timeout expired")
}

/// Calling again later may help.
pub(crate) fn is_passing(status: &Status) -> bool {
    status.code() == Code::Unavailable || is_transport(status)
}

/// The stable reason that the gateway gives, such as `SELECTOR_EMPTY`; empty
/// when it gives none.
pub(crate) fn reason(status: &Status) -> String {
    status
        .get_details_error_info()
        .map(|info| info.reason)
        .unwrap_or_default()
}

/// What a call's status means: `gateway` is the address that was called.
pub(crate) fn explain(status: &Status, gateway: &str) -> Failure {
    if is_timeout(status) {
        return Failure::Unreached(format!(
            "the gateway at {gateway} did not answer in time; --timeout gives it longer"
        ));
    }
    if is_transport(status) {
        return Failure::Unreached(format!(
            "lost the gateway at {gateway}: {}; is it an ovfleet gateway, and does it still run?",
            escape(&causes(status))
        ));
    }
    let mut message = escape(status.message());
    for violation in status
        .get_details_bad_request()
        .into_iter()
        .flat_map(|bad| bad.field_violations)
    {
        let description = escape(&violation.description);
        if !message.contains(&description) {
            message += &format!("\n  {}: {description}", escape(&violation.field));
        }
    }
    for violation in status
        .get_details_precondition_failure()
        .into_iter()
        .flat_map(|failure| failure.violations)
    {
        let (subject, words) = (escape(&violation.subject), escape(&violation.description));
        message += &format!("\n  {subject}: {words}");
    }
    if let Some(remedy) = remedy(status) {
        message += &format!("\n  {remedy}");
    }
    match status.code() {
        Code::InvalidArgument => Failure::Usage(message),
        _ => Failure::Failed(message),
    }
}

/// The message and what caused it, down to the root. A cause that only repeats
/// what is said already is left out.
fn causes(status: &Status) -> String {
    let mut message = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        let cause_message = cause.to_string();
        if !message.contains(&cause_message) {
            message = if message.is_empty() {
                cause_message
            } else {
                format!("{message}: {cause_message}")
            };
        }
        source = cause.source();
    }
    message
}

/// What helps, in terms of this command line, where the gateway's own words do
/// not say it.
fn remedy(status: &Status) -> Option<&'static str> {
    Some(match (reason(status).as_str(), status.code()) {
        ("SELECTOR_EMPTY", _) => "Say which instances: --all, -l LABELS or --instance NAME.",
        ("TOO_MANY_CLIENTS", _) => "Nothing was sent. Narrow the filter, or raise --max-clients.",
        ("TOO_MANY_INSTANCES", _) => {
            "Nothing was sent. Narrow the selection, or raise --max-instances."
        }
        ("REQUEST_ID_REUSED", _) => {
            "Nothing was sent. `ovfleet actions ID` shows what this id stands for; take another."
        }
        ("NEEDS_FORCE", _) => "Nothing was changed. --force does it all the same.",
        ("INSTANCE_READ_ONLY", _) => "It can be paused: `ovfleet instance pause NAME`.",
        ("ETAG_MISMATCH", _) => "Look at it again: `ovfleet instances --instance NAME -o json`.",
        ("CURSOR_INVALID", _) => "Start with --from oldest, now or a time.",
        ("READ_ONLY_LISTENER", _) => {
            "Call the gateway's Unix socket, or a listener with TLS: --gateway unix:/path."
        }
        (_, Code::PermissionDenied) => {
            "This listener may be read-only: plain TCP is, unless the configuration says \
             plaintext_control = true. The gateway's Unix socket is not."
        }
        (_, Code::Unauthenticated) => {
            "This listener wants a certificate: --tls-cert FILE --tls-key FILE."
        }
        (_, Code::Unimplemented) => {
            "This gateway does not know the call: it is older than this program, or something else."
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use tonic::metadata::MetadataMap;
    use tonic_types::ErrorDetails;

    use super::*;

    fn from_gateway(code: Code, reason: &str, message: &str) -> Status {
        Status::with_error_details(
            code,
            message,
            ErrorDetails::with_error_info(reason, "ovfleet", []),
        )
    }

    #[test]
    fn a_malformed_call_is_usage_and_says_which_field() {
        let mut details = ErrorDetails::with_error_info("LABELS_INVALID", "ovfleet", []);
        details.add_bad_request_violation("selector.labels", "expected `=` at 6");
        let status = Status::with_error_details(Code::InvalidArgument, "bad request", details);
        let Failure::Usage(message) = explain(&status, "unix:/x") else {
            panic!("{status:?}")
        };
        assert_eq!(message, "bad request\n  selector.labels: expected `=` at 6");
    }

    #[test]
    fn a_limit_names_the_option_that_raises_it() {
        let status = from_gateway(
            Code::FailedPrecondition,
            "TOO_MANY_CLIENTS",
            "247 clients match",
        );
        let Failure::Failed(message) = explain(&status, "unix:/x") else {
            panic!("{status:?}")
        };
        assert!(
            message.contains("247") && message.contains("--max-clients"),
            "{message}"
        );
    }

    /// A gateway that shuts down is there: only one that cannot be spoken to is
    /// "not reached".
    #[test]
    fn only_a_status_made_on_this_side_means_unreached() {
        let here = Status::unavailable("transport error");
        assert!(matches!(explain(&here, "unix:/x"), Failure::Unreached(_)));
        let there = from_gateway(Code::Unavailable, "DRAINING", "shutting down");
        assert!(matches!(explain(&there, "unix:/x"), Failure::Failed(_)));
        let mut headers = MetadataMap::new();
        headers.insert("content-type", "application/grpc".parse().unwrap());
        let bare = Status::with_metadata(Code::Unavailable, "busy", headers);
        assert!(matches!(explain(&bare, "unix:/x"), Failure::Failed(_)));
    }

    /// Messages carry the daemons' words.
    #[test]
    fn words_from_outside_cannot_act_on_the_terminal() {
        let status = from_gateway(Code::NotFound, "INSTANCE_UNKNOWN", "no \x1b[2J");
        let Failure::Failed(message) = explain(&status, "unix:/x") else {
            panic!("{status:?}")
        };
        assert!(!message.contains('\x1b'));
    }
}
