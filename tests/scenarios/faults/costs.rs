//! What daemons that do wrong cost: memory of the gateway, and time of all others.

use std::{
    fmt, fs,
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use openvpn_simulator::{ClientSpec, Daemon};
use ovfleet_proto::v1::{ClientFilter, Condition, ListClientsRequest};
use ovfleet_tests::{
    Api, Gateway, GatewayConfig, InstanceConfig,
    api::{named, timed},
    poll_until,
    random::{Random, soak},
};
use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_setaffinity};
use tokio::{
    runtime::{Builder, Runtime},
    time::sleep,
};

use super::{
    daemons::{SOON, judge, let_clients_connect, provoke},
    open_files::processor_time,
    zoo::{Verdict, Wrong, zoo},
};

/// The one with a huge status.
const HUGE: &str = "huge-status";
/// Those that would cost most, if they were let.
const EXPENSIVE: [&str; 3] = [HUGE, "large-env", "nothing-but-newlines"];
/// Clients that come and go before anything is measured: they fill the journal, whose memory has a bound of its own.
const CAME_AND_WENT: usize = 2_000;
/// What an evil daemon may cost.
const EACH_KIB: u64 = 2 * 1024;
/// What a huge status may while it is read: 20,000 rows are kept of it, once as they came and once as the table.
const ROWS_KIB: u64 = EACH_KIB + 20 * 1024;
/// What it took is given back by then, once the daemon has no more of them.
const FREED: Duration = Duration::from_secs(10);
/// A status of a million rows is read by then, also on a busy machine.
const READ: Duration = Duration::from_secs(60);
/// In the gate, where other tests run too.
const UNDISTURBED: Duration = Duration::from_secs(2);
/// How often the evil ones are provoked while others are measured.
const PROVOKED: Duration = Duration::from_secs(5);
/// Clients of each good daemon.
const CLIENTS: usize = 50;

/// Memory of a gateway, above what it had before, in KiB.
#[derive(Debug, Clone, Copy)]
struct Cost {
    /// At any moment.
    highest: u64,
    /// While the daemon is still evil, and all is read.
    held: u64,
    /// When it is good again.
    kept: u64,
}

/// One evil daemon after the other, each with a gateway of its own that has known it when it was
/// good: it costs at most 2 MiB more than before; a huge status the rows that are kept of it, and
/// those only for as long as there are so many.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_evil_daemon_costs_little() -> Result<()> {
    let mut random = Random::seeded("costs");
    let mut zoo = zoo();
    random.shuffle(&mut zoo);
    // The expensive ones first, and a few of the others in the gate.
    zoo.sort_by_key(|wrong| !EXPENSIVE.contains(&wrong.name));
    zoo.truncate(if soak() { zoo.len() } else { 5 });
    let mut too_much = Vec::new();
    for wrong in zoo {
        let name = wrong.name;
        let cost = cost(&wrong).await.context(name)?;
        let Cost {
            highest,
            held,
            kept,
        } = cost;
        eprintln!("{name:24} highest +{highest} KiB, held +{held} KiB, then +{kept} KiB");
        let highest_max = if name == HUGE { ROWS_KIB } else { EACH_KIB };
        if highest > highest_max || kept > EACH_KIB {
            too_much.push(format!("{name}: {cost:?}"));
        }
    }
    ensure!(too_much.is_empty(), "{too_much:?}");
    Ok(())
}

async fn cost(wrong: &Wrong) -> Result<Cost> {
    let directory = tempfile::tempdir()?;
    let mut journal = toml::Table::new();
    journal.insert("memory".to_owned(), "1MiB".into());
    let builder = Daemon::builder("evil").unix(directory.path().join("evil"));
    let daemon = builder.start().await?;
    let gateway = GatewayConfig::new()
        .set("journal", journal)
        .instance(InstanceConfig::new("evil", &daemon.address().to_string()))
        .start()
        .await?;
    let mut api = Api::connect(&gateway).await?;
    api.wait_attached().await?;
    daemon.burst(CAME_AND_WENT).await?;
    for number in 0..5 {
        daemon
            .connect(ClientSpec::new(format!("client {number}")))
            .await?;
    }
    api.wait_clients(ClientFilter::default(), 5, SOON).await?;
    let before = resident_kib(gateway.pid())?;
    forget_highest(gateway.pid())?;

    daemon.misbehave(wrong.evil.clone()).await?;
    daemon.drop_session().await?;
    provoke(&daemon).await;
    judge(&mut api, &daemon, wrong.verdict).await?;
    if matches!(wrong.verdict, Verdict::Lived) {
        poll_until("a status of the evil days", READ, async || {
            let status = api.status("evil").await?;
            let is_cut = status.truncated || wrong.name != HUGE;
            let attached = status.condition() == Condition::Attached;
            Ok((status.sessions >= 2 && attached && is_cut).then_some(()))
        })
        .await?;
    }
    let held = resident_kib(gateway.pid())?;

    daemon.behave().await?;
    if wrong.name == HUGE {
        poll_until("the rows to be gone", READ, async || {
            let request = ListClientsRequest {
                page_size: 1,
                max_age: Some(prost_types::Duration::default()),
                ..Default::default()
            };
            api.fleet.list_clients(timed(request)).await?;
            let status = api.status("evil").await?;
            Ok((!status.truncated && status.condition() == Condition::Attached).then_some(()))
        })
        .await?;
    }
    let mut kept = 0;
    let settled = poll_until("memory to be given back", FREED, async || {
        kept = resident_kib(gateway.pid())?;
        Ok((kept <= before + EACH_KIB).then_some(()))
    });
    // The caller says it with the figure.
    let _ = settled.await;
    let highest = highest_kib(gateway.pid())?;
    Ok(Cost {
        highest: highest.saturating_sub(before),
        held: held.saturating_sub(before),
        kept: kept.saturating_sub(before),
    })
}

/// Exact, which `VmRSS` is not.
pub(super) fn resident_kib(pid: u32) -> Result<u64> {
    kib(&format!("/proc/{pid}/smaps_rollup"), "Rss:")
}

/// The most that was resident since [`forget_highest`].
fn highest_kib(pid: u32) -> Result<u64> {
    kib(&format!("/proc/{pid}/status"), "VmHWM:")
}

fn forget_highest(pid: u32) -> Result<()> {
    Ok(fs::write(format!("/proc/{pid}/clear_refs"), "5")?)
}

fn kib(file: &str, field: &str) -> Result<u64> {
    let text = fs::read_to_string(file)?;
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.context("no such field")?.parse()?)
}

/// The good daemons' answers with all the evil ones beside them and without, in turns: the evil
/// ones cost them no more than a twentieth, or twice of what the middle half of the runs with them differs by.
///
/// From the moment at which all begin, with clients that connect to them all the time.
///
/// The gateway has a core for itself, and thereby one thread for all sessions and calls. All else shares
/// another, where the evil daemons, whose own work is not what is measured, have what the others leave.
#[tokio::test]
async fn evil_daemons_slow_nobody() -> Result<()> {
    let (pairs, calls) = if soak() { (8, 30_000) } else { (2, 500) };
    let directory = tempfile::tempdir()?;
    let mut config = GatewayConfig::new();
    let mut good = Vec::new();
    for number in 0..3 {
        let name = format!("good{number}");
        let daemon = Daemon::builder(&name)
            .unix(directory.path().join(&name))
            .start()
            .await?;
        config = config.instance(InstanceConfig::new(&name, &daemon.address().to_string()));
        good.push(daemon);
    }
    let zoo = zoo();
    for Wrong { name, .. } in &zoo {
        let path = directory.path().join(name);
        config = config.instance(InstanceConfig::new(
            name,
            &format!("unix:{}", path.display()),
        ));
    }
    if soak() {
        config = config.optimized();
    }
    let cores = Cores::split()?;
    let gateway = config.start().await?;
    cores.leave_the_first()?;
    let mut api = Api::connect(&gateway).await?;
    for daemon in &good {
        api.wait_condition(daemon.name(), Condition::Attached, SOON)
            .await?;
        for number in 0..CLIENTS {
            daemon
                .connect(ClientSpec::new(format!("client {number}")))
                .await?;
        }
    }
    let clients = good.len() * CLIENTS;
    api.wait_clients(ClientFilter::default(), clients, SOON)
        .await?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..pairs {
        without.push(measure(&gateway, &mut api, calls).await?);
        let evil = cores.evil_runtime()?;
        let daemons = evil.run(start_all(directory.path().to_owned())).await?;
        with.push(measure(&gateway, &mut api, calls).await?);
        for (Wrong { verdict, .. }, daemon) in zoo.iter().zip(&*daemons) {
            judge(&mut api, daemon, *verdict).await?;
        }
        drop((daemons, evil));
        poll_until("the evil ones to be gone", READ, async || {
            let instances = api.instances().await?;
            let attached = instances.iter().filter(|instance| {
                let status = instance.status.as_ref();
                status.is_some_and(|status| status.condition() == Condition::Attached)
            });
            Ok((attached.count() == good.len()).then_some(()))
        })
        .await?;
    }
    let (before, after) = (Runs::of(&without), Runs::of(&with));
    eprintln!(
        "p99 of {calls} calls, {pairs} runs: {before} without, {after} with {} evil daemons",
        zoo.len(),
    );
    let bound = if soak() {
        (before.median / 20).max(2 * after.spread)
    } else {
        UNDISTURBED
    };
    ensure!(
        after.median <= before.median + bound,
        "more than {bound:?} slower"
    );
    Ok(())
}

/// Every evil daemon there is, with clients that connect for as long as the runtime lives.
async fn start_all(directory: impl AsRef<Path>) -> Result<Arc<[Daemon]>> {
    let mut daemons = Vec::new();
    for Wrong { name, evil, .. } in zoo() {
        let builder = Daemon::builder(name).unix(directory.as_ref().join(name));
        daemons.push(builder.misbehave(evil).start().await?);
    }
    let daemons: Arc<[Daemon]> = daemons.into();
    let provoked = Arc::clone(&daemons);
    tokio::spawn(async move {
        loop {
            // Some greet nobody, and some are past serving anybody.
            for daemon in provoked.iter().filter(|daemon| daemon.is_attached()) {
                let_clients_connect(daemon).await;
            }
            sleep(PROVOKED).await;
        }
    });
    Ok(daemons)
}

/// The cores of this thread: one for the gateway, one for everybody else.
struct Cores {
    all: CpuSet,
    other: CpuSet,
}

impl Cores {
    /// Keeps this thread, and what it starts from now on, on one core; a machine with a single one has no other.
    fn split() -> Result<Self> {
        let all = sched_getaffinity(None)?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| all.is_set(*core));
        let only = |core| {
            let mut set = CpuSet::new();
            set.set(core);
            set
        };
        let first = only(cores.next().context("no core")?);
        let other = cores.next().map_or(first, only);
        sched_setaffinity(None, &first)?;
        Ok(Self { all, other })
    }

    /// Moves this thread, not what it has started, to the other core.
    fn leave_the_first(&self) -> Result<()> {
        Ok(sched_setaffinity(None, &self.other)?)
    }

    /// Threads on the other core, for when nobody else has anything to do there.
    fn evil_runtime(&self) -> Result<EvilRuntime> {
        let core = self.other;
        let mut builder = Builder::new_multi_thread();
        // Some of them think for seconds, which is not to keep the others from being evil.
        builder.worker_threads(4).enable_all();
        builder.on_thread_start(move || {
            // Where that is not allowed the figures are worse than they have to be, and nothing else.
            let _ = sched_setaffinity(None, &core);
            let thread = gettid().as_raw_nonzero().to_string();
            let mut idle = Command::new("chrt");
            let _ = idle.args(["--idle", "--pid", "0", &thread]).output();
        });
        Ok(EvilRuntime(Some(builder.build()?)))
    }
}

/// A runtime that may be dropped anywhere.
struct EvilRuntime(Option<Runtime>);

impl EvilRuntime {
    /// Runs `task` there.
    async fn run<T: Send + 'static>(
        &self,
        task: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let runtime = self.0.as_ref().context("it is gone")?;
        runtime.spawn(task).await?
    }
}

impl Drop for EvilRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Cores {
    fn drop(&mut self) {
        // It was allowed before.
        let _ = sched_setaffinity(None, &self.all);
    }
}

/// What many calls took.
struct Measured {
    /// The 99th percentile.
    p99: Duration,
    /// What the gateway worked meanwhile, and how long that was.
    worked: Duration,
    elapsed: Duration,
}

/// Calls that concern good daemons only, which also answer right.
async fn measure(gateway: &Gateway, api: &mut Api, calls: usize) -> Result<Measured> {
    let (began, worked) = (Instant::now(), processor_time(gateway)?);
    let mut times = Vec::with_capacity(calls);
    for call in 0..calls {
        let name = format!("good{}", call % 3);
        let request = ListClientsRequest {
            selector: named(&[&name]),
            page_size: 100,
            ..Default::default()
        };
        let asked = Instant::now();
        let answer = api.fleet.list_clients(timed(request)).await?.into_inner();
        times.push(asked.elapsed());
        ensure!(
            answer.clients.len() == CLIENTS && answer.unreachable.is_empty(),
            "{name}: {answer:?}"
        );
    }
    times.sort_unstable();
    let p99 = times[times.len() * 99 / 100];
    eprintln!("p99 of {calls} calls: {p99:.2?}");
    Ok(Measured {
        p99,
        worked: processor_time(gateway)?.saturating_sub(worked),
        elapsed: began.elapsed(),
    })
}

/// Some runs of the same.
struct Runs {
    /// In the middle of their 99th percentiles.
    median: Duration,
    /// By how much the half of them around it differs.
    spread: Duration,
    /// Of a core, that the gateway took.
    core_percent: f64,
}

impl Runs {
    fn of(runs: &[Measured]) -> Self {
        let mut p99: Vec<_> = runs.iter().map(|run| run.p99).collect();
        p99.sort_unstable();
        let worked: Duration = runs.iter().map(|run| run.worked).sum();
        let elapsed: Duration = runs.iter().map(|run| run.elapsed).sum();
        Self {
            median: p99[p99.len() / 2],
            spread: p99[p99.len() * 3 / 4] - p99[p99.len() / 4],
            core_percent: 100.0 * worked.as_secs_f64() / elapsed.as_secs_f64(),
        }
    }
}

impl fmt::Display for Runs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            median,
            spread,
            core_percent,
        } = self;
        write!(
            f,
            "{median:.1?} ± {spread:.1?} ({core_percent:.0} % of a core)"
        )
    }
}
