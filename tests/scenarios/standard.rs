//! What callers and monitors take for granted: health, reflection, metrics, TLS, and the
//! rules for plain text.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ovfleet_proto::v1::{ClientFilter, Condition, KillClientsRequest};
use ovfleet_tests::{
    Api, Client, GatewayConfig, Server, TcpListener,
    api::{all, reason},
    poll_until, run_cli,
};
use tonic::{Code, transport::Endpoint};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::{v1 as reflection, v1alpha as reflection_alpha};

/// A new client is known as soon as its daemon says so; this covers a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// A load balancer asks for health, grpcurl asks for reflection: without them the API is
/// there and nobody finds it.
#[tokio::test]
async fn health_and_reflection_answer() -> Result<()> {
    let gateway = GatewayConfig::new().start().await?;
    let channel = gateway.channel().await?;
    let mut health = HealthClient::new(channel.clone());
    for service in ["", "ovfleet.v1.FleetService", "ovfleet.v1.ControlService"] {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let status = health.check(request.clone()).await?.into_inner().status();
        ensure!(status == ServingStatus::Serving, "{service:?}: {status:?}");
        let mut watch = health.watch(request).await?.into_inner();
        let first = watch.message().await?.context("no health")?.status();
        ensure!(first == ServingStatus::Serving, "{service:?}: {first:?}");
    }

    let list = reflection::server_reflection_request::MessageRequest::ListServices(String::new());
    let request = reflection::ServerReflectionRequest {
        message_request: Some(list),
        ..Default::default()
    };
    let mut client =
        reflection::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let mut answers = client
        .server_reflection_info(tokio_stream::once(request))
        .await?
        .into_inner();
    let answer = format!("{:?}", answers.message().await?);
    let list =
        reflection_alpha::server_reflection_request::MessageRequest::ListServices(String::new());
    let request = reflection_alpha::ServerReflectionRequest {
        message_request: Some(list),
        ..Default::default()
    };
    let mut client =
        reflection_alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let mut answers = client
        .server_reflection_info(tokio_stream::once(request))
        .await?
        .into_inner();
    let alpha = format!("{:?}", answers.message().await?);
    for service in ["FleetService", "EventService", "ControlService"] {
        let name = format!("ovfleet.v1.{service}");
        ensure!(
            answer.contains(&name) && alpha.contains(&name),
            "{answer} {alpha}"
        );
    }
    Ok(())
}

/// A metric that grows a series per client, or carries names, would be a leak and a cost.
#[tokio::test]
async fn metrics_and_probes_tell_the_fleet() -> Result<()> {
    let server = Server::builder("measured").start().await?;
    let _client = Client::builder(&server, "alice").connect().await?;
    let gateway = GatewayConfig::of([&server]).start().await?;
    let mut api = Api::connect(&gateway).await?;
    api.wait_attached().await?;
    api.wait_clients(ClientFilter::default(), 1, SOON).await?;
    for path in ["/healthz", "/readyz"] {
        let (code, _) = gateway.http_get(path).await?;
        ensure!(code == 200, "{path}: {code}");
    }
    let (code, metrics) = gateway.http_get("/metrics").await?;
    ensure!(code == 200, "{code}");
    for word in [
        "instances",
        "clients",
        "bytes",
        "events",
        "commands",
        "journal",
    ] {
        ensure!(metrics.contains(word), "nothing about {word}: {metrics}");
    }
    ensure!(
        !metrics.contains("alice"),
        "a client's name is in the metrics: {metrics}"
    );
    let (code, _) = gateway.http_get("/nothing").await?;
    ensure!(code == 404, "{code}");
    Ok(())
}

/// Plain text on loopback lets any local user in: they may look, and act only where the
/// operator said so.
#[tokio::test]
async fn plain_text_is_read_only_unless_said_otherwise() -> Result<()> {
    for (listener, refused) in [(TcpListener::ReadOnly, true), (TcpListener::Control, false)] {
        let gateway = GatewayConfig::new().listen_tcp(listener).start().await?;
        let endpoint = Endpoint::try_from(format!("http://{}", gateway.tcp_address()))?;
        let channel = poll_until("the TCP listener", SOON, async || {
            Ok(endpoint.connect().await.ok())
        })
        .await?;
        let mut api = Api::new(channel);
        api.instances().await?;
        let request = KillClientsRequest {
            selector: all(),
            every_client: true,
            ..Default::default()
        };
        let answer = api.kill(request).await;
        if refused {
            let status = answer.err().context("a kill over plain text")?;
            ensure!(status.code() == Code::PermissionDenied, "{status:?}");
            ensure!(
                reason(&status).as_deref() == Some("READ_ONLY_LISTENER"),
                "{status:?}"
            );
        } else {
            ensure!(answer?.results.is_empty());
        }
    }
    Ok(())
}

/// With TLS both sides show a certificate: ours is accepted, none is not.
#[tokio::test]
async fn tls_lets_in_who_has_a_certificate() -> Result<()> {
    let server = Server::builder("tls").start().await?;
    let gateway = GatewayConfig::of([&server])
        .listen_tcp(TcpListener::Tls)
        .start()
        .await?;
    let mut api = Api::connect(&gateway).await?;
    api.wait_condition("tls", Condition::Attached, SOON).await?;
    let files = gateway.tls();
    let address = format!("https://{}", gateway.tcp_address());
    let with_ca = [
        "instances",
        "--gateway",
        &address,
        "--tls-ca",
        &files.ca,
        "--tls-name",
        "localhost",
    ];
    let own = ["--tls-cert", &files.certificate, "--tls-key", &files.key];
    let inside = run_cli(&[&with_ca[..], &own].concat(), &[]).await?;
    ensure!(
        inside.code == Some(0) && inside.stdout.contains("tls"),
        "{inside:?}"
    );
    let nobody = run_cli(&with_ca, &[]).await?;
    ensure!(nobody.code == Some(3), "{nobody:?}");
    let plain = format!("http://{}", gateway.tcp_address());
    let plain = run_cli(&["instances", "--gateway", &plain], &[]).await?;
    ensure!(plain.code == Some(3), "{plain:?}");
    Ok(())
}
