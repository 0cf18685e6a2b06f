//! Announced ranges that one request asks for. Pure.

use crate::oci::{ByteRange, RangeSet};
use crate::upstream::{MAX_RANGE_HEADER, MAX_RANGES};

/// Bytes between two announced ranges that are fetched along with them: a request costs more.
const MERGED: u64 = 64 * 1024;
/// Bytes that one request for several ranges asks for at most. Its ranges come one after the other;
/// several streams bring larger ones sooner.
const MAX_BATCH: u64 = 8 * 1024 * 1024;

/// The first bytes of `ranges` from `from` on that aren't taken, and those that follow closely.
pub(super) fn first(ranges: &RangeSet, taken: &RangeSet, from: u64) -> Option<ByteRange> {
    let ranges = ranges.ranges();
    let skipped = ranges.partition_point(|range| range.end <= from);
    let ranges = ranges.get(skipped..).unwrap_or_default().iter();
    let parts = ranges.flat_map(|range| taken.split(range.start.max(from), range.end));
    let mut found: Option<ByteRange> = None;
    for (part, _) in parts.filter(|(_, is_taken)| !is_taken) {
        let Some(ByteRange { end, .. }) = &mut found else {
            found = Some(part);
            continue;
        };
        let free = taken.next_start(*end).is_none_or(|next| next >= part.start);
        if !free || part.start - *end > MERGED {
            break;
        }
        *end = part.end;
    }
    found
}

/// The ranges behind `first` that the same request asks for: as many as one request may have.
/// `taken` includes `first`.
pub(super) fn further(ranges: &RangeSet, mut taken: RangeSet, first: ByteRange) -> RangeSet {
    let mut chosen = RangeSet::new();
    let (mut bytes, mut header, mut from) = (first.len(), header_length(first), first.end);
    while chosen.ranges().len() + 1 < MAX_RANGES {
        let Some(next) = self::first(ranges, &taken, from) else {
            break;
        };
        bytes = bytes.saturating_add(next.len());
        header += header_length(next);
        if bytes > MAX_BATCH || header > MAX_RANGE_HEADER {
            break;
        }
        let ByteRange { start, end } = next;
        taken.insert(start, end);
        chosen.insert(start, end);
        from = end;
    }
    chosen
}

/// Bytes of a range in a Range header, with the comma.
fn header_length(range: ByteRange) -> usize {
    let digits = |number: u64| number.checked_ilog10().map_or(1, |log| log as usize + 1);
    digits(range.start) + digits(range.end) + "-,".len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAR: u64 = MERGED + 1000;

    /// So many ranges of `length` bytes, too far apart to be merged.
    fn ranges(count: u64, length: u64, from: u64) -> RangeSet {
        let mut ranges = RangeSet::new();
        for n in 0..count {
            let start = from + n * (length + FAR);
            ranges.insert(start, start + length);
        }
        ranges
    }

    /// How many ranges the first request asks for.
    fn batch(ranges: &RangeSet) -> usize {
        let first = first(ranges, &RangeSet::new(), 0).unwrap();
        let mut taken = RangeSet::new();
        taken.insert(first.start, first.end);
        1 + further(ranges, taken, first).ranges().len()
    }

    #[test]
    fn a_request_is_bounded_in_ranges_bytes_and_header() {
        for (count, length, from, expected) in [
            (1, 10, 0, 1),
            (70, 1000, 0, 70),
            (170, 1000, 0, MAX_RANGES),
            (100, 1024 * 1024, 0, 8),
            (100, MAX_BATCH + 1, 0, 1),
            // Offsets of 20 digits: 42 bytes each.
            (170, 1000, 10_u64.pow(19), MAX_RANGE_HEADER / 42),
        ] {
            let ranges = ranges(count, length, from);
            assert_eq!(batch(&ranges), expected, "{count} of {length} at {from}");
        }
    }

    #[test]
    fn neighbours_are_merged_and_taken_bytes_are_left_out() {
        let mut all = ranges(4, 1000, 0);
        all.insert(1500, 1600);
        assert_eq!(batch(&all), 4);
        let first = first(&all, &RangeSet::new(), 0).unwrap();
        assert_eq!((first.start, first.end), (0, 1600));
        let mut taken = RangeSet::new();
        taken.insert(0, 1600);
        let (second, third) = (all.ranges()[2], all.ranges()[3]);
        taken.insert(second.start - 10, second.end);
        let rest = further(&all, taken, first);
        assert_eq!(rest.ranges().first(), Some(&third));
    }
}
