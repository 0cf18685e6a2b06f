//! The bytes of an upload: hashed and written as they arrive.
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
use crate::cache::{Charge, Reservation, StoreError, UploadFile};
use crate::oci::{Algorithm, Digest, Hasher};

/// Bytes of an upload that wait for the disk, or are with it. Above it the connection isn't read.
const MAX_PENDING: usize = 2 * 1024 * 1024;
/// Chunks that wait.
const MAX_CHUNKS: usize = 512;
/// Bytes that are read back at a time.
const PIECE: usize = 1024 * 1024;

/// What an upload has received.
#[derive(Debug)]
pub(super) struct Content {
    /// Open while somebody has the turn.
    pub(super) file: Option<Box<dyn UploadFile>>,
    hasher: Hasher,
    algorithm: Algorithm,
    /// Bytes that have been hashed, from the start.
    hashed: u64,
    /// None once the upload has become a blob.
    pub(super) charge: Option<Charge>,
    pub(super) reservation: Option<Reservation>,
}

impl Content {
    pub(super) fn new(algorithm: Algorithm, charge: Charge) -> Self {
        Self {
            file: None,
            hasher: Hasher::new(algorithm),
            algorithm,
            hashed: 0,
            charge: Some(charge),
            reservation: None,
        }
    }

    pub(super) fn close(&mut self) {
        self.file = None;
    }

    /// The digest that the upload ends with is known. It is hashed as it arrives from here on, if
    /// nothing has arrived yet.
    pub(super) fn expect(&mut self, algorithm: Algorithm) {
        if self.hashed == 0 && self.algorithm != algorithm {
            self.algorithm = algorithm;
            self.hasher = Hasher::new(algorithm);
        }
    }

    /// Adds chunks at the end. Returns the bytes that the file has now. Blocks.
    fn append(&mut self, chunks: &[Bytes]) -> Result<u64, StoreError> {
        let Some(file) = &mut self.file else {
            return Ok(0);
        };
        let before = file.size();
        file.append(chunks)?;
        // After a restart the start isn't hashed: that is read back at the end.
        if self.hashed == before {
            for chunk in chunks {
                self.hasher.update(chunk);
            }
            self.hashed = file.size();
        }
        Ok(file.size())
    }

    /// The digest of the whole content. None where the file can't be read. Blocks.
    pub(super) fn digest(&self, algorithm: Algorithm) -> Option<Digest> {
        let file = self.file.as_ref()?;
        let size = file.size();
        if self.algorithm == algorithm && self.hashed == size {
            return Some(self.hasher.clone().finish());
        }
        let (mut hasher, content) = (Hasher::new(algorithm), file.content());
        let (mut at, mut buffer) = (0, Vec::new());
        while at < size {
            let left = usize::try_from(size - at).unwrap_or(PIECE);
            buffer.resize(left.min(PIECE), 0);
            if !content.fill_blocking(at, &mut buffer) {
                return None;
            }
            hasher.update(&buffer);
            at += buffer.len() as u64;
        }
        Some(hasher.finish())
    }
}

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
        let written = turn.session.content.lock().append(&chunks);
        let bytes: usize = chunks.iter().map(Bytes::len).sum();
        drop(chunks);
        match written {
            Ok(size) => turn.session.set_received(size),
            Err(error) => {
                let mut state = queue.state.lock();
                state.chunks.clear();
                state.failure = Some(error.into());
                state.running = false;
                running.1 = true;
                return;
            }
        }
        queue.state.lock().pending -= bytes;
        queue.changed.notify_waiters();
    }
}
