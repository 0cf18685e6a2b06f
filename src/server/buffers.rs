//! The memory that unsent bytes of responses take: a budget of the whole process, and of each
//! HTTP/2 connection.
//!
//! The budget is soft, so that no client can take all of it and stall the others: a body that finds it
//! exhausted continues in small pieces, one at a time on a connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Buf, Bytes};
use tokio::sync::Notify;

use super::chunk::Chunk;

/// Bytes of responses that the process holds in memory before it saves: 512 connections with a
/// whole piece each.
const PROCESS_BUDGET: usize = 64 * 1024 * 1024;
/// Bytes that one HTTP/2 connection's streams have handed over and that aren't sent.
const CONNECTION_BUDGET: usize = 256 * 1024;
/// Bytes that are read at once when the process saves memory.
const SMALL_PIECE: usize = 8 * 1024;

/// Counts what responses hold in memory. Clones share the count.
#[derive(Debug, Clone, Default)]
pub struct ResponseBuffers(Arc<AtomicUsize>);

impl ResponseBuffers {
    /// How many bytes a body may read at once, of those that it would like to.
    pub(super) fn piece(&self, wanted: usize) -> usize {
        if self.exhausted() {
            wanted.min(SMALL_PIECE)
        } else {
            wanted
        }
    }

    /// Counts bytes that aren't a body's.
    pub(super) fn hold(&self, len: usize) -> Held {
        self.0.fetch_add(len, Ordering::Relaxed);
        Held {
            len,
            process: self.clone(),
        }
    }

    fn exhausted(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= PROCESS_BUDGET
    }

    /// Counts `bytes` as long as they, or a part of them, are in use.
    pub(super) fn count(&self, bytes: Bytes) -> Bytes {
        self.0.fetch_add(bytes.len(), Ordering::Relaxed);
        Bytes::from_owner(Counted {
            bytes,
            process: self.clone(),
        })
    }
}

/// Bytes that are counted until this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    len: usize,
    process: ResponseBuffers,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.process.0.fetch_sub(self.len, Ordering::Relaxed);
    }
}

struct Counted {
    bytes: Bytes,
    process: ResponseBuffers,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.process
            .0
            .fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

/// What the streams of one HTTP/2 connection have handed over. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct ConnectionBuffers(Arc<BudgetInner>);

#[derive(Debug)]
struct BudgetInner {
    process: ResponseBuffers,
    unsent: AtomicUsize,
    sent: Notify,
}

impl ConnectionBuffers {
    pub(super) fn new(process: ResponseBuffers) -> Self {
        Self(Arc::new(BudgetInner {
            process,
            unsent: AtomicUsize::new(0),
            sent: Notify::new(),
        }))
    }

    /// How many bytes a stream may read now, of those that it would like to. 0: first some of the
    /// connection's must be sent.
    pub(super) fn piece(&self, wanted: usize) -> usize {
        let unsent = self.0.unsent.load(Ordering::Relaxed);
        let free = if self.0.process.exhausted() {
            // One piece at a time on each connection.
            if unsent == 0 { SMALL_PIECE } else { 0 }
        } else {
            CONNECTION_BUDGET.saturating_sub(unsent)
        };
        wanted.min(free)
    }

    /// Waits until [`piece`](Self::piece) allows something. The caller must hold no capacity of the
    /// connection's window, which what is unsent may need.
    pub(super) async fn available(&self) {
        loop {
            let sent = self.0.sent.notified();
            tokio::pin!(sent);
            sent.as_mut().enable();
            if self.piece(1) > 0 {
                return;
            }
            sent.await;
        }
    }

    /// Counts a chunk until it is sent or given up.
    pub(super) fn unsent(&self, chunk: Chunk) -> Unsent {
        let len = chunk.remaining();
        self.0.unsent.fetch_add(len, Ordering::Relaxed);
        self.0.process.0.fetch_add(len, Ordering::Relaxed);
        Unsent {
            chunk,
            len,
            buffers: self.clone(),
        }
    }
}

/// A part of a body that waits for HTTP/2 to send it.
#[derive(Debug)]
pub(super) struct Unsent {
    chunk: Chunk,
    len: usize,
    buffers: ConnectionBuffers,
}

impl Buf for Unsent {
    fn remaining(&self) -> usize {
        self.chunk.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.chunk.chunk()
    }

    fn chunks_vectored<'a>(&'a self, dst: &mut [std::io::IoSlice<'a>]) -> usize {
        self.chunk.chunks_vectored(dst)
    }

    fn advance(&mut self, bytes: usize) {
        self.chunk.advance(bytes);
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        let BudgetInner {
            process,
            unsent,
            sent,
        } = &*self.buffers.0;
        process.0.fetch_sub(self.len, Ordering::Relaxed);
        unsent.fetch_sub(self.len, Ordering::Relaxed);
        sent.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(len: usize) -> Chunk {
        Chunk::Memory(vec![0; len].into())
    }

    #[tokio::test]
    async fn a_connection_waits_for_its_own_bytes_to_be_sent() {
        let connection = ConnectionBuffers::new(ResponseBuffers::default());
        assert_eq!(connection.piece(1000), 1000);
        let first = connection.unsent(chunk(CONNECTION_BUDGET - 10));
        assert_eq!(connection.piece(1000), 10);
        let second = connection.unsent(chunk(10));
        assert_eq!(connection.piece(1000), 0);
        let waiting = tokio_util::task::TaskTracker::new().spawn({
            let connection = connection.clone();
            async move { connection.available().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(second);
        waiting.await.unwrap();
        drop(first);
        assert_eq!(connection.piece(usize::MAX), CONNECTION_BUDGET);
    }

    #[test]
    fn who_holds_the_whole_budget_keeps_nobody_waiting() {
        let process = ResponseBuffers::default();
        let hog = process.count(vec![0; PROCESS_BUDGET].into());
        let part = hog.slice(..1);
        drop(hog);
        assert_eq!(
            process.piece(100_000),
            SMALL_PIECE,
            "a part keeps the whole"
        );
        let connection = ConnectionBuffers::new(process.clone());
        assert_eq!(connection.piece(100_000), SMALL_PIECE);
        let unsent = connection.unsent(chunk(1));
        assert_eq!(connection.piece(100_000), 0, "one piece at a time");
        drop((part, unsent));
        assert_eq!(process.piece(100_000), 100_000);
        assert_eq!(connection.piece(100_000), 100_000);
        assert_eq!(process.0.load(Ordering::Relaxed), 0);
    }
}
