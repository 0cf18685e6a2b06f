//! Hashes and writes the chunks of a download after they are published, in batches: each batch holds
//! the chunks that arrived while the previous one was being written.

use bytes::Bytes;
use tokio::task::JoinHandle;

use super::DownloadError;
use super::suspect::Suspect;
use super::writer::Writer;
use crate::cache::Admission;
use crate::cache::Stage;
use crate::oci::Algorithm;
use crate::oci::RangeSet;

/// Bytes that may wait for the writer. Above it no stream is read.
const MAX_PENDING: usize = 4 * 1024 * 1024;

/// A staged file with its reserved space.
pub(super) struct Stored {
    pub(super) stage: Box<dyn Stage>,
    pub(super) admission: Admission,
}

enum Writing {
    Idle(Box<Writer>),
    Busy(JoinHandle<Box<Writer>>),
    /// The writer is lost: an error has been returned.
    Gone,
}

pub(super) struct Storing {
    pending: Vec<(u64, Bytes)>,
    pending_bytes: usize,
    /// A chunk that repeats bytes waits or is with the writer.
    comparing: bool,
    writing: Writing,
    /// None when the download isn't stored.
    place: Option<Admission>,
}

impl Storing {
    /// `resumed` is in the stage already. New bytes are compared with the suspect.
    pub(super) fn new(
        stored: Option<Stored>,
        algorithm: Algorithm,
        resumed: RangeSet,
        suspect: Option<Suspect>,
    ) -> Self {
        let (stage, place) = stored
            .map(|stored| (stored.stage, stored.admission))
            .unzip();
        Self {
            pending: Vec::new(),
            pending_bytes: 0,
            comparing: false,
            writing: Writing::Idle(Box::new(Writer::new(stage, algorithm, resumed, suspect))),
            place,
        }
    }

    /// Whether another chunk may be pushed.
    pub(super) fn has_room(&self) -> bool {
        self.pending_bytes < MAX_PENDING && !self.comparing
    }

    /// Whether bytes are stored.
    pub(super) fn is_storing(&self) -> bool {
        self.place.is_some()
    }

    pub(super) fn admission(&mut self) -> Option<&mut Admission> {
        self.place.as_mut()
    }

    /// Releases the staged file and its space: nothing further is stored.
    pub(super) fn give_up_place(&mut self) {
        self.place = None;
        self.release_stage();
    }

    /// Gives the stage up where nothing is stored any more.
    fn release_stage(&mut self) {
        if self.place.is_none()
            && let Writing::Idle(writer) = &mut self.writing
            && let Some(stage) = writer.stop_writing()
        {
            drop(tokio::task::spawn_blocking(move || drop(stage)));
        }
    }

    /// The writer, while no batch is being written.
    pub(super) fn idle(&self) -> Option<&Writer> {
        match &self.writing {
            Writing::Idle(writer) => Some(writer),
            Writing::Busy(_) | Writing::Gone => None,
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
        self.writing = match std::mem::replace(&mut self.writing, Writing::Gone) {
            Writing::Idle(writer) if !self.pending.is_empty() || writer.is_behind() => {
                let batch = if self.place.is_none() && writer.is_behind() {
                    // Bytes that aren't written wait until the hash has reached them.
                    Vec::new()
                } else {
                    self.pending_bytes = 0;
                    std::mem::take(&mut self.pending)
                };
                Writing::Busy(tokio::task::spawn_blocking(move || writer.take(batch)))
            }
            other => other,
        };
    }

    /// Waits for the current batch; forever when there is none. The caller has to
    /// [give the writer back](Self::give_back). Cancel safe.
    pub(super) async fn written(&mut self) -> Result<Box<Writer>, DownloadError> {
        let Writing::Busy(batch) = &mut self.writing else {
            return std::future::pending().await;
        };
        let result = batch.await;
        self.writing = Writing::Gone;
        result.map_err(|_panicked| DownloadError::Lost)
    }

    /// Takes the writer back and starts the next batch.
    pub(super) fn give_back(&mut self, writer: Box<Writer>) {
        self.writing = Writing::Idle(writer);
        self.start();
        self.comparing &= self.is_busy();
    }

    /// Takes the writer, if it is idle. The caller has to [put it back](Self::put_back).
    pub(super) fn take_idle(&mut self) -> Option<Box<Writer>> {
        match std::mem::replace(&mut self.writing, Writing::Gone) {
            Writing::Idle(writer) => Some(writer),
            other => {
                self.writing = other;
                None
            }
        }
    }

    /// Writes a checkpoint; see [`Writer::checkpoint`]. False also when no writer is idle. When this is
    /// cancelled, [`written`](Self::written) returns the writer.
    pub(super) async fn checkpoint(&mut self, total: u64, sync: bool) -> bool {
        let Some(mut writer) = self.take_idle() else {
            return false;
        };
        self.writing = Writing::Busy(tokio::task::spawn_blocking(move || {
            writer.checkpoint(total, sync);
            writer
        }));
        let Ok(writer) = self.written().await else {
            return false;
        };
        let checkpointed = writer.is_checkpointed();
        self.put_back(writer);
        checkpointed
    }

    /// Puts the writer back without starting a batch.
    pub(super) fn put_back(&mut self, writer: Box<Writer>) {
        self.writing = Writing::Idle(writer);
    }

    /// Whether a batch is being written.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self.writing, Writing::Busy(_))
    }

    /// The idle writer and the reserved space.
    pub(super) fn into_parts(self) -> (Option<Box<Writer>>, Option<Admission>) {
        let writer = match self.writing {
            Writing::Idle(writer) => Some(writer),
            Writing::Busy(_) | Writing::Gone => None,
        };
        (writer, self.place)
    }
}
