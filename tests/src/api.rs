//! A caller of the gateway: typed clients, and what scenarios ask of them.

use std::time::Duration;

use anyhow::{Context as _, Result};
use ovfleet_proto::v1::{
    self, ClientFilter, ClientRef, Condition, InstanceSelector,
    control_service_client::ControlServiceClient, event_service_client::EventServiceClient,
    fleet_service_client::FleetServiceClient, instance_service_client::InstanceServiceClient,
    inventory_service_client::InventoryServiceClient, stream_events_request::Start,
};
use tonic::{Request, Status, transport::Channel};

use crate::{Gateway, events::EventLog, poll_until};

/// How long a unary call may take in a scenario, where it does not say otherwise.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long instances may take to reach a condition that nothing stands against.
const CONDITION_TIMEOUT: Duration = Duration::from_secs(20);

/// The services of one gateway, over one connection.
#[derive(Clone, Debug)]
pub struct Api {
    /// What the fleet is.
    pub fleet: FleetServiceClient<Channel>,
    /// What happens to it.
    pub events: EventServiceClient<Channel>,
    /// What can be done to it.
    pub control: ControlServiceClient<Channel>,
    /// What is said to one instance.
    pub instance: InstanceServiceClient<Channel>,
    /// Which instances there are.
    pub inventory: InventoryServiceClient<Channel>,
}

impl Api {
    /// A caller of `gateway`.
    ///
    /// # Errors
    /// It does not accept a connection.
    pub async fn connect(gateway: &Gateway) -> Result<Self> {
        Ok(Self::new(gateway.channel().await?))
    }

    /// A caller over `channel`.
    #[must_use]
    pub fn new(channel: Channel) -> Self {
        Self {
            fleet: FleetServiceClient::new(channel.clone()),
            events: EventServiceClient::new(channel.clone()),
            control: ControlServiceClient::new(channel.clone()),
            instance: InstanceServiceClient::new(channel.clone()),
            inventory: InventoryServiceClient::new(channel),
        }
    }

    /// All instances.
    ///
    /// # Errors
    /// The call fails.
    pub async fn instances(&mut self) -> Result<Vec<v1::Instance>> {
        let request = v1::ListInstancesRequest {
            page_size: 1_000,
            ..Default::default()
        };
        let response = self.fleet.list_instances(timed(request)).await?;
        Ok(response.into_inner().instances)
    }

    /// The status of one instance.
    ///
    /// # Errors
    /// The call fails, also because there is none of that name.
    pub async fn status(&mut self, name: &str) -> Result<v1::InstanceStatus> {
        let request = v1::GetInstanceRequest {
            name: name.to_owned(),
        };
        let response = self.fleet.get_instance(timed(request)).await?.into_inner();
        response
            .instance
            .and_then(|instance| instance.status)
            .context("no status")
    }

    /// Waits until the named instance is in `condition`, and gives its status.
    ///
    /// # Errors
    /// Not within `timeout`; what it is instead is in the error.
    pub async fn wait_condition(
        &mut self,
        name: &str,
        condition: Condition,
        timeout: Duration,
    ) -> Result<v1::InstanceStatus> {
        let mut last = None;
        let what = format!("{name} to be {}", condition.as_str_name());
        let found = poll_until(&what, timeout, async || {
            let status = self.status(name).await?;
            let there = status.condition() == condition;
            last = Some(status.clone());
            Ok(there.then_some(status))
        })
        .await;
        found.with_context(|| format!("last seen: {last:?}"))
    }

    /// Waits until every instance is ATTACHED and serves.
    ///
    /// # Errors
    /// Not soon; what they are instead is in the error.
    pub async fn wait_attached(&mut self) -> Result<()> {
        let mut last = String::new();
        let found = poll_until(
            "all instances to be attached",
            CONDITION_TIMEOUT,
            async || {
                let instances = self.instances().await?;
                last = format!("{instances:#?}");
                let there = instances.iter().all(|instance| {
                    instance.status.as_ref().is_some_and(|status| {
                        status.condition() == Condition::Attached && status.state == "CONNECTED"
                    })
                });
                Ok(there.then_some(()))
            },
        )
        .await;
        found.with_context(|| format!("last seen: {last}"))
    }

    /// The clients that match, asked of the daemons now, of all pages.
    ///
    /// # Errors
    /// The call fails.
    pub async fn clients(&mut self, filter: ClientFilter) -> Result<Vec<v1::Client>> {
        let mut request = v1::ListClientsRequest {
            filter: Some(filter),
            page_size: 1_000,
            max_age: Some(prost_types::Duration::default()),
            ..Default::default()
        };
        let mut clients = Vec::new();
        loop {
            let response = self
                .fleet
                .list_clients(timed(request.clone()))
                .await?
                .into_inner();
            clients.extend(response.clients);
            if response.next_page_token.is_empty() {
                return Ok(clients);
            }
            request.page_token = response.next_page_token;
        }
    }

    /// Waits until exactly `count` clients are connected, and gives them.
    ///
    /// # Errors
    /// Not within `timeout`.
    pub async fn wait_clients(
        &mut self,
        filter: ClientFilter,
        count: usize,
        timeout: Duration,
    ) -> Result<Vec<v1::Client>> {
        let mut last = Vec::new();
        let what = format!("{count} clients of {filter:?}");
        let found = poll_until(&what, timeout, async || {
            last = self.clients(filter.clone()).await?;
            let complete = last.iter().all(|client| !client.half_open);
            Ok((complete && last.len() == count).then(|| last.clone()))
        })
        .await;
        found.with_context(|| format!("last seen: {last:#?}"))
    }

    /// Kills, under the call's usual deadline.
    ///
    /// # Errors
    /// The call fails as a whole.
    pub async fn kill(
        &mut self,
        request: v1::KillClientsRequest,
    ) -> Result<v1::KillClientsResponse, Status> {
        Ok(self
            .control
            .kill_clients(timed(request))
            .await?
            .into_inner())
    }

    /// Signals, under the call's usual deadline.
    ///
    /// # Errors
    /// The call fails as a whole.
    pub async fn signal(
        &mut self,
        request: v1::SignalInstancesRequest,
    ) -> Result<v1::SignalInstancesResponse, Status> {
        Ok(self
            .control
            .signal_instances(timed(request))
            .await?
            .into_inner())
    }

    /// A log of all events from now on: what happens after this returns is in it.
    ///
    /// # Errors
    /// The call fails.
    pub async fn follow(&mut self) -> Result<EventLog> {
        // A stream that starts "now" starts when the gateway handles the call, and its
        // answer may come before that: a cursor taken first leaves no doubt.
        let request = v1::GetSummaryRequest::default();
        let summary = self.fleet.get_summary(timed(request)).await?.into_inner();
        let cursor = summary.as_of.context("no as_of")?.cursor;
        self.follow_from(Start::Cursor(cursor)).await
    }

    /// A log of all events from `start` on, log lines of daemons included.
    ///
    /// # Errors
    /// The call fails.
    pub async fn follow_from(&mut self, start: Start) -> Result<EventLog> {
        let request = v1::StreamEventsRequest {
            start: Some(start),
            ..Default::default()
        };
        self.follow_request(request).await
    }

    /// A log of what `request` asks for.
    ///
    /// # Errors
    /// The call fails.
    pub async fn follow_request(&mut self, request: v1::StreamEventsRequest) -> Result<EventLog> {
        let stream = self.events.stream_events(request).await?.into_inner();
        Ok(EventLog::of(stream))
    }
}

/// `message` with the usual deadline.
pub fn timed<M>(message: M) -> Request<M> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

/// Every instance.
#[must_use]
pub fn all() -> Option<InstanceSelector> {
    Some(InstanceSelector {
        all: true,
        ..Default::default()
    })
}

/// These instances.
#[must_use]
pub fn named(names: &[&str]) -> Option<InstanceSelector> {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    Some(InstanceSelector {
        names,
        ..Default::default()
    })
}

/// The clients of one common name.
#[must_use]
pub fn by_name(common_name: &str) -> ClientFilter {
    ClientFilter {
        common_names: vec![common_name.to_owned()],
        ..Default::default()
    }
}

/// Exactly these clients.
#[must_use]
pub fn by_refs(refs: Vec<ClientRef>) -> ClientFilter {
    ClientFilter {
        refs,
        ..Default::default()
    }
}

/// The `ErrorInfo` reason that a status carries.
#[must_use]
pub fn reason(status: &Status) -> Option<String> {
    use tonic_types::StatusExt as _;
    status.get_details_error_info().map(|info| info.reason)
}
