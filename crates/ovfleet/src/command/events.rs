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
};

/// Waits between attempts to get the stream back.
const RETRY_DELAY_MIN: Duration = Duration::from_millis(500);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(10);

pub(crate) async fn run(gateway: &Gateway, args: EventsArgs, output: &mut Output) -> Outcome {
    let mut stream = Resumable {
        start: args.from.clone(),
        ended: false,
        heard: false,
    };
    let mut retry_delay = RETRY_DELAY_MIN;
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    loop {
        let end = tokio::select! {
            end = stream.follow(gateway, &args, output) => end?,
            _ = &mut interrupted => {
                note(&stream.farewell());
                return Ok(Verdict::Done);
            }
        };
        if stream.heard {
            retry_delay = RETRY_DELAY_MIN;
        }
        let wait = match end {
            End::Complete => {
                if args.no_follow && matches!(stream.start, Start::Cursor(_)) {
                    note(&stream.farewell());
                }
                return Ok(Verdict::Done);
            }
            End::Drained(after) => after.max(RETRY_DELAY_MIN),
            End::Lost(status) => {
                // The first call shows what is wrong with the request, or that
                // nobody is there; only a stream that ran is worth waiting for.
                if !is_passing(&status) || (!stream.heard && !stream.ended) {
                    return Err(gateway.failure(status));
                }
                let wait = retry_delay;
                retry_delay = (retry_delay * 2).min(RETRY_DELAY_MAX);
                note(&format!(
                    "ovfleet: lost the stream ({}); resuming in {:.1} s",
                    crate::text::escape(status.message()),
                    wait.as_secs_f32()
                ));
                if matches!(stream.start, Start::Now) {
                    note("ovfleet: no cursor came yet: what happens until then is not shown");
                }
                wait
            }
        };
        stream.ended = true;
        stream.heard = false;
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = &mut interrupted => {
                note(&stream.farewell());
                return Ok(Verdict::Done);
            }
        }
    }
}

/// A stream that goes on where the last connection stopped.
struct Resumable {
    /// From where the next connection starts: behind what was shown.
    start: Start,
    /// A connection served us before.
    ended: bool,
    /// The present connection sent something.
    heard: bool,
}

/// How one connection's stream ended.
enum End {
    /// With OK, at its newest event.
    Complete,
    /// The gateway goes away, and said when to come back.
    Drained(Duration),
    Lost(Status),
}

impl Resumable {
    async fn follow(
        &mut self,
        gateway: &Gateway,
        args: &EventsArgs,
        output: &mut Output,
    ) -> Result<End, Failure> {
        let request = StreamEventsRequest {
            start: Some((&self.start).into()),
            follow: Some(!args.no_follow),
            selector: Some(args.instances.selector()),
            filter: Some(args.filter.filter()),
            kinds: args.kind.clone(),
            on_gap: 0,
        };
        let mut frames = match gateway.events().stream_events(request).await {
            Ok(response) => response.into_inner(),
            Err(status) => return Ok(End::Lost(status)),
        };
        loop {
            match frames.message().await {
                Ok(Some(frame)) => {
                    self.heard = true;
                    show(&frame, args.wide, output)?;
                    if let Some(after) = self.advance(frame) {
                        return Ok(End::Drained(after));
                    }
                }
                Ok(None) if args.no_follow => return Ok(End::Complete),
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
