//! A command as somebody typed it.

use crate::daemon::{LexError, PARAMETERS_MAX, lex};
use crate::text::Secret;

use super::encode::EncodeError;

/// Longest parameter OpenVPN takes.
const PARAMETER_BYTES_MAX: usize = crate::daemon::PARAMETER_BYTES_MAX;

/// A command line of somebody else's, taken apart by OpenVPN's own lexer.
///
/// What is sent is made of these parameters, not of the line, so that what was judged is what is run. `Debug` says
/// nothing of them: passwords are typed here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawCommand {
    parameters: Vec<Secret>,
}

/// Why a line is no [`RawCommand`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RawCommandError {
    /// OpenVPN's lexer refuses it.
    #[error(transparent)]
    Lex(#[from] LexError),
    /// It has no command: it is empty, or a comment.
    #[error("there is no command in it")]
    Empty,
    /// Its answer could not be told from others, or it would change what the session lives by.
    #[error("`{word}` cannot be sent as a raw line: {why}")]
    NotRaw {
        /// Its first word.
        word: &'static str,
        /// Why.
        why: &'static str,
    },
    /// A parameter has a byte that OpenVPN deletes, or is longer than it takes.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// First words that no raw line may have.
const REFUSED: [(&str, &str); 12] = [
    ("exit", ENDS),
    ("quit", ENDS),
    ("client-auth", BLOCK),
    ("client-pf", BLOCK),
    ("certificate", BLOCK),
    ("pk-sig", BLOCK),
    ("rsa-sig", BLOCK),
    ("load-stats", TYPED),
    ("pid", TYPED),
    ("bytecount", SESSION),
    ("env-filter", SESSION),
    ("test", FLOOD),
];

const ENDS: &str = "it ends the session";
const BLOCK: &str = "it begins a block";
const TYPED: &str = "there is a typed command";
const SESSION: &str = "it sets what the session itself needs";
const FLOOD: &str = "the daemon does nothing else meanwhile";

impl RawCommand {
    /// The command of a line without its LF.
    ///
    /// # Errors
    /// See [`RawCommandError`].
    pub fn parse(line: &[u8]) -> Result<Self, RawCommandError> {
        Self::from_parameters(lex(line)?)
    }

    /// The command with these parameters, its name first.
    ///
    /// # Errors
    /// See [`RawCommandError`].
    pub fn from_parameters(parameters: Vec<Vec<u8>>) -> Result<Self, RawCommandError> {
        let Some(name) = parameters.first() else {
            return Err(RawCommandError::Empty);
        };
        let refused = REFUSED.iter().find(|(word, _)| word.as_bytes() == name);
        if let Some((word, why)) = refused {
            return Err(RawCommandError::NotRaw { word, why });
        }
        let word = |index: usize| parameters.get(index).map_or(&b""[..], Vec::as_slice);
        let is_switch = |word: &[u8]| matches!(word, b"on" | b"off");
        for history in ["state", "log", "echo"] {
            if name == history.as_bytes() && (is_switch(word(1)) || is_switch(word(2))) {
                return Err(RawCommandError::NotRaw {
                    word: history,
                    why: SESSION,
                });
            }
        }
        // From 2.7.2, once a manager has said `version 5`: a password in a block.
        if name == b"password" && parameters.len() < 3 {
            return Err(RawCommandError::NotRaw {
                word: "password",
                why: BLOCK,
            });
        }
        for parameter in &parameters {
            super::encode::refuse_control_bytes("a parameter", parameter)?;
            if parameter.len() > PARAMETER_BYTES_MAX {
                return Err(EncodeError::ParameterTooLong {
                    parameter: "a parameter",
                    length: parameter.len(),
                    max: PARAMETER_BYTES_MAX,
                }
                .into());
            }
        }
        let parameters = parameters.into_iter().take(PARAMETERS_MAX);
        Ok(Self {
            parameters: parameters.map(Secret::new).collect(),
        })
    }

    /// Its name and arguments. They may be secrets.
    pub fn parameters(&self) -> impl Iterator<Item = &[u8]> {
        self.parameters.iter().map(Secret::expose)
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::command::Command;

    fn encoded(line: &[u8]) -> Vec<u8> {
        let mut out = BytesMut::new();
        let command = RawCommand::parse(line).unwrap();
        Command::Raw(command).encode(&mut out).unwrap();
        out.to_vec()
    }

    /// What OpenVPN runs must be what was judged: the same parameters, however the line was typed.
    #[test]
    fn the_line_sent_has_the_parameters_of_the_line_typed() {
        for line in [
            &b"status 2"[..],
            b"  \"status\"  '2' # comment",
            b"kill \"a b\"",
            b"kill 'a\\b'",
            b"kill a\\\"b",
            b"kill \"\"",
            b"kill #1",
            b"kill \"#1\"",
            b"kill ';'",
            b"kill \xff\xfe",
            b"kill 'it''s'",
            b"a b c d e f g h i j k l m n o p q r s",
        ] {
            let sent = encoded(line);
            let sent = sent.strip_suffix(b"\n").unwrap();
            assert_eq!(
                lex(sent).unwrap(),
                lex(line).unwrap(),
                "{}",
                line.escape_ascii()
            );
        }
        // The daemon logs what it is sent: plain words stay plain.
        assert_eq!(encoded(b"'status' \"2\""), b"status 2\n");
    }

    /// A block would swallow whatever is sent behind it, and a switch would blind the session.
    #[test]
    fn what_the_session_lives_by_is_no_raw_command() {
        for line in [
            &b"exit"[..],
            b"\"quit\" now",
            b"client-auth 1 2",
            b"password Auth",
            b"pk-sig",
            b"state on",
            b"log all off",
            b"'echo' 'on' all",
            b"bytecount 0",
            b"env-filter 3",
            b"pid",
        ] {
            let error = RawCommand::parse(line).unwrap_err();
            assert!(
                matches!(error, RawCommandError::NotRaw { .. }),
                "{}",
                line.escape_ascii()
            );
        }
        assert_eq!(RawCommand::parse(b" # pid"), Err(RawCommandError::Empty));
        assert!(matches!(
            RawCommand::parse(b"kill \"a"),
            Err(RawCommandError::Lex(_))
        ));
        let long = [b"kill ".to_vec(), vec![b'x'; 257]].concat();
        assert!(RawCommand::parse(&long).is_err());
    }

    /// Passwords are typed in raw lines too.
    #[test]
    fn debug_tells_nothing() {
        let command = RawCommand::parse(b"password Auth canary-1").unwrap();
        assert!(!format!("{command:?}").contains("canary"));
    }
}
