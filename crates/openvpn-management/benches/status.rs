//! How fast `status 3` of many clients is parsed, beside a parser that splits and allocates.
#![allow(clippy::print_stdout, reason = "a bench prints its result")]
#![expect(
    clippy::disallowed_methods,
    reason = "a bench has to look at the clock"
)]
#![expect(clippy::cast_precision_loss, reason = "figures for people")]

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use openvpn_management::{
    Command, Connection, Limits, Output, Reply, StatusFormat, StatusSnapshot,
};

const CLIENTS: usize = 100_000;
const ROUNDS: usize = 25;
/// What a session reads at a time.
const READ_BYTES: usize = 64 * 1024;

fn main() {
    let text = status_3();
    let limits = Limits {
        clients_max: CLIENTS,
        routes_max: CLIENTS,
        ..Limits::default()
    };
    let rows = 2 * CLIENTS;

    let snapshot = StatusSnapshot::parse(&text, &limits);
    assert_eq!(
        (snapshot.clients().len(), snapshot.routes().len()),
        (CLIENTS, CLIENTS)
    );
    assert_eq!(snapshot.quarantined().count, 0);
    let naive = naive::parse(&text);
    assert_eq!(
        (naive.clients.len(), naive.routes.len()),
        (CLIENTS, CLIENTS)
    );

    // As in a session, the last result lives until the next is complete.
    let (mut last_snapshot, mut last_reply, mut last_naive) = (snapshot, None, naive);
    let mut session = Session::new(limits);
    let [alone, polled, naive] = best_of(
        ROUNDS,
        [
            &mut || last_snapshot = black_box(StatusSnapshot::parse(black_box(&text), &limits)),
            &mut || last_reply = Some(black_box(session.poll(black_box(&text)))),
            &mut || last_naive = black_box(naive::parse(black_box(&text))),
        ],
    );

    let megabytes = text.len() as f64 / 1e6;
    println!("status 3: {CLIENTS} clients, {rows} rows, {megabytes:.1} MB; best of {ROUNDS}");
    println!(
        "{:<36}{:>8}{:>8}{:>12}{:>8}",
        "", "ms", "MB/s", "rows/s", "ns/row"
    );
    for (name, time) in [
        ("polled by a Connection, 64 KiB reads", polled),
        ("StatusSnapshot::parse", alone),
        ("naive: a String per field", naive),
    ] {
        let seconds = time.as_secs_f64();
        println!(
            "{name:<36}{:>8.2}{:>8.0}{:>12.0}{:>8.1}",
            seconds * 1e3,
            megabytes / seconds,
            rows as f64 / seconds,
            seconds * 1e9 / rows as f64,
        );
    }
    println!(
        "heap of the snapshot: {:.0} bytes per client and its route",
        last_snapshot.heap_bytes() as f64 / CLIENTS as f64
    );
    println!(
        "status-3 parse: {:.0} MB/s, {:.2}M rows/s; naive {:.0} MB/s; ratio {:.1}x",
        megabytes / polled.as_secs_f64(),
        rows as f64 / polled.as_secs_f64() / 1e6,
        megabytes / naive.as_secs_f64(),
        naive.as_secs_f64() / polled.as_secs_f64(),
    );
}

/// The shortest time of each, by the wall clock: a thread's CPU time is only told to the tick of 4 ms. One after the other, since each would leave the allocator in a state of its own.
fn best_of<const N: usize>(rounds: usize, bodies: [&mut dyn FnMut(); N]) -> [Duration; N] {
    bodies.map(|body| {
        let mut times = (0..rounds).map(|_| {
            let start = Instant::now();
            body();
            start.elapsed()
        });
        let first = times.next().unwrap_or_default();
        times.fold(first, Duration::min)
    })
}

/// What OpenVPN 2.6 prints for that many clients with an IPv4 address, and so a route, each.
fn status_3() -> Bytes {
    let mut text = String::from(
        "TITLE\tOpenVPN 2.6.14 x86_64-pc-linux-gnu [SSL (OpenSSL)] [LZO] [LZ4] [EPOLL] [PKCS11] [MH/PKTINFO] [AEAD]\r\n\
         TIME\t2026-11-20 14:58:26\t1795186706\r\n\
         HEADER\tCLIENT_LIST\tCommon Name\tReal Address\tVirtual Address\tVirtual IPv6 Address\tBytes Received\t\
         Bytes Sent\tConnected Since\tConnected Since (time_t)\tUsername\tClient ID\tPeer ID\tData Channel Cipher\r\n",
    );
    let address = |client: usize| (client >> 16 & 255, client >> 8 & 255, client & 255);
    for client in 0..CLIENTS {
        let (a, b, c) = address(client);
        _ = write!(
            text,
            "CLIENT_LIST\tclient-{client}.example.org\t198.{a}.{b}.{c}:{}\t10.{a}.{b}.{c}\t\t{}\t{}\t\
             2026-11-20 14:58:24\t1795186704\tUNDEF\t{client}\t{client}\tAES-256-GCM\r\n",
            1_024 + client % 60_000,
            client * 7_919 % 1_000_000_007,
            client * 104_729 % 10_000_000_019,
        );
    }
    text.push_str("HEADER\tROUTING_TABLE\tVirtual Address\tCommon Name\tReal Address\tLast Ref\tLast Ref (time_t)\r\n");
    for client in 0..CLIENTS {
        let (a, b, c) = address(client);
        let port = 1_024 + client % 60_000;
        _ = write!(
            text,
            "ROUTING_TABLE\t10.{a}.{b}.{c}\tclient-{client}.example.org\t198.{a}.{b}.{c}:{port}\t\
             2026-11-20 14:58:25\t1795186705\r\n",
        );
    }
    text.push_str(
        "GLOBAL_STATS\tMax bcast/mcast queue length\t1\r\nGLOBAL_STATS\tdco_enabled\t0\r\nEND\r\n",
    );
    text.into()
}

/// A session with a daemon of that many clients.
struct Session {
    connection: Connection,
    now: Instant,
}

impl Session {
    fn new(limits: Limits) -> Self {
        let mut connection = Connection::new(limits);
        let now = Instant::now();
        connection.handle_input(b">INFO:OpenVPN Management Interface Version 5\r\n", now);
        Self { connection, now }
    }

    /// The whole way: a command in flight, its answer in reads that cut lines anywhere.
    fn poll(&mut self, text: &[u8]) -> Reply {
        let status = Command::Status {
            format: StatusFormat::V3,
        };
        self.connection
            .send(&status, Duration::from_secs(60), self.now)
            .expect("the connection is greeted and idle");
        let mut reply = None;
        for read in text.chunks(READ_BYTES) {
            self.connection.handle_input(read, self.now);
            while let Some(output) = self.connection.poll_output() {
                if let Output::Reply { result, .. } = output {
                    reply = result.ok();
                }
            }
        }
        reply.expect("the answer has an end")
    }
}

/// The parser one writes first: a `String` for the line, a `String` for each field.
mod naive {
    #[derive(Default)]
    pub(super) struct Status {
        pub(super) title: String,
        pub(super) time: String,
        pub(super) clients: Vec<Client>,
        pub(super) routes: Vec<Route>,
        pub(super) global_stats: Vec<String>,
    }

    #[expect(dead_code, reason = "only filled")]
    pub(super) struct Client {
        common_name: String,
        real_address: String,
        virtual_address: String,
        virtual_ipv6_address: String,
        bytes_received: String,
        bytes_sent: String,
        connected_since: String,
        connected_since_time: String,
        username: String,
        cid: String,
        peer_id: String,
        cipher: String,
    }

    #[expect(dead_code, reason = "only filled")]
    pub(super) struct Route {
        virtual_address: String,
        common_name: String,
        real_address: String,
        last_ref: String,
        last_ref_time: String,
    }

    pub(super) fn parse(text: &[u8]) -> Status {
        let mut status = Status::default();
        for line in text.split(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(line)
                .trim_end_matches('\r')
                .to_string();
            let mut fields = line.split('\t').map(str::to_string);
            let kind = fields.next().unwrap_or_default();
            let mut field = || fields.next().unwrap_or_default();
            match kind.as_str() {
                "TITLE" => status.title = field(),
                "TIME" => status.time = field(),
                "CLIENT_LIST" => status.clients.push(Client {
                    common_name: field(),
                    real_address: field(),
                    virtual_address: field(),
                    virtual_ipv6_address: field(),
                    bytes_received: field(),
                    bytes_sent: field(),
                    connected_since: field(),
                    connected_since_time: field(),
                    username: field(),
                    cid: field(),
                    peer_id: field(),
                    cipher: field(),
                }),
                "ROUTING_TABLE" => status.routes.push(Route {
                    virtual_address: field(),
                    common_name: field(),
                    real_address: field(),
                    last_ref: field(),
                    last_ref_time: field(),
                }),
                "GLOBAL_STATS" => status.global_stats.push(line),
                _ => {}
            }
        }
        status
    }
}
