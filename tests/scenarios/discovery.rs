//! Instances that no `[[instance]]` names, and templates that name many: found, named and
//! labelled as written.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use openvpn_simulator::{ClientSpec, Daemon};
use ovfleet_proto::v1::{Condition, InstanceSource};
use ovfleet_tests::{Api, GatewayConfig, Server, poll_until};

/// A new socket is an instance within a second; this covers a busy machine.
const FOUND: Duration = Duration::from_secs(15);
/// A file is read again when it changes.
const REREAD: Duration = Duration::from_secs(10);

/// A daemon started after the gateway must join the fleet by its socket alone, and one that
/// merely restarts must not drop out: OpenVPN removes its socket when it ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_that_match_join_and_stay() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let pattern = directory.path().join("*.sock").display().to_string();
    let discover: toml::Table = toml::from_str(&format!(
        "glob = {pattern:?}\nname = \"vpn-{{stem}}\"\nlabels = {{ stem = \"{{stem}}\" }}"
    ))?;
    let config = GatewayConfig::new().set("discover", vec![toml::Value::from(discover)]);
    let gateway = config.start().await?;
    let mut api = Api::connect(&gateway).await?;
    ensure!(api.instances().await?.is_empty());
    let log = api.follow().await?;

    let path = directory.path().join("eu1.sock");
    let daemon = Daemon::builder("eu1").unix(&path).start().await?;
    log.wait_event("the discovery", FOUND, |event| {
        event.kind == "instance.added" && event.instance == "vpn-eu1"
    })
    .await?;
    api.wait_condition("vpn-eu1", Condition::Attached, FOUND)
        .await?;
    let instances = api.instances().await?;
    let spec = instances
        .first()
        .and_then(|it| it.spec.clone())
        .context("no spec")?;
    ensure!(spec.source() == InstanceSource::Discovery, "{spec:?}");
    ensure!(
        spec.labels.get("stem").is_some_and(|stem| stem == "eu1"),
        "{spec:?}"
    );
    daemon.connect(ClientSpec::new("alice")).await?;

    daemon.stop().await;
    api.wait_condition("vpn-eu1", Condition::Unreachable, FOUND)
        .await?;
    ensure!(
        api.instances().await?.len() == 1,
        "it vanished with its socket"
    );
    daemon.start_again().await?;
    api.wait_condition("vpn-eu1", Condition::Attached, FOUND)
        .await?;
    Ok(())
}

/// A target list is edited by hand and by tools: additions, removals and labels follow, and
/// a broken file keeps what there was.
#[tokio::test]
async fn target_files_are_followed() -> Result<()> {
    let one = Server::builder("one").start().await?;
    let two = Server::builder("two").start().await?;
    let directory = tempfile::tempdir()?;
    let targets = directory.path().join("fleet.json");
    let target = |server: &Server, role: &str| serde_json::json!({ "targets": [server.address()], "labels": { "role": role, "id": server.name() } });
    let write = |content: &str| -> Result<()> {
        // As careful writers do it: nobody sees half a file.
        let next = directory.path().join("next");
        fs::write(&next, content)?;
        Ok(fs::rename(next, &targets)?)
    };
    write(&serde_json::json!([target(&one, "edge")]).to_string())?;
    let discover: toml::Table = toml::from_str(&format!(
        "file = {:?}\nname = \"{{label.id}}\"\nrefresh = \"1s\"",
        targets.display().to_string()
    ))?;
    let config = GatewayConfig::new().set("discover", vec![toml::Value::from(discover)]);
    let gateway = config.start().await?;
    let mut api = Api::connect(&gateway).await?;
    api.wait_condition("one", Condition::Attached, REREAD)
        .await?;

    write(&serde_json::json!([target(&one, "core"), target(&two, "edge")]).to_string())?;
    poll_until("the second target", REREAD, async || {
        Ok((api.instances().await?.len() == 2).then_some(()))
    })
    .await?;
    api.wait_condition("two", Condition::Attached, REREAD)
        .await?;
    poll_until("the new label", REREAD, async || {
        let instances = api.instances().await?;
        let spec = instances
            .iter()
            .filter_map(|it| it.spec.as_ref())
            .find(|it| it.name == "one");
        Ok(spec
            .and_then(|spec| spec.labels.get("role"))
            .filter(|role| *role == "core")
            .cloned())
    })
    .await?;

    write("[ { not json")?;
    poll_until("the complaint", REREAD, async || {
        let log = gateway.log();
        let mut lines = log.lines();
        Ok(lines.find_map(|line| {
            (line.contains("discovery: ") && line.contains("fleet.json")).then_some(())
        }))
    })
    .await?;
    api.wait_condition("two", Condition::Attached, REREAD)
        .await?;
    ensure!(
        api.instances().await?.len() == 2,
        "a broken file emptied the fleet"
    );
    Ok(())
}
