//! OpenVPN's lexer for command lines, the same as for its configuration file.

/// Most parameters of a line, the command included; the rest of the line is ignored.
pub const PARAMETERS_MAX: usize = 16;
/// Longest parameter.
pub const PARAMETER_BYTES_MAX: usize = 256;

/// Why a line is no command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LexError {
    /// A parameter is longer than [`PARAMETER_BYTES_MAX`].
    #[error("Options error: Parameter at TCP:0 is too long ({PARAMETER_BYTES_MAX} chars max)")]
    ParameterTooLong,
    /// A backslash before something that needs none.
    #[error("Options warning: Bad backslash ('\\') usage in TCP:0")]
    BadBackslash,
    /// `"` without its other half.
    #[error("Options error: No closing quotation (\") in TCP:0")]
    NoClosingQuote,
    /// `'` without its other half.
    #[error("Options error: No closing single quotation (') in TCP:0")]
    NoClosingSingleQuote,
    /// The line ends behind a backslash.
    #[error("Options error: Residual parse state (2) in TCP:0")]
    TrailingBackslash,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Between parameters.
    Initial,
    Quoted,
    SingleQuoted,
    Unquoted,
}

/// The parameters of a line, the command first; none for an empty line or a comment.
///
/// # Errors
/// See [`LexError`]; OpenVPN answers with its text behind `ERROR: ` and runs nothing.
pub fn lex(line: &[u8]) -> Result<Vec<Vec<u8>>, LexError> {
    let mut parameters = Vec::new();
    let mut parameter = Vec::new();
    let mut state = State::Initial;
    let mut backslash = false;

    // The NUL that ends OpenVPN's string takes part: it is a space like any other.
    for byte in line.iter().copied().chain([0]) {
        if byte == b'\\' && !backslash && state != State::SingleQuoted {
            backslash = true;
            continue;
        }
        let mut out = None;
        let mut done = false;
        match state {
            State::Initial => match byte {
                _ if is_space(byte) => {}
                // A comment only starts where a parameter could; a backslash does not change that.
                b';' | b'#' => break,
                b'"' if !backslash => state = State::Quoted,
                b'\'' if !backslash => state = State::SingleQuoted,
                _ => {
                    out = Some(byte);
                    state = State::Unquoted;
                }
            },
            State::Unquoted => {
                if !backslash && is_space(byte) {
                    done = true;
                } else {
                    out = Some(byte);
                }
            }
            State::Quoted => {
                if !backslash && byte == b'"' {
                    done = true;
                } else {
                    out = Some(byte);
                }
            }
            State::SingleQuoted => {
                if byte == b'\'' {
                    done = true;
                } else {
                    out = Some(byte);
                }
            }
        }
        if done {
            parameters.push(std::mem::take(&mut parameter));
            state = State::Initial;
        }
        // A NUL is no output: at the line's end it leaves an open parameter open.
        if let Some(out) = out.filter(|out| *out != 0) {
            if backslash && !(out == b'\\' || out == b'"' || is_space(out)) {
                return Err(LexError::BadBackslash);
            }
            if parameter.len() >= PARAMETER_BYTES_MAX {
                return Err(LexError::ParameterTooLong);
            }
            parameter.push(out);
        }
        backslash = false;
        if parameters.len() >= PARAMETERS_MAX {
            break;
        }
    }

    match state {
        State::Initial => Ok(parameters),
        State::Quoted => Err(LexError::NoClosingQuote),
        State::SingleQuoted => Err(LexError::NoClosingSingleQuote),
        State::Unquoted => Err(LexError::TrailingBackslash),
    }
}

/// C's `isspace` in the POSIX locale, and NUL.
fn is_space(byte: u8) -> bool {
    matches!(byte, 0 | b' ' | b'\t'..=b'\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The oracle of the encoder's tests is worth as much as it agrees with OpenVPN: these are what 2.6.14 did.
    #[test]
    fn lines_lex_as_openvpn_lexed_them() {
        let lexed: &[(&[u8], &[&[u8]])] = &[
            (b"", &[]),
            (b"   ", &[]),
            (b"# a comment", &[]),
            (b"; another comment", &[]),
            (b"pid # trailing", &[b"pid"]),
            (
                b"pid extra args here",
                &[b"pid", b"extra", b"args", b"here"],
            ),
            (b"kill \"\"", &[b"kill", b""]),
            (b"\"pid\"", &[b"pid"]),
            (b"'pid'", &[b"pid"]),
            (b"kill a\\\"b", &[b"kill", b"a\"b"]),
            (b"kill \"a b\"c", &[b"kill", b"a b", b"c"]),
            (b"kill 'a\\b'", &[b"kill", b"a\\b"]),
            (b"kill a#b", &[b"kill", b"a#b"]),
            (b"kill \"#1\"", &[b"kill", b"#1"]),
            (b"kill \\#1", &[b"kill"]),
            (b"kill a\\ b", &[b"kill", b"a b"]),
            (
                b"a b c d e f g h i j k l m n o p q",
                &[
                    b"a", b"b", b"c", b"d", b"e", b"f", b"g", b"h", b"i", b"j", b"k", b"l", b"m",
                    b"n", b"o", b"p",
                ],
            ),
        ];
        for (line, parameters) in lexed {
            assert_eq!(lex(line).unwrap(), *parameters, "{}", line.escape_ascii());
        }
        let refused: &[(&[u8], LexError)] = &[
            (b"p\\id", LexError::BadBackslash),
            (b"kill C:\\temp", LexError::BadBackslash),
            (b"kill \"unterminated", LexError::NoClosingQuote),
            (b"kill 'unterminated", LexError::NoClosingSingleQuote),
            (b"kill trailing\\", LexError::TrailingBackslash),
        ];
        for (line, error) in refused {
            assert_eq!(lex(line).unwrap_err(), *error, "{}", line.escape_ascii());
        }
    }

    /// One byte more than OpenVPN takes must be refused here too, or the encoder's limit is tested against nothing.
    #[test]
    fn a_parameter_ends_at_256_bytes() {
        assert_eq!(lex(&[b'x'; 256]).unwrap(), [vec![b'x'; 256]]);
        assert_eq!(lex(&[b'x'; 257]).unwrap_err(), LexError::ParameterTooLong);
    }
}
