//! Transcripts of real daemons: what they said, and what they were asked.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use openvpn_management::daemon::lex;
use openvpn_management::{
    AuthRetry, Cid, Command, HistoryDepth, HistoryRequest, HoldRequest, Kid, KillMessage,
    PendingAuthForm, RemoteAnswer, RemoteEntryRange, Secret, Signal, StatusFormat, Text,
};

/// Where the transcripts and the outputs expected of them are.
pub(crate) fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts")
}

/// One step of a session.
#[derive(Debug)]
pub(crate) enum Step {
    /// The manager wrote this.
    Ask(Ask),
    /// The daemon wrote these bytes next.
    Hear(Vec<u8>),
}

/// What the manager wrote, as far as our own encoder would write it.
#[derive(Debug)]
pub(crate) enum Ask {
    Command(Command),
    /// A line before the greeting.
    Password(Secret),
    /// Something else: malformed on purpose, or several commands in one write.
    Other,
}

/// The sessions of a transcript, in the order they were opened.
pub(crate) fn sessions(transcript: &[u8]) -> Vec<Vec<Step>> {
    let mut open: BTreeMap<Vec<u8>, RawSession> = BTreeMap::new();
    let mut closed = Vec::new();
    let mut opened = 0;
    for line in transcript.split(|byte| *byte == b'\n') {
        if let Some(event) = line.strip_prefix(b"-- ") {
            if let Some(name) = event.strip_suffix(b"connected") {
                opened += 1;
                let session = RawSession {
                    order: opened,
                    ..RawSession::default()
                };
                closed.extend(open.insert(name.to_vec(), session));
            }
            continue;
        }
        let Some((b'S' | b'C', rest)) = line.split_first().map(|(first, rest)| (*first, rest))
        else {
            continue;
        };
        let Some(at) = rest.iter().position(|byte| matches!(byte, b':' | b'|')) else {
            continue;
        };
        let (name, text) = (
            &rest[..at],
            rest[at + 1..].strip_prefix(b" ").unwrap_or_default(),
        );
        let session = open
            .entry(name.to_vec())
            .or_insert_with(RawSession::begun_earlier);
        if line[0] == b'C' {
            session.flush_heard();
            session.asked.push(text.to_vec());
        } else {
            session.flush_asked();
            session.heard.extend_from_slice(text);
            if rest[at] == b':' {
                session.heard.extend_from_slice(b"\r\n");
            }
        }
    }
    closed.extend(open.into_values());
    closed.sort_by_key(|session| session.order);
    closed.into_iter().map(RawSession::finish).collect()
}

#[derive(Default)]
struct RawSession {
    order: usize,
    steps: Vec<Step>,
    /// Lines written since the daemon last spoke.
    asked: Vec<Vec<u8>>,
    heard: Vec<u8>,
    greeted: bool,
}

impl RawSession {
    /// One that is open when the transcript begins; its greeting is not in there.
    fn begun_earlier() -> Self {
        let greeting = b">INFO:(not in the transcript)\r\n".to_vec();
        Self {
            steps: vec![Step::Hear(greeting)],
            greeted: true,
            ..Self::default()
        }
    }

    fn flush_heard(&mut self) {
        if !self.heard.is_empty() {
            let heard = std::mem::take(&mut self.heard);
            self.greeted |= heard.windows(6).any(|bytes| bytes == b">INFO:");
            self.steps.push(Step::Hear(heard));
        }
    }

    fn flush_asked(&mut self) {
        if self.asked.is_empty() {
            return;
        }
        let asked = std::mem::take(&mut self.asked);
        let ask = match (self.greeted, &asked[..]) {
            (false, [password]) => Ask::Password(Secret::new(password.clone())),
            (false, _) => Ask::Other,
            (true, _) => command(&asked).map_or(Ask::Other, Ask::Command),
        };
        self.steps.push(Step::Ask(ask));
    }

    fn finish(mut self) -> Vec<Step> {
        self.flush_heard();
        self.flush_asked();
        self.steps
    }
}

/// The one command these lines are, if they are one that our encoder could write.
fn command(lines: &[Vec<u8>]) -> Option<Command> {
    let mut commands = lines
        .iter()
        .filter(|line| lex(line).is_ok_and(|words| !words.is_empty()));
    let words = lex(commands.next()?).ok()?;
    let rest: Vec<Text> = commands.map(|line| Text::from(&line[..])).collect();
    let words: Vec<&str> = words
        .iter()
        .map(|word| str::from_utf8(word).ok())
        .collect::<Option<_>>()?;
    match (&words[..], &rest[..]) {
        (["client-auth", cid, kid], [config @ .., end]) if *end == "END" => {
            Some(Command::ClientAuth {
                cid: Cid(cid.parse().ok()?),
                kid: Kid(kid.parse().ok()?),
                config: config.to_vec(),
            })
        }
        (["version", number], [sentinel]) if *sentinel == "pid" => {
            Some(Command::VersionSet(number.parse().ok()?))
        }
        (words, []) => line_command(words),
        _ => None,
    }
}

fn line_command(words: &[&str]) -> Option<Command> {
    let text = |word: &str| Text::from(word);
    let cid = |word: &str| word.parse().ok().map(Cid);
    let kid = |word: &str| word.parse().ok().map(Kid);
    Some(match *words {
        ["auth-retry"] => Command::AuthRetry(None),
        ["auth-retry", "interact"] => Command::AuthRetry(Some(AuthRetry::Interact)),
        ["bytecount", seconds] => Command::Bytecount(seconds.parse().ok()?),
        ["client-auth-nt", c, k] => Command::ClientAuthNt {
            cid: cid(c)?,
            kid: kid(k)?,
        },
        ["client-deny", c, k, reason] => Command::ClientDeny {
            cid: cid(c)?,
            kid: kid(k)?,
            reason: text(reason),
            client_reason: None,
        },
        ["client-deny", c, k, reason, client_reason] => Command::ClientDeny {
            cid: cid(c)?,
            kid: kid(k)?,
            reason: text(reason),
            client_reason: Some(text(client_reason)),
        },
        ["client-kill", c] => Command::ClientKill {
            cid: cid(c)?,
            message: None,
        },
        ["client-kill", c, "HALT"] => Command::ClientKill {
            cid: cid(c)?,
            message: Some(KillMessage::Halt),
        },
        ["client-kill", c, message] => Command::ClientKill {
            cid: cid(c)?,
            message: Some(KillMessage::Text(text(message))),
        },
        ["client-pending-auth", c, k, extra, timeout] => Command::ClientPendingAuth {
            cid: cid(c)?,
            extra: text(extra),
            form: PendingAuthForm::CidKidTimeout {
                kid: kid(k)?,
                timeout_secs: timeout.parse().ok()?,
            },
        },
        ["cr-response", response] => Command::CrResponse(Secret::new(response.to_owned())),
        ["echo", ref request @ ..] => Command::Echo(history(request)?),
        ["env-filter"] => Command::EnvFilter(None),
        ["env-filter", level] => Command::EnvFilter(Some(level.parse().ok()?)),
        ["forget-passwords"] => Command::ForgetPasswords,
        ["help"] => Command::Help,
        ["hold"] => Command::Hold(HoldRequest::Query),
        ["hold", "on"] => Command::Hold(HoldRequest::On),
        ["hold", "off"] => Command::Hold(HoldRequest::Off),
        ["hold", "release"] => Command::Hold(HoldRequest::Release),
        ["kill", target] => Command::Kill(text(target)),
        ["load-stats"] => Command::LoadStats,
        ["log", ref request @ ..] => Command::Log(history(request)?),
        ["mute"] => Command::Mute(None),
        ["mute", count] => Command::Mute(Some(count.parse().ok()?)),
        ["nclients"] => Command::ClientCount,
        ["net"] => return None,
        ["password", kind, password] => Command::Password {
            kind: text(kind),
            password: Secret::new(password.to_owned()),
        },
        ["pid"] => Command::Pid,
        ["pkcs11-id-count"] => Command::Pkcs11IdCount,
        ["pkcs11-id-get", index] => Command::Pkcs11IdGet(index.parse().ok()?),
        ["push-update-broad", options] => Command::PushUpdateBroad {
            options: text(options),
        },
        ["push-update-cid", c, options] => Command::PushUpdateCid {
            cid: cid(c)?,
            options: text(options),
        },
        ["remote", "ACCEPT"] => Command::Remote(RemoteAnswer::Accept),
        ["remote-entry-count"] => Command::RemoteEntryCount,
        ["remote-entry-get", "all"] => Command::RemoteEntryGet(RemoteEntryRange::All),
        ["signal", "SIGHUP"] => Command::Signal(Signal::Sighup),
        ["signal", "SIGTERM"] => Command::Signal(Signal::Sigterm),
        ["signal", "SIGUSR1"] => Command::Signal(Signal::Sigusr1),
        ["signal", "SIGUSR2"] => Command::Signal(Signal::Sigusr2),
        ["state"] => Command::State(HistoryRequest::History(HistoryDepth::Last(NonZeroU32::MIN))),
        ["state", ref request @ ..] => Command::State(history(request)?),
        ["status"] => Command::Status {
            format: StatusFormat::Configured,
        },
        ["status", "1"] => Command::Status {
            format: StatusFormat::V1,
        },
        ["status", "2"] => Command::Status {
            format: StatusFormat::V2,
        },
        ["status", "3"] => Command::Status {
            format: StatusFormat::V3,
        },
        ["test", lines] => Command::Test(lines.parse().ok()?),
        ["username", kind, username] => Command::Username {
            kind: text(kind),
            username: text(username),
        },
        ["verb"] => Command::Verb(None),
        ["verb", level] => Command::Verb(Some(level.parse().ok()?)),
        ["version"] => Command::Version,
        _ => return None,
    })
}

fn history(words: &[&str]) -> Option<HistoryRequest> {
    let depth = |word: &str| match word {
        "all" => Some(HistoryDepth::All),
        _ => word.parse().ok().map(HistoryDepth::Last),
    };
    match words {
        ["on"] => Some(HistoryRequest::On),
        ["off"] => Some(HistoryRequest::Off),
        ["on", word] => depth(word).map(HistoryRequest::OnWithHistory),
        [word] => depth(word).map(HistoryRequest::History),
        _ => None,
    }
}
