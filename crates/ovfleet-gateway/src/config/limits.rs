//! `[limits]` and `[journal]`: how much the gateway takes on, and keeps.

use std::time::Duration;

use super::reader::Section;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// What callers may cost.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Connections of all gRPC listeners together; one more is closed at once.
    pub connections: usize,
    /// Calls and streams of one connection; one more waits on the caller's side.
    pub streams_per_connection: usize,
    /// Event streams and watches of all callers together; one more is refused.
    pub streams: usize,
    /// Other calls under way of all callers together; one more is refused.
    pub calls: usize,
    /// TLS handshakes in progress; one more waits to be accepted.
    pub handshakes: usize,
    /// How long a TLS handshake may take before the connection is closed.
    pub handshake_timeout: Duration,
    /// The largest request message, in bytes; a larger one is refused.
    pub request_size: usize,
    /// The largest answer, in bytes; lists are paged to stay below it.
    pub response_size: usize,
    /// The largest header list of a request, in bytes.
    pub header_size: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4_096,
            streams_per_connection: 100,
            streams: 1_000,
            calls: 1_000,
            handshakes: 256,
            handshake_timeout: Duration::from_secs(5),
            request_size: 256 << 10,
            response_size: 4 << 20,
            header_size: 8 << 10,
        }
    }
}

/// How much of the past is kept.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct JournalLimits {
    /// The most memory that events take, in bytes.
    pub memory: usize,
    /// The most events.
    pub events: usize,
    /// How old an event may become.
    pub age: Duration,
    /// The most bytes of events in the state directory.
    pub disk: u64,
    /// How old an event may become there.
    pub disk_age: Duration,
}

impl Default for JournalLimits {
    fn default() -> Self {
        Self {
            memory: 64 << 20,
            events: 500_000,
            age: Duration::from_hours(24),
            disk: GIB,
            disk_age: Duration::from_hours(24 * 7),
        }
    }
}

pub(super) fn read_limits(root: &mut Section<'_>) -> Limits {
    let mut limits = Limits::default();
    let Some(mut section) = root.take("limits").and_then(|value| value.section()) else {
        return limits;
    };
    for (key, field) in [
        ("connections", &mut limits.connections),
        ("streams_per_connection", &mut limits.streams_per_connection),
        ("streams", &mut limits.streams),
        ("calls", &mut limits.calls),
        ("handshakes", &mut limits.handshakes),
    ] {
        if let Some(count) = section
            .take(key)
            .and_then(|value| value.count(1..=1_000_000))
        {
            *field = count;
        }
    }
    for (key, field, range) in [
        ("request_size", &mut limits.request_size, KIB..=64 * MIB),
        ("response_size", &mut limits.response_size, 64 * KIB..=GIB),
        ("header_size", &mut limits.header_size, KIB..=MIB),
    ] {
        if let Some(size) = section.take(key).and_then(|value| value.size(range)) {
            *field = size;
        }
    }
    let range = Duration::from_millis(100)..=Duration::from_mins(1);
    if let Some(timeout) = section
        .take("handshake_timeout")
        .and_then(|value| value.duration(range))
    {
        limits.handshake_timeout = timeout;
    }
    section.finish();
    limits
}

pub(super) fn read_journal(root: &mut Section<'_>) -> JournalLimits {
    let mut journal = JournalLimits::default();
    let Some(mut section) = root.take("journal").and_then(|value| value.section()) else {
        return journal;
    };
    if let Some(memory) = section
        .take("memory")
        .and_then(|value| value.size(MIB..=64 * GIB))
    {
        journal.memory = memory;
    }
    if let Some(events) = section
        .take("events")
        .and_then(|value| value.count(1_000..=1_000_000_000))
    {
        journal.events = events;
    }
    let range = Duration::from_mins(1)..=Duration::from_hours(24 * 365);
    if let Some(age) = section.take("age").and_then(|value| value.duration(range)) {
        journal.age = age;
    }
    if let Some(disk) = section
        .take("disk")
        .and_then(|value| value.size(MIB..=1_024 * GIB))
    {
        journal.disk = disk as u64;
    }
    let range = Duration::from_mins(1)..=Duration::from_hours(24 * 365 * 10);
    if let Some(age) = section
        .take("disk_age")
        .and_then(|value| value.duration(range))
    {
        journal.disk_age = age;
    }
    section.finish();
    journal
}
