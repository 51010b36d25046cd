//! The journal against a naive model: everything ever appended, and what must have been thrown away of it.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use openvpn_management::{LogFlags, Text};
use proptest::prelude::*;

use super::{Item, Journal, JournalConfig, Position, Reader, Record, RunId, Start};
use crate::event::{ClientsLost, Detail, Event, EventClass, GapCause, GenerationCause};
use crate::event_filter::{EventFilter, KindSet};
use crate::filter::ClientFilter;
use crate::name::{GatewayName, InstanceName, Labels};
use crate::selector::Selector;

const START: u64 = 1_000;

fn gateway() -> GatewayName {
    GatewayName::new("gw").expect("a name")
}

fn journal(memory_bytes: usize, events_max: usize) -> Journal {
    let config = JournalConfig {
        memory_bytes,
        events_max,
        age_max: Duration::from_secs(1_000),
        encode: |event| Bytes::from(event.sequence.to_string()),
        start: Some(position(START)),
    };
    Journal::new(gateway(), &config).with_ages_of_events()
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn event(class: EventClass, instance: &str, seconds: u64) -> Event {
    let text = Text::from("text");
    Event {
        gateway: gateway(),
        instance: Some(InstanceName::new(instance).expect("a name")),
        labels: Labels::from_iter([("name", instance)]),
        generation: None,
        sequence: 0,
        observed: at(seconds),
        daemon_time: None,
        inferred: None,
        client: None,
        detail: match class {
            EventClass::Lifecycle => Detail::Generation {
                previous: None,
                cause: GenerationCause::First,
                clients_lost: ClientsLost::No,
            },
            EventClass::Log => Detail::Log {
                flags: LogFlags::default(),
                text,
            },
            EventClass::Raw => Detail::Info(text),
        },
    }
}

fn everything() -> EventFilter {
    EventFilter::everything()
}

fn of_instance(instance: &str) -> EventFilter {
    EventFilter {
        selector: Selector {
            names: [instance.parse().expect("a name")].into(),
            ..Selector::default()
        },
        clients: ClientFilter::default(),
        kinds: KindSet::all(),
    }
}

/// What a read showed.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Shown {
    Event(u64),
    Gap(GapCause, Option<EventClass>, Option<u64>),
}

fn read(
    journal: &Journal,
    reader: &mut Reader,
    limit: usize,
    filter: &EventFilter,
) -> (Vec<Shown>, bool) {
    let batch = journal.read(reader, limit, filter);
    let shown = batch.items.iter().map(|item| match item {
        Item::Event(entry) => Shown::Event(entry.sequence()),
        Item::Gap { gap, .. } => Shown::Gap(gap.cause, gap.class, gap.count),
    });
    assert_eq!(batch.next, reader.position());
    (shown.collect(), batch.is_end)
}

fn read_all(journal: &Journal, reader: &mut Reader, filter: &EventFilter) -> Vec<Shown> {
    let mut all = Vec::new();
    loop {
        let (shown, is_end) = read(journal, reader, 7, filter);
        all.extend(shown);
        if is_end {
            return all;
        }
    }
}

fn position(sequence: u64) -> Position {
    Position {
        run: RunId(7),
        sequence,
    }
}

/// A cursor from another run must not skip silently.
#[test]
fn a_position_of_another_run_is_told_and_begins_anew() {
    let journal = journal(1 << 20, 1_000);
    journal.append(event(EventClass::Lifecycle, "a", 1));
    let mut reader = journal.reader(Start::Position(Position {
        run: RunId(8),
        sequence: u64::MAX,
    }));
    assert_eq!(
        read_all(&journal, &mut reader, &everything()),
        [
            Shown::Gap(GapCause::GatewayRestarted, None, None),
            Shown::Event(START + 1)
        ]
    );
}

/// A chatty daemon evicts nobody's connects, and nobody is told of holes that are none of theirs.
#[test]
fn a_flood_of_one_class_leaves_the_others_alone() {
    let journal = journal(1 << 20, 100);
    journal.append(event(EventClass::Lifecycle, "quiet", 1));
    for _ in 0..500 {
        journal.append(event(EventClass::Log, "chatty", 1));
    }
    let mut reader = journal.reader(Start::Position(position(START)));
    assert_eq!(
        read_all(&journal, &mut reader, &of_instance("quiet")),
        [Shown::Event(START + 1)]
    );
    let no_logs = EventFilter {
        kinds: KindSet::all_but_logs(),
        ..everything()
    };
    let mut reader = journal.reader(Start::Position(position(START)));
    assert_eq!(
        read_all(&journal, &mut reader, &no_logs)[0],
        Shown::Event(START + 1)
    );
    let mut reader = journal.reader(Start::Position(position(START)));
    let shown = read_all(&journal, &mut reader, &everything());
    assert_eq!(
        shown[0],
        Shown::Gap(GapCause::Compacted, Some(EventClass::Log), Some(460))
    );
    assert_eq!(shown.len(), 1 + 1 + 40);
}

/// An instance whose labels were changed is known by both: who selected it by the old ones lost what it said then.
#[test]
fn a_hole_is_known_by_the_labels_of_its_time() {
    let journal = journal(1 << 20, 20);
    let at_site = |site: &str| Event {
        labels: Labels::from_iter([("site", site)]),
        ..event(EventClass::Lifecycle, "a", 1)
    };
    journal.append(at_site("old"));
    for _ in 0..50 {
        journal.append(at_site("new"));
    }
    let of_site = |site: &str| EventFilter {
        selector: Selector {
            labels: site.parse().expect("labels"),
            ..Selector::default()
        },
        ..everything()
    };
    for (site, missing) in [("site=old", 1), ("site=new", 1), ("site=other", 0)] {
        let mut reader = journal.reader(Start::Position(position(START)));
        let shown = read_all(&journal, &mut reader, &of_site(site));
        let gaps = shown.iter().filter(|shown| matches!(shown, Shown::Gap(..)));
        assert_eq!(gaps.count(), missing, "{site}: {shown:?}");
    }
}

/// A gap is told once to each reader, however often it reads.
#[test]
fn a_gap_is_told_once() {
    let journal = journal(1 << 20, 20);
    for _ in 0..100 {
        journal.append(event(EventClass::Lifecycle, "a", 1));
    }
    let mut reader = journal.reader(Start::Position(position(START + 5)));
    let shown = read_all(&journal, &mut reader, &everything());
    assert_eq!(
        shown
            .iter()
            .filter(|shown| matches!(shown, Shown::Gap(..)))
            .count(),
        1
    );
    assert_eq!(
        shown[0],
        Shown::Gap(GapCause::Compacted, Some(EventClass::Lifecycle), None)
    );
    assert!(read_all(&journal, &mut reader, &everything()).is_empty());
}

/// A gap of any class reaches also whoever wants only logs, or learns that it is lost.
#[test]
fn a_gap_of_any_class_reaches_every_class() {
    let journal = journal(1 << 20, 20);
    let gap = || crate::event::Gap {
        cause: GapCause::Unobserved,
        gateway: gateway(),
        instance: Some(InstanceName::new("a").expect("a name")),
        labels: Labels::default(),
        class: None,
        count: None,
        not_before: None,
        not_after: Some(at(1)),
    };
    journal.append_all([Record::Gap(gap())]);
    let logs = EventFilter {
        kinds: KindSet::parse(&["instance.log"]).expect("a kind"),
        ..everything()
    };
    let mut reader = journal.reader(Start::Position(position(START)));
    assert_eq!(
        read_all(&journal, &mut reader, &logs),
        [Shown::Gap(GapCause::Unobserved, None, None)]
    );
    for _ in 0..50 {
        journal.append(event(EventClass::Lifecycle, "a", 1));
    }
    let mut reader = journal.reader(Start::Position(position(START)));
    assert_eq!(
        read_all(&journal, &mut reader, &logs),
        [Shown::Gap(GapCause::Compacted, None, None)]
    );
}

/// What is too old goes, also when nothing new comes.
#[test]
fn entries_expire() {
    let journal = journal(1 << 20, 1_000);
    journal.append(event(EventClass::Lifecycle, "a", 10));
    journal.append(event(EventClass::Lifecycle, "a", 500));
    journal.handle_time(at(1_200));
    let mut reader = journal.reader(Start::Oldest);
    assert_eq!(
        read_all(&journal, &mut reader, &everything()),
        [Shown::Event(START + 2)]
    );
}

/// A start by time begins with the first event at or after it, and tells what is missing since.
#[test]
fn a_start_by_time_tells_what_is_missing_since() {
    let journal = journal(1 << 20, 20);
    for second in 0..100 {
        journal.append(event(EventClass::Lifecycle, "a", second));
    }
    let mut reader = journal.reader(Start::Time(at(95)));
    let shown = read_all(&journal, &mut reader, &everything());
    assert_eq!(
        shown,
        (START + 96..=START + 100)
            .map(Shown::Event)
            .collect::<Vec<_>>()
    );
    let mut reader = journal.reader(Start::Time(at(50)));
    let shown = read_all(&journal, &mut reader, &everything());
    assert!(matches!(shown[0], Shown::Gap(GapCause::Compacted, ..)));
    assert_eq!(shown.len(), 11);
    let mut reader = journal.reader(Start::Time(at(1_000)));
    assert!(read_all(&journal, &mut reader, &everything()).is_empty());
}

/// The encoded form is made once, and only when it is asked for.
#[test]
fn an_event_is_encoded_once() {
    let journal = journal(1 << 20, 20);
    journal.append(event(EventClass::Lifecycle, "a", 1));
    let mut reader = journal.reader(Start::Oldest);
    let batch = journal.read(&mut reader, 1, &everything());
    let [Item::Event(entry)] = &batch.items[..] else {
        panic!("one event")
    };
    let (first, second) = (journal.wire(entry), journal.wire(entry));
    assert_eq!(first, Bytes::from((START + 1).to_string()));
    assert_eq!(first.as_ptr(), second.as_ptr());
}

/// One step in the life of a journal.
#[derive(Debug, Clone)]
enum Step {
    Append(EventClass, u8),
    Read {
        reader: usize,
        limit: usize,
    },
    /// The reader goes away and comes back with its position.
    Resume(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let class = prop::sample::select(EventClass::ALL.to_vec());
    let step = prop_oneof![
        8 => (class, 0u8..3).prop_map(|(class, instance)| Step::Append(class, instance)),
        3 => (0usize..4, 1usize..9).prop_map(|(reader, limit)| Step::Read { reader, limit }),
        1 => (0usize..4).prop_map(Step::Resume),
    ];
    prop::collection::vec(step, 1..400)
}

/// Whether an event of a class and an instance is wanted.
type Wants = fn(EventClass, u8) -> bool;

/// What one reader must have been told of one class, and what it must not.
struct Model {
    /// Everything appended, with its class and instance.
    appended: Vec<(u64, EventClass, u8)>,
    /// What is still kept, by class.
    kept: [VecDeque<u64>; 3],
}

impl Model {
    fn append(&mut self, sequence: u64, class: EventClass, instance: u8, counts: [usize; 3]) {
        self.appended.push((sequence, class, instance));
        let kept = &mut self.kept[class as usize];
        kept.push_back(sequence);
        while kept.len() > counts[class as usize] {
            kept.pop_front();
        }
    }

    /// What a reader of `filter` at `from` gets: events kept, and the classes of which something it wants is missing.
    fn expected(
        &self,
        from: u64,
        wants: impl Fn(EventClass, u8) -> bool,
    ) -> (Vec<u64>, Vec<EventClass>) {
        let mut events = Vec::new();
        let mut missing = Vec::new();
        for (sequence, class, instance) in &self.appended {
            if *sequence <= from || !wants(*class, *instance) {
                continue;
            }
            if self.kept[*class as usize].contains(sequence) {
                events.push(*sequence);
            } else if !missing.contains(class) {
                missing.push(*class);
            }
        }
        missing.sort();
        (events, missing)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever is appended, read and thrown away, in whatever order: each reader gets every event it wants that is
    /// kept, in order, once, and before the next event a gap for each class of which something it wants is missing.
    #[test]
    fn readers_agree_with_a_naive_model(steps in steps()) {
        let journal = journal(1 << 20, 40);
        let counts = [20, 16, 4];
        let mut model = Model { appended: Vec::new(), kept: Default::default() };
        let filters: [(EventFilter, Wants); 4] = [
            (everything(), |_, _| true),
            (of_instance("i1"), |_, instance| instance == 1),
            (EventFilter { kinds: KindSet::all_but_logs(), ..everything() }, |class, _| class != EventClass::Log),
            (EventFilter { kinds: KindSet::parse(&["instance.log"]).expect("a kind"), ..of_instance("i2") },
             |class, instance| class == EventClass::Log && instance == 2),
        ];
        let mut readers: Vec<_> = filters.iter().map(|_| journal.reader(Start::Position(position(START)))).collect();
        // Up to where each reader was told everything, by class: a gap covers what was missing when it was told.
        let mut told: Vec<[u64; 3]> = vec![[START; 3]; 4];
        let mut sequence = START;
        for step in steps {
            match step {
                Step::Append(class, instance) => {
                    sequence += 1;
                    let appended = journal.append(event(class, &format!("i{instance}"), 1));
                    prop_assert_eq!(appended, sequence);
                    model.append(sequence, class, instance, counts);
                    for (class, count) in EventClass::ALL.into_iter().zip(counts) {
                        prop_assert!(journal.depth()[class as usize].entries <= count);
                    }
                }
                Step::Resume(index) => {
                    let resumed = readers[index].position();
                    readers[index] = journal.reader(Start::Position(resumed));
                    told[index] = [resumed.sequence; 3];
                }
                Step::Read { reader: index, limit } => {
                    let (filter, wants) = &filters[index];
                    let from = readers[index].position().sequence;
                    let (expected, _) = model.expected(from, wants);
                    let missing: Vec<_> = EventClass::ALL
                        .into_iter()
                        .filter(|class| {
                            let (_, missing) = model.expected(told[index][*class as usize], wants);
                            missing.contains(class)
                        })
                        .collect();
                    let (shown, is_end) = read(&journal, &mut readers[index], limit + missing.len(), filter);
                    let gaps: Vec<_> = shown.iter().filter_map(|shown| match shown {
                        Shown::Gap(GapCause::Compacted, class, _) => *class,
                        _ => None,
                    }).collect();
                    prop_assert_eq!(&gaps, &missing);
                    prop_assert!(shown[..gaps.len()].iter().all(|shown| matches!(shown, Shown::Gap(..))), "gaps come first");
                    let events: Vec<_> = shown.iter().filter_map(|shown| match shown {
                        Shown::Event(sequence) => Some(*sequence),
                        Shown::Gap(..) => None,
                    }).collect();
                    let upto = expected.len().min(limit);
                    prop_assert_eq!(&events[..], &expected[..upto]);
                    if is_end {
                        prop_assert_eq!(readers[index].position().sequence, sequence);
                        prop_assert_eq!(upto, expected.len());
                    }
                    let reached = readers[index].position().sequence;
                    for class in EventClass::ALL {
                        let oldest_kept = model.kept[class as usize].front().copied().unwrap_or(START + 1);
                        let slot = &mut told[index][class as usize];
                        *slot = (*slot).max(reached).max(oldest_kept - 1);
                    }
                }
            }
        }
    }

    /// The memory bound holds after every append, whatever the texts weigh, and the newest entry that fits is kept.
    #[test]
    fn the_memory_bound_holds(sizes in prop::collection::vec(0usize..3_000, 1..120)) {
        let memory = 64 << 10;
        let journal = journal(memory, 1_000_000);
        for size in sizes {
            let mut event = event(EventClass::Log, "a", 1);
            event.detail = Detail::Log { flags: LogFlags::default(), text: vec![b'x'; size].into() };
            journal.append(event);
            let depth = journal.depth()[EventClass::Log as usize];
            prop_assert!(depth.bytes <= memory / 100 * 40);
            prop_assert!(depth.entries >= 1);
        }
    }
}
