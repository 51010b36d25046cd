//! Learning at once that a Unix socket appears.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use notify::event::{EventKind, ModifyKind, RemoveKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Most directories watched at once; sockets in further ones are found by dialling only, at most half a second later.
const WATCHED_DIRECTORIES_MAX: usize = 1_024;

/// Wakes those who wait for a socket, or for a directory on the way to it, to appear.
///
/// One for all sessions: the kernel gives a user few watchers (128) but many directories.
#[derive(Debug)]
pub(crate) struct SocketWatch {
    /// Paths waited for. Guards a look-up; the watcher's own thread takes it, so it is never held while a directory is
    /// added or removed, which that thread must answer.
    awaited: Arc<Mutex<HashMap<PathBuf, Awaited>>>,
    /// Guards the watcher and its directories while one is added or removed.
    directories: Mutex<Directories>,
}

#[derive(Debug, Default)]
struct Awaited {
    appeared: Arc<Notify>,
    waiters: usize,
}

#[derive(Debug, Default)]
struct Directories {
    /// Made with the first directory; `None` also where the kernel gives us none.
    watcher: Option<RecommendedWatcher>,
    /// Each watched directory with the number of those who need it.
    needed: HashMap<PathBuf, usize>,
}

impl SocketWatch {
    pub(crate) fn new() -> Self {
        Self {
            awaited: Arc::default(),
            directories: Mutex::default(),
        }
    }

    /// Watches for `socket`, or for the first missing directory on the way to it.
    ///
    /// `None` if that cannot be watched: the caller then has only its own patience.
    pub(crate) fn subscribe(&self, socket: &Path) -> Option<Subscription<'_>> {
        // The nearest directory there is, and what must appear in it.
        let (directory, awaited) = socket
            .ancestors()
            .zip(socket.ancestors().skip(1))
            .find(|(_, directory)| directory.is_dir())
            .map(|(awaited, directory)| (directory.to_owned(), awaited.to_owned()))?;
        // First the ears, then the bell: what appears between would be missed otherwise.
        let appeared = {
            let mut awaiting = lock(&self.awaited);
            let entry = awaiting.entry(awaited.clone()).or_default();
            entry.waiters += 1;
            Arc::clone(&entry.appeared)
        };
        let mut subscription = Subscription {
            watch: self,
            awaited,
            appeared,
            directory: None,
        };
        self.need(&directory)?;
        subscription.directory = Some(directory);
        Some(subscription)
    }

    fn need(&self, directory: &Path) -> Option<()> {
        let mut directories = lock(&self.directories);
        let Directories { watcher, needed } = &mut *directories;
        let count = needed.get(directory).copied().unwrap_or_default();
        if needed.len() >= WATCHED_DIRECTORIES_MAX && count == 0 {
            return None;
        }
        if watcher.is_none() {
            *watcher = self.watcher();
        }
        // Also where it is watched already: a directory that was removed and made again is another one.
        watcher
            .as_mut()?
            .watch(directory, RecursiveMode::NonRecursive)
            .inspect_err(|error| tracing::debug!(?directory, %error, "not watched"))
            .ok()?;
        needed.insert(directory.to_owned(), count + 1);
        Some(())
    }

    fn watcher(&self) -> Option<RecommendedWatcher> {
        let awaited = Arc::clone(&self.awaited);
        let handle = move |event: notify::Result<notify::Event>| {
            // An overflow loses events; so may an error. Then everybody looks for himself.
            let Ok(event) = event else {
                return wake_all(&awaited);
            };
            if event.need_rescan() {
                return wake_all(&awaited);
            }
            let awaiting = lock(&awaited);
            for path in &event.paths {
                match event.kind {
                    EventKind::Create(_) | EventKind::Modify(ModifyKind::Name(_)) => {
                        if let Some(awaited) = awaiting.get(path) {
                            awaited.appeared.notify_waiters();
                        }
                    }
                    // A watch goes with its directory: those who waited there must look for another.
                    EventKind::Remove(RemoveKind::Folder | RemoveKind::Other) => awaiting
                        .iter()
                        .filter(|(awaited, _)| awaited.parent() == Some(path))
                        .for_each(|(_, awaited)| awaited.appeared.notify_waiters()),
                    _ => {}
                }
            }
        };
        notify::recommended_watcher(handle)
            .inspect_err(|error| {
                tracing::warn!(%error, "directories of sockets cannot be watched; dialling more often instead");
            })
            .ok()
    }

    fn release(&self, directory: &Path) {
        let mut directories = lock(&self.directories);
        let Directories { watcher, needed } = &mut *directories;
        let Some(count) = needed.get_mut(directory) else {
            return;
        };
        *count -= 1;
        if *count == 0 {
            needed.remove(directory);
            if let Some(watcher) = watcher {
                // It fails if the directory is gone, and the watch with it.
                drop(watcher.unwatch(directory));
            }
        }
    }
}

fn wake_all(awaited: &Mutex<HashMap<PathBuf, Awaited>>) {
    for awaited in lock(awaited).values() {
        awaited.appeared.notify_waiters();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A wait for one path; dropped, nobody watches for it any more.
#[derive(Debug)]
pub(crate) struct Subscription<'a> {
    watch: &'a SocketWatch,
    awaited: PathBuf,
    appeared: Arc<Notify>,
    /// The directory watched; `None` until it is.
    directory: Option<PathBuf>,
}

impl Subscription<'_> {
    /// Ends when the path appears after this call.
    pub(crate) fn appeared(&self) -> Notified<'_> {
        self.appeared.notified()
    }
}

impl Drop for Subscription<'_> {
    fn drop(&mut self) {
        if let Some(directory) = &self.directory {
            self.watch.release(directory);
        }
        let mut awaiting = lock(&self.watch.awaited);
        if let Some(awaited) = awaiting.get_mut(&self.awaited) {
            awaited.waiters -= 1;
            if awaited.waiters == 0 {
                awaiting.remove(&self.awaited);
            }
        }
    }
}
