//! The tables of instances, clients and routes.

use std::collections::HashMap;

use jiff::Timestamp;
use ovfleet_proto::v1::{Client, Condition, Instance, Route};

use crate::{
    selection::show_ref,
    table::{Cell, Column, Table, Tone, column},
    text::{age, bytes, count, enum_name, escape, minute, outside},
};

/// A column that only `--wide` and JSON show.
fn wide_only(title: &'static str) -> Column {
    column(title).optional()
}

/// Instances, a row each.
pub(crate) fn instances(rows: &[Instance], wide: bool, now: Timestamp) -> Table {
    let mut table = Table::new([
        wide_only("GATEWAY"),
        column("INSTANCE"),
        column("CONDITION"),
        column("STATE").rank(3),
        column("CLIENTS").right(),
        column("RECEIVED").right().rank(5),
        column("SENT").right().rank(5),
        column("FOR").right().rank(4),
        column("LABELS").rank(6).optional(),
        column("ADDRESS").rank(7),
        wide_only("VERSION"),
        wide_only("PID").right(),
        wide_only("GENERATION"),
        column("NOTE").optional(),
    ]);
    for instance in rows {
        let spec = instance.spec.clone().unwrap_or_default();
        let status = instance.status.clone().unwrap_or_default();
        let when_wide = |text: String| Cell::from(if wide { text } else { String::new() });
        let attached = status.condition == i32::from(Condition::Attached);
        let mut note = if attached {
            String::new()
        } else {
            escape(&status.reason)
        };
        if status.holding {
            note = join(&note, "holding");
        }
        for question in &status.open_questions {
            note = join(&note, &escape(question));
        }
        if status.quarantined_rows > 0 {
            note = join(
                &note,
                &format!("{} unreadable rows", count(status.quarantined_rows)),
            );
        }
        if status.truncated {
            note = join(&note, "more clients than are shown");
        }
        table.row([
            when_wide(escape(&instance.gateway)),
            escape(&spec.name).into(),
            condition(status.condition),
            escape(&status.state).into(),
            count(status.clients).into(),
            bytes(status.bytes_received).into(),
            bytes(status.bytes_sent).into(),
            age(status.since.as_ref(), now).into(),
            labels(&spec.labels).into(),
            escape(&spec.address).into(),
            when_wide(escape(&status.daemon_version)),
            when_wide(if status.pid == 0 {
                String::new()
            } else {
                status.pid.to_string()
            }),
            when_wide(status.generation),
            note.into(),
        ]);
    }
    table
}

/// What a list of clients is about, and keeps longest on a narrow terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Focus {
    Addresses,
    Traffic,
}

/// Clients, a row each.
pub(crate) fn clients(rows: &[Client], focus: Focus, wide: bool, now: Timestamp) -> Table {
    let (addresses, traffic) = match focus {
        Focus::Addresses => (2, 5),
        Focus::Traffic => (5, 1),
    };
    let mut table = Table::new([
        column("INSTANCE"),
        column("NAME"),
        column("USERNAME").rank(3).optional(),
        column("VIRTUAL ADDRESS").rank(1),
        column("REAL ADDRESS").rank(addresses),
        column("RECEIVED").right().rank(traffic),
        column("SENT").right().rank(traffic),
        column("SINCE").rank(6),
        column("FOR").right().rank(4),
        column("CIPHER").rank(7),
        wide_only("IPV6 ADDRESS"),
        wide_only("REF"),
        column("NOTE").optional(),
    ]);
    for client in rows {
        let reference = client.r#ref.clone().unwrap_or_default();
        let when_wide = |text: String| Cell::from(if wide { text } else { String::new() });
        let note = match (client.half_open, client.stale) {
            (true, true) => "half-open, stale",
            (true, false) => "half-open",
            (false, true) => "stale",
            (false, false) => "",
        };
        table.row([
            escape(&reference.instance).into(),
            name(
                &client.common_name,
                &client.common_name_raw,
                client.half_open,
            ),
            outside(&client.username, &client.username_raw).into(),
            escape(&client.virtual_address).into(),
            escape(&client.real_address).into(),
            bytes(client.bytes_received).into(),
            bytes(client.bytes_sent).into(),
            minute(client.connected_since.as_ref()).into(),
            age(client.connected_since.as_ref(), now).into(),
            escape(&client.cipher).into(),
            when_wide(escape(&client.virtual_ipv6_address)),
            when_wide(show_ref(&reference)),
            Cell::toned(note, Tone::Warn),
        ]);
    }
    table
}

/// Routes, a row each.
pub(crate) fn routes(rows: &[Route], wide: bool, now: Timestamp) -> Table {
    let mut table = Table::new([
        column("INSTANCE"),
        column("VIRTUAL ADDRESS"),
        column("NAME"),
        column("REAL ADDRESS").rank(1),
        column("LAST USED").rank(3),
        column("AGO").right().rank(2),
        wide_only("REF"),
        column("NOTE").optional(),
    ]);
    for route in rows {
        let reference = route.r#ref.clone().unwrap_or_default();
        // Without a generation the gateway could not tell whose route it is.
        let shown = wide && !reference.generation.is_empty();
        table.row([
            escape(&reference.instance).into(),
            escape(&route.virtual_address).into(),
            name(&route.common_name, &route.common_name_raw, false),
            escape(&route.real_address).into(),
            minute(route.last_ref.as_ref()).into(),
            age(route.last_ref.as_ref(), now).into(),
            if shown {
                show_ref(&reference).into()
            } else {
                "".into()
            },
            Cell::toned(if route.stale { "stale" } else { "" }, Tone::Warn),
        ]);
    }
    table
}

/// A condition in the colour of its urgency.
pub(crate) fn condition(condition: i32) -> Cell {
    let tone = match Condition::try_from(condition) {
        Ok(Condition::Attached) => Tone::Good,
        Ok(Condition::Connecting | Condition::Syncing | Condition::SlotBusy) => Tone::Warn,
        Ok(Condition::AuthFailed | Condition::Unresponsive | Condition::Unreachable) => Tone::Bad,
        Ok(Condition::Paused) => Tone::Dim,
        Ok(Condition::Unspecified) | Err(_) => Tone::Plain,
    };
    Cell::toned(enum_name!(Condition, "CONDITION_", condition), tone)
}

/// Labels in order: `proto=udp,region=eu`.
pub(crate) fn labels(labels: &HashMap<String, String>) -> String {
    let mut pairs: Vec<_> = labels
        .iter()
        .map(|(key, value)| format!("{}={}", escape(key), escape(value)))
        .collect();
    pairs.sort();
    pairs.join(",")
}

fn name(text: &str, raw: &[u8], half_open: bool) -> Cell {
    if half_open && text.is_empty() {
        Cell::toned("-", Tone::Dim)
    } else {
        outside(text, raw).into()
    }
}

fn join(left: &str, right: &str) -> String {
    if left.is_empty() {
        right.to_owned()
    } else {
        format!("{left}; {right}")
    }
}

#[cfg(test)]
mod tests {
    use ovfleet_proto::v1::ClientRef;

    use super::*;

    fn client(common_name: &str) -> Client {
        Client {
            r#ref: Some(ClientRef {
                gateway: "vpn1".into(),
                instance: "eu1".into(),
                generation: "1763650000000000".into(),
                cid: 3,
            }),
            common_name: common_name.into(),
            real_address: "udp4:192.0.2.7:51820".into(),
            virtual_address: "10.8.0.6".into(),
            cipher: "AES-256-GCM".into(),
            connected_since: Some(prost_types::Timestamp {
                seconds: 1_763_650_000,
                nanos: 0,
            }),
            ..Client::default()
        }
    }

    #[test]
    fn clients_fit_eighty_columns_and_keep_who_and_where() {
        let now = Timestamp::from_second(1_763_657_200).unwrap();
        let table = clients(
            &[client("a-laptop-of-somebody@example.org")],
            Focus::Addresses,
            false,
            now,
        );
        let text = table.render(Some(80), false);
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
        for part in ["eu1", "a-laptop-of-somebody@example.org", "10.8.0.6"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(table.render(Some(200), false).contains("AES-256-GCM"));
        let table = clients(&[client("alice")], Focus::Traffic, false, now);
        assert!(table.render(Some(80), false).contains("RECEIVED"));
    }

    /// What `--ref` takes is what `--wide` shows.
    #[test]
    fn wide_shows_the_reference() {
        let text = clients(&[client("alice")], Focus::Addresses, true, Timestamp::now())
            .render(None, false);
        assert!(text.contains("vpn1/eu1/1763650000000000/3"), "{text}");
        let text = clients(
            &[client("alice")],
            Focus::Addresses,
            false,
            Timestamp::now(),
        )
        .render(None, false);
        assert!(!text.contains("1763650000000000"), "{text}");
    }

    #[test]
    fn a_name_with_escapes_stays_in_its_cell() {
        let text = clients(
            &[client("\x1b[31mroot\nalice")],
            Focus::Addresses,
            false,
            Timestamp::now(),
        )
        .render(None, false);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("\\x1b[31mroot\\nalice"), "{text}");
    }
}
