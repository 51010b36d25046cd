//! A relay between two programs: stamps the lines of the one behind, holds, cuts.

use std::{
    collections::VecDeque,
    net::Ipv4Addr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::watch,
    task::JoinSet,
};

use crate::directory::new_directory;

/// Lines kept; the oldest go first.
const LINES_MAX: usize = 200_000;
/// One read.
const CHUNK: usize = 16 * 1024;

/// A line the program behind the tap wrote.
#[derive(Clone, Debug)]
pub struct TapLine {
    /// When its end was read, before it was passed on.
    pub at: Instant,
    /// Without the line end.
    pub text: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Valve {
    /// Nothing passes, in either direction.
    held: bool,
    /// Connections made under an older number are closed.
    cuts: u64,
}

/// A listening relay; dropping it closes everything.
#[derive(Debug)]
pub struct Tap {
    address: String,
    port: Option<u16>,
    lines: Lines,
    forwarded: Arc<AtomicU64>,
    valve: watch::Sender<Valve>,
    // Ends the relay with the tap.
    _task: JoinSet<()>,
    _directory: Option<TempDir>,
}

/// What the relay leaves behind.
#[derive(Clone)]
struct Record {
    lines: Lines,
    forwarded: Arc<AtomicU64>,
}

type Lines = Arc<Mutex<VecDeque<TapLine>>>;

/// Either kind of listening socket.
enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// Both directions of a connection, of whatever kind.
type Duplex = Box<dyn Stream>;
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

impl Tap {
    /// Listens on a Unix socket of its own and relays to `target`
    /// (`unix:PATH` or `tcp:HOST:PORT`).
    ///
    /// # Errors
    /// It cannot listen.
    pub fn unix(target: &str) -> Result<Self> {
        let directory = new_directory()?;
        let path = directory.path().join("tap.sock");
        let listener = Listener::Unix(UnixListener::bind(&path)?);
        let address = format!("unix:{}", path.display());
        Ok(Self::start(
            listener,
            address,
            None,
            target,
            Some(directory),
        ))
    }

    /// Listens on a port of 127.0.0.1 and relays to `target`.
    ///
    /// # Errors
    /// It cannot listen.
    pub async fn tcp(target: &str) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let address = format!("tcp:127.0.0.1:{port}");
        Ok(Self::start(
            Listener::Tcp(listener),
            address,
            Some(port),
            target,
            None,
        ))
    }

    fn start(
        listener: Listener,
        address: String,
        port: Option<u16>,
        target: &str,
        directory: Option<TempDir>,
    ) -> Self {
        let lines = Lines::default();
        let forwarded = Arc::new(AtomicU64::new(0));
        let (valve, valve_seen) = watch::channel(Valve {
            held: false,
            cuts: 0,
        });
        let mut task = JoinSet::new();
        task.spawn(serve(
            listener,
            target.to_owned(),
            Record {
                lines: Arc::clone(&lines),
                forwarded: Arc::clone(&forwarded),
            },
            valve_seen,
        ));
        Self {
            address,
            port,
            lines,
            forwarded,
            valve,
            _task: task,
            _directory: directory,
        }
    }

    /// Where it listens, as the gateway's configuration writes it.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The port of a TCP tap.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// How many bytes were said to the program behind so far.
    #[must_use]
    pub fn forwarded(&self) -> u64 {
        self.forwarded.load(Ordering::Relaxed)
    }

    /// The lines the program behind wrote so far.
    #[must_use]
    pub fn lines(&self) -> Vec<TapLine> {
        lock(&self.lines).iter().cloned().collect()
    }

    /// The first line for which `wanted` holds.
    #[must_use]
    pub fn find(&self, wanted: impl Fn(&[u8]) -> bool) -> Option<TapLine> {
        lock(&self.lines)
            .iter()
            .find(|line| wanted(&line.text))
            .cloned()
    }

    /// Lets nothing through until [`release`](Self::release).
    pub fn hold(&self) {
        self.valve.send_modify(|valve| valve.held = true);
    }

    /// Lets everything through again, what waited first.
    pub fn release(&self) {
        self.valve.send_modify(|valve| valve.held = false);
    }

    /// Closes all present connections, both sides; new ones are welcome.
    pub fn cut(&self) {
        self.valve.send_modify(|valve| valve.cuts += 1);
    }
}

async fn serve(listener: Listener, target: String, record: Record, valve: watch::Receiver<Valve>) {
    // Dropped with this task, which ends the connections.
    let mut connections = JoinSet::new();
    loop {
        let accepted = match &listener {
            Listener::Unix(listener) => listener
                .accept()
                .await
                .map(|(stream, _)| Box::new(stream) as Duplex),
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                // Nagle would show up as latency of the program under test.
                let _ = stream.set_nodelay(true);
                Box::new(stream) as Duplex
            }),
        };
        let Ok(front) = accepted else { return };
        let target = target.clone();
        let record = record.clone();
        let valve = valve.clone();
        // A connection that fails is closed on both sides: that is the whole report.
        connections.spawn(async move { relay(front, &target, record, valve).await.ok() });
        while connections.try_join_next().is_some() {}
    }
}

async fn relay(
    front: Duplex,
    target: &str,
    record: Record,
    mut valve: watch::Receiver<Valve>,
) -> Result<()> {
    let cuts = valve.borrow().cuts;
    let back = connect(target).await?;
    let (front_read, front_write) = tokio::io::split(front);
    let (back_read, back_write) = tokio::io::split(back);
    let forward = pump(front_read, back_write, valve.clone(), |chunk| {
        let length = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        record.forwarded.fetch_add(length, Ordering::Relaxed);
    });
    let mut partial = Vec::new();
    let backward = pump(back_read, front_write, valve.clone(), |chunk| {
        keep_lines(chunk, &mut partial, &record.lines);
    });
    tokio::select! {
        ended = forward => ended,
        ended = backward => ended,
        _ = valve.wait_for(|valve| valve.cuts != cuts) => Ok(()),
    }
}

async fn connect(target: &str) -> Result<Duplex> {
    if let Some(path) = target.strip_prefix("unix:") {
        return Ok(Box::new(UnixStream::connect(path).await?));
    }
    let Some(address) = target.strip_prefix("tcp:") else {
        bail!("{target:?} is no address");
    };
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true).context("no TCP_NODELAY")?;
    Ok(Box::new(stream))
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut valve: watch::Receiver<Valve>,
    mut record: impl FnMut(&[u8]),
) -> Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = from.read(&mut chunk).await?;
        if length == 0 {
            return Ok(());
        }
        record(&chunk[..length]);
        valve.wait_for(|valve| !valve.held).await?;
        to.write_all(&chunk[..length]).await?;
    }
}

fn keep_lines(chunk: &[u8], partial: &mut Vec<u8>, lines: &Lines) {
    let at = Instant::now();
    let mut lines = lock(lines);
    for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
        partial.extend_from_slice(piece);
        if partial.last() == Some(&b'\n') {
            let mut text = std::mem::take(partial);
            text.pop();
            if text.last() == Some(&b'\r') {
                text.pop();
            }
            if lines.len() == LINES_MAX {
                lines.pop_front();
            }
            lines.push_back(TapLine { at, text });
        }
    }
}

/// Guards a list that is whole after every push, so a panic elsewhere leaves it usable.
fn lock(lines: &Lines) -> MutexGuard<'_, VecDeque<TapLine>> {
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}
