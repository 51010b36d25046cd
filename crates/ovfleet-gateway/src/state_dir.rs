//! `state_dir`: what outlives the process, and the lock that keeps it to one process.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use aws_lc_rs::digest;
use rustix::fs::{FlockOperation, flock};

use crate::state::OpenError;

/// Length of the key that authenticates cursors, in bytes.
pub(crate) const CURSOR_KEY_BYTES: usize = 32;

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another process has it.
    #[error("{} is in use by process {holder}: only one gateway may use a state_dir", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Its process id, as it wrote it.
        holder: String,
    },
    /// It cannot be read or written.
    #[error("cannot use {}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The key file has been damaged.
    #[error("{} is damaged: remove it; cursors that callers kept become void", path.display())]
    Key {
        /// The file.
        path: PathBuf,
    },
    /// The database in it cannot be opened.
    #[error(transparent)]
    Database(#[from] OpenError),
    /// The system has no random numbers.
    #[error("no random numbers: {0}")]
    Random(getrandom::Error),
}

/// What is kept, and the right to it.
#[derive(Debug)]
pub(crate) struct StateDir {
    /// Authenticates cursors.
    pub(crate) cursor_key: [u8; CURSOR_KEY_BYTES],
    /// Locked until dropped; `None` without a state directory.
    _lock: Option<File>,
}

impl StateDir {
    /// Opens the directory, or makes do without one.
    ///
    /// Without one the key comes from the gateway's name, so that a cursor from
    /// before a restart is still known as ours and gives its gap, instead of
    /// being refused. Such a key tells damage and mix-ups, not forgery; what a
    /// forged cursor could ask for, `oldest` gives to anybody who may stream.
    pub(crate) fn open(directory: Option<&Path>, gateway: &str) -> Result<Self, StateError> {
        let Some(directory) = directory else {
            return Ok(Self {
                cursor_key: key_of_name(gateway),
                _lock: None,
            });
        };
        fs::create_dir_all(directory).map_err(at(directory))?;
        let lock = lock(directory)?;
        let cursor_key = cursor_key(&directory.join("cursor.key"))?;
        Ok(Self {
            cursor_key,
            _lock: Some(lock),
        })
    }
}

fn lock(directory: &Path) -> Result<File, StateError> {
    let path = directory.join("lock");
    let open = || {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600);
        options.open(&path)
    };
    let mut file = open().map_err(at(&path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            // What cannot be read leaves the holder unnamed.
            let _ = file.take(32).read_to_string(&mut holder);
            return Err(StateError::InUse {
                path: directory.to_owned(),
                holder: holder.trim().to_owned(),
            });
        }
        Err(error) => return Err(at(&path)(error.into())),
    }
    let noted = file
        .set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    noted.map_err(at(&path))?;
    Ok(file)
}

fn cursor_key(path: &Path) -> Result<[u8; CURSOR_KEY_BYTES], StateError> {
    match fs::read(path) {
        Ok(key) => key.try_into().map_err(|_| StateError::Key {
            path: path.to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = random_key()?;
            // Written beside and renamed: a crash leaves no half a key.
            let new = path.with_extension("key.new");
            let write = || {
                let mut options = OpenOptions::new();
                let mut file = options
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .mode(0o600)
                    .open(&new)?;
                file.write_all(&key)?;
                file.sync_all()?;
                fs::rename(&new, path)
            };
            write().map_err(at(path))?;
            Ok(key)
        }
        Err(error) => Err(at(path)(error)),
    }
}

fn key_of_name(gateway: &str) -> [u8; CURSOR_KEY_BYTES] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(b"ovfleet cursor key\0");
    context.update(gateway.as_bytes());
    let mut key = [0; CURSOR_KEY_BYTES];
    key.copy_from_slice(context.finish().as_ref());
    key
}

fn random_key() -> Result<[u8; CURSOR_KEY_BYTES], StateError> {
    let mut key = [0; CURSOR_KEY_BYTES];
    getrandom::fill(&mut key).map_err(StateError::Random)?;
    Ok(key)
}

fn at(path: &Path) -> impl Fn(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::Io {
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// Two gateways on one directory would hand out cursors that contradict each other.
    #[test]
    fn a_second_process_is_told_who_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let first = StateDir::open(Some(directory.path()), "vpn1").unwrap();
        let error = StateDir::open(Some(directory.path()), "vpn1")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&format!("process {}:", std::process::id())),
            "{error}"
        );
        let key = first.cursor_key;
        drop(first);
        let second = StateDir::open(Some(directory.path()), "vpn1").unwrap();
        assert_eq!(
            second.cursor_key, key,
            "cursors of the run before stay readable"
        );
        let mode = fs::metadata(directory.path().join("cursor.key"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    /// A damaged key must not pass for a good one, nor be replaced silently.
    #[test]
    fn a_damaged_key_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("cursor.key"), "short").unwrap();
        let error = StateDir::open(Some(directory.path()), "vpn1").unwrap_err();
        assert!(matches!(error, StateError::Key { .. }), "{error}");
    }

    /// Without a directory a cursor from before a restart must still be known as
    /// ours, and one of another gateway must not.
    #[test]
    fn a_directory_is_not_needed() {
        let key = |gateway| StateDir::open(None, gateway).unwrap().cursor_key;
        assert_eq!(key("vpn1"), key("vpn1"));
        assert_ne!(key("vpn1"), key("vpn2"));
    }
}
