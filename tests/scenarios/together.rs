//! Everybody at once on one real daemon: the gateway's callers, `socat`, openvpn-monitor and a Perl script. Each sees
//! what it sees alone.

use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::{FutureExt as _, LocalBoxFuture, try_join_all};
use ovfleet_proto::v1::{
    ClientFilter, DisconnectCause, ExecuteCommandRequest, GapCause, GetLoadStatsRequest,
    GetPidRequest, GetSettingsRequest, GetStatesRequest, StreamEventsRequest, event::Detail,
    stream_events_request::Start,
};
use ovfleet_tests::{
    Api, Client, Dialogue, Gateway, GatewayConfig, InstanceConfig, Management, Ports, Proto,
    Server, api::timed, events::EventLog, poll_until, random::soak,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::Barrier;

use self::socat::Tool;
use crate::{
    callers::{PYTHON, command},
    tools::normalized,
};

mod socat;

/// A daemon restarts, and its clients come back, within seconds.
const SOON: Duration = Duration::from_secs(30);
const PASSWORD: &str = "s3cret pass";
/// How often each of the crowd does its part at least.
const TURNS: usize = 3;
/// The same where there is time, with `OVFLEET_SOAK`.
const SOAK_TURNS: usize = 200;
const SOCATS: usize = 10;

/// Replies by command, without what differs from one moment to the next.
type Replies = BTreeMap<String, Vec<String>>;

/// A tool that was written for a daemon of its own must not notice that it has company.
#[tokio::test]
async fn everybody_at_once_sees_what_each_sees_alone() -> Result<()> {
    let mut lab = Lab::start().await?;
    // Alone. What restarts the daemon begins a new history, so it comes before what is compared.
    let mut script = lab.perl(&lab.server.address())?;
    let harsh_alone = play(&mut script, "harsh bob").await?;
    lab.wait_back(1).await?;
    let alone = play(&mut script, "gentle").await?;
    script.end().await?;
    let mut monitor = lab.monitor("alone", &lab.server.address(), Some(PASSWORD))?;
    let page_alone = look(&mut monitor).await?;
    monitor.end().await?;
    let sessions = page_alone["vpn"]["sessions"].as_object();
    ensure!(
        sessions.is_some_and(|sessions| sessions.len() == 2),
        "{page_alone:#}"
    );

    // Together.
    let gateway = lab.gateway().await?;
    let mut api = Api::connect(&gateway).await?;
    api.wait_attached().await?;
    api.wait_clients(ClientFilter::default(), 2, SOON).await?;
    poll_until("the sockets to be open", SOON, async || {
        let opened = gateway.log().matches("virtual socket open").count();
        Ok((opened == 4).then_some(()))
    })
    .await?;
    let everything = StreamEventsRequest {
        start: Some(Start::Now(true)),
        kinds: ["client.*", "instance.*"].map(str::to_owned).to_vec(),
        ..Default::default()
    };
    let events = api.follow_request(everything).await?;
    let mut script = lab.perl(&lab.tcp_full())?;
    let mut monitors = [
        lab.monitor("unix", &lab.unix("operator"), None)?,
        lab.monitor("unix-guarded", &lab.unix("guarded"), Some(PASSWORD))?,
        lab.monitor("tcp", &lab.tcp_read_only(), None)?,
        lab.monitor("tcp-guarded", &lab.tcp_full(), Some(PASSWORD))?,
    ];
    let mut tools = Vec::new();
    for number in 0..SOCATS {
        tools.push(Tool::open(number, &lab).await?);
    }

    let pid = lab.server.pid();
    let crowd = Crowd::new(SOCATS + monitors.len() + 2);
    let mut parts: Vec<LocalBoxFuture<'_, Result<()>>> = Vec::new();
    for tool in &mut tools {
        let part = crowd.join(async |turn| tool.turn(turn, &alone).await);
        parts.push(part.boxed_local());
    }
    for monitor in &mut monitors {
        let part = crowd.join(async |_| {
            let page = look(monitor).await?;
            ensure!(
                page == page_alone,
                "alone {page_alone:#}\ntogether {page:#}"
            );
            Ok(())
        });
        parts.push(part.boxed_local());
    }
    let part = crowd.join(async |_| ensure_same(&alone, &play(&mut script, "gentle").await?));
    parts.push(part.boxed_local());
    let part = crowd.join(async |_| call(&mut api, pid, &alone).await);
    parts.push(part.boxed_local());
    try_join_all(parts).await?;

    // What disturbs everybody comes last: it disturbs as it would without us, and ends nobody.
    ensure_same(&harsh_alone, &play(&mut script, "harsh bob").await?)?;
    lab.wait_back(2).await?;
    for tool in &mut tools {
        tool.wait_restarted().await?;
    }
    script.end().await?;
    for monitor in monitors {
        monitor.end().await?;
    }
    api.wait_attached().await?;
    ensure_told(&events).await
}

/// What the crowd did to the daemon was told to callers too.
async fn ensure_told(events: &EventLog) -> Result<()> {
    let is_kill = |event: &ovfleet_proto::v1::Event| match (&event.detail, &event.client) {
        (Some(Detail::Disconnected(gone)), Some(client)) => {
            client.common_name == "bob" && gone.cause() != DisconnectCause::Unspecified
        }
        _ => false,
    };
    events.wait_event("bob to be gone", SOON, is_kill).await?;
    let is_line = |event: &ovfleet_proto::v1::Event| event.kind == "instance.log";
    events.wait_event("a log line", SOON, is_line).await?;
    for received in events.received() {
        // A crowd may log faster than the gateway keeps; nothing else may be missing.
        if let Some(gap) = received.item.gap() {
            ensure!(gap.cause() == GapCause::RateCapped, "{gap:?}");
        }
    }
    let sequences: Vec<u64> = events.events().iter().map(|event| event.sequence).collect();
    ensure!(sequences.is_sorted_by(|one, next| one < next));
    Ok(())
}

/// The gateway's own callers: lists, typed reads, raw lines.
async fn call(api: &mut Api, pid: u32, alone: &Replies) -> Result<()> {
    let instance = || "eu1".to_owned();
    let clients = api.clients(ClientFilter::default()).await?;
    let mut names: Vec<&str> = clients.iter().map(|it| it.common_name.as_str()).collect();
    names.sort_unstable();
    ensure!(names == ["alice", "bob"], "{clients:#?}");
    let request = GetPidRequest {
        instance: instance(),
    };
    let told = api.instance.get_pid(timed(request)).await?.into_inner();
    ensure!(told.pid == pid, "{told:?}");
    let request = GetLoadStatsRequest {
        instance: instance(),
    };
    let stats = api.instance.get_load_stats(timed(request)).await?;
    ensure!(stats.get_ref().clients == 2, "{stats:?}");
    let request = GetStatesRequest {
        instance: instance(),
        last: 0,
    };
    let states = api.instance.get_states(timed(request)).await?.into_inner();
    ensure!(
        states.states.len() + 1 == alone["state all"].len(),
        "{states:#?}"
    );
    let request = GetSettingsRequest {
        instance: instance(),
    };
    api.instance.get_settings(timed(request)).await?;
    for line in ["status 2", "version", "echo all"] {
        let request = ExecuteCommandRequest {
            instance: instance(),
            line: line.to_owned(),
            ..Default::default()
        };
        let reply = api.instance.execute_command(timed(request)).await?;
        let lines = reply.into_inner().lines;
        let lines = lines.iter().filter_map(|line| normalized(&line.text));
        let lines: Vec<String> = lines.collect();
        ensure!(lines == alone[line], "alone {alone:#?}\nnow {lines:#?}");
    }
    Ok(())
}

/// Lets everybody go on until all have done their turns, so that each did its own among all others.
struct Crowd {
    start: Barrier,
    size: usize,
    turns: usize,
    done: AtomicUsize,
}

impl Crowd {
    fn new(size: usize) -> Self {
        Self {
            start: Barrier::new(size),
            size,
            turns: if soak() { SOAK_TURNS } else { TURNS },
            done: AtomicUsize::new(0),
        }
    }

    async fn join(&self, mut turn: impl AsyncFnMut(usize) -> Result<()>) -> Result<()> {
        self.start.wait().await;
        let mut number = 0;
        while self.done.load(Ordering::Relaxed) < self.size {
            turn(number).await?;
            number += 1;
            if number == self.turns {
                self.done.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

/// One turn of the Perl script.
async fn play(script: &mut Dialogue, turn: &str) -> Result<Replies> {
    let played: Vec<(String, Vec<String>)> = serde_json::from_str(&script.ask(turn).await?)?;
    let mut replies = Replies::new();
    for (number, (command, lines)) in played.into_iter().enumerate() {
        let lines = lines.iter().filter_map(|line| normalized(line)).collect();
        // The same command comes again where something was set in between.
        let again = replies.contains_key(&command);
        let key = if again {
            format!("{command} #{number}")
        } else {
            command
        };
        replies.insert(key, lines);
    }
    Ok(replies)
}

fn ensure_same(alone: &Replies, together: &Replies) -> Result<()> {
    ensure!(alone.len() == together.len(), "{alone:#?}\n{together:#?}");
    for (command, alone) in alone {
        let together = together.get(command).context("not played")?;
        let is_same = if command.starts_with("log ") && alone.last().is_some_and(|l| l == "END") {
            // Which lines these are depends on who else does what.
            alone.len() == together.len() && together.iter().all(|row| is_log_row(row))
        } else {
            alone == together
        };
        ensure!(
            is_same,
            "{command}\nalone {alone:#?}\ntogether {together:#?}"
        );
    }
    Ok(())
}

fn is_log_row(row: &str) -> bool {
    row == "END" || row.starts_with("T,")
}

/// A page of openvpn-monitor, without its counters.
async fn look(monitor: &mut Dialogue) -> Result<Value> {
    let mut page: Value = serde_json::from_str(&monitor.ask("").await?)?;
    for vpn in page.as_object_mut().context("no page")?.values_mut() {
        for counter in ["bytesin", "bytesout"] {
            let stats = vpn["stats"].as_object_mut().context("no statistics")?;
            stats.remove(counter).context("no counter")?;
        }
        let sessions = vpn["sessions"].as_object_mut().context("no sessions")?;
        for session in sessions.values_mut() {
            let session = session.as_object_mut().context("no session")?;
            for counter in ["bytes_recv", "bytes_sent", "last_seen"] {
                session.remove(counter).context("no counter")?;
            }
        }
    }
    Ok(page)
}

/// One daemon with a management password, its two clients, and the places of its virtual sockets.
struct Lab {
    server: Server,
    _clients: [Client; 2],
    ports: Ports,
    directory: TempDir,
}

impl Lab {
    async fn start() -> Result<Self> {
        let server = Server::builder("eu1")
            // Its clients notice a restart at once.
            .proto(Proto::Tcp)
            .management(Management::Tcp)
            .password(PASSWORD)
            .option("echo hello")
            .start()
            .await?;
        let alice = Client::builder(&server, "alice").connect().await?;
        let bob = Client::builder(&server, "bob").connect().await?;
        let lab = Self {
            server,
            _clients: [alice, bob],
            ports: Ports::take()?,
            directory: tempfile::tempdir()?,
        };
        write(&lab.file("password"), PASSWORD)?;
        Ok(lab)
    }

    fn file(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn unix(&self, name: &str) -> String {
        format!("unix:{}", self.file(name))
    }

    fn tcp_full(&self) -> String {
        format!("tcp:127.0.0.1:{}", self.ports.numbers()[0])
    }

    fn tcp_read_only(&self) -> String {
        format!("tcp:127.0.0.1:{}", self.ports.numbers()[1])
    }

    async fn gateway(&self) -> Result<Gateway> {
        let socket = |address: String, policy: &str, is_guarded: bool| {
            let mut table = toml::Table::new();
            table.insert("address".to_owned(), address.into());
            table.insert("policy".to_owned(), policy.into());
            if is_guarded {
                table.insert("password_file".to_owned(), self.file("password").into());
            }
            toml::Value::from(table)
        };
        let sockets = vec![
            socket(self.unix("operator"), "operator", false),
            socket(self.unix("guarded"), "operator", true),
            socket(self.tcp_full(), "full", true),
            socket(self.tcp_read_only(), "read-only", false),
        ];
        let instance = InstanceConfig::of(&self.server)
            .set("bytecount", "1s")
            .set("mux", sockets);
        GatewayConfig::new().instance(instance).start().await
    }

    fn perl(&self, address: &str) -> Result<Dialogue> {
        let (host, port) = tcp(address)?;
        let script = "tests/perl/manage.pl";
        Dialogue::start(command(
            "perl",
            &[script, host, port, &self.file("password")],
        )?)
    }

    /// openvpn-monitor with one daemon in its configuration.
    fn monitor(&self, name: &str, address: &str, password: Option<&str>) -> Result<Dialogue> {
        let mut config = "[openvpn-monitor]\nsite=lab\n[vpn]\nname=eu1\n".to_owned();
        match address.strip_prefix("unix:") {
            Some(path) => config += &format!("socket={path}\n"),
            None => {
                let (host, port) = tcp(address)?;
                config += &format!("host={host}\nport={port}\n");
            }
        }
        if let Some(password) = password {
            config += &format!("password={password}\n");
        }
        let path = self.file(&format!("{name}.conf"));
        write(&path, &config)?;
        Dialogue::start(command(PYTHON, &["tests/python/monitor.py", &path])?)
    }

    /// Waits until the daemon has restarted so often, and both clients are back.
    async fn wait_back(&mut self, restarts: usize) -> Result<()> {
        let up = "Initialization Sequence Completed";
        self.server.wait_log(up, 1 + restarts, SOON).await?;
        poll_until("both clients to be back", SOON, async || {
            let status = self.server.fresh_status().await?;
            let rows = status.clients.values();
            let complete = rows.filter(|row| !row.virtual_address.is_empty());
            Ok((complete.count() == 2).then_some(()))
        })
        .await
    }
}

fn tcp(address: &str) -> Result<(&str, &str)> {
    let address = address.strip_prefix("tcp:").context("not TCP")?;
    address.split_once(':').context("no port")
}

/// Writes a file that only its owner may read.
fn write(path: &str, text: &str) -> Result<()> {
    std::fs::write(path, text)?;
    let mode = std::fs::Permissions::from_mode(0o600);
    Ok(std::fs::set_permissions(Path::new(path), mode)?)
}
