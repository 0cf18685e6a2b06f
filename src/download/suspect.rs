//! Discarded bytes that followers have received, for comparison with the next source's.

use crate::cache::Admission;
use crate::cache::Reader;
use crate::oci::RangeSet;

/// Bytes compared at once.
const BLOCK: usize = 4 * 1024;

/// The content of a stage that was dropped because it doesn't have the digest, and of which followers
/// have received bytes. Dropping this may block: it closes the removed file.
pub(super) struct Suspect {
    pub(super) content: Reader,
    /// The ranges that are in the file.
    pub(super) ranges: RangeSet,
    /// Keeps the file's space reserved.
    pub(super) _place: Option<Admission>,
}

impl Suspect {
    /// Compares bytes of the new source with the file: adds equal ranges to `agreed`, others to `differs`.
    pub(super) fn compare(
        &self,
        start: u64,
        part: &[u8],
        agreed: &mut RangeSet,
        differs: &mut RangeSet,
    ) {
        let mut buffer = vec![0; BLOCK.min(part.len())];
        let (mut at, mut rest) = (start, part);
        while !rest.is_empty() {
            let known = self.ranges.end_of(at);
            let until = if known > at {
                known
            } else {
                self.ranges.next_start(at).unwrap_or(u64::MAX)
            };
            let length = usize::try_from(until - at).unwrap_or(usize::MAX);
            let (block, behind) = rest.split_at(length.min(rest.len()).min(BLOCK));
            let end = at + block.len() as u64;
            if known > at {
                let piece = buffer.get_mut(..block.len()).unwrap_or_default();
                let same = self.content.fill_blocking(at, piece) && piece == block;
                if same { &mut *agreed } else { &mut *differs }.insert(at, end);
            }
            (at, rest) = (end, behind);
        }
    }
}
