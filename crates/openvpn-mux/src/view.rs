//! What one tool sees of a daemon's lines: its own switches, its own filter.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use openvpn_management::{Env, Text};
use openvpn_session::Interest;

use crate::request::Topic;

/// Most clients whose last traffic report is remembered; beyond, all are forgotten and reported again at once.
const REPORTED_MAX: usize = 50_000;
/// What a report may come early and still be due: the daemon counts whole seconds.
const REPORT_SLACK: Duration = Duration::from_millis(500);

/// Names that `env-filter 2` lets through, by their beginnings, as in OpenVPN's `manage.c`.
const SHORT_LIST: [&[u8]; 15] = [
    b"username=",
    b"password=",
    b"X509_0_CN=",
    b"tls_serial_",
    b"untrusted_ip=",
    b"ifconfig_local=",
    b"ifconfig_netmask=",
    b"daemon_start_time=",
    b"daemon_pid=",
    b"dev=",
    b"ifconfig_pool_remote_ip=",
    b"ifconfig_pool_netmask=",
    b"time_duration=",
    b"bytes_sent=",
    b"bytes_received=",
];

const ENV: &[u8] = b">CLIENT:ENV,";

/// One tool's switches, and what they make of each line.
#[derive(Debug)]
pub(crate) struct View {
    state: bool,
    log: bool,
    echo: bool,
    /// `None` is off.
    bytecount: Option<Duration>,
    env_filter: i64,
    /// Passwords of VPN users and tokens are shown.
    shows_secrets: bool,
    block: Block,
    /// When the traffic of whom was told last, by the line's beginning up to the first comma.
    reported: HashMap<Text, Instant>,
}

/// The `>CLIENT:` block that is under way.
#[derive(Debug)]
enum Block {
    /// None: ENV lines are the rest of one whose beginning the tool did not see.
    None,
    /// Each line is shown as it comes.
    Streamed,
    /// It is hidden: its header is a secret.
    Hidden,
    /// Its peer info is to be put first.
    Sorted {
        peer_info: Vec<Text>,
        others: Vec<Text>,
    },
}

impl View {
    pub(crate) fn new(shows_secrets: bool) -> Self {
        Self {
            state: false,
            log: false,
            echo: false,
            bytecount: None,
            env_filter: 0,
            shows_secrets,
            block: Block::None,
            reported: HashMap::new(),
        }
    }

    pub(crate) fn switch(&mut self, topic: Topic, on: bool) {
        *match topic {
            Topic::State => &mut self.state,
            Topic::Log => &mut self.log,
            Topic::Echo => &mut self.echo,
        } = on;
    }

    pub(crate) fn set_bytecount(&mut self, seconds: i64) {
        let seconds = u64::try_from(seconds).ok().filter(|seconds| *seconds > 0);
        self.bytecount = seconds.map(Duration::from_secs);
        self.reported = HashMap::new();
    }

    pub(crate) fn set_env_filter(&mut self, level: i64) {
        self.env_filter = level;
    }

    /// Which lines it has a use for.
    pub(crate) fn interest(&self) -> Interest {
        Interest {
            state: self.state,
            log: self.log,
            echo: self.echo,
            bytecount: self.bytecount.is_some(),
        }
    }

    /// The same, once that topic is switched.
    pub(crate) fn interest_with(&self, topic: Topic, on: bool) -> Interest {
        let mut interest = self.interest();
        *match topic {
            Topic::State => &mut interest.state,
            Topic::Log => &mut interest.log,
            Topic::Echo => &mut interest.echo,
        } = on;
        interest
    }

    /// Appends what the tool sees of a line.
    pub(crate) fn show(&mut self, line: &Text, now: Instant, out: &mut BytesMut) {
        let bytes = line.as_bytes();
        let is = |kind: &[u8]| bytes.starts_with(kind);
        if is(ENV) {
            self.show_env(line, out);
            return;
        }
        let is_shown = if is(b">STATE:") {
            self.state
        } else if is(b">LOG:") {
            self.log
        } else if is(b">ECHO:") {
            self.echo
        } else if is(b">BYTECOUNT:") || is(b">BYTECOUNT_CLI:") {
            self.is_report_due(line, now)
        } else if is(b">CLIENT:CR_RESPONSE,") {
            self.begin_block(true, !self.shows_secrets)
        } else if is(b">CLIENT:CONNECT,") || is(b">CLIENT:REAUTH,") {
            self.begin_block(true, false)
        } else if is(b">CLIENT:ESTABLISHED,") || is(b">CLIENT:DISCONNECT,") {
            self.begin_block(false, false)
        } else {
            self.shows_secrets || !is(b">PASSWORD:Auth-Token:")
        };
        if is_shown {
            put_line(bytes, out);
        }
    }

    /// Whether the header is shown.
    fn begin_block(&mut self, has_peer_info: bool, is_secret: bool) -> bool {
        self.block = if is_secret {
            Block::Hidden
        } else if has_peer_info && self.env_filter > 0 {
            // A filtered view begins with what the client says of itself.
            Block::Sorted {
                peer_info: Vec::new(),
                others: Vec::new(),
            }
        } else {
            Block::Streamed
        };
        !is_secret
    }

    fn show_env(&mut self, line: &Text, out: &mut BytesMut) {
        let entry = &line.as_bytes()[ENV.len()..];
        if entry == b"END" {
            match std::mem::replace(&mut self.block, Block::None) {
                Block::None | Block::Hidden => return,
                Block::Streamed => {}
                Block::Sorted { peer_info, others } => {
                    // OpenVPN's environment has the newest first; peer info goes in the order of the client.
                    let lines = peer_info.iter().rev().chain(&others);
                    lines.for_each(|line| put_line(line.as_bytes(), out));
                }
            }
            put_line(line.as_bytes(), out);
            return;
        }
        let name_end = entry
            .iter()
            .position(|byte| *byte == b'=')
            .unwrap_or(entry.len());
        if !self.shows_secrets && Env::is_secret(&entry[..name_end]) {
            return;
        }
        let passes = passes(entry, self.env_filter);
        match &mut self.block {
            Block::None | Block::Hidden => {}
            Block::Streamed => {
                if passes {
                    put_line(line.as_bytes(), out);
                }
            }
            Block::Sorted { peer_info, others } => {
                if entry.starts_with(b"IV_") || entry.starts_with(b"UV_") {
                    peer_info.push(line.clone());
                } else if passes {
                    others.push(line.clone());
                }
            }
        }
    }

    fn is_report_due(&mut self, line: &Text, now: Instant) -> bool {
        let Some(interval) = self.bytecount else {
            return false;
        };
        let bytes = line.as_bytes();
        // A client daemon reports its one tunnel, a server each of its clients.
        let whose = if bytes.starts_with(b">BYTECOUNT:") {
            Text::default()
        } else {
            let end = bytes.iter().position(|byte| *byte == b',');
            Text::copy_from(&bytes[..end.unwrap_or(bytes.len())])
        };
        let last = self.reported.get(&whose);
        if last.is_some_and(|last| now.duration_since(*last) + REPORT_SLACK < interval) {
            return false;
        }
        if self.reported.len() >= REPORTED_MAX {
            self.reported.clear();
        }
        self.reported.insert(whose, now);
        true
    }
}

/// OpenVPN's `env_filter_match`.
fn passes(entry: &[u8], level: i64) -> bool {
    level == 0
        || (level <= 1 && entry.starts_with(b"X509_"))
        || (level <= 2 && SHORT_LIST.iter().any(|name| entry.starts_with(name)))
}

/// Appends a line with the line end of the management interface.
pub(crate) fn put_line(line: &[u8], out: &mut BytesMut) {
    out.extend_from_slice(line);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Instant {
        Instant::now()
    }

    fn seen(view: &mut View, lines: &[&str]) -> Vec<String> {
        let mut out = BytesMut::new();
        let now = start();
        for line in lines {
            view.show(&Text::from(*line), now, &mut out);
        }
        let text = String::from_utf8(out.to_vec()).unwrap();
        text.split_terminator("\r\n").map(str::to_owned).collect()
    }

    const CONNECT: [&str; 10] = [
        ">CLIENT:CONNECT,4,1",
        ">CLIENT:ENV,n_clients=0",
        ">CLIENT:ENV,password=canary",
        ">CLIENT:ENV,untrusted_port=1",
        ">CLIENT:ENV,untrusted_ip=127.0.0.1",
        ">CLIENT:ENV,IV_PLAT=linux",
        ">CLIENT:ENV,IV_VER=2.6.14",
        ">CLIENT:ENV,X509_0_CN=alice",
        ">CLIENT:ENV,X509_0_OU=Ops",
        ">CLIENT:ENV,END",
    ];

    fn filtered(level: i64, shows_secrets: bool) -> Vec<String> {
        let mut view = View::new(shows_secrets);
        view.set_env_filter(level);
        let strip = |line: String| line.strip_prefix(">CLIENT:ENV,").map(str::to_owned);
        seen(&mut view, &CONNECT)
            .into_iter()
            .skip(1)
            .filter_map(strip)
            .collect()
    }

    /// A tool that set a filter relies on it: these are the orders OpenVPN 2.6.14 showed at each level.
    #[test]
    fn each_level_shows_what_openvpn_shows() {
        assert_eq!(filtered(0, true).len(), 9);
        assert_eq!(
            filtered(1, true),
            [
                "IV_VER=2.6.14",
                "IV_PLAT=linux",
                "password=canary",
                "untrusted_ip=127.0.0.1",
                "X509_0_CN=alice",
                "X509_0_OU=Ops",
                "END"
            ]
        );
        assert_eq!(
            filtered(2, true),
            [
                "IV_VER=2.6.14",
                "IV_PLAT=linux",
                "password=canary",
                "untrusted_ip=127.0.0.1",
                "X509_0_CN=alice",
                "END"
            ]
        );
        assert_eq!(filtered(3, true), ["IV_VER=2.6.14", "IV_PLAT=linux", "END"]);
        // One that has established does not introduce itself again.
        let mut view = View::new(true);
        view.set_env_filter(3);
        let lines = [
            ">CLIENT:ESTABLISHED,4",
            ">CLIENT:ENV,IV_VER=2",
            ">CLIENT:ENV,END",
        ];
        assert_eq!(
            seen(&mut view, &lines),
            [">CLIENT:ESTABLISHED,4", ">CLIENT:ENV,END"]
        );
    }

    /// Whoever may only watch must not read what VPN users type.
    #[test]
    fn secrets_are_for_those_who_decide() {
        assert!(filtered(0, true).contains(&"password=canary".to_owned()));
        for level in 0..4 {
            let shown = filtered(level, false).join("\n");
            assert!(
                !shown.contains("canary") && shown.ends_with("END"),
                "{shown}"
            );
        }
        let mut view = View::new(false);
        let lines = [
            ">PASSWORD:Auth-Token:canary",
            ">CLIENT:CR_RESPONSE,1,1,canary",
            ">CLIENT:ENV,a=canary",
            ">CLIENT:ENV,END",
            ">PASSWORD:Need 'Auth' password",
        ];
        assert_eq!(seen(&mut view, &lines), [">PASSWORD:Need 'Auth' password"]);
    }

    /// Nobody asked for these lines: a tool that reads answers line by line would trip over them.
    #[test]
    fn only_what_was_switched_on_is_shown() {
        let lines = [
            ">STATE:1",
            ">LOG:1",
            ">ECHO:1",
            ">BYTECOUNT_CLI:1,2,3",
            ">NOTIFY:info,remote-exit,EXIT",
        ];
        let mut view = View::new(true);
        assert_eq!(seen(&mut view, &lines), [">NOTIFY:info,remote-exit,EXIT"]);
        view.switch(Topic::Log, true);
        view.set_bytecount(1);
        assert_eq!(seen(&mut view, &lines).len(), 3);
        view.switch(Topic::Log, false);
        view.set_bytecount(-1);
        assert_eq!(seen(&mut view, &lines).len(), 1);
    }

    /// The rest of a block whose beginning a tool did not see means nothing to it.
    #[test]
    fn half_a_block_is_not_shown() {
        let mut view = View::new(true);
        assert_eq!(seen(&mut view, &CONNECT[5..]), Vec::<String>::new());
        assert_eq!(seen(&mut view, &CONNECT).len(), CONNECT.len());
    }

    /// Each tool is told of traffic as often as it asked, whatever the session asks for.
    #[test]
    fn traffic_is_told_at_the_tools_interval() {
        let mut view = View::new(true);
        view.set_bytecount(10);
        let begin = start();
        let mut told = |seconds: u64, line: &str| {
            let mut out = BytesMut::new();
            view.show(
                &Text::from(line),
                begin + Duration::from_secs(seconds),
                &mut out,
            );
            !out.is_empty()
        };
        assert!(told(0, ">BYTECOUNT_CLI:1,2,3"));
        assert!(!told(5, ">BYTECOUNT_CLI:1,3,4"));
        assert!(told(5, ">BYTECOUNT_CLI:2,3,4"));
        assert!(told(10, ">BYTECOUNT_CLI:1,4,5"));
    }
}
