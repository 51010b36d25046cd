//! Ending clients: exactly those who were meant, and the caller learns what became of each.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ovfleet_proto::v1::{self, ClientFilter, ClientRef, KillClientsRequest, KillMode, Outcome};
use ovfleet_tests::{
    Api, Client, Gateway, GatewayConfig, Management, ODD_COMMON_NAMES, Proto, Server,
    api::{all, by_name, by_refs, named, reason},
};
use tonic::Code;

/// A killed client stays in its daemon's table for up to 5 s.
const GONE: Duration = Duration::from_secs(15);
/// A new client is known as soon as its daemon says so; this covers a busy machine.
const SOON: Duration = Duration::from_secs(10);

async fn attach(servers: &[&Server]) -> Result<(Gateway, Api)> {
    let gateway = GatewayConfig::of(servers.iter().copied()).start().await?;
    let mut api = Api::connect(&gateway).await?;
    api.wait_attached().await?;
    Ok((gateway, api))
}

fn refs(clients: &[v1::Client]) -> Vec<ClientRef> {
    clients
        .iter()
        .filter_map(|client| client.r#ref.clone())
        .collect()
}

/// If a name were ever parsed as an address, split at a colon or a comma, matched as a
/// prefix, or decoded lossily, somebody else would be killed, or the one meant would not.
#[tokio::test]
async fn a_name_hits_everyone_of_that_name_and_nobody_else() -> Result<()> {
    let udp = Server::builder("udp").start().await?;
    let tcp = Server::builder("tcp")
        .proto(Proto::Tcp)
        .management(Management::Tcp)
        .password("s3cret pass")
        .start()
        .await?;
    // What a careless parser would take the odd names for.
    let bystanders = ["a", "bob", "anna", "smith", "UNDEF", "host", "END "];
    let mut meant = Vec::new();
    let mut spared = Vec::new();
    for server in [&udp, &tcp] {
        for name in ODD_COMMON_NAMES {
            meant.push(Client::builder(server, name).start()?);
        }
        for name in bystanders {
            spared.push(Client::builder(server, name).start()?);
        }
    }
    for client in meant.iter_mut().chain(&mut spared) {
        client.wait_connected(1).await?;
    }
    let (gateway, mut api) = attach(&[&udp, &tcp]).await?;
    let total = meant.len() + spared.len();
    api.wait_clients(ClientFilter::default(), total, SOON)
        .await?;

    for names in ODD_COMMON_NAMES.chunks(4) {
        let kills = names.iter().map(|name| {
            let mut api = api.clone();
            async move {
                let killed = api
                    .kill(KillClientsRequest {
                        selector: all(),
                        filter: Some(by_name(name)),
                        mode: KillMode::Halt.into(),
                        wait: true,
                        ..Default::default()
                    })
                    .await?;
                Ok::<_, anyhow::Error>((*name, killed))
            }
        });
        for (name, killed) in futures_util::future::try_join_all(kills).await? {
            let hit: Vec<(&str, &str, Outcome)> = killed
                .results
                .iter()
                .map(|result| {
                    let instance = result.r#ref.as_ref().map_or("", |r| &r.instance);
                    (instance, result.common_name.as_str(), result.outcome())
                })
                .collect();
            let expected = [
                ("tcp", name, Outcome::Confirmed),
                ("udp", name, Outcome::Confirmed),
            ];
            ensure!(hit == expected, "{name:?}: {killed:#?}");
            let asked: Vec<(bool, u64)> = killed
                .instances
                .iter()
                .map(|it| (it.asked, it.matched))
                .collect();
            ensure!(asked == [(true, 1), (true, 1)], "{name:?}: {killed:#?}");
        }
    }

    for client in &mut meant {
        client.wait_ended(GONE).await?;
    }
    let left = api
        .wait_clients(ClientFilter::default(), spared.len(), GONE)
        .await?;
    for client in &left {
        ensure!(
            bystanders.contains(&client.common_name.as_str()),
            "{client:?}"
        );
    }
    for client in &mut spared {
        ensure!(client.is_running()?, "{:?} was hit", client.common_name());
        ensure!(
            client.connections() == 1,
            "{:?} was hit",
            client.common_name()
        );
    }
    drop(gateway);
    Ok(())
}

/// A name that is not UTF-8 must be killable by its bytes, and by nothing that merely
/// looks like it.
#[tokio::test]
async fn a_username_need_not_be_utf8() -> Result<()> {
    const LATIN1: &[u8] = b"caf\xe9";
    let server = Server::builder("login").any_username().start().await?;
    let mut raw = Client::builder(&server, "raw")
        .username(LATIN1)
        .connect()
        .await?;
    let mut lookalike = Client::builder(&server, "lookalike")
        .username("caf\u{fffd}".as_bytes())
        .connect()
        .await?;
    let (_gateway, mut api) = attach(&[&server]).await?;
    let rows = api.wait_clients(ClientFilter::default(), 2, SOON).await?;
    let row = rows
        .iter()
        .find(|row| row.common_name == "raw")
        .context("no row")?;
    ensure!(
        row.username == "caf\u{fffd}" && row.username_raw == LATIN1,
        "{row:?}"
    );
    let other = rows
        .iter()
        .find(|row| row.common_name == "lookalike")
        .context("no row")?;
    ensure!(
        other.username == "caf\u{fffd}" && other.username_raw.is_empty(),
        "{other:?}"
    );

    let text = ClientFilter {
        usernames: vec!["caf\u{fffd}".to_owned()],
        ..Default::default()
    };
    let found = api.clients(text).await?;
    ensure!(
        found.len() == 1 && found[0].common_name == "lookalike",
        "{found:?}"
    );

    let bytes = ClientFilter {
        usernames_raw: vec![LATIN1.into()],
        ..Default::default()
    };
    let killed = api
        .kill(KillClientsRequest {
            selector: all(),
            filter: Some(bytes),
            mode: KillMode::Halt.into(),
            wait: true,
            ..Default::default()
        })
        .await?;
    ensure!(killed.results.len() == 1, "{killed:#?}");
    ensure!(
        killed.results[0].outcome() == Outcome::Confirmed,
        "{killed:#?}"
    );
    ensure!(killed.results[0].username_raw == LATIN1, "{killed:#?}");
    raw.wait_ended(GONE).await?;
    ensure!(lookalike.is_running()? && lookalike.connections() == 1);
    Ok(())
}

/// HALT that lets the client back in, or RESTART that does not, or a successor that is
/// somebody else, would each make an operator act on a fleet that is not there.
#[tokio::test]
async fn halt_keeps_out_and_restart_names_the_successor() -> Result<()> {
    let server = Server::builder("modes").start().await?;
    let mut halted = Client::builder(&server, "halted").connect().await?;
    let mut restarted = Client::builder(&server, "restarted").connect().await?;
    let (_gateway, mut api) = attach(&[&server]).await?;
    api.wait_clients(ClientFilter::default(), 2, SOON).await?;
    let log = api.follow().await?;

    let kill = |name: &str, mode: KillMode, id: &str| KillClientsRequest {
        selector: named(&["modes"]),
        filter: Some(by_name(name)),
        mode: mode.into(),
        wait: true,
        request_id: id.to_owned(),
        ..Default::default()
    };
    let restart = api
        .kill(kill("restarted", KillMode::Restart, "one"))
        .await?;
    let [result] = restart.results.as_slice() else {
        anyhow::bail!("{restart:#?}");
    };
    ensure!(result.outcome() == Outcome::Confirmed, "{restart:#?}");
    restarted.wait_connected(2).await?;
    let back = api.wait_clients(by_name("restarted"), 1, SOON).await?;
    ensure!(
        back[0].r#ref != result.r#ref,
        "the same client is still there: {back:?}"
    );
    let (gone, _) = log
        .wait_event("the end of the restarted client", SOON, |event| {
            event.kind == "client.disconnected"
                && event
                    .client
                    .as_ref()
                    .is_some_and(|client| client.r#ref == result.r#ref)
        })
        .await?;
    let Some(v1::event::Detail::Disconnected(detail)) = &gone.detail else {
        anyhow::bail!("{gone:#?}");
    };
    ensure!(detail.cause() == v1::DisconnectCause::Killed, "{gone:#?}");
    let action = detail.caused_by.as_ref().context("nobody is to blame")?;
    ensure!(
        action.request_id == "one" && !action.caller.is_empty(),
        "{gone:#?}"
    );
    // Either the answer came late enough to know it, or the event did.
    let successor = result.successor.as_ref().or(detail.successor.as_ref());
    ensure!(
        successor == back[0].r#ref.as_ref(),
        "{restart:#?} {gone:#?} {back:#?}"
    );

    let halt = api.kill(kill("halted", KillMode::Halt, "two")).await?;
    ensure!(halt.results.len() == 1, "{halt:#?}");
    ensure!(halt.results[0].outcome() == Outcome::Confirmed, "{halt:#?}");
    ensure!(halt.results[0].successor.is_none(), "{halt:#?}");
    halted.wait_ended(GONE).await?;
    api.wait_clients(ClientFilter::default(), 1, GONE).await?;

    // The same id again sends nothing again; another request under it is refused.
    let commands = server.log_count("CMD 'client-kill");
    let again = api.kill(kill("halted", KillMode::Halt, "two")).await?;
    ensure!(again.results == halt.results, "{again:#?}");
    ensure!(server.log_count("CMD 'client-kill") == commands);
    let other = api.kill(kill("restarted", KillMode::Halt, "two")).await;
    let status = other.err().context("an id was used twice")?;
    ensure!(status.code() == Code::AlreadyExists, "{status:?}");
    ensure!(
        reason(&status).as_deref() == Some("REQUEST_ID_REUSED"),
        "{status:?}"
    );
    Ok(())
}

/// Between a plan and its confirmation the fleet moves: whoever came after the plan was
/// not part of it and must live.
#[tokio::test]
async fn a_confirmed_plan_spares_those_who_came_later() -> Result<()> {
    let server = Server::builder("plan").duplicate_cn().start().await?;
    let mut planned = Client::builder(&server, "alice").connect().await?;
    let (_gateway, mut api) = attach(&[&server]).await?;
    api.wait_clients(by_name("alice"), 1, SOON).await?;

    let plan = api
        .kill(KillClientsRequest {
            selector: all(),
            filter: Some(by_name("alice")),
            validate_only: true,
            ..Default::default()
        })
        .await?;
    ensure!(plan.validate_only && plan.results.len() == 1, "{plan:#?}");
    ensure!(plan.results[0].outcome() == Outcome::Planned, "{plan:#?}");
    ensure!(
        !server.log_contains("CMD 'client-kill"),
        "a plan sends nothing"
    );
    let refs: Vec<ClientRef> = plan
        .results
        .iter()
        .filter_map(|result| result.r#ref.clone())
        .collect();

    let mut newcomer = Client::builder(&server, "alice").connect().await?;
    api.wait_clients(by_name("alice"), 2, SOON).await?;
    let killed = api
        .kill(KillClientsRequest {
            selector: all(),
            filter: Some(by_refs(refs)),
            mode: KillMode::Halt.into(),
            wait: true,
            ..Default::default()
        })
        .await?;
    ensure!(killed.results.len() == 1, "{killed:#?}");
    ensure!(
        killed.results[0].outcome() == Outcome::Confirmed,
        "{killed:#?}"
    );
    planned.wait_ended(GONE).await?;
    api.wait_clients(by_name("alice"), 1, GONE).await?;
    ensure!(newcomer.is_running()? && newcomer.connections() == 1);
    Ok(())
}

/// An action that is broader than its caller thought must be refused as a whole, before
/// anything is sent.
#[tokio::test]
async fn too_broad_kills_send_nothing() -> Result<()> {
    let one = Server::builder("one").start().await?;
    let two = Server::builder("two").start().await?;
    let mut clients = Vec::new();
    for (server, name) in [(&one, "alice"), (&one, "bob"), (&two, "carol")] {
        clients.push(Client::builder(server, name).connect().await?);
    }
    let (gateway, mut api) = attach(&[&one, &two]).await?;
    let rows = api.wait_clients(ClientFilter::default(), 3, SOON).await?;

    let everyone = KillClientsRequest {
        selector: all(),
        every_client: true,
        ..Default::default()
    };
    let unselected = KillClientsRequest {
        selector: None,
        ..everyone.clone()
    };
    let unfiltered = KillClientsRequest {
        every_client: false,
        ..everyone.clone()
    };
    let two_clients = KillClientsRequest {
        max_clients: 2,
        ..everyone.clone()
    };
    let one_instance = KillClientsRequest {
        max_instances: 1,
        ..everyone.clone()
    };
    let bad_text = KillClientsRequest {
        mode: KillMode::Message.into(),
        message: "RESTART\nsignal SIGTERM".to_owned(),
        ..everyone.clone()
    };
    let long_text = KillClientsRequest {
        mode: KillMode::Message.into(),
        message: "x".repeat(300),
        ..everyone
    };
    for (request, code, expected) in [
        (unselected, Code::InvalidArgument, "SELECTOR_EMPTY"),
        (unfiltered, Code::InvalidArgument, "FILTER_EMPTY"),
        (two_clients, Code::FailedPrecondition, "TOO_MANY_CLIENTS"),
        (one_instance, Code::FailedPrecondition, "TOO_MANY_INSTANCES"),
        (bad_text, Code::InvalidArgument, ""),
        (long_text, Code::InvalidArgument, ""),
    ] {
        let status = api.kill(request.clone()).await.err();
        let status = status.with_context(|| format!("accepted: {request:?}"))?;
        ensure!(status.code() == code, "{request:?}: {status:?}");
        if !expected.is_empty() {
            ensure!(
                reason(&status).as_deref() == Some(expected),
                "{request:?}: {status:?}"
            );
        }
    }

    // Selecting nothing is no error of the call, and of the command line it is.
    let nobody = KillClientsRequest {
        selector: all(),
        filter: Some(by_name("nobody")),
        ..Default::default()
    };
    let answer = api.kill(nobody).await?;
    ensure!(
        answer.results.is_empty() && answer.instances.len() == 2,
        "{answer:#?}"
    );
    let none = gateway
        .cli(&["kill", "--all", "--common-name", "nobody", "--yes"])
        .await?;
    ensure!(none.code == Some(1), "{none:?}");
    let unsure = gateway
        .cli(&["kill", "--all", "--common-name", "alice"])
        .await?;
    ensure!(
        unsure.code == Some(2) && unsure.stderr.contains("alice"),
        "{unsure:?}"
    );
    let unscoped = gateway
        .cli(&["kill", "--common-name", "alice", "--yes"])
        .await?;
    ensure!(unscoped.code == Some(2), "{unscoped:?}");
    let unfiltered = gateway.cli(&["kill", "--all", "--yes"]).await?;
    ensure!(unfiltered.code == Some(2), "{unfiltered:?}");

    for server in [&one, &two] {
        ensure!(
            !server.log_contains("CMD 'client-kill"),
            "{} was sent a kill",
            server.name()
        );
    }
    ensure!(refs(&api.clients(ClientFilter::default()).await?) == refs(&rows));
    for client in &mut clients {
        ensure!(client.is_running()? && client.connections() == 1);
    }
    Ok(())
}

/// The command line's kill is the API's: same targets, its results, an exit code to
/// build on.
#[tokio::test]
async fn the_command_line_kills() -> Result<()> {
    let one = Server::builder("one").start().await?;
    let two = Server::builder("two").start().await?;
    let mut meant = Vec::new();
    for server in [&one, &two] {
        meant.push(
            Client::builder(server, "bob,10.9.9.9:1,0,0")
                .connect()
                .await?,
        );
    }
    let mut spared = Client::builder(&one, "bob").connect().await?;
    let (gateway, mut api) = attach(&[&one, &two]).await?;
    api.wait_clients(ClientFilter::default(), 3, SOON).await?;
    let killed = gateway
        .cli_json(&[
            "kill",
            "--common-name",
            "bob,10.9.9.9:1,0,0",
            "--all",
            "--mode",
            "halt",
            "--wait",
            "--yes",
        ])
        .await?;
    let results = killed["results"]
        .as_array()
        .with_context(|| killed.to_string())?;
    ensure!(results.len() == 2, "{killed:#}");
    for result in results {
        ensure!(result["outcome"] == "OUTCOME_CONFIRMED", "{killed:#}");
        ensure!(result["commonName"] == "bob,10.9.9.9:1,0,0", "{killed:#}");
    }
    for client in &mut meant {
        client.wait_ended(GONE).await?;
    }
    ensure!(spared.is_running()? && spared.connections() == 1);
    let actions = gateway.cli_json(&["actions"]).await?;
    ensure!(actions.to_string().contains("killClients"), "{actions:#}");
    Ok(())
}
