//! The task of one daemon: owns its sockets, its state and its time.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::io::Interest;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Duration, sleep, sleep_until};

use crate::daemon::{Address, BurstReport, Daemon, RestartSignal, Settings};
use crate::engine::{CommandSink, Ending, Engine};
use crate::output::Stamp;
use crate::socket::{Connection, Listener};
use crate::{ClientSpec, ClientState, ControlError, How, Misbehaviour, StartError};

/// OpenVPN reads this much at a time, runs what is complete in it, and reads on only when the
/// answers have been written.
const READ_BYTES: usize = 256;

/// Wait after an accept that failed, which means that the process is short of something.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// A scripted step, carried out by the daemon's task.
///
/// A closure and not an enum: the steps are as many as the owner's methods, and each has its own
/// answer; an enum would only list them a third time.
pub(crate) type Job = Box<dyn FnOnce(&mut Owner) + Send>;

/// What the handle can see without asking the task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
    pub(crate) fn commands(&self) -> Vec<Vec<u8>> {
        let commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        commands.iter().cloned().collect()
    }

    pub(crate) fn has_command(&self, prefix: &[u8]) -> bool {
        let commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        commands.iter().any(|line| line.starts_with(prefix))
    }
}

impl CommandSink for Trace {
    fn push(&self, line: &[u8]) {
        let mut commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        if commands.len() == Daemon::COMMANDS_KEPT_MAX {
            commands.pop_front();
        }
        commands.push_back(line.to_vec());
    }
}

/// The manager's socket and what was written to it.
struct Attached {
    connection: Connection,
    /// Bytes written since it was accepted.
    written: u64,
    /// No byte before.
    next_write: tokio::time::Instant,
    /// Our direction was ended.
    is_half_closed: bool,
}

/// The daemon's sockets while its process runs.
struct Process {
    /// `None` if it has dialled its manager, and hears no other.
    listener: Option<Listener>,
    attached: Option<Attached>,
    /// Whether it is stopped as by SIGSTOP.
    frozen: bool,
}

/// What woke the task.
enum Cause {
    Job(Job),
    /// The handle is gone.
    Dropped,
    Timer,
    Accepted(io::Result<(Connection, String)>),
    Ready,
}

pub(crate) struct Owner {
    name: String,
    address: Address,
    jobs: mpsc::Receiver<Job>,
    observed: watch::Sender<Observed>,
    trace: Arc<Trace>,
    engine: Engine,
    /// Sockets; `None` while the process is not running.
    process: Option<Process>,
    /// Sessions accepted since the owner was made.
    sessions: u64,
    /// Who waits for the burst under way, and its first CID.
    burst: Option<(u64, usize, oneshot::Sender<BurstReport>)>,
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
            name: settings.name.clone(),
            address,
            jobs,
            observed,
            trace,
            engine: Engine::new(settings),
            process: None,
            sessions: 0,
            burst: None,
        }
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Lives until the handle is dropped.
    pub(crate) async fn run(mut self) {
        loop {
            match self.wait().await {
                Cause::Job(job) => job(&mut self),
                Cause::Dropped => return,
                Cause::Timer => self.engine.handle_timers(),
                Cause::Accepted(Ok((connection, peer))) => self.attach(connection, Some(&peer)),
                Cause::Accepted(Err(_)) => sleep(ACCEPT_RETRY_DELAY).await,
                Cause::Ready => self.read(),
            }
            self.settle();
        }
    }

    async fn wait(&mut self) -> Cause {
        let Some(process) = self.process.as_mut().filter(|process| !process.frozen) else {
            return self.jobs.recv().await.map_or(Cause::Dropped, Cause::Job);
        };
        let busy = self.engine.flows() || !self.engine.output().is_empty();
        let timer = self.engine.next_timer();
        let half_closes = self.engine.is_half_closed() && !busy;
        tokio::select! {
            biased;
            job = self.jobs.recv() => job.map_or(Cause::Dropped, Cause::Job),
            () = async { sleep_until(timer.unwrap_or_else(tokio::time::Instant::now)).await },
                if timer.is_some() => Cause::Timer,
            cause = async {
                match &mut process.attached {
                    Some(attached) => {
                        if half_closes && !attached.is_half_closed {
                            attached.is_half_closed = true;
                            // It is gone already, then.
                            let _ = attached.connection.shutdown().await;
                        }
                        if busy {
                            sleep_until(attached.next_write).await;
                        }
                        // OpenVPN never reads while it has something to write.
                        let interest = if busy { Interest::WRITABLE } else { Interest::READABLE };
                        // An error shows again, and is handled, when the socket is used.
                        let _ = attached.connection.ready(interest).await;
                        Cause::Ready
                    }
                    None => match &process.listener {
                        Some(listener) => Cause::Accepted(listener.accept().await),
                        None => std::future::pending().await,
                    },
                }
            } => cause,
        }
    }

    // ---- between two waits

    /// Carries out what the last event led to: signals, output, ends, news for the handle.
    pub(crate) fn settle(&mut self) {
        loop {
            self.engine.handle_signal();
            match self.engine.take_ending() {
                Some(Ending::Session) => self.detach(),
                Some(Ending::SessionAfterOutput) => {
                    self.write();
                    self.detach();
                }
                Some(Ending::Process) => self.end(),
                None => self.write(),
            }
            // A manager that left may have made the daemon throw another.
            if !self.engine.has_signal() {
                break;
            }
        }
        self.finish_burst();
        self.publish();
    }

    fn publish(&mut self) {
        let now = Observed {
            running: self.process.is_some(),
            attached: self.process.is_some() && self.engine.is_attached(),
            pid: self.engine.pid(),
            sessions: self.sessions,
            commands: self.engine.commands(),
        };
        self.observed.send_if_modified(|observed| {
            let news = *observed != now;
            *observed = now;
            news
        });
    }

    fn attach(&mut self, connection: Connection, peer: Option<&str>) {
        if let Some(process) = &mut self.process {
            process.attached = Some(Attached {
                connection,
                written: 0,
                next_write: tokio::time::Instant::now(),
                is_half_closed: false,
            });
            self.sessions += 1;
            self.engine.attach(peer);
        }
    }

    fn detach(&mut self) {
        if let Some(process) = &mut self.process {
            process.attached = None;
        }
        self.engine.detach();
        // Dropping the sender tells whoever waits.
        self.burst = None;
    }

    /// One read, and what it asks for, once everything before it is written.
    fn read(&mut self) {
        self.write();
        let Some(attached) = self.process.as_ref().and_then(|p| p.attached.as_ref()) else {
            return;
        };
        if !self.engine.output().is_empty() {
            return;
        }
        if self.engine.never_ends() {
            self.engine.refill();
            return;
        }
        let mut buffer = [0; READ_BYTES];
        match attached.connection.try_read(&mut buffer) {
            Ok(0) => self.detach(),
            Ok(count) => self.engine.input(&buffer[..count], &*self.trace),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.detach(),
        }
        self.engine.refill();
    }

    /// Writes as much as the kernel takes.
    fn write(&mut self) {
        let session_bytes_max = self.engine.session_bytes_max();
        let bytes_max = self.engine.output_bytes_max();
        let byte_pause = self.engine.byte_pause();
        loop {
            let Some(process) = self.process.as_mut().filter(|process| !process.frozen) else {
                return;
            };
            let Some(attached) = &mut process.attached else {
                return;
            };
            let output = self.engine.output();
            if attached.is_half_closed {
                output.clear();
            }
            if output.is_empty() || attached.next_write > tokio::time::Instant::now() {
                return;
            }
            let pending = output.pending();
            let left = session_bytes_max.map_or(u64::MAX, |most| most - attached.written.min(most));
            let length = pending
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX))
                .min(if byte_pause.is_some() { 1 } else { usize::MAX });
            if length == 0 {
                // It has had all the bytes it was to get.
                self.detach();
                return;
            }
            match attached.connection.try_write(&pending[..length]) {
                Ok(count) => {
                    output.advance(count, Instant::now());
                    attached.written += u64::try_from(count).unwrap_or(0);
                    if let Some(pause) = byte_pause {
                        attached.next_write = tokio::time::Instant::now() + pause;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if output.is_overfull(bytes_max) {
                        self.detach();
                    }
                    return;
                }
                Err(_) => {
                    self.detach();
                    return;
                }
            }
        }
    }

    fn finish_burst(&mut self) {
        let Some((_, notifications, _)) = &self.burst else {
            return;
        };
        if self.engine.output().burst_stamps.len() < *notifications {
            return;
        }
        if let Some((first_cid, _, reply)) = self.burst.take() {
            let written = std::mem::take(&mut self.engine.output().burst_stamps);
            // Nobody waits for the report any more: nothing to tell.
            let _ = reply.send(BurstReport { first_cid, written });
        }
    }

    // ---- the process

    /// Starts the process; a daemon that dials has done so already.
    pub(crate) fn start(&mut self, dialled: Option<Connection>) -> Result<(), StartError> {
        if self.process.is_some() {
            return Ok(());
        }
        let listener = match dialled {
            Some(_) => None,
            None => Some(self.listen()?),
        };
        let how = match (&listener, &self.address) {
            (Some(_), Address::Unix(path)) => {
                format!("unix domain socket listening on {}", path.display())
            }
            (Some(_), Address::Tcp(address)) => {
                format!("TCP Socket listening on [AF_INET]{address}")
            }
            (None, Address::Unix(path)) => {
                format!("Connected to management server at {}", path.display())
            }
            (None, Address::Tcp(address)) => {
                format!("Connected to management server at [AF_INET]{address}")
            }
        };
        self.engine.start(&how);
        self.process = Some(Process {
            listener,
            attached: None,
            frozen: false,
        });
        if let Some(connection) = dialled {
            self.attach(connection, None);
        }
        self.publish();
        Ok(())
    }

    fn listen(&mut self) -> Result<Listener, StartError> {
        let listener = Listener::bind(&self.address).map_err(|source| StartError::Listen {
            daemon: self.name.clone(),
            address: self.address.clone(),
            source,
        })?;
        self.address = listener.address(&self.address);
        Ok(listener)
    }

    /// SIGTERM, from outside.
    pub(crate) fn stop(&mut self) {
        if let Some(process) = &mut self.process {
            process.frozen = false;
            self.engine.terminate();
            self.settle();
        }
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.process = None;
        self.engine.die();
        // As in `detach`.
        self.burst = None;
    }

    /// The end of the process: last words as far as the socket takes them, then the socket goes.
    fn end(&mut self) {
        self.write();
        let listened = self
            .process
            .as_ref()
            .is_some_and(|process| process.listener.is_some());
        self.kill();
        if let (true, Address::Unix(path)) = (listened, &self.address) {
            // A file that is already gone is what we want.
            let _ = std::fs::remove_file(path);
        }
    }

    fn running(&mut self) -> Result<(&mut Process, &mut Engine), ControlError> {
        match &mut self.process {
            Some(process) => Ok((process, &mut self.engine)),
            None => Err(ControlError::Stopped {
                daemon: self.name.clone(),
            }),
        }
    }

    // ---- scripted steps

    pub(crate) fn connect(&mut self, client: ClientSpec) -> Result<u64, ControlError> {
        self.running()?.1.connect(client)
    }

    pub(crate) fn half_open(&mut self, from: Option<SocketAddr>) -> Result<u64, ControlError> {
        self.running()?.1.half_open(from)
    }

    pub(crate) fn complete(&mut self, cid: u64, client: ClientSpec) -> Result<(), ControlError> {
        self.running()?.1.complete(cid, client)
    }

    pub(crate) fn leave(&mut self, cid: u64, how: How) -> Result<(), ControlError> {
        self.running()?.1.leave(cid, how)
    }

    pub(crate) fn reconnect(&mut self, cid: u64) -> Result<u64, ControlError> {
        self.running()?.1.reconnect(cid)
    }

    pub(crate) fn reauthenticate(&mut self, cid: u64) -> Result<u64, ControlError> {
        self.running()?.1.reauthenticate(cid)
    }

    pub(crate) fn add_link_traffic(
        &mut self,
        received: u64,
        sent: u64,
    ) -> Result<(), ControlError> {
        self.running()?.1.add_link_traffic(received, sent);
        Ok(())
    }

    pub(crate) fn add_traffic(
        &mut self,
        cid: u64,
        received: u64,
        sent: u64,
    ) -> Result<(), ControlError> {
        self.running()?.1.add_traffic(cid, received, sent)
    }

    pub(crate) fn clients(&mut self) -> Result<Vec<ClientState>, ControlError> {
        Ok(self.running()?.1.clients())
    }

    pub(crate) fn challenge_response(&mut self, cid: u64, text: &str) -> Result<(), ControlError> {
        self.running()?.1.challenge_response(cid, text)
    }

    pub(crate) fn server_defers(
        &mut self,
        seconds: u64,
        message: Option<&str>,
    ) -> Result<(), ControlError> {
        self.running()?.1.server_defers(seconds, message)
    }

    pub(crate) fn server_accepts(&mut self) -> Result<(), ControlError> {
        self.running()?.1.server_accepts()
    }

    pub(crate) fn log_lines(&mut self) -> Result<Vec<Vec<u8>>, ControlError> {
        Ok(self.running()?.1.log_lines())
    }

    pub(crate) fn restart(&mut self, signal: RestartSignal) -> Result<(), ControlError> {
        self.running()?.1.restart(signal);
        Ok(())
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) -> Result<oneshot::Receiver<Instant>, ControlError> {
        self.running()?.1.raw(bytes)?;
        self.mark()
    }

    /// Asks for the instant at which everything said so far has been handed to the kernel.
    pub(crate) fn mark(&mut self) -> Result<oneshot::Receiver<Instant>, ControlError> {
        let (_, engine) = self.running()?;
        if !engine.is_attached() {
            return Err(engine.not_attached());
        }
        let (sender, stamp) = oneshot::channel();
        engine.output().mark(Stamp::Once(sender));
        Ok(stamp)
    }

    pub(crate) fn burst(
        &mut self,
        clients: usize,
    ) -> Result<oneshot::Receiver<BurstReport>, ControlError> {
        let first_cid = self.running()?.1.begin_burst(clients)?;
        let (sender, report) = oneshot::channel();
        self.burst = Some((first_cid, clients.saturating_mul(2), sender));
        Ok(report)
    }

    pub(crate) fn freeze(&mut self) -> Result<(), ControlError> {
        self.running()?.0.frozen = true;
        Ok(())
    }

    pub(crate) fn thaw(&mut self) -> Result<(), ControlError> {
        self.running()?.0.frozen = false;
        Ok(())
    }

    pub(crate) fn drop_session(&mut self) -> Result<(), ControlError> {
        self.running()?;
        self.detach();
        Ok(())
    }

    pub(crate) fn misbehave(&mut self, misbehaviour: Misbehaviour) {
        self.engine.misbehave(misbehaviour);
    }

    pub(crate) fn behave(&mut self) {
        self.engine.behave();
    }
}
