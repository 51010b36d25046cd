//! Durations and sizes as people write them.

use std::time::Duration;

const DURATION_UNITS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];
const SIZE_UNITS: [(&str, u64); 4] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
];

/// A duration such as `500ms`, `5s`, `10m`, `24h`, `7d`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    scaled(text, &DURATION_UNITS).map(Duration::from_millis).ok_or_else(|| {
        format!("`{text}` is not a duration: write a whole number and ms, s, m, h or d, such as \"5s\"")
    })
}

/// A size such as `64MiB`.
pub(super) fn size(text: &str) -> Result<u64, String> {
    scaled(text, &SIZE_UNITS).ok_or_else(|| {
        format!(
            "`{text}` is not a size: write a whole number and B, KiB, MiB or GiB, such as \"64MiB\""
        )
    })
}

pub(super) fn format_duration(duration: Duration) -> String {
    // Every bound in use is far below 2^64 ms.
    format(
        u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        &DURATION_UNITS,
    )
}

pub(super) fn format_size(size: u64) -> String {
    format(size, &SIZE_UNITS)
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, scale) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*scale)
}

fn format(value: u64, units: &[(&str, u64)]) -> String {
    let unit = units
        .iter()
        .rev()
        .find(|(_, scale)| value >= *scale && value.is_multiple_of(*scale));
    let (name, scale) = unit.unwrap_or(&units[0]);
    format!("{}{name}", value / scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A unit read wrongly would poll a thousand times too often, or never.
    #[test]
    fn durations_and_sizes_are_read_as_written() {
        let durations = [
            ("500ms", Some(500)),
            ("5s", Some(5_000)),
            ("10m", Some(600_000)),
            ("24h", Some(86_400_000)),
            ("7d", Some(604_800_000)),
            ("0s", Some(0)),
            ("5", None),
            ("s", None),
            ("5 s", None),
            ("1.5s", None),
            ("-1s", None),
            ("99999999999999999999s", None),
            ("18446744073709551615d", None),
            ("", None),
        ];
        for (text, millis) in durations {
            assert_eq!(
                duration(text).ok(),
                millis.map(Duration::from_millis),
                "{text}"
            );
        }
        let sizes = [
            ("64MiB", Some(64 << 20)),
            ("1GiB", Some(1 << 30)),
            ("10B", Some(10)),
            ("64MB", None),
            ("64", None),
        ];
        for (text, bytes) in sizes {
            assert_eq!(size(text).ok(), bytes, "{text}");
        }
    }

    /// Bounds in messages must be written in the unit people know.
    #[test]
    fn formats_in_the_greatest_whole_unit() {
        assert_eq!(format_duration(Duration::from_secs(90)), "90s");
        assert_eq!(format_duration(Duration::from_secs(86_400)), "1d");
        assert_eq!(format_duration(Duration::ZERO), "0ms");
        assert_eq!(format_size(64 << 20), "64MiB");
    }
}
