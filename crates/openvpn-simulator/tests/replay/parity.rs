//! Every recording of a real 2.6.14: played to a real one and to a simulated one, on the same terms, or the reason why not.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::timeout;

use crate::lab::Pki;
use crate::people::translate;
use crate::script::{Comparison, play_at};
use crate::setup::{
    ASKING, ECHOING, HELD, KILLED, LOCKED, ODD_NAMES, ONE_CLIENT, PASSWORD, PLAIN, RESTARTED, Real,
    Setup, Simulated, THREE_CLIENTS,
};

/// What becomes of a recording.
#[derive(Clone, Copy)]
enum Fate {
    /// Played to both, which are set up like this.
    Both(Setup),
    /// Played to the simulated one, by the test of that name: the clients of the recording are not to be had again.
    Alone(&'static str),
    /// Not played.
    Left(&'static str),
}
use Fate::{Alone, Both, Left};

const SEVERAL_SESSIONS: &str = "several sessions at once: `managers_wait_in_line` compares these";
const DIALS: &str = "the daemon dials its manager: a simulated one listens only";

const RECORDINGS: [(&str, Fate); 39] = [
    ("01-tcp-password-ok", Both(PASSWORD)),
    ("02-tcp-password-wrong-x3", Both(PASSWORD)),
    ("03-tcp-password-wrong-then-ok", Both(PASSWORD)),
    ("04-tcp-password-pipelined-with-commands", Both(PASSWORD)),
    ("05-tcp-password-partial-compare", Both(PASSWORD)),
    ("06-help", Both(ECHOING)),
    ("07-version-pid-misc", Both(ECHOING)),
    ("08-version-negotiation", Both(ECHOING)),
    ("09-malformed", Both(PLAIN)),
    ("10-long-lines", Both(PLAIN)),
    ("11-status-0-clients", Both(PLAIN)),
    ("11b-status-0-clients-default-version-1", Both(PASSWORD)),
    ("12-status-1-client", Both(ONE_CLIENT)),
    ("13-status-3-clients", Both(THREE_CLIENTS)),
    ("14-state", Both(PASSWORD)),
    ("15-log", Alone("log_history")),
    (
        "16-bytecount-server",
        Left("traffic of a tunnel; >BYTECOUNT_CLI has tests of its own"),
    ),
    ("17-kill", Both(THREE_CLIENTS)),
    ("18-client-kill", Both(KILLED)),
    ("19-second-client-tcp", Left(SEVERAL_SESSIONS)),
    ("20-second-client-unix", Left(SEVERAL_SESSIONS)),
    ("21-weird-common-names", Both(ODD_NAMES)),
    ("22-exit-and-pipelining", Both(ODD_NAMES)),
    ("30-client-auth-approve-deny", Alone("client_auth")),
    ("31-client-auth-env-filter", Both(ASKING)),
    ("32-client-pending-auth", Alone("client_connected")),
    ("40-hold", Both(HELD)),
    ("41-signals", Alone("signals")),
    ("42-signal-pipelined", Both(RESTARTED)),
    ("43-management-client-tcp", Left(DIALS)),
    ("43-management-client-unix", Left(DIALS)),
    (
        "45-management-signal",
        Left("--management-signal: a simulated one has no such option"),
    ),
    (
        "46-half-open-UNDEF-tcp",
        Left("bare TCP connections to a VPN port: a simulated one has none"),
    ),
    (
        "50-restart-with-client-auth",
        Left("two clients of one server in the order of their handshakes"),
    ),
    ("51-disconnect-mid-reply", Both(PLAIN)),
    ("60-server-private-key-password", Both(LOCKED)),
    ("61-server-private-key-ok", Both(LOCKED)),
    (
        "62-server-fatal",
        Left("a VPN port that is taken: a simulated one has none"),
    ),
    ("63-client-prompts", Alone("client_prompts")),
];

/// Neither a time nor a number, and yet each daemon's own: paths, and what a kernel or an OpenSSL has to say.
const NOISE: &[&str] = &[
    "MANAGEMENT: Client connected from",
    "this configuration may cache passwords",
    "net_route_v4",
    "Max bcast/mcast queue length",
    "ECONNREFUSED",
    // A client that got no answer for a second asks again.
    "PUSH: Received control message: 'PUSH_REQUEST'",
    // It depends on how long a test takes, and on the traffic in that time.
    ">CLIENT:ENV,time_duration=",
    // The recorded ones got their options on the command line.
    ">CLIENT:ENV,config=",
];

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../openvpn-management/tests/transcripts")
}

/// The recording, with the steps of the scenario where the simulator's copy has some.
fn recording(name: &str) -> String {
    let file = format!("{name}.txt");
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/replay/transcripts");
    let path = [own.join(&file), directory().join(&file)];
    let path = path.iter().find(|path| path.exists()).expect("a recording");
    fs::read_to_string(path).unwrap()
}

/// Longest that one recording may take; noise alone would keep a test waiting for ever.
const SCENARIO_MAX: Duration = Duration::from_secs(90);

/// Plays to both all recordings that want such a server.
async fn play_all(is_meant: impl Fn(&Setup) -> bool) {
    let pki = Pki::new();
    let mut played = 0;
    for (name, fate) in RECORDINGS {
        let Both(setup) = fate else {
            continue;
        };
        if !is_meant(&setup) {
            continue;
        }
        let comparison = Comparison {
            noise: NOISE,
            any_order: setup.any_order,
        };
        let mut transcript = translate(&recording(name));
        let mut people = Vec::new();
        for person in setup.clients.iter().chain(setup.guests) {
            let (resident, settled) = person.settle(transcript);
            people.push(resident);
            transcript = settled;
        }
        let directory = tempfile::tempdir().unwrap();
        let real = Real::start(&setup, directory.path(), &pki, &people).await;
        let title = format!("{name}, the real one");
        let step = async |step: &str| real.carry_out(step).await;
        let playing = play_at(&real.address, &title, &transcript, comparison, step);
        timeout(SCENARIO_MAX, playing).await.expect(&title);
        let simulated = Simulated::start(&setup, directory.path(), &people).await;
        let title = format!("{name}, the simulated one");
        let step = async |step: &str| simulated.carry_out(step).await;
        let address = simulated.daemon.address();
        let playing = play_at(address, &title, &transcript, comparison, step);
        timeout(SCENARIO_MAX, playing).await.expect(&title);
        played += 1;
    }
    assert!(played > 0);
}

/// A new recording must be played, or be left for a reason.
#[test]
fn every_recording_has_its_fate() {
    let mut found: Vec<String> = fs::read_dir(directory())
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".txt").map(str::to_owned))
        .collect();
    found.sort();
    let mut known: Vec<_> = RECORDINGS.iter().map(|(name, _)| *name).collect();
    known.sort_unstable();
    assert_eq!(found, known);
    let tests = include_str!("main.rs");
    for (name, fate) in RECORDINGS {
        match fate {
            Alone(test) => assert!(tests.contains(&format!("async fn {test}()")), "{name}"),
            Left(reason) => assert!(!reason.is_empty(), "{name}"),
            Both(_) => {}
        }
    }
}

#[tokio::test]
async fn passwords() {
    play_all(|setup| setup.password && setup.clients.is_empty()).await;
}

#[tokio::test]
async fn plain_sessions() {
    play_all(|setup| !setup.password && !setup.hold && !setup.locked && setup.clients.is_empty())
        .await;
}

#[tokio::test]
async fn holds() {
    play_all(|setup| setup.hold).await;
}

#[tokio::test]
async fn private_keys() {
    play_all(|setup| setup.locked).await;
}

#[tokio::test]
async fn up_to_three_clients() {
    play_all(|setup| setup.password && !setup.clients.is_empty() && !setup.any_order).await;
}

#[tokio::test]
async fn clients_that_are_killed() {
    play_all(|setup| setup.password && setup.any_order).await;
}

#[tokio::test]
async fn odd_names() {
    play_all(|setup| setup.clients.len() == 7).await;
}

#[tokio::test]
async fn clients_the_manager_decides_on() {
    play_all(|setup| setup.client_auth).await;
}
