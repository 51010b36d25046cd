//! Large tables are read a few at a time.
//!
//! A snapshot is held until its last row has come. When a gateway starts in front of many large daemons, all of them
//! answer `status` at once, and what their snapshots took stays with the process for good.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// With so many clients a daemon's table is large.
const CLIENTS_LARGE: u64 = 500;
/// Large tables that are read at once.
const TABLES_AT_ONCE: usize = 2;
/// After that long a session asks all the same: a daemon that answers slowly holds nobody up for longer.
const WAIT_MAX: Duration = Duration::from_millis(500);
/// How often a session that waits looks again.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// The turns of all sessions. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct TableTurns(Arc<Semaphore>);

impl TableTurns {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(TABLES_AT_ONCE)))
    }

    /// The part of one session.
    pub(crate) fn turn(&self) -> TableTurn {
        TableTurn {
            turns: self.clone(),
            clients: 0,
            state: State::Idle,
        }
    }
}

/// One session's turn.
#[derive(Debug)]
pub(crate) struct TableTurn {
    turns: TableTurns,
    /// How many clients the daemon had when it told last.
    clients: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    /// No `status` is due or under way, or the table is small, or it was waited for long enough.
    Idle,
    /// All turns are taken.
    Waiting { since: Instant, look: Instant },
    /// The table is being read.
    Taken { _permit: OwnedSemaphorePermit },
}

impl TableTurn {
    /// The daemon told how many clients it has.
    pub(crate) fn handle_clients(&mut self, clients: u64) {
        self.clients = clients;
    }

    /// Whether the table may be asked for now.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        if self.clients < CLIENTS_LARGE {
            return true;
        }
        if let Ok(permit) = Arc::clone(&self.turns.0).try_acquire_owned() {
            self.state = State::Taken { _permit: permit };
            return true;
        }
        let since = match self.state {
            State::Waiting { since, .. } => since,
            State::Idle | State::Taken { .. } => now,
        };
        if now - since >= WAIT_MAX {
            self.state = State::Idle;
            return true;
        }
        let look = now + LOOK_INTERVAL;
        self.state = State::Waiting { since, look };
        false
    }

    /// When to look again, if it waits.
    pub(crate) fn looks_at(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { look, .. } => Some(look),
            State::Idle | State::Taken { .. } => None,
        }
    }

    /// The table was read, or does not come for now.
    pub(crate) fn give_back(&mut self) {
        self.state = State::Idle;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn large(turns: &TableTurns) -> TableTurn {
        let mut turn = turns.turn();
        turn.handle_clients(CLIENTS_LARGE);
        turn
    }

    /// Two large tables at once; a third has its turn when one is read, a small one needs none.
    #[test]
    fn large_tables_take_turns() {
        let (turns, now) = (TableTurns::new(), Instant::now());
        let [mut first, mut second, mut third] = [(); 3].map(|()| large(&turns));
        assert!(first.take(now) && second.take(now));
        assert!(!third.take(now));
        assert_eq!(third.looks_at(), Some(now + LOOK_INTERVAL));
        assert!(turns.turn().take(now), "a small table waits for nobody");
        first.give_back();
        assert!(third.take(now + LOOK_INTERVAL));
        assert_eq!(third.looks_at(), None);
    }

    /// A daemon that hangs while its table is read must not keep the others' tables from being read.
    #[test]
    fn nobody_waits_for_long() {
        let (turns, now) = (TableTurns::new(), Instant::now());
        let [mut first, mut second, mut third] = [(); 3].map(|()| large(&turns));
        assert!(first.take(now) && second.take(now));
        assert!(!third.take(now) && !third.take(now + WAIT_MAX / 2));
        assert!(third.take(now + WAIT_MAX));
    }
}
