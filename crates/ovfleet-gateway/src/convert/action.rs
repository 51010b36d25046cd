//! Actions and their results, out.

use openvpn_fleet::{
    Action, ActionResult, AsOf, Durability, InstanceResult, KillReport, KillResult, Outcome,
    SignalReport, SignalResult, TargetError,
};
use ovfleet_proto::v1;

use super::{client_ref, duration, lossy, text, timestamp};
use crate::{cursor::Cursors, status};

const fn durability(durability: Durability) -> v1::Durability {
    match durability {
        Durability::Memory => v1::Durability::Memory,
        Durability::Ledger => v1::Durability::Disk,
    }
}

pub(crate) fn as_of(as_of: AsOf, cursors: &Cursors) -> v1::AsOf {
    let AsOf { position, time } = as_of;
    v1::AsOf {
        cursor: cursors.write(position),
        time: Some(timestamp(time)),
    }
}

pub(crate) fn kill_report(report: &KillReport, cursors: &Cursors) -> v1::KillClientsResponse {
    let KillReport {
        request_id,
        results,
        instances,
        validate_only,
        cut_short,
        as_of: moment,
        durability: kept,
    } = report;
    v1::KillClientsResponse {
        request_id: request_id.to_string(),
        results: results.iter().map(kill_result).collect(),
        instances: instances.iter().map(instance_result).collect(),
        validate_only: *validate_only,
        cut_short: *cut_short,
        durability: durability(*kept).into(),
        as_of: Some(as_of(*moment, cursors)),
    }
}

pub(crate) fn kill_result(result: &KillResult) -> v1::KillResult {
    let KillResult {
        client,
        common_name,
        username,
        real_address,
        virtual_address,
        outcome: what,
        error,
        sent,
        successor,
    } = result;
    let (common_name, common_name_raw) = text(common_name.as_bytes());
    let (username, username_raw) = text(username.as_bytes());
    v1::KillResult {
        r#ref: Some(client_ref(client.clone())),
        common_name,
        common_name_raw,
        username,
        username_raw,
        real_address: lossy(real_address.as_bytes()),
        virtual_address: lossy(virtual_address.as_bytes()),
        outcome: outcome(*what).into(),
        status: Some(target_status(error.as_ref())),
        sent_time: sent.map(timestamp),
        successor: successor.clone().map(client_ref),
    }
}

fn instance_result(result: &InstanceResult) -> v1::InstanceResult {
    let InstanceResult {
        gateway,
        instance,
        asked,
        matched,
        snapshot_age,
        error,
    } = result;
    v1::InstanceResult {
        gateway: gateway.to_string(),
        instance: instance.to_string(),
        asked: *asked,
        matched: *matched,
        snapshot_age: snapshot_age.map(duration),
        status: Some(target_status(error.as_ref())),
    }
}

pub(crate) fn signal_report(
    report: &SignalReport,
    cursors: &Cursors,
) -> v1::SignalInstancesResponse {
    let SignalReport {
        request_id,
        results,
        validate_only,
        cut_short,
        as_of: moment,
        durability: kept,
    } = report;
    v1::SignalInstancesResponse {
        request_id: request_id.to_string(),
        results: results.iter().map(signal_result).collect(),
        validate_only: *validate_only,
        cut_short: *cut_short,
        durability: durability(*kept).into(),
        as_of: Some(as_of(*moment, cursors)),
    }
}

pub(crate) fn signal_result(result: &SignalResult) -> v1::SignalResult {
    let SignalResult {
        gateway,
        instance,
        outcome: what,
        error,
        sent,
        clients,
        generation,
    } = result;
    v1::SignalResult {
        gateway: gateway.to_string(),
        instance: instance.to_string(),
        outcome: outcome(*what).into(),
        status: Some(target_status(error.as_ref())),
        sent_time: sent.map(timestamp),
        clients: *clients,
        generation: generation
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
    }
}

fn target_status(error: Option<&TargetError>) -> tonic_types::Status {
    error.map(status::of_target).unwrap_or_default()
}

const fn outcome(outcome: Outcome) -> v1::Outcome {
    match outcome {
        Outcome::Planned => v1::Outcome::Planned,
        Outcome::Accepted => v1::Outcome::Accepted,
        Outcome::Confirmed => v1::Outcome::Confirmed,
        Outcome::AlreadyGone => v1::Outcome::AlreadyGone,
        Outcome::Stale => v1::Outcome::Stale,
        Outcome::Rejected => v1::Outcome::Rejected,
        Outcome::Denied => v1::Outcome::Denied,
        Outcome::NotSent => v1::Outcome::NotSent,
        Outcome::Unknown => v1::Outcome::Unknown,
    }
}

/// An action with the results of every target.
pub(crate) fn action(action: &Action, cursors: &Cursors) -> v1::Action {
    let Action {
        request_id,
        caller,
        // The result says it.
        method: _,
        // For paging.
        number: _,
        started,
        finished,
        result,
    } = action;
    v1::Action {
        request_id: request_id.to_string(),
        caller: caller.to_string(),
        started_time: Some(timestamp(*started)),
        finished_time: finished.map(timestamp),
        // Of actions that a restart cut off, which are never in memory.
        settled: v1::Outcome::Unspecified.into(),
        result: Some(match result {
            ActionResult::Kill(report) => {
                v1::action::Result::KillClients(kill_report(report, cursors))
            }
            ActionResult::Signal(report) => {
                v1::action::Result::SignalInstances(signal_report(report, cursors))
            }
        }),
    }
}
