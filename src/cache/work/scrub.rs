//! Scrubbing: every blob is hashed anew, at a bounded rate, and a corrupt one is set aside.
//!
//! One blob at a time is read, in pieces, with a [`Hold`] on its digest. The hold is why
//! the file that is set aside is the file that was hashed: while it lasts nothing deletes the blob,
//! and a commit of the same digest doesn't replace a file that is there. Others may hold the blob,
//! too. It isn't waited for them: a popular blob is held all the time, and would be served corrupt
//! for ever. They lose nothing, because a rename leaves the file to whoever has it open.
//!
//! From the moment it is set aside the blob is missing: whoever asks for it next downloads it anew,
//! and its links are good again. If nobody has by the time that nobody holds it, the sweeper removes
//! the links, so that none dangles.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::cache::{Cache, Hold, Inner};
use crate::error_chain::on_one_line;
use crate::oci::{Digest, Hasher};
use crate::storage::{
    Content, LinkKind, MAX_READ, StoreError, Unreadable, UnreadableEntry, Upload,
};

/// How long after its last write an upload counts as left behind.
pub const ABANDONED_AFTER: Duration = Duration::from_hours(7 * 24);
/// Blobs that a report names; of more it has the number.
pub const MAX_REPORTED: usize = 1000;

/// How to scrub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScrubSettings {
    /// Bytes read in a second; none is as fast as the disk gives them.
    pub rate: Option<NonZeroU64>,
    /// Sets corrupt blobs aside; without it they are only reported.
    pub repair: bool,
}

/// What a scrub found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScrubReport {
    /// Blobs that were read, the corrupt ones included.
    pub checked: u64,
    /// Bytes that were read.
    pub bytes: u64,
    pub corrupt: u64,
    /// Of these, blobs that were set aside.
    pub quarantined: u64,
    /// Blobs that couldn't be read or set aside; they stay as they are. With `repair`, those that
    /// a damaged medium makes unreadable are set aside like corrupt ones.
    pub failed: u64,
    /// Blobs that another scrub was at.
    pub skipped: u64,
    /// What pushes to the reference registry left [`ABANDONED_AFTER`] ago or longer: how many, and
    /// their bytes. A repair removes them.
    pub uploads: u64,
    pub upload_bytes: u64,
    /// Links, tags and directories that can't be read, and those that a repair has removed.
    pub unreadable: Vec<Removal>,
    /// The first [`MAX_REPORTED`] that are corrupt or failed.
    pub findings: Vec<Finding>,
}

/// An entry of the store, other than a blob, that couldn't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    pub path: PathBuf,
    /// None when it has been removed, else why it is still there.
    pub failure: Option<String>,
}

/// Something that is wrong with a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub digest: Digest,
    /// Bytes of the file.
    pub size: u64,
    pub verdict: Verdict,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Its content has another digest, or ends early.
    Corrupt,
    /// It was corrupt or unreadable, and has been set aside.
    Quarantined,
    /// Why it couldn't be read, or set aside.
    Failed(String),
}

impl ScrubReport {
    fn note(&mut self, digest: Digest, size: u64, verdict: Verdict) {
        match verdict {
            Verdict::Corrupt => self.corrupt += 1,
            Verdict::Quarantined => {
                self.corrupt += 1;
                self.quarantined += 1;
            }
            Verdict::Failed(_) => self.failed += 1,
        }
        if self.findings.len() < MAX_REPORTED {
            self.findings.push(Finding {
                digest,
                size,
                verdict,
            });
        }
    }
}

/// Spreads reads over time. Time that wasn't used is not made up for: no burst follows a pause.
#[derive(Debug)]
pub(crate) struct Pace {
    rate: Option<NonZeroU64>,
    next: Instant,
}

impl Pace {
    pub(crate) fn new(rate: Option<NonZeroU64>) -> Self {
        let next = Instant::now();
        Self { rate, next }
    }

    /// Waits until what was read before has had its time, then counts `bytes` more.
    async fn spend(&mut self, bytes: u64) {
        let Some(rate) = self.rate else { return };
        tokio::time::sleep_until(self.next).await;
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.get());
        let time = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let now = Instant::now().max(self.next);
        self.next = now.checked_add(time).unwrap_or(now);
    }

    /// The most that is read at once: a second's worth, so that a low rate is no long burst.
    fn piece(&self) -> usize {
        let second = self.rate.map_or(u64::MAX, NonZeroU64::get);
        usize::try_from(second).unwrap_or(MAX_READ).min(MAX_READ)
    }
}

/// Marks content as being scrubbed, for as long as it lives.
#[derive(Debug)]
struct Turn<'a> {
    shared: &'a Inner,
    hold: Hold,
}

impl<'a> Turn<'a> {
    /// None when another scrub is at it. Two at once could set aside first the corrupt file, then
    /// the good one that has been downloaded since.
    fn take(shared: &'a Inner, hold: Hold) -> Option<Self> {
        let free = shared.with(|index| index.begin_scrub(hold.content));
        free.then_some(Self { shared, hold })
    }
}

impl Turn<'_> {
    /// The file has its digest, which needn't be found out again.
    fn passed(&self, content: &Content) {
        if content.is_unchanged() {
            content.reader.set_verified();
            self.hold.verified(content.size, content.modified);
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.shared.with(|index| index.end_scrub(self.hold.content));
    }
}

impl Cache {
    /// Hashes every blob of the store. Waits for the index to be complete. Dropping the future ends
    /// it; so does stopping, and then the report is of what was done. An error is one of listing.
    pub async fn scrub(&self, settings: ScrubSettings) -> Result<ScrubReport, StoreError> {
        let mut report = ScrubReport::default();
        let mut pace = Pace::new(settings.rate);
        let quit = self.0.quit.clone();
        tokio::select! {
            () = quit.cancelled() => return Ok(report),
            done = self.scrub_all(settings.repair, &mut pace, &mut report) => done?,
        }
        Ok(report)
    }

    async fn scrub_all(
        &self,
        repair: bool,
        pace: &mut Pace,
        report: &mut ScrubReport,
    ) -> Result<(), StoreError> {
        self.complete().await;
        for first in 0..=u8::MAX {
            for (digest, _) in self.0.store.blobs(first).await? {
                self.0.scrub_blob(&digest, repair, pace, report).await;
            }
        }
        for repo in self.0.store.repositories().await? {
            for kind in [LinkKind::Revision, LinkKind::Layer] {
                self.0.store.links(&repo, kind).await?;
            }
            self.0.store.tags(&repo).await?;
        }
        for unreadable in self.0.store.unreadable().await? {
            self.0
                .scrub_unreadable(&unreadable, repair, pace, report)
                .await;
        }
        self.scrub_uploads(repair, report).await?;
        // A repair is only over when the links are gone.
        if repair {
            self.settled().await;
        }
        Ok(())
    }

    async fn scrub_uploads(
        &self,
        repair: bool,
        report: &mut ScrubReport,
    ) -> Result<(), StoreError> {
        for upload in self.abandoned_uploads().await? {
            report.uploads += 1;
            report.upload_bytes += upload.bytes;
            if repair {
                self.0.store.remove_upload(&upload).await?;
            }
        }
        Ok(())
    }

    /// What pushes to the reference registry left in the directory, [`ABANDONED_AFTER`] ago or
    /// longer.
    pub async fn abandoned_uploads(&self) -> Result<Vec<Upload>, StoreError> {
        let mut uploads = self.0.store.uploads().await?;
        let now = self.0.clock.wall();
        uploads.retain(|upload| {
            let age = now.duration_since(upload.modified).unwrap_or_default();
            age >= ABANDONED_AFTER
        });
        Ok(uploads)
    }

    /// Hashes one blob anew, and sets it aside when it is corrupt or can't be read: for who was
    /// given bytes that aren't its.
    pub async fn recheck(&self, digest: &Digest) {
        let mut report = ScrubReport::default();
        let shared = &self.0;
        shared
            .scrub_blob(digest, true, &mut Pace::new(None), &mut report)
            .await;
    }

    /// Scrubs again and again, with a pause of `interval` after each pass, until retention stops.
    pub async fn background(&self, interval: Duration, settings: ScrubSettings) {
        let quit = self.0.quit.clone();
        let passes = async {
            loop {
                tokio::time::sleep(interval).await;
                match self.scrub(settings).await {
                    Ok(report) => tracing::info!(
                        checked = report.checked,
                        bytes = report.bytes,
                        corrupt = report.corrupt,
                        quarantined = report.quarantined,
                        failed = report.failed,
                        "scrubbed the store"
                    ),
                    Err(error) => {
                        tracing::warn!(error = %on_one_line(&error), "the store can't be scrubbed");
                    }
                }
            }
        };
        tokio::select! {
            () = quit.cancelled() => {}
            () = passes => {}
        }
    }
}

impl Inner {
    async fn scrub_blob(
        self: &Arc<Self>,
        digest: &Digest,
        repair: bool,
        pace: &mut Pace,
        report: &mut ScrubReport,
    ) {
        let hold = self.hold(digest).await;
        let Some(turn) = Turn::take(self, hold) else {
            report.skipped += 1;
            return;
        };
        let content = match self.store.open(digest).await {
            // Deleted since it was listed.
            Ok(None) => return,
            Ok(Some(content)) => content,
            Err(error) => {
                let verdict = self
                    .unreadable(digest, &error, repair, None, &turn.hold)
                    .await;
                return report.note(*digest, 0, verdict);
            }
        };
        report.checked += 1;
        let size = content.size;
        let file = Some(&content);
        let verdict = match hash(digest, content.clone(), pace, &mut report.bytes).await {
            Ok(found) if found == *digest => return turn.passed(&content),
            Ok(_) if repair => self.set_aside(digest, file, &turn.hold).await,
            Ok(_) => Verdict::Corrupt,
            Err(error) => {
                self.unreadable(digest, &error, repair, file, &turn.hold)
                    .await
            }
        };
        tracing::error!(%digest, size, ?verdict, "a stored blob is not what its digest says");
        report.note(*digest, size, verdict);
    }

    /// What becomes of a blob that the disk doesn't give.
    async fn unreadable(
        &self,
        digest: &Digest,
        error: &StoreError,
        repair: bool,
        file: Option<&Content>,
        hold: &Hold,
    ) -> Verdict {
        if repair {
            self.set_aside(digest, file, hold).await
        } else {
            failed(error)
        }
    }

    /// A blob that can't be read is one like any other; a link or a tag is removed.
    async fn scrub_unreadable(
        self: &Arc<Self>,
        unreadable: &Unreadable,
        repair: bool,
        pace: &mut Pace,
        report: &mut ScrubReport,
    ) {
        if let UnreadableEntry::Blob(digest) = &unreadable.entry {
            return self.scrub_blob(digest, repair, pace, report).await;
        }
        let mut removal = Removal {
            path: unreadable.path.clone(),
            failure: Some(unreadable.reason.clone()),
        };
        if repair {
            match self.store.remove_unreadable(unreadable).await {
                Ok(true) => {
                    removal.failure = None;
                    if let UnreadableEntry::Link(link) = &unreadable.entry {
                        self.with(|index| index.mark_link(link));
                    }
                }
                Ok(false) => {}
                Err(error) => removal.failure = Some(on_one_line(&error)),
            }
        }
        if report.unreadable.len() < MAX_REPORTED {
            report.unreadable.push(removal);
        }
    }

    async fn set_aside(&self, digest: &Digest, file: Option<&Content>, hold: &Hold) -> Verdict {
        let known = self.with(|index| index.file_size(hold.content));
        match self.quarantine_held(digest, file, hold).await {
            Ok(_) => Verdict::Quarantined,
            Err(error) => {
                self.with(|index| index.cancel_quarantine(hold.content, known));
                failed(&error)
            }
        }
    }
}

fn failed(error: &StoreError) -> Verdict {
    Verdict::Failed(on_one_line(error))
}

/// The digest of what is there, with the algorithm of the wanted one. A file that ends early has
/// another.
pub(crate) async fn hash(
    digest: &Digest,
    content: Content,
    pace: &mut Pace,
    bytes: &mut u64,
) -> Result<Digest, StoreError> {
    let Content { size, reader, .. } = content;
    let mut hasher = Hasher::new(digest.algorithm());
    let mut at = 0;
    while at < size {
        let rest = usize::try_from(size - at).unwrap_or(usize::MAX);
        let piece = reader.read_at(at, rest.min(pace.piece())).await?;
        if piece.is_empty() {
            break;
        }
        let read = piece.len() as u64;
        at += read;
        *bytes += read;
        let step = tokio::task::spawn_blocking(move || {
            hasher.update(&piece);
            hasher
        });
        hasher = step.await.map_err(|source| StoreError::Lost { source })?;
        pace.spend(read).await;
    }
    Ok(hasher.finish())
}
