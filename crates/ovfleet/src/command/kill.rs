//! `kill`: ends clients: the plan, the question, and then exactly the plan.

use std::collections::BTreeSet;

use ovfleet_proto::v1::{
    ClientFilter, InstanceSelector, KillClientsRequest, KillClientsResponse, KillMode, KillResult,
    Outcome as TargetOutcome,
};

use crate::{
    action::{self, Consent, kill_table},
    args::{Format, KillArgs, Mode},
    failure::{Failure, Outcome, Verdict},
    gateway::Gateway,
    output::{Output, note},
};

/// What is missing on the command line, before anything is asked of anybody.
pub(crate) fn check(args: &KillArgs) -> Result<(), Failure> {
    let usage = |message: &str| Err(Failure::Usage(message.to_owned()));
    if args.instances.is_empty() && args.filter.ref_instances().is_empty() {
        return usage("kill wants to know where: --all, -l LABELS or --instance NAME");
    }
    match (args.filter.is_empty(), args.every_client) {
        (true, false) => usage(
            "kill wants to know whom: --common-name, --username, --real-address, \
             --virtual-address or --ref; or --every-client",
        ),
        (false, true) => usage("--every-client goes without a filter: it means everybody"),
        _ => Ok(()),
    }
}

pub(crate) async fn run(gateway: &Gateway, args: KillArgs, output: &mut Output) -> Outcome {
    let request = request(&args)?;
    if args.action.yes {
        return act(gateway, request, args.wait, output).await;
    }

    let plan_request = KillClientsRequest {
        validate_only: true,
        wait: false,
        request_id: action::new_request_id()?,
        ..request.clone()
    };
    let plan = gateway
        .control()
        .kill_clients(gateway.request(plan_request))
        .await
        .map_err(|status| gateway.failure(status))?
        .into_inner();
    let asked = action::report_unasked(&plan);
    let targets = Plan::of(&plan);
    if args.action.dry_run || targets.refs.is_empty() {
        show(&plan, output)?;
        let resolved = plan
            .results
            .iter()
            .all(|result| action::is_done(result.outcome, false));
        return Ok(asked.and(Verdict::done_if(resolved && !targets.refs.is_empty())));
    }

    let how = match (&args.message, args.mode) {
        (Some(_), _) => "tell your message to",
        (None, Some(Mode::Halt)) => "end, to stay out,",
        (None, Some(Mode::Restart) | None) => "end",
    };
    let whom = action::number_of(targets.refs.len(), "client");
    let many = action::number_of(targets.instances.len(), "instance");
    let table = kill_table(&plan.results).render(output.size().map(|(columns, _)| columns), false);
    note(table.trim_end());
    match action::ask(&format!("This will {how} {whom} on {many}. Go on?"))? {
        Consent::Given => {}
        Consent::Refused => {
            return Err(Failure::Failed("nothing was sent".to_owned()));
        }
        Consent::NobodyToAsk => return Err(action::not_asked()),
    }

    // The references name exactly whom the plan showed: somebody who connected
    // since is not hit, whatever his name.
    let exact = KillClientsRequest {
        selector: Some(InstanceSelector {
            names: targets.instances.into_iter().collect(),
            ..InstanceSelector::default()
        }),
        filter: Some(ClientFilter {
            refs: targets.refs,
            ..ClientFilter::default()
        }),
        every_client: false,
        ..request
    };
    let done = act(gateway, exact, args.wait, output).await?;
    Ok(done.and(asked))
}

fn request(args: &KillArgs) -> Result<KillClientsRequest, Failure> {
    let mut selector = args.instances.selector();
    if args.instances.is_empty() {
        selector.names = args.filter.ref_instances();
    }
    let mode = match (&args.message, args.mode) {
        (Some(_), _) => KillMode::Message,
        (None, Some(Mode::Halt)) => KillMode::Halt,
        (None, Some(Mode::Restart) | None) => KillMode::Restart,
    };
    Ok(KillClientsRequest {
        selector: Some(selector),
        filter: Some(args.filter.filter()),
        every_client: args.every_client,
        mode: mode.into(),
        message: args.message.clone().unwrap_or_default(),
        validate_only: false,
        max_clients: args.max_clients.unwrap_or(0),
        max_instances: args.action.max_instances.unwrap_or(0),
        wait: args.wait,
        request_id: args.action.request.id()?,
    })
}

/// Whom a plan would hit.
struct Plan {
    refs: Vec<ovfleet_proto::v1::ClientRef>,
    /// Their instances, as `gateway/instance`.
    instances: BTreeSet<String>,
}

impl Plan {
    fn of(plan: &KillClientsResponse) -> Self {
        let planned = i32::from(TargetOutcome::Planned);
        let refs: Vec<_> = plan
            .results
            .iter()
            .filter(|result| result.outcome == planned)
            .filter_map(|result| result.r#ref.clone())
            .collect();
        let instances = refs
            .iter()
            .map(|client| format!("{}/{}", client.gateway, client.instance))
            .collect();
        Self { refs, instances }
    }
}

async fn act(
    gateway: &Gateway,
    request: KillClientsRequest,
    wait: bool,
    output: &mut Output,
) -> Outcome {
    let request_id = request.request_id.clone();
    let mut control = gateway.control();
    let call = control.kill_clients(gateway.request(request));
    let response = action::carry_out(gateway, &request_id, call).await?;
    show(&response, output)?;
    let outcomes = response.results.iter().map(|result| result.outcome);
    action::report_outcomes(&response.request_id, outcomes, response.cut_short);
    let asked = action::report_unasked(&response);
    Ok(asked.and(verdict(&response, wait)))
}

/// Whether everybody who matched is done, and somebody matched.
pub(crate) fn verdict(response: &KillClientsResponse, wait: bool) -> Verdict {
    let KillClientsResponse {
        results, cut_short, ..
    } = response;
    let all = results
        .iter()
        .all(|result| action::is_done(result.outcome, wait));
    Verdict::done_if(all && !results.is_empty() && !cut_short)
}

/// The results: a row per client.
pub(crate) fn show(response: &KillClientsResponse, output: &mut Output) -> Result<(), Failure> {
    let results: &[KillResult] = &response.results;
    match output.format() {
        Format::Table if results.is_empty() => {
            note("ovfleet: no client matches");
            Ok(())
        }
        Format::Table => output.table(&kill_table(results), false),
        Format::Json => output.document("KillClientsResponse", response, &["results", "instances"]),
        Format::Jsonl => output.json_lines("KillResult", results),
    }
}
