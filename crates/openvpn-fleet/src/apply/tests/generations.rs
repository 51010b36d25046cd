//! When a CID space began anew, and when it did not.

use crate::apply::told::{BEGIN, Told, status};

const CONNECTED: &str = "1795186000,CONNECTED,SUCCESS,10.8.0.1,,,,";

/// What happens to a daemon after it showed clients 1 and 5, and whether that is another generation.
type Case = (&'static str, Option<&'static str>, fn(&mut Told));

const CASES: &[Case] = &[
    ("a later client", None, |told| {
        told.established(6, "carol", BEGIN + 50)
    }),
    ("the same clients again", None, |told| {
        told.shows(&status(&[
            (1, "alice", BEGIN + 1, 9),
            (5, "bob", BEGIN + 2, 9),
        ]))
    }),
    ("one left, one came", None, |told| {
        told.shows(&status(&[
            (5, "bob", BEGIN + 2, 9),
            (7, "carol", BEGIN + 9, 0),
        ]))
    }),
    ("attached again, nothing changed", None, |told| {
        told.detach();
        told.attach(
            Some(1),
            CONNECTED,
            Some(&status(&[(5, "bob", BEGIN + 2, 9)])),
        );
    }),
    ("a half-open one finishes after a later one", None, |told| {
        told.shows(&status(&[
            (1, "alice", BEGIN + 1, 0),
            (5, "bob", BEGIN + 2, 0),
            (6, "UNDEF", BEGIN + 3, 0),
            (8, "dave", BEGIN + 4, 0),
        ]));
        told.established(6, "carol", BEGIN + 3);
        told.shows(&status(&[
            (1, "alice", BEGIN + 1, 0),
            (5, "bob", BEGIN + 2, 0),
            (6, "carol", BEGIN + 3, 0),
            (8, "dave", BEGIN + 4, 0),
        ]));
    }),
    ("bytes of an unknown client", None, |told| {
        told.says(">BYTECOUNT_CLI:3,1,1")
    }),
    (
        "a truncated list says nothing of who is absent",
        None,
        |told| {
            let many: Vec<_> = (100..250).map(|cid| (cid, "x", BEGIN + 9, 0)).collect();
            told.shows(&status(&many));
            told.established(90, "late", BEGIN + 10);
        },
    ),
    ("RECONNECTING", Some("Reconnecting lost=Yes"), |told| {
        told.says(">STATE:1795186050,RECONNECTING,SIGUSR1,,,,,")
    }),
    (
        "RECONNECTING, then CONNECTED, is one",
        Some("Reconnecting lost=Yes"),
        |told| {
            told.says(">STATE:1795186050,RECONNECTING,SIGUSR1,,,,,\n>STATE:1795186051,CONNECTED,SUCCESS,10.8.0.1,,,,");
        },
    ),
    (
        "CONNECTED at another time",
        Some("ConnectedTime lost=Unknown"),
        |told| {
            told.says(">STATE:1795186051,CONNECTED,SUCCESS,10.8.0.1,,,,");
        },
    ),
    ("another pid", Some("Pid lost=Unknown"), |told| {
        told.detach();
        told.attach(Some(2), CONNECTED, Some(&status(&[])));
    }),
    (
        "no pid to compare",
        Some("ConnectedTime lost=Unknown"),
        |told| {
            told.detach();
            told.attach(None, CONNECTED, Some(&status(&[])));
        },
    ),
    (
        "another CONNECTED while nobody looked",
        Some("ConnectedTime lost=Unknown"),
        |told| {
            told.detach();
            told.attach(
                Some(1),
                "1795186090,CONNECTED,SUCCESS,10.8.0.1,,,,",
                Some(&status(&[(1, "alice", BEGIN + 1, 9)])),
            );
        },
    ),
    (
        "RECONNECTING, and the session is lost before CONNECTED",
        Some("Reconnecting lost=Yes"),
        |told| {
            told.says(">STATE:1795186050,RECONNECTING,SIGUSR1,,,,,");
            told.detach();
            told.attach(
                Some(1),
                "1795186051,CONNECTED,SUCCESS,10.8.0.1,,,,",
                Some(&status(&[])),
            );
        },
    ),
    (
        "EXITING, and the same all over",
        Some("ConnectedTime lost=Unknown"),
        |told| {
            told.says(">STATE:1795186050,EXITING,SIGTERM,,,,,");
            told.detach();
            told.attach(Some(1), CONNECTED, Some(&status(&[])));
        },
    ),
    (
        "a CID with another time",
        Some("CidReused lost=Yes"),
        |told| {
            told.shows(&status(&[
                (1, "alice", BEGIN + 70, 0),
                (5, "bob", BEGIN + 2, 9),
            ]));
        },
    ),
    (
        "a CID with another name",
        Some("CidReused lost=Yes"),
        |told| told.established(1, "mallory", BEGIN + 1),
    ),
    (
        "a CID with another time, unasked",
        Some("CidReused lost=Yes"),
        |told| told.established(1, "alice", BEGIN + 70),
    ),
    (
        "CONNECT of an established CID",
        Some("CidReused lost=Yes"),
        |told| {
            told.says(">CLIENT:CONNECT,1,1\n>CLIENT:ENV,common_name=alice\n>CLIENT:ENV,END");
        },
    ),
    ("a CID that was passed", Some("CidLower lost=Yes"), |told| {
        told.established(3, "carol", BEGIN + 50)
    }),
    (
        "a CID that was passed, in a list",
        Some("CidLower lost=Yes"),
        |told| told.shows(&status(&[(0, "carol", BEGIN + 50, 0)])),
    ),
    ("a CID that had left", Some("CidLower lost=Yes"), |told| {
        told.shows(&status(&[(1, "alice", BEGIN + 1, 9)]));
        told.shows(&status(&[
            (1, "alice", BEGIN + 1, 9),
            (5, "bob", BEGIN + 80, 0),
        ]));
    }),
];

/// A wrong "the same" lets a kill hit a stranger; a wrong "new" makes every reference stale for nothing.
#[test]
fn the_rules_of_generations() {
    for (name, expected, happens) in CASES {
        let mut told = Told::new();
        told.attach(
            Some(1),
            CONNECTED,
            Some(&status(&[
                (1, "alice", BEGIN + 1, 0),
                (5, "bob", BEGIN + 2, 0),
            ])),
        );
        let before = told.generation();
        told.records.clear();
        happens(&mut told);
        let events = told.events();
        let begun: Vec<_> = events
            .iter()
            .filter_map(|event| event.strip_prefix("instance.generation "))
            .collect();
        assert_eq!(begun, expected.as_slice(), "{name}: {events:#?}");
        assert_eq!(told.generation() > before, expected.is_some(), "{name}");
    }
}

/// A TCP client that finishes its handshake after a later one, before any list was asked: CID 1 before CID 0.
#[test]
fn cid_1_before_cid_0() {
    let mut told = Told::attached();
    told.established(1, "bob", BEGIN + 1);
    told.established(0, "alice", BEGIN);
    told.shows(&status(&[(0, "alice", BEGIN, 0), (1, "bob", BEGIN + 1, 0)]));
    assert!(
        told.events()
            .iter()
            .all(|event| event.starts_with("client.established")),
        "no generation, nobody lost"
    );
    assert_eq!(told.cids(), [0, 1]);
}

/// Generations only rise, also when the clock is set back.
#[test]
fn generations_rise_when_the_clock_falls() {
    let mut told = Told::attached();
    let mut last = told.generation();
    told.set_back(std::time::Duration::from_secs(3_600));
    for _ in 0..3 {
        told.says(">STATE:1795186050,RECONNECTING,SIGUSR1,,,,,");
        assert!(told.generation() > last);
        last = told.generation();
    }
}

/// A restart that was announced excuses one other CONNECTED, not every later one.
#[test]
fn a_restart_excuses_only_the_run_it_announced() {
    let mut told = Told::attached();
    told.says(">STATE:1795186050,RECONNECTING,SIGUSR1,,,,,");
    told.detach();
    let announced = told.generation();
    told.attach(
        Some(1),
        "1795186051,CONNECTED,SUCCESS,10.8.0.1,,,,",
        Some(&status(&[])),
    );
    assert_eq!(told.generation(), announced);
    told.detach();
    told.attach(
        Some(1),
        "1795186090,CONNECTED,SUCCESS,10.8.0.1,,,,",
        Some(&status(&[])),
    );
    assert!(told.generation() > announced);
}

/// A gateway that restarts is told of a daemon what the one before knew: `pid`, the state and the clients that it finds
/// then, and whether that is the run that was known.
type Return = (
    &'static str,
    bool,
    u32,
    &'static str,
    &'static [(u64, &'static str, u64, u64)],
);

const RETURNS: &[Return] = &[
    (
        "nothing changed",
        true,
        1,
        CONNECTED,
        &[(1, "alice", BEGIN + 1, 9)],
    ),
    (
        "one left, one came",
        true,
        1,
        CONNECTED,
        &[(5, "bob", BEGIN + 2, 9), (9, "carol", BEGIN + 5_000, 0)],
    ),
    ("another process", false, 2, CONNECTED, &[]),
    (
        "the same process id, connected at another time",
        false,
        1,
        "1795186500,CONNECTED,SUCCESS,10.8.0.1,,,,",
        &[],
    ),
    (
        "a number of before, given out again",
        false,
        1,
        CONNECTED,
        &[(5, "bob", BEGIN + 5_000, 0)],
    ),
];

/// A reference from before must hit exactly whom it meant, or nobody.
#[test]
fn a_restart_of_the_gateway_keeps_a_generation_only_on_evidence() {
    for (what, is_same, pid, state, clients) in RETURNS {
        let mut before = Told::attached();
        before.shows(&status(&[
            (1, "alice", BEGIN + 1, 9),
            (5, "bob", BEGIN + 2, 9),
        ]));
        let known = before.table.known_run().expect("a generation");
        let mut after = Told::new();
        // The clock went back meanwhile; numbers must rise all the same.
        after.set_back(std::time::Duration::from_secs(3_600));
        after.table.restore(&known);
        after.attach(Some(*pid), state, Some(&status(clients)));
        if *is_same {
            assert_eq!(after.generation(), before.generation(), "{what}");
        } else {
            assert!(after.generation() > before.generation(), "{what}");
        }
        let events = after.events();
        assert!(
            events[0].contains("gap"),
            "{what}: what nobody saw comes first: {events:?}"
        );
    }
}

/// Whoever was told of an end, or is not sure, must not take the next run for the last one.
#[test]
fn a_run_in_doubt_is_not_taken_up() {
    for doubt in [
        ">STATE:1795186050,EXITING,exit,,,,,",
        ">STATE:1795186050,RECONNECTING,SIGUSR1,,,,,",
    ] {
        let mut before = Told::attached();
        before.says(doubt);
        let known = before.table.known_run().expect("a generation");
        let mut after = Told::new();
        after.table.restore(&known);
        after.attach(Some(1), CONNECTED, None);
        assert!(after.generation() > before.generation(), "{doubt}");
    }
}
