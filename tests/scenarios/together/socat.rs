//! The sessions of the crowd that go through `socat`.

use anyhow::{Context as _, Result, ensure};
use ovfleet_tests::Dialogue;

use super::{Lab, PASSWORD, Replies};
use crate::{callers::command, tools::normalized};

/// `socat` on a virtual socket, and the little script of its number.
pub(super) struct Tool {
    number: usize,
    dialogue: Dialogue,
    /// Which lines it wants to hear without asking.
    topics: Vec<&'static str>,
    may_kill: bool,
    pid: u32,
}

impl Tool {
    pub(super) async fn open(number: usize, lab: &Lab) -> Result<Self> {
        let (address, is_guarded, may_kill) = match number {
            0 | 4 | 6 => (lab.unix("operator"), false, true),
            2 | 8 => (lab.unix("guarded"), true, true),
            5 | 7 | 9 => (lab.tcp_full(), true, true),
            _ => (lab.tcp_read_only(), false, false),
        };
        let target = match address.split_once(':').context("no address")? {
            ("unix", path) => format!("UNIX-CONNECT:{path}"),
            (_, address) => format!("TCP:{address}"),
        };
        let mut socat = command("socat", &["-"])?;
        socat.arg(target);
        let mut dialogue = Dialogue::start(socat)?;
        if is_guarded {
            let verdict = dialogue.ask(PASSWORD).await?;
            ensure!(
                verdict == "ENTER PASSWORD:SUCCESS: password is correct",
                "{verdict}"
            );
        }
        let greeting = dialogue.hear().await?;
        ensure!(
            greeting.starts_with(">INFO:OpenVPN Management Interface Version "),
            "{greeting}"
        );
        Ok(Self {
            number,
            dialogue,
            topics: vec!["CLIENT"],
            may_kill,
            pid: lab.server.pid(),
        })
    }

    /// The next line. One that it did not ask for, nor ever would be sent, is somebody else's.
    async fn hear(&mut self) -> Result<String> {
        let line = self.dialogue.hear().await?;
        if let Some(told) = line.strip_prefix('>') {
            let topic = told.split(':').next().unwrap_or_default();
            ensure!(self.topics.contains(&topic), "tool {}: {line}", self.number);
        }
        Ok(line)
    }

    /// The reply to a command, and what was told on the way.
    async fn ask(&mut self, command: &str) -> Result<(Vec<String>, Vec<String>)> {
        self.dialogue.say(command).await?;
        let (mut reply, mut told) = (Vec::new(), Vec::new());
        loop {
            let line = self.hear().await?;
            if line.starts_with('>') {
                told.push(line);
                continue;
            }
            let is_end =
                line == "END" || line.starts_with("SUCCESS: ") || line.starts_with("ERROR: ");
            reply.extend(normalized(&line));
            if is_end {
                return Ok((reply, told));
            }
        }
    }

    async fn expect(&mut self, command: &str, expected: &[String]) -> Result<Vec<String>> {
        let (reply, told) = self.ask(command).await?;
        ensure!(
            reply == expected,
            "tool {}, {command}: {reply:#?}\nexpected {expected:#?}",
            self.number
        );
        Ok(told)
    }

    /// A name that nobody else asks for: an answer that went astray shows.
    async fn kill_nobody(&mut self, turn: usize) -> Result<Vec<String>> {
        let name = format!("tool{}turn{turn}", self.number);
        let expected = if self.may_kill {
            format!("ERROR: common name '{name}' not found")
        } else {
            "ERROR: the 'kill' command is not allowed on this socket (read-only)".to_owned()
        };
        self.expect(&format!("kill {name}"), &[expected]).await
    }

    async fn switch(&mut self, topic: &str, state: &str) -> Result<Vec<String>> {
        let upper = state.to_uppercase();
        let expected = format!("SUCCESS: real-time {topic} notification set to {upper}");
        self.expect(&format!("{topic} {state}"), &[expected]).await
    }

    pub(super) async fn turn(&mut self, turn: usize, alone: &Replies) -> Result<()> {
        let pid = format!("SUCCESS: pid={}", self.pid);
        self.expect("pid", &[pid]).await?;
        match self.number % 5 {
            0 => {
                self.kill_nobody(turn).await?;
                self.expect("status 1", &alone["status 1"]).await?;
            }
            1 => {
                self.expect("status 3", &alone["status 3"]).await?;
                self.kill_nobody(turn).await?;
                self.expect("echo all", &alone["echo all"]).await?;
            }
            2 => {
                self.topics.push("LOG");
                self.switch("log", "on").await?;
                let told = self.kill_nobody(turn).await?;
                let own = format!("CMD 'kill tool{}turn{turn}'", self.number);
                ensure!(told.iter().any(|line| line.ends_with(&own)), "{told:#?}");
                self.switch("log", "off").await?;
                self.topics.retain(|topic| *topic != "LOG");
            }
            3 => {
                self.expect("state all", &alone["state all"]).await?;
                self.expect("version", &alone["version"]).await?;
                self.kill_nobody(turn).await?;
            }
            _ if turn == 0 => {
                self.topics.push("BYTECOUNT_CLI");
                let changed = "SUCCESS: bytecount interval changed".to_owned();
                self.expect("bytecount 1", &[changed]).await?;
                while !self.hear().await?.starts_with(">BYTECOUNT_CLI:") {}
            }
            _ => {
                self.expect("load-stats", &["SUCCESS: load-stats".to_owned()])
                    .await?;
                self.expect("help", &alone["help"]).await?;
            }
        }
        if turn == 0 {
            self.topics.push("STATE");
            self.switch("state", "on").await?;
        }
        Ok(())
    }

    /// It is told of the daemon's restart, and is still there after it.
    pub(super) async fn wait_restarted(&mut self) -> Result<()> {
        while !self.hear().await?.contains(",RECONNECTING,SIGUSR1,") {}
        while !self.hear().await?.contains(",CONNECTED,SUCCESS,") {}
        let pid = format!("SUCCESS: pid={}", self.pid);
        self.expect("pid", &[pid]).await.map(drop)
    }
}
