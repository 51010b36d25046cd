//! Changes of single daemons, where they cannot be made or nobody can say whether they were.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use openvpn_simulator::{ClientSpec, Daemon, Version};
use ovfleet_proto::v1::{ClientFilter, GetSettingsRequest, SetMuteRequest};
use ovfleet_tests::{
    Api, GatewayConfig, InstanceConfig, Server, Signal,
    api::{reason, timed},
    poll_until,
};
use tonic::{Code, Request};

/// Everything here happens at once; this covers a busy machine.
const SOON: Duration = Duration::from_secs(15);

/// Whoever pushes options must learn which daemons took them, and from the others which version would.
#[tokio::test]
async fn options_are_pushed_where_the_version_can() -> Result<()> {
    const OPTIONS: &str = "route 10.9.0.0 255.255.0.0";
    let old = Server::builder("old").start().await?;
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("new.sock");
    let new = Daemon::builder("new")
        .version(Version::V2_7)
        .unix(&socket)
        .start()
        .await?;
    // Only clients that know of it are updated.
    let alice = ClientSpec::new("alice").software("2.7.0", "linux");
    new.connect(alice).await?;
    let address = format!("unix:{}", socket.display());
    let gateway = GatewayConfig::of([&old])
        .instance(InstanceConfig::new("new", &address))
        .start()
        .await?;
    let mut api = Api::connect(&gateway).await?;
    api.wait_attached().await?;
    let clients = api.wait_clients(ClientFilter::default(), 1, SOON).await?;

    let everywhere = ["push-update", OPTIONS, "--every-client", "--all"];
    let output = gateway.cli(&everywhere).await?;
    ensure!(output.code == Some(1), "{output:?}");
    let said = output.stdout + &output.stderr;
    ensure!(
        said.contains("old") && said.contains("OpenVPN 2.7"),
        "{said}"
    );
    let there = [
        "push-update",
        OPTIONS,
        "--every-client",
        "--instance",
        "new",
    ];
    let output = gateway.cli(&there).await?;
    ensure!(output.code == Some(0), "{output:?}");
    let client = clients[0].r#ref.as_ref().context("no ref")?;
    let client = format!(
        "{}/{}/{}/{}",
        client.gateway, client.instance, client.generation, client.cid
    );
    let one = ["push-update", OPTIONS, "--ref", &client];
    let output = gateway.cli(&one).await?;
    ensure!(output.code == Some(0), "{output:?}");
    let asked = new.commands();
    let count = |name: &[u8]| asked.iter().filter(|line| line.starts_with(name)).count();
    ensure!(
        count(b"push-update-broad") == 2,
        "{}",
        count(b"push-update-broad")
    );
    ensure!(
        count(b"push-update-cid") == 1,
        "{}",
        count(b"push-update-cid")
    );
    Ok(())
}

/// A change that was sent and not answered may have been made: whoever hears "it failed" does it twice.
#[tokio::test]
async fn a_change_without_an_answer_is_told_as_such() -> Result<()> {
    let mut server = Server::builder("asleep").start().await?;
    let gateway = GatewayConfig::of([&server]).start().await?;
    let mut api = Api::connect(&gateway).await?;
    api.wait_attached().await?;
    let mute = |lines| SetMuteRequest {
        instance: "asleep".to_owned(),
        lines,
        ..Default::default()
    };
    api.instance.set_mute(timed(mute(7))).await?;

    server.signal(Signal::STOP)?;
    let mut request = Request::new(mute(8));
    request.set_timeout(Duration::from_secs(2));
    let status = api.instance.set_mute(request).await.err();
    let status = status.context("who answered?")?;
    ensure!(status.code() == Code::DeadlineExceeded, "{status:?}");
    ensure!(
        reason(&status).as_deref() == Some("OUTCOME_UNKNOWN"),
        "{status:?}"
    );
    // And indeed it was sent: it is carried out when the daemon goes on.
    server.signal(Signal::CONT)?;
    poll_until("the change", SOON, async || {
        let request = GetSettingsRequest {
            instance: "asleep".to_owned(),
        };
        // Refused until the gateway is in step with it again.
        let settings = api.instance.get_settings(timed(request)).await;
        let muted = settings.is_ok_and(|settings| settings.get_ref().mute == 8);
        Ok(muted.then_some(()))
    })
    .await
}
