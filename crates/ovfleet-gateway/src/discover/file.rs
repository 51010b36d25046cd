//! Lists of targets in the file_sd format of Prometheus:
//! `[{"targets": ["tcp:10.0.0.1:7505", "10.0.0.2:7505", "unix:/run/a.sock"], "labels": {"site": "ams"}}]`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use openvpn_session::Address;
use serde::Deserialize;

use super::{Found, matches, means_absent, with_remedy};
use crate::config::Place;

/// Largest list that is read, in bytes.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Most lists of one source.
const FILES_MAX: usize = 1_000;
/// Most targets of one list.
const TARGETS_MAX: usize = 20_000;

/// The targets in all lists that match a pattern.
#[derive(Clone, Debug)]
pub(super) struct Targets {
    pattern: PathBuf,
    lists: BTreeMap<PathBuf, List>,
}

/// One list as it was when it was last good.
#[derive(Clone, Debug, Default)]
struct List {
    version: Option<Version>,
    /// What is wrong with that version.
    mistake: Option<String>,
    targets: Vec<Target>,
}

/// An address and its labels.
type Target = (Address, BTreeMap<String, String>);

/// Changes when the file is written or replaced.
type Version = (SystemTime, u64, u64);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    targets: Vec<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

impl Targets {
    pub(super) fn new(pattern: PathBuf) -> Self {
        Self {
            pattern,
            lists: BTreeMap::new(),
        }
    }

    pub(super) fn scan(&mut self, complaints: &mut BTreeSet<String>) -> Vec<Found> {
        let mut paths = BTreeSet::new();
        for found in matches(&self.pattern).take(FILES_MAX) {
            match found {
                Ok(path) => drop(paths.insert(path)),
                Err(unreadable) => drop(complaints.insert(format!(
                    "{}: {unreadable}; the last good content of its files stays in force",
                    self.pattern.display()
                ))),
            }
        }
        // What was not found is gone only where it can be seen that it is.
        let known = self.lists.keys().filter(|path| !is_gone(path));
        paths.extend(known.cloned());
        let paths: BTreeSet<PathBuf> = paths.into_iter().take(FILES_MAX).collect();
        self.lists.retain(|path, _| paths.contains(path));
        for path in paths {
            self.lists.entry(path.clone()).or_default().update(&path);
        }
        let mut found = Vec::new();
        for (path, list) in &self.lists {
            let place = Place {
                file: path.as_path().into(),
                line: 0,
            };
            if let Some(mistake) = &list.mistake {
                complaints.insert(format!(
                    "{place}: {mistake}; its last good content stays in force"
                ));
            }
            found.extend(list.targets.iter().map(|(address, labels)| Found {
                address: address.clone(),
                labels: labels.clone(),
                place: place.clone(),
            }));
        }
        found
    }
}

impl List {
    /// Reads the file if it changed. A bad version leaves the targets as they were.
    fn update(&mut self, path: &Path) {
        let version = fs::metadata(path)
            .and_then(|data| Ok((data.modified()?, data.len(), data.ino())))
            .ok();
        if self.version.is_some() && version == self.version {
            return;
        }
        let text = read(path);
        // What could not be read is tried again: neither who may read it nor a bad disk is part of a version.
        self.version = version.filter(|_| text.is_ok());
        let text = text.map_err(|error| with_remedy(&error));
        match text.and_then(|text| parse(&text)) {
            Ok(targets) => {
                self.targets = targets;
                self.mistake = None;
            }
            Err(mistake) => self.mistake = Some(mistake),
        }
    }
}

fn is_gone(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| means_absent(&error))
}

/// The whole file, or one byte more than it may have.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?
        .take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut text)?;
    Ok(text)
}

fn parse(text: &[u8]) -> Result<Vec<Target>, String> {
    if u64::try_from(text.len()).is_ok_and(|length| length > FILE_BYTES_MAX) {
        return Err("the file is too large".to_owned());
    }
    let groups: Vec<Group> = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let mut targets = Vec::new();
    for group in groups {
        for target in group.targets {
            targets.push((address(&target)?, group.labels.clone()));
        }
    }
    if targets.len() > TARGETS_MAX {
        return Err(format!(
            "{} targets are more than {TARGETS_MAX}",
            targets.len()
        ));
    }
    Ok(targets)
}

/// A management address, or `host:port` as Prometheus writes it.
fn address(target: &str) -> Result<Address, String> {
    let has_scheme = target.starts_with("unix:")
        || target
            .split_once(':')
            .is_some_and(|(_, rest)| !target.starts_with('[') && rest.contains(':'));
    let address = if has_scheme {
        target.parse()
    } else {
        format!("tcp:{target}").parse::<Address>()
    };
    address.map_err(|error| error.to_string())
}
