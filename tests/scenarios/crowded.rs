//! Two hundred tools keep one real daemon busy: no reply goes astray, and a kill goes first.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use ovfleet_proto::v1::{ClientFilter, KillClientsRequest, Outcome};
use ovfleet_tests::{
    Api, Client, GatewayConfig, InstanceConfig, Server,
    api::{all, by_name},
    poll_until,
    random::{Random, soak},
};
use tokio::task::JoinSet;

use crate::tools::{Tool, wait_open};

const TOOLS: usize = 200;
/// What each tool asks, so that the gate stays short; `OVFLEET_SOAK` makes it [`SOAK_COMMANDS`].
const COMMANDS: usize = 20;
const SOAK_COMMANDS: usize = 1_000;
/// How long a kill may take meanwhile, where it is measured in earnest: with `OVFLEET_SOAK`.
const KILL_MAX: Duration = Duration::from_millis(100);
/// The same where other scenarios share the processors, and nothing is optimized.
const KILL_MAX_UNOPTIMIZED: Duration = Duration::from_secs(3);
/// A virtual socket is opened, and a new client known, at once; this covers a busy machine.
const SOON: Duration = Duration::from_secs(15);
/// Even the long form takes minutes.
const DONE: Duration = Duration::from_secs(1_800);
const VICTIMS: [&str; 4] = ["alice", "bob", "carol", "dave"];
/// The choice of [`command`] that changes something.
const KILL: u64 = 7;

/// A tool that reads its answers in order would take another's for its own; and whoever has to throw somebody out
/// cannot wait for a crowd of tools.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_tools_hold_up_no_kill() -> Result<()> {
    let (commands, kill_max) = if soak() {
        (SOAK_COMMANDS, KILL_MAX)
    } else {
        (COMMANDS, KILL_MAX_UNOPTIMIZED)
    };
    let server = Server::builder("busy").start().await?;
    let mut clients = Vec::new();
    for name in VICTIMS {
        clients.push(Client::builder(&server, name).connect().await?);
    }
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("busy.sock");
    let mut mux = toml::Table::new();
    let address = format!("unix:{}", socket.display());
    mux.insert("address".to_owned(), address.into());
    mux.insert("policy".to_owned(), "operator".into());
    let instance = InstanceConfig::of(&server).set("mux", mux);
    let gateway = GatewayConfig::new().instance(instance).start().await?;
    let mut api = Api::connect(&gateway).await?;
    api.wait_attached().await?;
    api.wait_clients(ClientFilter::default(), VICTIMS.len(), SOON)
        .await?;

    wait_open(&socket.display().to_string()).await?;

    // Whatever tools say; and changes alone, which callers' changes must overtake too.
    for (what, only_changes, [early, late]) in [
        ("mixed", false, [VICTIMS[0], VICTIMS[1]]),
        ("only changes", true, [VICTIMS[2], VICTIMS[3]]),
    ] {
        let started = Instant::now();
        let mut tools = Tools::start(&socket, commands, only_changes);
        for (victim, due) in [(early, tools.total / 4), (late, tools.total / 2)] {
            tools.wait_answered(due).await?;
            let took = kill(&mut api, victim).await?;
            let answered = tools.answered();
            println!("{what}: killed {victim} in {took:?}");
            ensure!(took <= kill_max, "{victim}: {took:?}");
            ensure!(answered < tools.total, "it came when all were done");
        }
        while let Some(ended) = tools.tasks.join_next().await {
            ended??;
        }
        let (total, took) = (tools.total, started.elapsed());
        println!("{what}: {total} commands of {TOOLS} tools in {took:?}");
    }
    Ok(())
}

async fn kill(api: &mut Api, name: &str) -> Result<Duration> {
    let request = KillClientsRequest {
        selector: all(),
        filter: Some(by_name(name)),
        ..Default::default()
    };
    let asked = Instant::now();
    let killed = api.kill(request).await?;
    let took = asked.elapsed();
    let outcomes: Vec<Outcome> = killed.results.iter().map(|it| it.outcome()).collect();
    ensure!(outcomes == [Outcome::Accepted], "{killed:#?}");
    Ok(took)
}

/// The crowd, each with its own random commands.
struct Tools {
    tasks: JoinSet<Result<()>>,
    answered: Arc<AtomicUsize>,
    total: usize,
}

impl Tools {
    fn start(socket: &Path, commands: usize, only_changes: bool) -> Self {
        let seed = Random::seeded("tools").next();
        let answered = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for number in 0..TOOLS as u64 {
            let (path, answered) = (socket.display().to_string(), Arc::clone(&answered));
            tasks.spawn(async move {
                let mut tool = Tool::open(&path).await?;
                let mut random = Random::new(seed ^ number);
                for turn in 0..commands {
                    let choice = if only_changes { KILL } else { random.below(8) };
                    command(&mut tool, choice, &format!("t{number}c{turn}")).await?;
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            });
        }
        Self {
            tasks,
            answered,
            total: TOOLS * commands,
        }
    }

    fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits until so many commands are answered, or one is not as it should be.
    async fn wait_answered(&mut self, count: usize) -> Result<()> {
        poll_until("the middle", DONE, async || {
            while let Some(ended) = self.tasks.try_join_next() {
                ended??;
            }
            Ok((self.answered() >= count).then_some(()))
        })
        .await
    }
}

/// One command, or a few in one write, whose answers tell whose they are wherever that is possible.
async fn command(tool: &mut Tool, choice: u64, name: &str) -> Result<()> {
    let nobody = |name: &str| format!("ERROR: common name '{name}' not found");
    match choice {
        0 => ask(tool, "pid", "SUCCESS: pid=").await,
        1 => ask(tool, "load-stats", "SUCCESS: nclients=").await,
        2 => ask_block(tool, "status 2", "TITLE,OpenVPN 2.").await,
        3 => ask_block(tool, "version", "OpenVPN Version: ").await,
        4 => {
            let (one, other) = (format!("{name}a"), format!("{name}b"));
            let three = format!("kill {one}\nverb\nkill {other}\n");
            tool.say(three.as_bytes()).await?;
            expect(tool, &nobody(&one)).await?;
            expect(tool, "SUCCESS: verb=3").await?;
            expect(tool, &nobody(&other)).await
        }
        5 => ask(tool, "nonsense", "ERROR: unknown command").await,
        _ => ask(tool, &format!("kill {name}"), &nobody(name)).await,
    }
}

async fn ask(tool: &mut Tool, command: &str, beginning: &str) -> Result<()> {
    tool.say(format!("{command}\n").as_bytes()).await?;
    expect(tool, beginning).await
}

async fn ask_block(tool: &mut Tool, command: &str, beginning: &str) -> Result<()> {
    ask(tool, command, beginning).await?;
    while tool.read_line().await? != "END" {}
    Ok(())
}

/// The next line of an answer; every tool also hears of clients that come.
async fn expect(tool: &mut Tool, beginning: &str) -> Result<()> {
    let mut line = tool.read_line().await?;
    while line.starts_with('>') {
        line = tool.read_line().await?;
    }
    ensure!(
        line.starts_with(beginning),
        "{line:?} instead of {beginning:?}"
    );
    Ok(())
}
