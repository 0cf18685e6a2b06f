//! Where a download's chunks go once followers have been shown them: through the hash and into the
//! staged file, in batches as large as what came while the last batch was being written.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::DownloadError;
use super::suspect::Suspect;
use super::writer::Writer;
use crate::error_chain::on_one_line;
use crate::oci::Algorithm;
use crate::oci::RangeSet;
use crate::retention::{Hold, Reservation};
use crate::storage::{Stage, StoreError};

/// Bytes that may wait for the writer. Past it the upstream's sockets are left alone.
const MAX_PENDING: usize = 4 * 1024 * 1024;

/// Bytes that wait for the writer when it is the writer that is slow.
const BEHIND: usize = 1024 * 1024;

/// Bytes between two notes of what is there.
const NOTE_BYTES: u64 = 256 * 1024;
/// Time between two notes, and before the first: so much is fetched again after a crash.
const NOTE_PAUSE: Duration = Duration::from_millis(100);
/// At least this many times what the last note took, because it waits for the disk.
const NOTE_SHARE: u32 = 2;

/// A place in the store.
pub(super) struct Stored {
    pub(super) stage: Box<dyn Stage>,
    pub(super) reservation: Reservation,
    /// Keeps a file of this digest from being removed before it is linked.
    pub(super) hold: Hold,
}

/// What keeps the place while the stage is with the writer.
type Admission = (Reservation, Hold);

enum Writing {
    Idle(Box<Writer>),
    Busy(JoinHandle<Box<Writer>>),
    /// An error has been returned; nothing follows.
    Gone,
}

pub(super) struct Storing {
    pending: Vec<(u64, Bytes)>,
    pending_bytes: usize,
    /// The most that has waited since it was looked at.
    most_pending: usize,
    /// A chunk that repeats bytes waits or is with the writer.
    comparing: bool,
    writing: Writing,
    /// None when the download isn't stored.
    place: Option<Admission>,
    notes: Notes,
}

/// When it was last noted on disk what is there.
struct Notes {
    running: Option<JoinHandle<Result<Duration, StoreError>>>,
    next: Instant,
    /// Bytes in the file at the last note.
    bytes: u64,
    /// It failed once, and is not tried again: only a crash would miss it.
    failed: bool,
}

impl Storing {
    /// `kept` is in the stage already. What comes is compared with the suspect.
    pub(super) fn new(
        stored: Option<Stored>,
        algorithm: Algorithm,
        kept: RangeSet,
        suspect: Option<Suspect>,
    ) -> Self {
        let (stage, place) = stored
            .map(|stored| (stored.stage, (stored.reservation, stored.hold)))
            .unzip();
        Self {
            pending: Vec::new(),
            pending_bytes: 0,
            most_pending: 0,
            comparing: false,
            writing: Writing::Idle(Box::new(Writer::new(stage, algorithm, kept, suspect))),
            place,
            notes: Notes::new(),
        }
    }

    /// Whether more may come.
    pub(super) fn has_room(&self) -> bool {
        self.pending_bytes < MAX_PENDING && !self.comparing
    }

    /// Whether, since this was asked last, more has waited than comes in a moment.
    pub(super) fn was_behind(&mut self) -> bool {
        std::mem::take(&mut self.most_pending) >= BEHIND
    }

    /// Whether what comes is stored.
    pub(super) fn is_storing(&self) -> bool {
        self.place.is_some()
    }

    pub(super) fn reservation(&mut self) -> Option<&mut Reservation> {
        self.place.as_mut().map(|(reservation, _)| reservation)
    }

    /// Stores no more of it.
    pub(super) fn give_up_place(&mut self) {
        self.place = None;
    }

    /// The writer, while no batch is being written.
    pub(super) fn idle(&self) -> Option<&Writer> {
        match &self.writing {
            Writing::Idle(writer) => Some(writer),
            Writing::Busy(_) | Writing::Gone => None,
        }
    }

    /// Takes a chunk. One that repeats bytes has to be compared with the file before more is read:
    /// followers are shown new bytes at once, and must not be shown those of a stream that differs.
    pub(super) fn push(&mut self, offset: u64, chunk: Bytes, repeats: bool) {
        self.comparing |= repeats;
        self.pending_bytes += chunk.len();
        self.most_pending = self.most_pending.max(self.pending_bytes);
        self.pending.push((offset, chunk));
        self.start();
    }

    /// Forgets chunks that wait, unless `keep` holds for where they begin and end.
    pub(super) fn retain(&mut self, keep: impl Fn(u64, u64) -> bool) {
        self.pending
            .retain(|(offset, chunk)| keep(*offset, offset + chunk.len() as u64));
        self.pending_bytes = self.pending.iter().map(|(_, chunk)| chunk.len()).sum();
    }

    /// Which bytes wait.
    pub(super) fn pending(&self) -> RangeSet {
        let mut pending = RangeSet::new();
        for (offset, chunk) in &self.pending {
            pending.insert(*offset, offset + chunk.len() as u64);
        }
        pending
    }

    /// Gives what waits to the writer, if that is idle. Also when nothing waits, but the hash is
    /// behind the file.
    fn start(&mut self) {
        self.writing = match std::mem::replace(&mut self.writing, Writing::Gone) {
            Writing::Idle(mut writer) if !self.pending.is_empty() || writer.is_behind() => {
                if self.place.is_none() {
                    writer.stop_writing();
                }
                let batch = if self.place.is_none() && writer.is_behind() {
                    // What isn't written has to wait for its turn to be hashed.
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

    /// Waits for the batch that is being written; forever when there is none. The writer has to be
    /// [given back](Self::give_back). Cancel safe.
    pub(super) async fn written(&mut self) -> Result<Box<Writer>, DownloadError> {
        let Writing::Busy(batch) = &mut self.writing else {
            return std::future::pending().await;
        };
        let result = batch.await;
        self.writing = Writing::Gone;
        result.map_err(|_panicked| DownloadError::Lost)
    }

    /// The writer goes on with what has come meanwhile.
    pub(super) fn give_back(&mut self, writer: Box<Writer>) {
        self.writing = Writing::Idle(writer);
        self.start();
        self.comparing &= self.is_busy();
    }

    /// Takes the writer out, if it is idle. It has to be [put back](Self::put_back).
    pub(super) fn take_idle(&mut self) -> Option<Box<Writer>> {
        match std::mem::replace(&mut self.writing, Writing::Gone) {
            Writing::Idle(writer) => Some(writer),
            other => {
                self.writing = other;
                None
            }
        }
    }

    /// The writer is idle; nothing is given to it.
    pub(super) fn put_back(&mut self, writer: Box<Writer>) {
        self.writing = Writing::Idle(writer);
    }

    /// Whether a batch is being written, or one is to be.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self.writing, Writing::Busy(_))
    }

    /// Notes on disk what is there, if it is time: after a crash the download goes on from there.
    pub(super) fn note(&mut self, writer: &Writer, upstream: &Arc<str>, total: u64) {
        let now = Instant::now();
        if self.notes.is_due(writer, now)
            && let Some(stage) = writer.stage()
        {
            let keeper = stage.keeper();
            let partial = writer.partial(upstream, total);
            self.notes.bytes = writer.file.len();
            self.notes.running = Some(tokio::task::spawn_blocking(move || {
                let started = Instant::now();
                keeper.keep(&partial).map(|()| started.elapsed())
            }));
        }
    }

    /// What was stored, once the writer is idle.
    pub(super) fn into_parts(self) -> (Option<Box<Writer>>, Option<Admission>) {
        let writer = match self.writing {
            Writing::Idle(writer) => Some(writer),
            Writing::Busy(_) | Writing::Gone => None,
        };
        (writer, self.place)
    }
}

impl Notes {
    fn new() -> Self {
        Self {
            running: None,
            next: Instant::now() + NOTE_PAUSE,
            bytes: 0,
            failed: false,
        }
    }

    fn is_due(&mut self, writer: &Writer, now: Instant) -> bool {
        if let Some(running) = &mut self.running {
            // Looked at without waiting: the next batch comes by again.
            let Some(ended) = futures_util::FutureExt::now_or_never(running) else {
                return false;
            };
            self.running = None;
            match ended {
                Ok(Ok(took)) => self.next = now + NOTE_PAUSE.max(took * NOTE_SHARE),
                Ok(Err(error)) => {
                    tracing::warn!(error = %on_one_line(&error), "a download can't be noted for after a crash");
                    self.failed = true;
                }
                Err(_panicked) => self.failed = true,
            }
        }
        let fresh = writer.file.len().saturating_sub(self.bytes);
        writer.is_writing() && !self.failed && fresh >= NOTE_BYTES && now >= self.next
    }
}
