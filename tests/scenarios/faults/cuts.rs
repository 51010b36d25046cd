//! Connections between the gateway and real daemons that break at every byte: of an attach, of
//! answers, of a kill.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use ovfleet_proto::v1::{
    self, ClientFilter, Condition, GetLoadStatsRequest, GetPidRequest, GetVersionRequest,
    KillClientsRequest, KillMode, ListClientsRequest, Outcome,
};
use ovfleet_tests::{
    Api, Client, Gateway, GatewayConfig, InstanceConfig, Management, Proto, Server,
    api::{by_name, named, timed},
    chaos::{Chaos, Cut, Direction, Manner},
    poll_until,
    random::{Random, soak},
};

/// What is shown is what is, by then, whatever happened.
const TRUE_AGAIN: Duration = Duration::from_secs(30);
/// A halted client ends when its daemon tells it; a killed one stays listed for 5 s.
const GONE: Duration = Duration::from_secs(20);

/// One daemon with two clients, and a gateway that reaches it through the relay.
pub(super) struct Lab {
    pub(super) server: Server,
    pub(super) victim: Client,
    pub(super) bystander: Client,
    chaos: Chaos,
    gateway: Gateway,
    pub(super) api: Api,
    /// Longest time until the state shown was the daemon's.
    pub(super) slowest: Duration,
}

impl Lab {
    pub(super) async fn start(name: &str, management: Management) -> Result<Self> {
        // Over TCP a client that is halted ends at once.
        let builder = Server::builder(name)
            .proto(Proto::Tcp)
            .management(management);
        let server = builder.start().await?;
        let victim = Client::builder(&server, "victim").connect().await?;
        let bystander = Client::builder(&server, "bystander").connect().await?;
        let chaos = Chaos::start(&server.address()).await?;
        let gateway = GatewayConfig::new()
            .instance(InstanceConfig::at(&server, chaos.address()))
            .start()
            .await?;
        let api = Api::connect(&gateway).await?;
        let slowest = Duration::ZERO;
        let mut lab = Self {
            server,
            victim,
            bystander,
            chaos,
            gateway,
            api,
            slowest,
        };
        lab.wait_true().await?;
        Ok(lab)
    }

    /// Waits until the gateway is attached and shows the clients that the daemon has.
    pub(super) async fn wait_true(&mut self) -> Result<()> {
        let started = Instant::now();
        let name = self.server.name().to_owned();
        let mut last = None;
        let found = poll_until("the state to be the daemon's", TRUE_AGAIN, async || {
            let status = self.api.status(&name).await?;
            let request = ListClientsRequest::default();
            let shown = self
                .api
                .fleet
                .list_clients(timed(request))
                .await?
                .into_inner();
            let shown: BTreeSet<_> = shown
                .clients
                .into_iter()
                .map(|row| {
                    (
                        row.r#ref.map_or(u64::MAX, |r| r.cid),
                        row.common_name,
                        row.real_address,
                    )
                })
                .collect();
            let truth: BTreeSet<_> = self
                .server
                .status()
                .await?
                .clients
                .into_values()
                .map(|row| {
                    (
                        row.cid,
                        String::from_utf8_lossy(&row.common_name).into_owned(),
                        row.real_address,
                    )
                })
                .collect();
            let there = status.condition() == Condition::Attached && shown == truth;
            last = Some((status, shown, truth));
            Ok(there.then_some(()))
        })
        .await;
        found.with_context(|| format!("{last:#?}"))?;
        self.slowest = self.slowest.max(started.elapsed());
        Ok(())
    }

    /// Nothing may be left of a fault before the next.
    async fn mend(&mut self) -> Result<()> {
        let unspent = self.chaos.disarm();
        if !unspent {
            // A black hole would go on; any other connection is gone already.
            self.chaos.close_all();
        }
        self.wait_true().await
    }
}

/// What a point of a cut is: so many bytes in that direction, in that manner.
type Point = (Direction, u64, Cut);

/// Every offset of both directions in soak; of the gate `count` of them, at random.
fn points(lengths: [u64; 2], count: usize, random: &mut Random) -> Vec<Point> {
    let mut points = Vec::new();
    for (direction, length) in [Direction::Forward, Direction::Backward]
        .into_iter()
        .zip(lengths)
    {
        points.extend((0..=length).map(|offset| (direction, offset, *random.pick(&Cut::ALL))));
    }
    random.shuffle(&mut points);
    if !soak() {
        // Half of each direction: to the daemon there is much less.
        points.sort_by_key(|(direction, ..)| *direction as usize);
        let backward = points
            .iter()
            .filter(|point| point.0 == Direction::Backward)
            .count();
        let forward = points.len() - backward;
        let mut few = points.split_off(forward);
        few.truncate(count / 2);
        points.truncate(count - few.len());
        points.append(&mut few);
        // Silence takes as long as it takes to be noticed.
        for (_, _, cut) in &mut points {
            if *cut == Cut::BlackHole {
                *cut = Cut::Close;
            }
        }
    }
    points
}

fn random_manner(random: &mut Random) -> Manner {
    match random.below(4) {
        0 => Manner {
            piece: Some(1),
            delay: None,
        },
        1 => Manner {
            piece: None,
            delay: Some(Duration::from_millis(random.below(20))),
        },
        _ => Manner::default(),
    }
}

/// Two labs at once, over a Unix socket and over TCP; prints what it took.
async fn on_both(
    what: &str,
    run: impl AsyncFn(&mut Lab, Random) -> Result<usize> + Copy,
) -> Result<()> {
    let mut random = Random::seeded(what);
    let seeds = [random.next(), random.next()];
    let started = Instant::now();
    let on = async |name: &str, management, seed| {
        let mut lab = Lab::start(name, management).await?;
        let count = run(&mut lab, Random::new(seed))
            .await
            .with_context(|| name.to_owned())?;
        ensure!(
            lab.gateway
                .log()
                .lines()
                .all(|line| !line.contains("panicked"))
        );
        Ok::<_, anyhow::Error>((count, lab.slowest))
    };
    let (unix, tcp) = futures_util::future::try_join(
        on("unix", Management::Unix, seeds[0]),
        on("tcp", Management::Tcp, seeds[1]),
    )
    .await?;
    eprintln!(
        "{what}: {} cuts in {:.1?}; the state shown was the daemon's within {:.1?}",
        unix.0 + tcp.0,
        started.elapsed(),
        unix.1.max(tcp.1),
    );
    Ok(())
}

/// An attach that breaks at any byte must neither leave half a table nor be given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attach_cut_anywhere_ends_in_the_truth() -> Result<()> {
    on_both("attaches", async |lab, mut random| {
        let _ = lab.chaos.take_passed();
        lab.chaos.close_all();
        lab.wait_true().await?;
        let lengths = lab.chaos.take_passed();
        let points = points(lengths, 16, &mut random);
        let count = points.len();
        for (direction, offset, cut) in points {
            lab.chaos.set_manner(random_manner(&mut random));
            let (cuts, connections) = (lab.chaos.cuts(), lab.chaos.connections());
            lab.chaos.close_all();
            lab.chaos.arm(direction, offset, cut);
            let context = || format!("{cut:?} behind {offset} bytes {direction:?}");
            // The new session is cut, or its attach had fewer bytes than the one measured.
            poll_until("the attach to be cut", TRUE_AGAIN, async || {
                let attached = lab.chaos.connections() > connections
                    && lab.api.status(lab.server.name()).await?.condition() == Condition::Attached;
                Ok((lab.chaos.cuts() > cuts || attached).then_some(()))
            })
            .await
            .with_context(context)?;
            lab.mend().await.with_context(context)?;
        }
        Ok(count)
    })
    .await
}

/// Answers that break off: each caller gets its own or an error, never another's, and a list
/// that is not whole says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_cut_anywhere_reaches_nobody_else() -> Result<()> {
    on_both("answers", async |lab, mut random| {
        let _ = lab.chaos.take_passed();
        ask(lab).await?;
        let lengths = lab.chaos.take_passed();
        let points = points(lengths, 16, &mut random);
        let count = points.len();
        for (direction, offset, cut) in points {
            lab.chaos.set_manner(random_manner(&mut random));
            lab.chaos.arm(direction, offset, cut);
            ask(lab)
                .await
                .and(lab.mend().await)
                .with_context(|| format!("{cut:?} behind {offset} bytes {direction:?}"))?;
        }
        Ok(count)
    })
    .await
}

/// Four callers at once, each with another question.
async fn ask(lab: &Lab) -> Result<()> {
    let instance = || lab.server.name().to_owned();
    let (mut a, mut b, mut c, mut d) = (
        lab.api.clone(),
        lab.api.clone(),
        lab.api.clone(),
        lab.api.clone(),
    );
    let (pid, load, version, rows) = tokio::join!(
        a.instance.get_pid(timed(GetPidRequest {
            instance: instance()
        })),
        b.instance.get_load_stats(timed(GetLoadStatsRequest {
            instance: instance()
        })),
        c.instance.get_version(timed(GetVersionRequest {
            instance: instance()
        })),
        d.fleet.list_clients(timed(ListClientsRequest {
            max_age: Some(prost_types::Duration::default()),
            ..Default::default()
        })),
    );
    if let Ok(pid) = pid {
        let pid = pid.into_inner().pid;
        ensure!(pid == lab.server.pid(), "pid {pid}");
    }
    if let Ok(load) = load {
        let load = load.into_inner();
        ensure!(load.clients == 2 && load.bytes_received > 0, "{load:?}");
    }
    if let Ok(version) = version {
        let version = version.into_inner();
        ensure!(
            version.daemon_version.starts_with("OpenVPN 2."),
            "{version:?}"
        );
    }
    let rows = rows?.into_inner();
    ensure!(
        rows.clients.len() == 2 || !rows.unreachable.is_empty(),
        "half a list: {rows:#?}"
    );
    Ok(())
}

/// A kill that breaks off at any byte: what its result says is so, the other client stays, and
/// what may have been sent is never said not to have been.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_cut_anywhere_tells_the_truth() -> Result<()> {
    on_both("kills", async |lab, mut random| {
        let _ = lab.chaos.take_passed();
        kill(lab).await.context("without a cut")?;
        let lengths = lab.chaos.take_passed();
        revive(lab).await?;
        let points = points(lengths, 8, &mut random);
        let count = points.len();
        let mut outcomes = Vec::new();
        for (direction, offset, cut) in points {
            let context = || format!("{cut:?} behind {offset} bytes {direction:?}");
            lab.chaos.arm(direction, offset, cut);
            let outcome = kill(lab).await.with_context(context)?;
            outcomes.push(outcome);
            lab.mend().await.with_context(context)?;
            revive(lab).await.with_context(context)?;
        }
        let with = |wanted| {
            outcomes
                .iter()
                .filter(|outcome| **outcome == wanted)
                .count()
        };
        eprintln!(
            "{}: {} confirmed, {} accepted, {} unknown, {} not sent",
            lab.server.name(),
            with(Outcome::Confirmed),
            with(Outcome::Accepted),
            with(Outcome::Unknown),
            with(Outcome::NotSent),
        );
        Ok(count)
    })
    .await
}

/// Kills the victim, and compares the result with what became of it.
async fn kill(lab: &mut Lab) -> Result<Outcome> {
    const COMMAND: &str = "MANAGEMENT: CMD 'client-kill";
    let received = lab.server.log_count(COMMAND);
    let request = KillClientsRequest {
        selector: named(&[lab.server.name()]),
        filter: Some(by_name("victim")),
        mode: KillMode::Halt.into(),
        wait: true,
        ..Default::default()
    };
    let mut call = timed(request);
    call.set_timeout(Duration::from_secs(12));
    let killed = lab.api.control.kill_clients(call).await?.into_inner();
    let outcome = match killed.results.as_slice() {
        [result] => result.outcome(),
        // The daemon could not be asked who its clients are.
        [] => {
            ensure!(
                !killed.instances.is_empty(),
                "neither a client nor an instance: {killed:#?}"
            );
            Outcome::NotSent
        }
        _ => bail!("{killed:#?}"),
    };
    match outcome {
        Outcome::Confirmed => {
            let rows = lab.server.fresh_status().await?.clients;
            ensure!(
                rows.values().all(|row| row.common_name != b"victim"),
                "confirmed, and it lives: {rows:#?}"
            );
        }
        Outcome::Accepted | Outcome::AlreadyGone => lab.victim.wait_ended(GONE).await?,
        Outcome::NotSent | Outcome::Stale => {
            ensure!(
                lab.server.log_count(COMMAND) == received,
                "{outcome:?}, and it was sent"
            );
            ensure!(lab.victim.is_running()?, "{outcome:?}, and it is dead");
        }
        Outcome::Unknown => {}
        other => bail!("{other:?}: {killed:#?}"),
    }
    ensure!(lab.server.log_count(COMMAND) <= received + 1, "sent twice");
    ensure!(
        lab.bystander.is_running()? && lab.bystander.connections() == 1,
        "the other was hit"
    );
    Ok(outcome)
}

/// Brings the victim back, if it is gone, and waits until everybody knows.
async fn revive(lab: &mut Lab) -> Result<()> {
    if !lab.victim.is_running()? {
        lab.victim = Client::builder(&lab.server, "victim").connect().await?;
    }
    let filter = ClientFilter::default();
    poll_until("the victim to be listed", TRUE_AGAIN, async || {
        let rows: Vec<v1::Client> = lab.api.clients(filter.clone()).await?;
        let names: Vec<_> = rows.iter().map(|row| row.common_name.as_str()).collect();
        Ok((names.len() == 2 && names.contains(&"victim")).then_some(()))
    })
    .await?;
    lab.wait_true().await
}
