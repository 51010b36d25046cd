//! Whether anybody needs this process.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use openvpn_fleet::{Fleet, Instance};
use tokio::time::sleep;

/// The shortest and the longest rest between two looks.
const REST: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));

/// When callers were last there.
#[derive(Clone, Debug)]
pub(crate) struct Activity(Arc<Mutex<State>>);

/// Guarded by a lock that is held for an assignment.
#[derive(Debug)]
struct State {
    /// Connections of callers now.
    connections: usize,
    /// The end of the last connection.
    last: Instant,
}

/// A caller that is connected, until dropped.
#[derive(Debug)]
pub(crate) struct CallerPresent(Activity);

impl Activity {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            connections: 0,
            last: Instant::now(),
        })))
    }

    fn with<T>(&self, access: impl FnOnce(&mut State) -> T) -> T {
        access(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn caller_present(&self) -> CallerPresent {
        self.with(|state| state.connections += 1);
        CallerPresent(self.clone())
    }

    /// Connections of callers now.
    pub(crate) fn connections(&self) -> usize {
        self.with(|state| state.connections)
    }

    /// For how long no caller was connected; zero while somebody is connected.
    pub(crate) fn quiet_for(&self) -> Duration {
        self.with(|state| match state.connections {
            0 => state.last.elapsed(),
            _ => Duration::ZERO,
        })
    }
}

impl Drop for CallerPresent {
    fn drop(&mut self) {
        self.0.with(|state| {
            state.connections -= 1;
            state.last = Instant::now();
        });
    }
}

/// Tells when nobody needs the process any more.
#[derive(Debug)]
pub struct IdleWatch {
    fleet: Fleet,
    activity: Activity,
}

impl IdleWatch {
    pub(crate) fn new(fleet: Fleet, activity: Activity) -> Self {
        Self { fleet, activity }
    }

    /// Waits until, for so long, no caller was connected and none called, and
    /// no instance is attached. Cancel safe.
    pub async fn wait(&self, quiet: Duration) {
        loop {
            let calm = self.activity.quiet_for();
            if calm >= quiet
                && !self
                    .fleet
                    .instances()
                    .iter()
                    .any(|instance| is_attached(instance))
            {
                return;
            }
            sleep(quiet.saturating_sub(calm).clamp(REST.0, REST.1)).await;
        }
    }
}

fn is_attached(instance: &Instance) -> bool {
    instance.with_table(|table| table.status().is_attached())
}
