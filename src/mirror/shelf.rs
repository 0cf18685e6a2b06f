//! What the store holds of manifests and tags: keeping, reading, linking and forgetting them.

use std::sync::Arc;

use bytes::Bytes;

use super::hot::Verified;
use super::manifests::ManifestAnswer;
use super::tags::{Known, Lookup, TagKey};
use super::{Mirror, MirrorError, Target};
use crate::metrics::Outcome;
use crate::oci::manifest::MAX_MANIFEST;
use crate::oci::{Digest, Manifest, Tag};
use crate::retention::references;
use crate::store::{self, LinkKind};
use crate::upstream::{FetchedManifest, UnverifiedManifest};

/// Manifests of one repository that are looked through while the upstream can't answer.
pub(super) const MAX_SCANNED: usize = 2_000;

impl Mirror {
    /// Stores a manifest that the upstream gave for this repository. The last part of the answer
    /// says whether the store took it: a client is served either way.
    pub(super) async fn keep(
        &self,
        target: &Target,
        fetched: UnverifiedManifest,
    ) -> Result<(Arc<Verified>, bool), MirrorError> {
        let FetchedManifest {
            bytes,
            digest,
            manifest,
        } = fetched.verify()?;
        self.prefetch.note(digest, &manifest);
        let size = bytes.len() as u64;
        let kept = self
            .store_manifest(target, &manifest, digest, bytes.clone())
            .await;
        let known = Known {
            digest,
            media_type: manifest.media_type,
            size,
        };
        let manifest = Verified::new(known, bytes);
        if kept {
            self.hot.insert(&manifest);
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
        let reservation = match self.retention.reserve(size).await {
            Ok(reservation) => reservation,
            Err(full) => {
                tracing::warn!(%digest, %full, "manifest served but not cached");
                return false;
            }
        };
        let hold = self.retention.hold(&digest).await;
        let put = store::put(&*self.store, &digest, bytes).await;
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
            self.retention.linked(&link.repo, link.kind, &digest, size);
            self.retention.manifest(&digest, &references(manifest));
        }
        linked
    }

    /// A manifest in memory that this repository has, by the retention's word. That is a use of it.
    pub(super) fn hot_manifest(&self, target: &Target, digest: &Digest) -> Option<Arc<Verified>> {
        let manifest = self.hot.get(digest)?;
        self.retention
            .used_if_linked(&target.stored, LinkKind::Revision, digest)
            .then_some(manifest)
    }

    /// A manifest that this repository has.
    pub(super) async fn linked_manifest(
        &self,
        target: &Target,
        digest: Digest,
    ) -> Option<Arc<Verified>> {
        let linked = self
            .store
            .linked(&target.link(LinkKind::Revision, digest))
            .await;
        if self.readable("manifest link", linked) {
            self.stored_manifest(digest).await
        } else {
            None
        }
    }

    /// A manifest that the store has, through whichever repository. What doesn't have its digest,
    /// or is no manifest, is not there.
    pub(super) async fn stored_manifest(&self, digest: Digest) -> Option<Arc<Verified>> {
        let bytes = self.readable(
            "manifest",
            store::read_all(&*self.store, &digest, MAX_MANIFEST).await,
        )?;
        if Digest::of(digest.algorithm(), &bytes) != digest {
            tracing::error!(%digest, "the stored manifest is corrupt; it is fetched again");
            self.written(
                "corrupt manifest",
                self.store.quarantine(&digest).await.map(|_was_there| ()),
            );
            return None;
        }
        let manifest = Manifest::parse(&bytes).ok()?;
        self.prefetch.note(digest, &manifest);
        let known = Known {
            digest,
            media_type: manifest.media_type,
            size: bytes.len() as u64,
        };
        Some(Verified::new(known, bytes))
    }

    /// A use extends the manifest's time. Only what is linked is used.
    pub(super) fn manifest_used(&self, target: &Target, known: &Known) {
        let Known { digest, size, .. } = known;
        self.retention
            .used(&target.stored, LinkKind::Revision, digest, *size);
    }

    /// What to serve when the upstream can't be asked: the digest it named last for this Accept
    /// list, else the one on disk if the client can read it.
    pub(super) async fn last_known(&self, target: &Target, key: &TagKey) -> Option<ManifestAnswer> {
        let recorded = match self.records.get(key) {
            Lookup::Fresh { known, .. } | Lookup::Expired(known) => {
                self.linked_manifest(target, known.digest).await
            }
            Lookup::Unknown => None,
        };
        let manifest = if let Some(loaded) = recorded {
            loaded
        } else {
            let digest = self.readable("tag", self.store.tag(&key.repo, &key.tag).await)?;
            let loaded = self.linked_manifest(target, digest).await?;
            key.accept
                .allows(loaded.known.media_type)
                .then_some(loaded)?
        };
        self.manifest_used(target, &manifest.known);
        Some(ManifestAnswer::whole(manifest, Outcome::Stale))
    }

    /// Whether a manifest of this repository refers to the blob. The upstream gave that manifest
    /// for the repository, and a registry takes no manifest whose blobs the repository lacks.
    pub(super) async fn vouched(&self, target: &Target, digest: Digest) -> bool {
        let revisions = self.store.links(&target.stored, LinkKind::Revision).await;
        let revisions = self.readable("manifests", revisions);
        for revision in revisions.into_iter().take(MAX_SCANNED) {
            if let Some(stored) = self.linked_manifest(target, revision).await
                && let Ok(manifest) = Manifest::parse(&stored.content)
                && manifest
                    .config
                    .iter()
                    .chain(&manifest.blobs)
                    .any(|blob| blob.digest == digest)
            {
                return true;
            }
        }
        false
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
            self.retention.tagged(repo, tag, &digest);
        }
    }

    /// Whether the key's Accept list can't read what the tag points to: then its own manifest is
    /// a conversion for an old client.
    async fn narrower(&self, key: &TagKey, pointed: Option<Digest>) -> bool {
        let Some(pointed) = pointed else { return false };
        let current = self.stored_manifest(pointed).await;
        current.is_some_and(|current| !key.accept.allows(current.known.media_type))
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
                    self.retention.untagged(&key.repo, &key.tag);
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
