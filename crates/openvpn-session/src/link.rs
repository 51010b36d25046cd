//! An open socket and the protocol's state on it.

use std::cell::RefCell;
use std::io::{self, Read};
use std::time::Instant;

use bytes::{Buf, Bytes};
use openvpn_management::{Connection, Limits, Output};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

use crate::tls::TlsStream;

/// Most bytes read at once.
const READ_BYTES_MAX: usize = 32 * 1024;

thread_local! {
    /// Where reads land. One for all sessions of a thread: it is only used between two awaits, and a buffer of its own
    /// would be most of what an idle session costs.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES_MAX].into_boxed_slice());
}

/// A management socket of any kind.
#[derive(Debug)]
pub(crate) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
    // Boxed, because it is many times as large as the others, and rare.
    Tls(Box<TlsStream>),
}

impl Stream {
    fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.try_read(buffer),
            Self::Tcp(stream) => stream.try_read(buffer),
            Self::Tls(stream) => stream.try_read(buffer),
        }
    }

    /// Reads past tokio, which would not ask the kernel before its own poll has said that there is something.
    fn read_unannounced(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let socket = match self {
            Self::Unix(stream) => SockRef::from(&*stream),
            Self::Tcp(stream) => SockRef::from(&*stream),
            Self::Tls(stream) => return stream.read_unannounced(buffer),
        };
        (&*socket).read(buffer)
    }

    fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.try_write(bytes),
            Self::Tcp(stream) => stream.try_write(bytes),
            Self::Tls(stream) => stream.try_write(bytes),
        }
    }

    /// Sends what was taken and not sent yet.
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Unix(_) | Self::Tcp(_) => Ok(()),
            Self::Tls(stream) => stream.flush(),
        }
    }

    async fn ready(&self, interest: Interest) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.ready(interest).await.map(drop),
            Self::Tcp(stream) => stream.ready(interest).await.map(drop),
            Self::Tls(stream) => stream.ready(interest).await,
        }
    }
}

/// What one read found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    /// That many bytes, which the protocol now has.
    Bytes(usize),
    /// Nothing is there yet.
    Nothing,
    /// The daemon closed its end.
    End,
}

/// A socket, the protocol on it, and what the socket did not take yet.
#[derive(Debug)]
pub(crate) struct Link {
    stream: Stream,
    pub(crate) connection: Connection,
    /// The rest of a read about which the protocol had much to say; less than one read.
    untaken: Bytes,
    /// The rest of a write the socket took in part. At most one command and one fence are behind it.
    unsent: Bytes,
    /// The first bytes received, to show when they are not OpenVPN's; emptied by [`settle`](Self::settle).
    first_bytes: Vec<u8>,
}

impl Link {
    /// Most first bytes kept; both things a daemon may begin with are shorter.
    const FIRST_BYTES_MAX: usize = 48;

    pub(crate) fn new(stream: Stream, limits: Limits) -> Self {
        Self {
            stream,
            connection: Connection::new(limits),
            untaken: Bytes::new(),
            unsent: Bytes::new(),
            first_bytes: Vec::with_capacity(Self::FIRST_BYTES_MAX),
        }
    }

    /// Reads once into the protocol what is known to be there.
    pub(crate) fn receive(&mut self, now: Instant) -> io::Result<Received> {
        self.receive_with(Stream::try_read, now)
    }

    /// Reads once into the protocol whatever has arrived, known or not.
    pub(crate) fn receive_unannounced(&mut self, now: Instant) -> io::Result<Received> {
        self.receive_with(Stream::read_unannounced, now)
    }

    fn receive_with(
        &mut self,
        read: fn(&mut Stream, &mut [u8]) -> io::Result<usize>,
        now: Instant,
    ) -> io::Result<Received> {
        if !self.untaken.is_empty() {
            let taken = self.connection.handle_some_input(&self.untaken, now);
            self.untaken.advance(taken);
            return Ok(Received::Bytes(taken));
        }
        SCRATCH.with_borrow_mut(|scratch| match read(&mut self.stream, scratch) {
            Ok(0) => Ok(Received::End),
            Ok(length) => {
                let bytes = &scratch[..length];
                let room = self.first_bytes.capacity() - self.first_bytes.len();
                self.first_bytes
                    .extend_from_slice(&bytes[..length.min(room)]);
                let taken = self.connection.handle_some_input(bytes, now);
                self.untaken = Bytes::copy_from_slice(&bytes[taken..]);
                Ok(Received::Bytes(taken))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Received::Nothing),
            Err(error) => Err(error),
        })
    }

    /// Writes what the protocol wants written, as far as the socket takes it.
    pub(crate) fn transmit(&mut self) -> io::Result<()> {
        loop {
            match self.stream.flush() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                flushed => flushed?,
            }
            if self.unsent.is_empty() {
                let Some(bytes) = self.connection.poll_transmit() else {
                    return Ok(());
                };
                self.unsent = bytes;
            }
            match self.stream.try_write(&self.unsent) {
                Ok(length) => self.unsent.advance(length),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until there is something to read, or room for what is unsent.
    pub(crate) async fn ready(&self) -> io::Result<()> {
        if !self.untaken.is_empty() {
            return Ok(());
        }
        let interest = if self.unsent.is_empty() {
            Interest::READABLE
        } else {
            Interest::READABLE | Interest::WRITABLE
        };
        self.stream.ready(interest).await
    }

    /// What the protocol has to say.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.connection.poll_output()
    }

    /// The first bytes received so far, if OpenVPN's management interface would not begin like that.
    pub(crate) fn foreign_first_bytes(&self) -> Option<&[u8]> {
        let like = |beginning: &[u8]| {
            let length = beginning.len().min(self.first_bytes.len());
            self.first_bytes[..length] == beginning[..length]
        };
        let is_ours = like(b"ENTER PASSWORD:") || like(b">INFO:");
        (!is_ours).then_some(&self.first_bytes)
    }

    /// Whether the daemon has said anything.
    pub(crate) fn has_received(&self) -> bool {
        !self.first_bytes.is_empty()
    }

    /// Forgets the first bytes: the daemon has shown itself to be one.
    pub(crate) fn settle(&mut self) {
        self.first_bytes = Vec::new();
    }
}
