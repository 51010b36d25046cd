//! A relay that breaks connections where it is told to: at a byte, in a direction, in a manner.

use std::{
    net::Ipv4Addr,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Result, bail};
use rustix::net::sockopt::set_socket_linger;
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::watch,
    task::JoinSet,
};

use crate::directory::new_directory;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the daemon.
    Forward,
    /// From the daemon.
    Backward,
}

/// How a connection breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Both sides are closed.
    Close,
    /// Both sides are reset (RST), where the socket can be; else closed.
    Reset,
    /// The direction of the cut ends; the other goes on.
    HalfClose,
    /// Nothing passes any more, in either direction, and nothing is said.
    BlackHole,
}

impl Cut {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::Close, Self::Reset, Self::HalfClose, Self::BlackHole];
}

/// How bytes are passed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Manner {
    /// Most bytes of one write; none: as they come.
    pub piece: Option<usize>,
    /// Wait before each write; what comes meanwhile goes with it.
    pub delay: Option<Duration>,
}

/// What is to happen, once.
#[derive(Clone, Copy, Debug)]
struct Armed {
    direction: Direction,
    /// Bytes that still pass.
    left: u64,
    cut: Cut,
    /// Connections up to this one are spared.
    behind: u64,
}

#[derive(Debug, Default)]
struct Plan {
    armed: Option<Armed>,
    manner: Manner,
    /// Bytes passed since somebody last asked.
    passed: [u64; 2],
}

/// What happened to the relay's connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Events {
    /// Connections accepted.
    connections: u64,
    /// Cuts that were carried out.
    cuts: u64,
    /// Connections made before are closed.
    closed_through: u64,
}

#[derive(Debug)]
struct Shared {
    plan: Mutex<Plan>,
    events: watch::Sender<Events>,
}

/// A listening relay; dropping it closes everything.
#[derive(Debug)]
pub struct Chaos {
    address: String,
    shared: Arc<Shared>,
    // Ends the relay with the value.
    _task: JoinSet<()>,
    _directory: Option<TempDir>,
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// Both directions of a connection, of whatever kind, and its socket once more, to reset it.
struct Side {
    stream: Box<dyn Stream>,
    socket: OwnedFd,
}
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

impl Side {
    fn unix(stream: UnixStream) -> Result<Self> {
        let socket = stream.as_fd().try_clone_to_owned()?;
        Ok(Self {
            stream: Box::new(stream),
            socket,
        })
    }

    fn tcp(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        let socket = stream.as_fd().try_clone_to_owned()?;
        Ok(Self {
            stream: Box::new(stream),
            socket,
        })
    }

    async fn connect(target: &str) -> Result<Self> {
        if let Some(path) = target.strip_prefix("unix:") {
            return Self::unix(UnixStream::connect(path).await?);
        }
        let Some(address) = target.strip_prefix("tcp:") else {
            bail!("{target:?} is no address");
        };
        Self::tcp(TcpStream::connect(address).await?)
    }
}

impl Chaos {
    /// Listens like `target` does (`unix:PATH` or `tcp:HOST:PORT`) and relays to it.
    ///
    /// # Errors
    /// It cannot listen.
    pub async fn start(target: &str) -> Result<Self> {
        let (listener, address, directory) = if target.starts_with("unix:") {
            let directory = new_directory()?;
            let path = directory.path().join("chaos.sock");
            let address = format!("unix:{}", path.display());
            (
                Listener::Unix(UnixListener::bind(path)?),
                address,
                Some(directory),
            )
        } else {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            let address = format!("tcp:{}", listener.local_addr()?);
            (Listener::Tcp(listener), address, None)
        };
        let shared = Arc::new(Shared {
            plan: Mutex::default(),
            events: watch::Sender::new(Events::default()),
        });
        let mut task = JoinSet::new();
        task.spawn(serve(listener, target.to_owned(), Arc::clone(&shared)));
        Ok(Self {
            address,
            shared,
            _task: task,
            _directory: directory,
        })
    }

    /// Where it listens, as the gateway's configuration writes it.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Lets so many more bytes pass in `direction`, on whatever connection, and then cuts.
    pub fn arm(&self, direction: Direction, bytes: u64, cut: Cut) {
        self.arm_behind(0, direction, bytes, cut);
    }

    /// Closes the present connections, and lets so many bytes of the next one pass.
    pub fn arm_next(&self, direction: Direction, bytes: u64, cut: Cut) {
        self.arm_behind(self.connections(), direction, bytes, cut);
        self.close_all();
    }

    fn arm_behind(&self, behind: u64, direction: Direction, bytes: u64, cut: Cut) {
        self.shared.plan().armed = Some(Armed {
            direction,
            left: bytes,
            cut,
            behind,
        });
    }

    /// Takes back what [`arm`](Self::arm) wanted; gives whether it had not happened yet.
    pub fn disarm(&self) -> bool {
        self.shared.plan().armed.take().is_some()
    }

    /// How bytes are passed on from now on.
    pub fn set_manner(&self, manner: Manner) {
        self.shared.plan().manner = manner;
    }

    /// Closes the present connections, black holes too; new ones are welcome.
    pub fn close_all(&self) {
        self.shared
            .events
            .send_modify(|events| events.closed_through = events.connections);
    }

    /// Cuts carried out so far.
    #[must_use]
    pub fn cuts(&self) -> u64 {
        self.shared.events.borrow().cuts
    }

    /// Connections accepted so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.events.borrow().connections
    }

    /// Bytes that passed, forward and backward, since this was last asked.
    #[must_use]
    pub fn take_passed(&self) -> [u64; 2] {
        std::mem::take(&mut self.shared.plan().passed)
    }
}

impl Shared {
    /// Whole after every change: a panic elsewhere leaves it usable.
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many of `length` bytes of connection `number` pass, and what happens behind them.
    fn pass(&self, number: u64, direction: Direction, length: usize) -> (usize, Option<Cut>) {
        let mut plan = self.plan();
        let (allowed, cut) = match &mut plan.armed {
            Some(armed) if armed.direction == direction && number > armed.behind => {
                let allowed = usize::try_from(armed.left).map_or(length, |left| left.min(length));
                armed.left -= allowed as u64;
                let cut = (armed.left == 0).then_some(armed.cut);
                if cut.is_some() {
                    plan.armed = None;
                }
                (allowed, cut)
            }
            _ => (length, None),
        };
        plan.passed[direction as usize] += allowed as u64;
        (allowed, cut)
    }
}

async fn serve(listener: Listener, target: String, shared: Arc<Shared>) {
    // Dropped with this task, which ends the connections.
    let mut connections = JoinSet::new();
    loop {
        let front = match &listener {
            Listener::Unix(listener) => listener
                .accept()
                .await
                .map_err(Into::into)
                .and_then(|(stream, _)| Side::unix(stream)),
            Listener::Tcp(listener) => listener
                .accept()
                .await
                .map_err(Into::into)
                .and_then(|(stream, _)| Side::tcp(stream)),
        };
        let Ok(front) = front else { return };
        shared.events.send_modify(|events| events.connections += 1);
        let number = shared.events.borrow().connections;
        let (target, shared) = (target.clone(), Arc::clone(&shared));
        // A connection that fails is closed on both sides: that is the whole report.
        connections.spawn(async move { relay(front, &target, number, &shared).await.ok() });
        while connections.try_join_next().is_some() {}
    }
}

async fn relay(front: Side, target: &str, number: u64, shared: &Shared) -> Result<()> {
    let back = Side::connect(target).await?;
    let sockets = [front.socket, back.socket];
    let (front_read, front_write) = tokio::io::split(front.stream);
    let (back_read, back_write) = tokio::io::split(back.stream);
    let mut events = shared.events.subscribe();
    let cut = {
        let mut forward = std::pin::pin!(pump(
            (front_read, back_write),
            number,
            Direction::Forward,
            shared
        ));
        let mut backward = std::pin::pin!(pump(
            (back_read, front_write),
            number,
            Direction::Backward,
            shared
        ));
        let mut halves = 0;
        loop {
            let cut = tokio::select! {
                cut = &mut forward, if halves != 1 => (cut, 1),
                cut = &mut backward, if halves != 2 => (cut, 2),
                _ = events.wait_for(|events| events.closed_through >= number) => return Ok(()),
            };
            match cut {
                // The pump has ended its direction; the other goes on.
                (Ok(Some(Cut::HalfClose)), half) if halves == 0 => halves = half,
                (cut, _) => break cut?,
            }
        }
    };
    match cut {
        Some(Cut::Reset) => {
            for socket in &sockets {
                // A Unix socket has no RST: it is closed, which is as near as it comes.
                let _ = set_socket_linger(socket, Some(Duration::ZERO));
            }
        }
        Some(Cut::BlackHole) => {
            events
                .wait_for(|events| events.closed_through >= number)
                .await?;
        }
        Some(Cut::Close | Cut::HalfClose) | None => {}
    }
    Ok(())
}

/// Passes bytes on until the end, or the cut, which it gives.
async fn pump(
    (mut from, mut to): (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    number: u64,
    direction: Direction,
    shared: &Shared,
) -> Result<Option<Cut>> {
    let mut chunk = vec![0; 16 * 1024];
    loop {
        let manner = shared.plan().manner;
        let mut length = from.read(&mut chunk).await?;
        if length == 0 {
            return Ok(None);
        }
        if let Some(delay) = manner.delay {
            // The moment itself is the fault: nothing is waited for.
            tokio::time::sleep(delay).await;
            if length < chunk.len()
                && let Ok(more) =
                    tokio::time::timeout(Duration::ZERO, from.read(&mut chunk[length..])).await
            {
                length += more?;
            }
        }
        for piece in chunk[..length].chunks(manner.piece.unwrap_or(length)) {
            let (allowed, cut) = shared.pass(number, direction, piece.len());
            to.write_all(&piece[..allowed]).await?;
            if cut == Some(Cut::HalfClose) {
                to.shutdown().await?;
            }
            if cut.is_some() {
                shared.events.send_modify(|events| events.cuts += 1);
                return Ok(cut);
            }
            if manner.piece.is_some() {
                tokio::task::yield_now().await;
            }
        }
    }
}
