//! What a daemon asks, and what it can be answered.

mod challenge;

use std::fmt;
use std::num::NonZeroU32;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use openvpn_management::{
    Command, NeedOkAnswer, Notification, PasswordNotification, ProxyAnswer, RemoteAnswer, Secret,
    Text,
};

pub(crate) use challenge::PendingChallenge;
pub use challenge::{Challenge, ChallengeText};

/// Characters of base64 in a line of a signature: what OpenVPN's own tools write.
const SIGNATURE_LINE_BYTES: usize = 64;

/// One question of a daemon, open or no longer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenQuestion {
    /// Tells it from every other question of the instance, the same one asked again included; from 1.
    pub id: u64,
    /// When we heard it.
    pub asked: SystemTime,
    /// What is asked.
    pub question: Question,
    /// Its answer is on its way: the same question heard now is another one.
    pub(crate) answered: bool,
}

/// What is asked. `Display` gives it in the daemon's words, for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// A password alone, such as that of a private key.
    Password {
        /// `Private Key`, `HTTP Proxy`, …
        kind: Text,
    },
    /// A username alone.
    Username {
        /// `Auth`, …
        kind: Text,
    },
    /// A username and a password.
    Credentials {
        /// `Auth`, `HTTP Proxy`, …
        kind: Text,
        /// What is asked beside them, or instead of the password.
        challenge: Option<Challenge>,
    },
    /// A yes or no, such as whether a token was inserted.
    NeedOk {
        /// What it is about.
        kind: Text,
        /// For a person.
        message: Text,
    },
    /// A word.
    NeedStr {
        /// What it is about.
        kind: Text,
        /// For a person.
        message: Text,
    },
    /// The certificate to present.
    Certificate {
        /// Which one, in the configuration's words.
        hint: Text,
    },
    /// A signature with the key that only the manager has.
    Signature {
        /// What to sign, base64.
        data: Text,
        /// How; `None` for daemons that do not say.
        algorithm: Option<Text>,
        /// Asked with `>RSA_SIGN`, and so answered with `rsa-sig`.
        rsa: bool,
    },
    /// Whether to connect to this server.
    Remote {
        /// Its host.
        host: Text,
        /// Its port.
        port: Text,
        /// Such as `udp4`.
        protocol: Text,
    },
    /// Through which proxy to connect.
    Proxy {
        /// `UDP` or `TCP`.
        protocol: Text,
        /// The server's host.
        host: Text,
    },
    /// A server's further question while a client is being authenticated.
    ChallengeText {
        /// What to answer.
        challenge: ChallengeText,
    },
    /// Something that this version does not know.
    Unknown,
}

/// An answer.
#[derive(Debug, Clone)]
pub enum Answer {
    /// To [`Question::Credentials`] and [`Question::Username`].
    Credentials {
        /// Who. May be empty where a dynamic challenge names the user.
        username: Text,
        /// The password.
        password: Secret,
        /// The answer to a static challenge.
        response: Secret,
    },
    /// To [`Question::Password`].
    Password(Secret),
    /// To [`Question::NeedOk`].
    NeedOk(NeedOkAnswer),
    /// To [`Question::NeedStr`].
    NeedStr(Text),
    /// To [`Question::Certificate`]: PEM.
    Certificate(Text),
    /// To [`Question::Signature`]: the signature's bytes.
    Signature(Vec<u8>),
    /// To [`Question::Remote`].
    Remote(RemoteAnswer),
    /// To [`Question::Proxy`].
    Proxy(ProxyAnswer),
    /// To a dynamic challenge and to [`Question::ChallengeText`].
    ChallengeResponse(Secret),
}

impl Question {
    /// The question that a notification is; `None` if it is none. `pending` is the challenge that came with the last
    /// refusal of such credentials.
    pub(crate) fn of(
        notification: &Notification,
        pending: Option<&PendingChallenge>,
    ) -> Option<Self> {
        Some(match notification {
            Notification::Password(password) => Self::of_password(password, pending)?,
            Notification::NeedOk { kind, message } => Self::NeedOk {
                kind: kind.clone(),
                message: message.clone(),
            },
            Notification::NeedStr { kind, message } => Self::NeedStr {
                kind: kind.clone(),
                message: message.clone(),
            },
            Notification::NeedCertificate { hint } => Self::Certificate { hint: hint.clone() },
            Notification::PkSign { data, algorithm } => Self::Signature {
                data: data.clone(),
                algorithm: algorithm.clone(),
                rsa: false,
            },
            Notification::RsaSign { data } => Self::Signature {
                data: data.clone(),
                algorithm: None,
                rsa: true,
            },
            Notification::Remote {
                host,
                port,
                protocol,
            } => Self::Remote {
                host: host.clone(),
                port: port.clone(),
                protocol: protocol.clone(),
            },
            Notification::Proxy {
                index: _,
                protocol,
                host,
            } => Self::Proxy {
                protocol: protocol.clone(),
                host: host.clone(),
            },
            Notification::Infomsg(text) => Self::ChallengeText {
                challenge: ChallengeText::of_infomsg(text)?,
            },
            _ => return None,
        })
    }

    fn of_password(
        password: &PasswordNotification,
        pending: Option<&PendingChallenge>,
    ) -> Option<Self> {
        Some(match password {
            PasswordNotification::NeedPassword { kind } => Self::Password { kind: kind.clone() },
            PasswordNotification::NeedUsername { kind } => Self::Username { kind: kind.clone() },
            PasswordNotification::NeedUsernamePassword { kind, challenge } => Self::Credentials {
                kind: kind.clone(),
                challenge: match (challenge, pending) {
                    // What the server asked last comes first: it will not take the password again.
                    (_, Some(pending)) if pending.kind == *kind => Some(pending.challenge.clone()),
                    (Some(challenge), _) => Some(Challenge::of_static(challenge)),
                    (None, _) => None,
                },
            },
            PasswordNotification::VerificationFailed { .. }
            | PasswordNotification::AuthToken(_) => return None,
            // The enum is open for what later versions ask.
            _ => Self::Unknown,
        })
    }

    /// Whether the answer is of the kind that is asked for.
    #[must_use]
    pub fn takes(&self, answer: &Answer) -> bool {
        match self {
            Self::Password { .. } => matches!(answer, Answer::Password(_)),
            Self::Username { .. } => matches!(answer, Answer::Credentials { .. }),
            Self::Credentials { challenge, .. } => match challenge {
                Some(Challenge::Dynamic { .. }) => {
                    matches!(
                        answer,
                        Answer::ChallengeResponse(_) | Answer::Credentials { .. }
                    )
                }
                Some(Challenge::Static { .. }) | None => {
                    matches!(answer, Answer::Credentials { .. })
                }
            },
            Self::NeedOk { .. } => matches!(answer, Answer::NeedOk(_)),
            Self::NeedStr { .. } => matches!(answer, Answer::NeedStr(_)),
            Self::Certificate { .. } => matches!(answer, Answer::Certificate(_)),
            Self::Signature { .. } => matches!(answer, Answer::Signature(_)),
            Self::Remote { .. } => matches!(answer, Answer::Remote(_)),
            Self::Proxy { .. } => matches!(answer, Answer::Proxy(_)),
            Self::ChallengeText { .. } => matches!(answer, Answer::ChallengeResponse(_)),
            Self::Unknown => false,
        }
    }

    /// The commands that give the answer, in order; empty if it is not of the kind that is asked for.
    pub(crate) fn commands(&self, answer: Answer) -> Vec<Command> {
        if !self.takes(&answer) {
            return Vec::new();
        }
        match (self, answer) {
            (Self::Password { kind }, Answer::Password(password)) => vec![Command::Password {
                kind: kind.clone(),
                password,
            }],
            (Self::Username { kind }, Answer::Credentials { username, .. }) => {
                vec![Command::Username {
                    kind: kind.clone(),
                    username,
                }]
            }
            (
                Self::Credentials { kind, challenge },
                Answer::Credentials {
                    username,
                    password,
                    response,
                },
            ) => {
                let password = match challenge {
                    Some(Challenge::Static {
                        concatenate: true, ..
                    }) => concat(&[password.expose(), response.expose()]),
                    Some(Challenge::Static { .. }) => concat(&[
                        b"SCRV1:",
                        BASE64.encode(password.expose()).as_bytes(),
                        b":",
                        BASE64.encode(response.expose()).as_bytes(),
                    ]),
                    Some(Challenge::Dynamic { .. }) | None => password,
                };
                login(kind, username, password)
            }
            (
                Self::Credentials {
                    kind,
                    challenge:
                        Some(Challenge::Dynamic {
                            username, state_id, ..
                        }),
                },
                Answer::ChallengeResponse(response),
            ) => {
                let parts: [&[u8]; 4] = [b"CRV1::", state_id.expose(), b"::", response.expose()];
                login(kind, username.clone(), concat(&parts))
            }
            (Self::ChallengeText { .. }, Answer::ChallengeResponse(response)) => {
                let encoded = BASE64.encode(response.expose());
                vec![Command::CrResponse(Secret::new(encoded))]
            }
            (Self::NeedOk { kind, .. }, Answer::NeedOk(answer)) => vec![Command::NeedOk {
                kind: kind.clone(),
                answer,
            }],
            (Self::NeedStr { kind, .. }, Answer::NeedStr(value)) => vec![Command::NeedStr {
                kind: kind.clone(),
                value,
            }],
            (Self::Certificate { .. }, Answer::Certificate(pem)) => {
                let lines = pem.as_bytes().split(|byte| *byte == b'\n');
                let lines = lines
                    .map(|line| Text::copy_from(line.trim_ascii_end()))
                    .filter(|line| !line.is_empty());
                vec![Command::Certificate {
                    lines: lines.collect(),
                }]
            }
            (Self::Signature { rsa, .. }, Answer::Signature(signature)) => {
                let encoded = BASE64.encode(signature);
                let lines = encoded.as_bytes().chunks(SIGNATURE_LINE_BYTES);
                let lines = lines.map(Text::copy_from).collect();
                vec![if *rsa {
                    Command::RsaSig { lines }
                } else {
                    Command::PkSig { lines }
                }]
            }
            (Self::Remote { .. }, Answer::Remote(answer)) => vec![Command::Remote(answer)],
            (Self::Proxy { .. }, Answer::Proxy(answer)) => vec![Command::Proxy(answer)],
            // Asked above.
            _ => Vec::new(),
        }
    }

    /// Bytes of text it holds.
    pub(crate) fn heap_bytes(&self) -> usize {
        match self {
            Self::Password { kind } | Self::Username { kind } => kind.len(),
            Self::Credentials { kind, challenge } => {
                let challenge = challenge.as_ref().map_or(0, |challenge| match challenge {
                    Challenge::Static { challenge, .. } => challenge.text.len(),
                    Challenge::Dynamic {
                        challenge,
                        username,
                        state_id,
                    } => challenge.text.len() + username.len() + state_id.expose().len(),
                });
                kind.len() + challenge
            }
            Self::NeedOk { kind, message } | Self::NeedStr { kind, message } => {
                kind.len() + message.len()
            }
            Self::Certificate { hint } => hint.len(),
            Self::Signature {
                data, algorithm, ..
            } => data.len() + algorithm.as_ref().map_or(0, Text::len),
            Self::Remote {
                host,
                port,
                protocol,
            } => host.len() + port.len() + protocol.len(),
            Self::Proxy { protocol, host } => protocol.len() + host.len(),
            Self::ChallengeText { challenge } => challenge.text.len(),
            Self::Unknown => 0,
        }
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { kind } => write!(f, "Need '{kind}' password"),
            Self::Username { kind } => write!(f, "Need '{kind}' username"),
            Self::Credentials { kind, challenge } => {
                write!(f, "Need '{kind}' username/password")?;
                match challenge {
                    Some(Challenge::Static { challenge, .. }) => write!(f, ": {}", challenge.text),
                    Some(Challenge::Dynamic { challenge, .. }) => {
                        write!(f, " to answer: {}", challenge.text)
                    }
                    None => Ok(()),
                }
            }
            Self::NeedOk { kind, message } => write!(f, "Need '{kind}' confirmation: {message}"),
            Self::NeedStr { kind, message } => write!(f, "Need '{kind}' string: {message}"),
            Self::Certificate { hint } => write!(f, "Need certificate: {hint}"),
            Self::Signature { .. } => f.write_str("Need a signature"),
            Self::Remote {
                host,
                port,
                protocol,
            } => write!(f, "Remote {host},{port},{protocol}?"),
            Self::Proxy { protocol, host } => write!(f, "Proxy for {protocol},{host}?"),
            Self::ChallengeText { challenge } => write!(f, "Challenge: {}", challenge.text),
            Self::Unknown => f.write_str("Need something this version does not know"),
        }
    }
}

fn login(kind: &Text, username: Text, password: Secret) -> Vec<Command> {
    vec![
        Command::Username {
            kind: kind.clone(),
            username,
        },
        Command::Password {
            kind: kind.clone(),
            password,
        },
    ]
}

fn concat(parts: &[&[u8]]) -> Secret {
    Secret::new(parts.concat())
}

/// `remote SKIP`, or the one that many further on.
#[must_use]
pub fn remote_skip(count: u32) -> RemoteAnswer {
    RemoteAnswer::Skip(NonZeroU32::new(count).filter(|count| count.get() > 1))
}

#[cfg(test)]
mod tests;
