//! Manifests and tags.
//!
//! A manifest is parsed once: what was parsed stays in memory beside its bytes. Content that doesn't
//! have its digest, or is no manifest, counts as missing and is quarantined where it is damaged.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::index::Index;
use super::{Cache, CachedManifest, ManifestMeta};
use crate::oci::manifest::{MAX_MANIFEST, ManifestError};
use crate::oci::{Digest, Manifest, RepoName, Tag};
use crate::storage::{self, Content, Link, LinkKind, StoreError};
use crate::workers::{Leave, Workers};

impl Cache {
    /// Bounds the memory of everything that hashes or parses whole documents.
    pub fn workers(&self) -> &Workers {
        &self.inner.workers
    }

    /// A manifest in memory that this repository links. Counts as a use.
    pub fn hot_manifest(&self, repo: &RepoName, digest: &Digest) -> Option<Arc<CachedManifest>> {
        let manifest = self.manifest_in_memory(digest)?;
        self.used_if_linked(repo, LinkKind::Revision, digest)
            .then_some(manifest)
    }

    /// A manifest in memory, whichever repository it came through. No proof that any repository has
    /// it.
    pub fn manifest_in_memory(&self, digest: &Digest) -> Option<Arc<CachedManifest>> {
        self.inner.manifests.get(digest)
    }

    /// Type and size of a manifest that the repository links, as far as the index knows. Reads no
    /// file. Counts as a use.
    pub fn manifest_meta(&self, repo: &RepoName, digest: &Digest) -> Option<ManifestMeta> {
        let now = self.inner.now();
        let known = |index: &mut Index| index.touch_manifest(repo, digest, now);
        let (size, media_type) = self.inner.with(known)?;
        Some(ManifestMeta {
            digest: *digest,
            media_type,
            size,
        })
    }

    /// The same, and no use.
    pub fn peek_manifest_meta(&self, repo: &RepoName, digest: &Digest) -> Option<ManifestMeta> {
        let known = |index: &mut Index| index.kept_manifest(repo, digest);
        let (size, media_type) = self.inner.with(known)?;
        Some(ManifestMeta {
            digest: *digest,
            media_type,
            size,
        })
    }

    /// A manifest that this repository links. Counts as a use.
    pub async fn manifest(&self, repo: &RepoName, digest: &Digest) -> Option<Arc<CachedManifest>> {
        let manifest = self.peek_manifest(repo, digest).await?;
        self.used(repo, LinkKind::Revision, digest, manifest.meta.size);
        Some(manifest)
    }

    /// A manifest that this repository links. Counts as no use.
    pub async fn peek_manifest(
        &self,
        repo: &RepoName,
        digest: &Digest,
    ) -> Option<Arc<CachedManifest>> {
        if self.has_revision(repo, digest).await {
            self.any_manifest(digest).await
        } else {
            None
        }
    }

    /// A manifest that is stored for some repository. Serve it only after proof that the client's
    /// repository has it.
    pub async fn any_manifest(&self, digest: &Digest) -> Option<Arc<CachedManifest>> {
        self.read_stored(digest).await?.ok()
    }

    /// Whether the repository links a manifest of Docker's schema 1.
    pub async fn is_schema1(&self, repo: &RepoName, digest: &Digest) -> bool {
        self.has_revision(repo, digest).await
            && matches!(
                self.read_stored(digest).await,
                Some(Err(ManifestError::Schema1))
            )
    }

    /// Stores a manifest that the upstream gave for this repository, and links it. `bytes` has the
    /// digest and `parsed` is what it says. False when it couldn't be stored: it can be served all
    /// the same.
    pub async fn put_manifest(
        &self,
        repo: &RepoName,
        digest: Digest,
        bytes: Bytes,
        parsed: Manifest,
    ) -> (Arc<CachedManifest>, bool) {
        let manifest = CachedManifest::new(digest, bytes, parsed);
        let stored = self.store_manifest(repo, &manifest).await;
        if stored {
            self.inner.manifests.insert(&manifest);
        }
        (manifest, stored)
    }

    async fn store_manifest(&self, repo: &RepoName, manifest: &CachedManifest) -> bool {
        let ManifestMeta { digest, size, .. } = manifest.meta;
        let reservation = match self.reserve(size).await {
            Ok(reservation) => reservation,
            Err(full) => {
                tracing::warn!(%digest, %full, "manifest served but not cached");
                return false;
            }
        };
        let hold = self.hold(&digest).await;
        let _arriving = self.arriving(&digest, repo);
        let started = Instant::now();
        let put = storage::put(&*self.inner.store, &digest, manifest.content.clone()).await;
        self.inner.metrics.store_committed(started.elapsed());
        if !self.written("manifest", put) {
            return false;
        }
        reservation.commit(&hold, size);
        self.link_manifest(repo, manifest).await
    }

    /// Links a manifest that is stored into a repository. The caller holds its digest, and has proof
    /// that the repository has it. False when the link can't be written.
    pub async fn link_manifest(&self, repo: &RepoName, manifest: &CachedManifest) -> bool {
        let ManifestMeta { digest, size, .. } = manifest.meta;
        let linked = self
            .link_stored(&Link::new(repo, LinkKind::Revision, &digest), size)
            .await;
        if linked {
            self.describe(&digest, &manifest.parsed);
        }
        linked
    }

    async fn has_revision(&self, repo: &RepoName, digest: &Digest) -> bool {
        let linked = self
            .inner
            .store
            .linked(&Link::new(repo, LinkKind::Revision, digest))
            .await;
        self.readable("manifest link", linked)
    }

    /// What the stored content with this digest is; none when it is missing, damaged or unreadable.
    async fn read_stored(
        &self,
        digest: &Digest,
    ) -> Option<Result<Arc<CachedManifest>, ManifestError>> {
        if let Some(manifest) = self.stored_in_memory(digest) {
            return Some(Ok(manifest));
        }
        let opened = self.inner.store.open(digest).await;
        let content = self.undamaged("manifest", digest, opened).await??;
        let leave = self.inner.workers.admit(content.size).await.ok()?;
        // Large ones are read a few at a time: another request may have read this one meanwhile.
        match self.stored_in_memory(digest) {
            Some(manifest) => Some(Ok(manifest)),
            None => self.read_opened(digest, content, leave).await,
        }
    }

    /// A manifest in memory whose file is stored, as far as the index knows.
    fn stored_in_memory(&self, digest: &Digest) -> Option<Arc<CachedManifest>> {
        let manifest = self.manifest_in_memory(digest)?;
        self.inner
            .with(|index| index.has_file(digest))
            .then_some(manifest)
    }

    async fn read_opened(
        &self,
        digest: &Digest,
        content: Content,
        leave: Leave,
    ) -> Option<Result<Arc<CachedManifest>, ManifestError>> {
        let bytes = storage::read_content(content, digest, MAX_MANIFEST).await;
        let bytes = self.undamaged("manifest", digest, bytes).await?;
        let (digest, document) = (*digest, bytes.clone());
        let check = move || {
            let intact = Digest::of(digest.algorithm(), &document) == digest;
            intact.then(|| Manifest::parse(&document))
        };
        let Some(parsed) = leave.run(check).await.ok()? else {
            self.inner.metrics.store_failed();
            tracing::error!(%digest, "the stored manifest is corrupt; it is quarantined and fetched again");
            self.quarantine(&digest, None).await;
            return None;
        };
        Some(parsed.map(|parsed| {
            let manifest = CachedManifest::new(digest, bytes, parsed);
            self.inner.manifests.insert(&manifest);
            manifest
        }))
    }

    /// The manifest digest that a tag was last known to name.
    pub async fn tagged(&self, repo: &RepoName, tag: &Tag) -> Option<Digest> {
        self.readable("tag", self.inner.store.tag(repo, tag).await)
    }

    /// Makes a tag name a manifest that the repository links. False when that can't be written.
    pub async fn tag(&self, repo: &RepoName, tag: &Tag, digest: &Digest) -> bool {
        let _lock = self.inner.tags.lock((repo.clone(), tag.clone())).await;
        let written = self.written("tag", self.inner.store.set_tag(repo, tag, digest).await);
        if written {
            self.inner.with(|index| index.set_tag(repo, tag, digest));
        }
        written
    }

    /// Removes a tag. False when that can't be written.
    pub async fn untag(&self, repo: &RepoName, tag: &Tag) -> bool {
        let _lock = self.inner.tags.lock((repo.clone(), tag.clone())).await;
        let removed = self.inner.store.remove_tag(repo, tag).await;
        let removed = self.written("tag", removed.map(drop));
        if removed {
            self.inner.with(|index| index.remove_tag(repo, tag));
        }
        removed
    }

    /// The tags of a repository, sorted; those of a repository that can't be read are empty.
    pub async fn tags(&self, repo: &RepoName) -> Vec<Tag> {
        self.readable("tags", self.inner.store.tags(repo).await)
    }

    /// Every repository that has a link or a tag, sorted, by its name in the store.
    pub async fn repositories(&self) -> Result<Vec<RepoName>, StoreError> {
        self.inner.store.repositories().await
    }
}
