//! `clients`: the clients of all instances, as one list.

use jiff::Timestamp;
use ovfleet_proto::v1::{ClientOrder, ListClientsRequest, ListClientsResponse, View};

use crate::{
    args::{ClientsArgs, Format, Sort},
    failure::{Outcome, Verdict},
    gateway::Gateway,
    listing::{Page, collect, report_limit, report_unreachable},
    output::{Output, note},
    rows::{self, Focus},
};

/// Rows of a list by bytes, unless said: such a list has one page.
const TOP: u32 = 100;

pub(crate) async fn run(gateway: &Gateway, args: ClientsArgs, output: &mut Output) -> Outcome {
    let selector = args.instances.selector();
    let filter = args.filter.filter();
    let order = match args.sort {
        Sort::Instance => ClientOrder::Instance,
        Sort::Since => ClientOrder::ConnectedSince,
        Sort::Name => ClientOrder::CommonName,
        Sort::Bytes => ClientOrder::Bytes,
    };
    let focus = match args.sort {
        Sort::Bytes => Focus::Traffic,
        _ => Focus::Addresses,
    };
    let limit = match args.sort {
        Sort::Bytes => Some(args.list.limit.unwrap_or(TOP)),
        _ => args.list.limit,
    };
    // A table shows nothing of what only the full view has.
    let view = if output.format() == Format::Table {
        View::Basic
    } else {
        View::Full
    };
    let max_age = args.freshness.max_age();
    let listing = collect(limit, async |page_size, page_token| {
        let request = ListClientsRequest {
            selector: Some(selector.clone()),
            filter: Some(filter.clone()),
            page_size,
            page_token,
            order_by: order.into(),
            descending: args.desc,
            view: view.into(),
            max_age,
            require_complete: false,
        };
        let response = gateway
            .fleet()
            .list_clients(gateway.request(request))
            .await?;
        let ListClientsResponse {
            clients,
            next_page_token,
            unreachable,
            as_of,
        } = response.into_inner();
        Ok(Page {
            rows: clients,
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
                &rows::clients(&listing.rows, focus, args.list.wide, Timestamp::now()),
                args.list.wide,
            )?;
        }
        Format::Table => note("ovfleet: no client matches"),
        Format::Json => {
            let document = ListClientsResponse {
                clients: listing.rows,
                next_page_token: String::new(),
                unreachable: listing.unreachable.clone(),
                as_of: listing.as_of,
            };
            output.document(
                "ListClientsResponse",
                &document,
                &["clients", "unreachable"],
            )?;
        }
        Format::Jsonl => output.json_lines("Client", &listing.rows)?,
    }
    let asked = report_unreachable(gateway, &selector, &listing.unreachable).await;
    // An empty fleet is an answer; somebody looked for and not found is not.
    Ok(asked.and(Verdict::done_if(found || args.filter.is_empty())))
}
