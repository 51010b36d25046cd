//! Daemons written by hand, and an observer that can be asked.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use openvpn_management::{Cid, Command};
use openvpn_session::{
    Address, Call, CallerId, Condition, Hint, Lane, Moment, Observation, Observer, Pacer, Session,
    SessionConfig, SessionHandle,
};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How long anything may take before a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A management socket of which the test writes every byte.
pub(crate) struct Daemon {
    pub(crate) listener: UnixListener,
    pub(crate) path: PathBuf,
    pub(crate) directory: TempDir,
}

impl Daemon {
    pub(crate) fn listen() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("management.sock");
        Self {
            listener: UnixListener::bind(&path).unwrap(),
            path,
            directory,
        }
    }

    /// The next manager.
    pub(crate) async fn accept(&self) -> Manager {
        let (stream, _) = within(self.listener.accept()).await.unwrap();
        Manager::new(stream)
    }

    /// The next manager, greeted and synchronised.
    pub(crate) async fn attach(&self) -> Manager {
        let mut manager = self.accept().await;
        manager.greet().await;
        manager.synchronise(STATUS).await;
        manager
    }

    pub(crate) fn config(&self) -> SessionConfig {
        config(&self.path)
    }
}

/// The configuration of a session that does nothing by itself while a test looks.
pub(crate) fn config(path: &Path) -> SessionConfig {
    let mut config = SessionConfig::new(Address::Unix(path.to_owned()));
    config.status_interval = Duration::from_secs(3_600);
    config.timings.liveness_interval = Duration::from_secs(3_600);
    config
}

/// The daemon's end of one connection.
pub(crate) struct Manager {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

pub(crate) const GREETING: &str =
    ">INFO:OpenVPN Management Interface Version 5 -- type 'help' for more info\r\n";
pub(crate) const STATUS: &str = concat!(
    "TITLE\tOpenVPN 2.6.14\r\n",
    "TIME\t2026-11-20 12:00:00\t1795176000\r\n",
    "HEADER\tCLIENT_LIST\tCommon Name\tReal Address\tVirtual Address\tVirtual IPv6 Address\tBytes Received\t",
    "Bytes Sent\tConnected Since\tConnected Since (time_t)\tUsername\tClient ID\tPeer ID\tData Channel Cipher\r\n",
    "CLIENT_LIST\talice\t10.0.0.1:1194\t10.8.0.2\t\t100\t200\t2026-11-20 11:00:00\t1795172400\tUNDEF\t0\t0\t",
    "AES-256-GCM\r\n",
    "HEADER\tROUTING_TABLE\tVirtual Address\tCommon Name\tReal Address\tLast Ref\tLast Ref (time_t)\r\n",
    "GLOBAL_STATS\tMax bcast/mcast queue length\t0\r\n",
    "END\r\n"
);
pub(crate) const LOAD_STATS: &str = "SUCCESS: nclients=1,bytesin=10,bytesout=20\r\n";
pub(crate) const STATUS_REFUSED: &str =
    "ERROR: The 'status' command is not supported by the current daemon mode\r\n";

impl Manager {
    pub(crate) fn new(stream: UnixStream) -> Self {
        let (reader, writer) = stream.into_split();
        Self {
            reader: BufReader::new(reader),
            writer,
        }
    }

    pub(crate) async fn write(&mut self, text: &str) {
        self.writer.write_all(text.as_bytes()).await.unwrap();
    }

    pub(crate) async fn greet(&mut self) {
        self.write(GREETING).await;
    }

    /// The next line, without its end; `None` when the manager has closed.
    pub(crate) async fn try_read(&mut self) -> Option<String> {
        let mut line = String::new();
        let length = within(self.reader.read_line(&mut line)).await.unwrap_or(0);
        (length > 0).then(|| line.trim_end_matches('\n').to_owned())
    }

    pub(crate) async fn read(&mut self) -> String {
        self.try_read().await.expect("the session is still there")
    }

    pub(crate) async fn expect(&mut self, line: &str) {
        assert_eq!(self.read().await, line);
    }

    /// The manager has closed its end without a further word.
    pub(crate) async fn expect_end(&mut self) {
        assert_eq!(self.try_read().await, None);
    }

    /// The manager has written nothing so far, and is still there.
    ///
    /// A moment is given to what it might do wrongly; it cannot make a right one fail.
    pub(crate) async fn expect_silence(&mut self) {
        let moment = Duration::from_millis(50);
        let mut line = String::new();
        let read = timeout(moment, self.reader.read_line(&mut line)).await;
        assert!(read.is_err(), "{line:?}");
    }

    /// Answers everything up to and with the first `status 3`.
    pub(crate) async fn synchronise(&mut self, status: &str) {
        loop {
            let line = self.read().await;
            let answer = match line.as_str() {
                "env-filter 0" => "SUCCESS: env_filter_level=0\r\n",
                // OpenVPN says nothing to it.
                "version 3" => "",
                "version" => "OpenVPN Version: OpenVPN 2.6.14\r\nManagement Version: 5\r\nEND\r\n",
                "pid" => "SUCCESS: pid=4711\r\n",
                "hold" => "SUCCESS: hold=0\r\n",
                "state on all" => {
                    "SUCCESS: real-time state notification set to ON\r\n1795170000,CONNECTED,SUCCESS,10.8.0.1,,,,\r\nEND\r\n"
                }
                "log on" => "SUCCESS: real-time log notification set to ON\r\n",
                "bytecount 10" => "SUCCESS: bytecount interval changed\r\n",
                "load-stats" => LOAD_STATS,
                "status 3" => status,
                other => panic!("{other:?} while synchronising"),
            };
            self.write(answer).await;
            if line == "status 3" {
                return;
            }
        }
    }
}

/// A running session and what it has told.
pub(crate) struct Subject {
    pub(crate) handle: SessionHandle,
    pub(crate) cancel: CancellationToken,
    seen: mpsc::Receiver<Observation>,
}

impl Subject {
    pub(crate) fn start(config: SessionConfig) -> Self {
        Self::start_with(config, |_| Hint::None)
    }

    /// With an observer that hints.
    pub(crate) fn start_with(
        config: SessionConfig,
        hint: impl FnMut(&Observation) -> Hint + Send + 'static,
    ) -> Self {
        let (sender, seen) = mpsc::channel(10_000);
        let observer = Recorder { sender, hint };
        let pacer = Arc::new(Pacer::new());
        let (handle, session) = Session::new(config, observer, pacer);
        let cancel = CancellationToken::new();
        tokio::spawn(session.run(cancel.clone()));
        Self {
            handle,
            cancel,
            seen,
        }
    }

    /// The next observation that `select` makes something of; those before are gone.
    pub(crate) async fn wait_for<T>(
        &mut self,
        what: &str,
        mut select: impl FnMut(&Observation) -> Option<T>,
    ) -> T {
        let mut others = Vec::new();
        let found = timeout(PATIENCE, async {
            loop {
                let observation = self.seen.recv().await.expect("the session runs");
                if let Some(found) = select(&observation) {
                    return found;
                }
                others.push(format!("{observation:?}"));
            }
        });
        match found.await {
            Ok(found) => found,
            Err(_) => panic!("no {what}; only {others:#?}"),
        }
    }

    /// The reason for the next change to `condition`.
    pub(crate) async fn wait_until(&mut self, condition: Condition) -> String {
        self.wait_for(condition.as_str(), |observation| match observation {
            Observation::Condition(change) if change.condition == condition => {
                Some(change.reason.clone())
            }
            _ => None,
        })
        .await
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

struct Recorder<F> {
    sender: mpsc::Sender<Observation>,
    hint: F,
}

impl<F: FnMut(&Observation) -> Hint + Send + 'static> Observer for Recorder<F> {
    fn observe(&mut self, observation: Observation, _at: Moment) -> Hint {
        let hint = (self.hint)(&observation);
        // A test that has ended listens no more.
        drop(self.sender.try_send(observation));
        hint
    }
}

/// A command of the control lane, with time enough.
pub(crate) fn control(command: Command) -> Call {
    call(command, Lane::Control, 1)
}

/// A command of the read lane, with time enough.
pub(crate) fn read(command: Command, caller: u64) -> Call {
    call(command, Lane::Read, caller)
}

fn call(command: Command, lane: Lane, caller: u64) -> Call {
    Call {
        command,
        lane,
        caller: CallerId(caller),
        guard: None,
        deadline: Moment::now().monotonic + PATIENCE,
    }
}

/// A daemon, a session attached to it, and the daemon's end of it.
pub(crate) async fn attached() -> (Daemon, Subject, Manager) {
    let daemon = Daemon::listen();
    let mut subject = Subject::start(daemon.config());
    let manager = daemon.attach().await;
    subject.wait_until(Condition::Attached).await;
    (daemon, subject, manager)
}

/// `client-kill` without a message.
pub(crate) fn kill(cid: u64) -> Command {
    Command::ClientKill {
        cid: Cid(cid),
        message: None,
    }
}

/// A future that ends before the test's patience does.
pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    timeout(PATIENCE, future).await.expect("in time")
}

/// Waits until `done`, which some other task brings about.
pub(crate) async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = Moment::now().monotonic + PATIENCE;
    while !done() {
        assert!(Moment::now().monotonic < until, "{what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
