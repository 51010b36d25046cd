//! Reads the answer to one command, line by line.

use super::expectation::{Expectation, ResultKind, RowKind, SentinelKind, ValueKind};
use crate::limits::{Limits, SHORT_BYTES_MAX, SHORT_LINES_MAX};
use crate::notification::Notification;
use crate::record::{EchoRecord, History, LoadStats, LogRecord, RemoteEntry, StateRecord, Version};
use crate::reply::{RawReply, Rejected, Reply};
use crate::status::{StatusParser, StatusSize};
use crate::text::{Text, parse_u32, parse_u64};

/// What a line meant to the command that is owed its answer.
#[derive(Debug)]
pub(crate) enum Progress {
    /// Part of the answer; more is to come.
    Taken,
    /// No part of the answer.
    Foreign,
    /// The answer is complete.
    Complete(Result<Reply, Rejected>),
    /// The command was refused before its block was read, so the daemon runs the block's lines as commands.
    /// [`ReplyReader::skip_to_sentinel`] and a `load-stats` go past their answers.
    BlockRefused(Rejected),
}

/// A command's answer in the making.
#[derive(Debug, Clone)]
pub(crate) struct ReplyReader {
    expectation: Expectation,
    /// The answer already read, while those to the lines of a refused block are skipped.
    block_refused: Option<Rejected>,
    /// Whether the `SUCCESS:` before a block was read.
    confirmed: bool,
    /// Whether the block's first line was read: from then on `ERROR:` is a row like any other.
    in_block: bool,
    body: Body,
    /// Bytes of the lines kept so far.
    body_bytes: usize,
    limits: Limits,
}

/// The rows read so far.
#[derive(Debug, Clone)]
enum Body {
    Text(History<Text>),
    States(History<StateRecord>),
    Log(History<LogRecord>),
    Echo(History<EchoRecord>),
    RemoteEntries(History<RemoteEntry>),
    Status(Box<StatusParser>),
    Raw { text: Vec<u8>, truncated: bool },
}

impl ReplyReader {
    pub(crate) fn new(expectation: Expectation, limits: &Limits, status_size: StatusSize) -> Self {
        let body = match expectation {
            Expectation::Rows {
                kind: RowKind::State,
                ..
            } => Body::States(History::default()),
            Expectation::Rows {
                kind: RowKind::Log, ..
            } => Body::Log(History::default()),
            Expectation::Rows {
                kind: RowKind::Echo,
                ..
            } => Body::Echo(History::default()),
            Expectation::Rows {
                kind: RowKind::RemoteEntry,
                ..
            } => Body::RemoteEntries(History::default()),
            Expectation::Status => {
                Body::Status(Box::new(StatusParser::with_size(status_size, limits)))
            }
            Expectation::Raw => Body::Raw {
                text: Vec::new(),
                truncated: false,
            },
            _ => Body::Text(History::default()),
        };
        Self {
            expectation,
            block_refused: None,
            confirmed: false,
            in_block: false,
            body,
            body_bytes: 0,
            limits: *limits,
        }
    }

    /// Whether an answer to `load-stats` is part of what is owed.
    pub(crate) fn owes_load_stats(&self) -> bool {
        // A raw line is followed by one.
        matches!(
            self.expectation,
            Expectation::Value(ValueKind::LoadStats) | Expectation::Raw
        ) || self.block_refused.is_some()
    }

    /// Takes everything up to the answer to a `load-stats`, and then gives this refusal.
    pub(crate) fn skip_to_sentinel(&mut self, rejected: Rejected) {
        self.block_refused = Some(rejected);
    }

    /// Takes a line that does not start with `>`, without its line end.
    #[inline]
    pub(crate) fn handle_line(&mut self, line: &[u8]) -> Progress {
        // What comes by the thousand.
        if self.in_block
            && let Body::Status(parser) = &mut self.body
            && parser.handle_row(line)
        {
            return Progress::Taken;
        }
        self.handle_other_line(line)
    }

    fn handle_other_line(&mut self, line: &[u8]) -> Progress {
        if let Some(rejected) = &self.block_refused {
            return match line.strip_prefix(b"SUCCESS: ").and_then(LoadStats::parse) {
                Some(_) => Progress::Complete(Err(rejected.clone())),
                None => Progress::Taken,
            };
        }
        match self.expectation {
            Expectation::Nothing => Progress::Foreign,
            Expectation::Success => match Answer::parse(line) {
                Some(answer) => Progress::Complete(answer.into_result()),
                None => Progress::Foreign,
            },
            Expectation::SuccessOfBlock => match Answer::parse(line) {
                Some(Answer::Error(text)) if !is_answer_to_whole_block(text) => {
                    Progress::BlockRefused(Rejected { text: text.into() })
                }
                Some(answer) => Progress::Complete(answer.into_result()),
                None => Progress::Foreign,
            },
            Expectation::Value(kind) => match Answer::parse(line) {
                Some(Answer::Success(text)) => Progress::Complete(Ok(parse_value(kind, text))),
                Some(error) => Progress::Complete(error.into_result()),
                None => Progress::Foreign,
            },
            Expectation::Results(kind) => self.handle_result_line(kind, line),
            Expectation::Rows { confirmed, .. } => {
                if confirmed && !self.confirmed {
                    match Answer::parse(line) {
                        Some(Answer::Success(_)) => {
                            self.confirmed = true;
                            Progress::Taken
                        }
                        Some(error) => Progress::Complete(error.into_result()),
                        None => Progress::Foreign,
                    }
                } else {
                    self.handle_block_line(line)
                }
            }
            Expectation::Status => self.handle_block_line(line),
            Expectation::Count(lines) => self.handle_counted_line(line, lines),
            Expectation::Pkcs11Count | Expectation::Pkcs11Entry => match Answer::parse(line) {
                Some(error @ Answer::Error(_)) => Progress::Complete(error.into_result()),
                _ => Progress::Foreign,
            },
            Expectation::Sentinel(kind) => {
                if line
                    .strip_prefix(b"SUCCESS: pid=")
                    .and_then(parse_u32)
                    .is_some()
                {
                    Progress::Complete(self.finish_sentinel(kind))
                } else {
                    self.keep_row(line);
                    Progress::Taken
                }
            }
            Expectation::Raw => {
                let is_sentinel = line.strip_prefix(b"SUCCESS: ").and_then(LoadStats::parse);
                if is_sentinel.is_some() {
                    Progress::Complete(Ok(self.finish_block()))
                } else {
                    self.keep_row(line);
                    Progress::Taken
                }
            }
        }
    }

    /// Takes a line that starts with `>` if it is part of a raw answer: what PKCS#11 commands are answered with.
    pub(crate) fn take_notification(&mut self, notification: &Notification, line: &[u8]) -> bool {
        let is_answer = matches!(
            notification,
            Notification::Pkcs11IdCount(_) | Notification::Pkcs11IdEntry(_)
        );
        if is_answer && self.expectation == Expectation::Raw {
            self.keep_row(&[b">", line].concat());
            return true;
        }
        false
    }

    /// The answer that this notification is, if it is one.
    pub(crate) fn answer_in(&self, notification: &Notification) -> Option<Reply> {
        match (self.expectation, notification) {
            (Expectation::Pkcs11Count, Notification::Pkcs11IdCount(count)) => {
                Some(Reply::Pkcs11IdCount(*count))
            }
            (Expectation::Pkcs11Entry, Notification::Pkcs11IdEntry(entry)) => {
                Some(Reply::Pkcs11Id(entry.clone()))
            }
            _ => None,
        }
    }

    /// A line of an answer that ends with its result, not with `END`.
    fn handle_result_line(&mut self, kind: ResultKind, line: &[u8]) -> Progress {
        let answer = Answer::parse(line);
        match (kind, answer) {
            (ResultKind::ProtectFd, None) => match line.starts_with(b"PROTECTFD:") {
                true => Progress::Complete(Ok(Reply::Success(line.into()))),
                false => Progress::Foreign,
            },
            (_, None) => {
                self.keep_row(line);
                Progress::Taken
            }
            (ResultKind::PushUpdate, Some(answer)) if !is_push_update_result(answer) => {
                self.keep_row(answer.text());
                Progress::Taken
            }
            (_, Some(answer)) => {
                self.keep_row(answer.text());
                let text = self.take_text_joined();
                Progress::Complete(match answer {
                    Answer::Success(_) => Ok(Reply::Success(text)),
                    Answer::Error(_) => Err(Rejected { text }),
                })
            }
        }
    }

    /// A line of an answer that ends with `END`.
    fn handle_block_line(&mut self, line: &[u8]) -> Progress {
        if line == b"END" {
            return Progress::Complete(Ok(self.finish_block()));
        }
        if !self.in_block {
            // The first row of a block is a header, a time or text of the daemon's own: never `ERROR:`.
            if let Some(error @ Answer::Error(_)) = Answer::parse(line) {
                return Progress::Complete(error.into_result());
            }
        }
        if self.keep_row(line) {
            self.in_block = true;
            Progress::Taken
        } else {
            Progress::Foreign
        }
    }

    fn handle_counted_line(&mut self, line: &[u8], lines: u32) -> Progress {
        if let Some(error @ Answer::Error(_)) = Answer::parse(line) {
            return Progress::Complete(error.into_result());
        }
        // The daemon numbers its lines, so that the last tells itself.
        let number = line
            .strip_prefix(b"[")
            .and_then(|rest| parse_u32(&rest[..memchr::memchr(b']', rest)?]));
        let Some(number) = number else {
            return Progress::Foreign;
        };
        self.keep_row(line);
        if number >= lines - 1 {
            Progress::Complete(Ok(self.finish_block()))
        } else {
            Progress::Taken
        }
    }

    /// Keeps a row, or counts it as too many. `false` if it is not a row of this kind.
    fn keep_row(&mut self, line: &[u8]) -> bool {
        if let Body::Status(parser) = &mut self.body {
            parser.handle_line(line);
            return true;
        }
        if let Body::Raw { text, truncated } = &mut self.body {
            // As much as a snapshot may have: it may be one.
            *truncated |= text.len() + line.len() > self.limits.status_bytes_max;
            if !*truncated {
                text.extend_from_slice(line);
                text.extend_from_slice(b"\r\n");
            }
            return true;
        }
        self.body_bytes += line.len();
        let Limits {
            history_lines_max: mut lines_max,
            history_bytes_max: mut bytes_max,
            ..
        } = self.limits;
        if self.expectation.is_short() {
            lines_max = lines_max.min(SHORT_LINES_MAX);
            bytes_max = bytes_max.min(SHORT_BYTES_MAX);
        }
        let lines_max = if self.body_bytes <= bytes_max {
            lines_max
        } else {
            0
        };
        match &mut self.body {
            Body::Text(rows) => push_row(rows, lines_max, || Some(Text::from(line))),
            Body::States(rows) => push_row(rows, lines_max, || StateRecord::parse(&line.into())),
            Body::Log(rows) => push_row(rows, lines_max, || LogRecord::parse(&line.into())),
            Body::Echo(rows) => push_row(rows, lines_max, || EchoRecord::parse(&line.into())),
            Body::RemoteEntries(rows) => {
                push_row(rows, lines_max, || RemoteEntry::parse(&line.into()))
            }
            Body::Status(_) | Body::Raw { .. } => true,
        }
    }

    fn finish_block(&mut self) -> Reply {
        match std::mem::replace(&mut self.body, Body::Text(History::default())) {
            Body::States(rows) => Reply::States(rows),
            Body::Log(rows) => Reply::Log(rows),
            Body::Echo(rows) => Reply::Echo(rows),
            Body::RemoteEntries(rows) => Reply::RemoteEntries(rows),
            Body::Status(parser) => Reply::Status(Box::new(parser.finish())),
            Body::Raw { text, truncated } => Reply::Raw(RawReply {
                text: text.into(),
                truncated,
            }),
            Body::Text(rows) => {
                let typed = match self.expectation {
                    Expectation::Rows {
                        kind: RowKind::Version,
                        ..
                    } => parse_version(&rows.records).map(Reply::Version),
                    Expectation::Rows {
                        kind: RowKind::RemoteEntryCount,
                        ..
                    } => match &rows.records[..] {
                        [count] => parse_u32(count.as_bytes()).map(Reply::RemoteEntryCount),
                        _ => None,
                    },
                    _ => None,
                };
                typed.unwrap_or(Reply::Lines(rows))
            }
        }
    }

    /// Makes sense of whatever came before the sentinel's answer.
    fn finish_sentinel(&mut self, kind: SentinelKind) -> Result<Reply, Rejected> {
        let Body::Text(rows) = std::mem::replace(&mut self.body, Body::Text(History::default()))
        else {
            return Ok(Reply::None);
        };
        match &rows.records[..] {
            [] => return Ok(Reply::None),
            [line] => {
                if let Some(answer) = Answer::parse(line.as_bytes()) {
                    return answer.into_result();
                }
            }
            _ => {}
        }
        match (kind, parse_version(&rows.records)) {
            (SentinelKind::VersionSet, Some(version)) => Ok(Reply::Version(version)),
            _ => Ok(Reply::Lines(rows)),
        }
    }

    fn take_text_joined(&mut self) -> Text {
        let Body::Text(rows) = std::mem::replace(&mut self.body, Body::Text(History::default()))
        else {
            return Text::default();
        };
        match <[Text; 1]>::try_from(rows.records) {
            Ok([only]) => only,
            Err(records) => records
                .iter()
                .map(Text::as_bytes)
                .collect::<Vec<_>>()
                .join(&b'\n')
                .into(),
        }
    }
}

/// A line with a verdict.
#[derive(Clone, Copy)]
enum Answer<'a> {
    Success(&'a [u8]),
    Error(&'a [u8]),
}

impl<'a> Answer<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let without_space = |text: &'a [u8]| text.strip_prefix(b" ").unwrap_or(text);
        if let Some(text) = line.strip_prefix(b"SUCCESS:") {
            Some(Self::Success(without_space(text)))
        } else {
            line.strip_prefix(b"ERROR:")
                .map(|text| Self::Error(without_space(text)))
        }
    }

    fn text(self) -> &'a [u8] {
        match self {
            Self::Success(text) | Self::Error(text) => text,
        }
    }

    fn into_result(self) -> Result<Reply, Rejected> {
        match self {
            Self::Success(text) => Ok(Reply::Success(text.into())),
            Self::Error(text) => Err(Rejected { text: text.into() }),
        }
    }
}

/// Whether OpenVPN says this only when it has read a block to its `END`. In doubt it has not: a `load-stats` tells.
fn is_answer_to_whole_block(error: &[u8]) -> bool {
    error == b"client-auth command failed" || error.starts_with(b"The 'client-auth' command")
}

/// Whether this line is the last of the answer to `push-update-*`. In doubt it is not: the deadline's fence then tells,
/// where a wrong yes would leave a line over for the next command.
fn is_push_update_result(answer: Answer<'_>) -> bool {
    const LAST_LINES: [&[u8]; 6] = [
        b"push-update command ",
        b"push-update-cid fail during cid parsing",
        b"unknown command",
        b"The '",
        b"the '",
        b"Options ",
    ];
    LAST_LINES
        .iter()
        .any(|last| answer.text().starts_with(last))
}

/// The value of `SUCCESS: {name}={value}`; any other text as it is.
fn parse_value(kind: ValueKind, text: &[u8]) -> Reply {
    let number = |name: &[u8]| text.strip_prefix(name).and_then(parse_u32);
    let reply = match kind {
        ValueKind::Pid => number(b"pid=").map(Reply::Pid),
        ValueKind::ClientCount => text
            .strip_prefix(b"nclients=")
            .and_then(parse_u64)
            .map(Reply::ClientCount),
        ValueKind::LoadStats => LoadStats::parse(text).map(Reply::LoadStats),
        ValueKind::Hold => match text {
            b"hold=0" => Some(Reply::Hold(false)),
            b"hold=1" => Some(Reply::Hold(true)),
            _ => None,
        },
        ValueKind::Verb => number(b"verb=").map(Reply::Verb),
        ValueKind::Mute => number(b"mute=").map(Reply::Mute),
        ValueKind::AuthRetry => text
            .strip_prefix(b"auth-retry=")
            .map(|mode| Reply::AuthRetry(mode.into())),
        ValueKind::EnvFilter => number(b"env_filter_level=").map(Reply::EnvFilter),
    };
    reply.unwrap_or_else(|| Reply::Success(text.into()))
}

/// `OpenVPN Version: …` and `Management Version: N`; older daemons write `Management Interface Version`.
fn parse_version(lines: &[Text]) -> Option<Version> {
    let value = |names: &[&[u8]]| {
        lines.iter().find_map(|line| {
            let value = names
                .iter()
                .find_map(|name| line.as_bytes().strip_prefix(*name))?;
            Some(line.slice_of(value))
        })
    };
    Some(Version {
        openvpn: value(&[b"OpenVPN Version: "])?,
        management: value(&[b"Management Version: ", b"Management Interface Version: "])
            .and_then(|text| parse_u32(text.as_bytes())),
    })
}

/// Adds the row if there is room, else marks the history truncated. `false` if the line is no such row.
fn push_row<T>(rows: &mut History<T>, lines_max: usize, parse: impl FnOnce() -> Option<T>) -> bool {
    if rows.records.len() >= lines_max {
        rows.truncated = true;
        return true;
    }
    match parse() {
        Some(row) => {
            rows.records.push(row);
            true
        }
        None => false,
    }
}
