//! How much one daemon may make us hold.

/// Longest line a daemon may send, without its LF. OpenVPN builds its lines in a 10 KiB buffer.
pub const LINE_BYTES_MAX: usize = 16 * 1024;
/// Most bytes of one ENV block.
pub const ENV_BYTES_MAX: usize = 256 * 1024;
/// Most lines of one ENV block.
pub const ENV_LINES_MAX: usize = 1_000;
/// Most client rows kept of one status snapshot.
pub const CLIENTS_MAX: usize = 20_000;
/// Most routing rows kept of one status snapshot: two addresses and two networks behind each client.
pub const ROUTES_MAX: usize = 4 * CLIENTS_MAX;
/// Most bytes of row text kept of one status snapshot.
pub const STATUS_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Most lines kept of one reply that is a list.
pub const HISTORY_LINES_MAX: usize = 10_000;
/// Most bytes kept of one reply that is a list.
pub const HISTORY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most lines kept of a reply that every attach asks for and that is short: the version, the states, of which OpenVPN
/// remembers 100.
pub const SHORT_LINES_MAX: usize = 1_000;
/// Most bytes kept of such a reply.
pub const SHORT_BYTES_MAX: usize = 256 * 1024;
/// Most bytes of a reply, kept or not; more is a [`Violation`](crate::Violation).
pub const REPLY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The same of one that is a status, or may be: over a million rows.
pub const STATUS_REPLY_BYTES_MAX: usize = 256 * 1024 * 1024;

/// The bounds of one [`Connection`](crate::Connection).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest line without its LF; a longer one is a [`Violation`](crate::Violation).
    pub line_bytes_max: usize,
    /// Most bytes of an ENV block; more is a [`Violation`](crate::Violation).
    pub env_bytes_max: usize,
    /// Most lines of an ENV block; more is a [`Violation`](crate::Violation).
    pub env_lines_max: usize,
    /// Most client rows of a snapshot; further ones are counted and the snapshot is marked truncated.
    pub clients_max: usize,
    /// Most routing rows of a snapshot; further ones are counted and the snapshot is marked truncated.
    pub routes_max: usize,
    /// Most bytes of row text of a snapshot; rows beyond are treated like rows beyond `clients_max`.
    pub status_bytes_max: usize,
    /// Most lines of a listed reply; further ones are dropped and the reply is marked truncated.
    pub history_lines_max: usize,
    /// Most bytes of a listed reply; lines beyond are dropped and the reply is marked truncated.
    pub history_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            line_bytes_max: LINE_BYTES_MAX,
            env_bytes_max: ENV_BYTES_MAX,
            env_lines_max: ENV_LINES_MAX,
            clients_max: CLIENTS_MAX,
            routes_max: ROUTES_MAX,
            status_bytes_max: STATUS_BYTES_MAX,
            history_lines_max: HISTORY_LINES_MAX,
            history_bytes_max: HISTORY_BYTES_MAX,
        }
    }
}
