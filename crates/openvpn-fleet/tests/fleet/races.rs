//! Kills against restarts, ten thousand times, in virtual time.
//!
//! Each daemon has two clients. A kill aimed at the first of them runs against a restart, after
//! which the two come back in the other order: the number that the kill was aimed at belongs to
//! the other one then. Whatever the interleaving, the kill may only have hit before.

use std::sync::Arc;
use std::time::Duration;

use openvpn_fleet::{ClientFilter, Instance, KillRequest, Outcome};
use openvpn_management::KillMessage;
use openvpn_simulator::{ClientSpec, Daemon, Misbehaviour, RestartSignal, Timing};
use tokio::task::{JoinSet, yield_now};
use tokio::time::sleep;

use crate::lab::{Lab, context, kill_of, ref_of, until};

const DAEMONS: u64 = 10;
/// Under `OVFLEET_SOAK`, and in the gate.
const RACES: (u64, u64) = (10_000, 1_000);
/// Kills of the same client in each race.
const KILLS: usize = 3;
const NAMES: [&str; 2] = ["alice", "bob"];

/// Splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

/// The race that makes bare client numbers dangerous. Fails if one kill hits whom it was not
/// aimed at, or one side always wins.
#[tokio::test(start_paused = true)]
async fn ten_thousand_races_harm_nobody() {
    let races = match std::env::var_os("OVFLEET_SOAK") {
        Some(soak) if soak != "0" => RACES.0,
        _ => RACES.1,
    };
    let seed = match std::env::var("OVFLEET_SEED") {
        Ok(seed) => seed.parse().expect("OVFLEET_SEED is a number"),
        Err(_) => getrandom::u64().expect("randomness"),
    };
    eprintln!("races: OVFLEET_SEED={seed}");
    let lab = Arc::new(Lab::new());
    let names: Vec<String> = (0..DAEMONS).map(|number| format!("d{number}")).collect();
    let mut daemons = Vec::new();
    for name in &names {
        let timing = Timing {
            restart_pause: Duration::from_millis(10),
            ..Timing::default()
        };
        let builder = Daemon::builder(name).unix(lab.directory.path().join(name));
        daemons.push(builder.timing(timing).start().await.expect("it starts"));
    }
    let instances = lab
        .attach(&names.iter().map(String::as_str).collect::<Vec<_>>())
        .await;
    let mut tasks = JoinSet::new();
    for (number, (daemon, instance)) in (0..).zip(daemons.into_iter().zip(instances)) {
        let random = Random(seed ^ (number << 32));
        let lab = Arc::clone(&lab);
        tasks.spawn(race(lab, daemon, instance, random, races / DAEMONS));
    }
    let outcomes: Vec<Outcome> = tasks.join_all().await.concat();
    let count = |wanted| {
        outcomes
            .iter()
            .filter(|outcome| **outcome == wanted)
            .count()
    };
    let (stale, accepted) = (count(Outcome::Stale), count(Outcome::Accepted));
    eprintln!(
        "{races} races, {} kills: {stale} stale, {accepted} accepted in time, {} neither, nobody else hit",
        outcomes.len(),
        outcomes.len() - stale - accepted,
    );
    assert_eq!(outcomes.len() as u64, races * KILLS as u64);
    assert!(stale > 0 && accepted > 0, "nothing raced");
}

async fn race(
    lab: Arc<Lab>,
    daemon: Daemon,
    instance: Arc<Instance>,
    mut random: Random,
    races: u64,
) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    come(&daemon, NAMES).await;
    for round in 0..races {
        let [first, second] = if round % 2 == 0 {
            NAMES
        } else {
            [NAMES[1], NAMES[0]]
        };
        until(&instance, |table| table.client_count() == 2).await;
        let target = ref_of(&instance, first);
        assert_eq!(target.cid.0, 0, "the first to come");
        let request = KillRequest {
            message: KillMessage::Halt,
            ..kill_of(ClientFilter {
                refs: [target].into(),
                ..ClientFilter::default()
            })
        };
        let signal =
            [RestartSignal::Sigusr1, RestartSignal::Sighup][usize::from(random.below(2) == 0)];
        let (wait, turns) = (random.below(40), random.below(80));
        let is_slow = random.below(2) == 0;
        let restart = async {
            if is_slow {
                // The first kill has arrived. The answer to the second takes until long after the
                // restart; the third waits in line for it, with its target found before.
                until_killing(&daemon).await;
                let delay = Duration::from_millis(40);
                let late = Misbehaviour::LateReplies { delay };
                daemon.misbehave(late).await.expect("it runs");
                sleep(Duration::from_millis(3)).await;
            } else {
                // A moment in virtual time, and one within it.
                sleep(Duration::from_millis(wait)).await;
                for _ in 0..turns {
                    yield_now().await;
                }
            }
            daemon.restart(signal).await.expect("it runs");
            come(&daemon, [second, first]).await;
        };
        let late = random.below(40);
        let killing = async {
            sleep(Duration::from_millis(late)).await;
            // Several at once, so that some wait in line with their target already found.
            let kills = (0..KILLS).map(|_| lab.fleet.kill(request.clone(), context()));
            futures_util::future::join_all(kills).await
        };
        let ((), reports) = tokio::join!(restart, killing);
        daemon.behave().await.expect("it runs");
        for report in reports {
            let report = report.expect("it begins");
            let [result] = report.results.as_slice() else {
                panic!("{report:#?}");
            };
            outcomes.push(result.outcome);
        }
        // Whatever was sent has arrived: the answers are there.
        let clients = daemon.clients().await.expect("it runs");
        let alive = clients.iter().filter(|client| !client.leaving).count();
        assert_eq!(
            alive,
            2,
            "round {round}: {:?} hit {clients:#?}",
            &outcomes[outcomes.len() - KILLS..]
        );
    }
    outcomes
}

/// Returns when a kill arrives.
async fn until_killing(daemon: &Daemon) {
    let mut seen = daemon.commands_total();
    let mut turn = 0u32;
    loop {
        let total = daemon.commands_total();
        if total > seen {
            let lines = daemon.commands();
            let news = usize::try_from(total - seen)
                .expect("a few")
                .min(lines.len());
            let is_kill = |line: &Vec<u8>| line.starts_with(b"client-kill");
            if lines[lines.len() - news..].iter().any(is_kill) {
                return;
            }
            seen = total;
        }
        // Virtual time passes only when nobody has anything to do.
        turn += 1;
        if turn.is_multiple_of(100) {
            sleep(Duration::from_millis(1)).await;
        } else {
            yield_now().await;
        }
    }
}

/// Two clients come, in this order, as soon as the daemon serves.
async fn come(daemon: &Daemon, names: [&str; 2]) {
    for name in names {
        while daemon
            .connect(ClientSpec::new(name).stays_away())
            .await
            .is_err()
        {
            sleep(Duration::from_millis(1)).await;
        }
    }
}
