//! A gateway that dies at the worst moments, with actions under way: nothing is sent twice, what
//! was promised is there, and no stream has a hole that it was not told of.

mod kills;
mod registry;

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::process::ExitStatusExt as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use openvpn_simulator::{ClientSpec, Daemon, Timing};
use ovfleet_proto::v1::{self, ClientFilter, Condition, KillClientsResponse};
use ovfleet_tests::{
    Api, Gateway, GatewayConfig, InstanceConfig, Signal,
    api::timed,
    poll_until,
    random::{Random, allowed, soak},
};
use rusqlite::Connection;

use self::{
    kills::{Asked, action, kill, outcome, settle},
    registry::Registry,
};
use super::streams::{Caller, Carrier, DAEMONS, Said, Wish, note};

/// Where it dies, and how often in a life it passes there at most before it does.
const POINTS: [(&str, u64); 7] = [
    ("action.after_intent", 4),
    ("action.after_send", 4),
    ("action.before_outcome", 4),
    ("journal.in_batch", 12),
    ("state.registry", 60),
    ("state.committed", 80),
    (IN_MIGRATION, 2),
];
/// At a start, on a file that an older version left.
const IN_MIGRATION: &str = "state.in_migration";
/// Makes what this version writes into what the first one wrote: undoes each migration, the last one first.
const TO_THE_FIRST_VERSION: &str = "
    DROP TABLE missing;
    DROP INDEX gaps_by_end;
    ALTER TABLE gaps DROP COLUMN through;
    CREATE INDEX gaps_by_sequence ON gaps (sequence, hole);
    DROP TABLE clock;
    DROP INDEX actions_by_age;
    DROP INDEX calls_by_age;
    ALTER TABLE events DROP COLUMN age;
    ALTER TABLE gaps DROP COLUMN age;
    ALTER TABLE actions DROP COLUMN age;
    ALTER TABLE calls DROP COLUMN age;
    CREATE INDEX actions_by_time ON actions (started);
    PRAGMA user_version = 1;
";
/// Kills under way in each life of a gateway.
const KILLS: usize = 6;
/// The gateway comes to its failpoint by then, also on a machine that is busy with much else.
const DIES: Duration = Duration::from_secs(60);
/// From its start to the first answer: a tenth of a second is usual.
const SERVES: Duration = Duration::from_secs(2);
/// The share of starts, in percent, that may take longer where much else is tested at the same time.
const LATE_MAX: usize = 5;
const SOON: Duration = Duration::from_secs(20);

struct Lab {
    daemons: Vec<Daemon>,
    gateway: Gateway,
    said: Said,
    /// `client-kill` lines that each daemon received, in all its life.
    received: Vec<BTreeMap<String, u32>>,
    /// Lines that were looked at.
    looked_at: Vec<u64>,
    registry: Registry,
    directory: tempfile::TempDir,
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
            registry: Registry::new(),
            directory,
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
    async fn start_armed(&mut self, failpoint: &str) -> Result<bool> {
        self.gateway
            .set_environment("OVFLEET_FAILPOINT", Some(failpoint));
        let started = self.gateway.start_again().await;
        self.gateway.set_environment("OVFLEET_FAILPOINT", None);
        if let Err(error) = started {
            self.has_died().await.context(error)?;
            return Ok(false);
        }
        let Ok(mut api) = Api::connect(&self.gateway).await else {
            return Ok(false);
        };
        Ok(wait_attached(&mut api).await.is_ok())
    }

    /// It has ended, or is about to, and by its failpoint.
    async fn has_died(&mut self) -> Result<()> {
        let status = self.gateway.wait_ended(DIES).await?;
        let ended_by = status.signal();
        ensure!(ended_by == Some(Signal::ABORT.as_raw()), "{status}");
        Ok(())
    }

    /// Makes its file one that the first version wrote.
    fn go_to_the_first_version(&self) -> Result<()> {
        let file = self.directory.path().join("state/state.db");
        Ok(Connection::open(file)?.execute_batch(TO_THE_FIRST_VERSION)?)
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

/// Waits for the daemons; what was defined at run time is nowhere.
async fn wait_attached(api: &mut Api) -> Result<()> {
    for lane in 0..DAEMONS {
        let name = format!("sim{lane}");
        api.wait_condition(&name, Condition::Attached, SOON).await?;
    }
    Ok(())
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

    let mut served = Vec::new();
    let mut deaths = BTreeMap::<&str, usize>::new();
    let mut seen = BTreeMap::<(&str, String), usize>::new();
    let mut old: Vec<(String, KillClientsResponse)> = Vec::new();
    for crash in 0..crashes {
        let (point, most) = POINTS[crash % POINTS.len()];
        let failpoint = format!("{point}=abort@{}", 1 + random.below(most));
        let context = || format!("crash {crash}, {failpoint}");
        let asked = if point == IN_MIGRATION {
            // With what another death left unfinished.
            let (point, most) = *random.pick(&POINTS[..POINTS.len() - 1]);
            let first = format!("{point}=abort@{}", 1 + random.below(most));
            let asked = one_life(&mut lab, &mut random, crash, &first).await;
            let asked = asked.with_context(|| format!("crash {crash}, {first}"))?;
            lab.go_to_the_first_version().with_context(context)?;
            let serves = lab.start_armed(&failpoint).await.with_context(context)?;
            ensure!(!serves, "it served, and nothing had to be migrated");
            asked
        } else {
            let asked = one_life(&mut lab, &mut random, crash, &failpoint).await;
            asked.with_context(context)?
        };
        *deaths.entry(point).or_default() += 1;

        let started = Instant::now();
        lab.gateway.start_again().await.with_context(context)?;
        let mut api = Api::connect(&lab.gateway).await?;
        lab.registry.check(&mut api).await.with_context(context)?;
        served.push(started.elapsed());
        wait_attached(&mut api).await.with_context(context)?;
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
        for _ in 0..old.len().min(3) {
            let (id, answer) = random.pick(&old);
            is_known(&mut api, id, answer).await?;
        }
        caller.finish(&mut api).await.with_context(context)?;
        if crash + 1 == crashes {
            for (id, answer) in &old {
                is_known(&mut api, id, answer).await?;
            }
        }
        lab.gateway.kill();
    }
    let Registry { made, cut, .. } = lab.registry;
    served.sort();
    let late_max = if soak() { 0 } else { crashes * LATE_MAX / 100 };
    let [usual, slowest] = [served[crashes / 2], served[crashes - 1]];
    eprintln!("{crashes} crashes; serving again within {usual:.1?}, at most {slowest:.1?}");
    eprintln!("{} gaps told; {} actions kept", caller.gaps, old.len());
    let [undone, done] = cut;
    eprintln!("{made} changes of the registry answered; cut off: {done} done, {undone} not");
    let serves = allowed(SERVES);
    let late = served.iter().filter(|served| **served > serves).count();
    ensure!(late <= late_max, "{late} starts took more than {serves:?}");
    for (point, _) in POINTS {
        let died = deaths.get(point).copied().unwrap_or(0);
        eprintln!("  {point:24} {died}");
        ensure!(died >= crashes / POINTS.len(), "{point}: {died} deaths");
    }
    for ((point, outcome), count) in seen {
        eprintln!("  {point:24} {outcome:16} {count}");
    }
    ensure!(made > crashes && undone + done > 0, "{made}, {cut:?}");
    Ok(())
}

/// What was answered once is answered still.
async fn is_known(api: &mut Api, id: &str, answer: &KillClientsResponse) -> Result<()> {
    let now = action(api, id).await?;
    let now = now.with_context(|| format!("{id} is forgotten"))?;
    let (then, now) = (outcome(answer), outcome(&now));
    ensure!(then == now, "{id}: {then:?}, and now {now:?}");
    Ok(())
}

/// A gateway's life until it dies of its failpoint: kills and changes under way, facts from the daemons.
async fn one_life(
    lab: &mut Lab,
    random: &mut Random,
    crash: usize,
    failpoint: &str,
) -> Result<Vec<Asked>> {
    let mut asked = Vec::new();
    if !lab.start_armed(failpoint).await? {
        lab.has_died().await?;
        return Ok(asked);
    }
    let Ok(mut api) = Api::connect(&lab.gateway).await else {
        lab.has_died().await?;
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
    let calls = asked.iter().map(|asked| kill(api.clone(), asked));
    let calls = futures_util::future::join_all(calls);
    let talk = async {
        // Until it dies: what the daemons say keeps its journal busy, and what is said of instances its registry.
        let died = poll_until("the gateway to die", DIES, async || {
            for (lane, daemon) in lab.daemons.iter().enumerate() {
                let carrier = *random.pick(&[Carrier::Echo, Carrier::Info, Carrier::Unrecognized]);
                let number = note(&lab.said, lane, carrier);
                // It is on nobody's wire when there is no manager: the gap of that time covers it.
                let _ = daemon.raw(carrier.line(number)).await;
            }
            lab.registry.change(&api, random).await;
            Ok(lab.gateway.channel().await.is_err().then_some(()))
        });
        died.await
    };
    let (answers, died) = tokio::join!(calls, talk);
    died?;
    lab.has_died().await?;
    for (asked, answer) in asked.iter_mut().zip(answers) {
        asked.answer = answer;
    }
    Ok(asked)
}
