//! A stream of events that is read as fast as it comes, and remembers what it got.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use ovfleet_proto::v1::{self, Bookmark, Drain, Event, Gap, stream_events_response::Frame};
use tokio::{sync::watch, task::JoinSet};
use tonic::{Status, Streaming};

/// Frames an [`EventLog`] keeps; a scenario that gets more reads the stream itself.
const FRAMES_MAX: usize = 200_000;

/// One thing a stream of events said.
#[derive(Clone, Debug)]
pub enum Item {
    /// An event.
    Event(Box<Event>),
    /// Events may be missing here.
    Gap(Gap),
    /// The stream lives.
    Bookmark(Bookmark),
    /// The gateway is going away.
    Drain(Drain),
}

/// An item, and when it came.
#[derive(Clone, Debug)]
pub struct Received {
    /// When it was read from the stream.
    pub at: Instant,
    /// What it was.
    pub item: Item,
    /// The cursor to resume behind the frame that brought it.
    pub cursor: String,
}

/// A stream of events, read as fast as it comes.
#[derive(Debug)]
pub struct EventLog {
    shared: Arc<Shared>,
    changed: watch::Receiver<()>,
    // Ends the reading with the log.
    _task: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Shared {
    received: Mutex<Vec<Received>>,
    /// How the stream ended.
    end: Mutex<Option<Result<(), Status>>>,
}

impl EventLog {
    pub(crate) fn of(stream: Streaming<v1::StreamEventsResponse>) -> Self {
        let shared = Arc::new(Shared::default());
        let (notify, changed) = watch::channel(());
        let mut task = JoinSet::new();
        task.spawn(read(stream, Arc::clone(&shared), notify));
        Self {
            shared,
            changed,
            _task: task,
        }
    }

    /// Everything so far.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        lock(&self.shared.received).clone()
    }

    /// The events so far.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        let received = lock(&self.shared.received);
        received
            .iter()
            .filter_map(|received| received.item.event().cloned())
            .collect()
    }

    /// How the stream ended, once it has.
    #[must_use]
    pub fn end(&self) -> Option<Result<(), Status>> {
        lock(&self.shared.end).clone()
    }

    /// The cursor behind the last frame.
    ///
    /// # Errors
    /// There was none yet.
    pub fn cursor(&self) -> Result<String> {
        let received = lock(&self.shared.received);
        let last = received
            .iter()
            .rev()
            .find(|received| !received.cursor.is_empty());
        last.map(|received| received.cursor.clone())
            .context("no frame yet")
    }

    /// Waits for the first item, of those received already or to come, for which
    /// `wanted` holds.
    ///
    /// # Errors
    /// None came within `timeout`, or the stream ended; what came is in the error.
    pub async fn wait(
        &self,
        what: &str,
        timeout: Duration,
        wanted: impl Fn(&Item) -> bool,
    ) -> Result<Received> {
        let mut changed = self.changed.clone();
        let found = tokio::time::timeout(timeout, async {
            loop {
                changed.mark_unchanged();
                let found = {
                    let received = lock(&self.shared.received);
                    received
                        .iter()
                        .find(|received| wanted(&received.item))
                        .cloned()
                };
                if found.is_some() {
                    return found;
                }
                // The sender is gone when the stream has ended.
                if changed.changed().await.is_err() {
                    return None;
                }
            }
        })
        .await;
        found.ok().flatten().with_context(|| {
            let kinds: Vec<String> = self.received().iter().map(|it| it.item.summary()).collect();
            format!(
                "waited {timeout:?} in vain for {what}; stream end: {:?}; received:\n  {}",
                self.end(),
                kinds.join("\n  "),
            )
        })
    }

    /// Waits for the first event for which `wanted` holds, and gives it with its time.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub async fn wait_event(
        &self,
        what: &str,
        timeout: Duration,
        wanted: impl Fn(&Event) -> bool,
    ) -> Result<(Event, Instant)> {
        let received = self
            .wait(what, timeout, |item| item.event().is_some_and(&wanted))
            .await?;
        let event = received.item.event().cloned().context("not an event")?;
        Ok((event, received.at))
    }
}

impl Item {
    /// The event, if it is one.
    #[must_use]
    pub fn event(&self) -> Option<&Event> {
        match self {
            Self::Event(event) => Some(event),
            Self::Gap(_) | Self::Bookmark(_) | Self::Drain(_) => None,
        }
    }

    /// The gap, if it is one.
    #[must_use]
    pub fn gap(&self) -> Option<&Gap> {
        match self {
            Self::Gap(gap) => Some(gap),
            Self::Event(_) | Self::Bookmark(_) | Self::Drain(_) => None,
        }
    }

    /// A line for a person.
    fn summary(&self) -> String {
        match self {
            Self::Event(event) => {
                let client = event.client.as_ref();
                let name = client.map_or("", |client| &client.common_name);
                format!(
                    "{} {} {} {name} {:?}",
                    event.sequence, event.instance, event.kind, event.detail
                )
            }
            other => format!("{other:?}"),
        }
    }
}

async fn read(
    mut stream: Streaming<v1::StreamEventsResponse>,
    shared: Arc<Shared>,
    notify: watch::Sender<()>,
) {
    let end = loop {
        let frame = match stream.message().await {
            Ok(Some(response)) => response.frame,
            Ok(None) => break Ok(()),
            Err(status) => break Err(status),
        };
        let at = Instant::now();
        let (items, cursor) = match frame {
            Some(Frame::Batch(batch)) => {
                let events = batch
                    .events
                    .into_iter()
                    .map(|event| Item::Event(Box::new(event)));
                (events.collect(), batch.cursor)
            }
            Some(Frame::Bookmark(bookmark)) => {
                (vec![Item::Bookmark(bookmark.clone())], bookmark.cursor)
            }
            Some(Frame::Gap(gap)) => (vec![Item::Gap(gap.clone())], gap.cursor),
            Some(Frame::Drain(drain)) => (vec![Item::Drain(drain.clone())], drain.cursor),
            None => continue,
        };
        let mut received = lock(&shared.received);
        if received.len() + items.len() > FRAMES_MAX {
            break Err(Status::resource_exhausted("the lab's event log is full"));
        }
        for item in items {
            received.push(Received {
                at,
                item,
                cursor: cursor.clone(),
            });
        }
        drop(received);
        notify.send_replace(());
    };
    *lock(&shared.end) = Some(end);
}

/// Guards what is whole after every assignment, so a panic elsewhere leaves it usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
