//! `routes`: the routing tables of all instances, as one list.

use jiff::Timestamp;
use ovfleet_proto::v1::{ListRoutesRequest, ListRoutesResponse};

use crate::{
    args::{Format, RoutesArgs},
    failure::{Outcome, Verdict},
    gateway::Gateway,
    listing::{Page, collect, report_limit, report_unreachable},
    output::{Output, note},
    rows,
};

pub(crate) async fn run(gateway: &Gateway, args: RoutesArgs, output: &mut Output) -> Outcome {
    let selector = args.instances.selector();
    let filter = args.filter.filter();
    let max_age = args.freshness.max_age();
    let listing = collect(args.list.limit, async |page_size, page_token| {
        let request = ListRoutesRequest {
            selector: Some(selector.clone()),
            filter: Some(filter.clone()),
            page_size,
            page_token,
            max_age,
            require_complete: false,
        };
        let response = gateway
            .fleet()
            .list_routes(gateway.request(request))
            .await?;
        let ListRoutesResponse {
            routes,
            next_page_token,
            unreachable,
            as_of,
        } = response.into_inner();
        Ok(Page {
            rows: routes,
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
                &rows::routes(&listing.rows, args.list.wide, Timestamp::now()),
                args.list.wide,
            )?;
        }
        Format::Table => note("ovfleet: no route matches"),
        Format::Json => {
            let document = ListRoutesResponse {
                routes: listing.rows,
                next_page_token: String::new(),
                unreachable: listing.unreachable.clone(),
                as_of: listing.as_of,
            };
            output.document("ListRoutesResponse", &document, &["routes", "unreachable"])?;
        }
        Format::Jsonl => output.json_lines("Route", &listing.rows)?,
    }
    let asked = report_unreachable(gateway, &selector, &listing.unreachable).await;
    Ok(asked.and(Verdict::done_if(found || args.filter.is_empty())))
}
