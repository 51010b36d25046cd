//! Where a stream of events begins, as it is typed.

use std::{convert::Infallible, str::FromStr};

use jiff::{SignedDuration, Timestamp, civil, tz::TimeZone};
use ovfleet_proto::v1::stream_events_request;

use crate::value::duration;

/// Where a stream of events begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Start {
    /// With the next event.
    Now,
    /// With the oldest event kept.
    Oldest,
    /// With the first event at or after this moment.
    Time(Timestamp),
    /// After the event that this cursor stands behind.
    Cursor(String),
}

impl FromStr for Start {
    type Err = Infallible;

    /// What is neither a word, a time nor an age is a cursor: these are opaque
    /// and only the gateway can judge them. They are also far longer than
    /// anything else here.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        let local = |time: civil::DateTime| {
            time.to_zoned(TimeZone::system())
                .ok()
                .map(|time| time.timestamp())
        };
        Ok(match text {
            "now" => Self::Now,
            "oldest" => Self::Oldest,
            _ => {
                let age = || {
                    let age = SignedDuration::try_from(duration(text).ok()?).ok()?;
                    Timestamp::now().checked_sub(age).ok()
                };
                text.parse::<Timestamp>()
                    .ok()
                    .or_else(|| text.parse::<civil::DateTime>().ok().and_then(local))
                    .or_else(age)
                    .map_or_else(|| Self::Cursor(text.to_owned()), Self::Time)
            }
        })
    }
}

impl From<&Start> for stream_events_request::Start {
    fn from(start: &Start) -> Self {
        match start {
            Start::Now => Self::Now(true),
            Start::Oldest => Self::Oldest(true),
            Start::Time(time) => Self::Time(prost_types::Timestamp {
                seconds: time.as_second(),
                nanos: time.subsec_nanosecond(),
            }),
            Start::Cursor(cursor) => Self::Cursor(cursor.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(text: &str) -> Start {
        text.parse().unwrap()
    }

    #[test]
    fn words_times_ages_and_cursors_are_told_apart() {
        assert_eq!(start("now"), Start::Now);
        assert_eq!(start("oldest"), Start::Oldest);
        let moment = "2026-11-20T15:04:00Z".parse().unwrap();
        assert_eq!(start("2026-11-20T15:04:00Z"), Start::Time(moment));
        assert_eq!(start("2026-11-20T16:04:00+01:00"), Start::Time(moment));
        assert!(matches!(start("2026-11-20 15:04"), Start::Time(_)));
        assert!(matches!(start("2026-11-20"), Start::Time(_)));
        let Start::Time(earlier) = start("15m") else {
            panic!("an age is a time")
        };
        let age = Timestamp::now().duration_since(earlier);
        assert!((SignedDuration::from_mins(15)..SignedDuration::from_mins(16)).contains(&age));
        let cursor = "AQIDBAUGBwgJCgsMDQ4PEA";
        assert_eq!(start(cursor), Start::Cursor(cursor.to_owned()));
    }
}
