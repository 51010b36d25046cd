//! A daemon that restarts in the middle of what a tool does: through the gateway the tool reads what it would read from
//! the daemon.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ovfleet_tests::{Api, GatewayConfig, InstanceConfig, Server, Signal, poll_until};

use crate::tools::{Tool, normalized, script};

/// A daemon restarts within seconds; this is for a busy machine.
const SOON: Duration = Duration::from_secs(30);
const OTHERS: usize = 10;

/// What was done, and every line that came of it.
type Played = Vec<(String, Vec<String>)>;

/// A tool that survives its daemon's restarts when it is alone with it must do so behind the gateway: the same lines in
/// the same order, but for times and counters, the process id and the name of the network device, which are the
/// system's to give, and lines that tell of managers. Ten others have everything on meanwhile.
#[tokio::test]
async fn a_restart_in_the_middle_reads_as_from_the_daemon() -> Result<()> {
    let mut server = Server::builder("script")
        .option("echo hello")
        .start()
        .await?;
    let socket = server.socket_path().display().to_string();
    let direct = play(&mut server, &socket).await?;
    // Anew, so that the histories begin as they began.
    server.signal(Signal::TERM)?;
    server.wait_ended(SOON).await?;
    server.start_again().await?;

    let directory = tempfile::tempdir()?;
    let path = directory.path().join("mux").display().to_string();
    let mut mux = toml::Table::new();
    mux.insert("address".to_owned(), format!("unix:{path}").into());
    mux.insert("policy".to_owned(), "full".into());
    let instance = InstanceConfig::of(&server).set("mux", mux);
    let gateway = GatewayConfig::new().instance(instance).start().await?;
    Api::connect(&gateway).await?.wait_attached().await?;
    let mut others = Vec::new();
    for _ in 0..OTHERS {
        let mut other = open(&path).await?;
        other.say(b"state on\nlog on\nbytecount 1\n").await?;
        others.push(other);
    }
    let through = play(&mut server, &path).await?;

    ensure!(direct.len() == through.len() && direct.len() >= 150);
    for ((done, direct), (_, through)) in direct.iter().zip(&through) {
        ensure!(
            direct == through,
            "{done}\ndirect  {direct:#?}\nthrough {through:#?}"
        );
    }
    // They were there, and heard it all.
    for mut other in others {
        other.say(b"pid\n").await?;
        let mut heard = String::new();
        while !heard.contains("\nSUCCESS: pid=") {
            heard += &format!("\n{}", other.read_line().await?);
        }
        let states = |state: &str| {
            let lines = heard.lines().filter(|line| line.starts_with(">STATE:"));
            lines.filter(|line| line.contains(state)).count()
        };
        ensure!(heard.contains("\n>LOG:"), "{heard}");
        ensure!(states(",RECONNECTING,") == 2, "{heard}");
        ensure!(states(",CONNECTED,SUCCESS,") == 2, "{heard}");
    }
    Ok(())
}

/// The whole script, with SIGUSR1 after a third of it, and SIGHUP after two.
async fn play(server: &mut Server, path: &str) -> Result<Played> {
    let mut tool = open(path).await?;
    let mut played = Played::new();
    let script = script();
    for (index, typed) in script.iter().enumerate() {
        if index == script.len() / 3 {
            restart(&mut tool, server, Signal::USR1, &mut played).await?;
        }
        if index == 2 * script.len() / 3 {
            restart(&mut tool, server, Signal::HUP, &mut played).await?;
        }
        ask(&mut tool, typed, &mut played).await?;
    }
    Ok(played)
}

/// Restarts the daemon behind the tool's back, which watches.
async fn restart(
    tool: &mut Tool,
    server: &mut Server,
    signal: Signal,
    played: &mut Played,
) -> Result<()> {
    for switch in ["state on", "log on"] {
        ask(tool, switch.as_bytes(), played).await?;
    }
    server.signal(signal)?;
    let mut lines = Vec::new();
    while lines
        .last()
        .is_none_or(|line: &String| !line.contains(",CONNECTED,SUCCESS,"))
    {
        lines.push(tool.read_line().await?);
    }
    let lines = lines.iter().filter_map(|line| compared(line)).collect();
    played.push((format!("{signal:?}"), lines));
    for switch in ["log off", "state off"] {
        ask(tool, switch.as_bytes(), played).await?;
    }
    Ok(())
}

async fn ask(tool: &mut Tool, typed: &[u8], played: &mut Played) -> Result<()> {
    let shown = typed.escape_ascii().to_string();
    let answer = tool
        .ask(typed)
        .await
        .with_context(|| format!("typed {shown}"))?;
    let answer = answer.iter().filter_map(|line| compared(line)).collect();
    played.push((shown, answer));
    Ok(())
}

async fn open(path: &str) -> Result<Tool> {
    poll_until("the socket to answer", SOON, async || {
        Ok(Tool::open(path).await.ok())
    })
    .await
}

/// A line without what differs between two runs of one daemon; `None` for what may be missing in one of them.
fn compared(line: &str) -> Option<String> {
    // Whether a signal meets a daemon that waits or one that works is chance.
    if line.contains("event_wait : Interrupted system call") {
        return None;
    }
    let line = match line.strip_prefix("SUCCESS: pid=") {
        Some(_) => "SUCCESS: pid=N".to_owned(),
        None => normalized(line)?,
    };
    let mut parts = line.split("tun");
    let mut masked = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        masked += "tun";
        masked += part.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    // Real-time lines have their time behind a colon.
    for kind in [">STATE:", ">LOG:", ">ECHO:"] {
        if let Some(rest) = masked.strip_prefix(kind) {
            let (_, rest) = rest.split_once(',')?;
            return Some(format!("{kind}T,{rest}"));
        }
    }
    Some(masked)
}
