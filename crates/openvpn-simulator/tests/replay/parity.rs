//! Every recording of a real 2.6.14, played to a real one and to a simulated one at once, on the same terms.
//!
//! Recordings that need steps have a copy in `transcripts`. Some copies are no longer what was recorded, but the same
//! scenario with its chances taken out: 15 has other managers before it; 16 waits for a count of everybody instead of so
//! many; 30 and 32 have a server of their own, in 30 each client waits for the one before, and its log is seen; in 32 and
//! 63 an answer waits for its question; in 50 the clients come one after the other.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use openvpn_simulator::{Address, StartError};
use tokio::time::timeout;

use crate::compare::Comparison;
use crate::lab::{Pki, free_port, openvpn};
use crate::people::translate;
use crate::script::play_sessions;
use crate::setup::Setup;
use crate::setups::{
    ASKING, ASKING_ABOUT_THREE, ASKING_AGAIN, COUNTED, DIALLING, DIALLING_TCP, ECHOING, HELD,
    KILLED, LOCKED, LOGGED, MINDING, ODD_NAMES, ONE_CLIENT, OVER_TCP, PASSWORD, PENDING, PLAIN,
    PROMPTING, RESTARTED, SIGNALLED, THREE_CLIENTS, TOO_LATE,
};
use crate::stage::{Real, Simulated};

/// Makes a test of each group of recordings, which are played in turn to servers that are set up like this.
macro_rules! recordings {
    ($($test:ident: [$(($name:literal, $setup:expr)),+ $(,)?])+) => {
        $(
            #[tokio::test]
            async fn $test() {
                $(play(&recording($name), $name, &$setup).await;)+
            }
        )+

        /// All of them, by name.
        const RECORDINGS: &[&str] = &[$($($name),+),+];
    };
}

recordings! {
    passwords: [
        ("01-tcp-password-ok", PASSWORD),
        ("02-tcp-password-wrong-x3", PASSWORD),
        ("03-tcp-password-wrong-then-ok", PASSWORD),
        ("04-tcp-password-pipelined-with-commands", PASSWORD),
        ("05-tcp-password-partial-compare", PASSWORD),
        ("11b-status-0-clients-default-version-1", PASSWORD),
        ("14-state", PASSWORD),
    ]
    plain_sessions: [
        ("06-help", ECHOING),
        ("07-version-pid-misc", ECHOING),
        ("08-version-negotiation", ECHOING),
        ("09-malformed", PLAIN),
        ("10-long-lines", PLAIN),
        ("11-status-0-clients", PLAIN),
        ("42-signal-pipelined", RESTARTED),
        ("51-disconnect-mid-reply", PLAIN),
    ]
    several_sessions: [
        ("19-second-client-tcp", PASSWORD),
        ("20-second-client-unix", PLAIN),
    ]
    logs: [("15-log", LOGGED)]
    holds: [
        ("40-hold", HELD),
        ("62-server-fatal", TOO_LATE),
    ]
    signals: [("41-signals", SIGNALLED)]
    half_open_clients: [("46-half-open-UNDEF-tcp", OVER_TCP)]
    private_keys: [
        ("60-server-private-key-password", LOCKED),
        ("61-server-private-key-ok", LOCKED),
    ]
    daemons_that_mind_their_manager: [
        ("43-management-client-tcp", DIALLING_TCP),
        ("43-management-client-unix", DIALLING),
        ("45-management-signal", MINDING),
    ]
    up_to_three_clients: [
        ("12-status-1-client", ONE_CLIENT),
        ("13-status-3-clients", THREE_CLIENTS),
        ("17-kill", THREE_CLIENTS),
    ]
    clients_that_are_killed: [("18-client-kill", KILLED)]
    odd_names: [
        ("21-weird-common-names", ODD_NAMES),
        ("22-exit-and-pipelining", ODD_NAMES),
    ]
    counts: [("16-bytecount-server", COUNTED)]
    clients_the_manager_decides_on: [("30-client-auth-approve-deny", ASKING_ABOUT_THREE)]
    environments_the_manager_filters: [("31-client-auth-env-filter", ASKING)]
    clients_that_wait: [("32-client-pending-auth", PENDING)]
    clients_that_ask: [("63-client-prompts", PROMPTING)]
    clients_that_are_asked_about_again: [("50-restart-with-client-auth", ASKING_AGAIN)]
}

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

/// Plays a recording to both, on the same terms.
async fn play(recording: &str, name: &str, setup: &Setup) {
    let comparison = Comparison {
        noise: NOISE,
        more_noise: setup.noise,
        any_order: setup.any_order,
    };
    let pki = Pki::new();
    let mut transcript = translate(recording);
    let mut people = Vec::new();
    for person in setup.clients.iter().chain(setup.guests) {
        let (resident, settled) = person.settle(transcript);
        people.push(resident);
        transcript = settled;
    }
    let directory = tempfile::tempdir().unwrap();

    let play_real = async {
        let real = Real::start(setup, directory.path(), &pki, &people).await;
        let title = format!("{name}, the real one");
        let enter = async |session: &str| real.enter(session).await;
        let step = async |step: &str| real.carry_out(step).await;
        let playing = play_sessions(&title, &transcript, comparison, enter, step);
        timeout(SCENARIO_MAX, playing).await.expect(&title);
    };
    let play_simulated = async {
        let simulated = Simulated::start(setup, directory.path(), &people).await;
        let title = format!("{name}, the simulated one");
        let enter = async |session: &str| simulated.enter(session).await;
        let step = async |step: &str| simulated.carry_out(step).await;
        let playing = play_sessions(&title, &transcript, comparison, enter, step);
        timeout(SCENARIO_MAX, playing).await.expect(&title);
    };
    tokio::join!(play_real, play_simulated);
}

/// A new recording must be played.
#[test]
fn every_recording_is_played() {
    let mut found: Vec<String> = fs::read_dir(directory())
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".txt").map(str::to_owned))
        .collect();
    found.sort();
    let mut played = RECORDINGS.to_vec();
    played.sort_unstable();
    assert_eq!(found, played);
}

/// A daemon whose manager does not listen ends at once, and that is no failure. A simulated one does not even start.
#[tokio::test]
async fn managers_who_are_not_there() {
    let directory = tempfile::tempdir().unwrap();
    let nobody = Address::Unix(directory.path().join("nobody.sock"));
    let config = DIALLING.config(&nobody, &Pki::new(), free_port().unwrap());
    let real = openvpn(directory.path(), "real", &config);
    assert!(real.ended().await);
    let simulated = DIALLING.builder(nobody).start().await;
    let error = simulated.unwrap_err();
    assert!(matches!(error, StartError::Dial { .. }), "{error}");
}
