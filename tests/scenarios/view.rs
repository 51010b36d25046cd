//! The fleet as one table: what is listed is what the daemons say, selected, ordered and
//! paged as asked.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result, ensure};
use ovfleet_proto::v1::{self, Client as Row, ClientFilter, ClientOrder, InstanceSelector};
use ovfleet_tests::{
    Api, Client, Gateway, GatewayConfig, InstanceConfig, Management, Proto, Server,
    api::{by_name, named, timed},
    poll_until,
    status::Status,
};

/// A new client is known as soon as its daemon says so; this covers a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// Three servers, each with another kind of management address, and seven clients.
struct Fleet {
    servers: [Server; 3],
    clients: Vec<Client>,
    gateway: Gateway,
    api: Api,
}

impl Fleet {
    async fn start() -> Result<Self> {
        let eu1 = Server::builder("eu1")
            .password("a b\"c\\d")
            .duplicate_cn()
            .start()
            .await?;
        let eu2 = Server::builder("eu2")
            .proto(Proto::Tcp)
            .management(Management::Tcp)
            .password("s3cret pass")
            .start()
            .await?;
        let us1 = Server::builder("us1").start().await?;
        let mut clients = Vec::new();
        for (server, name) in [
            (&eu1, "alice"),
            (&eu1, "alice"),
            (&eu1, "smith, john"),
            (&eu2, "alice"),
            (&eu2, "bob"),
            (&us1, "Jürgen Größe 東京"),
            (&us1, "bob"),
        ] {
            clients.push(Client::builder(server, name).start()?);
        }
        for client in &mut clients {
            client.wait_connected(1).await?;
        }
        let gateway = GatewayConfig::new()
            .instance(
                InstanceConfig::of(&eu1)
                    .label("region", "eu")
                    .label("proto", "udp"),
            )
            .instance(
                InstanceConfig::of(&eu2)
                    .label("region", "eu")
                    .label("proto", "tcp"),
            )
            .instance(
                InstanceConfig::of(&us1)
                    .label("region", "us")
                    .label("proto", "udp"),
            )
            .start()
            .await?;
        let mut api = Api::connect(&gateway).await?;
        api.wait_attached().await?;
        api.wait_clients(ClientFilter::default(), clients.len(), SOON)
            .await?;
        Ok(Self {
            servers: [eu1, eu2, us1],
            clients,
            gateway,
            api,
        })
    }

    /// `(instance, common name)` of the clients that a request selects.
    async fn names(&mut self, request: v1::ListClientsRequest) -> Result<Vec<(String, String)>> {
        let response = self
            .api
            .fleet
            .list_clients(timed(request))
            .await?
            .into_inner();
        Ok(response.clients.into_iter().map(name_of).collect())
    }
}

fn name_of(row: Row) -> (String, String) {
    (row.r#ref.unwrap_or_default().instance, row.common_name)
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected
        .iter()
        .map(|(instance, name)| ((*instance).to_owned(), (*name).to_owned()))
        .collect()
}

/// If a column were swapped, a row dropped, merged by name, or taken from the wrong daemon,
/// the list would differ from what each daemon writes to its own status file.
#[tokio::test]
async fn the_list_is_what_the_daemons_write() -> Result<()> {
    let mut fleet = Fleet::start().await?;
    let mut before: Vec<Status> = Vec::new();
    for server in &fleet.servers {
        before.push(server.fresh_status().await?);
    }
    let rows = fleet.api.clients(ClientFilter::default()).await?;
    let mut after: Vec<Status> = Vec::new();
    for server in &fleet.servers {
        after.push(server.fresh_status().await?);
    }

    let mut listed = 0;
    for ((server, before), after) in fleet.servers.iter().zip(&before).zip(&after) {
        for (cid, first) in &before.clients {
            let last = after.clients.get(cid).context("a client left")?;
            let row = rows
                .iter()
                .find(|row| {
                    row.r#ref
                        .as_ref()
                        .is_some_and(|r| r.instance == server.name() && r.cid == *cid)
                })
                .with_context(|| format!("{first:?} is not listed: {rows:#?}"))?;
            ensure!(first.is_shown_by(row), "{row:#?} is not {first:#?}");
            ensure!(!row.stale && !row.half_open, "{row:?}");
            let received = first.bytes_received..=last.bytes_received;
            let sent = first.bytes_sent..=last.bytes_sent;
            ensure!(
                received.contains(&row.bytes_received),
                "{row:?} not in {received:?}"
            );
            ensure!(sent.contains(&row.bytes_sent), "{row:?} not in {sent:?}");
            listed += 1;
        }
    }
    ensure!(
        listed == 7 && rows.len() == 7,
        "{listed} of {} rows",
        rows.len()
    );
    let alices: BTreeSet<u64> = rows
        .iter()
        .filter_map(|row| Some((row.r#ref.as_ref()?, &row.common_name)))
        .filter(|(r, name)| r.instance == "eu1" && *name == "alice")
        .map(|(r, _)| r.cid)
        .collect();
    ensure!(alices.len() == 2, "one name, two clients: {rows:#?}");
    Ok(())
}

/// The command line must show the same rows as the API, in every format, and routes must
/// lead to the clients they belong to.
#[tokio::test]
async fn the_command_line_shows_the_same() -> Result<()> {
    let mut fleet = Fleet::start().await?;
    let rows = fleet.api.clients(ClientFilter::default()).await?;
    let expected: BTreeSet<(String, String)> = rows
        .iter()
        .map(|row| (row.common_name.clone(), row.real_address.clone()))
        .collect();

    let json = fleet.gateway.cli_json(&["clients"]).await?;
    let listed = json["clients"]
        .as_array()
        .with_context(|| json.to_string())?;
    let text = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap_or("").to_owned();
    let seen: BTreeSet<(String, String)> = listed
        .iter()
        .map(|row| (text(row, "commonName"), text(row, "realAddress")))
        .collect();
    ensure!(seen == expected && listed.len() == 7, "{json:#}");

    let lines = fleet.gateway.cli(&["clients", "-o", "jsonl"]).await?;
    ensure!(
        lines.code == Some(0) && lines.stdout.lines().count() == 7,
        "{lines:?}"
    );
    let table = fleet.gateway.cli(&["clients"]).await?;
    ensure!(table.code == Some(0), "{table:?}");
    for (name, address) in &expected {
        ensure!(
            table.stdout.contains(name) && table.stdout.contains(address),
            "{table:?}"
        );
    }
    for command in ["summary", "instances", "routes"] {
        let table = fleet.gateway.cli(&[command]).await?;
        ensure!(
            table.code == Some(0) && !table.stdout.is_empty(),
            "{command}: {table:?}"
        );
        fleet.gateway.cli_json(&[command]).await?;
    }
    let filtered = fleet
        .gateway
        .cli_json(&["clients", "--common-name", "smith, john", "-l", "region=eu"])
        .await?;
    ensure!(
        filtered["clients"]
            .as_array()
            .is_some_and(|rows| rows.len() == 1),
        "{filtered:#}"
    );

    let routes = fleet
        .api
        .fleet
        .list_routes(timed(v1::ListRoutesRequest::default()))
        .await?;
    let routes = routes.into_inner().routes;
    ensure!(routes.len() == 7, "{routes:#?}");
    for route in &routes {
        let client = rows.iter().find(|row| row.r#ref == route.r#ref);
        let client = client.with_context(|| format!("a route to nobody: {route:?}"))?;
        ensure!(
            route.virtual_address == client.virtual_address,
            "{route:?} {client:?}"
        );
    }
    Ok(())
}

/// A selector or filter that is read too widely or too narrowly would list, and later
/// kill, the wrong clients.
#[tokio::test]
async fn selectors_and_filters_select() -> Result<()> {
    let mut fleet = Fleet::start().await?;
    let labels = |labels: &str| {
        Some(InstanceSelector {
            labels: labels.to_owned(),
            ..Default::default()
        })
    };
    let select = |selector, filter| v1::ListClientsRequest {
        selector,
        filter: Some(filter),
        order_by: ClientOrder::CommonName.into(),
        ..Default::default()
    };
    let none = ClientFilter::default;

    let eu = fleet.names(select(labels("region=eu"), none())).await?;
    ensure!(
        eu.len() == 5 && eu.iter().all(|(instance, _)| instance != "us1"),
        "{eu:?}"
    );
    let tcp = fleet
        .names(select(labels("region in (eu,us), proto!=udp"), none()))
        .await?;
    ensure!(tcp == pairs(&[("eu2", "alice"), ("eu2", "bob")]), "{tcp:?}");
    let nowhere = fleet.names(select(labels("canary"), none())).await?;
    ensure!(nowhere.is_empty(), "{nowhere:?}");
    let one = fleet.names(select(named(&["us1"]), by_name("bob"))).await?;
    ensure!(one == pairs(&[("us1", "bob")]), "{one:?}");
    let full_name = fleet
        .names(select(named(&["lab/us1"]), by_name("bob")))
        .await?;
    ensure!(full_name == one, "{full_name:?}");
    let everywhere = fleet.names(select(None, by_name("bob"))).await?;
    ensure!(
        everywhere == pairs(&[("eu2", "bob"), ("us1", "bob")]),
        "{everywhere:?}"
    );
    let other_case = fleet.names(select(None, by_name("Bob"))).await?;
    ensure!(
        other_case.is_empty(),
        "names compare exactly: {other_case:?}"
    );

    let rows = fleet.api.clients(by_name("smith, john")).await?;
    let john = rows.first().context("no smith, john")?;
    for filter in [
        ClientFilter {
            virtual_addresses: vec![john.virtual_address.clone()],
            ..none()
        },
        ClientFilter {
            real_addresses: vec![john.real_address.clone()],
            ..none()
        },
        ClientFilter {
            refs: john.r#ref.iter().cloned().collect(),
            ..none()
        },
    ] {
        let found = fleet.names(select(None, filter.clone())).await?;
        ensure!(
            found == pairs(&[("eu1", "smith, john")]),
            "{filter:?}: {found:?}"
        );
    }
    let loopback = ClientFilter {
        real_addresses: vec!["127.0.0.0/8".to_owned()],
        ..none()
    };
    ensure!(fleet.names(select(None, loopback)).await?.len() == 7);

    // A named instance that does not exist is named in the answer; the others answer.
    let request = select(named(&["us1", "atlantis"]), none());
    let response = fleet
        .api
        .fleet
        .list_clients(timed(request))
        .await?
        .into_inner();
    ensure!(response.clients.len() == 2, "{response:#?}");
    let [unknown] = response.unreachable.as_slice() else {
        anyhow::bail!("{response:#?}");
    };
    ensure!(unknown.instance == "atlantis", "{unknown:?}");
    ensure!(
        unknown.condition() == v1::Condition::Unspecified,
        "{unknown:?}"
    );
    Ok(())
}

/// A page token that is off by one would show a client twice or never; an order that only
/// holds within pages would be none.
#[tokio::test]
async fn pages_and_orders_hold() -> Result<()> {
    let mut fleet = Fleet::start().await?;
    for order in [
        ClientOrder::Unspecified,
        ClientOrder::Instance,
        ClientOrder::ConnectedSince,
        ClientOrder::CommonName,
    ] {
        for descending in [false, true] {
            let whole = v1::ListClientsRequest {
                order_by: order.into(),
                descending,
                ..Default::default()
            };
            let response = fleet
                .api
                .fleet
                .list_clients(timed(whole.clone()))
                .await?
                .into_inner();
            ensure!(response.clients.len() == 7 && response.next_page_token.is_empty());
            let keys: Vec<Vec<u8>> = response
                .clients
                .iter()
                .map(|row| sort_key(row, order))
                .collect();
            let sorted = if descending {
                keys.iter().rev().is_sorted()
            } else {
                keys.is_sorted()
            };
            ensure!(
                sorted,
                "{order:?} descending={descending}: {:#?}",
                response.clients
            );
            let whole_refs: Vec<_> = response
                .clients
                .iter()
                .map(|row| row.r#ref.clone())
                .collect();

            let mut paged = Vec::new();
            let mut page = v1::ListClientsRequest {
                page_size: 2,
                ..whole
            };
            let mut moments = BTreeSet::new();
            loop {
                let response = fleet
                    .api
                    .fleet
                    .list_clients(timed(page.clone()))
                    .await?
                    .into_inner();
                ensure!(response.clients.len() <= 2, "{response:?}");
                let as_of = response.as_of.context("no as_of")?;
                moments.insert(format!("{as_of:?}"));
                paged.extend(response.clients.into_iter().map(|row| row.r#ref));
                if response.next_page_token.is_empty() {
                    break;
                }
                page.page_token = response.next_page_token;
            }
            ensure!(
                paged == whole_refs,
                "{order:?}: {paged:?} is not {whole_refs:?}"
            );
            ensure!(
                moments.len() == 1,
                "every page has the first one's as_of: {moments:?}"
            );
        }
    }
    let top = v1::ListClientsRequest {
        order_by: ClientOrder::Bytes.into(),
        descending: true,
        page_size: 3,
        ..Default::default()
    };
    let top = fleet.api.fleet.list_clients(timed(top)).await?.into_inner();
    let bytes: Vec<u64> = top
        .clients
        .iter()
        .map(|row| row.bytes_received + row.bytes_sent)
        .collect();
    ensure!(
        bytes.len() == 3 && bytes.iter().rev().is_sorted(),
        "{bytes:?}"
    );
    ensure!(top.next_page_token.is_empty(), "a top-N has no next page");
    ensure!(fleet.clients.len() == 7);
    Ok(())
}

/// What a row is ordered by first.
fn sort_key(row: &Row, order: ClientOrder) -> Vec<u8> {
    match order {
        ClientOrder::ConnectedSince => {
            let since = row.connected_since.map_or(0, |since| since.seconds);
            since.to_be_bytes().to_vec()
        }
        ClientOrder::CommonName => row.common_name.clone().into_bytes(),
        ClientOrder::Unspecified | ClientOrder::Instance | ClientOrder::Bytes => {
            let r = row.r#ref.clone().unwrap_or_default();
            [r.instance.as_bytes(), b"\0", &r.cid.to_be_bytes()].concat()
        }
    }
}

/// Totals without their base, or summed over the wrong group, would be believed.
#[tokio::test]
async fn the_summary_adds_up() -> Result<()> {
    let mut fleet = Fleet::start().await?;
    let request = v1::GetSummaryRequest {
        group_by: vec!["region".to_owned(), "nothing".to_owned()],
        ..Default::default()
    };
    // Sums count from the attach on: the next keepalive moves them.
    let summary = poll_until("traffic to be counted", SOON, async || {
        let response = fleet.api.fleet.get_summary(timed(request.clone())).await?;
        let summary = response.into_inner();
        let moved = |totals: &v1::Totals| totals.bytes_received > 0 && totals.bytes_sent > 0;
        Ok(summary
            .totals
            .as_ref()
            .is_some_and(moved)
            .then_some(summary))
    })
    .await?;
    let totals = summary.totals.context("no totals")?;
    ensure!((totals.instances, totals.instances_attached, totals.clients) == (3, 3, 7));
    ensure!(
        totals.instances_by_condition.get("ATTACHED") == Some(&3),
        "{totals:?}"
    );
    let groups: Vec<(Option<String>, u64, u64)> = summary
        .groups
        .into_iter()
        .map(|mut group| {
            let totals = group.totals.unwrap_or_default();
            (
                group.labels.remove("region"),
                totals.instances,
                totals.clients,
            )
        })
        .collect();
    let region = |name: &str| Some(name.to_owned());
    ensure!(
        groups == [(region("eu"), 2, 5), (region("us"), 1, 2)],
        "{groups:?}"
    );

    let instance = v1::GetInstanceRequest {
        name: "eu1".to_owned(),
    };
    let response = fleet
        .api
        .fleet
        .get_instance(timed(instance))
        .await?
        .into_inner();
    let instance = response.instance.context("no instance")?;
    let status = instance.status.context("no status")?;
    ensure!(status.pid == fleet.servers[0].pid(), "{status:?}");
    ensure!(
        status.daemon_version.starts_with("OpenVPN 2.6"),
        "{status:?}"
    );
    ensure!(status.mode() == v1::DaemonMode::Server, "{status:?}");
    ensure!(
        status.management_version >= 5 && !status.generation.is_empty(),
        "{status:?}"
    );
    Ok(())
}
