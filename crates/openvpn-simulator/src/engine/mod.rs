//! One daemon without its sockets: what it knows, and what it says to which input.
//!
//! Bytes from the manager, scripted steps and due timers go in; bytes for the manager collect in
//! [`Engine::output`]. The owner moves them, and carries out what [`Engine::take_ending`] asks.

mod approval;
mod clients;
mod commands;
mod departures;
mod env;
mod handshake;
mod lifecycle;
mod log;
mod misbehaviour;
mod pool;
mod questions;
mod signals;
mod status;
mod text;
mod traffic;
mod uplink;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::Display;
use std::hash::{BuildHasherDefault, DefaultHasher};

use tokio::time::{Duration, Instant};

use crate::client_mode::Remote;
use crate::clock::UnixTime;
use crate::daemon::Settings;
use crate::history::History;
use crate::lexer::LineBuffer;
use crate::output::Output;
use crate::random::Random;
use crate::{ClientSpec, ControlError, Misbehaviour};

use clients::Client;
use log::Muted;
use pool::Pool;
use questions::{Login, Question};
use signals::{Signal, Thrown};

/// Lines kept by `state` and `echo`, as in OpenVPN.
const STATE_LINES_KEPT: usize = 100;

/// Wrong passwords after which OpenVPN closes the connection.
const PASSWORD_TRIES_MAX: u32 = 3;

/// Lines of one multi-line command that are kept; OpenVPN has no limit, we have no use for more.
const BLOCK_LINES_MAX: usize = 1000;

/// Clients in hash order, which is the order of OpenVPN's `status`: arbitrary, but with a fixed
/// hash the same in every run.
type Clients = HashMap<u64, Client, BuildHasherDefault<DefaultHasher>>;

/// What the daemon is doing.
///
/// ```text
///            hold                     release
/// start ────────────► Held ────────────────────────┐
///   │ no hold          ▲                           ▼
///   └──────────────────┼──────────────────────► Serving
///                 hold │      pause over           │
///                      └─── Pausing ◄──────────────┘ SIGUSR1, SIGHUP
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Waits for `hold release`; the number is what `>HOLD:` says.
    Held { seconds: u64 },
    /// Waits for the manager's answer to a question, as on the way from each other phase to
    /// `Serving`.
    Asking,
    /// In the pause of a restart.
    Pausing,
    /// Serves clients, or is connected as one.
    Serving,
}

/// What the owner must do to the socket after the engine has had its say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Close the session and drop what is unwritten.
    Session,
    /// Write what is there, then close the session.
    SessionAfterOutput,
    /// Write what is there, then end the process.
    Process,
}

/// The manager's connection.
#[derive(Debug)]
struct Session {
    /// How it was opened, by what the daemon does wrong.
    manners: Manners,
    /// Whether the password, if there is one, has been given.
    verified: bool,
    /// Wrong passwords so far.
    tries: u32,
    /// The line being received.
    lines: LineBuffer,
    /// The multi-line command being received.
    block: Option<approval::Block>,
    /// Real-time switches of `state`, `log` and `echo`.
    state: bool,
    log: bool,
    echo: bool,
    /// Seconds between byte counts of one client; 0 is off.
    bytecount: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manners {
    /// Greets and answers.
    Good,
    /// Greeted, and is silent since.
    Silent,
    /// Spoke another protocol, or nothing.
    None,
}

/// What is due later.
#[derive(Debug)]
enum Timer {
    /// An instance that was killed, or said goodbye, goes.
    DelayedExit(u64),
    /// A half-open client is given up.
    HandWindow(u64),
    /// The lines a client's first data packets cause.
    DataChannel(u64),
    /// A client is back.
    Returns(Box<ClientSpec>),
    /// The restart pause is over.
    PauseOver,
    /// Idle clients send their keepalive packets.
    Keepalive,
    /// 2.7 counts the bytes of all clients.
    Bytecount,
    /// Another helping of log flood.
    LogFlood,
    /// A reply that was kept back.
    LateReply(Vec<u8>),
}

/// Output produced as fast as the manager takes it.
#[derive(Debug)]
enum Flow {
    Burst { next_cid: u64, remaining: usize },
    EndlessLine,
    EndlessEnv { line: u64 },
    EndlessReply { line: u64 },
}

#[derive(Debug)]
pub(crate) struct Engine {
    settings: Settings,
    random: Random,
    misbehaviours: Vec<Misbehaviour>,

    /// Process ID of this run.
    pid: u32,
    /// When this process started; never the same second twice.
    started: UnixTime,
    /// When the configuration was last read: process start or SIGHUP.
    configured: UnixTime,
    phase: Phase,
    signal: Option<Thrown>,
    ending: Option<Ending>,

    /// Daemon-wide switches; they outlive sessions.
    hold: bool,
    verb: i32,
    mute: i32,
    /// The lines of one kind that the log has had in a row.
    muted: Muted,
    auth_retry: &'static str,
    env_filter: i32,

    /// What is asked now, and then.
    questions: VecDeque<Question>,
    /// Whether confirmations and words have been asked for in this run.
    confirmed: bool,
    /// Whether the private key's password is known.
    key_cached: bool,
    /// Username and password, once entered.
    entered: Option<(Vec<u8>, Vec<u8>)>,
    login: Login,
    /// Whether the last login failed.
    retrying: bool,
    /// Whether the server has been asked for its options, in this login.
    asked_for_config: bool,
    /// Whether a script is to say what the server does.
    awaiting: bool,
    remote_number: usize,
    /// What the manager put in place of the remote.
    modified: Option<Remote>,

    states: History,
    logs: History,
    echoes: History,

    clients: Clients,
    next_cid: u64,
    /// The latest client, whose name a server on TCP begins all its log lines with as long as it
    /// is there.
    latest: Option<u64>,
    pool: Pool,
    /// Link bytes of all clients since the process started.
    bytes_received: u64,
    bytes_sent: u64,

    session: Option<Session>,
    output: Output,
    flow: Option<Flow>,
    /// A reply that waits for the next one.
    kept_back: Option<Vec<u8>>,
    /// Lines received since the engine was made.
    commands: u64,

    /// What is due when; the number keeps equal times apart, in order of setting.
    timers: BTreeMap<(Instant, u64), Timer>,
    timers_set: u64,
    /// Whether a [`Timer::Keepalive`] is among them.
    keepalives: bool,
}

/// Lines received from the manager, for whoever wants to see them.
pub(crate) trait CommandSink {
    fn push(&self, line: &[u8]);
}

impl Engine {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            random: Random::new(settings.seed),
            misbehaviours: Vec::new(),
            pid: 0,
            started: UnixTime(0),
            configured: UnixTime(0),
            phase: Phase::Pausing,
            signal: None,
            ending: None,
            hold: settings.hold,
            verb: 3,
            mute: 0,
            muted: Muted::default(),
            auth_retry: "none",
            env_filter: 0,
            questions: VecDeque::new(),
            confirmed: false,
            key_cached: false,
            entered: None,
            login: Login::First,
            retrying: false,
            asked_for_config: false,
            awaiting: false,
            remote_number: 0,
            modified: None,
            states: History::new(STATE_LINES_KEPT),
            logs: History::new(settings.log_cache),
            echoes: History::new(STATE_LINES_KEPT),
            clients: Clients::default(),
            next_cid: 0,
            latest: None,
            pool: Pool::new(&settings),
            bytes_received: 0,
            bytes_sent: 0,
            session: None,
            output: Output::default(),
            flow: None,
            kept_back: None,
            commands: 0,
            timers: BTreeMap::new(),
            timers_set: 0,
            keepalives: false,
            settings,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn commands(&self) -> u64 {
        self.commands
    }

    pub(crate) fn output(&mut self) -> &mut Output {
        &mut self.output
    }

    pub(crate) fn is_attached(&self) -> bool {
        self.session
            .as_ref()
            .is_some_and(|session| session.verified && session.manners != Manners::None)
    }

    /// Whether the manager is told anything at all.
    fn is_heard(&self) -> bool {
        self.session
            .as_ref()
            .is_some_and(|session| session.verified && session.manners == Manners::Good)
    }

    pub(crate) fn take_ending(&mut self) -> Option<Ending> {
        self.ending.take()
    }

    // ---- the session

    /// A manager is there; `peer` is how log lines name one that came by itself.
    pub(crate) fn attach(&mut self, peer: Option<&str>) {
        let banner = self.misbehaviours.iter().find_map(|wrong| match wrong {
            Misbehaviour::Banner(bytes) => Some(bytes.clone()),
            Misbehaviour::NeverGreets => Some(Vec::new()),
            _ => None,
        });
        self.session = Some(Session {
            manners: match banner {
                Some(_) => Manners::None,
                None => Manners::Good,
            },
            verified: self.settings.password.is_none()
                && !self.does(&Misbehaviour::PasswordPromptForever),
            tries: 0,
            lines: LineBuffer::default(),
            block: None,
            state: false,
            log: false,
            echo: false,
            bytecount: 0,
        });
        self.output.clear();
        self.flow = None;
        if let Some(peer) = peer {
            self.log("", format!("MANAGEMENT: Client connected from {peer}"));
        }
        if let Some(banner) = banner {
            self.output.push(&banner);
            return;
        }
        if self.is_attached() {
            self.welcome();
        } else {
            self.prompt();
        }
    }

    /// The manager's connection is gone, whoever ended it. Some daemons throw a signal for that.
    pub(crate) fn detach(&mut self) {
        if self.session.take().is_some() {
            self.output.clear();
            self.flow = None;
            self.log("", "MANAGEMENT: Client disconnected");
            self.mind_departure();
        }
    }

    /// The process is gone, and with it the manager's connection.
    pub(crate) fn die(&mut self) {
        self.session = None;
        self.signal = None;
        self.output.clear();
        self.flow = None;
    }

    /// Takes what one read of OpenVPN's would take: at most 256 bytes.
    pub(crate) fn input(&mut self, bytes: &[u8], sink: &impl CommandSink) {
        let Some(session) = &mut self.session else {
            return;
        };
        session.lines.add(bytes);
        let mut processed = false;
        while let Some(line) = self.session.as_mut().and_then(|s| s.lines.next_line()) {
            processed = true;
            self.line(&line, sink);
            if self.ending.is_some() {
                // What follows `exit` in the same read is not looked at.
                return;
            }
        }
        if processed && !self.is_attached() {
            self.prompt();
        }
    }

    fn line(&mut self, line: &[u8], sink: &impl CommandSink) {
        let Some(session) = &mut self.session else {
            return;
        };
        if session.manners == Manners::None {
            return;
        }
        if !session.verified {
            self.check_password(line);
            return;
        }
        self.commands += 1;
        sink.push(line);
        if session.manners == Manners::Silent {
            return;
        }
        let before = self.output.pending().len();
        if let Some(block) = &mut session.block {
            if line != b"END" {
                if block.lines.len() < BLOCK_LINES_MAX {
                    block.lines.push(line.to_vec());
                }
                return;
            }
            self.finish_block();
        } else {
            self.command(line);
        }
        self.spoil_reply(before);
        if self.does(&Misbehaviour::UnaskedReplies) {
            self.say("SUCCESS: client-kill command succeeded");
        }
        if self.does(&Misbehaviour::PasswordPromptMidSession) {
            self.output.push(text::PROMPT);
        }
    }

    fn check_password(&mut self, line: &[u8]) {
        if self.does(&Misbehaviour::PasswordPromptForever) {
            return;
        }
        let right = self.settings.password.as_deref() == Some(line);
        let Some(session) = &mut self.session else {
            return;
        };
        if right {
            session.verified = true;
            self.say("SUCCESS: password is correct");
            self.welcome();
            return;
        }
        session.tries += 1;
        if session.tries >= PASSWORD_TRIES_MAX {
            self.log(
                "W",
                "MAN: client connection rejected after 3 failed password attempts",
            );
            self.ending = Some(Ending::Session);
        }
    }

    fn prompt(&mut self) {
        let asks = self
            .session
            .as_ref()
            .is_some_and(|session| !session.verified && session.manners == Manners::Good);
        if asks {
            self.output.push(text::PROMPT);
        }
    }

    fn welcome(&mut self) {
        let version = self.settings.version.management_version();
        self.say(format_args!(
            ">INFO:OpenVPN Management Interface Version {version} -- type 'help' for more info"
        ));
        if let Phase::Held { seconds } = self.phase {
            self.ask_release(seconds);
        }
        if self.phase == Phase::Asking {
            self.repeat_question();
        }
        self.begin_flow();
        if self.does(&Misbehaviour::SilentAfterGreeting)
            && let Some(session) = &mut self.session
        {
            session.manners = Manners::Silent;
        }
    }

    // ---- words

    /// Writes a line to the manager, if there is one and it may hear it.
    fn say(&mut self, line: impl Display) {
        if self.is_heard() {
            let line = format!("{line}\r\n");
            self.output.push(line.as_bytes());
        }
    }

    /// Writes a line of bytes, given in parts.
    fn say_bytes(&mut self, parts: &[&[u8]]) {
        if self.is_heard() {
            for part in parts {
                self.output.push(part);
            }
            self.output.push(b"\r\n");
        }
    }

    /// Ends a multi-line reply.
    fn say_end(&mut self) {
        if self.does(&Misbehaviour::MissingEnd) {
            return;
        }
        if self.does(&Misbehaviour::EndlessReplies) {
            self.flow = Some(Flow::EndlessReply { line: 0 });
            return;
        }
        self.say("END");
        if self.does(&Misbehaviour::ExtraEnd) {
            self.say("END");
        }
    }

    /// The daemon's clock.
    fn clock(&mut self) -> UnixTime {
        let stuck = self.misbehaviours.iter().find_map(|wrong| match wrong {
            Misbehaviour::ClockAt(seconds) => Some(*seconds),
            _ => None,
        });
        if let Some(seconds) = stuck {
            return UnixTime(seconds);
        }
        let now = UnixTime::now();
        let jump = self.misbehaviours.iter().find_map(|wrong| match wrong {
            Misbehaviour::NonsenseClock { jump_max } => Some(jump_max.as_secs()),
            _ => None,
        });
        let Some(jump) = jump else {
            // A process started again within a second claims the next one, so that its start
            // time is later than the one before.
            return now.max(self.started);
        };
        let distance = self.random.below(jump.saturating_mul(2).saturating_add(1));
        let distance = i64::try_from(distance).unwrap_or(i64::MAX);
        let jump = i64::try_from(jump).unwrap_or(i64::MAX);
        UnixTime(now.0.saturating_add(distance).saturating_sub(jump).max(0))
    }

    // ---- scripted input

    /// Writes bytes as they are; a manager must be attached.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> Result<(), ControlError> {
        if !self.is_attached() {
            return Err(self.not_attached());
        }
        self.output.push(bytes);
        Ok(())
    }

    pub(crate) fn not_attached(&self) -> ControlError {
        ControlError::NotAttached {
            daemon: self.settings.name.clone(),
        }
    }

    // ---- time

    fn set_timer(&mut self, after: Duration, timer: Timer) {
        self.timers_set += 1;
        self.timers
            .insert((Instant::now() + after, self.timers_set), timer);
    }

    pub(crate) fn next_timer(&self) -> Option<Instant> {
        self.timers.first_key_value().map(|(&(at, _), _)| at)
    }

    pub(crate) fn handle_timers(&mut self) {
        let now = Instant::now();
        while let Some(entry) = self.timers.first_entry() {
            if entry.key().0 > now {
                return;
            }
            let timer = entry.remove();
            self.handle_timer(timer);
        }
    }
}
