//! The log, and the states that show in it too.

use crate::Version;

use super::Engine;

/// Lines of one kind in a row, as `mute` counts them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Muted {
    kind: LogKind,
    /// How often OpenVPN has asked itself whether to write one, those left out included.
    count: i32,
}

/// Which lines `mute` takes for alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum LogKind {
    /// One that has no like. OpenVPN knows more kinds, of handshakes, packets and sockets.
    #[default]
    Other,
    /// A name or an address that is none.
    Resolve,
    /// What a manager typed.
    Command,
    /// What else there is to say about a manager, states included.
    Management,
}

impl LogKind {
    fn of(text: &[u8]) -> Self {
        if text.starts_with(b"MANAGEMENT: CMD ") {
            Self::Command
        } else if text.starts_with(b"MANAGEMENT: ") {
            Self::Management
        } else if text.starts_with(b"RESOLVE: ") {
            Self::Resolve
        } else {
            Self::Other
        }
    }
}

impl Engine {
    /// Adds a line to the log: history, and the manager if it asked for it.
    pub(super) fn log(&mut self, flags: &str, text: impl AsRef<[u8]>) {
        // Roughly OpenVPN's levels: what carries a flag of its own is seen at verb 1 already.
        let level = if matches!(flags, "I" | "N" | "W" | "F") {
            1
        } else {
            3
        };
        let text = text.as_ref();
        if self.verb < level || self.mutes(text) {
            return;
        }
        match self.stuck_prefix() {
            Some(prefix) if !text.starts_with(&prefix) => {
                self.write_log(flags, &[&prefix, text].concat());
            }
            _ => self.write_log(flags, text),
        }
    }

    /// Whether `mute` leaves the line out. From 2.6 on OpenVPN asks itself up to three times before
    /// it writes a line, and counts each time, so that `mute 2` lets none of several alike through,
    /// and `mute 4` one. Up to 2.5 it means what it says.
    fn mutes(&mut self, text: &[u8]) -> bool {
        let kind = LogKind::of(text);
        let times = if self.settings.version >= Version::V2_6 {
            3
        } else {
            1
        };
        self.mute > 0 && (0..times).any(|_| self.mutes_once(kind))
    }

    /// OpenVPN's `dont_mute`, the other way round.
    fn mutes_once(&mut self, kind: LogKind) -> bool {
        if kind != LogKind::Other && kind == self.muted.kind {
            if self.muted.count == self.mute {
                self.write_log("", b"NOTE: --mute triggered...");
            }
            self.muted.count = self.muted.count.saturating_add(1);
            return self.muted.count > self.mute;
        }
        let suppressed = self.muted.count.saturating_sub(self.mute);
        if suppressed > 0 {
            let (words, mute) = ("suppressed by --mute", self.mute);
            let note = format!("{suppressed} variation(s) on previous {mute} message(s) {words}");
            self.write_log("", note.as_bytes());
        }
        self.muted = Muted { kind, count: 1 };
        false
    }

    fn write_log(&mut self, flags: &str, text: &[u8]) {
        let time = self.clock().0;
        let mut line = format!("{time},{flags},").into_bytes();
        line.extend_from_slice(text);
        self.logs.push(&line);
        if self.session.as_ref().is_some_and(|session| session.log) {
            self.say_bytes(&[b">LOG:", &line]);
        }
    }

    pub(crate) fn log_lines(&self) -> Vec<Vec<u8>> {
        self.logs.last(None).map(<[u8]>::to_vec).collect()
    }

    /// Enters a state: history, and the manager if it asked for it.
    pub(super) fn enter(&mut self, rest: &str) {
        // Time, name, detail, address in the VPN and remote address are all that 2.3 has.
        let rest = match self.settings.version {
            Version::V2_3 => first_fields(rest, 4),
            _ => rest,
        };
        let line = format!("{},{rest}", self.clock().0);
        self.states.push(line.as_bytes());
        if self.session.as_ref().is_some_and(|session| session.state) {
            self.log("", format!("MANAGEMENT: >STATE:{line}"));
            self.say(format_args!(">STATE:{line}"));
        }
    }
}

/// The first fields of a line that separates them with commas.
fn first_fields(line: &str, count: usize) -> &str {
    let end = line.match_indices(',').nth(count - 1);
    end.map_or(line, |(end, _)| &line[..end])
}
