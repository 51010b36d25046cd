//! The one encoder: a command becomes a line, or a line and its block, or an error.

use bytes::BytesMut;

use super::Command;
use crate::reply::ReplyForm;

/// Longest value of one parameter. OpenVPN refuses more than 256 bytes.
pub const PARAMETER_BYTES_MAX: usize = 255;
/// Longest line we send, after escaping. OpenVPN drops a line of 1,024 bytes and *executes the rest of it*.
pub const LINE_BYTES_SENT_MAX: usize = 1_000;

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
    /// An argument is longer than [`PARAMETER_BYTES_MAX`].
    #[error("{parameter} has {length} bytes, {PARAMETER_BYTES_MAX} are allowed")]
    ParameterTooLong {
        /// Which argument.
        parameter: &'static str,
        /// Its length in bytes.
        length: usize,
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
    /// A block has more lines than we send in one write.
    #[error("{parameter} has {lines} lines, {max} are allowed", max = super::encode::BLOCK_LINES_MAX)]
    BlockTooLong {
        /// Which argument.
        parameter: &'static str,
        /// Its lines.
        lines: usize,
    },
    /// A number the daemon would not take as it is.
    #[error("{parameter} is out of range")]
    OutOfRange {
        /// Which argument.
        parameter: &'static str,
    },
    /// The daemon is not waiting for its first password.
    #[error("the daemon is not asking for the management password")]
    PasswordNotAsked,
}

/// Most lines of one block.
pub const BLOCK_LINES_MAX: usize = 1_000;

impl Command {
    /// The command's first word on the wire.
    #[must_use]
    pub fn name(&self) -> &'static str {
        ""
    }

    /// How its answer looks.
    #[must_use]
    pub fn reply_form(&self) -> ReplyForm {
        ReplyForm::Line
    }

    /// Appends the command's line, with its LF, or its whole block to `out`.
    ///
    /// # Errors
    /// See [`EncodeError`]; `out` is as it was before then.
    pub fn encode(&self, _out: &mut BytesMut) -> Result<(), EncodeError> {
        Ok(())
    }
}
