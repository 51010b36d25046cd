//! Instances, clients and routes, out.

use std::time::SystemTime;

use openvpn_fleet::{
    Client, ClientRef, Generation, Instance, InstancePath, InstanceSource, InstanceSpec,
    InstanceStatus, Mode, Route, Table,
};
use openvpn_management::ClientStatistics;
use ovfleet_proto::v1;

use super::{
    client_ref, condition, daemon_timestamp, duration, labels, lossy, peer_info, text, timestamp,
};

/// An instance as it is now.
pub(crate) fn instance(instance: &Instance) -> v1::Instance {
    let (spec_now, etag) = instance.spec_and_etag();
    v1::Instance {
        gateway: instance.gateway().to_string(),
        spec: Some(spec(&spec_now)),
        status: Some(instance.with_table(status)),
        uid: instance.uid().to_string(),
        etag: etag.to_string(),
    }
}

fn spec(spec: &InstanceSpec) -> v1::InstanceSpec {
    let InstanceSpec {
        name,
        labels: own,
        source,
        // How to treat the socket is the gateway's business.
        session,
        paused,
        others: _,
    } = spec;
    v1::InstanceSpec {
        name: name.to_string(),
        labels: labels(own),
        address: session.address.to_string(),
        source: match source {
            InstanceSource::File => v1::InstanceSource::File,
            InstanceSource::Discovery => v1::InstanceSource::Discovery,
            InstanceSource::Api => v1::InstanceSource::Api,
        }
        .into(),
        paused: paused.is_some(),
    }
}

fn status(table: &Table) -> v1::InstanceStatus {
    let status = table.status();
    let capabilities = status
        .capabilities()
        .into_iter()
        .map(str::to_owned)
        .collect();
    let InstanceStatus {
        condition: now,
        reason,
        since,
        last_error,
        next_attempt,
        last_observed,
        daemon_version,
        management_version,
        pid,
        mode,
        state,
        state_time,
        holding,
        open_questions,
        bytes_received,
        bytes_sent,
        counting_since,
        clock_offset,
        snapshot_time,
        statistics,
        quarantined_rows,
        truncated,
        sessions,
    } = status;
    v1::InstanceStatus {
        condition: condition(*now).into(),
        reason: reason.clone(),
        since: Some(timestamp(*since)),
        last_error: last_error.clone(),
        next_attempt_time: next_attempt.map(timestamp),
        last_observed_time: last_observed.map(timestamp),
        daemon_version: lossy(daemon_version.as_bytes()),
        management_version: management_version.unwrap_or_default(),
        pid: pid.unwrap_or_default(),
        mode: match mode {
            Mode::Unknown => v1::DaemonMode::Unspecified,
            Mode::Server => v1::DaemonMode::Server,
            Mode::Client => v1::DaemonMode::Client,
        }
        .into(),
        state: state
            .as_ref()
            .map(|state| lossy(state.as_bytes()))
            .unwrap_or_default(),
        state_time: state_time.map(daemon_timestamp),
        holding: *holding,
        open_questions: open_questions
            .iter()
            .map(|asked| asked.question.to_string())
            .collect(),
        clients: table.client_count() as u64,
        half_open_clients: table.half_open_count() as u64,
        bytes_received: *bytes_received,
        bytes_sent: *bytes_sent,
        counting_since: counting_since.map(timestamp),
        clock_offset: clock_offset.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
        generation: table
            .generation()
            .map(|generation| generation.to_string())
            .unwrap_or_default(),
        snapshot_time: snapshot_time.map(timestamp),
        quarantined_rows: *quarantined_rows,
        truncated: *truncated,
        sessions: *sessions,
        capabilities,
        questions: open_questions
            .iter()
            .map(super::instance::question)
            .collect(),
        statistics: statistics.as_deref().map(tunnel_statistics),
    }
}

fn tunnel_statistics(statistics: &ClientStatistics) -> v1::TunnelStatistics {
    let ClientStatistics {
        tun_read_bytes,
        tun_write_bytes,
        link_read_bytes,
        link_write_bytes,
        auth_read_bytes,
        // Of compression, which is on its way out.
        others: _,
    } = statistics;
    v1::TunnelStatistics {
        tun_read_bytes: tun_read_bytes.unwrap_or_default(),
        tun_write_bytes: tun_write_bytes.unwrap_or_default(),
        link_read_bytes: link_read_bytes.unwrap_or_default(),
        link_write_bytes: link_write_bytes.unwrap_or_default(),
        auth_read_bytes: auth_read_bytes.unwrap_or_default(),
    }
}

/// Where rows come from.
#[derive(Clone, Copy)]
pub(crate) struct Origin<'a> {
    pub(crate) instance: &'a Instance,
    pub(crate) table: &'a Table,
    pub(crate) generation: Generation,
}

impl<'a> Origin<'a> {
    /// `None` if the instance never had a client table.
    pub(crate) fn of(instance: &'a Instance, table: &'a Table) -> Option<Self> {
        Some(Self {
            instance,
            table,
            generation: table.generation()?,
        })
    }

    fn is_stale(&self) -> bool {
        !self.table.status().is_attached()
    }

    fn client_ref(&self, cid: openvpn_management::Cid) -> v1::ClientRef {
        client_ref(ClientRef {
            gateway: self.instance.gateway().clone(),
            instance: self.instance.name().clone(),
            generation: self.generation,
            cid,
        })
    }
}

/// A client; `full` adds peer information and routes.
pub(crate) fn client(origin: Origin<'_>, client: &Client, full: bool) -> v1::Client {
    let (common_name, common_name_raw) = text(client.common_name());
    let (username, username_raw) = text(client.username());
    v1::Client {
        r#ref: Some(origin.client_ref(client.cid())),
        common_name,
        common_name_raw,
        username,
        username_raw,
        real_address: lossy(client.real_address()),
        virtual_address: lossy(client.virtual_address()),
        virtual_ipv6_address: lossy(client.virtual_ipv6_address()),
        bytes_received: client.bytes_received(),
        bytes_sent: client.bytes_sent(),
        connected_since: client.connected_since().map(daemon_timestamp),
        observed_time: Some(timestamp(client.observed())),
        cipher: lossy(client.cipher()),
        peer_id: client.peer_id(),
        half_open: client.is_half_open(),
        peer_info: if full {
            peer_info(client.peer_info())
        } else {
            Default::default()
        },
        routes: if full {
            let routes = origin.table.routes_of(client.cid()).iter();
            routes.map(|one| route(origin, one)).collect()
        } else {
            Vec::new()
        },
        stale: origin.is_stale(),
    }
}

/// A route. One that leads to no known client keeps the words of its row.
pub(crate) fn route(origin: Origin<'_>, route: &Route) -> v1::Route {
    let client = route.cid().and_then(|cid| origin.table.client(cid));
    let words = client
        .map(|client| (client.common_name(), client.real_address()))
        .or_else(|| {
            route
                .orphan()
                .map(|orphan| (&*orphan.common_name, &*orphan.real_address))
        });
    let (common_name, real_address) = words.unwrap_or_default();
    let (common_name, common_name_raw) = text(common_name);
    v1::Route {
        r#ref: Some(match client {
            Some(client) => origin.client_ref(client.cid()),
            None => v1::ClientRef {
                gateway: origin.instance.gateway().to_string(),
                instance: origin.instance.name().to_string(),
                ..Default::default()
            },
        }),
        virtual_address: lossy(route.address()),
        common_name,
        common_name_raw,
        real_address: lossy(real_address),
        last_ref: route.last_ref().map(daemon_timestamp),
        stale: origin.is_stale(),
    }
}

/// An instance that is not seen now, and `None` for one that is.
pub(crate) fn unreachable(instance: &Instance, now: SystemTime) -> Option<v1::Unreachable> {
    instance.with_table(|table| {
        let status = table.status();
        (!status.is_attached()).then(|| not_seen(instance, status, status.reason.clone(), now))
    })
}

/// An instance that is attached and did not answer, and `None` for one that is not attached: it is
/// [`unreachable()`] by itself.
pub(crate) fn unanswered(
    instance: &Instance,
    message: String,
    now: SystemTime,
) -> Option<v1::Unreachable> {
    instance.with_table(|table| {
        let status = table.status();
        status
            .is_attached()
            .then(|| not_seen(instance, status, message, now))
    })
}

fn not_seen(
    instance: &Instance,
    status: &InstanceStatus,
    message: String,
    now: SystemTime,
) -> v1::Unreachable {
    v1::Unreachable {
        gateway: instance.gateway().to_string(),
        instance: instance.name().to_string(),
        condition: condition(status.condition).into(),
        age: status
            .last_observed
            .map(|seen| duration(now.duration_since(seen).unwrap_or_default())),
        message,
    }
}

/// A name that was asked for and does not exist.
pub(crate) fn unknown(
    gateway: &openvpn_fleet::GatewayName,
    path: &InstancePath,
) -> v1::Unreachable {
    v1::Unreachable {
        gateway: path.gateway.as_ref().unwrap_or(gateway).to_string(),
        instance: path.instance.to_string(),
        condition: v1::Condition::Unspecified.into(),
        age: None,
        message: "there is no such instance".to_owned(),
    }
}
