//! Sums over instances.

use openvpn_fleet::Table;
use ovfleet_proto::v1::Totals;

use crate::convert;

/// Adds one instance.
pub(super) fn add(totals: &mut Totals, table: &Table) {
    let status = table.status();
    totals.instances += 1;
    *totals
        .instances_by_condition
        .entry(status.condition.as_str().to_owned())
        .or_default() += 1;
    // Clients of an instance that cannot be asked may have left.
    if status.is_attached() {
        totals.instances_attached += 1;
        totals.clients += table.client_count() as u64;
        totals.half_open_clients += table.half_open_count() as u64;
    }
    // Bytes were counted when they were seen, and stay counted.
    totals.bytes_received = totals.bytes_received.saturating_add(status.bytes_received);
    totals.bytes_sent = totals.bytes_sent.saturating_add(status.bytes_sent);
    if let Some(since) = status.counting_since.map(convert::timestamp) {
        let earliest = totals.counting_since.get_or_insert(since);
        if (since.seconds, since.nanos) < (earliest.seconds, earliest.nanos) {
            *earliest = since;
        }
    }
}
