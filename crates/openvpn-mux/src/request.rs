//! What a line of a tool asks for: decided on what OpenVPN's lexer makes of it.

use openvpn_management::daemon::{LexError, lex};
use openvpn_management::{Cid, Command, Kid, RawCommand, RawCommandError};

use crate::policy::{Policy, Right, Verb};

/// Most lines that `test` gives; it is answered here, a daemon would do nothing else meanwhile.
const TEST_LINES_MAX: i64 = 100_000;
/// The least level at which OpenVPN's log stream, which the gateway reads, feeds on itself until no command is read.
const VERB_REFUSED_MIN: i64 = 9;
/// The highest level OpenVPN takes; what is above it refuses itself.
const VERB_MAX: i64 = 15;

/// What is to be done about one line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Nothing: the line is empty, or a comment.
    Nothing,
    /// This is the answer, without its line end.
    Answer(Vec<u8>),
    /// It is not for this tool, or for none; this says why.
    Refuse(Vec<u8>),
    /// The tool leaves.
    Exit,
    /// The daemon is asked; whoever asks the same meanwhile shares the answer.
    Read(Command),
    /// The daemon is changed.
    Change {
        command: Command,
        /// Success means that the open question is answered.
        answers_question: bool,
        /// Only one tool may decide who is let in.
        decides: bool,
    },
    /// Switches and histories of the log, the state or the echo, in this order.
    History(Topic, Vec<Word>),
    /// How much of the environment the tool sees.
    EnvFilter(i64),
    /// How often the tool is told of traffic, in seconds; 0 is never.
    Bytecount(i64),
    /// That many lines of no meaning.
    Test(i64),
    /// What follows, up to `END`, belongs to it.
    Block(Block),
}

/// A block, and whether the tool may send it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Block {
    ClientAuth {
        cid: Cid,
        kid: Kid,
    },
    ClientPf {
        cid: Cid,
    },
    /// It is swallowed, and this is the answer.
    Refused(Vec<u8>),
}

/// What has a history and can be streamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Topic {
    State,
    Log,
    Echo,
}

impl Topic {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Log => "log",
            Self::Echo => "echo",
        }
    }
}

/// One word behind `state`, `log` or `echo`; each is answered by itself.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Word {
    On,
    Off,
    /// A number, `all`, or what the daemon refuses.
    Rows(Command),
}

/// What decides about a line besides the line.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Circumstances<'a> {
    pub(crate) policy: &'a Policy,
    /// What the daemon says it is: `OpenVPN 2.6.14 …`.
    pub(crate) daemon_version: &'a [u8],
}

impl Circumstances<'_> {
    /// Whether the daemon is of this version or a later one; an unknown one is not.
    fn is_at_least(&self, major: u64, minor: u64, patch: u64) -> bool {
        let Some(rest) = self.daemon_version.strip_prefix(b"OpenVPN ") else {
            return false;
        };
        let mut numbers = rest
            .split(|byte| !byte.is_ascii_digit())
            .map(|digits| u64::try_from(atoi(digits)).unwrap_or(0));
        let mut number = || numbers.next().unwrap_or(0);
        (number(), number(), number()) >= (major, minor, patch)
    }

    fn unknown(&self, name: &[u8]) -> Vec<u8> {
        if self.is_at_least(2, 7, 0) {
            let end = b"], enter 'help' for more options";
            return [b"ERROR: unknown command [", name, end].concat();
        }
        b"ERROR: unknown command, enter 'help' for more options".to_vec()
    }
}

impl Request {
    /// What a line, without its LF, asks for.
    pub(crate) fn of(line: &[u8], circumstances: Circumstances<'_>) -> Self {
        let parameters = match lex(line) {
            Ok(parameters) => parameters,
            Err(error) => return Self::Answer(lex_refusal(line, error)),
        };
        let Some((name, arguments)) = parameters.split_first() else {
            return Self::Nothing;
        };
        let Some(verb) = Verb::find(name) else {
            return Self::Answer(circumstances.unknown(name));
        };
        let meant = Self::meant(verb, &parameters, circumstances)
            .unwrap_or_else(|error| Self::Refuse(format!("ERROR: {error}").into_bytes()));
        if circumstances.policy.allows(verb, arguments.len()) {
            return meant;
        }
        let (name, policy) = (verb.name, circumstances.policy);
        let refusal =
            format!("ERROR: the '{name}' command is not allowed on this socket ({policy})")
                .into_bytes();
        match meant {
            // OpenVPN would take what follows as a block: so do we, and run none of it.
            Self::Block(_) => Self::Block(Block::Refused(refusal)),
            _ => Self::Refuse(refusal),
        }
    }

    /// What it asks for, allowed or not.
    fn meant(
        verb: &Verb,
        parameters: &[Vec<u8>],
        circumstances: Circumstances<'_>,
    ) -> Result<Self, RawCommandError> {
        let arguments = &parameters[1..];
        let argument = |index: usize| arguments.get(index).map(Vec::as_slice);
        let too_few = |count: usize| {
            let plural = if count == 1 { "" } else { "s" };
            let name = verb.name;
            let text = format!("ERROR: the '{name}' command requires {count} parameter{plural}");
            Self::Answer(text.into_bytes())
        };
        Ok(match verb.name {
            "exit" | "quit" => Self::Exit,
            "state" => Self::history(Topic::State, parameters)?,
            "log" => Self::history(Topic::Log, parameters)?,
            "echo" => Self::history(Topic::Echo, parameters)?,
            "env-filter" => Self::EnvFilter(argument(0).map_or(0, atoi)),
            "bytecount" => match argument(0) {
                Some(seconds) => Self::Bytecount(atoi(seconds)),
                None => too_few(1),
            },
            "test" => match argument(0).map(atoi) {
                Some(lines) if lines > TEST_LINES_MAX => Self::Refuse(
                    format!("ERROR: test: at most {TEST_LINES_MAX} lines").into_bytes(),
                ),
                Some(lines) => Self::Test(lines),
                None => too_few(1),
            },
            "version" => match argument(0).map(atoi) {
                // What a tool can read is its own business; the daemon knows one manager only.
                Some(version) if version >= 4 && circumstances.is_at_least(2, 7, 1) => Self::Answer(
                    format!("SUCCESS: Management client version set to {version}").into_bytes(),
                ),
                Some(_) if circumstances.is_at_least(2, 5, 0) => Self::Nothing,
                // Up to 2.4 OpenVPN takes no notice of the number.
                _ => Self::Read(raw(&parameters[..1])?),
            },
            "pid" => Self::Read(Command::Pid),
            "load-stats" => Self::Read(Command::LoadStats),
            "client-auth" => match (argument(0), argument(1)) {
                (Some(cid), Some(kid)) => client_auth(cid, kid),
                _ => too_few(2),
            },
            "client-pf" if circumstances.is_at_least(2, 6, 0) => {
                Self::Answer(circumstances.unknown(b"client-pf"))
            }
            "client-pf" => match argument(0).map(scan_number) {
                Some(Some(cid)) => Self::Block(Block::ClientPf { cid: Cid(cid) }),
                Some(None) => Self::Answer(b"ERROR: cannot parse CID".to_vec()),
                None => too_few(1),
            },
            "certificate" | "pk-sig" | "rsa-sig" => Self::Answer(
                format!("ERROR: The {} command is not currently available", verb.name).into_bytes(),
            ),
            "password" | "username" if arguments.len() < 2 => too_few(2),
            "verb" if argument(0).map(atoi).is_some_and(is_verb_refused) => Self::Refuse(
                b"ERROR: verb: a level from 9 on is refused here: OpenVPN would never read a command again".to_vec(),
            ),
            _ if verb.right(arguments.len()) == Right::Read => Self::Read(raw(parameters)?),
            name => Self::Change {
                command: raw(parameters)?,
                answers_question: is_answer(name, argument(0)),
                decides: matches!(
                    name,
                    "client-auth-nt" | "client-deny" | "client-pending-auth"
                ),
            },
        })
    }

    fn history(topic: Topic, parameters: &[Vec<u8>]) -> Result<Self, RawCommandError> {
        // `state` alone means `state 1`; the others want a word, which the daemon says.
        if parameters.len() == 1 {
            return Ok(Self::Read(raw(parameters)?));
        }
        // OpenVPN looks at two words.
        let words = parameters[1..].iter().take(2).map(|word| match &word[..] {
            b"on" => Ok(Word::On),
            b"off" => Ok(Word::Off),
            _ => Ok(Word::Rows(raw(&[parameters[0].clone(), word.clone()])?)),
        });
        let words: Result<Vec<Word>, RawCommandError> = words.collect();
        Ok(Self::History(topic, words?))
    }
}

fn raw(parameters: &[Vec<u8>]) -> Result<Command, RawCommandError> {
    RawCommand::from_parameters(parameters.to_vec()).map(Command::Raw)
}

fn client_auth(cid: &[u8], kid: &[u8]) -> Request {
    let Some(cid) = scan_number(cid) else {
        return Request::Answer(b"ERROR: cannot parse CID".to_vec());
    };
    // Read with `%u`: what is above 32 bits is cut there.
    match scan_number(kid) {
        Some(kid) => Request::Block(Block::ClientAuth {
            cid: Cid(cid),
            kid: Kid(kid & u64::from(u32::MAX)),
        }),
        None => Request::Answer(b"ERROR: cannot parse KID".to_vec()),
    }
}

/// Whether success means that the question that was open is answered.
fn is_answer(name: &str, argument: Option<&[u8]>) -> bool {
    match name {
        "hold" => argument == Some(b"release"),
        "password" | "needok" | "needstr" | "remote" | "proxy" => true,
        _ => false,
    }
}

fn is_verb_refused(level: i64) -> bool {
    (VERB_REFUSED_MIN..=VERB_MAX).contains(&level)
}

/// C's `atoi`: blanks, a sign, digits; whatever else is there does not matter.
fn atoi(text: &[u8]) -> i64 {
    let (negative, digits) = signed_digits(text);
    let number = digits.iter().fold(0_i64, |number, digit| {
        number
            .saturating_mul(10)
            .saturating_add(i64::from(digit - b'0'))
    });
    if negative { -number } else { number }
}

/// C's `sscanf` with `%lu`; `None` where it finds no number.
fn scan_number(text: &[u8]) -> Option<u64> {
    let (negative, digits) = signed_digits(text);
    if digits.is_empty() {
        return None;
    }
    let number = digits.iter().fold(0_u64, |number, digit| {
        number
            .saturating_mul(10)
            .saturating_add(u64::from(digit - b'0'))
    });
    Some(if negative {
        number.wrapping_neg()
    } else {
        number
    })
}

fn signed_digits(text: &[u8]) -> (bool, &[u8]) {
    let text = text.trim_ascii_start();
    let (negative, rest) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    let end = rest.iter().position(|byte| !byte.is_ascii_digit());
    (negative, &rest[..end.unwrap_or(rest.len())])
}

/// What OpenVPN answers to a line that its lexer refuses.
fn lex_refusal(line: &[u8], error: LexError) -> Vec<u8> {
    let mut text = format!("ERROR: {error}").into_bytes();
    match error {
        LexError::ParameterTooLong => {
            text.extend_from_slice(b": ");
            text.extend_from_slice(&too_long_parameter(line));
        }
        LexError::BadBackslash => text.extend_from_slice(
            b": remember that backslashes are treated as shell-escapes and if you need to pass backslash characters \
              as part of a Windows filename, you should use double backslashes such as \"c:\\\\openvpn\\\\static.key\"",
        ),
        LexError::NoClosingQuote | LexError::NoClosingSingleQuote | LexError::TrailingBackslash => {}
    }
    text
}

/// The beginning of a parameter that is too long, as far as OpenVPN shows it.
fn too_long_parameter(line: &[u8]) -> Vec<u8> {
    const SHOWN: usize = openvpn_management::daemon::PARAMETER_BYTES_MAX - 1;
    // The longest beginning of the line that is not yet too long ends with that parameter, perhaps inside quotes.
    let is_too_long = |end: &usize| lex(&line[..*end]) == Err(LexError::ParameterTooLong);
    let ends: Vec<usize> = (0..=line.len()).collect();
    let end = ends
        .partition_point(|end| !is_too_long(end))
        .saturating_sub(1);
    let closings: [&[u8]; 3] = [b"", b"\"", b"'"];
    let lexed = closings
        .iter()
        .find_map(|closing| lex(&[&line[..end], closing].concat()).ok());
    let mut parameter = lexed.and_then(|mut lexed| lexed.pop()).unwrap_or_default();
    parameter.truncate(SHOWN);
    parameter
}

#[cfg(test)]
mod tests;
