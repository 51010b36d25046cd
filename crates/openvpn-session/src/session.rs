//! The task that owns one management socket.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::config::SessionConfig;
use crate::dial::DialPacer;
use crate::mailbox::{Mailbox, SessionHandle};
use crate::observation::Observer;

/// One persistent session: [`run`](Self::run) is its task.
#[derive(Debug)]
pub struct Session<O> {
    config: SessionConfig,
    observer: O,
    pacer: Arc<DialPacer>,
    mailbox: Arc<Mailbox>,
}

impl<O: Observer> Session<O> {
    /// A session that has not begun, and the handle to it.
    #[must_use]
    pub fn new(config: SessionConfig, observer: O, pacer: Arc<DialPacer>) -> (SessionHandle, Self) {
        let (handle, mailbox) = SessionHandle::new();
        let session = Self {
            config,
            observer,
            pacer,
            mailbox,
        };
        (handle, session)
    }

    /// Keeps the session until `cancel`led. Cancelling leaves the daemon's slot at once.
    pub async fn run(self, cancel: CancellationToken) {
        self.pacer.turn().await;
        cancel.cancelled().await;
        self.mailbox.close();
        drop((self.config, self.observer));
    }
}
