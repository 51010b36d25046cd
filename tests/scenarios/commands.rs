//! What the encoder writes is what OpenVPN reads: typed commands against a real daemon.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use openvpn_management::{
    Cid, Command, Connection, Kid, KillMessage, Limits, Output, Text,
    command::{
        AuthRetry, HistoryDepth, HistoryRequest, HoldRequest, PendingAuthForm, StatusFormat,
    },
};
use ovfleet_tests::{Server, poll_until};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

/// How many commands are sent, one after the other's reply.
const COMMANDS: usize = 10_000;
/// A daemon that is alive answers within milliseconds.
const REPLY_DEADLINE: Duration = Duration::from_secs(10);
/// Flushing its log to a busy disk may take a daemon longer.
const LOG_DEADLINE: Duration = Duration::from_secs(30);

/// A command, and the words OpenVPN is to understand.
struct Intent {
    command: Command,
    words: Vec<Vec<u8>>,
}

impl Intent {
    fn new(command: Command, words: &[&[u8]]) -> Self {
        Self {
            command,
            words: words.iter().map(|word| word.to_vec()).collect(),
        }
    }
}

/// If a quote, a backslash, a space, a comment sign or a long text could break out of its
/// argument, the daemon would log another command than the one meant, or two, or none.
#[tokio::test]
async fn ten_thousand_commands_arrive_as_meant() -> Result<()> {
    let server = Server::builder("commands").start().await?;
    let mut random = Random(0x0dd_ba11);
    let intents: Vec<Intent> = (0..COMMANDS).map(|_| intent(&mut random)).collect();

    let mut session = Session::open(&server).await?;
    for intent in &intents {
        session
            .ask(&intent.command)
            .await
            .with_context(|| format!("{:?}", intent.command))?;
    }

    let expected: Vec<&Intent> = intents
        .iter()
        .filter(|intent| is_logged(&intent.command))
        .collect();
    let logged = poll_until("the log to be complete", LOG_DEADLINE, async || {
        let lines = logged_commands(&server);
        Ok((lines.len() >= expected.len()).then_some(lines))
    })
    .await?;
    ensure!(
        logged.len() == expected.len(),
        "{} of {}",
        logged.len(),
        expected.len()
    );
    for (line, intent) in logged.iter().zip(&expected) {
        let words = lex(line).with_context(|| String::from_utf8_lossy(line).into_owned())?;
        ensure!(
            words == intent.words,
            "{:?} became {:?}",
            intent.command,
            String::from_utf8_lossy(line),
        );
    }
    Ok(())
}

/// OpenVPN logs every command but its cheapest.
fn is_logged(command: &Command) -> bool {
    !matches!(command, Command::LoadStats)
}

/// The lines the daemon says it was sent, in order.
fn logged_commands(server: &Server) -> Vec<Vec<u8>> {
    let lines = server.log_lines().into_iter();
    lines
        .filter_map(|line| {
            let command = line.text.strip_prefix(b"MANAGEMENT: CMD '")?;
            command.strip_suffix(b"'").map(<[u8]>::to_vec)
        })
        .collect()
}

/// A session of the sans-I/O protocol over a socket.
struct Session {
    stream: UnixStream,
    connection: Connection,
}

impl Session {
    async fn open(server: &Server) -> Result<Self> {
        let stream = UnixStream::connect(server.socket_path()).await?;
        let connection = Connection::new(Limits::default());
        let mut session = Self { stream, connection };
        while !matches!(session.next().await?, Output::Greeted { .. }) {}
        Ok(session)
    }

    /// Sends a command and waits for its reply, whatever else is said meanwhile.
    async fn ask(&mut self, command: &Command) -> Result<()> {
        let sent = self
            .connection
            .send(command, REPLY_DEADLINE, Instant::now())?;
        loop {
            match self.next().await? {
                Output::Reply {
                    id, late: false, ..
                } if id == sent => return Ok(()),
                Output::Notification(_) => {}
                other => bail!("instead of the reply: {other:?}"),
            }
        }
    }

    async fn next(&mut self) -> Result<Output> {
        loop {
            while let Some(bytes) = self.connection.poll_transmit() {
                self.stream.write_all(&bytes).await?;
            }
            if let Some(output) = self.connection.poll_output() {
                return Ok(output);
            }
            let mut chunk = [0; 16 * 1024];
            let read = tokio::time::timeout(REPLY_DEADLINE, self.stream.read(&mut chunk));
            let length = read.await.context("no reply")??;
            ensure!(length > 0, "the daemon closed the session");
            self.connection
                .handle_input(&chunk[..length], Instant::now());
        }
    }
}

/// A command that leaves the daemon, its clients (none) and its log level alone.
fn intent(random: &mut Random) -> Intent {
    // Nobody has this number: there are no clients.
    let cid = random.below(1 << 40);
    let number = cid.to_string();
    let number = number.as_bytes();
    match random.below(24) {
        0 => Intent::new(Command::Pid, &[b"pid"]),
        1 => Intent::new(Command::Help, &[b"help"]),
        2 => Intent::new(Command::Version, &[b"version"]),
        3 => Intent::new(Command::LoadStats, &[b"load-stats"]),
        4 => Intent::new(Command::ClientCount, &[b"nclients"]),
        5 => match random.below(4) {
            0 => Intent::new(
                Command::Status {
                    format: StatusFormat::Configured,
                },
                &[b"status"],
            ),
            1 => Intent::new(
                Command::Status {
                    format: StatusFormat::V1,
                },
                &[b"status", b"1"],
            ),
            2 => Intent::new(
                Command::Status {
                    format: StatusFormat::V2,
                },
                &[b"status", b"2"],
            ),
            _ => Intent::new(
                Command::Status {
                    format: StatusFormat::V3,
                },
                &[b"status", b"3"],
            ),
        },
        6 => history(b"state", Command::State, random),
        7 => history(b"echo", Command::Echo, random),
        8 => history(b"log", Command::Log, random),
        9 => {
            let seconds = random.small();
            Intent::new(
                Command::Bytecount(seconds),
                &[b"bytecount", seconds.to_string().as_bytes()],
            )
        }
        10 => match random.below(3) {
            // Below 3 commands are not logged, above 4 everything is.
            0 => Intent::new(Command::Verb(None), &[b"verb"]),
            1 => Intent::new(Command::Verb(Some(3)), &[b"verb", b"3"]),
            _ => Intent::new(Command::Verb(Some(4)), &[b"verb", b"4"]),
        },
        11 => match random.below(2) {
            0 => Intent::new(Command::Mute(None), &[b"mute"]),
            _ => Intent::new(Command::Mute(Some(0)), &[b"mute", b"0"]),
        },
        12 => match random.below(4) {
            0 => Intent::new(Command::AuthRetry(None), &[b"auth-retry"]),
            1 => Intent::new(
                Command::AuthRetry(Some(AuthRetry::None)),
                &[b"auth-retry", b"none"],
            ),
            2 => Intent::new(
                Command::AuthRetry(Some(AuthRetry::Nointeract)),
                &[b"auth-retry", b"nointeract"],
            ),
            _ => Intent::new(
                Command::AuthRetry(Some(AuthRetry::Interact)),
                &[b"auth-retry", b"interact"],
            ),
        },
        13 => match random.below(3) {
            0 => Intent::new(Command::Hold(HoldRequest::Query), &[b"hold"]),
            1 => Intent::new(Command::Hold(HoldRequest::Off), &[b"hold", b"off"]),
            _ => Intent::new(Command::Hold(HoldRequest::Release), &[b"hold", b"release"]),
        },
        14 => match random.below(2) {
            0 => Intent::new(Command::EnvFilter(None), &[b"env-filter"]),
            _ => Intent::new(Command::EnvFilter(Some(3)), &[b"env-filter", b"3"]),
        },
        15 => Intent::new(Command::ForgetPasswords, &[b"forget-passwords"]),
        16 => Intent::new(Command::RemoteEntryCount, &[b"remote-entry-count"]),
        17 | 18 => {
            let name = random.text();
            Intent::new(Command::Kill(name.as_slice().into()), &[b"kill", &name])
        }
        19 | 20 => {
            let (message, word) = match random.below(3) {
                0 => (KillMessage::Restart, b"RESTART".to_vec()),
                1 => (KillMessage::Halt, b"HALT".to_vec()),
                _ => {
                    let text = random.text();
                    (KillMessage::Text(text.as_slice().into()), text)
                }
            };
            let command = Command::ClientKill {
                cid: Cid(cid),
                message: Some(message),
            };
            Intent::new(command, &[b"client-kill", number, &word])
        }
        21 => {
            let (reason, told) = (random.text(), random.text());
            let command = Command::ClientDeny {
                cid: Cid(cid),
                kid: Kid(7),
                reason: reason.as_slice().into(),
                client_reason: Some(told.as_slice().into()),
            };
            Intent::new(command, &[b"client-deny", number, b"7", &reason, &told])
        }
        22 => {
            let config = vec![
                Text::from("push \"route 10.0.0.0 255.0.0.0\""),
                Text::from("pid"),
            ];
            let command = Command::ClientAuth {
                cid: Cid(cid),
                kid: Kid(1),
                config,
            };
            Intent::new(command, &[b"client-auth", number, b"1"])
        }
        _ => {
            let extra = random.text();
            let command = Command::ClientPendingAuth {
                cid: Cid(cid),
                extra: extra.as_slice().into(),
                form: PendingAuthForm::CidKidTimeout {
                    kid: Kid(2),
                    timeout_secs: 30,
                },
            };
            Intent::new(
                command,
                &[b"client-pending-auth", number, b"2", &extra, b"30"],
            )
        }
    }
}

fn history(word: &[u8], command: fn(HistoryRequest) -> Command, random: &mut Random) -> Intent {
    let count = std::num::NonZeroU32::MIN.saturating_add(random.small());
    let last = HistoryDepth::Last(count);
    let count = count.to_string();
    let count = count.as_bytes();
    match random.below(6) {
        0 => Intent::new(command(HistoryRequest::On), &[word, b"on"]),
        1 => Intent::new(command(HistoryRequest::Off), &[word, b"off"]),
        2 => Intent::new(
            command(HistoryRequest::History(HistoryDepth::All)),
            &[word, b"all"],
        ),
        3 => Intent::new(command(HistoryRequest::History(last)), &[word, count]),
        4 => Intent::new(
            command(HistoryRequest::OnWithHistory(last)),
            &[word, b"on", count],
        ),
        _ => Intent::new(
            command(HistoryRequest::OnWithHistory(HistoryDepth::All)),
            &[word, b"on", b"all"],
        ),
    }
}

/// Splits a line into words as OpenVPN does; the lab's own reading of its rules.
fn lex(line: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut words = Vec::new();
    let mut bytes = line.iter().copied().peekable();
    loop {
        while bytes.next_if(|byte| byte.is_ascii_whitespace()).is_some() {}
        match bytes.peek() {
            None | Some(b'#' | b';') => return Ok(words),
            Some(_) => {}
        }
        let mut word = Vec::new();
        let quote = bytes.next_if(|byte| matches!(byte, b'"' | b'\''));
        loop {
            match bytes.next() {
                end if end == quote => break,
                None => bail!("no closing quotation"),
                Some(byte) if quote.is_none() && byte.is_ascii_whitespace() => break,
                Some(b'\\') if quote != Some(b'\'') => {
                    let escaped = bytes.next().context("a backslash at the end")?;
                    ensure!(matches!(escaped, b'\\' | b'"' | b' '), "a bad backslash");
                    word.push(escaped);
                }
                Some(byte) => word.push(byte),
            }
        }
        words.push(word);
    }
}

/// splitmix64: the same commands in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// 0 to 99.
    fn small(&mut self) -> u32 {
        u32::try_from(self.below(100)).unwrap_or(0)
    }

    /// One to 255 bytes of what may trip a lexer, and of everything a name may hold.
    fn text(&mut self) -> Vec<u8> {
        const TRAPS: &[&[u8]] = &[
            b"\"",
            b"'",
            b"\\",
            b" ",
            b"#",
            b";",
            b"\\\"",
            b"\" pid \"",
            b"' pid '",
            b"END",
            b",",
            b":",
            b"\xe9\xff",
            "東京".as_bytes(),
            b"$(reboot)",
            b"%s%n",
            b"\\n",
            b"\\x00",
        ];
        let length = usize::try_from(1 + self.below(255)).unwrap_or(1);
        let mut text = Vec::new();
        while text.len() < length {
            match self.below(3) {
                0 => {
                    let trap = usize::try_from(self.below(TRAPS.len() as u64)).unwrap_or(0);
                    text.extend_from_slice(TRAPS[trap]);
                }
                1 => text.push(b'a' + u8::try_from(self.below(26)).unwrap_or(0)),
                _ => {
                    // Printable, or the high half; OpenVPN deletes all else.
                    let byte = u8::try_from(0x20 + self.below(0xe0)).unwrap_or(b' ');
                    text.push(if byte == 0x7f { b'~' } else { byte });
                }
            }
        }
        text.truncate(length);
        text
    }
}
