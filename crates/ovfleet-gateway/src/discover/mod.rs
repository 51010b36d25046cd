//! Finding instances that nobody wrote down: sockets that appear, and lists
//! that other programs write.
//!
//! ```text
//! a directory changed ─┐
//! time to look again ──┴─► scan every source ─► what was found ─► the inventory
//! ```

mod file;
mod sockets;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use openvpn_session::Address;

use self::{file::Targets, sockets::Sockets};
use crate::{
    config::{DiscoverConfig, DiscoverSource, InstanceConfig, Place},
    directory_watch::{
        DirectoryWatch, directories, has_wildcards, matches, means_absent, parent, with_remedy,
    },
};

/// The least time between two scans: a directory where much happens is looked
/// at no more often.
const SCAN_SPACING: Duration = Duration::from_millis(200);
/// How often a source is looked at whose directory cannot be watched.
const UNWATCHED_INTERVAL: Duration = Duration::from_millis(500);

/// Every discovery source, and when it is time to look at them.
#[derive(Debug)]
pub(crate) struct Discovery {
    sources: Sources,
    directories: DirectoryWatch,
    /// When to look next; `None` until something was looked at.
    due: Option<Instant>,
    /// Something changed since the last look.
    is_due: bool,
}

/// Every discovery source, with what it remembers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources(Vec<Source>);

/// What a look at every source found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scan {
    /// The instances, in order of the sources. Two may have one name or one address.
    pub(crate) found: Vec<InstanceConfig>,
    /// What was left out, and why.
    pub(crate) complaints: BTreeSet<String>,
}

#[derive(Clone, Debug)]
struct Source {
    config: DiscoverConfig,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Sockets(Sockets),
    Targets(Targets),
}

/// One instance as a source found it.
struct Found {
    address: Address,
    labels: BTreeMap<String, String>,
    place: Place,
}

impl Discovery {
    pub(crate) fn new(sources: Sources) -> Self {
        Self {
            sources,
            directories: DirectoryWatch::new("discovery looks every 0.5 s"),
            due: None,
            is_due: false,
        }
    }

    /// The sources as they are now.
    pub(crate) const fn sources(&self) -> &Sources {
        &self.sources
    }

    /// Forgets sockets that are no daemon's, see [`Sources::forget`].
    pub(crate) fn forget(&mut self, sockets: &BTreeSet<PathBuf>) {
        self.sources.forget(sockets);
    }

    /// Takes other sources, of which the last scan is known.
    pub(crate) fn set_sources(&mut self, sources: Sources) {
        self.sources = sources;
        self.watch_directories();
        // What appeared in a directory between that scan and this would otherwise be found late.
        self.due = Some(Instant::now());
        self.is_due = true;
    }

    /// Waits until a scan may find something else than the last one did. Cancel safe.
    pub(crate) async fn changed(&mut self) {
        if self.sources.0.is_empty() {
            return std::future::pending().await;
        }
        let due = self.due.unwrap_or_else(|| Instant::now() + self.interval());
        self.due = Some(due);
        if !self.is_due {
            tokio::select! {
                () = self.directories.changed() => {
                    self.is_due = true;
                    self.due = Some(due.min(Instant::now() + SCAN_SPACING));
                }
                () = tokio::time::sleep_until(due.into()) => {}
            }
        }
        tokio::time::sleep_until(self.due.unwrap_or(due).into()).await;
    }

    fn interval(&self) -> Duration {
        let sources = &self.sources.0;
        let refresh = sources.iter().map(|source| source.config.refresh).min();
        let refresh = refresh.unwrap_or(Duration::from_hours(1));
        let watched = |source: &Source| {
            let directories = directories(source.pattern());
            !has_wildcards(parent(source.pattern()))
                && !directories.is_empty()
                && directories
                    .iter()
                    .all(|directory| self.directories.contains(directory))
        };
        if sources.iter().all(watched) {
            refresh
        } else {
            refresh.min(UNWATCHED_INTERVAL)
        }
    }

    /// Looks at every source. Reads files: not for the threads that serve callers.
    pub(crate) fn scan(&mut self) -> Scan {
        // Watched before it is read: what appears between is then seen twice, not never.
        self.watch_directories();
        self.due = None;
        self.is_due = false;
        self.sources.scan()
    }

    fn watch_directories(&mut self) {
        let sources = self.sources.0.iter();
        let wanted = sources.flat_map(|source| directories(source.pattern()));
        self.directories.set(wanted.collect());
    }
}

impl Sources {
    /// These sources. One that looks at the same as one of `known` remembers what that does: the last good content of
    /// its lists, the sockets that vanished a while ago.
    pub(crate) fn new(sources: Vec<DiscoverConfig>, known: &Self) -> Self {
        let source = |config: DiscoverConfig| {
            let before = known.0.iter();
            let mut same = before.filter(|source| source.config.source == config.source);
            let kind = match (same.next(), &config.source) {
                (Some(source), _) => source.kind.with(config.forget_after),
                (None, DiscoverSource::Glob(pattern)) => {
                    Kind::Sockets(Sockets::new(pattern.clone(), config.forget_after))
                }
                (None, DiscoverSource::File(pattern)) => {
                    Kind::Targets(Targets::new(pattern.clone()))
                }
            };
            Source { config, kind }
        };
        Self(sources.into_iter().map(source).collect())
    }

    /// Looks at every source. Reads files: not for the threads that serve callers.
    pub(crate) fn scan(&mut self) -> Scan {
        let mut scan = Scan::default();
        for source in &mut self.0 {
            for found in source.kind.scan(Instant::now(), &mut scan.complaints) {
                match source
                    .config
                    .instance(found.address, found.labels, found.place)
                {
                    Ok(instance) => scan.found.push(instance),
                    Err(errors) => scan
                        .complaints
                        .extend(errors.as_slice().iter().map(ToString::to_string)),
                }
            }
        }
        scan
    }

    /// Forgets sockets that are no daemon's: they are not kept for a while when they vanish.
    pub(crate) fn forget(&mut self, sockets: &BTreeSet<PathBuf>) {
        for source in &mut self.0 {
            if let Kind::Sockets(known) = &mut source.kind {
                known.forget(sockets);
            }
        }
    }
}

impl Source {
    fn pattern(&self) -> &Path {
        match &self.config.source {
            DiscoverSource::Glob(pattern) | DiscoverSource::File(pattern) => pattern,
        }
    }
}

impl Kind {
    fn scan(&mut self, now: Instant, complaints: &mut BTreeSet<String>) -> Vec<Found> {
        match self {
            Self::Sockets(sockets) => sockets.scan(now, complaints),
            Self::Targets(targets) => targets.scan(complaints),
        }
    }

    /// The same, which forgets sockets after that long.
    fn with(&self, forget_after: Duration) -> Self {
        match self.clone() {
            Self::Sockets(sockets) => Self::Sockets(sockets.with(forget_after)),
            targets @ Self::Targets(_) => targets,
        }
    }
}
