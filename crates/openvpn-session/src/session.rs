//! The task that owns one management socket: attempt, session, wait, attempt again.

use std::future::Future;
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;

use openvpn_management::Limits;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::address::Address;
use crate::backoff::{Backoff, Eagerness, random_fraction};
use crate::condition::Condition;
use crate::config::{DisconnectPolicy, SessionConfig};
use crate::dial::{self, DialError, DialPacer};
use crate::driver::{Driver, Ended};
use crate::link::{Link, Stream};
use crate::login::{LoginError, login};
use crate::mailbox::{Mailbox, SessionHandle};
use crate::observation::{Moment, Observation, Observer};
use crate::password::Fingerprint;
use crate::report::Report;
use crate::slot;

/// One persistent session: [`run`](Self::run) is its task.
#[derive(Debug)]
pub struct Session<O> {
    config: SessionConfig,
    report: Report<O>,
    pacer: Arc<DialPacer>,
    backoff: Backoff,
}

/// What comes next; `Break` when we were told to end.
type Next = ControlFlow<()>;

impl<O: Observer> Session<O> {
    /// A session that has not begun, and the handle to it.
    #[must_use]
    pub fn new(config: SessionConfig, observer: O, pacer: Arc<DialPacer>) -> (SessionHandle, Self) {
        let (handle, mailbox) = SessionHandle::new();
        let session = Self {
            config,
            report: Report::new(observer, mailbox),
            pacer,
            backoff: Backoff::default(),
        };
        (handle, session)
    }

    /// Keeps the session until `cancel`led. Cancelling leaves the daemon's slot at once.
    pub async fn run(mut self, cancel: CancellationToken) {
        // Also when this task panics or is dropped: whoever waits for an answer gets one.
        let _closes = CloseOnDrop(Arc::clone(&self.report.mailbox));
        self.report.stands(Condition::Connecting, "");
        while self.attempt(&cancel).await.is_continue() {}
    }

    /// One attempt with all that comes of it, and the wait after it.
    async fn attempt(&mut self, cancel: &CancellationToken) -> Next {
        let pacer = Arc::clone(&self.pacer);
        // Before the dial, so that a socket that appears while it fails is not missed.
        let socket = match &self.config.address {
            Address::Unix(path) => pacer.sockets.subscribe(path),
            Address::Tcp { .. } => None,
        };
        let appeared = socket.as_ref().map(|socket| socket.appeared());
        let dialled = tokio::select! {
            biased;
            () = cancel.cancelled() => return Next::Break(()),
            dialled = self.dial() => dialled,
        };
        match dialled {
            Ok(stream) => {
                drop(appeared);
                drop(socket);
                self.use_stream(stream, cancel).await
            }
            Err(error) => {
                let (condition, reason) = match &error {
                    DialError::QueueFull => (Condition::SlotBusy, self.describe_slot().await),
                    _ => (Condition::Unreachable, error.to_string()),
                };
                let eagerness = match &error {
                    DialError::QueueFull => Eagerness::QueueFull,
                    DialError::Missing(_) if socket.is_some() => Eagerness::Watched,
                    _ => self.eagerness(),
                };
                let appeared = async move {
                    match appeared {
                        Some(appeared) => appeared.await,
                        None => std::future::pending().await,
                    }
                };
                self.wait(condition, reason, eagerness, appeared, cancel)
                    .await
            }
        }
    }

    // Not `&self`, which would ask the observer to be Sync.
    async fn dial(&mut self) -> Result<Stream, DialError> {
        self.pacer.turn().await;
        dial::open(&self.config.address, &self.config.timings).await
    }

    /// Logs in and keeps the session as long as it lasts.
    async fn use_stream(&mut self, stream: Stream, cancel: &CancellationToken) -> Next {
        let limits = Limits {
            clients_max: self.config.clients_max,
            ..Limits::default()
        };
        let mut link = Link::new(stream, limits);
        // What the daemon asks may come in one read with its greeting.
        link.connection
            .tell_lines(self.report.mailbox.tap.lines_wanted());
        let greeted = login(&mut link, &self.config, &mut self.report, cancel).await;
        let (condition, reason, eagerness) = match greeted {
            Ok(management_version) => {
                self.report
                    .observe(Observation::Greeted { management_version }, Moment::now());
                self.report.stands(Condition::Syncing, "");
                let driver = Driver::new(link, &self.config, &mut self.report);
                let (ended, attached) = driver.run(cancel).await;
                let Ended::Broken(reason) = ended else {
                    return Next::Break(());
                };
                if attached >= self.config.timings.healthy_after {
                    self.backoff.reset();
                }
                (Condition::Connecting, reason, self.eagerness())
            }
            Err(LoginError::Cancelled) => return Next::Break(()),
            Err(LoginError::PasswordRetry) => return Next::Continue(()),
            Err(LoginError::Password { reason, tried }) => {
                drop(link);
                return self.wait_for_password(reason, tried, cancel).await;
            }
            Err(LoginError::Closed { reason }) => {
                (Condition::Unreachable, reason, self.eagerness())
            }
            // Whatever it is, it should not be asked twice a second.
            Err(LoginError::Foreign { reason }) => {
                (Condition::Unreachable, reason, Eagerness::Remote)
            }
        };
        let never = std::future::pending();
        self.wait(condition, reason, eagerness, never, cancel).await
    }

    /// Who holds the slot; looked up once and not at every attempt.
    async fn describe_slot(&mut self) -> String {
        match self.report.reason_of(Condition::SlotBusy) {
            Some(reason) => reason.to_owned(),
            None => slot::describe(&self.config.address).await,
        }
    }

    fn eagerness(&self) -> Eagerness {
        if self.config.address.is_local() {
            Eagerness::Local
        } else {
            Eagerness::Remote
        }
    }

    /// Waits for the next attempt: for its time, for the socket to appear, or for somebody to ask for it.
    async fn wait(
        &mut self,
        condition: Condition,
        reason: String,
        eagerness: Eagerness,
        appeared: impl Future<Output = ()>,
        cancel: &CancellationToken,
    ) -> Next {
        let wait = self
            .backoff
            .next(eagerness, &self.config.timings, random_fraction());
        let until = Instant::now() + wait;
        self.report.retries(condition, reason, wait);
        let mut appeared = pin!(appeared);
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Next::Break(()),
                () = &mut appeared => break,
                () = self.report.mailbox.wake.notified() => {
                    if self.report.mailbox.take_retry() {
                        break;
                    }
                }
                () = sleep_until(until) => return Next::Continue(()),
            }
        }
        // There is news, so the attempts that failed say nothing about the next.
        self.backoff.reset();
        Next::Continue(())
    }

    /// Waits until another try with the password makes sense: its file changes, somebody asks for it, or, where a
    /// refused try harms nobody, some minutes pass.
    async fn wait_for_password(
        &mut self,
        reason: String,
        tried: Option<Fingerprint>,
        cancel: &CancellationToken,
    ) -> Next {
        let timings = self.config.timings.clone();
        let retry_at = match self.config.disconnect {
            DisconnectPolicy::Harmless => {
                self.report
                    .retries(Condition::AuthFailed, reason, timings.password_retry);
                Some(Instant::now() + timings.password_retry)
            }
            DisconnectPolicy::Destructive => {
                self.report.stands(Condition::AuthFailed, reason);
                None
            }
        };
        loop {
            let look_at = Instant::now() + timings.password_check_interval;
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Next::Break(()),
                () = self.report.mailbox.wake.notified() => {
                    if self.report.mailbox.take_retry() {
                        return Next::Continue(());
                    }
                }
                () = sleep_until(look_at) => {
                    let now = self.config.password_file.as_deref().and_then(Fingerprint::of);
                    if now != tried || retry_at.is_some_and(|at| at <= look_at) {
                        return Next::Continue(());
                    }
                }
            }
        }
    }
}

/// Refuses all calls, for good, when it is dropped.
struct CloseOnDrop(Arc<Mailbox>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}
