//! Ways in which a daemon, or something that only looks like one, can be wrong.

use std::time::Duration;

/// One thing a daemon does wrong until told to behave.
///
/// Several may be active at once. Those about the start of a session take effect with the next
/// one; the others at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misbehaviour {
    /// Speaks another protocol: these bytes instead of a greeting, and no sensible answer ever.
    Banner(Vec<u8>),
    /// Accepts and says nothing, ever.
    NeverGreets,
    /// Greets and then says nothing, ever; it still reads.
    SilentAfterGreeting,
    /// After the greeting writes one line that never ends, as fast as the socket takes it.
    EndlessLine,
    /// After the greeting writes this many random bytes, newlines included.
    Garbage {
        /// How many.
        bytes: usize,
    },
    /// Closes every session after this many bytes were written to it.
    EarlyClose {
        /// How many, counted from the first byte of the prompt or greeting.
        after_bytes: u64,
    },
    /// Adds this many made-up rows to every `status`.
    HugeStatus {
        /// How many.
        rows: usize,
    },
    /// Leaves out the `END` of every multi-line reply.
    MissingEnd,
    /// Goes on for ever where the `END` of a multi-line reply should be, as fast as the socket takes it.
    EndlessReplies,
    /// Writes every `END` twice.
    ExtraEnd,
    /// Asks `ENTER PASSWORD:` after every command, though the session is long past it.
    PasswordPromptMidSession,
    /// Follows every reply with another one that nobody asked for.
    UnaskedReplies,
    /// Gives every new client the CID of the first one, without a restart.
    CidReuse,
    /// Its clock jumps about by up to this much, back and forth, from line to line.
    NonsenseClock {
        /// Greatest distance from the true time.
        jump_max: Duration,
    },
    /// Appends bytes that are not UTF-8 to every common name it prints.
    InvalidNames,
    /// Drops a field of every second `CLIENT_LIST` row and adds one to the others.
    WrongFieldCount,
    /// Its clock stands still at this number of seconds, whatever that means.
    ClockAt(i64),
    /// Names the columns of `status` in words of its own, and in another order.
    ForeignHeader,
    /// Every ENV block has so many more lines before its end.
    LongEnv {
        /// How many.
        lines: usize,
    },
    /// Asks `ENTER PASSWORD:` again whatever is entered, for as long as anybody answers.
    PasswordPromptForever,
    /// Writes these bytes before every reply: lines of its own choice, or half of one.
    Interjects(Vec<u8>),
    /// Writes these bytes behind the first line of every reply that has several.
    InterjectsInside(Vec<u8>),
    /// Writes every reply twice.
    DoubledReplies,
    /// Keeps every second reply back and writes it behind the next one.
    SwappedReplies,
    /// Writes every reply so much later, and whatever else it says at once.
    LateReplies {
        /// How much.
        delay: Duration,
    },
    /// Writes one byte, and then nothing for so long.
    SlowLoris {
        /// How long.
        pause: Duration,
    },
    /// Ends its own direction behind the greeting, and reads on.
    HalfClose,
    /// Every ENV block goes on for ever after its last real line.
    EndlessEnv,
    /// Writes log lines at this rate.
    LogFlood {
        /// How many.
        lines_per_second: u32,
    },
}
