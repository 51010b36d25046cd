//! Why a command has no reply.

use openvpn_management::RawCommandError;

use super::{VERB_DEADLOCK, VERB_HIGHEST, VERB_MAX};
use crate::action::TargetError;

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
