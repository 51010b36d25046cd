//! Values as they are typed: durations, ids, names of the API's enums.

use std::time::Duration;

use ovfleet_proto::v1::{Condition, Signal};

/// The longest duration that an option takes: a year.
const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// A duration such as `500ms`, `10s`, `15m`, `2h30m`, `1d`; a bare number is
/// refused, for want of a unit.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let help = || format!("`{text}` is not a duration; write it with a unit: 500ms, 10s, 15m, 2h");
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(help());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(help)?;
        let number: u32 = rest[..digits].parse().map_err(|_| help())?;
        rest = &rest[digits..];
        let letters = rest
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" | "min" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            "d" => Duration::from_secs(24 * 3600),
            _ => return Err(help()),
        };
        rest = &rest[letters..];
        total += unit.saturating_mul(number);
        if total > DURATION_MAX {
            return Err(format!("`{text}` is longer than a year"));
        }
    }
    Ok(total)
}

/// The same duration as the API writes it.
pub(crate) fn proto_duration(duration: Duration) -> prost_types::Duration {
    // Options take at most DURATION_MAX.
    prost_types::Duration::try_from(duration).unwrap_or_default()
}

/// A request id as the API takes it.
pub(crate) fn request_id(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if (1..=64).contains(&text.len()) && text.chars().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("a request id is 1 to 64 letters, digits, `.`, `_` or `-`".to_owned())
    }
}

/// The number of a condition from its name, in any case: `slot_busy`,
/// `SLOT-BUSY`.
pub(crate) fn condition(text: &str) -> Result<i32, String> {
    let name = format!("CONDITION_{}", text.to_ascii_uppercase().replace('-', "_"));
    match Condition::from_str_name(&name) {
        Some(condition) if condition != Condition::Unspecified => Ok(condition.into()),
        _ => Err(
            "conditions are: connecting, slot_busy, auth_failed, syncing, attached, \
                  unresponsive, unreachable, paused"
                .to_owned(),
        ),
    }
}

/// The number of a signal from its name, with or without `SIG`.
pub(crate) fn signal(text: &str) -> Result<i32, String> {
    let upper = text.to_ascii_uppercase();
    let name = format!("SIGNAL_SIG{}", upper.strip_prefix("SIG").unwrap_or(&upper));
    Signal::from_str_name(&name)
        .map(i32::from)
        .ok_or_else(|| "signals are: SIGHUP, SIGUSR1, SIGUSR2, SIGTERM".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_want_a_unit_and_an_end() {
        let good = [
            ("500ms", 500),
            ("10s", 10_000),
            ("2h30m", 9_000_000),
            ("1d", 86_400_000),
            ("0s", 0),
            ("5min", 300_000),
        ];
        for (text, millis) in good {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "",
            "10",
            "s",
            "-5s",
            "1.5s",
            "10 s",
            "5x",
            "400d",
            "99999999999s",
            "5s6",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn request_ids_are_what_the_api_takes() {
        assert!(request_id("deploy-2026.11_20").is_ok());
        for text in ["", "a b", "é", "a/b", &"x".repeat(65)] {
            assert!(request_id(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn enums_go_by_their_short_names() {
        assert_eq!(condition("slot-busy"), Ok(Condition::SlotBusy.into()));
        assert!(condition("unspecified").is_err());
        assert_eq!(signal("usr1"), Ok(Signal::Sigusr1.into()));
        assert_eq!(signal("SIGTERM"), Ok(Signal::Sigterm.into()));
        assert!(signal("SIGKILL").is_err());
        assert!(signal("unspecified").is_err());
    }
}
