//! Start, hold and end of a run, and what is due in between.

use tokio::time::Duration;

use crate::Version;
use crate::clock::UnixTime;

use super::env::Occasion;
use super::questions::Login;
use super::{Ending, Engine, Phase, Timer, text};

/// Name of the tunnel device.
pub(super) const DEVICE: &str = "tun0";

impl Engine {
    /// A new process: pid, clock, histories and counters begin anew. `management` is what the
    /// log says of its management socket.
    pub(crate) fn start(&mut self, management: &str) {
        // Like the kernel, forwards; and never the pid of the run before.
        self.pid = match self.pid {
            0 => u32::try_from(1000 + self.random.below(30_000)).unwrap_or(1000),
            pid => pid + 1 + u32::try_from(self.random.below(500)).unwrap_or(0),
        };
        self.started = UnixTime(UnixTime::now().0.max(self.started.0 + 1));
        self.configured = self.started;
        self.hold = self.settings.hold;
        self.verb = 3;
        self.mute = 0;
        self.auth_retry = match self.settings.client {
            Some(_) => "interact",
            None => "none",
        };
        self.forget_passwords();
        self.questions.clear();
        self.confirmed = false;
        self.remote_number = 0;
        self.modified = None;
        self.env_filter = 0;
        self.states = crate::history::History::new(super::STATE_LINES_KEPT);
        self.logs = crate::history::History::new(self.settings.log_cache);
        self.echoes = crate::history::History::new(super::STATE_LINES_KEPT);
        self.bytes_received = 0;
        self.bytes_sent = 0;
        self.drop_clients();
        self.timers.clear();
        self.keepalives = false;
        if self.floods() {
            self.set_timer(Duration::ZERO, Timer::LogFlood);
        }
        let time = self.started.0;
        for text in self.settings.echo.clone() {
            self.echoes.push(format!("{time},{text}").as_bytes());
        }
        for (flags, line) in text::CONFIGURATION {
            self.log(flags, line);
        }
        self.log("", format!("MANAGEMENT: {management}"));
        self.enter("CONNECTING,,,,,,");
        if self.hold {
            self.log(
                "",
                "Need hold release from management interface, waiting...",
            );
            self.phase = Phase::Held { seconds: 0 };
        } else {
            self.begin_run();
        }
    }

    /// Opens the tunnel and begins to serve.
    pub(super) fn initialise(&mut self) {
        let (local, netmask) = (self.pool.local, self.pool.netmask);
        let prefix_length = netmask.to_bits().count_ones();
        let ipv6 = self.pool.local_ipv6();
        let tunnel = match ipv6 {
            Some(ipv6) => format!("{local},,,,,{ipv6}"),
            None => format!("{local},,,,"),
        };
        self.log("", "net_route_v4_best_gw query: dst 0.0.0.0");
        self.log("", "net_route_v4_best_gw result: via 0.0.0.0 dev ");
        self.log("I", format!("TUN/TAP device {DEVICE} opened"));
        self.enter(&format!("ASSIGN_IP,,{tunnel}"));
        self.log("I", format!("net_iface_mtu_set: mtu 1500 for {DEVICE}"));
        self.log("I", format!("net_iface_up: set {DEVICE} up"));
        self.log(
            "I",
            format!("net_addr_v4_add: {local}/{prefix_length} dev {DEVICE}"),
        );
        if let Some(ipv6) = ipv6 {
            self.log("I", format!("net_iface_mtu_set: mtu 1500 for {DEVICE}"));
            self.log("I", format!("net_iface_up: set {DEVICE} up"));
            self.log("I", format!("net_addr_v6_add: {ipv6}/64 dev {DEVICE}"));
        }
        let port = self.settings.port;
        let local = format!("[AF_INET][undef]:{port}");
        self.log("", "Socket Buffers: R=[212992->212992] S=[212992->212992]");
        if self.settings.port_taken {
            self.die_of(&format!(
                "TCP/UDP: Socket bind failed on local address {local}: Address already in use \
                 (errno=98)"
            ));
            return;
        }
        let protocol = match self.settings.tcp {
            true => {
                self.log(
                    "I",
                    format!("Listening for incoming TCP connection on {local}"),
                );
                "TCPv4_SERVER"
            }
            false => "UDPv4",
        };
        self.log("I", format!("{protocol} link local (bound): {local}"));
        self.log("I", format!("{protocol} link remote: [AF_UNSPEC]"));
        self.log("", "MULTI: multi_init called, r=256 v=256");
        let size = self.pool.size;
        let base = self.pool.address(0);
        self.log("", format!("IFCONFIG POOL IPv4: base={base} size={size}"));
        if let Some(base) = self.pool.ipv6_address(0) {
            self.log(
                "",
                format!("IFCONFIG POOL IPv6: base={base} size=65536 netbits=64"),
            );
            self.log(
                "I",
                format!(
                    "NOTE: IPv4 pool size is {size}, IPv6 pool size is 65536. IPv4 pool size \
                     limits the number of clients that can be served from the pool"
                ),
            );
        }
        if self.settings.tcp {
            self.log("", "MULTI: TCP INIT maxclients=1024 maxevents=1029");
        }
        self.log("I", "Initialization Sequence Completed");
        self.enter(&format!("CONNECTED,SUCCESS,{tunnel}"));
        self.phase = Phase::Serving;
    }

    /// Says that the daemon is held.
    pub(super) fn ask_release(&mut self, seconds: u64) {
        match self.settings.version {
            Version::V2_3 => self.say(">HOLD:Waiting for hold release"),
            _ => self.say(format_args!(">HOLD:Waiting for hold release:{seconds}")),
        }
    }

    pub(super) fn release_hold(&mut self) {
        if let Phase::Held { .. } = self.phase {
            self.begin_run();
        }
    }

    pub(super) fn forget_passwords(&mut self) {
        self.key_cached = false;
        self.entered = None;
        self.login = Login::First;
        self.retrying = false;
    }

    // ---- end of a run

    /// Ends the process because of an error, which is the last that the manager is told.
    pub(super) fn die_of(&mut self, cause: &str) {
        self.log("F", cause);
        self.say(format_args!(">FATAL:{cause}"));
        self.ending = Some(Ending::Process);
    }

    /// Lets go of every client and of the tunnel. Only announced clients are told of.
    pub(super) fn close_tunnel(&mut self) {
        let mut cids: Vec<u64> = self.clients.keys().copied().collect();
        cids.sort_unstable();
        for cid in &cids {
            let announced = self
                .clients
                .get(cid)
                .is_some_and(|client| client.announced.is_some());
            if announced {
                self.say_block(*cid, Occasion::Disconnect);
            }
            // They notice one by one.
            let timing = self.settings.timing;
            let spread = timing.return_after_restart.mul_f64(self.random.fraction());
            let after = timing.restart_pause + timing.return_after_restart + spread;
            self.schedule_return(*cid, after);
        }
        self.drop_clients();
        self.log("", "Closing TUN/TAP interface");
        let local = self.pool.local;
        self.log("I", format!("net_addr_v4_del: {local} dev {DEVICE}"));
        if let Some(local) = self.pool.local_ipv6() {
            self.log("I", format!("net_addr_v6_del: {local}/64 dev {DEVICE}"));
        }
    }

    /// Empties the client tables; CIDs begin again at 0.
    fn drop_clients(&mut self) {
        self.clients.clear();
        self.latest = None;
        self.pool.clear();
        self.next_cid = 0;
        self.timers.retain(|_, timer| match timer {
            Timer::DelayedExit(_) | Timer::HandWindow(_) | Timer::DataChannel(_) => false,
            Timer::Returns(_)
            | Timer::PauseOver
            | Timer::Keepalive
            | Timer::Bytecount
            | Timer::LogFlood
            | Timer::LateReply(_) => true,
        });
    }

    // ---- timers

    pub(super) fn handle_timer(&mut self, timer: Timer) {
        match timer {
            Timer::DelayedExit(cid) => self.delayed_exit(cid),
            Timer::HandWindow(cid) => self.hand_window_over(cid),
            Timer::DataChannel(cid) => self.data_channel_up(cid),
            Timer::Returns(spec) => self.returns(spec),
            Timer::PauseOver => {
                if self.phase == Phase::Pausing {
                    self.begin_run();
                }
            }
            Timer::Keepalive => {
                self.keepalives = false;
                self.send_keepalives();
            }
            Timer::Bytecount => self.count_all(),
            Timer::LogFlood => self.flood(),
            Timer::LateReply(reply) => self.say_late(&reply),
        }
    }
}
