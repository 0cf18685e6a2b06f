//! Manifests and tags of hosted repositories.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::{Charge, Damaged, Deleted, PushError};
use crate::cache::index::{Claim, Index, ManifestPart};
use crate::cache::{Cache, CachedManifest, Hold, OverQuota};
use crate::oci::{Descriptor, Digest, Manifest, RepoName, Tag};
use crate::storage::{Link, LinkKind, StoreError, Tagging};

/// A manifest that a client pushes.
#[derive(Debug)]
pub struct ManifestPush {
    pub digest: Digest,
    /// It has the digest.
    pub bytes: Bytes,
    /// What the bytes say.
    pub parsed: Manifest,
    /// What it refers to and its repository has; the caller holds all of that.
    pub parts: Vec<ManifestPart>,
    /// The tags that shall name it, each with whether it must not be taken from another manifest.
    pub tags: BTreeMap<Tag, bool>,
    /// Whether it is stored even where its space has no bytes left.
    pub ignores_quota: bool,
}

impl Cache {
    /// Holds those parts of a manifest that a hosted repository has, and tells which it lacks. Waits for
    /// the deletion of a part in flight, and for the index to be complete.
    pub async fn claim(
        &self,
        repo: &RepoName,
        parts: &[ManifestPart],
    ) -> (Vec<Hold>, Vec<ManifestPart>) {
        let claim = |index: &mut Index| index.claim(repo, parts);
        let Claim { held, missing } = self.inner.until_freed(claim).await;
        (held.into_iter().map(|id| self.held(id)).collect(), missing)
    }

    /// Stores a manifest, links it, and makes its tags name it. When this returns, the manifest, its parts
    /// and its tags outlive a power cut and are kept as long as the manifest is.
    pub async fn push_manifest(
        &self,
        (repo, space): (&RepoName, usize),
        push: ManifestPush,
    ) -> Result<(), PushError> {
        // In the order of the tags: two pushes can't wait for each other.
        let mut locks = Vec::with_capacity(push.tags.len());
        for (tag, is_fixed) in &push.tags {
            locks.push(self.inner.tags.lock((repo.clone(), tag.clone())).await);
            let named = self.inner.with(|index| index.tagged(repo, tag));
            if let Some(named) = named.filter(|named| *is_fixed && *named != push.digest) {
                let (tag, digest) = (tag.clone(), Box::new(named));
                return Err(PushError::Immutable { tag, digest });
            }
        }
        let digest = push.digest;
        let hold = self.hold(&digest).await;
        let manifest = CachedManifest::new(digest, push.bytes, push.parsed);
        let size = manifest.meta.size;
        let charge = self.charge_manifest(space, (&digest, size), push.ignores_quota)?;
        let reservation = self.reserve(size).await?;
        let _arriving = self.arriving(&digest, repo);
        // One that is there stays when it has the size: it must be right.
        if self.stored_parts(&[digest]) != [None] {
            drop(self.open_verified(&digest).await);
        }
        let started = Instant::now();
        let content = manifest.content.clone();
        let is_written = self.inner.store.write_blob(&digest, content).await?;
        self.inner.metrics.store_committed(started.elapsed());
        reservation.commit(&hold, size);
        if is_written {
            self.inner
                .with(|index| index.set_synced_by_commit(hold.content, false));
        }
        let revision = Link::new(repo, LinkKind::Revision, &digest);
        let is_new = self.link_pushed(&revision, size, charge).await?;
        let tagging = Tagging {
            repo: repo.clone(),
            tags: push.tags.into_keys().collect(),
            digest,
        };
        let (parts, tags) = (push.parts, &tagging.tags);
        let published = self.publish(&revision, &parts, &tagging).await;
        let named = match &published {
            Ok(()) => tags,
            Err((tagged, _)) => tagged,
        };
        let now = self.inner.now();
        self.inner.with(|index| {
            if published.is_ok() || !named.is_empty() {
                let kept = (repo, &digest, size);
                index.keep_manifest(kept, &manifest.parsed, &parts, now);
            } else if is_new {
                index.delete((repo, LinkKind::Revision, &digest));
            }
            for tag in named {
                index.set_tag(repo, tag, &digest);
            }
        });
        published.map_err(|(_, error)| error)?;
        self.inner.manifests.insert(&manifest);
        Ok(())
    }

    fn charge_manifest(
        &self,
        space: usize,
        (digest, size): (&Digest, u64),
        ignores_quota: bool,
    ) -> Result<Charge, OverQuota> {
        if ignores_quota {
            return Ok(self.charge_existing(space, size));
        }
        self.charge_needed(space, digest, size)
    }

    /// Makes a manifest that is linked durable with its parts, then its tags.
    async fn publish(
        &self,
        revision: &Link,
        parts: &[ManifestPart],
        tagging: &Tagging,
    ) -> Result<(), (Vec<Tag>, StoreError)> {
        let repo = &revision.repo;
        let links = parts
            .iter()
            .map(|(kind, part)| Link::new(repo, *kind, part));
        let links: Vec<_> = links.chain([revision.clone()]).collect();
        let blobs = parts.iter().map(|(_, part)| *part);
        let blobs: Vec<_> = blobs.chain([revision.digest]).collect();
        self.make_durable(&blobs, &links, Some(tagging)).await
    }

    /// A manifest of a hosted repository; none where it doesn't have it. Counts as a use.
    pub async fn hosted_manifest(
        &self,
        repo: &RepoName,
        digest: &Digest,
    ) -> Result<Option<Arc<CachedManifest>>, Damaged> {
        if let Some(manifest) = self.hot_manifest(repo, digest) {
            return Ok(Some(manifest));
        }
        let _hold = self.hold(digest).await;
        if !self.has_hosted_link(repo, LinkKind::Revision, digest).await {
            return Ok(None);
        }
        self.any_manifest(digest).await.map(Some).ok_or(Damaged)
    }

    /// Whether a hosted repository has a manifest, as far as the index knows. No use.
    pub fn has_hosted_manifest(&self, repo: &RepoName, digest: &Digest) -> bool {
        let link = (repo, LinkKind::Revision, digest);
        self.inner.with(|index| index.has_link(link))
    }

    /// Removes a manifest from a hosted repository. Its tags must be gone.
    pub async fn delete_hosted_manifest(&self, repo: &RepoName, digest: &Digest) -> Deleted {
        let link = (repo, LinkKind::Revision, digest);
        if !self.inner.with(|index| index.delete(link)) {
            return Deleted::Missing;
        }
        self.deleted(link).await;
        Deleted::Gone
    }

    // --- Tags ----------------------------------------------------------------------------------

    /// The digest that a tag of a hosted repository names.
    pub async fn hosted_tag(&self, repo: &RepoName, tag: &Tag) -> Option<Digest> {
        let named = |index: &mut Index| (index.tagged(repo, tag), index.complete);
        match self.inner.with(named) {
            (None, false) => self.tagged(repo, tag).await,
            (named, _) => named,
        }
    }

    /// The tags of a hosted repository, sorted; none where it has nothing. Waits for the index to be
    /// complete.
    pub async fn hosted_tags(&self, repo: &RepoName) -> Option<Vec<Tag>> {
        self.patiently_complete().await;
        self.inner.with(|index| index.tags(repo))
    }

    /// The tags that name a manifest.
    pub fn tags_naming(&self, repo: &RepoName, digest: &Digest) -> Vec<Tag> {
        self.inner.with(|index| index.tags_naming(repo, digest))
    }

    /// Removes a tag; where `expected` is given, only if it names that. False when it doesn't.
    pub async fn remove_hosted_tag(
        &self,
        repo: &RepoName,
        tag: &Tag,
        expected: Option<&Digest>,
    ) -> Result<bool, StoreError> {
        let _lock = self.inner.tags.lock((repo.clone(), tag.clone())).await;
        let named = self.inner.with(|index| index.tagged(repo, tag));
        let is_meant = |named: Digest| expected.is_none_or(|expected| *expected == named);
        if !named.is_some_and(is_meant) {
            return Ok(false);
        }
        self.inner.store.remove_tag(repo, tag).await?;
        self.inner.with(|index| index.remove_tag(repo, tag));
        Ok(true)
    }

    // --- Referrers -----------------------------------------------------------------------------

    /// The manifests of a hosted repository with this subject, as lists have them.
    pub async fn hosted_referrers(
        &self,
        repo: &RepoName,
        subject: &Digest,
    ) -> Vec<Arc<Descriptor>> {
        self.patiently_complete().await;
        let listed = self
            .inner
            .with(|index| index.listed_referrers(repo, subject));
        let mut found = Vec::with_capacity(listed.len());
        for (digest, descriptor) in listed {
            if let Some(descriptor) = descriptor {
                found.push(descriptor);
            } else if let Some(manifest) = self.any_manifest(&digest).await {
                let descriptor = manifest.parsed.descriptor(digest, manifest.meta.size);
                found.push(Arc::new(descriptor));
            }
        }
        found
    }
}
