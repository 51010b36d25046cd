//! The deadline that a caller gave its call.

use std::time::{Duration, Instant};

use tonic::metadata::MetadataMap;

/// How long the caller waits, from the `grpc-timeout` header; `None` when it
/// did not say, or not in a way that means anything.
pub(crate) fn timeout(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    // The header has at most 8 digits; more are not the protocol.
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

/// When the caller stops waiting, if it said so.
pub(crate) fn of<T>(request: &tonic::Request<T>) -> Option<Instant> {
    Instant::now().checked_add(timeout(request.metadata())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<Duration> {
        let mut metadata = MetadataMap::new();
        metadata.insert("grpc-timeout", text.parse().unwrap());
        timeout(&metadata)
    }

    #[test]
    fn every_unit_and_nothing_else() {
        assert_eq!(read("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(read("1M"), Some(Duration::from_secs(60)));
        assert_eq!(read("99999999S"), Some(Duration::from_secs(99_999_999)));
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(read("3u"), Some(Duration::from_micros(3)));
        assert_eq!(read("4n"), Some(Duration::from_nanos(4)));
        for nonsense in ["", "S", "5", "5s", "-5S", "123456789S", "5é"] {
            assert_eq!(timeout(&metadata(nonsense)), None, "{nonsense}");
        }
    }

    fn metadata(text: &str) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        if let Ok(value) = text.parse() {
            metadata.insert("grpc-timeout", value);
        }
        metadata
    }
}
