//! A set of byte offsets, as ranges: the written parts of a sparse file.

use super::range::ByteRange;

/// Disjoint ranges that don't touch one another, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RangeSet(Vec<ByteRange>);

impl RangeSet {
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// The ranges, lowest first: none is empty, and between two of them is a gap.
    pub fn ranges(&self) -> &[ByteRange] {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes in the set.
    pub fn len(&self) -> u64 {
        self.0.iter().map(ByteRange::len).sum()
    }

    /// Adds `start..end`, parts of which may be in the set. An empty range adds nothing.
    pub fn insert(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        // Those that overlap or touch it become one with it.
        let from = self.0.partition_point(|range| range.end < start);
        let to = self.0.partition_point(|range| range.start <= end);
        let joined = self.0.get(from..to).unwrap_or_default();
        let start = joined.first().map_or(start, |range| range.start.min(start));
        let end = joined.last().map_or(end, |range| range.end.max(end));
        self.0.splice(from..to, [ByteRange { start, end }]);
    }

    /// Removes the part of `start..end` that is in the set.
    pub fn remove(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let from = self.0.partition_point(|range| range.end <= start);
        let to = self.0.partition_point(|range| range.start < end);
        let cut = self.0.get(from..to).unwrap_or_default();
        let first = cut.first().map_or(start, |range| range.start);
        let last = cut.last().map_or(end, |range| range.end);
        let rests = [(first, start), (end, last)].map(|(start, end)| ByteRange { start, end });
        let rests = rests.into_iter().filter(|rest| rest.start < rest.end);
        self.0.splice(from..to, rests);
    }

    /// Adds all ranges of another set.
    pub fn extend(&mut self, other: &Self) {
        for range in &other.0 {
            self.insert(range.start, range.end);
        }
    }

    /// Divides `start..end` where the set's ranges begin and end: each part, and whether the set
    /// contains it.
    pub fn split(&self, start: u64, end: u64) -> impl Iterator<Item = (ByteRange, bool)> {
        let mut at = start;
        std::iter::from_fn(move || {
            let start = at;
            let known = self.end_of(start);
            let next = || self.next_start(start).unwrap_or(end);
            at = if known > start { known } else { next() }.min(end);
            let part = ByteRange { start, end: at };
            (start < end).then_some((part, known > start))
        })
    }

    /// The end of the range that contains `offset`; `offset` itself if none does.
    pub fn end_of(&self, offset: u64) -> u64 {
        self.covering(offset).map_or(offset, |range| range.end)
    }

    /// The first byte at or after `offset` that is in the set.
    pub fn next_start(&self, offset: u64) -> Option<u64> {
        if self.covering(offset).is_some() {
            return Some(offset);
        }
        let next = self.0.partition_point(|range| range.start <= offset);
        self.0.get(next).map(|range| range.start)
    }

    /// Whether the set contains all of `start..end`.
    pub fn contains(&self, start: u64, end: u64) -> bool {
        start >= end || self.end_of(start) >= end
    }

    fn covering(&self, offset: u64) -> Option<&ByteRange> {
        let at = self.0.partition_point(|range| range.end <= offset);
        self.0.get(at).filter(|range| range.start <= offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn touching_ranges_become_one() {
        let mut set = RangeSet::new();
        set.insert(10, 20);
        set.insert(30, 40);
        set.insert(20, 30);
        assert_eq!(set.ranges(), [ByteRange { start: 10, end: 40 }]);
        assert_eq!((set.len(), set.end_of(10), set.end_of(9)), (30, 40, 9));
        assert_eq!((set.next_start(0), set.next_start(40)), (Some(10), None));
        set.remove(15, 16);
        assert_eq!(set.ranges().len(), 2);
        assert!(set.contains(10, 15) && !set.contains(10, 16) && set.contains(3, 3));
    }

    const SIZE: usize = 48;

    proptest! {
        #[test]
        fn it_agrees_with_a_set_of_bytes(steps in proptest::collection::vec((any::<bool>(), 0..SIZE, 0..SIZE), 0..40)) {
            let mut set = RangeSet::new();
            let mut model = [false; SIZE + 1];
            for (more, start, end) in steps {
                let (first, after) = (start as u64, end as u64);
                if more { set.insert(first, after) } else { set.remove(first, after) }
                (start..end).for_each(|at| model[at] = more);
                for at in 0..SIZE {
                    let run = model[at..].iter().take_while(|there| **there).count();
                    prop_assert_eq!(set.end_of(at as u64), (at + run) as u64);
                    let next = model[at..].iter().position(|there| *there);
                    prop_assert_eq!(set.next_start(at as u64), next.map(|skip| (at + skip) as u64));
                }
                prop_assert_eq!(set.len(), model.iter().filter(|there| **there).count() as u64);
                for pair in set.ranges().windows(2) {
                    prop_assert!(pair[0].start < pair[0].end && pair[0].end < pair[1].start);
                }
            }
        }
    }
}
