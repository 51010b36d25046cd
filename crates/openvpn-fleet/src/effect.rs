//! What a command changes that its daemon does not tell by itself, noted once the daemon took it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use openvpn_management::{Command, HoldRequest, Reply, Text};
use openvpn_session::{Answer, Call, CallError, Guard};

use crate::command::{close, note_release};
use crate::fleet::{Fleet, Shared};
use crate::instance::Instance;
use crate::question::Question;

/// What a command is about to change in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The daemon holds no longer.
    Release,
    /// The question that this command answers is answered.
    Answer {
        /// Its name.
        command: &'static str,
        /// Its first argument: which question of several.
        kind: Text,
    },
    /// How much it logs was set anew: an older wish to set it back is void.
    Verb,
}

/// The commands that answer a question. A username alone is one only where nothing but a username is asked for.
const ANSWERS: [&str; 7] = [
    "cr-response",
    "needok",
    "needstr",
    "password",
    "proxy",
    "remote",
    "username",
];

impl Effect {
    /// Of what people type, and of a release; the answers of [`Fleet::answer`] note theirs by themselves.
    pub(crate) fn of(command: &Command) -> Option<Self> {
        let raw = match command {
            Command::Hold(HoldRequest::Release) => return Some(Self::Release),
            Command::Raw(raw) => raw,
            _ => return None,
        };
        let mut parameters = raw.parameters();
        let name = parameters.next()?;
        let argument = parameters.next();
        match (name, argument) {
            (b"hold", Some(b"release")) => Some(Self::Release),
            (b"verb", Some(_)) => Some(Self::Verb),
            _ => {
                let command = *ANSWERS.iter().find(|answer| answer.as_bytes() == name)?;
                // Only where it is no secret.
                let kind = match command {
                    "cr-response" => Text::default(),
                    _ => Text::copy_from(argument.unwrap_or_default()),
                };
                Some(Self::Answer { command, kind })
            }
        }
    }

    /// Whether it is the answer to this question.
    fn answers(&self, question: &Question) -> bool {
        let Self::Answer {
            command,
            kind: said,
        } = self
        else {
            return false;
        };
        match (*command, question) {
            ("password", Question::Password { kind } | Question::Credentials { kind, .. })
            | ("username", Question::Username { kind })
            | ("needok", Question::NeedOk { kind, .. })
            | ("needstr", Question::NeedStr { kind, .. }) => said == kind,
            ("remote", Question::Remote { .. })
            | ("proxy", Question::Proxy { .. })
            | ("cr-response", Question::ChallengeText { .. }) => true,
            _ => false,
        }
    }

    /// Notes it; `question` is the one that was answered.
    pub(crate) fn note(&self, shared: &Shared, instance: &Instance, question: Option<u64>) {
        match self {
            Self::Release => note_release(shared, instance),
            Self::Answer { .. } => {
                if let Some(id) = question {
                    close(shared, instance, id);
                }
            }
            Self::Verb => {
                let reset = instance.verb_reset.lock();
                reset.unwrap_or_else(PoisonError::into_inner).take();
            }
        }
    }
}

/// Whether the daemon did what it was asked.
pub(crate) fn is_taken(reply: &Reply) -> bool {
    match reply {
        Reply::Raw(raw) => raw.text.as_bytes().starts_with(b"SUCCESS:"),
        _ => true,
    }
}

impl Fleet {
    /// Passes on a command as it is, and notes what it changed: the daemon's other managers learn of that here only.
    ///
    /// # Errors
    /// [`CallError`]. What the daemon refuses of a raw line is an answer, not an error.
    pub async fn relay(&self, instance: &Arc<Instance>, call: Call) -> Result<Answer, CallError> {
        let Some(effect) = Effect::of(&call.command) else {
            return instance.call(call).await;
        };
        let marked = Arc::new(AtomicU64::new(0));
        let guard = marking(&effect, instance, &marked, call.guard);
        let guard = Some(guard);
        let answered = instance.call(Call { guard, ..call }).await;
        let question = match marked.load(Ordering::Acquire) {
            0 => None,
            id => Some(id),
        };
        match &answered {
            Ok(answer) if is_taken(&answer.reply) => effect.note(&self.shared, instance, question),
            // It may have been taken: the daemon's next words tell.
            Err(CallError::OutcomeUnknown { .. }) => {}
            Ok(_) | Err(_) => {
                let open = |id| instance.update(|table| unmark(table, id));
                question.into_iter().for_each(open);
            }
        }
        answered
    }
}

/// Marks the question that is about to be answered: asked again from then on, it is another one.
fn marking(
    effect: &Effect,
    instance: &Arc<Instance>,
    marked: &Arc<AtomicU64>,
    before: Option<Guard>,
) -> Guard {
    let (effect, instance) = (effect.clone(), Arc::clone(instance));
    let marked = Arc::clone(marked);
    Box::new(move || {
        if let Some(before) = before {
            before()?;
        }
        instance.update(|table| {
            let open = &mut table.status.open_questions;
            let asked = open
                .iter_mut()
                .find(|asked| !asked.answered && effect.answers(&asked.question));
            if let Some(asked) = asked {
                asked.answered = true;
                marked.store(asked.id, Ordering::Release);
            }
        });
        Ok(())
    })
}

fn unmark(table: &mut crate::table::Table, id: u64) {
    if let Some(asked) = table.open_question_mut(id) {
        asked.answered = false;
    }
}

#[cfg(test)]
mod tests {
    use openvpn_management::RawCommand;

    use super::*;

    fn of(line: &str) -> Option<Effect> {
        Effect::of(&Command::Raw(RawCommand::parse(line.as_bytes()).unwrap()))
    }

    /// A question closed that is still open would keep everybody from answering it.
    #[test]
    fn a_line_closes_the_question_that_it_answers_and_no_other() {
        let password = |kind: &str| Question::Password { kind: kind.into() };
        let credentials = |kind: &str| Question::Credentials {
            kind: kind.into(),
            challenge: None,
        };
        let username = Question::Username {
            kind: "Auth".into(),
        };
        let remote = Question::Remote {
            host: "h".into(),
            port: "1".into(),
            protocol: "udp".into(),
        };
        let table = [
            ("password \"Private Key\" x", password("Private Key"), true),
            ("password 'Auth' x", password("Private Key"), false),
            ("password Auth x", credentials("Auth"), true),
            ("password Auth x", credentials("HTTP Proxy"), false),
            ("username Auth x", credentials("Auth"), false),
            ("username Auth x", username, true),
            ("needok Auth ok", credentials("Auth"), false),
            ("remote ACCEPT", remote.clone(), true),
            ("proxy NONE", remote, false),
        ];
        for (line, question, answers) in table {
            let effect = of(line).unwrap();
            assert_eq!(effect.answers(&question), answers, "{line}: {question}");
        }
    }

    /// What only asks changes nothing, and nothing of a secret is kept.
    #[test]
    fn of_a_line_only_what_it_changes_is_kept() {
        for line in ["hold", "hold on", "verb", "status", "kill password"] {
            assert_eq!(of(line), None, "{line}");
        }
        assert_eq!(of("'hold' \"release\""), Some(Effect::Release));
        assert_eq!(of("verb 4"), Some(Effect::Verb));
        for line in ["password Auth canary", "cr-response canary"] {
            assert!(!format!("{:?}", of(line)).contains("canary"), "{line}");
        }
    }
}
