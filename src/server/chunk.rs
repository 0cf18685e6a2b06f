//! What bodies are made of: bytes in memory, or a range of a file that the connection sends by itself.
//!
//! hyper knows buffers of memory only. A file's range therefore goes through hyper as a stand-in: a
//! slice of zeros of the range's length, whose address no other memory can have. The body puts the
//! range into its connection's [`FileQueue`] and gives hyper the stand-in; the connection's socket
//! recognises the stand-in among the buffers that it shall write, and sends what the queue's first
//! range says. HTTP/1 has one answer at a time on a connection and hyper keeps buffers in order, so
//! the first range is always the one that is meant.
//!
//! What must never happen: zeros, or another range, on the wire. The queue is broken, and with it the
//! connection, as soon as a stand-in is read, skipped, dropped before it was sent, or doesn't have
//! the length of the range that is next.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice};
use std::sync::{Arc, LazyLock};

use bytes::{Buf, Bytes};
use parking_lot::Mutex;

use crate::cache::Reader;

/// Most bytes of a file that one chunk stands for: what a connection sends before others on its
/// thread have a turn.
pub(super) const MAX_PIECE: usize = 256 * 1024;
/// Most ranges that wait on one connection: hyper flushes after as many buffers.
const MAX_QUEUED: usize = 16;

/// What stand-ins are slices of. Nothing reads or writes it, and memory that is made zeroed at this
/// size is mapped, not touched: it takes address space only. Reading it would be harmless.
static STAND_IN: LazyLock<&'static [u8]> = LazyLock::new(|| vec![0; MAX_PIECE].leak());

/// A part of a body.
#[derive(Debug)]
pub enum Chunk {
    Memory(Bytes),
    File(FileChunk),
}

/// A range of a file that its connection sends.
pub struct FileChunk {
    /// Bytes that hyper has still to account for.
    left: usize,
    files: FileQueue,
}

/// The ranges of files that wait to be sent on one connection. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct FileQueue(Arc<Mutex<ChunkState>>);

#[derive(Debug, Default)]
struct ChunkState {
    ranges: VecDeque<Range>,
    /// Bytes that the socket has sent and hyper has not yet taken off its stand-ins.
    unclaimed: usize,
    broken: Option<Broken>,
    /// Files of this connection can't be sent, only read.
    unsupported: bool,
}

/// A range that is sent next. It keeps the file open until its bytes are with the kernel, longer than
/// the body and its hold live: an open file stays readable after it is removed.
#[derive(Debug, Clone)]
pub(super) struct Range {
    pub reader: Reader,
    /// Offset in the file.
    pub start: u64,
    /// Bytes.
    pub len: usize,
}

/// Why nothing more may be sent on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    #[error("a file's stand-in was read instead of sent")]
    Read,
    #[error("a file's stand-in was skipped")]
    Skipped,
    #[error("a file's stand-in was dropped before it was sent")]
    Dropped,
    #[error("a file's stand-in fits no range that waits")]
    Unknown,
    #[error("the file got shorter while it was sent")]
    Shorter,
}

impl From<Broken> for io::Error {
    fn from(broken: Broken) -> Self {
        let kind = match broken {
            Broken::Shorter => io::ErrorKind::UnexpectedEof,
            Broken::Read | Broken::Skipped | Broken::Dropped | Broken::Unknown => {
                io::ErrorKind::InvalidData
            }
        };
        Self::new(kind, broken)
    }
}

impl FileQueue {
    /// Queues `len` bytes of the reader's file, or the first [`MAX_PIECE`] of them. None when this
    /// connection can't take it: what is wanted has to be read into memory then.
    pub(super) fn push(&self, reader: Reader, start: u64, len: usize) -> Option<Chunk> {
        let len = len.min(MAX_PIECE);
        let mut state = self.0.lock();
        let refused = state.unsupported || state.broken.is_some();
        if len == 0 || refused || state.ranges.len() >= MAX_QUEUED {
            return None;
        }
        reader.file()?;
        state.ranges.push_back(Range { reader, start, len });
        drop(state);
        Some(Chunk::File(FileChunk {
            left: len,
            files: self.clone(),
        }))
    }

    /// Whether anything may be sent.
    pub(super) fn check(&self) -> Result<(), Broken> {
        self.0.lock().broken.map_or(Ok(()), Err)
    }

    /// The range that a stand-in of this length stands for.
    pub(super) fn next(&self, len: usize) -> Result<Range, Broken> {
        let state = self.0.lock();
        if let Some(broken) = state.broken {
            return Err(broken);
        }
        match state.ranges.front() {
            Some(range) if range.len == len => Ok(range.clone()),
            _ => {
                drop(state);
                Err(self.broken(Broken::Unknown))
            }
        }
    }

    /// The next `bytes` of the first range have been sent.
    pub(super) fn sent(&self, bytes: usize) {
        let mut state = self.0.lock();
        state.unclaimed += bytes;
        if let Some(range) = state.ranges.front_mut() {
            range.start += bytes as u64;
            range.len = range.len.saturating_sub(bytes);
            if range.len == 0 {
                state.ranges.pop_front();
            }
        }
    }

    /// Nothing may be sent any more. Returns the first reason there was.
    pub(super) fn broken(&self, why: Broken) -> Broken {
        *self.0.lock().broken.get_or_insert(why)
    }

    /// From now on, files are read.
    pub(super) fn unsupported(&self) {
        self.0.lock().unsupported = true;
    }
}

/// Whether a buffer stands for a range of a file.
pub(super) fn is_stand_in(buffer: &[u8]) -> bool {
    !buffer.is_empty() && STAND_IN.as_ptr_range().contains(&buffer.as_ptr())
}

impl Chunk {
    /// Takes the first `len` bytes off, where the chunk is in memory and longer.
    pub(super) fn split_to(&mut self, len: usize) -> Option<Self> {
        match self {
            Self::Memory(bytes) if bytes.len() > len => Some(Self::Memory(bytes.split_to(len))),
            Self::Memory(_) | Self::File(_) => None,
        }
    }
}

impl FileChunk {
    fn stand_in(&self) -> &'static [u8] {
        STAND_IN.get(..self.left).unwrap_or_default()
    }
}

impl Buf for FileChunk {
    fn remaining(&self) -> usize {
        self.left
    }

    /// Who asks for one slice is about to copy it.
    fn chunk(&self) -> &[u8] {
        self.files.broken(Broken::Read);
        self.stand_in()
    }

    /// Who asks for several is about to pass them to the socket.
    fn chunks_vectored<'a>(&'a self, dst: &mut [IoSlice<'a>]) -> usize {
        match dst.first_mut() {
            Some(first) if self.left > 0 => {
                *first = IoSlice::new(self.stand_in());
                1
            }
            _ => 0,
        }
    }

    fn advance(&mut self, bytes: usize) {
        let claimed = {
            let mut state = self.files.0.lock();
            let rest = state.unclaimed.checked_sub(bytes);
            state.unclaimed = rest.unwrap_or(0);
            rest.is_some() && bytes <= self.left
        };
        if !claimed {
            self.files.broken(Broken::Skipped);
        }
        self.left = self.left.saturating_sub(bytes);
    }
}

impl Drop for FileChunk {
    fn drop(&mut self) {
        if self.left > 0 {
            self.files.broken(Broken::Dropped);
        }
    }
}

impl fmt::Debug for FileChunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileChunk({} bytes)", self.left)
    }
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        match self {
            Self::Memory(bytes) => bytes.remaining(),
            Self::File(file) => file.remaining(),
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Self::Memory(bytes) => bytes.chunk(),
            Self::File(file) => file.chunk(),
        }
    }

    fn chunks_vectored<'a>(&'a self, dst: &mut [IoSlice<'a>]) -> usize {
        match self {
            Self::Memory(bytes) => bytes.chunks_vectored(dst),
            Self::File(file) => file.chunks_vectored(dst),
        }
    }

    fn advance(&mut self, bytes: usize) {
        match self {
            Self::Memory(memory) => memory.advance(bytes),
            Self::File(file) => file.advance(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Reader;
    use bytes::BytesMut;
    use bytes::buf::BufMut as _;

    fn queued(lens: &[usize]) -> (FileQueue, Vec<Chunk>) {
        let files = FileQueue::default();
        let reader = Reader::of_temporary(b"");
        let push = |len: &usize| files.push(reader.clone(), 0, *len).unwrap();
        let chunks = lens.iter().map(push).collect();
        (files, chunks)
    }

    #[test]
    fn what_is_sent_and_claimed_is_forgotten() {
        let (files, mut chunks) = queued(&[5, MAX_PIECE]);
        let mut slices = [IoSlice::new(&[]); 2];
        assert_eq!(chunks[0].chunks_vectored(&mut slices), 1);
        assert!(is_stand_in(&slices[0]) && slices[0].len() == 5);
        files.sent(2);
        chunks[0].advance(2);
        assert_eq!(files.next(3).unwrap().start, 2);
        files.sent(3);
        chunks[0].advance(3);
        drop(chunks.remove(0));
        assert_eq!(files.next(MAX_PIECE).unwrap().len, MAX_PIECE);
    }

    #[test]
    fn a_stand_in_that_is_misused_breaks_the_connection() {
        let (files, chunks) = queued(&[5]);
        let mut copy = BytesMut::new();
        copy.put(chunks.into_iter().next().unwrap());
        assert_eq!(files.check(), Err(Broken::Read));

        let (files, mut chunks) = queued(&[5, 5]);
        chunks[0].advance(5);
        assert_eq!(files.next(5).unwrap_err(), Broken::Skipped);

        let (files, chunks) = queued(&[5]);
        drop(chunks);
        assert_eq!(files.check(), Err(Broken::Dropped));

        let (files, _chunks) = queued(&[5, 6]);
        assert_eq!(files.next(6).unwrap_err(), Broken::Unknown);
        assert_eq!(files.next(5).unwrap_err(), Broken::Unknown);
    }

    #[test]
    fn the_queue_is_bounded_and_refuses_what_cant_be_sent() {
        let (files, _chunks) = queued(&[1; MAX_QUEUED]);
        let reader = Reader::of_temporary(b"");
        assert!(files.push(reader.clone(), 0, 1).is_none());
        let files = FileQueue::default();
        assert!(files.push(reader.clone(), 0, 0).is_none());
        assert_eq!(
            files
                .push(reader.clone(), 0, usize::MAX)
                .unwrap()
                .remaining(),
            MAX_PIECE
        );
        let files = FileQueue::default();
        files.unsupported();
        assert!(files.push(reader, 0, 1).is_none());
    }

    #[test]
    fn only_stand_ins_are_stand_ins() {
        assert!(!is_stand_in(&[]));
        assert!(!is_stand_in(&[0; 5]));
        assert!(!is_stand_in(&vec![0; MAX_PIECE]));
    }
}
