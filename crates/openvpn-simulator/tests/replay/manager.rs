//! A manager's connection to a daemon, real or simulated.

use std::io::ErrorKind;
use std::time::Duration;

use openvpn_simulator::{Address, Daemon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::timeout;

/// Longest wait for anything the daemon is to say.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A manager's connection.
pub(crate) struct Manager {
    stream: Stream,
    received: Vec<u8>,
}

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Manager {
    pub(crate) async fn connect(daemon: &Daemon) -> Self {
        Self::connect_to(daemon.address()).await
    }

    pub(crate) async fn connect_to(address: &Address) -> Self {
        let stream = match address {
            Address::Unix(path) => Stream::Unix(UnixStream::connect(path).await.unwrap()),
            Address::Tcp(address) => Stream::Tcp(TcpStream::connect(address).await.unwrap()),
        };
        Self {
            stream,
            received: Vec::new(),
        }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        match &mut self.stream {
            Stream::Unix(stream) => stream.write_all(bytes).await.unwrap(),
            Stream::Tcp(stream) => stream.write_all(bytes).await.unwrap(),
        }
    }

    pub(crate) async fn half_close(&mut self) {
        match &mut self.stream {
            Stream::Unix(stream) => stream.shutdown().await.unwrap(),
            Stream::Tcp(stream) => stream.shutdown().await.unwrap(),
        }
    }

    /// The next line without CR and LF; `None` at the end of the connection.
    pub(crate) async fn line(&mut self) -> Option<String> {
        let line = timeout(PATIENCE, self.line_at_last()).await;
        line.expect("the daemon says nothing")
    }

    /// The same, with patience without end.
    pub(crate) async fn line_at_last(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.received.windows(2).position(|pair| pair == b"\r\n") {
                let line: Vec<u8> = self.received.drain(..end + 2).collect();
                return Some(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if !self.receive().await {
                assert!(self.received.is_empty(), "cut line: {:?}", self.received);
                return None;
            }
        }
    }

    /// Waits for bytes without a line end; whatever else there is stays.
    pub(crate) async fn expect_bytes(&mut self, bytes: &[u8]) {
        while self.received.len() < bytes.len() {
            let receiving = timeout(PATIENCE, self.receive()).await;
            let open = receiving.expect("the daemon says nothing");
            assert!(open, "closed before {}", bytes.escape_ascii());
        }
        let received: Vec<u8> = self.received.drain(..bytes.len()).collect();
        assert_eq!(
            received.escape_ascii().to_string(),
            bytes.escape_ascii().to_string()
        );
    }

    /// Whether anything more came before the end.
    async fn receive(&mut self) -> bool {
        let mut buffer = [0; 16 << 10];
        let read = match &mut self.stream {
            Stream::Unix(stream) => stream.read(&mut buffer).await,
            Stream::Tcp(stream) => stream.read(&mut buffer).await,
        };
        let count = match read {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => 0,
            Err(error) => panic!("{error}"),
        };
        self.received.extend_from_slice(&buffer[..count]);
        count > 0
    }
}

/// A manager that waits for its daemon to dial in.
pub(crate) enum Reception {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Reception {
    pub(crate) async fn open(address: &Address) -> Self {
        match address {
            Address::Unix(path) => Self::Unix(UnixListener::bind(path).unwrap()),
            Address::Tcp(address) => Self::Tcp(TcpListener::bind(address).await.unwrap()),
        }
    }

    /// Where it listens, with the port the kernel chose.
    pub(crate) fn address(&self) -> Address {
        match self {
            Self::Unix(listener) => {
                let address = listener.local_addr().unwrap();
                Address::Unix(address.as_pathname().unwrap().to_owned())
            }
            Self::Tcp(listener) => Address::Tcp(listener.local_addr().unwrap()),
        }
    }

    pub(crate) async fn accept(&self) -> Manager {
        let accepted = async {
            match self {
                Self::Unix(listener) => Stream::Unix(listener.accept().await.unwrap().0),
                Self::Tcp(listener) => Stream::Tcp(listener.accept().await.unwrap().0),
            }
        };
        let stream = timeout(PATIENCE, accepted).await;
        Manager {
            stream: stream.expect("a daemon that dials in"),
            received: Vec::new(),
        }
    }
}
