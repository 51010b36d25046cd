//! Conversions between the domain and `ovfleet.v1`, each in one direction only:
//! requests in, results and events out.
//!
//! What goes out is destructured completely, so that a new field of the domain
//! asks to be mapped.

pub(crate) mod action;
pub(crate) mod definition;
pub(crate) mod event;
pub(crate) mod instance;
pub(crate) mod inventory;
pub(crate) mod kept;
pub(crate) mod request;
pub(crate) mod row;

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use openvpn_fleet::{ActionRef, ClientRef, Inference, Labels, PeerInfo};
use openvpn_session::Condition;
use ovfleet_proto::v1;
use prost_types::Timestamp;

/// Bytes from outside as the two fields `x` and `x_raw`.
pub(crate) fn text(bytes: &[u8]) -> (String, Bytes) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (text.to_owned(), Bytes::new()),
        Err(_) => (
            String::from_utf8_lossy(bytes).into_owned(),
            Bytes::copy_from_slice(bytes),
        ),
    }
}

/// Bytes from outside for a field without a raw companion.
pub(crate) fn lossy(bytes: impl AsRef<[u8]>) -> String {
    text(bytes.as_ref()).0
}

/// A moment by our clock.
pub(crate) fn timestamp(time: SystemTime) -> Timestamp {
    Timestamp::from(time)
}

/// A moment by a daemon's clock, to the second.
pub(crate) const fn daemon_timestamp(seconds: i64) -> Timestamp {
    Timestamp { seconds, nanos: 0 }
}

/// A span; one too long for the format is the longest it has.
pub(crate) fn duration(span: Duration) -> prost_types::Duration {
    prost_types::Duration::try_from(span).unwrap_or(prost_types::Duration {
        seconds: i64::MAX,
        nanos: 0,
    })
}

pub(crate) fn client_ref(name: ClientRef) -> v1::ClientRef {
    let ClientRef {
        gateway,
        instance,
        generation,
        cid,
    } = name;
    v1::ClientRef {
        gateway: gateway.to_string(),
        instance: instance.to_string(),
        generation: generation.to_string(),
        cid: cid.0,
    }
}

fn action_ref(action: ActionRef) -> v1::ActionRef {
    let ActionRef { request_id, caller } = action;
    v1::ActionRef {
        request_id: request_id.to_string(),
        caller: caller.to_string(),
    }
}

pub(crate) const fn condition(condition: Condition) -> v1::Condition {
    match condition {
        Condition::Connecting => v1::Condition::Connecting,
        Condition::SlotBusy => v1::Condition::SlotBusy,
        Condition::AuthFailed => v1::Condition::AuthFailed,
        Condition::Syncing => v1::Condition::Syncing,
        Condition::Attached => v1::Condition::Attached,
        Condition::Unresponsive => v1::Condition::Unresponsive,
        Condition::Unreachable => v1::Condition::Unreachable,
        Condition::Paused => v1::Condition::Paused,
    }
}

pub(crate) fn labels(labels: &Labels) -> HashMap<String, String> {
    labels
        .iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

fn inference(inference: Inference) -> v1::Inference {
    let Inference {
        not_before,
        not_after,
    } = inference;
    v1::Inference {
        not_before: not_before.map(timestamp),
        not_after: Some(timestamp(not_after)),
    }
}

/// What a client said of itself.
pub(crate) fn peer_info(info: &PeerInfo) -> HashMap<String, String> {
    info.iter()
        .map(|(name, value)| (lossy(name), lossy(value)))
        .collect()
}
