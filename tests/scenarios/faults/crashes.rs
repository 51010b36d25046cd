//! A gateway that dies at the worst moments, with actions under way: nothing is sent twice, what
//! was promised is there, and no stream has a hole that it was not told of.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use openvpn_simulator::{ClientSpec, Daemon, Timing};
use ovfleet_proto::v1::{
    self, ClientFilter, GetActionRequest, KillClientsRequest, KillClientsResponse, KillMode,
    Outcome,
};
use ovfleet_tests::{
    Api, Gateway, GatewayConfig, InstanceConfig,
    api::{by_name, named, reason, timed},
    poll_until,
    random::{Random, soak},
};
use tonic::Code;

use super::streams::{Caller, Carrier, DAEMONS, Said, Wish, note};

/// Where it dies, and how often in a crash's life it passes there at most before it does.
const POINTS: [(&str, u64); 4] = [
    ("action.after_intent", 4),
    ("action.after_send", 4),
    ("action.before_outcome", 4),
    ("journal.in_batch", 12),
];
/// Kills under way in each life of a gateway.
const KILLS: usize = 6;
/// The gateway comes to its failpoint by then.
const DIES: Duration = Duration::from_secs(20);
/// Looser than what is promised, 2 s, for machines that are busy; the figure is printed.
const SERVES: Duration = Duration::from_secs(10);
const SOON: Duration = Duration::from_secs(20);

struct Lab {
    daemons: Vec<Daemon>,
    gateway: Gateway,
    said: Said,
    /// `client-kill` lines that each daemon received, in all its life.
    received: Vec<BTreeMap<String, u32>>,
    /// Lines that were looked at.
    looked_at: Vec<u64>,
    _directory: tempfile::TempDir,
}

/// A kill that was asked for: its id, its only target, and what was answered, if anything was.
struct Asked {
    id: String,
    lane: usize,
    cid: u64,
    name: String,
    answer: Option<KillClientsResponse>,
}

impl Lab {
    async fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let state = directory.path().join("state");
        let mut config = GatewayConfig::new().set("state_dir", state.display().to_string());
        let mut daemons = Vec::new();
        for lane in 0..DAEMONS {
            let name = format!("sim{lane}");
            let timing = Timing {
                delayed_exit: Duration::from_millis(100),
                ..Timing::default()
            };
            let builder = Daemon::builder(&name).unix(directory.path().join(&name));
            let daemon = builder.timing(timing).start().await?;
            config = config.instance(InstanceConfig::new(&name, &daemon.address().to_string()));
            daemons.push(daemon);
        }
        let gateway = config.start().await?;
        Api::connect(&gateway).await?.wait_attached().await?;
        Ok(Self {
            daemons,
            gateway,
            said: Said::new(std::sync::Mutex::new(vec![Vec::new(); DAEMONS])),
            received: vec![BTreeMap::new(); DAEMONS],
            looked_at: vec![0; DAEMONS],
            _directory: directory,
        })
    }

    /// Counts what the daemons have received since the last look. No command may come twice.
    fn look(&mut self) -> Result<()> {
        for (lane, daemon) in self.daemons.iter().enumerate() {
            let (total, lines) = (daemon.commands_total(), daemon.commands());
            let news = usize::try_from(total - self.looked_at[lane])?;
            ensure!(
                news <= lines.len(),
                "{news} commands, and only the last are kept"
            );
            for line in &lines[lines.len() - news..] {
                let line = String::from_utf8_lossy(line).into_owned();
                if line.starts_with("client-kill ") {
                    let times = self.received[lane].entry(line.clone()).or_default();
                    *times += 1;
                    ensure!(*times == 1, "{:?} came {times} times", line);
                }
            }
            self.looked_at[lane] = total;
        }
        Ok(())
    }

    fn was_received(&self, asked: &Asked) -> bool {
        let command = format!("client-kill {}", asked.cid);
        let mut lines = self.received[asked.lane].keys();
        lines.any(|line| {
            line.split_once(" HALT")
                .map_or(line.as_str(), |(head, _)| head)
                == command
                || *line == command
        })
    }

    /// Starts it again with a failpoint armed; it may die of it before it serves.
    async fn live_until(&mut self, failpoint: &str) -> Result<bool> {
        self.gateway
            .set_environment("OVFLEET_FAILPOINT", Some(failpoint));
        let started = self.gateway.start_again().await;
        self.gateway.set_environment("OVFLEET_FAILPOINT", None);
        if started.is_err() {
            let status = self
                .gateway
                .wait_ended(Duration::ZERO)
                .await
                .context("not up, not dead")?;
            ensure!(!status.success(), "{status}");
            return Ok(false);
        }
        let attached = Api::connect(&self.gateway).await;
        match attached {
            Ok(mut api) => Ok(api.wait_attached().await.is_ok()),
            Err(_) => Ok(false),
        }
    }

    /// Clients to kill, on all daemons in turn; the gateway knows them all.
    async fn victims(&self, crash: usize) -> Result<Vec<Asked>> {
        let mut victims = Vec::new();
        for number in 0..KILLS {
            let lane = number % DAEMONS;
            let name = format!("victim {crash}.{number}");
            let cid = self.daemons[lane]
                .connect(ClientSpec::new(name.as_str()).stays_away())
                .await?;
            let id = format!("crash-{crash}-{number}");
            victims.push(Asked {
                id,
                lane,
                cid,
                name,
                answer: None,
            });
        }
        Ok(victims)
    }
}

fn request(asked: &Asked) -> KillClientsRequest {
    KillClientsRequest {
        selector: named(&[&format!("sim{}", asked.lane)]),
        filter: Some(by_name(&asked.name)),
        mode: KillMode::Halt.into(),
        request_id: asked.id.clone(),
        ..Default::default()
    }
}

/// What an action says of its one target; none when it had none.
fn outcome(response: &KillClientsResponse) -> Option<Outcome> {
    response.results.first().map(|result| result.outcome())
}

/// `kill -9` at every point where it hurts, again and again, on one state.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_anywhere_sends_nothing_twice_and_forgets_nothing() -> Result<()> {
    let crashes = if soak() { 200 } else { 50 };
    let mut random = Random::seeded("crashes");
    let mut lab = Lab::start().await?;
    let everything = Wish {
        lanes: (0..DAEMONS).collect(),
        carriers: Carrier::ALL.to_vec(),
        fails_on_gap: false,
    };
    let mut api = Api::connect(&lab.gateway).await?;
    let summary = api
        .fleet
        .get_summary(timed(v1::GetSummaryRequest::default()))
        .await?
        .into_inner();
    let cursor = summary.as_of.context("no as_of")?.cursor;
    let mut caller = Caller::new(&lab.said, everything, cursor, &[0; DAEMONS]);
    lab.gateway.kill();

    let mut slowest = Duration::ZERO;
    let mut seen = BTreeMap::<(&str, String), usize>::new();
    let mut old: Vec<(String, KillClientsResponse)> = Vec::new();
    for crash in 0..crashes {
        let (point, most) = POINTS[crash % POINTS.len()];
        let failpoint = format!("{point}=abort@{}", 1 + random.below(most));
        let context = || format!("crash {crash}, {failpoint}");
        let asked = one_life(&mut lab, &mut random, crash, &failpoint)
            .await
            .with_context(context)?;

        let started = Instant::now();
        lab.gateway.start_again().await.with_context(context)?;
        let served = started.elapsed();
        slowest = slowest.max(served);
        ensure!(served <= SERVES, "it served after {served:?}");
        let mut api = Api::connect(&lab.gateway).await?;
        api.wait_attached().await.with_context(context)?;
        lab.look().with_context(context)?;
        for asked in &asked {
            let said = settle(&mut lab, &mut api, asked)
                .await
                .with_context(context)?;
            *seen.entry((point, said.1)).or_default() += 1;
            if let Some(answer) = said.0 {
                old.push((asked.id.clone(), answer));
            }
        }
        lab.look().with_context(context)?;
        // Nothing of before is forgotten.
        if !old.is_empty() {
            let (id, answer) = random.pick(&old);
            let again = action(&mut api, id)
                .await?
                .with_context(|| format!("{id} is forgotten"))?;
            ensure!(
                outcome(&again) == outcome(answer),
                "{id}: {answer:#?}, and now {again:#?}"
            );
        }
        caller.finish(&mut api).await.with_context(context)?;
        lab.gateway.kill();
    }
    eprintln!(
        "{crashes} crashes; serving again within {slowest:.1?}; {} gaps told",
        caller.gaps
    );
    for ((point, outcome), count) in seen {
        eprintln!("  {point:24} {outcome:16} {count}");
    }
    Ok(())
}

/// A gateway's life until its failpoint: kills under way, facts from the daemons.
async fn one_life(
    lab: &mut Lab,
    random: &mut Random,
    crash: usize,
    failpoint: &str,
) -> Result<Vec<Asked>> {
    let mut asked = Vec::new();
    if !lab.live_until(failpoint).await? {
        return Ok(asked);
    }
    let Ok(mut api) = Api::connect(&lab.gateway).await else {
        return Ok(asked);
    };
    asked = lab.victims(crash).await?;
    let known: BTreeSet<&str> = asked.iter().map(|asked| asked.name.as_str()).collect();
    let _ = poll_until("the victims to be known, or the end", SOON, async || {
        let Ok(rows) = api.clients(ClientFilter::default()).await else {
            return Ok(Some(()));
        };
        let rows: BTreeSet<&str> = rows.iter().map(|row| row.common_name.as_str()).collect();
        Ok(known.is_subset(&rows).then_some(()))
    })
    .await;
    let calls = asked.iter().map(|asked| {
        let (mut api, request) = (api.clone(), request(asked));
        async move { api.control.kill_clients(timed(request)).await.ok() }
    });
    let calls = futures_util::future::join_all(calls);
    let talk = async {
        // Until it dies: what the daemons say keeps its journal busy.
        let died = poll_until("the gateway to die", DIES, async || {
            for (lane, daemon) in lab.daemons.iter().enumerate() {
                let carrier = *random.pick(&[Carrier::Echo, Carrier::Info, Carrier::Unrecognized]);
                let number = note(&lab.said, lane, carrier);
                // It is on nobody's wire when there is no manager: the gap of that time covers it.
                let _ = daemon.raw(carrier.line(number)).await;
            }
            Ok(lab.gateway.channel().await.is_err().then_some(()))
        });
        died.await
    };
    let (answers, died) = tokio::join!(calls, talk);
    if died.is_err() {
        // It never came there: it dies as well, in the middle of something.
        lab.gateway.kill();
    }
    lab.gateway.kill();
    for (asked, answer) in asked.iter_mut().zip(answers) {
        asked.answer = answer.map(tonic::Response::into_inner);
    }
    Ok(asked)
}

/// The action of that id, if the gateway knows it.
async fn action(api: &mut Api, id: &str) -> Result<Option<KillClientsResponse>> {
    let request = GetActionRequest {
        request_id: id.to_owned(),
    };
    match api.control.get_action(timed(request)).await {
        Ok(response) => {
            let action = response.into_inner().action.context("no action")?;
            ensure!(
                action.finished_time.is_some(),
                "unfinished after a restart: {action:#?}"
            );
            match action.result {
                Some(v1::action::Result::KillClients(killed)) => Ok(Some(killed)),
                other => bail!("{other:?}"),
            }
        }
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(status.into()),
    }
}

/// After the crash: asks again with the same id, and compares what is said with what the daemon
/// has received.
async fn settle(
    lab: &mut Lab,
    api: &mut Api,
    asked: &Asked,
) -> Result<(Option<KillClientsResponse>, String)> {
    let sent_before = lab.was_received(asked);
    let kept = action(api, &asked.id).await?;
    if let Some(answer) = &asked.answer {
        let kept = kept.as_ref().context("answered, and forgotten")?;
        ensure!(
            outcome(kept) == outcome(answer),
            "answered {answer:#?}, and now {kept:#?}"
        );
    }
    let said = kept.as_ref().and_then(outcome);
    match said {
        Some(Outcome::Accepted | Outcome::Confirmed) => ensure!(sent_before, "{said:?}, not sent"),
        Some(Outcome::NotSent | Outcome::Stale) => {
            ensure!(!sent_before, "{said:?}, and it was sent")
        }
        _ => {}
    }
    // Only what was never promised may be sent now.
    let again = match api.kill(request(asked)).await {
        Ok(again) => again,
        Err(status) if status.code() == Code::Aborted => {
            // The id is spent, and it says what became of it.
            let reason = reason(&status).context("no reason")?;
            lab.look()?;
            ensure!(
                lab.was_received(asked) == sent_before,
                "sent after all: {status:?}"
            );
            let nothing_sent = reason == "NOT_SENT";
            ensure!(
                !(nothing_sent && sent_before),
                "sent, and denied: {status:?}"
            );
            ensure!(
                asked.answer.is_none(),
                "answered, and forgotten: {status:?}"
            );
            return Ok((None, reason));
        }
        Err(status) => return Err(status.into()),
    };
    lab.look()?;
    if let Some(kept) = &kept {
        ensure!(
            outcome(&again) == outcome(kept),
            "kept {kept:#?}, and then {again:#?}"
        );
        ensure!(lab.was_received(asked) == sent_before, "sent after all");
    } else {
        ensure!(!sent_before, "sent, and forgotten");
    }
    let label = match (&kept, said) {
        (None, _) => "never begun".to_owned(),
        (Some(_), said) => format!("{said:?}"),
    };
    Ok((Some(again), label))
}
