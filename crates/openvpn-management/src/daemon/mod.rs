//! The daemon's side: how OpenVPN reads a line, and what it writes.
//!
//! [`InputLines`] and [`lex()`] do with bytes from a manager what OpenVPN's `manage.c` and `options_parse.c` do,
//! surprises included; they are the measure of our own encoder. The `write_*` functions are the other direction:
//! what a daemon says, from the same values that [`Connection`](crate::Connection) makes of it.

mod encode;
mod input;
mod lex;

pub use self::encode::{
    PASSWORD_CORRECT, PROMPT, write_block, write_error, write_greeting, write_notification,
    write_reply, write_status, write_success,
};
pub use self::input::{InputLines, LINE_BUFFER_BYTES, READ_BYTES};
pub use self::lex::{LexError, PARAMETER_BYTES_MAX, PARAMETERS_MAX, lex};
