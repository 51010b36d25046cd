//! Answers to what a daemon asks.

use std::sync::Arc;
use std::time::SystemTime;

use openvpn_management::{Command, Reply};

use super::{CommandError, refusing, send};
use crate::action::{ActionContext, TargetError};
use crate::event::{Detail, Event};
use crate::fleet::{Fleet, Shared};
use crate::instance::Instance;
use crate::question::{Answer, OpenQuestion};
use crate::send::Limits;
use crate::table::Table;

impl Fleet {
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
