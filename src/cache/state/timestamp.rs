//! Wall time as it is stored: milliseconds in memory, RFC 3339 in files.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The time that stands for "never" in files, which the reference registry has to be able to read:
/// its timers count 64 bits of nanoseconds, 292 years. 2200-01-01T00:00:00Z.
const NEVER: Timestamp = Timestamp(7_258_118_400_000);

/// Milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Timestamp(u64);

impl Timestamp {
    pub(crate) const fn millis(self) -> u64 {
        self.0
    }

    /// A time before the epoch is the epoch.
    pub(crate) fn of(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    pub(crate) fn system_time(self) -> SystemTime {
        let time = UNIX_EPOCH.checked_add(Duration::from_millis(self.0));
        time.unwrap_or(UNIX_EPOCH)
    }

    /// In whole seconds, rounded down. Enough until 2106.
    pub(crate) fn seconds(self) -> u32 {
        u32::try_from(self.0 / 1000).unwrap_or(u32::MAX)
    }

    /// In whole seconds, rounded up.
    pub(crate) fn rounded_up(self) -> u32 {
        self.after(Duration::from_millis(999)).seconds()
    }

    pub(crate) const fn from_seconds(seconds: u32) -> Self {
        Self(seconds as u64 * 1000)
    }

    #[must_use]
    pub(crate) fn after(self, duration: Duration) -> Self {
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(millis))
    }

    #[must_use]
    pub(crate) fn before(self, duration: Duration) -> Self {
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_sub(millis))
    }

    /// RFC 3339 in UTC, with as many digits as there are to tell, which Go's `encoding/json` reads.
    /// `None` is "never".
    pub(crate) fn write(time: Option<Self>) -> humantime::Rfc3339Timestamp {
        let time = time.unwrap_or(NEVER).min(NEVER);
        humantime::format_rfc3339(time.system_time())
    }

    /// Reads RFC 3339 with any offset; `None` when it isn't that, or before the epoch.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text.ends_with('Z') {
            return humantime::parse_rfc3339(text).ok().map(Self::of);
        }
        let (local, offset) = text.split_at_checked(text.len().checked_sub("+00:00".len())?)?;
        let (hours, minutes) = offset.get(1..)?.split_once(':')?;
        let two_digits = |part: &str| match part.as_bytes() {
            [b'0'..=b'9', b'0'..=b'9'] => part.parse::<u64>().ok(),
            _ => None,
        };
        let offset_by = Duration::from_secs(two_digits(hours)? * 3600 + two_digits(minutes)? * 60);
        let local = humantime::parse_rfc3339(&format!("{local}Z")).ok()?;
        match offset.as_bytes().first()? {
            b'+' => local.checked_sub(offset_by).map(Self::of),
            b'-' => local.checked_add(offset_by).map(Self::of),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_go_writes() {
        let z = Timestamp::parse("2026-11-28T04:13:17.995518125Z").unwrap();
        assert_eq!(z.millis(), 1_795_839_197_995);
        for same in [
            "2026-11-28T06:13:17.995518125+02:00",
            "2026-11-27T22:43:17.995518125-05:30",
        ] {
            assert_eq!(Timestamp::parse(same), Some(z), "{same}");
        }
        assert_eq!(
            Timestamp::parse("1970-01-01T00:00:01Z"),
            Some(Timestamp(1000))
        );
        for bad in [
            "",
            "Z",
            "+02:00",
            "tomorrow",
            "2026-11-28",
            "2026-11-28T06:13:17",
            "2026-11-28T06:13:17+0200",
            "2026-11-28T06:13:17+a2:00",
            "2026-11-28T06:13:17é02:00",
            "0001-01-01T00:00:00Z",
        ] {
            assert_eq!(Timestamp::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn never_is_a_date_that_go_can_wait_for() {
        let text = Timestamp::write(None).to_string();
        assert_eq!(text, "2200-01-01T00:00:00Z");
        assert_eq!(Timestamp::parse(&text), Some(NEVER));
        let beyond = Timestamp::write(Some(Timestamp(u64::MAX))).to_string();
        assert_eq!(beyond, text);
    }

    proptest! {
        #[test]
        fn text_and_back(millis in 0..NEVER.millis()) {
            let moment = Timestamp(millis);
            let text = Timestamp::write(Some(moment)).to_string();
            prop_assert_eq!(Timestamp::parse(&text), Some(moment));
        }
    }
}
