//! The one encoder: a command becomes a line, or a line and its block, or an error.

use std::fmt::{Display, Write as _};

use bytes::{BufMut as _, BytesMut};

use super::{
    AuthRetry, Command, HistoryDepth, HistoryRequest, HoldRequest, KillMessage, NeedOkAnswer,
    PendingAuthForm, ProxyAnswer, RawCommand, RemoteAnswer, RemoteEntryRange, StatusFormat,
};
use crate::text::{Cid, Kid, Secret, Text};

/// Longest value of one parameter. OpenVPN refuses more than 256 bytes.
pub const PARAMETER_BYTES_MAX: usize = 255;
/// Longest line we send, after escaping. OpenVPN drops a line of 1,024 bytes and *executes the rest of it*; the bytes
/// we leave hold a short command sent behind a line that is still unread.
pub const LINE_BYTES_SENT_MAX: usize = 1_000;
/// Longest line of a block. OpenVPN reads 256 bytes at a time into a buffer of 1,024 and empties that buffer when it is
/// full, so up to 255 bytes of the lines behind must fit beside this one.
pub const BLOCK_LINE_BYTES_MAX: usize = 1_024 - 255 - 1;
/// Most lines of one block.
pub const BLOCK_LINES_MAX: usize = 1_000;
/// Longest password sent as a block: OpenVPN's buffer for one, less its NUL.
pub const PASSWORD_BLOCK_BYTES_MAX: usize = 4_095;

/// OpenVPN reads small numbers with `atoi`, which knows nothing above this.
const INT_MAX: u32 = i32::MAX.unsigned_abs();

/// Why a command cannot be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// CR, LF, NUL or another control byte: OpenVPN would cut the line there or drop the byte.
    #[error("{parameter} contains the control byte {byte:#04x}")]
    ControlByte {
        /// Which argument.
        parameter: &'static str,
        /// The byte.
        byte: u8,
    },
    /// An argument, or a line of one, is too long.
    #[error("{parameter} has {length} bytes, {max} are allowed")]
    ParameterTooLong {
        /// Which argument.
        parameter: &'static str,
        /// Its length in bytes.
        length: usize,
        /// The longest allowed.
        max: usize,
    },
    /// The whole line is longer than [`LINE_BYTES_SENT_MAX`].
    #[error("the line has {length} bytes after escaping, {LINE_BYTES_SENT_MAX} are allowed")]
    LineTooLong {
        /// Its length in bytes, after escaping.
        length: usize,
    },
    /// A line inside a block is exactly `END`.
    #[error("{parameter} contains a line that would end it early")]
    EndInBlock {
        /// Which argument.
        parameter: &'static str,
    },
    /// A block has too many lines.
    #[error("{parameter} has {lines} lines, {BLOCK_LINES_MAX} are allowed")]
    BlockTooLong {
        /// Which argument.
        parameter: &'static str,
        /// Its lines.
        lines: usize,
    },
    /// A number that OpenVPN would not read as it is.
    #[error("{parameter} is out of range")]
    OutOfRange {
        /// Which argument.
        parameter: &'static str,
    },
    /// The daemon is not waiting for its first password.
    #[error("the daemon is not asking for the management password")]
    PasswordNotAsked,
}

impl Command {
    /// The command's first word on the wire.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::AuthRetry(_) => "auth-retry",
            Self::Bytecount(_) => "bytecount",
            Self::Certificate { .. } => "certificate",
            Self::ClientAuth { .. } => "client-auth",
            Self::ClientAuthNt { .. } => "client-auth-nt",
            Self::ClientDeny { .. } => "client-deny",
            Self::ClientKill { .. } => "client-kill",
            Self::ClientPendingAuth { .. } => "client-pending-auth",
            Self::ClientPf { .. } => "client-pf",
            Self::CrResponse(_) => "cr-response",
            Self::Echo(_) => "echo",
            Self::EnvFilter(_) => "env-filter",
            Self::Exit => "exit",
            Self::Quit => "quit",
            Self::ForgetPasswords => "forget-passwords",
            Self::Help => "help",
            Self::Hold(_) => "hold",
            Self::Kill(_) => "kill",
            Self::LoadStats => "load-stats",
            Self::Log(_) => "log",
            Self::Mute(_) => "mute",
            Self::ClientCount => "nclients",
            Self::NeedOk { .. } => "needok",
            Self::NeedStr { .. } => "needstr",
            Self::Net => "net",
            Self::NetworkChange { .. } => "network-change",
            Self::Password { .. } | Self::PasswordBlock { .. } => "password",
            Self::Username { .. } => "username",
            Self::Pid => "pid",
            Self::Pkcs11IdCount => "pkcs11-id-count",
            Self::Pkcs11IdGet(_) => "pkcs11-id-get",
            Self::PkSig { .. } => "pk-sig",
            Self::RsaSig { .. } => "rsa-sig",
            Self::Proxy(_) => "proxy",
            Self::PushUpdateBroad { .. } => "push-update-broad",
            Self::PushUpdateCid { .. } => "push-update-cid",
            Self::Remote(_) => "remote",
            Self::RemoteEntryCount => "remote-entry-count",
            Self::RemoteEntryGet(_) => "remote-entry-get",
            Self::Signal(_) => "signal",
            Self::State(_) => "state",
            Self::Status { .. } => "status",
            Self::Test(_) => "test",
            Self::Verb(_) => "verb",
            Self::Version | Self::VersionSet(_) => "version",
            Self::Raw(_) => "raw",
        }
    }

    /// Appends the command's line with its LF, or its whole block, to `out`.
    ///
    /// A block has to reach the daemon as a whole before anything else is sent.
    ///
    /// # Errors
    /// See [`EncodeError`]; `out` is as it was before then.
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        let start = out.len();
        let result = match self {
            Self::Raw(command) => encode_raw(command, out),
            _ => self.encode_into(&mut LineWriter::start(out, self.name())),
        };
        if result.is_err() {
            out.truncate(start);
        }
        result
    }

    fn encode_into(&self, line: &mut LineWriter<'_>) -> Result<(), EncodeError> {
        match self {
            Self::Certificate { lines } => return line.block("certificate", lines),
            Self::ClientAuth { cid, kid, config } => {
                line.cid(*cid);
                line.kid(*kid)?;
                return line.block("config", config);
            }
            Self::ClientPf { cid, lines } => {
                line.cid(*cid);
                return line.block("packet filter", lines);
            }
            Self::PkSig { lines } | Self::RsaSig { lines } => {
                return line.block("signature", lines);
            }
            Self::PasswordBlock { kind, password } => {
                line.quoted("kind", kind.as_bytes())?;
                return line.block("password", &base64_lines(password)?);
            }

            Self::Exit
            | Self::Quit
            | Self::ForgetPasswords
            | Self::Help
            | Self::LoadStats
            | Self::ClientCount
            | Self::Net
            | Self::Pid
            | Self::Pkcs11IdCount
            | Self::RemoteEntryCount
            | Self::Version => {}

            Self::AuthRetry(None) | Self::EnvFilter(None) | Self::Mute(None) | Self::Verb(None) => {
            }
            Self::AuthRetry(Some(mode)) => line.word(match mode {
                AuthRetry::None => "none",
                AuthRetry::Nointeract => "nointeract",
                AuthRetry::Interact => "interact",
            }),
            Self::Bytecount(seconds) => line.number("seconds", *seconds, INT_MAX)?,
            Self::EnvFilter(Some(level)) => line.number("level", u32::from(*level), 3)?,
            Self::Mute(Some(count)) => line.number("count", *count, INT_MAX)?,
            Self::Verb(Some(level)) => line.number("level", u32::from(*level), 15)?,
            Self::Test(lines) => line.number("lines", *lines, INT_MAX)?,
            Self::VersionSet(version) => line.number("version", *version, INT_MAX)?,
            Self::Pkcs11IdGet(index) => line.number("index", *index, INT_MAX)?,
            Self::Signal(signal) => line.word(signal.as_str()),
            Self::Status { format } => match format {
                StatusFormat::Configured => {}
                StatusFormat::V1 => line.word(1),
                StatusFormat::V2 => line.word(2),
                StatusFormat::V3 => line.word(3),
            },
            Self::State(request) | Self::Log(request) | Self::Echo(request) => {
                line.history(*request)?
            }
            Self::Hold(request) => match request {
                HoldRequest::Query => {}
                HoldRequest::On => line.word("on"),
                HoldRequest::Off => line.word("off"),
                HoldRequest::Release => line.word("release"),
            },

            Self::ClientAuthNt { cid, kid } => {
                line.cid(*cid);
                line.kid(*kid)?;
            }
            Self::ClientDeny {
                cid,
                kid,
                reason,
                client_reason,
            } => {
                line.cid(*cid);
                line.kid(*kid)?;
                line.quoted("reason", reason.as_bytes())?;
                if let Some(client_reason) = client_reason {
                    line.quoted("client reason", client_reason.as_bytes())?;
                }
            }
            Self::ClientKill { cid, message } => {
                line.cid(*cid);
                match message {
                    None => {}
                    Some(KillMessage::Restart) => line.word("RESTART"),
                    Some(KillMessage::Halt) => line.word("HALT"),
                    Some(KillMessage::Text(text)) => line.quoted("message", text.as_bytes())?,
                }
            }
            Self::ClientPendingAuth { cid, extra, form } => {
                line.cid(*cid);
                if let PendingAuthForm::CidKidTimeout { kid, .. } = form {
                    line.kid(*kid)?;
                }
                line.quoted("extra", extra.as_bytes())?;
                match form {
                    PendingAuthForm::Cid => {}
                    PendingAuthForm::CidTimeout { timeout_secs }
                    | PendingAuthForm::CidKidTimeout { timeout_secs, .. } => {
                        line.number("timeout", *timeout_secs, INT_MAX)?;
                    }
                }
            }
            Self::CrResponse(response) => line.quoted("response", response.expose())?,
            Self::Kill(target) => line.quoted("target", target.as_bytes())?,
            Self::NeedOk { kind, answer } => {
                line.quoted("kind", kind.as_bytes())?;
                line.word(match answer {
                    NeedOkAnswer::Ok => "ok",
                    NeedOkAnswer::Cancel => "cancel",
                });
            }
            Self::NeedStr { kind, value } => {
                line.quoted("kind", kind.as_bytes())?;
                line.quoted("value", value.as_bytes())?;
            }
            Self::NetworkChange { same_network } => {
                if *same_network {
                    line.word("samenetwork");
                }
            }
            Self::Password { kind, password } => {
                line.quoted("kind", kind.as_bytes())?;
                line.quoted("password", password.expose())?;
            }
            Self::Username { kind, username } => {
                line.quoted("kind", kind.as_bytes())?;
                line.quoted("username", username.as_bytes())?;
            }
            Self::Proxy(answer) => match answer {
                ProxyAnswer::None => line.word("NONE"),
                ProxyAnswer::Http {
                    host,
                    port,
                    no_cleartext,
                } => {
                    line.word("HTTP");
                    line.quoted("host", host.as_bytes())?;
                    line.word(port);
                    if *no_cleartext {
                        line.word("nct");
                    }
                }
                ProxyAnswer::Socks { host, port } => {
                    line.word("SOCKS");
                    line.quoted("host", host.as_bytes())?;
                    line.word(port);
                }
            },
            Self::PushUpdateBroad { options } => line.quoted("options", options.as_bytes())?,
            Self::PushUpdateCid { cid, options } => {
                line.cid(*cid);
                line.quoted("options", options.as_bytes())?;
            }
            Self::Remote(answer) => match answer {
                RemoteAnswer::Accept => line.word("ACCEPT"),
                RemoteAnswer::Skip(count) => {
                    line.word("SKIP");
                    if let Some(count) = count {
                        line.number("count", count.get(), INT_MAX)?;
                    }
                }
                RemoteAnswer::Modify { host, port } => {
                    line.word("MOD");
                    line.quoted("host", host.as_bytes())?;
                    line.word(port);
                }
            },
            // Has no name of its own to begin with.
            Self::Raw(_) => {}
            Self::RemoteEntryGet(range) => match range {
                RemoteEntryRange::All => line.word("all"),
                RemoteEntryRange::One(index) => line.number("index", *index, INT_MAX)?,
                RemoteEntryRange::Range(from, to) => {
                    line.number("index", *from, INT_MAX)?;
                    line.number("index", *to, INT_MAX)?;
                }
            },
        }
        line.end()
    }
}

/// Writes one command line, and the block behind it.
struct LineWriter<'a> {
    out: &'a mut BytesMut,
    /// Where the line starts in `out`.
    start: usize,
}

impl<'a> LineWriter<'a> {
    fn start(out: &'a mut BytesMut, name: &str) -> Self {
        let start = out.len();
        out.put_slice(name.as_bytes());
        Self { out, start }
    }

    /// A word of the protocol's own, or a number.
    fn word(&mut self, word: impl Display) {
        write!(self.out, " {word}").expect("a BytesMut takes all text");
    }

    fn number(
        &mut self,
        parameter: &'static str,
        number: u32,
        max: u32,
    ) -> Result<(), EncodeError> {
        if number > max {
            return Err(EncodeError::OutOfRange { parameter });
        }
        self.word(number);
        Ok(())
    }

    fn cid(&mut self, cid: Cid) {
        self.word(cid);
    }

    /// OpenVPN reads a KID with `%u`: a larger one would name another key.
    fn kid(&mut self, kid: Kid) -> Result<(), EncodeError> {
        let kid = u32::try_from(kid.0).map_err(|_| EncodeError::OutOfRange { parameter: "KID" })?;
        self.word(kid);
        Ok(())
    }

    fn history(&mut self, request: HistoryRequest) -> Result<(), EncodeError> {
        let depth = match request {
            HistoryRequest::On => {
                self.word("on");
                return Ok(());
            }
            HistoryRequest::Off => {
                self.word("off");
                return Ok(());
            }
            HistoryRequest::OnWithHistory(depth) => {
                self.word("on");
                depth
            }
            HistoryRequest::History(depth) => depth,
        };
        match depth {
            HistoryDepth::All => self.word("all"),
            HistoryDepth::Last(lines) => self.number("lines", lines.get(), INT_MAX)?,
        }
        Ok(())
    }

    /// A free argument: always in double quotes, where OpenVPN's lexer knows only `\\` and `\"`.
    fn quoted(&mut self, parameter: &'static str, value: &[u8]) -> Result<(), EncodeError> {
        refuse_control_bytes(parameter, value)?;
        if value.len() > PARAMETER_BYTES_MAX {
            return Err(EncodeError::ParameterTooLong {
                parameter,
                length: value.len(),
                max: PARAMETER_BYTES_MAX,
            });
        }
        self.out.put_u8(b' ');
        put_quoted(value, self.out);
        Ok(())
    }

    /// Ends the command line.
    fn end(&mut self) -> Result<(), EncodeError> {
        let length = self.out.len() - self.start;
        if length > LINE_BYTES_SENT_MAX {
            return Err(EncodeError::LineTooLong { length });
        }
        self.out.put_u8(b'\n');
        Ok(())
    }

    /// Ends the command line and adds the block's lines, which OpenVPN takes as they are, and its `END`.
    fn block(
        &mut self,
        parameter: &'static str,
        lines: &[impl AsRef<[u8]>],
    ) -> Result<(), EncodeError> {
        if lines.len() > BLOCK_LINES_MAX {
            return Err(EncodeError::BlockTooLong {
                parameter,
                lines: lines.len(),
            });
        }
        self.end()?;
        for line in lines.iter().map(AsRef::as_ref) {
            refuse_control_bytes(parameter, line)?;
            if line == b"END" {
                return Err(EncodeError::EndInBlock { parameter });
            }
            if line.len() > BLOCK_LINE_BYTES_MAX {
                return Err(EncodeError::ParameterTooLong {
                    parameter,
                    length: line.len(),
                    max: BLOCK_LINE_BYTES_MAX,
                });
            }
            self.out.put_slice(line);
            self.out.put_u8(b'\n');
        }
        self.out.put_slice(b"END\n");
        Ok(())
    }
}

fn put_quoted(value: &[u8], out: &mut BytesMut) {
    out.put_u8(b'"');
    for byte in value {
        if matches!(byte, b'"' | b'\\') {
            out.put_u8(b'\\');
        }
        out.put_u8(*byte);
    }
    out.put_u8(b'"');
}

/// Appends a command of somebody else's; its parameters were checked when it was made. Plain words stay plain.
fn encode_raw(command: &RawCommand, out: &mut BytesMut) -> Result<(), EncodeError> {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.,:/=+".contains(byte);
    let mut line = LineWriter::start(out, "");
    for (index, parameter) in command.parameters().enumerate() {
        if index > 0 {
            line.out.put_u8(b' ');
        }
        if !parameter.is_empty() && parameter.iter().all(is_plain) {
            line.out.put_slice(parameter);
        } else {
            put_quoted(parameter, line.out);
        }
    }
    line.end()
}

/// Appends a management password: one line, not lexed by OpenVPN, so neither quoted nor escaped.
pub(crate) fn encode_password(password: &Secret, out: &mut BytesMut) -> Result<(), EncodeError> {
    let (parameter, bytes) = ("password", password.expose());
    refuse_control_bytes(parameter, bytes)?;
    if bytes.len() > LINE_BYTES_SENT_MAX {
        return Err(EncodeError::ParameterTooLong {
            parameter,
            length: bytes.len(),
            max: LINE_BYTES_SENT_MAX,
        });
    }
    out.put_slice(bytes);
    out.put_u8(b'\n');
    Ok(())
}

/// OpenVPN deletes these bytes before it looks at a line, and ends the line at LF.
pub(super) fn refuse_control_bytes(
    parameter: &'static str,
    value: &[u8],
) -> Result<(), EncodeError> {
    match value.iter().find(|byte| byte.is_ascii_control()) {
        Some(byte) => Err(EncodeError::ControlByte {
            parameter,
            byte: *byte,
        }),
        None => Ok(()),
    }
}

/// The password as lines of base64, to be joined and decoded by OpenVPN.
fn base64_lines(password: &Secret) -> Result<Vec<Text>, EncodeError> {
    /// Divisible by 3, so that only the last line is padded; the lines are well below [`BLOCK_LINE_BYTES_MAX`].
    const BYTES_PER_LINE: usize = 192;

    let bytes = password.expose();
    if bytes.len() > PASSWORD_BLOCK_BYTES_MAX {
        return Err(EncodeError::ParameterTooLong {
            parameter: "password",
            length: bytes.len(),
            max: PASSWORD_BLOCK_BYTES_MAX,
        });
    }
    // OpenVPN treats the decoded bytes as one C string.
    refuse_control_bytes("password", bytes)?;
    Ok(bytes
        .chunks(BYTES_PER_LINE)
        .map(|chunk| base64(chunk).into())
        .collect())
}

fn base64(bytes: &[u8]) -> Vec<u8> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    let mut encoded = Vec::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |index: usize| usize::from(chunk.get(index).copied().unwrap_or_default());
        let group = byte(0) << 16 | byte(1) << 8 | byte(2);
        for position in 0..4 {
            encoded.push(if position > chunk.len() {
                b'='
            } else {
                ALPHABET[group >> (18 - 6 * position) & 63]
            });
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A password block that decodes to something else would lock the user out after a few tries.
    #[test]
    fn base64_matches_the_rfc_4648_vectors() {
        for (plain, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), encoded.as_bytes(), "{plain}");
        }
    }
}
