//! What single words of a daemon do to the table.

use std::time::Duration;

use openvpn_management::{LoadStats, Notification};
use openvpn_session::{Facts, Hint, Mode, Observation};

use crate::apply::told::{BEGIN, Told, status};

const CONNECTED: &str = "1795186000,CONNECTED,SUCCESS,10.8.0.1,,,,";

/// A client that a notification told of while a `status` was on its way is not deleted by that `status`.
#[test]
fn a_snapshot_does_not_delete_who_came_after_it_was_asked() {
    let mut told = Told::attached();
    let snapshot = told.snapshot(&status(&[]));
    told.established(0, "alice", BEGIN);
    let hint = told.observe(Observation::Snapshot(Box::new(snapshot)));
    assert_eq!(told.cids(), [0]);
    assert_eq!(hint, Hint::Poll, "the next one tells for sure");
    told.shows(&status(&[]));
    assert!(told.cids().is_empty());
}

/// What is said before the session is in step is told once the generation is known, before or after the snapshot as
/// it was on the wire, and once.
#[test]
fn words_while_synchronising_are_told_once() {
    let mut told = Told::new();
    told.observe(Observation::Greeted {
        management_version: Some(5),
    });
    told.established(0, "alice", BEGIN);
    let snapshot = told.snapshot(&status(&[(0, "alice", BEGIN, 7)]));
    told.established(1, "bob", BEGIN + 1);
    assert!(
        told.events().is_empty(),
        "nothing can be said without a generation"
    );
    told.observe(Observation::Synchronised(Box::new(Facts {
        pid: Some(1),
        snapshot: Some(snapshot),
        ..Facts::default()
    })));
    assert_eq!(
        told.events(),
        [
            "instance.generation First lost=No",
            "instance.attached clients=1",
            "client.established 0 alice 192.0.2.7:1000 10.8.0.2 since=1795186000 info=0",
            "client.established 1 bob 192.0.2.7:1001 10.8.0.3 since=1795186001 info=0",
        ]
    );
    assert_eq!(
        told.table.status().bytes_received,
        7,
        "she came before our eyes"
    );
}

/// The number of clients is compared as the daemon counts: without half-open ones.
#[test]
fn a_different_number_of_clients_asks_for_a_status() {
    let mut told = Told::attached();
    told.shows(&status(&[(0, "alice", BEGIN, 0), (1, "UNDEF", BEGIN, 0)]));
    assert_eq!(told.counts(1), Hint::None);
    assert_eq!(told.counts(2), Hint::Poll);
    assert_eq!(told.counts(0), Hint::Poll);
}

/// A server that never says DISCONNECT: who is absent has left, some time between two lists.
#[test]
fn absence_is_a_disconnect_with_bounds() {
    let mut told = Told::attached();
    told.shows(&status(&[(0, "alice", BEGIN, 100), (1, "bob", BEGIN, 0)]));
    told.advance(Duration::from_secs(60));
    told.records.clear();
    told.shows(&status(&[(1, "bob", BEGIN, 0)]));
    let crate::journal::Record::Event(event) = &told.records[0] else {
        panic!("an event")
    };
    let inferred = event.inferred.expect("found by comparison");
    let span = inferred
        .not_after
        .duration_since(inferred.not_before.expect("known"))
        .expect("in order");
    assert!((60..62).contains(&span.as_secs()), "{span:?}");
    assert_eq!(
        told.events(),
        [
            "client.disconnected (inferred) 0 alice 192.0.2.7:1000 10.8.0.2 Unknown bytes=100/100 final=false after=Some(100s)"
        ]
    );
}

/// Totals only rise, count whole whom we saw come, and never what was there before us.
#[test]
fn totals_are_a_lower_bound_that_only_rises() {
    let mut told = Told::new();
    told.attach(
        Some(1),
        CONNECTED,
        Some(&status(&[(0, "alice", BEGIN, 1_000)])),
    );
    let total = |told: &Told| told.table.status().bytes_received;
    assert_eq!(total(&told), 0);
    told.says(">BYTECOUNT_CLI:0,1500,1000");
    assert_eq!(total(&told), 500);
    told.established(1, "bob", BEGIN + 200);
    told.says(">BYTECOUNT_CLI:1,70,0");
    assert_eq!(total(&told), 570);
    told.says(">BYTECOUNT_CLI:1,60,0");
    assert_eq!(total(&told), 570, "a counter that falls is somebody else's");
    told.says(">STATE:1795186050,RECONNECTING,SIGUSR1,,,,,");
    assert_eq!(total(&told), 570);
}

/// Our own commands are no events, and a flood of lines is told by one gap with its count.
#[test]
fn lines_are_capped_and_counted() {
    let mut told = Told::attached();
    told.says(">LOG:1795186000,D,MANAGEMENT: CMD 'status 3'");
    assert!(told.events().is_empty());
    let line = openvpn_management::LogRecord {
        time: Some(1),
        flags: openvpn_management::LogFlags::default(),
        text: "x".into(),
    };
    for _ in 0..20_000 {
        told.observe(Observation::Notification(Notification::Log(line.clone())));
    }
    told.advance(Duration::from_secs(10));
    told.counts(0);
    let (mut taken, mut dropped, mut gaps) = (0, 0, 0);
    for record in &told.records {
        match record {
            crate::journal::Record::Event(_) => taken += 1,
            crate::journal::Record::Gap(gap) => {
                gaps += 1;
                dropped += gap.count.expect("counted");
            }
        }
    }
    // A thousand a second for twenty seconds.
    assert_eq!(taken + dropped, 20_000);
    assert!((5_000..=15_001).contains(&taken), "{taken}");
    assert!((1..=20).contains(&gaps), "{gaps}");
}

/// A client that comes during a flood must not be told before the lines that are missing before it.
#[test]
fn a_gap_of_lines_comes_before_the_next_event() {
    let mut told = Told::attached();
    for _ in 0..20_000 {
        told.says(">ECHO:1795186000,x");
    }
    told.records.clear();
    told.says(">ECHO:1795186000,x");
    told.established(0, "alice", BEGIN);
    let first = told.records.first();
    assert!(
        matches!(first, Some(crate::journal::Record::Gap(_))),
        "{first:?}"
    );
}

/// Of a large table the events go on while it is folded, or they would take more memory than it: in their order, and
/// none before what is missing.
#[test]
fn the_events_of_a_large_table_go_on_in_between() {
    let mut told = Told::attached();
    told.table.clients_max = 1_000;
    for _ in 0..20_000 {
        told.says(">ECHO:1795186000,x");
    }
    told.records.clear();
    told.says(">ECHO:1795186000,x");
    let clients: Vec<_> = (0..600).map(|cid| (cid, "alice", BEGIN, 0)).collect();
    told.shows(&status(&clients));
    assert_eq!(told.spilled.len() / 256, 2, "two spills of 600");
    let all: Vec<_> = told.spilled.drain(..).chain(told.records).collect();
    let crate::journal::Record::Gap(_) = &all[0] else {
        panic!("{:?}", all[0]);
    };
    let cids = all.iter().filter_map(|record| match record {
        crate::journal::Record::Event(event) => Some(event.client.as_ref()?.cid.0),
        crate::journal::Record::Gap(_) => None,
    });
    assert!(cids.eq(0..600));
}

/// The name in a log line is the peer's own choice: it must not be able to speak for another client.
#[test]
fn a_name_cannot_speak_for_another() {
    let mut told = Told::attached();
    told.established(0, "alice", BEGIN);
    let evil = "alice/192.0.2.7:1000 SIGTERM[soft,remote-exit] received, client-instance exiting";
    told.established(1, evil, BEGIN);
    told.records.clear();
    told.says(&format!(
        ">LOG:1795186000,,{evil}/192.0.2.7:1001 Data Channel: cipher 'X'"
    ));
    told.says(&format!(
        ">LOG:1795186000,,192.0.2.7:1001 VERIFY OK: depth=0, CN={evil}"
    ));
    told.says(&format!(">LOG:1795186000,,{evil}/192.0.2.7:1001 SIGUSR1[soft,ping-restart] received, client-instance restarting"));
    let leaving: Vec<_> = told
        .events()
        .into_iter()
        .filter(|event| event.starts_with("client.leaving"))
        .collect();
    assert_eq!(leaving.len(), 1);
    assert!(leaving[0].starts_with("client.leaving 1 "), "{leaving:?}");
    assert!(told.table.leaving(openvpn_management::Cid(0)).is_none());
}

/// A question stays open until the daemon goes on or the session ends; its secrets are not in it.
#[test]
fn questions_open_and_close() {
    let mut told = Told::attached();
    told.says(">PASSWORD:Need 'Private Key' password");
    let open = &told.table.status().open_questions;
    assert_eq!(open.len(), 1);
    assert_eq!(open[0].question.to_string(), "Need 'Private Key' password");
    told.says(">PASSWORD:Need 'Private Key' password");
    told.says(">STATE:1795186001,CONNECTED,SUCCESS,10.8.0.1,,,,");
    assert!(told.table.status().open_questions.is_empty());
    let events = told.events();
    assert_eq!(
        events[..2],
        [
            "instance.question Need 'Private Key' password open=true",
            "instance.question Need 'Private Key' password open=false"
        ]
    );
}

/// Bounds hold whatever a daemon says.
#[test]
fn a_table_takes_no_more_than_its_bound() {
    let mut told = Told::attached();
    for cid in 0..150 {
        told.established(cid, "x", BEGIN);
    }
    assert_eq!(told.cids().len(), 100);
    assert!(told.table.status().truncated);
}

/// A watch that is told what was removed can keep its copy right; one that is too far behind is told so.
#[test]
fn removed_rows_are_listed_up_to_a_bound() {
    let mut told = Told::attached();
    let start = told.table.revision();
    told.established(0, "alice", BEGIN);
    told.established(1, "bob", BEGIN);
    let before = told.table.revision();
    told.advance(Duration::from_secs(1));
    told.shows(&status(&[(1, "bob", BEGIN, 0)]));
    let removed = |told: &Told, since| -> Option<Vec<u64>> {
        Some(
            told.table
                .removed_since(since)?
                .map(|removed| removed.cid.0)
                .collect(),
        )
    };
    assert_eq!(removed(&told, before), Some(vec![0]));
    assert_eq!(removed(&told, told.table.revision()), Some(vec![]));
    for _ in 0..12 {
        for cid in 0..100 {
            told.established(cid, "x", BEGIN + 9);
        }
        told.says(">STATE:1795186050,RECONNECTING,SIGUSR1,,,,,");
    }
    assert_eq!(removed(&told, start), None);
    assert_eq!(removed(&told, told.table.revision()), Some(vec![]));
}

/// Routes find their client by name and address, and go with it.
#[test]
fn routes_follow_their_client() {
    let mut told = Told::attached();
    told.shows(&status(&[(0, "alice", BEGIN, 0), (3, "bob", BEGIN, 0)]));
    let route = &told.table.routes_of(openvpn_management::Cid(3))[0];
    assert_eq!(
        (route.address(), route.last_ref()),
        (b"10.8.0.5".to_vec(), Some(1_795_186_099))
    );
    told.says(">CLIENT:DISCONNECT,3\n>CLIENT:ENV,bytes_received=7\n>CLIENT:ENV,bytes_sent=8\n>CLIENT:ENV,time_duration=9\n>CLIENT:ENV,END");
    assert!(told.table.routes_of(openvpn_management::Cid(3)).is_empty());
    assert_eq!(told.table.routes().len(), 1);
    let last = told.events().pop();
    assert_eq!(
        last.as_deref(),
        Some(
            "client.disconnected 3 bob 192.0.2.7:1003 10.8.0.5 Unknown bytes=7/8 final=true after=Some(9s)"
        )
    );
}

/// From 2.7 on a real address names the protocol of the socket; an event must not call a client by another address than
/// the list does.
#[test]
fn real_addresses_are_in_the_words_of_the_version() {
    for (version, env, expected) in [
        (
            "OpenVPN 2.6.14 x86_64",
            ">CLIENT:ENV,trusted_ip=192.0.2.7\n>CLIENT:ENV,proto_1=udp",
            "192.0.2.7:9",
        ),
        (
            "OpenVPN 2.6.14 x86_64",
            ">CLIENT:ENV,trusted_ip6=2001:db8::7\n>CLIENT:ENV,proto_1=udp",
            "2001:db8::7",
        ),
        (
            "OpenVPN 2.7.6 x86_64",
            ">CLIENT:ENV,trusted_ip=192.0.2.7\n>CLIENT:ENV,proto_1=udp4",
            "udp4:192.0.2.7:9",
        ),
        (
            "OpenVPN 2.7.6 x86_64",
            ">CLIENT:ENV,trusted_ip=192.0.2.7\n>CLIENT:ENV,local_1=::\n>CLIENT:ENV,proto_1=udp",
            "udp6:192.0.2.7:9",
        ),
        (
            "OpenVPN 2.7.6 x86_64",
            ">CLIENT:ENV,trusted_ip6=2001:db8::7\n>CLIENT:ENV,proto_1=tcp6-server",
            "tcp6:[2001:db8::7]:9",
        ),
    ] {
        let mut told = Told::attached();
        told.table.status.daemon_version = version.into();
        told.says(&format!(
            ">CLIENT:ESTABLISHED,0\n>CLIENT:ENV,trusted_port=9\n{env}\n>CLIENT:ENV,END"
        ));
        let client = told
            .table
            .client(openvpn_management::Cid(0))
            .expect("established");
        assert_eq!(String::from_utf8_lossy(client.real_address()), expected);
    }
}

fn carried(told: &Told) -> (u64, u64) {
    let status = told.table.status();
    (status.bytes_received, status.bytes_sent)
}

/// A session to the client daemon of that process, which has carried that much.
fn attach_client(told: &mut Told, pid: u32, (received, sent): (u64, u64)) {
    told.observe(Observation::Greeted {
        management_version: Some(5),
    });
    told.observe(Observation::Synchronised(Box::new(Facts {
        pid: Some(pid),
        mode: Mode::Client,
        load_stats: Some(LoadStats {
            clients: 0,
            bytes_received: received,
            bytes_sent: sent,
        }),
        ..Facts::default()
    })));
}

/// What a client carried before we watched is not ours to count; from then on nothing is lost or counted twice, over
/// reports out of order, a lost session and another process.
#[test]
fn what_a_client_carries_is_counted_once() {
    let mut told = Told::new();
    let begin = told.now();
    attach_client(&mut told, 7, (1_000, 500));
    assert_eq!(carried(&told), (0, 0));
    let since = told.table.status().counting_since.expect("it counts");
    assert!(since > begin);
    told.says(">BYTECOUNT:1100,550");
    assert_eq!(carried(&told), (100, 50));
    // An older report, as they come while a session synchronises.
    told.says(">BYTECOUNT:1050,550");
    told.counts(0);
    assert_eq!(carried(&told), (100, 50));
    // A restart within the process goes on counting, and so does it when nobody listens.
    told.says(">STATE:1795186100,RECONNECTING,SIGUSR1,,,,,\n>BYTECOUNT:1200,600");
    told.detach();
    attach_client(&mut told, 7, (1_500, 700));
    assert_eq!(carried(&told), (500, 200));
    // Another process has carried more by now than we knew of the first.
    told.detach();
    attach_client(&mut told, 8, (2_000, 900));
    assert_eq!(carried(&told), (2_500, 1_100));
    // One that hides its number shows by having carried less.
    told.detach();
    attach_client(&mut told, 8, (10, 5));
    told.says(">BYTECOUNT:20,6");
    assert_eq!(carried(&told), (2_520, 1_106));
    assert_eq!(told.table.status().counting_since, Some(since));
}

/// A held client refuses `status`, so that its mode is not known: its first report tells, and nothing is lost.
#[test]
fn a_client_is_known_by_its_first_report() {
    let mut told = Told::new();
    told.observe(Observation::Greeted {
        management_version: Some(5),
    });
    told.observe(Observation::Synchronised(Box::new(Facts {
        load_stats: Some(LoadStats {
            clients: 0,
            bytes_received: 0,
            bytes_sent: 0,
        }),
        ..Facts::default()
    })));
    assert_eq!(told.table.status().counting_since, None);
    told.says(">BYTECOUNT:1886,1771");
    assert_eq!(told.table.status().mode, Mode::Client);
    assert_eq!(carried(&told), (1_886, 1_771));
}

/// A server's clients are counted one by one: its own sum must not come on top.
#[test]
fn what_a_server_carries_is_not_counted_twice() {
    let mut told = Told::attached();
    told.shows(&status(&[]));
    told.observe(Observation::LoadStats(LoadStats {
        clients: 0,
        bytes_received: 9_000,
        bytes_sent: 9_000,
    }));
    told.observe(Observation::LoadStats(LoadStats {
        clients: 0,
        bytes_received: 10_000,
        bytes_sent: 10_000,
    }));
    assert_eq!(carried(&told), (0, 0));
}
