//! Events: facts about instances and clients, and the gaps between them.

use std::time::{Duration, SystemTime};

use openvpn_management::{Cid, LogFlags, StateRecord, Text};

use crate::client::PeerInfo;
use crate::name::{
    ActionRef, ClientRef, GatewayName, Generation, InstanceName, InstanceUid, Labels,
};
use crate::question::OpenQuestion;
use openvpn_session::Condition;

/// One fact.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The gateway that saw it.
    pub gateway: GatewayName,
    /// The instance it concerns; none for `gateway.*` and `action.*`.
    pub instance: Option<InstanceName>,
    /// The labels the instance had at that moment, so that a selection means the same when replayed.
    pub labels: Labels,
    /// Generation of the instance; `None` before its first.
    pub generation: Option<Generation>,
    /// Position in the journal, which sets it.
    pub sequence: u64,
    /// When the gateway saw it.
    pub observed: SystemTime,
    /// When it happened by the daemon's clock, in seconds since 1970, where the daemon said so.
    pub daemon_time: Option<i64>,
    /// Set only if the fact was found by comparison and not told by the daemon.
    pub inferred: Option<Inference>,
    /// The client it concerns, for `client.*`; boxed, because most events are of none.
    pub client: Option<Box<EventClient>>,
    /// What happened.
    pub detail: Detail,
}

/// Bounds of the moment at which an inferred fact became true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inference {
    /// It was not yet so then; `None` when unknown.
    pub not_before: Option<SystemTime>,
    /// It was so then.
    pub not_after: SystemTime,
}

/// Who a client is, in an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventClient {
    /// Its generation.
    pub generation: Generation,
    /// Its number.
    pub cid: Cid,
    /// Common name of its certificate; empty while half-open.
    pub common_name: Text,
    /// The name it authenticated with; empty when it used none.
    pub username: Text,
    /// Where it comes from, as the daemon writes it.
    pub real_address: Text,
    /// Its IPv4 address inside the VPN; empty when it has none.
    pub virtual_address: Text,
    /// Its IPv6 address inside the VPN; empty when it has none.
    pub virtual_ipv6_address: Text,
    /// It has no name yet.
    pub half_open: bool,
}

/// What an event's kind carries. One variant per kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Detail {
    /// `instance.added`.
    Added(Inventory),
    /// `instance.removed`.
    Removed(Inventory),
    /// `instance.attached`: the session is in step with the daemon.
    Attached {
        /// The daemon's version.
        daemon_version: Text,
        /// Its process id, where known.
        pid: Option<u32>,
        /// Clients found.
        clients: u64,
    },
    /// `instance.detached`: the session ended.
    Detached {
        /// Why, for a person.
        reason: String,
    },
    /// `instance.condition`.
    Condition {
        /// What it was.
        previous: Condition,
        /// What it is.
        current: Condition,
        /// Why, for a person.
        reason: String,
    },
    /// `instance.state`.
    State(Box<StateRecord>),
    /// `instance.generation`: every older reference to the instance's clients is stale.
    Generation {
        /// The one that ended; `None` if this is the first.
        previous: Option<Generation>,
        /// The evidence.
        cause: GenerationCause,
        /// What became of the clients of the one that ended.
        clients_lost: ClientsLost,
    },
    /// `instance.hold`.
    Hold {
        /// The daemon waits (true) or was released (false).
        holding: bool,
        /// How long the daemon suggests to wait.
        wait: Option<Duration>,
        /// The gateway releases it by itself.
        released_by_gateway: bool,
    },
    /// `instance.question`.
    Question {
        /// The question, without secrets.
        question: Box<OpenQuestion>,
        /// It is open (true) or no longer is (false).
        open: bool,
    },
    /// `instance.log`.
    Log {
        /// The daemon's flags.
        flags: LogFlags,
        /// The line.
        text: Text,
    },
    /// `instance.echo`.
    Echo(Text),
    /// `instance.info`.
    Info(Text),
    /// `instance.fatal`.
    Fatal(Text),
    /// `instance.unrecognized`.
    Unrecognized(Text),
    /// `client.attempt`: a client has begun a handshake, or waits for approval.
    ClientAttempt(Box<ClientConnected>),
    /// `client.established`.
    ClientEstablished(Box<ClientConnected>),
    /// `client.reauthenticated`.
    ClientReauthenticated(Box<ClientConnected>),
    /// `client.address`.
    ClientAddress {
        /// Address or network.
        address: Text,
        /// It is the client's own, not one routed to it.
        primary: bool,
    },
    /// `client.leaving`: the client is about to be gone.
    ClientLeaving {
        /// The evidence.
        cause: DisconnectCause,
    },
    /// `client.disconnected`: closes the record of a client.
    ClientDisconnected(Box<ClientDisconnected>),
    /// `action.started`.
    ActionStarted(Box<ActionProgress>),
    /// `action.finished`.
    ActionFinished(Box<ActionProgress>),
    /// `gateway.config`.
    GatewayConfig {
        /// What happened, for a person.
        message: String,
    },
    /// `gateway.log`.
    GatewayLog {
        /// Severity, as a daemon would write it.
        flags: LogFlags,
        /// The line.
        text: Text,
    },
    /// `gateway.drain`.
    GatewayDrain {
        /// What happened, for a person.
        message: String,
    },
}

/// Of an instance that joined or left the fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    /// Its management address.
    pub address: String,
    /// Which life of that name.
    pub uid: InstanceUid,
}

/// The evidence of a new generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GenerationCause {
    /// First attach since the gateway started.
    First,
    /// The daemon said that it restarts.
    Reconnecting,
    /// Another process id.
    Pid,
    /// Another time of its last CONNECTED state.
    ConnectedTime,
    /// A client number that belongs to somebody else now.
    CidReused,
    /// A client number that had been passed already.
    CidLower,
}

/// What became of the clients of the generation that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientsLost {
    /// They were disconnected.
    Yes,
    /// There were none.
    No,
    /// Nobody watched.
    Unknown,
}

/// Of a client that connects, has connected, or has authenticated again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientConnected {
    /// When it connected, by the daemon's clock, in seconds since 1970.
    pub connected_since: Option<i64>,
    /// What the client said of itself.
    pub peer_info: PeerInfo,
    /// Cipher of the data channel; empty when unknown.
    pub cipher: Text,
    /// The client of the same person that this one replaces, where known.
    pub predecessor: Option<ClientRef>,
}

/// Of a client that is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientDisconnected {
    /// Last known bytes that the daemon received from it.
    pub bytes_received: u64,
    /// Last known bytes that the daemon sent to it.
    pub bytes_sent: u64,
    /// The two numbers are the daemon's last word, not just the last seen.
    pub bytes_final: bool,
    /// How long it was connected.
    pub duration: Option<Duration>,
    /// Why it is gone.
    pub cause: DisconnectCause,
    /// The action of ours that ended it, if one did.
    pub caused_by: Option<ActionRef>,
    /// The client that took its place, where one did by then.
    pub successor: Option<ClientRef>,
}

/// Why a client is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DisconnectCause {
    /// It was killed.
    Killed,
    /// It said goodbye, or closed its TCP connection.
    PeerExit,
    /// It fell silent.
    PingTimeout,
    /// The same name connected again.
    Superseded,
    /// The daemon restarted or ended.
    DaemonRestart,
    /// Nobody knows.
    Unknown,
}

/// Of a fleet action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActionProgress {
    /// Which.
    pub action: ActionRef,
    /// What it does.
    pub method: crate::action::Method,
    /// Targets by outcome; empty in `action.started`.
    pub outcomes: Vec<(crate::action::Outcome, u64)>,
    /// Targets in all.
    pub targets: u64,
}

/// Events may be missing here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Why.
    pub cause: GapCause,
    /// The gateway whose events are missing.
    pub gateway: GatewayName,
    /// The instance whose events are missing; `None`: any.
    pub instance: Option<InstanceName>,
    /// The labels the instance had.
    pub labels: Labels,
    /// Which class of events; `None`: any.
    pub class: Option<EventClass>,
    /// How many, where known.
    pub count: Option<u64>,
    /// Since when events are missing; `None` when unknown.
    pub not_before: Option<SystemTime>,
    /// Until when.
    pub not_after: Option<SystemTime>,
}

/// Why events are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GapCause {
    /// The journal no longer has them.
    Compacted,
    /// We were not attached to the instance; nobody saw them.
    Unobserved,
    /// The gateway ended, and what it had not kept by then is lost.
    GatewayRestarted,
    /// The position is of another journal than this one.
    JournalReplaced,
    /// The instance logged faster than we take.
    RateCapped,
}

/// Groups kinds by how long they are kept: one chatty daemon evicts nobody's connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventClass {
    /// Everything that is not in another class.
    Lifecycle,
    /// `instance.log`, `instance.echo`, `gateway.log`.
    Log,
    /// `instance.info`, `instance.unrecognized`.
    Raw,
}

impl EventClass {
    /// Every class.
    pub const ALL: [Self; 3] = [Self::Lifecycle, Self::Log, Self::Raw];
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal),+ $(,)?) => {
        /// What happened, without the particulars.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Kind {
            $($(#[$doc])* $kind),+
        }

        impl Kind {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$kind),+];

            /// Dotted name: `client.established`.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$kind => $name),+
                }
            }
        }
    };
}

kinds! {
    /// An instance joined the fleet.
    InstanceAdded = "instance.added",
    /// An instance left the fleet.
    InstanceRemoved = "instance.removed",
    /// The session is in step with the daemon.
    InstanceAttached = "instance.attached",
    /// The session ended.
    InstanceDetached = "instance.detached",
    /// The condition of the session changed.
    InstanceCondition = "instance.condition",
    /// The daemon's state changed.
    InstanceState = "instance.state",
    /// The daemon's CID space began anew.
    InstanceGeneration = "instance.generation",
    /// The daemon waits for a release, or was released.
    InstanceHold = "instance.hold",
    /// The daemon asks something.
    InstanceQuestion = "instance.question",
    /// A line of the daemon's log.
    InstanceLog = "instance.log",
    /// An `echo` line.
    InstanceEcho = "instance.echo",
    /// Other text of the daemon.
    InstanceInfo = "instance.info",
    /// The daemon's last words.
    InstanceFatal = "instance.fatal",
    /// A line we do not know.
    InstanceUnrecognized = "instance.unrecognized",
    /// A client begins.
    ClientAttempt = "client.attempt",
    /// A client is connected.
    ClientEstablished = "client.established",
    /// A client authenticated again.
    ClientReauthenticated = "client.reauthenticated",
    /// A client got an address.
    ClientAddress = "client.address",
    /// A client is about to be gone.
    ClientLeaving = "client.leaving",
    /// A client is gone.
    ClientDisconnected = "client.disconnected",
    /// A fleet action began.
    ActionStarted = "action.started",
    /// A fleet action ended.
    ActionFinished = "action.finished",
    /// The gateway's configuration changed.
    GatewayConfig = "gateway.config",
    /// A line of the gateway's log.
    GatewayLog = "gateway.log",
    /// The gateway is going away.
    GatewayDrain = "gateway.drain",
}

impl Kind {
    /// How long events of this kind are kept.
    #[must_use]
    pub fn class(self) -> EventClass {
        match self {
            Self::InstanceLog | Self::InstanceEcho | Self::GatewayLog => EventClass::Log,
            Self::InstanceInfo | Self::InstanceUnrecognized => EventClass::Raw,
            _ => EventClass::Lifecycle,
        }
    }
}

impl Event {
    /// What happened, without the particulars.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match &self.detail {
            Detail::Added(_) => Kind::InstanceAdded,
            Detail::Removed(_) => Kind::InstanceRemoved,
            Detail::Attached { .. } => Kind::InstanceAttached,
            Detail::Detached { .. } => Kind::InstanceDetached,
            Detail::Condition { .. } => Kind::InstanceCondition,
            Detail::State(_) => Kind::InstanceState,
            Detail::Generation { .. } => Kind::InstanceGeneration,
            Detail::Hold { .. } => Kind::InstanceHold,
            Detail::Question { .. } => Kind::InstanceQuestion,
            Detail::Log { .. } => Kind::InstanceLog,
            Detail::Echo(_) => Kind::InstanceEcho,
            Detail::Info(_) => Kind::InstanceInfo,
            Detail::Fatal(_) => Kind::InstanceFatal,
            Detail::Unrecognized(_) => Kind::InstanceUnrecognized,
            Detail::ClientAttempt(_) => Kind::ClientAttempt,
            Detail::ClientEstablished(_) => Kind::ClientEstablished,
            Detail::ClientReauthenticated(_) => Kind::ClientReauthenticated,
            Detail::ClientAddress { .. } => Kind::ClientAddress,
            Detail::ClientLeaving { .. } => Kind::ClientLeaving,
            Detail::ClientDisconnected(_) => Kind::ClientDisconnected,
            Detail::ActionStarted(_) => Kind::ActionStarted,
            Detail::ActionFinished(_) => Kind::ActionFinished,
            Detail::GatewayConfig { .. } => Kind::GatewayConfig,
            Detail::GatewayLog { .. } => Kind::GatewayLog,
            Detail::GatewayDrain { .. } => Kind::GatewayDrain,
        }
    }

    /// The name of the client it concerns, for every other call.
    #[must_use]
    pub fn client_ref(&self) -> Option<ClientRef> {
        let (client, instance) = (self.client.as_ref()?, self.instance.as_ref()?);
        Some(ClientRef {
            gateway: self.gateway.clone(),
            instance: instance.clone(),
            generation: client.generation,
            cid: client.cid,
        })
    }

    /// Bytes of text it holds on the heap.
    pub(crate) fn heap_bytes(&self) -> usize {
        let client = self.client.as_ref().map_or(0, |client| {
            size_of::<EventClient>()
                + client.common_name.len()
                + client.username.len()
                + client.real_address.len()
                + client.virtual_address.len()
                + client.virtual_ipv6_address.len()
        });
        client + self.detail.heap_bytes()
    }
}

impl Detail {
    fn heap_bytes(&self) -> usize {
        match self {
            Self::Added(inventory) | Self::Removed(inventory) => inventory.address.len(),
            Self::Attached { daemon_version, .. } => daemon_version.len(),
            Self::Detached { reason } | Self::Condition { reason, .. } => reason.len(),
            Self::State(record) => {
                size_of::<StateRecord>()
                    + record.detail.len()
                    + record.tunnel_ipv4.len()
                    + record.tunnel_ipv6.len()
                    + record.remote_address.len()
                    + record.local_address.len()
            }
            Self::Generation { .. } | Self::Hold { .. } | Self::ClientLeaving { .. } => 0,
            Self::Question { question, .. } => {
                // Twice: it is written as text and as fields.
                size_of::<OpenQuestion>() + 2 * question.question.heap_bytes()
            }
            Self::Log { text, .. }
            | Self::GatewayLog { text, .. }
            | Self::Echo(text)
            | Self::Info(text)
            | Self::Fatal(text)
            | Self::Unrecognized(text) => text.len(),
            Self::ClientAttempt(connected)
            | Self::ClientEstablished(connected)
            | Self::ClientReauthenticated(connected) => {
                // The values are shared, but their encoded form is not.
                size_of::<ClientConnected>() + connected.peer_info.bytes() + connected.cipher.len()
            }
            Self::ClientAddress { address, .. } => address.len(),
            Self::ClientDisconnected(_) => size_of::<ClientDisconnected>(),
            Self::ActionStarted(progress) | Self::ActionFinished(progress) => {
                size_of::<ActionProgress>() + size_of_val(progress.outcomes.as_slice())
            }
            Self::GatewayConfig { message } | Self::GatewayDrain { message } => message.len(),
        }
    }
}
