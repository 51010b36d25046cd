//! A daemon's words, folded into a table without a session.

use std::fmt::Write as _;
use std::time::{Duration, Instant, SystemTime};

use openvpn_management::{
    Connection, Limits, LoadStats, Output, StateRecord, StatusSnapshot, Text,
};
use openvpn_session::{Facts, Hint, HoldPolicy, Mode, Moment, Observation, Snapshot};

use crate::apply::apply;
use crate::client::Interner;
use crate::event::{Detail, Event};
use crate::journal::Record;
use crate::name::{GatewayName, Generation, InstanceName, Labels};
use crate::table::Table;

/// Seconds since 1970 at which these tests begin.
pub(crate) const BEGIN: u64 = 1_795_186_000;

/// A table and what was told about it.
pub(crate) struct Told {
    pub(crate) table: Table,
    pub(crate) records: Vec<Record>,
    /// What went on before its observation was all folded.
    pub(crate) spilled: Vec<Record>,
    pub(crate) hints: Vec<Hint>,
    interner: Interner,
    connection: Connection,
    now: Moment,
}

impl Told {
    /// An instance that no session was made to.
    pub(crate) fn new() -> Self {
        let now = Moment {
            wall: SystemTime::UNIX_EPOCH + Duration::from_secs(BEGIN),
            monotonic: Instant::now(),
        };
        let table = Table::new(
            GatewayName::new("gw").expect("a name"),
            InstanceName::new("eu1").expect("a name"),
            Labels::default(),
            HoldPolicy::Release,
            100,
            now.wall,
        );
        let mut connection = Connection::new(Limits::default());
        connection.handle_input(
            b">INFO:OpenVPN Management Interface Version 5 -- type 'help' for more info\r\n",
            now.monotonic,
        );
        while connection.poll_output().is_some() {}
        Self {
            table,
            records: Vec::new(),
            spilled: Vec::new(),
            hints: Vec::new(),
            interner: Interner::default(),
            connection,
            now,
        }
    }

    /// An instance that is attached and has no clients.
    pub(crate) fn attached() -> Self {
        let mut told = Self::new();
        told.attach(Some(1), "1795186000,CONNECTED,SUCCESS,10.8.0.1,,,,", None);
        told.records.clear();
        told
    }

    pub(crate) fn observe(&mut self, observation: Observation) -> Hint {
        self.advance(Duration::from_millis(1));
        let hint = apply(
            &mut self.table,
            observation,
            self.now,
            &self.interner,
            &mut self.records,
            &mut |records| self.spilled.append(records),
        );
        self.hints.push(hint);
        hint
    }

    /// Somebody sets the clock of our machine back.
    pub(crate) fn set_back(&mut self, by: Duration) {
        self.now.wall -= by;
    }

    pub(crate) fn now(&self) -> SystemTime {
        self.now.wall
    }

    pub(crate) fn advance(&mut self, by: Duration) {
        self.now.wall += by;
        self.now.monotonic += by;
    }

    /// A session greets and finds these things.
    pub(crate) fn attach(&mut self, pid: Option<u32>, state: &str, status: Option<&str>) {
        self.observe(Observation::Greeted {
            management_version: Some(5),
        });
        self.synchronise(pid, state, status);
    }

    pub(crate) fn synchronise(&mut self, pid: Option<u32>, state: &str, status: Option<&str>) {
        let snapshot = status.map(|status| self.snapshot(status));
        let mode = snapshot
            .as_ref()
            .map_or(Mode::Unknown, |snapshot| Mode::of(&snapshot.status));
        self.observe(Observation::Synchronised(Box::new(Facts {
            pid,
            states: StateRecord::parse(&Text::from(state)).into_iter().collect(),
            snapshot,
            mode,
            ..Facts::default()
        })));
    }

    pub(crate) fn detach(&mut self) {
        self.observe(Observation::Detached {
            reason: "cut".to_owned(),
        });
    }

    /// The daemon says these lines, unasked.
    pub(crate) fn says(&mut self, lines: &str) {
        for line in lines.lines() {
            self.connection.handle_input(
                format!("{}\r\n", line.trim()).as_bytes(),
                self.now.monotonic,
            );
            while let Some(output) = self.connection.poll_output() {
                if let Output::Notification(notification) = output {
                    self.observe(Observation::Notification(notification));
                }
            }
        }
    }

    /// The daemon answers `status` with this, asked just now.
    pub(crate) fn shows(&mut self, status: &str) {
        let snapshot = self.snapshot(status);
        self.observe(Observation::Snapshot(Box::new(snapshot)));
    }

    pub(crate) fn snapshot(&mut self, status: &str) -> Snapshot {
        let asked = self.now;
        self.advance(Duration::from_millis(1));
        Snapshot {
            status: StatusSnapshot::parse(
                status.as_bytes(),
                &Limits {
                    clients_max: self.table.clients_max,
                    ..Limits::default()
                },
            ),
            asked,
            answered: self.now,
        }
    }

    pub(crate) fn counts(&mut self, clients: u64) -> Hint {
        self.observe(Observation::LoadStats(LoadStats {
            clients,
            bytes_received: 0,
            bytes_sent: 0,
        }))
    }

    /// A client is established.
    pub(crate) fn established(&mut self, cid: u64, name: &str, since: u64) {
        self.says(&format!(
            ">CLIENT:ESTABLISHED,{cid}\n>CLIENT:ENV,common_name={name}\n>CLIENT:ENV,trusted_ip=192.0.2.7\n\
             >CLIENT:ENV,trusted_port={}\n>CLIENT:ENV,time_unix={since}\n\
             >CLIENT:ENV,ifconfig_pool_remote_ip=10.8.0.{}\n>CLIENT:ENV,END",
            1000 + cid,
            cid + 2
        ));
    }

    pub(crate) fn generation(&self) -> Generation {
        self.table.generation().expect("attached")
    }

    /// The events since the last time, in short, and forgets them.
    pub(crate) fn events(&mut self) -> Vec<String> {
        std::mem::take(&mut self.records)
            .iter()
            .map(summary)
            .collect()
    }

    pub(crate) fn cids(&self) -> Vec<u64> {
        self.table.clients().map(|client| client.cid().0).collect()
    }
}

/// A `status 3` with these clients: CID, name (`UNDEF` for half-open ones), connected since, bytes received.
pub(crate) fn status(clients: &[(u64, &str, u64, u64)]) -> String {
    let mut status = String::from(
        "TITLE\tOpenVPN 2.6.14\nTIME\t2026-11-20 15:00:00\t1795186100\n\
         HEADER\tCLIENT_LIST\tCommon Name\tReal Address\tVirtual Address\tVirtual IPv6 Address\tBytes Received\tBytes Sent\t\
         Connected Since\tConnected Since (time_t)\tUsername\tClient ID\tPeer ID\tData Channel Cipher\n",
    );
    for (cid, name, since, bytes) in clients {
        let (address, cipher) = if *name == "UNDEF" {
            (String::new(), "BF-CBC")
        } else {
            (format!("10.8.0.{}", cid + 2), "AES-256-GCM")
        };
        let port = 1000 + cid;
        writeln!(
            status,
            "CLIENT_LIST\t{name}\t192.0.2.7:{port}\t{address}\t\t{bytes}\t{bytes}\tx\t{since}\tUNDEF\t{cid}\t{cid}\t{cipher}"
        )
        .expect("a string takes everything");
    }
    status.push_str(
        "HEADER\tROUTING_TABLE\tVirtual Address\tCommon Name\tReal Address\tLast Ref\tLast Ref (time_t)\n",
    );
    for (cid, name, _, _) in clients.iter().filter(|(_, name, _, _)| *name != "UNDEF") {
        writeln!(
            status,
            "ROUTING_TABLE\t10.8.0.{}\t{name}\t192.0.2.7:{}\tx\t1795186099",
            cid + 2,
            1000 + cid
        )
        .expect("a string takes everything");
    }
    status + "GLOBAL_STATS\tMax bcast/mcast queue length\t0\nEND\n"
}

/// One line that says all of an event that these tests care for.
pub(crate) fn summary(record: &Record) -> String {
    let event = match record {
        Record::Event(event) => event,
        Record::Gap(gap) => return format!("gap {:?} {:?} {:?}", gap.cause, gap.class, gap.count),
    };
    let mut line = event.kind().as_str().to_owned();
    if event.inferred.is_some() {
        line.push_str(" (inferred)");
    }
    if let Some(client) = &event.client {
        let name = if client.half_open {
            "half-open".to_owned()
        } else {
            client.common_name.to_string()
        };
        write!(
            line,
            " {} {name} {} {}",
            client.cid, client.real_address, client.virtual_address
        )
        .expect("a string takes everything");
    }
    line.push_str(&particulars(event));
    line
}

fn particulars(event: &Event) -> String {
    match &event.detail {
        Detail::State(record) => format!(" {} {}", record.state, record.detail),
        Detail::Generation {
            cause,
            clients_lost,
            ..
        } => format!(" {cause:?} lost={clients_lost:?}"),
        Detail::Condition { current, .. } => format!(" {current}"),
        Detail::Detached { reason } => format!(" {reason}"),
        Detail::Attached { clients, .. } => format!(" clients={clients}"),
        Detail::Hold { holding, .. } => format!(" {holding}"),
        Detail::Question { question, open } => format!(" {} open={open}", question.question),
        Detail::Log { text, .. }
        | Detail::Echo(text)
        | Detail::Info(text)
        | Detail::Fatal(text)
        | Detail::Unrecognized(text) => {
            format!(" {text}")
        }
        Detail::ClientAttempt(connected)
        | Detail::ClientEstablished(connected)
        | Detail::ClientReauthenticated(connected) => {
            let predecessor = connected
                .predecessor
                .as_ref()
                .map(|client| format!(" instead of {}", client.cid));
            format!(
                " since={} info={}{}",
                connected.connected_since.unwrap_or(-1),
                connected.peer_info.iter().count(),
                predecessor.unwrap_or_default()
            )
        }
        Detail::ClientAddress { address, primary } => format!(" {address} primary={primary}"),
        Detail::ClientLeaving { cause } => format!(" {cause:?}"),
        Detail::ClientDisconnected(gone) => {
            let successor = gone
                .successor
                .as_ref()
                .map(|client| format!(" followed by {}", client.cid));
            format!(
                " {:?} bytes={}/{} final={} after={:?}{}",
                gone.cause,
                gone.bytes_received,
                gone.bytes_sent,
                gone.bytes_final,
                gone.duration,
                successor.unwrap_or_default()
            )
        }
        _ => String::new(),
    }
}
