//! What the store holds of manifests and tags: keeping, reading, linking and forgetting them.

use std::sync::Arc;

use bytes::Bytes;

use super::manifest_cache::CachedManifest;
use super::manifests::ManifestAnswer;
use super::tags::{Lookup, ManifestMeta, TagKey};
use super::workers::Admission;
use super::{Mirror, MirrorError, ReadMode, Target};
use crate::cache::references;
use crate::metrics::Outcome;
use crate::oci::manifest::{MAX_MANIFEST, ManifestError};
use crate::oci::{Digest, Manifest, Tag};
use crate::storage::{self, Content, LinkKind, StoreError};
use crate::upstream::{FetchedManifest, UnverifiedManifest};

/// A manifest out of the store, and what it says.
#[derive(Debug)]
pub(super) struct StoredManifest {
    pub(super) verified: Arc<CachedManifest>,
    pub(super) manifest: Manifest,
}

impl Mirror {
    /// Stores a manifest that the upstream gave for this repository. The last part of the answer
    /// says whether the store took it: a client is served either way.
    pub(super) async fn keep(
        &self,
        target: &Target,
        fetched: UnverifiedManifest,
    ) -> Result<(Arc<CachedManifest>, bool), MirrorError> {
        let admission = self.workers.admit(fetched.size() as u64).await?;
        let FetchedManifest {
            bytes,
            digest,
            manifest,
        } = admission.run(move || fetched.verify()).await??;
        self.note_manifest(digest, &manifest);
        let size = bytes.len() as u64;
        let kept = self
            .store_manifest(target, &manifest, digest, bytes.clone())
            .await;
        let known = ManifestMeta {
            digest,
            media_type: manifest.media_type,
            size,
        };
        let manifest = CachedManifest::new(known, bytes);
        if kept {
            self.cached_manifests.insert(&manifest);
        }
        Ok((manifest, kept))
    }

    async fn store_manifest(
        &self,
        target: &Target,
        manifest: &Manifest,
        digest: Digest,
        bytes: Bytes,
    ) -> bool {
        let size = bytes.len() as u64;
        let reservation = match self.cache.reserve(size).await {
            Ok(reservation) => reservation,
            Err(full) => {
                tracing::warn!(%digest, %full, "manifest served but not cached");
                return false;
            }
        };
        let hold = self.cache.hold(&digest).await;
        let put = storage::put(&*self.store, &digest, bytes).await;
        if !self.written("manifest", put) {
            return false;
        }
        reservation.commit(&hold, size);
        self.link_manifest(target, manifest, digest, size).await
    }

    /// Links a manifest that is stored and held. It has been proved that the repository has it.
    pub(super) async fn link_manifest(
        &self,
        target: &Target,
        manifest: &Manifest,
        digest: Digest,
        size: u64,
    ) -> bool {
        let link = target.link(LinkKind::Revision, digest);
        let linked = self.written("manifest link", self.store.link(&link).await);
        if linked {
            self.cache.linked(&link.repo, link.kind, &digest, size);
            self.cache
                .manifest(&digest, manifest.media_type, &references(manifest));
            self.cache.sizes(manifest);
        }
        linked
    }

    /// A manifest in memory that this repository has, by the retention's word. That is a use of it.
    pub(super) fn hot_manifest(
        &self,
        target: &Target,
        digest: &Digest,
    ) -> Option<Arc<CachedManifest>> {
        let manifest = self.cached_manifests.get(digest)?;
        self.cache
            .used_if_linked(&target.stored, LinkKind::Revision, digest)
            .then_some(manifest)
    }

    /// What a HEAD tells of a manifest that this repository has, by the retention's word. That is a
    /// use of it. No file is read.
    pub(super) fn indexed_manifest(
        &self,
        target: &Target,
        digest: &Digest,
    ) -> Option<ManifestMeta> {
        let (size, media_type) = self.cache.linked_manifest(&target.stored, digest)?;
        Some(ManifestMeta {
            digest: *digest,
            media_type,
            size,
        })
    }

    async fn is_linked(&self, target: &Target, digest: Digest) -> bool {
        let link = target.link(LinkKind::Revision, digest);
        self.readable("manifest link", self.store.linked(&link).await)
    }

    /// A manifest that this repository has, to be served.
    pub(super) async fn linked_manifest(
        &self,
        target: &Target,
        digest: Digest,
    ) -> Option<Arc<CachedManifest>> {
        if !self.is_linked(target, digest).await {
            return None;
        }
        let (content, admission) = self.open_manifest(digest).await?;
        // Large ones are read a few at a time: perhaps somebody has read this one meanwhile.
        if let Some(manifest) = self.cached_manifests.get(&digest) {
            return Some(manifest);
        }
        let stored = self.read_manifest(digest, content, admission).await?;
        self.cached_manifests.insert(&stored.verified);
        Some(stored.verified)
    }

    /// A manifest that this repository has, for what it says.
    pub(super) async fn linked_document(
        &self,
        target: &Target,
        digest: Digest,
    ) -> Option<StoredManifest> {
        if self.is_linked(target, digest).await {
            self.stored_manifest(digest).await
        } else {
            None
        }
    }

    /// A manifest that the store has, through whichever repository. What doesn't have its digest,
    /// or is no manifest, is not there.
    pub(super) async fn stored_manifest(&self, digest: Digest) -> Option<StoredManifest> {
        let (content, admission) = self.open_manifest(digest).await?;
        self.read_manifest(digest, content, admission).await
    }

    async fn open_manifest(&self, digest: Digest) -> Option<(Content, Admission)> {
        let opened = self.store.open(&digest).await;
        let content = self.undamaged(digest, opened).await??;
        let admission = self.workers.admit(content.size).await.ok()?;
        Some((content, admission))
    }

    /// What was read of a manifest's file. One that can't be read any more is set aside.
    async fn undamaged<T>(&self, digest: Digest, read: Result<T, StoreError>) -> Option<T> {
        let damaged = match &read {
            Ok(_) => false,
            Err(StoreError::Truncated { .. } | StoreError::TooLarge { .. }) => true,
            Err(error) => error.is_damage(),
        };
        let read = self.readable("manifest", read.map(Some));
        if damaged {
            self.cache.set_aside(&digest, None).await;
        }
        read
    }

    async fn read_manifest(
        &self,
        digest: Digest,
        content: Content,
        admission: Admission,
    ) -> Option<StoredManifest> {
        let bytes = storage::read_content(content, &digest, MAX_MANIFEST).await;
        let bytes = self.undamaged(digest, bytes).await?;
        let document = bytes.clone();
        let check = move || {
            let intact = Digest::of(digest.algorithm(), &document) == digest;
            intact.then(|| Manifest::parse(&document).ok())
        };
        let Some(manifest) = admission.run(check).await.ok()? else {
            self.metrics.store_failed();
            tracing::error!(%digest, "the stored manifest is corrupt; it is fetched again");
            self.cache.set_aside(&digest, None).await;
            return None;
        };
        let manifest = manifest?;
        self.note_manifest(digest, &manifest);
        let known = ManifestMeta {
            digest,
            media_type: manifest.media_type,
            size: bytes.len() as u64,
        };
        let verified = CachedManifest::new(known, bytes);
        Some(StoredManifest { verified, manifest })
    }

    /// What a client is told when the upstream couldn't be asked (`asked`) and nothing stored can be
    /// served: that the stored manifest is of schema 1, if it is. It is told the same while the upstream
    /// answers.
    pub(super) async fn unless_schema1(
        &self,
        target: &Target,
        digest: Digest,
        asked: MirrorError,
    ) -> MirrorError {
        if !self.is_linked(target, digest).await {
            return asked;
        }
        let Some((content, admission)) = self.open_manifest(digest).await else {
            return asked;
        };
        let Ok(bytes) = storage::read_content(content, &digest, MAX_MANIFEST).await else {
            return asked;
        };
        let check = move || {
            let intact = Digest::of(digest.algorithm(), &bytes) == digest;
            intact && matches!(Manifest::parse(&bytes), Err(ManifestError::Schema1))
        };
        if !admission.run(check).await.unwrap_or(false) {
            return asked;
        }
        target.report(&asked, "said that the stored manifest is of schema 1");
        MirrorError::StoredSchema1 {
            digest: Box::new(digest),
            asked: Box::new(asked),
        }
    }

    /// The same, for the manifest that a tag names.
    pub(super) async fn unless_tagged_schema1(
        &self,
        target: &Target,
        key: &TagKey,
        asked: MirrorError,
    ) -> MirrorError {
        match self.readable("tag", self.store.tag(&key.repo, &key.tag).await) {
            Some(digest) => self.unless_schema1(target, digest, asked).await,
            None => asked,
        }
    }

    /// A use extends the manifest's time. Only what is linked is used.
    pub(super) fn manifest_used(&self, target: &Target, known: &ManifestMeta) {
        let ManifestMeta { digest, size, .. } = known;
        self.cache
            .used(&target.stored, LinkKind::Revision, digest, *size);
    }

    /// What to serve when the upstream can't be asked: the digest it named last for this Accept
    /// list, else the one on disk if the client can read it.
    pub(super) async fn last_known(
        &self,
        target: &Target,
        key: &TagKey,
        want: ReadMode,
    ) -> Option<ManifestAnswer> {
        let recorded = match self.records.get(key) {
            Lookup::Fresh { known, .. } | Lookup::Expired(known) => {
                self.recall(target, known.digest, want).await
            }
            Lookup::Unknown => None,
        };
        if recorded.is_some() {
            return recorded;
        }
        let digest = self.readable("tag", self.store.tag(&key.repo, &key.tag).await)?;
        let stored = self.recall(target, digest, want).await?;
        let media_type = stored.found.known().media_type;
        key.accept.allows(media_type).then_some(stored)
    }

    /// A manifest that this repository has, while the upstream can't be asked. That is a use of it.
    async fn recall(
        &self,
        target: &Target,
        digest: Digest,
        want: ReadMode,
    ) -> Option<ManifestAnswer> {
        if want == ReadMode::Head
            && let Some(known) = self.indexed_manifest(target, &digest)
        {
            return Some(ManifestAnswer::head(known, Outcome::Stale));
        }
        let manifest = self.linked_manifest(target, digest).await?;
        self.manifest_used(target, &manifest.known);
        Some(ManifestAnswer::whole(manifest, Outcome::Stale))
    }

    /// Whether a manifest of this repository refers to the blob. The upstream gave that manifest
    /// for the repository, and a registry takes no manifest whose blobs the repository lacks.
    pub(super) async fn vouched(&self, target: &Target, digest: Digest) -> bool {
        self.cache.is_referenced(&target.stored, &digest).await
    }

    pub(super) async fn point(&self, key: &TagKey, digest: Digest) {
        let TagKey { repo, tag, .. } = key;
        // The reference registry's layout has one digest for a tag. An index serves most clients,
        // so an old client's manifest must not take its place while the index is current.
        let pointed = self.readable("tag", self.store.tag(repo, tag).await);
        if pointed == Some(digest) || self.narrower(key, pointed).await {
            return;
        }
        if self.written("tag", self.store.set_tag(repo, tag, &digest).await) {
            self.cache.tagged(repo, tag, &digest);
        }
    }

    /// Whether the key's Accept list can't read what the tag points to: then its own manifest is
    /// a conversion for an old client.
    async fn narrower(&self, key: &TagKey, pointed: Option<Digest>) -> bool {
        let Some(pointed) = pointed else { return false };
        let current = self.stored_manifest(pointed).await;
        current.is_some_and(|current| !key.accept.allows(current.manifest.media_type))
    }

    /// containerd and docker resolve a tag by HEAD and then ask by digest: this is where the tag
    /// gets its place on disk, without which a restart would forget it.
    pub(super) async fn arrived(&self, target: &Target, digest: Digest) {
        let Some(key) = self.records.arrived(&target.stored, digest) else {
            return;
        };
        // Meanwhile the tag may have moved on.
        let current = match self.records.get(&key) {
            Lookup::Fresh { known, .. } | Lookup::Expired(known) => known.digest == digest,
            Lookup::Unknown => false,
        };
        if current {
            self.point(&key, digest).await;
        }
    }

    /// An upstream's 404 ends the tag, for those who could have read what it named. So does a
    /// schema 1 manifest in its place.
    pub(super) async fn gone(
        &self,
        target: &Target,
        key: &TagKey,
        error: MirrorError,
    ) -> MirrorError {
        if error.ends_tag() {
            self.records.forget(key);
            let pointed = self.readable("tag", self.store.tag(&key.repo, &key.tag).await);
            let manifest = match pointed {
                Some(digest) => self.linked_manifest(target, digest).await,
                None => None,
            };
            if pointed.is_some()
                && manifest.is_none_or(|manifest| key.accept.allows(manifest.known.media_type))
            {
                let removed = self.store.remove_tag(&key.repo, &key.tag).await;
                if self.written("tag", removed.map(|_was_there| ())) {
                    self.cache.untagged(&key.repo, &key.tag);
                }
            }
        }
        error
    }

    /// The tags that the store has of a repository: what is left when the upstream can't be asked.
    pub(super) async fn stored_tags(&self, target: &Target) -> Vec<Tag> {
        self.readable("tags", self.store.tags(&target.stored).await)
    }
}
