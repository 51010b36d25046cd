//! The task of one daemon: owns its sockets, its state and its time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::{mpsc, oneshot, watch};

use crate::daemon::{Address, BurstReport, Daemon, RestartSignal, Settings};
use crate::{ClientSpec, ClientState, ControlError, How, Misbehaviour, StartError};

/// A scripted step, carried out by the daemon's task.
///
/// A closure and not an enum: the steps are as many as the owner's methods, and each has its own
/// answer; an enum would only list them a third time.
pub(crate) type Job = Box<dyn FnOnce(&mut Owner) + Send>;

/// What the handle can see without asking the task.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Observed {
    pub(crate) running: bool,
    pub(crate) attached: bool,
    pub(crate) pid: u32,
    pub(crate) sessions: u64,
    pub(crate) commands: u64,
}

/// Lines received from managers, shared with the handle.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    /// The last [`Daemon::COMMANDS_KEPT_MAX`] lines, oldest first. Locked for a copy only.
    commands: Mutex<VecDeque<Vec<u8>>>,
}

impl Trace {
    pub(crate) fn push(&self, line: &[u8]) {
        let mut commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        if commands.len() == Daemon::COMMANDS_KEPT_MAX {
            commands.pop_front();
        }
        commands.push_back(line.to_vec());
    }

    pub(crate) fn commands(&self) -> Vec<Vec<u8>> {
        let commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        commands.iter().cloned().collect()
    }

    pub(crate) fn has_command(&self, prefix: &[u8]) -> bool {
        let commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        commands.iter().any(|line| line.starts_with(prefix))
    }
}

pub(crate) struct Owner {
    settings: Settings,
    address: Address,
    jobs: mpsc::Receiver<Job>,
    #[expect(dead_code, reason = "the owner is not written yet")]
    observed: watch::Sender<Observed>,
    #[expect(dead_code, reason = "the owner is not written yet")]
    trace: Arc<Trace>,
}

impl Owner {
    pub(crate) fn new(
        settings: Settings,
        address: Address,
        jobs: mpsc::Receiver<Job>,
        observed: watch::Sender<Observed>,
        trace: Arc<Trace>,
    ) -> Self {
        Self {
            settings,
            address,
            jobs,
            observed,
            trace,
        }
    }
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }
    pub(crate) async fn run(mut self) {
        while let Some(job) = self.jobs.recv().await {
            job(&mut self);
        }
    }
    fn stopped(&self) -> ControlError {
        ControlError::Stopped {
            daemon: self.settings.name.clone(),
        }
    }
    pub(crate) fn start(&mut self) -> Result<(), StartError> {
        let _ = &self.settings;
        Ok(())
    }
    pub(crate) fn connect(&mut self, _client: ClientSpec) -> Result<u64, ControlError> {
        Err(self.stopped())
    }
    pub(crate) fn half_open(&mut self) -> Result<u64, ControlError> {
        Err(self.stopped())
    }
    pub(crate) fn complete(&mut self, _cid: u64, _client: ClientSpec) -> Result<(), ControlError> {
        Err(self.stopped())
    }
    pub(crate) fn leave(&mut self, _cid: u64, _how: How) -> Result<(), ControlError> {
        Err(self.stopped())
    }
    pub(crate) fn reconnect(&mut self, _cid: u64) -> Result<u64, ControlError> {
        Err(self.stopped())
    }
    pub(crate) fn add_traffic(
        &mut self,
        _cid: u64,
        _received: u64,
        _sent: u64,
    ) -> Result<(), ControlError> {
        Err(self.stopped())
    }
    pub(crate) fn clients(&self) -> Result<Vec<ClientState>, ControlError> {
        Err(self.stopped())
    }
    pub(crate) fn restart(&mut self, _signal: RestartSignal) -> Result<(), ControlError> {
        Err(self.stopped())
    }
    pub(crate) fn raw(
        &mut self,
        _bytes: &[u8],
    ) -> Result<oneshot::Receiver<Instant>, ControlError> {
        Err(self.stopped())
    }
    pub(crate) fn mark(&mut self) -> Result<oneshot::Receiver<Instant>, ControlError> {
        Err(self.stopped())
    }
    pub(crate) fn burst(
        &mut self,
        _clients: usize,
    ) -> Result<oneshot::Receiver<BurstReport>, ControlError> {
        Err(self.stopped())
    }
    pub(crate) fn freeze(&mut self) -> Result<(), ControlError> {
        Err(self.stopped())
    }
    pub(crate) fn thaw(&mut self) -> Result<(), ControlError> {
        Err(self.stopped())
    }
    pub(crate) fn drop_session(&mut self) -> Result<(), ControlError> {
        Err(self.stopped())
    }
    pub(crate) fn stop(&mut self) {}
    pub(crate) fn kill(&mut self) {}
    pub(crate) fn misbehave(&mut self, _misbehaviour: Misbehaviour) {}
    pub(crate) fn behave(&mut self) {}
}
