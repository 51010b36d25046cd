//! EventService: cursors into the journal.
//!
//! A stream is a reader, a filter and one frame under way. It has no queue: a
//! slow caller's events wait in the journal, with everybody else's.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use openvpn_fleet::{
    EventFilter, Gap, GapCause,
    journal::{Position, Start},
};
use ovfleet_proto::v1::{
    Bookmark, Drain, StreamEventsRequest, stream_events_request, stream_events_response::Frame,
};
use tokio::time::{Instant, sleep_until};
use tonic::{Request, Response, Status};

use super::{
    Context,
    frames::{FrameSender, FrameStream, NotSent, frame_channel},
    source::{Piece, Source},
    streams::StreamSlot,
    wire::{batch_frame, other_frame},
};
use crate::{
    convert::{self, request},
    status,
};

/// Most events in a batch.
pub(super) const BATCH_EVENTS_MAX: usize = 256;
/// A batch is sent when it has this many bytes.
const BATCH_BYTES: usize = 256 * 1024;
/// How long events may be held back to go out together when there are many.
const COALESCE: Duration = Duration::from_millis(50);
/// Batches that go out at once before holding back begins; one comes back every
/// [`COALESCE`]. A lone event, or the few of a client's connecting, never wait.
const CREDITS_MAX: u32 = 16;
/// How long a stream may be silent.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(10);
/// When a drained caller should come back.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The service.
#[derive(Debug)]
pub(crate) struct Events {
    context: Arc<Context>,
}

impl Events {
    pub(crate) const fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    /// Starts a stream in a task of its own.
    pub(crate) fn stream_events(
        &self,
        request: Request<StreamEventsRequest>,
    ) -> Result<Response<FrameStream<Bytes>>, Status> {
        let StreamEventsRequest {
            start,
            follow,
            selector,
            filter,
            kinds,
            on_gap,
        } = request.into_inner();
        let filter = request::event_filter(selector, filter, &kinds)?;
        let fail_on_gap = request::fails_on_gap(on_gap)?;
        let start = self.start(start)?;
        let slot = self.context.streams.open()?;

        let (frames, stream) = frame_channel();
        let task = EventStream {
            context: Arc::clone(&self.context),
            source: Source::new(
                self.context.fleet.journal(),
                self.context.store.as_ref(),
                start,
                &filter,
            ),
            filter: Arc::new(filter),
            fail_on_gap,
            follow: follow.unwrap_or(true),
            frames,
            slot,
            pace: Pace::new(),
        };
        self.context.tasks.spawn(task.run());
        Ok(Response::new(stream))
    }

    fn start(&self, start: Option<stream_events_request::Start>) -> Result<Start, Status> {
        use stream_events_request::Start as Asked;

        let said = |field, said: bool, start| {
            if said {
                Ok(start)
            } else {
                Err(status::invalid(
                    field,
                    "START_INVALID",
                    "must be true, or left out",
                ))
            }
        };
        match start {
            None => Err(status::invalid(
                "start",
                "START_MISSING",
                "say where to begin: now, oldest, a cursor or a time",
            )),
            Some(Asked::Now(now)) => said("now", now, Start::Now),
            Some(Asked::Oldest(oldest)) => said("oldest", oldest, Start::Oldest),
            Some(Asked::Cursor(cursor)) => self
                .context
                .cursors
                .read(&cursor)
                .map(Start::Position)
                .map_err(|error| status::cursor_invalid(&error)),
            Some(Asked::Time(time)) => SystemTime::try_from(time)
                .map(Start::Time)
                .map_err(|_| status::invalid("time", "TIME_INVALID", "not a moment")),
        }
    }
}

/// One stream, from its start to its end.
struct EventStream {
    context: Arc<Context>,
    source: Source,
    filter: Arc<EventFilter>,
    /// Ends the stream where events are no longer kept.
    fail_on_gap: bool,
    /// Goes on at the newest event.
    follow: bool,
    frames: FrameSender<Bytes>,
    slot: StreamSlot,
    pace: Pace,
}

impl EventStream {
    async fn run(mut self) {
        // However it ends, the caller has been told, or is gone.
        let _ = self.stream().await;
    }

    async fn stream(&mut self) -> Result<(), NotSent> {
        let context = Arc::clone(&self.context);
        let mut newest = context.fleet.journal().subscribe();
        // A caller that begins at the end gets its first cursor right away.
        if self.send_news().await? == 0 && self.follow {
            self.send_bookmark().await?;
        }
        while self.follow {
            let bookmark_due = self.pace.last_sent + BOOKMARK_INTERVAL;
            tokio::select! {
                () = self.frames.closed() => return Err(NotSent),
                () = context.drain.cancelled() => return self.send_drain().await,
                () = sleep_until(bookmark_due) => self.send_bookmark().await?,
                changed = newest.changed() => {
                    if changed.is_err() {
                        return self.send_drain().await;
                    }
                    self.hold_back(&mut newest).await;
                    newest.mark_unchanged();
                    self.send_news().await?;
                }
            }
        }
        Ok(())
    }

    /// When there is much to send, waits for more of it.
    async fn hold_back(&self, newest: &mut tokio::sync::watch::Receiver<u64>) {
        let Some(until) = self.pace.hold_until() else {
            return;
        };
        let full = self.position().sequence + BATCH_EVENTS_MAX as u64;
        tokio::select! {
            () = sleep_until(until) => {}
            () = self.context.drain.cancelled() => {}
            _ = newest.wait_for(|newest| *newest >= full) => {}
        }
    }

    /// Sends everything up to the newest event; gives the number of frames.
    async fn send_news(&mut self) -> Result<usize, NotSent> {
        let context = Arc::clone(&self.context);
        let mut sent = 0;
        loop {
            let (pieces, is_end) = self.source.read(&self.filter).await;
            let mut run = Run::default();
            for piece in pieces {
                match piece {
                    Piece::Event { sequence, wire } => {
                        run.push(wire, sequence);
                        if run.elements.len() >= BATCH_EVENTS_MAX || run.bytes >= BATCH_BYTES {
                            sent += self.send_run(std::mem::take(&mut run)).await?;
                        }
                    }
                    Piece::Gap { gap, resume } => {
                        sent += self.send_run(std::mem::take(&mut run)).await?;
                        self.check_gap(&gap).await?;
                        let cursor = context.cursors.write(resume);
                        let frame = Frame::Gap(convert::event::gap(&gap, cursor));
                        self.send(other_frame(frame)).await?;
                        sent += 1;
                    }
                }
            }
            sent += self.send_run(run).await?;
            self.slot.moved_to(self.position().sequence);
            if is_end {
                return Ok(sent);
            }
            if self.source.is_stored() {
                // What is old may be much: who leaves, or is told to, does not read it to the end.
                if context.drain.is_cancelled() {
                    return Ok(sent);
                }
                if self.pace.last_sent + BOOKMARK_INTERVAL <= Instant::now() {
                    self.send_bookmark().await?;
                    sent += 1;
                }
            }
        }
    }

    /// Ends the stream at a gap, if its caller wants that.
    async fn check_gap(&mut self, gap: &Gap) -> Result<(), NotSent> {
        let is_loss = matches!(
            gap.cause,
            GapCause::Compacted | GapCause::GatewayRestarted | GapCause::JournalReplaced
        );
        if !(self.fail_on_gap && is_loss) {
            return Ok(());
        }
        let oldest = self.source.oldest_whole(&self.filter).await;
        let oldest = self.context.cursors.write(oldest);
        self.frames.end(status::cursor_compacted(oldest));
        Err(NotSent)
    }

    fn position(&self) -> Position {
        self.source.position()
    }

    async fn send_run(&mut self, run: Run) -> Result<usize, NotSent> {
        if run.elements.is_empty() {
            return Ok(0);
        }
        let position = Position {
            sequence: run.last,
            ..self.position()
        };
        let frame = batch_frame(run.elements.iter(), &self.context.cursors.write(position));
        self.send(frame).await?;
        Ok(1)
    }

    async fn send(&mut self, frame: Bytes) -> Result<(), NotSent> {
        self.frames.send(frame).await?;
        self.pace.sent();
        Ok(())
    }

    async fn send_bookmark(&mut self) -> Result<(), NotSent> {
        let position = self.position();
        let bookmark = Bookmark {
            cursor: self.context.cursors.write(position),
            lag: Some(convert::duration(
                self.context.fleet.journal().lag(position),
            )),
            time: Some(convert::timestamp(SystemTime::now())),
        };
        self.send(other_frame(Frame::Bookmark(bookmark))).await
    }

    /// The last frame of an orderly shutdown, behind everything that happened.
    async fn send_drain(&mut self) -> Result<(), NotSent> {
        self.send_news().await?;
        let drain = Drain {
            cursor: self.context.cursors.write(self.position()),
            retry_after: Some(convert::duration(RETRY_AFTER)),
        };
        self.send(other_frame(Frame::Drain(drain))).await
    }
}

/// Events that go out in one batch.
#[derive(Default)]
struct Run {
    elements: Vec<Bytes>,
    bytes: usize,
    /// Sequence of the last of them.
    last: u64,
}

impl Run {
    fn push(&mut self, element: Bytes, sequence: u64) {
        self.bytes += element.len();
        self.elements.push(element);
        self.last = sequence;
    }
}

/// Decides whether news goes out at once or waits for company.
struct Pace {
    credits: u32,
    credited: Instant,
    last_sent: Instant,
}

impl Pace {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            credits: CREDITS_MAX,
            credited: now,
            last_sent: now,
        }
    }

    fn sent(&mut self) {
        let now = Instant::now();
        let earned = now.duration_since(self.credited).as_millis() / COALESCE.as_millis();
        let earned = u32::try_from(earned)
            .unwrap_or(CREDITS_MAX)
            .min(CREDITS_MAX);
        if earned > 0 {
            self.credits = CREDITS_MAX.min(self.credits + earned);
            self.credited = now;
        }
        self.credits = self.credits.saturating_sub(1);
        self.last_sent = now;
    }

    /// Until when to hold back; `None`: send at once.
    fn hold_until(&self) -> Option<Instant> {
        (self.credits == 0).then(|| self.last_sent + COALESCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails if a burst of a few events waits, or a flood does not.
    #[tokio::test(start_paused = true)]
    async fn a_few_go_at_once_and_many_go_together() {
        let mut pace = Pace::new();
        for _ in 0..CREDITS_MAX {
            assert_eq!(pace.hold_until(), None);
            pace.sent();
        }
        assert_eq!(pace.hold_until(), Some(Instant::now() + COALESCE));
        tokio::time::advance(COALESCE * 3).await;
        pace.sent();
        assert_eq!(pace.hold_until(), None);
    }
}
