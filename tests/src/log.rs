//! The log of a daemon, read line by line.

use std::time::{Duration, SystemTime};

/// A line of the daemon's log (`--machine-readable-output`).
#[derive(Clone, Debug)]
pub struct LogLine {
    /// The daemon's clock, to the microsecond.
    pub time: SystemTime,
    /// The text, as bytes: names in it need not be UTF-8.
    pub text: Vec<u8>,
}

/// `SECONDS.MICROSECONDS FLAGS TEXT`; lines of another form are text without a time.
pub(crate) fn log_lines(log: &[u8]) -> Vec<LogLine> {
    let complete = log
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |end| end + 1);
    log[..complete]
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            let mut parts = line.splitn(3, |byte| *byte == b' ');
            let stamp = parts.next().and_then(parse_stamp);
            match (stamp, parts.next(), parts.next()) {
                (Some(time), Some(_flags), Some(text)) => LogLine {
                    time,
                    text: text.to_vec(),
                },
                _ => LogLine {
                    time: SystemTime::UNIX_EPOCH,
                    text: line.to_vec(),
                },
            }
        })
        .collect()
}

fn parse_stamp(stamp: &[u8]) -> Option<SystemTime> {
    let (seconds, micros) = std::str::from_utf8(stamp).ok()?.split_once('.')?;
    let since =
        Duration::from_secs(seconds.parse().ok()?) + Duration::from_micros(micros.parse().ok()?);
    Some(SystemTime::UNIX_EPOCH + since)
}

pub(crate) fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}
