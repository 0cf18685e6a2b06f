//! Discarded bytes that followers have received, for comparison with the next source's.

use crate::cache::Admission;
use crate::error_chain::on_one_line;
use crate::oci::RangeSet;
use crate::storage::Stage;

/// Bytes compared at once.
const BLOCK: usize = 4 * 1024;

/// A staged file that was discarded because its content doesn't have the digest, and of which
/// followers have received bytes.
pub(super) struct Suspect {
    pub(super) stage: Box<dyn Stage>,
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
                let same = read_back(&*self.stage, at, piece) && piece == block;
                if same { &mut *agreed } else { &mut *differs }.insert(at, end);
            }
            (at, rest) = (end, behind);
        }
    }
}

/// Fills the buffer from the file. False when the file can't be read or is too short.
pub(super) fn read_back(stage: &dyn Stage, offset: u64, buffer: &mut [u8]) -> bool {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match stage.read_at(offset + filled as u64, rest) {
            Ok(0) => return false,
            Ok(read) => filled += read,
            Err(error) => {
                tracing::warn!(error = %on_one_line(&error), "what was written can't be read back");
                return false;
            }
        }
    }
    true
}
