//! Events and gaps as lines for people.

use ovfleet_proto::v1::{
    ClientsLost, Condition, DisconnectCause, Event, EventClass, EventClient, Gap, GapCause,
    GenerationCause, event::Detail,
};

use crate::{
    listing::full_name,
    rows::labels,
    selection::show_ref,
    table::Tone,
    text::{bytes, count, elapsed, enum_name, escape, instant, outside},
};

/// The columns of an event's line: time, instance, kind.
const INSTANCE_WIDTH: usize = 12;
const KIND_WIDTH: usize = 20;

/// An event's line and its tone.
pub(crate) fn event(event: &Event, wide: bool) -> (String, Tone) {
    let origin = match (event.instance.as_str(), wide) {
        ("", _) => escape(&event.gateway),
        (instance, false) => escape(instance),
        (instance, true) => full_name(&event.gateway, instance),
    };
    let kind = escape(&event.kind);
    let time = instant(event.observed_time.as_ref());
    let mut line = format!("{time}  {origin:INSTANCE_WIDTH$}  {kind:KIND_WIDTH$}");
    let mut say = |words: String| {
        if !words.is_empty() {
            line += "  ";
            line += &words;
        }
    };
    if let Some(client) = &event.client {
        say(client_words(client, wide));
    }
    if let Some(detail) = &event.detail {
        say(detail_words(detail));
    }
    if event.inferred.is_some() {
        say("(inferred)".to_owned());
    }
    (line.trim_end().to_owned(), tone(event))
}

fn tone(event: &Event) -> Tone {
    match (event.kind.as_str(), &event.detail) {
        ("client.established" | "instance.attached", _) => Tone::Good,
        ("client.disconnected" | "client.leaving", _) => Tone::Dim,
        ("instance.detached" | "instance.fatal", _) => Tone::Bad,
        ("instance.condition", Some(Detail::Condition(change))) => {
            match Condition::try_from(change.current) {
                Ok(Condition::Attached) => Tone::Good,
                Ok(Condition::AuthFailed | Condition::Unresponsive | Condition::Unreachable) => {
                    Tone::Bad
                }
                _ => Tone::Plain,
            }
        }
        ("instance.generation" | "instance.question" | "instance.hold", _) => Tone::Warn,
        _ => Tone::Plain,
    }
}

/// Who: `alice (user bob) 10.8.0.6 from udp4:192.0.2.7:51820`.
fn client_words(client: &EventClient, wide: bool) -> String {
    let mut words = match outside(&client.common_name, &client.common_name_raw) {
        name if name.is_empty() => "(no name yet)".to_owned(),
        name => name,
    };
    let username = outside(&client.username, &client.username_raw);
    if !username.is_empty() && username != words {
        words += &format!(" (user {username})");
    }
    for address in [&client.virtual_address, &client.virtual_ipv6_address] {
        if !address.is_empty() {
            words += &format!(" {}", escape(address));
        }
    }
    if !client.real_address.is_empty() {
        words += &format!(" from {}", escape(&client.real_address));
    }
    match &client.r#ref {
        Some(reference) if wide => words += &format!(" [{}]", show_ref(reference)),
        _ => {}
    }
    words
}

fn detail_words(detail: &Detail) -> String {
    match detail {
        Detail::Inventory(inventory) => {
            format!(
                "{} {}",
                escape(&inventory.address),
                labels(&inventory.labels)
            )
        }
        Detail::Attached(attached) => {
            let version = attached
                .daemon_version
                .split(' ')
                .take(2)
                .collect::<Vec<_>>()
                .join(" ");
            format!(
                "{}, pid {}, {} clients",
                escape(&version),
                attached.pid,
                count(attached.clients)
            )
        }
        Detail::Detached(detached) => escape(&detached.reason),
        Detail::Condition(change) => {
            let name = |condition| enum_name!(Condition, "CONDITION_", condition);
            let words = format!("{} → {}", name(change.previous), name(change.current));
            because(words, &change.reason)
        }
        Detail::State(state) => {
            let detail = outside(&state.detail, &state.detail_raw);
            [escape(&state.state), detail, escape(&state.virtual_address)]
                .into_iter()
                .filter(|words| !words.is_empty())
                .collect::<Vec<_>>()
                .join(" ")
        }
        Detail::GenerationChange(change) => {
            let cause = enum_name!(GenerationCause, "GENERATION_CAUSE_", change.cause);
            let lost = match ClientsLost::try_from(change.clients_lost) {
                Ok(ClientsLost::Yes) => ", its clients were disconnected",
                Ok(ClientsLost::Unknown) => ", nobody saw what became of its clients",
                _ => "",
            };
            format!("new ({cause}){lost}")
        }
        Detail::Hold(hold) => match (hold.holding, hold.released_by_gateway) {
            (true, true) => "holds; the gateway releases it".to_owned(),
            (true, false) => "holds until it is released".to_owned(),
            (false, _) => "released".to_owned(),
        },
        Detail::Question(question) => {
            let verb = if question.open {
                "asks"
            } else {
                "no longer asks"
            };
            format!("{verb}: {}", escape(&question.question))
        }
        Detail::Log(log) => {
            let text = outside(&log.text, &log.text_raw);
            if log.flags.is_empty() {
                text
            } else {
                format!("[{}] {text}", escape(&log.flags))
            }
        }
        Detail::Text(text) => outside(&text.text, &text.text_raw),
        Detail::Connected(connected) => {
            let mut words = escape(&connected.cipher);
            if let Some(predecessor) = &connected.predecessor {
                words += &format!(" (was CID {})", predecessor.cid);
            }
            words
        }
        Detail::Address(address) => {
            let what = if address.primary { "got" } else { "is routed" };
            format!("{what} {}", escape(&address.virtual_address))
        }
        Detail::Leaving(leaving) => cause(leaving.cause),
        Detail::Disconnected(end) => {
            let mut words = cause(end.cause);
            if let Some(action) = &end.caused_by {
                words += &format!(
                    " by {} ({})",
                    escape(&action.caller),
                    escape(&action.request_id)
                );
            }
            if end.duration.is_some() {
                words += &format!(" after {}", elapsed(end.duration.as_ref()));
            }
            let at_least = if end.bytes_final { "" } else { "at least " };
            format!(
                "{words}, {at_least}{} in, {} out",
                bytes(end.bytes_received),
                bytes(end.bytes_sent)
            )
        }
        Detail::Action(progress) => {
            let action = progress.action.clone().unwrap_or_default();
            let mut outcomes: Vec<_> = progress
                .outcomes
                .iter()
                .map(|(outcome, number)| format!("{} {}", count(*number), escape(outcome)))
                .collect();
            outcomes.sort();
            let outcomes = if outcomes.is_empty() {
                String::new()
            } else {
                format!(": {}", outcomes.join(", "))
            };
            format!(
                "{} {} by {}, {} targets{outcomes}",
                escape(&progress.method),
                escape(&action.request_id),
                escape(&action.caller),
                count(progress.targets)
            )
        }
        Detail::Notice(notice) => escape(&notice.message),
    }
}

fn cause(cause: i32) -> String {
    match DisconnectCause::try_from(cause) {
        Ok(DisconnectCause::Killed) => "killed".to_owned(),
        Ok(DisconnectCause::PeerExit) => "said goodbye".to_owned(),
        Ok(DisconnectCause::PingTimeout) => "fell silent".to_owned(),
        Ok(DisconnectCause::Superseded) => "connected again".to_owned(),
        Ok(DisconnectCause::DaemonRestart) => "the daemon restarted".to_owned(),
        Ok(DisconnectCause::Unknown | DisconnectCause::Unspecified) => "cause unknown".to_owned(),
        Err(_) => format!("cause {cause}"),
    }
}

fn because(words: String, reason: &str) -> String {
    if reason.is_empty() {
        words
    } else {
        format!("{words}: {}", escape(reason))
    }
}

/// A gap's line: nobody should overlook it.
pub(crate) fn gap(gap: &Gap) -> String {
    let whose = match (gap.gateway.as_str(), gap.instance.as_str()) {
        ("", "") => "any instance".to_owned(),
        (gateway, "") => format!("any instance of {}", escape(gateway)),
        (gateway, instance) => full_name(gateway, instance),
    };
    let number = match gap.count {
        Some(1) => "1 event is missing".to_owned(),
        Some(number) => format!("{} events are missing", count(number)),
        None => "events may be missing".to_owned(),
    };
    let class = match EventClass::try_from(gap.event_class) {
        Ok(EventClass::Lifecycle) => " (life cycle)",
        Ok(EventClass::Log) => " (log)",
        Ok(EventClass::Raw) => " (raw)",
        Ok(EventClass::Unspecified) | Err(_) => "",
    };
    let why = match GapCause::try_from(gap.cause) {
        Ok(GapCause::Compacted) => "the journal no longer has them",
        Ok(GapCause::Unobserved) => "the gateway was not attached",
        Ok(GapCause::GatewayRestarted) => "the gateway was restarted",
        Ok(GapCause::JournalReplaced) => "the journal was replaced",
        Ok(GapCause::RateCapped) => "the instance logged too fast",
        Ok(GapCause::Unspecified) | Err(_) => "for a reason unknown",
    };
    let span = match (
        instant(gap.not_before.as_ref()),
        instant(gap.not_after.as_ref()),
    ) {
        (from, to) if from.is_empty() && to.is_empty() => String::new(),
        (from, to) if from.is_empty() => format!(", until {to}"),
        (from, to) if to.is_empty() => format!(", since {from}"),
        (from, to) => format!(", {from} to {to}"),
    };
    format!("*** GAP: {number}{class} of {whose}: {why}{span} ***")
}

#[cfg(test)]
mod tests {
    use ovfleet_proto::v1::{ActionRef, ClientDisconnected, ClientRef, Inference};

    use super::*;

    fn disconnected() -> Event {
        Event {
            gateway: "vpn1".into(),
            instance: "eu1".into(),
            kind: "client.disconnected".into(),
            inferred: Some(Inference::default()),
            client: Some(EventClient {
                r#ref: Some(ClientRef {
                    gateway: "vpn1".into(),
                    instance: "eu1".into(),
                    generation: "7".into(),
                    cid: 3,
                }),
                common_name: "al\x1bice".into(),
                real_address: "192.0.2.7:51820".into(),
                virtual_address: "10.8.0.6".into(),
                ..EventClient::default()
            }),
            detail: Some(Detail::Disconnected(ClientDisconnected {
                bytes_received: 2048,
                cause: DisconnectCause::Killed.into(),
                duration: Some(prost_types::Duration {
                    seconds: 120,
                    nanos: 0,
                }),
                caused_by: Some(ActionRef {
                    request_id: "r1".into(),
                    caller: "root".into(),
                }),
                ..ClientDisconnected::default()
            })),
            ..Event::default()
        }
    }

    #[test]
    fn a_disconnect_says_who_why_and_how_much() {
        let (line, _) = event(&disconnected(), false);
        assert_eq!(
            line.trim_start(),
            "eu1           client.disconnected   al\\x1bice 10.8.0.6 from 192.0.2.7:51820  \
             killed by root (r1) after 2m, at least 2.0 KiB in, 0 B out  (inferred)"
        );
        assert!(event(&disconnected(), true).0.contains("[vpn1/eu1/7/3]"));
    }

    /// A newer gateway has kinds and details that this program does not know.
    #[test]
    fn an_unknown_kind_is_still_a_line() {
        let newer = Event {
            kind: "client.teleported".into(),
            ..Event::default()
        };
        assert_eq!(event(&newer, false).0.trim_start(), "client.teleported");
    }

    #[test]
    fn a_gap_is_loud_and_says_what_is_known() {
        let known = Gap {
            cause: GapCause::Compacted.into(),
            gateway: "vpn1".into(),
            event_class: EventClass::Log.into(),
            count: Some(1_200),
            ..Gap::default()
        };
        assert_eq!(
            gap(&known),
            "*** GAP: 1,200 events are missing (log) of any instance of vpn1: \
             the journal no longer has them ***"
        );
        assert_eq!(
            gap(&Gap::default()),
            "*** GAP: events may be missing of any instance: for a reason unknown ***"
        );
    }
}
