//! Entries of one class, and what is known of those it threw away.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use super::{ClassDepth, Entry, Record};
use crate::event::{EventClass, Kind};
use crate::name::{InstanceName, Labels};

/// Instances and kinds whose evictions are told apart; evictions of further ones count as of any instance and kind, so
/// that a stream may be told of a hole that is none of its own, but never the other way round.
pub(super) const EVICTED_SOURCES_MAX: usize = 50_000;

/// Up to where, until when and how many entries were thrown away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Evicted {
    /// The highest sequence number thrown away.
    pub(super) through: u64,
    /// When the youngest of them was made: not always the last, because clocks are set back now and then.
    pub(super) time: SystemTime,
    /// How many in all.
    pub(super) count: u64,
}

impl Evicted {
    /// Both.
    fn and(self, other: Self) -> Self {
        let newer = if self.through > other.through {
            self
        } else {
            other
        };
        Self {
            time: self.time.max(other.time),
            count: self.count + other.count,
            ..newer
        }
    }
}

fn kind_index(kind: Option<Kind>) -> usize {
    kind.map_or(Kind::ALL.len(), |kind| kind as usize)
}

#[derive(Debug)]
pub(super) struct Ring {
    bytes_max: usize,
    entries_max: usize,
    /// Oldest first.
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
    /// Over everything.
    evicted: Option<Evicted>,
    /// Over all instances, by kind; the last is of gaps, which stand for every kind.
    evicted_kinds: [Option<Evicted>; Kind::ALL.len() + 1],
    /// By instance and kind; no instance for the gateway's own, no kind for gaps.
    evicted_sources: HashMap<Source, (Evicted, Labels)>,
    /// Of more sources than are told apart.
    evicted_others: Option<Evicted>,
}

/// What an evicted entry was of.
pub(super) type Source = (Option<InstanceName>, Option<Kind>);

impl Ring {
    pub(super) fn new(bytes_max: usize, entries_max: usize) -> Self {
        Self {
            bytes_max,
            entries_max,
            entries: VecDeque::new(),
            bytes: 0,
            evicted: None,
            evicted_kinds: [None; Kind::ALL.len() + 1],
            evicted_sources: HashMap::new(),
            evicted_others: None,
        }
    }

    /// Adds the newest entry and throws away the oldest until all fit.
    pub(super) fn push(&mut self, entry: Arc<Entry>) {
        self.bytes += entry.weight;
        self.entries.push_back(entry);
        while self.bytes > self.bytes_max || self.entries.len() > self.entries_max {
            if !self.evict() {
                break;
            }
        }
    }

    /// Throws away what was made before `oldest`, by the clock that ages go by.
    pub(super) fn expire(&mut self, oldest: SystemTime) {
        while self
            .entries
            .front()
            .is_some_and(|entry| entry.since < oldest)
        {
            self.evict();
        }
    }

    fn evict(&mut self) -> bool {
        let Some(entry) = self.entries.pop_front() else {
            return false;
        };
        self.bytes -= entry.weight;
        let (instance, labels, kind) = match &entry.record {
            Record::Event(event) => (&event.instance, &event.labels, Some(event.kind())),
            Record::Gap(gap) => (&gap.instance, &gap.labels, None),
        };
        let (through, time) = (entry.sequence, entry.observed);
        let add = |evicted: Option<Evicted>| Evicted {
            through,
            time: evicted.map_or(time, |evicted| evicted.time.max(time)),
            count: evicted.map_or(0, |evicted| evicted.count) + 1,
        };
        self.evicted = Some(add(self.evicted));
        let of_kind = &mut self.evicted_kinds[kind_index(kind)];
        *of_kind = Some(add(*of_kind));
        let source = (instance.clone(), kind);
        if let Some((evicted, known_labels)) = self.evicted_sources.get_mut(&source) {
            *evicted = add(Some(*evicted));
            known_labels.clone_from(labels);
        } else if self.evicted_sources.len() < EVICTED_SOURCES_MAX {
            self.evicted_sources
                .insert(source, (add(None), labels.clone()));
        } else {
            self.evicted_others = Some(add(self.evicted_others));
        }
        true
    }

    /// What was thrown away of everything.
    pub(super) fn evicted(&self) -> Option<Evicted> {
        self.evicted
    }

    /// What was thrown away of the kinds that `wants` takes, of whichever instance.
    pub(super) fn evicted_of_kinds(&self, wants: impl Fn(Option<Kind>) -> bool) -> Option<Evicted> {
        let kinds = Kind::ALL.iter().copied().map(Some).chain([None]);
        kinds
            .filter(|kind| wants(*kind))
            .filter_map(|kind| self.evicted_kinds[kind_index(kind)])
            .reduce(Evicted::and)
    }

    /// What was thrown away of the sources that `wants` takes.
    pub(super) fn evicted_of_sources(
        &self,
        wants: impl Fn(&Source, &Labels) -> bool,
    ) -> Option<Evicted> {
        self.evicted_sources
            .iter()
            .filter(|(source, (_, labels))| wants(source, labels))
            .map(|(_, (evicted, _))| *evicted)
            .chain(self.evicted_others)
            .reduce(Evicted::and)
    }

    /// The oldest entry behind `sequence`.
    pub(super) fn first_behind(&self, sequence: u64) -> Option<&Arc<Entry>> {
        self.entries.get(self.index_behind(sequence))
    }

    /// Index of the oldest entry behind `sequence`.
    pub(super) fn index_behind(&self, sequence: u64) -> usize {
        self.entries
            .partition_point(|entry| entry.sequence <= sequence)
    }

    pub(super) fn get(&self, index: usize) -> Option<&Arc<Entry>> {
        self.entries.get(index)
    }

    pub(super) fn last(&self) -> Option<&Arc<Entry>> {
        self.entries.back()
    }

    /// The oldest entry made at `time` or later. Looks at each, because clocks are set back now and then.
    pub(super) fn first_since(&self, time: SystemTime) -> Option<&Arc<Entry>> {
        self.entries.iter().find(|entry| entry.observed >= time)
    }

    pub(super) fn depth(&self, class: EventClass) -> ClassDepth {
        ClassDepth {
            class,
            entries: self.entries.len(),
            bytes: self.bytes,
            evicted: self.evicted.map_or(0, |evicted| evicted.count),
        }
    }
}
