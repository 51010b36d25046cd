//! Who holds a daemon's only management slot.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use crate::address::Address;

/// One search at a time: it walks through every process of the machine. Further ones wait, and their sessions with them,
/// which have nothing else to do.
static SEARCH: Semaphore = Semaphore::const_new(1);

/// Most open files looked at in one search; a holder behind them stays unnamed.
const FILES_MAX: usize = 200_000;
/// How long the kernel may take for each part of its list.
const LIST_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(1);

/// Why a daemon that took our connection says nothing, naming the holder of its slot where this machine can tell.
pub(crate) async fn describe(address: &Address) -> String {
    let holder = match address {
        Address::Unix(path) => search(path.clone()).await,
        Address::Tcp { .. } | Address::Tls { .. } => Holder::Unknown,
        Address::ListenUnix(_) | Address::ListenTcp(_) => {
            return "what dialled in does not greet: the daemon hangs, or it is none".to_owned();
        }
    };
    let holder = match holder {
        Holder::Unknown => {
            return "another manager holds the daemon's only management slot, or the daemon hangs; we wait in line"
                .to_owned();
        }
        Holder::None => {
            return "nobody holds the daemon's management slot, yet it does not greet: the daemon hangs".to_owned();
        }
        Holder::Invisible => "a process that cannot be seen from here".to_owned(),
        Holder::Ourselves => {
            return "this gateway's own connection has the daemon's only management slot and hears nothing: the daemon \
                    hangs or is none, or another instance has the same address"
                .to_owned();
        }
        Holder::Process { pid, command } => format!("{command} (pid {pid})"),
    };
    format!("{holder} holds the daemon's only management slot; we wait in line")
}

async fn search(path: PathBuf) -> Holder {
    // The semaphore is never closed.
    let _turn = SEARCH.acquire().await;
    spawn_blocking(move || {
        find_holder(&path).unwrap_or_else(|error| {
            tracing::debug!(?path, %error, "cannot tell who holds the slot");
            Holder::Unknown
        })
    })
    .await
    .unwrap_or(Holder::Unknown)
}

/// Who is connected to a socket's daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Holder {
    /// There is no telling.
    Unknown,
    /// No connection is accepted.
    None,
    /// A process of another user or another namespace.
    Invisible,
    Ourselves,
    Process {
        pid: u32,
        command: String,
    },
}

fn find_holder(path: &Path) -> io::Result<Holder> {
    let socket = fs::metadata(path)?;
    let Some(peer) = list_sockets()?
        .into_iter()
        .filter(|accepted| accepted.is_at(path, &socket))
        .find_map(|accepted| accepted.peer)
    else {
        return Ok(Holder::None);
    };
    Ok(find_owner(peer).unwrap_or(Holder::Invisible))
}

/// The process with the socket `inode` among its open files.
fn find_owner(inode: u32) -> Option<Holder> {
    let link = format!("socket:[{inode}]");
    let mut files_left = FILES_MAX;
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // Not ours to see, or gone.
        let Ok(files) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        for file in files.flatten() {
            files_left = files_left.checked_sub(1)?;
            if fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == link.as_str()) {
                if pid == std::process::id() {
                    return Some(Holder::Ourselves);
                }
                let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                let command = command.trim_end().escape_default().to_string();
                return Some(Holder::Process { pid, command });
            }
        }
    }
    None
}

/// One end of a connected Unix socket, as the kernel lists it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Socket {
    /// The path it was bound to, as it was written then; empty for the connecting end.
    name: Vec<u8>,
    /// Inode and device of that path.
    file: Option<(u32, u32)>,
    /// Inode of the other end; `None` if that is closed.
    peer: Option<u32>,
}

impl Socket {
    /// Whether this is the daemon's end of a connection to the socket at `path`.
    ///
    /// By name or by file: a daemon may have bound a relative path, and an overlay may show another inode.
    fn is_at(&self, path: &Path, metadata: &fs::Metadata) -> bool {
        let name = self
            .name
            .split(|byte| *byte == 0)
            .next()
            .unwrap_or_default();
        let device = metadata.dev();
        let device = rustix::fs::major(device) << 20 | rustix::fs::minor(device);
        name == path.as_os_str().as_bytes()
            || self.file.is_some_and(|file| {
                u64::from(file.0) == metadata.ino() & 0xffff_ffff && file.1 == device
            })
    }
}

// What follows is of linux/netlink.h, linux/sock_diag.h and linux/unix_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST_DUMP: u16 = 0x1 | 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const AF_UNIX: u8 = 1;
/// Connected sockets only (TCP_ESTABLISHED, as a bit).
const STATES_CONNECTED: u32 = 1 << 1;
/// Name, file and peer of each.
const SHOW_NAME_FILE_PEER: u32 = 1 | 2 | 4;
const UNIX_DIAG_NAME: u16 = 0;
const UNIX_DIAG_VFS: u16 = 1;
const UNIX_DIAG_PEER: u16 = 2;
/// Lengths of `nlmsghdr` and `unix_diag_msg`.
const MESSAGE_HEADER_BYTES: usize = 16;
const SOCKET_HEADER_BYTES: usize = 16;

/// The connected Unix sockets of this network namespace that were accepted.
fn list_sockets() -> io::Result<Vec<Socket>> {
    let kernel = socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    set_socket_timeout(&kernel, Timeout::Recv, Some(LIST_TIMEOUT))?;
    let mut request = Vec::with_capacity(40);
    request.extend_from_slice(&40u32.to_ne_bytes());
    request.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend_from_slice(&NLM_F_REQUEST_DUMP.to_ne_bytes());
    request.extend_from_slice(&[0; 8]); // sequence, port
    request.extend_from_slice(&[AF_UNIX, 0, 0, 0]);
    request.extend_from_slice(&STATES_CONNECTED.to_ne_bytes());
    request.extend_from_slice(&[0; 4]); // any inode
    request.extend_from_slice(&SHOW_NAME_FILE_PEER.to_ne_bytes());
    request.extend_from_slice(&[0xff; 8]); // no cookie
    sendto(
        &kernel,
        &request,
        SendFlags::empty(),
        &SocketAddrNetlink::new(0, 0),
    )?;

    let mut sockets = Vec::new();
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let (_, length) = recv(&kernel, buffer.as_mut_slice(), RecvFlags::empty())?;
        let mut rest = &buffer[..length.min(buffer.len())];
        while let Some((kind, body, next)) = split_message(rest) {
            match kind {
                NLMSG_DONE => return Ok(sockets),
                NLMSG_ERROR => {
                    return Err(io::Error::other("the kernel does not list its sockets"));
                }
                SOCK_DIAG_BY_FAMILY => sockets.extend(parse_socket(body)),
                _ => {}
            }
            rest = next;
        }
    }
}

/// Type and body of the first message, and what follows it.
fn split_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(read_u32(bytes, 0)?).ok()?;
    let kind = read_u16(bytes, 4)?;
    let body = bytes.get(MESSAGE_HEADER_BYTES..length)?;
    Some((kind, body, after(bytes, length)))
}

/// A socket that was accepted; one that waits for it has no inode yet.
fn parse_socket(body: &[u8]) -> Option<Socket> {
    if read_u32(body, 4)? == 0 {
        return None;
    }
    let mut socket = Socket::default();
    let mut attributes = body.get(SOCKET_HEADER_BYTES..)?;
    while let (Some(length), Some(kind)) = (read_u16(attributes, 0), read_u16(attributes, 2)) {
        let length = usize::from(length);
        let value = attributes.get(4..length)?;
        match kind {
            UNIX_DIAG_NAME => socket.name = value.to_owned(),
            UNIX_DIAG_VFS => socket.file = read_u32(value, 0).zip(read_u32(value, 4)),
            // A peer that closed is still listed, without an inode.
            UNIX_DIAG_PEER => socket.peer = read_u32(value, 0).filter(|inode| *inode > 0),
            _ => {}
        }
        attributes = after(attributes, length);
    }
    Some(socket)
}

/// What follows the first `length` bytes, which are padded to a multiple of four.
fn after(bytes: &[u8], length: usize) -> &[u8] {
    bytes.get(length.next_multiple_of(4)..).unwrap_or_default()
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .copied()
        .map(u16::from_ne_bytes)
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .copied()
        .map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    /// The process at the other end of an accepted connection is found; one that only waits in line is not taken for it.
    #[test]
    fn the_holder_is_who_was_accepted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("management.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let first = UnixStream::connect(&path).unwrap();
        assert_eq!(find_holder(&path).unwrap(), Holder::None);
        let _accepted = listener.accept().unwrap();
        let _waiting = UnixStream::connect(&path).unwrap();
        assert_eq!(find_holder(&path).unwrap(), Holder::Ourselves);
        drop(first);
        assert_eq!(find_holder(&path).unwrap(), Holder::None);
    }

    /// A socket bound by another name of the same file is recognised by its inode.
    #[test]
    fn a_socket_is_known_by_its_file_too() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("management.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let other_name = directory.path().join("other.sock");
        fs::hard_link(&path, &other_name).unwrap();
        let _stream = UnixStream::connect(&path).unwrap();
        let _accepted = listener.accept().unwrap();
        assert_eq!(find_holder(&other_name).unwrap(), Holder::Ourselves);
    }

    /// What the kernel sends is never trusted to be whole.
    #[test]
    fn cut_messages_are_no_sockets() {
        let whole: Vec<u8> = [
            &[1, 1, 1, 0][..],
            &7u32.to_ne_bytes(),
            &[0; 8],
            &8u16.to_ne_bytes(),
            &UNIX_DIAG_PEER.to_ne_bytes(),
            &9u32.to_ne_bytes(),
        ]
        .concat();
        assert_eq!(parse_socket(&whole).unwrap().peer, Some(9));
        for length in 0..whole.len() {
            let cut = parse_socket(&whole[..length]);
            assert!(cut.is_none_or(|socket| socket.peer.is_none()));
        }
        assert!(split_message(&[16, 0, 0]).is_none());
    }
}
