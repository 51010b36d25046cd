//! The journal on disk against the one in memory: streams may not tell them apart.

use std::{path::Path, sync::Arc};

use openvpn_fleet::{
    AddressPattern, ClientFilter, ClientRef, Detail, Event, EventClass, EventClient, EventFilter,
    Gap, GatewayName, Generation, GenerationCause, InstanceName, Journal, JournalConfig, Kind,
    KindSet, Labels, Record, Selector,
    event::ClientsLost,
    journal::{Item, Start},
};
use openvpn_management::{Cid, LogFlags, Text};
use ovfleet_tests::random::Random;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{convert, services, state::begin as begin_state};

const PLENTY: Keep = Keep {
    bytes: 1 << 30,
    age: Duration::from_hours(1_000_000),
};

fn gateway() -> GatewayName {
    GatewayName::new("gw").expect("a name")
}

fn journal(store: &EventStore, events_max: usize) -> Arc<Journal> {
    let config = JournalConfig {
        memory_bytes: 1 << 30,
        events_max,
        age_max: Duration::from_hours(1_000_000),
        encode: |event| services::batch_element(&convert::event::event(event)),
        start: Some(store.start()),
    };
    Arc::new(Journal::new(gateway(), &config))
}

async fn open(directory: &Path, keep: Keep) -> (State, EventStore) {
    let begun = begin_state(Some(directory.to_owned()), keep, SystemTime::now()).await;
    let (state, store) = begun.expect("it opens");
    (state, store.expect("there is a directory"))
}

/// Takes everything to disk, and ends the run in order or just so.
async fn flush(store: &EventStore, journal: &Arc<Journal>) {
    let stop = CancellationToken::new();
    stop.cancel();
    store.clone().run(Arc::clone(journal), stop).await;
}

const NAMES: [&str; 3] = ["alice", "bob", "\u{fffd}"];
const ADDRESSES: [&str; 3] = ["udp4:192.0.2.1:1194", "192.0.2.9:4000", ""];

fn one_of(random: &mut Random, texts: &[&str]) -> Text {
    Text::from(*random.pick(texts))
}

fn record(random: &mut Random) -> Record {
    let instance = random.pick(&["", "eu1", "eu2", "us1"]);
    let instance = InstanceName::new(instance).ok();
    let labels = match &instance {
        Some(name) if random.below(4) > 0 => Labels::from_iter([("site", &name.as_str()[..2])]),
        _ => Labels::default(),
    };
    let observed = time(random.below(1 << 50).cast_signed());
    if random.below(10) == 0 {
        return Record::Gap(Gap {
            cause: *random.pick(&[GapCause::Unobserved, GapCause::RateCapped]),
            gateway: gateway(),
            class: *random.pick(&[None, Some(EventClass::Log), Some(EventClass::Raw)]),
            count: *random.pick(&[None, Some(7)]),
            not_before: *random.pick(&[None, Some(observed)]),
            not_after: Some(observed),
            instance,
            labels,
        });
    }
    let half_open = random.below(3) == 0;
    let client = EventClient {
        generation: Generation(random.below(2)),
        cid: Cid(random.below(3)),
        // The same letters as a name that holds invalid bytes, and is another.
        common_name: match random.below(5) {
            0 => Text::from(vec![0xff]),
            _ => one_of(random, &NAMES),
        },
        username: one_of(random, &NAMES),
        real_address: one_of(random, &ADDRESSES),
        virtual_address: one_of(random, &["10.8.0.2", "10.8.1.2", ""]),
        virtual_ipv6_address: one_of(random, &["fd00::2", ""]),
        half_open,
    };
    let (client, detail) = match random.below(5) {
        0 => (
            None,
            Detail::Log {
                flags: LogFlags::default(),
                text: "a line".into(),
            },
        ),
        1 => (None, Detail::Info("information".into())),
        2 => (
            None,
            Detail::Generation {
                previous: None,
                cause: GenerationCause::First,
                clients_lost: ClientsLost::No,
            },
        ),
        _ => (
            Some(Box::new(client)),
            Detail::ClientEstablished(Box::default()),
        ),
    };
    Record::Event(Event {
        gateway: gateway(),
        instance,
        labels,
        generation: None,
        sequence: 0,
        observed,
        daemon_time: None,
        inferred: None,
        client,
        detail,
    })
}

fn filter(random: &mut Random) -> EventFilter {
    let mut clients = ClientFilter::default();
    if random.below(2) == 0 {
        match random.below(6) {
            0 => {
                clients.refs.insert(ClientRef {
                    gateway: gateway(),
                    instance: InstanceName::new("eu1").expect("a name"),
                    generation: Generation(random.below(2)),
                    cid: Cid(random.below(3)),
                });
            }
            1 => drop(clients.common_names.insert((*random.pick(&NAMES)).into())),
            2 => drop(clients.usernames.insert((*random.pick(&NAMES)).into())),
            3 => clients.half_open = Some(random.below(2) == 0),
            4 => clients
                .real_addresses
                .push(AddressPattern::parse_real("192.0.2.1").expect("an address")),
            _ => clients
                .virtual_addresses
                .push(AddressPattern::parse_virtual("10.8.0.0/24").expect("a network")),
        }
    }
    let selector = match random.below(4) {
        0 => Selector {
            names: [random
                .pick(&["eu1", "gw/us1", "other/eu1"])
                .parse()
                .expect("a name")]
            .into(),
            ..Selector::default()
        },
        1 => Selector {
            labels: random
                .pick(&["site=eu", "site!=eu", "!site"])
                .parse()
                .expect("labels"),
            ..Selector::default()
        },
        _ => Selector::all(),
    };
    let kinds = match random.below(3) {
        0 => KindSet::all(),
        1 => KindSet::all_but_logs(),
        _ => [*random.pick(Kind::ALL)].into_iter().collect(),
    };
    EventFilter {
        selector,
        clients,
        kinds,
    }
}

fn in_memory(journal: &Journal, after: u64, filter: &EventFilter) -> Vec<StoredItem> {
    let place = Position {
        run: journal.run(),
        sequence: after,
    };
    let mut reader = journal.reader(Start::Position(place));
    let mut items = Vec::new();
    loop {
        let batch = journal.read(&mut reader, 100, filter);
        items.extend(batch.items.into_iter().map(|item| match item {
            Item::Event(entry) => StoredItem::Event {
                sequence: entry.sequence(),
                wire: journal.wire(&entry),
            },
            Item::Gap { gap, resume } => StoredItem::Gap {
                gap,
                resume: resume.sequence,
            },
        }));
        if batch.is_end {
            return items;
        }
    }
}

async fn on_disk(
    store: &EventStore,
    mut reader: StoredReader,
    filter: &EventFilter,
) -> Vec<StoredItem> {
    let filter = Arc::new(filter.clone());
    let mut items = Vec::new();
    loop {
        let page = store.page(&mut reader, &filter, &gateway()).await;
        let page = page.expect("it is read");
        items.extend(page.items);
        if page.is_end {
            return items;
        }
    }
}

/// Fails if a filter means something else on disk than in memory, or a page loses, doubles or reorders anything.
#[tokio::test]
async fn the_disk_shows_what_memory_shows() {
    let mut random = Random::seeded("disk and memory");
    let directory = tempfile::tempdir().expect("a directory");
    let (_state, store) = open(directory.path(), PLENTY).await;
    let journal = journal(&store, 1_000_000);
    for _ in 0..1_500 {
        journal.append_all([record(&mut random)]);
    }
    flush(&store, &journal).await;
    for _ in 0..200 {
        let filter = filter(&mut random);
        let after = store.start().sequence + random.below(1_600);
        let after = after.min(journal.newest().sequence);
        let stored = on_disk(&store, StoredReader::behind(after), &filter).await;
        assert_eq!(
            stored,
            in_memory(&journal, after, &filter),
            "{filter:?} behind {after}"
        );
    }
}

fn causes(items: &[StoredItem]) -> Vec<GapCause> {
    let gaps = items.iter().filter_map(|item| match item {
        StoredItem::Gap { gap, .. } => Some(gap.cause),
        StoredItem::Event { .. } => None,
    });
    gaps.collect()
}

fn sequences(items: &[StoredItem]) -> Vec<u64> {
    let events = items.iter().filter_map(|item| match item {
        StoredItem::Event { sequence, .. } => Some(*sequence),
        StoredItem::Gap { .. } => None,
    });
    events.collect()
}

fn event(number: u64) -> Record {
    let detail = Detail::GatewayConfig {
        message: format!("event {number}"),
    };
    Record::Event(Event {
        gateway: gateway(),
        instance: None,
        labels: Labels::default(),
        generation: None,
        sequence: 0,
        observed: SystemTime::now(),
        daemon_time: None,
        inferred: None,
        client: None,
        detail,
    })
}

/// Fails if an orderly restart shows a hole, or a disorderly one none, or a number is given twice.
#[tokio::test]
async fn only_a_run_that_did_not_end_in_order_leaves_a_gap() {
    let directory = tempfile::tempdir().expect("a directory");
    let everything = EventFilter::everything();
    let mut before = Vec::new();
    let mut last_of_first = None;
    for (is_orderly, expected) in [(true, 0), (false, 0), (true, 1), (true, 1)] {
        let (state, store) = open(directory.path(), PLENTY).await;
        let journal = journal(&store, 1_000);
        assert!(
            before
                .iter()
                .all(|sequence| *sequence < store.start().sequence)
        );
        journal.append_all((0..10).map(event));
        flush(&store, &journal).await;
        if !is_orderly {
            // As if it had been killed now.
            let run = store.start().run.0.cast_signed();
            let undo = state.write(move |transaction| {
                transaction.execute("UPDATE runs SET last = NULL WHERE run = ?1", [run])
            });
            undo.await.expect("it is written");
        }
        let items = on_disk(&store, StoredReader::oldest(), &everything).await;
        assert_eq!(causes(&items), vec![GapCause::GatewayRestarted; expected]);
        before = sequences(&items);
        assert!(before.is_sorted());
        let first = last_of_first.get_or_insert(journal.newest());
        assert!(store.knows(first.run));
        let behind = on_disk(&store, StoredReader::behind(first.sequence), &everything).await;
        assert_eq!(sequences(&behind).len(), before.len() - 10);
        state.close(Duration::from_secs(5)).await;
    }
    assert_eq!(before.len(), 40);
}

/// Fails if what memory lost before the disk had it goes missing without a word.
#[tokio::test]
async fn what_the_writer_was_late_for_is_a_gap() {
    let directory = tempfile::tempdir().expect("a directory");
    let (_state, store) = open(directory.path(), PLENTY).await;
    let journal = journal(&store, 100);
    journal.append_all((0..200).map(event));
    flush(&store, &journal).await;
    let items = on_disk(&store, StoredReader::oldest(), &EventFilter::everything()).await;
    assert_eq!(causes(&items), [GapCause::Compacted]);
    assert!(matches!(items[0], StoredItem::Gap { .. }));
    assert_eq!(sequences(&items).len(), 50);
}

/// Fails if the disk keeps more than it may, or what it threw away is not told.
#[tokio::test]
async fn what_is_too_much_goes_and_is_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let keep = Keep {
        bytes: 400_000,
        ..PLENTY
    };
    let (state, store) = open(directory.path(), keep).await;
    let journal = journal(&store, 1_000_000);
    let mut reader = journal.reader(Start::Position(store.start()));
    for step in 0..10 {
        journal.append_all((0..500).map(|number| event(step * 500 + number)));
        let taken = store.take_all(&journal, &mut reader, SystemTime::now).await;
        taken.expect("it is written");
    }
    let count = state.read(|connection| {
        connection.query_row(
            "SELECT sum(length(wire) + 128), count(*), (SELECT bytes FROM classes WHERE class = 0) FROM events",
            [],
            |row| Ok((row.get::<_, i64>(0)?, row.get::<_, u32>(1)?, row.get::<_, i64>(2)?)),
        )
    });
    let (bytes, events, counted) = count.await.expect("it is read");
    assert!(
        bytes <= 200_000 && events > 500,
        "{bytes} bytes, {events} events"
    );
    assert_eq!(bytes, counted);
    let everything = EventFilter::everything();
    let early = on_disk(
        &store,
        StoredReader::behind(store.start().sequence),
        &everything,
    )
    .await;
    assert_eq!(causes(&early), [GapCause::Compacted]);
    // Who asks for what there is has lost nothing.
    let oldest = on_disk(&store, StoredReader::oldest(), &everything).await;
    assert_eq!(
        (causes(&oldest).len(), sequences(&oldest).len()),
        (0, events as usize)
    );
    let whole = store
        .oldest_whole(&everything, &gateway())
        .await
        .expect("it is read");
    let whole = on_disk(&store, StoredReader::behind(whole), &everything).await;
    assert_eq!(whole, oldest);
    let replaced = on_disk(&store, StoredReader::replaced(), &everything).await;
    assert_eq!(causes(&replaced), [GapCause::JournalReplaced]);
}

/// Fails if events are thrown away because somebody set the clock, or are not once they are too old, or what was thrown
/// away is not told to who asks for what happened since a moment.
#[tokio::test]
async fn events_grow_old_by_time_that_passes() {
    use crate::state::tests::{let_pass, put_the_clock_right};

    let directory = tempfile::tempdir().expect("a directory");
    let keep = Keep {
        age: Duration::from_hours(24),
        ..PLENTY
    };
    let everything = EventFilter::everything();
    let began = SystemTime::now();
    for (hours, expected) in [(0, 10), (23, 20), (2, 20)] {
        let (state, store) = open(directory.path(), keep).await;
        let journal = journal(&store, 1_000);
        journal.append_all((0..10).map(event));
        flush(&store, &journal).await;
        let items = on_disk(&store, StoredReader::oldest(), &everything).await;
        assert_eq!(
            sequences(&items).len(),
            expected,
            "after {hours} hours more"
        );
        if hours == 0 {
            // But for some in the middle: later ones are of a month before.
            put_the_clock_right(&state).await;
            let some = state.write(|transaction| {
                transaction.execute(
                    "UPDATE events SET observed = observed + 2592000000000 WHERE sequence BETWEEN
                     (SELECT min(sequence) + 3 FROM events) AND (SELECT max(sequence) - 3 FROM events)",
                    [],
                )
            });
            assert_eq!(some.await, Ok(4));
        }
        let_pass(&state, if hours == 0 { 23 } else { 2 }).await;
        state.close(Duration::from_secs(5)).await;
    }
    let (_state, store) = open(directory.path(), keep).await;
    let since = store
        .reader_since(began, &Arc::new(everything.clone()), &gateway())
        .await
        .expect("it is read");
    let items = on_disk(&store, since, &everything).await;
    assert_eq!(causes(&items), [GapCause::Compacted]);
    assert_eq!(sequences(&items).len(), 20);
}

/// Fails if who comes from before a crash hears nothing of it, because the gap that it left has become too old.
#[tokio::test]
async fn a_crash_is_told_when_its_gap_is_gone() {
    use crate::state::tests::let_pass;

    let directory = tempfile::tempdir().expect("a directory");
    let keep = Keep {
        age: Duration::from_hours(24),
        ..PLENTY
    };
    let (state, store) = open(directory.path(), keep).await;
    // Of what this one asks for there is nothing: it misses only what nobody knows.
    let narrow = EventFilter {
        kinds: KindSet::parse(&["instance.info"]).expect("a kind"),
        ..EventFilter::everything()
    };
    let before = store.start().sequence;
    state.close(Duration::from_secs(5)).await;
    for (hours, expected) in [
        (0, GapCause::GatewayRestarted),
        (23, GapCause::GatewayRestarted),
        (2, GapCause::Compacted),
    ] {
        let idle = State::open(Some(directory.path())).expect("it opens");
        let_pass(&idle, hours).await;
        idle.close(Duration::from_secs(5)).await;
        let (state, store) = open(directory.path(), keep).await;
        let journal = journal(&store, 1_000);
        journal.append_all([event(0)]);
        flush(&store, &journal).await;
        let items = on_disk(&store, StoredReader::behind(before), &narrow).await;
        assert_eq!(causes(&items), [expected], "after {hours} hours more");
        state.close(Duration::from_secs(5)).await;
    }
}
