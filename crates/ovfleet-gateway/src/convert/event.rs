//! Events and gaps, out.

use openvpn_fleet::event::{
    ActionProgress, ClientConnected, ClientDisconnected, ClientsLost, Detail, DisconnectCause,
    Event, EventClass, EventClient, Gap, GapCause, GenerationCause, Inventory,
};
use openvpn_fleet::{ClientRef, Labels};
use openvpn_management::{LogFlags, StateRecord, Text};
use ovfleet_proto::v1::{self, event::Detail as Out};

use super::{
    action_ref, client_ref, condition, daemon_timestamp, duration, inference, labels, lossy, text,
    timestamp,
};

/// An event as callers see it.
pub(crate) fn event(event: &Event) -> v1::Event {
    let kind = event.kind().as_str().to_owned();
    let name = event.client_ref();
    let Event {
        gateway,
        instance,
        labels,
        generation,
        sequence,
        observed,
        daemon_time,
        inferred,
        client: subject,
        detail: what,
    } = event;
    v1::Event {
        gateway: gateway.to_string(),
        instance: instance
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        generation: generation
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        sequence: *sequence,
        observed_time: Some(timestamp(*observed)),
        daemon_time: daemon_time.map(daemon_timestamp),
        inferred: inferred.map(inference),
        kind,
        client: subject.as_ref().map(|subject| client(subject, name)),
        detail: Some(detail(what, labels)),
    }
}

fn client(client: &EventClient, name: Option<ClientRef>) -> v1::EventClient {
    let EventClient {
        // Both are in the reference.
        generation: _,
        cid: _,
        common_name,
        username,
        real_address,
        virtual_address,
        virtual_ipv6_address,
        // A half-open client has no name: nothing to tell apart.
        half_open: _,
    } = client;
    let (common_name, common_name_raw) = text(common_name.as_bytes());
    let (username, username_raw) = text(username.as_bytes());
    v1::EventClient {
        r#ref: name.map(client_ref),
        common_name,
        common_name_raw,
        username,
        username_raw,
        real_address: lossy(real_address.as_bytes()),
        virtual_address: lossy(virtual_address.as_bytes()),
        virtual_ipv6_address: lossy(virtual_ipv6_address.as_bytes()),
    }
}

fn detail(detail: &Detail, instance_labels: &Labels) -> Out {
    match detail {
        Detail::Added(inventory) | Detail::Removed(inventory) => {
            let Inventory { address, uid } = inventory;
            Out::Inventory(v1::InstanceInventory {
                labels: labels(instance_labels),
                address: address.clone(),
                uid: uid.to_string(),
            })
        }
        Detail::Attached {
            daemon_version,
            pid,
            clients,
        } => Out::Attached(v1::InstanceAttached {
            daemon_version: lossy(daemon_version.as_bytes()),
            pid: pid.unwrap_or_default(),
            clients: *clients,
        }),
        Detail::Detached { reason } => Out::Detached(v1::InstanceDetached {
            reason: reason.clone(),
        }),
        Detail::Condition {
            previous,
            current,
            reason,
        } => Out::Condition(v1::InstanceConditionChanged {
            previous: condition(*previous).into(),
            current: condition(*current).into(),
            reason: reason.clone(),
        }),
        Detail::State(record) => Out::State(state(record)),
        Detail::Generation {
            previous,
            cause,
            clients_lost,
        } => Out::GenerationChange(v1::InstanceGeneration {
            previous: previous
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            cause: generation_cause(*cause).into(),
            clients_lost: lost(*clients_lost).into(),
        }),
        Detail::Hold {
            holding,
            wait,
            released_by_gateway,
        } => Out::Hold(v1::InstanceHold {
            holding: *holding,
            wait: wait.map(duration),
            released_by_gateway: *released_by_gateway,
        }),
        Detail::Question { question, open } => Out::Question(v1::InstanceQuestion {
            question: question.question.to_string(),
            open: *open,
            detail: Some(super::instance::question(question)),
        }),
        Detail::Log { flags, text } | Detail::GatewayLog { flags, text } => {
            Out::Log(log_line(*flags, text))
        }
        Detail::Echo(words)
        | Detail::Info(words)
        | Detail::Fatal(words)
        | Detail::Unrecognized(words) => {
            let (text, text_raw) = text(words.as_bytes());
            Out::Text(v1::TextLine { text, text_raw })
        }
        Detail::ClientAttempt(client)
        | Detail::ClientEstablished(client)
        | Detail::ClientReauthenticated(client) => Out::Connected(connected(client)),
        Detail::ClientAddress { address, primary } => Out::Address(v1::ClientAddress {
            virtual_address: lossy(address.as_bytes()),
            primary: *primary,
        }),
        Detail::ClientLeaving { cause } => Out::Leaving(v1::ClientLeaving {
            cause: disconnect_cause(*cause).into(),
        }),
        Detail::ClientDisconnected(client) => Out::Disconnected(disconnected(client)),
        Detail::ActionStarted(progress) | Detail::ActionFinished(progress) => {
            Out::Action(action(progress))
        }
        Detail::GatewayConfig { message } | Detail::GatewayDrain { message } => {
            Out::Notice(v1::GatewayNotice {
                message: message.clone(),
            })
        }
    }
}

fn state(record: &StateRecord) -> v1::InstanceStateChanged {
    let StateRecord {
        // In Event.daemon_time.
        time: _,
        state,
        detail,
        tunnel_ipv4,
        // Where a client-mode daemon connects to is part of its instance.
        remote_address: _,
        remote_port: _,
        local_address: _,
        local_port: _,
        tunnel_ipv6,
    } = record;
    let (detail, detail_raw) = text(detail.as_bytes());
    v1::InstanceStateChanged {
        state: lossy(state.as_bytes()),
        detail,
        detail_raw,
        virtual_address: lossy(tunnel_ipv4.as_bytes()),
        virtual_ipv6_address: lossy(tunnel_ipv6.as_bytes()),
    }
}

fn log_line(flags: LogFlags, line: &Text) -> v1::LogLine {
    let (text, text_raw) = text(line.as_bytes());
    v1::LogLine {
        flags: flags.to_string(),
        text,
        text_raw,
    }
}

fn connected(client: &ClientConnected) -> v1::ClientConnected {
    let ClientConnected {
        connected_since,
        peer_info,
        cipher,
        predecessor,
    } = client;
    v1::ClientConnected {
        connected_since: connected_since.map(daemon_timestamp),
        peer_info: super::peer_info(peer_info),
        cipher: lossy(cipher.as_bytes()),
        predecessor: predecessor.clone().map(client_ref),
    }
}

fn disconnected(client: &ClientDisconnected) -> v1::ClientDisconnected {
    let ClientDisconnected {
        bytes_received,
        bytes_sent,
        bytes_final,
        duration: connected_for,
        cause,
        caused_by,
        successor,
    } = client;
    v1::ClientDisconnected {
        bytes_received: *bytes_received,
        bytes_sent: *bytes_sent,
        bytes_final: *bytes_final,
        duration: connected_for.map(duration),
        cause: disconnect_cause(*cause).into(),
        caused_by: caused_by.clone().map(action_ref),
        successor: successor.clone().map(client_ref),
    }
}

fn action(progress: &ActionProgress) -> v1::ActionProgress {
    let ActionProgress {
        action,
        method,
        outcomes,
        targets,
    } = progress;
    v1::ActionProgress {
        action: Some(action_ref(action.clone())),
        method: method.as_str().to_owned(),
        outcomes: outcomes
            .iter()
            .map(|(outcome, count)| (outcome.as_str().to_owned(), *count))
            .collect(),
        targets: *targets,
    }
}

const fn generation_cause(cause: GenerationCause) -> v1::GenerationCause {
    match cause {
        GenerationCause::First => v1::GenerationCause::First,
        GenerationCause::Reconnecting => v1::GenerationCause::Reconnecting,
        GenerationCause::Pid => v1::GenerationCause::Pid,
        GenerationCause::ConnectedTime => v1::GenerationCause::ConnectedTime,
        GenerationCause::CidReused => v1::GenerationCause::CidReused,
        GenerationCause::CidLower => v1::GenerationCause::CidLower,
    }
}

const fn lost(lost: ClientsLost) -> v1::ClientsLost {
    match lost {
        ClientsLost::Yes => v1::ClientsLost::Yes,
        ClientsLost::No => v1::ClientsLost::No,
        ClientsLost::Unknown => v1::ClientsLost::Unknown,
    }
}

const fn disconnect_cause(cause: DisconnectCause) -> v1::DisconnectCause {
    match cause {
        DisconnectCause::Killed => v1::DisconnectCause::Killed,
        DisconnectCause::PeerExit => v1::DisconnectCause::PeerExit,
        DisconnectCause::PingTimeout => v1::DisconnectCause::PingTimeout,
        DisconnectCause::Superseded => v1::DisconnectCause::Superseded,
        DisconnectCause::DaemonRestart => v1::DisconnectCause::DaemonRestart,
        DisconnectCause::Unknown => v1::DisconnectCause::Unknown,
    }
}

/// A gap, with the cursor of what follows it.
pub(crate) fn gap(gap: &Gap, cursor: String) -> v1::Gap {
    let Gap {
        cause,
        gateway,
        instance,
        // For selection only.
        labels: _,
        class,
        count,
        not_before,
        not_after,
    } = gap;
    v1::Gap {
        cause: match cause {
            GapCause::Compacted => v1::GapCause::Compacted,
            GapCause::Unobserved => v1::GapCause::Unobserved,
            GapCause::GatewayRestarted => v1::GapCause::GatewayRestarted,
            GapCause::JournalReplaced => v1::GapCause::JournalReplaced,
            GapCause::RateCapped => v1::GapCause::RateCapped,
        }
        .into(),
        gateway: gateway.to_string(),
        instance: instance
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        event_class: class
            .map_or(v1::EventClass::Unspecified, event_class)
            .into(),
        count: *count,
        not_before: not_before.map(timestamp),
        not_after: not_after.map(timestamp),
        cursor,
    }
}

const fn event_class(class: EventClass) -> v1::EventClass {
    match class {
        EventClass::Lifecycle => v1::EventClass::Lifecycle,
        EventClass::Log => v1::EventClass::Log,
        EventClass::Raw => v1::EventClass::Raw,
    }
}
