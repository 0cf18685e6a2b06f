//! Hashes and writes the chunks of a download after they are published, in batches: each batch holds
//! the chunks that arrived while the previous one was being written.

use bytes::Bytes;
use tokio::task::JoinHandle;

use super::DownloadError;
use super::suspect::Suspect;
use super::writer::Writer;
use crate::cache::{Admission, Stage};
use crate::oci::{Algorithm, RangeSet};

/// Bytes that may wait for the writer. Above it no stream is read.
const MAX_PENDING: usize = 4 * 1024 * 1024;

/// A staged file with its reserved space.
pub(super) struct Stored {
    pub(super) stage: Box<dyn Stage>,
    pub(super) admission: Admission,
}

pub(super) struct Storing {
    pending: Vec<(u64, Bytes)>,
    pending_bytes: usize,
    /// A chunk that repeats bytes waits or is with the writer.
    comparing: bool,
    /// The writer, while it writes no batch. None also after it was lost: an error has been returned.
    pub(super) idle: Option<Box<Writer>>,
    busy: Option<JoinHandle<Box<Writer>>>,
    /// None when nothing further is stored.
    pub(super) admission: Option<Admission>,
}

impl Storing {
    /// `resumed` is in the stage already. New bytes are compared with the suspect.
    pub(super) fn new(
        stored: Option<Stored>,
        algorithm: Algorithm,
        resumed: RangeSet,
        suspect: Option<Suspect>,
    ) -> Self {
        let parts = stored.map(|stored| (stored.stage, stored.admission));
        let (stage, admission) = parts.unzip();
        Self {
            pending: Vec::new(),
            pending_bytes: 0,
            comparing: false,
            idle: Some(Box::new(Writer::new(stage, algorithm, resumed, suspect))),
            busy: None,
            admission,
        }
    }

    /// Stores nothing.
    pub(super) fn nothing(algorithm: Algorithm) -> Self {
        Self::new(None, algorithm, RangeSet::new(), None)
    }

    /// Whether another chunk may be pushed.
    pub(super) fn has_room(&self) -> bool {
        self.pending_bytes < MAX_PENDING && !self.comparing
    }

    /// Whether bytes are stored.
    pub(super) fn is_storing(&self) -> bool {
        self.admission.is_some()
    }

    /// Releases the staged file and its space: nothing further is stored.
    pub(super) fn release(&mut self) {
        self.admission = None;
        self.release_stage();
    }

    /// Releases the stage, if nothing further is stored and the writer is idle.
    fn release_stage(&mut self) {
        if self.admission.is_none()
            && let Some(writer) = &mut self.idle
            && let Some(stage) = writer.stop_writing()
        {
            drop(tokio::task::spawn_blocking(move || drop(stage)));
        }
    }

    /// Takes a chunk. A chunk that repeats bytes has to be compared with the file before more is read:
    /// new bytes are published at once, and those of a stream that differs must not be.
    pub(super) fn push(&mut self, offset: u64, chunk: Bytes, repeats: bool) {
        self.comparing |= repeats;
        self.pending_bytes += chunk.len();
        self.pending.push((offset, chunk));
        self.start();
    }

    /// Drops waiting chunks for whose start and end `keep` is false.
    pub(super) fn retain(&mut self, keep: impl Fn(u64, u64) -> bool) {
        self.pending
            .retain(|(offset, chunk)| keep(*offset, offset + chunk.len() as u64));
        self.pending_bytes = self.pending.iter().map(|(_, chunk)| chunk.len()).sum();
    }

    /// The bytes that wait for the writer.
    pub(super) fn pending(&self) -> RangeSet {
        let mut pending = RangeSet::new();
        for (offset, chunk) in &self.pending {
            pending.insert(*offset, offset + chunk.len() as u64);
        }
        pending
    }

    /// Starts the next batch if the writer is idle and chunks wait or the hash is behind the file.
    fn start(&mut self) {
        self.release_stage();
        let waits = !self.pending.is_empty();
        let Some(writer) = self.idle.take_if(|writer| waits || writer.is_behind()) else {
            return;
        };
        let batch = if self.admission.is_none() && writer.is_behind() {
            // Bytes that aren't written wait until the hash has reached them.
            Vec::new()
        } else {
            self.pending_bytes = 0;
            std::mem::take(&mut self.pending)
        };
        self.busy = Some(tokio::task::spawn_blocking(move || writer.take(batch)));
    }

    /// Waits for the current batch; forever when there is none. The caller has to
    /// [give the writer back](Self::give_back). Cancel safe.
    pub(super) async fn written(&mut self) -> Result<Box<Writer>, DownloadError> {
        let Some(batch) = &mut self.busy else {
            return std::future::pending().await;
        };
        let result = batch.await;
        self.busy = None;
        result.map_err(|_panicked| DownloadError::Lost)
    }

    /// Takes the writer back and starts the next batch.
    pub(super) fn give_back(&mut self, writer: Box<Writer>) {
        self.idle = Some(writer);
        self.start();
        self.comparing &= self.is_busy();
    }

    /// Writes a checkpoint; see [`Writer::checkpoint`]. False also when no writer is idle. When this is
    /// cancelled, [`written`](Self::written) returns the writer.
    pub(super) async fn checkpoint(&mut self, total: u64, sync: bool) -> bool {
        let Some(mut writer) = self.idle.take() else {
            return false;
        };
        self.busy = Some(tokio::task::spawn_blocking(move || {
            writer.checkpoint(total, sync);
            writer
        }));
        let Ok(writer) = self.written().await else {
            return false;
        };
        let checkpointed = writer.checkpointed;
        self.idle = Some(writer);
        checkpointed
    }

    /// Whether a batch is being written.
    pub(super) fn is_busy(&self) -> bool {
        self.busy.is_some()
    }

    /// The staged file with its space; none when it lacks bytes that weren't stored.
    pub(super) fn into_stored(self) -> Option<Stored> {
        let stage = self.idle.filter(|writer| writer.writing)?.stage?;
        let admission = self.admission?;
        Some(Stored { stage, admission })
    }
}
