//! New options for connected clients: OpenVPN 2.7 alone can push them, and only to clients that understand.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use openvpn_simulator::{ClientSpec, Daemon, How, Timing, Version};
use ovfleet_proto::v1::{ClientFilter, ClientRef, PushUpdateRequest, PushUpdateResponse};
use ovfleet_tests::{
    Api, GatewayConfig, InstanceConfig,
    api::{reason, timed},
    poll_until,
};
use tonic::{Code, Status};

/// A simulated client is there at once; this covers a busy machine.
const SOON: Duration = Duration::from_secs(15);
const OPTIONS: &str = "dns server 0 address 10.8.0.1, -route";

/// One client or all get what they are meant to get, nobody else does, and who cannot is refused with the reason.
#[tokio::test]
async fn options_are_pushed_to_those_who_take_them() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut daemons = Vec::new();
    let mut config = GatewayConfig::new();
    for (name, version) in [("old", Version::V2_6), ("new", Version::V2_7)] {
        let path = directory.path().join(name);
        let timing = Timing {
            delayed_exit: Duration::from_millis(100),
            ..Timing::default()
        };
        let daemon = Daemon::builder(name).version(version).timing(timing);
        let daemon = daemon.unix(&path).start().await?;
        for (name, release) in [("alice", "2.7.6"), ("bob", "2.6.14")] {
            let client = ClientSpec::new(name).software(release, "linux");
            daemon.connect(client.stays_away()).await?;
        }
        let address = format!("unix:{}", path.display());
        config = config.instance(InstanceConfig::new(name, &address));
        daemons.push(daemon);
    }
    let [old, new] = &daemons[..] else {
        anyhow::bail!("two daemons");
    };
    let gateway = config.start().await?;
    let mut api = Api::connect(&gateway).await?;
    api.wait_attached().await?;
    api.wait_clients(ClientFilter::default(), 4, SOON).await?;
    let alice = client(&mut api, "new", "alice").await?;
    let bob = client(&mut api, "new", "bob").await?;

    let words = push(&mut api, "new", Some(&alice)).await?.text;
    ensure!(words == "push-update command succeeded", "{words}");
    ensure_sent(new, &format!("push-update-cid {} ", alice.cid), 1)?;
    let words = push(&mut api, "new", None).await?.text;
    ensure!(words == "push-update command succeeded", "{words}");
    ensure_sent(new, "push-update-broad ", 1)?;
    let output = gateway
        .cli(&[
            "push-update",
            OPTIONS,
            "--every-client",
            "--instance",
            "new",
        ])
        .await?;
    ensure!(output.code == Some(0), "{output:?}");
    ensure_sent(new, "push-update-broad ", 2)?;

    // A client of 2.6 would not know what to do with it, and the daemon says so.
    let refused = refusal(push(&mut api, "new", Some(&bob)).await)?;
    ensure_refused(&refused, Code::FailedPrecondition, "REJECTED")?;
    // Somebody else's number by now, for all we know.
    let stale = ClientRef {
        generation: "1".to_owned(),
        ..alice.clone()
    };
    let refused = refusal(push(&mut api, "new", Some(&stale)).await)?;
    ensure_refused(&refused, Code::FailedPrecondition, "STALE")?;
    new.leave(alice.cid, How::ExitNotify).await?;
    api.wait_clients(ClientFilter::default(), 3, SOON).await?;
    let refused = refusal(push(&mut api, "new", Some(&alice)).await)?;
    ensure_refused(&refused, Code::NotFound, "CLIENT_GONE")?;
    // None of these got as far as the daemon, but for the one that it refused.
    ensure_sent(new, "push-update-cid ", 2)?;

    let somebody = client(&mut api, "old", "alice").await?;
    for whom in [None, Some(&somebody)] {
        let refused = refusal(push(&mut api, "old", whom).await)?;
        ensure_refused(&refused, Code::FailedPrecondition, "VERSION_LACKS_IT")?;
        ensure!(
            refused.message().contains("needs OpenVPN 2.7")
                && refused.message().contains("is OpenVPN 2.6"),
            "{refused:?}"
        );
    }
    ensure_sent(old, "push-update", 0)?;
    let nobody = PushUpdateRequest {
        instance: "new".to_owned(),
        options: OPTIONS.to_owned(),
        ..Default::default()
    };
    let refused = api.instance.push_update(timed(nobody)).await.unwrap_err();
    ensure_refused(&refused, Code::InvalidArgument, "CLIENT_INVALID")
}

/// Pushes to that client, or to everybody.
async fn push(
    api: &mut Api,
    instance: &str,
    client: Option<&ClientRef>,
) -> Result<PushUpdateResponse, Status> {
    let request = PushUpdateRequest {
        instance: instance.to_owned(),
        client: client.cloned(),
        every_client: client.is_none(),
        options: OPTIONS.to_owned(),
        ..Default::default()
    };
    let pushed = api.instance.push_update(timed(request)).await?;
    Ok(pushed.into_inner())
}

fn refusal(pushed: Result<PushUpdateResponse, Status>) -> Result<Status> {
    pushed.err().context("it was pushed")
}

fn ensure_refused(refused: &Status, code: Code, word: &str) -> Result<()> {
    ensure!(
        refused.code() == code && reason(refused).as_deref() == Some(word),
        "{refused:?}"
    );
    Ok(())
}

/// How many commands that begin so the daemon was sent; each with all of the options.
fn ensure_sent(daemon: &Daemon, begin: &str, count: usize) -> Result<()> {
    let commands = daemon.commands();
    let sent: Vec<_> = commands
        .iter()
        .map(|command| String::from_utf8_lossy(command))
        .filter(|command| command.starts_with(begin))
        .collect();
    ensure!(sent.len() == count, "{sent:?}");
    let quoted = format!(" \"{OPTIONS}\"");
    ensure!(
        sent.iter().all(|command| command.ends_with(&quoted)),
        "{sent:?}"
    );
    Ok(())
}

async fn client(api: &mut Api, instance: &str, name: &str) -> Result<ClientRef> {
    let what = format!("{name} of {instance}");
    poll_until(&what, SOON, async || {
        let rows = api.clients(ClientFilter::default()).await?;
        let refs = rows.into_iter().filter(|row| row.common_name == name);
        let mut refs = refs.filter_map(|row| row.r#ref);
        Ok(refs.find(|client| client.instance == instance))
    })
    .await
}
