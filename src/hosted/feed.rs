//! Takes the bytes of a request to the file of its upload.
//!
//! ```text
//! body ── push ──► queue (2 MiB) ──► the blocking pool: hash, write ──► file of the store
//! ```
//!
//! The pool takes everything that has arrived meanwhile at a time, and keeps the turn until the queue is
//! empty. So no byte that was taken from a connection is lost when its request ends.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::HostedError;
use super::session::Turn;

/// Bytes of an upload that wait for the disk, or are with it. Above it the connection isn't read.
const MAX_PENDING: usize = 2 * 1024 * 1024;
/// Chunks that wait.
const MAX_CHUNKS: usize = 512;

/// Takes the chunks of one request to the file.
#[derive(Debug)]
pub(super) struct Feed {
    turn: Arc<Turn>,
    queue: Arc<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<QueueState>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct QueueState {
    chunks: Vec<Bytes>,
    /// Bytes in the queue, and with the pool.
    pending: usize,
    /// The pool has the queue.
    running: bool,
    failure: Option<HostedError>,
}

/// Ends the pool's work on a queue, also when that panics.
struct Running(Arc<Queue>, bool);

impl Drop for Running {
    fn drop(&mut self) {
        if !self.1 {
            let mut state = self.0.state.lock();
            state.running = false;
            state.failure.get_or_insert(HostedError::Lost);
        }
        self.0.changed.notify_waiters();
    }
}

impl Feed {
    pub(super) fn new(turn: &Arc<Turn>) -> Self {
        Self {
            turn: Arc::clone(turn),
            queue: Arc::default(),
        }
    }

    /// Waits until there is room, and adds a chunk. Cancel safe: the chunk is added or not.
    pub(super) async fn push(&self, chunk: Bytes) -> Result<(), HostedError> {
        self.until(|state| state.pending < MAX_PENDING && state.chunks.len() < MAX_CHUNKS)
            .await?;
        let mut state = self.queue.state.lock();
        state.pending += chunk.len();
        state.chunks.push(chunk);
        if !std::mem::replace(&mut state.running, true) {
            let (queue, turn) = (Arc::clone(&self.queue), Arc::clone(&self.turn));
            tokio::task::spawn_blocking(move || drain(&queue, &turn));
        }
        Ok(())
    }

    /// Waits until everything is in the file.
    pub(super) async fn flush(&self) -> Result<(), HostedError> {
        self.until(|state| !state.running).await
    }

    async fn until(&self, is: impl Fn(&QueueState) -> bool) -> Result<(), HostedError> {
        loop {
            let mut changed = std::pin::pin!(self.queue.changed.notified());
            changed.as_mut().enable();
            {
                let mut state = self.queue.state.lock();
                if !state.running
                    && let Some(failure) = state.failure.take()
                {
                    return Err(failure);
                }
                if is(&state) {
                    return Ok(());
                }
            }
            changed.await;
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        // The pool may still write: whoever comes next waits for that.
        self.turn.session.close();
    }
}

/// Hashes and writes what is in the queue until it is empty. Blocks.
fn drain(queue: &Arc<Queue>, turn: &Turn) {
    let mut running = Running(Arc::clone(queue), false);
    loop {
        let chunks = {
            let mut state = queue.state.lock();
            if state.chunks.is_empty() {
                state.running = false;
                running.1 = true;
                return;
            }
            std::mem::take(&mut state.chunks)
        };
        let (size, written) = turn.session.content.lock().append(&chunks);
        turn.session.set_received(size);
        let bytes: usize = chunks.iter().map(Bytes::len).sum();
        drop(chunks);
        if let Err(error) = written {
            let mut state = queue.state.lock();
            state.chunks.clear();
            state.failure = Some(error.into());
            state.running = false;
            running.1 = true;
            return;
        }
        queue.state.lock().pending -= bytes;
        queue.changed.notify_waiters();
    }
}
