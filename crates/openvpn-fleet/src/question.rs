//! What a daemon asks, and what it can be answered.

use std::fmt;
use std::num::NonZeroU32;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use openvpn_management::{
    Command, DynamicChallenge, NeedOkAnswer, Notification, PasswordNotification, ProxyAnswer,
    RemoteAnswer, Secret, StaticChallenge, Text,
};

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

/// What is asked together with credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// Of the client's configuration: answered together with the password.
    Static {
        /// What to answer.
        challenge: ChallengeText,
        /// Password and answer are sent as one word.
        concatenate: bool,
    },
    /// Of the server, after a first try: answered instead of the password.
    Dynamic {
        /// What to answer.
        challenge: ChallengeText,
        /// The user it is for; empty when the server's words were not readable.
        username: Text,
        /// Given back with the answer. It stands for the first login, so it is not shown.
        state_id: Secret,
    },
}

/// A question for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChallengeText {
    /// The question.
    pub text: Text,
    /// The answer may be shown while it is typed.
    pub echo: bool,
    /// An answer is wanted; otherwise the text is only to be shown.
    pub response_wanted: bool,
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

/// A dynamic challenge that waits for the daemon to ask for the credentials again.
#[derive(Debug, Clone)]
pub(crate) struct PendingChallenge {
    kind: Text,
    challenge: Challenge,
}

impl PendingChallenge {
    /// The challenge that a refusal carries.
    pub(crate) fn of(notification: &PasswordNotification) -> Option<Self> {
        let PasswordNotification::VerificationFailed {
            kind,
            challenge: Some(challenge),
            ..
        } = notification
        else {
            return None;
        };
        Some(Self {
            kind: kind.clone(),
            challenge: Challenge::of_dynamic(challenge),
        })
    }
}

impl Challenge {
    fn of_static(challenge: &StaticChallenge) -> Self {
        let StaticChallenge {
            echo,
            concatenate,
            text,
        } = challenge;
        Self::Static {
            challenge: ChallengeText {
                text: text.clone(),
                echo: *echo,
                response_wanted: true,
            },
            concatenate: *concatenate,
        }
    }

    fn of_dynamic(challenge: &DynamicChallenge) -> Self {
        let DynamicChallenge {
            flags,
            state_id,
            username_base64,
            text,
        } = challenge;
        let username = BASE64
            .decode(username_base64.as_bytes())
            .unwrap_or_default();
        Self::Dynamic {
            challenge: ChallengeText::with_flags(flags.as_bytes(), text.clone()),
            username: Text::copy_from(&username),
            state_id: Secret::new(state_id.clone().into_bytes()),
        }
    }
}

impl ChallengeText {
    fn with_flags(flags: &[u8], text: Text) -> Self {
        let has = |flag: &[u8]| flags.split(|byte| *byte == b',').any(|one| one == flag);
        Self {
            text,
            echo: has(b"E"),
            response_wanted: has(b"R"),
        }
    }

    /// `CR_TEXT:{flags}:{text}`; other messages, such as links to log in by, are none.
    fn of_infomsg(text: &Text) -> Option<Self> {
        let rest = text.as_bytes().strip_prefix(b"CR_TEXT:")?;
        let colon = rest.iter().position(|byte| *byte == b':')?;
        let (flags, question) = (&rest[..colon], &rest[colon + 1..]);
        Some(Self::with_flags(flags, Text::copy_from(question)))
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
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::new(text.as_bytes().to_vec())
    }

    fn static_challenge(concatenate: bool) -> Question {
        Question::Credentials {
            kind: "Auth".into(),
            challenge: Some(Challenge::of_static(&StaticChallenge {
                echo: true,
                concatenate,
                text: "Enter PIN, please".into(),
            })),
        }
    }

    fn pending() -> PendingChallenge {
        PendingChallenge::of(&PasswordNotification::VerificationFailed {
            kind: "Auth".into(),
            reason: None,
            challenge: Some(DynamicChallenge {
                flags: "R,E".into(),
                state_id: "state42".into(),
                username_base64: "dXMgZXI=".into(),
                text: "Second factor".into(),
            }),
        })
        .unwrap()
    }

    fn password_of(commands: &[Command]) -> &[u8] {
        match commands.last() {
            Some(Command::Password { password, .. }) => password.expose(),
            other => panic!("{other:?}"),
        }
    }

    /// A server that gets another form than the one OpenVPN's notes prescribe refuses the login.
    #[test]
    fn challenges_are_answered_in_their_forms() {
        let login = || Answer::Credentials {
            username: "us er".into(),
            password: secret("pw"),
            response: secret("1234"),
        };
        let commands = static_challenge(false).commands(login());
        assert_eq!(password_of(&commands), b"SCRV1:cHc=:MTIzNA==");
        let commands = static_challenge(true).commands(login());
        assert_eq!(password_of(&commands), b"pw1234");

        let asked = Notification::Password(PasswordNotification::NeedUsernamePassword {
            kind: "Auth".into(),
            challenge: None,
        });
        let question = Question::of(&asked, Some(&pending())).unwrap();
        let commands = question.commands(Answer::ChallengeResponse(secret("8675309")));
        assert_eq!(password_of(&commands), b"CRV1::state42::8675309");
        assert!(
            matches!(&commands[0], Command::Username { username, .. } if *username == "us er"),
            "{commands:?}"
        );
    }

    /// An answer of another kind would be a command that the daemon does not expect.
    #[test]
    fn an_answer_of_another_kind_is_no_command() {
        let question = Question::Password {
            kind: "Private Key".into(),
        };
        assert!(
            question
                .commands(Answer::NeedOk(NeedOkAnswer::Ok))
                .is_empty()
        );
        assert!(
            static_challenge(false)
                .commands(Answer::ChallengeResponse(secret("1")))
                .is_empty()
        );
    }

    /// The state of a challenge stands for a login that the server took.
    #[test]
    fn a_challenge_does_not_show_its_state() {
        let question = Question::Credentials {
            kind: "Auth".into(),
            challenge: Some(pending().challenge),
        };
        let shown = format!("{question:?} {question}");
        assert!(!shown.contains("state42"), "{shown}");
    }

    /// Only a challenge is a question: a link to log in by is not shown at all.
    #[test]
    fn of_the_messages_only_challenges_are_questions() {
        let message = |text: &str| Notification::Infomsg(text.into());
        assert!(Question::of(&message("WEB_AUTH::https://x"), None).is_none());
        let question = Question::of(&message("CR_TEXT:R:PIN: now?"), None);
        let expected = ChallengeText {
            text: "PIN: now?".into(),
            echo: false,
            response_wanted: true,
        };
        assert_eq!(
            question,
            Some(Question::ChallengeText {
                challenge: expected
            })
        );
    }
}
