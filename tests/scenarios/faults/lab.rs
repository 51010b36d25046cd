//! One daemon with two clients, and a gateway that reaches it through a relay which breaks.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ovfleet_proto::v1::{self, Condition, InstanceStatus, ListClientsRequest};
use ovfleet_tests::{
    Api, Client, Gateway, GatewayConfig, InstanceConfig, Management, Proto, Server, ServerBuilder,
    api::timed,
    chaos::{Chaos, Cut, Direction, Manner},
    poll_until,
    status::Status,
};

/// What is shown is what is, by then, whatever happened.
pub(super) const TRUE_AGAIN: Duration = Duration::from_secs(30);
/// Who is silent is named by then: asked every 10 s, or with a status that takes 10 s.
const NAMED: Duration = Duration::from_secs(30);

/// See the module.
pub(super) struct Lab {
    pub(super) server: Server,
    pub(super) victim: Client,
    pub(super) bystander: Client,
    pub(super) api: Api,
    pub(super) chaos: Chaos,
    gateway: Gateway,
    /// Longest time until the state shown was the daemon's.
    pub(super) slowest: Duration,
    /// Cuts that the relay carried out.
    pub(super) carried_out: usize,
}

/// One cut: so many bytes in that direction pass, in that manner, and then.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    pub(super) direction: Direction,
    pub(super) offset: u64,
    pub(super) cut: Cut,
    pub(super) manner: Manner,
}

impl Lab {
    pub(super) async fn start(name: &str, management: Management) -> Result<Self> {
        Self::on(Server::builder(name).management(management)).await
    }

    /// One on such a daemon.
    pub(super) async fn on(builder: ServerBuilder) -> Result<Self> {
        // Over TCP a client that is halted ends at once.
        let server = builder.proto(Proto::Tcp).start().await?;
        let victim = Client::builder(&server, "victim").connect().await?;
        let bystander = Client::builder(&server, "bystander").connect().await?;
        let chaos = Chaos::start(&server.address()).await?;
        let gateway = GatewayConfig::new()
            .instance(InstanceConfig::at(&server, chaos.address()))
            .start()
            .await?;
        let api = Api::connect(&gateway).await?;
        let mut lab = Self {
            server,
            victim,
            bystander,
            api,
            chaos,
            gateway,
            slowest: Duration::ZERO,
            carried_out: 0,
        };
        lab.wait_true().await?;
        lab.slowest = Duration::ZERO;
        Ok(lab)
    }

    pub(super) async fn status(&mut self) -> Result<InstanceStatus> {
        self.api.status(self.server.name()).await
    }

    /// The clients as they are listed, without asking the daemon.
    async fn rows(&mut self) -> Result<Vec<v1::Client>> {
        let request = timed(ListClientsRequest::default());
        let response = self.api.fleet.list_clients(request).await?;
        Ok(response.into_inner().clients)
    }

    /// Waits until the gateway is attached to this very process, and shows of it what it writes to
    /// its own status file: the same clients, every column.
    pub(super) async fn wait_true(&mut self) -> Result<()> {
        let started = Instant::now();
        let mut last = None;
        let found = poll_until("the state to be the daemon's", TRUE_AGAIN, async || {
            let status = self.status().await?;
            let rows = self.rows().await?;
            let truth = self.server.status().await?;
            let there = status.condition() == Condition::Attached
                && status.state == "CONNECTED"
                && status.pid == self.server.pid()
                && usize::try_from(status.clients)? == truth.clients.len()
                && are_shown(&truth, &rows);
            last = Some((status, rows, truth));
            Ok(there.then_some(()))
        })
        .await;
        found.with_context(|| format!("{last:#?}"))?;
        self.slowest = self.slowest.max(started.elapsed());
        Ok(())
    }

    /// Breaks the connection, and waits for the next and for the truth.
    pub(super) async fn reattach(&mut self) -> Result<()> {
        let before = self.chaos.connections();
        self.chaos.close_all();
        self.wait_connection(before).await?;
        self.wait_true().await
    }

    async fn wait_connection(&self, before: u64) -> Result<()> {
        poll_until("another connection", TRUE_AGAIN, async || {
            Ok((self.chaos.connections() > before).then_some(()))
        })
        .await
    }

    /// Nothing may be left of a cut that was armed at `connections` before the next.
    pub(super) async fn mend(&mut self, point: &Point, connections: u64) -> Result<()> {
        self.chaos.set_manner(Manner::default());
        if !self.chaos.disarm() {
            self.carried_out += 1;
            if point.cut == Cut::BlackHole {
                // The rest of the connection says nothing, and must not pass for well.
                poll_until("the silence to be named", NAMED, async || {
                    let condition = self.status().await?.condition();
                    let named = [
                        Condition::Unresponsive,
                        Condition::SlotBusy,
                        Condition::Unreachable,
                    ];
                    Ok(named.contains(&condition).then_some(()))
                })
                .await?;
                self.chaos.close_all();
            }
            self.wait_connection(connections).await?;
        }
        self.wait_true().await
    }

    /// Another victim, in the place of one that may still be about to end.
    pub(super) async fn replace_victim(&mut self) -> Result<()> {
        self.victim.vanish();
        self.victim = Client::builder(&self.server, "victim").connect().await?;
        Ok(())
    }

    /// Brings the victim back, if it is gone, and waits until everybody knows.
    pub(super) async fn revive(&mut self) -> Result<()> {
        if !self.victim.is_running()? {
            self.replace_victim().await?;
        }
        poll_until("both to be back", TRUE_AGAIN, async || {
            let rows = self.server.status().await?.clients;
            let back = |name: &[u8]| rows.values().any(|row| row.common_name == name);
            Ok((rows.len() == 2 && back(b"victim") && back(b"bystander")).then_some(()))
        })
        .await?;
        self.wait_true().await
    }

    /// What is to hold at the end of every test.
    pub(super) fn check_log(&self) -> Result<()> {
        let log = self.gateway.log();
        let panic = log.lines().find(|line| line.contains("panicked"));
        ensure!(panic.is_none(), "{panic:?}");
        Ok(())
    }
}

/// Whether `rows` are the clients that the daemon wrote.
pub(super) fn are_shown(truth: &Status, rows: &[v1::Client]) -> bool {
    let mut written = truth.clients.values();
    rows.len() == truth.clients.len()
        && written.all(|client| rows.iter().any(|row| client.is_shown_by(row)))
}
