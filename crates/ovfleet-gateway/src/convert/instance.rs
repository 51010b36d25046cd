//! What one daemon says and asks, out; answers, in.

use std::num::NonZeroU32;

use openvpn_fleet::{
    Answer, Challenge, ChallengeText, OpenQuestion, Question, redact_log, remote_skip,
};
use openvpn_management::{
    AuthRetry, EchoRecord, HistoryDepth, HistoryRequest, HoldRequest, LogRecord, NeedOkAnswer,
    Pkcs11Entry, ProxyAnswer, RawReply, RemoteAnswer, RemoteEntry, Secret, StateRecord, Text,
    limits::HISTORY_LINES_MAX,
};
use ovfleet_proto::v1::{self, answer_question_request::Answer as In, open_question};
use tonic::Status;

use super::{daemon_timestamp, lossy, text, timestamp};
use crate::status;

/// A question as callers see it.
pub(crate) fn question(asked: &OpenQuestion) -> v1::OpenQuestion {
    use open_question::Question as Out;
    let password = |kind: &Text| v1::PasswordQuestion {
        r#type: lossy(kind),
    };
    let need = |kind: &Text, message: &Text| v1::NeedQuestion {
        r#type: lossy(kind),
        message: lossy(message),
    };
    let typed = match &asked.question {
        Question::Password { kind } => Some(Out::Password(password(kind))),
        Question::Username { kind } => Some(Out::Credentials(v1::CredentialsQuestion {
            r#type: lossy(kind),
            username_only: true,
            ..Default::default()
        })),
        Question::Credentials { kind, challenge } => {
            let (fixed, dynamic) = match challenge {
                None => (None, None),
                Some(Challenge::Static {
                    challenge,
                    concatenate: _,
                }) => (Some(challenge_text(challenge, None)), None),
                Some(Challenge::Dynamic {
                    challenge,
                    username,
                    state_id: _,
                }) => (None, Some(challenge_text(challenge, Some(username)))),
            };
            Some(Out::Credentials(v1::CredentialsQuestion {
                r#type: lossy(kind),
                username_only: false,
                static_challenge: fixed,
                dynamic_challenge: dynamic,
            }))
        }
        Question::NeedOk { kind, message } => Some(Out::NeedOk(need(kind, message))),
        Question::NeedStr { kind, message } => Some(Out::NeedStr(need(kind, message))),
        Question::Certificate { hint } => Some(Out::Certificate(v1::CertificateQuestion {
            hint: lossy(hint),
        })),
        Question::Signature {
            data,
            algorithm,
            rsa: _,
        } => Some(Out::Signature(v1::SignatureQuestion {
            data: base64_bytes(data).into(),
            algorithm: algorithm.as_ref().map(lossy).unwrap_or_default(),
        })),
        Question::Remote {
            host,
            port,
            protocol,
        } => Some(Out::Remote(v1::RemoteQuestion {
            host: lossy(host),
            port: lossy(port),
            protocol: lossy(protocol),
        })),
        Question::Proxy { protocol, host } => Some(Out::Proxy(v1::ProxyQuestion {
            protocol: lossy(protocol),
            host: lossy(host),
        })),
        Question::ChallengeText { challenge } => {
            Some(Out::Challenge(challenge_text(challenge, None)))
        }
        Question::Unknown => None,
    };
    v1::OpenQuestion {
        id: asked.id,
        text: asked.question.to_string(),
        asked_time: Some(timestamp(asked.asked)),
        question: typed,
    }
}

fn challenge_text(challenge: &ChallengeText, username: Option<&Text>) -> v1::Challenge {
    let ChallengeText {
        text,
        echo,
        response_wanted,
    } = challenge;
    v1::Challenge {
        text: lossy(text),
        echo: *echo,
        response_wanted: *response_wanted,
        username: username.map(lossy).unwrap_or_default(),
    }
}

/// What base64 stands for; text that is none stays as it is.
fn base64_bytes(text: &Text) -> Vec<u8> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let decoded = STANDARD.decode(text.as_bytes());
    decoded.unwrap_or_else(|_| text.as_bytes().to_vec())
}

/// The answer of a request.
pub(crate) fn answer(answer: Option<In>) -> Result<Answer, Status> {
    let Some(answer) = answer else {
        return Err(refuse("answer", "give exactly one answer"));
    };
    Ok(match answer {
        In::Credentials(v1::CredentialsAnswer {
            username,
            password,
            response,
        }) => Answer::Credentials {
            username: Text::from(username),
            password: secret(password),
            response: secret(response),
        },
        In::Password(v1::PasswordAnswer { password }) => Answer::Password(secret(password)),
        In::NeedOk(v1::NeedOkAnswer { ok: true }) => Answer::NeedOk(NeedOkAnswer::Ok),
        In::NeedOk(v1::NeedOkAnswer { ok: false }) => Answer::NeedOk(NeedOkAnswer::Cancel),
        In::NeedStr(v1::NeedStrAnswer { value }) => Answer::NeedStr(Text::from(value)),
        In::Certificate(v1::CertificateAnswer { pem }) => Answer::Certificate(Text::from(pem)),
        In::Signature(v1::SignatureAnswer { signature }) => Answer::Signature(signature.into()),
        In::Remote(v1::RemoteAnswer { action }) => Answer::Remote(remote(action)?),
        In::Proxy(v1::ProxyAnswer {
            proxy,
            no_cleartext_auth,
        }) => Answer::Proxy(self::proxy(proxy, no_cleartext_auth)?),
        In::ChallengeResponse(v1::ChallengeResponseAnswer { response }) => {
            Answer::ChallengeResponse(secret(response))
        }
    })
}

fn remote(action: Option<v1::remote_answer::Action>) -> Result<RemoteAnswer, Status> {
    use v1::remote_answer::Action;
    Ok(match action {
        Some(Action::Accept(true)) => RemoteAnswer::Accept,
        Some(Action::Skip(count)) if count > 0 => remote_skip(count),
        Some(Action::Modify(server)) => RemoteAnswer::Modify {
            port: port("answer.remote.modify.port", server.port)?,
            host: Text::from(server.host),
        },
        _ => {
            let words = "give accept (true), skip (from 1) or modify";
            return Err(refuse("answer.remote", words));
        }
    })
}

fn proxy(
    proxy: Option<v1::proxy_answer::Proxy>,
    no_cleartext: bool,
) -> Result<ProxyAnswer, Status> {
    use v1::proxy_answer::Proxy;
    Ok(match proxy {
        Some(Proxy::None(true)) => ProxyAnswer::None,
        Some(Proxy::Http(server)) => ProxyAnswer::Http {
            port: port("answer.proxy.http.port", server.port)?,
            host: Text::from(server.host),
            no_cleartext,
        },
        Some(Proxy::Socks(server)) => ProxyAnswer::Socks {
            port: port("answer.proxy.socks.port", server.port)?,
            host: Text::from(server.host),
        },
        _ => {
            let words = "give none (true), http or socks";
            return Err(refuse("answer.proxy", words));
        }
    })
}

fn port(field: &str, port: u32) -> Result<u16, Status> {
    u16::try_from(port)
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| refuse(field, "a port is 1 to 65535"))
}

fn secret(text: String) -> Secret {
    Secret::new(text.into_bytes())
}

fn refuse(field: &str, description: &str) -> Status {
    status::invalid(field, "ANSWER_INVALID", description)
}

/// The newest lines of a history, by number; as many as are ever kept for 0.
pub(crate) fn history(last: u32) -> HistoryRequest {
    let most = u32::try_from(HISTORY_LINES_MAX).unwrap_or(u32::MAX);
    let last = if last == 0 { most } else { last.min(most) };
    HistoryRequest::History(match NonZeroU32::new(last) {
        Some(last) => HistoryDepth::Last(last),
        None => HistoryDepth::All,
    })
}

/// What to do about holding.
pub(crate) fn hold(action: i32) -> Result<HoldRequest, Status> {
    match v1::HoldAction::try_from(action) {
        Ok(v1::HoldAction::On) => Ok(HoldRequest::On),
        Ok(v1::HoldAction::Off) => Ok(HoldRequest::Off),
        Ok(v1::HoldAction::Release) => Ok(HoldRequest::Release),
        Ok(v1::HoldAction::Unspecified) | Err(_) => {
            let words = "say which: ON, OFF or RELEASE";
            Err(status::invalid("action", "ENUM_INVALID", words))
        }
    }
}

/// What a client does when it is refused.
pub(crate) fn auth_retry(mode: i32) -> Result<AuthRetry, Status> {
    match v1::AuthRetry::try_from(mode) {
        Ok(v1::AuthRetry::None) => Ok(AuthRetry::None),
        Ok(v1::AuthRetry::Nointeract) => Ok(AuthRetry::Nointeract),
        Ok(v1::AuthRetry::Interact) => Ok(AuthRetry::Interact),
        Ok(v1::AuthRetry::Unspecified) | Err(_) => {
            let words = "say which: NONE, NOINTERACT or INTERACT";
            Err(status::invalid("mode", "ENUM_INVALID", words))
        }
    }
}

/// A line of the log. A command's arguments are left out where they may be secrets.
pub(crate) fn log_line(record: LogRecord) -> v1::HistoryLine {
    let LogRecord { time, flags, text } = record;
    let flags = flags.to_string();
    history_line(time, flags, &redact_log(text))
}

/// An echo.
pub(crate) fn echo_line(record: EchoRecord) -> v1::HistoryLine {
    let EchoRecord { time, text } = record;
    history_line(time, String::new(), &text)
}

fn history_line(time: Option<i64>, flags: String, line: &Text) -> v1::HistoryLine {
    let (text, text_raw) = text(line.as_bytes());
    v1::HistoryLine {
        daemon_time: time.map(daemon_timestamp),
        flags,
        text,
        text_raw,
    }
}

/// A state.
pub(crate) fn state(record: StateRecord) -> v1::HistoryState {
    let StateRecord {
        time,
        state,
        detail,
        tunnel_ipv4,
        remote_address,
        remote_port,
        local_address,
        local_port,
        tunnel_ipv6,
    } = record;
    v1::HistoryState {
        daemon_time: time.map(daemon_timestamp),
        state: lossy(state.as_bytes()),
        detail: lossy(&detail),
        virtual_address: lossy(&tunnel_ipv4),
        virtual_ipv6_address: lossy(&tunnel_ipv6),
        remote_address: lossy(&remote_address),
        remote_port: remote_port.unwrap_or_default().into(),
        local_address: lossy(&local_address),
        local_port: local_port.unwrap_or_default().into(),
    }
}

/// A server that a client may connect to.
pub(crate) fn remote_entry(entry: RemoteEntry) -> v1::RemoteEntry {
    let RemoteEntry {
        index,
        host,
        port,
        protocol,
        enabled,
    } = entry;
    v1::RemoteEntry {
        index,
        host: lossy(&host),
        port: lossy(&port),
        protocol: lossy(&protocol),
        enabled,
    }
}

/// A certificate of a token; `None` where there is none of that number.
pub(crate) fn pkcs11_id(entry: Pkcs11Entry) -> Option<v1::Pkcs11Id> {
    let Pkcs11Entry { index, id, blob } = entry;
    Some(v1::Pkcs11Id {
        index,
        id: lossy(&id?),
        certificate_base64: blob.as_ref().map(lossy).unwrap_or_default(),
    })
}

/// A line of a daemon's text.
pub(crate) fn text_line(line: &[u8]) -> v1::TextLine {
    let (text, text_raw) = text(line);
    v1::TextLine { text, text_raw }
}

/// The lines of a raw reply, secrets of its log lines left out.
pub(crate) fn raw_lines(reply: &RawReply) -> Vec<v1::TextLine> {
    let shown = |line: &[u8]| match line.splitn(3, |byte| *byte == b',').nth(2) {
        // `log N` gives rows `time,flags,text`.
        Some(text) => {
            let head = &line[..line.len() - text.len()];
            let text = redact_log(Text::copy_from(text));
            text_line(&[head, text.as_bytes()].concat())
        }
        None => text_line(line),
    };
    reply.lines().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A daemon logs what it was told, and callers may read its log.
    #[test]
    fn arguments_that_may_be_secrets_are_not_in_the_log() {
        let line = |text: &str| {
            log_line(LogRecord {
                time: Some(1),
                flags: openvpn_management::LogFlags::DEBUG,
                text: text.into(),
            })
            .text
        };
        assert_eq!(
            line("MANAGEMENT: CMD 'cr-response Y2FuYXJ5'"),
            "MANAGEMENT: CMD 'cr-response [...]'"
        );
        assert_eq!(line("MANAGEMENT: CMD 'pid'"), "MANAGEMENT: CMD 'pid'");
        assert_eq!(line("a, b"), "a, b");
        let raw = RawReply {
            text: "1,D,MANAGEMENT: CMD 'needstr a canary'\r\nEND\r\n".into(),
            truncated: false,
        };
        let lines: Vec<_> = raw_lines(&raw).into_iter().map(|line| line.text).collect();
        assert_eq!(lines, ["1,D,MANAGEMENT: CMD 'needstr [...]'", "END"]);
    }

    /// Requests are debug-printed by whoever looks for a mistake, and may end up in a log.
    #[test]
    fn debug_of_an_answer_shows_nothing_of_it() {
        let canary = || "canary".to_owned();
        let login = v1::CredentialsAnswer {
            username: canary(),
            password: canary(),
            response: canary(),
        };
        for secret in [
            In::Credentials(login),
            In::Password(v1::PasswordAnswer { password: canary() }),
            In::NeedStr(v1::NeedStrAnswer { value: canary() }),
            In::ChallengeResponse(v1::ChallengeResponseAnswer { response: canary() }),
        ] {
            let request = v1::AnswerQuestionRequest {
                answer: Some(secret),
                ..Default::default()
            };
            assert!(!format!("{request:?}").contains("canary"), "{request:?}");
        }
    }

    /// An answer that says nothing must not become one that says something.
    #[test]
    fn half_an_answer_is_none() {
        let none = In::Remote(v1::RemoteAnswer { action: None });
        let refused = In::Remote(v1::RemoteAnswer {
            action: Some(v1::remote_answer::Action::Accept(false)),
        });
        let no_port = In::Proxy(v1::ProxyAnswer {
            proxy: Some(v1::proxy_answer::Proxy::Http(v1::HostPort {
                host: "proxy".to_owned(),
                port: 0,
            })),
            no_cleartext_auth: false,
        });
        for half in [None, Some(none), Some(refused), Some(no_port)] {
            let status = answer(half).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
        }
    }
}
