//! Changes under a request id: made once, whatever ends in between, and answered the same again.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use openvpn_simulator::Daemon;
use ovfleet_proto::v1::{
    self, CreateInstanceRequest, DeleteInstanceRequest, Durability, InstanceDefinition,
    PauseInstanceRequest, ReachabilityResult, ReloadRequest, UpdateInstanceRequest,
};
use ovfleet_tests::{
    Api, Gateway, GatewayConfig, InstanceConfig,
    api::{reason, timed},
    poll_until,
};
use tempfile::TempDir;
use tokio::{net::UnixListener, time::timeout};
use tonic::Status;

/// A simulated daemon says at once what it has to say.
const SOON: Duration = Duration::from_secs(20);
const FAILPOINT: &str = "OVFLEET_FAILPOINT";

struct Lab {
    directory: TempDir,
    daemon: Daemon,
    gateway: Gateway,
    api: Api,
}

impl Lab {
    async fn start(config: GatewayConfig) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let socket = directory.path().join("fixed");
        let daemon = Daemon::builder("fixed").unix(socket).start().await?;
        let instance = InstanceConfig::new("fixed", &daemon.address().to_string());
        let gateway = config.instance(instance).start().await?;
        let mut api = Api::connect(&gateway).await?;
        api.wait_attached().await?;
        Ok(Self {
            directory,
            daemon,
            gateway,
            api,
        })
    }

    /// Ends it as a crash does, and starts it again.
    async fn crash(&mut self) -> Result<()> {
        self.gateway.kill();
        self.start_again(None).await
    }

    async fn start_again(&mut self, failpoint: Option<&str>) -> Result<()> {
        self.gateway.set_environment(FAILPOINT, failpoint);
        self.gateway.start_again().await?;
        self.api = Api::connect(&self.gateway).await?;
        Ok(())
    }

    /// The definition of an instance at a socket in our directory.
    fn create(&self, name: &str, id: &str) -> CreateInstanceRequest {
        let path = self.directory.path().join(name);
        // Labels have no order of their own, and a repetition is the same request all the same.
        let labels = ["a", "b", "c", "d", "e", "f"].map(|key| (key.to_owned(), "x".to_owned()));
        CreateInstanceRequest {
            instance: Some(InstanceDefinition {
                name: name.to_owned(),
                address: format!("unix:{}", path.display()),
                labels: labels.into(),
                ..InstanceDefinition::default()
            }),
            request_id: id.to_owned(),
            ..CreateInstanceRequest::default()
        }
    }

    async fn names(&mut self) -> Result<Vec<String>> {
        let instances = self.api.instances().await?.into_iter();
        Ok(instances
            .map(|it| it.spec.unwrap_or_default().name)
            .collect())
    }
}

fn is_reused(status: &Status) -> Result<()> {
    let is_reused = reason(status).as_deref() == Some("REQUEST_ID_REUSED");
    ensure!(is_reused, "{status:?}");
    Ok(())
}

/// Calls of the inventory, each under an id of its own.
struct Changes {
    create: CreateInstanceRequest,
    update: UpdateInstanceRequest,
    pause: PauseInstanceRequest,
    resume: v1::ResumeInstanceRequest,
    delete: DeleteInstanceRequest,
    reload: ReloadRequest,
}

/// What they answer, in order.
type Answers = (
    v1::CreateInstanceResponse,
    v1::UpdateInstanceResponse,
    v1::PauseInstanceResponse,
    v1::ResumeInstanceResponse,
    v1::DeleteInstanceResponse,
    v1::ReloadResponse,
);

impl Changes {
    fn new(lab: &Lab) -> Self {
        let (name, request_id) = ("eu1".to_owned(), "mine".to_owned());
        let update = UpdateInstanceRequest {
            instance: Some(InstanceDefinition {
                name: name.clone(),
                clients_max: 5,
                ..InstanceDefinition::default()
            }),
            request_id: request_id.clone(),
            ..UpdateInstanceRequest::default()
        };
        let pause = PauseInstanceRequest {
            name: name.clone(),
            request_id: request_id.clone(),
            ..PauseInstanceRequest::default()
        };
        let resume = v1::ResumeInstanceRequest {
            name: name.clone(),
            request_id: request_id.clone(),
            ..v1::ResumeInstanceRequest::default()
        };
        let delete = DeleteInstanceRequest {
            name,
            request_id: request_id.clone(),
            ..DeleteInstanceRequest::default()
        };
        let reload = ReloadRequest {
            request_id,
            ..ReloadRequest::default()
        };
        Self {
            // The same id is another one for another method.
            create: lab.create("eu1", "mine"),
            update,
            pause,
            resume,
            delete,
            reload,
        }
    }

    async fn make(&self, api: &mut Api) -> Result<Answers> {
        let service = &mut api.inventory;
        let create = service.create_instance(timed(self.create.clone())).await?;
        let update = service.update_instance(timed(self.update.clone())).await?;
        let pause = service.pause_instance(timed(self.pause.clone())).await?;
        let resume = service.resume_instance(timed(self.resume.clone())).await?;
        let delete = service.delete_instance(timed(self.delete.clone())).await?;
        let reload = service.reload(timed(self.reload.clone())).await?;
        Ok((
            create.into_inner(),
            update.into_inner(),
            pause.into_inner(),
            resume.into_inner(),
            delete.into_inner(),
            reload.into_inner(),
        ))
    }
}

/// Fails if a change is made again under its id, now or after a crash, or if another one passes for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_the_inventory_are_made_once() -> Result<()> {
    let mut lab = Lab::start(GatewayConfig::new().set("state_dir", "state")).await?;
    let changes = Changes::new(&lab);
    // What only checks takes no id.
    let trial = CreateInstanceRequest {
        validate_only: true,
        ..changes.create.clone()
    };
    lab.api.inventory.create_instance(timed(trial)).await?;
    let first = changes.make(&mut lab.api).await?;
    ensure!(first.0.durability() == Durability::Disk, "{first:#?}");
    ensure!(first.4.durability() == Durability::Disk, "{first:#?}");
    ensure!(first.5.durability() == Durability::Disk, "{first:#?}");
    ensure!(lab.names().await? == ["fixed"]);
    let again = changes.make(&mut lab.api).await?;
    ensure!(again == first, "{again:#?}, not {first:#?}");
    ensure!(lab.names().await? == ["fixed"], "it was created again");
    lab.crash().await?;
    let again = changes.make(&mut lab.api).await?;
    ensure!(again == first, "{again:#?}, not {first:#?}");
    ensure!(lab.names().await? == ["fixed"], "it was created again");

    let other = lab.create("eu2", "mine");
    let status = lab.api.inventory.create_instance(timed(other)).await.err();
    is_reused(&status.context("another instance under the same id")?)?;
    let other = ReloadRequest {
        force: true,
        ..changes.reload
    };
    let status = lab.api.inventory.reload(timed(other)).await.err();
    is_reused(&status.context("another reload under the same id")?)?;
    let wrong = lab.create("eu2", "no/id");
    let status = lab.api.inventory.create_instance(timed(wrong)).await.err();
    let status = status.context("an id that is none")?;
    ensure!(reason(&status).as_deref() == Some("REQUEST_ID_INVALID"));

    // A change that was refused leaves its id free.
    let taken = lab.create("fixed", "free");
    let status = lab.api.inventory.create_instance(timed(taken)).await.err();
    let status = status.context("a name that is taken")?;
    ensure!(reason(&status).as_deref() == Some("NAME_TAKEN"));
    let wanted = lab.create("eu2", "free");
    lab.api.inventory.create_instance(timed(wanted)).await?;
    ensure!(lab.names().await? == ["eu2", "fixed"]);

    // The same from the command line.
    let remove = ["instance", "remove", "eu2", "--yes", "--request-id", "cli"];
    for _ in 0..2 {
        let removed = lab.gateway.cli(&remove).await?;
        ensure!(removed.code == Some(0), "{removed:?}");
    }
    let without = lab.gateway.cli(&remove[..4]).await?;
    ensure!(without.code == Some(1), "it is gone: {without:?}");
    let two = ["instance", "pause", "a", "b", "--request-id", "cli"];
    let two = lab.gateway.cli(&two).await?;
    ensure!(two.code == Some(2), "{two:?}");
    Ok(())
}

/// Fails if a change that a crash cut off is made twice, or told to be what it is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_a_crash_cut_off_is_made_once() -> Result<()> {
    let mut lab = Lab::start(GatewayConfig::new().set("state_dir", "state")).await?;
    // Before it is made, and between that and its answer.
    for (failpoint, is_made) in [
        ("action.after_intent=kill", false),
        ("inventory.after_write=kill", true),
        ("action.before_outcome=kill", true),
    ] {
        lab.gateway.kill();
        lab.start_again(Some(failpoint)).await?;
        let create = lab.create("eu1", "cut");
        let cut = lab.api.inventory.create_instance(timed(create.clone()));
        ensure!(cut.await.is_err(), "{failpoint}: it answered");
        lab.gateway.wait_ended(SOON).await?;
        lab.start_again(None).await?;
        let names = lab.names().await?;
        ensure!(
            names.len() == 1 + usize::from(is_made),
            "{failpoint}: {names:?}"
        );
        let uid = lab.api.instances().await?[0].uid.clone();

        let other = lab.create("eu2", "cut");
        if is_made {
            let status = lab.api.inventory.create_instance(timed(other)).await.err();
            is_reused(&status.with_context(|| format!("{failpoint}: the id is free"))?)?;
        }
        let mut answers = Vec::new();
        for _ in 0..2 {
            let answer = lab.api.inventory.create_instance(timed(create.clone()));
            answers.push(answer.await?.into_inner());
        }
        for answer in &answers {
            ensure!(
                answer.durability() == Durability::Disk,
                "{failpoint}: {answer:#?}"
            );
            let instance = answer.instance.as_ref().context("no instance")?;
            ensure!(!is_made || instance.uid == uid, "{failpoint}: {answer:#?}");
        }
        ensure!(lab.names().await? == ["eu1", "fixed"], "{failpoint}");
        let delete = DeleteInstanceRequest {
            name: "eu1".to_owned(),
            ..DeleteInstanceRequest::default()
        };
        lab.api.inventory.delete_instance(timed(delete)).await?;
        // The next one begins without what is known of this one.
        lab.gateway.stop().await?;
        let state = lab.gateway.config_path().with_file_name("state");
        std::fs::remove_dir_all(state)?;
        lab.start_again(None).await?;
    }
    Ok(())
}

/// Fails if a caller who lost its connection in the middle of a change cannot tell what became of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_goes_on_without_its_caller() -> Result<()> {
    let mut lab = Lab::start(GatewayConfig::new()).await?;
    // Whatever is there says nothing: it is looked at for 3 s.
    let _silent = UnixListener::bind(lab.directory.path().join("eu1"))?;
    let create = CreateInstanceRequest {
        check_reachable: true,
        ..lab.create("eu1", "lost")
    };
    let patience = Duration::from_millis(500);
    let lost = lab.api.inventory.create_instance(timed(create.clone()));
    ensure!(
        timeout(patience, lost).await.is_err(),
        "it answered already"
    );
    // It joins the call under way.
    let answer = lab
        .api
        .inventory
        .create_instance(timed(create.clone()))
        .await?;
    let answer = answer.into_inner();
    ensure!(answer.durability() == Durability::Memory, "{answer:#?}");
    let found = answer.reachability.as_ref().context("not looked at")?;
    ensure!(found.result() == ReachabilityResult::Silent, "{answer:#?}");
    let again = lab.api.inventory.create_instance(timed(create)).await?;
    ensure!(again.into_inner() == answer);
    ensure!(lab.names().await? == ["eu1", "fixed"]);
    Ok(())
}

/// Fails if an answer does not say whether a restart forgets its request id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_says_how_well_its_id_is_kept() -> Result<()> {
    for (state_dir, kept) in [
        (None, Durability::Memory),
        (Some("state"), Durability::Disk),
    ] {
        let config = GatewayConfig::new();
        let config = match state_dir {
            Some(directory) => config.set("state_dir", directory),
            None => config,
        };
        let mut lab = Lab::start(config).await?;
        let instance = || "fixed".to_owned();
        let mute = |request_id: &str| v1::SetMuteRequest {
            instance: instance(),
            lines: 3,
            request_id: request_id.to_owned(),
        };
        let service = &mut lab.api.instance;
        let answer = service.set_mute(timed(mute("once"))).await?.into_inner();
        ensure!(answer.durability() == kept, "{answer:?}");
        let again = service.set_mute(timed(mute("once"))).await?.into_inner();
        ensure!(again == answer, "{again:?}");
        let without = service.set_mute(timed(mute(""))).await?.into_inner();
        ensure!(
            without.durability() == Durability::Unspecified,
            "{without:?}"
        );
        let execute = v1::ExecuteCommandRequest {
            instance: instance(),
            line: "mute 4".to_owned(),
            request_id: "line".to_owned(),
        };
        let answer = service.execute_command(timed(execute)).await?.into_inner();
        ensure!(answer.durability() == kept, "{answer:?}");
        let reload = ReloadRequest {
            request_id: "again".to_owned(),
            ..ReloadRequest::default()
        };
        let answer = lab.api.inventory.reload(timed(reload)).await?.into_inner();
        ensure!(answer.durability() == kept, "{answer:?}");
        let shown = ["mute", "5", "--instance", "fixed", "-o", "json"];
        let shown = lab.gateway.cli(&shown).await?;
        ensure!(shown.stdout.contains(kept.as_str_name()), "{shown:?}");
        let count = |line: &[u8]| {
            let commands = lab.daemon.commands().into_iter();
            commands.filter(|command| &command[..] == line).count()
        };
        poll_until("the daemon to have it", SOON, async || {
            Ok((count(b"mute 3") == 2).then_some(()))
        })
        .await?;
    }
    Ok(())
}
