//! Finding instances that nobody wrote down: sockets that appear, and lists
//! that other programs write.
//!
//! ```text
//! a directory changed ─┐
//! time to look again ──┴─► scan every source ─► one set ─► the fleet, if it changed
//! ```

mod file;
mod sockets;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode},
};
use openvpn_session::Address;
use tokio::sync::Notify;

use self::{file::Targets, sockets::Sockets};
use crate::config::{DiscoverConfig, DiscoverSource, InstanceConfig, Place};

/// The least time between two scans: a directory where much happens is looked
/// at no more often.
const SCAN_SPACING: Duration = Duration::from_millis(200);
/// How often a source is looked at whose directory cannot be watched.
const UNWATCHED_INTERVAL: Duration = Duration::from_millis(500);
/// Most directories watched at once; a source in others is looked at by time alone.
const WATCHED_DIRECTORIES_MAX: usize = 1_024;

/// The instances that were written down, and every discovery source.
pub(crate) struct Discovery {
    configured: Vec<InstanceConfig>,
    sources: Vec<Source>,
    watcher: Option<RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
    /// Rung by the watcher; however often it rings, it is one more scan.
    changed: Arc<Notify>,
    /// What was complained about last time: a mistake that stays is told once.
    complaints: BTreeSet<String>,
}

struct Source {
    config: DiscoverConfig,
    kind: Kind,
}

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
    pub(crate) fn new(configured: Vec<InstanceConfig>, sources: Vec<DiscoverConfig>) -> Self {
        let changed = Arc::new(Notify::new());
        let watcher = match sources.as_slice() {
            [] => None,
            _ => watcher(Arc::clone(&changed)),
        };
        let source = |config: DiscoverConfig| {
            let kind = match &config.source {
                DiscoverSource::Glob(pattern) => {
                    Kind::Sockets(Sockets::new(pattern.clone(), config.forget_after))
                }
                DiscoverSource::File(pattern) => Kind::Targets(Targets::new(pattern.clone())),
            };
            Source { config, kind }
        };
        Self {
            configured,
            sources: sources.into_iter().map(source).collect(),
            watcher,
            watched: BTreeSet::new(),
            changed,
            complaints: BTreeSet::new(),
        }
    }

    pub(crate) fn is_static(&self) -> bool {
        self.sources.is_empty()
    }

    /// Waits until a scan may find something else than the last one did.
    pub(crate) async fn changed(&self) {
        let interval = self.interval();
        tokio::select! {
            () = self.changed.notified() => tokio::time::sleep(SCAN_SPACING).await,
            () = tokio::time::sleep(interval) => {}
        }
    }

    fn interval(&self) -> Duration {
        let refresh = self
            .sources
            .iter()
            .map(|source| source.config.refresh)
            .min();
        let refresh = refresh.unwrap_or(Duration::from_hours(1));
        let watched = |source: &Source| {
            let directories = source.directories();
            !has_wildcards(source.parent())
                && !directories.is_empty()
                && directories
                    .iter()
                    .all(|directory| self.watched.contains(directory))
        };
        if self.sources.iter().all(watched) {
            refresh
        } else {
            refresh.min(UNWATCHED_INTERVAL)
        }
    }

    /// Looks at every source and gives all instances there are. Reads files: not
    /// for the threads that serve callers.
    pub(crate) fn scan(&mut self) -> Vec<InstanceConfig> {
        // Watched before it is read: what appears between is then seen twice, not never.
        self.watch_directories();
        let mut complaints = BTreeSet::new();
        let mut chosen = Chosen::default();
        for instance in &self.configured {
            chosen.add(instance.clone(), &mut complaints);
        }
        for source in &mut self.sources {
            for found in source.kind.scan(Instant::now(), &mut complaints) {
                match source
                    .config
                    .instance(found.address, found.labels, found.place)
                {
                    Ok(instance) => chosen.add(instance, &mut complaints),
                    Err(errors) => {
                        complaints.extend(errors.as_slice().iter().map(ToString::to_string))
                    }
                }
            }
        }
        for complaint in complaints.difference(&self.complaints) {
            tracing::warn!("discovery: {complaint}");
        }
        self.complaints = complaints;
        chosen.instances
    }

    fn watch_directories(&mut self) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        let wanted: BTreeSet<PathBuf> = self
            .sources
            .iter()
            .flat_map(Source::directories)
            .take(WATCHED_DIRECTORIES_MAX)
            .collect();
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
        self.watched = wanted.into_iter().filter(watch).collect();
    }
}

/// The first of every name and address; the others are complained about.
#[derive(Default)]
struct Chosen {
    instances: Vec<InstanceConfig>,
    names: BTreeMap<String, Place>,
    addresses: BTreeMap<String, Place>,
}

impl Chosen {
    fn add(&mut self, instance: InstanceConfig, complaints: &mut BTreeSet<String>) {
        let InstanceConfig { spec, place, .. } = &instance;
        let (name, address) = (spec.name.to_string(), spec.session.address.to_string());
        if let Some(first) = self.addresses.get(&address) {
            // The same socket in two sources is one instance, that of the first.
            tracing::debug!(%address, %first, second = %place, "found twice");
            return;
        }
        if let Some(first) = self.names.get(&name) {
            complaints.insert(format!(
                "{place}: {address} is left out: an instance called {name} is at {first} already"
            ));
            return;
        }
        self.names.insert(name, place.clone());
        self.addresses.insert(address, place.clone());
        self.instances.push(instance);
    }
}

impl Source {
    fn pattern(&self) -> &Path {
        match &self.config.source {
            DiscoverSource::Glob(pattern) | DiscoverSource::File(pattern) => pattern,
        }
    }

    fn parent(&self) -> &Path {
        self.pattern().parent().unwrap_or(Path::new("/"))
    }

    /// The directories in which something can appear that matches.
    fn directories(&self) -> Vec<PathBuf> {
        let parent = self.parent();
        if !has_wildcards(parent) {
            return if parent.is_dir() {
                vec![parent.to_owned()]
            } else {
                Vec::new()
            };
        }
        matches(parent).filter(|path| path.is_dir()).collect()
    }
}

impl Kind {
    fn scan(&mut self, now: Instant, complaints: &mut BTreeSet<String>) -> Vec<Found> {
        match self {
            Self::Sockets(sockets) => sockets.scan(now, complaints),
            Self::Targets(targets) => targets.scan(complaints),
        }
    }
}

fn has_wildcards(path: &Path) -> bool {
    path.to_string_lossy().contains(['*', '?', '['])
}

/// What matches a pattern now, in order; a part that cannot be read is left out.
fn matches(pattern: &Path) -> impl Iterator<Item = PathBuf> {
    glob::glob(&pattern.to_string_lossy())
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
}

fn watcher(changed: Arc<Notify>) -> Option<RecommendedWatcher> {
    let ring = move |event: notify::Result<notify::Event>| {
        // Our own reading of a file is no news.
        let news = !matches!(
            event.as_ref().map(|event| event.kind),
            Ok(EventKind::Access(kind)) if kind != AccessKind::Close(AccessMode::Write)
        );
        if news {
            changed.notify_one();
        }
    };
    notify::recommended_watcher(ring)
        .inspect_err(
            |error| tracing::warn!(%error, "directories cannot be watched; looking every 0.5 s"),
        )
        .ok()
}
