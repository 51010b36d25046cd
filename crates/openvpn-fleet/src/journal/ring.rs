//! Entries of one class, and what is known of those it threw away.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use super::{ClassDepth, Entry, Record};
use crate::event::EventClass;
use crate::name::{InstanceName, Labels};

/// Instances whose evictions are told apart; evictions of further ones count as of any instance, so that a stream may
/// be told of a hole that is none of its own, but never the other way round.
pub(super) const EVICTED_INSTANCES_MAX: usize = 10_000;

/// Up to where, until when and how many entries were thrown away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Evicted {
    /// The highest sequence number thrown away.
    pub(super) through: u64,
    /// When that entry was made.
    pub(super) time: SystemTime,
    /// How many in all.
    pub(super) count: u64,
}

#[derive(Debug)]
pub(super) struct Ring {
    bytes_max: usize,
    entries_max: usize,
    /// Oldest first.
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
    /// Over all instances.
    evicted: Option<Evicted>,
    evicted_instances: HashMap<InstanceName, (Evicted, Labels)>,
    /// Of no instance, or of more instances than are told apart.
    evicted_others: Option<Evicted>,
    /// Gaps of any class, which those miss as well who want nothing else of this one.
    evicted_gaps: Option<Evicted>,
}

impl Ring {
    pub(super) fn new(bytes_max: usize, entries_max: usize) -> Self {
        Self {
            bytes_max,
            entries_max,
            entries: VecDeque::new(),
            bytes: 0,
            evicted: None,
            evicted_instances: HashMap::new(),
            evicted_others: None,
            evicted_gaps: None,
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

    /// Throws away what was made before `oldest`.
    pub(super) fn expire(&mut self, oldest: SystemTime) {
        while self
            .entries
            .front()
            .is_some_and(|entry| entry.observed < oldest)
        {
            self.evict();
        }
    }

    fn evict(&mut self) -> bool {
        let Some(entry) = self.entries.pop_front() else {
            return false;
        };
        self.bytes -= entry.weight;
        let (instance, labels) = match &entry.record {
            Record::Event(event) => (&event.instance, &event.labels),
            Record::Gap(gap) => (&gap.instance, &gap.labels),
        };
        let (through, time) = (entry.sequence, entry.observed);
        let add = |evicted: Option<Evicted>| Evicted {
            through,
            time,
            count: evicted.map_or(0, |evicted| evicted.count) + 1,
        };
        self.evicted = Some(add(self.evicted));
        if matches!(&entry.record, Record::Gap(gap) if gap.class.is_none()) {
            self.evicted_gaps = Some(add(self.evicted_gaps));
        }
        if let Some(instance) = instance {
            if let Some((evicted, known_labels)) = self.evicted_instances.get_mut(instance) {
                *evicted = add(Some(*evicted));
                known_labels.clone_from(labels);
                return true;
            }
            if self.evicted_instances.len() < EVICTED_INSTANCES_MAX {
                self.evicted_instances
                    .insert(instance.clone(), (add(None), labels.clone()));
                return true;
            }
        }
        self.evicted_others = Some(add(self.evicted_others));
        true
    }

    /// What was thrown away of everything.
    pub(super) fn evicted(&self) -> Option<Evicted> {
        self.evicted
    }

    /// What was thrown away of gaps of any class.
    pub(super) fn evicted_gaps(&self) -> Option<Evicted> {
        self.evicted_gaps
    }

    /// What was thrown away of the instances that `wants` takes; with its name, if it is one only.
    pub(super) fn evicted_of(
        &self,
        wants: impl Fn(&InstanceName, &Labels) -> bool,
    ) -> Option<(Evicted, Option<&InstanceName>)> {
        let mut found: Option<(Evicted, Option<&InstanceName>)> = (self.evicted_instances.len()
            >= EVICTED_INSTANCES_MAX)
            .then_some(self.evicted_others)
            .flatten()
            .map(|evicted| (evicted, None));
        for (instance, (evicted, labels)) in &self.evicted_instances {
            if !wants(instance, labels) {
                continue;
            }
            found = Some(match found {
                None => (*evicted, Some(instance)),
                Some((sum, _)) => {
                    let newest = if sum.through > evicted.through {
                        sum
                    } else {
                        *evicted
                    };
                    let count = sum.count + evicted.count;
                    (Evicted { count, ..newest }, None)
                }
            });
        }
        found
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
