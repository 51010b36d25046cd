//! The configuration is read again: all of it or nothing, and only what changed is touched.

use std::{
    fs,
    os::unix::{fs::symlink, net::UnixDatagram},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use openvpn_simulator::Daemon;
use ovfleet_proto::v1::{Condition, ReloadRequest};
use ovfleet_tests::{
    Api, Gateway, GatewayConfig, InstanceConfig, Signal,
    api::{reason, timed},
    poll_until,
};
use tempfile::TempDir;
use tonic::Code;
use tonic_types::StatusExt as _;

/// Files are read within a second of their change; the machine may be busy.
const SOON: Duration = Duration::from_secs(15);

async fn daemons(directory: &TempDir, count: usize) -> Result<Vec<Daemon>> {
    let start = (0..count).map(|number| {
        let name = format!("i{number:03}");
        let path = directory.path().join(&name);
        Daemon::builder(name).unix(path).start()
    });
    Ok(try_join_all(start).await?)
}

async fn gateway(daemons: &[Daemon], watch: bool) -> Result<(Gateway, Api)> {
    let config = GatewayConfig::new().set("watch_config", watch);
    let config = daemons.iter().fold(config, |config, daemon| {
        config.instance(InstanceConfig::new(
            daemon.name(),
            &daemon.address().to_string(),
        ))
    });
    let gateway = config.start().await?;
    let mut api = Api::connect(&gateway).await?;
    api.wait_attached().await?;
    Ok((gateway, api))
}

/// Writes as an editor does: beside, and renamed.
fn edit(path: &Path, change: impl FnOnce(&mut Vec<toml::Value>)) -> Result<()> {
    let mut root: toml::Table = toml::from_str(&fs::read_to_string(path)?)?;
    let instances = root.get_mut("instance").and_then(toml::Value::as_array_mut);
    change(instances.context("no instances")?);
    put(path, &toml::to_string(&root)?)
}

fn put(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    Ok(fs::rename(new, path)?)
}

/// Everything of the instances that a reload must leave as it is.
async fn identities(api: &mut Api) -> Result<Vec<(String, String, String, u64)>> {
    let instances = api.instances().await?.into_iter();
    Ok(instances
        .map(|instance| {
            let name = instance.spec.unwrap_or_default().name;
            let sessions = instance.status.unwrap_or_default().sessions;
            (name, instance.uid, instance.etag, sessions)
        })
        .collect())
}

/// A label that is changed for one daemon must not blind the fleet for all of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_200_changes_and_199_sessions_go_on() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let daemons = daemons(&directory, 200).await?;
    let (mut gateway, mut api) = gateway(&daemons, false).await?;
    let before = identities(&mut api).await?;
    let log = api.follow().await?;
    edit(&gateway.config_path(), |instances| {
        if let Some(table) = instances[7].as_table_mut() {
            table.insert("status_interval".to_owned(), "30s".into());
        }
    })?;
    gateway.signal(Signal::HUP)?;
    let event = log
        .wait_event("the reload", SOON, |event| event.kind == "gateway.config")
        .await?;
    ensure!(format!("{event:?}").contains("199 untouched"), "{event:?}");
    let changed = daemons[7].name();
    api.wait_condition(changed, Condition::Attached, SOON)
        .await?;
    let after = identities(&mut api).await?;
    for (before, after) in before.iter().zip(&after) {
        if before.0 == changed {
            ensure!(
                before.1 == after.1 && before.2 != after.2,
                "{before:?} {after:?}"
            );
        } else {
            ensure!(before == after, "{before:?} {after:?}");
        }
    }
    let sessions: Vec<_> = daemons.iter().map(Daemon::sessions).collect();
    let reconnects = sessions.iter().sum::<u64>() - 200;
    println!("reload of 1 in 200: {reconnects} reconnect, of {changed} alone");
    ensure!(reconnects == 1 && sessions[7] == 2, "{sessions:?}");
    let detached = log.events().into_iter();
    let detached = detached.filter(|event| event.kind == "instance.detached");
    ensure!(detached.map(|event| event.instance).collect::<Vec<_>>() == [changed]);
    Ok(())
}

/// A file that lost its tail must not take the fleet with it, nor a slip end daemons.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_removal_and_harm_want_force() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let daemons = daemons(&directory, 10).await?;
    let (mut gateway, mut api) = gateway(&daemons, false).await?;
    edit(&gateway.config_path(), |instances| {
        if let Some(table) = instances[9].as_table_mut() {
            table.insert("disconnect".to_owned(), "destructive".into());
        }
    })?;
    let reloaded = api
        .inventory
        .reload(timed(ReloadRequest::default()))
        .await?
        .into_inner();
    ensure!(
        reloaded.changed.len() == 1 && reloaded.changed[0].reconnects,
        "{reloaded:?}"
    );
    api.wait_attached().await?;
    let before = identities(&mut api).await?;
    let log = api.follow().await?;

    // Three of ten; two would be 20 %.
    edit(&gateway.config_path(), |instances| {
        drop(instances.drain(..3))
    })?;
    gateway.signal(Signal::HUP)?;
    let event = log
        .wait_event("the refusal", SOON, |event| event.kind == "gateway.config")
        .await?;
    ensure!(
        format!("{event:?}").contains("ovfleet reload --force"),
        "{event:?}"
    );
    let plan = ReloadRequest {
        validate_only: true,
        ..ReloadRequest::default()
    };
    let plan = api.inventory.reload(timed(plan)).await?.into_inner();
    ensure!(
        plan.removed.len() == 3 && plan.needs_force.len() == 1,
        "{plan:?}"
    );
    let status = api.inventory.reload(timed(ReloadRequest::default())).await;
    let status = status.err().context("it was done")?;
    ensure!(status.code() == Code::FailedPrecondition, "{status:?}");
    ensure!(
        reason(&status).as_deref() == Some("NEEDS_FORCE"),
        "{status:?}"
    );
    ensure!(identities(&mut api).await? == before);

    // One alone, but its daemon is harmed by the end of its session.
    edit(&gateway.config_path(), |instances| drop(instances.pop()))?;
    let output = gateway.cli(&["reload"]).await?;
    ensure!(
        output.code == Some(1) && output.stderr.contains("i009"),
        "{output:?}"
    );
    ensure!(identities(&mut api).await? == before && daemons[9].is_attached());

    let output = gateway.cli(&["reload", "--force", "-o", "json"]).await?;
    ensure!(output.code == Some(0), "{output:?}");
    let answer: serde_json::Value = serde_json::from_str(&output.stdout)?;
    ensure!(
        answer["removed"].as_array().is_some_and(|it| it.len() == 4),
        "{answer}"
    );
    ensure!(api.instances().await?.len() == 6);
    Ok(())
}

/// Somebody edits the file: a mistake in it must cost nothing, and putting it right must be enough.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_file_leaves_the_old_one_in_force() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let daemons = daemons(&directory, 5).await?;
    let (gateway, mut api) = gateway(&daemons[..4], true).await?;
    let before = identities(&mut api).await?;
    let log = api.follow().await?;
    let path = gateway.config_path();
    let good = fs::read_to_string(&path)?;
    let line = good.lines().count() + 2;
    // Whole: half of it, read by a gateway that is quicker, would be another mistake.
    put(
        &path,
        &format!("{good}\n[[instance]]\nname = \"new\"\nhold = \"maybe\"\n"),
    )?;
    let event = log
        .wait_event("the complaint", SOON, |event| {
            event.kind == "gateway.config"
        })
        .await?;
    let told = format!("{event:?}");
    ensure!(
        told.contains(&format!("ovfleet.toml:{line}: instance.address")),
        "{told}"
    );
    ensure!(
        told.contains(&format!("ovfleet.toml:{}: instance.hold", line + 2)),
        "{told}"
    );
    ensure!(gateway.log().contains("instance.hold"));
    let status = api.inventory.reload(timed(ReloadRequest::default())).await;
    let status = status.err().context("it was taken")?;
    ensure!(
        reason(&status).as_deref() == Some("CONFIG_INVALID"),
        "{status:?}"
    );
    let failure = status
        .get_details_precondition_failure()
        .context("no details")?;
    ensure!(failure.violations.len() == 2, "{failure:?}");
    ensure!(
        failure.violations[0]
            .subject
            .ends_with(&format!("ovfleet.toml:{line}"))
    );
    ensure!(identities(&mut api).await? == before);
    // By the changed file and by the caller.
    ensure_metrics(
        &gateway,
        &[
            "last_reload_successful 0",
            "reloads_total{result=\"refused\"} 2",
        ],
    )
    .await?;

    // What takes a restart is told, and not half done.
    let address = daemons[4].address();
    let fixed = good.replacen("[listen]", "[journal]\nage = \"1h\"\n[listen]", 1);
    put(
        &path,
        &format!("{fixed}\n[[instance]]\nname = \"new\"\naddress = \"{address}\"\n"),
    )?;
    log.wait_event("the instance", SOON, |event| {
        event.kind == "instance.added" && event.instance == "new"
    })
    .await?;
    api.wait_condition("new", Condition::Attached, SOON).await?;
    log.wait_event("what takes a restart", SOON, |event| {
        event.kind == "gateway.config" && format!("{event:?}").contains("takes a restart: journal")
    })
    .await?;
    ensure!(identities(&mut api).await?[..4] == before[..]);
    ensure_metrics(
        &gateway,
        &[
            "last_reload_successful 1",
            "reloads_total{result=\"taken\"} 1",
        ],
    )
    .await?;
    Ok(())
}

/// The metrics of the configuration say so.
async fn ensure_metrics(gateway: &Gateway, wanted: &[&str]) -> Result<()> {
    let (_, metrics) = gateway.http_get("/metrics").await?;
    for line in wanted {
        let line = format!("ovfleet_config_{line}\n");
        ensure!(metrics.contains(&line), "no {line:?} in {metrics}");
    }
    Ok(())
}

/// An included file that is added is part of the configuration too, wherever an editor puts it first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn included_files_are_watched() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let daemons = daemons(&directory, 2).await?;
    let conf = directory.path().join("conf.d");
    fs::create_dir(&conf)?;
    let config = GatewayConfig::new().set("include", conf.join("*.toml").display().to_string());
    let gateway = config.start().await?;
    let mut api = Api::connect(&gateway).await?;
    for (number, daemon) in daemons.iter().enumerate() {
        let text = format!(
            "[[instance]]\nname = \"{}\"\naddress = \"{}\"\n",
            daemon.name(),
            daemon.address()
        );
        fs::write(conf.join("beside"), text)?;
        fs::rename(conf.join("beside"), conf.join(format!("{number}.toml")))?;
        poll_until("the instance", SOON, async || {
            Ok((api.instances().await?.len() == number + 1).then_some(()))
        })
        .await?;
    }
    api.wait_attached().await?;
    fs::remove_file(conf.join("0.toml"))?;
    let force = ReloadRequest {
        force: true,
        ..ReloadRequest::default()
    };
    let response = api.inventory.reload(timed(force)).await?.into_inner();
    ensure!(api.instances().await?.len() == 1, "{response:?}");
    Ok(())
}

/// Waits until the service manager is told what contains `wanted`; what comes after that is left for the next one.
async fn told(manager: &UnixDatagram, wanted: &str) -> Result<String> {
    let found = poll_until(wanted, SOON, async || {
        let mut buffer = [0; 4096];
        while let Ok(length) = manager.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if text.contains(wanted) {
                return Ok(Some(text));
            }
        }
        Ok(None)
    });
    found.await
}

/// `systemctl reload` must end when the configuration is read, also when it is not taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_manager_hears_of_a_reload() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let notify = directory.path().join("notify");
    let manager = UnixDatagram::bind(&notify)?;
    manager.set_nonblocking(true)?;
    let mut gateway = GatewayConfig::new()
        .set("watch_config", false)
        .environment("NOTIFY_SOCKET", &notify.display().to_string())
        .start()
        .await?;
    told(&manager, "READY=1\n").await?;
    for text in [None, Some("nonsense = 1\n")] {
        if let Some(text) = text {
            fs::write(gateway.config_path(), text)?;
        }
        gateway.signal(Signal::HUP)?;
        let reloading = told(&manager, "RELOADING=1\n").await?;
        let since = reloading
            .lines()
            .find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
        let since: u128 = since.context("no moment")?.parse()?;
        ensure!(since > 0, "{reloading}");
        let ready = told(&manager, "READY=1\n").await?;
        ensure!(ready.contains("STATUS=serving on"), "{ready}");
    }
    Ok(())
}

/// Two instances that change places must both end up where they belong, and neither in the other's way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_instances_change_places() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let daemons = daemons(&directory, 3).await?;
    let (gateway, mut api) = gateway(&daemons, false).await?;
    edit(&gateway.config_path(), |instances| {
        let address = |number: usize| toml::Value::from(daemons[number].address().to_string());
        for (number, other) in [(0, 1), (1, 0)] {
            if let Some(table) = instances[number].as_table_mut() {
                table.insert("address".to_owned(), address(other));
            }
        }
    })?;
    let reload = ReloadRequest::default();
    let response = api.inventory.reload(timed(reload)).await?.into_inner();
    let changed: Vec<_> = response.changed.iter().map(|change| &change.name).collect();
    ensure!(
        changed == ["i000", "i001"] && response.untouched == 1,
        "{response:?}"
    );
    api.wait_attached().await?;
    for (number, other) in [(0, 1), (1, 0), (2, 2)] {
        let name = daemons[number].name();
        let instances = api.instances().await?.into_iter();
        let mut specs = instances.filter_map(|instance| instance.spec);
        let spec = specs.find(|spec| spec.name == name).context("it is gone")?;
        ensure!(
            spec.address == daemons[other].address().to_string(),
            "{spec:?}"
        );
    }
    // Each daemon has one session, and says so itself.
    for (daemon, sessions) in daemons.iter().zip([2, 2, 1]) {
        poll_until("the session of the other", SOON, async || {
            Ok((daemon.is_attached() && daemon.sessions() == sessions).then_some(()))
        })
        .await?;
    }
    Ok(())
}

/// A configuration that is swapped as Kubernetes does, by the link of its directory, is a changed one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swapped_link_is_a_changed_file() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let daemons = daemons(&directory, 2).await?;
    let (gateway, mut api) = gateway(&daemons, true).await?;
    let log = api.follow().await?;
    let path = gateway.config_path();
    let beside = |name: &str| path.with_file_name(name);
    let name = path.file_name().context("no name")?;
    // ovfleet.toml -> ..data/ovfleet.toml, ..data -> ..1
    fs::create_dir(beside("..1"))?;
    fs::copy(&path, beside("..1").join(name))?;
    symlink("..1", beside("..data"))?;
    symlink(Path::new("..data").join(name), beside("link"))?;
    fs::rename(beside("link"), &path)?;
    for number in 2..4 {
        let version = format!("..{number}");
        fs::create_dir(beside(&version))?;
        let copy = beside(&version).join(name);
        fs::copy(&path, &copy)?;
        edit(&copy, |instances| {
            if let Some(table) = instances[0].as_table_mut() {
                table.insert("status_interval".to_owned(), format!("{number}0s").into());
            }
        })?;
        symlink(&version, beside("..data_tmp"))?;
        fs::rename(beside("..data_tmp"), beside("..data"))?;
        poll_until("the swap to be seen", SOON, async || {
            let reloads = log.events().into_iter();
            let reloads = reloads
                .filter(|event| event.kind == "gateway.config")
                .count();
            Ok((reloads == number - 1).then_some(()))
        })
        .await?;
    }
    Ok(())
}
