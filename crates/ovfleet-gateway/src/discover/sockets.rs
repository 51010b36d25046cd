//! Unix sockets by pattern.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::FileTypeExt as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use openvpn_session::Address;

use super::{Found, matches};
use crate::config::Place;

/// Most sockets of one source, vanished ones included.
const SOCKETS_MAX: usize = 20_000;

/// The sockets that match a pattern, and those that did a while ago.
#[derive(Clone, Debug)]
pub(super) struct Sockets {
    pattern: PathBuf,
    forget_after: Duration,
    /// When each was last there.
    seen: BTreeMap<PathBuf, Instant>,
}

impl Sockets {
    pub(super) fn new(pattern: PathBuf, forget_after: Duration) -> Self {
        Self {
            pattern,
            forget_after,
            seen: BTreeMap::new(),
        }
    }

    /// The same, which forgets sockets after that long.
    pub(super) fn with(self, forget_after: Duration) -> Self {
        Self {
            forget_after,
            ..self
        }
    }

    pub(super) fn forget(&mut self, sockets: &BTreeSet<PathBuf>) {
        self.seen.retain(|path, _| !sockets.contains(path));
    }

    pub(super) fn scan(&mut self, now: Instant, complaints: &mut BTreeSet<String>) -> Vec<Found> {
        for found in matches(&self.pattern) {
            let path = match found {
                Ok(path) => path,
                Err(unreadable) => {
                    complaints.insert(format!(
                        "{}: {unreadable}; sockets there count as vanished",
                        self.pattern.display()
                    ));
                    continue;
                }
            };
            let is_socket =
                fs::metadata(&path).is_ok_and(|metadata| metadata.file_type().is_socket());
            if !is_socket {
                continue;
            }
            if self.seen.len() >= SOCKETS_MAX && !self.seen.contains_key(&path) {
                complaints.insert(format!(
                    "{}: matches more than {SOCKETS_MAX} sockets: the rest is left out",
                    self.pattern.display()
                ));
                break;
            }
            self.seen.insert(path, now);
        }
        // OpenVPN removes its socket when it ends, also for a restart.
        self.seen
            .retain(|_, last| *last == now || now.duration_since(*last) < self.forget_after);
        let mut found = Vec::new();
        for path in self.seen.keys() {
            let place = Place {
                file: path.as_path().into(),
                line: 0,
            };
            match path
                .to_str()
                .map(|path| format!("unix:{path}").parse::<Address>())
            {
                Some(Ok(address)) => found.push(Found {
                    address,
                    labels: BTreeMap::new(),
                    place,
                }),
                Some(Err(error)) => drop(complaints.insert(format!("{place}: {error}"))),
                None => drop(complaints.insert(format!("{place}: the path is not UTF-8"))),
            }
        }
        found
    }
}
