//! Virtual management sockets on a real daemon: a tool sees what it would see alone.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use ovfleet_tests::{Client, Gateway, GatewayConfig, InstanceConfig, Server, poll_until};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    time::timeout,
};

const DEADLINE: Duration = Duration::from_secs(20);

/// What is typed, one entry after the answer to the one before. `load-stats` follows each and marks the end of its answer.
pub(crate) fn script() -> Vec<Vec<u8>> {
    let lines = "version|help|nclients|load-stats|status|status 1|status 2|status 3|status 4|status abc|status 2 x\
        |log all|log 1|state|state all|state 1|state 2|state on|state off|state on all|state off|state all on\
        |state off off|state bogus|state 0|log|log bogus|log 0|log on|log off|echo|echo all|echo on|echo off\
        |echo on all|echo off|echo 1|echo bogus|verb|verb 4|verb 3|verb 99|verb -1|verb 3|mute|mute 10|mute 0\
        |mute -1|auth-retry|auth-retry interact|auth-retry bogus|auth-retry none|env-filter|env-filter 2\
        |env-filter 0|hold|hold on|hold off|hold bogus|hold release|forget-passwords|net|pkcs11-id-count\
        |pkcs11-id-get 0|pkcs11-id-get|test 3|test 0|test|remote-entry-count|remote-entry-get|remote-entry-get 0\
        |remote ACCEPT|remote|proxy NONE|proxy|username \"Auth\" foo|password \"Auth\" bar|password \"Auth\"\
        |password|needok x ok|needstr x y|cr-response QUJD|rsa-sig|pk-sig|certificate|bytecount|bytecount 5\
        |bytecount 0|bytecount abc|client-pf 0|push-update-broad x|push-update-cid 0 x|network-change|bogus|PID||   \
        |# a comment|; another|pid # trailing|pid extra args|kill|kill \"\"|\"pid\"|'pid'|p\\id|kill \"unterminated\
        |kill 'unterminated|kill C:\\temp|kill a\\\"b|kill trailing\\|kill nobody|kill 1.2.3.4:5|signal\
        |signal SIGKILL|signal sigusr2|client-kill|client-kill abc|client-kill 999|client-kill -1|client-deny 1 2\
        |client-deny 999 0 \"no\"|client-deny x 0 no|client-auth-nt 999 0|client-auth-nt 1|client-auth-nt x y\
        |client-pending-auth 1 2 3|client-pending-auth 999 0 \"x\" 30|a b c d e f g h i j k l m n o p q r s t\
        |pid\tx|grüße|> >CLIENT:|END|version 4|client-auth 1";
    let mut script: Vec<Vec<u8>> = lines
        .split('|')
        .map(|line| line.as_bytes().to_vec())
        .collect();
    script.push(b"pi\0d\r".to_vec());
    script.push(b"\xffpid".to_vec());
    script.push(b"client-auth x 0\nifconfig-push 1.2.3.4 5.6.7.8\npid\nEND".to_vec());
    script.push(b"client-auth 999 0\npush \"route 10.0.0.0 255.0.0.0\"\npid\nEND".to_vec());
    script.push(b"client-auth 998 0\r\nEND\r".to_vec());
    for length in [
        255, 256, 257, 300, 1_000, 1_022, 1_023, 1_024, 1_025, 1_026, 1_100, 1_500, 2_048, 2_049,
        5_000,
    ] {
        script.push(vec![b'x'; length]);
    }
    script.push([b"kill \"".to_vec(), vec![b'x'; 300], b"\"".to_vec()].concat());
    script
}

/// Waits until a virtual socket takes tools: its file is there a moment before that.
pub(crate) async fn wait_open(path: &str) -> Result<()> {
    poll_until("the virtual socket", DEADLINE, async || {
        Ok(UnixStream::connect(path).await.ok().map(drop))
    })
    .await
}

pub(crate) struct Tool {
    stream: BufReader<UnixStream>,
}

impl Tool {
    pub(crate) async fn open(path: &str) -> Result<Self> {
        let stream = timeout(DEADLINE, UnixStream::connect(path)).await??;
        let mut tool = Self {
            stream: BufReader::new(stream),
        };
        let greeting = tool.read_line().await?;
        ensure!(
            greeting == ">INFO:OpenVPN Management Interface Version 5 -- type 'help' for more info",
            "{greeting}"
        );
        Ok(tool)
    }

    pub(crate) async fn read_line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        let reading = self.stream.read_until(b'\n', &mut line);
        timeout(DEADLINE, reading)
            .await
            .with_context(|| format!("so far: {}", line.escape_ascii()))??;
        let Some(line) = line.strip_suffix(b"\r\n") else {
            bail!("cut: {}", line.escape_ascii());
        };
        Ok(String::from_utf8_lossy(line).into_owned())
    }

    pub(crate) async fn say(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.get_mut().write_all(bytes).await?)
    }

    /// The lines that answer `typed`.
    pub(crate) async fn ask(&mut self, typed: &[u8]) -> Result<Vec<String>> {
        // What OpenVPN deletes keeps the mark out of the read that ends the line, which might lose both.
        let written = [typed, b"\n", &[b'\r'; 256], b"load-stats\n"].concat();
        self.say(&written).await?;
        let marks = 1 + usize::from(typed == b"load-stats");
        let mut answer = Vec::new();
        while answer.iter().filter(|line: &&String| is_mark(line)).count() < marks {
            answer.push(self.read_line().await?);
        }
        Ok(answer.iter().filter_map(|line| normalized(line)).collect())
    }

    /// Everything up to the end.
    async fn rest(mut self) -> Result<Vec<u8>> {
        let mut rest = Vec::new();
        timeout(DEADLINE, self.stream.read_to_end(&mut rest)).await??;
        Ok(rest)
    }
}

/// The answer to `load-stats`.
fn is_mark(line: &str) -> bool {
    line.starts_with("SUCCESS: nclients=") && line.contains(",bytesin=")
}

/// A line without what differs from one moment to the next; `None` for one that tells of managers.
pub(crate) fn normalized(line: &str) -> Option<String> {
    if line.contains("MANAGEMENT: ") || line.starts_with(">BYTECOUNT") {
        return None;
    }
    if is_mark(line) {
        return Some("SUCCESS: load-stats".to_owned());
    }
    let separator = if line.contains('\t') { '\t' } else { ',' };
    let mut fields: Vec<&str> = line.split(separator).collect();
    match fields[0] {
        // Bytes received and sent.
        "CLIENT_LIST" => fields[5..7].fill("N"),
        // The same in the first format of `status`.
        _ if fields.len() == 5 && fields[2..4].iter().all(|field| is_number(field)) => {
            fields[2..4].fill("N");
        }
        // The longest queue so far.
        "GLOBAL_STATS" => fields[2] = "N",
        "Max bcast/mcast queue length" => fields[1] = "N",
        _ => {}
    }
    let is_time = |field: &str| {
        let mask: String = field
            .chars()
            .map(|c| if c.is_ascii_digit() { '0' } else { c })
            .collect();
        mask == "0000000000" || mask == "0000-00-00 00:00:00"
    };
    let fields: Vec<&str> = fields
        .iter()
        .map(|field| if is_time(field) { "T" } else { field })
        .collect();
    Some(fields.join(&separator.to_string()))
}

fn is_number(field: &str) -> bool {
    field.parse::<u64>().is_ok()
}

/// The whole script, answer by answer.
async fn play(path: &str) -> Result<Vec<(Vec<u8>, Vec<String>)>> {
    let mut tool = Tool::open(path).await?;
    let mut played = Vec::new();
    for typed in script() {
        let answer = tool
            .ask(&typed)
            .await
            .with_context(|| format!("typed {}", typed.escape_ascii()))?;
        played.push((typed, answer));
    }
    Ok(played)
}

/// Rows of the log history: the longer it goes on, the more there are.
fn is_same(typed: &[u8], direct: &[String], through: &[String]) -> bool {
    if typed == b"log all" {
        let rows = |answer: &[String]| {
            answer
                .split(|line| line == "END")
                .next()
                .map(<[String]>::to_vec)
        };
        let (direct, through) = (
            rows(direct).unwrap_or_default(),
            rows(through).unwrap_or_default(),
        );
        return through.starts_with(&direct);
    }
    direct == through
}

struct Lab {
    server: Server,
    _client: Client,
    gateway: Gateway,
    directory: TempDir,
}

impl Lab {
    /// Plays the script on the daemon first, while it is alone.
    async fn start(name: &str) -> Result<(Self, Vec<(Vec<u8>, Vec<String>)>)> {
        let server = Server::builder(name).option("echo hello").start().await?;
        let client = Client::builder(&server, "alice").connect().await?;
        let direct = play(&server.socket_path().display().to_string()).await?;
        let directory = tempfile::tempdir()?;
        let socket = |policy: &str| {
            let mut table = toml::Table::new();
            table.insert(
                "address".to_owned(),
                format!("unix:{}/{policy}", directory.path().display()).into(),
            );
            table.insert("policy".to_owned(), policy.into());
            toml::Value::from(table)
        };
        let sockets: Vec<toml::Value> = ["full", "operator", "read-only"].map(socket).to_vec();
        let instance = InstanceConfig::of(&server).set("mux", sockets);
        let gateway = GatewayConfig::new().instance(instance).start().await?;
        let lab = Self {
            server,
            _client: client,
            gateway,
            directory,
        };
        for policy in ["full", "operator", "read-only"] {
            wait_open(&lab.socket(policy)).await?;
        }
        Ok((lab, direct))
    }

    fn socket(&self, policy: &str) -> String {
        self.directory.path().join(policy).display().to_string()
    }
}

/// If a byte of an answer differed, some tool that people have would stop to work behind the gateway.
#[tokio::test]
async fn a_script_reads_through_the_gateway_as_from_the_daemon() -> Result<()> {
    let (lab, direct) = Lab::start("script").await?;
    // Ten others, with everything on.
    let mut others = Vec::new();
    for _ in 0..10 {
        let mut other = Tool::open(&lab.socket("operator")).await?;
        other
            .say(b"state on\nlog on\nbytecount 1\nenv-filter 3\n")
            .await?;
        others.push(other);
    }
    let through = play(&lab.socket("full")).await?;
    ensure!(through.len() >= 150, "{}", through.len());
    for ((typed, direct), (_, through)) in direct.iter().zip(&through) {
        let (shown, typed) = (typed.escape_ascii().to_string(), typed);
        ensure!(
            is_same(typed, direct, through),
            "typed {shown}\ndirect  {direct:#?}\nthrough {through:#?}"
        );
    }
    // They were there, and heard it.
    for mut other in others {
        other.say(b"pid\n").await?;
        let mut heard = String::new();
        while !heard.contains("\nSUCCESS: pid=") {
            heard += &format!("\n{}", other.read_line().await?);
        }
        ensure!(
            heard.contains(">LOG:") && heard.contains("MANAGEMENT: CMD"),
            "{heard}"
        );
    }

    // `exit` in one write with others drops their answers on the daemon, and ends this tool alone.
    let mut leaver = Tool::open(&lab.socket("full")).await?;
    leaver.say(b"pid\nverb\nexit\n").await?;
    ensure!(leaver.rest().await?.is_empty());
    let mut halved = Tool::open(&lab.socket("full")).await?;
    halved.say(b"pid\n").await?;
    halved.stream.get_mut().shutdown().await?;
    ensure!(halved.rest().await? == format!("SUCCESS: pid={}\r\n", lab.server.pid()).as_bytes());

    // After a restart in the middle everything is as it was.
    let mut tool = Tool::open(&lab.socket("operator")).await?;
    tool.say(b"state on\nsignal SIGUSR1\n").await?;
    while !tool.read_line().await?.contains(",CONNECTED,SUCCESS,") {}
    let mut tool = Tool::open(&lab.socket("full")).await?;
    let answer = tool.ask(b"state 1").await?;
    ensure!(answer[0].starts_with("T,CONNECTED,SUCCESS"), "{answer:?}");
    drop(lab.gateway);
    Ok(())
}

/// One changing command that slips through a read-only socket is one too many.
#[tokio::test]
async fn a_read_only_socket_changes_nothing() -> Result<()> {
    const CHANGING: [&str; 20] = [
        "kill alice",
        "signal SIGUSR1",
        "signal SIGTERM",
        "verb 0",
        "mute 5",
        "hold on",
        "hold release",
        "auth-retry interact",
        "client-kill 0",
        "client-deny 0 1 no",
        "client-auth-nt 0 1",
        "forget-passwords",
        "password a b",
        "username a b",
        "needok a ok",
        "needstr a b",
        "remote ACCEPT",
        "proxy NONE",
        "client-pending-auth 0 1 x 5",
        "client-auth 0 1",
    ];
    let (mut lab, _) = Lab::start("guarded").await?;
    let commands = || -> usize {
        let lines = lab.server.log_lines();
        lines
            .iter()
            .filter(|line| is_change(&String::from_utf8_lossy(&line.text), &CHANGING))
            .count()
    };
    let before = commands();
    let mut tool = Tool::open(&lab.socket("read-only")).await?;
    let mut cases = 0;
    for command in CHANGING {
        let (name, arguments) = command.split_once(' ').unwrap_or((command, ""));
        for round in 0..5_usize {
            let filler = "x".repeat(1_020 + round);
            let hidden = [
                command.to_owned(),
                format!("\"{name}\" {arguments}"),
                format!("'{name}' {arguments}"),
                format!("{}{command}", " ".repeat(round + 1)),
                format!(
                    "{}\0{} {arguments}",
                    &name[..round.min(name.len())],
                    &name[round.min(name.len())..]
                ),
                format!("\t{command}\r"),
                format!("{filler}{command}"),
                format!("{filler}yyyy{command}"),
                format!("pid\nstatus\n{command}\nverb"),
                format!("client-auth 0 1\n{command}\nEND\n{command}"),
                format!("# x\n{command} # y"),
            ];
            for mut typed in hidden {
                cases += 1;
                if name == "client-auth" {
                    // It begins a block here too.
                    typed.push_str("\nEND");
                }
                tool.ask(typed.as_bytes())
                    .await
                    .with_context(|| format!("typed {typed:?}"))?;
            }
        }
    }
    ensure!(cases >= 1_000, "{cases}");
    ensure!(tool.ask(b"KILL alice").await?[0].starts_with("ERROR: unknown command"));
    ensure!(
        tool.ask(b"kill alice").await?[0].starts_with("ERROR: the 'kill' command is not allowed")
    );
    ensure!(commands() == before, "{} changes", commands() - before);
    // The same is told where it is done: the test can fail.
    let mut tool = Tool::open(&lab.socket("operator")).await?;
    tool.ask(b"'kill' nobody").await?;
    lab.server
        .wait_log("CMD 'kill nobody'", 1, DEADLINE)
        .await?;
    drop(lab.gateway);
    Ok(())
}

/// Whether a line of the daemon's log tells that one of these commands came.
fn is_change(line: &str, commands: &[&str]) -> bool {
    let Some((_, command)) = line.split_once("MANAGEMENT: CMD '") else {
        return false;
    };
    let name = command.split([' ', '\'']).next().unwrap_or_default();
    // Without an argument these ask.
    let asks = command.strip_suffix('\'') == Some(name);
    !asks
        && commands
            .iter()
            .any(|changing| changing.split(' ').next() == Some(name))
}
