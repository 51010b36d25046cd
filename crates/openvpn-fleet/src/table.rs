//! What is known of one instance: its status, its clients, its routes.

mod clients;

use std::collections::VecDeque;
use std::time::SystemTime;

use openvpn_management::{Cid, ClientStatistics, DaemonState, Text};
use openvpn_session::{Condition, HoldPolicy, Mode};

pub(crate) use self::clients::Clients;
use crate::apply::Memory;
use crate::client::Client;
use crate::event::DisconnectCause;
use crate::ledger::KnownRun;
use crate::name::{ActionRef, GatewayName, Generation, InstanceName, Labels};
use crate::question::{OpenQuestion, Question};
use crate::route::Route;

/// Deleted rows that watches can still be told of; one that is further behind starts over.
pub const REMOVED_MAX: usize = 1_024;
/// Questions of a daemon that are kept open at once; OpenVPN asks one at a time.
pub const QUESTIONS_MAX: usize = 16;

/// What is known of the session and the daemon.
#[derive(Debug, Clone, PartialEq)]
pub struct InstanceStatus {
    /// Condition of the session.
    pub condition: Condition,
    /// Why, for a person.
    pub reason: String,
    /// Since when the condition holds.
    pub since: SystemTime,
    /// The last error, kept when the condition changes.
    pub last_error: String,
    /// When we will try again; `None` when we are not waiting to.
    pub next_attempt: Option<SystemTime>,
    /// When the daemon last said anything.
    pub last_observed: Option<SystemTime>,
    /// The daemon's own words; empty when unknown.
    pub daemon_version: Text,
    /// Version of the management interface, from the greeting.
    pub management_version: Option<u32>,
    /// Process id on its host.
    pub pid: Option<u32>,
    /// Server or client.
    pub mode: Mode,
    /// What the daemon is doing.
    pub state: Option<DaemonState>,
    /// When it entered that state, by its own clock, in seconds since 1970.
    pub state_time: Option<i64>,
    /// It waits for a release before it serves.
    pub holding: bool,
    /// What it asks and nobody has answered yet.
    pub open_questions: Vec<OpenQuestion>,
    /// Bytes the daemon received since `counting_since`, a server from its clients, a client from its server: only
    /// rises.
    pub bytes_received: u64,
    /// Bytes the daemon sent to its clients, likewise.
    pub bytes_sent: u64,
    /// Since when the two counters above count.
    pub counting_since: Option<SystemTime>,
    /// The daemon's clock minus ours, in seconds.
    pub clock_offset: Option<i64>,
    /// When the table was last compared with the daemon's own status.
    pub snapshot_time: Option<SystemTime>,
    /// The counters of a daemon in client mode, as of `snapshot_time`.
    pub statistics: Option<Box<ClientStatistics>>,
    /// Rows of the last status that could not be read and are not shown.
    pub quarantined_rows: u64,
    /// The last status had more clients than we keep; the rest is not shown.
    pub truncated: bool,
    /// Sessions made since we started, the present one included.
    pub sessions: u64,
}

impl InstanceStatus {
    fn new(now: SystemTime) -> Self {
        Self {
            condition: Condition::Connecting,
            reason: String::new(),
            since: now,
            last_error: String::new(),
            next_attempt: None,
            last_observed: None,
            daemon_version: Text::default(),
            management_version: None,
            pid: None,
            mode: Mode::Unknown,
            state: None,
            state_time: None,
            holding: false,
            open_questions: Vec::new(),
            bytes_received: 0,
            bytes_sent: 0,
            counting_since: None,
            clock_offset: None,
            snapshot_time: None,
            statistics: None,
            quarantined_rows: 0,
            truncated: false,
            sessions: 0,
        }
    }

    /// Whether what is shown of the daemon is as fresh as it gets.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.condition == Condition::Attached
    }

    /// Its major and minor version; `None` while unknown.
    pub(crate) fn version(&self) -> Option<(u32, u32)> {
        let text = self.daemon_version.to_str()?;
        let mut numbers = text.strip_prefix("OpenVPN ")?.split(['.', '_', ' ']);
        let major = numbers.next()?.parse().ok()?;
        Some((major, numbers.next()?.parse().ok()?))
    }

    /// What this daemon can do; grows with versions.
    #[must_use]
    pub fn capabilities(&self) -> Vec<&'static str> {
        let mut capabilities = Vec::new();
        if self.last_observed.is_none() {
            return capabilities;
        }
        capabilities.push("signal");
        if self.mode == Mode::Server {
            capabilities.push("kill");
            let version = self.daemon_version.as_bytes();
            if version.starts_with(b"OpenVPN 2.7")
                || self.management_version.is_some_and(|version| version >= 6)
            {
                capabilities.push("push-update");
            }
        }
        capabilities
    }
}

/// A row that is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removed {
    /// The table's revision when it went.
    pub revision: u64,
    /// Its generation.
    pub generation: Generation,
    /// Its number.
    pub cid: Cid,
    /// Why.
    pub reason: RemovedReason,
}

/// Why a row is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemovedReason {
    /// The client left.
    Gone,
    /// The daemon restarted.
    Generation,
}

/// What is known of one instance.
///
/// One task writes it, the one of the instance's session; but for the marks of kills, which kills set themselves.
#[derive(Debug)]
pub struct Table {
    pub(crate) gateway: GatewayName,
    pub(crate) name: InstanceName,
    pub(crate) labels: Labels,
    pub(crate) hold: HoldPolicy,
    /// Most client rows, the session's `clients_max`.
    pub(crate) clients_max: usize,
    pub(crate) status: InstanceStatus,
    pub(crate) generation: Option<Generation>,
    pub(crate) clients: Clients,
    /// In order of CID and address.
    pub(crate) routes: Vec<Route>,
    /// Rises with every change of anything below.
    pub(crate) revision: u64,
    /// Revision when the status last changed.
    pub(crate) status_revision: u64,
    /// Oldest first.
    removed: VecDeque<Removed>,
    /// Rows removed at or before this revision are not listed in `removed` any more.
    removed_floor: u64,
    /// What `apply` remembers and nobody else sees.
    pub(crate) memory: Memory,
}

impl Table {
    pub(crate) fn new(
        gateway: GatewayName,
        name: InstanceName,
        labels: Labels,
        hold: HoldPolicy,
        clients_max: usize,
        now: SystemTime,
    ) -> Self {
        Self {
            gateway,
            name,
            labels,
            hold,
            clients_max,
            status: InstanceStatus::new(now),
            generation: None,
            clients: Clients::default(),
            routes: Vec::new(),
            revision: 1,
            status_revision: 1,
            removed: VecDeque::new(),
            removed_floor: 0,
            memory: Memory::default(),
        }
    }

    /// The session and the daemon.
    #[must_use]
    pub fn status(&self) -> &InstanceStatus {
        &self.status
    }

    /// A question that is open, for noting that its answer is on its way.
    pub(crate) fn open_question_mut(&mut self, id: u64) -> Option<&mut OpenQuestion> {
        let open = &mut self.status.open_questions;
        open.iter_mut().find(|asked| asked.id == id)
    }

    /// Takes out a question that is answered, and forgets the challenge it came from.
    pub(crate) fn close_question(&mut self, id: u64) -> Option<OpenQuestion> {
        let open = &mut self.status.open_questions;
        let index = open.iter().position(|asked| asked.id == id)?;
        let question = open.remove(index);
        if matches!(question.question, Question::Credentials { .. }) {
            self.memory.challenge = None;
        }
        self.bump_status();
        Some(question)
    }

    /// The present generation; `None` before the first.
    #[must_use]
    pub fn generation(&self) -> Option<Generation> {
        self.generation
    }

    /// The daemon's present run, for who keeps it longer than the process lives; `None` before the first generation.
    #[must_use]
    pub fn known_run(&self) -> Option<KnownRun> {
        let generation = self.generation?;
        let run = self.memory.run();
        let (connected_time, highest_cid) = run.unwrap_or_default();
        let newest = self.clients.iter().map(|client| client.cid).max();
        Some(KnownRun {
            generation,
            // Without it nobody takes the next run for this one.
            pid: self.status.pid.filter(|_| run.is_some()),
            connected_time,
            highest_cid: highest_cid.max(newest),
            observed: self.status.last_observed.or(self.memory.last_observed()),
        })
    }

    /// Takes up what an earlier run of the gateway knew.
    pub(crate) fn restore(&mut self, run: &KnownRun) {
        self.generation = Some(run.generation);
        self.status.pid = run.pid;
        self.memory.restore(run);
        self.bump_status();
    }

    /// Rises with every change of the table.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The revision when the status last changed.
    #[must_use]
    pub fn status_revision(&self) -> u64 {
        self.status_revision
    }

    /// The clients, half-open ones included, in order of CID.
    pub fn clients(&self) -> impl ExactSizeIterator<Item = &Client> {
        self.clients.iter()
    }

    /// One client of the present generation.
    #[must_use]
    pub fn client(&self, cid: Cid) -> Option<&Client> {
        self.clients.get(cid)
    }

    /// How many clients are connected, half-open ones not counted.
    #[must_use]
    pub fn client_count(&self) -> usize {
        self.clients.len() - self.clients.half_open()
    }

    /// How many clients are half-open.
    #[must_use]
    pub fn half_open_count(&self) -> usize {
        self.clients.half_open()
    }

    /// The routes, in order of CID and address; those of unknown clients last.
    #[must_use]
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// The routes to one client.
    #[must_use]
    pub fn routes_of(&self, cid: Cid) -> &[Route] {
        let start = self
            .routes
            .partition_point(|route| route.order_cid() < cid.0);
        let end = self
            .routes
            .partition_point(|route| route.order_cid() <= cid.0);
        &self.routes[start..end]
    }

    /// Rows removed after `revision`, oldest first; `None` if some of them are not known any more and the reader has to
    /// start over.
    #[must_use]
    pub fn removed_since(&self, revision: u64) -> Option<impl Iterator<Item = &Removed>> {
        let start = self
            .removed
            .partition_point(|removed| removed.revision <= revision);
        (revision >= self.removed_floor).then(|| self.removed.range(start..))
    }

    /// The evidence that a client is about to leave, if there is any.
    #[must_use]
    pub fn leaving(&self, cid: Cid) -> Option<DisconnectCause> {
        self.client(cid)?.mark.as_ref()?.leaving
    }

    /// The client that took the place of one that is marked or has left lately.
    pub(crate) fn successor_of(&self, generation: Generation, cid: Cid) -> Option<Cid> {
        if self.generation != Some(generation) {
            return None;
        }
        self.memory.successor_of(cid)
    }

    pub(crate) fn bump(&mut self) -> u64 {
        self.revision += 1;
        self.revision
    }

    pub(crate) fn bump_status(&mut self) {
        self.status_revision = self.bump();
    }

    /// A kill of this client is about to be written.
    pub(crate) fn mark_killed(&mut self, cid: Cid, action: ActionRef) {
        if let Some(client) = self.clients.get_mut(cid) {
            client.mark_mut().killed_by = Some(action);
            self.memory
                .note_ending(client, tokio::time::Instant::now().into_std());
        }
    }

    /// That kill was refused.
    pub(crate) fn unmark_killed(&mut self, cid: Cid, action: &ActionRef) {
        if let Some(mark) = self
            .clients
            .get_mut(cid)
            .and_then(|client| client.mark.as_mut())
            && mark.killed_by.as_ref() == Some(action)
        {
            mark.killed_by = None;
        }
    }

    pub(crate) fn remove_routes(&mut self, cid: Cid) {
        let start = self
            .routes
            .partition_point(|route| route.order_cid() < cid.0);
        let end = self
            .routes
            .partition_point(|route| route.order_cid() <= cid.0);
        self.routes.drain(start..end);
    }

    pub(crate) fn note_removed(&mut self, cid: Cid, reason: RemovedReason) {
        let Some(generation) = self.generation else {
            return;
        };
        let revision = self.bump();
        if self.removed.len() >= REMOVED_MAX
            && let Some(oldest) = self.removed.pop_front()
        {
            self.removed_floor = oldest.revision;
        }
        self.removed.push_back(Removed {
            revision,
            generation,
            cid,
            reason,
        });
    }
}
