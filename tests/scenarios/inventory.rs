//! Instances that are created, changed, paused and deleted while the gateway runs.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use openvpn_simulator::Daemon;
use ovfleet_proto::v1::{
    self, Condition, CreateInstanceRequest, DeleteInstanceRequest, Durability, InstanceDefinition,
    InstanceSource, PauseInstanceRequest, ReachabilityResult, ResumeInstanceRequest,
    UpdateInstanceRequest,
};
use ovfleet_tests::{
    Api, Client, GatewayConfig, InstanceConfig, Server, TcpListener,
    api::{by_name, reason, timed},
    poll_until,
};
use tempfile::TempDir;
use tokio::{io::AsyncReadExt as _, net::UnixStream, time::timeout};
use tonic::{Code, Status, transport::Endpoint};
use tonic_types::StatusExt as _;

/// A session begins within milliseconds; the machine may be busy.
const SOON: Duration = Duration::from_secs(10);

struct Lab {
    directory: TempDir,
}

impl Lab {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        Ok(Self { directory })
    }

    async fn daemon(&self, name: &str) -> Result<Daemon> {
        let path = self.directory.path().join(name);
        Ok(Daemon::builder(name).unix(path).start().await?)
    }
}

fn definition(name: &str, daemon: &Daemon) -> InstanceDefinition {
    InstanceDefinition {
        name: name.to_owned(),
        address: daemon.address().to_string(),
        ..InstanceDefinition::default()
    }
}

fn create(instance: InstanceDefinition) -> CreateInstanceRequest {
    CreateInstanceRequest {
        instance: Some(instance),
        ..CreateInstanceRequest::default()
    }
}

async fn refused(api: &mut Api, request: CreateInstanceRequest) -> Result<Status> {
    let answer = api.inventory.create_instance(timed(request)).await;
    answer.err().context("it was created")
}

fn fields(status: &Status) -> Vec<String> {
    let violations = status.get_details_bad_request().into_iter();
    let violations = violations.flat_map(|bad| bad.field_violations);
    violations.map(|violation| violation.field).collect()
}

/// An instance that only a restart can add or change costs every session of the gateway.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_are_created_changed_and_deleted() -> Result<()> {
    let lab = Lab::new()?;
    let (fixed, daemon) = (lab.daemon("fixed").await?, lab.daemon("eu1").await?);
    let gateway = GatewayConfig::new()
        .instance(InstanceConfig::new("fixed", &fixed.address().to_string()))
        .listen_tcp(TcpListener::ReadOnly)
        .start()
        .await?;
    let mut api = Api::connect(&gateway).await?;
    api.wait_attached().await?;
    let log = api.follow().await?;

    // Looked at, and tried out: nothing is there afterwards.
    let trial = CreateInstanceRequest {
        validate_only: true,
        check_reachable: true,
        ..create(definition("eu1", &daemon))
    };
    let found = api
        .inventory
        .create_instance(timed(trial))
        .await?
        .into_inner();
    let reachability = found.reachability.context("no reachability")?;
    ensure!(
        reachability.result() == ReachabilityResult::Greeted,
        "{reachability:?}"
    );
    ensure!(api.instances().await?.len() == 1 && daemon.commands_total() == 0);

    let wanted = InstanceDefinition {
        labels: [("region".to_owned(), "eu".to_owned())].into(),
        ..definition("eu1", &daemon)
    };
    let created = api
        .inventory
        .create_instance(timed(create(wanted.clone())))
        .await?
        .into_inner();
    ensure!(created.durability() == Durability::Memory, "{created:?}");
    api.wait_condition("eu1", Condition::Attached, SOON).await?;
    log.wait_event("the instance to join", SOON, |event| {
        event.kind == "instance.added" && event.instance == "eu1"
    })
    .await?;
    let name = "eu1".to_owned();
    let shown = api
        .fleet
        .get_instance(timed(v1::GetInstanceRequest { name }))
        .await?
        .into_inner();
    ensure!(shown.definition.as_ref() == Some(&wanted), "{shown:?}");
    let instance = shown.instance.context("no instance")?;
    let spec = instance.spec.clone().context("no spec")?;
    ensure!(spec.source() == InstanceSource::Api && shown.defined_at == "the API");

    // What others have is named with who has it.
    let status = refused(&mut api, create(definition("fixed", &daemon))).await?;
    ensure!(
        status.code() == Code::AlreadyExists && reason(&status).as_deref() == Some("NAME_TAKEN")
    );
    ensure!(status.message().contains("ovfleet.toml"), "{status:?}");
    let status = refused(&mut api, create(definition("other", &fixed))).await?;
    ensure!(
        reason(&status).as_deref() == Some("ADDRESS_TAKEN"),
        "{status:?}"
    );
    ensure!(status.message().contains("instance fixed"), "{status:?}");

    // Every mistake at once.
    let status = refused(
        &mut api,
        create(InstanceDefinition {
            name: "a/b".to_owned(),
            address: "ftp:nowhere".to_owned(),
            password_file: "relative".to_owned(),
            clients_max: u32::MAX,
            ..InstanceDefinition::default()
        }),
    )
    .await?;
    ensure!(status.code() == Code::InvalidArgument, "{status:?}");
    let expected = [
        "instance.address",
        "instance.clients_max",
        "instance.name",
        "instance.password_file",
    ];
    ensure!(fields(&status) == expected, "{status:?}");
    let status = refused(
        &mut api,
        create(InstanceDefinition {
            name: "late".to_owned(),
            address: "unix:/run/late".to_owned(),
            password_file: "/nonexistent/password".to_owned(),
            ..InstanceDefinition::default()
        }),
    )
    .await?;
    ensure!(fields(&status) == ["instance.password_file"], "{status:?}");

    // Labels change without touching the session; an old etag changes nothing.
    let relabel = UpdateInstanceRequest {
        instance: Some(InstanceDefinition {
            name: "eu1".to_owned(),
            labels: [("region".to_owned(), "us".to_owned())].into(),
            ..InstanceDefinition::default()
        }),
        etag: instance.etag.clone(),
        ..UpdateInstanceRequest::default()
    };
    let changed = api
        .inventory
        .update_instance(timed(relabel.clone()))
        .await?
        .into_inner();
    let changed = changed.instance.context("no instance")?;
    ensure!(changed.etag != instance.etag && changed.uid == instance.uid);
    ensure!(
        changed
            .spec
            .is_some_and(|spec| spec.labels["region"] == "us")
    );
    let status = api
        .inventory
        .update_instance(timed(relabel))
        .await
        .err()
        .context("stale")?;
    ensure!(status.code() == Code::Aborted && reason(&status).as_deref() == Some("ETAG_MISMATCH"));
    ensure!(
        daemon.sessions() == 2,
        "the look and the session: {}",
        daemon.sessions()
    );

    let of_file = UpdateInstanceRequest {
        instance: Some(definition("fixed", &fixed)),
        ..UpdateInstanceRequest::default()
    };
    let status = api
        .inventory
        .update_instance(timed(of_file))
        .await
        .err()
        .context("not its own")?;
    ensure!(
        reason(&status).as_deref() == Some("INSTANCE_READ_ONLY"),
        "{status:?}"
    );
    ensure!(status.message().contains("ovfleet.toml:"), "{status:?}");

    // A listener for reads lets nobody change anything.
    let endpoint = Endpoint::try_from(format!("http://{}", gateway.tcp_address()))?;
    let mut reader = Api::new(endpoint.connect().await?);
    let delete = DeleteInstanceRequest {
        name: "eu1".to_owned(),
        ..DeleteInstanceRequest::default()
    };
    let status = reader
        .inventory
        .delete_instance(timed(delete.clone()))
        .await
        .err()
        .context("deleted")?;
    ensure!(status.code() == Code::PermissionDenied, "{status:?}");

    api.inventory.delete_instance(timed(delete.clone())).await?;
    timeout(SOON, daemon.wait_detached()).await?;
    let status = api
        .inventory
        .delete_instance(timed(delete))
        .await
        .err()
        .context("deleted twice")?;
    ensure!(status.code() == Code::NotFound, "{status:?}");
    ensure!(fixed.sessions() == 1, "the other session was touched");
    Ok(())
}

/// A paused instance whose slot stays taken helps nobody, and one that dials in must not be ended by a slip.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_instance_leaves_its_slot_to_others() -> Result<()> {
    let lab = Lab::new()?;
    let (daemon, fragile) = (lab.daemon("eu1").await?, lab.daemon("eu2").await?);
    let gateway = GatewayConfig::new()
        .instance(InstanceConfig::new("eu1", &daemon.address().to_string()))
        .instance(
            InstanceConfig::new("eu2", &fragile.address().to_string())
                .set("disconnect", "destructive"),
        )
        .start()
        .await?;
    let mut api = Api::connect(&gateway).await?;
    api.wait_attached().await?;
    let paused = gateway
        .cli(&["instance", "pause", "eu1", "--reason", "by hand"])
        .await?;
    ensure!(paused.code == Some(0), "{paused:?}");
    let status = api.wait_condition("eu1", Condition::Paused, SOON).await?;
    ensure!(status.reason.ends_with(": by hand"), "{status:?}");
    timeout(SOON, daemon.wait_detached()).await?;

    let mut other = UnixStream::connect(lab.directory.path().join("eu1")).await?;
    let mut greeting = [0; 6];
    timeout(SOON, other.read_exact(&mut greeting)).await??;
    ensure!(&greeting == b">INFO:", "{greeting:?}");
    drop(other);

    let pause = PauseInstanceRequest {
        name: "eu2".to_owned(),
        ..PauseInstanceRequest::default()
    };
    let status = api
        .inventory
        .pause_instance(timed(pause.clone()))
        .await
        .err()
        .context("paused")?;
    ensure!(
        reason(&status).as_deref() == Some("NEEDS_FORCE"),
        "{status:?}"
    );
    ensure!(status.message().contains("destructive"), "{status:?}");
    ensure!(fragile.is_attached() && fragile.sessions() == 1);
    let force = PauseInstanceRequest {
        force: true,
        ..pause
    };
    api.inventory.pause_instance(timed(force)).await?;
    timeout(SOON, fragile.wait_detached()).await?;

    let resume = ResumeInstanceRequest {
        name: "lab/eu1".to_owned(),
        ..ResumeInstanceRequest::default()
    };
    api.inventory.resume_instance(timed(resume)).await?;
    api.wait_condition("eu1", Condition::Attached, SOON).await?;
    let instances = api.instances().await?;
    let paused = |name: &str| {
        let specs = instances
            .iter()
            .filter_map(|instance| instance.spec.as_ref());
        specs
            .filter(|spec| spec.name == name)
            .any(|spec| spec.paused)
    };
    ensure!(!paused("eu1") && paused("eu2"), "{instances:?}");
    Ok(())
}

/// A real daemon has one slot: who needs it by hand gets it while the instance is paused, with its clients connected.
#[tokio::test]
async fn a_real_daemon_greets_others_while_it_is_paused() -> Result<()> {
    let server = Server::builder("eu1").start().await?;
    let client = Client::builder(&server, "alice").connect().await?;
    let gateway = GatewayConfig::of([&server]).start().await?;
    let mut api = Api::connect(&gateway).await?;
    api.wait_attached().await?;
    api.wait_clients(by_name("alice"), 1, SOON).await?;
    let path = server.address();
    let path = path.strip_prefix("unix:").context("no Unix socket")?;

    let pause = PauseInstanceRequest {
        name: "eu1".to_owned(),
        ..PauseInstanceRequest::default()
    };
    api.inventory.pause_instance(timed(pause)).await?;
    let mut other = UnixStream::connect(path).await?;
    let mut greeting = [0; 6];
    timeout(SOON, other.read_exact(&mut greeting)).await??;
    ensure!(&greeting == b">INFO:", "{greeting:?}");
    let request = v1::ListClientsRequest::default();
    let known = api.fleet.list_clients(timed(request)).await?.into_inner();
    ensure!(
        known.clients.len() == 1 && known.clients[0].stale,
        "{known:?}"
    );
    ensure!(
        known.unreachable[0].condition() == Condition::Paused,
        "{known:?}"
    );

    // Resumed while somebody has the slot, it waits in line.
    drop(other);
    let holder = UnixStream::connect(path).await?;
    let mut holder = tokio::io::BufReader::new(holder);
    timeout(SOON, holder.read_exact(&mut greeting)).await??;
    let resume = ResumeInstanceRequest {
        name: "eu1".to_owned(),
        ..ResumeInstanceRequest::default()
    };
    api.inventory.resume_instance(timed(resume)).await?;
    api.wait_condition("eu1", Condition::SlotBusy, SOON).await?;
    drop(holder);
    api.wait_condition("eu1", Condition::Attached, SOON).await?;
    api.wait_clients(by_name("alice"), 1, SOON).await?;
    drop(client);
    Ok(())
}

/// What was answered as kept must be there after a crash; what the file says since then comes first, and loses nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_said_survives_a_crash() -> Result<()> {
    let lab = Lab::new()?;
    let (one, two) = (lab.daemon("one").await?, lab.daemon("two").await?);
    let state = lab.directory.path().join("state");
    let mut gateway = GatewayConfig::new()
        .set("state_dir", state.display().to_string())
        .set("watch_config", false)
        .instance(InstanceConfig::new("one", &one.address().to_string()))
        .start()
        .await?;
    let mut api = Api::connect(&gateway).await?;
    api.wait_attached().await?;
    let created = api
        .inventory
        .create_instance(timed(create(definition("two", &two))))
        .await?
        .into_inner();
    ensure!(created.durability() == Durability::Disk, "{created:?}");
    let pause = PauseInstanceRequest {
        name: "one".to_owned(),
        ..PauseInstanceRequest::default()
    };
    api.inventory.pause_instance(timed(pause)).await?;
    gateway.kill();
    let sessions = one.sessions();
    gateway.start_again().await?;
    let mut api = Api::connect(&gateway).await?;
    api.wait_condition("two", Condition::Attached, SOON).await?;
    api.wait_condition("one", Condition::Paused, SOON).await?;
    ensure!(one.sessions() == sessions, "a paused instance was dialled");

    // The file takes the name: it wins, and the other one is kept aside until it is deleted.
    let path = gateway.config_path();
    let more = format!(
        "{}\n[[instance]]\nname = \"two\"\naddress = \"unix:/nonexistent/two\"\n",
        std::fs::read_to_string(&path)?
    );
    std::fs::write(&path, more)?;
    let reload = v1::ReloadRequest {
        force: true,
        ..v1::ReloadRequest::default()
    };
    let reloaded = api
        .inventory
        .reload(timed(reload.clone()))
        .await?
        .into_inner();
    let aside = reloaded.set_aside.first().context("it is lost")?;
    ensure!(
        aside
            .instance
            .as_ref()
            .is_some_and(|instance| instance.name == "two")
    );
    ensure!(aside.reason.contains("ovfleet.toml:"), "{aside:?}");
    timeout(SOON, two.wait_detached()).await?;
    gateway.kill();
    gateway.start_again().await?;
    poll_until("the log to name it", SOON, async || {
        let log = gateway.log();
        Ok((log.matches("is set aside").count() == 2).then_some(()))
    })
    .await?;
    let removed = gateway.cli(&["instance", "remove", "two", "--yes"]).await?;
    ensure!(removed.code == Some(0), "{removed:?}");
    let mut api = Api::connect(&gateway).await?;
    ensure!(api.instances().await?.len() == 2, "the file's went with it");
    let reloaded = api.inventory.reload(timed(reload)).await?.into_inner();
    ensure!(reloaded.set_aside.is_empty(), "{reloaded:?}");
    Ok(())
}

/// People use the command line: what it says it does must be what is there afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_adds_sets_and_removes() -> Result<()> {
    let lab = Lab::new()?;
    let daemon = lab.daemon("eu1").await?;
    let gateway = GatewayConfig::new().start().await?;
    let mut api = Api::connect(&gateway).await?;
    let address = daemon.address().to_string();
    for (arguments, code, says) in [
        (
            vec![
                "instance",
                "add",
                "eu1",
                &address,
                "--label",
                "region=eu",
                "--check",
            ],
            0,
            "GREETED",
        ),
        (
            vec!["instance", "add", "eu1", &address],
            1,
            "two instances are called eu1",
        ),
        (
            vec!["instance", "add", "eu/2", "ftp:x", "--dry-run"],
            2,
            "instance.address",
        ),
        (vec!["instance", "set", "eu1"], 2, "wants to know what"),
        (
            vec![
                "instance",
                "set",
                "eu1",
                "--label",
                "tier=a",
                "--clear",
                "labels.region",
            ],
            0,
            "changed",
        ),
        (
            vec!["instance", "set", "eu2", "--log=false"],
            1,
            "no instance eu2",
        ),
        (
            vec!["instance", "pause", "eu1"],
            0,
            "a restart forgets that",
        ),
        (vec!["instance", "resume", "eu1"], 0, "resumed"),
        (vec!["reload", "--dry-run"], 0, "1 instance untouched"),
        (vec!["instance", "remove", "eu1"], 2, "no terminal"),
    ] {
        let output = gateway.cli(&arguments).await?;
        ensure!(output.code == Some(code), "{arguments:?}: {output:?}");
        ensure!(output.stderr.contains(says), "{arguments:?}: {output:?}");
    }
    let instances = api.instances().await?;
    let spec = instances[0].spec.as_ref().context("no spec")?;
    ensure!(
        spec.labels.len() == 1 && spec.labels["tier"] == "a",
        "{spec:?}"
    );
    let output = gateway.cli(&["instance", "remove", "eu1", "-y"]).await?;
    ensure!(
        output.code == Some(0) && api.instances().await?.is_empty(),
        "{output:?}"
    );
    Ok(())
}

/// A change that is answered and then forgotten is worse than one that is refused: nothing takes effect that is not kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_cannot_be_kept_has_no_effect() -> Result<()> {
    let lab = Lab::new()?;
    let (one, two) = (lab.daemon("one").await?, lab.daemon("two").await?);
    let state = lab.directory.path().join("state");
    let mut gateway = GatewayConfig::new()
        .set("state_dir", state.display().to_string())
        .instance(InstanceConfig::new("one", &one.address().to_string()))
        .environment("OVFLEET_FAILPOINT", "state.registry=error*2")
        .start()
        .await?;
    let mut api = Api::connect(&gateway).await?;
    api.wait_attached().await?;
    let status = refused(&mut api, create(definition("two", &two))).await?;
    ensure!(status.code() == Code::Unavailable, "{status:?}");
    ensure!(
        reason(&status).as_deref() == Some("STATE_UNAVAILABLE"),
        "{status:?}"
    );
    let pause = PauseInstanceRequest {
        name: "one".to_owned(),
        ..PauseInstanceRequest::default()
    };
    let status = api.inventory.pause_instance(timed(pause)).await.err();
    ensure!(status.is_some_and(|status| status.code() == Code::Unavailable));
    ensure!(api.instances().await?.len() == 1 && two.sessions() == 0);
    ensure!(one.is_attached() && one.sessions() == 1);
    // The disk is well again.
    poll_until("the change to be taken", SOON, async || {
        let answer = api
            .inventory
            .create_instance(timed(create(definition("two", &two))));
        Ok(answer.await.ok())
    })
    .await?;
    gateway.kill();
    gateway.start_again().await?;
    let mut api = Api::connect(&gateway).await?;
    api.wait_attached().await?;
    ensure!(api.instances().await?.len() == 2);
    Ok(())
}
