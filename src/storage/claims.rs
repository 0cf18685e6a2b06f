//! Which bytes of a staged file a checkpoint claims, with a checksum for each range of them.
//!
//! A claim is one contiguous range inside one block of [`BLOCK`] bytes, with the CRC32C of its bytes.
//! Bytes are added as they are written, so each is checksummed once, from memory. Claims that touch
//! inside a block become one; the checksum of two is computed from theirs.

use std::collections::BTreeMap;

use crate::oci::RangeSet;

/// The range of a claim never crosses a multiple of this many bytes: one damaged byte costs at most
/// one block.
pub(super) const BLOCK: u64 = 4 * 1024 * 1024;

/// Bytes read at a time to verify a claim.
const PIECE: usize = 256 * 1024;

/// Start, end (exclusive) and CRC32C.
pub(super) type Claim = (u64, u64, u32);

/// Disjoint claims, each at its start, with its end and its CRC32C.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Claims(BTreeMap<u64, (u64, u32)>);

impl Claims {
    /// Claims bytes that have been written at `offset`. Earlier claims on any of them are dropped
    /// whole: their checksums are of other bytes.
    pub(super) fn add(&mut self, mut offset: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let left = usize::try_from(BLOCK - offset % BLOCK).unwrap_or(usize::MAX);
            let (part, rest) = bytes.split_at(left.min(bytes.len()));
            self.add_in_block(offset, part);
            offset += part.len() as u64;
            bytes = rest;
        }
    }

    fn add_in_block(&mut self, mut start: u64, bytes: &[u8]) {
        let mut end = start + bytes.len() as u64;
        self.remove(start, end);
        let mut crc = match self.0.range(..start).next_back() {
            Some((&first, &(last, before))) if last == start && !start.is_multiple_of(BLOCK) => {
                start = first;
                crc32c::crc32c_append(before, bytes)
            }
            _ => crc32c::crc32c(bytes),
        };
        if !end.is_multiple_of(BLOCK)
            && let Some((last, behind)) = self.0.remove(&end)
        {
            let length = usize::try_from(last - end).unwrap_or(usize::MAX);
            crc = crc32c::crc32c_combine(crc, behind, length);
            end = last;
        }
        self.0.insert(start, (end, crc));
    }

    /// Drops every claim on a byte of `start..end`.
    pub(super) fn remove(&mut self, start: u64, end: u64) {
        while let Some((&first, &(last, _))) = self.0.range(..end).next_back()
            && last > start
        {
            self.0.remove(&first);
        }
    }

    /// Drops the claims whose bytes can't be read or have another checksum. `read` fills a buffer
    /// from an offset on, or returns false.
    pub(super) fn verify(&mut self, mut read: impl FnMut(u64, &mut [u8]) -> bool) {
        let mut buffer = vec![0; PIECE];
        self.0.retain(|start, (end, expected)| {
            let (mut at, mut crc) = (*start, 0);
            while at < *end {
                let left = usize::try_from(*end - at).unwrap_or(PIECE).min(PIECE);
                let piece = buffer.get_mut(..left).unwrap_or_default();
                if !read(at, piece) {
                    return false;
                }
                crc = crc32c::crc32c_append(crc, piece);
                at += left as u64;
            }
            crc == *expected
        });
    }

    /// The first `max` claims, in order.
    pub(super) fn first(&self, max: usize) -> Vec<Claim> {
        let claims = self.0.iter().take(max);
        claims
            .map(|(start, (end, crc))| (*start, *end, *crc))
            .collect()
    }

    /// The claims of a checkpoint, as its text has them. None when one is empty, out of order, longer
    /// than its block, or ends after `total`.
    pub(super) fn parse(claims: &[Claim], total: u64) -> Option<Self> {
        let mut free = 0;
        let mut parsed = BTreeMap::new();
        for &(start, end, crc) in claims {
            let same_block = start < end && start / BLOCK == (end - 1) / BLOCK;
            if start < free || !same_block || end > total {
                return None;
            }
            parsed.insert(start, (end, crc));
            free = end;
        }
        Some(Self(parsed))
    }

    pub(super) fn ranges(&self) -> RangeSet {
        let mut ranges = RangeSet::new();
        for (start, (end, _)) in &self.0 {
            ranges.insert(*start, *end);
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The file of the model begins this far before the end of a block, so that writes cross it.
    const BEFORE: u64 = 40;
    const SIZE: usize = 100;
    const ORIGIN: u64 = BLOCK - BEFORE;

    /// A write of `length` bytes of `value`, or a range that a failed write has made unknown.
    #[derive(Debug, Clone)]
    enum Step {
        Write(usize, usize, u8),
        Forget(usize, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let range = || (0..SIZE, 1..SIZE / 3);
        prop_oneof![
            8 => (range(), any::<u8>()).prop_map(|((at, length), value)| Step::Write(at, length.min(SIZE - at), value)),
            1 => range().prop_map(|(at, length)| Step::Forget(at, length.min(SIZE - at))),
        ]
    }

    fn read(file: &[u8]) -> impl FnMut(u64, &mut [u8]) -> bool {
        move |offset, buffer| {
            let at = usize::try_from(offset - ORIGIN).unwrap();
            buffer.copy_from_slice(&file[at..at + buffer.len()]);
            true
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

        /// Against a file and a note of which bytes were written: every claim is true, whatever was
        /// written over it, and without overwriting every written byte is claimed.
        #[test]
        fn claims_are_true_and_lose_nothing(steps in prop::collection::vec(step(), 1..30), flip in 0..SIZE) {
            let mut claims = Claims::default();
            let (mut file, mut written) = (vec![0; SIZE], vec![false; SIZE]);
            let mut lossless = true;
            for step in steps {
                let (Step::Write(at, length, _) | Step::Forget(at, length)) = step;
                let place = at..at + length;
                let (start, end) = (ORIGIN + at as u64, ORIGIN + (at + length) as u64);
                match step {
                    Step::Write(_, _, value) => {
                        lossless &= !written[place.clone()].contains(&true);
                        file[place.clone()].fill(value);
                        written[place.clone()].fill(true);
                        claims.add(start, &file[place]);
                    }
                    Step::Forget(..) => {
                        lossless &= !written[place.clone()].contains(&true);
                        claims.remove(start, end);
                        written[place].fill(false);
                    }
                }
            }
            let ranges = claims.ranges();
            for (at, written) in written.iter().enumerate() {
                let at = ORIGIN + at as u64;
                let claimed = ranges.contains(at, at + 1);
                prop_assert!(*written || !claimed, "byte {at} is claimed and wasn't written");
                prop_assert!(!lossless || claimed == *written, "byte {at} was lost");
            }
            // No claim crosses a block, so the text is accepted.
            let total = ORIGIN + SIZE as u64;
            let parsed = Claims::parse(&claims.first(usize::MAX), total).unwrap();
            prop_assert_eq!(&parsed, &claims);
            // One claim for each contiguous range of a block.
            let expected = ranges.ranges().iter().map(|range| 1 + usize::from(range.start < BLOCK && range.end > BLOCK));
            if lossless {
                prop_assert_eq!(claims.0.len(), expected.sum::<usize>());
            }
            let mut verified = claims.clone();
            verified.verify(read(&file));
            prop_assert_eq!(&verified, &claims);
            // A flipped bit costs the claim that has it, and no other.
            file[flip] ^= 1;
            verified.verify(read(&file));
            let flipped = ORIGIN + flip as u64;
            claims.remove(flipped, flipped + 1);
            prop_assert_eq!(verified, claims);
        }
    }

    #[test]
    fn a_claim_that_cannot_be_read_is_dropped() {
        let mut claims = Claims::default();
        claims.add(0, &vec![7; 2 * usize::try_from(BLOCK).unwrap()]);
        assert_eq!(claims.first(9).len(), 2);
        claims.verify(|offset, buffer| {
            buffer.fill(7);
            offset < BLOCK
        });
        assert_eq!((claims.ranges().len(), claims.first(9).len()), (BLOCK, 1));
    }

    #[test]
    fn invalid_claims_are_refused() {
        let parse = |claims: &[Claim]| Claims::parse(claims, 2 * BLOCK);
        assert!(parse(&[(0, BLOCK, 1), (BLOCK, 2 * BLOCK, 2)]).is_some());
        for refused in [
            &[(3, 3, 0)][..],
            &[(3, 2, 0)],
            &[(0, 5, 0), (4, 6, 0)],
            &[(5, 6, 0), (0, 2, 0)],
            &[(BLOCK - 1, BLOCK + 1, 0)],
            &[(2 * BLOCK - 1, 2 * BLOCK + 1, 0)],
            &[(2 * BLOCK, 2 * BLOCK + 1, 0)],
        ] {
            assert_eq!(parse(refused), None, "{refused:?}");
        }
    }
}
