//! Text for people: what others wrote made harmless, times, sizes, names.

use std::fmt::Write as _;

use jiff::{Timestamp, tz::TimeZone};
use prost_types::{Duration, Timestamp as ProtoTimestamp};

/// Text from outside, safe on a terminal: what could move the cursor, colour,
/// hide or reorder its surroundings is shown as an escape.
///
/// `raw` are the exact bytes where `text` could not hold them; bytes that are
/// not UTF-8 are then shown as `\xff`. The backslash itself stays as it is:
/// `DOMAIN\user` is a common name for people to copy. JSON output is exact.
pub(crate) fn outside(text: &str, raw: &[u8]) -> String {
    if raw.is_empty() {
        return escape(text);
    }
    let mut shown = String::new();
    for chunk in raw.utf8_chunks() {
        shown += &escape(chunk.valid());
        for byte in chunk.invalid() {
            // Writing to a string cannot fail.
            let _ = write!(shown, "\\x{byte:02x}");
        }
    }
    shown
}

/// `outside` for text that has no companion of raw bytes.
pub(crate) fn escape(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            c if is_harmful(c) && c.is_ascii() => {
                let _ = write!(shown, "\\x{:02x}", u32::from(c));
            }
            c if is_harmful(c) => {
                let _ = write!(shown, "\\u{{{:x}}}", u32::from(c));
            }
            c => shown.push(c),
        }
    }
    shown
}

/// Controls (C0, DEL, C1), and what Unicode has for invisible or reordering:
/// zero width, line and paragraph separators, bidirectional controls, blank
/// letters, annotations, tags.
fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{180e}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e0fff}')
}

/// A number of bytes as people read it: `0 B`, `1.5 KiB`, `12.0 GiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    // In tenths of the unit, so that no float is needed and 1023.97 becomes the
    // next unit's 1.0 instead of 1024.0.
    let mut tenths = u128::from(count) * 10;
    let mut unit = "";
    for next in UNITS {
        tenths = (tenths + 512) / 1024;
        unit = next;
        if tenths < 10_240 {
            break;
        }
    }
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

/// A number with its thousands apart: `1,803`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut shown = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

/// A moment of the API; `None` when it is none that a clock can show.
pub(crate) fn moment(time: &ProtoTimestamp) -> Option<Timestamp> {
    Timestamp::new(time.seconds, time.nanos).ok()
}

/// `2026-11-20 15:04`, local; empty when absent.
pub(crate) fn minute(time: Option<&ProtoTimestamp>) -> String {
    local(time, "%Y-%m-%d %H:%M")
}

/// `2026-11-20 15:04:05.123`, local; empty when absent.
pub(crate) fn instant(time: Option<&ProtoTimestamp>) -> String {
    local(time, "%Y-%m-%d %H:%M:%S%.3f")
}

fn local(time: Option<&ProtoTimestamp>, format: &str) -> String {
    time.and_then(moment)
        .map(|time| {
            time.to_zoned(TimeZone::system())
                .strftime(format)
                .to_string()
        })
        .unwrap_or_default()
}

/// How long ago, in its greatest unit: `4m`; empty when absent.
pub(crate) fn age(time: Option<&ProtoTimestamp>, now: Timestamp) -> String {
    time.and_then(moment)
        .map(|time| span(now.duration_since(time).as_secs()))
        .unwrap_or_default()
}

/// A duration of the API in its greatest unit; empty when absent.
pub(crate) fn elapsed(duration: Option<&Duration>) -> String {
    duration
        .map(|duration| span(duration.seconds))
        .unwrap_or_default()
}

/// Seconds in their greatest unit. Clocks differ, so less than none is none.
fn span(seconds: i64) -> String {
    match seconds.max(0) {
        seconds @ ..60 => format!("{seconds}s"),
        seconds @ ..3_600 => format!("{}m", seconds / 60),
        seconds @ ..86_400 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// The name of an enum's value without its type: `SLOT_BUSY`. A number that
/// this program does not know yet is shown as it is.
macro_rules! enum_name {
    ($enum:ty, $prefix:literal, $value:expr) => {{
        let value: i32 = $value;
        <$enum>::try_from(value).map_or_else(
            |_| value.to_string(),
            |known| known.as_str_name().trim_start_matches($prefix).to_owned(),
        )
    }};
}
pub(crate) use enum_name;

#[cfg(test)]
mod tests {
    use super::*;

    /// A client chooses its name: it must not be able to repaint the terminal
    /// of whoever lists it, or to look like another.
    #[test]
    fn names_cannot_act_on_the_terminal() {
        let cases = [
            ("alice", "alice"),
            ("\x1b[2J\x1b]0;x\x07", "\\x1b[2J\\x1b]0;x\\x07"),
            ("a\r\nb\tc", "a\\r\\nb\\tc"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("\u{202e}ecila", "\\u{202e}ecila"),
            (
                "a\u{200b}b\u{2066}c\u{feff}",
                "a\\u{200b}b\\u{2066}c\\u{feff}",
            ),
            ("line\u{2028}end\u{7f}", "line\\u{2028}end\\x7f"),
            ("DOMAIN\\user, \"Zoë\" 日本", "DOMAIN\\user, \"Zoë\" 日本"),
        ];
        for (text, shown) in cases {
            assert_eq!(escape(text), shown);
        }
    }

    #[test]
    fn bytes_that_are_not_utf8_are_shown_as_they_are() {
        assert_eq!(outside("caf\u{fffd}", b"caf\xe9\n"), "caf\\xe9\\n");
        assert_eq!(outside("plain", b""), "plain");
    }

    #[test]
    fn sizes_keep_one_digit_and_the_right_unit() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1_048_575, "1.0 MiB"),
            (1_099_511_627_776, "1.0 TiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (count, shown) in cases {
            assert_eq!(bytes(count), shown);
        }
    }

    #[test]
    fn numbers_and_ages_read_easily() {
        for (number, shown) in [
            (0, "0"),
            (999, "999"),
            (1_803, "1,803"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(count(number), shown);
        }
        for (seconds, shown) in [
            (-5, "0s"),
            (59, "59s"),
            (60, "1m"),
            (7_200, "2h"),
            (200_000, "2d"),
        ] {
            assert_eq!(span(seconds), shown);
        }
    }

    #[test]
    fn a_value_from_a_newer_gateway_is_shown_as_a_number() {
        use ovfleet_proto::v1::Condition;
        assert_eq!(enum_name!(Condition, "CONDITION_", 2), "SLOT_BUSY");
        assert_eq!(enum_name!(Condition, "CONDITION_", 99), "99");
    }
}
