//! What is asked of a person beside a password.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use openvpn_management::{DynamicChallenge, PasswordNotification, Secret, StaticChallenge, Text};

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

/// A dynamic challenge that waits for the daemon to ask for the credentials again.
#[derive(Debug, Clone)]
pub(crate) struct PendingChallenge {
    pub(super) kind: Text,
    pub(super) challenge: Challenge,
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
    pub(super) fn of_static(challenge: &StaticChallenge) -> Self {
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
    pub(super) fn of_infomsg(text: &Text) -> Option<Self> {
        let rest = text.as_bytes().strip_prefix(b"CR_TEXT:")?;
        let colon = rest.iter().position(|byte| *byte == b':')?;
        let (flags, question) = (&rest[..colon], &rest[colon + 1..]);
        Some(Self::with_flags(flags, Text::copy_from(question)))
    }
}
