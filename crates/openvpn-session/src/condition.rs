//! How a session stands.

use std::fmt;
use std::time::SystemTime;

/// How an instance's session stands.
///
/// ```text
///              dial fails                greeting           synchronised
/// CONNECTING ─────────────► UNREACHABLE      ┌──► SYNCING ───────────────► ATTACHED
///     │  ▲                      │            │       │                       │  ▲
///     │  └── session ended ◄────┼────────────┼───────┴──── deadline missed ──┤  │ fence
///     │                         ▼            │                               ▼  │ answered
///     └──────────────────► connected ────────┤                         UNRESPONSIVE
///                               │ 5 s silent └── SLOT_BUSY
///                               └ password refused ──► AUTH_FAILED
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Condition {
    /// Dialling for the first time, or again after a session ended.
    Connecting,
    /// Connected, not greeted: another manager holds the daemon's only slot, or the daemon hangs. We wait in line.
    SlotBusy,
    /// The daemon wants a password we do not have, may not read, or that is wrong.
    AuthFailed,
    /// Greeted; asking what there is to know.
    Syncing,
    /// Synchronised: calls are taken.
    Attached,
    /// A command missed its deadline. Calls fail at once; the session stays.
    Unresponsive,
    /// Nothing that speaks the management protocol can be reached at the address.
    Unreachable,
    /// There is no session by the operator's wish. No session ever reports this itself.
    Paused,
}

impl Condition {
    /// The condition in the words of the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "CONNECTING",
            Self::SlotBusy => "SLOT_BUSY",
            Self::AuthFailed => "AUTH_FAILED",
            Self::Syncing => "SYNCING",
            Self::Attached => "ATTACHED",
            Self::Unresponsive => "UNRESPONSIVE",
            Self::Unreachable => "UNREACHABLE",
            Self::Paused => "PAUSED",
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A session changed its mind about how it stands: another condition, or another reason for the same one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConditionChange {
    /// How it stands now.
    pub condition: Condition,
    /// Why, as a sentence, with the remedy where there is one; empty where the condition says it all.
    pub reason: String,
    /// When the session will try again by itself; `None` if it waits for something else, or need not.
    pub next_attempt: Option<SystemTime>,
}
