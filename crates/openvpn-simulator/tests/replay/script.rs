//! Transcripts: how they are read, played, and compared.
//!
//! `C: ` a line to send, `C| ` the same without line end, `S: ` a line to expect, `S| ` bytes to
//! expect without line end, `-- ` connections, `! ` a step of the scenario, `# ` a remark.

use std::io::ErrorKind;
use std::time::Duration;

use openvpn_simulator::{Address, Daemon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// Longest wait for anything the daemon is to say.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A step of a transcript.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Connect,
    ServerCloses,
    ClientCloses,
    Send(Vec<u8>),
    Expect(String),
    ExpectUnended(String),
    Scenario(String),
}

pub(crate) fn parse(text: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    for line in text.lines() {
        let Some((mark, rest)) = line.split_at_checked(2) else {
            continue;
        };
        let rest = rest.strip_prefix(' ').unwrap_or(rest);
        let step = match mark {
            "C:" => {
                let mut bytes = unescape(rest);
                bytes.push(b'\n');
                Step::Send(bytes)
            }
            "C|" => Step::Send(unescape(rest)),
            "S:" => Step::Expect(rest.to_owned()),
            "S|" => Step::ExpectUnended(rest.to_owned()),
            "! " => Step::Scenario(rest.to_owned()),
            "--" if rest == "connected" => Step::Connect,
            "--" if rest.starts_with("server closed") => Step::ServerCloses,
            "--" if rest.starts_with("client closed") => Step::ClientCloses,
            "# " => continue,
            _ => panic!("unreadable line: {line}"),
        };
        match (steps.last_mut(), step) {
            // Lines with no answer in between went out in one write.
            (Some(Step::Send(before)), Step::Send(bytes)) => before.extend(bytes),
            (_, step) => steps.push(step),
        }
    }
    steps
}

/// `<CR>`, `<0xNN>` and `<N x 0xNN>` stand for bytes.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((before, escape, after)) = next_escape(rest) {
        bytes.extend_from_slice(before.as_bytes());
        bytes.extend(escape);
        rest = after;
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}

fn next_escape(text: &str) -> Option<(&str, Vec<u8>, &str)> {
    let start = text.find('<')?;
    let end = start + text[start..].find('>')?;
    let hex = |text: &str| u8::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    let inner = &text[start + 1..end];
    let bytes = match inner.split_once(" x ") {
        Some((count, byte)) => vec![hex(byte)?; count.parse().ok()?],
        None if inner == "CR" => vec![b'\r'],
        None => vec![hex(inner)?],
    };
    Some((&text[..start], bytes, &text[end + 1..]))
}

/// A manager's connection to a simulated daemon.
pub(crate) struct Manager {
    stream: Stream,
    received: Vec<u8>,
}

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Manager {
    pub(crate) async fn connect(daemon: &Daemon) -> Self {
        Self::connect_to(daemon.address()).await
    }

    pub(crate) async fn connect_to(address: &Address) -> Self {
        let stream = match address {
            Address::Unix(path) => Stream::Unix(UnixStream::connect(path).await.unwrap()),
            Address::Tcp(address) => Stream::Tcp(TcpStream::connect(address).await.unwrap()),
        };
        Self {
            stream,
            received: Vec::new(),
        }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        match &mut self.stream {
            Stream::Unix(stream) => stream.write_all(bytes).await.unwrap(),
            Stream::Tcp(stream) => stream.write_all(bytes).await.unwrap(),
        }
    }

    pub(crate) async fn half_close(&mut self) {
        match &mut self.stream {
            Stream::Unix(stream) => stream.shutdown().await.unwrap(),
            Stream::Tcp(stream) => stream.shutdown().await.unwrap(),
        }
    }

    /// The next line without CR and LF; `None` at the end of the connection.
    pub(crate) async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.received.windows(2).position(|pair| pair == b"\r\n") {
                let line: Vec<u8> = self.received.drain(..end + 2).collect();
                return Some(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if !self.receive().await {
                assert!(self.received.is_empty(), "cut line: {:?}", self.received);
                return None;
            }
        }
    }

    /// Waits for bytes without a line end; whatever else there is stays.
    pub(crate) async fn expect_bytes(&mut self, bytes: &[u8]) {
        while self.received.len() < bytes.len() {
            assert!(
                self.receive().await,
                "closed before {}",
                bytes.escape_ascii()
            );
        }
        let received: Vec<u8> = self.received.drain(..bytes.len()).collect();
        assert_eq!(
            received.escape_ascii().to_string(),
            bytes.escape_ascii().to_string()
        );
    }

    /// Whether anything more came before the end.
    async fn receive(&mut self) -> bool {
        let mut buffer = [0; 16 << 10];
        let read = match &mut self.stream {
            Stream::Unix(stream) => timeout(PATIENCE, stream.read(&mut buffer)).await,
            Stream::Tcp(stream) => timeout(PATIENCE, stream.read(&mut buffer)).await,
        };
        let count = match read.expect("the daemon says nothing") {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => 0,
            Err(error) => panic!("{error}"),
        };
        self.received.extend_from_slice(&buffer[..count]);
        count > 0
    }
}

/// How a time up to 2.4 begins.
const WEEKDAYS: [&str; 7] = ["Mon ", "Tue ", "Wed ", "Thu ", "Fri ", "Sat ", "Sun "];

/// What may differ between a real daemon's line and ours: times, numbers, certificates.
pub(crate) fn normalise(line: &str) -> String {
    for fixed in [
        ">CLIENT:ENV,tls_serial",
        ">CLIENT:ENV,tls_digest",
        ">CLIENT:ENV,tls_id",
        ">CLIENT:ENV,X509_1",
    ] {
        if line.starts_with(fixed) {
            return line.split('=').next().unwrap_or(line).to_owned();
        }
    }
    let mut normal = String::new();
    let mut digits = 0;
    for character in line.chars().chain(['\0']) {
        if character.is_ascii_digit() {
            digits += 1;
            normal.push(character);
            continue;
        }
        if digits >= 4 {
            normal.truncate(normal.len() - digits);
            normal.push('#');
        }
        digits = 0;
        normal.push(character);
    }
    normal.pop();
    for (pattern, digits) in [("#-dd-dd dd:dd:dd", 16), ("exit in d second", 16)] {
        if let Some(start) = find_pattern(&normal, pattern) {
            normal.replace_range(start..start + digits, "*");
        }
    }
    if let Some(start) = WEEKDAYS.iter().find_map(|day| normal.find(day)) {
        // `Fri Nov 20 16:26:04 #`; a copy of the year is left of it.
        let end = normal[start..]
            .find('#')
            .map_or(normal.len(), |year| start + year);
        normal.replace_range(start..end, "");
    }
    for device in ["tun-a", "tun-c", "tun-s", "tun-h", "capt1", "capt6"] {
        normal = normal.replace(device, "tun0");
    }
    if let Some(start) = [" tun", "=tun"].iter().find_map(|word| normal.find(word)) {
        // The kernel numbers them.
        let number = start + " tun".len();
        let rest = normal[number..].trim_start_matches(|next: char| next.is_ascii_digit());
        if rest.len() < normal.len() - number {
            normal = format!("{}0{rest}", &normal[..number]);
        }
    }
    normal
}

/// Where `pattern` is, with `d` for a digit.
fn find_pattern(text: &str, pattern: &str) -> Option<usize> {
    let matches = |window: &[u8]| {
        window
            .iter()
            .zip(pattern.bytes())
            .all(|(byte, wanted)| match wanted {
                b'd' if pattern.starts_with('#') => byte.is_ascii_digit(),
                b'd' => byte.is_ascii_digit() || *byte == b'd',
                wanted => *byte == wanted,
            })
    };
    text.as_bytes().windows(pattern.len()).position(matches)
}

/// Sorts table rows that follow each other: their order is that of a hash table.
pub(crate) fn sort_rows(lines: &mut [String]) {
    for rows in lines.split_mut(|line| !is_row(line)) {
        rows.sort_unstable();
    }
}

fn is_row(line: &str) -> bool {
    /// What else has as many commas as a row of `status 1`; `#` is a time.
    const OTHERS: [&str; 9] = [
        ">",
        "#",
        "HEADER",
        "TITLE",
        "TIME",
        "Common Name,",
        "Virtual Address,",
        "SUCCESS",
        "ERROR",
    ];
    line.starts_with("CLIENT_LIST")
        || line.starts_with("ROUTING_TABLE")
        || line.matches(',').count() >= 3 && !OTHERS.iter().any(|other| line.starts_with(other))
}

/// How a transcript is to be compared.
#[derive(Clone, Copy, Default)]
pub(crate) struct Comparison {
    /// Lines with any of these come and go as they like, on both sides.
    pub(crate) noise: &'static [&'static str],
    /// Whether lines between two writes may come in any order.
    pub(crate) any_order: bool,
}

impl Comparison {
    fn is_noise(&self, line: &str) -> bool {
        self.noise.iter().any(|noise| line.contains(noise))
    }

    fn compare(&self, expected: &[&str], received: &[String], transcript: &str) {
        let prepare = |lines: Vec<String>| {
            let mut lines: Vec<String> = lines.iter().map(|line| normalise(line)).collect();
            sort_rows(&mut lines);
            if self.any_order {
                lines.sort_unstable();
            }
            lines
        };
        let expected = prepare(expected.iter().map(|line| (*line).to_owned()).collect());
        let received = prepare(received.to_vec());
        for (expected, received) in expected.iter().zip(&received) {
            assert_eq!(received, expected, "{transcript}");
        }
    }
}

/// Plays `transcript` against `daemon`; `scenario` carries out its `! ` steps.
pub(crate) async fn play(
    daemon: &Daemon,
    name: &str,
    transcript: &str,
    comparison: Comparison,
    scenario: impl AsyncFn(&Daemon, &str),
) {
    let scenario = async |step: &str| scenario(daemon, step).await;
    play_at(daemon.address(), name, transcript, comparison, scenario).await;
}

/// The same against whatever listens there.
pub(crate) async fn play_at(
    address: &Address,
    name: &str,
    transcript: &str,
    comparison: Comparison,
    scenario: impl AsyncFn(&str),
) {
    let mut manager: Option<Manager> = None;
    let steps = parse(transcript);
    let mut steps = steps.iter().peekable();
    while let Some(step) = steps.next() {
        if let (Step::Connect, _) = (step, &manager) {
            manager = Some(Manager::connect_to(address).await);
            continue;
        }
        if step == &Step::ClientCloses {
            manager = None;
            continue;
        }
        let connected = manager.as_mut().expect("a connected manager");
        match step {
            Step::Connect | Step::ClientCloses => {}
            Step::Send(bytes) => connected.send(bytes).await,
            Step::Scenario(step) if step == "half-close" => connected.half_close().await,
            Step::Scenario(step) => scenario(step).await,
            Step::ExpectUnended(text) => connected.expect_bytes(text.as_bytes()).await,
            Step::ServerCloses => {
                while let Some(line) = connected.line().await {
                    assert!(
                        comparison.is_noise(&line),
                        "{name}: unexpected at the end: {line}"
                    );
                }
                manager = None;
            }
            Step::Expect(first) => {
                let mut expected = vec![first.as_str()];
                while let Some(Step::Expect(line)) = steps.peek() {
                    expected.push(line);
                    steps.next();
                }
                expected.retain(|line| !comparison.is_noise(line));
                let mut received = Vec::new();
                while received.len() < expected.len() {
                    let Some(line) = connected.line().await else {
                        panic!("{name}: closed before {:?}", expected[received.len()]);
                    };
                    if !comparison.is_noise(&line) {
                        received.push(line);
                    }
                }
                comparison.compare(&expected, &received, name);
            }
        }
    }
}
