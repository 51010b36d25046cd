//! Sockets that a process left behind.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use rustix::io::Errno;

/// Why a path is not free for a socket of ours.
#[derive(Debug, thiserror::Error)]
pub enum NotFree {
    /// A process has a socket there.
    #[error("another process listens there")]
    Taken,
    /// There is a file of that name which is no socket.
    #[error("it is no socket")]
    NotASocket,
    /// The system does not let us look, or remove what is there.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Removes the socket of a process that ended without doing so itself. A live one is never connected to, and never
/// waited for.
///
/// # Errors
/// [`NotFree`]: nothing was removed.
pub fn remove_stale_socket(path: &Path) -> Result<(), NotFree> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !metadata.file_type().is_socket() {
        return Err(NotFree::NotASocket);
    }
    // A datagram socket is refused by a live stream socket too, but in other words, and without connecting: what listens
    // there may be a daemon, and a connection to it would take its only slot. Nor does it wait where the queue is full.
    let Err(error) = UnixDatagram::unbound()?.connect(path) else {
        return Err(NotFree::Taken);
    };
    match Errno::from_io_error(&error) {
        Some(Errno::CONNREFUSED) => Ok(fs::remove_file(path)?),
        Some(Errno::PROTOTYPE) => Err(NotFree::Taken),
        _ => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::net::UnixListener;
    use std::thread;

    use rustix::process::{Uid, geteuid};
    use rustix::thread::set_thread_res_uid;

    use super::*;

    /// "Another process listens there" sends somebody to look for a process; where we may not look, there may be none.
    #[test]
    fn what_may_not_be_looked_at_is_not_called_taken() {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();
        let path = directory.path().join("management.sock");
        let _live = UnixListener::bind(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o000)).unwrap();
        let removed = thread::scope(|scope| {
            let bound_by_permissions = scope.spawn(|| {
                // The kernel knows the identity of threads: the others stay who they are.
                if geteuid().is_root() {
                    let nobody = Uid::from_raw(65_534);
                    set_thread_res_uid(nobody, nobody, nobody).unwrap();
                }
                remove_stale_socket(&path)
            });
            bound_by_permissions.join().unwrap()
        });
        let Err(NotFree::Io(error)) = removed else {
            panic!("{removed:?}");
        };
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(path.exists());
    }
}
