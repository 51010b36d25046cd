//! What a daemon says, line by line as it came, for those who need its own words.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openvpn_management::{LinesTold, Text};
use tokio::sync::Notify;

/// Most bytes that may wait for one listener; at the bound it hears no more and is told so ([`Heard::Behind`]). The
/// session does not wait for anybody.
pub const TAP_BYTES_MAX: usize = 1 << 20;
/// What a waiting line costs besides its text.
const LINE_OVERHEAD_BYTES: usize = 64;

/// The lines of a daemon that start with `>`, for any number of listeners.
///
/// Lines are numbered, and each [`Answer`](crate::Answer) says how many came before it: a listener can put answers and
/// lines in the order of the wire.
#[derive(Debug, Default)]
pub struct Tap {
    /// Locked for a push or a pop, never across an await.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Lines told so far, over all sessions.
    position: u64,
    /// The present session's greeting, without `>INFO:`; `None` before it and after its end.
    banner: Option<Text>,
    /// The question that is open, as OpenVPN would repeat it to its next manager.
    question: Option<Text>,
    listeners: Vec<Arc<Queue>>,
}

/// What waits for one listener.
#[derive(Debug, Default)]
struct Queue {
    /// Locked for a push or a pop, never across an await.
    waiting: Mutex<Waiting>,
    /// Kinds it wants, as bits of [`Interest`].
    interest: AtomicU8,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: VecDeque<(u64, Text)>,
    bytes: usize,
    end: Option<End>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Behind,
    SessionEnded,
}

/// Which of the lines that a daemon only sends when asked to a [`Listener`] wants; all others it gets anyway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Interest {
    /// `>STATE:`.
    pub state: bool,
    /// `>LOG:`.
    pub log: bool,
    /// `>ECHO:`.
    pub echo: bool,
    /// `>BYTECOUNT:` and `>BYTECOUNT_CLI:`.
    pub bytecount: bool,
}

impl Interest {
    fn bits(self) -> u8 {
        let Self {
            state,
            log,
            echo,
            bytecount,
        } = self;
        u8::from(state) | u8::from(log) << 1 | u8::from(echo) << 2 | u8::from(bytecount) << 3
    }

    /// The kind of a line, or nothing for one that everybody gets.
    fn of(line: &[u8]) -> Self {
        let is = |kind: &[u8]| line.starts_with(kind);
        Self {
            state: is(b">STATE:"),
            log: is(b">LOG:"),
            echo: is(b">ECHO:"),
            bytecount: is(b">BYTECOUNT:") || is(b">BYTECOUNT_CLI:"),
        }
    }
}

/// What a listener hears next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// A line without its line end, and how many were told before it.
    Line(u64, Text),
    /// It did not listen for too long, and more than [`TAP_BYTES_MAX`] would wait: it hears nothing more.
    Behind,
    /// The session ended: nothing more comes.
    SessionEnded,
}

/// How a daemon would receive a new manager now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reception {
    /// The greeting, without `>INFO:`.
    pub banner: Text,
    /// The question that is open, which OpenVPN repeats behind the greeting.
    pub question: Option<Text>,
}

impl Tap {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No operation leaves it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens from now on; `None` if there is no session that was greeted.
    #[must_use]
    pub fn listen(self: &Arc<Self>) -> Option<(Reception, Listener)> {
        let mut state = self.lock();
        let reception = Reception {
            banner: state.banner.clone()?,
            question: state.question.clone(),
        };
        let queue = Arc::new(Queue::default());
        state.listeners.push(Arc::clone(&queue));
        let listener = Listener {
            tap: Arc::clone(self),
            queue,
        };
        Some((reception, listener))
    }

    /// Lines told so far.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.lock().position
    }

    /// Forgets the open question: it was answered.
    pub fn answered(&self) {
        self.lock().question = None;
    }

    /// Which lines the protocol should tell.
    pub(crate) fn lines_wanted(&self) -> LinesTold {
        if self.lock().listeners.is_empty() {
            LinesTold::Questions
        } else {
            LinesTold::All
        }
    }

    pub(crate) fn greeted(&self, banner: Text) {
        self.lock().banner = Some(banner);
    }

    pub(crate) fn tell(&self, line: &Text) {
        let mut state = self.lock();
        let position = state.position;
        state.position += 1;
        let text = line.as_bytes();
        if text
            .strip_prefix(b">")
            .is_some_and(openvpn_management::is_question)
        {
            state.question = Some(line.clone());
        } else if text.starts_with(b">STATE:") {
            state.question = None;
        }
        let kind = Interest::of(text).bits();
        state
            .listeners
            .retain(|queue| queue.push(kind, position, line));
    }

    /// The session is over: so is every listener.
    pub(crate) fn ended(&self) {
        let mut state = self.lock();
        state.banner = None;
        state.question = None;
        for queue in std::mem::take(&mut state.listeners) {
            queue.end(End::SessionEnded);
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it listens on.
    fn push(&self, kind: u8, position: u64, line: &Text) -> bool {
        if kind != 0 && kind & self.interest.load(Ordering::Relaxed) == 0 {
            return true;
        }
        let mut waiting = self.lock();
        waiting.bytes += line.len() + LINE_OVERHEAD_BYTES;
        if waiting.bytes > TAP_BYTES_MAX {
            waiting.lines = VecDeque::new();
            waiting.end = Some(End::Behind);
        } else {
            waiting.lines.push_back((position, line.clone()));
        }
        let listens = waiting.end.is_none();
        drop(waiting);
        self.changed.notify_one();
        listens
    }

    fn end(&self, end: End) {
        self.lock().end.get_or_insert(end);
        self.changed.notify_one();
    }
}

/// One place at a [`Tap`]; dropped, the place is free.
#[derive(Debug)]
pub struct Listener {
    tap: Arc<Tap>,
    queue: Arc<Queue>,
}

impl Listener {
    /// Says which lines it wants that a daemon only sends when asked to; none at first.
    pub fn set_interest(&self, interest: Interest) {
        // The tap's lock puts it in order with the lines.
        let _state = self.tap.lock();
        self.queue
            .interest
            .store(interest.bits(), Ordering::Relaxed);
    }

    /// What it has not heard yet, if anything.
    pub fn try_hear(&mut self) -> Option<Heard> {
        self.take_before(u64::MAX)
    }

    /// The same, but no line that was told when `position` lines had been.
    pub fn take_before(&mut self, position: u64) -> Option<Heard> {
        let mut waiting = self.queue.lock();
        if let Some((number, _)) = waiting.lines.front() {
            if *number >= position {
                return None;
            }
            let (number, line) = waiting.lines.pop_front()?;
            waiting.bytes -= line.len() + LINE_OVERHEAD_BYTES;
            return Some(Heard::Line(number, line));
        }
        waiting.end.map(|end| match end {
            End::Behind => Heard::Behind,
            End::SessionEnded => Heard::SessionEnded,
        })
    }

    /// Whether it is behind by more than it may be.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.queue.lock().end == Some(End::Behind)
    }

    /// Lines told so far, to everybody.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.tap.position()
    }

    /// Forgets the open question of its daemon: it was answered.
    pub fn answered(&self) {
        self.tap.answered();
    }

    /// Waits until there may be something to hear. Cancel safe.
    pub async fn changed(&self) {
        self.queue.changed.notified().await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut state = self.tap.lock();
        state
            .listeners
            .retain(|queue| !Arc::ptr_eq(queue, &self.queue));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greeted() -> Arc<Tap> {
        let tap = Arc::new(Tap::default());
        assert!(tap.listen().is_none());
        tap.greeted("hello".into());
        tap
    }

    fn hear(listener: &mut Listener) -> Vec<Heard> {
        let mut heard = Vec::new();
        while let Some(next) = listener.try_hear() {
            let is_end = !matches!(next, Heard::Line(..));
            heard.push(next);
            if is_end {
                break;
            }
        }
        heard
    }

    /// One who does not listen must cost its bound and nobody else a line.
    #[test]
    fn a_listener_that_falls_behind_is_cut_alone() {
        let tap = greeted();
        let (_, mut slow) = tap.listen().unwrap();
        let (_, mut quick) = tap.listen().unwrap();
        let line = Text::from(vec![b'>'; 1_000]);
        let lines = TAP_BYTES_MAX as u64 / 1_000;
        for number in 0..lines {
            tap.tell(&line);
            assert_eq!(quick.try_hear(), Some(Heard::Line(number, line.clone())));
        }
        assert!(slow.is_behind());
        assert_eq!(hear(&mut slow), [Heard::Behind]);
        assert!(!quick.is_behind());
        assert_eq!(tap.lock().listeners.len(), 1);
    }

    /// Lines that were not asked for must not fill the queue of one who only waits.
    #[test]
    fn a_listener_gets_what_it_wants() {
        let tap = greeted();
        let (_, mut listener) = tap.listen().unwrap();
        let interest = Interest {
            log: true,
            ..Interest::default()
        };
        listener.set_interest(interest);
        for line in [
            ">STATE:1",
            ">LOG:1",
            ">CLIENT:x",
            ">BYTECOUNT_CLI:1",
            ">ECHO:1",
        ] {
            tap.tell(&line.into());
        }
        let heard = hear(&mut listener);
        assert_eq!(
            heard,
            [
                Heard::Line(1, ">LOG:1".into()),
                Heard::Line(2, ">CLIENT:x".into())
            ]
        );
        tap.ended();
        assert_eq!(hear(&mut listener), [Heard::SessionEnded]);
        assert!(tap.listen().is_none());
    }

    /// OpenVPN repeats an open question to each new manager, and only while it is open.
    #[test]
    fn a_question_is_repeated_until_it_is_answered() {
        let tap = greeted();
        let question = || tap.listen().unwrap().0.question;
        assert_eq!(question(), None);
        tap.tell(&">HOLD:Waiting for hold release:0".into());
        assert_eq!(question(), Some(">HOLD:Waiting for hold release:0".into()));
        tap.tell(&">LOG:1,,x".into());
        assert!(question().is_some());
        tap.tell(&">STATE:1,CONNECTED".into());
        assert_eq!(question(), None);
    }
}
