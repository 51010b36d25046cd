//! What a daemon answers to a command.

use crate::record::{
    EchoRecord, History, LoadStats, LogRecord, Pkcs11Entry, RemoteEntry, StateRecord, Version,
};
use crate::status::StatusSnapshot;
use crate::text::Text;

/// How the answer to a command looks on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyForm {
    /// Nothing at all; the command counts as answered when it is sent.
    None,
    /// One line, `SUCCESS:` or `ERROR:`.
    Line,
    /// Lines up to one that is exactly `END`, or one `ERROR:` line.
    Block,
    /// `SUCCESS:`, then a block.
    LineThenBlock,
    /// Any number of lines about single targets, then one with the result of all.
    LinesThenLine,
    /// That many lines without an end mark.
    Count(u32),
    /// A line that starts with `>`, or `ERROR:`.
    Notification,
    /// Unknown beforehand: nothing, a line, or a block. `pid` is sent behind it, and its answer is the end.
    UpToSentinel,
}

/// The answer to a command, by what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reply {
    /// The command has no answer, or this daemon's version gives none.
    None,
    /// `SUCCESS: …`: the text behind it. Where the daemon gives several lines, all of them, with LF between.
    Success(Text),
    /// Lines of free text: `help`, `test`, `net`, or a listed reply that did not have the form we know.
    Lines(History<Text>),
    /// `pid`.
    Pid(u32),
    /// `nclients`.
    ClientCount(u64),
    /// `load-stats`.
    LoadStats(LoadStats),
    /// `version`.
    Version(Version),
    /// `hold` asked whether the hold flag is set.
    Hold(bool),
    /// `verb` asked for the level.
    Verb(u32),
    /// `mute` asked for the level.
    Mute(u32),
    /// `auth-retry` asked for the mode.
    AuthRetry(Text),
    /// `env-filter`, asked or set.
    EnvFilter(u32),
    /// `state` with a history; also after `on`.
    States(History<StateRecord>),
    /// `log` with a history; also after `on`.
    Log(History<LogRecord>),
    /// `echo` with a history; also after `on`.
    Echo(History<EchoRecord>),
    /// `status` in any format, of a server or a client.
    Status(Box<StatusSnapshot>),
    /// `remote-entry-count`.
    RemoteEntryCount(u32),
    /// `remote-entry-get`.
    RemoteEntries(History<RemoteEntry>),
    /// `pkcs11-id-count`.
    Pkcs11IdCount(u32),
    /// `pkcs11-id-get`.
    Pkcs11Id(Pkcs11Entry),
    /// A raw command, whatever the daemon said to it: refusals too.
    Raw(RawReply),
}

/// A reply as it came over the wire.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RawReply {
    /// Its lines, each with CR and LF behind it. Empty where the daemon says nothing.
    pub text: Text,
    /// Whether lines at the end were dropped, because there were too many.
    pub truncated: bool,
}

impl RawReply {
    /// The lines, without line ends.
    pub fn lines(&self) -> impl Iterator<Item = &[u8]> {
        let lines = self.text.as_bytes().split(|byte| *byte == b'\n');
        let ended = self
            .text
            .as_bytes()
            .iter()
            .filter(|byte| **byte == b'\n')
            .count();
        lines
            .take(ended)
            .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
    }
}

/// The daemon's refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("refused by the daemon: {text}")]
pub struct Rejected {
    /// Its words without `ERROR: `. Where the daemon gives several lines, all of them, with LF between.
    pub text: Text,
}
