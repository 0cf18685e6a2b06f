//! The `Range` header (RFC 9110, section 14).
//!
//! Parsing is separate from resolving, because the length of a blob may be unknown when the header
//! is parsed.

use super::digits;

/// Ranges honoured in one header. podman's partial pulls send up to 70.
pub const MAX_RANGES: usize = 256;

/// One byte range of a representation whose length is known: never empty, always inside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRange {
    /// Offset of the first byte.
    pub start: u64,
    /// Offset after the last byte; greater than `start`.
    pub end: u64,
}

impl ByteRange {
    pub const fn len(&self) -> u64 {
        self.end - self.start
    }

    pub const fn is_empty(&self) -> bool {
        self.end == self.start
    }

    /// `Content-Range` of a part of `total` bytes.
    pub fn content_range(&self, total: u64) -> String {
        format!("bytes {}-{}/{total}", self.start, self.end - 1)
    }
}

/// One range as requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spec {
    /// `first-last`, both included. Not valid, whatever the length, with the last before the first.
    Bounded(u64, u64),
    /// `first-`
    From(u64),
    /// `-length`
    Suffix(u64),
}

/// The ranges of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requested(Vec<Spec>);

/// The response to a range request, for a representation of known length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolved {
    /// 206 with the one range.
    One(ByteRange),
    /// 206 `multipart/byteranges`, in the order of the request.
    Many(Vec<ByteRange>),
    /// 200: the ranges overlap so much that the whole is the smaller answer (RFC 9110, 14.2).
    Whole,
    /// 416.
    Unsatisfiable,
}

impl Requested {
    /// Reads a header value. `None` when it isn't a set of byte ranges: such a header is ignored and
    /// the whole representation sent (RFC 9110, section 14.2). A set with a descending range is
    /// refused instead, as that section allows: a client that computes wrong offsets shall not get the
    /// whole blob.
    pub fn parse(value: &str) -> Option<Self> {
        let (unit, set) = value.split_once('=')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        let mut specs = Vec::new();
        for part in set.split(',').map(|part| part.trim_matches([' ', '\t'])) {
            if part.is_empty() {
                continue;
            }
            if specs.len() == MAX_RANGES {
                return None;
            }
            specs.push(parse_spec(part)?);
        }
        (!specs.is_empty()).then_some(Self(specs))
    }

    /// The start of a single range, and its end if the request states one. `None` if they depend on the
    /// length, and for several ranges.
    pub fn one(&self) -> Option<(u64, Option<u64>)> {
        match *self.0.as_slice() {
            [Spec::Bounded(start, last)] if start <= last => {
                Some((start, Some(last.saturating_add(1))))
            }
            [Spec::From(start)] => Some((start, None)),
            _ => None,
        }
    }

    /// Whether it is for a single range.
    pub fn is_single(&self) -> bool {
        self.0.len() == 1
    }

    /// Whether no representation of any length has these ranges.
    pub fn never_satisfiable(&self) -> bool {
        let mut specs = self.0.iter();
        specs.any(|spec| matches!(spec, Spec::Bounded(first, last) if last < first))
    }

    /// Applies the request to a representation of `total` bytes.
    pub fn resolve(&self, total: u64) -> Resolved {
        if self.never_satisfiable() {
            return Resolved::Unsatisfiable;
        }
        let ranges = self.0.iter().filter_map(|spec| spec.resolve(total));
        let ranges: Vec<ByteRange> = ranges.collect();
        let lengths = ranges.iter().map(ByteRange::len);
        let sum = lengths.fold(0, u64::saturating_add);
        match *ranges.as_slice() {
            [] => Resolved::Unsatisfiable,
            [range] => Resolved::One(range),
            // Each byte at most once: overlapping ranges are how small requests ask for large answers.
            _ if sum > total => Resolved::Whole,
            _ => Resolved::Many(ranges),
        }
    }
}

impl Spec {
    fn resolve(self, total: u64) -> Option<ByteRange> {
        let (start, end) = match self {
            Self::Bounded(start, last) => (start, last.saturating_add(1).min(total)),
            Self::From(start) => (start, total),
            Self::Suffix(length) => (total.saturating_sub(length), total),
        };
        (start < end).then_some(ByteRange { start, end })
    }
}

fn parse_spec(part: &str) -> Option<Spec> {
    let (first, last) = part.split_once('-')?;
    Some(match (first, last) {
        ("", length) => Spec::Suffix(digits(length)?),
        (start, "") => Spec::From(digits(start)?),
        (start, last) => Spec::Bounded(digits(start)?, digits(last)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn resolve(header: &str, total: u64) -> Option<Resolved> {
        Requested::parse(header).map(|requested| requested.resolve(total))
    }

    const fn one(start: u64, end: u64) -> Resolved {
        Resolved::One(ByteRange { start, end })
    }

    #[test]
    fn single_ranges_are_resolved() {
        for (header, expected) in [
            ("bytes=0-0", one(0, 1)),
            ("bytes=0-", one(0, 10)),
            ("bytes=3-5", one(3, 6)),
            ("Bytes=3-50", one(3, 10)),
            ("bytes=-4", one(6, 10)),
            ("bytes=-40", one(0, 10)),
            ("bytes= 9- ,", one(9, 10)),
            ("bytes=0-18446744073709551615", one(0, 10)),
            ("bytes=10-", Resolved::Unsatisfiable),
            ("bytes=-0", Resolved::Unsatisfiable),
            ("bytes=5-3", Resolved::Unsatisfiable),
            ("bytes=500-0", Resolved::Unsatisfiable),
            ("bytes=0-1,5-3", Resolved::Unsatisfiable),
        ] {
            assert_eq!(resolve(header, 10), Some(expected), "{header}");
        }
        assert_eq!(resolve("bytes=0-", 0), Some(Resolved::Unsatisfiable));
    }

    #[test]
    fn malformed_ranges_are_ignored() {
        for header in [
            "",
            "bytes",
            "bytes=",
            "bytes=,",
            "items=0-1",
            "bytes=a-b",
            "bytes=-",
            "bytes=+1-2",
            "bytes=1-2-3",
            "bytes=1 -2",
            "bytes=99999999999999999999-",
        ] {
            assert_eq!(resolve(header, 10), None, "{header}");
        }
    }

    #[test]
    fn several_ranges_keep_their_order_and_never_exceed_the_whole() {
        let many = |ranges: &[(u64, u64)]| {
            Some(Resolved::Many(
                ranges
                    .iter()
                    .map(|&(start, end)| ByteRange { start, end })
                    .collect(),
            ))
        };
        assert_eq!(resolve("bytes=6-7,0-1", 10), many(&[(6, 8), (0, 2)]));
        assert_eq!(resolve("bytes=0-1,20-", 10), Some(one(0, 2)));
        assert_eq!(resolve("bytes=0-,0-,0-", 10), Some(Resolved::Whole));
        assert_eq!(resolve("bytes=20-,30-", 10), Some(Resolved::Unsatisfiable));
        let seventy: Vec<String> = (0..70)
            .map(|n| format!("{}-{}", n * 10, n * 10 + 4))
            .collect();
        assert!(
            matches!(resolve(&format!("bytes={}", seventy.join(",")), 1000), Some(Resolved::Many(r)) if r.len() == 70)
        );
        let flood = vec!["0-0"; MAX_RANGES + 1].join(",");
        assert_eq!(resolve(&format!("bytes={flood}"), 1000), None);
    }

    proptest! {
        #[test]
        fn never_outside_never_empty(header in "bytes=[0-9,-]{0,40}", total in 0u64..200) {
            if let Some(resolved) = resolve(&header, total) {
                let ranges = match resolved {
                    Resolved::One(range) => vec![range],
                    Resolved::Many(ranges) => ranges,
                    Resolved::Whole | Resolved::Unsatisfiable => vec![],
                };
                for range in &ranges {
                    prop_assert!(range.start < range.end && range.end <= total);
                }
                prop_assert!(ranges.iter().map(ByteRange::len).sum::<u64>() <= total);
            }
        }

        #[test]
        fn any_text_is_parsed_without_panic(header in "\\PC*") {
            if let Some(requested) = Requested::parse(&header) {
                requested.resolve(u64::MAX);
            }
        }
    }
}
