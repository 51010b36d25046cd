//! What survives a restart with a state directory: events, actions, generations.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use openvpn_simulator::{ClientSpec, Daemon};
use ovfleet_proto::v1::{
    self, Durability, GapCause, GetActionRequest, KillClientsRequest, ListActionsRequest, Outcome,
    StreamEventsRequest, action, stream_events_request::Start,
};
use ovfleet_tests::{
    Api, Client, Gateway, GatewayConfig, InstanceConfig, Server,
    api::{all, by_name, by_refs, reason, timed},
    poll_until,
};
use tempfile::TempDir;
use tonic::Code;

/// A simulated daemon says at once what it has to say.
const SOON: Duration = Duration::from_secs(20);

struct Lab {
    daemon: Daemon,
    gateway: Gateway,
    api: Api,
    _directory: TempDir,
}

impl Lab {
    async fn start(config: GatewayConfig) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let socket = directory.path().join("sim");
        let daemon = Daemon::builder("sim").unix(socket).start().await?;
        let instance = InstanceConfig::new("sim", &daemon.address().to_string());
        let gateway = config
            .set("state_dir", "state")
            .instance(instance)
            .start()
            .await?;
        let mut api = Api::connect(&gateway).await?;
        api.wait_attached().await?;
        Ok(Self {
            daemon,
            gateway,
            api,
            _directory: directory,
        })
    }

    async fn start_again(&mut self) -> Result<()> {
        self.gateway.start_again().await?;
        self.api = Api::connect(&self.gateway).await?;
        self.api.wait_attached().await
    }

    /// Waits until everything that has happened is on disk.
    async fn wait_written(&self) -> Result<()> {
        let written = poll_until("the disk to have everything", SOON, async || {
            let (_, metrics) = self.gateway.http_get("/metrics").await?;
            let lag = metrics
                .lines()
                .find_map(|line| line.strip_prefix("ovfleet_state_journal_lag_seconds "));
            Ok((lag.context("no lag")?.parse::<f64>()? == 0.0).then_some(()))
        });
        written.await
    }

    async fn connect(&self, name: &str) -> Result<u64> {
        Ok(self.daemon.connect(ClientSpec::new(name)).await?)
    }

    /// Everything of clients behind a place, to the present end: names in order, and the causes of gaps.
    async fn since(&mut self, start: Start) -> Result<(Vec<String>, Vec<GapCause>)> {
        let request = StreamEventsRequest {
            start: Some(start),
            follow: Some(false),
            kinds: vec!["client.established".to_owned()],
            ..Default::default()
        };
        let log = self.api.follow_request(request).await?;
        poll_until("the end", SOON, async || Ok(log.end())).await??;
        let name = |event: &v1::Event| event.client.as_ref().map(|it| it.common_name.clone());
        let names = log.events().iter().filter_map(name).collect();
        let received = log.received();
        let gaps = received.iter().filter_map(|one| one.item.gap());
        Ok((names, gaps.map(v1::Gap::cause).collect()))
    }
}

fn state_dir(gateway: &Gateway) -> PathBuf {
    gateway.config_path().with_file_name("state")
}

/// Fails if a cursor from before an orderly end misses or doubles anything, if one from before a crash does so without
/// a word, or if a gap is told where nothing is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_goes_on_where_it_was_after_a_restart() -> Result<()> {
    let mut lab = Lab::start(GatewayConfig::new()).await?;
    lab.connect("a").await?;
    lab.connect("b").await?;
    let log = lab.api.follow_from(Start::Oldest(true)).await?;
    let (_, cursor) = log
        .wait_event("the second client", SOON, |event| {
            event.kind == "client.established"
                && event
                    .client
                    .as_ref()
                    .is_some_and(|it| it.common_name == "b")
        })
        .await
        .map(|(event, _)| (event, log.cursor()))?;
    let cursor = cursor?;
    lab.connect("c").await?;
    log.wait_event("the third client", SOON, |event| {
        event
            .client
            .as_ref()
            .is_some_and(|it| it.common_name == "c")
    })
    .await?;

    ensure!(lab.gateway.stop().await?.success());
    lab.start_again().await?;
    lab.connect("d").await?;
    lab.api
        .wait_clients(v1::ClientFilter::default(), 4, SOON)
        .await?;
    let (names, gaps) = lab.since(Start::Cursor(cursor.clone())).await?;
    // Those that were found there again are told again, by the run that found them.
    ensure!(names.first().is_some_and(|name| name == "c"), "{names:?}");
    ensure!(names.last().is_some_and(|name| name == "d"), "{names:?}");
    ensure!(gaps == [GapCause::Unobserved], "{gaps:?}");

    lab.wait_written().await?;
    lab.gateway.kill();
    lab.start_again().await?;
    lab.connect("e").await?;
    lab.api
        .wait_clients(v1::ClientFilter::default(), 5, SOON)
        .await?;
    let (after, gaps) = lab.since(Start::Cursor(cursor)).await?;
    ensure!(after.starts_with(&names), "{after:?} after {names:?}");
    ensure!(after.last().is_some_and(|name| name == "e"), "{after:?}");
    let expected = [
        GapCause::Unobserved,
        GapCause::GatewayRestarted,
        GapCause::Unobserved,
    ];
    ensure!(gaps == expected, "{gaps:?}");
    let (oldest, gaps) = lab.since(Start::Oldest(true)).await?;
    ensure!(
        oldest[..2] == ["a", "b"] && oldest.ends_with(&after),
        "{oldest:?}"
    );
    ensure!(gaps == expected, "{gaps:?}");
    Ok(())
}

/// Fails if a stream that needs what memory has forgotten misses, doubles or reorders anything where the disk ends and
/// the memory begins, or tells a gap where the disk has it all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_memory_forgot_comes_from_disk() -> Result<()> {
    let mut journal = toml::Table::new();
    journal.insert("events".to_owned(), 4_000.into());
    let mut lab = Lab::start(GatewayConfig::new().set("journal", journal)).await?;
    let summary = timed(v1::GetSummaryRequest::default());
    let summary = lab.api.fleet.get_summary(summary).await?.into_inner();
    let cursor = summary.as_of.context("no as_of")?.cursor;
    let follow = |start| StreamEventsRequest {
        start: Some(start),
        follow: Some(false),
        kinds: vec!["client.established".to_owned()],
        ..Default::default()
    };
    // No faster than the disk: what that is late for is a gap.
    let live = lab.api.follow_from(Start::Cursor(cursor.clone())).await?;
    let mut reports = Vec::new();
    for _ in 0..20 {
        let report = lab.daemon.burst(100).await?;
        let last = report.first_cid + 99;
        live.wait_event("the end of a burst", SOON, |event| {
            event.kind == "client.disconnected" && cid(event) == Some(last)
        })
        .await?;
        reports.push(report);
        lab.wait_written().await?;
    }
    let cids = reports
        .iter()
        .flat_map(|report| report.first_cid..report.first_cid + 100);
    for what in ["once", "and again"] {
        let log = lab
            .api
            .follow_request(follow(Start::Cursor(cursor.clone())))
            .await?;
        poll_until("the end", SOON * 3, async || Ok(log.end())).await??;
        let gaps = log
            .received()
            .iter()
            .filter_map(|one| one.item.gap().cloned())
            .count();
        ensure!(gaps == 0, "{what}: {gaps} gaps");
        let events = log.events();
        let found: Vec<_> = events.iter().filter_map(cid).collect();
        ensure!(
            found.iter().copied().eq(cids.clone()),
            "{what}: {} events",
            found.len()
        );
        ensure!(
            events.is_sorted_by_key(|event| event.sequence),
            "{what}: out of order"
        );
    }
    Ok(())
}

fn cid(event: &v1::Event) -> Option<u64> {
    Some(event.client.as_ref()?.r#ref.as_ref()?.cid)
}

fn kill_of(name: &str, request_id: &str) -> KillClientsRequest {
    KillClientsRequest {
        selector: all(),
        filter: Some(by_name(name)),
        request_id: request_id.to_owned(),
        ..Default::default()
    }
}

/// Fails if an action is forgotten, or a repetition of it hits anybody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_action_is_known_after_a_restart_and_not_repeated() -> Result<()> {
    let mut lab = Lab::start(GatewayConfig::new()).await?;
    lab.connect("alice").await?;
    let first = lab.api.kill(kill_of("alice", "once")).await?;
    ensure!(first.durability() == Durability::Disk, "{first:#?}");
    ensure!(first.results.len() == 1, "{first:#?}");
    let verb = v1::SetVerbRequest {
        instance: "sim".to_owned(),
        level: 4,
        request_id: "verb".to_owned(),
        ..Default::default()
    };
    lab.api.instance.set_verb(timed(verb.clone())).await?;
    lab.gateway.kill();
    lab.start_again().await?;
    lab.connect("alice").await?;

    let again = lab.api.kill(kill_of("alice", "once")).await?;
    ensure!(again == first, "{again:#?}, not {first:#?}");
    let status = lab.api.kill(kill_of("bob", "once")).await.err();
    let status = status.context("another request under the same id")?;
    ensure!(status.code() == Code::AlreadyExists, "{status:?}");
    lab.api.instance.set_verb(timed(verb.clone())).await?;
    let other = v1::SetVerbRequest { level: 5, ..verb };
    let status = lab.api.instance.set_verb(timed(other)).await.err();
    let status = status.context("another level under the same id")?;
    ensure!(
        reason(&status).as_deref() == Some("REQUEST_ID_REUSED"),
        "{status:?}"
    );
    let commands = lab.daemon.commands();
    let count = |prefix: &[u8]| {
        commands
            .iter()
            .filter(|line| line.starts_with(prefix))
            .count()
    };
    ensure!(
        count(b"client-kill") == 1 && count(b"verb 4") == 1,
        "{commands:?}"
    );

    let second = lab.api.kill(kill_of("alice", "twice")).await?;
    ensure!(second.results.len() == 1, "{second:#?}");
    let mut listed = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListActionsRequest {
            page_size: 1,
            page_token,
        };
        let page = lab
            .api
            .control
            .list_actions(timed(request))
            .await?
            .into_inner();
        listed.extend(page.actions.into_iter().map(|action| action.request_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    ensure!(listed == ["twice", "once"], "{listed:?}");
    Ok(())
}

/// Fails if an action that a crash cut off is sent again, or passes for something that it is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_action_cut_off_by_a_crash_is_finished_and_never_sent_again() -> Result<()> {
    for (point, sent, settled) in [
        ("action.after_intent", 0, Outcome::NotSent),
        ("action.after_send", 1, Outcome::Unknown),
        ("action.before_outcome", 1, Outcome::Unknown),
    ] {
        let armed = format!("{point}=kill");
        let config = GatewayConfig::new().environment("OVFLEET_FAILPOINT", &armed);
        let mut lab = Lab::start(config).await?;
        lab.connect("alice").await?;
        lab.api
            .wait_clients(v1::ClientFilter::default(), 1, SOON)
            .await?;
        lab.api
            .kill(kill_of("alice", "cut"))
            .await
            .err()
            .context("it died")?;
        lab.gateway.wait_ended(SOON).await?;
        lab.start_again().await?;

        let request = GetActionRequest {
            request_id: "cut".to_owned(),
        };
        let found = lab
            .api
            .control
            .get_action(timed(request))
            .await?
            .into_inner();
        let found = found.action.context("no action")?;
        ensure!(
            found.settled() == settled && found.finished_time.is_some(),
            "{point}: {found:#?}"
        );
        let Some(action::Result::KillClients(report)) = &found.result else {
            anyhow::bail!("{point}: {found:#?}");
        };
        let repeated = lab.api.kill(kill_of("alice", "cut")).await;
        if settled == Outcome::NotSent {
            ensure!(report.results.is_empty(), "{point}: {report:#?}");
            ensure!(repeated.is_err_and(|status| status.code() == Code::Aborted));
        } else {
            let outcomes: Vec<_> = report.results.iter().map(v1::KillResult::outcome).collect();
            let known = [Outcome::Unknown, Outcome::Accepted];
            ensure!(
                outcomes.len() == 1 && known.contains(&outcomes[0]),
                "{point}: {report:#?}"
            );
            ensure!(
                repeated.is_ok_and(|repeated| repeated == *report),
                "{point}"
            );
        }
        let commands = lab.daemon.commands();
        let kills = commands
            .iter()
            .filter(|line| line.starts_with(b"client-kill"))
            .count();
        ensure!(kills == sent, "{point}: {kills} kills sent");
    }
    Ok(())
}

/// A daemon that did not restart keeps its generation, so that a reference from before hits exactly that client; one
/// that did gets a greater one.
#[tokio::test]
async fn a_generation_lasts_as_long_as_its_daemon() -> Result<()> {
    let mut servers = [Server::builder("lasting").start().await?];
    let mut alice = Client::builder(&servers[0], "alice").connect().await?;
    let config = GatewayConfig::of(&servers).set("state_dir", "state");
    let mut gateway = config.start().await?;
    let mut api = Api::connect(&gateway).await?;
    api.wait_attached().await?;
    let rows = api
        .wait_clients(v1::ClientFilter::default(), 1, SOON)
        .await?;
    let before = rows[0].r#ref.clone().context("no ref")?;
    for crash in [true, false] {
        if crash {
            gateway.kill();
        } else {
            ensure!(gateway.stop().await?.success());
        }
        gateway.start_again().await?;
        api = Api::connect(&gateway).await?;
        api.wait_attached().await?;
        let status = api.status("lasting").await?;
        ensure!(
            status.generation == before.generation,
            "{status:#?}, not {before:#?}"
        );
    }
    let kill = KillClientsRequest {
        selector: all(),
        filter: Some(by_refs(vec![before.clone()])),
        wait: true,
        ..Default::default()
    };
    let report = api.kill(kill.clone()).await?;
    ensure!(
        report.results[0].outcome() == Outcome::Confirmed,
        "{report:#?}"
    );
    alice.wait_connected(2).await?;

    gateway.kill();
    servers[0].kill();
    servers[0].start_again().await?;
    gateway.start_again().await?;
    api = Api::connect(&gateway).await?;
    api.wait_attached().await?;
    let status = api.status("lasting").await?;
    let number = |generation: &str| generation.parse::<u64>();
    ensure!(
        number(&status.generation)? > number(&before.generation)?,
        "{status:#?}"
    );
    let report = api.kill(kill).await?;
    ensure!(report.results[0].outcome() == Outcome::Stale, "{report:#?}");
    Ok(())
}

/// Fails if a damaged file stops the gateway or vanishes, or if one of a later version is touched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_state_is_set_aside_and_a_newer_one_refused() -> Result<()> {
    let mut lab = Lab::start(GatewayConfig::new()).await?;
    lab.connect("before").await?;
    lab.api
        .wait_clients(v1::ClientFilter::default(), 1, SOON)
        .await?;
    let summary = lab
        .api
        .fleet
        .get_summary(timed(v1::GetSummaryRequest::default()))
        .await?;
    let cursor = summary.into_inner().as_of.context("no as_of")?.cursor;
    ensure!(lab.gateway.stop().await?.success());
    let path = state_dir(&lab.gateway).join("state.db");
    let mut bytes = fs::read(&path)?;
    let middle = bytes.len() / 2;
    bytes[100..middle].fill(0xa5);
    fs::write(&path, &bytes)?;
    lab.start_again().await?;
    let mut aside = fs::read_dir(state_dir(&lab.gateway))?
        .filter_map(Result::ok)
        .filter(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .starts_with("state.db.corrupt-")
        });
    let aside = aside.next().context("it is not set aside")?;
    ensure!(fs::read(aside.path())? == bytes, "it is not the same file");
    ensure!(
        lab.gateway.log().contains("the state was damaged"),
        "{}",
        lab.gateway.log()
    );
    let (_, gaps) = lab.since(Start::Cursor(cursor)).await?;
    ensure!(gaps.first() == Some(&GapCause::JournalReplaced), "{gaps:?}");

    ensure!(lab.gateway.stop().await?.success());
    // The version of the schema, in the header.
    let mut bytes = fs::read(&path)?;
    bytes[60..64].copy_from_slice(&999_u32.to_be_bytes());
    fs::write(&path, &bytes)?;
    ensure!(lab.gateway.start_again().await.is_err());
    ensure!(
        lab.gateway.log().contains("written by a newer ovfleet"),
        "{}",
        lab.gateway.log()
    );
    ensure!(fs::read(&path)? == bytes, "it was touched");
    Ok(())
}
