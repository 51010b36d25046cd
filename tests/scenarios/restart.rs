//! Restarts: client numbers begin anew, and an old number must never hit its new owner.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use ovfleet_proto::v1::{
    self, ClientFilter, ClientRef, Condition, GenerationCause, KillClientsRequest, KillMode,
    Outcome, SignalInstancesRequest, SignalWait, event::Detail,
};
use ovfleet_tests::{
    Api, Client, Gateway, GatewayConfig, Management, Proto, Server, Signal, Tap,
    api::{all, by_name, by_refs, named, reason, timed},
    poll_until,
    random::soak,
};
use tonic::Code;

/// A restart pauses the daemon for a second, and its clients for as long.
const BACK: Duration = Duration::from_secs(20);
/// More than the least time between two statuses of one daemon.
const STATUS_SPACING: Duration = Duration::from_millis(250);
/// A new client is known as soon as its daemon says so; this covers a busy machine.
const SOON: Duration = Duration::from_secs(10);

async fn attach(servers: &[Server]) -> Result<(Gateway, Api)> {
    let gateway = GatewayConfig::of(servers).start().await?;
    let mut api = Api::connect(&gateway).await?;
    api.wait_attached().await?;
    Ok((gateway, api))
}

fn on(instance: &str) -> impl Fn(&v1::Client) -> bool {
    move |client| {
        client
            .r#ref
            .as_ref()
            .is_some_and(|r| r.instance == instance)
    }
}

async fn signal(api: &mut Api, instance: &str, signal: v1::Signal) -> Result<()> {
    let response = api
        .signal(SignalInstancesRequest {
            selector: named(&[instance]),
            signal: signal.into(),
            wait_for: SignalWait::Connected.into(),
            ..Default::default()
        })
        .await?;
    let [result] = response.results.as_slice() else {
        bail!("{response:#?}");
    };
    ensure!(result.outcome() == Outcome::Confirmed, "{response:#?}");
    Ok(())
}

/// Both restarting signals, sent through the gateway, keep the session and end the
/// generation; what was known of it is stale from then on.
#[tokio::test]
async fn a_restart_is_a_new_generation() -> Result<()> {
    let servers = [Server::builder("again").proto(Proto::Tcp).start().await?];
    let mut client = Client::builder(&servers[0], "alice").connect().await?;
    let (_gateway, mut api) = attach(&servers).await?;
    let mut expected_connections = 1;
    for restart in [v1::Signal::Sigusr1, v1::Signal::Sighup] {
        let rows = api.wait_clients(ClientFilter::default(), 1, BACK).await?;
        let old = rows[0].r#ref.clone().context("no ref")?;
        let before = api.status("again").await?;
        let log = api.follow().await?;
        signal(&mut api, "again", restart).await?;
        let after = api.status("again").await?;
        ensure!(after.condition() == Condition::Attached && after.state == "CONNECTED");
        ensure!(
            after.sessions == before.sessions,
            "the session survives: {after:#?}"
        );
        let generation = |text: &str| text.parse::<u64>().context("not a number");
        ensure!(generation(&after.generation)? > generation(&before.generation)?);

        let (changed, _) = log
            .wait_event("the new generation", SOON, |event| {
                event.kind == "instance.generation"
            })
            .await?;
        let Some(Detail::GenerationChange(change)) = &changed.detail else {
            bail!("{changed:#?}");
        };
        ensure!(changed.generation == after.generation, "{changed:#?}");
        ensure!(change.previous == before.generation, "{changed:#?}");
        ensure!(
            change.cause() == GenerationCause::Reconnecting,
            "{changed:#?}"
        );

        expected_connections += 1;
        client.wait_connected(expected_connections).await?;
        let rows = api.wait_clients(ClientFilter::default(), 1, BACK).await?;
        let new = rows[0].r#ref.clone().context("no ref")?;
        ensure!(
            new.cid == old.cid,
            "the same number, so the generation has to tell: {new:?}"
        );
        let killed = api
            .kill(KillClientsRequest {
                selector: named(&["again"]),
                filter: Some(by_refs(vec![old])),
                mode: KillMode::Halt.into(),
                ..Default::default()
            })
            .await?;
        ensure!(killed.results.len() == 1, "{killed:#?}");
        ensure!(killed.results[0].outcome() == Outcome::Stale, "{killed:#?}");
        let count = |kind: &str| {
            log.events()
                .iter()
                .filter(|event| event.kind == kind)
                .count()
        };
        ensure!(count("instance.generation") == 1, "{:#?}", log.events());
        ensure!(count("instance.detached") == 0, "{:#?}", log.events());
    }
    ensure!(!servers[0].log_contains("CMD 'client-kill"));
    ensure!(client.is_running()? && client.connections() == 3);
    Ok(())
}

/// The moments of a restart at which a kill by an old reference is tried.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Moment {
    /// The kill, and the signal so much later: before, while and after it is carried out.
    Together(Duration),
    /// The daemon has begun to restart.
    Restarting,
    /// It serves again; nobody is back.
    Serving,
    /// Somebody is back, under a number of the old generation.
    ClientsBack,
}

/// The race that makes bare client numbers dangerous: a kill aimed before a restart and
/// delivered after it. Many of them, on several daemons at once (500 on ten in a soak); not
/// one may hit a client it was not aimed at.
#[tokio::test]
async fn races_with_restarts_harm_nobody() -> Result<()> {
    let (servers_max, rounds) = if soak() { (10, 50) } else { (6, 18) };
    let mut servers = Vec::new();
    for number in 0..servers_max {
        // Over TCP the clients notice a restart at once, and race back.
        let management = if number % 2 == 0 {
            Management::Unix
        } else {
            Management::Tcp
        };
        let builder = Server::builder(&format!("race{number}"));
        servers.push(
            builder
                .proto(Proto::Tcp)
                .management(management)
                .start()
                .await?,
        );
    }
    let (_gateway, api) = attach(&servers).await?;
    let races = (0..)
        .zip(servers)
        .map(|(number, server)| race(number, server, api.clone(), rounds));
    let outcomes = futures_util::future::try_join_all(races).await?.concat();
    let count = |wanted| {
        outcomes
            .iter()
            .filter(|outcome| **outcome == wanted)
            .count()
    };
    eprintln!(
        "{} races on {servers_max} daemons: {} stale, {} accepted in time, {} neither, nobody else hit",
        outcomes.len(),
        count(Outcome::Stale),
        count(Outcome::Accepted),
        outcomes.len() - count(Outcome::Stale) - count(Outcome::Accepted),
    );
    ensure!(outcomes.len() == (servers_max * rounds) as usize);
    // Otherwise one side always won, and nothing raced.
    ensure!(count(Outcome::Stale) > 0 && count(Outcome::Accepted) > 0);
    Ok(())
}

async fn race(number: u32, mut server: Server, mut api: Api, rounds: u32) -> Result<Vec<Outcome>> {
    let mut bystanders = [
        Client::builder(&server, "bystander 1").start()?,
        Client::builder(&server, "bystander 2").start()?,
    ];
    let mut victim = Client::builder(&server, "victim").start()?;
    let mut outcomes = Vec::new();
    for round in 0..rounds {
        if !victim.is_running()? {
            victim = Client::builder(&server, "victim").start()?;
        }
        let moment = match round % 6 {
            1 => Moment::Serving,
            3 => Moment::ClientsBack,
            5 => Moment::Restarting,
            // 0 to 6 ms, in another order on each daemon.
            _ => Moment::Together(Duration::from_micros(500) * ((round * 5 + number) % 13)),
        };
        let restart = [Signal::USR1, Signal::HUP][round as usize / 2 % 2];
        let target = wait_three(&mut api, server.name()).await?;
        let log = server.log_end();
        let outcome = race_once(&mut server, &mut api, target, restart, moment)
            .await
            .with_context(|| format!("round {round}, {moment:?}"))?;
        for bystander in &mut bystanders {
            ensure!(
                bystander.is_running()?,
                "round {round}, {moment:?}: {} was hit, {outcome:?}",
                bystander.common_name(),
            );
        }
        let sent = server.log_count_since(log, "MANAGEMENT: CMD 'client-kill");
        ensure!(sent <= 1, "round {round}, {moment:?}: {sent} sent");
        if outcome == Outcome::Stale {
            ensure!(
                victim.is_running()?,
                "round {round}, {moment:?}: stale, but sent"
            );
        }
        if matches!(moment, Moment::Serving | Moment::ClientsBack) {
            ensure!(
                outcome == Outcome::Stale,
                "round {round}, {moment:?}: {outcome:?}"
            );
        }
        outcomes.push(outcome);
    }
    if !victim.is_running()? {
        victim = Client::builder(&server, "victim").start()?;
    }
    // Also of the last round, whatever was on its way has come.
    wait_three(&mut api, server.name()).await?;
    for client in bystanders.iter_mut().chain([&mut victim]) {
        ensure!(client.is_running()?, "{} was hit", client.common_name());
    }
    Ok(outcomes)
}

/// Waits until the victim and its two bystanders are in the table, and gives the victim.
async fn wait_three(api: &mut Api, instance: &str) -> Result<ClientRef> {
    let found = poll_until("three clients", BACK, async || {
        let request = v1::ListClientsRequest {
            selector: named(&[instance]),
            max_age: Some(prost_types::Duration::default()),
            ..Default::default()
        };
        let response = api.fleet.list_clients(timed(request)).await?;
        let rows = response.into_inner().clients;
        let complete: Vec<v1::Client> = rows
            .into_iter()
            .filter(on(instance))
            .filter(|row| !row.half_open)
            .collect();
        Ok((complete.len() == 3).then_some(complete))
    })
    .await?;
    let victim = found.into_iter().find(|row| row.common_name == "victim");
    victim.and_then(|victim| victim.r#ref).context("no victim")
}

async fn race_once(
    server: &mut Server,
    api: &mut Api,
    target: ClientRef,
    restart: Signal,
    moment: Moment,
) -> Result<Outcome> {
    const SERVING: &str = "Initialization Sequence Completed";
    const RESTARTING: &str = "process restarting";
    const BACK_LINE: &str = "Peer Connection Initiated";
    let serving = server.log_count(SERVING);
    let restarting = server.log_count(RESTARTING);
    let connected = server.log_count(BACK_LINE);
    let request = KillClientsRequest {
        selector: named(&[server.name()]),
        filter: Some(by_refs(vec![target])),
        mode: KillMode::Halt.into(),
        ..Default::default()
    };
    let killed = if let Moment::Together(delay) = moment {
        // The gateway asks for at most five statuses a second, and `target` came with one:
        // only later does the kill take the milliseconds that the signal is to fall into.
        let known = Instant::now();
        poll_until("a fresh status to be allowed", BACK, async || {
            Ok((known.elapsed() > STATUS_SPACING).then_some(()))
        })
        .await?;
        let signal = async {
            let started = Instant::now();
            // Not a wait for anything: the moment itself is what varies.
            while started.elapsed() < delay {
                tokio::task::yield_now().await;
            }
            server.signal(restart)
        };
        let (killed, signalled) = tokio::join!(api.kill(request), signal);
        signalled?;
        killed?
    } else {
        server.signal(restart)?;
        let (line, count) = match moment {
            Moment::Restarting => (RESTARTING, restarting + 1),
            Moment::Serving => (SERVING, serving + 1),
            Moment::ClientsBack | Moment::Together(_) => (BACK_LINE, connected + 1),
        };
        server.wait_log(line, count, BACK).await?;
        api.kill(request).await?
    };
    let [result] = killed.results.as_slice() else {
        bail!("{killed:#?}");
    };
    server.wait_log(SERVING, serving + 1, BACK).await?;
    Ok(result.outcome())
}

/// Over TCP a client gets its number when it connects, not when it is through: a later
/// number may be established first, and that is no sign of a restart.
#[tokio::test]
async fn a_slow_handshake_is_no_restart() -> Result<()> {
    let mut servers = [Server::builder("slow").proto(Proto::Tcp).start().await?];
    let tap = Tap::tcp(&format!("tcp:127.0.0.1:{}", servers[0].vpn_port())).await?;
    let (_gateway, mut api) = attach(&servers).await?;
    let generation = api.status("slow").await?.generation;
    let log = api.follow().await?;

    tap.hold();
    let port = tap.port().context("no port")?;
    let mut early = Client::builder(&servers[0], "early").port(port).start()?;
    servers[0]
        .wait_log("TCP connection established with", 1, SOON)
        .await?;
    let _late = Client::builder(&servers[0], "late").connect().await?;
    api.wait_clients(by_name("late"), 1, SOON).await?;
    tap.release();
    early.wait_connected(1).await?;
    let rows = api.wait_clients(ClientFilter::default(), 2, SOON).await?;
    let names: Vec<(&str, u64)> = rows
        .iter()
        .map(|row| {
            (
                row.common_name.as_str(),
                row.r#ref.as_ref().map_or(99, |r| r.cid),
            )
        })
        .collect();
    ensure!(names == [("early", 0), ("late", 1)], "{names:?}");
    log.wait_event("both connects", SOON, |event| {
        event
            .client
            .as_ref()
            .is_some_and(|client| client.common_name == "early")
    })
    .await?;
    ensure!(api.status("slow").await?.generation == generation);
    let restarts = log
        .events()
        .into_iter()
        .filter(|event| event.kind == "instance.generation");
    ensure!(restarts.count() == 0, "{:#?}", log.events());
    Ok(())
}

/// A signal that ends daemons needs to be meant; one at a time is the default; a fleet
/// that fails is not marched through.
#[tokio::test]
async fn signals_go_one_by_one_and_need_force_to_end() -> Result<()> {
    let mut servers = Vec::new();
    for name in ["a", "b", "c"] {
        servers.push(Server::builder(name).start().await?);
    }
    let (gateway, mut api) = attach(&servers).await?;

    let request = |selector, signal: v1::Signal| SignalInstancesRequest {
        selector,
        signal: signal.into(),
        ..Default::default()
    };
    let status = api.signal(request(None, v1::Signal::Sigusr2)).await.err();
    let status = status.context("an empty selector was accepted")?;
    ensure!(status.code() == Code::InvalidArgument, "{status:?}");
    ensure!(
        reason(&status).as_deref() == Some("SELECTOR_EMPTY"),
        "{status:?}"
    );

    // SIGUSR2 writes the status to the log, and changes nothing.
    let dumped = api.signal(request(all(), v1::Signal::Sigusr2)).await?;
    ensure!(dumped.results.len() == 3, "{dumped:#?}");
    for (result, server) in dumped.results.iter().zip(&mut servers) {
        ensure!(result.outcome() == Outcome::Accepted, "{dumped:#?}");
        ensure!(
            result.instance == server.name(),
            "in order of name: {dumped:#?}"
        );
        server.wait_log("OpenVPN STATISTICS", 0, SOON).await?;
        server.wait_log("CMD 'signal SIGUSR2'", 1, SOON).await?;
    }

    // Restarting all, one by one: the next begins when the one before serves again.
    let restart = SignalInstancesRequest {
        wait_for: SignalWait::Connected.into(),
        ..request(all(), v1::Signal::Sigusr1)
    };
    let restarted = api.signal(restart).await?;
    ensure!(
        restarted
            .results
            .iter()
            .all(|it| it.outcome() == Outcome::Confirmed),
        "{restarted:#?}"
    );
    let begun = |server: &Server| {
        let line = server
            .log_lines()
            .into_iter()
            .find(|it| it.text.ends_with(b"process restarting"));
        line.map(|line| line.time).context("no restart")
    };
    let served = |server: &Server| {
        let text: &[u8] = b"Initialization Sequence Completed";
        let line = server
            .log_lines()
            .into_iter()
            .rfind(|line| line.text == text);
        line.map(|line| line.time).context("not served")
    };
    ensure!(
        served(&servers[0])? <= begun(&servers[1])?,
        "a and b were down together"
    );
    ensure!(
        served(&servers[1])? <= begun(&servers[2])?,
        "b and c were down together"
    );

    let unforced = api
        .signal(request(named(&["a"]), v1::Signal::Sigterm))
        .await;
    match unforced {
        Err(status) => ensure!(status.code() == Code::InvalidArgument, "{status:?}"),
        Ok(answer) => ensure!(
            answer
                .results
                .iter()
                .all(|result| result.outcome() == Outcome::Rejected
                    || result.outcome() == Outcome::NotSent),
            "{answer:#?}"
        ),
    }
    ensure!(!servers[0].log_contains("CMD 'signal SIGTERM'"));

    let ended = gateway
        .cli(&["signal", "SIGTERM", "--instance", "a", "--force", "--yes"])
        .await?;
    ensure!(ended.code == Some(0), "{ended:?}");
    api.wait_condition("a", Condition::Unreachable, SOON)
        .await?;
    let rest = api.status("b").await?;
    ensure!(rest.condition() == Condition::Attached, "{rest:?}");
    Ok(())
}
