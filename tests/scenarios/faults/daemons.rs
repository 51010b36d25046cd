//! Daemons that lie, babble or are none: each is named for what it is, and no other
//! instance notices.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use openvpn_simulator::{ClientSpec, Daemon};
use ovfleet_proto::v1::{self, ClientFilter, Condition, ListClientsRequest};
use ovfleet_tests::{
    Api, Client, GatewayConfig, InstanceConfig, Management, Server,
    api::{by_name, named, timed},
    poll_until,
    random::{Random, soak},
};

use super::zoo::{Verdict, Wrong, zoo};

/// A new client is known as soon as its daemon says so; this covers a busy machine.
const SOON: Duration = Duration::from_secs(15);
/// A slot without a greeting counts as busy after 5 s.
const NAMED: Duration = Duration::from_secs(25);
/// A call that concerns healthy daemons only.
const UNDISTURBED: Duration = Duration::from_secs(2);
/// A daemon that greets at all has its manager by then.
const ATTACHED: Duration = Duration::from_secs(2);
/// What an evil daemon may cost.
const EACH_KIB: u64 = 2 * 1024;
/// What a huge status may: 20,000 rows are kept of it.
const ROWS_KIB: u64 = EACH_KIB + 40 * 1024;
/// What a huge status took is given back by then.
const FREED: Duration = Duration::from_secs(10);
/// Forty evil daemons are no reason to use more than this.
const MEMORY_MAX_KIB: u64 = 400 * 1024;

/// Lets clients connect before the gateway's eyes, where the daemon has eyes for either.
async fn provoke(daemon: &Daemon) {
    // Some greet nobody, and some are past serving anybody.
    let _ = tokio::time::timeout(ATTACHED, daemon.wait_attached()).await;
    for number in 0..5 {
        let client = ClientSpec::new(format!("provoker {number}"));
        let _ = daemon.connect(client).await;
    }
}

/// Waits until the gateway has seen through a daemon, as far as there is anything to see.
async fn judge(api: &mut Api, name: &str, verdict: Verdict) -> Result<()> {
    let mut last = None;
    let judged = poll_until(&format!("the verdict on {name}"), NAMED, async || {
        let status = api.status(name).await?;
        let attached = status.condition() == Condition::Attached;
        let says = |words| status.reason.contains(words) || status.last_error.contains(words);
        let is_there = match verdict {
            Verdict::Named(words) => says(words),
            Verdict::Lived => attached,
            Verdict::Either => attached || !status.reason.is_empty(),
        };
        last = Some(status);
        Ok(is_there.then_some(()))
    })
    .await;
    judged.with_context(|| format!("{last:#?}"))
}

/// One endless line, one flood, one greeting from another world: if any of them stalled or
/// grew the gateway, every healthy daemon of the fleet would go dark with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evil_daemons_harm_nobody() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let zoo = zoo();
    let good = Server::builder("good").start().await?;
    let _client = Client::builder(&good, "alice").connect().await?;
    let mut config = GatewayConfig::new().instance(InstanceConfig::of(&good));
    let mut daemons = Vec::new();
    for Wrong { name, evil, .. } in &zoo {
        let socket = directory.path().join(name);
        let daemon = Daemon::builder(*name)
            .unix(socket)
            .misbehave(evil.clone())
            .start()
            .await?;
        config = config.instance(InstanceConfig::new(name, &daemon.address().to_string()));
        daemons.push(daemon);
    }
    // Gateway first, clients second: their notifications are part of the trouble.
    let gateway = config.start().await?;
    let mut api = Api::connect(&gateway).await?;
    api.wait_condition("good", Condition::Attached, SOON)
        .await?;
    futures_util::future::join_all(daemons.iter().map(provoke)).await;

    for Wrong { name, verdict, .. } in &zoo {
        judge(&mut api, name, *verdict).await?;
    }

    // The healthy one answers as before, in the middle of it.
    for _ in 0..10 {
        let asked = Instant::now();
        let request = ListClientsRequest {
            selector: named(&["good"]),
            max_age: Some(prost_types::Duration::default()),
            ..Default::default()
        };
        let answer = api.fleet.list_clients(timed(request)).await?.into_inner();
        ensure!(asked.elapsed() <= UNDISTURBED, "{:?}", asked.elapsed());
        ensure!(
            answer.clients.len() == 1 && answer.unreachable.is_empty(),
            "{answer:#?}"
        );
    }
    let _second = Client::builder(&good, "bob").connect().await?;
    api.wait_clients(by_name("bob"), 1, SOON).await?;

    let fields = api.status("fields").await?;
    ensure!(fields.quarantined_rows > 0, "{fields:#?}");
    let huge = api.status("huge-status").await?;
    ensure!(huge.truncated, "{huge:#?}");
    let request = ListClientsRequest {
        selector: named(&["not-utf8"]),
        ..Default::default()
    };
    let names = api
        .fleet
        .list_clients(timed(request))
        .await?
        .into_inner()
        .clients;
    ensure!(!names.is_empty(), "no invalid names");
    for row in &names {
        ensure!(!row.common_name_raw.is_empty(), "{row:?}");
        ensure!(row.common_name.contains('\u{fffd}'), "{row:?}");
    }
    let memory = resident_kib(gateway.pid())?;
    eprintln!(
        "{} evil daemons: gateway RSS {} MiB",
        zoo.len(),
        memory / 1024
    );
    ensure!(memory <= MEMORY_MAX_KIB, "{memory} KiB");
    Ok(())
}

/// One evil daemon after the other, each with a gateway of its own that has known it when it was
/// good: it costs at most 2 MiB more than before; a huge status the rows that are kept of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_evil_daemon_costs_little() -> Result<()> {
    let mut random = Random::seeded("costs");
    let mut zoo = zoo();
    random.shuffle(&mut zoo);
    // The expensive one first, and a few of the others in the gate.
    zoo.sort_by_key(|wrong| wrong.name != "huge-status");
    zoo.truncate(if soak() { zoo.len() } else { 4 });
    let costs = zoo.into_iter().map(async |wrong| {
        let cost = cost(&wrong).await.with_context(|| wrong.name)?;
        Ok::<_, anyhow::Error>((wrong.name, cost))
    });
    let mut worst = Vec::new();
    for cost in costs {
        let (name, (highest, after)) = cost.await?;
        eprintln!("{name:24} highest +{highest} KiB, then +{after} KiB");
        let bound = if name == "huge-status" {
            ROWS_KIB
        } else {
            EACH_KIB
        };
        if highest > bound {
            worst.push(format!("{name}: +{highest} KiB, then +{after} KiB"));
        }
    }
    ensure!(worst.is_empty(), "{worst:?}");
    Ok(())
}

/// How much more the gateway has while a daemon is evil, at most, and within 10 s after.
async fn cost(wrong: &Wrong) -> Result<(u64, u64)> {
    let directory = tempfile::tempdir()?;
    let mut journal = toml::Table::new();
    // What the daemon has said is the journal's cost, with a bound of its own.
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
    for number in 0..5 {
        daemon
            .connect(ClientSpec::new(format!("client {number}")))
            .await?;
    }
    api.wait_clients(ClientFilter::default(), 5, SOON).await?;
    let before = resident_kib(gateway.pid())?;

    daemon.misbehave(wrong.evil.clone()).await?;
    daemon.drop_session().await?;
    provoke(&daemon).await;
    let mut highest = before;
    let mut judge_api = api.clone();
    let judging = async {
        let api = &mut judge_api;
        judge(api, "evil", wrong.verdict).await?;
        if matches!(wrong.verdict, Verdict::Lived) {
            poll_until("a status of the evil days", 4 * SOON, async || {
                let status = api.status("evil").await?;
                let is_cut = status.truncated || wrong.name != "huge-status";
                let attached = status.condition() == Condition::Attached;
                Ok((status.sessions >= 2 && attached && is_cut).then_some(()))
            })
            .await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let mut judging = std::pin::pin!(judging);
    loop {
        let tick = tokio::time::sleep(Duration::from_millis(5));
        tokio::select! {
            judged = &mut judging => break judged?,
            () = tick => highest = highest.max(resident_kib(gateway.pid())?),
        }
    }
    // What it costs lasts no longer than it has to; a figure, because the allocator has its say.
    let mut after = 0;
    let settled = poll_until("memory to be given back", FREED, async || {
        after = resident_kib(gateway.pid())?;
        highest = highest.max(after);
        Ok((after <= before + EACH_KIB).then_some(()))
    });
    let _ = settled.await;
    Ok((highest - before.min(highest), after - before.min(after)))
}

/// The good daemons' answers with all the evil ones beside them and without, in turns: the evil
/// ones cost them no more than a twentieth, or twice of what the runs without differ by.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evil_daemons_slow_nobody() -> Result<()> {
    let (pairs, calls) = if soak() { (8, 3_000) } else { (2, 200) };
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
    let zoo: Vec<Wrong> = zoo()
        .into_iter()
        .filter(|wrong| wrong.name != "flood")
        .collect();
    for Wrong { name, .. } in &zoo {
        let path = directory.path().join(name);
        config = config.instance(InstanceConfig::new(
            name,
            &format!("unix:{}", path.display()),
        ));
    }
    let gateway = config.start().await?;
    let mut api = Api::connect(&gateway).await?;
    for daemon in &good {
        api.wait_condition(daemon.name(), Condition::Attached, SOON)
            .await?;
        for number in 0..50 {
            daemon
                .connect(ClientSpec::new(format!("client {number}")))
                .await?;
        }
    }
    api.wait_clients(ClientFilter::default(), 150, SOON).await?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..pairs {
        without.push(slowest_of_a_hundred(&mut api, calls).await?);
        let mut daemons = Vec::new();
        for Wrong { name, evil, .. } in &zoo {
            let builder = Daemon::builder(*name).unix(directory.path().join(name));
            daemons.push(builder.misbehave(evil.clone()).start().await?);
        }
        futures_util::future::join_all(daemons.iter().map(provoke)).await;
        for Wrong { name, verdict, .. } in &zoo {
            judge(&mut api, name, *verdict).await?;
        }
        with.push(slowest_of_a_hundred(&mut api, calls).await?);
        drop(daemons);
        api.wait_condition("ssh", Condition::Unreachable, NAMED)
            .await?;
    }
    let spread = |runs: &[Duration]| {
        runs.iter().max().copied().unwrap_or_default()
            - runs.iter().min().copied().unwrap_or_default()
    };
    let median = |runs: &mut Vec<Duration>| {
        runs.sort_unstable();
        runs[runs.len() / 2]
    };
    let spreads = (spread(&without), spread(&with));
    let (before, after) = (median(&mut without), median(&mut with));
    eprintln!(
        "p99 of {calls} calls, median of {pairs} runs: {before:.1?} without, {after:.1?} with {} evil daemons; \
         runs differ by {:.1?} and {:.1?}",
        zoo.len(),
        spreads.0,
        spreads.1,
    );
    let bound = if soak() {
        (before / 20).max(2 * spreads.1)
    } else {
        UNDISTURBED
    };
    ensure!(after <= before + bound, "more than {bound:?} slower");
    Ok(())
}

/// The 99th percentile of calls that concern good daemons only, which also answer right.
async fn slowest_of_a_hundred(api: &mut Api, calls: usize) -> Result<Duration> {
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
            answer.clients.len() == 50 && answer.unreachable.is_empty(),
            "{name}: {answer:?}"
        );
    }
    times.sort_unstable();
    Ok(times[times.len() * 99 / 100])
}

fn resident_kib(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line
        .and_then(|line| line.split_whitespace().next())
        .context("no VmRSS")?;
    Ok(number.parse()?)
}

/// A daemon that cannot be reached has to say why in its condition, and what would mend
/// it has to mend it.
#[tokio::test]
async fn unreachable_daemons_say_why() -> Result<()> {
    let locked = Server::builder("locked")
        .management(Management::Tcp)
        .password("right")
        .start()
        .await?;
    let open = Server::builder("open").password("right").start().await?;
    let directory = tempfile::tempdir()?;
    let wrong = directory.path().join("wrong");
    fs::write(&wrong, "wrong\n")?;
    fs::set_permissions(&wrong, Permissions::from_mode(0o600))?;
    let public = directory.path().join("public");
    fs::write(&public, "right\n")?;
    fs::set_permissions(&public, Permissions::from_mode(0o644))?;
    let missing = directory.path().join("missing.sock");

    let gateway = GatewayConfig::new()
        .instance(
            InstanceConfig::new("wrong", &locked.address())
                .set("password_file", wrong.display().to_string()),
        )
        .instance(
            InstanceConfig::new("public", &open.address())
                .set("password_file", public.display().to_string()),
        )
        .instance(InstanceConfig::new(
            "missing",
            &format!("unix:{}", missing.display()),
        ))
        .instance(InstanceConfig::new("refused", "tcp:127.0.0.1:9"))
        .start()
        .await?;
    let mut api = Api::connect(&gateway).await?;
    for (name, condition) in [
        ("wrong", Condition::AuthFailed),
        ("public", Condition::AuthFailed),
        ("missing", Condition::Unreachable),
        ("refused", Condition::Unreachable),
    ] {
        let status = api.wait_condition(name, condition, SOON).await?;
        ensure!(!status.reason.is_empty(), "{status:?}");
    }
    // One wrong try per connection, and no further one until something changes.
    ensure!(
        open.log_count("MANAGEMENT: Client connected") <= 1,
        "the public file was used"
    );
    let list = api
        .fleet
        .list_clients(timed(ListClientsRequest::default()))
        .await?
        .into_inner();
    ensure!(list.unreachable.len() == 4, "{list:#?}");
    ensure!(
        list.unreachable.iter().all(|it| !it.message.is_empty()),
        "{list:#?}"
    );
    let summary = api
        .fleet
        .get_summary(timed(v1::GetSummaryRequest::default()))
        .await?;
    let totals = summary.into_inner().totals.context("no totals")?;
    ensure!(
        (totals.instances, totals.instances_attached) == (4, 0),
        "{totals:?}"
    );
    let instances = gateway.cli(&["instances"]).await?;
    ensure!(instances.stdout.contains("AUTH_FAILED"), "{instances:?}");

    // The right password in the file is noticed.
    fs::write(&wrong, "right\n")?;
    api.wait_condition("wrong", Condition::Attached, SOON)
        .await?;
    fs::set_permissions(&public, Permissions::from_mode(0o600))?;
    api.wait_condition("public", Condition::Attached, SOON)
        .await?;
    ensure!(api.clients(ClientFilter::default()).await?.is_empty());
    Ok(())
}
