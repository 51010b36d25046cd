//! FleetService: what the fleet is and how it is.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use futures_util::{StreamExt as _, stream};
use openvpn_fleet::{AsOf, Client, ClientFilter, ClientIdentity, Instance, Route, Selector};
use ovfleet_proto::v1::{self, fleet_service_server::FleetService};
use prost::Message;
use tonic::{Request, Response, Status};

use super::{Context, deadline, frames::FrameStream, totals, watch};
use crate::{
    convert::{
        self, request,
        row::{self, Origin},
    },
    page::{self, Continuation, Page, RowKey},
    status,
};

/// Most keys to roll up by.
const GROUP_KEYS_MAX: usize = 4;
/// Daemons asked at once for one fresh answer; further ones wait their turn.
const REFRESH_IN_FLIGHT_MAX: usize = 64;
/// How long a daemon may take for a fresh answer: one that hangs must not hold
/// up what is known of the others.
const REFRESH_DEADLINE: Duration = Duration::from_secs(3);
/// What is left of the caller's deadline for everything but asking.
const REFRESH_MARGIN: Duration = Duration::from_millis(500);

/// The service.
#[derive(Debug)]
pub(crate) struct FleetQueries {
    context: Arc<Context>,
}

/// What a read selected, and what of it cannot be seen.
struct Seen {
    instances: Vec<Arc<Instance>>,
    unreachable: Vec<v1::Unreachable>,
}

/// Where a page of a list begins.
struct Listing {
    /// Most rows.
    size: usize,
    /// What the next token is bound to.
    query: Vec<u8>,
    /// The last row of the page before; `None` on the first page.
    after: Option<RowKey>,
    /// The moment of the first page; `None` on the first page.
    as_of: Option<AsOf>,
}

impl Listing {
    /// The first page asks the daemons, where they are to be asked, for all.
    const fn is_first(&self) -> bool {
        self.after.is_none()
    }
}

impl FleetQueries {
    pub(crate) const fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    fn select(&self, selector: &Selector) -> Seen {
        let selection = self.context.fleet.select(selector);
        let gateway = self.context.fleet.gateway();
        let unknown = selection
            .unknown
            .iter()
            .map(|path| row::unknown(gateway, path))
            .collect();
        Seen {
            instances: selection.instances,
            unreachable: unknown,
        }
    }

    /// Where a list begins. `request` is what must stay the same from page to
    /// page: size and token are taken out of it.
    fn begin(
        &self,
        request: &impl Message,
        page_size: i32,
        token: &str,
    ) -> Result<Listing, Status> {
        let query = page::fingerprint(request);
        let continuation = page::read(self.context.cursors.sealer(), &query, token)?;
        let (after, as_of) = continuation.map(|last| (last.after, last.as_of)).unzip();
        Ok(Listing {
            size: page::size(page_size)?,
            query,
            after,
            as_of,
        })
    }

    fn next_token(&self, query: Vec<u8>, last: Option<RowKey>, as_of: AsOf) -> String {
        last.map_or_else(String::new, |after| {
            let continuation = Continuation { after, as_of };
            page::write(self.context.cursors.sealer(), query, continuation)
        })
    }
}

impl Seen {
    /// Asks every daemon whose table is older than `age_max`; those that do not
    /// answer are unreachable.
    async fn refresh(&mut self, age_max: Duration, deadline: Option<Instant>) {
        let asked = Instant::now();
        let fresh_since = SystemTime::now() - age_max;
        let deadline = deadline
            .map_or(asked + REFRESH_DEADLINE, |deadline| {
                deadline.min(asked + REFRESH_DEADLINE)
            })
            .checked_sub(REFRESH_MARGIN)
            .unwrap_or(asked);
        // One that is detached is unreachable already; one whose table is new
        // enough need not be asked.
        let must_ask = |instance: &&Arc<Instance>| {
            instance.with_table(|table| {
                let status = table.status();
                status.is_attached()
                    && (age_max.is_zero()
                        || status.snapshot_time.is_none_or(|time| time < fresh_since))
            })
        };
        let failures: Vec<_> = stream::iter(
            self.instances
                .iter()
                .filter(must_ask)
                .cloned()
                .collect::<Vec<_>>(),
        )
        .map(|instance| async move {
            let result = instance.refresh(asked, deadline).await;
            (instance, result)
        })
        .buffer_unordered(REFRESH_IN_FLIGHT_MAX)
        .filter_map(|(instance, result)| async move {
            // A daemon that is held, or is a client, has no clients to tell of.
            match result {
                Ok(_) | Err(openvpn_session::CallError::Rejected { .. }) => None,
                Err(error) => Some((instance, error.to_string())),
            }
        })
        .collect()
        .await;
        let now = SystemTime::now();
        let unanswered = failures
            .into_iter()
            .filter_map(|(instance, message)| row::unanswered(&instance, message, now));
        self.unreachable.extend(unanswered);
    }

    /// Everything that could not be seen, in order of name.
    fn unreachable(mut self, require_complete: bool) -> Result<Vec<v1::Unreachable>, Status> {
        let now = SystemTime::now();
        let detached = self
            .instances
            .iter()
            .filter_map(|instance| row::unreachable(instance, now));
        self.unreachable.extend(detached);
        self.unreachable.sort_by(|a, b| a.instance.cmp(&b.instance));
        // One that did not answer may have been detached since.
        self.unreachable.dedup_by(|b, a| a.instance == b.instance);
        if require_complete && !self.unreachable.is_empty() {
            return Err(status::incomplete(&self.unreachable));
        }
        Ok(self.unreachable)
    }
}

#[tonic::async_trait]
impl FleetService for FleetQueries {
    async fn get_summary(
        &self,
        request: Request<v1::GetSummaryRequest>,
    ) -> Result<Response<v1::GetSummaryResponse>, Status> {
        let v1::GetSummaryRequest { selector, group_by } = request.into_inner();
        let selector = request::selector(selector)?;
        if group_by.len() > GROUP_KEYS_MAX {
            return Err(status::invalid(
                "group_by",
                "GROUP_BY_INVALID",
                format!(
                    "{} keys; at most {GROUP_KEYS_MAX} are allowed",
                    group_by.len()
                ),
            ));
        }
        let as_of = self.context.now();
        let seen = self.select(&selector);
        let mut groups: BTreeMap<BTreeMap<&str, String>, v1::Totals> = BTreeMap::new();
        let mut all = v1::Totals::default();
        for instance in &seen.instances {
            let labels = instance.labels();
            instance.with_table(|table| {
                totals::add(&mut all, table);
                if !group_by.is_empty() {
                    let values = group_by.iter().filter_map(|key| {
                        labels
                            .get(key)
                            .map(|value| (key.as_str(), value.to_owned()))
                    });
                    totals::add(groups.entry(values.collect()).or_default(), table);
                }
            });
        }
        let groups = groups
            .into_iter()
            .map(|(labels, totals)| v1::SummaryGroup {
                labels: labels
                    .into_iter()
                    .map(|(key, value)| (key.to_owned(), value))
                    .collect(),
                totals: Some(totals),
            })
            .collect();
        Ok(Response::new(v1::GetSummaryResponse {
            totals: Some(all),
            groups,
            unreachable: seen.unreachable(false)?,
            as_of: Some(self.context.as_of(as_of)),
        }))
    }

    async fn list_instances(
        &self,
        request: Request<v1::ListInstancesRequest>,
    ) -> Result<Response<v1::ListInstancesResponse>, Status> {
        let mut request = request.into_inner();
        let page_size = std::mem::take(&mut request.page_size);
        let token = std::mem::take(&mut request.page_token);
        let list = self.begin(&request, page_size, &token)?;
        let v1::ListInstancesRequest {
            selector,
            conditions,
            ..
        } = request;
        let selector = request::selector(selector)?;

        let as_of = list.as_of.unwrap_or_else(|| self.context.now());
        let seen = self.select(&selector);
        let mut page = Page::new(list.after, list.size, false);
        for instance in &seen.instances {
            let condition = instance.with_table(|table| table.status().condition);
            let condition = i32::from(convert::condition(condition));
            if conditions.is_empty() || conditions.contains(&condition) {
                let key = RowKey {
                    instance: instance.name().to_string(),
                    ..RowKey::default()
                };
                page.offer(key, || row::instance(instance));
            }
        }
        let (instances, last) = page.finish(self.context.rows_bytes_max);
        Ok(Response::new(v1::ListInstancesResponse {
            instances,
            next_page_token: self.next_token(list.query, last, as_of),
            // The rows themselves say which instances cannot be asked.
            unreachable: seen.unreachable,
            as_of: Some(self.context.as_of(as_of)),
        }))
    }

    async fn get_instance(
        &self,
        request: Request<v1::GetInstanceRequest>,
    ) -> Result<Response<v1::GetInstanceResponse>, Status> {
        let path = request::instance_path(&request.get_ref().name)?;
        let as_of = self.context.now();
        let instance = self.context.find(&path)?;
        let (defined_at, definition) = self.context.inventory.definition(instance.name());
        Ok(Response::new(v1::GetInstanceResponse {
            instance: Some(row::instance(&instance)),
            as_of: Some(self.context.as_of(as_of)),
            defined_at,
            definition,
        }))
    }

    async fn list_clients(
        &self,
        request: Request<v1::ListClientsRequest>,
    ) -> Result<Response<v1::ListClientsResponse>, Status> {
        let deadline = deadline::of(&request);
        let mut request = request.into_inner();
        let page_size = std::mem::take(&mut request.page_size);
        let token = std::mem::take(&mut request.page_token);
        let list = self.begin(&request, page_size, &token)?;
        let v1::ListClientsRequest {
            selector,
            filter,
            order_by,
            descending,
            view,
            max_age,
            require_complete,
            ..
        } = request;
        let selector = request::selector(selector)?;
        let filter = request::filter(filter)?;
        let order = request::client_order(order_by)?;
        let full = request::is_full(view)?;
        let age_max = max_age
            .map(|age| request::span("max_age", age))
            .transpose()?;

        let mut seen = self.select(&selector);
        if let Some(age_max) = age_max.filter(|_| list.is_first()) {
            seen.refresh(age_max, deadline).await;
        }
        let as_of = list.as_of.unwrap_or_else(|| self.context.now());
        let mut page = Page::new(list.after, list.size, descending);
        let by_instance = matches!(
            order,
            v1::ClientOrder::Unspecified | v1::ClientOrder::Instance
        );
        let offer_all = |instance: &Arc<Instance>, page: &mut Page<v1::Client>| {
            instance.with_table(|table| {
                let Some(origin) = Origin::of(instance, table) else {
                    return;
                };
                for client in table.clients() {
                    let identity = client.identity(instance.name(), origin.generation);
                    if filter.matches(instance.gateway(), &identity) {
                        let key = client_key(order, origin, client);
                        page.offer(key, || row::client(origin, client, full));
                    }
                }
            });
        };
        if descending {
            seen.instances.reverse();
        }
        for instance in &seen.instances {
            offer_all(instance, &mut page);
            // In this order no later instance has a row that comes earlier.
            if by_instance && page.is_full() {
                break;
            }
        }
        let (clients, last) = page.finish(self.context.rows_bytes_max);
        // Counters move: behind this page is nothing that a token could name.
        let last = last.filter(|_| order != v1::ClientOrder::Bytes);
        Ok(Response::new(v1::ListClientsResponse {
            clients,
            next_page_token: self.next_token(list.query, last, as_of),
            unreachable: seen.unreachable(require_complete)?,
            as_of: Some(self.context.as_of(as_of)),
        }))
    }

    async fn list_routes(
        &self,
        request: Request<v1::ListRoutesRequest>,
    ) -> Result<Response<v1::ListRoutesResponse>, Status> {
        let deadline = deadline::of(&request);
        let mut request = request.into_inner();
        let page_size = std::mem::take(&mut request.page_size);
        let token = std::mem::take(&mut request.page_token);
        let list = self.begin(&request, page_size, &token)?;
        let v1::ListRoutesRequest {
            selector,
            filter,
            max_age,
            require_complete,
            ..
        } = request;
        let selector = request::selector(selector)?;
        let filter = request::filter(filter)?;
        let age_max = max_age
            .map(|age| request::span("max_age", age))
            .transpose()?;

        let mut seen = self.select(&selector);
        if let Some(age_max) = age_max.filter(|_| list.is_first()) {
            seen.refresh(age_max, deadline).await;
        }
        let as_of = list.as_of.unwrap_or_else(|| self.context.now());
        let mut page = Page::new(list.after, list.size, false);
        for instance in &seen.instances {
            instance.with_table(|table| {
                let Some(origin) = Origin::of(instance, table) else {
                    return;
                };
                for route in table.routes() {
                    if route_matches(&filter, origin, route) {
                        page.offer(route_key(origin, route), || row::route(origin, route));
                    }
                }
            });
            if page.is_full() {
                break;
            }
        }
        let (routes, last) = page.finish(self.context.rows_bytes_max);
        Ok(Response::new(v1::ListRoutesResponse {
            routes,
            next_page_token: self.next_token(list.query, last, as_of),
            unreachable: seen.unreachable(require_complete)?,
            as_of: Some(self.context.as_of(as_of)),
        }))
    }

    type WatchFleetStream = FrameStream<v1::WatchFleetResponse>;

    async fn watch_fleet(
        &self,
        request: Request<v1::WatchFleetRequest>,
    ) -> Result<Response<Self::WatchFleetStream>, Status> {
        watch::start(&self.context, request.into_inner()).map(Response::new)
    }
}

/// Where a client stands in a list of this order.
fn client_key(order: v1::ClientOrder, origin: Origin<'_>, client: &Client) -> RowKey {
    let mut key = RowKey {
        instance: origin.instance.name().to_string(),
        generation: origin.generation.0,
        cid: client.cid().0,
        ..RowKey::default()
    };
    match order {
        v1::ClientOrder::Unspecified | v1::ClientOrder::Instance => {}
        v1::ClientOrder::ConnectedSince => {
            key.since = client.connected_since().unwrap_or_default();
        }
        v1::ClientOrder::CommonName => key.name = client.common_name().to_vec(),
        v1::ClientOrder::Bytes => {
            let bytes = client.bytes_received().saturating_add(client.bytes_sent());
            key.since = i64::try_from(bytes).unwrap_or(i64::MAX);
        }
    }
    key
}

fn route_key(origin: Origin<'_>, route: &Route) -> RowKey {
    // The address tells routes of an instance apart, but for a route that is
    // listed for several clients.
    let mut rest = route.address();
    rest.push(0);
    rest.extend_from_slice(&route.cid().map_or(u64::MAX, |cid| cid.0).to_be_bytes());
    RowKey {
        instance: origin.instance.name().to_string(),
        rest,
        ..RowKey::default()
    }
}

/// Whether a route leads to a client that is meant, through an address that is.
fn route_matches(filter: &ClientFilter, origin: Origin<'_>, route: &Route) -> bool {
    if filter.is_empty() {
        return true;
    }
    let address = route.address();
    let name = origin.instance.name();
    let known = route.cid().and_then(|cid| origin.table.client(cid));
    let identity = match (known, route.orphan()) {
        (Some(client), _) => ClientIdentity {
            virtual_address: &address,
            virtual_ipv6_address: b"",
            ..client.identity(name, origin.generation)
        },
        (None, Some(orphan)) => ClientIdentity {
            instance: name,
            generation: origin.generation,
            // No client has this number, so no reference names it.
            cid: openvpn_management::Cid(u64::MAX),
            common_name: &orphan.common_name,
            username: b"",
            real_address: &orphan.real_address,
            virtual_address: &address,
            virtual_ipv6_address: b"",
            half_open: false,
        },
        (None, None) => return false,
    };
    filter.matches(origin.instance.gateway(), &identity)
}
