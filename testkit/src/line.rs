//! The line to the registry: all connections together send at most at its rate.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Bytes sent at a time on a line with a rate.
const PIECE: usize = 64 << 10;
/// The send buffer of a connection with a rate, in bytes: what it holds when the peer dies was sent
/// in vain.
pub(crate) const SEND_BUFFER: u32 = 64 << 10;

pub(crate) struct Line {
    /// Bytes per second, if there is a limit.
    rate: Option<u64>,
    /// When the bytes sent so far were due.
    due: Mutex<Instant>,
    /// Body bytes of blobs that were handed to the kernel.
    blob_bytes: AtomicU64,
}

impl Line {
    pub(crate) fn new(rate: Option<u64>) -> Self {
        Self {
            rate,
            due: Mutex::new(Instant::now()),
            blob_bytes: AtomicU64::new(0),
        }
    }

    /// The most bytes to send before the next [`spend`](Self::spend).
    pub(crate) fn piece(&self) -> usize {
        self.rate.map_or(usize::MAX, |_| PIECE)
    }

    /// Counts sent bytes of a body and waits until the next ones are due.
    pub(crate) async fn spend(&self, bytes: usize, is_blob: bool) {
        let bytes = bytes as u64;
        if is_blob {
            self.blob_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        let Some(rate) = self.rate else { return };
        let due = {
            let mut due = self.due.lock().unwrap();
            *due = Instant::now().max(*due) + Duration::from_nanos(bytes * 1_000_000_000 / rate);
            *due
        };
        tokio::time::sleep_until(due).await;
    }

    pub(crate) fn blob_bytes(&self) -> u64 {
        self.blob_bytes.load(Ordering::Relaxed)
    }
}
