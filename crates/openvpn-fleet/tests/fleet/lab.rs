//! Simulated daemons, a fleet over them, and waiting for conditions.

use std::sync::Arc;
use std::time::Duration;

use openvpn_fleet::{
    ActionContext, CallerName, ClientFilter, ClientRef, Event, EventFilter, Fleet, FleetConfig,
    GatewayName, Instance, InstanceName, InstanceSource, InstanceSpec, Item, JournalConfig,
    KillRequest, Labels, Record, Selector, Start, Table,
};
use openvpn_management::{Cid, KillMessage};
use openvpn_session::{Address, SessionConfig};
use openvpn_simulator::{Daemon, Timing};
use tempfile::TempDir;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes on a busy machine; only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Lab {
    pub(crate) fleet: Fleet,
    pub(crate) directory: TempDir,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let config = FleetConfig {
            gateway: GatewayName::new("gw").expect("a name"),
            journal: JournalConfig {
                memory_bytes: 16 << 20,
                events_max: 100_000,
                age_max: Duration::from_secs(3_600),
                encode: |_| bytes::Bytes::new(),
                start: None,
            },
        };
        Self {
            fleet: Fleet::new(&config),
            directory: tempfile::tempdir().expect("a directory"),
        }
    }

    /// Starts a daemon whose clients leave, and come back, soon.
    pub(crate) async fn daemon(&self, name: &str) -> Daemon {
        Daemon::builder(name)
            .unix(self.directory.path().join(name))
            .timing(quick())
            .start()
            .await
            .expect("the daemon starts")
    }

    pub(crate) fn spec(&self, name: &str) -> InstanceSpec {
        let address = Address::Unix(self.directory.path().join(name));
        let mut session = SessionConfig::new(address);
        session.timings.leaving_polls = [Duration::from_millis(100), Duration::from_millis(900)];
        session.timings.hint_spacing = Duration::from_millis(50);
        session.timings.refresh_spacing = Duration::from_millis(20);
        InstanceSpec {
            name: InstanceName::new(name).expect("a name"),
            labels: Labels::from_iter([("name", name)]),
            source: InstanceSource::File,
            session: session.into(),
            paused: None,
            others: 0,
        }
    }

    /// Makes these the instances, and waits until all are attached.
    pub(crate) async fn attach(&self, names: &[&str]) -> Vec<Arc<Instance>> {
        let specs = names.iter().map(|name| self.spec(name)).collect();
        self.fleet.set_instances(specs).await.expect("no clash");
        let mut instances = Vec::new();
        for name in names {
            let instance = self.fleet.instance(name).expect("it was added");
            until(&instance, |table| table.status().is_attached()).await;
            instances.push(instance);
        }
        instances
    }

    /// Everything in the journal, life cycle only.
    pub(crate) fn history(&self) -> Vec<Told> {
        let journal = self.fleet.journal();
        let mut reader = journal.reader(Start::Oldest);
        let filter = EventFilter {
            kinds: openvpn_fleet::KindSet::all_but_logs(),
            ..EventFilter::everything()
        };
        let mut told = Vec::new();
        loop {
            let batch = journal.read(&mut reader, 256, &filter);
            told.extend(batch.items.into_iter().map(|item| match item {
                Item::Event(entry) => match entry.record() {
                    Record::Event(event) => Told::Event(Box::new(event.clone())),
                    Record::Gap(_) => unreachable!("gaps come as such"),
                },
                Item::Gap { gap, .. } => Told::Gap(format!("{:?}", gap.cause)),
            }));
            if batch.is_end {
                return told;
            }
        }
    }

    /// Waits until the journal has what `find` looks for.
    pub(crate) async fn event<T>(&self, mut find: impl FnMut(&Event) -> Option<T>) -> T {
        let mut newest = self.fleet.journal().subscribe();
        let found = async {
            loop {
                newest.borrow_and_update();
                let found = self.history().iter().find_map(|told| match told {
                    Told::Event(event) => find(event),
                    Told::Gap(_) => None,
                });
                if let Some(found) = found {
                    return found;
                }
                newest.changed().await.expect("the journal lives");
            }
        };
        timeout(PATIENCE, found).await.expect("the event comes")
    }
}

/// One thing that a stream would show.
#[derive(Debug)]
pub(crate) enum Told {
    Event(Box<Event>),
    Gap(String),
}

impl Told {
    /// `client.established alice`, `gap Unobserved`.
    pub(crate) fn summary(&self) -> String {
        match self {
            Self::Event(event) => match &event.client {
                Some(client) => format!("{} {}", event.kind().as_str(), client.common_name),
                None => event.kind().as_str().to_owned(),
            },
            Self::Gap(cause) => format!("gap {cause}"),
        }
    }
}

/// A daemon that does in tenths of seconds what takes seconds.
pub(crate) fn quick() -> Timing {
    Timing {
        restart_pause: Duration::from_millis(200),
        delayed_exit: Duration::from_millis(500),
        return_after_kill: Duration::from_millis(200),
        return_after_restart: Duration::from_millis(200),
        ..Timing::default()
    }
}

/// Waits until something is true of an instance.
pub(crate) async fn until(instance: &Instance, is_true: impl Fn(&Table) -> bool) {
    let waiting = instance.wait_for(|table| is_true(table).then_some(()));
    if timeout(PATIENCE, waiting).await.is_err() {
        let table = instance.with_table(|table| format!("{table:#?}"));
        panic!("it never became true of {table}");
    }
}

/// Waits until an instance has that many established clients.
pub(crate) async fn until_clients(instance: &Instance, count: usize) {
    until(instance, |table| table.client_count() == count).await;
}

/// Common names of an instance's clients, sorted.
pub(crate) fn names(instance: &Instance) -> Vec<String> {
    let mut names: Vec<_> = instance.with_table(|table| {
        let names = table.clients().map(|client| client.common_name());
        names
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect()
    });
    names.sort();
    names
}

/// The reference of the client of that name.
pub(crate) fn ref_of(instance: &Instance, name: &str) -> ClientRef {
    instance.with_table(|table| {
        let client = table
            .clients()
            .find(|client| client.common_name() == name.as_bytes());
        ClientRef {
            gateway: instance.gateway().clone(),
            instance: instance.name().clone(),
            generation: table.generation().expect("there are clients"),
            cid: client.map_or(Cid(u64::MAX), |client| client.cid()),
        }
    })
}

/// A kill of everybody of that name, everywhere.
pub(crate) fn kill(name: &str) -> KillRequest {
    kill_of(ClientFilter {
        common_names: [name.as_bytes().to_vec()].into(),
        ..ClientFilter::default()
    })
}

pub(crate) fn kill_of(filter: ClientFilter) -> KillRequest {
    KillRequest {
        selector: Selector::all(),
        filter,
        every_client: false,
        message: KillMessage::Restart,
        validate_only: false,
        max_clients: 0,
        max_instances: 0,
        wait: false,
        request_id: None,
        digest: openvpn_fleet::Digest::default(),
    }
}

pub(crate) fn context() -> ActionContext {
    ActionContext {
        caller: CallerName::new("tester"),
        deadline: None,
        cancel: CancellationToken::new(),
    }
}
