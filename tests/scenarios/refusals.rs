//! Requests and configurations that cannot be meant: refused as a whole, with a reason
//! that says where.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ovfleet_proto::v1::{
    self, ClientFilter, Condition, InstanceSelector, ListClientsRequest, StreamEventsRequest,
    stream_events_request::Start,
};
use ovfleet_tests::{
    Api, GatewayConfig, InstanceConfig, Server,
    api::{named, reason, timed},
    run_cli,
};
use tonic::{Code, Status};

/// Reading a configuration takes no time; the machine may.
const SOON: Duration = Duration::from_secs(10);

fn labels(labels: &str) -> Option<InstanceSelector> {
    Some(InstanceSelector {
        labels: labels.to_owned(),
        ..Default::default()
    })
}

/// A selector or filter that is not understood must never be taken for "all" or "none".
#[tokio::test]
async fn malformed_reads_are_refused_with_the_field() -> Result<()> {
    let gateway = GatewayConfig::new()
        .instance(InstanceConfig::new("nowhere", "tcp:127.0.0.1:9").label("region", "eu"))
        .start()
        .await?;
    let mut api = Api::connect(&gateway).await?;
    let filter = |filter| ListClientsRequest {
        filter: Some(filter),
        ..Default::default()
    };
    let select = |selector| ListClientsRequest {
        selector,
        ..Default::default()
    };
    let bad = [
        (select(labels("region in eu")), "selector"),
        (select(labels("=eu")), "selector"),
        (select(labels("region=eu,")), "selector"),
        (
            select(Some(InstanceSelector {
                all: true,
                ..named(&["nowhere"]).unwrap_or_default()
            })),
            "selector",
        ),
        (
            filter(ClientFilter {
                real_addresses: vec!["10.0.0.0/33".into()],
                ..Default::default()
            }),
            "filter",
        ),
        (
            filter(ClientFilter {
                virtual_addresses: vec!["alice".into()],
                ..Default::default()
            }),
            "filter",
        ),
        (
            ListClientsRequest {
                page_size: -1,
                ..Default::default()
            },
            "page_size",
        ),
        (
            ListClientsRequest {
                page_token: "no token".into(),
                ..Default::default()
            },
            "page_token",
        ),
        (
            ListClientsRequest {
                order_by: 99,
                ..Default::default()
            },
            "order_by",
        ),
    ];
    for (request, field) in bad {
        let status = api.fleet.list_clients(timed(request.clone())).await.err();
        let status = status.with_context(|| format!("accepted: {request:?}"))?;
        ensure!(
            status.code() == Code::InvalidArgument,
            "{request:?}: {status:?}"
        );
        ensure!(names_field(&status, field), "{request:?}: {status:?}");
        ensure!(
            reason(&status).is_some_and(|reason| !reason.is_empty()),
            "{status:?}"
        );
    }
    // A label that matches nothing is no mistake.
    let none = api
        .fleet
        .list_clients(timed(select(labels("region=mars"))))
        .await?
        .into_inner();
    ensure!(
        none.clients.is_empty() && none.unreachable.is_empty(),
        "{none:?}"
    );

    let unknown = v1::GetInstanceRequest {
        name: "atlantis".to_owned(),
    };
    let status = api
        .fleet
        .get_instance(timed(unknown))
        .await
        .err()
        .context("found atlantis")?;
    ensure!(status.code() == Code::NotFound, "{status:?}");
    let unknown = v1::GetActionRequest {
        request_id: "never".to_owned(),
    };
    let status = api
        .control
        .get_action(timed(unknown))
        .await
        .err()
        .context("found it")?;
    ensure!(status.code() == Code::NotFound, "{status:?}");
    let kinds = StreamEventsRequest {
        start: Some(Start::Now(true)),
        kinds: vec!["*.connected".to_owned()],
        ..Default::default()
    };
    let status = match api.events.stream_events(kinds).await {
        Err(status) => status,
        Ok(stream) => stream
            .into_inner()
            .message()
            .await
            .err()
            .context("no error")?,
    };
    ensure!(status.code() == Code::InvalidArgument, "{status:?}");
    Ok(())
}

/// Whether the error names the field, as BadRequest or in its words.
fn names_field(status: &Status, field: &str) -> bool {
    use tonic_types::StatusExt as _;
    let violations = status.get_details_bad_request();
    violations.is_some_and(|bad| {
        bad.field_violations
            .iter()
            .any(|it| it.field.contains(field))
    })
}

/// Every mistake of a configuration must be reported at once, each with file, line and
/// key, and none may be guessed around.
#[tokio::test]
async fn a_bad_configuration_is_refused_whole() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("bad.toml");
    std::fs::write(
        &path,
        r#"
name = "a/b"
colour = "blue"
[listen]
grpc = { address = "0.0.0.0:7600" }
[journal]
memory = "many"
[[instance]]
name = "eu1"
address = "unix:/run/a.sock"
[[instance]]
name = "eu1"
address = "unix:/run/b.sock"
[[instance]]
name = "eu2"
address = "ftp:host"
"#,
    )?;
    let file = path.display().to_string();
    for arguments in [
        vec!["check-config", &file],
        vec!["serve", "--config", &file],
    ] {
        let output = run_cli(&arguments, &[]).await?;
        ensure!(
            output.code.is_some_and(|code| code != 0),
            "{arguments:?}: {output:?}"
        );
        let text = output.stdout.clone() + &output.stderr;
        for expected in [
            "bad.toml:2",
            "colour",
            "bad.toml:5",
            "memory",
            "eu1",
            "ftp:host",
        ] {
            ensure!(text.contains(expected), "{expected} is missing: {text}");
        }
    }
    let absent = run_cli(&["check-config", "/nonexistent/ovfleet.toml"], &[]).await?;
    ensure!(absent.code.is_some_and(|code| code != 0), "{absent:?}");
    ensure!(
        absent.stderr.contains("/nonexistent/ovfleet.toml"),
        "{absent:?}"
    );
    let good = directory.path().join("good.toml");
    std::fs::write(
        &good,
        "[[instance]]\nname = \"a\"\naddress = \"unix:/run/a.sock\"\n",
    )?;
    let output = run_cli(&["check-config", &good.display().to_string()], &[]).await?;
    ensure!(output.code == Some(0), "{output:?}");
    Ok(())
}

/// Scripts branch on exit codes: usage is not absence, and absence is not failure to ask.
#[tokio::test]
async fn the_command_line_has_its_exit_codes() -> Result<()> {
    let server = Server::builder("up").start().await?;
    let gateway = GatewayConfig::of([&server])
        .instance(InstanceConfig::new("down", "tcp:127.0.0.1:9"))
        .start()
        .await?;
    let mut api = Api::connect(&gateway).await?;
    api.wait_condition("up", Condition::Attached, SOON).await?;
    api.wait_condition("down", Condition::Unreachable, SOON)
        .await?;
    for (arguments, code) in [
        (vec!["clients", "--instance", "up"], 0),
        (vec!["summary"], 1),
        (vec!["clients"], 1),
        (vec!["clients", "--instance", "atlantis"], 1),
        (vec!["clients", "-l", "region in"], 2),
        (vec!["clients", "--no-such-flag"], 2),
        (vec!["signal", "SIGKILL", "--all"], 2),
        (vec!["signal", "SIGUSR2", "--yes"], 2),
        (vec!["signal", "SIGUSR2", "--instance", "up", "--yes"], 0),
        (vec!["signal", "SIGUSR2", "--all", "--yes"], 1),
        (vec!["events", "--from", "oldest", "--no-follow"], 0),
        (vec!["watch", "--once"], 1),
        (vec!["completions", "bash"], 0),
        (vec!["man"], 0),
    ] {
        let output = gateway.cli(&arguments).await?;
        ensure!(
            output.code == Some(code),
            "{arguments:?} is not {code}: {output:?}"
        );
    }
    let nobody = run_cli(
        &["clients"],
        &[("OVFLEET_GATEWAY", "unix:/nonexistent.sock")],
    )
    .await?;
    ensure!(nobody.code == Some(3), "{nobody:?}");
    Ok(())
}
