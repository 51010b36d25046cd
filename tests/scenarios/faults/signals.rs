//! Real daemons that are stopped, restarted and killed while they are watched and commanded.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::future::{try_join, try_join_all};
use ovfleet_proto::v1::{
    Condition, KillClientsRequest, KillMode, ListClientsRequest, Outcome,
    control_service_client::ControlServiceClient,
};
use ovfleet_tests::{
    Api, Management, Server, Signal,
    api::{by_name, named, timed},
    poll_until,
    random::{Random, soak},
};

use tonic::transport::Channel;

use super::lab::{Lab, TRUE_AGAIN};

/// Of calls to a daemon that is stopped.
const DEADLINE: Duration = Duration::from_secs(2);

/// Who is silent is named by then: it is asked every 10 s, ± 20 %, and has 10 s to answer a status.
const NAMED: Duration = Duration::from_secs(25);
/// What a daemon said before it was stopped may be read a little later.
const IN_THE_PIPE: Duration = Duration::from_secs(1);
/// Silence of so long is nothing to speak of: a status takes as long on a busy host.
const UNREMARKABLE: Duration = Duration::from_secs(4);
/// Seconds for which clients bear a silence: longer than any stop.
const PATIENCE: u32 = 120;
/// What a client says that gives up a server that is silent, and connects again.
const GIVEN_UP: &str = "Inactivity timeout (--ping-restart), restarting";
const COMMAND: &str = "MANAGEMENT: CMD 'client-kill";

/// A stopped daemon is named when it matters and not before, loses nobody, and what was tried
/// on it meanwhile is told as it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_daemon_is_true_again_when_it_goes_on() -> Result<()> {
    let stops = if soak() {
        &[(3, PATIENCE), (10, PATIENCE), (60, PATIENCE), (60, 20)][..]
    } else {
        &[(3, PATIENCE), (10, PATIENCE)]
    };
    try_join_all(stops.iter().map(|stop| stop_for(stop.0, stop.1))).await?;
    Ok(())
}

/// One stop, of a daemon whose clients give it up after so many seconds without a word.
async fn stop_for(seconds: u64, patience: u32) -> Result<()> {
    let name = format!("stop{seconds}of{patience}");
    let mut lab = Lab::on(Server::builder(&name).keepalive(2, patience)).await?;
    let before = lab.status().await?;
    let rows = lab.server.status().await?.clients;
    let victim = rows.values().find(|row| row.common_name == b"victim");
    let victim = victim.context("no victim")?.cid;
    let log = lab.server.log_end();
    let for_long = Duration::from_secs(seconds);
    lab.server.signal(Signal::STOP)?;
    let stopped = Instant::now();
    let watching = watch_silence(lab.api.clone(), &name, stopped, for_long);
    let trying = try_meanwhile(lab.api.clone(), &name, stopped, for_long);
    let (named_after, killed) = try_join(watching, trying).await?;
    if for_long <= UNREMARKABLE {
        ensure!(named_after.is_none(), "a false alarm after {named_after:?}");
    }
    lab.server.signal(Signal::CONT)?;
    let went_on = Instant::now();
    // Its file is of before the stop yet.
    lab.server.fresh_status().await?;
    lab.wait_true().await?;
    let true_after = went_on.elapsed();
    ensure!(true_after <= TRUE_AGAIN, "{true_after:?}");
    // It is the same daemon all the time, and its session is not given up for a silence.
    let status = lab.status().await?;
    ensure!(status.sessions == before.sessions, "{status:#?}");

    ensure!(
        killed != Outcome::Confirmed,
        "confirmed by a daemon that was stopped"
    );
    ensure!(
        killed == Outcome::Unknown || lab.victim.is_running()?,
        "{killed:?}, and it is dead"
    );
    let bystander = &mut lab.bystander;
    if for_long >= Duration::from_secs(patience.into()) {
        bystander.wait_connected(2).await?;
    }
    // Who was told to go ends, or has another reason for its second connection.
    let given_up = bystander.log().matches(GIVEN_UP).count();
    ensure!(
        bystander.is_running()? && bystander.connections() == 1 + given_up,
        "the other was hit: {}",
        bystander.log()
    );
    // What was sent is in the daemon's log.
    let sent = lab.server.log_count_since(log, COMMAND);
    let to_victim = format!("{COMMAND} {victim} ");
    let to_victim = lab.server.log_count_since(log, &to_victim);
    let allowed = usize::from(is_sent(Some(killed)));
    ensure!(
        sent == to_victim && sent <= allowed,
        "{killed:?}: {sent} sent, {to_victim} of them to client {victim}"
    );
    eprintln!(
        "stopped for {seconds} s, given up after {patience} s: named after {named_after:.1?}, kill {}, \
         {sent} sent, true again after {true_after:.1?}, the other connected {} times",
        killed.as_str_name(),
        lab.bystander.connections(),
    );
    lab.check_log()
}

/// Looks on while the daemon is stopped: nothing is said to have been heard of it, and it is named
/// in time and from then on. Gives when that was.
async fn watch_silence(
    mut api: Api,
    name: &str,
    stopped: Instant,
    for_long: Duration,
) -> Result<Option<Duration>> {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let mut named_after = None;
    // The length of the stop is the fault: nothing else is waited for.
    poll_until("the stop to be over", 2 * for_long, async || {
        let elapsed = stopped.elapsed();
        let status = api.status(name).await?;
        let heard = status.last_observed_time.context("never heard of")?;
        let heard = Duration::from_secs(u64::try_from(heard.seconds)?);
        ensure!(heard <= clock + IN_THE_PIPE, "heard of: {status:#?}");
        match status.condition() {
            Condition::Attached => {
                ensure!(named_after.is_none(), "well, while it is stopped");
                ensure!(elapsed <= NAMED, "not named after {elapsed:?}");
            }
            Condition::Unresponsive => {
                named_after.get_or_insert(elapsed);
            }
            _ => bail!("{status:#?}"),
        }
        Ok((elapsed >= for_long).then_some(()))
    })
    .await?;
    Ok(named_after)
}

/// Towards the end of a stop: a list that is to be of now names the daemon and how old its rows
/// are, and a kill says what became of it. Gives that.
async fn try_meanwhile(
    mut api: Api,
    name: &str,
    stopped: Instant,
    for_long: Duration,
) -> Result<Outcome> {
    let begin = for_long.saturating_sub(DEADLINE + IN_THE_PIPE);
    poll_until("the stop to be nearly over", for_long, async || {
        Ok((stopped.elapsed() >= begin).then_some(()))
    })
    .await?;
    let mut fresh = timed(ListClientsRequest {
        max_age: Some(prost_types::Duration::default()),
        ..Default::default()
    });
    fresh.set_timeout(DEADLINE);
    let list = api.fleet.list_clients(fresh);
    let (list, killed) = tokio::join!(list, kill(&mut api.control, name));
    let list = list?.into_inner();
    let [unreachable] = list.unreachable.as_slice() else {
        bail!("not named: {list:#?}");
    };
    let age = Duration::try_from(unreachable.age.context("no age")?)?;
    ensure!(age + IN_THE_PIPE >= begin, "{list:#?}");
    ensure!(list.clients.len() == 2, "{list:#?}");
    killed
}

/// Kills the victim by name.
async fn kill(control: &mut ControlServiceClient<Channel>, name: &str) -> Result<Outcome> {
    let mut request = timed(KillClientsRequest {
        selector: named(&[name]),
        filter: Some(by_name("victim")),
        mode: KillMode::Halt.into(),
        ..Default::default()
    });
    request.set_timeout(DEADLINE);
    let killed = control.kill_clients(request).await?.into_inner();
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
        let log = lab.server.log_end();
        // The first as the storm begins, or anywhere in it.
        let first = random.once_in(2).then(|| random.below(1_500));
        let pauses = [first.unwrap_or_default(), 300, 300, 300, 300].map(Duration::from_millis);
        let request = KillClientsRequest {
            selector: named(&["storm"]),
            filter: Some(by_name("victim")),
            mode: KillMode::Halt.into(),
            wait: random.once_in(2),
            ..Default::default()
        };
        let killing = kill_until_sent(lab.api.clone(), request, pauses);
        let raging = storm(&mut lab.server, &mut random);
        let (killed, ()) = try_join(killing, raging)
            .await
            .with_context(|| format!("round {round}, after {outcomes:?}"))?;
        let context = || format!("round {round}, {killed:?}");
        let sent = lab.server.log_count_since(log, COMMAND);
        let allowed = killed.iter().filter(|outcome| is_sent(**outcome)).count();
        ensure!(sent <= allowed, "{sent} sent: {}", context());
        ensure!(
            lab.bystander.is_running()?,
            "the other was hit: {}",
            context()
        );
        let harmless =
            |outcome: &Option<Outcome>| !is_sent(*outcome) || *outcome == Some(Outcome::Stale);
        if killed.iter().all(harmless) {
            ensure!(lab.victim.is_running()?, "it is dead: {}", context());
        } else {
            // What the daemon accepted may reach the client behind the answer, or never.
            lab.replace_victim().await.with_context(context)?;
        }
        lab.revive().await.with_context(context)?;
        ensure!(
            lab.bystander.is_running()?,
            "the other was hit: {}",
            context()
        );
        outcomes.extend(killed);
    }
    let with = |wanted: Option<Outcome>| {
        let of_these = outcomes.iter().filter(|outcome| **outcome == wanted);
        of_these.count()
    };
    eprintln!(
        "{rounds} storms, {} kills: {} confirmed, {} accepted, {} stale, {} unknown, {} not sent, \
         {} found no client, nobody else hit; true within {:.1?}",
        outcomes.len(),
        with(Some(Outcome::Confirmed)),
        with(Some(Outcome::Accepted)),
        with(Some(Outcome::Stale)),
        with(Some(Outcome::Unknown)),
        with(Some(Outcome::NotSent)),
        with(None),
        lab.slowest
    );
    lab.check_log()
}

/// One to three signals, soon one after the other.
async fn storm(server: &mut Server, random: &mut Random) -> Result<()> {
    let mut pause = random.below(20);
    for _ in 0..=random.below(3) {
        // The moment is what varies.
        tokio::time::sleep(Duration::from_millis(pause)).await;
        match random.below(3) {
            0 => server.signal(Signal::USR1)?,
            1 => server.signal(Signal::HUP)?,
            _ => {
                server.kill();
                server.start_again().await?;
            }
        }
        pause = random.below(200);
    }
    Ok(())
}

/// Kills until a kill found somebody; gives the outcomes, of which only the last may have been sent.
async fn kill_until_sent(
    mut api: Api,
    request: KillClientsRequest,
    pauses: impl IntoIterator<Item = Duration>,
) -> Result<Vec<Option<Outcome>>> {
    let mut outcomes = Vec::new();
    for pause in pauses {
        // The moment is what varies.
        tokio::time::sleep(pause).await;
        let killed = api.kill(request.clone()).await?;
        ensure!(killed.results.len() <= 1, "{killed:#?}");
        let outcome = killed.results.first().map(|result| result.outcome());
        outcomes.push(outcome);
        if is_sent(outcome) {
            break;
        }
    }
    Ok(outcomes)
}

/// Whether a command may have been sent; without an outcome there was no client.
fn is_sent(outcome: Option<Outcome>) -> bool {
    !matches!(outcome, None | Some(Outcome::NotSent))
}
