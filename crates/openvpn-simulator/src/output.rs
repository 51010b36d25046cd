//! What a daemon has to say to its manager and the kernel has not taken yet.

use std::collections::VecDeque;
use std::time::Instant;

use tokio::sync::oneshot;

/// Most bytes waiting for a manager that does not read.
///
/// OpenVPN has no limit: it grows until the machine is out of memory. At this bound the simulated
/// daemon closes the session instead.
pub(crate) const OUTPUT_BYTES_MAX: usize = 64 << 20;

/// Capacity an empty buffer may keep, so that a daemon that was busy once is cheap again.
const IDLE_CAPACITY_MAX: usize = 4 << 10;

/// Somebody who wants to know when certain bytes were handed to the kernel.
#[derive(Debug)]
pub(crate) enum Stamp {
    /// Told once.
    Once(oneshot::Sender<Instant>),
    /// Collected for the report of a burst.
    Burst,
}

/// A byte queue that knows when each marked place left it.
#[derive(Debug, Default)]
pub(crate) struct Output {
    bytes: Vec<u8>,
    /// Bytes at the front of `bytes` that the kernel has taken.
    taken: usize,
    /// Bytes ever removed from `bytes`, so that `discarded + index` is a lasting position.
    discarded: u64,
    /// Places asked for, in order of position.
    marks: VecDeque<(u64, Stamp)>,
    /// Stamps of the burst under way.
    pub(crate) burst_stamps: Vec<Instant>,
}

impl Output {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Asks for a stamp when everything pushed so far has left.
    pub(crate) fn mark(&mut self, stamp: Stamp) {
        self.marks.push_back((self.end(), stamp));
    }

    pub(crate) fn pending(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    /// Takes back what was pushed since `pending` had that length.
    pub(crate) fn take_back(&mut self, length: usize) -> Vec<u8> {
        let kept = (self.taken + length).min(self.bytes.len());
        self.bytes.split_off(kept)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.taken == self.bytes.len()
    }

    pub(crate) fn is_overfull(&self, bytes_max: usize) -> bool {
        self.bytes.len() - self.taken > bytes_max
    }

    /// Notes that the kernel took the first `count` pending bytes at `now`.
    pub(crate) fn advance(&mut self, count: usize, now: Instant) {
        self.taken += count;
        let position = self.discarded + as_u64(self.taken);
        while self.marks.front().is_some_and(|(at, _)| *at <= position) {
            match self.marks.pop_front() {
                // Nobody waits for it any more: nothing to tell.
                Some((_, Stamp::Once(sender))) => drop(sender.send(now)),
                Some((_, Stamp::Burst)) => self.burst_stamps.push(now),
                None => break,
            }
        }
        if self.is_empty() {
            self.discarded = position;
            self.taken = 0;
            self.bytes.clear();
            self.bytes.shrink_to(IDLE_CAPACITY_MAX);
        }
    }

    /// Forgets everything, as OpenVPN does when a session ends; stamps asked for never come.
    pub(crate) fn clear(&mut self) {
        *self = Self {
            discarded: self.end(),
            ..Self::default()
        };
    }

    fn end(&self) -> u64 {
        self.discarded + as_u64(self.bytes.len())
    }
}

fn as_u64(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stamp given before the last byte of its line left would flatter every latency figure.
    #[test]
    fn a_stamp_comes_when_the_last_byte_has_left() {
        let mut output = Output::default();
        output.push(b"first\n");
        let (sender, mut stamp) = oneshot::channel();
        output.mark(Stamp::Once(sender));
        output.push(b"second\n");
        output.advance(5, Instant::now());
        assert!(stamp.try_recv().is_err());
        output.advance(1, Instant::now());
        assert!(stamp.try_recv().is_ok());
        assert_eq!(output.pending(), b"second\n");
    }

    #[test]
    fn positions_outlive_an_emptied_buffer() {
        let mut output = Output::default();
        output.push(b"first");
        output.advance(5, Instant::now());
        output.push(b"second");
        let (sender, mut stamp) = oneshot::channel();
        output.mark(Stamp::Once(sender));
        output.advance(1, Instant::now());
        assert!(stamp.try_recv().is_err());
        output.advance(5, Instant::now());
        assert!(stamp.try_recv().is_ok());
        output.clear();
        assert!(output.is_empty());
    }
}
