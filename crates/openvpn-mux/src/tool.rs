//! One tool on a virtual management socket.

use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use openvpn_management::daemon::{self, InputLines, READ_BYTES};
use openvpn_management::{Command, Rejected, Reply, Secret, Text};
use openvpn_session::{Answer, CallError, Heard, Listener, NotSent, OutcomeUnknown};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::counts::Verdict;
use crate::policy::Policy;
use crate::request::{Block, Circumstances, Request, Topic, Word};
use crate::slot::{Place, Slot};
use crate::view::{View, put_line};

/// How long a tool may leave what we wrote unread before it is cut. What it does not read of the daemon's lines is
/// bounded besides, by [`TAP_BYTES_MAX`](openvpn_session::TAP_BYTES_MAX).
const UNREAD_MAX: Duration = Duration::from_secs(60);
/// Most bytes of answers that pile up before they are written out between two commands of one read.
const OUTPUT_BYTES_MAX: usize = 256 * 1024;
/// Most bytes a tool may send before it is greeted; no more is read then.
const EARLY_BYTES_MAX: usize = 4 * 1024;
/// How long a tool may take for the password.
const LOGIN_MAX: Duration = Duration::from_secs(60);
/// Tries with the password, as OpenVPN gives.
const PASSWORD_TRIES: usize = 3;
/// Most lines of a block; one that has more is refused at its `END`.
const BLOCK_LINES_MAX: usize = openvpn_management::command::BLOCK_LINES_MAX;
/// The answer to a tool that decides where another does.
const TAKEN: &[u8] = b"ERROR: another tool decides who is let in";

/// How the tools of one socket are treated.
#[derive(Debug, Clone, Default)]
pub struct ToolConfig {
    /// What they may do.
    pub policy: Policy,
    /// What they must say first.
    pub password: Option<Secret>,
    /// What happens to a tool that comes while the daemon is away.
    pub away: Away,
}

/// What happens to a tool that comes while the daemon is away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Away {
    /// It waits for the greeting, as behind another manager.
    #[default]
    Wait,
    /// It is closed, as if nobody listened.
    Close,
}

/// Why a tool is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Left {
    /// It left, or said `exit`.
    #[error("it left")]
    Itself,
    /// The daemon's session ended.
    #[error("the daemon left")]
    Daemon,
    /// The daemon is away and it does not wait.
    #[error("the daemon is away")]
    Away,
    /// All places are taken.
    #[error("too many tools")]
    Full,
    /// It did not know the password.
    #[error("wrong password")]
    Password,
    /// It did not read.
    #[error("it does not read: cut")]
    Unread,
    /// The daemon owes it an answer, and nothing else may pass for that.
    #[error("the daemon did not answer")]
    Unanswered,
    /// The gateway closes its socket.
    #[error("the socket is closed")]
    Closed,
}

impl Left {
    /// Every reason, in the order of the enum.
    pub const ALL: [Self; 8] = [
        Self::Itself,
        Self::Daemon,
        Self::Away,
        Self::Full,
        Self::Password,
        Self::Unread,
        Self::Unanswered,
        Self::Closed,
    ];

    /// In a word, for metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Itself => "itself",
            Self::Daemon => "daemon",
            Self::Away => "away",
            Self::Full => "full",
            Self::Password => "password",
            Self::Unread => "unread",
            Self::Unanswered => "unanswered",
            Self::Closed => "closed",
        }
    }
}

impl Slot {
    /// Serves one tool until it is gone.
    pub async fn serve<S>(
        self: Arc<Self>,
        stream: S,
        config: &ToolConfig,
        cancel: &CancellationToken,
    ) -> Left
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let left = self.serve_counted(stream, config, cancel).await;
        self.counts().add_left(left);
        left
    }

    async fn serve_counted<S>(
        self: &Arc<Self>,
        stream: S,
        config: &ToolConfig,
        cancel: &CancellationToken,
    ) -> Left
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let Some(place) = self.enter() else {
            return Left::Full;
        };
        let serving = async {
            let mut wire = Wire::new(stream);
            let greeted = greet(&mut wire, &place, config).await;
            match greeted {
                Ok(listener) => Tool::new(wire, place, listener, &config.policy).run().await,
                Err(left) => left,
            }
        };
        tokio::select! {
            biased;
            () = cancel.cancelled() => Left::Closed,
            left = serving => left,
        }
    }
}

/// A tool's socket, the bytes it sent and the bytes it has yet to read.
struct Wire<S> {
    stream: S,
    input: InputLines,
    /// Lines that were read and not run.
    lines: VecDeque<Vec<u8>>,
    /// Whole answers, shared by the tools that asked together.
    output: VecDeque<Bytes>,
    /// What comes behind `output`.
    tail: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    fn new(stream: S) -> Self {
        Self {
            stream,
            input: InputLines::default(),
            lines: VecDeque::new(),
            output: VecDeque::new(),
            tail: BytesMut::new(),
        }
    }

    /// Reads once, as much as OpenVPN does, and gives how much. Cancel safe.
    async fn read(&mut self) -> Result<usize, Left> {
        let mut bytes = [0; READ_BYTES];
        match self.stream.read(&mut bytes).await {
            Ok(length) => {
                self.lines.extend(self.input.handle_input(&bytes[..length]));
                Ok(length)
            }
            Err(_) => Err(Left::Itself),
        }
    }

    fn put(&mut self, answer: Bytes) {
        if !self.tail.is_empty() {
            self.output.push_back(self.tail.split().freeze());
        }
        self.output.push_back(answer);
    }

    fn put_line(&mut self, line: &[u8]) {
        put_line(line, &mut self.tail);
    }

    fn unwritten(&self) -> usize {
        self.tail.len() + self.output.iter().map(Bytes::len).sum::<usize>()
    }

    fn discard(&mut self) {
        self.output.clear();
        self.tail.clear();
    }

    /// Writes everything, unless the tool does not read, and what it listens to piles up.
    async fn flush(&mut self, listener: Option<&Listener>) -> Result<(), Left> {
        while self.unwritten() > 0 {
            if self.output.is_empty() {
                self.output.push_back(self.tail.split().freeze());
            }
            let Some(bytes) = self.output.front_mut() else {
                return Ok(());
            };
            let written = unless_unread(listener, self.stream.write(bytes)).await?;
            if written == 0 {
                return Err(Left::Itself);
            }
            bytes.advance(written);
            if bytes.is_empty() {
                self.output.pop_front();
            }
        }
        // What is encrypted may still wait to be written.
        unless_unread(listener, self.stream.flush()).await
    }
}

/// What comes of writing, unless the tool does not read, and what it listens to piles up.
async fn unless_unread<T>(
    listener: Option<&Listener>,
    writing: impl Future<Output = io::Result<T>>,
) -> Result<T, Left> {
    tokio::select! {
        written = timeout(UNREAD_MAX, writing) => match written {
            Ok(written) => written.map_err(|_| Left::Itself),
            Err(_) => Err(Left::Unread),
        },
        () = falls_behind(listener) => Err(Left::Unread),
    }
}

/// Waits until more waits for a listener than may.
async fn falls_behind(listener: Option<&Listener>) {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    while !listener.is_behind() {
        listener.changed().await;
    }
}

/// Asks for the password and greets, once the daemon is there.
async fn greet<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
    place: &Place,
    config: &ToolConfig,
) -> Result<Listener, Left> {
    if let Some(password) = &config.password {
        let login = log_in(wire, password);
        timeout(LOGIN_MAX, login)
            .await
            .unwrap_or(Err(Left::Password))?;
        wire.flush(None).await?;
    }
    let mut arriving = pin!(place.arrive(config.away == Away::Wait));
    let mut early = 0;
    let arrived = loop {
        tokio::select! {
            biased;
            arrived = &mut arriving => break arrived,
            read = wire.read(), if early < EARLY_BYTES_MAX => match read? {
                0 => return Err(Left::Itself),
                length => early += length,
            },
        }
    };
    let (reception, listener) = arrived.ok_or(Left::Away)?;
    wire.put_line(&[b">INFO:", reception.banner.as_bytes()].concat());
    if let Some(question) = reception.question {
        wire.put_line(question.as_bytes());
    }
    Ok(listener)
}

async fn log_in<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
    password: &Secret,
) -> Result<(), Left> {
    for _ in 0..PASSWORD_TRIES {
        wire.tail.extend_from_slice(daemon::PROMPT);
        let line = loop {
            if let Some(line) = wire.lines.pop_front() {
                break line;
            }
            wire.flush(None).await?;
            if wire.read().await? == 0 {
                return Err(Left::Itself);
            }
        };
        if is_equal(&line, password.expose()) {
            wire.tail.extend_from_slice(daemon::PASSWORD_CORRECT);
            return Ok(());
        }
    }
    Err(Left::Password)
}

/// Compares without telling by its time where the first difference is.
fn is_equal(one: &[u8], other: &[u8]) -> bool {
    let differences = one.iter().zip(other).fold(0, |sum, (a, b)| sum | (a ^ b));
    one.len() == other.len() && differences == 0
}

/// A tool that was greeted.
struct Tool<'a, S> {
    wire: Wire<S>,
    place: Place,
    listener: Listener,
    policy: &'a Policy,
    view: View,
    /// The block that it is sending.
    block: Option<(Block, Vec<Text>)>,
    /// Whether an `exit` further on in what was read will drop all answers before it.
    withholds: bool,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Tool<'a, S> {
    fn new(wire: Wire<S>, place: Place, listener: Listener, policy: &'a Policy) -> Self {
        Self {
            wire,
            place,
            listener,
            policy,
            view: View::new(policy.shows_secrets()),
            block: None,
            withholds: false,
        }
    }

    async fn run(mut self) -> Left {
        match self.serve().await {
            // The daemon's last words reach its manager too.
            Err(Left::Daemon) => {
                self.withholds = false;
                self.flush().await.err().unwrap_or(Left::Daemon)
            }
            Ok(left) | Err(left) => left,
        }
    }

    /// Reads, runs and writes by turns, like OpenVPN: nothing is read while something is unwritten.
    async fn serve(&mut self) -> Result<Left, Left> {
        loop {
            self.run_lines().await?;
            let heard = self.hear();
            self.flush().await?;
            heard?;
            tokio::select! {
                biased;
                () = self.listener.changed() => {}
                read = self.wire.read() => if read? == 0 {
                    return Ok(Left::Itself);
                },
            }
        }
    }

    /// Takes what the daemon said meanwhile.
    fn hear(&mut self) -> Result<(), Left> {
        self.hear_before(u64::MAX)
    }

    fn hear_before(&mut self, position: u64) -> Result<(), Left> {
        let now = Instant::now().into_std();
        while let Some(heard) = self.listener.take_before(position) {
            match heard {
                Heard::Line(_, line) => self.view.show(&line, now, &mut self.wire.tail),
                Heard::Behind => return Err(Left::Unread),
                // An answer may have come before.
                Heard::SessionEnded if position < u64::MAX => return Ok(()),
                Heard::SessionEnded => return Err(Left::Daemon),
            }
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Left> {
        if self.withholds {
            return Ok(());
        }
        self.wire.flush(Some(&self.listener)).await
    }

    /// Runs what was read, in order.
    async fn run_lines(&mut self) -> Result<(), Left> {
        self.withholds = self.leaves();
        while let Some(line) = self.wire.lines.pop_front() {
            if let Some((block, lines)) = &mut self.block {
                if line == b"END" {
                    let (block, lines) = (block.clone(), std::mem::take(lines));
                    self.block = None;
                    self.run_block(block, lines).await?;
                } else if lines.len() <= BLOCK_LINES_MAX {
                    lines.push(line.into());
                }
            } else {
                let request = self.request(&line);
                self.run_request(request).await?;
            }
            if self.wire.unwritten() > OUTPUT_BYTES_MAX {
                if self.withholds {
                    self.wire.discard();
                }
                self.flush().await?;
            }
        }
        Ok(())
    }

    fn request(&self, line: &[u8]) -> Request {
        let version = self
            .place
            .instance()
            .with_table(|table| table.status().daemon_version.clone());
        let circumstances = Circumstances {
            policy: self.policy,
            daemon_version: version.as_bytes(),
        };
        Request::of(line, circumstances)
    }

    /// Whether the tool says `exit` in what was read: OpenVPN then drops all answers of that read.
    fn leaves(&self) -> bool {
        let mut in_block = self.block.is_some();
        self.wire.lines.iter().any(|line| {
            if in_block {
                in_block = line != b"END";
                return false;
            }
            match self.request(line) {
                Request::Exit => true,
                request => {
                    in_block = matches!(request, Request::Block(_));
                    false
                }
            }
        })
    }

    async fn run_request(&mut self, request: Request) -> Result<(), Left> {
        match request {
            Request::Nothing => {}
            Request::Answer(answer) => self.answer(&answer)?,
            Request::Refuse(refusal) => self.refuse(&refusal)?,
            Request::Exit => return Err(Left::Itself),
            Request::Read(command) => self.ask(command).await?,
            Request::Change {
                command,
                answers_question,
                decides,
            } => {
                if decides && !self.place.claim_decisions() {
                    self.refuse(TAKEN)?;
                } else {
                    self.change(command, answers_question).await?;
                }
            }
            Request::History(topic, words) => self.run_history(topic, words).await?,
            Request::EnvFilter(level) => {
                self.answer(format!("SUCCESS: env_filter_level={level}").as_bytes())?;
                self.view.set_env_filter(level);
            }
            Request::Bytecount(seconds) => {
                self.answer(b"SUCCESS: bytecount interval changed")?;
                self.view.set_bytecount(seconds);
                self.listener.set_interest(self.view.interest());
            }
            Request::Test(lines) => {
                self.count(Verdict::Answered);
                self.run_test(lines).await?;
            }
            Request::Block(block) => self.block = Some((block, Vec::new())),
        }
        Ok(())
    }

    fn count(&self, verdict: Verdict) {
        self.place.counts().add_command(verdict);
    }

    /// Answers by ourselves, behind all that the daemon has said.
    fn answer(&mut self, line: &[u8]) -> Result<(), Left> {
        self.count(Verdict::Answered);
        self.put_behind(line)
    }

    /// The same where the tool does not get what it wants.
    fn refuse(&mut self, line: &[u8]) -> Result<(), Left> {
        self.count(Verdict::Refused);
        self.put_behind(line)
    }

    fn put_behind(&mut self, line: &[u8]) -> Result<(), Left> {
        self.hear()?;
        self.wire.put_line(line);
        Ok(())
    }

    /// Asks the daemon.
    ///
    /// What it says meanwhile waits until the answer is there: only that tells which of it came before.
    async fn ask(&mut self, command: Command) -> Result<(), Left> {
        self.hear()?;
        let asked_at = self.listener.position();
        let outcome = self.place.ask(command, asked_at).await;
        self.put_outcome(outcome).map(drop)
    }

    async fn change(&mut self, command: Command, answers_question: bool) -> Result<(), Left> {
        self.hear()?;
        let outcome = self.place.change(command).await;
        let is_done = self.put_outcome(outcome)?;
        if is_done && answers_question {
            self.listener.answered();
        }
        Ok(())
    }

    /// Gives the tool its answer, in its place among the daemon's lines; whether the daemon did what it was asked.
    fn put_outcome(&mut self, outcome: Result<Arc<Answer>, Arc<CallError>>) -> Result<bool, Left> {
        let answer = match outcome {
            Ok(answer) => answer,
            Err(error) => return self.put_error(&error).map(|()| false),
        };
        self.hear_before(answer.position)?;
        let text = match &answer.reply {
            // A piece of an answer would be a lie.
            Reply::Raw(reply) if reply.truncated => return Err(Left::Unanswered),
            Reply::Raw(reply) => reply.text.clone().into_bytes(),
            reply => {
                let mut text = Vec::new();
                daemon::write_reply(&Ok(reply.clone()), &mut text);
                text.into()
            }
        };
        let is_done = text.starts_with(b"SUCCESS:");
        self.wire.put(text);
        Ok(is_done)
    }

    fn put_error(&mut self, error: &CallError) -> Result<(), Left> {
        match error {
            CallError::Rejected { text, .. } => {
                self.hear()?;
                let rejected = Rejected { text: text.clone() };
                let mut text = Vec::new();
                daemon::write_reply(&Err(rejected), &mut text);
                self.wire.put(text.into());
                Ok(())
            }
            CallError::NotSent(NotSent::Encode(error)) => {
                self.put_behind(format!("ERROR: {error}").as_bytes())
            }
            CallError::NotSent(NotSent::Detached { .. } | NotSent::Closed)
            | CallError::OutcomeUnknown {
                why: OutcomeUnknown::SessionEnded { .. },
                ..
            } => {
                // Its last words.
                self.hear()?;
                Err(Left::Daemon)
            }
            CallError::NotSent(
                NotSent::LaneFull { .. } | NotSent::Deadline | NotSent::Guard(_),
            )
            | CallError::OutcomeUnknown { .. } => Err(Left::Unanswered),
        }
    }

    /// Switches and histories, word by word. A switch before a history takes effect behind it, so that no line is lost
    /// between the two and none comes twice.
    async fn run_history(&mut self, topic: Topic, words: Vec<Word>) -> Result<(), Left> {
        let mut switched_on = false;
        for word in words {
            match word {
                Word::On | Word::Off => {
                    switched_on = word == Word::On;
                    let state = if switched_on { "ON" } else { "OFF" };
                    let name = topic.name();
                    let text = format!("SUCCESS: real-time {name} notification set to {state}");
                    self.answer(text.as_bytes())?;
                    self.listener
                        .set_interest(self.view.interest_with(topic, switched_on));
                    if !switched_on {
                        self.view.switch(topic, false);
                    }
                }
                Word::Rows(command) => self.ask(command).await?,
            }
        }
        if switched_on {
            self.view.switch(topic, true);
        }
        Ok(())
    }

    async fn run_block(&mut self, block: Block, lines: Vec<Text>) -> Result<(), Left> {
        let command = match block {
            Block::Refused(refusal) => return self.refuse(&refusal),
            Block::ClientAuth { cid, kid } => {
                if !self.place.claim_decisions() {
                    return self.refuse(TAKEN);
                }
                Command::ClientAuth {
                    cid,
                    kid,
                    config: lines,
                }
            }
            Block::ClientPf { cid } => Command::ClientPf { cid, lines },
        };
        self.change(command, false).await
    }

    async fn run_test(&mut self, lines: i64) -> Result<(), Left> {
        for number in 0..lines {
            let text = "The purpose of this command is to generate large amounts of output.";
            self.wire.put_line(format!("[{number}] {text}").as_bytes());
            if self.wire.unwritten() > OUTPUT_BYTES_MAX {
                self.flush().await?;
            }
        }
        Ok(())
    }
}
