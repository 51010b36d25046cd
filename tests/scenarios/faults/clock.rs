//! Somebody sets the clock: nothing is late for that, nothing comes out of order, nothing is done twice.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use openvpn_simulator::{ClientSpec, Daemon, RestartSignal, Timing};
use ovfleet_proto::v1::{
    ClientFilter, Condition, Event, KillClientsRequest, KillMode, Outcome, SetMuteRequest,
    StreamEventsRequest, event::Detail, stream_events_request::Start,
};
use ovfleet_tests::{
    Api, GatewayConfig, InstanceConfig,
    api::{all, by_name, timed},
    events::{EventLog, Item},
    poll_until,
};

/// What comes without delay; this covers a busy machine.
const SOON: Duration = Duration::from_secs(15);
const DAY: i64 = 24 * 60 * 60;
/// For what passes while it is looked at, in seconds.
const TOLERANCE: i64 = 60;

/// The clock of one process, apart from that of the machine; time that only passes is left alone.
struct Clock(PathBuf);

impl Clock {
    fn of(config: GatewayConfig, directory: &Path) -> Result<(Self, GatewayConfig)> {
        let clock = Self(directory.join("clock"));
        clock.set("+0")?;
        let mut found = fs::read_dir("/usr/lib")?
            .filter_map(|entry| Some(entry.ok()?.path().join("faketime/libfaketimeMT.so.1")))
            .filter(|library| library.exists());
        let library = found.next().context(
            "libfaketime is missing: run `scripts/setup openvpn`, or `apt-get install faketime`",
        )?;
        let config = config
            .environment("LD_PRELOAD", &library.display().to_string())
            .environment("FAKETIME_TIMESTAMP_FILE", &clock.0.display().to_string())
            .environment("FAKETIME_CACHE_DURATION", "1")
            .environment("FAKETIME_DISABLE_SHM", "1")
            .environment("NO_FAKE_STAT", "1")
            .environment("DONT_FAKE_MONOTONIC", "1")
            .environment("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        Ok((clock, config))
    }

    /// Sets it to the machine's plus `offset`, such as `+1d`.
    fn set(&self, offset: &str) -> Result<()> {
        // At once, so that it is never read half.
        let new = self.0.with_extension("new");
        fs::write(&new, format!("{offset}\n"))?;
        Ok(fs::rename(new, &self.0)?)
    }
}

/// How far an event's time is from the machine's, in seconds.
fn offset(event: &Event) -> Result<i64> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let observed = event.observed_time.context("no time")?.seconds;
    Ok(observed - i64::try_from(now.as_secs())?)
}

/// A client connects, and its event comes at once, with the time of a clock that is `days` off.
async fn sees(daemon: &Daemon, log: &EventLog, days: i64, name: &str) -> Result<()> {
    let mut number = 0;
    poll_until("the clock to be set", SOON, async || {
        number += 1;
        let cid = daemon
            .connect(ClientSpec::new(format!("{name}{number}")))
            .await?;
        let asked = Instant::now();
        let (event, _) = log
            .wait_event("the client", SOON, |event| {
                let client = event
                    .client
                    .as_ref()
                    .and_then(|client| client.r#ref.as_ref());
                event.kind == "client.established" && client.is_some_and(|r| r.cid == cid)
            })
            .await?;
        ensure!(asked.elapsed() < SOON / 3, "after {:?}", asked.elapsed());
        // The process looks at the file once a second.
        Ok(((offset(&event)? - days * DAY).abs() < TOLERANCE).then_some(()))
    })
    .await
}

fn kill(name: &str, id: &str) -> KillClientsRequest {
    KillClientsRequest {
        selector: all(),
        filter: Some(by_name(name)),
        mode: KillMode::Halt.into(),
        wait: true,
        request_id: id.to_owned(),
        ..Default::default()
    }
}

fn mute(id: &str) -> SetMuteRequest {
    SetMuteRequest {
        instance: "sim".to_owned(),
        lines: 7,
        request_id: id.to_owned(),
    }
}

/// How many commands of that beginning a daemon has received.
fn received(daemon: &Daemon, beginning: &str) -> usize {
    let commands = daemon.commands();
    let found = commands
        .iter()
        .filter(|command| command.starts_with(beginning.as_bytes()));
    found.count()
}

/// Forward by a day, back by two, and home again, while the gateway does everything that it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_disturbs_nothing() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let timing = Timing {
        delayed_exit: Duration::from_secs(2),
        ..Timing::default()
    };
    let daemon = Daemon::builder("sim")
        .timing(timing)
        .unix(directory.path().join("sim"))
        .start()
        .await?;
    let instance =
        InstanceConfig::new("sim", &daemon.address().to_string()).set("status_interval", "1s");
    let (clock, config) = Clock::of(GatewayConfig::new().instance(instance), directory.path())?;
    let gateway = config.start().await?;
    let mut api = Api::connect(&gateway).await?;
    api.wait_attached().await?;
    let log = api.follow().await?;
    sees(&daemon, &log, 0, "before").await?;
    let first = api.status("sim").await?;
    let killed_first = api.kill(kill("before1", "first")).await?;
    ensure!(killed_first.results.len() == 1, "{killed_first:#?}");
    api.instance.set_mute(timed(mute("first"))).await?;

    let mut generation = first.generation.parse::<u64>()?;
    for (days, setting) in [(1, "+1d"), (-1, "-1d"), (0, "+0")] {
        // It is killed before the clock is set, and gone some seconds after.
        let name = format!("across{days}");
        daemon.connect(ClientSpec::new(name.clone())).await?;
        let mut killer = api.clone();
        let request = kill(&name, &name);
        let across = tokio::spawn(async move { killer.kill(request).await });
        log.wait_event("the kill", SOON, |event| {
            let Some(Detail::Action(progress)) = &event.detail else {
                return false;
            };
            let id = progress.action.as_ref().map(|action| &action.request_id);
            event.kind == "action.started" && id == Some(&name)
        })
        .await?;
        clock.set(setting)?;
        sees(&daemon, &log, days, &format!("day{days}n")).await?;
        let killed = across.await??;
        let outcomes: Vec<_> = killed
            .results
            .iter()
            .map(|result| result.outcome())
            .collect();
        ensure!(outcomes == [Outcome::Confirmed], "{days}: {killed:#?}");

        // What is due by time that passes is due as before.
        let before = received(&daemon, "status");
        poll_until("two more statuses", SOON, async || {
            Ok((received(&daemon, "status") >= before + 2).then_some(()))
        })
        .await
        .with_context(|| format!("{days} days off"))?;
        api.clients(ClientFilter::default()).await?;

        // The same request is not carried out again.
        let again = api.kill(kill("before1", "first")).await?;
        ensure!(again == killed_first, "{days}: {again:#?}");
        api.instance.set_mute(timed(mute(&name))).await?;
        api.instance.set_mute(timed(mute("first"))).await?;

        // A new run of client numbers has a greater name than any before.
        daemon.restart(RestartSignal::Sigusr1).await?;
        let new = poll_until("the new generation", SOON, async || {
            let now = api.status("sim").await?;
            let new = now.generation.parse::<u64>()?;
            let there = now.condition() == Condition::Attached && now.state == "CONNECTED";
            Ok((new != generation && there).then_some(new))
        })
        .await?;
        ensure!(new > generation, "{days}: {new} after {generation}");
        generation = new;
    }

    ensure!(received(&daemon, "mute ") == 4, "{:?}", daemon.commands());
    let now = api.status("sim").await?;
    ensure!(now.sessions == first.sessions, "{now:#?}");
    let events = log.events();
    let detached = events
        .iter()
        .filter(|event| event.kind == "instance.detached");
    ensure!(detached.count() == 0, "{events:#?}");
    let order: Vec<u64> = events.iter().map(|event| event.sequence).collect();
    ensure!(order.is_sorted_by(|a, b| a < b), "{order:?}");
    let gaps = log.received();
    ensure!(
        !gaps
            .iter()
            .any(|received| matches!(received.item, Item::Gap(_))),
        "{gaps:#?}"
    );
    // Whoever comes back gets the same, in the same order, or is told what is gone.
    let again = api.follow_from(Start::Oldest(true)).await?;
    let last = *order.last().context("no events")?;
    again
        .wait_event("the last event", SOON, |event| event.sequence == last)
        .await?;
    let again: Vec<u64> = again.events().iter().map(|event| event.sequence).collect();
    ensure!(again.is_sorted_by(|a, b| a < b), "{again:?}");
    Ok(())
}

/// Fails if somebody who sets the clock makes the gateway forget what it promised to keep: then a request is carried
/// out twice, and events are gone before their time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_makes_nothing_on_disk_old() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("sim");
    let daemon = Daemon::builder("sim").unix(socket).start().await?;
    let mut journal = toml::Table::new();
    journal.insert("disk_age".to_owned(), "1d".into());
    let config = GatewayConfig::new()
        .set("state_dir", "state")
        .set("journal", journal)
        .instance(InstanceConfig::new("sim", &daemon.address().to_string()));
    let (clock, config) = Clock::of(config, directory.path())?;
    let mut gateway = config.start().await?;
    let mut api = Api::connect(&gateway).await?;
    api.wait_attached().await?;
    let mut log = api.follow().await?;
    sees(&daemon, &log, 0, "before").await?;

    let mut killed = Vec::new();
    for (days, setting) in [(0, "+0"), (2, "+2d"), (-2, "-2d"), (0, "+0"), (60, "+60d")] {
        clock.set(setting)?;
        let step = killed.len();
        sees(&daemon, &log, days, &format!("step{step}n")).await?;
        let (name, id) = (format!("step{step}n1"), format!("kill{step}"));
        let report = api.kill(kill(&name, &id)).await?;
        ensure!(report.results.len() == 1, "{report:#?}");
        api.instance.set_mute(timed(mute(&id))).await?;
        killed.push((name, id, report));
        let sent = (received(&daemon, "client-kill"), received(&daemon, "mute "));

        if step % 2 == 0 {
            gateway.kill();
        } else {
            ensure!(gateway.stop().await?.success());
        }
        gateway.start_again().await?;
        api = Api::connect(&gateway).await?;
        api.wait_attached().await?;
        for (name, id, report) in &killed {
            let again = api.kill(kill(name, id)).await?;
            ensure!(again == *report, "{setting}: {again:#?}, not {report:#?}");
            api.instance.set_mute(timed(mute(id))).await?;
        }
        let now = (received(&daemon, "client-kill"), received(&daemon, "mute "));
        ensure!(
            now == sent,
            "{setting}: {now:?} commands, and {sent:?} before"
        );
        let everything = StreamEventsRequest {
            start: Some(Start::Oldest(true)),
            follow: Some(false),
            kinds: vec!["client.established".to_owned()],
            ..Default::default()
        };
        let kept = api.follow_request(everything).await?;
        poll_until("the end", SOON, async || Ok(kept.end())).await??;
        let first = kept.events().into_iter().find_map(|event| event.client);
        let first = first.context("no events")?.common_name;
        ensure!(first == "before1", "{setting}: it begins with {first}");
        log = api.follow().await?;
    }
    Ok(())
}
