//! What the two actions have in common: request ids, the question before, the
//! results after.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal as _, Write as _},
};

use ovfleet_proto::v1::{KillClientsResponse, KillResult, Outcome, SignalResult};
use tonic::{Code, Response, Status};
use tonic_types::RpcStatusExt as _;

use crate::{
    failure::{Failure, Verdict, is_timeout, is_transport, reason},
    gateway::Gateway,
    listing::full_name,
    output::note,
    selection::show_ref,
    table::{Cell, Table, Tone, column},
    text::{age, count, elapsed, enum_name, escape, outside},
};

/// A new request id: 64 random bits, enough for the 10,000 that a gateway keeps.
pub(crate) fn new_request_id() -> Result<String, Failure> {
    let number = getrandom::u64()
        .map_err(|error| Failure::Failed(format!("no random number for a request id: {error}")))?;
    Ok(format!("{number:016x}"))
}

/// Whether an action may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Consent {
    Given,
    Refused,
    /// There is no terminal to ask on.
    NobodyToAsk,
}

/// Asks on the terminal. Only a clear yes is one.
pub(crate) fn ask(question: &str) -> Result<Consent, Failure> {
    let (stdin, mut stderr) = (io::stdin(), io::stderr());
    if !stdin.is_terminal() || !stderr.is_terminal() {
        return Ok(Consent::NobodyToAsk);
    }
    let failed = |error| Failure::Failed(format!("cannot ask on the terminal: {error}"));
    write!(stderr, "{question} [y/N] ")
        .and_then(|()| stderr.flush())
        .map_err(failed)?;
    let mut answer = String::new();
    stdin.read_line(&mut answer).map_err(failed)?;
    Ok(match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Consent::Given,
        _ => Consent::Refused,
    })
}

/// What to say where nobody can be asked.
pub(crate) fn not_asked() -> Failure {
    Failure::Usage(
        "nothing was sent: there is no terminal to ask on. --yes acts without asking, \
         --dry-run only shows the plan"
            .to_owned(),
    )
}

/// Carries an action out: `call` is the one call that changes something.
/// Whatever comes between us and its answer, the answer can still be looked up.
pub(crate) async fn carry_out<R>(
    gateway: &Gateway,
    request_id: &str,
    call: impl Future<Output = Result<Response<R>, Status>>,
) -> Result<R, Failure> {
    let look_up = || {
        let gateway = gateway.address();
        format!("`ovfleet actions {request_id} --gateway {gateway}` shows what became of it")
    };
    tokio::select! {
        answer = call => answer.map(Response::into_inner).map_err(|status| {
            if !is_fate_unknown(&status) {
                return gateway.failure(status);
            }
            Failure::Failed(format!(
                "request {request_id} was sent, but no answer came ({}): it may have been carried \
                 out\n  {}",
                escape(status.message()),
                look_up()
            ))
        }),
        _ = tokio::signal::ctrl_c() => Err(Failure::Failed(format!(
            "interrupted: of request {request_id}, what was not sent yet is not sent any more\n  {}",
            look_up()
        ))),
    }
}

/// The call may have had its effect although it failed.
pub(crate) fn is_fate_unknown(status: &Status) -> bool {
    match reason(status).as_str() {
        // Not the gateway's word: the connection broke, or the time was over.
        "" => {
            is_transport(status)
                || is_timeout(status)
                || matches!(status.code(), Code::Unavailable | Code::Cancelled)
        }
        reason => reason == "OUTCOME_UNKNOWN",
    }
}

/// Results of KillClients, a row per client.
pub(crate) fn kill_table(results: &[KillResult]) -> Table {
    let mut table = Table::new([
        column("INSTANCE"),
        column("CID").right().rank(3),
        column("NAME"),
        column("USERNAME").rank(2).optional(),
        column("VIRTUAL ADDRESS").rank(2).optional(),
        column("REAL ADDRESS").rank(1),
        column("OUTCOME"),
        column("NOTE").optional(),
    ]);
    for result in results {
        let reference = result.r#ref.clone().unwrap_or_default();
        let mut note = status_words(result.status.as_ref());
        if let Some(successor) = &result.successor {
            note = format!("{note} came back as {}", show_ref(successor))
                .trim_start()
                .to_owned();
        }
        table.row([
            escape(&reference.instance).into(),
            reference.cid.to_string().into(),
            outside(&result.common_name, &result.common_name_raw).into(),
            outside(&result.username, &result.username_raw).into(),
            escape(&result.virtual_address).into(),
            escape(&result.real_address).into(),
            outcome(result.outcome),
            note.into(),
        ]);
    }
    table
}

/// Results of SignalInstances, a row per instance.
pub(crate) fn signal_table(results: &[SignalResult]) -> Table {
    let mut table = Table::new([
        column("INSTANCE"),
        column("CLIENTS").right(),
        column("OUTCOME"),
        column("NOTE").optional(),
    ]);
    for result in results {
        table.row([
            escape(&result.instance).into(),
            count(result.clients).into(),
            outcome(result.outcome),
            status_words(result.status.as_ref()).into(),
        ]);
    }
    table
}

fn outcome(value: i32) -> Cell {
    let tone = match Outcome::try_from(value) {
        Ok(Outcome::Accepted | Outcome::Confirmed) => Tone::Good,
        Ok(Outcome::AlreadyGone | Outcome::Planned) => Tone::Plain,
        Ok(Outcome::Stale | Outcome::NotSent | Outcome::Unknown) => Tone::Warn,
        Ok(Outcome::Rejected | Outcome::Denied) => Tone::Bad,
        Ok(Outcome::Unspecified) | Err(_) => Tone::Plain,
    };
    // OUTCOME_UNKNOWN keeps its whole name: UNKNOWN alone says too little.
    let name = enum_name!(Outcome, "OUTCOME_", value);
    Cell::toned(
        if name == "UNKNOWN" {
            "OUTCOME_UNKNOWN".to_owned()
        } else {
            name
        },
        tone,
    )
}

/// What a status of one target says, and which option helps.
fn status_words(status: Option<&tonic_types::Status>) -> String {
    let Some(status) = status.filter(|status| status.code != 0) else {
        return String::new();
    };
    let reason = status.get_details_error_info().map(|info| info.reason);
    match reason.as_deref() {
        Some("NEEDS_FORCE") => format!("{} (--force allows it)", escape(&status.message)),
        _ => escape(&status.message),
    }
}

/// A target's outcome leaves nothing to be done. `wait`: it was to be seen to
/// be so.
pub(crate) fn is_done(outcome: i32, wait: bool) -> bool {
    match Outcome::try_from(outcome) {
        Ok(Outcome::Confirmed | Outcome::AlreadyGone | Outcome::Planned) => true,
        Ok(Outcome::Accepted) => !wait,
        _ => false,
    }
}

/// Says which instances could not be asked for their clients.
pub(crate) fn report_unasked(response: &KillClientsResponse) -> Verdict {
    let ok = |status: &Option<tonic_types::Status>| {
        status.as_ref().is_none_or(|status| status.code == 0)
    };
    let unasked: Vec<_> = response
        .instances
        .iter()
        .filter(|row| !row.asked || !ok(&row.status))
        .collect();
    if !unasked.is_empty() {
        let all = response.instances.len();
        note(&format!(
            "ovfleet: {} of {all} instances could not be asked:",
            unasked.len()
        ));
        for row in &unasked {
            let words = status_words(row.status.as_ref());
            note(&format!(
                "  {}: {words}",
                full_name(&row.gateway, &row.instance)
            ));
        }
    }
    Verdict::done_if(unasked.is_empty())
}

/// Says how an action went as a whole, and under which id it can be looked up.
pub(crate) fn report_outcomes(
    request_id: &str,
    outcomes: impl Iterator<Item = i32>,
    cut_short: bool,
) {
    let mut numbers = BTreeMap::<String, u64>::new();
    for value in outcomes {
        *numbers
            .entry(enum_name!(Outcome, "OUTCOME_", value))
            .or_default() += 1;
    }
    let numbers: Vec<_> = numbers
        .iter()
        .map(|(outcome, number)| format!("{} {outcome}", count(*number)))
        .collect();
    let numbers = if numbers.is_empty() {
        "nothing to do".to_owned()
    } else {
        numbers.join(", ")
    };
    let cut = if cut_short {
        "; cut short: not all was sent in time"
    } else {
        ""
    };
    note(&format!("ovfleet: request {request_id}: {numbers}{cut}"));
}

/// `3 clients`, `1 client`.
pub(crate) fn number_of(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {what}{plural}", count(number as u64))
}

/// How long an action took, or that it runs.
pub(crate) fn took(
    started: Option<&prost_types::Timestamp>,
    finished: Option<&prost_types::Timestamp>,
) -> String {
    match (started, finished.and_then(crate::text::moment)) {
        (Some(started), Some(finished)) => age(Some(started), finished),
        (Some(_), None) => "running".to_owned(),
        (None, _) => elapsed(None),
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::{ErrorDetails, StatusExt as _};

    use super::*;

    #[test]
    fn only_what_needs_nothing_more_is_done() {
        let done = |outcome: Outcome, wait| is_done(outcome.into(), wait);
        assert!(done(Outcome::Confirmed, true) && done(Outcome::AlreadyGone, true));
        assert!(done(Outcome::Accepted, false) && !done(Outcome::Accepted, true));
        for outcome in [
            Outcome::Stale,
            Outcome::Rejected,
            Outcome::Denied,
            Outcome::NotSent,
            Outcome::Unknown,
            Outcome::Unspecified,
        ] {
            assert!(!done(outcome, false), "{outcome:?}");
        }
        assert!(
            !is_done(99, false),
            "an outcome of a newer gateway is not known to be good"
        );
    }

    #[test]
    fn request_ids_are_new_and_valid() {
        let (one, other) = (new_request_id().unwrap(), new_request_id().unwrap());
        assert_ne!(one, other);
        assert_eq!(crate::value::request_id(&one), Ok(one));
    }

    /// "Never sent" must not be said of what may have been.
    #[test]
    fn a_lost_answer_is_not_a_refusal() {
        assert!(is_fate_unknown(&Status::unavailable("connection reset")));
        assert!(is_fate_unknown(&Status::deadline_exceeded("late")));
        assert!(is_fate_unknown(&Status::cancelled("Timeout expired")));
        assert!(!is_fate_unknown(&Status::failed_precondition("too many")));
        assert!(!is_fate_unknown(&Status::permission_denied("read-only")));
        let said = |reason: &str| {
            let details = ErrorDetails::with_error_info(reason, "ovfleet", []);
            Status::with_error_details(Code::Unavailable, "because", details)
        };
        assert!(!is_fate_unknown(&said("NOT_ATTACHED")));
        assert!(!is_fate_unknown(&said("STATE_UNAVAILABLE")));
        assert!(is_fate_unknown(&said("OUTCOME_UNKNOWN")));
    }
}
