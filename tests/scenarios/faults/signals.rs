//! Real daemons that are stopped, restarted and killed while they are watched and commanded.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ovfleet_proto::v1::{Condition, KillClientsRequest, KillMode, Outcome};
use ovfleet_tests::{
    Client, Management, Signal,
    api::{by_name, named, timed},
    poll_until,
    random::{Random, soak},
};

use super::cuts::Lab;

/// A daemon that was stopped is itself again by then.
const TRUE_AGAIN: Duration = Duration::from_secs(30);
/// Silence of so long is nothing to speak of: a status takes as long on a busy host.
const UNREMARKABLE: Duration = Duration::from_secs(4);
const CONNECTS: Duration = Duration::from_secs(30);
const COMMAND: &str = "MANAGEMENT: CMD 'client-kill";

/// A stopped daemon is named when it matters and not before, loses nobody, and what was tried
/// on it meanwhile is told as it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_daemon_is_true_again_when_it_goes_on() -> Result<()> {
    let stops = if soak() { &[3, 10, 60][..] } else { &[3, 10] };
    let stop = async |seconds: u64| {
        let mut lab = Lab::start(&format!("stop{seconds}"), Management::Unix).await?;
        let name = lab.server.name().to_owned();
        let sessions = lab.api.status(&name).await?.sessions;
        let stopped = Instant::now();
        let for_long = Duration::from_secs(seconds);
        lab.server.signal(Signal::STOP)?;
        let mut named_after = None;
        // The length of the stop is the fault: nothing else is waited for.
        poll_until("the stop to be over", 2 * for_long, async || {
            let condition = lab.api.status(&name).await?.condition();
            if condition != Condition::Attached {
                named_after.get_or_insert(stopped.elapsed());
            }
            Ok((stopped.elapsed() >= for_long).then_some(()))
        })
        .await?;
        if for_long <= UNREMARKABLE {
            ensure!(named_after.is_none(), "a false alarm after {named_after:?}");
        }
        let killed = if seconds > 5 {
            Some(kill(&mut lab, Duration::from_secs(4)).await?)
        } else {
            None
        };
        lab.server.signal(Signal::CONT)?;
        lab.server.wait_log("MULTI", 0, TRUE_AGAIN).await?;
        lab.wait_true().await?;
        ensure!(lab.bystander.is_running()?, "the other was hit");
        if let Some(outcome) = killed {
            let victim = lab.victim.is_running()?;
            ensure!(
                outcome == Outcome::Unknown || victim,
                "{outcome:?}, and it is dead"
            );
            ensure!(
                outcome != Outcome::Confirmed,
                "confirmed by a daemon that was stopped"
            );
        }
        eprintln!(
            "stopped for {seconds} s: named after {named_after:.1?}, sessions {sessions} then {}, kill {killed:?}, true again after {:.1?}",
            lab.api.status(&name).await?.sessions,
            lab.slowest,
        );
        Ok::<_, anyhow::Error>(())
    };
    futures_util::future::try_join_all(stops.iter().map(|seconds| stop(*seconds))).await?;
    Ok(())
}

/// Kills the victim by name.
async fn kill(lab: &mut Lab, deadline: Duration) -> Result<Outcome> {
    let mut request = timed(KillClientsRequest {
        selector: named(&[lab.server.name()]),
        filter: Some(by_name("victim")),
        mode: KillMode::Halt.into(),
        ..Default::default()
    });
    request.set_timeout(deadline);
    let killed = lab.api.control.kill_clients(request).await?.into_inner();
    let outcome = killed.results.first().map(|result| result.outcome());
    Ok(outcome.unwrap_or(Outcome::NotSent))
}

/// A daemon that restarts, reads its configuration again or dies, over and over, while its
/// client is killed: nobody else is hit, nothing is sent twice, and what is shown is true soon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_in_a_storm_of_signals_hit_nobody_else() -> Result<()> {
    let rounds = if soak() { 60 } else { 4 };
    let mut random = Random::seeded("signals");
    let mut lab = Lab::start("storm", Management::Unix).await?;
    let mut outcomes = Vec::new();
    for round in 0..rounds {
        let context = || format!("round {round}, after {outcomes:?}");
        let sent = lab.server.log_count(COMMAND);
        let (signals, pause) = (1 + random.below(3), random.below(20));
        let mut api = lab.api.clone();
        let request = KillClientsRequest {
            selector: named(&["storm"]),
            filter: Some(by_name("victim")),
            mode: KillMode::Halt.into(),
            wait: random.once_in(2),
            ..Default::default()
        };
        let killing = async {
            // At once: the first signal comes a moment later.
            Ok(api.kill(request).await?)
        };
        let storm = async {
            // The moment is what varies.
            tokio::time::sleep(Duration::from_millis(pause)).await;
            for _ in 0..signals {
                match random.below(3) {
                    0 => lab.server.signal(Signal::USR1)?,
                    1 => lab.server.signal(Signal::HUP)?,
                    _ => {
                        lab.server.kill();
                        lab.server.start_again().await?;
                    }
                }
                tokio::time::sleep(Duration::from_millis(random.below(200))).await;
            }
            Ok::<_, anyhow::Error>(())
        };
        let (killed, ()) = futures_util::future::try_join(killing, storm)
            .await
            .with_context(context)?;
        let outcome = killed.results.first().map(|result| result.outcome());
        ensure!(
            lab.server.log_count(COMMAND) <= sent + 1,
            "sent twice: {killed:#?}"
        );
        ensure!(
            lab.bystander.is_running()?,
            "the other was hit: {killed:#?}"
        );
        if matches!(outcome, None | Some(Outcome::Stale | Outcome::NotSent)) {
            ensure!(
                lab.victim.is_running()?,
                "{outcome:?}, and it is dead: {killed:#?}"
            );
        }
        let context = || format!("round {round}, {killed:#?}");
        if !lab.victim.is_running()? {
            lab.victim = Client::builder(&lab.server, "victim").start()?;
        }
        poll_until("both to be back", CONNECTS, async || {
            let rows = lab.server.status().await?.clients;
            let back = |name: &[u8]| rows.values().any(|row| row.common_name == name);
            Ok((rows.len() == 2 && back(b"victim") && back(b"bystander")).then_some(()))
        })
        .await
        .with_context(context)?;
        lab.wait_true().await.with_context(context)?;
        outcomes.push(outcome);
    }
    eprintln!(
        "{rounds} storms: {outcomes:?}; true within {:.1?}",
        lab.slowest
    );
    Ok(())
}
