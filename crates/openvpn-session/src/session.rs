//! The task that owns one management socket: attempt, session, wait, attempt again.

use std::future::Future;
use std::io;
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use openvpn_management::Limits;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::address::Address;
use crate::backoff::{Backoff, Eagerness, random_fraction};
use crate::condition::Condition;
use crate::config::{DisconnectPolicy, SessionConfig};
use crate::dial::{self, DialError, Pacer};
use crate::door::Door;
use crate::driver::{Driver, Ended};
use crate::link::{Link, Stream};
use crate::login::{LoginError, login};
use crate::mailbox::{Mailbox, SessionHandle};
use crate::observation::{Moment, Observation, Observer};
use crate::password::Fingerprint;
use crate::report::Report;
use crate::slot;

/// After so many sessions that ended before they were in step the daemon is dialled every few seconds, not twice a second:
/// by then it does not restart, it is broken.
const FRUITLESS_MAX: u32 = 20;

/// One persistent session: [`run`](Self::run) is its task.
#[derive(Debug)]
pub struct Session<O> {
    config: Arc<SessionConfig>,
    report: Report<O>,
    pacer: Arc<Pacer>,
    backoff: Backoff,
    /// Times in a row that the daemon took our call and no session came of it.
    fruitless: u32,
    /// Where the daemon dials in, unless that could not be opened; stays open between two sessions.
    door: Option<Door>,
}

/// What comes next; `Break` when we were told to end.
type Next = ControlFlow<()>;

/// What remains of a session that is over.
enum Aftermath {
    /// We were told to end.
    Cancelled,
    /// Somebody asked for another attempt.
    Again,
    /// The daemon wants another password.
    Password {
        reason: String,
        tried: Option<Fingerprint>,
    },
    /// There will be another attempt after a while.
    Wait {
        condition: Condition,
        reason: String,
        eagerness: Eagerness,
    },
}

impl<O: Observer> Session<O> {
    /// A session that has not begun, and the handle to it. A daemon may dial in from here on: it waits for
    /// [`run`](Self::run).
    ///
    /// # Panics
    /// Outside a tokio runtime, when the daemon is to dial in.
    #[must_use]
    pub fn new(
        config: impl Into<Arc<SessionConfig>>,
        observer: O,
        pacer: Arc<Pacer>,
    ) -> (SessionHandle, Self) {
        let mut config = config.into();
        if config.address.is_dial_in() && config.disconnect != DisconnectPolicy::Destructive {
            Arc::make_mut(&mut config).disconnect = DisconnectPolicy::Destructive;
        }
        let (handle, mailbox) = SessionHandle::new();
        // A daemon that finds nobody listening ends. What keeps us from listening is told by the task, which tries again.
        let door = match config.address.is_dial_in() {
            true => Door::open(&config.address, &config.dial_in).ok(),
            false => None,
        };
        let session = Self {
            config,
            report: Report::new(observer, mailbox),
            pacer,
            backoff: Backoff::default(),
            fruitless: 0,
            door,
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
        if self.config.address.is_dial_in() {
            return self.attend(cancel).await;
        }
        let pacer = Arc::clone(&self.pacer);
        // Before the dial, so that a socket that appears while it fails is not missed.
        let socket = match &self.config.address {
            Address::Unix(path) => pacer.sockets.subscribe(path),
            Address::Tcp { .. }
            | Address::Tls { .. }
            | Address::ListenUnix(_)
            | Address::ListenTcp(_) => None,
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
                let aftermath = self.keep(stream, cancel).await;
                self.recover(aftermath, cancel).await
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
        dial::open(&self.config).await
    }

    /// Waits for the daemon to dial in, and turns away everybody else while it is there.
    async fn attend(&mut self, cancel: &CancellationToken) -> Next {
        let opened = match self.door.take() {
            Some(door) => Ok(door),
            None => Door::open(&self.config.address, &self.config.dial_in),
        };
        let door = match opened {
            Ok(door) => door,
            Err(error) => return self.wait_to_listen(error.to_string(), cancel).await,
        };
        let entered = tokio::select! {
            biased;
            () = cancel.cancelled() => return Next::Break(()),
            entered = self.admit(&door) => entered,
        };
        let stream = match entered {
            Ok(stream) => stream,
            Err(error) => {
                // Whoever is in line keeps its place.
                self.door = Some(door);
                let reason = format!("cannot let the daemon in: {error}");
                return self.wait_to_listen(reason, cancel).await;
            }
        };
        let mailbox = Arc::clone(&self.report.mailbox);
        // Those of the last session are none of this one's business.
        mailbox.take_turned_away();
        let aftermath = tokio::select! {
            // So that a daemon that left is not in the way of itself coming back.
            biased;
            aftermath = self.keep(stream, cancel) => aftermath,
            never = door.turn_away(&mailbox) => match never {},
        };
        // Whoever dials in from here on waits for its turn.
        self.door = Some(door);
        self.recover(aftermath, cancel).await
    }

    async fn wait_to_listen(&mut self, reason: String, cancel: &CancellationToken) -> Next {
        let (condition, eagerness) = (Condition::Unreachable, Eagerness::Watched);
        let never = std::future::pending();
        self.wait(condition, reason, eagerness, never, cancel).await
    }

    /// The daemon, once it has dialled in.
    async fn admit(&mut self, door: &Door) -> io::Result<Stream> {
        let reason = format!(
            "no daemon has dialled in at {}: it does not run, or has no --management-client with this address",
            self.config.address
        );
        self.report.stands(Condition::Unreachable, reason);
        loop {
            // Ones that come and go shall not keep us from the other sessions of a fleet.
            self.pacer.turn().await;
            match door.accept().await? {
                Ok(stream) => return Ok(stream),
                Err(refused) => self
                    .report
                    .stands(Condition::Unreachable, refused.to_string()),
            }
        }
    }

    /// Logs in and keeps the session as long as it lasts.
    async fn keep(&mut self, stream: Stream, cancel: &CancellationToken) -> Aftermath {
        let limits = Limits {
            clients_max: self.config.clients_max,
            ..Limits::default()
        };
        // Boxed, for it moves on to the driver: this future would keep room for it in both places.
        let mut link = Box::new(Link::new(stream, limits));
        // What the daemon asks may come in one read with its greeting.
        link.connection
            .tell_lines(self.report.mailbox.tap.lines_wanted());
        let greeted = login(&mut link, &self.config, &mut self.report, cancel).await;
        let (condition, reason, eagerness) = match greeted {
            Ok(management_version) => {
                self.report
                    .observe(Observation::Greeted { management_version }, Moment::now());
                self.report.stands(Condition::Syncing, "");
                let mut driver = Driver::new(
                    link,
                    management_version,
                    &self.config,
                    self.pacer.tables.turn(),
                    &mut self.report,
                );
                let (ended, attached) = driver.run(cancel).await;
                if attached >= self.config.timings.healthy_after {
                    self.backoff.reset();
                }
                self.fruitless = match attached {
                    Duration::ZERO => self.fruitless.saturating_add(1),
                    _ => 0,
                };
                match ended {
                    Ended::Cancelled => return Aftermath::Cancelled,
                    Ended::Broken(reason) => {
                        (Condition::Connecting, reason, self.eagerness_after())
                    }
                    // It would break the protocol again, and cost as much.
                    Ended::Violated(reason) => (Condition::Connecting, reason, Eagerness::Remote),
                }
            }
            Err(LoginError::Cancelled) => return Aftermath::Cancelled,
            Err(LoginError::PasswordRetry) => return Aftermath::Again,
            Err(LoginError::Password { reason, tried }) => {
                return Aftermath::Password { reason, tried };
            }
            Err(LoginError::Closed { reason }) => {
                self.fruitless = self.fruitless.saturating_add(1);
                (Condition::Unreachable, reason, self.eagerness_after())
            }
            // Whatever it is, it should not be asked twice a second.
            Err(LoginError::Foreign { reason }) => {
                (Condition::Unreachable, reason, Eagerness::Remote)
            }
        };
        Aftermath::Wait {
            condition,
            reason,
            eagerness,
        }
    }

    /// Waits for what the end of a session calls for.
    async fn recover(&mut self, aftermath: Aftermath, cancel: &CancellationToken) -> Next {
        match aftermath {
            Aftermath::Cancelled => Next::Break(()),
            Aftermath::Again => Next::Continue(()),
            Aftermath::Password { reason, tried } => {
                self.wait_for_password(reason, tried, cancel).await
            }
            Aftermath::Wait {
                condition,
                reason,
                eagerness,
            } => {
                let never = std::future::pending();
                self.wait(condition, reason, eagerness, never, cancel).await
            }
        }
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

    /// How eagerly to dial a daemon that did answer: less, when nothing ever comes of it.
    fn eagerness_after(&self) -> Eagerness {
        match self.eagerness() {
            Eagerness::Local if self.fruitless >= FRUITLESS_MAX => Eagerness::Watched,
            eagerness => eagerness,
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
