//! Directories in which something may change.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode},
};
use tokio::sync::Notify;

/// Most directories watched at once; what is in others is looked at by time alone.
const DIRECTORIES_MAX: usize = 1_024;

/// Tells when something changed in one of some directories. Without the system's help it never does.
#[derive(Debug)]
pub(crate) struct DirectoryWatch {
    /// `None` where the system has no more of them.
    watcher: Option<RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
    /// Rung by the watcher; however often it rings, it is one more look.
    changed: Arc<Notify>,
}

impl DirectoryWatch {
    /// Watches no directory yet. `purpose` completes the sentence "without it …".
    pub(crate) fn new(purpose: &str) -> Self {
        let changed = Arc::new(Notify::new());
        let rung = Arc::clone(&changed);
        let ring = move |event: notify::Result<notify::Event>| {
            // Our own reading of a file is no news.
            let news = !matches!(
                event.as_ref().map(|event| event.kind),
                Ok(EventKind::Access(kind)) if kind != AccessKind::Close(AccessMode::Write)
            );
            if news {
                rung.notify_one();
            }
        };
        let watcher = notify::recommended_watcher(ring)
            .inspect_err(
                |error| tracing::warn!(%error, "directories cannot be watched; without it {purpose}"),
            )
            .ok();
        Self {
            watcher,
            watched: BTreeSet::new(),
            changed,
        }
    }

    /// Makes these the directories, as far as they exist and the system lets us.
    pub(crate) fn set(&mut self, wanted: BTreeSet<PathBuf>) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        for gone in self.watched.difference(&wanted) {
            // One that does not exist any more is not watched any more either.
            let _ = watcher.unwatch(gone);
        }
        let watch = |directory: &PathBuf| {
            // Watching again what was removed and made again since is what makes it work.
            watcher
                .watch(directory, RecursiveMode::NonRecursive)
                .is_ok()
        };
        self.watched = wanted
            .into_iter()
            .take(DIRECTORIES_MAX)
            .filter(watch)
            .collect();
    }

    /// Whether changes in this directory are told.
    pub(crate) fn contains(&self, directory: &Path) -> bool {
        self.watched.contains(directory)
    }

    /// Waits for a change since the last time. Cancel safe.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}

/// The directories in which something can appear that matches a pattern of paths.
pub(crate) fn directories(pattern: &Path) -> Vec<PathBuf> {
    let parent = parent(pattern);
    if has_wildcards(parent) {
        let found = matches(parent).filter_map(Result::ok);
        return found.filter(|path| path.is_dir()).collect();
    }
    if parent.is_dir() {
        vec![parent.to_owned()]
    } else {
        Vec::new()
    }
}

/// The directory part of a path; that of one without is where we are.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => Path::new("/"),
    }
}

pub(crate) fn has_wildcards(path: &Path) -> bool {
    path.to_string_lossy().contains(['*', '?', '['])
}

/// Why it is not known what matches a pattern.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}: {}", path.display(), with_remedy(error))]
pub(crate) struct Unreadable {
    /// What could not be looked at, mostly a directory.
    pub(crate) path: PathBuf,
    error: io::Error,
}

/// What matches a pattern now, in order, and what could not be looked at. Where no directory is, nothing matches.
pub(crate) fn matches(pattern: &Path) -> impl Iterator<Item = Result<PathBuf, Unreadable>> {
    let text = pattern.to_string_lossy();
    let found = glob::glob(&text).into_iter().flatten().map(|found| {
        found.map_err(|error| Unreadable {
            path: error.path().to_owned(),
            error: error.into(),
        })
    });
    // `glob` takes what it may not look at by name for what is not there.
    let parts = pattern.components();
    let fixed: PathBuf = parts
        .take_while(|part| !has_wildcards(part.as_ref()))
        .collect();
    let hidden = fs::metadata(&fixed)
        .err()
        .map(|error| Err(Unreadable { path: fixed, error }));
    hidden.into_iter().chain(found).filter(|found| match found {
        Ok(_) => true,
        // It may have gone since it was found.
        Err(Unreadable { error, .. }) => !means_absent(error),
    })
}

/// Whether nothing is there, rather than something that cannot be looked at.
pub(crate) fn means_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// What the system said, and what to do about it where that is known.
pub(crate) fn with_remedy(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!("{error}: make it readable for the user that the gateway runs as")
        }
        _ => error.to_string(),
    }
}
