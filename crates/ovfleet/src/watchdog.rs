//! Ends the process when ending it in order takes too long.

use std::{
    process::{abort, exit},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::process::{Signal, getpid, kill_process};
use tokio::{runtime, signal::unix::SignalKind, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::signals::Signals;

/// After that long the process has ended, whatever still hangs.
const END_MAX: Duration = Duration::from_secs(30);
/// The part of it that is left for the last words.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);

/// A thread that waits for the order to end, and then for no more than 30 s.
///
/// It has a runtime of its own and hears the signals itself: that the other threads hang, in a file or in a bug,
/// neither keeps the order from it nor holds it up.
#[derive(Debug)]
pub(crate) struct Watchdog(CancellationToken);

impl Watchdog {
    /// Begins to listen for SIGTERM and SIGINT.
    pub(crate) fn start() -> Result<Self> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the watchdog")?;
        let entered = runtime.enter();
        let mut signals = Signals::listen(&[SignalKind::terminate(), SignalKind::interrupt()])?;
        drop(entered);
        let told = CancellationToken::new();
        let watchdog = Self(told.clone());
        let watch = async move {
            tokio::select! {
                () = signals.next() => {}
                () = told.cancelled() => {}
            }
            sleep(END_MAX - LAST_WORDS_MAX).await;
            end().await;
        };
        thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(move || runtime.block_on(watch))
            .context("cannot start the watchdog")?;
        Ok(watchdog)
    }

    /// The process ends for another reason than a signal.
    pub(crate) fn tell(&self) {
        self.0.cancel();
    }
}

/// Both the words and an exit in order may hang on what hangs already: they get a thread and a second.
async fn end() {
    let last_words = || {
        eprintln!("ovfleet: the gateway did not end within {END_MAX:?}: cut");
        exit(1);
    };
    if thread::Builder::new().spawn(last_words).is_ok() {
        sleep(LAST_WORDS_MAX).await;
    }
    let _ = kill_process(getpid(), Signal::KILL);
    abort();
}
