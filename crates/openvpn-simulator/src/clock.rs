//! The daemon's wall clock and how OpenVPN prints times.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

const SECONDS_PER_DAY: i64 = 86_400;

/// A Unix time in seconds, printed in UTC. Displays as OpenVPN 2.5 and later print it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct UnixTime(pub(crate) i64);

impl UnixTime {
    pub(crate) fn now() -> Self {
        let seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |elapsed| elapsed.as_secs());
        Self(i64::try_from(seconds).unwrap_or(i64::MAX))
    }
}

impl UnixTime {
    /// The time as `ctime` and, with it, OpenVPN up to 2.4 print it.
    pub(crate) fn ctime(self) -> String {
        const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
        const MONTHS: [&str; 12] = [
            "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
        ];
        let days = self.0.div_euclid(SECONDS_PER_DAY);
        let (year, month, day) = civil_from_days(days);
        let second = self.0.rem_euclid(SECONDS_PER_DAY);
        // Both are within their tables: a remainder of 7, and a month from 1 to 12.
        let weekday = usize::try_from(days.rem_euclid(7)).map_or("", |day| DAYS[day]);
        let month = usize::try_from(month - 1).map_or("", |month| MONTHS[month]);
        format!(
            "{weekday} {month} {day:>2} {:02}:{:02}:{:02} {year}",
            second / 3600,
            second / 60 % 60,
            second % 60
        )
    }
}

impl fmt::Display for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil_from_days(self.0.div_euclid(SECONDS_PER_DAY));
        let second = self.0.rem_euclid(SECONDS_PER_DAY);
        write!(
            f,
            "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}",
            second / 3600,
            second / 60 % 60,
            second % 60
        )
    }
}

/// Year, month and day of a day number counted from 1970-01-01, after Howard Hinnant's
/// `civil_from_days`.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Times in `status` must be the same instant as the number beside them.
    #[test]
    fn times_print_as_openvpn_prints_them() {
        for (time, text) in [
            (0, "1970-01-01 00:00:00"),
            (1_795_186_626, "2026-11-20 14:57:06"),
            (1_709_164_799, "2024-02-28 23:59:59"),
            (1_709_164_800, "2024-02-29 00:00:00"),
            (-1, "1969-12-31 23:59:59"),
        ] {
            assert_eq!(UnixTime(time).to_string(), text);
        }
        assert_eq!(UnixTime(1_795_191_943).ctime(), "Fri Nov 20 16:25:43 2026");
        assert_eq!(UnixTime(0).ctime(), "Thu Jan  1 00:00:00 1970");
    }
}
