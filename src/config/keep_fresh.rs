//! `proxy.keepfresh`: the tags that are revalidated and fetched ahead of clients, and when.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::oci::ImagePattern;

use super::rules;
use super::section::Section;
use super::upstream::Upstream;

const DAY: u64 = 24 * 60;
const DEFAULT_USED_WITHIN: Duration = Duration::from_hours(7 * 24);
const DEFAULT_DAILY: u64 = 20 << 30;
const DEFAULT_PLATFORM: &str = "linux/amd64";
const WINDOW: &str = "write the times of a day from and to, such as 22:00-06:00";
const OFFSET: &str = "write the offset from UTC from -23:59 to +23:59, such as +02:00";
const PLATFORM: &str = "write os/architecture or os/architecture/variant, such as linux/arm64";

/// The tags that are revalidated and fetched ahead of clients, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeepFresh {
    /// Empty: none.
    pub images: Vec<ImagePattern>,
    /// How long after the last use of its image a tag is kept fresh that only a pattern with a wildcard
    /// matches.
    pub used_within: Duration,
    /// Bytes of blobs that are fetched ahead in a day of `times`; 0 fetches none.
    pub daily: u64,
    /// Of an index, where no platform of the tag's earlier index was pulled. Never empty.
    pub platforms: Vec<Platform>,
    pub times: DayTimes,
}

/// The times of a day at which something is done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DayTimes {
    /// Empty: all day.
    windows: Vec<Window>,
    offset: Offset,
}

/// A part of each day, in minutes from midnight: from the first to the second one, which may be on the
/// next day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Window(u64, u64);

/// From UTC, in minutes to the east.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Offset(i64);

/// What an image is for: `os/architecture`, perhaps with a variant (image-spec image-index.md).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Platform(String);

impl Platform {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl DayTimes {
    /// Minutes since the epoch, by the clocks of the place.
    fn local_minutes(&self, time: SystemTime) -> u64 {
        let seconds = time
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        (seconds / 60).saturating_add_signed(self.offset.0)
    }

    /// Whether it is a time at which something is done.
    pub fn are_now(&self, time: SystemTime) -> bool {
        let minute = self.local_minutes(time) % DAY;
        self.windows.is_empty() || self.windows.iter().any(|window| window.has(minute))
    }

    /// The number of the day.
    pub fn day(&self, time: SystemTime) -> u64 {
        self.local_minutes(time) / DAY
    }
}

impl Window {
    const fn has(self, minute: u64) -> bool {
        let Self(from, to) = self;
        if from < to {
            from <= minute && minute < to
        } else {
            minute >= from || minute < to
        }
    }
}

/// Minutes from midnight: `22:00`. At most 24:00.
fn time_of_day(text: &str) -> Option<u64> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |text: &str| {
        let two = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        two.then(|| text.parse::<u64>().ok()).flatten()
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    let total = hours * 60 + minutes;
    (minutes < 60 && total <= DAY).then_some(total)
}

fn clock(minutes: u64) -> String {
    format!("{:02}:{:02}", minutes / 60, minutes % 60)
}

impl FromStr for Window {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let (from, to) = text.split_once('-').ok_or(WINDOW)?;
        let (from, to) = (time_of_day(from.trim()), time_of_day(to.trim()));
        let (from, to) = from.zip(to).ok_or(WINDOW)?;
        (from != to && from < DAY)
            .then_some(Self(from, to))
            .ok_or(WINDOW)
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", clock(self.0), clock(self.1))
    }
}

impl FromStr for Offset {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let sign = match text.as_bytes().first() {
            Some(b'+') => 1,
            Some(b'-') => -1,
            _ => return Err(OFFSET),
        };
        let minutes = text.get(1..).and_then(time_of_day);
        let minutes = minutes.filter(|minutes| *minutes < DAY).ok_or(OFFSET)?;
        i64::try_from(minutes).map_or(Err(OFFSET), |minutes| Ok(Self(sign * minutes)))
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { '-' } else { '+' };
        write!(f, "{sign}{}", clock(self.0.unsigned_abs()))
    }
}

impl FromStr for Platform {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let of_platforms = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let is_part = |part: &str| !part.is_empty() && part.bytes().all(of_platforms);
        let parts = text.split('/');
        let valid = (2..=3).contains(&parts.clone().count()) && parts.clone().all(is_part);
        valid.then(|| Self(text.to_owned())).ok_or(PLATFORM)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub(super) fn read(section: &Section<'_>, default: &Upstream) -> KeepFresh {
    let mut platforms = section.values("platforms", |text, _| text.parse::<Platform>());
    if platforms.is_empty() {
        platforms.push(Platform(DEFAULT_PLATFORM.to_owned()));
        section.print("platforms", vec![DEFAULT_PLATFORM]);
    }
    let offset = section.value("utcoffset", str::parse::<Offset>);
    let offset = offset.unwrap_or_default();
    section.print("utcoffset", offset.to_string());
    KeepFresh {
        images: rules::images(section, "images", default),
        used_within: section.duration("usedwithin", DEFAULT_USED_WITHIN),
        daily: section.size("daily", DEFAULT_DAILY),
        platforms,
        times: DayTimes {
            windows: section.values("windows", |text, _| text.parse::<Window>()),
            offset,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(windows: &[&str], offset: &str) -> DayTimes {
        DayTimes {
            windows: windows.iter().map(|text| text.parse().unwrap()).collect(),
            offset: offset.parse().unwrap(),
        }
    }

    /// A time of the second day since the epoch, in UTC.
    fn at(text: &str) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(60 * (DAY + time_of_day(text).unwrap()))
    }

    #[test]
    fn windows_are_parts_of_each_day_and_may_pass_midnight() {
        let night = times(&["22:00-06:00", "12:00-12:30"], "+00:00");
        for (time, expected) in [
            ("00:00", true),
            ("05:59", true),
            ("06:00", false),
            ("12:29", true),
            ("12:30", false),
            ("21:59", false),
            ("22:00", true),
        ] {
            assert_eq!(night.are_now(at(time)), expected, "{time}");
        }
        assert!(times(&[], "+00:00").are_now(at("09:00")));
        assert!(times(&["00:00-24:00"], "+00:00").are_now(at("23:59")));
    }

    #[test]
    fn times_are_those_of_the_offset() {
        let east = times(&["22:00-23:00"], "+02:00");
        assert!(east.are_now(at("20:30")) && !east.are_now(at("22:30")));
        let west = times(&["22:00-23:00"], "-03:30");
        assert!(west.are_now(at("01:45")) && !west.are_now(at("22:30")));
        assert_eq!((east.day(at("21:59")), east.day(at("22:00"))), (1, 2));
        assert_eq!((west.day(at("03:29")), west.day(at("03:30"))), (0, 1));
    }

    #[test]
    fn what_is_written_is_read_back_and_the_rest_is_refused() {
        for text in ["22:00-06:00", "00:00-24:00", "09:05-09:06"] {
            assert_eq!(text.parse::<Window>().unwrap().to_string(), text);
        }
        for text in ["+00:00", "-03:30", "+23:59"] {
            assert_eq!(text.parse::<Offset>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "22:00",
            "22-06",
            "24:00-01:00",
            "1:00-2:00",
            "10:60-11:00",
            "08:00-08:00",
        ] {
            assert!(text.parse::<Window>().is_err(), "{text}");
        }
        for text in ["", "2", "+2", "02:00", "+24:00", "UTC"] {
            assert!(text.parse::<Offset>().is_err(), "{text}");
        }
        for text in ["linux", "linux/", "linux/arm/v7/x", "a b/c"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }
}
