//! The way of a stream's frames to a caller, who may not read them.

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use tokio::sync::mpsc::{self, error::SendTimeoutError};
use tokio_stream::Stream;
use tonic::Status;

use crate::status;

/// How long a caller may leave a frame unread before it is cut off.
pub(super) const BLOCKED_MAX: Duration = Duration::from_secs(60);

/// Frames that may wait for a caller who does not read. What follows waits in
/// the journal, where it costs nothing.
const FRAMES_WAITING_MAX: usize = 1;

/// Frames, then how the stream ended.
#[derive(Debug)]
pub(crate) struct FrameStream<F> {
    frames: mpsc::Receiver<F>,
    // Beside the queue: a caller that does not read has it full.
    last_word: Arc<OnceLock<Status>>,
}

/// The sending end of a [`FrameStream`]; dropped, the stream ends with OK.
#[derive(Debug)]
pub(crate) struct FrameSender<F> {
    frames: mpsc::Sender<F>,
    last_word: Arc<OnceLock<Status>>,
}

/// The caller is gone, or does not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotSent;

pub(crate) fn frame_channel<F>() -> (FrameSender<F>, FrameStream<F>) {
    let (sender, receiver) = mpsc::channel(FRAMES_WAITING_MAX);
    let last_word = Arc::new(OnceLock::new());
    (
        FrameSender {
            frames: sender,
            last_word: Arc::clone(&last_word),
        },
        FrameStream {
            frames: receiver,
            last_word,
        },
    )
}

impl<F> FrameSender<F> {
    /// Sends a frame. A caller that takes nothing for [`BLOCKED_MAX`] is cut off:
    /// the next thing it reads, after what waits for it, is why.
    pub(crate) async fn send(&self, frame: F) -> Result<(), NotSent> {
        match self.frames.send_timeout(frame, BLOCKED_MAX).await {
            Ok(()) => Ok(()),
            Err(SendTimeoutError::Closed(_)) => Err(NotSent),
            Err(SendTimeoutError::Timeout(_)) => {
                self.end(status::slow_caller(BLOCKED_MAX));
                Err(NotSent)
            }
        }
    }

    /// Makes the stream end with an error once this is dropped.
    pub(crate) fn end(&self, status: Status) {
        // The first reason to end is the reason.
        self.last_word.get_or_init(|| status);
    }

    /// Waits until the caller is gone.
    pub(crate) async fn closed(&self) {
        self.frames.closed().await;
    }
}

impl<F> Stream for FrameStream<F> {
    type Item = Result<F, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match std::task::ready!(self.frames.poll_recv(cx)) {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => {
                let last_word = std::mem::take(&mut self.last_word);
                Poll::Ready(last_word.get().cloned().map(Err))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt as _;

    use super::*;

    /// Fails if a caller that stops reading is waited for without end, or is not
    /// told why its stream ended.
    #[tokio::test(start_paused = true)]
    async fn a_caller_that_does_not_read_is_cut_off_and_told() {
        let (sender, mut stream) = frame_channel();
        assert_eq!(sender.send(1).await, Ok(()));
        assert_eq!(sender.send(2).await, Err(NotSent));
        drop(sender);
        assert_eq!(stream.next().await.unwrap().unwrap(), 1);
        let status = stream.next().await.unwrap().unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert!(stream.next().await.is_none());
    }
}
