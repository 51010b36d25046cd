//! Transcripts: how they are read and played.
//!
//! `C: ` a line to send, `C| ` the same without line end, `S: ` a line to expect, `S| ` bytes to
//! expect without line end, `-- ` connections, `! ` a step of the scenario, `# ` a remark. Sessions
//! beside the first have a name: `C2: `, `S-client: `, `-- 2connected`.

use std::collections::HashMap;

use openvpn_simulator::Daemon;
use tokio::time::timeout;

use crate::compare::{Comparison, normalise};
use crate::manager::{Manager, PATIENCE};

/// A step of a transcript, and the session it belongs to; the first has no name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) session: String,
    pub(crate) deed: Deed,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    Connect,
    ServerCloses,
    ClientCloses,
    Send(Vec<u8>),
    Expect(String),
    ExpectUnended(String),
    Scenario(String),
}

pub(crate) fn parse(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for line in text.lines().filter(|line| line.len() >= 2) {
        if line.starts_with("# ") {
            continue;
        }
        let (session, deed) = parse_line(line).unwrap_or_else(|| panic!("unreadable line: {line}"));
        match (steps.last_mut(), deed) {
            // Lines with no answer in between went out in one write.
            (
                Some(Step {
                    session: before,
                    deed: Deed::Send(sent),
                }),
                Deed::Send(bytes),
            ) if before == session => sent.extend(bytes),
            (_, deed) => steps.push(Step {
                session: session.to_owned(),
                deed,
            }),
        }
    }
    steps
}

/// The session that a line speaks of, and what it says of it.
fn parse_line(line: &str) -> Option<(&str, Deed)> {
    if let Some(step) = line.strip_prefix("! ") {
        return Some(("", Deed::Scenario(step.to_owned())));
    }
    if let Some(rest) = line.strip_prefix("-- ") {
        let ends = [
            ("connected", Deed::Connect),
            ("server closed", Deed::ServerCloses),
            ("client closed", Deed::ClientCloses),
        ];
        let mut ends = ends.into_iter();
        return ends.find_map(|(words, deed)| {
            let (session, _) = rest.split_once(words)?;
            Some((session, deed))
        });
    }
    let end = line.find([':', '|'])?;
    let (who, session) = line[..end].split_at_checked(1)?;
    let rest = &line[end + 1..];
    let rest = rest.strip_prefix(' ').unwrap_or(rest);
    let deed = match (who, &line[end..=end]) {
        ("C", ":") => {
            let mut bytes = unescape(rest);
            bytes.push(b'\n');
            Deed::Send(bytes)
        }
        ("C", _) => Deed::Send(unescape(rest)),
        ("S", ":") => Deed::Expect(rest.to_owned()),
        ("S", _) => Deed::ExpectUnended(rest.to_owned()),
        _ => return None,
    };
    Some((session, deed))
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

/// Plays `transcript` against `daemon`; `scenario` carries out its `! ` steps.
pub(crate) async fn play(
    daemon: &Daemon,
    name: &str,
    transcript: &str,
    comparison: Comparison,
    scenario: impl AsyncFn(&Daemon, &str),
) {
    let connect = async |_: &str| Manager::connect(daemon).await;
    let scenario = async |step: &str| scenario(daemon, step).await;
    play_sessions(name, transcript, comparison, connect, scenario).await;
}

/// The same against whomever `connect` makes a session of that name with.
pub(crate) async fn play_sessions(
    name: &str,
    transcript: &str,
    comparison: Comparison,
    connect: impl AsyncFn(&str) -> Manager,
    scenario: impl AsyncFn(&str),
) {
    let mut managers: HashMap<&str, Manager> = HashMap::new();
    let steps = parse(transcript);
    let mut steps = steps.iter().peekable();
    while let Some(Step { session, deed }) = steps.next() {
        match deed {
            Deed::Connect => {
                managers.insert(session, connect(session).await);
                continue;
            }
            // The daemon may have done so before.
            Deed::ClientCloses => {
                managers.remove(session.as_str());
                continue;
            }
            Deed::Scenario(step) if step != "half-close" => {
                match step.strip_prefix("counted ") {
                    Some(cids) => counted(first(&mut managers), cids).await,
                    None if step == "uncounted" => {
                        uncounted(first(&mut managers), &scenario).await;
                    }
                    None => scenario(step).await,
                }
                continue;
            }
            _ => {}
        }
        let manager = managers.get_mut(session.as_str());
        let manager = manager.unwrap_or_else(|| panic!("{name}: no session '{session}'"));
        match deed {
            Deed::Connect | Deed::ClientCloses => {}
            Deed::Send(bytes) => manager.send(bytes).await,
            Deed::Scenario(_) => manager.half_close().await,
            Deed::ExpectUnended(text) => manager.expect_bytes(text.as_bytes()).await,
            Deed::ServerCloses => {
                if let Some(line) = next_line(manager, &comparison, name, "the end").await {
                    panic!("{name}: unexpected at the end: {line}");
                }
                managers.remove(session.as_str());
            }
            Deed::Expect(first) => {
                let mut expected = vec![first.as_str()];
                while let Some(Step {
                    session: next,
                    deed: Deed::Expect(line),
                }) = steps.peek()
                    && next == session
                {
                    expected.push(line);
                    steps.next();
                }
                expected.retain(|line| !comparison.is_noise(line));
                let mut received = Vec::new();
                while received.len() < expected.len() {
                    let wanted = expected[received.len()];
                    match next_line(manager, &comparison, name, wanted).await {
                        Some(line) => received.push(line),
                        None => panic!("{name}: closed before {wanted}; {received:#?}"),
                    }
                }
                comparison.compare(&expected, &received, name);
            }
        }
    }
}

fn first<'a>(managers: &'a mut HashMap<&str, Manager>) -> &'a mut Manager {
    managers.get_mut("").expect("a connected manager")
}

/// Reads counts, and nothing else, until each of these clients has been counted.
async fn counted(manager: &mut Manager, cids: &str) {
    let mut missing: Vec<&str> = cids.split(' ').collect();
    while !missing.is_empty() {
        let line = manager.line().await.expect("counts");
        let line = normalise(&line);
        let count = line.strip_prefix(">BYTECOUNT_CLI:");
        let cid = count.and_then(|count| count.strip_suffix(",#,#"));
        let cid = cid.unwrap_or_else(|| panic!("no count: {line}"));
        missing.retain(|missing| *missing != cid);
    }
}

/// Lets packets pass, which nobody counts.
async fn uncounted(manager: &mut Manager, scenario: &impl AsyncFn(&str)) {
    /// What a keepalive of each of three clients comes to, at least.
    const ENOUGH: u64 = 3 * 40;
    let mut before = None;
    loop {
        manager.send(b"load-stats\n").await;
        let line = manager.line().await.expect("statistics");
        let bytes = line.strip_prefix("SUCCESS: nclients=3,bytesin=");
        let bytes = bytes.and_then(|bytes| bytes.split(',').next()?.parse::<u64>().ok());
        let bytes = bytes.unwrap_or_else(|| panic!("no statistics: {line}"));
        if bytes >= *before.get_or_insert(bytes) + ENOUGH {
            return;
        }
        scenario("packets").await;
    }
}

/// The next line that is no noise, which may not keep it waiting for ever; `None` at the end of
/// the connection.
async fn next_line(
    manager: &mut Manager,
    comparison: &Comparison,
    name: &str,
    wanted: &str,
) -> Option<String> {
    let line = async {
        loop {
            match manager.line_at_last().await {
                Some(line) if comparison.is_noise(&line) => {}
                line => return line,
            }
        }
    };
    let line = timeout(PATIENCE, line).await;
    line.unwrap_or_else(|_| panic!("{name}: nothing, or noise alone, before {wanted}"))
}
