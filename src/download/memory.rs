//! The most recent chunks of a download, by offset.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::oci::RangeSet;

/// Bytes of chunks kept in memory although they are in the file, so that followers near a stream's
/// position are served without reading the file.
const RECENT: usize = 1024 * 1024;

#[derive(Debug, Default)]
pub(super) struct Memory {
    chunks: BTreeMap<u64, Bytes>,
    /// Offsets of the chunks, in order of arrival.
    order: VecDeque<u64>,
    pub(super) bytes: usize,
}

impl Memory {
    pub(super) fn push(&mut self, offset: u64, chunk: Bytes) {
        self.bytes += chunk.len();
        self.order.push_back(offset);
        if let Some(replaced) = self.chunks.insert(offset, chunk) {
            self.bytes -= replaced.len();
        }
    }

    /// The bytes from `offset` to the end of the chunk that holds it.
    pub(super) fn get(&self, offset: u64) -> Option<Bytes> {
        let (start, chunk) = self.chunks.range(..=offset).next_back()?;
        let skip = usize::try_from(offset - start).ok()?;
        (skip < chunk.len()).then(|| chunk.slice(skip..))
    }

    /// Drops the oldest chunks that are in the file, except [`RECENT`] bytes.
    pub(super) fn trim(&mut self, written: &RangeSet) {
        while self.bytes > RECENT
            && let Some(&oldest) = self.order.front()
        {
            if let Some(chunk) = self.chunks.get(&oldest) {
                if !written.contains(oldest, oldest + chunk.len() as u64) {
                    return;
                }
                self.bytes -= chunk.len();
                self.chunks.remove(&oldest);
            }
            self.order.pop_front();
        }
    }

    /// Drops the chunks that end at or before `floor`. Returns the end of the last one dropped.
    pub(super) fn forget_below(&mut self, floor: u64) -> Option<u64> {
        let ends = self
            .chunks
            .iter()
            .map(|(start, chunk)| start + chunk.len() as u64);
        let forgotten = ends.take_while(|end| *end <= floor).last()?;
        self.retain(|_, end| end > forgotten);
        Some(forgotten)
    }

    /// Drops the chunks for whose start and end `keep` is false.
    pub(super) fn retain(&mut self, keep: impl Fn(u64, u64) -> bool) {
        let keep = |start: &u64, chunk: &mut Bytes| keep(*start, *start + chunk.len() as u64);
        self.chunks.retain(keep);
        self.bytes = self.chunks.values().map(Bytes::len).sum();
        let chunks = &self.chunks;
        self.order.retain(|offset| chunks.contains_key(offset));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(byte: u8, length: usize) -> Bytes {
        vec![byte; length].into()
    }

    #[test]
    fn old_chunks_go_once_they_are_written() {
        let mut memory = Memory::default();
        memory.push(RECENT as u64, chunk(2, RECENT));
        memory.push(0, chunk(1, 10));
        let mut written = RangeSet::new();
        written.insert(0, 10);
        memory.trim(&written);
        assert_eq!(memory.bytes, RECENT + 10, "the oldest isn't written");
        assert_eq!(memory.get(7).unwrap(), &[1, 1, 1][..]);
        assert_eq!(memory.get(10), None);
        written.insert(RECENT as u64, 2 * RECENT as u64);
        memory.trim(&written);
        assert_eq!((memory.bytes, memory.get(RECENT as u64)), (10, None));
        assert_eq!(memory.forget_below(9), None);
        assert_eq!(memory.forget_below(10), Some(10));
        assert_eq!((memory.bytes, memory.order.len()), (0, 0));
    }
}
