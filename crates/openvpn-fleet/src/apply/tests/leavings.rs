//! Clients that leave by the thousand.

use std::time::Instant;

use crate::apply::told::{BEGIN, Told, status};

const CLIENTS: u64 = 20_000;

/// A daemon's log names each client that leaves. If each were looked for among all, a site that loses its uplink would
/// keep its session's thread for as long as everybody of a large daemon needs to leave.
#[test]
fn thousands_that_leave_at_once_are_found() {
    let mut told = Told::attached();
    told.table.clients_max = 30_000;
    let names: Vec<String> = (0..CLIENTS).map(|cid| format!("client{cid}")).collect();
    let rows = names.iter().zip(0..);
    let rows: Vec<_> = rows.map(|(name, cid)| (cid, &**name, BEGIN, 0)).collect();
    told.shows(&status(&rows));
    told.records.clear();
    let began = Instant::now();
    for index in 0..CLIENTS {
        // As a hash table has them: in no order.
        let cid = index * 7_919 % CLIENTS;
        told.says(&format!(
            ">LOG:1795186000,,client{cid}/192.0.2.7:{} SIGTERM[soft,remote-exit] received, client-instance exiting",
            1000 + cid
        ));
    }
    eprintln!("{CLIENTS} signs of leaving in {:.1?}", began.elapsed());
    let leaving = told
        .table
        .clients()
        .filter(|client| told.table.leaving(client.cid()).is_some());
    assert_eq!(leaving.count(), names.len());
    // Looking through all rows for each took minutes in a debug build.
    assert!(told.table.clients.is_indexed());
}
