//! When a certificate expires: the one field of X.509 (RFC 5280, section 4.1) that rustls doesn't tell.

use std::time::{Duration, SystemTime};

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
/// The version, which certificates of version 1 lack.
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The end of a certificate's validity. None where the certificate is malformed.
pub(super) fn expiry(der: &[u8]) -> Option<SystemTime> {
    let mut certificate = Der(der).enter(SEQUENCE)?;
    let mut signed = certificate.enter(SEQUENCE)?;
    if signed.0.first() == Some(&VERSION) {
        signed.enter(VERSION)?;
    }
    signed.enter(INTEGER)?;
    // The signature's algorithm and the issuer.
    signed.enter(SEQUENCE)?;
    signed.enter(SEQUENCE)?;
    let mut validity = signed.enter(SEQUENCE)?;
    validity.element()?;
    let (tag, time) = validity.element()?;
    let time = std::str::from_utf8(time).ok()?.strip_suffix('Z')?;
    let (year, rest) = match tag {
        UTC_TIME => {
            let (year, rest) = time.split_at_checked(2)?;
            let year = digits(year)?;
            // RFC 5280, section 4.1.2.5.1.
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = time.split_at_checked(4)?;
            (digits(year)?, rest)
        }
        _ => return None,
    };
    let mut fields = [0; 5];
    let mut rest = rest;
    for field in &mut fields {
        let (digit, after) = rest.split_at_checked(2)?;
        (*field, rest) = (digits(digit)?, after);
    }
    let [month, day, hour, minute, second] = fields;
    let in_range = (1..=12).contains(&month) && (1..=31).contains(&day);
    let in_range = in_range && hour < 24 && minute < 60 && second < 61;
    if !in_range || !rest.is_empty() {
        return None;
    }
    let days = days_since_1970(year, month, day);
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second;
    let since = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(since)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(since)
    }
}

fn digits(text: &str) -> Option<i64> {
    let all = text.bytes().all(|byte| byte.is_ascii_digit());
    all.then(|| text.parse().ok()).flatten()
}

/// Days in the Gregorian calendar, from 1970-01-01 on.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    // Years that begin in March, so that leap days are at their ends.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // The months' lengths from March on repeat every five months: 153 days.
    let of_months = (153 * month + 2) / 5;
    // 1970-01-01 is so many days after 0000-03-01.
    year * 365 + leap_days + of_months + day - 1 - 719_468
}

/// Elements in DER (ITU-T X.690), one after the other.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next element: its tag and its content.
    fn element(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, mut rest) = rest.split_first()?;
        let mut length = usize::from(first);
        if let Some(bytes) = first.checked_sub(0x80) {
            // Longer lengths are longer than any certificate.
            if !(1..=3).contains(&bytes) {
                return None;
            }
            let (long, after) = rest.split_at_checked(bytes.into())?;
            let add = |length, byte: &u8| length << 8 | usize::from(*byte);
            length = long.iter().fold(0, add);
            rest = after;
        }
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    /// The content of the next element, which must have this tag.
    fn enter(&mut self, wanted: u8) -> Option<Self> {
        let (tag, content) = self.element()?;
        (tag == wanted).then_some(Self(content))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = u8::try_from(content.len()).unwrap();
        let length = if length < 0x80 {
            vec![length]
        } else {
            vec![0x81, length]
        };
        [&[tag], &length[..], content].concat()
    }

    /// A certificate up to its validity.
    fn certificate(tag: u8, not_after: &str) -> Vec<u8> {
        let validity = [
            element(UTC_TIME, b"700101000000Z"),
            element(tag, not_after.as_bytes()),
        ];
        let signed = [
            element(VERSION, &[2, 1, 2]),
            element(INTEGER, &[1]),
            element(SEQUENCE, &[5, 0]),
            element(SEQUENCE, &[]),
            element(SEQUENCE, &validity.concat()),
        ];
        element(SEQUENCE, &element(SEQUENCE, &signed.concat()))
    }

    #[test]
    fn both_forms_of_time_are_read() {
        for (tag, text, seconds) in [
            (UTC_TIME, "700101000000Z", 0),
            (UTC_TIME, "260228235959Z", 1_772_323_199),
            (UTC_TIME, "240229000000Z", 1_709_164_800),
            (UTC_TIME, "491231235959Z", 2_524_607_999),
            (GENERALIZED_TIME, "20500101000000Z", 2_524_608_000),
            // RFC 5280, section 4.1.2.5: no end.
            (GENERALIZED_TIME, "99991231235959Z", 253_402_300_799),
        ] {
            let expected = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(expiry(&certificate(tag, text)), Some(expected), "{text}");
        }
        let before = expiry(&certificate(UTC_TIME, "691231235959Z")).unwrap();
        assert_eq!(before, SystemTime::UNIX_EPOCH - Duration::from_secs(1));
    }

    #[test]
    fn what_is_malformed_has_no_time() {
        for text in [
            "",
            "Z",
            "260228235959",
            "2602282359Z",
            "261328235959Z",
            "26022823595xZ",
            "\u{e9}",
        ] {
            assert_eq!(expiry(&certificate(UTC_TIME, text)), None, "{text}");
        }
        assert_eq!(expiry(&certificate(INTEGER, "260228235959Z")), None);
        let whole = certificate(UTC_TIME, "260228235959Z");
        for cut in 0..whole.len() {
            assert_eq!(expiry(&whole[..cut]), None, "{cut}");
        }
    }
}
