//! `summary`: the fleet in numbers.

use ovfleet_proto::v1::{GetSummaryRequest, GetSummaryResponse, Totals};

use crate::{
    args::{Format, SummaryArgs},
    failure::Outcome,
    gateway::Gateway,
    listing::report_unreachable,
    output::Output,
    rows::labels,
    table::{Table, column},
    text::{bytes, count, minute},
};

pub(crate) async fn run(gateway: &Gateway, args: SummaryArgs, output: &mut Output) -> Outcome {
    let selector = args.instances.selector();
    let request = GetSummaryRequest {
        selector: Some(selector.clone()),
        group_by: args.by,
    };
    let response = gateway
        .fleet()
        .get_summary(gateway.request(request))
        .await
        .map_err(|status| gateway.failure(status))?
        .into_inner();
    match output.format() {
        Format::Table => show(&response, output)?,
        Format::Json => {
            output.document("GetSummaryResponse", &response, &["groups", "unreachable"])?;
        }
        Format::Jsonl if response.groups.is_empty() => {
            output.json_line("Totals", &response.totals.clone().unwrap_or_default())?;
        }
        Format::Jsonl => output.json_lines("SummaryGroup", &response.groups)?,
    }
    Ok(report_unreachable(gateway, &selector, &response.unreachable).await)
}

fn show(response: &GetSummaryResponse, output: &mut Output) -> Result<(), crate::failure::Failure> {
    let totals = response.totals.clone().unwrap_or_default();
    output.text(&lines(&totals))?;
    if response.groups.is_empty() {
        return Ok(());
    }
    let mut table = Table::new([
        column("LABELS"),
        column("ATTACHED").right(),
        column("INSTANCES").right(),
        column("CLIENTS").right(),
        column("HALF-OPEN").right().rank(2),
        column("RECEIVED").right().rank(1),
        column("SENT").right().rank(1),
    ]);
    for group in &response.groups {
        let totals = group.totals.clone().unwrap_or_default();
        let labels = labels(&group.labels);
        table.row([
            if labels.is_empty() {
                "(none)".into()
            } else {
                labels.into()
            },
            count(totals.instances_attached).into(),
            count(totals.instances).into(),
            count(totals.clients).into(),
            count(totals.half_open_clients).into(),
            bytes(totals.bytes_received).into(),
            bytes(totals.bytes_sent).into(),
        ]);
    }
    output.line("")?;
    output.table(&table, false)
}

/// The totals as sentences, each with its base.
fn lines(totals: &Totals) -> String {
    let Totals {
        instances,
        instances_attached,
        instances_by_condition,
        clients,
        half_open_clients,
        bytes_received,
        bytes_sent,
        counting_since,
    } = totals;
    let mut others: Vec<_> = instances_by_condition
        .iter()
        .filter(|(condition, number)| *condition != "ATTACHED" && **number > 0)
        .map(|(condition, number)| format!("{} {condition}", count(*number)))
        .collect();
    others.sort();
    let others = if others.is_empty() {
        String::new()
    } else {
        format!(" ({})", others.join(", "))
    };
    let half_open = match half_open_clients {
        0 => String::new(),
        number => format!(" and {} half-open", count(*number)),
    };
    let since = match counting_since {
        Some(since) => format!(" since {}", minute(Some(since))),
        None => String::new(),
    };
    format!(
        "instances  {} of {} attached{others}\n\
         clients    {}{half_open}\n\
         received   {}{since}\n\
         sent       {}{since}\n",
        count(*instances_attached),
        count(*instances),
        count(*clients),
        bytes(*bytes_received),
        bytes(*bytes_sent),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_said_with_their_base() {
        let totals = Totals {
            instances: 420,
            instances_attached: 412,
            instances_by_condition: [("ATTACHED", 412), ("UNREACHABLE", 5), ("SLOT_BUSY", 3)]
                .map(|(condition, number)| (condition.to_owned(), number))
                .into(),
            clients: 1_803,
            half_open_clients: 2,
            bytes_received: 1 << 30,
            ..Totals::default()
        };
        assert_eq!(
            lines(&totals),
            "instances  412 of 420 attached (3 SLOT_BUSY, 5 UNREACHABLE)\n\
             clients    1,803 and 2 half-open\n\
             received   1.0 GiB\n\
             sent       0 B\n"
        );
    }
}
