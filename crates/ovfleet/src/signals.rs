//! The signals that a process of ours answers to.

use std::{future::poll_fn, task::Poll};

use anyhow::{Context as _, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Some signals, listened for since this was made: one that comes before
/// anybody waits is not lost, and does not end the process.
#[derive(Debug)]
pub(crate) struct Signals(Vec<Signal>);

impl Signals {
    pub(crate) fn listen(kinds: &[SignalKind]) -> Result<Self> {
        let listen = |kind: &SignalKind| signal(*kind).context("cannot listen for signals");
        Ok(Self(kinds.iter().map(listen).collect::<Result<_>>()?))
    }

    /// Waits for the next of them. Cancel safe.
    pub(crate) async fn next(&mut self) {
        poll_fn(|context| {
            let came = |signal: &mut Signal| signal.poll_recv(context).is_ready();
            match self.0.iter_mut().any(came) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal as Number, getpid, kill_process};

    use super::*;

    /// A service manager may change its mind while we still start.
    #[tokio::test]
    async fn a_signal_that_comes_early_is_not_lost() {
        let kinds = [SignalKind::user_defined1(), SignalKind::user_defined2()];
        let mut signals = Signals::listen(&kinds).unwrap();
        kill_process(getpid(), Number::USR2).unwrap();
        signals.next().await;
    }
}
