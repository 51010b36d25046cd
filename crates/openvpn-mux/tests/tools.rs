//! Tools on one simulated daemon: each sees what it would see alone.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::sync::Arc;
use std::time::Duration;

use openvpn_fleet::{
    Fleet, FleetConfig, GatewayName, InstanceName, InstanceSource, InstanceSpec, JournalConfig,
    Labels, Table,
};
use openvpn_management::Secret;
use openvpn_mux::{Away, Counts, Left, Policy, Slot, TOOLS_MAX, ToolConfig, Verdict};
use openvpn_session::{Address, SessionConfig};
use openvpn_simulator::{ClientSpec, Daemon};
use tempfile::TempDir;
use tokio::io::{
    AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream,
};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes on a busy machine; only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a tool's kernel would hold for it.
const SOCKET_BYTES: usize = 16 * 1024;
const GREETING: &str = ">INFO:OpenVPN Management Interface Version 5 -- type 'help' for more info";

struct Lab {
    fleet: Fleet,
    daemon: Daemon,
    slot: Arc<Slot>,
    counts: Arc<Counts>,
    cancel: CancellationToken,
    _directory: TempDir,
}

impl Lab {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("eu1");
        let daemon = Daemon::builder("eu1").unix(&path).start().await.unwrap();
        let fleet = Fleet::new(&FleetConfig {
            gateway: GatewayName::new("gw").unwrap(),
            journal: JournalConfig {
                memory_bytes: 1 << 20,
                events_max: 1_000,
                age_max: PATIENCE,
                encode: |_| bytes::Bytes::new(),
                start: None,
            },
        });
        let spec = InstanceSpec {
            name: InstanceName::new("eu1").unwrap(),
            labels: Labels::default(),
            source: InstanceSource::File,
            session: SessionConfig::new(Address::Unix(path)).into(),
            paused: None,
            others: 0,
        };
        fleet.set_instances(vec![spec]).await.unwrap();
        let instance = fleet.instance("eu1").unwrap();
        let counts = Arc::new(Counts::default());
        let slot = Slot::new(fleet.clone(), Arc::clone(&instance), Arc::clone(&counts));
        let lab = Self {
            fleet,
            daemon,
            slot,
            counts,
            cancel: CancellationToken::new(),
            _directory: directory,
        };
        lab.attached(true).await;
        lab
    }

    async fn attached(&self, is_attached: bool) {
        let ready = self
            .slot
            .instance()
            .wait_for(|table| (table.status().is_attached() == is_attached).then_some(()));
        timeout(PATIENCE, ready).await.unwrap();
    }

    fn connect(&self, config: ToolConfig) -> Tool {
        let (near, far) = tokio::io::duplex(SOCKET_BYTES);
        let (slot, cancel) = (Arc::clone(&self.slot), self.cancel.clone());
        let served = tokio::spawn(async move { slot.serve(far, &config, &cancel).await });
        Tool {
            stream: BufReader::new(near),
            served,
        }
    }

    /// A tool that has read its greeting.
    async fn tool(&self, policy: Policy) -> Tool {
        let mut tool = self.connect(ToolConfig {
            policy,
            ..ToolConfig::default()
        });
        assert_eq!(tool.line().await, GREETING);
        tool
    }
}

struct Tool {
    stream: BufReader<DuplexStream>,
    served: JoinHandle<Left>,
}

impl Tool {
    async fn say(&mut self, text: &str) {
        self.stream
            .get_mut()
            .write_all(text.as_bytes())
            .await
            .unwrap();
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        timeout(PATIENCE, self.stream.read_line(&mut line))
            .await
            .unwrap()
            .unwrap();
        match line.strip_suffix("\r\n") {
            Some(line) => line.to_owned(),
            None => panic!("cut: {line:?}"),
        }
    }

    async fn ask(&mut self, command: &str) -> String {
        self.say(&format!("{command}\n")).await;
        self.line().await
    }

    /// Everything up to `END`.
    async fn block(&mut self, command: &str) -> Vec<String> {
        self.say(&format!("{command}\n")).await;
        let mut lines = Vec::new();
        loop {
            let line = self.line().await;
            if line == "END" {
                return lines;
            }
            lines.push(line);
        }
    }

    /// What is left until it is closed, and why it is.
    async fn rest(mut self) -> (String, Left) {
        let mut rest = String::new();
        timeout(PATIENCE, self.stream.read_to_string(&mut rest))
            .await
            .unwrap()
            .unwrap();
        (rest, timeout(PATIENCE, self.served).await.unwrap().unwrap())
    }
}

/// A tool that reads answers in order would take another's for its own: each of these names who asked, and when.
///
/// `OVFLEET_MODEL_COMMANDS` makes it longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_reply_goes_to_its_asker_in_order() {
    let commands: usize =
        std::env::var("OVFLEET_MODEL_COMMANDS").map_or(20, |count| count.parse().unwrap());
    let lab = Arc::new(Lab::new().await);
    lab.daemon.connect(ClientSpec::new("alice")).await.unwrap();
    let is_seen = |table: &Table| (table.client_count() == 1).then_some(());
    timeout(PATIENCE, lab.slot.instance().wait_for(is_seen))
        .await
        .unwrap();
    let mut tools = JoinSet::new();
    for number in 0..200_u64 {
        let lab = Arc::clone(&lab);
        tools.spawn(async move {
            let mut tool = lab.tool(Policy::Operator).await;
            let mut random = number * 0x9e37_79b9 + 1;
            for turn in 0..commands {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                match (random >> 33) % 8 {
                    0 => assert!(tool.ask("pid").await.starts_with("SUCCESS: pid=")),
                    1 => assert!(
                        tool.ask("load-stats")
                            .await
                            .starts_with("SUCCESS: nclients=1,")
                    ),
                    2 => assert!(tool.block("status 2").await[0].starts_with("TITLE,")),
                    3 => assert!(tool.block("version").await[0].starts_with("OpenVPN Version: ")),
                    4 => {
                        // Three in one write, with nothing in between.
                        let name = format!("t{number}c{turn}");
                        tool.say(&format!("kill {name}a\nverb\nkill {name}b\n"))
                            .await;
                        assert_eq!(
                            tool.line().await,
                            format!("ERROR: common name '{name}a' not found")
                        );
                        assert_eq!(tool.line().await, "SUCCESS: verb=3");
                        assert_eq!(
                            tool.line().await,
                            format!("ERROR: common name '{name}b' not found")
                        );
                    }
                    5 => assert!(
                        tool.ask("nonsense")
                            .await
                            .starts_with("ERROR: unknown command")
                    ),
                    _ => {
                        let name = format!("t{number}c{turn}");
                        let expected = format!("ERROR: common name '{name}' not found");
                        assert_eq!(tool.ask(&format!("kill {name}")).await, expected);
                    }
                }
            }
        });
    }
    while let Some(ended) = tools.join_next().await {
        ended.unwrap();
    }
    assert_eq!(lab.daemon.sessions(), 1);
}

/// What one tool switches must not reach another: neither its lines nor its answers.
#[tokio::test]
async fn switches_are_each_tools_own() {
    let lab = Lab::new().await;
    let mut loud = lab.tool(Policy::ReadOnly).await;
    let mut quiet = lab.tool(Policy::ReadOnly).await;
    assert_eq!(
        loud.ask("log on").await,
        "SUCCESS: real-time log notification set to ON"
    );
    assert_eq!(
        loud.ask("env-filter 3").await,
        "SUCCESS: env_filter_level=3"
    );
    assert_eq!(
        loud.ask("state on").await,
        "SUCCESS: real-time state notification set to ON"
    );
    lab.daemon.connect(ClientSpec::new("alice")).await.unwrap();
    let mut seen = Vec::new();
    while seen
        .last()
        .is_none_or(|line: &String| line != ">CLIENT:ENV,END")
    {
        seen.push(loud.line().await);
    }
    assert!(
        seen.iter().any(|line| line.starts_with(">LOG:")),
        "{seen:?}"
    );
    assert!(
        seen.contains(&">CLIENT:ESTABLISHED,0".to_owned()),
        "{seen:?}"
    );
    assert!(
        !seen
            .iter()
            .any(|line| line.starts_with(">CLIENT:ENV,ifconfig")),
        "{seen:?}"
    );
    let mut seen = Vec::new();
    while seen
        .last()
        .is_none_or(|line: &String| line != ">CLIENT:ENV,END")
    {
        seen.push(quiet.line().await);
    }
    assert_eq!(seen[0], ">CLIENT:ESTABLISHED,0");
    assert!(
        seen.iter()
            .any(|line| line.starts_with(">CLIENT:ENV,ifconfig")),
        "{seen:?}"
    );
    // The real session's switches are still on: the gateway sees the client.
    assert_eq!(
        lab.slot.instance().with_table(|table| table.client_count()),
        1
    );
}

/// On the daemon `exit` drops all answers of its read, and ends nobody else.
#[tokio::test]
async fn exit_ends_the_tool_alone_and_drops_the_answers_of_its_read() {
    let lab = Lab::new().await;
    let mut other = lab.tool(Policy::ReadOnly).await;
    let mut tool = lab.tool(Policy::ReadOnly).await;
    tool.say("pid\nverb\nexit\n").await;
    assert_eq!(tool.rest().await, (String::new(), Left::Itself));
    assert!(other.ask("pid").await.starts_with("SUCCESS: pid="));
    // In a block it is a line like any other.
    let mut tool = lab.tool(Policy::ReadOnly).await;
    tool.say("client-auth 1 1\nexit\nEND\npid\n").await;
    assert!(
        tool.line()
            .await
            .starts_with("ERROR: the 'client-auth' command is not allowed")
    );
    assert!(tool.line().await.starts_with("SUCCESS: pid="));
    // Half a close is none: the answers still come.
    tool.say("verb\n").await;
    tool.stream.get_mut().shutdown().await.unwrap();
    assert_eq!(
        tool.rest().await,
        ("SUCCESS: verb=3\r\n".to_owned(), Left::Itself)
    );
    assert_eq!(lab.daemon.sessions(), 1);
    assert!(
        !lab.daemon
            .commands()
            .iter()
            .any(|line| line.starts_with(b"exit"))
    );
}

/// One that does not read must not make us hold a daemon's log without limit, nor cost another a line.
#[tokio::test]
async fn a_tool_that_does_not_read_is_cut() {
    let lab = Lab::new().await;
    let mut deaf = lab.tool(Policy::ReadOnly).await;
    let mut good = lab.tool(Policy::ReadOnly).await;
    deaf.ask("log on").await;
    good.ask("log on").await;
    let rows: Vec<String> = (0..2_000)
        .map(|number| format!(">LOG:1795187052,,line {number} {}\r\n", "x".repeat(1_000)))
        .collect();
    // At the pace of the one that reads: how fast a debug build reads is not the point.
    for rows in rows.chunks(50) {
        lab.daemon.raw(rows.concat()).await.unwrap();
        for row in rows {
            let mut line = good.line().await;
            while !line.starts_with(">LOG:1795187052,,line ") {
                line = good.line().await;
            }
            assert_eq!(&format!("{line}\r\n"), row);
        }
    }
    assert_eq!(
        timeout(PATIENCE, deaf.served).await.unwrap().unwrap(),
        Left::Unread
    );
    assert!(good.ask("load-stats").await.starts_with("SUCCESS:"));
    assert_eq!(lab.counts.left(Left::Unread), 1);
}

/// The password is asked for as OpenVPN asks; without it nothing is said.
#[tokio::test]
async fn a_password_is_asked_for_as_openvpn_does() {
    let lab = Lab::new().await;
    let config = || ToolConfig {
        password: Some(Secret::new(b"s3cret pass".to_vec())),
        ..ToolConfig::default()
    };
    let mut tool = lab.connect(config());
    tool.say("wrong\ns3cret pass\npid\n").await;
    let prompts = "ENTER PASSWORD:ENTER PASSWORD:SUCCESS: password is correct";
    assert_eq!(tool.line().await, prompts);
    assert_eq!(tool.line().await, GREETING);
    assert!(tool.line().await.starts_with("SUCCESS: pid="));
    let mut tool = lab.connect(config());
    tool.say("a\nb\nc\n").await;
    let (rest, left) = tool.rest().await;
    assert!(
        rest.is_empty() || rest.starts_with("ENTER PASSWORD:"),
        "{rest}"
    );
    assert_eq!(left, Left::Password);
}

/// A history and what follows it: no line is lost between the two and none comes twice.
#[tokio::test]
async fn a_history_and_the_lines_behind_it_fit() {
    let lab = Lab::new().await;
    let mut tool = lab.tool(Policy::Operator).await;
    assert_eq!(
        tool.ask("state on all").await,
        "SUCCESS: real-time state notification set to ON"
    );
    let mut states = tool.block("").await;
    assert_eq!(
        tool.ask("signal SIGUSR1").await,
        "SUCCESS: signal SIGUSR1 thrown"
    );
    while !states
        .last()
        .is_some_and(|line| line.contains("CONNECTED,SUCCESS") && line.starts_with('>'))
    {
        states.push(tool.line().await);
    }
    let live: Vec<String> = states
        .iter()
        .filter_map(|line| line.strip_prefix(">STATE:"))
        .map(str::to_owned)
        .collect();
    let history = tool.block("state all").await;
    assert_eq!(history[history.len() - live.len()..], live);
    assert_eq!(history.len(), states.len());
}

/// Where the daemon is away, tools wait for its greeting like behind another manager, or are closed.
#[tokio::test]
async fn without_a_daemon_tools_wait_or_are_closed() {
    let lab = Lab::new().await;
    let tool = lab.tool(Policy::ReadOnly).await;
    lab.daemon.stop().await;
    assert_eq!(tool.rest().await.1, Left::Daemon);
    lab.attached(false).await;
    let closed = lab.connect(ToolConfig {
        away: Away::Close,
        ..ToolConfig::default()
    });
    assert_eq!(closed.rest().await, (String::new(), Left::Away));
    let mut waiting = lab.connect(ToolConfig::default());
    waiting.say("verb\n").await;
    lab.daemon.start_again().await.unwrap();
    assert_eq!(waiting.line().await, GREETING);
    assert_eq!(waiting.line().await, "SUCCESS: verb=3");
}

/// Two deciders would let in whom the other keeps out.
#[tokio::test]
async fn one_tool_decides_who_is_let_in() {
    let lab = Lab::new().await;
    let mut first = lab.tool(Policy::Full).await;
    let mut second = lab.tool(Policy::Full).await;
    assert_eq!(
        first.ask("client-auth-nt 9 1").await,
        "ERROR: client-auth command failed"
    );
    assert_eq!(
        second.ask("client-deny 9 1 no").await,
        "ERROR: another tool decides who is let in"
    );
    assert_eq!(
        second.ask("client-auth 9 1\npush x\nEND").await,
        "ERROR: another tool decides who is let in"
    );
    assert_eq!(
        first.ask("client-auth 9 1\npush x\nEND").await,
        "ERROR: client-auth command failed"
    );
    first.say("exit\n").await;
    first.rest().await;
    assert_eq!(
        second.ask("client-deny 9 1 no").await,
        "ERROR: client-deny command failed"
    );
}

/// What asks the same at the same time costs the daemon one command.
#[tokio::test]
async fn equal_questions_share_an_answer() {
    let lab = Lab::new().await;
    let mut tools = Vec::new();
    for _ in 0..20 {
        tools.push(lab.tool(Policy::ReadOnly).await);
    }
    lab.daemon.freeze().await.unwrap();
    for tool in &mut tools {
        tool.say("status 2\n").await;
    }
    // Each has asked when it is served; the first question is under way by then.
    tokio::task::yield_now().await;
    lab.daemon.thaw().await.unwrap();
    for tool in &mut tools {
        assert!(tool.line().await.starts_with("TITLE,"));
        while tool.line().await != "END" {}
    }
    let asked = lab
        .daemon
        .commands()
        .iter()
        .filter(|line| line.starts_with(b"status 2"))
        .count();
    assert!(asked < 20, "{asked}");
    let told = [Verdict::Ran, Verdict::Coalesced].map(|verdict| lab.counts.commands(verdict));
    let asked = u64::try_from(asked).unwrap();
    assert_eq!(told, [asked, 20 - asked]);
}

/// One more than there is place for must not cost the others theirs.
#[tokio::test]
async fn one_tool_too_many_is_closed() {
    let lab = Lab::new().await;
    let mut tools = Vec::new();
    for _ in 0..TOOLS_MAX {
        tools.push(lab.tool(Policy::ReadOnly).await);
    }
    assert_eq!(
        lab.connect(ToolConfig::default()).rest().await.1,
        Left::Full
    );
    assert_eq!(lab.counts.left(Left::Full), 1);
    assert!(tools[0].ask("pid").await.starts_with("SUCCESS"));
    drop(tools.pop());
    let freed = async {
        while lab.slot.tools() == TOOLS_MAX {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, freed).await.unwrap();
    lab.tool(Policy::ReadOnly).await;
    lab.fleet.shutdown(PATIENCE).await;
}
