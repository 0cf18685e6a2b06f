//! `Content-Range` (RFC 9110, section 14.4), in the head of a response and of a part.

use crate::oci::ByteRange;
use crate::oci::digits;

/// `Content-Range: bytes first-last/total`: `first <= last < total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ContentRange {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) total: Option<u64>,
}

impl ContentRange {
    pub(super) const fn len(&self) -> u64 {
        (self.last - self.first).saturating_add(1)
    }

    /// Whether some of these ranges lies within it.
    pub(super) fn includes_one_of(&self, ranges: &[ByteRange]) -> bool {
        let mut ranges = ranges.iter();
        ranges.any(|range| self.first <= range.start && range.end - 1 <= self.last)
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let (unit, rest) = text.trim().split_once(' ')?;
        let (range, total) = rest.trim().split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let total = match total {
            "*" => None,
            total => Some(digits(total)?),
        };
        let range = Self {
            first: digits(first)?,
            last: digits(last)?,
            total,
        };
        let fits = range.first <= range.last && range.total.is_none_or(|total| range.last < total);
        (fits && unit.eq_ignore_ascii_case("bytes")).then_some(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_valid_content_ranges_are_parsed() {
        let range = |first, last, total| Some(ContentRange { first, last, total });
        for (text, expected) in [
            ("bytes 0-0/1", range(0, 0, Some(1))),
            ("Bytes 5-9/10", range(5, 9, Some(10))),
            ("bytes 5-9/*", range(5, 9, None)),
            ("bytes 5-10/10", None),
            ("bytes 9-5/10", None),
            ("bytes */10", None),
            ("bytes 0-18446744073709551616/*", None),
            ("bytes +0-1/2", None),
            ("items 0-1/2", None),
            ("bytes=0-1/2", None),
            ("bytes -1/2", None),
            ("", None),
        ] {
            assert_eq!(ContentRange::parse(text), expected, "{text}");
        }
        let all = ContentRange::parse("bytes 0-18446744073709551615/*").unwrap();
        assert_eq!(all.len(), u64::MAX);
    }
}
