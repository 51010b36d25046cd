//! The rings behind `state`, `log` and `echo`.

use std::collections::VecDeque;

/// The last lines of one kind, oldest first, as the history commands print them.
#[derive(Debug)]
pub(crate) struct History {
    lines: VecDeque<Box<[u8]>>,
    /// Lines kept; the oldest goes when one more comes.
    capacity: usize,
}

impl History {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            lines: VecDeque::new(),
            capacity,
        }
    }

    pub(crate) fn push(&mut self, line: &[u8]) {
        if self.capacity == 0 {
            return;
        }
        if self.lines.len() >= self.capacity {
            self.lines.pop_front();
        }
        self.lines.push_back(line.into());
    }

    /// The last `count` lines, or all there are.
    pub(crate) fn last(&self, count: Option<usize>) -> impl Iterator<Item = &[u8]> {
        let skipped = count.map_or(0, |count| self.lines.len().saturating_sub(count));
        self.lines.range(skipped..).map(|line| &**line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last(history: &History, count: Option<usize>) -> Vec<&[u8]> {
        history.last(count).collect()
    }

    /// A ring that grew would make a long-lived simulated daemon eat the machine.
    #[test]
    fn the_oldest_line_goes_first() {
        let mut history = History::new(2);
        for line in ["a", "b", "c"] {
            history.push(line.as_bytes());
        }
        assert_eq!(last(&history, None), [b"b", b"c"]);
        assert_eq!(last(&history, Some(1)), [b"c"]);
        assert_eq!(last(&history, Some(99)), [b"b", b"c"]);
    }

    #[test]
    fn a_ring_of_nothing_keeps_nothing() {
        let mut history = History::new(0);
        history.push(b"a");
        assert!(last(&history, None).is_empty());
    }
}
