//! Where a download's chunks go: to followers at once, then through the hash into the staged file.

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{Download, FetchError, Shared};
use crate::oci::{Algorithm, Hasher};
use crate::retention::Reservation;
use crate::store::{Stage, StoreError};
use crate::upstream::BlobBody;
use futures_util::StreamExt as _;

/// Bytes that may wait for the writer. Past it the upstream's socket is left alone.
const MAX_PENDING: usize = 4 * 1024 * 1024;

/// Bytes reserved at a time for a blob whose length the upstream doesn't tell.
pub(super) const UNTOLD: u64 = 64 * 1024 * 1024;

/// What hashes and writes. It moves to the blocking pool with each batch, and back.
pub(super) struct Writer {
    /// None once writing has failed: the download goes on without being stored.
    pub(super) stage: Option<Box<dyn Stage>>,
    pub(super) hasher: Hasher,
    /// Bytes in the file.
    written: u64,
    /// Why writing has stopped, until it is reported.
    failure: Option<StoreError>,
}

impl Writer {
    pub(super) fn new(stage: Option<Box<dyn Stage>>, algorithm: Algorithm) -> Self {
        Self {
            stage,
            hasher: Hasher::new(algorithm),
            written: 0,
            failure: None,
        }
    }

    /// Blocks.
    fn write(mut self: Box<Self>, batch: &[Bytes]) -> Box<Self> {
        for chunk in batch {
            self.hasher.update(chunk);
        }
        if let Some(stage) = &mut self.stage {
            match stage.write_at(self.written, batch) {
                Ok(()) => self.written += batch.iter().map(|chunk| chunk.len() as u64).sum::<u64>(),
                Err(error) => {
                    self.failure = Some(error);
                    self.stage = None;
                }
            }
        }
        self
    }
}

enum Writing {
    Idle(Box<Writer>),
    Busy(JoinHandle<Box<Writer>>),
    /// An error has been returned; nothing follows.
    Gone,
}

/// Takes chunks, shows them to followers, and hashes and writes them behind that, in batches as
/// large as what came while the last batch was being written.
pub(super) struct Sink<'a> {
    shared: &'a Shared,
    download: &'a Download,
    total: Option<u64>,
    pub(super) received: u64,
    pending: Vec<Bytes>,
    pending_bytes: usize,
    writer: Writing,
    /// Space in the cache; none when the download isn't stored.
    reservation: Option<Reservation>,
    /// Wakes when followers of a download that isn't stored have moved on.
    moved: watch::Receiver<()>,
}

impl<'a> Sink<'a> {
    pub(super) fn new(
        shared: &'a Shared,
        download: &'a Download,
        writer: Writer,
        total: Option<u64>,
        reservation: Option<Reservation>,
    ) -> Self {
        Self {
            shared,
            reservation,
            download,
            total,
            received: 0,
            pending: Vec::new(),
            pending_bytes: 0,
            writer: Writing::Idle(Box::new(writer)),
            moved: download.progress.watch_followers(),
        }
    }

    /// Takes all of `body` but its first `skip` bytes.
    pub(super) async fn drain(
        &mut self,
        body: &mut BlobBody,
        mut skip: u64,
    ) -> Result<(), FetchError> {
        loop {
            if self.total.is_none() {
                self.reserve_more().await;
            }
            self.moved.borrow_and_update();
            let room = self.download.progress.room()? && self.pending_bytes < MAX_PENDING;
            tokio::select! {
                biased;
                writer = written(&mut self.writer) => self.take_back(writer?),
                chunk = body.next(), if room => match chunk {
                    None => return Ok(()),
                    Some(chunk) => {
                        let mut chunk = chunk?;
                        let known = usize::try_from(skip).unwrap_or(chunk.len()).min(chunk.len());
                        skip -= known as u64;
                        self.push(chunk.split_off(known))?;
                    }
                },
                moved = self.moved.changed(), if !room => {
                    moved.map_err(|_progress_gone| FetchError::Lost)?;
                }
            }
        }
    }

    /// Keeps the reservation ahead of a blob whose length isn't known.
    async fn reserve_more(&mut self) {
        if let Some(reservation) = &mut self.reservation
            && self.received >= reservation.bytes()
            && let Err(full) = reservation.grow(UNTOLD).await
        {
            let digest = self.download.digest;
            tracing::warn!(%digest, %full, "passing the rest of the download through");
            self.reservation = None;
            self.download.progress.unstored();
        }
    }

    fn push(&mut self, chunk: Bytes) -> Result<(), FetchError> {
        if chunk.is_empty() {
            return Ok(());
        }
        let sent = self.received + chunk.len() as u64;
        if let Some(announced) = self.total
            && sent > announced
        {
            let digest = self.download.digest.into();
            return Err(FetchError::Length {
                digest,
                announced,
                sent,
            });
        }
        self.received = sent;
        self.download.progress.received(chunk.clone());
        self.pending_bytes += chunk.len();
        self.pending.push(chunk);
        self.start_writing();
        Ok(())
    }

    /// Gives what is pending to the writer, if that is idle.
    fn start_writing(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        self.writer = match std::mem::replace(&mut self.writer, Writing::Gone) {
            Writing::Idle(mut writer) => {
                if self.reservation.is_none() {
                    writer.stage = None;
                }
                let batch = std::mem::take(&mut self.pending);
                self.pending_bytes = 0;
                Writing::Busy(tokio::task::spawn_blocking(move || writer.write(&batch)))
            }
            other => other,
        };
    }

    fn take_back(&mut self, mut writer: Box<Writer>) {
        if let Some(error) = writer.failure.take() {
            self.shared.metrics.store_failed();
            let digest = self.download.digest;
            tracing::error!(%digest, %error, "can't store the download; passing it through");
            self.reservation = None;
            self.download.progress.unstored();
        }
        self.download.progress.written(writer.written);
        self.writer = Writing::Idle(writer);
        self.start_writing();
    }

    /// Hashes and writes what is left.
    pub(super) async fn finish(mut self) -> Result<(Writer, Option<Reservation>), FetchError> {
        loop {
            match self.writer {
                Writing::Idle(writer) => return Ok((*writer, self.reservation)),
                Writing::Gone => return Err(FetchError::Lost),
                Writing::Busy(_) => {
                    let writer = written(&mut self.writer).await?;
                    self.take_back(writer);
                }
            }
        }
    }
}

/// Waits for the batch that is being written; forever when there is none. Cancel safe.
async fn written(writing: &mut Writing) -> Result<Box<Writer>, FetchError> {
    let Writing::Busy(batch) = writing else {
        return std::future::pending().await;
    };
    let result = batch.await;
    *writing = Writing::Gone;
    result.map_err(|_panicked| FetchError::Lost)
}
