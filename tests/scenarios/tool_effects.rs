//! What a tool does on a virtual management socket shows in the fleet at once, though its daemon says nothing of it.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use ovfleet_proto::v1::{
    self, GetSettingsRequest, OpenQuestion, SetVerbRequest, event::Detail, open_question::Question,
    stream_events_request::Start,
};
use ovfleet_tests::{
    Api, Client, Gateway, GatewayConfig, InstanceConfig, Server, api::timed, events::EventLog,
    poll_until,
};
use tempfile::TempDir;

use crate::tool_limits::Tool;

const SOON: Duration = Duration::from_secs(20);

/// A gateway that watches `instance`, with a virtual socket for somebody who may do everything.
struct Lab {
    api: Api,
    events: EventLog,
    tool: Tool,
    _gateway: Gateway,
}

impl Lab {
    async fn start(instance: InstanceConfig, directory: &TempDir) -> Result<Self> {
        let path = directory.path().join("mux");
        let mut socket = toml::Table::new();
        socket.insert(
            "address".to_owned(),
            format!("unix:{}", path.display()).into(),
        );
        socket.insert("policy".to_owned(), "full".into());
        let config = GatewayConfig::new().instance(instance.set("mux", socket));
        let gateway = config.start().await?;
        let mut api = Api::connect(&gateway).await?;
        let events = api.follow_from(Start::Oldest(true)).await?;
        Ok(Self {
            events,
            tool: Tool::open(&path).await?,
            api,
            _gateway: gateway,
        })
    }

    async fn wait_status(
        &mut self,
        what: &str,
        name: &str,
        is: impl Fn(&v1::InstanceStatus) -> bool,
    ) -> Result<()> {
        poll_until(what, SOON, async || {
            let status = self.api.status(name).await?;
            Ok(is(&status).then_some(()))
        })
        .await
    }

    async fn wait_question(&self, open: bool) -> Result<OpenQuestion> {
        let what = if open { "a question" } else { "its end" };
        let (event, _) = self
            .events
            .wait_event(what, SOON, |event| {
                matches!(&event.detail, Some(Detail::Question(asked)) if asked.open == open)
            })
            .await?;
        match event.detail {
            Some(Detail::Question(asked)) => asked.detail.context("no question"),
            other => anyhow::bail!("{other:?}"),
        }
    }
}

/// An operator who releases a daemon with an old tool, and types its password there, must not leave a dashboard that
/// still asks for both.
#[tokio::test]
async fn a_held_server_is_released_and_unlocked_by_a_tool() -> Result<()> {
    const SECRET: &str = "tool canary 91";
    let mut server = Server::builder("vault")
        .hold()
        .key_password(SECRET)
        .start()
        .await?;
    let directory = tempfile::tempdir()?;
    let instance = InstanceConfig::of(&server).set("hold", "keep");
    let mut lab = Lab::start(instance, &directory).await?;
    lab.wait_status("a held daemon", "vault", |status| status.holding)
        .await?;
    // The tool is told what is open, as any manager is.
    ensure!(lab.tool.line().await?.starts_with(">HOLD:"));
    let released = lab.tool.ask("hold release").await?;
    ensure!(released == "SUCCESS: hold release succeeded", "{released}");
    let asked = lab.wait_question(true).await?;
    ensure!(
        matches!(&asked.question, Some(Question::Password(key)) if key.r#type == "Private Key"),
        "{asked:?}"
    );
    lab.wait_status("a released daemon", "vault", |status| !status.holding)
        .await?;
    ensure!(lab.tool.line().await? == ">PASSWORD:Need 'Private Key' password");

    // What the daemon refuses answers nothing.
    let refused = lab.tool.ask("password \"Auth\" x").await?;
    ensure!(refused.starts_with("ERROR:"), "{refused}");
    let open = lab.api.status("vault").await?.questions;
    ensure!(open.len() == 1 && open[0].id == asked.id, "{open:?}");
    let entered = lab
        .tool
        .ask(&format!("password \"Private Key\" \"{SECRET}\""))
        .await?;
    ensure!(entered.starts_with("SUCCESS:"), "{entered}");
    let closed = lab.wait_question(false).await?;
    ensure!(closed.id == asked.id, "{closed:?}");
    server
        .wait_log("Initialization Sequence Completed", 1, SOON)
        .await?;
    let status = lab.api.status("vault").await?;
    ensure!(status.questions.is_empty(), "{status:?}");

    // A level that somebody set by hand is not set back by an older wish.
    let level = |level, reset_after: Option<i64>| SetVerbRequest {
        instance: "vault".to_owned(),
        level,
        force: false,
        reset_after: reset_after.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
        ..Default::default()
    };
    lab.api.instance.set_verb(timed(level(4, Some(1)))).await?;
    ensure!(lab.tool.ask("verb 2").await? == "SUCCESS: verb level changed");
    let set_at = std::time::Instant::now();
    let overdue = poll_until("the time of the reset", SOON, async || {
        let request = GetSettingsRequest {
            instance: "vault".to_owned(),
        };
        let settings = lab
            .api
            .instance
            .get_settings(timed(request))
            .await?
            .into_inner();
        ensure!(settings.verb == 2, "verb {}", settings.verb);
        Ok((set_at.elapsed() > Duration::from_millis(1_300)).then_some(()))
    });
    overdue.await
}

/// A user's password that was typed into a tool is not asked for in the fleet any longer, though the daemon, which asks
/// something else next, says nothing of it.
#[tokio::test]
async fn a_clients_password_is_given_by_a_tool() -> Result<()> {
    let server = Server::builder("gate").start().await?;
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("road.sock");
    let mut client = Client::builder(&server, "road")
        .option(&format!("management {} unix", socket.display()))
        .option("management-query-passwords")
        .option("management-query-remote")
        .option("auth-user-pass")
        .start()?;
    wait_file(&socket).await?;
    let address = format!("unix:{}", socket.display());
    let mut lab = Lab::start(InstanceConfig::new("road", &address), &directory).await?;
    let asked = lab.wait_question(true).await?;
    ensure!(
        matches!(&asked.question, Some(Question::Credentials(_))),
        "{asked:?}"
    );
    ensure!(lab.tool.line().await? == ">PASSWORD:Need 'Auth' username/password");
    // Half an answer is none.
    let half = lab.tool.ask("username \"Auth\" \"us er\"").await?;
    ensure!(
        half == "SUCCESS: 'Auth' username entered, but not yet verified",
        "{half}"
    );
    let open = lab.api.status("road").await?.questions;
    ensure!(open.len() == 1 && open[0].id == asked.id, "{open:?}");
    let whole = lab.tool.ask("password \"Auth\" canary").await?;
    ensure!(
        whole == "SUCCESS: 'Auth' password entered, but not yet verified",
        "{whole}"
    );
    let is_next = |open: &[OpenQuestion]| matches!(open, [next] if matches!(next.question, Some(Question::Remote(_))));
    lab.wait_status("the next question alone", "road", |status| {
        is_next(&status.questions)
    })
    .await?;
    ensure!(lab.wait_question(false).await?.id == asked.id);
    ensure!(lab.tool.line().await?.starts_with(">REMOTE:127.0.0.1,"));
    let accepted = lab.tool.ask("remote ACCEPT").await?;
    ensure!(
        accepted == "SUCCESS: remote command succeeded",
        "{accepted}"
    );
    client.wait_connected(1).await
}

async fn wait_file(path: &Path) -> Result<()> {
    poll_until("the management socket", SOON, async || {
        Ok(path.exists().then_some(()))
    })
    .await
}
