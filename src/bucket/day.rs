//! Days of the bucket's clock, in UTC.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SECONDS: u64 = 24 * 60 * 60;

/// A day, in days since 1970-01-01; enough until 2149. Its text is `2026-11-29`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(super) struct Day(u16);

impl Day {
    /// The day that has this moment. A time before 1970 is the first day.
    pub(super) fn of(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u16::try_from(since.as_secs() / SECONDS).unwrap_or(u16::MAX))
    }

    pub(super) fn start(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(u64::from(self.0) * SECONDS)
    }

    #[must_use]
    pub(super) fn before(self, days: u16) -> Self {
        Self(self.0.saturating_sub(days))
    }

    /// The last byte of its number: another one on each of 256 days.
    pub(super) fn turn(self) -> u8 {
        let [_, turn] = self.0.to_be_bytes();
        turn
    }

    /// Reads what [`Display`](fmt::Display) writes, and nothing else.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let start = humantime::parse_rfc3339(&format!("{text}T00:00:00Z")).ok()?;
        let day = Self::of(start);
        (day.to_string() == text).then_some(day)
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = humantime::format_rfc3339_seconds(self.start()).to_string();
        f.write_str(start.get(..10).unwrap_or(&start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_read_back_and_nothing_else_is() {
        let time = humantime::parse_rfc3339("2026-11-29T23:59:59Z").unwrap();
        let day = Day::of(time);
        assert_eq!(day.to_string(), "2026-11-29");
        assert_eq!(Day::parse("2026-11-29"), Some(day));
        assert_eq!(Day::of(time + Duration::from_secs(1)).before(1), day);
        assert_eq!(Day::of(day.start()), day);
        for wrong in [
            "",
            "2026-11-29T00",
            "2026-13-01",
            "2026-2-1",
            "1969-12-31",
            "x",
        ] {
            assert_eq!(Day::parse(wrong), None, "{wrong}");
        }
    }
}
