//! Opening cached blobs.
//!
//! A blob that is known to be damaged is never returned. One that has not been verified yet is being
//! verified when it is returned, and has been when it is small. A store that can't be read costs the
//! cache and fails no pull: the error is logged and counted, and the blob counts as missing.

use super::{Cache, Hold, Integrity, Trust, VERIFIED_FIRST, Verification, WITHHELD};
use crate::error_chain::on_one_line;
use crate::oci::{Digest, RepoName};
use crate::storage::{Content, Link, LinkKind, StoreError};

/// Blobs up to this size, in bytes, are returned without a hold when the index has the link: they are
/// sent at once, and an open file stays readable after its name is removed.
const MAX_UNHELD: u64 = 64 * 1024;

/// Whether the content is requested, or only its headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReadMode {
    Head,
    Content,
}

/// A cached blob that is open for reading. Its file isn't removed while this exists, unless it has
/// at most 64 KiB.
#[derive(Debug)]
pub struct CachedBlob {
    content: Content,
    verification: Option<Verification>,
    _hold: Option<Hold>,
}

/// What the cache has of a blob.
#[derive(Debug)]
pub enum Opened {
    /// The repository links it.
    Linked(CachedBlob),
    /// It is stored, but this repository doesn't link it: serve it only after proof that the
    /// repository has it.
    Unlinked(CachedBlob),
    Missing,
}

impl CachedBlob {
    fn verified(content: Content) -> Self {
        Self {
            content,
            verification: None,
            _hold: None,
        }
    }

    pub(super) fn held(self, hold: Hold) -> Self {
        Self {
            _hold: Some(hold),
            ..self
        }
    }

    pub fn content(&self) -> &Content {
        &self.content
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.content.size
    }

    /// Whether the blob is known to have its digest. Otherwise it is being verified, or only its
    /// headers were requested.
    pub fn is_verified(&self) -> bool {
        self.verification.is_none()
    }

    /// The end, in bytes, of what may be sent from `offset` on. Of a whole body the last 16 KiB are
    /// withheld until the blob is verified; waits for that when nothing else is left. The error says
    /// why it can't be verified. Cancel safe.
    pub async fn sendable_end(&mut self, offset: u64, whole: bool) -> Result<u64, Integrity> {
        let Some(verification) = &mut self.verification else {
            return Ok(self.content.size);
        };
        let limit = self.content.size.saturating_sub(WITHHELD);
        let integrity = match verification.integrity() {
            None if !whole => return Ok(self.content.size),
            None if offset < limit => return Ok(limit),
            None => verification.ended().await,
            Some(integrity) => integrity,
        };
        if integrity != Integrity::Right {
            return Err(integrity);
        }
        self.verification = None;
        Ok(self.content.size)
    }

    /// Waits until the blob is verified. False when it doesn't have its digest, or when that can't
    /// be told.
    pub async fn become_verified(&mut self) -> bool {
        match self.verification.take() {
            Some(mut verification) => verification.ended().await == Integrity::Right,
            None => true,
        }
    }
}

impl Cache {
    /// A verified blob that this repository links, if it can be opened without waiting for the disk.
    /// Counts as a use.
    pub fn open_warm(&self, repo: &RepoName, digest: &Digest) -> Option<CachedBlob> {
        if !self.used_if_linked(repo, LinkKind::Layer, digest) {
            return None;
        }
        let content = self.inner.store.open_warm(digest)?;
        if self.trust(digest, &content) != Trust::Verified {
            return None;
        }
        let blob = CachedBlob::verified(content);
        if blob.size() <= MAX_UNHELD {
            return Some(blob);
        }
        Some(blob.held(self.try_hold(digest)?))
    }

    /// Opens a blob for a repository. Counts as a use of the link, where there is one.
    pub async fn open(&self, repo: &RepoName, digest: &Digest, mode: ReadMode) -> Opened {
        let hold = self.hold(digest).await;
        let link = Link::new(repo, LinkKind::Layer, digest);
        let known = self.used_if_linked(repo, link.kind, digest);
        let linked = known || self.readable("link", self.inner.store.linked(&link).await);
        let Some(blob) = self.open_undamaged(digest, mode).await else {
            return Opened::Missing;
        };
        let blob = blob.held(hold);
        if !linked {
            return Opened::Unlinked(blob);
        }
        if !known {
            self.used(repo, link.kind, digest, blob.size());
        }
        Opened::Linked(blob)
    }

    /// Content that is stored for some repository, verified, and held while this exists. Counts as no use.
    pub async fn peek(&self, digest: &Digest) -> Option<CachedBlob> {
        let hold = self.hold(digest).await;
        let mut blob = self.open_undamaged(digest, ReadMode::Content).await?;
        let is_right = blob.become_verified().await;
        is_right.then(|| blob.held(hold))
    }

    /// Whether the store has a link.
    pub async fn has_link(&self, link: &Link) -> bool {
        self.readable("link", self.inner.store.linked(link).await)
    }

    /// Links a blob that is open into a repository. The caller has proof that the repository has it.
    /// False when the link can't be written: then the next request needs the proof again.
    pub async fn link(&self, repo: &RepoName, digest: &Digest, blob: &CachedBlob) -> bool {
        let link = Link::new(repo, LinkKind::Layer, digest);
        self.link_stored(&link, blob.size()).await
    }

    /// Makes a link to content that is stored and held, and notes it.
    pub(super) async fn link_stored(&self, link: &Link, size: u64) -> bool {
        let Link { repo, digest, .. } = link;
        if let Err(error) = self.inner.store.link(link).await {
            self.inner.metrics.store_failed();
            tracing::error!(%repo, %digest, error = %on_one_line(&error), "can't write the link; the content is served but not cached for this repository");
            return false;
        }
        self.linked(repo, link.kind, digest, size);
        true
    }

    /// Whether a blob is stored for some repository, and not known to be damaged.
    pub async fn is_usable(&self, digest: &Digest) -> bool {
        match self.inner.store.open(digest).await {
            Ok(Some(content)) => self.trust(digest, &content) != Trust::Damaged,
            Ok(None) | Err(_) => false,
        }
    }

    /// Whether a repository that `accepts` links content with this digest, as far as the index knows.
    /// Links of an upstream that had the repository's name before don't count. `accepts` is called under
    /// the index's lock.
    pub async fn is_linked_by(&self, digest: &Digest, accepts: impl Fn(&RepoName) -> bool) -> bool {
        self.patiently_complete().await;
        self.inner
            .with(|index| index.is_linked_by(digest, &accepts))
    }

    /// Whether there may be content of upstreams that are no longer configured, or are others now.
    pub fn may_have_unproved(&self) -> bool {
        self.inner.store.may_have_unproved()
    }

    /// Bytes of a blob that is stored for some repository; none also where the store can't be read.
    pub async fn stored_size(&self, digest: &Digest) -> Option<u64> {
        self.inner.store.size(digest).await.ok().flatten()
    }

    /// Whether a blob is known not to be stored for any repository.
    pub async fn is_missing(&self, digest: &Digest) -> bool {
        match self.inner.store.size(digest).await {
            Ok(size) => size.is_none(),
            Err(error) => {
                tracing::debug!(%digest, error = %on_one_line(&error), "the store can't be read");
                false
            }
        }
    }

    pub(super) async fn open_undamaged(
        &self,
        digest: &Digest,
        mode: ReadMode,
    ) -> Option<CachedBlob> {
        let opened = self.inner.store.open(digest).await;
        let content = self.undamaged("blob", digest, opened).await??;
        match self.trust(digest, &content) {
            Trust::Verified => Some(CachedBlob::verified(content)),
            Trust::Damaged => {
                let size = content.size;
                self.inner.metrics.store_failed();
                tracing::error!(
                    %digest, size,
                    "a cached blob has a wrong size; it is quarantined and fetched again"
                );
                self.quarantine(digest, Some(&content)).await;
                None
            }
            Trust::Unknown => self.verify_opened(digest, content, mode).await,
        }
    }

    async fn verify_opened(
        &self,
        digest: &Digest,
        content: Content,
        mode: ReadMode,
    ) -> Option<CachedBlob> {
        let small = content.size <= VERIFIED_FIRST;
        let mut blob = CachedBlob::verified(content);
        if mode == ReadMode::Head && !small {
            return Some(blob);
        }
        let hold = self.hold(digest).await;
        blob.verification = Some(self.verify(digest, &blob.content, hold).await);
        if small && !blob.become_verified().await {
            self.inner.metrics.store_failed();
            return None;
        }
        Some(blob)
    }

    /// The result of reading a blob's file. One that can't be read any more is quarantined.
    pub(super) async fn undamaged<T>(
        &self,
        what: &'static str,
        digest: &Digest,
        read: Result<T, StoreError>,
    ) -> Option<T> {
        let damaged = read.as_ref().is_err_and(|error| {
            let ends_early = matches!(
                error,
                StoreError::Truncated { .. } | StoreError::TooLarge { .. }
            );
            ends_early || error.is_damage()
        });
        let read = self.readable(what, read.map(Some));
        if damaged {
            self.quarantine(digest, None).await;
        }
        read
    }

    /// The result of a read, or nothing after an error. A store that can't be read fails no pull:
    /// the upstream is asked instead.
    pub(super) fn readable<T: Default>(
        &self,
        what: &'static str,
        result: Result<T, StoreError>,
    ) -> T {
        result.unwrap_or_else(|error| {
            self.inner.metrics.store_failed();
            tracing::error!(error = %on_one_line(&error), what, "the store can't be read; asking the upstream instead");
            T::default()
        })
    }

    /// Whether a write succeeded. A store that can't be written fails no pull: the response is sent
    /// and not cached.
    pub(super) fn written(&self, what: &'static str, result: Result<(), StoreError>) -> bool {
        let Err(error) = result else { return true };
        self.inner.metrics.store_failed();
        tracing::error!(error = %on_one_line(&error), what, "served but not cached");
        false
    }
}
