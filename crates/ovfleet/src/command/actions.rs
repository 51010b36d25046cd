//! `actions`: what was done through the gateway, and the results of one action.

use ovfleet_proto::v1::{
    Action, GetActionRequest, ListActionsRequest, ListActionsResponse, action::Result as Results,
};

use crate::{
    action::took,
    args::{ActionsArgs, Format},
    command::{kill, signal},
    failure::{Failure, Outcome, Verdict},
    gateway::Gateway,
    listing::{Page, collect, report_limit},
    output::{Output, note},
    table::{Table, column},
    text::{escape, minute},
};

pub(crate) async fn run(gateway: &Gateway, args: ActionsArgs, output: &mut Output) -> Outcome {
    match args.request_id {
        Some(request_id) => show(gateway, request_id, output).await,
        None => list(gateway, args.list.limit, output).await,
    }
}

async fn list(gateway: &Gateway, limit: Option<u32>, output: &mut Output) -> Outcome {
    let listing = collect(limit, async |page_size, page_token| {
        let request = ListActionsRequest {
            page_size,
            page_token,
        };
        let response = gateway
            .control()
            .list_actions(gateway.request(request))
            .await?;
        let ListActionsResponse {
            actions,
            next_page_token,
        } = response.into_inner();
        Ok(Page {
            rows: actions,
            next_page_token,
            unreachable: Vec::new(),
            as_of: None,
        })
    })
    .await
    .map_err(|status| gateway.failure(status))?;
    report_limit(&listing);
    match output.format() {
        Format::Table if listing.rows.is_empty() => note("ovfleet: no actions"),
        Format::Table => output.table(&table(&listing.rows), false)?,
        Format::Json => {
            let document = ListActionsResponse {
                actions: listing.rows,
                next_page_token: String::new(),
            };
            output.document("ListActionsResponse", &document, &["actions"])?;
        }
        Format::Jsonl => output.json_lines("Action", &listing.rows)?,
    }
    Ok(Verdict::Done)
}

fn table(actions: &[Action]) -> Table {
    let mut table = Table::new([
        column("REQUEST ID"),
        column("WHAT"),
        column("STARTED"),
        column("TOOK").right().rank(2),
        column("CALLER").rank(1),
    ]);
    for action in actions {
        table.row([
            escape(&action.request_id).into(),
            what(action).into(),
            minute(action.started_time.as_ref()).into(),
            took(action.started_time.as_ref(), action.finished_time.as_ref()).into(),
            escape(&action.caller).into(),
        ]);
    }
    table
}

fn what(action: &Action) -> &'static str {
    match &action.result {
        Some(Results::KillClients(response)) if response.validate_only => "kill (plan)",
        Some(Results::KillClients(_)) => "kill",
        Some(Results::SignalInstances(response)) if response.validate_only => "signal (plan)",
        Some(Results::SignalInstances(_)) => "signal",
        None => "",
    }
}

async fn show(gateway: &Gateway, request_id: String, output: &mut Output) -> Outcome {
    let request = GetActionRequest { request_id };
    let response = gateway
        .control()
        .get_action(gateway.request(request))
        .await
        .map_err(|status| gateway.failure(status))?;
    let action = response.into_inner().action.unwrap_or_default();
    match output.format() {
        Format::Table => {
            let state = match &action.finished_time {
                Some(_) => "finished",
                None => "still running: these are the results so far",
            };
            let (caller, started) = (escape(&action.caller), minute(action.started_time.as_ref()));
            note(&format!(
                "ovfleet: {} by {caller}, {started}, {state}",
                what(&action)
            ));
            results(&action, output)?;
        }
        Format::Json => output.document("Action", &action, &[])?,
        Format::Jsonl => output.json_line("Action", &action)?,
    }
    let finished = Verdict::done_if(action.finished_time.is_some());
    Ok(finished.and(match &action.result {
        Some(Results::KillClients(response)) => kill::verdict(response, false),
        Some(Results::SignalInstances(response)) => signal::verdict(response),
        None => Verdict::Incomplete,
    }))
}

fn results(action: &Action, output: &mut Output) -> Result<(), Failure> {
    match &action.result {
        Some(Results::KillClients(response)) => kill::show(response, output),
        Some(Results::SignalInstances(response)) => signal::show(response, output),
        None => Ok(()),
    }
}
