//! What a daemon writes as its `status`.

use super::{line, number};
use crate::command::StatusFormat;
use crate::status::{ClientRow, RouteRow, StatusSnapshot};

/// Appends a snapshot as `status` gives it, in OpenVPN 2.6's columns; `Configured` is format 1.
///
/// Times for people are in UTC here, where a daemon writes its local time. A client daemon has one format only.
pub fn write_status(snapshot: &StatusSnapshot, format: StatusFormat, out: &mut Vec<u8>) {
    if let Some(statistics) = snapshot.client_statistics() {
        line(out, &[b"OpenVPN STATISTICS"]);
        line(out, &[b"Updated,", snapshot.time_text().as_bytes()]);
        for (name, counter) in [
            ("TUN/TAP read bytes", statistics.tun_read_bytes),
            ("TUN/TAP write bytes", statistics.tun_write_bytes),
            ("TCP/UDP read bytes", statistics.link_read_bytes),
            ("TCP/UDP write bytes", statistics.link_write_bytes),
            ("Auth read bytes", statistics.auth_read_bytes),
        ] {
            if let Some(counter) = counter {
                line(out, &[name.as_bytes(), b",", &number(counter)]);
            }
        }
        for (name, value) in &statistics.others {
            line(out, &[name.as_bytes(), b",", value.as_bytes()]);
        }
        line(out, &[b"END"]);
        return;
    }
    match format {
        StatusFormat::Configured | StatusFormat::V1 => write_status_1(snapshot, out),
        StatusFormat::V2 => write_status_tagged(snapshot, b',', out),
        StatusFormat::V3 => write_status_tagged(snapshot, b'\t', out),
    }
}

fn write_status_1(snapshot: &StatusSnapshot, out: &mut Vec<u8>) {
    line(out, &[b"OpenVPN CLIENT LIST"]);
    line(out, &[b"Updated,", snapshot.time_text().as_bytes()]);
    line(
        out,
        &[b"Common Name,Real Address,Bytes Received,Bytes Sent,Connected Since"],
    );
    for client in snapshot.clients() {
        row(
            out,
            b',',
            &[
                client.common_name,
                client.real_address,
                &number(client.bytes_received),
                &number(client.bytes_sent),
                &time_text(client.connected_since),
            ],
        );
    }
    line(out, &[b"ROUTING TABLE"]);
    line(out, &[b"Virtual Address,Common Name,Real Address,Last Ref"]);
    for route in snapshot.routes() {
        row(
            out,
            b',',
            &[
                route.virtual_address,
                route.common_name,
                route.real_address,
                &time_text(route.last_ref),
            ],
        );
    }
    line(out, &[b"GLOBAL STATS"]);
    for (name, value) in snapshot.global_stats() {
        row(out, b',', &[name.as_bytes(), value.as_bytes()]);
    }
    line(out, &[b"END"]);
}

fn write_status_tagged(snapshot: &StatusSnapshot, separator: u8, out: &mut Vec<u8>) {
    row(out, separator, &[b"TITLE", snapshot.title().as_bytes()]);
    if let Some(time) = snapshot.time() {
        row(
            out,
            separator,
            &[b"TIME", snapshot.time_text().as_bytes(), &number(time)],
        );
    }
    row(
        out,
        separator,
        &[
            b"HEADER",
            b"CLIENT_LIST",
            b"Common Name",
            b"Real Address",
            b"Virtual Address",
            b"Virtual IPv6 Address",
            b"Bytes Received",
            b"Bytes Sent",
            b"Connected Since",
            b"Connected Since (time_t)",
            b"Username",
            b"Client ID",
            b"Peer ID",
            b"Data Channel Cipher",
        ],
    );
    for client in snapshot.clients() {
        write_client_row(&client, separator, out);
    }
    row(
        out,
        separator,
        &[
            b"HEADER",
            b"ROUTING_TABLE",
            b"Virtual Address",
            b"Common Name",
            b"Real Address",
            b"Last Ref",
            b"Last Ref (time_t)",
        ],
    );
    for route in snapshot.routes() {
        write_route_row(&route, separator, out);
    }
    for (name, value) in snapshot.global_stats() {
        row(
            out,
            separator,
            &[b"GLOBAL_STATS", name.as_bytes(), value.as_bytes()],
        );
    }
    line(out, &[b"END"]);
}

fn write_client_row(client: &ClientRow<'_>, separator: u8, out: &mut Vec<u8>) {
    row(
        out,
        separator,
        &[
            b"CLIENT_LIST",
            client.common_name,
            client.real_address,
            client.virtual_address,
            client.virtual_ipv6_address,
            &number(client.bytes_received),
            &number(client.bytes_sent),
            &time_text(client.connected_since),
            &number(client.connected_since.unwrap_or_default()),
            client.username,
            &number(client.cid.map_or(0, |cid| cid.0)),
            // What OpenVPN prints for a client without peer ID.
            &number(client.peer_id.unwrap_or(u32::MAX)),
            client.cipher.unwrap_or_default(),
        ],
    );
}

fn write_route_row(route: &RouteRow<'_>, separator: u8, out: &mut Vec<u8>) {
    row(
        out,
        separator,
        &[
            b"ROUTING_TABLE",
            route.virtual_address,
            route.common_name,
            route.real_address,
            &time_text(route.last_ref),
            &number(route.last_ref.unwrap_or_default()),
        ],
    );
}

/// `YYYY-MM-DD HH:MM:SS` in UTC; empty if not known.
fn time_text(seconds: Option<i64>) -> Vec<u8> {
    let Some(seconds) = seconds else {
        return Vec::new();
    };
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Howard Hinnant's civil_from_days: eras of 400 years, years that start in March. Wide, so that no time overflows.
    let z = i128::from(days) + 719_468;
    let (era, day_of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + i128::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}").into_bytes()
}

fn row(out: &mut Vec<u8>, separator: u8, fields: &[&[u8]]) {
    for (position, field) in fields.iter().enumerate() {
        if position > 0 {
            out.push(separator);
        }
        out.extend_from_slice(field);
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A date that is off by one is worse than none.
    #[test]
    fn times_are_civil_dates_in_utc() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_399, "2000-02-28 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (951_868_800, "2000-03-01 00:00:00"),
            (1_795_186_636, "2026-11-20 14:57:16"),
            (4_107_542_400, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(time_text(Some(seconds)), text.as_bytes(), "{seconds}");
        }
    }
}
