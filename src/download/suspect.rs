//! Discarded bytes that followers have received, for comparison with the next source's.

use super::DownloadError;
use crate::cache::{Admission, Reader};
use crate::oci::{ByteRange, RangeSet};

/// Bytes compared at once.
const BLOCK: usize = 4 * 1024;

/// The content of a stage that was dropped because it doesn't have the digest, and of which followers
/// have received bytes. Dropping this may block: it closes the removed file.
pub(super) struct Suspect {
    pub(super) content: Reader,
    /// The ranges that are in the file.
    pub(super) ranges: RangeSet,
    /// Why they were discarded.
    pub(super) error: DownloadError,
    /// Keeps the file's space reserved.
    pub(super) _admission: Option<Admission>,
}

impl Suspect {
    /// Compares bytes of the new source with the file: adds equal ranges to `agreed`, others to `differs`.
    pub(super) fn compare(
        &self,
        start: u64,
        bytes: &[u8],
        agreed: &mut RangeSet,
        differs: &mut RangeSet,
    ) {
        compare(
            &self.content,
            &self.ranges,
            start,
            bytes,
            BLOCK,
            |range, equal| {
                let set = if equal { &mut *agreed } else { &mut *differs };
                set.insert(range.start, range.end);
            },
        );
    }
}

/// Compares bytes with the `known` ranges of a file, in blocks of at most `block` bytes. Tells each
/// block that the file has, and whether it is equal. Blocks.
pub(super) fn compare(
    content: &Reader,
    known: &RangeSet,
    start: u64,
    bytes: &[u8],
    block: usize,
    mut compared: impl FnMut(ByteRange, bool),
) {
    let mut buffer = vec![0; block.min(bytes.len())];
    let mut rest = bytes;
    for (part, is_known) in known.split(start, start + bytes.len() as u64) {
        let (bytes, behind) = rest.split_at(usize::try_from(part.len()).unwrap_or(rest.len()));
        rest = behind;
        let mut start = part.start;
        for block in bytes.chunks(block).filter(|_| is_known) {
            let piece = buffer.get_mut(..block.len()).unwrap_or_default();
            let equal = content.fill_blocking(start, piece) && piece == block;
            let end = start + block.len() as u64;
            compared(ByteRange { start, end }, equal);
            start = end;
        }
    }
}
