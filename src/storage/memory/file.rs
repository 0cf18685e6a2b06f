//! The content of one blob in memory.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

/// Content that grows while it is staged.
pub(in crate::storage) struct MemoryFile {
    content: Mutex<Vec<u8>>,
    pub(in crate::storage) trust: AtomicU8,
    /// Tells it from every other one of the process.
    pub(in crate::storage) id: u64,
}

impl Default for MemoryFile {
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            content: Mutex::default(),
            trust: AtomicU8::default(),
            id: NEXT.fetch_add(1, Ordering::Relaxed),
        }
    }
}

impl fmt::Debug for MemoryFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryFile({} bytes)", self.len())
    }
}

impl MemoryFile {
    /// Passes `max` bytes from `offset` on to `read`: fewer, or none, at the end.
    fn with<T>(&self, offset: u64, max: usize, read: impl FnOnce(&[u8]) -> T) -> T {
        let content = self.content.lock();
        let offset = usize::try_from(offset).ok();
        let rest = offset.and_then(|offset| content.get(offset..));
        let rest = rest.unwrap_or_default();
        read(rest.get(..max).unwrap_or(rest))
    }

    /// At most `max` bytes from `offset` on; empty at the end.
    pub(in crate::storage) fn read_at(&self, offset: u64, max: usize) -> Bytes {
        self.with(offset, max, Bytes::copy_from_slice)
    }

    /// Fills `buffer` from `offset` on as far as there is content; returns how far that is.
    pub(in crate::storage) fn read_into(&self, offset: u64, buffer: &mut [u8]) -> usize {
        let read = |mut bytes: &[u8]| bytes.read(buffer).unwrap_or_default();
        self.with(offset, usize::MAX, read)
    }

    /// Writes the chunks one after the other; zeros fill a gap before them. Nothing when there
    /// isn't so much memory.
    pub(super) fn write_at(&self, offset: u64, chunks: &[Bytes]) -> io::Result<()> {
        let bytes: usize = chunks.iter().map(Bytes::len).sum();
        if bytes == 0 {
            return Ok(());
        }
        let start = usize::try_from(offset).ok();
        let end = start.and_then(|start| start.checked_add(bytes));
        let end = end.ok_or(io::ErrorKind::OutOfMemory)?;
        let mut content = self.content.lock();
        let more = end.saturating_sub(content.len());
        content.try_reserve(more)?;
        let length = content.len().max(end);
        content.resize(length, 0);
        let mut rest = content.get_mut(end - bytes..).unwrap_or_default();
        chunks.iter().try_for_each(|chunk| rest.write_all(chunk))
    }

    pub(super) fn len(&self) -> u64 {
        self.content.lock().len() as u64
    }
}
