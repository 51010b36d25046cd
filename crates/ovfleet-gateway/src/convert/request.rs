//! Requests, in: selectors, filters, references, numbers and texts, each
//! checked, with the field named where it is wrong.

use std::{collections::BTreeSet, str::FromStr, time::Duration};

use openvpn_fleet::{
    ADDRESS_PATTERNS_MAX, AddressPattern, AddressPatternError, ClientFilter, ClientRef, Digest,
    EventFilter, FILTER_VALUES_MAX, GatewayName, Generation, Instance, InstanceName, InstancePath,
    KillRequest, KindSet, LabelExpression, RequestId, SELECTOR_NAMES_MAX, Selector, SignalRequest,
    SignalWait,
};
use openvpn_management::{Cid, KillMessage, Signal, Text};
use ovfleet_proto::v1;
use tonic::Status;

use crate::status;

/// The selector of a request; an absent one is empty.
pub(crate) fn selector(selector: Option<v1::InstanceSelector>) -> Result<Selector, Status> {
    let v1::InstanceSelector { names, labels, all } = selector.unwrap_or_default();
    let refuse = |field: &str, description: String| {
        status::invalid(
            &format!("selector.{field}"),
            "SELECTOR_INVALID",
            description,
        )
    };
    if all && !(names.is_empty() && labels.is_empty()) {
        return Err(refuse(
            "all",
            "`all` excludes `names` and `labels`; give one or the other".to_owned(),
        ));
    }
    if names.len() > SELECTOR_NAMES_MAX {
        return Err(refuse("names", too_many(names.len(), SELECTOR_NAMES_MAX)));
    }
    let names = names
        .iter()
        .enumerate()
        .map(|(index, name)| {
            InstancePath::from_str(name)
                .map_err(|error| refuse(&format!("names[{index}]"), error.to_string()))
        })
        .collect::<Result<_, _>>()?;
    let labels =
        LabelExpression::from_str(&labels).map_err(|error| refuse("labels", error.to_string()))?;
    Ok(Selector { names, labels, all })
}

fn too_many(found: usize, max: usize) -> String {
    format!("{found} values; at most {max} are allowed")
}

/// The name of one instance.
pub(crate) fn instance_path(name: &str) -> Result<InstancePath, Status> {
    InstancePath::from_str(name)
        .map_err(|error| status::invalid("name", "NAME_INVALID", error.to_string()))
}

/// The filter of a request; an absent one is empty.
pub(crate) fn filter(filter: Option<v1::ClientFilter>) -> Result<ClientFilter, Status> {
    let v1::ClientFilter {
        refs,
        common_names,
        usernames,
        real_addresses,
        virtual_addresses,
        half_open,
        common_names_raw,
        usernames_raw,
    } = filter.unwrap_or_default();
    let common_names_count = common_names.len() + common_names_raw.len();
    let usernames_count = usernames.len() + usernames_raw.len();
    for (field, values, max) in [
        ("refs", refs.len(), FILTER_VALUES_MAX),
        ("common_names", common_names_count, FILTER_VALUES_MAX),
        ("usernames", usernames_count, FILTER_VALUES_MAX),
        ("real_addresses", real_addresses.len(), ADDRESS_PATTERNS_MAX),
        (
            "virtual_addresses",
            virtual_addresses.len(),
            ADDRESS_PATTERNS_MAX,
        ),
    ] {
        if values > max {
            return Err(refuse_filter(field, too_many(values, max)));
        }
    }
    Ok(ClientFilter {
        refs: refs
            .into_iter()
            .enumerate()
            .map(|(index, name)| client_ref(&format!("refs[{index}]"), name))
            .collect::<Result<_, _>>()?,
        common_names: names(common_names, common_names_raw),
        usernames: names(usernames, usernames_raw),
        real_addresses: patterns(
            "real_addresses",
            &real_addresses,
            AddressPattern::parse_real,
        )?,
        virtual_addresses: patterns(
            "virtual_addresses",
            &virtual_addresses,
            AddressPattern::parse_virtual,
        )?,
        half_open,
    })
}

fn refuse_filter(field: &str, description: String) -> Status {
    status::invalid(&format!("filter.{field}"), "FILTER_INVALID", description)
}

// A name from a string holds no invalid bytes, so it cannot equal one whose raw
// form is set: the two fields are one list of byte strings.
fn names(texts: Vec<String>, raw: Vec<bytes::Bytes>) -> BTreeSet<Vec<u8>> {
    texts
        .into_iter()
        .map(String::into_bytes)
        .chain(raw.into_iter().map(Vec::from))
        .collect()
}

fn patterns(
    field: &str,
    texts: &[String],
    parse: fn(&str) -> Result<AddressPattern, AddressPatternError>,
) -> Result<Vec<AddressPattern>, Status> {
    texts
        .iter()
        .enumerate()
        .map(|(index, text)| {
            parse(text)
                .map_err(|error| refuse_filter(&format!("{field}[{index}]"), error.to_string()))
        })
        .collect()
}

fn client_ref(field: &str, name: v1::ClientRef) -> Result<ClientRef, Status> {
    parse_client_ref(name, |part, description| {
        refuse_filter(&format!("{field}.{part}"), description)
    })
}

/// The client of a request to one instance, which must be that client's.
pub(crate) fn client_ref_of(
    field: &str,
    instance: &Instance,
    name: v1::ClientRef,
) -> Result<ClientRef, Status> {
    let refuse = |part: &str, description: String| {
        status::invalid(&format!("{field}.{part}"), "CLIENT_INVALID", description)
    };
    let client = parse_client_ref(name, refuse)?;
    if client.gateway != *instance.gateway() || client.instance != *instance.name() {
        let description = format!("the client is not one of instance {}", instance.path());
        return Err(refuse("instance", description));
    }
    Ok(client)
}

fn parse_client_ref(
    name: v1::ClientRef,
    refuse: impl Fn(&str, String) -> Status,
) -> Result<ClientRef, Status> {
    let v1::ClientRef {
        gateway,
        instance,
        generation,
        cid,
    } = name;
    Ok(ClientRef {
        gateway: GatewayName::new(&gateway)
            .map_err(|error| refuse("gateway", error.to_string()))?,
        instance: InstanceName::new(&instance)
            .map_err(|error| refuse("instance", error.to_string()))?,
        generation: generation.parse().map(Generation).map_err(|_| {
            refuse(
                "generation",
                format!("{generation:?} is not a decimal number"),
            )
        })?,
        cid: Cid(cid),
    })
}

/// A span of a request, which must not be negative; absent or zero is `None`
/// only where the caller of this maps it so.
pub(crate) fn span(field: &str, span: prost_types::Duration) -> Result<Duration, Status> {
    Duration::try_from(span)
        .map_err(|_| status::invalid(field, "DURATION_INVALID", "a duration must not be negative"))
}

fn request_id(id: &str) -> Result<Option<RequestId>, Status> {
    if id.is_empty() {
        return Ok(None);
    }
    RequestId::new(id)
        .map(Some)
        .map_err(|error| status::invalid("request_id", "REQUEST_ID_INVALID", error.to_string()))
}

fn enum_value<E: TryFrom<i32>>(field: &str, value: i32) -> Result<E, Status> {
    E::try_from(value).map_err(|_| {
        status::invalid(
            field,
            "ENUM_INVALID",
            format!("{value} is not a value that this gateway knows"),
        )
    })
}

/// A kill.
pub(crate) fn kill(request: v1::KillClientsRequest, digest: Digest) -> Result<KillRequest, Status> {
    let v1::KillClientsRequest {
        selector: on,
        filter: whom,
        every_client,
        mode,
        message,
        validate_only,
        max_clients,
        max_instances,
        wait,
        request_id: id,
    } = request;
    let mode: v1::KillMode = enum_value("mode", mode)?;
    if mode != v1::KillMode::Message && !message.is_empty() {
        return Err(status::invalid(
            "message",
            "MESSAGE_INVALID",
            "a message needs mode KILL_MODE_MESSAGE",
        ));
    }
    Ok(KillRequest {
        selector: selector(on)?,
        filter: filter(whom)?,
        every_client,
        message: match mode {
            v1::KillMode::Unspecified | v1::KillMode::Restart => KillMessage::Restart,
            v1::KillMode::Halt => KillMessage::Halt,
            v1::KillMode::Message => KillMessage::Text(Text::from(message)),
        },
        validate_only,
        max_clients,
        max_instances,
        wait,
        request_id: request_id(&id)?,
        digest,
    })
}

/// A signal.
pub(crate) fn signal(
    request: v1::SignalInstancesRequest,
    digest: Digest,
) -> Result<SignalRequest, Status> {
    let v1::SignalInstancesRequest {
        selector: on,
        signal,
        in_flight_max,
        pause,
        stop_after_failures,
        wait_for,
        force,
        validate_only,
        max_instances,
        request_id: id,
    } = request;
    Ok(SignalRequest {
        selector: selector(on)?,
        signal: match enum_value("signal", signal)? {
            v1::Signal::Unspecified => {
                return Err(status::invalid(
                    "signal",
                    "SIGNAL_MISSING",
                    "say which: SIGHUP, SIGUSR1, SIGUSR2 or SIGTERM",
                ));
            }
            v1::Signal::Sighup => Signal::Sighup,
            v1::Signal::Sigusr1 => Signal::Sigusr1,
            v1::Signal::Sigusr2 => Signal::Sigusr2,
            v1::Signal::Sigterm => Signal::Sigterm,
        },
        in_flight_max,
        pause: pause
            .map(|pause| span("pause", pause))
            .transpose()?
            .unwrap_or_default(),
        stop_after_failures,
        wait_for: match enum_value("wait_for", wait_for)? {
            v1::SignalWait::Unspecified | v1::SignalWait::Accepted => SignalWait::Accepted,
            v1::SignalWait::Reattached => SignalWait::Reattached,
            v1::SignalWait::Connected => SignalWait::Connected,
        },
        force,
        validate_only,
        max_instances,
        request_id: request_id(&id)?,
        digest,
    })
}

/// The order of a list of clients.
pub(crate) fn client_order(order: i32) -> Result<v1::ClientOrder, Status> {
    enum_value("order_by", order)
}

/// How much of each row is wanted: everything, or what a table shows.
pub(crate) fn is_full(view: i32) -> Result<bool, Status> {
    Ok(enum_value::<v1::View>("view", view)? == v1::View::Full)
}

/// What a stream does at a gap: whether it ends there.
pub(crate) fn fails_on_gap(policy: i32) -> Result<bool, Status> {
    Ok(enum_value::<v1::GapPolicy>("on_gap", policy)? == v1::GapPolicy::Fail)
}

/// Which events a stream shows.
pub(crate) fn event_filter(
    instances: Option<v1::InstanceSelector>,
    clients: Option<v1::ClientFilter>,
    kinds: &[String],
) -> Result<EventFilter, Status> {
    Ok(EventFilter {
        selector: selector(instances)?,
        clients: filter(clients)?,
        kinds: KindSet::parse(kinds)
            .map_err(|error| status::invalid("kinds", "KIND_UNKNOWN", error.to_string()))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message_of<T: std::fmt::Debug>(result: Result<T, Status>) -> String {
        let status = result.unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        status.message().to_owned()
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = v1::InstanceSelector {
            names: vec!["eu1".to_owned(), "a/b/c".to_owned()],
            ..Default::default()
        };
        assert!(message_of(selector(Some(wrong))).starts_with("selector.names[1]: '/'"));
        let wrong = v1::InstanceSelector {
            labels: "region in eu".to_owned(),
            ..Default::default()
        };
        assert!(message_of(selector(Some(wrong))).starts_with("selector.labels: expected"));
        let wrong = v1::ClientFilter {
            real_addresses: vec!["10.0.0.0/33".to_owned()],
            ..Default::default()
        };
        assert!(
            message_of(filter(Some(wrong)))
                .starts_with("filter.real_addresses[0]: \"10.0.0.0/33\"")
        );
        let wrong = v1::ClientFilter {
            refs: vec![v1::ClientRef {
                gateway: "vpn1".to_owned(),
                instance: "eu1".to_owned(),
                generation: "x".to_owned(),
                cid: 0,
            }],
            ..Default::default()
        };
        assert!(message_of(filter(Some(wrong))).starts_with("filter.refs[0].generation: \"x\""));
        let wrong = v1::KillClientsRequest {
            message: "bye".to_owned(),
            ..Default::default()
        };
        assert!(message_of(kill(wrong, Digest::default())).starts_with("message: "));
        let wrong = v1::KillClientsRequest {
            mode: 99,
            ..Default::default()
        };
        assert!(message_of(kill(wrong, Digest::default())).starts_with("mode: 99"));
    }
}
