//! How much a daemon logs, and setting that back.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use openvpn_management::{Command, Reply};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep};

use super::{CommandError, send};
use crate::action::ActionContext;
use crate::fleet::{Fleet, Shared};
use crate::instance::Instance;
use crate::send::Limits;

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
