//! The lock that keeps a `state_dir` to one process.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use crate::state_dir::{StateError, at};

/// The right to a state directory; another process has it once this is dropped, or its process is dead.
#[derive(Debug)]
pub struct StateLock {
    directory: PathBuf,
    _file: File,
}

impl StateLock {
    /// Takes it, if nobody has it.
    ///
    /// # Errors
    /// [`StateError::InUse`], which names the holder; or the directory cannot be used.
    pub fn take(directory: &Path) -> Result<Self, StateError> {
        Self::lock(directory, FlockOperation::NonBlockingLockExclusive)
    }

    /// Waits until nobody else has it, and takes it at that moment. It blocks, and cannot be told to give up: it is for
    /// a thread of its own.
    ///
    /// # Errors
    /// The directory cannot be used.
    pub fn wait(directory: &Path) -> Result<Self, StateError> {
        Self::lock(directory, FlockOperation::LockExclusive)
    }

    /// What it is the right to.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn lock(directory: &Path, operation: FlockOperation) -> Result<Self, StateError> {
        fs::create_dir_all(directory).map_err(at(directory))?;
        let path = directory.join("lock");
        loop {
            let mut file = open(&path).map_err(at(&path))?;
            match flock(&file, operation) {
                Ok(()) => {}
                Err(Errno::INTR) => continue,
                Err(Errno::WOULDBLOCK) => {
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
            // Whoever removed the file meanwhile made way for another lock of that name.
            if !is_at(&file, &path).map_err(at(&path))? {
                continue;
            }
            // For whoever comes next. On a full disk the right counts without its note.
            let _ = file
                .set_len(0)
                .and_then(|()| writeln!(file, "{}", std::process::id()));
            return Ok(Self {
                directory: directory.to_owned(),
                _file: file,
            });
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600);
    match options.open(path) {
        // One that is there can be locked without being written.
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            File::open(path).map_err(|_| error)
        }
        result => result,
    }
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let held = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((held.dev(), held.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread, time::Duration};

    use super::*;

    /// A standby that noticed late, or took the lock of a file that is gone, would leave the fleet alone, or to two.
    #[test]
    fn who_waits_has_it_once_it_is_free() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        let first = StateLock::take(&path).unwrap();
        let (sender, taken) = mpsc::channel();
        let waiter = thread::spawn(move || sender.send(StateLock::wait(&path)).unwrap());
        let early = taken.recv_timeout(Duration::from_millis(200));
        assert!(early.is_err(), "it did not wait");
        // What it waits for is gone by the time it has it.
        fs::remove_file(directory.path().join("lock")).unwrap();
        drop(first);
        let second = taken
            .recv_timeout(Duration::from_secs(10))
            .unwrap()
            .unwrap();
        waiter.join().unwrap();
        assert_eq!(second.directory(), directory.path());
        let third = StateLock::take(directory.path());
        assert!(matches!(third, Err(StateError::InUse { .. })), "{third:?}");
    }
}
