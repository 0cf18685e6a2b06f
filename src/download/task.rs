//! The task of a download: from the upstream to the store, independent of its clients.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::Instant;

use super::admission::{self, Space, finished};
use super::commit;
use super::permits::Permit;
use super::plan::{Plan, Span};
use super::storing::Storing;
use super::streams::Streams;
use super::suspect::Suspect;
use super::writer::Writer;
use super::{BlobRequest, Download, DownloadError, Inner, Source};
use crate::error_chain::on_one_line;
use crate::oci::RangeSet;

/// How often an idle download checks whether clients wait for bytes.
const IDLE_LOOK: Duration = Duration::from_secs(5);
/// How long a download handles events before the thread's other tasks run.
const TURN: Duration = Duration::from_micros(200);
/// Consecutive idle checks after which a download that clients wait for fails.
const MAX_IDLE_LOOKS: u32 = 12;

/// Runs one download to its end and tells its followers the result.
///
/// `source` is the leader's, member 0. It is tried first.
pub(super) async fn run(
    shared: Arc<Inner>,
    download: Arc<Download>,
    source: Arc<dyn Source>,
    wanted: BlobRequest,
) {
    let _guard = Guard {
        shared: &shared,
        download: &download,
    };
    let mut transfer = Transfer::new(&shared, &download, source, wanted);
    let stopped = shared.options.stop.cancelled();
    let ended = tokio::select! {
        ended = transfer.complete() => ended,
        error = drain(&shared, &download) => Err(error),
        () = stopped => Err(DownloadError::Stopping),
    };
    match ended {
        Ok(Ended::Whole(size)) => conclude(&shared, &download, transfer.storing, size).await,
        Ok(Ended::Abandoned { resumable }) => {
            tracing::info!(digest = %download.digest, resumable, "paused a download without clients");
            shared.options.metrics.downloads.paused.inc();
            transfer.leave(resumable).await;
        }
        Ok(Ended::Superseded) => {
            commit::discard(transfer.storing).await;
            // Forgotten first: its clients look into the cache again, and may start another one.
            shared.registry.forget(&download.digest, download.id);
            download.progress.superseded();
        }
        Err(error) => {
            log_failure(&shared, &download, &error);
            // Good bytes stay for the next download. Done before followers are told: they may start it.
            let resumable = error.leaves_partial() && transfer.checkpoint().await;
            transfer.leave(resumable).await;
            // Forgotten first: a client that asks after the failure starts a new download.
            shared.registry.forget(&download.digest, download.id);
            download.progress.failed(error);
        }
    }
}

/// Once the process drains, continues for clients only. Never returns.
async fn drain(shared: &Inner, download: &Download) -> DownloadError {
    shared.options.drain.cancelled().await;
    shared.registry.stand_no_more(&download.digest, download.id);
    download.progress.look();
    std::future::pending().await
}

/// Logs a failure: as a warning when a client is affected and nothing has reported it yet.
fn log_failure(shared: &Inner, download: &Download, error: &DownloadError) {
    let digest = download.digest;
    let reported = match error {
        // By the source.
        DownloadError::Upstream(_)
        | DownloadError::Digest { .. }
        | DownloadError::Length { .. }
        | DownloadError::Changed { .. } => true,
        DownloadError::Lost
        | DownloadError::Stuck
        | DownloadError::Stopping
        | DownloadError::Busy => false,
    };
    if !reported && shared.registry.has_clients(&digest, download.id) {
        tracing::warn!(%digest, error = %on_one_line(&error), "download failed");
    } else {
        tracing::debug!(%digest, error = %on_one_line(&error), "a download without clients, or whose upstream failed, has ended");
    }
}

async fn conclude(shared: &Inner, download: &Download, storing: Storing, size: u64) {
    let stored = storing.into_stored();
    if stored.is_none() {
        // Passed through: later clients start a new download.
        shared.registry.forget(&download.digest, download.id);
    }
    download.progress.verified(size);
    if let Some(stored) = stored {
        commit::commit(shared, download, stored, size).await;
    }
}

/// Tells followers of the end also when the task is dropped or panics.
struct Guard<'a> {
    shared: &'a Inner,
    download: &'a Download,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let Self { shared, download } = self;
        shared.registry.forget(&download.digest, download.id);
        download.progress.failed(DownloadError::Lost);
        download.progress.conclude();
    }
}

/// How a transfer ends without an error.
pub(super) enum Ended {
    /// The whole blob has arrived: its size in bytes. The digest is verified.
    Whole(u64),
    /// No client follows. `resumable`: whether a checkpoint was written.
    Abandoned { resumable: bool },
    /// Another download has committed the blob, or no client follows one that can't be stored.
    Superseded,
}

/// Waits for the permit of a request for these bytes.
type Turn = BoxFuture<'static, (Span, Result<Permit, DownloadError>)>;

#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Transfer<'a> {
    pub(super) shared: &'a Inner,
    pub(super) download: &'a Download,
    pub(super) plan: Plan,
    pub(super) streams: Streams,
    pub(super) storing: Storing,
    pub(super) space: Space<'a>,
    /// The member whose source is in use.
    pub(super) member: u64,
    /// Whether that source has answered.
    pub(super) answered: bool,
    /// Whether some of the bytes came from other sources or from an earlier download.
    pub(super) mixed: bool,
    /// Discarded bytes that followers have, until the download is open again.
    pub(super) suspect: Option<Suspect>,
    /// What the first client requests.
    pub(super) wanted: BlobRequest,
    /// Whether the upstream has answered and followers know the size.
    pub(super) opened: bool,
    /// The resumed partial file: the blob's size, and the ranges that are in the file.
    pub(super) resumed: Option<(u64, RangeSet)>,
    /// Whether the body of a blob of unknown size has ended.
    pub(super) ended: bool,
    /// End of the bytes that have arrived.
    pub(super) received: u64,
    /// The request that waits for its permit.
    pub(super) turn: Option<Turn>,
    demand: watch::Receiver<()>,
    /// Whether the streams have to be planned again.
    pub(super) replan: bool,
    /// When the plan is asked again without an event.
    pub(super) look: Option<Instant>,
    /// The number of the latest follower or wait that has been considered.
    pub(super) newest: u64,
    /// Consecutive idle checks.
    idle_looks: u32,
    /// When a download without clients may be paused.
    pub(super) grace: Option<Instant>,
}

impl<'a> Transfer<'a> {
    fn new(
        shared: &'a Inner,
        download: &'a Download,
        source: Arc<dyn Source>,
        wanted: BlobRequest,
    ) -> Self {
        let demand = download.progress.watch_demand();
        Self {
            shared,
            download,
            plan: Plan::new(shared.settings().segments, wanted.fill),
            streams: Streams::new(source),
            storing: Storing::nothing(download.digest.algorithm()),
            space: Space::default(),
            member: 0,
            answered: false,
            mixed: false,
            suspect: None,
            wanted,
            opened: false,
            resumed: None,
            ended: false,
            received: 0,
            turn: None,
            demand,
            replan: true,
            look: None,
            newest: 0,
            idle_looks: 0,
            grace: None,
        }
    }

    /// Downloads the blob from one source after the other, until it is complete or all sources have
    /// failed.
    async fn complete(&mut self) -> Result<Ended, DownloadError> {
        // Another download may have committed the blob since the client looked. The test is the same
        // as for clients, so that a file that is damaged for them isn't present here.
        let digest = &self.download.digest;
        if !self.download.refetch.load(Ordering::Relaxed)
            && self.shared.options.cache.is_usable(digest).await
        {
            return Ok(Ended::Superseded);
        }
        self.resume().await;
        loop {
            match self.bring().await {
                Ok(ended) => return Ok(ended),
                Err(error) => self.fail_over(error).await?,
            }
        }
    }

    /// Downloads the blob from the current source and verifies it.
    async fn bring(&mut self) -> Result<Ended, DownloadError> {
        let mut turn = Instant::now();
        loop {
            while !self.is_complete() {
                // A fast upstream always has a next chunk.
                if turn.elapsed() > TURN {
                    tokio::task::yield_now().await;
                    turn = Instant::now();
                }
                if std::mem::take(&mut self.replan) {
                    self.consider_clients();
                    self.open_streams();
                }
                if self.download.progress.end_if_unfollowed() {
                    return Ok(Ended::Superseded);
                }
                let ended = if self.step().await? {
                    self.pause().await
                } else {
                    self.end_if_overlong().await
                };
                if let Some(ended) = ended {
                    return Ok(ended);
                }
            }
            self.stop_streams();
            self.settle_space().await?;
            self.hash_all().await?;
            // Bytes that were neither written nor hashed are requested again.
            if self.is_complete() {
                let size = self.plan.total.unwrap_or(self.received);
                commit::check(&mut self.storing, self.download.digest, size).await?;
                return Ok(Ended::Whole(size));
            }
        }
    }

    pub(super) fn stop_streams(&mut self) {
        self.streams.stop();
        self.plan.segments.clear();
        self.turn = None;
        self.replan = true;
    }

    fn is_complete(&self) -> bool {
        let whole = |total| self.download.progress.has(0, total);
        self.ended || self.opened && self.plan.total.is_some_and(whole)
    }

    /// Waits for the next event and handles it. True when the grace period without clients is over.
    async fn step(&mut self) -> Result<bool, DownloadError> {
        let room = self.download.progress.room() && self.storing.has_room() && self.has_space();
        let idle = self.plan.segments.is_empty() && self.turn.is_none() && !self.storing.is_busy();
        if !idle {
            self.idle_looks = 0;
        }
        tokio::select! {
            biased;
            writer = self.storing.written() => self.take_back(writer?)?,
            grown = finished(&mut self.space.growing) => self.on_space(grown).await?,
            (span, permit) = finished(&mut self.turn) => {
                self.open(span, permit?);
                // Other announced ranges needn't wait for this response.
                self.replan |= !self.plan.fill;
            }
            event = self.streams.next(room) => self.on_event(event).await?,
            changed = self.demand.changed() => {
                changed.map_err(|_progress_gone| DownloadError::Lost)?;
                self.replan = true;
            }
            () = at(self.look) => self.replan = true,
            () = at(self.grace) => return Ok(true),
            () = tokio::time::sleep(IDLE_LOOK), if idle => {
                // No stream is open and none is planned: a client must not wait forever.
                self.idle_looks += 1;
                self.replan = true;
                let progress = &self.download.progress;
                let waits = || progress.plan(|_, demand| !demand.wants.is_empty());
                if self.idle_looks > MAX_IDLE_LOOKS && waits() {
                    return Err(DownloadError::Stuck);
                }
            }
        }
        Ok(false)
    }

    /// Waits until all contiguous bytes are hashed.
    pub(super) async fn hash_all(&mut self) -> Result<(), DownloadError> {
        while self.storing.is_busy() {
            let writer = self.storing.written().await?;
            self.take_back(writer)?;
        }
        Ok(())
    }

    /// Resumes the partial file of an earlier download, if there is one.
    async fn resume(&mut self) {
        let digest = self.download.digest;
        let resumed = admission::resume(self.shared, self.download).await;
        let Some((stored, partial)) = resumed else {
            return;
        };
        let (total, mut ranges) = (partial.total, partial.ranges);
        // At least one byte has to be requested, whatever the checkpoint says.
        ranges.remove(total.saturating_sub(1), u64::MAX);
        tracing::info!(%digest, total, bytes = ranges.len(), "resuming a partial download");
        self.plan.opened(Some(total));
        self.space.stored = ranges.len();
        self.storing = Storing::new(Some(stored), digest.algorithm(), ranges.clone(), None);
        self.resumed = Some((total, ranges));
        self.mixed = true;
    }

    /// Ends: leaves the partial file for the next download, or discards it.
    async fn leave(self, resumable: bool) {
        if resumable {
            commit::leave(self.download, self.storing).await;
        } else {
            commit::discard(self.storing).await;
        }
    }

    /// Takes the writer back after a batch has been hashed and written.
    pub(super) fn take_back(&mut self, mut writer: Box<Writer>) -> Result<(), DownloadError> {
        let digest = self.download.digest;
        if let Some(at) = writer.changed {
            let digest = digest.into();
            self.storing.idle = Some(writer);
            return Err(DownloadError::Changed { digest, at });
        }
        let progress = &self.download.progress;
        if let Some(suspect) = &writer.suspect {
            progress.compared(&writer.agreed, &writer.differs, &suspect.error);
            if !progress.is_comparing() {
                let suspect = writer.suspect.take();
                drop(tokio::task::spawn_blocking(move || drop(suspect)));
            }
        }
        progress.written(&writer.fresh);
        if let Some(error) = writer.failure.take() {
            self.shared.options.metrics.store_failed();
            tracing::error!(%digest, error = %on_one_line(&error), "can't store the download; passing it through");
            self.pass_through(writer.hashed);
        }
        writer.total = self.plan.total.filter(|_| self.opened);
        self.storing.give_back(writer);
        Ok(())
    }

    /// Switches to pass-through: stores nothing further and reads one stream in order.
    pub(super) fn pass_through(&mut self, hashed: u64) {
        self.storing.release();
        let progress = &self.download.progress;
        let next = progress.unstored(hashed, &self.storing.pending());
        self.storing.retain(|start, end| progress.has(start, end));
        self.plan.in_order();
        if !matches!(self.plan.segments.as_slice(), [only] if only.at == next && only.further.is_empty())
        {
            self.stop_streams();
        }
    }
}

/// Waits until `time`; forever when there is none.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
