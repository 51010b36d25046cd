//! What we ask a daemon: every command of OpenVPN 2.3 to 2.7 as a value.

mod encode;
mod raw;

use std::num::NonZeroU32;

pub(crate) use self::encode::encode_password;
pub use self::encode::{
    BLOCK_LINE_BYTES_MAX, BLOCK_LINES_MAX, EncodeError, LINE_BYTES_SENT_MAX, PARAMETER_BYTES_MAX,
    PASSWORD_BLOCK_BYTES_MAX,
};
pub use self::raw::{RawCommand, RawCommandError};
use crate::text::{Cid, Kid, Secret, Text};

/// One command. [`encode`](Self::encode) is the only way onto the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Command {
    /// `auth-retry`: asks (`None`) or sets what a client does after AUTH_FAILED.
    AuthRetry(Option<AuthRetry>),
    /// `bytecount N`: traffic notifications every N seconds; 0 turns them off.
    Bytecount(u32),
    /// `certificate`: answers `>NEED-CERTIFICATE`. PEM lines.
    Certificate {
        /// The certificate's lines.
        lines: Vec<Text>,
    },
    /// `client-auth`: lets a client in, with configuration lines for it.
    ClientAuth {
        /// Who.
        cid: Cid,
        /// Which authentication.
        kid: Kid,
        /// Configuration as in a client-config-dir file, one option a line.
        config: Vec<Text>,
    },
    /// `client-auth-nt`: lets a client in as it is.
    ClientAuthNt {
        /// Who.
        cid: Cid,
        /// Which authentication.
        kid: Kid,
    },
    /// `client-deny`: keeps a client out.
    ClientDeny {
        /// Who.
        cid: Cid,
        /// Which authentication.
        kid: Kid,
        /// For the daemon's log.
        reason: Text,
        /// For the client.
        client_reason: Option<Text>,
    },
    /// `client-kill`: ends a client by its CID.
    ClientKill {
        /// Who.
        cid: Cid,
        /// What the client is told; the daemon's default is [`KillMessage::Restart`].
        message: Option<KillMessage>,
    },
    /// `client-pending-auth`: tells a client that its authentication goes on elsewhere.
    ClientPendingAuth {
        /// Who.
        cid: Cid,
        /// What the client's user is told, such as `WEB_AUTH::https://…`.
        extra: Text,
        /// The further arguments, which depend on the daemon's management version.
        form: PendingAuthForm,
    },
    /// `client-pf`: a packet filter for a client; removed in OpenVPN 2.6.
    ClientPf {
        /// Who.
        cid: Cid,
        /// The filter's lines.
        lines: Vec<Text>,
    },
    /// `cr-response`: a client's answer to a challenge, base64.
    CrResponse(Secret),
    /// `echo`.
    Echo(HistoryRequest),
    /// `env-filter`: asks or sets how much of the environment is sent. The daemon keeps it across sessions.
    EnvFilter(Option<u8>),
    /// `exit`: the daemon closes and drops all replies of the same read.
    Exit,
    /// `quit`: the same as [`Exit`](Self::Exit).
    Quit,
    /// `forget-passwords`.
    ForgetPasswords,
    /// `help`.
    Help,
    /// `hold`.
    Hold(HoldRequest),
    /// `kill`: ends clients by common name or address. Ambiguous for names with a colon: use [`ClientKill`](Self::ClientKill).
    Kill(Text),
    /// `load-stats`: never logged by the daemon and answered in every mode: the cheapest probe.
    LoadStats,
    /// `log`.
    Log(HistoryRequest),
    /// `mute`: asks or sets how many equal log lines in a row are shown.
    Mute(Option<u32>),
    /// `nclients`: server only.
    ClientCount,
    /// `needok`: answers `>NEED-OK`.
    NeedOk {
        /// The kind of the question.
        kind: Text,
        /// The answer.
        answer: NeedOkAnswer,
    },
    /// `needstr`: answers `>NEED-STR`.
    NeedStr {
        /// The kind of the question.
        kind: Text,
        /// The answer.
        value: Text,
    },
    /// `net`: Windows only.
    Net,
    /// `network-change`: Android only.
    NetworkChange {
        /// Whether it is still the same network.
        same_network: bool,
    },
    /// `password`: answers `>PASSWORD:Need`.
    Password {
        /// The kind of the question.
        kind: Text,
        /// The answer, at most [`PARAMETER_BYTES_MAX`] bytes.
        password: Secret,
    },
    /// `password` as a block, for long ones: OpenVPN 2.7.2, after `version 5`.
    PasswordBlock {
        /// The kind of the question.
        kind: Text,
        /// The answer; sent as base64.
        password: Secret,
    },
    /// `username`: answers `>PASSWORD:Need`. The daemon logs it in full.
    Username {
        /// The kind of the question.
        kind: Text,
        /// The answer.
        username: Text,
    },
    /// `pid`.
    Pid,
    /// `pkcs11-id-count`.
    Pkcs11IdCount,
    /// `pkcs11-id-get I`.
    Pkcs11IdGet(u32),
    /// `pk-sig`: answers `>PK_SIGN`. Base64 lines.
    PkSig {
        /// The signature's lines.
        lines: Vec<Text>,
    },
    /// `rsa-sig`: answers `>RSA_SIGN`. Base64 lines.
    RsaSig {
        /// The signature's lines.
        lines: Vec<Text>,
    },
    /// `proxy`: answers `>PROXY`.
    Proxy(ProxyAnswer),
    /// `push-update-broad`: changes options of every client, from OpenVPN 2.7.
    PushUpdateBroad {
        /// Options, comma-separated.
        options: Text,
    },
    /// `push-update-cid`: changes options of one client, from OpenVPN 2.7.
    PushUpdateCid {
        /// Whose.
        cid: Cid,
        /// Options, comma-separated.
        options: Text,
    },
    /// `remote`: answers `>REMOTE`.
    Remote(RemoteAnswer),
    /// `remote-entry-count`: client only.
    RemoteEntryCount,
    /// `remote-entry-get`: client only.
    RemoteEntryGet(RemoteEntryRange),
    /// `signal`. Ends the daemon if it waits for a password.
    Signal(Signal),
    /// `state`.
    State(HistoryRequest),
    /// `status`.
    Status {
        /// Which of the daemon's formats.
        format: StatusFormat,
    },
    /// `test N`: N lines of text; the daemon does nothing else meanwhile.
    Test(u32),
    /// `verb`: asks or sets how much is logged, 0 to 15.
    Verb(Option<u8>),
    /// `version`: what the daemon is.
    Version,
    /// `version N`: what we are. OpenVPN 2.4 answers like `version`, 2.5 to 2.7.0 not at all.
    VersionSet(u32),
    /// A line as somebody typed it, answered by a [`RawReply`](crate::RawReply).
    Raw(RawCommand),
}

/// What a client does after AUTH_FAILED.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthRetry {
    /// Ends.
    None,
    /// Tries again without asking.
    Nointeract,
    /// Asks for the password again.
    Interact,
}

/// What a killed client is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KillMessage {
    /// Come back: the client reconnects within a second or so.
    Restart,
    /// Stay out: the client's process ends.
    Halt,
    /// Another control message.
    Text(Text),
}

/// The arguments of `client-pending-auth` behind CID, by the daemon's management version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PendingAuthForm {
    /// Version 3: CID and text only.
    Cid,
    /// Version 4: CID, text and timeout.
    CidTimeout {
        /// Seconds to wait; the daemon caps it.
        timeout_secs: u32,
    },
    /// Version 5 and later: CID, KID, text and timeout.
    CidKidTimeout {
        /// Which authentication.
        kid: Kid,
        /// Seconds to wait; the daemon caps it.
        timeout_secs: u32,
    },
}

/// What is wanted of `state`, `log` or `echo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HistoryRequest {
    /// `on`: notifications from now on.
    On,
    /// `off`: no further notifications.
    Off,
    /// `on all`, `on N`: history, then notifications, without a hole between.
    OnWithHistory(HistoryDepth),
    /// `all`, `N`: history only.
    History(HistoryDepth),
}

/// How far back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HistoryDepth {
    /// All the daemon kept.
    All,
    /// That many lines.
    Last(NonZeroU32),
}

/// What is wanted of `hold`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldRequest {
    /// Is the flag set?
    Query,
    /// Hold at the next restart.
    On,
    /// Do not hold at the next restart; a present hold stays.
    Off,
    /// Go on.
    Release,
}

/// The answer to `>NEED-OK`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NeedOkAnswer {
    /// Done, or allowed.
    Ok,
    /// Not.
    Cancel,
}

/// The answer to `>PROXY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProxyAnswer {
    /// Directly.
    None,
    /// Through an HTTP proxy.
    Http {
        /// The proxy.
        host: Text,
        /// Its port.
        port: u16,
        /// Refuse to send it a password in clear text.
        no_cleartext: bool,
    },
    /// Through a SOCKS proxy.
    Socks {
        /// The proxy.
        host: Text,
        /// Its port.
        port: u16,
    },
}

/// The answer to `>REMOTE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemoteAnswer {
    /// Connect there.
    Accept,
    /// Try the next one, or the one that many further on (from OpenVPN 2.6).
    Skip(Option<NonZeroU32>),
    /// Connect here instead.
    Modify {
        /// Host name or address.
        host: Text,
        /// Port.
        port: u16,
    },
}

/// Which rows of the list of servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteEntryRange {
    /// Every one.
    All,
    /// One, from 0.
    One(u32),
    /// From the first up to, not including, the second.
    Range(u32, u32),
}

/// A signal for a daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Signal {
    /// Restart with the configuration read again.
    Sighup,
    /// End.
    Sigterm,
    /// Restart.
    Sigusr1,
    /// Write the status into the log.
    Sigusr2,
}

impl Signal {
    /// The word of the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sighup => "SIGHUP",
            Self::Sigterm => "SIGTERM",
            Self::Sigusr1 => "SIGUSR1",
            Self::Sigusr2 => "SIGUSR2",
        }
    }
}

/// A format of `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusFormat {
    /// Whatever the daemon's configuration says.
    Configured,
    /// For people; no CID.
    V1,
    /// Comma-separated, without escapes.
    V2,
    /// TAB-separated: the only one without ambiguity.
    V3,
}
