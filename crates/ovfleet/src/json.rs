//! Messages of the API in the JSON mapping of Protocol Buffers.

use std::sync::LazyLock;

use anyhow::Context as _;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, ReflectMessage as _, Value};

/// The API, and the details that a `google.rpc.Status` of it may carry.
static DESCRIPTORS: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let mut pool = DescriptorPool::decode(ovfleet_proto::FILE_DESCRIPTOR_SET)
        .expect("the build wrote the descriptors");
    let details = DescriptorPool::decode(tonic_types::pb::FILE_DESCRIPTOR_SET)
        .expect("tonic-types tests its descriptors");
    // Its other files are in the API's set already.
    let details = details
        .file_descriptor_protos()
        .filter(|file| file.name().ends_with("error_details.proto"))
        .cloned();
    pool.add_file_descriptor_protos(details)
        .expect("the two sets share no name");
    pool
});

/// The message `ovfleet.v1.{name}` as a JSON value.
///
/// Fields without a value are absent, as the mapping has it; 64-bit numbers
/// are strings.
pub(crate) fn value<M: Message>(name: &str, message: &M) -> anyhow::Result<serde_json::Value> {
    let descriptor = DESCRIPTORS
        .get_message_by_name(&format!("ovfleet.v1.{name}"))
        .with_context(|| format!("the API has no message {name}"))?;
    let mut message = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice())
        .with_context(|| format!("cannot read a {name} back"))?;
    drop_unknown_details(&mut message);
    serde_json::to_value(&message).with_context(|| format!("cannot write a {name} as JSON"))
}

/// Drops details of a type that this program does not know: they cannot be
/// written as JSON, and the rest of the answer must not be lost with them.
fn drop_unknown_details(message: &mut DynamicMessage) {
    let is_any =
        |message: &DynamicMessage| message.descriptor().full_name() == "google.protobuf.Any";
    for (_, value) in message.fields_mut() {
        match value {
            Value::Message(inner) => drop_unknown_details(inner),
            Value::List(list) => {
                list.retain(|item| match item {
                    Value::Message(inner) if is_any(inner) => is_known(inner),
                    _ => true,
                });
                for item in list {
                    if let Value::Message(inner) = item
                        && !is_any(inner)
                    {
                        drop_unknown_details(inner);
                    }
                }
            }
            _ => {}
        }
    }
}

fn is_known(any: &DynamicMessage) -> bool {
    any.transcode_to::<prost_types::Any>().is_ok_and(|any| {
        let name = any.type_url.rsplit('/').next().unwrap_or_default();
        DESCRIPTORS
            .get_message_by_name(name)
            .is_some_and(|descriptor| DynamicMessage::decode(descriptor, &any.value[..]).is_ok())
    })
}

#[cfg(test)]
mod tests {
    use ovfleet_proto::v1::{Client, ClientRef, KillClientsResponse, KillResult, Outcome};
    use serde_json::json;
    use tonic_types::{ErrorDetails, StatusExt as _};

    use super::*;

    /// Scripts read these names and forms.
    #[test]
    fn a_client_is_written_in_the_proto_mapping() {
        let client = Client {
            r#ref: Some(ClientRef {
                gateway: "vpn1".into(),
                instance: "eu1".into(),
                generation: "1763650000000000".into(),
                cid: 17,
            }),
            common_name: "caf\u{fffd}".into(),
            common_name_raw: b"caf\xe9"[..].into(),
            bytes_received: 9_007_199_254_740_993,
            connected_since: Some(prost_types::Timestamp {
                seconds: 1_763_650_000,
                nanos: 0,
            }),
            peer_id: Some(0),
            half_open: true,
            ..Client::default()
        };
        assert_eq!(
            value("Client", &client).unwrap(),
            json!({
                "ref": {
                    "gateway": "vpn1",
                    "instance": "eu1",
                    "generation": "1763650000000000",
                    "cid": "17"
                },
                "commonName": "caf\u{fffd}",
                "commonNameRaw": "Y2Fm6Q==",
                "bytesReceived": "9007199254740993",
                "connectedSince": "2025-11-20T14:46:40Z",
                "peerId": 0,
                "halfOpen": true
            })
        );
    }

    /// The details of a status are typed; one of a newer gateway must not cost
    /// the whole answer.
    #[test]
    fn details_of_a_status_are_written_when_they_are_known() {
        let details = ErrorDetails::with_error_info("NOT_ATTACHED", "ovfleet", []);
        let status = tonic::Status::with_error_details(tonic::Code::Unavailable, "gone", details);
        let mut status = tonic_types::Status::decode(status.details()).unwrap();
        status.details.push(prost_types::Any {
            type_url: "type.googleapis.com/ovfleet.v9.Unheard".into(),
            value: vec![8, 1],
        });
        let response = KillClientsResponse {
            results: vec![KillResult {
                outcome: Outcome::NotSent.into(),
                status: Some(status),
                ..KillResult::default()
            }],
            ..KillClientsResponse::default()
        };
        assert_eq!(
            value("KillClientsResponse", &response).unwrap(),
            json!({"results": [{
                "outcome": "OUTCOME_NOT_SENT",
                "status": {
                    "code": 14,
                    "message": "gone",
                    "details": [{
                        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                        "reason": "NOT_ATTACHED",
                        "domain": "ovfleet"
                    }]
                }
            }]})
        );
    }
}
