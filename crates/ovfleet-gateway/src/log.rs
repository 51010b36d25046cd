//! The gateway's own log as events, for callers that cannot read its files.
//!
//! What a stream sends may itself be logged, which would be sent, and so on:
//! therefore only our own notices of some weight are taken, and only so many a
//! second.

use std::{
    fmt::{self, Write as _},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use openvpn_fleet::Detail;
use openvpn_management::{LogFlags, Text};
use tokio::{sync::mpsc, time::Instant};
use tracing::{
    Event, Level, Subscriber,
    field::Field,
    span::{Attributes, Id},
};
use tracing_subscriber::{
    layer::{Context, Layer},
    registry::LookupSpan,
};

/// Lines that may wait to become events; further ones are left out and counted.
const LINES_MAX: usize = 256;
/// Lines a second that become events; further ones are left out and counted.
const LINES_PER_SECOND_MAX: u32 = 50;
/// Longest line, in bytes; a longer one is cut.
const LINE_BYTES_MAX: usize = 1_024;
/// Whose lines are taken: ours, not those of the libraries that carry them.
const TARGETS: [&str; 2] = ["ovfleet", "openvpn_"];

/// Takes lines from the process's log.
#[derive(Clone, Debug)]
pub struct LogLayer {
    lines: mpsc::Sender<Detail>,
    left_out: Arc<AtomicU64>,
}

/// The other end of a [`LogLayer`]; for [`Gateway::broadcast`](crate::Gateway::broadcast).
#[derive(Debug)]
pub struct LogBroadcast {
    lines: mpsc::Receiver<Detail>,
    left_out: Arc<AtomicU64>,
}

/// A layer for the subscriber of the process, and what turns its lines into events.
#[must_use]
pub fn log_broadcast() -> (LogLayer, LogBroadcast) {
    let (sender, receiver) = mpsc::channel(LINES_MAX);
    let left_out = Arc::new(AtomicU64::new(0));
    let layer = LogLayer {
        lines: sender,
        left_out: Arc::clone(&left_out),
    };
    (
        layer,
        LogBroadcast {
            lines: receiver,
            left_out,
        },
    )
}

/// The fields of a span, ` key=value …`, for the lines in it.
struct SpanFields(String);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for LogLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context
            .span(id)
            .filter(|span| is_ours(span.metadata().target()))
        {
            let mut line = Line::default();
            attributes.record(&mut line);
            span.extensions_mut().insert(SpanFields(line.fields));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let metadata = event.metadata();
        if !is_ours(metadata.target()) || *metadata.level() > Level::INFO {
            return;
        }
        let flags = match *metadata.level() {
            Level::ERROR => LogFlags::NON_FATAL,
            Level::WARN => LogFlags::WARNING,
            _ => LogFlags::INFORMATIONAL,
        };
        let mut line = Line::default();
        event.record(&mut line);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(SpanFields(fields)) = span.extensions().get() {
                line.fields.push_str(fields);
            }
        }
        let text = Text::from(line.finish());
        if self
            .lines
            .try_send(Detail::GatewayLog { flags, text })
            .is_err()
        {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn is_ours(target: &str) -> bool {
    TARGETS.iter().any(|ours| target.starts_with(ours))
}

impl LogBroadcast {
    /// Gives each line to `record`, until the layer is gone.
    pub(crate) async fn run(mut self, record: impl Fn(Detail)) {
        let second = Duration::from_secs(1);
        let (mut since, mut lines) = (Instant::now(), 0);
        while let Some(line) = self.lines.recv().await {
            if since.elapsed() >= second {
                (since, lines) = (Instant::now(), 0);
            }
            lines += 1;
            if lines > LINES_PER_SECOND_MAX {
                self.left_out.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            match self.left_out.swap(0, Ordering::Relaxed) {
                0 => {}
                count => record(Detail::GatewayLog {
                    flags: LogFlags::WARNING,
                    text: Text::from(format!("{count} lines are left out here")),
                }),
            }
            record(line);
        }
    }
}

/// `message key=value …`, without control characters.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl tracing::field::Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing into a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

impl Line {
    fn finish(self) -> String {
        let mut line = self.message + &self.fields;
        if line.len() > LINE_BYTES_MAX {
            line.truncate(line.floor_char_boundary(LINE_BYTES_MAX));
        }
        line.replace(char::is_control, " ")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    fn texts(details: &[Detail]) -> Vec<String> {
        let text = |detail: &Detail| match detail {
            Detail::GatewayLog { flags, text } => format!("{flags} {text}"),
            other => format!("{other:?}"),
        };
        details.iter().map(text).collect()
    }

    /// Lines of libraries would describe the sending of lines: a loop.
    #[tokio::test]
    async fn takes_our_own_lines_of_some_weight() {
        let (layer, broadcast) = log_broadcast();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::info!(instance = "eu1", "attached\nnow");
            let span = tracing::info_span!(target: "openvpn_fleet", "session", instance = "eu2");
            span.in_scope(|| tracing::warn!(target: "openvpn_session::driver", "late"));
            tracing::debug!("detail");
            tracing::error!(target: "h2::proto", "frame");
        });
        let seen = Mutex::new(Vec::new());
        broadcast
            .run(|detail| seen.lock().unwrap().push(detail))
            .await;
        assert_eq!(
            texts(&seen.into_inner().unwrap()),
            ["I attached now instance=\"eu1\"", "W late instance=\"eu2\""]
        );
    }

    /// However much is logged, the journal gets a bounded part, and says so.
    #[tokio::test]
    async fn a_flood_is_cut_and_counted() {
        let (layer, broadcast) = log_broadcast();
        let seen = Mutex::new(Vec::new());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            (0..2 * LINES_MAX).for_each(|number| tracing::info!(number, "again"));
        });
        broadcast
            .run(|detail| seen.lock().unwrap().push(detail))
            .await;
        let seen = texts(&seen.into_inner().unwrap());
        assert!(
            seen.len() <= usize::try_from(LINES_PER_SECOND_MAX).unwrap() + 1,
            "{}",
            seen.len()
        );
        assert!(
            seen[0].contains(&format!("{LINES_MAX} lines are left out")),
            "{}",
            seen[0]
        );
    }
}
