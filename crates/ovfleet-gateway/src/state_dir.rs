//! `state_dir`: what outlives the process.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use aws_lc_rs::digest;

use crate::{state::OpenError, state_lock::StateLock};

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
    /// `None` without a state directory.
    _lock: Option<StateLock>,
}

impl StateDir {
    /// Opens the directory, or makes do without one.
    ///
    /// Without one the key comes from the gateway's name, so that a cursor from
    /// before a restart is still known as ours and gives its gap, instead of
    /// being refused. Such a key tells damage and mix-ups, not forgery; what a
    /// forged cursor could ask for, `oldest` gives to anybody who may stream.
    ///
    /// `lock` is the right to it, where it was taken before.
    pub(crate) fn open(
        directory: Option<&Path>,
        gateway: &str,
        lock: Option<StateLock>,
    ) -> Result<Self, StateError> {
        let Some(directory) = directory else {
            return Ok(Self {
                cursor_key: key_of_name(gateway),
                _lock: None,
            });
        };
        let lock = match lock.filter(|lock| lock.directory() == directory) {
            Some(lock) => lock,
            None => StateLock::take(directory)?,
        };
        let cursor_key = cursor_key(&directory.join("cursor.key"))?;
        Ok(Self {
            cursor_key,
            _lock: Some(lock),
        })
    }
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

pub(crate) fn at(path: &Path) -> impl Fn(io::Error) -> StateError {
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
        let first = StateDir::open(Some(directory.path()), "vpn1", None).unwrap();
        let error = StateDir::open(Some(directory.path()), "vpn1", None)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&format!("process {}:", std::process::id())),
            "{error}"
        );
        let key = first.cursor_key;
        drop(first);
        let second = StateDir::open(Some(directory.path()), "vpn1", None).unwrap();
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
        let error = StateDir::open(Some(directory.path()), "vpn1", None).unwrap_err();
        assert!(matches!(error, StateError::Key { .. }), "{error}");
    }

    /// Without a directory a cursor from before a restart must still be known as
    /// ours, and one of another gateway must not.
    #[test]
    fn a_directory_is_not_needed() {
        let key = |gateway| StateDir::open(None, gateway, None).unwrap().cursor_key;
        assert_eq!(key("vpn1"), key("vpn1"));
        assert_ne!(key("vpn1"), key("vpn2"));
    }
}
