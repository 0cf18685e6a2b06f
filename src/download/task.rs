//! The detached download: upstream to store, in one task that outlives its clients.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::Instant;

use super::commit::{self, VerifiedDownload};
use super::permits::{Busy, Opening, Permit};
use super::place::{self, Space};
use super::plan::{Plan, Span};
use super::storing::Storing;
use super::streams::Streams;
use super::suspect::Suspect;
use super::writer::Writer;
use super::{BlobRequest, Download, DownloadError, Inner, Source};
use crate::error_chain::on_one_line;
use crate::oci::RangeSet;
use crate::retention::Trust;
use crate::storage::Partial;

/// How often a download that asks for nothing looks whether it should.
const IDLE_LOOK: Duration = Duration::from_secs(5);
/// After so many looks in a row it ends, if a client waits for it.
const MAX_IDLE_LOOKS: u32 = 12;

/// Runs one download to its end, whatever that is, and tells its followers.
///
/// The leader's source, of the member 0, is the first that is asked.
pub(super) async fn run(
    shared: Arc<Inner>,
    download: Arc<Download>,
    source: Arc<dyn Source>,
    wanted: BlobRequest,
) {
    let guard = Guard {
        shared: &shared,
        download: &download,
    };
    let mut transfer = Transfer::new(&shared, &download, source, wanted);
    let stopped = shared.stop.cancelled();
    let ended = tokio::select! {
        ended = transfer.complete() => ended,
        error = drain(&shared, &download) => Err(error),
        () = stopped => Err(DownloadError::Stopping),
    };
    let ended = match ended {
        Ok(Ended::Whole(size)) => Ok(VerifiedDownload::new(transfer.storing, size)),
        Ok(Ended::Abandoned { kept }) => {
            tracing::info!(digest = %download.digest, kept, "paused a download that nobody waits for");
            shared.metrics.download_paused();
            if kept {
                commit::leave(&shared, &download, transfer.storing).await;
            } else {
                commit::discard(transfer.storing).await;
            }
            return;
        }
        // Who asked looks again.
        Err(DownloadError::Present) => Err(DownloadError::Present),
        Err(error) => {
            log_failure(&shared, &download, &error);
            // What is right is kept. Before anybody hears, because the next one takes it up.
            if error.leaves_partial() && transfer.keep().await {
                commit::leave(&shared, &download, transfer.storing).await;
            } else {
                commit::discard(transfer.storing).await;
            }
            Err(error)
        }
    };
    match ended {
        Ok(verified) => conclude(&shared, &download, verified).await,
        Err(error) => {
            // Forgotten first: who asks after this failure starts anew and isn't told of it.
            shared.running.forget(&download.digest, download.id);
            download.progress.failed(error);
        }
    }
    drop(guard);
}

/// When the process is to stop, the download goes on for its clients only. Never ends.
async fn drain(shared: &Inner, download: &Download) -> DownloadError {
    shared.drain.cancelled().await;
    shared.running.stand_no_more(&download.digest, download.id);
    download.progress.look();
    std::future::pending().await
}

/// A failure that no client notices is none for the operator either.
fn log_failure(shared: &Inner, download: &Download, error: &DownloadError) {
    let digest = download.digest;
    // The source has reported what its upstream said.
    let reported = matches!(error, DownloadError::Upstream(_));
    if !reported && shared.running.has_clients(&digest, download.id) {
        tracing::warn!(%digest, error = %on_one_line(&error), "download failed");
    } else {
        tracing::debug!(%digest, error = %on_one_line(&error), "a download ended that no client waits for, or whose upstream failed");
    }
}

async fn conclude(shared: &Inner, download: &Download, verified: VerifiedDownload) {
    if verified.place.is_none() {
        // Passed through. Who comes now starts anew.
        shared.running.forget(&download.digest, download.id);
    }
    download.progress.verified(verified.size);
    commit::commit(shared, download, verified).await;
}

/// Makes sure that followers hear of the end also when the task is dropped or panics.
struct Guard<'a> {
    shared: &'a Inner,
    download: &'a Download,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let Self { shared, download } = self;
        shared.running.forget(&download.digest, download.id);
        download.progress.failed(DownloadError::Lost);
    }
}

/// How a transfer ends that doesn't fail.
pub(super) enum Ended {
    /// All bytes have come, so many, and they have the digest.
    Whole(u64),
    /// Nobody wants it any more. Whether what is there has been noted on disk.
    Abandoned { kept: bool },
}

/// Bytes to ask for, and the permit that this waits for.
type Turn = (Span, BoxFuture<'static, Result<Opening, Busy>>);

#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Transfer<'a> {
    pub(super) shared: &'a Inner,
    pub(super) download: &'a Download,
    pub(super) plan: Plan,
    pub(super) streams: Streams,
    pub(super) storing: Storing,
    pub(super) space: Space<'a>,
    /// The member whose source is asked.
    pub(super) member: u64,
    /// Whether that source has answered.
    pub(super) answered: bool,
    /// Whether what is there came from other sources, too, or from an earlier download.
    pub(super) mixed: bool,
    /// What followers were given and what was thrown away, until the download is open again.
    pub(super) suspect: Option<Suspect>,
    /// Why it was thrown away.
    pub(super) suspected: Option<DownloadError>,
    /// Where the first client begins to read.
    pub(super) wanted: BlobRequest,
    /// Whether the upstream has answered, and followers have been told the length.
    pub(super) opened: bool,
    /// What an earlier download has left: its length, and what is there.
    pub(super) kept: Option<(u64, RangeSet)>,
    /// The body has ended, of a blob whose length wasn't told.
    pub(super) ended: bool,
    /// Bytes that have come, of such a blob.
    pub(super) received: u64,
    /// A turn that is waited for.
    pub(super) turn: Option<Turn>,
    demand: watch::Receiver<()>,
    /// Whether something has changed that streams are opened or cut for.
    pub(super) replan: bool,
    pub(super) look: Option<Instant>,
    /// The latest that was heard of a client.
    pub(super) newest: u64,
    /// How often it has been looked in vain for something to ask for.
    idle_looks: u32,
    /// Until when the download goes on without clients.
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
        let algorithm = download.digest.algorithm();
        if !wanted.fill {
            download.progress.note_given();
        }
        Self {
            shared,
            download,
            plan: Plan::new(shared.settings.segments, wanted.fill),
            streams: Streams::new(source),
            storing: Storing::new(None, algorithm, RangeSet::new(), None),
            space: Space::default(),
            member: 0,
            answered: false,
            mixed: false,
            suspect: None,
            suspected: None,
            wanted,
            opened: false,
            kept: None,
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

    /// Brings the blob from one source after the other, until one has brought all of it or all have
    /// failed.
    async fn complete(&mut self) -> Result<Ended, DownloadError> {
        // Committed by another download since somebody looked: never fetched twice. The same test
        // as for clients, so that what is damaged for them is not present here.
        let digest = &self.download.digest;
        if let Ok(Some(content)) = self.shared.store.open(digest).await
            && self.shared.retention.trust(digest, &content) != Trust::Damaged
            && !self.download.refetch.load(Ordering::Relaxed)
        {
            return Err(DownloadError::Present);
        }
        self.take_up().await;
        loop {
            let ended = match self.bring().await {
                Ok(Ended::Whole(size)) => {
                    let checked = commit::check(&mut self.storing, self.download.digest, size);
                    checked.await.map(|()| Ended::Whole(size))
                }
                ended => ended,
            };
            match ended {
                Ok(ended) => return Ok(ended),
                Err(error) => self.fail_over(error).await?,
            }
        }
    }

    /// Brings the blob from the present source. When this succeeds everything has been hashed.
    async fn bring(&mut self) -> Result<Ended, DownloadError> {
        loop {
            while !self.is_complete() {
                if std::mem::take(&mut self.replan) {
                    self.consider_clients();
                    self.open_streams();
                }
                let left = if self.step().await? {
                    self.pause().await
                } else {
                    self.end_if_overlong().await
                };
                if let Some(kept) = left {
                    return Ok(Ended::Abandoned { kept });
                }
            }
            self.stop_streams();
            self.settle_space().await?;
            self.hash_all().await?;
            // What couldn't be written, and wasn't hashed yet, comes again.
            if self.is_complete() {
                return Ok(Ended::Whole(self.plan.total.unwrap_or(self.received)));
            }
        }
    }

    pub(super) fn stop_streams(&mut self) {
        self.streams.stop();
        self.plan.stop();
        self.turn = None;
        self.replan = true;
    }

    fn is_complete(&self) -> bool {
        let whole = |total| self.download.progress.has(0, total);
        self.ended || self.opened && self.plan.total.is_some_and(whole)
    }

    /// Waits for something to happen, and deals with it. True when it has been waited for clients
    /// long enough.
    async fn step(&mut self) -> Result<bool, DownloadError> {
        let room = self.download.progress.room()? && self.storing.has_room() && self.has_space();
        let idle = self.plan.lanes().is_empty() && self.turn.is_none() && !self.storing.is_busy();
        if !idle {
            self.idle_looks = 0;
        }
        tokio::select! {
            biased;
            writer = self.storing.written() => self.take_back(writer?)?,
            grown = self.space.grown() => self.on_space(grown).await?,
            (span, permit) = turn(&mut self.turn) => {
                let opening = permit.map_err(|Busy| DownloadError::Busy)?;
                self.open(span, Permit::Opening(opening));
                // Other ranges that clients have announced needn't wait for its answer.
                self.replan |= !self.plan.fill;
            }
            event = self.streams.next(room) => self.happened(event).await?,
            changed = self.demand.changed() => {
                changed.map_err(|_progress_gone| DownloadError::Lost)?;
                self.replan = true;
            }
            () = at(self.look) => {
                self.plan.behind = self.storing.was_behind();
                self.replan = true;
            }
            () = at(self.grace) => return Ok(true),
            () = tokio::time::sleep(IDLE_LOOK), if idle => {
                // Nothing comes, and nothing is asked for: a client must not wait for that forever.
                self.idle_looks += 1;
                self.replan = true;
                if self.idle_looks > MAX_IDLE_LOOKS && self.download.progress.is_waited_for() {
                    return Err(DownloadError::Stuck);
                }
            }
        }
        Ok(false)
    }

    /// Waits until all that has come is hashed, as far as its turn has come.
    pub(super) async fn hash_all(&mut self) -> Result<(), DownloadError> {
        while self.storing.is_busy() {
            let writer = self.storing.written().await?;
            self.take_back(writer)?;
        }
        Ok(())
    }

    /// Takes up what an earlier download has left.
    async fn take_up(&mut self) {
        let digest = self.download.digest;
        if let Some((
            stored,
            Partial {
                total, mut ranges, ..
            },
        )) = place::take_up(self.shared, self.download).await
        {
            // Whoever wrote that down: a byte is left to ask for.
            ranges.remove(total.saturating_sub(1), u64::MAX);
            tracing::info!(%digest, total, there = ranges.len(), "taking up a partial download");
            self.plan.opened(Some(total));
            self.space.stored = ranges.len();
            self.storing = Storing::new(Some(stored), digest.algorithm(), ranges.clone(), None);
            self.kept = Some((total, ranges));
            self.mixed = true;
        }
    }

    /// A batch has been hashed and written.
    pub(super) fn take_back(&mut self, mut writer: Box<Writer>) -> Result<(), DownloadError> {
        let digest = self.download.digest;
        if let Some(at) = writer.changed {
            let digest = digest.into();
            self.storing.put_back(writer);
            return Err(DownloadError::Changed { digest, at });
        }
        let progress = &self.download.progress;
        if let Some(error) = &self.suspected {
            progress.compared(&writer.agreed, &writer.differs, error);
            if !progress.is_comparing()
                && let Some(suspect) = writer.take_suspect()
            {
                drop(tokio::task::spawn_blocking(move || drop(suspect)));
            }
        }
        progress.written(&writer.fresh);
        if let Some(error) = writer.failure.take() {
            self.shared.metrics.store_failed();
            tracing::error!(%digest, error = %on_one_line(&error), "can't store the download; passing it through");
            self.pass_through(writer.hashed);
        }
        if let Some(total) = self.plan.total.filter(|_| self.opened) {
            self.storing.note(&writer, &self.download.upstream, total);
        }
        self.storing.give_back(writer);
        Ok(())
    }

    /// From here on nothing is stored: one stream, in order.
    pub(super) fn pass_through(&mut self, hashed: u64) {
        self.storing.give_up_place();
        let progress = &self.download.progress;
        let next = progress.unstored(hashed, &self.storing.pending());
        self.storing.retain(|start, end| progress.has(start, end));
        self.plan.in_order();
        if !matches!(self.plan.lanes(), [only] if only.at == next && !only.has_further()) {
            self.stop_streams();
        }
    }
}

/// The turn that is waited for, with what it was for; forever when there is none. Cancel safe.
async fn turn(turn: &mut Option<Turn>) -> (Span, Result<Opening, Busy>) {
    let Some((span, waiting)) = turn else {
        return std::future::pending().await;
    };
    let granted = (*span, waiting.await);
    *turn = None;
    granted
}

/// Waits until then; forever without a time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
