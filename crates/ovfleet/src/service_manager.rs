//! What a service manager such as systemd is told, when it asks to be (`$NOTIFY_SOCKET`).

use sd_notify::NotifyState;
use tracing::debug;

/// Callers are served; `status` says where.
pub(crate) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// What the process does, in a line for people.
pub(crate) fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// The configuration is being read again; [`ready`] says that this is over.
pub(crate) fn reloading() {
    // Whoever asked for it takes only what is later than that for its answer.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => debug!(%error, "cannot tell the service manager"),
    }
}

/// The process is to end.
pub(crate) fn stopping(status: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!(%error, "cannot tell the service manager");
    }
}
