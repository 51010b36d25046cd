//! One command for one instance, checked against what its daemon can do.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use openvpn_management::{
    Command, HistoryRequest, HoldRequest, RawCommand, RawCommandError, Reply, Text,
};
use openvpn_session::{Call, CallError, Guard, GuardRefused, Lane, Mode, Moment, NotSent};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep};

use crate::action::{ActionContext, TargetError};
use crate::effect::{Effect, is_taken};
use crate::event::{Detail, Event};
use crate::fleet::{Fleet, Shared};
use crate::instance::Instance;
use crate::name::ClientRef;
use crate::question::{Answer, OpenQuestion};
use crate::send::{Limits, caller_id, fate_of_error, not_attached};
use crate::table::{InstanceStatus, Table};

/// Highest level of `verb` without `force`: from 6 on, a daemon logs every packet.
pub const VERB_MAX: u8 = 5;
/// From this level on a daemon that streams its log to us logs that it streams, and never reads a command again: not
/// even the one that would turn it down.
pub const VERB_DEADLOCK: u8 = 9;
/// Highest level that OpenVPN has.
pub const VERB_HIGHEST: u8 = 15;
/// How long the command that resets `verb` may take.
const RESET_DEADLINE: Duration = Duration::from_secs(30);
/// How long those may take that a gateway sends because it ends.
const LAST_RESETS_MAX: Duration = Duration::from_secs(2);

/// The raw lines that are taken, by first word. Everything that has a typed call with a check of its own (`kill`,
/// `signal`, `client-*`, `password`, `username`, `push-update-*`) is left out, and so is whatever ends or starves the
/// session.
pub const RAW_COMMANDS: [&str; 16] = [
    "auth-retry",
    "echo",
    "forget-passwords",
    "help",
    "hold",
    "log",
    "mute",
    "nclients",
    "net",
    "network-change",
    "pkcs11-id-count",
    "pkcs11-id-get",
    "remote-entry-count",
    "remote-entry-get",
    "state",
    "status",
];
/// Those that are taken only without an argument: with one they need the check of a typed call.
pub const RAW_QUERIES: [&str; 2] = ["verb", "version"];

/// A level for `verb`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerbRequest {
    /// The level, up to [`VERB_HIGHEST`].
    pub level: u8,
    /// Allows a level above [`VERB_MAX`].
    pub force: bool,
    /// After how long the present level is set again.
    pub reset_after: Option<Duration>,
}

/// Why a command for one instance has no reply.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// As of any target of an action.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The daemon's version does not have it.
    #[error("instance {instance} is {found}: `{command}` needs {needs}")]
    Version {
        /// Which instance.
        instance: String,
        /// Which command.
        command: &'static str,
        /// The version that has it.
        needs: &'static str,
        /// The version that runs.
        found: String,
    },
    /// The daemon's mode does not have it.
    #[error("instance {instance} is a {found}: `{command}` is for a {needs}")]
    Mode {
        /// Which instance.
        instance: String,
        /// Which command.
        command: &'static str,
        /// The mode that has it.
        needs: &'static str,
        /// The mode that runs.
        found: &'static str,
    },
    /// The level makes the daemon log every packet.
    #[error("verb {level} makes a daemon log every packet; above {VERB_MAX} it needs `force`")]
    VerbNeedsForce {
        /// Which level.
        level: u8,
    },
    /// The level would lock the daemon up.
    #[error(
        "verb {level} would lock the daemon up: from {VERB_DEADLOCK} on its log, which this gateway reads, feeds on \
         itself; set `log = false` for the instance first"
    )]
    VerbLocksUp {
        /// Which level.
        level: u8,
    },
    /// There is no such level.
    #[error("verb goes from 0 to {VERB_HIGHEST}")]
    VerbUnknown,
    /// No question that this answers is open.
    #[error("instance {instance} asks nothing that this would answer{}", Asked(.open))]
    NoQuestion {
        /// Which instance.
        instance: String,
        /// What it does ask.
        open: Vec<String>,
    },
    /// The question is answered, or no longer asked.
    #[error("question {id} of instance {instance} is not open any more")]
    QuestionClosed {
        /// Which instance.
        instance: String,
        /// Which question.
        id: u64,
    },
    /// The line is not one that is taken raw.
    #[error("`{word}` is not taken as a raw line: {why}")]
    RawRefused {
        /// Its first word.
        word: String,
        /// Why.
        why: &'static str,
    },
    /// The line cannot be read.
    #[error("the line cannot be taken: {0}")]
    RawMalformed(#[source] RawCommandError),
}

struct Asked<'a>(&'a Vec<String>);

impl std::fmt::Display for Asked<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        write!(f, "; it asks: {}", self.0.join("; "))
    }
}

/// A level of `verb` that will be set again.
#[derive(Debug)]
pub(crate) struct VerbReset {
    level: u8,
    /// Who wanted it.
    context: ActionContext,
    task: AbortHandle,
}

impl Drop for VerbReset {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fleet {
    /// Sends one command to one daemon and gives its reply.
    ///
    /// # Errors
    /// [`CommandError`]; only [`TargetError::FateUnknown`] leaves open whether it was carried out.
    pub async fn command(
        &self,
        instance: &Instance,
        command: Command,
        context: &ActionContext,
    ) -> Result<Reply, CommandError> {
        let limits = Limits::new(&self.shared, context);
        let effect = Effect::of(&command);
        let reply = send(instance, command, None, context, &limits).await?;
        if let Some(effect) = effect.filter(|_| is_taken(&reply)) {
            effect.note(&self.shared, instance, None);
        }
        Ok(reply)
    }

    /// Sends a line as it was typed, if it is one of [`RAW_COMMANDS`] or [`RAW_QUERIES`].
    ///
    /// # Errors
    /// [`CommandError`]. What the daemon refuses is a reply, not an error.
    pub async fn raw_command(
        &self,
        instance: &Instance,
        line: &[u8],
        context: &ActionContext,
    ) -> Result<Reply, CommandError> {
        let command = allowed(line)?;
        self.command(instance, Command::Raw(command), context).await
    }

    /// Compares the instance's table with the daemon's status now.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn refresh(
        &self,
        instance: &Instance,
        context: &ActionContext,
    ) -> Result<Moment, CommandError> {
        let stop = Limits::new(&self.shared, context).stop.into_std();
        let refreshed = instance.refresh(Instant::now().into_std(), stop).await;
        refreshed.map_err(|error| of_call(instance, error))
    }

    /// Changes options of the clients of one daemon, or of one client of it and nobody else.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn push_update(
        &self,
        instance: &Arc<Instance>,
        client: Option<ClientRef>,
        options: Text,
        context: &ActionContext,
    ) -> Result<Reply, CommandError> {
        let limits = Limits::new(&self.shared, context);
        let Some(client) = client else {
            let command = Command::PushUpdateBroad { options };
            return send(instance, command, None, context, &limits).await;
        };
        let command = Command::PushUpdateCid {
            cid: client.cid,
            options,
        };
        let guarded = Arc::clone(instance);
        let guard = refusing(move || guarded.with_table(|table| find(&guarded, table, &client)));
        send(instance, command, Some(guard), context, &limits).await
    }

    /// Sets how much a daemon logs. A reset that was on its way is dropped; with `reset_after` the level from before the
    /// first of several changes comes back; a gateway that is told to end before sets it then.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn set_verb(
        &self,
        instance: &Arc<Instance>,
        request: VerbRequest,
        context: &ActionContext,
    ) -> Result<Reply, CommandError> {
        let VerbRequest {
            level,
            force,
            reset_after,
        } = request;
        if level > VERB_HIGHEST {
            return Err(CommandError::VerbUnknown);
        }
        if level >= VERB_DEADLOCK && instance.spec().session.log {
            return Err(CommandError::VerbLocksUp { level });
        }
        if level > VERB_MAX && !force {
            return Err(CommandError::VerbNeedsForce { level });
        }
        let limits = Limits::new(&self.shared, context);
        let before = match self.command(instance, Command::Verb(None), context).await? {
            Reply::Verb(before) => u8::try_from(before).ok(),
            _ => None,
        };
        let command = Command::Verb(Some(level));
        let reply = send(instance, command, None, context, &limits).await?;
        let mut slot = lock(instance);
        let before = slot.take().map(|reset| reset.level).or(before);
        if let (Some(after), Some(before)) = (reset_after, before) {
            let task = reset_verb(&self.shared, instance, context.clone(), after, before);
            let task = self.shared.tasks.spawn(task).abort_handle();
            *slot = Some(VerbReset {
                level: before,
                context: context.clone(),
                task,
            });
        }
        Ok(reply)
    }

    /// Answers a question of a daemon; `id` 0 means the one that the answer is of the kind for.
    ///
    /// What is begun is carried to its end, also when the caller stops waiting: a username without its password would be
    /// no answer.
    ///
    /// # Errors
    /// [`CommandError`]; nothing was answered unless it is [`TargetError::FateUnknown`].
    pub async fn answer(
        &self,
        instance: &Arc<Instance>,
        id: u64,
        answer: Answer,
        context: &ActionContext,
    ) -> Result<Reply, CommandError> {
        let asked = instance.with_table(|table| choose(instance, table, id, &answer))?;
        let commands = asked.question.commands(answer);
        let context = ActionContext {
            cancel: self.shared.cancel.clone(),
            ..context.clone()
        };
        let task = give_answer(
            Arc::clone(&self.shared),
            Arc::clone(instance),
            asked,
            commands,
            context,
        );
        match self.shared.tasks.spawn(task).await {
            Ok(answered) => answered,
            Err(lost) => Err(TargetError::FateUnknown {
                instance: instance.name().clone(),
                reason: lost.to_string(),
            }
            .into()),
        }
    }
}

/// The open question that is meant.
fn choose(
    instance: &Instance,
    table: &Table,
    id: u64,
    answer: &Answer,
) -> Result<OpenQuestion, CommandError> {
    let open = &table.status().open_questions;
    let is_meant = |asked: &&OpenQuestion| !asked.answered && (id == 0 || asked.id == id);
    let mut meant = open.iter().filter(is_meant);
    if id > 0 && meant.clone().next().is_none() {
        return Err(closed(instance, id));
    }
    let fitting = meant.find(|asked| asked.question.takes(answer));
    fitting.cloned().ok_or_else(|| CommandError::NoQuestion {
        instance: instance.name().to_string(),
        open: open
            .iter()
            .map(|asked| asked.question.to_string())
            .collect(),
    })
}

fn closed(instance: &Instance, id: u64) -> CommandError {
    CommandError::QuestionClosed {
        instance: instance.name().to_string(),
        id,
    }
}

/// Sends the commands that are the answer to a question, each only while the question is open.
async fn give_answer(
    shared: Arc<Shared>,
    instance: Arc<Instance>,
    asked: OpenQuestion,
    commands: Vec<Command>,
    context: ActionContext,
) -> Result<Reply, CommandError> {
    let limits = Limits::new(&shared, &context);
    let mut left = commands.len();
    let mut reply = Reply::None;
    for command in commands {
        left -= 1;
        let (guarded, id, is_last) = (Arc::clone(&instance), asked.id, left == 0);
        // From the last command on, the same question asked again is another one.
        let guard = refusing(move || {
            guarded.update(|table| match table.open_question_mut(id) {
                Some(question) if !question.answered => {
                    question.answered = is_last;
                    Ok(())
                }
                _ => Err(closed(&guarded, id)),
            })
        });
        reply = match send(&instance, command, Some(guard), &context, &limits).await {
            Ok(reply) => reply,
            Err(error @ CommandError::Target(TargetError::FateUnknown { .. })) => {
                return Err(error);
            }
            Err(error) => {
                instance.update(|table| {
                    if let Some(question) = table.open_question_mut(asked.id) {
                        question.answered = false;
                    }
                });
                return Err(error);
            }
        };
    }
    close(&shared, &instance, asked.id);
    Ok(reply)
}

/// Closes a question that the daemon took the answer to: it does not say so itself.
pub(crate) fn close(shared: &Shared, instance: &Instance, id: u64) {
    let closed = instance.update(|table| table.close_question(id));
    if let Some(question) = closed {
        let question = Box::new(question);
        let detail = Detail::Question {
            question,
            open: false,
        };
        record(shared, instance, detail);
    }
}

/// Notes that a daemon holds no longer: it does not say so itself, and may take long until it is CONNECTED. One that
/// holds again does so after a restart, which takes it a second.
pub(crate) fn note_release(shared: &Shared, instance: &Instance) {
    let was_holding = instance.update(|table| {
        let was_holding = std::mem::take(&mut table.status.holding);
        if was_holding {
            table.bump_status();
        }
        was_holding
    });
    if was_holding {
        let detail = Detail::Hold {
            holding: false,
            wait: None,
            released_by_gateway: false,
        };
        record(shared, instance, detail);
    }
}

fn record(shared: &Shared, instance: &Instance, detail: Detail) {
    let (generation, labels) =
        instance.with_table(|table| (table.generation(), table.labels.clone()));
    shared.journal.append(Event {
        gateway: shared.gateway.clone(),
        instance: Some(instance.name().clone()),
        labels,
        generation,
        sequence: 0,
        observed: SystemTime::now(),
        daemon_time: None,
        inferred: None,
        client: None,
        detail,
    });
}

/// Waits and sets `verb` back.
fn reset_verb(
    shared: &Arc<Shared>,
    instance: &Arc<Instance>,
    context: ActionContext,
    after: Duration,
    level: u8,
) -> impl Future<Output = ()> + Send + 'static {
    let (shared, instance) = (Arc::clone(shared), Arc::clone(instance));
    async move {
        tokio::select! {
            () = sleep(after) => {}
            () = shared.cancel.cancelled() => return,
        }
        set_verb_back(&shared, &instance, context, level, RESET_DEADLINE).await;
        if let Ok(mut slot) = instance.verb_reset.lock()
            && slot
                .as_ref()
                .is_some_and(|reset| reset.task.id() == tokio::task::id())
        {
            slot.take();
        }
    }
}

/// Sets every `verb` back that would be set back later, when nobody would be there to do it.
pub(crate) async fn set_verbs_back(shared: &Arc<Shared>) {
    let mut resets = JoinSet::new();
    for instance in shared.instances() {
        let Some(reset) = lock(&instance).take() else {
            continue;
        };
        let (level, context) = (reset.level, reset.context.clone());
        let shared = Arc::clone(shared);
        resets.spawn(async move {
            set_verb_back(&shared, &instance, context, level, LAST_RESETS_MAX).await;
        });
    }
    resets.join_all().await;
}

async fn set_verb_back(
    shared: &Shared,
    instance: &Instance,
    mut context: ActionContext,
    level: u8,
    time: Duration,
) {
    // The call that asked for it is long over by now.
    context.cancel = shared.cancel.clone();
    context.deadline = Some((Instant::now() + time).into_std());
    let limits = Limits::new(shared, &context);
    let command = Command::Verb(Some(level));
    if let Err(error) = send(instance, command, None, &context, &limits).await {
        tracing::warn!(instance = %instance.name(), level, %error, "verb was not reset");
    }
}

fn lock(instance: &Instance) -> std::sync::MutexGuard<'_, Option<VerbReset>> {
    let slot = instance.verb_reset.lock();
    slot.unwrap_or_else(PoisonError::into_inner)
}

/// The client, if it is still the one that was meant.
fn find(instance: &Instance, table: &Table, client: &ClientRef) -> Result<(), CommandError> {
    if table.generation() != Some(client.generation) {
        return Err(TargetError::Stale {
            instance: instance.name().clone(),
            current: table.generation(),
        }
        .into());
    }
    match table.client(client.cid) {
        Some(_) => Ok(()),
        None => Err(TargetError::Gone.into()),
    }
}

/// Why a guard lets nothing through.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Refused(CommandError);

fn refusing(check: impl FnOnce() -> Result<(), CommandError> + Send + 'static) -> Guard {
    Box::new(|| check().map_err(|error| GuardRefused(Box::new(Refused(error)))))
}

/// Sends a command that the daemon has, and says in the log who changed what.
async fn send(
    instance: &Instance,
    command: Command,
    guard: Option<Guard>,
    context: &ActionContext,
    limits: &Limits,
) -> Result<Reply, CommandError> {
    limits.check()?;
    instance.with_table(|table| check_support(instance, table.status(), &command))?;
    let (name, lane) = (command.name(), lane(&command));
    let call = Call {
        command,
        lane,
        caller: caller_id(&context.caller),
        guard,
        deadline: limits.stop.into_std(),
    };
    let result = instance.call(call).await;
    if lane == Lane::Control {
        let outcome = match &result {
            Ok(_) => "done",
            Err(CallError::NotSent(_)) => "not sent",
            Err(CallError::Rejected { .. }) => "refused",
            Err(CallError::OutcomeUnknown { .. }) => "unknown",
        };
        tracing::info!(
            instance = %instance.name(),
            caller = %context.caller,
            command = name,
            outcome,
            "command"
        );
    }
    match result {
        Ok(answer) => Ok(answer.reply),
        Err(error) => Err(of_call(instance, error)),
    }
}

fn of_call(instance: &Instance, error: CallError) -> CommandError {
    match error {
        CallError::NotSent(NotSent::Guard(GuardRefused(refused))) => {
            match refused.downcast::<Refused>() {
                Ok(refused) => refused.0,
                Err(_) => not_attached(instance).into(),
            }
        }
        error => match fate_of_error(instance, error).error {
            Some(error) => error.into(),
            None => not_attached(instance).into(),
        },
    }
}

/// Changes go before reads. A raw line counts as a change: it may be one.
fn lane(command: &Command) -> Lane {
    match command {
        Command::AuthRetry(None)
        | Command::ClientCount
        | Command::Echo(HistoryRequest::History(_))
        | Command::Help
        | Command::Hold(HoldRequest::Query)
        | Command::LoadStats
        | Command::Log(HistoryRequest::History(_))
        | Command::Mute(None)
        | Command::Pid
        | Command::Pkcs11IdCount
        | Command::Pkcs11IdGet(_)
        | Command::RemoteEntryCount
        | Command::RemoteEntryGet(_)
        | Command::State(HistoryRequest::History(_))
        | Command::Status { .. }
        | Command::Verb(None)
        | Command::Version => Lane::Read,
        _ => Lane::Control,
    }
}

/// What a command needs of a daemon.
struct Needs {
    version: Option<((u32, u32), &'static str)>,
    mode: Option<Mode>,
}

fn needs(command: &Command) -> Needs {
    let (version, mode) = match command {
        Command::PushUpdateBroad { .. } | Command::PushUpdateCid { .. } => {
            (Some(((2, 7), "OpenVPN 2.7")), Some(Mode::Server))
        }
        Command::RemoteEntryCount | Command::RemoteEntryGet(_) => {
            (Some(((2, 6), "OpenVPN 2.6")), Some(Mode::Client))
        }
        Command::CrResponse(_) => (Some(((2, 5), "OpenVPN 2.5")), Some(Mode::Client)),
        Command::PkSig { .. } => (Some(((2, 5), "OpenVPN 2.5")), None),
        Command::Certificate { .. } => (Some(((2, 4), "OpenVPN 2.4")), None),
        Command::ClientCount => (None, Some(Mode::Server)),
        Command::Remote(_) | Command::Proxy(_) => (None, Some(Mode::Client)),
        _ => (None, None),
    };
    Needs { version, mode }
}

/// Refuses what the daemon is known not to have. What is not known is tried.
fn check_support(
    instance: &Instance,
    status: &InstanceStatus,
    command: &Command,
) -> Result<(), CommandError> {
    let Needs { version, mode } = needs(command);
    if let (Some((needs, named)), Some(found)) = (version, status.version())
        && found < needs
    {
        return Err(CommandError::Version {
            instance: instance.name().to_string(),
            command: command.name(),
            needs: named,
            found: format!("OpenVPN {}.{}", found.0, found.1),
        });
    }
    if let Some(needs) = mode
        && status.mode != Mode::Unknown
        && status.mode != needs
    {
        let name = |mode| match mode {
            Mode::Server => "server",
            Mode::Client | Mode::Unknown => "client",
        };
        return Err(CommandError::Mode {
            instance: instance.name().to_string(),
            command: command.name(),
            needs: name(needs),
            found: name(status.mode),
        });
    }
    Ok(())
}

/// The command of a raw line, if it is one that is taken.
fn allowed(line: &[u8]) -> Result<RawCommand, CommandError> {
    let command = RawCommand::parse(line).map_err(CommandError::RawMalformed)?;
    let mut parameters = command.parameters();
    let word = String::from_utf8_lossy(parameters.next().unwrap_or_default()).into_owned();
    let has_argument = parameters.next().is_some();
    drop(parameters);
    if RAW_COMMANDS.contains(&word.as_str()) {
        return Ok(command);
    }
    let why = match word.as_str() {
        word if RAW_QUERIES.contains(&word) && !has_argument => return Ok(command),
        "verb" => "SetVerb sets it, within its bounds",
        "version" => "it changes what the daemon tells this gateway",
        "kill" | "client-kill" => "KillClients ends clients, and nobody else",
        "signal" => "SignalInstances sends signals",
        "password" | "username" | "needok" | "needstr" | "remote" | "proxy" | "cr-response" => {
            "AnswerQuestion answers what the daemon asks"
        }
        "push-update-broad" | "push-update-cid" => "PushUpdate does that",
        "client-auth-nt" | "client-deny" | "client-pending-auth" => {
            "this gateway does not decide who may connect"
        }
        _ => "it is not on the list of commands that are",
    };
    // A line may hold a secret, so only a word that is known is repeated.
    let is_word = word.len() <= 32
        && word
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    Err(CommandError::RawRefused {
        word: if is_word { word } else { "…".to_owned() },
        why,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever ends, starves or blinds the session, or goes around a check, must not pass as a raw line.
    #[test]
    fn raw_lines_are_those_on_the_list() {
        for line in [
            "status 2",
            "help",
            "  \"hold\" release",
            "verb",
            "version",
            "net",
            "log 5",
        ] {
            assert!(allowed(line.as_bytes()).is_ok(), "{line}");
        }
        for line in [
            "",
            "exit",
            "quit",
            "test 5",
            "kill alice",
            "client-kill 0",
            "signal SIGTERM",
            "verb 11",
            "version 5",
            "'verb' 9",
            "log on",
            "state on all",
            "bytecount 1",
            "client-auth 0 0",
            "client-deny 0 0 x",
            "password Auth x",
            "username Auth x",
            "env-filter 3",
            "hold\x01",
            "nonsense",
            "EXIT",
        ] {
            assert!(allowed(line.as_bytes()).is_err(), "{line}");
        }
    }

    /// A refused line is not repeated where it may be logged.
    #[test]
    fn a_refusal_does_not_repeat_a_secret() {
        for line in [
            "password Auth canary",
            "canary-Secret1 x",
            "username canary1 'b",
        ] {
            let error = allowed(line.as_bytes()).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("canary"), "{shown}");
        }
    }
}
