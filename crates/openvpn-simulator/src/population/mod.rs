//! A seeded crowd living on many daemons.

mod people;
mod plan;

use std::net::{IpAddr, SocketAddr};

use tokio::time::{Duration, Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::random::Random;
use crate::{ClientSpec, ControlError, Daemon};

use people::Person;
use plan::{Deed, Plan};

/// How often packets of the crowd are counted.
const TRAFFIC_INTERVAL: Duration = Duration::from_secs(1);

/// Clients whose packets are counted in one interval; a larger crowd takes turns.
const TRAFFIC_CLIENTS_MAX: usize = 64;

/// Fewest events per second; below it the crowd would seem dead.
const RATE_MIN: f64 = 0.01;

/// Clients that come and go on many daemons, their traffic, and now and then a daemon in trouble.
///
/// People have names one meets (laptops that roam, phones, routers with a network behind them,
/// the same name twice, one with spaces, a comma and letters beyond ASCII). About every fortieth
/// thing that happens is trouble: a daemon restarts, hangs for some seconds, or is gone for some.
#[derive(Debug)]
pub struct Population {
    daemons: Vec<Daemon>,
    seed: u64,
    rate: f64,
    clients: usize,
}

/// A daemon that is to be well again.
struct Cure {
    at: Instant,
    daemon: usize,
    frozen: bool,
}

impl Population {
    /// A crowd for these daemons; the same seed gives the same people and the same plan. What
    /// managers do to them, such as a kill, is no part of the plan.
    pub fn new(daemons: Vec<Daemon>, seed: u64) -> Self {
        let clients = daemons.len() * 8;
        Self {
            daemons,
            seed,
            rate: 2.0,
            clients,
        }
    }

    /// Sets how many things happen in a second, on average; 2 unless set.
    #[must_use]
    pub fn rate(mut self, events_per_second: f64) -> Self {
        self.rate = events_per_second;
        self
    }

    /// Sets about how many clients are connected at a time; 8 per daemon unless set.
    #[must_use]
    pub fn clients(mut self, clients: usize) -> Self {
        self.clients = clients;
        self
    }

    /// The daemons it lives on.
    pub fn daemons(&self) -> &[Daemon] {
        &self.daemons
    }

    /// Lives until `cancel` is cancelled. The daemons outlive it, and none is left in trouble.
    pub async fn run(&self, cancel: CancellationToken) {
        let mut plan = Plan::new(self.seed, self.daemons.len(), self.clients);
        let mut random = Random::new(self.seed ^ 0x7472_6166_6669_6321);
        for deed in plan.arrivals() {
            let _ = self.carry_out(&plan, deed).await;
        }
        let mut traffic = interval(TRAFFIC_INTERVAL);
        traffic.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut cures: Vec<Cure> = Vec::new();
        let mut next_deed = Instant::now();
        loop {
            let next_cure = cures.iter().map(|cure| cure.at).min();
            tokio::select! {
                () = cancel.cancelled() => break,
                () = sleep_until(next_deed) => {
                    next_deed = Instant::now() + self.pause(&mut random);
                    let deed = plan.next_deed();
                    // A daemon in trouble takes nobody in; the person tries again some day.
                    if let Ok(Some(cure)) = self.carry_out(&plan, deed).await {
                        cures.push(cure);
                    }
                }
                () = sleep_until(next_cure.unwrap_or(next_deed)), if next_cure.is_some() => {
                    let now = Instant::now();
                    for cure in cures.extract_if(.., |cure| cure.at <= now) {
                        self.cure(&cure).await;
                    }
                }
                _ = traffic.tick() => self.send_packets(&mut random).await,
            }
        }
        for cure in &cures {
            self.cure(cure).await;
        }
    }

    /// Time until the next thing happens, as if things happened by themselves.
    fn pause(&self, random: &mut Random) -> Duration {
        let rate = self.rate.max(RATE_MIN);
        let seconds = -(1.0 - random.fraction()).ln() / rate;
        Duration::from_secs_f64(seconds.clamp(0.0, 5.0 / rate))
    }

    async fn carry_out(&self, plan: &Plan, deed: Deed) -> Result<Option<Cure>, ControlError> {
        match deed {
            Deed::Nothing => {}
            Deed::Join {
                person,
                daemon,
                from,
            } => {
                let client = spec(&plan.people[person], from);
                self.daemons[daemon].connect(client).await?;
            }
            Deed::Leave {
                person,
                daemon,
                how,
            } => {
                let daemon = &self.daemons[daemon];
                if let Some(cid) = find(daemon, &plan.people[person]).await? {
                    daemon.leave(cid, how).await?;
                }
            }
            Deed::Reconnect { person, daemon } => {
                let daemon = &self.daemons[daemon];
                if let Some(cid) = find(daemon, &plan.people[person]).await? {
                    daemon.reconnect(cid).await?;
                }
            }
            Deed::Restart { daemon, signal } => self.daemons[daemon].restart(signal).await?,
            Deed::Freeze { daemon, lasting } => {
                self.daemons[daemon].freeze().await?;
                return Ok(Some(Cure {
                    at: Instant::now() + lasting,
                    daemon,
                    frozen: true,
                }));
            }
            Deed::Outage { daemon, lasting } => {
                self.daemons[daemon].kill().await;
                return Ok(Some(Cure {
                    at: Instant::now() + lasting,
                    daemon,
                    frozen: false,
                }));
            }
        }
        Ok(None)
    }

    async fn cure(&self, cure: &Cure) {
        let daemon = &self.daemons[cure.daemon];
        // Somebody else may have stopped it, or taken its address: then it stays as it is.
        if cure.frozen {
            let _ = daemon.thaw().await;
        } else {
            let _ = daemon.start_again().await;
        }
    }

    async fn send_packets(&self, random: &mut Random) {
        let share = TRAFFIC_CLIENTS_MAX.div_ceil(self.daemons.len().max(1));
        for daemon in &self.daemons {
            let Ok(clients) = daemon.clients().await else {
                continue;
            };
            let first = random.index(clients.len());
            for client in clients
                .iter()
                .cycle()
                .skip(first)
                .take(share.min(clients.len()))
            {
                if !client.established || client.leaving || random.below(2) == 0 {
                    continue;
                }
                // Mostly a trickle, now and then a download.
                let burst = if random.below(12) == 0 { 200 } else { 1 };
                let received = random.below(8_000) * burst / 4;
                let sent = random.below(24_000) * burst;
                // It may have gone meanwhile.
                let _ = daemon.add_traffic(client.cid, received, sent).await;
            }
        }
    }
}

/// The CID of a person on a daemon, if it is there.
async fn find(daemon: &Daemon, person: &Person) -> Result<Option<u64>, ControlError> {
    let clients = daemon.clients().await?;
    let found = clients
        .iter()
        .find(|client| client.common_name == person.common_name && !client.leaving);
    Ok(found.map(|client| client.cid))
}

fn spec(person: &Person, from: (IpAddr, u16)) -> ClientSpec {
    let mut client = ClientSpec::new(person.common_name.clone())
        .real_address(SocketAddr::new(from.0, from.1))
        .software(person.version, person.platform);
    client.username = person.username.clone().map(Vec::from);
    client.routes = person
        .network
        .map(|network| (network, 24))
        .into_iter()
        .collect();
    client.exit_notify = true;
    client
}
