//! `signal`: a signal to daemons, a few at a time.

use std::time::Duration;

use ovfleet_proto::v1::{
    InstanceSelector, Outcome as TargetOutcome, Signal, SignalInstancesRequest,
    SignalInstancesResponse, SignalWait,
};

use crate::{
    action::{self, Consent, signal_table},
    args::{Format, SignalArgs, WaitFor},
    failure::{Failure, Outcome, Verdict},
    gateway::Gateway,
    output::{Output, note},
    text::{count, enum_name},
    value::proto_duration,
};

/// What the call may take beyond its instances.
const BASE_TIMEOUT: Duration = Duration::from_secs(30);
/// What an instance may take: to answer, or to restart and come back.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(5);
const RESTART_TIMEOUT: Duration = Duration::from_secs(60);

/// What is missing on the command line, before anything is asked of anybody.
pub(crate) fn check(args: &SignalArgs) -> Result<(), Failure> {
    if args.instances.is_empty() {
        return Err(Failure::Usage(
            "signal wants to know where: --all, -l LABELS or --instance NAME".to_owned(),
        ));
    }
    Ok(())
}

pub(crate) async fn run(gateway: &Gateway, args: SignalArgs, output: &mut Output) -> Outcome {
    let request = request(&args)?;
    // Made also with --yes: the plan tells how many instances there are, and so
    // how long the call may take.
    let plan_request = SignalInstancesRequest {
        validate_only: true,
        request_id: action::new_request_id()?,
        ..request.clone()
    };
    let plan = gateway
        .control()
        .signal_instances(gateway.request(plan_request))
        .await
        .map_err(|status| gateway.failure(status))?
        .into_inner();
    let timeout = timeout(&args, plan.results.len());
    if args.action.yes {
        return act(gateway, request, timeout, output).await;
    }

    let planned: Vec<_> = plan
        .results
        .iter()
        .filter(|result| result.outcome == i32::from(TargetOutcome::Planned))
        .collect();
    let resolved = Verdict::done_if(planned.len() == plan.results.len());
    if args.action.dry_run || planned.is_empty() {
        show(&plan, output)?;
        return Ok(resolved.and(Verdict::done_if(!planned.is_empty())));
    }

    let table =
        signal_table(&plan.results).render(output.size().map(|(columns, _)| columns), false);
    note(table.trim_end());
    let signal = enum_name!(Signal, "SIGNAL_", args.signal);
    let clients: u64 = planned.iter().map(|result| result.clients).sum();
    let effect = match Signal::try_from(args.signal) {
        Ok(Signal::Sighup | Signal::Sigusr1) => {
            format!(", which disconnects their {} clients", count(clients))
        }
        Ok(Signal::Sigterm) => format!(", which ends them and their {} clients", count(clients)),
        _ => String::new(),
    };
    let many = action::number_of(planned.len(), "instance");
    match action::ask(&format!(
        "This will send {signal} to {many}{effect}. Go on?"
    ))? {
        Consent::Given => {}
        Consent::Refused => return Err(Failure::Failed("nothing was sent".to_owned())),
        Consent::NobodyToAsk => return Err(action::not_asked()),
    }
    let names = planned
        .iter()
        .map(|result| format!("{}/{}", result.gateway, result.instance))
        .collect();
    let exact = SignalInstancesRequest {
        selector: Some(InstanceSelector {
            names,
            ..InstanceSelector::default()
        }),
        ..request
    };
    let done = act(gateway, exact, timeout, output).await?;
    Ok(done.and(resolved))
}

fn request(args: &SignalArgs) -> Result<SignalInstancesRequest, Failure> {
    let wait_for = match args.wait_for {
        WaitFor::Accepted => SignalWait::Accepted,
        WaitFor::Reattached => SignalWait::Reattached,
        WaitFor::Connected => SignalWait::Connected,
    };
    Ok(SignalInstancesRequest {
        selector: Some(args.instances.selector()),
        signal: args.signal,
        in_flight_max: args.in_flight,
        pause: args.pause.map(proto_duration),
        stop_after_failures: args.stop_after_failures.unwrap_or(0),
        wait_for: wait_for.into(),
        force: args.force,
        validate_only: false,
        max_instances: args.action.max_instances.unwrap_or(0),
        request_id: args.action.request.id()?,
    })
}

/// How long the call may take, unless `--timeout` says: what its instances may
/// take one after another, as many at a time as are allowed.
fn timeout(args: &SignalArgs, instances: usize) -> Duration {
    let each = args.pause.unwrap_or_default()
        + match args.wait_for {
            WaitFor::Accepted => ACCEPT_TIMEOUT,
            WaitFor::Reattached | WaitFor::Connected => RESTART_TIMEOUT,
        };
    let turns = instances.div_ceil(args.in_flight.max(1) as usize);
    BASE_TIMEOUT + each.saturating_mul(u32::try_from(turns).unwrap_or(u32::MAX))
}

async fn act(
    gateway: &Gateway,
    request: SignalInstancesRequest,
    timeout: Duration,
    output: &mut Output,
) -> Outcome {
    let request_id = request.request_id.clone();
    let mut control = gateway.control();
    let call = control.signal_instances(gateway.request_within(timeout, request));
    let response = action::carry_out(gateway, &request_id, call).await?;
    show(&response, output)?;
    let outcomes = response.results.iter().map(|result| result.outcome);
    action::report_outcomes(&response.request_id, outcomes, response.cut_short);
    Ok(verdict(&response))
}

/// Whether every instance is done, and there was one. The gateway itself waits
/// for what `wait_for` says before it reports an instance as accepted.
pub(crate) fn verdict(response: &SignalInstancesResponse) -> Verdict {
    let SignalInstancesResponse {
        results, cut_short, ..
    } = response;
    let all = results
        .iter()
        .all(|result| action::is_done(result.outcome, false));
    Verdict::done_if(all && !results.is_empty() && !cut_short)
}

/// The results: a row per instance.
pub(crate) fn show(response: &SignalInstancesResponse, output: &mut Output) -> Result<(), Failure> {
    match output.format() {
        Format::Table if response.results.is_empty() => {
            note("ovfleet: no instance matches");
            Ok(())
        }
        Format::Table => output.table(&signal_table(&response.results), false),
        Format::Json => output.document("SignalInstancesResponse", response, &["results"]),
        Format::Jsonl => output.json_lines("SignalResult", &response.results),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(options: &[&str]) -> SignalArgs {
        let line = ["ovfleet", "signal", "SIGUSR1", "--all"]
            .iter()
            .chain(options);
        match crate::args::parse_from(line).unwrap().command {
            crate::args::Command::Signal(args) => args,
            other => panic!("{other:?}"),
        }
    }

    /// Thirty seconds would cut every rolling restart short.
    #[test]
    fn a_rolling_signal_gets_the_time_that_it_needs() {
        assert_eq!(timeout(&args(&[]), 3), Duration::from_secs(30 + 3 * 5));
        let rolling = args(&[
            "--in-flight",
            "2",
            "--pause",
            "5s",
            "--wait-for",
            "connected",
        ]);
        assert_eq!(timeout(&rolling, 5), Duration::from_secs(30 + 3 * 65));
    }
}
