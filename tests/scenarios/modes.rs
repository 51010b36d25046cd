//! Daemons in other modes than the usual: clients that are instances, servers that ask
//! their manager, and clients that are not through yet.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ovfleet_proto::v1::{
    self, ClientFilter, Condition, DaemonMode, KillClientsRequest, Outcome, event::Detail,
};
use ovfleet_tests::{
    Api, Client, GatewayConfig, InstanceConfig, LAB_PASSWORD, Proto, Server,
    api::{all, named, timed},
    poll_until,
};
use tokio::net::TcpStream;

/// A new client is known as soon as its daemon says so; this covers a busy machine.
const SOON: Duration = Duration::from_secs(15);

/// A VPN client's own daemon has a management socket too: it must not be taken for a
/// server without clients.
#[tokio::test]
async fn a_vpn_client_is_an_instance_too() -> Result<()> {
    let server = Server::builder("server").proto(Proto::Tcp).start().await?;
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("client.sock");
    let mut client = Client::builder(&server, "branch office")
        .option(&format!("management {} unix", socket.display()))
        .connect()
        .await?;
    let gateway = GatewayConfig::of([&server])
        .instance(InstanceConfig::new(
            "branch",
            &format!("unix:{}", socket.display()),
        ))
        .start()
        .await?;
    let mut api = Api::connect(&gateway).await?;
    api.wait_attached().await?;
    let status = api.status("branch").await?;
    ensure!(status.mode() == DaemonMode::Client, "{status:#?}");
    ensure!(status.clients == 0 && status.pid > 0, "{status:#?}");
    ensure!(api.status("server").await?.mode() == DaemonMode::Server);
    api.wait_clients(ClientFilter::default(), 1, SOON).await?;

    let log = api.follow().await?;
    let restart = v1::SignalInstancesRequest {
        selector: named(&["branch"]),
        signal: v1::Signal::Sigusr1.into(),
        wait_for: v1::SignalWait::Connected.into(),
        ..Default::default()
    };
    let answer = api.signal(restart).await?;
    ensure!(
        answer.results[0].outcome() == Outcome::Confirmed,
        "{answer:#?}"
    );
    client.wait_connected(2).await?;
    // What a client goes through is more than a server does.
    for state in ["RECONNECTING", "WAIT", "AUTH", "CONNECTED"] {
        log.wait_event(state, SOON, |event| {
            event.instance == "branch"
                && matches!(&event.detail, Some(Detail::State(told)) if told.state == state)
        })
        .await?;
    }
    Ok(())
}

/// A client has no clients whose bytes could be added up: what it carries itself is what its instance shows, as exactly
/// as the daemon knows it, over its restarts too.
#[tokio::test]
async fn what_a_client_daemon_carries_is_counted() -> Result<()> {
    let server = Server::builder("server").start().await?;
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("client.sock");
    let gateway = GatewayConfig::new()
        .instance(
            InstanceConfig::new("branch", &format!("unix:{}", socket.display()))
                .set("bytecount", "1s"),
        )
        .start()
        .await?;
    let mut api = Api::connect(&gateway).await?;
    // Held until the gateway is there: nothing is carried before.
    let mut client = Client::builder(&server, "branch office")
        .option(&format!("management {} unix", socket.display()))
        .option("management-hold")
        .connect()
        .await?;
    let first = wait_counted(&mut api).await?;
    let restart = v1::SignalInstancesRequest {
        selector: named(&["branch"]),
        signal: v1::Signal::Sigusr1.into(),
        ..Default::default()
    };
    api.signal(restart).await?;
    client.wait_connected(2).await?;
    poll_until("another handshake in the counters", SOON, async || {
        let status = api.status("branch").await?;
        ensure!(status.counting_since == first.counting_since, "{status:?}");
        Ok((status.bytes_received > first.bytes_received + 1_000).then_some(()))
    })
    .await?;
    let status = wait_counted(&mut api).await?;
    ensure!(status.mode() == DaemonMode::Client, "{status:#?}");

    let summary = api
        .fleet
        .get_summary(timed(v1::GetSummaryRequest::default()))
        .await?;
    let totals = summary.into_inner().totals.context("no totals")?;
    ensure!(
        totals.bytes_received >= status.bytes_received && totals.clients == 0,
        "{totals:?}"
    );
    // Its own counters are of its last connection, of which every byte was authentic or part of the handshake.
    let request = v1::RefreshRequest {
        instance: "branch".to_owned(),
    };
    api.instance.refresh(timed(request)).await?;
    let status = api.status("branch").await?;
    let statistics = status.statistics.as_ref().context("no statistics")?;
    ensure!(
        statistics.link_read_bytes > 1_000 && statistics.link_read_bytes < status.bytes_received,
        "{status:#?}"
    );
    Ok(())
}

/// Waits until the counters are what the daemon itself has carried.
async fn wait_counted(api: &mut Api) -> Result<v1::InstanceStatus> {
    let mut last = String::new();
    let found = poll_until("the daemon's own counters", SOON, async || {
        let request = v1::GetLoadStatsRequest {
            instance: "branch".to_owned(),
        };
        let Ok(stats) = api.instance.get_load_stats(timed(request)).await else {
            return Ok(None);
        };
        let (stats, status) = (stats.into_inner(), api.status("branch").await?);
        last = format!("{stats:?} {status:?}");
        let is_same = status.state == "CONNECTED"
            && (status.bytes_received, status.bytes_sent)
                == (stats.bytes_received, stats.bytes_sent);
        Ok(is_same.then_some(status))
    })
    .await;
    found.with_context(|| last)
}

/// A daemon that asks its manager about every client hands it their passwords: they must
/// appear nowhere, and the gateway must not answer for somebody else.
#[tokio::test]
async fn attempts_are_told_without_their_passwords() -> Result<()> {
    let server = Server::builder("asking")
        .option("management-client-auth")
        .start()
        .await?;
    let gateway = GatewayConfig::of([&server]).start().await?;
    let mut api = Api::connect(&gateway).await?;
    api.wait_attached().await?;
    let log = api.follow().await?;
    let mut client = Client::builder(&server, "alice")
        .username(b"al ice")
        .start()?;
    let (attempt, _) = log
        .wait_event("the attempt", SOON, |event| event.kind == "client.attempt")
        .await?;
    let told = attempt.client.as_ref().context("no client")?;
    ensure!(
        (told.common_name.as_str(), told.username.as_str()) == ("alice", "al ice"),
        "{told:?}"
    );
    ensure!(client.connections() == 0, "who let it in?");
    client.vanish();
    let full = v1::ListClientsRequest {
        view: v1::View::Full.into(),
        ..Default::default()
    };
    let rows = api.fleet.list_clients(timed(full)).await?.into_inner();
    for text in [
        format!("{:?}", log.received()),
        format!("{rows:?}"),
        gateway.log(),
    ] {
        ensure!(!text.contains(LAB_PASSWORD), "a password leaked: {text}");
    }
    Ok(())
}

/// Whoever only knocks must be visible as what it is, counted apart, and removable.
#[tokio::test]
async fn half_open_clients_are_marked_and_counted_apart() -> Result<()> {
    let server = Server::builder("knock").proto(Proto::Tcp).start().await?;
    let mut client = Client::builder(&server, "alice").connect().await?;
    let gateway = GatewayConfig::of([&server]).start().await?;
    let mut api = Api::connect(&gateway).await?;
    api.wait_condition("knock", Condition::Attached, SOON)
        .await?;
    api.wait_clients(ClientFilter::default(), 1, SOON).await?;
    let knocker = TcpStream::connect(("127.0.0.1", server.vpn_port())).await?;
    let only_half_open = ClientFilter {
        half_open: Some(true),
        ..Default::default()
    };
    let address = knocker.local_addr()?.to_string();
    poll_until("the knocker in the table", SOON, async || {
        let rows = api.clients(only_half_open.clone()).await?;
        ensure!(
            rows.iter()
                .all(|row| row.half_open && row.common_name.is_empty() && row.cipher.is_empty()),
            "{rows:?}"
        );
        Ok(rows
            .iter()
            .any(|row| row.real_address == address)
            .then_some(()))
    })
    .await?;
    let complete = ClientFilter {
        half_open: Some(false),
        ..Default::default()
    };
    ensure!(api.clients(complete).await?.len() == 1);
    ensure!(api.clients(ClientFilter::default()).await?.len() == 2);
    let summary = api
        .fleet
        .get_summary(timed(v1::GetSummaryRequest::default()))
        .await?;
    let totals = summary.into_inner().totals.context("no totals")?;
    ensure!(
        (totals.clients, totals.half_open_clients) == (1, 1),
        "{totals:?}"
    );

    let killed = api
        .kill(KillClientsRequest {
            selector: all(),
            filter: Some(only_half_open.clone()),
            wait: true,
            ..Default::default()
        })
        .await?;
    ensure!(killed.results.len() == 1, "{killed:#?}");
    ensure!(killed.results[0].real_address == address, "{killed:#?}");
    ensure!(
        killed.results[0].outcome() == Outcome::Confirmed,
        "{killed:#?}"
    );
    ensure!(client.is_running()? && client.connections() == 1);
    Ok(())
}
