//! What the cache holds of manifests and tags: storing, finding and forgetting them for a target.

use std::sync::Arc;

use super::manifests::ManifestAnswer;
use super::tags::TagKey;
use super::{Mirror, MirrorError, ReadMode, Target};
use crate::cache::CachedManifest;
use crate::config::Freshness;
use crate::metrics::Outcome;
use crate::oci::Digest;

impl Mirror {
    /// A manifest that this repository has. Counts as a use.
    pub(super) async fn cached_manifest(
        &self,
        target: &Target,
        digest: &Digest,
    ) -> Option<Arc<CachedManifest>> {
        let manifest = self.cache.manifest(&target.stored, digest).await?;
        self.note_manifest(&manifest);
        Some(manifest)
    }

    /// A manifest that is stored for some repository whose content the target's upstream may be believed
    /// to have; see [`Cache::any_manifest`](crate::cache::Cache::any_manifest).
    pub(super) async fn any_manifest(
        &self,
        target: &Target,
        digest: &Digest,
    ) -> Option<Arc<CachedManifest>> {
        if !self.may_share(target, digest).await {
            return None;
        }
        let manifest = self.cache.any_manifest(digest).await?;
        self.note_manifest(&manifest);
        Some(manifest)
    }

    /// The error for a client when asking the upstream failed with `asked` and nothing stored can be
    /// served. If the stored manifest is of schema 1, the client gets the same error as while the
    /// upstream answers.
    pub(super) async fn unless_schema1(
        &self,
        target: &Target,
        digest: Digest,
        asked: MirrorError,
    ) -> MirrorError {
        if !self.cache.is_schema1(&target.stored, &digest).await {
            return asked;
        }
        target.report(&asked, "said that the stored manifest is of schema 1");
        MirrorError::StoredSchema1 {
            digest: Box::new(digest),
            asked: Box::new(asked),
        }
    }

    /// What to serve when the upstream isn't asked, or can't answer: the digest it named last for this
    /// Accept list, else the one on disk if the client can read it. Of an upstream that is offline, the one
    /// on disk: an import changes it.
    pub(super) async fn last_known(
        &self,
        target: &Target,
        key: &TagKey,
        (want, outcome): (ReadMode, Outcome),
    ) -> Option<ManifestAnswer> {
        if !target.upstream.is_offline()
            && let Some(known) = self.records.last(key)
            && let Some(recorded) = self.recall(target, known.digest, (want, outcome)).await
        {
            return Some(recorded);
        }
        let digest = self.cache.tagged(&key.repo, &key.tag).await?;
        let stored = self.recall(target, digest, (want, outcome)).await?;
        let media_type = stored.found.known().media_type;
        key.accept.allows(media_type).then_some(stored)
    }

    /// A manifest that this repository has, without a question to the upstream. That is a use of it.
    async fn recall(
        &self,
        target: &Target,
        digest: Digest,
        (want, outcome): (ReadMode, Outcome),
    ) -> Option<ManifestAnswer> {
        if want == ReadMode::Head
            && let Some(known) = self.cache.manifest_meta(&target.stored, &digest)
        {
            return Some(ManifestAnswer::head(known, outcome));
        }
        let manifest = self.cached_manifest(target, &digest).await?;
        Some(ManifestAnswer::whole(manifest, outcome))
    }

    /// Makes a tag on disk name this digest.
    ///
    /// The reference registry's layout has one digest for a tag. An index serves most clients, so an
    /// old client's manifest doesn't replace it while the index is current. Where the upstream isn't
    /// asked again, such a manifest, which may be of one platform, would be served to all clients.
    pub(super) async fn update_tag(&self, key: &TagKey, digest: Digest) {
        let is_final = !matches!(self.records.freshness(key), Freshness::Limited(_));
        if is_final && !key.accept.allows_indexes() {
            return;
        }
        match self.cache.tagged(&key.repo, &key.tag).await {
            Some(named) if named == digest || self.is_conversion(key, &named).await => {}
            _ => {
                if self.cache.tag(&key.repo, &key.tag, &digest).await {
                    self.share_manifest(&key.repo, &digest, Some(&key.tag), false);
                }
            }
        }
    }

    /// Whether the key's Accept list can't read what the tag points to: then its own manifest is
    /// a conversion for an old client.
    async fn is_conversion(&self, key: &TagKey, named: &Digest) -> bool {
        let current = self.cache.peek_manifest(&key.repo, named).await;
        current.is_some_and(|current| !key.accept.allows(current.meta.media_type))
    }

    /// containerd and docker resolve a tag by HEAD and then ask by digest: this is where the tag
    /// gets its place on disk, without which a restart would forget it.
    pub(super) async fn on_manifest_stored(&self, target: &Target, digest: Digest) {
        let Some(key) = self.records.take_expected(&target.stored, digest) else {
            return;
        };
        // Meanwhile the tag may have moved on.
        if self
            .records
            .last(&key)
            .is_some_and(|known| known.digest == digest)
        {
            self.update_tag(&key, digest).await;
        }
    }

    /// Removes a tag after the upstream's 404, or a schema 1 manifest in its place, if the client could
    /// have read the manifest that it named. Other errors change nothing.
    pub(super) async fn on_upstream_404(&self, target: &Target, key: &TagKey, error: &MirrorError) {
        // One caller's answer says nothing for the others.
        if !error.ends_tag() || target.upstream.caller().is_some() {
            return;
        }
        self.records.forget(key);
        if let Some(named) = self.cache.tagged(&key.repo, &key.tag).await {
            let manifest = self.cache.peek_manifest(&target.stored, &named).await;
            if manifest.is_none_or(|manifest| key.accept.allows(manifest.meta.media_type)) {
                self.cache.untag(&key.repo, &key.tag).await;
            }
        }
    }
}
