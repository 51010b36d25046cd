//! One command for one instance, checked against what its daemon can do.

mod answer;
mod error;
mod raw;
mod support;
mod verb;

use std::sync::Arc;

use openvpn_management::{Command, Reply, Text};
use openvpn_session::{Call, CallError, Guard, GuardRefused, Lane, Moment, NotSent};
use tokio::time::Instant;

pub(crate) use answer::{close, note_release};
pub use error::CommandError;
pub use raw::{RAW_COMMANDS, RAW_QUERIES};
pub use verb::{VERB_DEADLOCK, VERB_HIGHEST, VERB_MAX, VerbRequest};
pub(crate) use verb::{VerbReset, set_verbs_back};

use crate::action::{ActionContext, TargetError};
use crate::effect::{Effect, is_taken};
use crate::fleet::Fleet;
use crate::instance::Instance;
use crate::name::ClientRef;
use crate::send::{Limits, caller_id, fate_of_error, not_attached};
use crate::table::Table;

use raw::allowed;
use support::{check_support, lane};

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
