//! Scrubbing: every blob is hashed anew, at a bounded rate, and a corrupt one is moved to quarantine.
//!
//! One blob at a time is read, in pieces, with a [`Hold`] on its digest. Because of the hold, the file
//! that is moved is the file that was hashed: while it lasts nothing deletes the blob, and a commit of
//! the same digest doesn't replace a file. A scrub doesn't wait for other holds: a popular blob is
//! held all the time, and would be served corrupt for ever. Readers lose nothing, because a file that
//! is renamed stays readable to those who have it open.
//!
//! From then on the blob is missing: the next request downloads it anew, and its links are good
//! again. If no request has come when the last hold is released, its links are removed, so that none
//! dangles.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::BytesMut;
use serde::{Deserialize, Serialize, Serializer};
use tokio::time::Instant;

use crate::cache::{Cache, Hold};
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ScrubSettings {
    /// Bytes read in a second; none is as fast as the disk gives them.
    pub rate: Option<NonZeroU64>,
    /// Moves corrupt blobs to quarantine; without it they are only reported.
    pub repair: bool,
}

/// What a scrub found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ScrubReport {
    /// Blobs that were read, the corrupt ones included.
    pub checked: u64,
    /// Bytes that were read.
    pub bytes: u64,
    pub corrupt: u64,
    /// Of these, blobs that were moved to quarantine.
    pub quarantined: u64,
    /// Blobs that couldn't be read or moved; they stay as they are. With `repair`, those that
    /// a damaged medium makes unreadable are moved like corrupt ones.
    pub failed: u64,
    /// Blobs that another scrub was reading.
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// None when it has been removed, else why it is still there.
    pub failure: Option<String>,
}

/// A path that isn't UTF-8 is shown, too.
fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// Something that is wrong with a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub digest: Digest,
    /// Bytes of the file.
    pub size: u64,
    pub verdict: Verdict,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Its content has another digest, or ends early.
    Corrupt,
    /// It was corrupt or unreadable, and has been moved to quarantine.
    Quarantined,
    /// Why it couldn't be read or moved.
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

/// Spreads reads over time. Unused time isn't made up for: no burst follows a pause.
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

impl Cache {
    /// Hashes every blob of the store. Waits for the index to be complete. Dropping the future ends
    /// it; so does stopping, and then the report is of what was done. An error is one of listing.
    pub async fn scrub(&self, settings: ScrubSettings) -> Result<ScrubReport, StoreError> {
        let mut scrub = Scrub::new(self, settings);
        let work = async {
            self.complete().await;
            scrub.all().await?;
            // A repair is only over when the links are gone.
            if settings.repair {
                self.settled().await;
            }
            Ok(())
        };
        self.inner
            .quit
            .run_until_cancelled(work)
            .await
            .transpose()?;
        Ok(scrub.report)
    }

    /// What pushes to the reference registry left in the directory, [`ABANDONED_AFTER`] ago or
    /// longer.
    pub async fn abandoned_uploads(&self) -> Result<Vec<Upload>, StoreError> {
        let mut uploads = self.inner.store.uploads().await?;
        let now = self.inner.clock.wall();
        uploads.retain(|upload| {
            let age = now.duration_since(upload.modified).unwrap_or_default();
            // Those of hosted repositories have a time of their own.
            let session = upload.session.as_ref();
            age >= ABANDONED_AFTER && session.is_none_or(|(repo, _)| !self.hosts(repo))
        });
        Ok(uploads)
    }

    /// Scrubs again and again, with a pause of `interval` after each pass, until the cache stops.
    pub async fn background(&self, interval: Duration, settings: ScrubSettings) {
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
        self.inner.quit.run_until_cancelled(passes).await;
    }
}

/// One pass, or the check of one blob.
struct Scrub<'a> {
    cache: &'a Cache,
    repair: bool,
    pace: Pace,
    report: ScrubReport,
}

impl<'a> Scrub<'a> {
    fn new(cache: &'a Cache, ScrubSettings { rate, repair }: ScrubSettings) -> Self {
        Self {
            cache,
            repair,
            pace: Pace::new(rate),
            report: ScrubReport::default(),
        }
    }

    async fn all(&mut self) -> Result<(), StoreError> {
        let store = &self.cache.inner.store;
        for first in 0..=u8::MAX {
            for (digest, _) in store.blobs(first).await? {
                self.blob(&digest).await;
            }
        }
        for repo in store.repositories().await? {
            for kind in [LinkKind::Revision, LinkKind::Layer] {
                store.links(&repo, kind).await?;
            }
            store.tags(&repo).await?;
        }
        for unreadable in store.unreadable().await? {
            self.unreadable(&unreadable).await;
        }
        for upload in self.cache.abandoned_uploads().await? {
            self.report.uploads += 1;
            self.report.upload_bytes += upload.bytes;
            if self.repair {
                store.remove_upload(&upload).await?;
            }
        }
        Ok(())
    }

    async fn blob(&mut self, digest: &Digest) {
        let hold = self.cache.hold(digest).await;
        // Two at once could quarantine first the corrupt file, then the good one that has been
        // downloaded since.
        let Some(_lock) = self.cache.inner.scrubbing.try_lock(digest) else {
            self.report.skipped += 1;
            return;
        };
        let content = match self.cache.inner.store.open(digest).await {
            // Deleted since it was listed.
            Ok(None) => return,
            Ok(Some(content)) => content,
            Err(error) => {
                let failed = Verdict::Failed(on_one_line(&error));
                let verdict = self.quarantine(digest, None, &hold, failed).await;
                return self.report.note(*digest, 0, verdict);
            }
        };
        self.report.checked += 1;
        let (size, file) = (content.size, Some(&content));
        let bytes = &mut self.report.bytes;
        let found = match hash(digest, &content, &hold, &mut self.pace, bytes).await {
            Ok(found) if found == *digest => return,
            Ok(_) => Verdict::Corrupt,
            Err(error) => Verdict::Failed(on_one_line(&error)),
        };
        let verdict = self.quarantine(digest, file, &hold, found).await;
        tracing::error!(%digest, size, ?verdict, "a stored blob is not what its digest says");
        self.report.note(*digest, size, verdict);
    }

    /// Moves a blob to quarantine, if this is a repair; otherwise its verdict is `found`.
    async fn quarantine(
        &self,
        digest: &Digest,
        file: Option<&Content>,
        hold: &Hold,
        found: Verdict,
    ) -> Verdict {
        if !self.repair {
            return found;
        }
        let inner = &self.cache.inner;
        let known = inner.with(|index| index.file_size(hold.content));
        match self.cache.quarantine_held(digest, file, hold).await {
            Ok(_) => Verdict::Quarantined,
            Err(error) => {
                inner.with(|index| index.cancel_quarantine(hold.content, known));
                Verdict::Failed(on_one_line(&error))
            }
        }
    }

    /// A blob that can't be read is checked like any other; a link or a tag is removed.
    async fn unreadable(&mut self, unreadable: &Unreadable) {
        if let UnreadableEntry::Blob(digest) = &unreadable.entry {
            return self.blob(digest).await;
        }
        let mut failure = Some(unreadable.reason.clone());
        if self.repair {
            match self.cache.inner.store.remove_unreadable(unreadable).await {
                Ok(true) => {
                    failure = None;
                    if let UnreadableEntry::Link(link) = &unreadable.entry {
                        self.cache.inner.with(|index| index.mark_link(link));
                    }
                }
                Ok(false) => {}
                Err(error) => failure = Some(on_one_line(&error)),
            }
        }
        if self.report.unreadable.len() < MAX_REPORTED {
            let path = unreadable.path.clone();
            self.report.unreadable.push(Removal { path, failure });
        }
    }
}

/// The digest of the held content, with the algorithm of the expected one. A file that ends early has
/// another; one that has the expected digest is known to be verified from now on.
pub(crate) async fn hash(
    digest: &Digest,
    content: &Content,
    hold: &Hold,
    pace: &mut Pace,
    bytes: &mut u64,
) -> Result<Digest, StoreError> {
    let (size, reader) = (content.size, &content.reader);
    let mut hasher = Hasher::new(digest.algorithm());
    let (mut at, mut buffer) = (0, BytesMut::new());
    while at < size {
        let rest = usize::try_from(size - at).unwrap_or(usize::MAX);
        let piece = rest.min(pace.piece());
        let piece = reader.read_into(buffer, at, piece).await?;
        if piece.is_empty() {
            break;
        }
        let read = piece.len() as u64;
        at += read;
        *bytes += read;
        let step = tokio::task::spawn_blocking(move || {
            hasher.update(&piece);
            (hasher, piece)
        });
        let used;
        (hasher, used) = step.await.map_err(|source| StoreError::Lost { source })?;
        // Memory that the system has to map anew for each piece costs half as much as the hash.
        buffer = used.try_into_mut().unwrap_or_default();
        pace.spend(read).await;
    }
    let found = hasher.finish();
    if found == *digest && content.is_unchanged() {
        reader.set_verified();
        hold.verified(size, content.modified);
    }
    Ok(found)
}
