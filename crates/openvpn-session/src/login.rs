//! From an open socket to the daemon's greeting.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;

use openvpn_management::{Output, Text};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::condition::Condition;
use crate::config::{DisconnectPolicy, SessionConfig};
use crate::link::{Link, Received};
use crate::observation::{Moment, Observer};
use crate::password::{self, Fingerprint, PasswordError};
use crate::report::Report;
use crate::slot;

/// Why there is no greeting.
#[derive(Debug)]
pub(crate) enum LoginError {
    /// We were told to end.
    Cancelled,
    /// The daemon wants a password and did not get the right one.
    Password {
        reason: String,
        /// The password file when it was read; `None` if there was none to look at.
        tried: Option<Fingerprint>,
    },
    /// The same, and somebody asked for another attempt meanwhile.
    PasswordRetry,
    /// The connection ended.
    Closed { reason: String },
    /// What answers is no management interface.
    Foreign { reason: String },
}

/// Waits for the greeting and answers the question for the password; gives the management version.
///
/// Silence is waited out: the next in line is greeted a millisecond after the holder of the slot leaves, so that we keep
/// our place and write nothing.
pub(crate) async fn login<O: Observer>(
    link: &mut Link,
    config: &SessionConfig,
    report: &mut Report<O>,
    cancel: &CancellationToken,
) -> Result<Option<u32>, LoginError> {
    let mut tried = None;
    let mut silence = Silence::of(config);
    loop {
        let received = receive(link)?;
        while let Some(output) = link.poll_output() {
            match output {
                Output::PasswordRequested => {
                    tried = config.password_file.as_deref().and_then(Fingerprint::of);
                    if let Err(error) = send_password(link, config).await {
                        let reason = error.to_string();
                        return Err(refused(link, config, report, cancel, reason, tried).await);
                    }
                    silence = Silence::of(config);
                }
                Output::PasswordRefused => {
                    let reason = refusal(config.password_file.as_deref());
                    return Err(refused(link, config, report, cancel, reason, tried).await);
                }
                Output::PasswordAccepted => {}
                Output::Greeted {
                    management_version,
                    banner,
                } => {
                    report.mailbox.tap.greeted(banner);
                    link.settle();
                    return Ok(management_version);
                }
                Output::Violation(violation) => {
                    let reason = foreign(config, &violation.to_string());
                    return Err(LoginError::Foreign { reason });
                }
                // None of these can come before the greeting; the daemon says nothing to strangers.
                Output::Notification(_)
                | Output::Line(_)
                | Output::Reply { .. }
                | Output::Unanswered { .. }
                | Output::Lost { .. }
                | Output::Responsive
                | Output::Unsolicited(_) => {}
            }
        }
        if let Some(bytes) = link.foreign_first_bytes() {
            let reason = foreign(config, &format!("it says {:?}", Text::from(bytes)));
            return Err(LoginError::Foreign { reason });
        }
        link.transmit().map_err(lost)?;
        if let Received::Bytes(_) = received {
            continue;
        }
        tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(LoginError::Cancelled),
            ready = link.ready() => ready.map_err(lost)?,
            reason = silence.reason(config, tried.is_some()) => {
                // One that dials in has nobody else to talk to.
                let condition = if config.address.is_dial_in() {
                    Condition::Unresponsive
                } else {
                    Condition::SlotBusy
                };
                report.stands(condition, reason);
            }
        }
    }
}

/// A daemon that says nothing, and what we make of it.
enum Silence {
    /// It may take its time until then.
    Until(Instant),
    /// We look for the reason, still listening.
    Asking(Pin<Box<dyn Future<Output = String> + Send>>),
    /// We have said so, and wait on.
    Endured,
}

impl Silence {
    fn of(config: &SessionConfig) -> Self {
        Self::Until(Instant::now() + config.timings.greeting_deadline)
    }

    /// Why the daemon stays silent, once that takes too long; ends once. Cancel safe.
    async fn reason(&mut self, config: &SessionConfig, password_sent: bool) -> String {
        loop {
            match self {
                Self::Until(deadline) => {
                    sleep_until(*deadline).await;
                    if password_sent {
                        *self = Self::Endured;
                        return "the daemon does not answer the password".to_owned();
                    }
                    let address = config.address.clone();
                    *self = Self::Asking(Box::pin(async move { slot::describe(&address).await }));
                }
                Self::Asking(description) => {
                    let reason = description.await;
                    *self = Self::Endured;
                    return reason;
                }
                Self::Endured => std::future::pending().await,
            }
        }
    }
}

fn receive(link: &mut Link) -> Result<Received, LoginError> {
    match link.receive(Moment::now().monotonic) {
        Ok(Received::End) => Err(LoginError::Closed {
            reason: if link.has_received() {
                "the daemon closed the connection during the login".to_owned()
            } else {
                "the daemon closed the connection without a greeting; if it has --management-client-user or \
                 --management-client-group, the gateway must run as that user or group"
                    .to_owned()
            },
        }),
        Ok(received) => Ok(received),
        Err(error) => Err(lost(error)),
    }
}

fn lost(error: std::io::Error) -> LoginError {
    LoginError::Closed {
        reason: format!("the connection broke during the login: {error}"),
    }
}

fn foreign(config: &SessionConfig, evidence: &str) -> String {
    format!(
        "what listens at {} is no OpenVPN management interface: {evidence}",
        config.address
    )
}

async fn send_password(link: &mut Link, config: &SessionConfig) -> Result<(), PasswordError> {
    let path = config
        .password_file
        .clone()
        .ok_or(PasswordError::NotConfigured)?;
    let password = spawn_blocking({
        let (path, within) = (path.clone(), config.files_within.clone());
        move || password::read(&path, within.as_deref())
    })
    .await
    .unwrap_or_else(|panic| Err(PasswordError::unreadable(&path, panic.into())))?;
    link.connection
        .send_password(&password)
        .map_err(|error| PasswordError::NotSendable { path, error })
}

fn refusal(password_file: Option<&Path>) -> String {
    match password_file {
        Some(path) => format!(
            "the daemon refused the password in {}: correct the file; it is tried again when it changes",
            path.display()
        ),
        None => PasswordError::NotConfigured.to_string(),
    }
}

/// Ends a login that failed for its password: at once, or, where that would harm the daemon, not before it must be.
async fn refused<O: Observer>(
    link: &mut Link,
    config: &SessionConfig,
    report: &mut Report<O>,
    cancel: &CancellationToken,
    reason: String,
    tried: Option<Fingerprint>,
) -> LoginError {
    if config.disconnect == DisconnectPolicy::Harmless {
        return LoginError::Password { reason, tried };
    }
    report.stands(Condition::AuthFailed, reason.clone());
    loop {
        tokio::select! {
            biased;
            () = cancel.cancelled() => return LoginError::Cancelled,
            () = report.mailbox.wake.notified() => {
                // One that dialled in would end, and cannot be dialled again.
                if report.mailbox.take_retry() && !config.address.is_dial_in() {
                    return LoginError::PasswordRetry;
                }
            }
            ready = link.ready() => {
                let now = Moment::now().monotonic;
                let is_over = ready.is_err()
                    || !matches!(link.receive(now), Ok(Received::Bytes(_) | Received::Nothing));
                if is_over {
                    return LoginError::Password { reason, tried };
                }
                // Prompts, perhaps; there is nothing more to say to them.
                while link.poll_output().is_some() {}
            }
        }
    }
}
