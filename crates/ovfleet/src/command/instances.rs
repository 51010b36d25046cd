//! `instances`: the daemons, and the condition of our sessions to them.

use jiff::Timestamp;
use ovfleet_proto::v1::{ListInstancesRequest, ListInstancesResponse};

use crate::{
    args::{Format, InstancesArgs},
    failure::{Outcome, Verdict},
    gateway::Gateway,
    listing::{Page, collect, report_limit, report_unreachable},
    output::{Output, note},
    rows,
};

pub(crate) async fn run(gateway: &Gateway, args: InstancesArgs, output: &mut Output) -> Outcome {
    let selector = args.instances.selector();
    let narrow = args.instances.is_narrow() || !args.condition.is_empty();
    let listing = collect(args.list.limit, async |page_size, page_token| {
        let request = ListInstancesRequest {
            selector: Some(selector.clone()),
            page_size,
            page_token,
            conditions: args.condition.clone(),
        };
        let response = gateway
            .fleet()
            .list_instances(gateway.request(request))
            .await?;
        let ListInstancesResponse {
            instances,
            next_page_token,
            unreachable,
            as_of,
        } = response.into_inner();
        Ok(Page {
            rows: instances,
            next_page_token,
            unreachable,
            as_of,
        })
    })
    .await
    .map_err(|status| gateway.failure(status))?;

    report_limit(&listing);
    let found = !listing.rows.is_empty();
    match output.format() {
        Format::Table if found => {
            output.table(
                &rows::instances(&listing.rows, args.list.wide, Timestamp::now()),
                args.list.wide,
            )?;
        }
        Format::Table => note("ovfleet: no instance matches"),
        Format::Json => {
            let document = ListInstancesResponse {
                instances: listing.rows,
                next_page_token: String::new(),
                unreachable: listing.unreachable.clone(),
                as_of: listing.as_of,
            };
            output.document(
                "ListInstancesResponse",
                &document,
                &["instances", "unreachable"],
            )?;
        }
        Format::Jsonl => output.json_lines("Instance", &listing.rows)?,
    }
    let asked = report_unreachable(gateway, &selector, &listing.unreachable).await;
    Ok(asked.and(Verdict::done_if(found || !narrow)))
}
