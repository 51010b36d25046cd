//! The disk of the state is full, read-only, or slow, under a running gateway or before it starts: who only looks does
//! not notice, who changes something is told why not.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use openvpn_simulator::{ClientSpec, Daemon, Timing};
use ovfleet_proto::v1::{
    Action, ClientFilter, Condition, CreateInstanceRequest, GapCause, GetActionRequest,
    InstanceDefinition, KillClientsRequest, PauseInstanceRequest, StreamEventsRequest,
    stream_events_request::Start,
};
use ovfleet_tests::{
    Api, Disk, Gateway, GatewayConfig, InstanceConfig, ReadOnly,
    api::{all, reason, timed},
    events::EventLog,
    poll_until,
    random::allowed,
};
use tempfile::TempDir;
use tonic::Code;

/// What comes without delay; this covers a busy machine.
const SOON: Duration = Duration::from_secs(15);
/// How long a change may take to be refused.
const REFUSED_MAX: Duration = Duration::from_secs(1);
/// From the end of the fault to the first change that is made.
const RECOVERY_MAX: Duration = Duration::from_secs(5);
/// Most changes that fit where there is no room any more.
const CHANGES_MAX: usize = 200;
/// How long the slow disk takes for one write.
const SLOW: Duration = Duration::from_secs(4);

/// A gateway, a daemon, and a stream of what happens there.
struct Lab {
    gateway: Gateway,
    daemon: Daemon,
    api: Api,
    log: EventLog,
    created: usize,
    _directory: TempDir,
}

impl Lab {
    async fn start(config: GatewayConfig, state: &Path, directory: TempDir) -> Result<Self> {
        let socket = directory.path().join("sim");
        // Who is killed stays: a kill that waits for it is under way until something else ends it.
        let timing = Timing {
            delayed_exit: Duration::from_secs(600),
            ..Timing::default()
        };
        let daemon = Daemon::builder("sim").unix(socket).timing(timing);
        let daemon = daemon.start().await?;
        let gateway = config
            .set("state_dir", state.display().to_string())
            .instance(InstanceConfig::new("sim", &daemon.address().to_string()))
            .start()
            .await?;
        let mut api = Api::connect(&gateway).await?;
        api.wait_attached().await?;
        let log = api.follow().await?;
        Ok(Self {
            gateway,
            daemon,
            api,
            log,
            created: 0,
            _directory: directory,
        })
    }

    /// With the state on a small disk.
    async fn on_disk() -> Result<(Self, Arc<Disk>)> {
        let directory = tempfile::tempdir()?;
        let mount = directory.path().join("disk");
        std::fs::create_dir(&mount)?;
        let disk = Arc::new(Disk::mount(&mount).await?);
        let config = GatewayConfig::new().disk(&disk);
        let mut lab = Self::start(config, &mount.join("state"), directory).await?;
        ensure!(lab.change().await?.is_none(), "there is room");
        Ok((lab, disk))
    }

    /// Starts it again on the state that it left. Its daemon is attached, and the stream begins with what was before.
    async fn start_again(&mut self) -> Result<()> {
        self.gateway.start_again().await?;
        self.api = Api::connect(&self.gateway).await?;
        let attached = self.api.wait_condition("sim", Condition::Attached, SOON);
        attached.await?;
        self.log = self.api.follow_from(Start::Oldest(true)).await?;
        Ok(())
    }

    /// A change, which has to be on disk before it is made; how long it took to be refused, and the reason.
    async fn change(&mut self) -> Result<Option<(Duration, String)>> {
        self.created += 1;
        let request = CreateInstanceRequest {
            instance: Some(InstanceDefinition {
                name: format!("new{}", self.created),
                address: format!("unix:/nonexistent/{}", self.created),
                ..InstanceDefinition::default()
            }),
            ..CreateInstanceRequest::default()
        };
        let asked = Instant::now();
        let Err(status) = self.api.inventory.create_instance(timed(request)).await else {
            return Ok(None);
        };
        ensure_unavailable(&status)?;
        Ok(Some((asked.elapsed(), status.message().to_owned())))
    }

    /// Changes until one is refused; the reason has these words.
    async fn refused(&mut self, words: &[&str]) -> Result<()> {
        for _ in 0..CHANGES_MAX {
            if let Some((took, message)) = self.change().await? {
                eprintln!("refused after {took:?}: {message}");
                ensure!(took <= allowed(REFUSED_MAX), "{took:?}");
                ensure!(words.iter().all(|word| message.contains(word)), "{message}");
                return self.kill_is_refused().await;
            }
        }
        bail!("{CHANGES_MAX} changes were made")
    }

    /// A kill is a change too: nobody could say later whether it was sent.
    async fn kill_is_refused(&mut self) -> Result<()> {
        let kill = KillClientsRequest {
            selector: all(),
            filter: Some(ClientFilter::default()),
            every_client: true,
            ..Default::default()
        };
        let before = self.kills();
        let asked = Instant::now();
        let refused = self.api.kill(kill).await.err();
        let took = asked.elapsed();
        ensure!(took <= allowed(REFUSED_MAX), "{took:?}");
        ensure_unavailable(&refused.context("it was carried out")?)?;
        ensure!(self.kills() == before, "it was carried out");
        Ok(())
    }

    /// How many kills the daemon has received.
    fn kills(&self) -> usize {
        let commands = self.daemon.commands();
        let kills = commands.iter();
        let kills = kills.filter(|line| line.starts_with(b"client-kill"));
        kills.count()
    }

    /// Kills who is there, and waits for the answer or only until it is sent.
    async fn kill(&mut self, id: &str, is_answered: bool) -> Result<()> {
        let request = KillClientsRequest {
            selector: all(),
            filter: Some(ClientFilter::default()),
            every_client: true,
            wait: !is_answered,
            request_id: id.to_owned(),
            ..Default::default()
        };
        let mut killer = self.api.clone();
        let answer = tokio::spawn(async move { killer.kill(request).await });
        if is_answered {
            answer.await??;
            return Ok(());
        }
        poll_until("the kill to be sent", SOON, async || {
            Ok((self.kills() > 0).then_some(()))
        })
        .await
    }

    /// What is said of an action that is over.
    async fn action(&mut self, id: &str) -> Result<Action> {
        let request = GetActionRequest {
            request_id: id.to_owned(),
        };
        let found = self.api.control.get_action(timed(request)).await?;
        let action = found.into_inner().action.context("no action")?;
        ensure!(action.finished_time.is_some(), "{action:#?}");
        Ok(action)
    }

    /// A client connects, its event comes, and lists answer.
    async fn looks(&mut self) -> Result<()> {
        let asked = Instant::now();
        let cid = self.daemon.connect(ClientSpec::new("alice")).await?;
        self.log
            .wait_event("the client", SOON, |event| {
                let client = event
                    .client
                    .as_ref()
                    .and_then(|client| client.r#ref.as_ref());
                event.kind == "client.established" && client.is_some_and(|r| r.cid == cid)
            })
            .await?;
        self.api.clients(ClientFilter::default()).await?;
        // Who waits for the slow disk is here later.
        let took = asked.elapsed();
        ensure!(took <= allowed(REFUSED_MAX), "{took:?}");
        Ok(())
    }

    async fn trouble(&self) -> Result<Option<String>> {
        let (_, metrics) = self.gateway.http_get("/metrics").await?;
        let found = metrics.lines().find_map(|line| {
            let rest = line.strip_prefix("ovfleet_state_trouble{cause=\"")?;
            let (cause, value) = rest.split_once("\"} ")?;
            (value == "1").then(|| cause.to_owned())
        });
        Ok(found)
    }

    /// Waits until changes are made again, since the fault was over.
    async fn recovers(&mut self, over: Instant) -> Result<()> {
        let mut last = None;
        let made = poll_until("a change to be made", SOON, async || {
            last = self.change().await?;
            Ok(last.is_none().then_some(()))
        });
        made.await.with_context(|| format!("{last:?}"))?;
        let took = over.elapsed();
        eprintln!("changes are made {took:?} after the fault");
        ensure!(took <= allowed(RECOVERY_MAX), "{took:?}");
        ensure!(self.trouble().await?.is_none());
        self.looks().await
    }
}

fn ensure_unavailable(status: &tonic::Status) -> Result<()> {
    ensure!(status.code() == Code::Unavailable, "{status:?}");
    let reason = reason(status);
    ensure!(reason.as_deref() == Some("STATE_UNAVAILABLE"), "{status:?}");
    Ok(())
}

/// A full disk refuses changes with its reason, and nothing else; when there is room again they are made again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_changes_and_nothing_else() -> Result<()> {
    let (mut lab, disk) = Lab::on_disk().await?;
    disk.fill()?;
    lab.refused(&["full", "make room"]).await?;
    lab.looks().await?;
    ensure!(lab.trouble().await?.as_deref() == Some("full"));
    disk.make_room()?;
    lab.recovers(Instant::now()).await
}

/// A disk that does not answer in time: changes are refused in time, and nobody else waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_disk_refuses_changes_and_nothing_else() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let state = directory.path().join("state");
    let slow = format!("state.write=delay:{}s@30*1", SLOW.as_secs());
    let config = GatewayConfig::new().environment("OVFLEET_FAILPOINT", &slow);
    let mut lab = Lab::start(config, &state, directory).await?;
    lab.refused(&["does not answer within"]).await?;
    // It is over then at the earliest: what was refused waited no longer than this.
    let over = Instant::now() + SLOW - 2 * REFUSED_MAX;
    lab.looks().await?;
    ensure!(lab.trouble().await?.as_deref() == Some("slow"));
    lab.recovers(over).await
}

/// A file system that becomes read-only, as after an error of its disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_disk_refuses_changes_and_nothing_else() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let state = directory.path().join("state");
    let mut lab = Lab::start(GatewayConfig::new(), &state, directory).await?;
    ensure!(lab.change().await?.is_none(), "it is writable");
    let files = ["state.db", "state.db-wal", "state.db-shm", "probe"];
    let files = files.map(|file| state.join(file));
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let read_only = ReadOnly::begin(&lab.gateway, &files).await?;
    lab.refused(&["read-only", "make it writable"]).await?;
    lab.looks().await?;
    ensure!(lab.trouble().await?.as_deref() == Some("read_only"));
    read_only.end().await?;
    lab.recovers(Instant::now()).await
}

/// What a gateway that begins on a disk that takes nothing has to be able to do, until it takes something again.
async fn begins_without_writing(
    orderly: bool,
    break_it: impl Fn(&Disk) -> Result<()>,
    mend_it: impl Fn(&Disk) -> Result<()>,
    words: &[&str],
    trouble: &str,
) -> Result<()> {
    let (mut lab, disk) = Lab::on_disk().await?;
    let paused = PauseInstanceRequest {
        name: "new1".to_owned(),
        ..Default::default()
    };
    lab.api.inventory.pause_instance(timed(paused)).await?;
    lab.looks().await?;
    lab.kill("before", orderly).await?;
    if orderly {
        ensure!(lab.gateway.stop().await?.success());
    } else {
        lab.gateway.kill();
    }
    break_it(&disk)?;
    lab.start_again().await?;
    // What was before the start is there: actions, instances, and events.
    let action = lab.action("before").await?;
    let instances = lab.api.instances().await?;
    let new = instances.iter().find_map(|instance| {
        let spec = instance.spec.as_ref()?;
        (spec.name == "new1").then_some(spec.paused)
    });
    ensure!(new == Some(true), "{instances:#?}");
    let first = lab.log.wait_event("an event of before", SOON, |event| {
        event.kind == "client.established"
    });
    let first = first.await?.0.sequence;
    lab.refused(words).await?;
    lab.looks().await?;
    ensure!(lab.trouble().await?.as_deref() == Some(trouble));

    mend_it(&disk)?;
    lab.recovers(Instant::now()).await?;
    ensure!(lab.action("before").await? == action);
    // It is as if it had begun in order: the same events, what was missed is told, and the next one knows all.
    let (told, events) = history(&mut lab).await?;
    ensure!(events.first() == Some(&first), "{events:?}, not {first}");
    ensure!(told == usize::from(!orderly), "{told} restarts told");
    ensure!(lab.gateway.stop().await?.success());
    lab.start_again().await?;
    let (again, after) = history(&mut lab).await?;
    ensure!(after.starts_with(&events), "{after:?}, not {events:?}");
    ensure!(again == told, "{again} restarts told");
    ensure!(lab.action("before").await? == action);
    ensure!(lab.change().await?.is_none(), "it is writable");
    Ok(())
}

/// How many restarts without an end are told of, and the clients that came, in order of sequence.
async fn history(lab: &mut Lab) -> Result<(usize, Vec<u64>)> {
    let request = StreamEventsRequest {
        start: Some(Start::Oldest(true)),
        follow: Some(false),
        kinds: vec!["client.established".to_owned()],
        ..Default::default()
    };
    let log = lab.api.follow_request(request).await?;
    poll_until("the end", SOON, async || Ok(log.end())).await??;
    let received = log.received();
    let gaps = received.iter().filter_map(|one| one.item.gap());
    let told = gaps.filter(|gap| gap.cause() == GapCause::GatewayRestarted);
    let events = log.events();
    Ok((
        told.count(),
        events.iter().map(|event| event.sequence).collect(),
    ))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_begins_on_a_full_disk() -> Result<()> {
    for orderly in [true, false] {
        let words = ["full", "make room"];
        begins_without_writing(orderly, Disk::fill, Disk::make_room, &words, "full").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_begins_on_a_read_only_disk() -> Result<()> {
    for orderly in [true, false] {
        let (ro, rw) = (
            |it: &Disk| it.set_read_only(true),
            |it: &Disk| it.set_read_only(false),
        );
        let words = ["read-only", "make it writable"];
        begins_without_writing(orderly, ro, rw, &words, "read_only").await?;
    }
    Ok(())
}

/// Where there is nothing to look at, it says so instead.
#[tokio::test]
async fn it_begins_no_new_state_on_a_read_only_disk() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let disk = Arc::new(Disk::mount(directory.path()).await?);
    disk.set_read_only(true)?;
    let state = directory.path().join("state").display().to_string();
    let started = GatewayConfig::new().disk(&disk).set("state_dir", &*state);
    let Err(error) = started.start().await else {
        bail!("it started");
    };
    let said = format!("{error:#}");
    let named = said.contains(&state) && said.contains("Read-only file system");
    ensure!(named, "{said}");
    Ok(())
}
