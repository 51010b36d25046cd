//! `events`: everything that happens, in order, over as many connections as it
//! takes.

use std::time::Duration;

use ovfleet_proto::v1::{StreamEventsRequest, StreamEventsResponse, stream_events_response::Frame};
use tonic::Status;

use crate::{
    args::{EventsArgs, Format},
    describe,
    failure::{Failure, Outcome, Verdict, is_passing},
    gateway::Gateway,
    output::{Output, note},
    start::Start,
    table::Tone,
    text::escape,
};

/// How one connection's stream ended.
enum End {
    /// With OK, at its newest event.
    Complete,
    /// The gateway goes away, and said when to come back.
    Drained(Duration),
    Lost(Status),
}

/// Waits between attempts to get the stream back.
const RETRY_DELAY_MIN: Duration = Duration::from_millis(500);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(10);

pub(crate) async fn run(gateway: &Gateway, args: EventsArgs, output: &mut Output) -> Outcome {
    let mut stream = EventStream::new(args);
    let outcome = tokio::select! {
        outcome = stream.run(gateway, output) => outcome?,
        _ = tokio::signal::ctrl_c() => Verdict::Done,
    };
    note(&stream.farewell());
    Ok(outcome)
}

/// A stream that goes on where the last connection stopped.
pub(crate) struct EventStream {
    args: EventsArgs,
    /// From where the next connection starts: behind what was shown.
    start: Start,
}

impl EventStream {
    pub(crate) fn new(args: EventsArgs) -> Self {
        let start = args.from.clone();
        Self { args, start }
    }

    /// Shows events until the stream is complete, over as many connections as
    /// it takes. May be dropped at any time: what was shown is behind `start`.
    pub(crate) async fn run(&mut self, gateway: &Gateway, output: &mut Output) -> Outcome {
        let mut retry_delay = RETRY_DELAY_MIN;
        let mut served_before = false;
        loop {
            let mut heard = false;
            let end = self.follow(gateway, output, &mut heard).await?;
            if heard {
                retry_delay = RETRY_DELAY_MIN;
            }
            served_before |= heard;
            let wait = match end {
                End::Complete => return Ok(Verdict::Done),
                End::Drained(after) => after.max(RETRY_DELAY_MIN),
                End::Lost(status) => {
                    // A first call that fails shows what is wrong with the
                    // request; only a stream that ran is worth waiting for.
                    if !served_before || !is_passing(&status) {
                        return Err(gateway.failure(status));
                    }
                    let wait = retry_delay;
                    retry_delay = (retry_delay * 2).min(RETRY_DELAY_MAX);
                    note(&format!(
                        "ovfleet: lost the stream ({}); resuming in {:.1} s",
                        escape(status.message()),
                        wait.as_secs_f32()
                    ));
                    wait
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// One connection's part of the stream; `heard` when it sent anything.
    async fn follow(
        &mut self,
        gateway: &Gateway,
        output: &mut Output,
        heard: &mut bool,
    ) -> Result<End, Failure> {
        let request = StreamEventsRequest {
            start: Some((&self.start).into()),
            follow: Some(!self.args.no_follow),
            selector: Some(self.args.instances.selector()),
            filter: Some(self.args.filter.filter()),
            kinds: self.args.kind.clone(),
            on_gap: 0,
        };
        let mut frames = match gateway.events().stream_events(request).await {
            Ok(response) => response.into_inner(),
            Err(status) => return Ok(End::Lost(status)),
        };
        loop {
            match frames.message().await {
                Ok(Some(frame)) => {
                    *heard = true;
                    show(&frame, self.args.wide, output)?;
                    if let Some(after) = self.advance(frame) {
                        return Ok(End::Drained(after));
                    }
                }
                Ok(None) if self.args.no_follow => return Ok(End::Complete),
                // A stream that follows has no end of its own.
                Ok(None) => return Ok(End::Drained(RETRY_DELAY_MIN)),
                Err(status) => return Ok(End::Lost(status)),
            }
        }
    }

    /// Moves the start behind a frame that has been shown; tells when the
    /// gateway wants us back, if it is going away.
    fn advance(&mut self, frame: StreamEventsResponse) -> Option<Duration> {
        let (cursor, drained) = match frame.frame? {
            Frame::Batch(batch) => (batch.cursor, None),
            Frame::Bookmark(bookmark) => (bookmark.cursor, None),
            Frame::Gap(gap) => (gap.cursor, None),
            Frame::Drain(drain) => {
                let after = drain.retry_after.unwrap_or_default();
                (
                    drain.cursor,
                    Some(Duration::try_from(after).unwrap_or(RETRY_DELAY_MIN)),
                )
            }
        };
        if !cursor.is_empty() {
            self.start = Start::Cursor(cursor);
        }
        drained
    }

    /// How to go on later.
    fn farewell(&self) -> String {
        match &self.start {
            Start::Cursor(cursor) => format!("ovfleet: resume with --from {cursor}"),
            Start::Now | Start::Oldest | Start::Time(_) => {
                "ovfleet: nothing came, so there is no cursor to resume from".to_owned()
            }
        }
    }
}

fn show(frame: &StreamEventsResponse, wide: bool, output: &mut Output) -> Result<(), Failure> {
    match (output.format(), &frame.frame) {
        (Format::Json, _) => output.json_line("StreamEventsResponse", frame),
        (Format::Jsonl, Some(Frame::Batch(batch))) => output.json_lines("Event", &batch.events),
        // {"gap": …}: the frame as it is.
        (Format::Jsonl, Some(Frame::Gap(_))) => output.json_line("StreamEventsResponse", frame),
        (Format::Table, Some(Frame::Batch(batch))) => {
            let mut text = String::new();
            for event in &batch.events {
                let (line, tone) = describe::event(event, wide);
                text += &output.paint(tone, &line);
                text.push('\n');
            }
            output.text(&text)
        }
        (Format::Table, Some(Frame::Gap(gap))) => {
            let line = output.paint(Tone::Bad, &describe::gap(gap));
            output.line(&line)
        }
        (Format::Table | Format::Jsonl, Some(Frame::Drain(_))) => {
            note("ovfleet: the gateway is going away; the stream resumes when it is back");
            Ok(())
        }
        // Bookmarks are for the cursor alone, and frames of a newer gateway for
        // newer callers.
        (Format::Table | Format::Jsonl, Some(Frame::Bookmark(_)) | None) => Ok(()),
    }
}
