//! The program as scripts and people meet it: exit codes, what goes to which
//! output, and that a kill hits exactly whom its plan showed.

#![expect(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod fake_gateway;

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    process::{Command, Output, Stdio},
};

use fake_gateway::{FakeGateway, State};
use ovfleet_proto::v1::{
    Event, EventBatch, Gap, Outcome, StreamEventsResponse, stream_events_request::Start,
    stream_events_response::Frame,
};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn assert_exit(output: &Output, code: i32) {
    assert_eq!(
        output.status.code(),
        Some(code),
        "stdout: {}\nstderr: {}",
        text(&output.stdout),
        text(&output.stderr)
    );
}

fn fleet(clients: &[&'static str]) -> FakeGateway {
    let outcome = Outcome::Accepted;
    FakeGateway::start(State {
        clients: clients.to_vec(),
        outcome,
        ..State::default()
    })
}

#[test]
fn a_complete_list_is_0_and_an_incomplete_one_is_1_and_says_so() {
    let gateway = fleet(&["alice", "bob"]);
    let output = gateway.run(["clients"]);
    assert_exit(&output, 0);
    assert!(text(&output.stdout).contains("alice") && output.stderr.is_empty());

    gateway.change(|state| state.one_unreachable = true);
    let output = gateway.run(["clients", "-o", "json"]);
    assert_exit(&output, 1);
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["clients"][1]["commonName"], "bob");
    assert_eq!(
        document["unreachable"][0]["condition"],
        "CONDITION_SLOT_BUSY"
    );
    let note = text(&output.stderr);
    assert!(
        note.contains("1 of 5 instances could not be asked"),
        "{note}"
    );
    assert!(
        note.contains("vpn1/eu2: SLOT_BUSY") && note.contains("held by socat"),
        "{note}"
    );
}

#[test]
fn somebody_looked_for_and_not_found_is_1() {
    let gateway = fleet(&["alice"]);
    assert_exit(&gateway.run(["clients", "--common-name", "nobody"]), 1);
    assert_exit(&fleet(&[]).run(["clients"]), 0);
    let output = gateway.run(["clients", "-o", "jsonl"]);
    assert_exit(&output, 0);
    assert_eq!(text(&output.stdout).lines().count(), 1);
}

#[test]
fn a_mistake_is_2_whoever_finds_it() {
    let gateway = fleet(&["alice"]);
    for mistake in [
        &["clients", "--bogus"][..],
        &["nonsense"],
        &["kill", "--common-name", "alice"],
        &["kill", "--all"],
        &["kill", "--all", "--common-name", "alice", "--every-client"],
        &["kill", "--all", "--instance", "eu1", "--every-client"],
        &[
            "kill",
            "--all",
            "--every-client",
            "--message",
            "x",
            "--mode",
            "halt",
        ],
        &["signal", "SIGUSR1"],
        &["signal", "SIGKILL", "--all"],
        &["instances", "-l", "(("],
        &["clients", "--gateway", "127.0.0.1:7600"],
        &["clients", "--fresh", "--max-age", "5s"],
    ] {
        let output = gateway.run(mistake);
        assert_exit(&output, 2);
        assert!(!output.stderr.is_empty(), "{mistake:?} wants a word");
    }
    assert!(
        gateway.kills().is_empty(),
        "a mistake is found before anything is sent"
    );
    let output = gateway.run(["instances", "-l", "(("]);
    assert!(text(&output.stderr).contains("selector.labels: a name must follow at 1"));
}

#[test]
fn a_gateway_that_is_not_there_is_3_and_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let address = format!("unix:{}", dir.path().join("none.sock").display());
    let gateway = fleet(&[]);
    for command in [
        &["clients"][..],
        &["events"],
        &["kill", "--all", "--every-client", "--yes"],
    ] {
        let output = gateway.run(command.iter().chain(&["--gateway", &address]));
        assert_exit(&output, 3);
        let message = text(&output.stderr);
        assert!(
            message.contains(&address) && message.contains("ovfleet serve"),
            "{message}"
        );
    }
}

#[test]
fn an_unknown_action_is_1_in_the_gateways_words() {
    let output = fleet(&[]).run(["actions", "r1"]);
    assert_exit(&output, 1);
    assert_eq!(text(&output.stderr), "ovfleet: no action r1\n");
}

/// A script without a terminal cannot be asked: nothing may be sent.
#[test]
fn without_a_terminal_kill_shows_the_plan_and_sends_nothing() {
    let gateway = fleet(&["alice", "bob"]);
    let output = gateway.run(["kill", "--all", "--common-name", "alice"]);
    assert_exit(&output, 2);
    let plan = text(&output.stderr);
    assert!(
        plan.contains("alice") && plan.contains("PLANNED") && plan.contains("--yes"),
        "{plan}"
    );
    assert!(output.stdout.is_empty());
    assert!(gateway.kills().iter().all(|kill| kill.validate_only));

    let output = gateway.run(["kill", "--all", "--common-name", "alice", "--dry-run"]);
    assert_exit(&output, 0);
    assert!(text(&output.stdout).contains("PLANNED"));
    assert!(gateway.kills().iter().all(|kill| kill.validate_only));
}

#[test]
fn kill_is_0_only_when_somebody_matched_and_everybody_is_done() {
    let gateway = fleet(&["alice", "bob"]);
    let kill = |name: &str, options: &[&str]| {
        let args = ["kill", "--all", "--yes", "--common-name", name];
        gateway.run(args.iter().chain(options))
    };
    let output = kill("alice", &["--request-id", "r1"]);
    assert_exit(&output, 0);
    assert!(text(&output.stdout).contains("ACCEPTED"));
    assert!(text(&output.stderr).contains("request r1: 1 ACCEPTED"));
    assert_eq!(
        gateway.kills().len(),
        1,
        "--yes resolves and acts in one call"
    );
    assert_eq!(gateway.kills()[0].request_id, "r1");

    assert_exit(&kill("nobody", &[]), 1);
    assert_exit(&kill("alice", &["--wait"]), 1); // Accepted, but not seen to be gone.
    gateway.change(|state| state.outcome = Outcome::Confirmed);
    assert_exit(&kill("alice", &["--wait"]), 0);
    gateway.change(|state| state.outcome = Outcome::Stale);
    assert_exit(&kill("alice", &[]), 1);
    assert!(
        gateway
            .kills()
            .iter()
            .all(|kill| !kill.request_id.is_empty())
    );
}

/// A stream that breaks must go on behind the last event that was shown: one
/// that begins anew would show events twice, or leave them out.
#[test]
fn a_broken_stream_of_events_goes_on_where_it_broke() {
    let batch = |sequence: u64, cursor: &str| {
        let event = Event {
            sequence,
            kind: "client.established".into(),
            ..Event::default()
        };
        let frame = Frame::Batch(EventBatch {
            events: vec![event],
            cursor: cursor.into(),
        });
        Ok(StreamEventsResponse { frame: Some(frame) })
    };
    let gap = Gap {
        cursor: "two".into(),
        count: Some(7),
        ..Gap::default()
    };
    let gap = Ok(StreamEventsResponse {
        frame: Some(Frame::Gap(gap)),
    });
    let gateway = FakeGateway::start(State {
        streams: [
            vec![
                batch(1, "one"),
                gap,
                Err(tonic::Status::unavailable("gone")),
            ],
            vec![batch(2, "three")],
        ]
        .into(),
        ..State::default()
    });
    let output = gateway.run(["events", "--from", "oldest", "--no-follow", "-o", "jsonl"]);
    assert_exit(&output, 0);
    let lines: Vec<serde_json::Value> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert_eq!(
        (&lines[0]["sequence"], &lines[2]["sequence"]),
        (&"1".into(), &"2".into())
    );
    assert_eq!(lines[1]["gap"]["count"], "7");
    assert_eq!(
        gateway.starts(),
        [Start::Oldest(true), Start::Cursor("two".into())]
    );
    let notes = text(&output.stderr);
    assert!(notes.contains("lost the stream (gone)"), "{notes}");
    assert!(notes.ends_with("resume with --from three\n"), "{notes}");
}

/// The controlling end of a new terminal, and the end that a program gets.
fn terminal() -> (File, OwnedFd) {
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let person = openpt(flags).unwrap();
    grantpt(&person).unwrap();
    unlockpt(&person).unwrap();
    let program = ioctl_tiocgptpeer(&person, flags).unwrap();
    (person.into(), program)
}

/// Answers `answer` when the program asks; gives its output and what was on
/// the terminal.
fn answered(mut command: Command, answer: &str, before: impl FnOnce()) -> (Output, String) {
    let (mut person, program) = terminal();
    command
        .stdin(program.try_clone().unwrap())
        .stderr(Stdio::from(program))
        .stdout(Stdio::piped());
    let child = command.spawn().unwrap();
    // The terminal is at its end when no program holds it.
    drop(command);
    let mut seen = Vec::new();
    let mut chunk = [0; 1024];
    while !text(&seen).contains("[y/N]") {
        let length = person.read(&mut chunk).unwrap();
        seen.extend(&chunk[..length]);
    }
    before();
    person.write_all(format!("{answer}\n").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    // What is left; Linux ends a terminal with EIO.
    while let Ok(length @ 1..) = person.read(&mut chunk) {
        seen.extend(&chunk[..length]);
    }
    (output, text(&seen))
}

/// A client that connects between the plan and the answer has the same name
/// and must live.
#[test]
fn a_confirmed_kill_hits_exactly_whom_the_plan_showed() {
    let gateway = fleet(&["alice", "bob"]);
    let command = gateway.command(["kill", "--all", "--common-name", "alice"]);
    let (output, seen) = answered(command, "y", || {
        gateway.change(|state| state.clients.push("alice"))
    });
    assert_exit(&output, 0);
    assert!(
        seen.contains("This will end 1 client on 1 instance"),
        "{seen}"
    );
    assert_eq!(text(&output.stdout).matches("alice").count(), 1);

    let kills = gateway.kills();
    let [plan, kill] = &kills[..] else {
        panic!("{kills:?}")
    };
    assert!(plan.validate_only && !kill.validate_only);
    assert_ne!(plan.request_id, kill.request_id);
    let filter = kill.filter.as_ref().unwrap();
    assert!(filter.common_names.is_empty() && !kill.every_client);
    assert_eq!(
        filter
            .refs
            .iter()
            .map(|client| client.cid)
            .collect::<Vec<_>>(),
        [0]
    );
    assert_eq!(kill.selector.as_ref().unwrap().names, ["vpn1/eu1"]);
}

#[test]
fn anything_but_yes_sends_nothing() {
    let gateway = fleet(&["alice"]);
    let command = gateway.command(["kill", "--all", "--every-client"]);
    let (output, seen) = answered(command, "", || {});
    assert_exit(&output, 1);
    assert!(seen.contains("nothing was sent"), "{seen}");
    assert!(gateway.kills().iter().all(|kill| kill.validate_only));
}

#[test]
fn help_manual_and_completions_come_without_a_gateway() {
    let gateway = fleet(&[]);
    let help = gateway.run(["--help"]);
    assert_exit(&help, 0);
    assert!(text(&help.stdout).contains("gateway not reached"));
    // Options for callers are taken everywhere, but shown only where they matter.
    assert!(text(&gateway.run(["clients", "--help"]).stdout).contains("--gateway"));
    assert!(!text(&gateway.run(["serve", "--help"]).stdout).contains("--gateway"));
    let version = text(&gateway.run(["--version"]).stdout);
    assert_eq!(
        version.trim(),
        concat!("ovfleet ", env!("CARGO_PKG_VERSION"))
    );
    for shell in ["bash", "zsh", "fish"] {
        let script = gateway.run(["completions", shell]);
        assert_exit(&script, 0);
        assert!(text(&script.stdout).contains("check-config"));
    }
    let dir = tempfile::tempdir().unwrap();
    assert_exit(
        &gateway.run(["man", "--dir", dir.path().to_str().unwrap()]),
        0,
    );
    for page in ["ovfleet.1", "ovfleet-kill.1", "ovfleet-serve.1"] {
        assert!(dir.path().join(page).exists(), "{page}");
    }
}
