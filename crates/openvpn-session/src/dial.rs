//! When and how sockets are opened.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Most dials a second over all sessions that share a [`DialPacer`]; further ones wait for their turn.
pub const DIALS_PER_SECOND_MAX: u32 = 500;

/// Spreads the dials of a whole fleet, so that a thousand daemons coming back at once do not stall it.
#[derive(Debug)]
pub struct DialPacer {
    /// When the next dial may happen. Guards one addition, never held across an await.
    next: Mutex<Instant>,
}

impl DialPacer {
    /// Time between two dials.
    const SPACING: Duration = Duration::from_nanos(1_000_000_000 / DIALS_PER_SECOND_MAX as u64);

    /// A pacer for any number of sessions.
    #[must_use]
    pub fn new() -> Self {
        Self {
            next: Mutex::new(Instant::now()),
        }
    }

    /// Waits for this dial's turn.
    pub(crate) async fn turn(&self) {
        let turn = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let turn = (*next).max(Instant::now());
            *next = turn + Self::SPACING;
            turn
        };
        sleep_until(turn).await;
    }
}

impl Default for DialPacer {
    fn default() -> Self {
        Self::new()
    }
}
