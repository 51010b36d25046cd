//! What daemons ask is answered through the API alone, and no secret of it shows anywhere.

mod command_line;
mod route;
mod signing;
mod token;

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use ovfleet_proto::v1::{
    self, AnswerQuestionRequest, ChallengeResponseAnswer, CredentialsAnswer, DaemonMode,
    ExecuteCommandRequest, GetHelpRequest, GetLogRequest, GetPidRequest, GetSettingsRequest,
    GetStatesRequest, GetStatusTextRequest, GetVersionRequest, HoldAction,
    ListRemoteEntriesRequest, OpenQuestion, PasswordAnswer, PushUpdateRequest, RefreshRequest,
    SetHoldRequest, SetMuteRequest, SetVerbRequest, answer_question_request::Answer, event::Detail,
    open_question::Question,
};
use ovfleet_tests::{
    Api, Client, ClientBuilder, Gateway, GatewayConfig, InstanceConfig, Server, TcpListener,
    api::{named, reason, timed},
    events::EventLog,
    poll_until, run_cli,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};
use tonic::Code;

/// A daemon asks at once; it connects within seconds.
const SOON: Duration = Duration::from_secs(20);

/// A server must come up that needs both a release and a password: whoever starts it has nothing but the API.
#[tokio::test]
async fn a_held_server_with_an_encrypted_key_is_brought_up() -> Result<()> {
    const SECRET: &str = "canary-key-71";
    let mut server = Server::builder("vault")
        .hold()
        .key_password(SECRET)
        .start()
        .await?;
    let gateway = GatewayConfig::new()
        .instance(InstanceConfig::of(&server).set("hold", "keep"))
        .start()
        .await?;
    let mut api = Api::new(gateway.channel().await?);
    let events = api.follow().await?;
    wait_status(&mut api, "a held instance", |status| status.holding).await?;
    let release = SetHoldRequest {
        instance: "vault".to_owned(),
        action: HoldAction::Release.into(),
        ..Default::default()
    };
    api.instance.set_hold(timed(release)).await?;

    let asked = wait_question(&events, 1).await?;
    ensure!(
        matches!(&asked.question, Some(Question::Password(key)) if key.r#type == "Private Key"),
        "{asked:?}"
    );
    // It waits for an answer now, and no longer for a release.
    wait_status(&mut api, "a released instance", |status| !status.holding).await?;
    let listed = gateway.cli_json(&["questions"]).await?;
    ensure!(
        listed["questions"][0]["instance"] == "lab/vault"
            || listed["questions"][0]["instance"] == "vault",
        "{listed}"
    );
    // What does not fit the question does not reach the daemon.
    let wrong = answer(
        "vault",
        asked.id,
        Answer::ChallengeResponse(ChallengeResponseAnswer {
            response: "x".to_owned(),
        }),
    );
    let refused = api
        .instance
        .answer_question(timed(wrong))
        .await
        .unwrap_err();
    ensure!(refused.code() == Code::FailedPrecondition, "{refused:?}");
    ensure!(
        reason(&refused).as_deref() == Some("NO_QUESTION"),
        "{refused:?}"
    );

    let password = || {
        Answer::Password(PasswordAnswer {
            password: SECRET.to_owned(),
        })
    };
    api.instance
        .answer_question(timed(answer("vault", asked.id, password())))
        .await?;
    server
        .wait_log("Initialization Sequence Completed", 1, SOON)
        .await?;
    api.wait_attached().await?;
    events
        .wait_event(
            "the question to be closed",
            SOON,
            |event| matches!(&event.detail, Some(Detail::Question(asked)) if !asked.open),
        )
        .await?;
    // Answered once, it is not open any more.
    let late = api
        .instance
        .answer_question(timed(answer("vault", asked.id, password())))
        .await
        .unwrap_err();
    ensure!(
        reason(&late).as_deref() == Some("QUESTION_CLOSED"),
        "{late:?}"
    );
    ensure_unseen(&gateway, &mut api, &events, "vault", SECRET).await
}

/// A user's PIN goes together with the password, in one word that OpenVPN prescribes.
#[tokio::test]
async fn a_client_with_a_static_challenge_is_let_in() -> Result<()> {
    let lab = Lab::start(&["static-challenge \"Enter PIN, please\" 1"]).await?;
    let (mut api, mut approver) = (lab.api, lab.approver);
    let asked = wait_question(&lab.events, 1).await?;
    let Some(Question::Credentials(credentials)) = &asked.question else {
        anyhow::bail!("{asked:?}");
    };
    let challenge = credentials
        .static_challenge
        .as_ref()
        .context("no challenge")?;
    ensure!(
        challenge.text == "Enter PIN, please" && challenge.echo,
        "{asked:?}"
    );
    let login = Answer::Credentials(CredentialsAnswer {
        username: "us er".to_owned(),
        password: "canary-pw".to_owned(),
        response: "canary-1234".to_owned(),
    });
    api.instance
        .answer_question(timed(answer("road", asked.id, login)))
        .await?;
    // Base64 of the two secrets.
    let attempt = approver.attempt().await?;
    ensure!(
        attempt.password == "SCRV1:Y2FuYXJ5LXB3:Y2FuYXJ5LTEyMzQ=",
        "{attempt:?}"
    );
    approver.approve(&attempt).await?;
    wait_connected(&mut api).await?;
    for secret in [
        "canary-pw",
        "canary-1234",
        "Y2FuYXJ5LXB3",
        "Y2FuYXJ5LTEyMzQ=",
    ] {
        ensure_unseen(&lab.gateway, &mut api, &lab.events, "road", secret).await?;
    }

    // The daemon is a client: it says so, and what only a client has is there.
    let request = RefreshRequest {
        instance: "road".to_owned(),
    };
    api.instance.refresh(timed(request)).await?;
    wait_status(&mut api, "a client", |status| {
        status.mode() == DaemonMode::Client
    })
    .await?;
    let request = ListRemoteEntriesRequest {
        instance: "road".to_owned(),
    };
    let remotes = api
        .instance
        .list_remote_entries(timed(request))
        .await?
        .into_inner();
    ensure!(
        remotes.entries.len() == 1 && remotes.entries[0].host == "127.0.0.1",
        "{remotes:?}"
    );
    Ok(())
}

/// A server's second question comes as a refusal; the answer must carry its state and the user it is for.
#[tokio::test]
async fn a_client_with_a_dynamic_challenge_is_let_in() -> Result<()> {
    let lab = Lab::start(&[]).await?;
    let (mut api, mut approver) = (lab.api, lab.approver);
    let first = wait_question(&lab.events, 1).await?;
    let login = Answer::Credentials(CredentialsAnswer {
        username: "us er".to_owned(),
        password: "canary-pw".to_owned(),
        response: String::new(),
    });
    api.instance
        .answer_question(timed(answer("road", first.id, login)))
        .await?;
    let attempt = approver.attempt().await?;
    ensure!(attempt.password == "canary-pw", "{attempt:?}");
    approver
        .challenge(&attempt, "CRV1:R,E:canary-state:dXMgZXI=:Second factor")
        .await?;

    let second = wait_question(&lab.events, first.id + 1).await?;
    let Some(Question::Credentials(credentials)) = &second.question else {
        anyhow::bail!("{second:?}");
    };
    let challenge = credentials
        .dynamic_challenge
        .as_ref()
        .context("no challenge")?;
    ensure!(
        challenge.text == "Second factor" && challenge.username == "us er",
        "{second:?}"
    );
    // The number of the question may be left out where there is only one.
    let response = Answer::ChallengeResponse(ChallengeResponseAnswer {
        response: "canary-8675309".to_owned(),
    });
    api.instance
        .answer_question(timed(answer("road", 0, response)))
        .await?;
    let attempt = approver.attempt().await?;
    ensure!(
        attempt.password == "CRV1::canary-state::canary-8675309",
        "{attempt:?}"
    );
    approver.approve(&attempt).await?;
    wait_connected(&mut api).await?;
    for secret in ["canary-pw", "canary-state", "canary-8675309"] {
        ensure_unseen(&lab.gateway, &mut api, &lab.events, "road", secret).await?;
    }
    Ok(())
}

/// Everything else that a daemon keeps or is set to, within its bounds, on a real one.
#[tokio::test]
async fn a_daemon_is_asked_and_set() -> Result<()> {
    let server = Server::builder("eu1").start().await?;
    let gateway = GatewayConfig::of([&server])
        .listen_tcp(TcpListener::ReadOnly)
        .start()
        .await?;
    let mut api = Api::new(gateway.channel().await?);
    api.wait_attached().await?;
    let instance = || "lab/eu1".to_owned();

    let version = GetVersionRequest {
        instance: instance(),
    };
    let version = api.instance.get_version(timed(version)).await?.into_inner();
    ensure!(
        version.daemon_version.starts_with("OpenVPN 2."),
        "{version:?}"
    );
    let pid = GetPidRequest {
        instance: instance(),
    };
    let pid = api.instance.get_pid(timed(pid)).await?.into_inner().pid;
    ensure!(pid == server.pid());
    let log = GetLogRequest {
        instance: instance(),
        last: 5,
    };
    let log = api.instance.get_log(timed(log)).await?.into_inner();
    ensure!(log.lines.len() == 5 && !log.truncated, "{log:?}");
    let states = GetStatesRequest {
        instance: instance(),
        last: 0,
    };
    let states = api.instance.get_states(timed(states)).await?.into_inner();
    ensure!(
        states
            .states
            .last()
            .is_some_and(|state| state.state == "CONNECTED"),
        "{states:?}"
    );
    let help = GetHelpRequest {
        instance: instance(),
    };
    let help = api.instance.get_help(timed(help)).await?.into_inner();
    ensure!(
        help.lines
            .iter()
            .any(|line| line.text.starts_with("status")),
        "{help:?}"
    );
    let text = GetStatusTextRequest {
        instance: instance(),
        format: 2,
    };
    let text = api
        .instance
        .get_status_text(timed(text))
        .await?
        .into_inner();
    ensure!(
        text.lines[0].text.starts_with("TITLE,OpenVPN 2."),
        "{text:?}"
    );
    ensure!(text.lines.iter().all(|line| line.text != "END"), "{text:?}");

    let mute = SetMuteRequest {
        instance: instance(),
        lines: 7,
        ..Default::default()
    };
    api.instance.set_mute(timed(mute)).await?;
    let verb = |level, force, reset_after| SetVerbRequest {
        instance: instance(),
        level,
        force,
        reset_after,
        ..Default::default()
    };
    for (level, force, expected) in [(6, false, "VERB_NEEDS_FORCE"), (9, true, "VERB_LOCKS_UP")] {
        let refused = api
            .instance
            .set_verb(timed(verb(level, force, None)))
            .await
            .unwrap_err();
        ensure!(refused.code() == Code::FailedPrecondition, "{refused:?}");
        ensure!(reason(&refused).as_deref() == Some(expected), "{refused:?}");
    }
    let half_second = prost_types::Duration {
        seconds: 0,
        nanos: 500_000_000,
    };
    api.instance.set_verb(timed(verb(5, false, None))).await?;
    api.instance
        .set_verb(timed(verb(4, false, Some(half_second))))
        .await?;
    let settings = async || {
        let request = GetSettingsRequest {
            instance: instance(),
        };
        let mut service = api.instance.clone();
        anyhow::Ok(service.get_settings(timed(request)).await?.into_inner())
    };
    ensure!(settings().await?.mute == 7);
    poll_until("the level to be set again", SOON, async || {
        Ok((settings().await?.verb == 5).then_some(()))
    })
    .await?;

    let push = PushUpdateRequest {
        instance: instance(),
        client: None,
        every_client: true,
        options: "route 10.9.0.0 255.255.0.0".to_owned(),
        ..Default::default()
    };
    let refused = api.instance.push_update(timed(push)).await.unwrap_err();
    ensure!(
        reason(&refused).as_deref() == Some("VERSION_LACKS_IT"),
        "{refused:?}"
    );
    ensure!(refused.message().contains("OpenVPN 2.7"), "{refused:?}");
    let remotes = ListRemoteEntriesRequest {
        instance: instance(),
    };
    let refused = api
        .instance
        .list_remote_entries(timed(remotes))
        .await
        .unwrap_err();
    ensure!(
        reason(&refused).as_deref() == Some("MODE_LACKS_IT"),
        "{refused:?}"
    );

    let exec = |line: &str| ExecuteCommandRequest {
        instance: instance(),
        line: line.to_owned(),
        ..Default::default()
    };
    let reply = api
        .instance
        .execute_command(timed(exec("state 1")))
        .await?
        .into_inner();
    ensure!(
        reply.lines.len() == 2 && reply.lines[1].text == "END",
        "{:?}",
        reply.lines
    );
    for line in ["exit", "kill alice", "signal SIGTERM", "verb 11", "test 9"] {
        let refused = api
            .instance
            .execute_command(timed(exec(line)))
            .await
            .unwrap_err();
        ensure!(
            matches!(
                refused.code(),
                Code::PermissionDenied | Code::InvalidArgument
            ),
            "{line}: {refused:?}"
        );
    }
    commands_of_the_line(&gateway).await
}

/// The same by command line, and what the manual gives for a script's commands: with exit codes, and refused where
/// nothing may be changed.
async fn commands_of_the_line(gateway: &Gateway) -> Result<()> {
    for line in [
        &["pid"][..],
        &["version"],
        &["load-stats"],
        &["log"],
        &["state"],
        &["echo"],
        &["verb"],
        &["mute"],
        &["hold"],
        &["exec", "--all", "help"],
        &["exec", "--all", "auth-retry"],
        &["exec", "--all", "auth-retry", "none"],
        &["exec", "--all", "status", "2"],
        &["mute", "0", "--all"],
        &["verb", "3", "--all"],
        &["hold", "off", "--all"],
        &["signal", "SIGUSR2", "--all", "--yes"],
        &["clients", "-o", "json"],
        &["routes", "-o", "json"],
        &[
            "events",
            "--kind",
            "instance.log",
            "--no-follow",
            "--from",
            "oldest",
        ],
    ] {
        let output = gateway.cli(line).await?;
        ensure!(output.code == Some(0), "{line:?}: {output:?}");
    }
    let json = gateway.cli_json(&["pid"]).await?;
    ensure!(json["results"][0]["response"]["pid"].is_u64(), "{json}");
    for (line, code) in [
        (&["verb", "3"][..], 2),
        (&["exec", "--all", "exit"], 1),
        (&["exec", "help"], 2),
        // A daemon that is not on Windows refuses it.
        (&["exec", "--all", "net"], 1),
        (&["exec", "--all", "test", "3"], 1),
        (&["kill", "--common-name", "nobody", "--all", "--yes"], 1),
        (&["pid", "--instance", "nobody"], 1),
    ] {
        let output = gateway.cli(line).await?;
        ensure!(output.code == Some(code), "{line:?}: {output:?}");
    }
    let address = format!("http://{}", gateway.tcp_address());
    let variables = [("OVFLEET_GATEWAY", address.as_str())];
    let read = run_cli(&["pid"], &variables).await?;
    ensure!(read.code == Some(0), "{read:?}");
    let change = run_cli(&["mute", "1", "--all"], &variables).await?;
    ensure!(
        change.code == Some(1) && change.stderr.contains("read-only"),
        "{change:?}"
    );
    Ok(())
}

/// A gateway, and a place where the daemon of a VPN client is to be found: the instance `road`.
struct Road {
    api: Api,
    events: EventLog,
    gateway: Gateway,
    directory: tempfile::TempDir,
}

impl Road {
    async fn start() -> Result<Self> {
        Self::in_directory(tempfile::tempdir()?).await
    }

    /// The same, where the daemon may be there already.
    async fn in_directory(directory: tempfile::TempDir) -> Result<Self> {
        let address = format!("unix:{}", socket_in(&directory).display());
        let gateway = GatewayConfig::new()
            .instance(InstanceConfig::new("road", &address))
            .start()
            .await?;
        let mut api = Api::new(gateway.channel().await?);
        Ok(Self {
            events: api.follow().await?,
            api,
            gateway,
            directory,
        })
    }

    /// A client of that server whose daemon does nothing before the gateway lets it.
    fn client(&self, server: &Server) -> ClientBuilder {
        managed(server, &self.directory).option("management-hold")
    }

    /// The question of that number, which a caller sees among the instance's.
    async fn question(&mut self, id: u64) -> Result<OpenQuestion> {
        let asked = wait_question(&self.events, id).await?;
        let status = self.api.status("road").await?;
        ensure!(
            status.questions.contains(&asked),
            "{asked:?} is not among {:?}",
            status.questions
        );
        Ok(asked)
    }

    /// Answers it; it is closed then, for whoever looks and whoever listens.
    async fn answer(&mut self, asked: &OpenQuestion, reply: Answer) -> Result<()> {
        let request = answer("road", asked.id, reply);
        self.api.instance.answer_question(timed(request)).await?;
        let is_closing = |event: &v1::Event| {
            matches!(&event.detail, Some(Detail::Question(told))
                if !told.open && told.detail.as_ref().is_some_and(|closed| closed.id == asked.id))
        };
        let what = format!("the end of {asked:?}");
        self.events.wait_event(&what, SOON, is_closing).await?;
        let status = self.api.status("road").await?;
        ensure!(
            status.questions.iter().all(|open| open.id != asked.id),
            "{status:?}"
        );
        Ok(())
    }

    async fn wait_connected(&mut self) -> Result<()> {
        wait_connected(&mut self.api).await
    }

    /// Has the daemon connect anew.
    async fn reconnect(&mut self) -> Result<()> {
        let restart = v1::SignalInstancesRequest {
            selector: named(&["road"]),
            signal: v1::Signal::Sigusr1.into(),
            ..Default::default()
        };
        let answer = self.api.signal(restart).await?;
        ensure!(
            answer.results[0].outcome() == v1::Outcome::Accepted,
            "{answer:?}"
        );
        Ok(())
    }
}

fn socket_in(directory: &tempfile::TempDir) -> std::path::PathBuf {
    directory.path().join("road.sock")
}

/// A client whose daemon asks its manager, in that directory, for whatever it lacks.
fn managed(server: &Server, directory: &tempfile::TempDir) -> ClientBuilder {
    let socket = socket_in(directory);
    Client::builder(server, "alice")
        .option(&format!("management {} unix", socket.display()))
        .option("management-query-passwords")
}

/// A client that asks its manager, which is a gateway, and a server whose manager is this test.
struct Lab {
    api: Api,
    approver: Approver,
    events: EventLog,
    gateway: Gateway,
    _client: Client,
    _server: Server,
    _directory: tempfile::TempDir,
}

impl Lab {
    async fn start(options: &[&str]) -> Result<Self> {
        let server = Server::builder("gate")
            .option("management-client-auth")
            .option("auth-user-pass-optional")
            .start()
            .await?;
        let approver = Approver::connect(&server.socket_path()).await?;
        let road = Road::start().await?;
        let mut client = managed(&server, &road.directory)
            .option("auth-user-pass")
            .option("auth-retry interact");
        for option in options {
            client = client.option(option);
        }
        Ok(Self {
            api: road.api,
            approver,
            events: road.events,
            gateway: road.gateway,
            _client: client.start()?,
            _server: server,
            _directory: road.directory,
        })
    }
}

/// Decides who may connect, over a management session of its own.
struct Approver {
    lines: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
}

/// A client that wants to connect.
#[derive(Debug)]
struct Attempt {
    cid: String,
    kid: String,
    password: String,
}

impl Approver {
    async fn connect(socket: &Path) -> Result<Self> {
        let (reader, mut writer) = UnixStream::connect(socket).await?.into_split();
        writer.write_all(b"env-filter 0\n").await?;
        let lines = BufReader::new(reader).lines();
        Ok(Self { lines, writer })
    }

    async fn attempt(&mut self) -> Result<Attempt> {
        tokio::time::timeout(SOON, async {
            let (mut who, mut password) = (None, String::new());
            while let Some(line) = self.lines.next_line().await? {
                if let Some(numbers) = line.strip_prefix(">CLIENT:CONNECT,") {
                    who = numbers
                        .split_once(',')
                        .map(|(cid, kid)| (cid.to_owned(), kid.to_owned()));
                } else if let Some(value) = line.strip_prefix(">CLIENT:ENV,password=") {
                    value.clone_into(&mut password);
                } else if line == ">CLIENT:ENV,END"
                    && let Some((cid, kid)) = who.take()
                {
                    return Ok(Attempt { cid, kid, password });
                }
            }
            anyhow::bail!("the server ended")
        })
        .await
        .context("nobody came")?
    }

    async fn approve(&mut self, attempt: &Attempt) -> Result<()> {
        let line = format!("client-auth-nt {} {}\n", attempt.cid, attempt.kid);
        Ok(self.writer.write_all(line.as_bytes()).await?)
    }

    async fn challenge(&mut self, attempt: &Attempt, challenge: &str) -> Result<()> {
        let Attempt { cid, kid, .. } = attempt;
        let line = format!("client-deny {cid} {kid} \"challenge\" \"{challenge}\"\n");
        Ok(self.writer.write_all(line.as_bytes()).await?)
    }
}

fn answer(instance: &str, question_id: u64, answer: Answer) -> AnswerQuestionRequest {
    AnswerQuestionRequest {
        instance: instance.to_owned(),
        question_id,
        answer: Some(answer),
        ..Default::default()
    }
}

/// The first question of that number or a later one.
async fn wait_question(events: &EventLog, id: u64) -> Result<OpenQuestion> {
    let of = |event: &v1::Event| match &event.detail {
        Some(Detail::Question(asked)) if asked.open => {
            asked.detail.clone().filter(|question| question.id >= id)
        }
        _ => None,
    };
    let (event, _) = events
        .wait_event("a question", SOON, |event| of(event).is_some())
        .await?;
    of(&event).context("no question")
}

async fn wait_connected(api: &mut Api) -> Result<()> {
    wait_status(api, "a connection", |status| status.state == "CONNECTED").await
}

async fn wait_status(
    api: &mut Api,
    what: &str,
    wanted: impl Fn(&v1::InstanceStatus) -> bool,
) -> Result<()> {
    let mut last = None;
    let found = poll_until(what, SOON, async || {
        let status = api.instances().await?.remove(0).status;
        last.clone_from(&status);
        Ok(status.filter(|status| wanted(status)).map(drop))
    })
    .await;
    found.with_context(|| format!("last seen: {last:?}"))
}

/// Whatever the gateway says, logs or keeps, and what the daemon's log tells through it, does not show the secret.
async fn ensure_unseen(
    gateway: &Gateway,
    api: &mut Api,
    events: &EventLog,
    instance: &str,
    secret: &str,
) -> Result<()> {
    let request = GetLogRequest {
        instance: instance.to_owned(),
        last: 0,
    };
    let log = api.instance.get_log(timed(request)).await?.into_inner();
    let shown = [
        format!("{log:?}"),
        format!("{:?}", events.received()),
        format!("{:?}", api.instances().await?),
        gateway.log(),
        gateway.http_get("/metrics").await?.1,
        by_command_line(gateway, instance).await?,
    ];
    // What was done is in the log, with who did it; the secret is not.
    ensure!(gateway.log().contains("caller="), "{}", gateway.log());
    ensure!(
        !shown.iter().any(|text| text.contains(secret)),
        "{secret} shows"
    );
    Ok(())
}

/// All that the command line tells of an instance.
async fn by_command_line(gateway: &Gateway, instance: &str) -> Result<String> {
    let mut said = String::new();
    for line in [
        &["instances", "-o", "json"][..],
        &["questions", "-o", "json"],
        &["summary"],
        &["clients", "--wide"],
        &["log"],
        &["state"],
        &["exec", "--instance", instance, "log all"],
        &["exec", "--instance", instance, "state all"],
        &[
            "events",
            "--from",
            "oldest",
            "--no-follow",
            "--kind",
            "*",
            "-o",
            "jsonl",
        ],
        &["watch", "--once"],
    ] {
        let output = gateway.cli(line).await?;
        // One that fails tells something too.
        said += &format!("{line:?} {output:?}\n");
    }
    Ok(said)
}
