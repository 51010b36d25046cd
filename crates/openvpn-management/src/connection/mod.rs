//! The manager's side of one management connection.

mod expectation;
mod output;
mod reader;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

pub(crate) use self::expectation::Expectation;
pub use self::output::{CommandId, Output, SendError, Violation};
use self::reader::{Progress, ReplyReader};
use crate::command::{Command, EncodeError, encode_password};
use crate::env::EnvBuilder;
use crate::limits::Limits;
use crate::notification::{self, EnvHeader, Parsed};
use crate::record::LoadStats;
use crate::reply::{Rejected, Reply};
use crate::status::StatusSize;
use crate::text::{Secret, Text, parse_u32};

/// What a daemon with a management password says first: no line, and no line end.
const PROMPT: &[u8] = b"ENTER PASSWORD:";
/// How much of a first line that is none of a management interface is shown.
const FOREIGN_LINE_BYTES_SHOWN: usize = 200;
/// Capacity a cut line's buffer may keep for the next one; an idle connection holds nothing else.
const PARTIAL_BYTES_KEPT: usize = 256;
/// Capacity the queue of outputs may keep once it is empty.
const OUTPUTS_KEPT: usize = 2;
/// Outputs that wait before no more input is taken, where the caller can wait: a daemon that writes nothing but line
/// ends has one of them for every byte.
const OUTPUTS_MAX: usize = 64;

/// The manager's side of one management connection: bytes and the time in, outputs and bytes out.
///
/// Call [`poll_transmit`](Self::poll_transmit) and [`poll_output`](Self::poll_output) until they are empty after each
/// call that takes `&mut self`; what they hold is bounded by the input given between.
#[derive(Debug, Clone)]
pub struct Connection {
    limits: Limits,
    phase: Phase,
    /// The start of a line whose end has not come; never holds an LF.
    partial: Vec<u8>,
    /// A notification whose ENV block has not ended.
    env_block: Option<Box<EnvBlock>>,
    /// The command whose reply is owed.
    flight: Option<Box<Flight>>,
    /// What was sent behind a command that missed its deadline, and is not answered.
    fence: Option<Fence>,
    /// How large the last snapshot was.
    status_size: StatusSize,
    next_id: u64,
    outputs: VecDeque<Output>,
    transmit: BytesMut,
    /// Which lines that start with `>` are told as they come.
    lines_told: LinesTold,
}

/// Which lines that start with `>` a [`Connection`] tells as they come, besides what they mean.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LinesTold {
    /// None.
    #[default]
    None,
    /// Those that ask something: hold, passwords, signatures and the like.
    Questions,
    /// Every one.
    All,
}

/// ```text
/// Fresh ──prompt──► Prompted ──send_password──► PasswordSent ──SUCCESS:──► Accepted
///   │                                             │  ▲  prompt: refused       │
///   └───────────────────── >INFO: ────────────────┴──┴────────────────────────┴──► Greeted ──exit──► Exited
/// Any of them ──► Violated
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Fresh,
    Prompted,
    PasswordSent,
    Accepted,
    Greeted,
    /// By a violation: nothing is read any more.
    Violated,
    /// By our `exit`: what still comes is read, nothing is sent.
    Exited,
}

#[derive(Debug, Clone)]
struct EnvBlock {
    header: EnvHeader,
    env: EnvBuilder,
}

#[derive(Debug, Clone)]
struct Flight {
    id: CommandId,
    /// `None` once it was missed: the connection has a fence then.
    deadline: Option<Instant>,
    /// Bytes of reply that may still come.
    room: usize,
    reader: ReplyReader,
}

/// A command whose answer cannot be mistaken for another's. Daemons answer in the order they are asked, so whatever is
/// owed comes before the fence's answer, or never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fence {
    LoadStats,
    /// Where the answer to a `load-stats` is owed itself.
    Pid,
}

impl Fence {
    fn behind(reader: &ReplyReader) -> Self {
        if reader.owes_load_stats() {
            Self::Pid
        } else {
            Self::LoadStats
        }
    }

    fn line(self) -> &'static [u8] {
        match self {
            Self::LoadStats => b"load-stats\n",
            Self::Pid => b"pid\n",
        }
    }

    /// Whether this line is its answer: the whole line, so that no text in another reply can pass for it.
    fn is_answered_by(self, line: &[u8]) -> bool {
        let Some(text) = line.strip_prefix(b"SUCCESS: ") else {
            return false;
        };
        match self {
            Self::LoadStats => LoadStats::parse(text).is_some(),
            Self::Pid => text.strip_prefix(b"pid=").and_then(parse_u32).is_some(),
        }
    }
}

impl Connection {
    /// A connection that has just been opened; the daemon speaks first.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            phase: Phase::Fresh,
            partial: Vec::new(),
            env_block: None,
            flight: None,
            fence: None,
            status_size: StatusSize::default(),
            next_id: 0,
            outputs: VecDeque::new(),
            transmit: BytesMut::new(),
            lines_told: LinesTold::None,
        }
    }

    /// Which lines of the daemon's are told as they come, from the next one on.
    pub fn tell_lines(&mut self, which: LinesTold) {
        self.lines_told = which;
    }

    /// Takes bytes read from the daemon, cut anywhere.
    ///
    /// A reply that is in `bytes` is in time, whatever `now` says: a slow reader is not the daemon's fault.
    pub fn handle_input(&mut self, bytes: &[u8], now: Instant) {
        self.take_lines(bytes, usize::MAX);
        self.handle_timeout(now);
    }

    /// Like [`handle_input`](Self::handle_input), but takes no more when there is much to say: gives how many bytes were
    /// taken. The rest is to be given again once [`poll_output`](Self::poll_output) is empty.
    pub fn handle_some_input(&mut self, bytes: &[u8], now: Instant) -> usize {
        let taken = self.take_lines(bytes, OUTPUTS_MAX);
        if taken == bytes.len() {
            self.handle_timeout(now);
        }
        taken
    }

    /// Takes lines until there are so many outputs; gives how many bytes that were.
    fn take_lines(&mut self, input: &[u8], outputs_max: usize) -> usize {
        let mut bytes = input;
        while !bytes.is_empty() && self.outputs.len() < outputs_max {
            if self.phase == Phase::Violated {
                return input.len();
            }
            if self.take_prompt(&mut bytes) {
                continue;
            }
            // Only new bytes are searched: what is in `partial` has no LF.
            let line_end = memchr::memchr(b'\n', bytes);
            let piece = &bytes[..line_end.unwrap_or(bytes.len())];
            bytes = &bytes[line_end.map_or(bytes.len(), |end| end + 1)..];
            if self.partial.len() + piece.len() > self.limits.line_bytes_max {
                self.violate(Violation::LineTooLong {
                    limit: self.limits.line_bytes_max,
                });
            } else if line_end.is_none() {
                self.partial.extend_from_slice(piece);
            } else if self.partial.is_empty() {
                self.handle_line(piece);
            } else {
                let mut line = std::mem::take(&mut self.partial);
                line.extend_from_slice(piece);
                self.handle_line(&line);
                if line.capacity() <= PARTIAL_BYTES_KEPT {
                    line.clear();
                    self.partial = line;
                }
            }
        }
        input.len() - bytes.len()
    }

    /// Acts on the deadline that [`poll_timeout`](Self::poll_timeout) announced; harmless when called early.
    pub fn handle_timeout(&mut self, now: Instant) {
        let Some(flight) = &mut self.flight else {
            return;
        };
        if flight.deadline.is_none_or(|deadline| now < deadline) || self.phase != Phase::Greeted {
            return;
        }
        flight.deadline = None;
        let fence = Fence::behind(&flight.reader);
        self.outputs.push_back(Output::Unanswered { id: flight.id });
        self.fence = Some(fence);
        self.transmit.extend_from_slice(fence.line());
    }

    /// Answers [`Output::PasswordRequested`], once: the password goes out as it is, not quoted.
    ///
    /// # Errors
    /// [`EncodeError::PasswordNotAsked`] if it was answered before or never asked; the others as for any value.
    pub fn send_password(&mut self, password: &Secret) -> Result<(), EncodeError> {
        if self.phase != Phase::Prompted {
            return Err(EncodeError::PasswordNotAsked);
        }
        encode_password(password, &mut self.transmit)?;
        self.phase = Phase::PasswordSent;
        Ok(())
    }

    /// Sends a command. Its answer, or [`Output::Unanswered`] after `deadline`, names the id given back.
    ///
    /// # Errors
    /// See [`SendError`]; nothing was sent then.
    pub fn send(
        &mut self,
        command: &Command,
        deadline: Duration,
        now: Instant,
    ) -> Result<CommandId, SendError> {
        match self.phase {
            Phase::Greeted => {}
            Phase::Violated | Phase::Exited => return Err(SendError::Closed),
            Phase::Fresh | Phase::Prompted | Phase::PasswordSent | Phase::Accepted => {
                return Err(SendError::NotGreeted);
            }
        }
        if self.fence.is_some() {
            return Err(SendError::Unresponsive);
        }
        if self.flight.is_some() {
            return Err(SendError::Busy);
        }
        command.encode(&mut self.transmit)?;
        let id = CommandId(self.next_id);
        self.next_id += 1;
        match command.expectation() {
            Expectation::Nothing => {
                if matches!(command, Command::Exit | Command::Quit) {
                    self.phase = Phase::Exited;
                }
                self.outputs.push_back(Output::Reply {
                    id,
                    result: Ok(Reply::None),
                    late: false,
                });
            }
            expectation => {
                match expectation {
                    Expectation::Sentinel(_) => {
                        self.transmit.extend_from_slice(Fence::Pid.line());
                    }
                    Expectation::Raw => self.transmit.extend_from_slice(Fence::LoadStats.line()),
                    _ => {}
                }
                // A deadline beyond what an Instant holds is none.
                let deadline = now.checked_add(deadline);
                let reader = ReplyReader::new(expectation, &self.limits, self.status_size);
                self.flight = Some(Box::new(Flight {
                    id,
                    deadline,
                    room: expectation.reply_bytes_max(),
                    reader,
                }));
            }
        }
        Ok(id)
    }

    /// The next thing to say, if any.
    pub fn poll_output(&mut self) -> Option<Output> {
        let output = self.outputs.pop_front();
        if self.outputs.is_empty() && self.outputs.capacity() > OUTPUTS_KEPT {
            self.outputs = VecDeque::new();
        }
        output
    }

    /// The next bytes to write, if any, to be written whole and in order.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        (!self.transmit.is_empty()).then(|| std::mem::take(&mut self.transmit).freeze())
    }

    /// When to call [`handle_timeout`](Self::handle_timeout), if ever.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.flight.as_ref()?.deadline
    }

    /// The command whose reply is owed, late or not.
    #[must_use]
    pub fn in_flight(&self) -> Option<CommandId> {
        Some(self.flight.as_ref()?.id)
    }

    /// Whether the greeting was read.
    #[must_use]
    pub fn is_greeted(&self) -> bool {
        matches!(self.phase, Phase::Greeted | Phase::Exited)
    }

    /// Whether no deadline is missed, or a missed one is made good.
    #[must_use]
    pub fn is_responsive(&self) -> bool {
        self.fence.is_none()
    }

    /// Whether [`send`](Self::send) would take a command now.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Greeted && self.flight.is_none() && self.fence.is_none()
    }

    /// The bounds given to [`new`](Self::new).
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Takes the password prompt from the start of a line; `true` if `bytes` got shorter.
    fn take_prompt(&mut self, bytes: &mut &[u8]) -> bool {
        let expected = matches!(
            self.phase,
            Phase::Fresh | Phase::Prompted | Phase::PasswordSent
        );
        if !expected || !PROMPT.starts_with(&self.partial) {
            return false;
        }
        // One that is cut waits in `partial` like any line.
        let Some(rest) = bytes.strip_prefix(&PROMPT[self.partial.len()..]) else {
            return false;
        };
        *bytes = rest;
        self.partial.clear();
        self.handle_prompt();
        true
    }

    fn handle_prompt(&mut self) {
        let output = match self.phase {
            Phase::Fresh => {
                self.phase = Phase::Prompted;
                Output::PasswordRequested
            }
            // A wrong password has no other answer than a fresh prompt.
            Phase::PasswordSent => Output::PasswordRefused,
            // Prompted twice before we spoke: somebody else's line was answered.
            _ => Output::Unsolicited(PROMPT.into()),
        };
        self.outputs.push_back(output);
    }

    /// Takes one whole line without its LF.
    fn handle_line(&mut self, line: &[u8]) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match line.strip_prefix(b">") {
            // At any moment, a started reply included: a line that starts with `>` is a notification.
            Some(line) => self.handle_notification_line(line),
            None if matches!(self.phase, Phase::Greeted | Phase::Exited) => {
                self.handle_reply_line(line)
            }
            None => self.handle_login_line(line),
        }
    }

    fn handle_login_line(&mut self, line: &[u8]) {
        if self.phase == Phase::PasswordSent && line.starts_with(b"SUCCESS:") {
            self.phase = Phase::Accepted;
            self.outputs.push_back(Output::PasswordAccepted);
        } else if line.starts_with(b"ERROR:") {
            // `ERROR: bad password` is in OpenVPN's source, though no release lets it out.
            self.outputs.push_back(Output::Unsolicited(line.into()));
        } else {
            let shown = &line[..line.len().min(FOREIGN_LINE_BYTES_SHOWN)];
            self.violate(Violation::NotManagement { line: shown.into() });
        }
    }

    fn handle_reply_line(&mut self, line: &[u8]) {
        if self.fence.is_some_and(|fence| fence.is_answered_by(line)) {
            self.fence = None;
            if let Some(lost) = self.flight.take() {
                self.outputs.push_back(Output::Lost { id: lost.id });
            }
            self.outputs.push_back(Output::Responsive);
            return;
        }
        let progress = match &mut self.flight {
            Some(flight) => match flight.room.checked_sub(line.len() + 1) {
                Some(room) => {
                    flight.room = room;
                    flight.reader.handle_line(line)
                }
                None => return self.violate(Violation::ReplyTooLong),
            },
            None => Progress::Foreign,
        };
        match progress {
            Progress::Taken => {}
            Progress::Foreign => self.outputs.push_back(Output::Unsolicited(line.into())),
            Progress::Complete(result) => self.finish_flight(result),
            Progress::BlockRefused(rejected) => match &mut self.flight {
                Some(flight) if self.fence.is_none() => {
                    flight.reader.skip_to_sentinel(rejected);
                    self.transmit.extend_from_slice(Fence::LoadStats.line());
                }
                // There is a fence behind the block's lines already.
                _ => self.finish_flight(Err(rejected)),
            },
        }
    }

    fn finish_flight(&mut self, result: Result<Reply, Rejected>) {
        if let Some(flight) = self.flight.take() {
            if let Ok(Reply::Status(snapshot)) = &result {
                self.status_size = snapshot.size();
            }
            self.outputs.push_back(Output::Reply {
                id: flight.id,
                result,
                late: self.fence.is_some(),
            });
        }
    }

    /// Takes a line that started with `>`, without it.
    fn handle_notification_line(&mut self, line: &[u8]) {
        if !matches!(self.phase, Phase::Greeted | Phase::Exited)
            && let Some(banner) = line.strip_prefix(b"INFO:")
        {
            self.phase = Phase::Greeted;
            self.outputs.push_back(Output::Greeted {
                management_version: greeting_version(banner),
                banner: banner.into(),
            });
            return;
        }
        if self.take_env_line(line) {
            return;
        }
        match notification::parse(line) {
            Parsed::EnvBlock(header) => {
                self.tell_line(line);
                // A header inside a block: its END was lost, as when OpenVPN cuts an over-long line. What came is given.
                self.finish_env_block();
                self.env_block = Some(Box::new(EnvBlock {
                    header,
                    env: EnvBuilder::default(),
                }));
            }
            Parsed::Complete(notification) => {
                if let Some(flight) = &mut self.flight
                    && flight.reader.take_notification(&notification, line)
                {
                    return;
                }
                let answer = self
                    .flight
                    .as_ref()
                    .and_then(|flight| flight.reader.answer_in(&notification));
                match answer {
                    Some(reply) => self.finish_flight(Ok(reply)),
                    None => {
                        self.tell_line(line);
                        self.outputs.push_back(Output::Notification(notification));
                    }
                }
            }
        }
    }

    /// Takes a line of the open ENV block; `false` if it is none.
    fn take_env_line(&mut self, line: &[u8]) -> bool {
        let Some(block) = &mut self.env_block else {
            return false;
        };
        let Some(entry) = line.strip_prefix(block.header.env_prefix()) else {
            return false;
        };
        if self.lines_told == LinesTold::All {
            self.outputs.push_back(Output::Line(told(line)));
        }
        if entry == b"END" {
            self.finish_env_block();
        } else if block
            .env
            .push(entry, self.limits.env_lines_max, self.limits.env_bytes_max)
            .is_err()
        {
            let Limits {
                env_lines_max: lines_max,
                env_bytes_max: bytes_max,
                ..
            } = self.limits;
            self.violate(Violation::EnvTooLarge {
                lines_max,
                bytes_max,
            });
        }
        true
    }

    fn tell_line(&mut self, line: &[u8]) {
        let is_told = match self.lines_told {
            LinesTold::None => false,
            LinesTold::Questions => is_question(line),
            LinesTold::All => true,
        };
        if is_told {
            self.outputs.push_back(Output::Line(told(line)));
        }
    }

    fn finish_env_block(&mut self) {
        if let Some(block) = self.env_block.take() {
            let notification = block.header.with_env(block.env.build());
            self.outputs.push_back(Output::Notification(notification));
        }
    }

    fn violate(&mut self, violation: Violation) {
        self.phase = Phase::Violated;
        self.partial = Vec::new();
        self.env_block = None;
        self.outputs.push_back(Output::Violation(violation));
    }
}

/// A line again as it came.
fn told(line: &[u8]) -> Text {
    [b">", line].concat().into()
}

/// Whether this line, without its `>`, is one that OpenVPN repeats to the next manager until it is answered.
#[must_use]
pub fn is_question(line: &[u8]) -> bool {
    const QUESTIONS: [&[u8]; 9] = [
        b"HOLD:",
        b"PASSWORD:Need ",
        b"NEED-OK:",
        b"NEED-STR:",
        b"NEED-CERTIFICATE:",
        b"PK_SIGN:",
        b"RSA_SIGN:",
        b"REMOTE:",
        b"PROXY:",
    ];
    QUESTIONS.iter().any(|question| line.starts_with(question))
}

/// The number in `OpenVPN Management Interface Version 5 -- type 'help' for more info`.
fn greeting_version(banner: &[u8]) -> Option<u32> {
    let rest = banner.strip_prefix(b"OpenVPN Management Interface Version ")?;
    let end = rest
        .iter()
        .position(|byte| !byte.is_ascii_digit())
        .unwrap_or(rest.len());
    parse_u32(&rest[..end])
}
