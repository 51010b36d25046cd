//! How OpenVPN reads what a manager writes: line assembly and parameters, quirks included.
//!
//! Written after `command_line_add`, `command_line_get` (manage.c) and `parse_line` (options.c)
//! of OpenVPN 2.6.

/// Size of OpenVPN's command buffer; a line and its newline fit, so 1,023 bytes of line.
const LINE_BUFFER_BYTES: usize = 1024;

/// Longest parameter; one byte more is an error.
const PARAMETER_BYTES_MAX: usize = 256;

/// Parameters of one line; the rest of the line is ignored.
const PARAMETERS_MAX: usize = 16;

/// The line being received.
#[derive(Debug, Default)]
pub(crate) struct LineBuffer(Vec<u8>);

impl LineBuffer {
    /// Takes one read's worth of bytes.
    ///
    /// Control bytes vanish. A byte that no longer fits empties the buffer, itself included, so
    /// that the tail of an over-long line is run as a command of its own.
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' || (byte >= 0x20 && byte != 0x7f) {
                if self.0.len() == LINE_BUFFER_BYTES {
                    self.0.clear();
                } else {
                    self.0.push(byte);
                }
            }
        }
    }

    /// The next complete line, without its newline.
    pub(crate) fn next_line(&mut self) -> Option<Vec<u8>> {
        let end = self.0.iter().position(|&byte| byte == b'\n')?;
        let mut line: Vec<u8> = self.0.drain(..=end).collect();
        line.pop();
        if self.0.is_empty() {
            // An idle daemon keeps no buffer.
            self.0 = Vec::new();
        }
        Some(line)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    Space,
    Quoted,
    Unquoted,
    SingleQuoted,
}

/// A line that cannot be split.
#[derive(Debug)]
pub(crate) struct LexError {
    /// What OpenVPN says about it after `ERROR: `.
    pub(crate) text: Vec<u8>,
    /// The parameters before the mistake.
    pub(crate) parameters: Vec<Vec<u8>>,
}

/// Splits a line into parameters.
pub(crate) fn lex(line: &[u8]) -> Result<Vec<Vec<u8>>, LexError> {
    let mut parameters: Vec<Vec<u8>> = Vec::new();
    let mut parameter = Vec::new();
    let mut reading = Reading::Space;
    let mut backslash = false;

    // OpenVPN's loop sees the terminating NUL as one more character, and as white space.
    for &byte in line.iter().chain(&[0]) {
        if byte == b'\\' && !backslash && reading != Reading::SingleQuoted {
            backslash = true;
            continue;
        }
        let space = byte == 0 || byte.is_ascii_whitespace() || byte == 0x0b;
        let mut taken = false;
        let mut done = false;
        match reading {
            Reading::Space if space => {}
            // A comment, but only where a parameter could begin.
            Reading::Space if byte == b';' || byte == b'#' => break,
            Reading::Space if byte == b'"' && !backslash => reading = Reading::Quoted,
            Reading::Space if byte == b'\'' && !backslash => reading = Reading::SingleQuoted,
            Reading::Space => {
                taken = true;
                reading = Reading::Unquoted;
            }
            Reading::Unquoted if space && !backslash => done = true,
            Reading::Quoted if byte == b'"' && !backslash => done = true,
            Reading::SingleQuoted if byte == b'\'' => done = true,
            Reading::Unquoted | Reading::Quoted | Reading::SingleQuoted => taken = byte != 0,
        }
        if done {
            parameters.push(std::mem::take(&mut parameter));
            reading = Reading::Space;
        }
        if backslash && taken && !(byte == b'\\' || byte == b'"' || space) {
            let text = b"Options warning: Bad backslash ('\\') usage in TCP:0: remember that \
                backslashes are treated as shell-escapes and if you need to pass backslash \
                characters as part of a Windows filename, you should use double backslashes such \
                as \"c:\\\\openvpn\\\\static.key\"";
            return Err(LexError {
                text: text.to_vec(),
                parameters,
            });
        }
        backslash = false;
        if taken {
            if parameter.len() == PARAMETER_BYTES_MAX {
                // The last byte makes room for OpenVPN's terminating NUL.
                parameter.truncate(PARAMETER_BYTES_MAX - 1);
                let mut text =
                    b"Options error: Parameter at TCP:0 is too long (256 chars max): ".to_vec();
                text.append(&mut parameter);
                return Err(LexError { text, parameters });
            }
            parameter.push(byte);
        }
        if parameters.len() == PARAMETERS_MAX {
            return Ok(parameters);
        }
    }

    let text = match reading {
        Reading::Space => return Ok(parameters),
        Reading::Quoted => &b"Options error: No closing quotation (\") in TCP:0"[..],
        Reading::SingleQuoted => b"Options error: No closing single quotation (') in TCP:0",
        Reading::Unquoted => b"Options error: Residual parse state (2) in TCP:0",
    };
    Err(LexError {
        text: text.to_vec(),
        parameters,
    })
}

/// C's `atoi`: leading space, a sign, digits; 0 for anything else. As in glibc it reads 64 bits,
/// and keeps the lower 32.
pub(crate) fn atoi(text: &[u8]) -> i32 {
    let text = text.trim_ascii_start();
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    let value =
        digits
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .fold(0_i64, |value, byte| {
                let digit = i64::from(byte - b'0');
                let value = value.saturating_mul(10);
                if negative {
                    value.saturating_sub(digit)
                } else {
                    value.saturating_add(digit)
                }
            });
    let [a, b, c, d, ..] = value.to_le_bytes();
    i32::from_le_bytes([a, b, c, d])
}

/// C's `sscanf("%lu")`: as `atoi`, but `None` where there is no digit; a minus sign wraps.
pub(crate) fn parse_unsigned(text: &[u8]) -> Option<u64> {
    let text = text.trim_ascii_start();
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    if !digits.first()?.is_ascii_digit() {
        return None;
    }
    let value =
        digits
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .fold(0_u64, |value, byte| {
                value
                    .saturating_mul(10)
                    .saturating_add(u64::from(byte - b'0'))
            });
    Some(if negative {
        value.wrapping_neg()
    } else {
        value
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(input: &[u8]) -> Vec<Vec<u8>> {
        let mut buffer = LineBuffer::default();
        let mut lines = Vec::new();
        // OpenVPN reads 256 bytes at a time and runs what is complete before it reads on.
        for chunk in input.chunks(256) {
            buffer.add(chunk);
            while let Some(line) = buffer.next_line() {
                lines.push(line);
            }
        }
        lines
    }

    /// A simulator kinder than OpenVPN would hide an encoder that lets the tail of a long line
    /// run as a command.
    #[test]
    fn an_over_long_line_is_dropped_and_its_tail_is_a_line() {
        let x = |count: usize| vec![b'x'; count];
        for (length, expected) in [
            (1023, vec![x(1023)]),
            (1024, vec![]),
            (1025, vec![x(0)]),
            (1026, vec![x(1)]),
            (2048, vec![x(1023)]),
            (2049, vec![]),
            (2100, vec![x(50)]),
        ] {
            let mut input = x(length);
            input.push(b'\n');
            assert_eq!(lines(&input), expected, "{length} bytes");
        }
        let mut input = x(1025);
        input.extend_from_slice(b"pid\n");
        assert_eq!(lines(&input), [b"pid"]);
    }

    #[test]
    fn control_bytes_vanish() {
        assert_eq!(
            lines(b"pi\0d\r\npid\tx\x7f\nJ\xc3\xbc\n"),
            [&b"pid"[..], b"pidx", b"J\xc3\xbc"]
        );
    }

    /// Each of these was asked of a real 2.6.14.
    #[test]
    fn parameters_are_split_like_openvpn_does() {
        let cases: [(&[u8], &[&[u8]]); 10] = [
            (b"pid", &[b"pid"]),
            (b"  pid  x ", &[b"pid", b"x"]),
            (b"# a comment", &[]),
            (b"pid # x", &[b"pid"]),
            (b"pid x#y", &[b"pid", b"x#y"]),
            (b"kill \"smith, john\"", &[b"kill", b"smith, john"]),
            (b"kill 'a \\b'", &[b"kill", b"a \\b"]),
            (b"kill a\\\"b\\ c\\\\", &[b"kill", b"a\"b c\\"]),
            (b"kill \"\"", &[b"kill", b""]),
            (b"kill \"a\"b", &[b"kill", b"a", b"b"]),
        ];
        for (line, expected) in cases {
            assert_eq!(lex(line).unwrap(), expected, "{}", line.escape_ascii());
        }
    }

    #[test]
    fn parameters_after_the_sixteenth_are_ignored() {
        let line = b"a b c d e f g h i j k l m n o p \"unterminated";
        assert_eq!(lex(line).unwrap().len(), 16);
    }

    #[test]
    fn malformed_lines_get_openvpns_words() {
        for (line, text) in [
            (&b"kill \"u"[..], "No closing quotation"),
            (b"kill 'u", "No closing single quotation"),
            (b"kill u\\", "Residual parse state (2)"),
            (b"p\\id", "Bad backslash ('\\') usage"),
        ] {
            let error = String::from_utf8(lex(line).unwrap_err().text).unwrap();
            assert!(error.contains(text), "{error}");
        }
        assert!(lex(&[b'x'; 256]).is_ok());
        let error = lex(&[b'x'; 257]).unwrap_err().text;
        assert!(error.ends_with(&[b'x'; 255]) && !error.ends_with(&[b'x'; 256]));
    }

    #[test]
    fn numbers_parse_like_c() {
        assert_eq!(atoi(b"12x"), 12);
        assert_eq!(atoi(b"-5"), -5);
        assert_eq!(atoi(b"abc"), 0);
        assert_eq!(atoi(b"4294967297"), 1);
        assert_eq!(atoi(b"99999999999999999999999"), -1);
        assert_eq!(parse_unsigned(b"5x"), Some(5));
        assert_eq!(parse_unsigned(b"-1"), Some(u64::MAX));
        assert_eq!(parse_unsigned(b"x"), None);
    }
}
