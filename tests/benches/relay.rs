//! The floor of a line's way to a reader: a process between two Unix sockets that looks
//! at nothing.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    sync::Arc,
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result};

use crate::latency::{Kind, Receipts};

/// What a gateway reads at a time, too.
const READ_BYTES: usize = 64 << 10;

/// Copies what comes from the socket `source` to the socket `sink`; a peer's `main`.
pub(crate) fn relay(source: &str, sink: &str) -> Result<()> {
    let mut source = UnixStream::connect(source)?;
    let mut sink = UnixStream::connect(sink)?;
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let count = source.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        let read = buffer
            .get(..count)
            .context("more was read than asked for")?;
        sink.write_all(read)?;
    }
}

/// Reads what a relay brings, in a thread that ends with the relay.
pub(crate) fn receive(listener: UnixListener) -> Arc<Receipts> {
    let receipts = Arc::new(Receipts::default());
    let theirs = Arc::clone(&receipts);
    thread::spawn(move || {
        // An error means that the relay is gone; who waits for lines finds them missing.
        let _ = read(&listener, &theirs);
    });
    receipts
}

/// Notes each `>CLIENT:` block when its last line is there.
fn read(listener: &UnixListener, receipts: &Receipts) -> io::Result<()> {
    let (stream, _) = listener.accept()?;
    let mut lines = BufReader::with_capacity(READ_BYTES, stream);
    let mut line = Vec::new();
    let mut block = None;
    while lines.read_until(b'\n', &mut line)? > 0 {
        if line.starts_with(b">CLIENT:ENV,END") {
            let now = Instant::now();
            if let Some((kind, cid)) = block.take() {
                receipts.push(kind, cid, now);
            }
        } else if let Some(cid) = line.strip_prefix(b">CLIENT:ESTABLISHED,") {
            block = number(cid).map(|cid| (Kind::Established, cid));
        } else if let Some(cid) = line.strip_prefix(b">CLIENT:DISCONNECT,") {
            block = number(cid).map(|cid| (Kind::Disconnected, cid));
        }
        line.clear();
    }
    Ok(())
}

fn number(line: &[u8]) -> Option<u64> {
    str::from_utf8(line.trim_ascii()).ok()?.parse().ok()
}
