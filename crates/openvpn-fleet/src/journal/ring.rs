//! Entries of one class, and what is known of those it threw away.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use super::{ClassDepth, Entry, Record};
use crate::event::{EventClass, Kind};
use crate::name::{InstanceName, Labels};

/// Sources whose evictions are told apart; evictions of further ones count as of any, so that a stream may be told of a hole
/// that is none of its own, but never the other way round.
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
    evicted_sources: HashMap<Source, Evicted>,
    /// Of more sources than are told apart.
    evicted_others: Option<Evicted>,
}

/// What an entry is of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Source {
    /// The instance; none for the gateway's own.
    pub instance: Option<InstanceName>,
    /// The labels it had at that moment: selections go by them.
    pub labels: Labels,
    /// The kind of event; none for gaps.
    pub kind: Option<Kind>,
}

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
        let source = Source {
            instance: instance.clone(),
            labels: labels.clone(),
            kind,
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
        if let Some(evicted) = self.evicted_sources.get_mut(&source) {
            *evicted = add(Some(*evicted));
        } else if self.evicted_sources.len() < EVICTED_SOURCES_MAX {
            self.evicted_sources.insert(source, add(None));
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
    pub(super) fn evicted_of_sources(&self, wants: impl Fn(&Source) -> bool) -> Option<Evicted> {
        self.evicted_sources
            .iter()
            .filter(|(source, _)| wants(source))
            .map(|(_, evicted)| *evicted)
            .chain(self.evicted_others)
            .reduce(Evicted::and)
    }

    /// Of which sources something behind `sequence` was thrown away; `None` stands for any.
    pub(super) fn evicted_behind(
        &self,
        sequence: u64,
    ) -> impl Iterator<Item = (Option<&Source>, Evicted)> {
        let sources = self.evicted_sources.iter();
        let sources = sources.map(|(source, evicted)| (Some(source), *evicted));
        let others = self.evicted_others.map(|evicted| (None, evicted));
        let all = sources.chain(others);
        all.filter(move |(_, evicted)| evicted.through > sequence)
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
