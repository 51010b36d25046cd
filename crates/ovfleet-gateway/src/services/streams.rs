//! The streams that are open: how many, and how far behind.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tonic::Status;

use crate::status;

/// The open streams of all callers; one more than `max` is refused.
#[derive(Debug)]
pub(crate) struct Streams {
    max: usize,
    open: Arc<Mutex<Open>>,
}

/// Guarded by a lock held for one insertion, update or removal.
#[derive(Debug, Default)]
struct Open {
    next: u64,
    /// How far each stream is: a sequence of the journal, or `None` for a
    /// stream that does not read it.
    positions: HashMap<u64, Option<u64>>,
}

impl Streams {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            max,
            open: Arc::default(),
        }
    }

    /// A place for one more stream.
    pub(crate) fn open(&self) -> Result<StreamSlot, Status> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.positions.len() >= self.max {
            return Err(status::stream_limit(self.max));
        }
        let id = open.next;
        open.next += 1;
        open.positions.insert(id, None);
        Ok(StreamSlot {
            id,
            open: Arc::clone(&self.open),
        })
    }

    /// Streams open now.
    pub(crate) fn count(&self) -> usize {
        self.open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .positions
            .len()
    }

    /// The position of the stream that is furthest behind.
    pub(crate) fn hindmost(&self) -> Option<u64> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.positions.values().copied().flatten().min()
    }
}

/// The place of one stream, free again when dropped.
#[derive(Debug)]
pub(crate) struct StreamSlot {
    id: u64,
    open: Arc<Mutex<Open>>,
}

impl StreamSlot {
    /// The stream has come to this sequence of the journal.
    pub(crate) fn moved_to(&self, sequence: u64) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.positions.insert(self.id, Some(sequence));
    }
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.positions.remove(&self.id);
    }
}
