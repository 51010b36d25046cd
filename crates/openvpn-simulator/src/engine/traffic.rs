//! Packets of clients, as far as byte counts show them, and bursts of clients.

use tokio::time::{Duration, Instant};

use crate::output::Stamp;
use crate::{ControlError, Version};

use super::clients::Stage;
use super::{Engine, Flow, Phase, Timer};

impl Engine {
    pub(crate) fn add_traffic(
        &mut self,
        cid: u64,
        received: u64,
        sent: u64,
    ) -> Result<(), ControlError> {
        if !self.clients.contains_key(&cid) {
            return Err(self.unknown_client(cid));
        }
        self.count_traffic(cid, received, sent);
        self.report_traffic(cid);
        Ok(())
    }

    pub(crate) fn add_link_traffic(&mut self, received: u64, sent: u64) {
        self.bytes_received = self.bytes_received.saturating_add(received);
        self.bytes_sent = self.bytes_sent.saturating_add(sent);
    }

    pub(super) fn count_traffic(&mut self, cid: u64, received: u64, sent: u64) {
        if let Some(client) = self.clients.get_mut(&cid) {
            client.bytes_received = client.bytes_received.saturating_add(received);
            client.bytes_sent = client.bytes_sent.saturating_add(sent);
            self.bytes_received = self.bytes_received.saturating_add(received);
            self.bytes_sent = self.bytes_sent.saturating_add(sent);
        }
    }

    /// Up to 2.6 a client is reported when one of its packets passes and the interval is over.
    fn report_traffic(&mut self, cid: u64) {
        if self.settings.version >= Version::V2_7 {
            return;
        }
        let interval = self.session.as_ref().map_or(0, |session| session.bytecount);
        if interval == 0 {
            return;
        }
        let now = Instant::now();
        let Some(client) = self.clients.get_mut(&cid) else {
            return;
        };
        let due = client
            .reported
            .is_none_or(|last| now.duration_since(last) >= Duration::from_secs(interval));
        if client.stage == Stage::Established && due {
            client.reported = Some(now);
            let (received, sent) = (client.bytes_received, client.bytes_sent);
            self.say(format_args!(">BYTECOUNT_CLI:{cid},{received},{sent}"));
        }
    }

    /// From 2.7 on a timer reports all clients, whether they moved or not.
    pub(super) fn begin_bytecounts(&mut self) {
        self.timers
            .retain(|_, timer| !matches!(timer, Timer::Bytecount));
        let interval = self.session.as_ref().map_or(0, |session| session.bytecount);
        // A client counts its own, which is never quite silent: for it the timer will do.
        let by_timer = self.settings.version >= Version::V2_7 || self.settings.client.is_some();
        if interval > 0 && by_timer {
            self.set_timer(Duration::from_secs(interval), Timer::Bytecount);
        }
    }

    pub(super) fn count_all(&mut self) {
        let counting = self
            .session
            .as_ref()
            .is_some_and(|session| session.bytecount > 0);
        if !counting {
            return;
        }
        if self.settings.client.is_some() {
            if self.phase == Phase::Serving {
                let (received, sent) = (self.bytes_received, self.bytes_sent);
                self.say(format_args!(">BYTECOUNT:{received},{sent}"));
            }
            self.begin_bytecounts();
            return;
        }
        let counts: Vec<(u64, u64, u64)> = self
            .clients
            .iter()
            .filter(|(_, client)| client.stage == Stage::Established)
            .map(|(cid, client)| (*cid, client.bytes_received, client.bytes_sent))
            .collect();
        for (cid, received, sent) in counts {
            self.say(format_args!(">BYTECOUNT_CLI:{cid},{received},{sent}"));
        }
        self.begin_bytecounts();
    }

    /// Keepalive packets only show in byte counts, so they are sent only while somebody counts.
    pub(super) fn begin_keepalives(&mut self) {
        let counting = self
            .session
            .as_ref()
            .is_some_and(|session| session.bytecount > 0);
        if counting && !self.keepalives && !self.clients.is_empty() {
            self.keepalives = true;
            let interval = self.settings.timing.keepalive;
            self.set_timer(interval, Timer::Keepalive);
        }
    }

    pub(super) fn send_keepalives(&mut self) {
        /// Link bytes of one keepalive packet.
        const PING_BYTES: u64 = 40;
        let cids: Vec<u64> = self.clients.keys().copied().collect();
        for cid in cids {
            let established = self
                .clients
                .get(&cid)
                .is_some_and(|client| client.stage == Stage::Established && !client.leaving);
            if established {
                self.count_traffic(cid, PING_BYTES, PING_BYTES);
                self.report_traffic(cid);
            }
        }
        self.begin_keepalives();
    }

    // ---- bursts

    /// Begins a burst; each of its notifications will be stamped. Returns the first CID.
    pub(crate) fn begin_burst(&mut self, clients: usize) -> Result<u64, ControlError> {
        if !self.is_attached() {
            return Err(self.not_attached());
        }
        if self.phase != Phase::Serving {
            return Err(ControlError::NotServing {
                daemon: self.settings.name.clone(),
            });
        }
        let first = self.next_cid;
        let count = u64::try_from(clients).unwrap_or(u64::MAX);
        self.next_cid = self.next_cid.saturating_add(count);
        self.output.burst_stamps = Vec::with_capacity(clients.saturating_mul(2));
        self.flow = Some(Flow::Burst {
            next_cid: first,
            remaining: clients,
        });
        Ok(first)
    }

    pub(super) fn refill_burst(&mut self, helping_bytes: usize) {
        let Some(Flow::Burst {
            mut next_cid,
            mut remaining,
        }) = self.flow
        else {
            return;
        };
        let time = self.clock();
        while remaining > 0 && self.output.pending().len() < helping_bytes {
            let cid = next_cid;
            let [_, _, high, low] = u32::try_from(cid & 0xffff).unwrap_or(0).to_be_bytes();
            for (occasion, more) in [
                ("ESTABLISHED", format!("time_unix={}", time.0)),
                ("DISCONNECT", "time_duration=0".to_owned()),
            ] {
                self.say(format_args!(
                    ">CLIENT:{occasion},{cid}\r\n>CLIENT:ENV,{more}\r\n\
                     >CLIENT:ENV,common_name=burst-{cid}\r\n\
                     >CLIENT:ENV,trusted_ip=198.18.{high}.{low}\r\n\
                     >CLIENT:ENV,trusted_port=40000\r\n\
                     >CLIENT:ENV,ifconfig_pool_remote_ip=198.19.{high}.{low}\r\n\
                     >CLIENT:ENV,END"
                ));
                self.output.mark(Stamp::Burst);
            }
            next_cid += 1;
            remaining -= 1;
        }
        self.flow = (remaining > 0).then_some(Flow::Burst {
            next_cid,
            remaining,
        });
    }
}
