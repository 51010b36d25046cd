//! What the answer to a command says, and how it looks.

use crate::command::{Command, HistoryRequest, HoldRequest};
use crate::limits::{REPLY_BYTES_MAX, STATUS_REPLY_BYTES_MAX};
use crate::reply::ReplyForm;

/// What a command's answer says, which also fixes its form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expectation {
    Nothing,
    /// `SUCCESS:` with text for people.
    Success,
    /// The same, for a command with a block behind it.
    SuccessOfBlock,
    /// `SUCCESS: {name}={value}`.
    Value(ValueKind),
    /// Explanations, then the result.
    Results(ResultKind),
    /// Rows and `END`; after a `SUCCESS:` line of their own if `confirmed`.
    Rows {
        kind: RowKind,
        confirmed: bool,
    },
    Status,
    Count(u32),
    Pkcs11Count,
    Pkcs11Entry,
    Sentinel(SentinelKind),
    /// Whatever comes before the answer to the `load-stats` that is sent behind it.
    Raw,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ValueKind {
    Pid,
    ClientCount,
    LoadStats,
    Hold,
    Verb,
    Mute,
    AuthRetry,
    EnvFilter,
}

/// Answers of several lines without an `END`: how to know the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ResultKind {
    /// `auth-retry` explains a bad value in a line without prefix.
    AuthRetry,
    /// `push-update-*` has prefixed lines of its own before `… push-update command succeeded` or `failed`.
    PushUpdate,
    /// `network-change` answers `PROTECTFD: …`.
    ProtectFd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowKind {
    Text,
    Version,
    State,
    Log,
    Echo,
    RemoteEntryCount,
    RemoteEntry,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SentinelKind {
    VersionSet,
    Net,
}

impl Expectation {
    /// Most bytes of the reply.
    pub(crate) fn reply_bytes_max(self) -> usize {
        match self {
            Self::Status | Self::Raw => STATUS_REPLY_BYTES_MAX,
            _ => REPLY_BYTES_MAX,
        }
    }

    /// Whether every attach asks for it, and the answer is short.
    pub(crate) fn is_short(self) -> bool {
        matches!(
            self,
            Self::Rows {
                kind: RowKind::Version | RowKind::State,
                ..
            } | Self::Sentinel(_)
        )
    }
}

impl Command {
    pub(crate) fn expectation(&self) -> Expectation {
        let history = |kind, request: &HistoryRequest| match request {
            HistoryRequest::On | HistoryRequest::Off => Expectation::Success,
            HistoryRequest::OnWithHistory(_) => Expectation::Rows {
                kind,
                confirmed: true,
            },
            HistoryRequest::History(_) => Expectation::Rows {
                kind,
                confirmed: false,
            },
        };
        let rows = |kind| Expectation::Rows {
            kind,
            confirmed: false,
        };
        match self {
            Self::Exit | Self::Quit => Expectation::Nothing,

            Self::Certificate { .. }
            | Self::ClientAuth { .. }
            | Self::ClientPf { .. }
            | Self::PasswordBlock { .. }
            | Self::PkSig { .. }
            | Self::RsaSig { .. } => Expectation::SuccessOfBlock,

            Self::Bytecount(_)
            | Self::ClientAuthNt { .. }
            | Self::ClientDeny { .. }
            | Self::ClientKill { .. }
            | Self::ClientPendingAuth { .. }
            | Self::CrResponse(_)
            | Self::ForgetPasswords
            | Self::Hold(HoldRequest::On | HoldRequest::Off | HoldRequest::Release)
            | Self::Kill(_)
            | Self::Mute(Some(_))
            | Self::NeedOk { .. }
            | Self::NeedStr { .. }
            | Self::Password { .. }
            | Self::Username { .. }
            | Self::Proxy(_)
            | Self::Remote(_)
            | Self::Signal(_)
            | Self::Verb(Some(_)) => Expectation::Success,

            Self::Pid => Expectation::Value(ValueKind::Pid),
            Self::ClientCount => Expectation::Value(ValueKind::ClientCount),
            Self::LoadStats => Expectation::Value(ValueKind::LoadStats),
            Self::Hold(HoldRequest::Query) => Expectation::Value(ValueKind::Hold),
            Self::Verb(None) => Expectation::Value(ValueKind::Verb),
            Self::Mute(None) => Expectation::Value(ValueKind::Mute),
            Self::AuthRetry(None) => Expectation::Value(ValueKind::AuthRetry),
            Self::EnvFilter(_) => Expectation::Value(ValueKind::EnvFilter),

            Self::AuthRetry(Some(_)) => Expectation::Results(ResultKind::AuthRetry),
            Self::PushUpdateBroad { .. } | Self::PushUpdateCid { .. } => {
                Expectation::Results(ResultKind::PushUpdate)
            }
            Self::NetworkChange { .. } => Expectation::Results(ResultKind::ProtectFd),

            Self::State(request) => history(RowKind::State, request),
            Self::Log(request) => history(RowKind::Log, request),
            Self::Echo(request) => history(RowKind::Echo, request),
            Self::Help => rows(RowKind::Text),
            Self::Version => rows(RowKind::Version),
            Self::RemoteEntryCount => rows(RowKind::RemoteEntryCount),
            Self::RemoteEntryGet(_) => rows(RowKind::RemoteEntry),
            Self::Status { .. } => Expectation::Status,
            Self::Test(0) => Expectation::Nothing,
            Self::Test(lines) => Expectation::Count(*lines),
            Self::Pkcs11IdCount => Expectation::Pkcs11Count,
            Self::Pkcs11IdGet(_) => Expectation::Pkcs11Entry,
            Self::VersionSet(_) => Expectation::Sentinel(SentinelKind::VersionSet),
            Self::Net => Expectation::Sentinel(SentinelKind::Net),
            Self::Raw(_) => Expectation::Raw,
        }
    }

    /// How the command's answer looks.
    #[must_use]
    pub fn reply_form(&self) -> ReplyForm {
        match self.expectation() {
            Expectation::Nothing => ReplyForm::None,
            Expectation::Success | Expectation::SuccessOfBlock | Expectation::Value(_) => {
                ReplyForm::Line
            }
            Expectation::Results(ResultKind::ProtectFd) => ReplyForm::Line,
            Expectation::Results(ResultKind::AuthRetry | ResultKind::PushUpdate) => {
                ReplyForm::LinesThenLine
            }
            Expectation::Rows {
                confirmed: true, ..
            } => ReplyForm::LineThenBlock,
            Expectation::Rows {
                confirmed: false, ..
            }
            | Expectation::Status => ReplyForm::Block,
            Expectation::Count(lines) => ReplyForm::Count(lines),
            Expectation::Pkcs11Count | Expectation::Pkcs11Entry => ReplyForm::Notification,
            Expectation::Sentinel(_) | Expectation::Raw => ReplyForm::UpToSentinel,
        }
    }
}
