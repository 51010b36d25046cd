//! What real daemons said, and what becomes of it.
//!
//! `tests/transcripts/*.txt` are sessions with OpenVPN 2.4.12, 2.5.11, 2.6.14 and 2.7.6 as they went over the wire;
//! `*.out` beside them are the outputs they must give. After a wanted change: `UPDATE_EXPECTED=1 cargo test`, and read
//! the difference.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use openvpn_management::{Connection, Limits, Output};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use self::support::{Ask, Step};

const DEADLINE: Duration = Duration::from_secs(5);

#[expect(clippy::disallowed_methods, reason = "any point in time will do")]
fn start() -> Instant {
    Instant::now()
}

fn transcripts() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut directories = vec![support::directory()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "txt") {
                files.push(path);
            }
        }
    }
    files.sort();
    assert!(files.len() > 50, "transcripts are missing: {}", files.len());
    files
}

fn sessions(path: &Path) -> Vec<Vec<Step>> {
    support::sessions(&fs::read(path).unwrap())
}

fn drain(connection: &mut Connection) -> Vec<Output> {
    std::iter::from_fn(|| connection.poll_output()).collect()
}

/// Does what the manager did, as far as our own connection would.
fn ask(connection: &mut Connection, ask: &Ask, now: Instant) -> bool {
    let asked = match ask {
        Ask::Command(command) => connection.send(command, DEADLINE, now).is_ok(),
        Ask::Password(password) => connection.send_password(password).is_ok(),
        Ask::Other => false,
    };
    while connection.poll_transmit().is_some() {}
    asked
}

/// A changed meaning of any real line would pass unseen without this.
#[test]
fn transcripts_give_the_expected_outputs() {
    let update = std::env::var_os("UPDATE_EXPECTED").is_some();
    let mut wrong = Vec::new();
    for path in transcripts() {
        let now = start();
        let mut actual = String::new();
        for session in sessions(&path) {
            actual.push_str("-- session\n");
            let mut connection = Connection::new(Limits::default());
            for step in &session {
                match step {
                    Step::Ask(what) => {
                        let mark = if ask(&mut connection, what, now) {
                            "ask"
                        } else {
                            "not asked"
                        };
                        actual.push_str(&format!("{mark} {what:?}\n"));
                    }
                    Step::Hear(bytes) => connection.handle_input(bytes, now),
                }
                for output in drain(&mut connection) {
                    actual.push_str(&format!("  {output:?}\n"));
                }
            }
        }
        let expected = path.with_extension("out");
        if update {
            fs::write(&expected, &actual).unwrap();
        } else if fs::read_to_string(&expected).unwrap_or_default() != actual {
            wrong.push(path);
        }
    }
    assert!(wrong.is_empty(), "other outputs than before: {wrong:#?}");
}

/// A reader sees lines cut wherever a packet ended: each single cut, in each step of each session, must mean nothing.
#[test]
fn every_cut_gives_the_same_outputs() {
    let now = start();
    let mut cuts = 0;
    for path in transcripts() {
        for session in sessions(&path) {
            let mut connection = Connection::new(Limits::default());
            for step in &session {
                let bytes = match step {
                    Step::Ask(what) => {
                        ask(&mut connection, what, now);
                        drain(&mut connection);
                        continue;
                    }
                    Step::Hear(bytes) => bytes,
                };
                let before = connection.clone();
                connection.handle_input(bytes, now);
                let whole = drain(&mut connection);
                for cut in 1..bytes.len() {
                    let mut connection = before.clone();
                    connection.handle_input(&bytes[..cut], now);
                    connection.handle_input(&bytes[cut..], now);
                    assert_eq!(
                        drain(&mut connection),
                        whole,
                        "cut at {cut} of {}",
                        path.display()
                    );
                    cuts += 1;
                }
            }
        }
    }
    assert!(cuts > 250_000, "only {cuts} cuts were tried");
}

/// Cuts at several places at once, and a command sent when all before it was read.
#[test]
fn random_pieces_give_the_same_outputs() {
    let now = start();
    let sessions: Vec<_> = transcripts()
        .iter()
        .flat_map(|path| sessions(path))
        .collect();
    let strategy = (0..sessions.len(), prop::collection::vec(1..400usize, 1..40));
    TestRunner::default()
        .run(&strategy, |(session, pieces)| {
            let mut whole = Connection::new(Limits::default());
            let mut cut = Connection::new(Limits::default());
            let mut pieces = pieces.iter().cycle();
            for step in &sessions[session] {
                match step {
                    Step::Ask(what) => {
                        ask(&mut whole, what, now);
                        ask(&mut cut, what, now);
                    }
                    Step::Hear(bytes) => {
                        whole.handle_input(bytes, now);
                        let mut rest = &bytes[..];
                        while !rest.is_empty() {
                            let (piece, more) =
                                rest.split_at(rest.len().min(*pieces.next().unwrap()));
                            cut.handle_input(piece, now);
                            rest = more;
                        }
                    }
                }
                prop_assert_eq!(drain(&mut cut), drain(&mut whole));
            }
            Ok(())
        })
        .unwrap();
}
