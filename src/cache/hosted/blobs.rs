//! Blobs of hosted repositories: opened, mounted, deleted.

use super::{Damaged, Deleted, PushError};
use crate::cache::index::Index;
use crate::cache::{Cache, CachedBlob, OverQuota, ReadMode};
use crate::oci::{Digest, RepoName};
use crate::storage::{Link, LinkKind};

impl Cache {
    /// A blob of a hosted repository; none where it doesn't have it. With [`ReadMode::Head`] it has been
    /// verified. Counts as a use.
    pub async fn open_hosted(
        &self,
        repo: &RepoName,
        digest: &Digest,
        mode: ReadMode,
    ) -> Result<Option<CachedBlob>, Damaged> {
        let hold = self.hold(digest).await;
        if !self.has_hosted_link(repo, LinkKind::Layer, digest).await {
            return Ok(None);
        }
        let mut blob = self
            .open_undamaged(digest, ReadMode::Content)
            .await
            .ok_or(Damaged)?
            .held(hold);
        if mode == ReadMode::Head && !blob.become_verified().await {
            return Err(Damaged);
        }
        Ok(Some(blob))
    }

    /// A stored blob that has been verified, whichever repositories link it. No proof that any has it.
    pub async fn open_verified(&self, digest: &Digest) -> Option<CachedBlob> {
        let hold = self.hold(digest).await;
        let blob = self.open_undamaged(digest, ReadMode::Content).await?;
        let mut blob = blob.held(hold);
        blob.become_verified().await.then_some(blob)
    }

    /// The size of a stored blob, and the repositories that link it as a layer, at most `max` of them, as
    /// far as the index knows.
    pub fn repositories_with(&self, digest: &Digest, max: usize) -> Option<(u64, Vec<RepoName>)> {
        self.inner
            .with(|index| index.repositories_with(digest, max))
    }

    /// The size of a layer that a repository links, hosted or not, as far as the index knows.
    pub fn layer_size(&self, repo: &RepoName, digest: &Digest) -> Option<u64> {
        let link = (repo, LinkKind::Layer, digest);
        self.inner.with(|index| index.link_size(link))
    }

    /// Links a blob that is open into a hosted repository.
    pub async fn mount(
        &self,
        (repo, space): (&RepoName, usize),
        digest: &Digest,
        blob: &CachedBlob,
    ) -> Result<(), PushError> {
        let size = blob.size();
        let charge = self.charge_needed(space, digest, size)?;
        let link = Link::new(repo, LinkKind::Layer, digest);
        self.link_pushed(&link, size, charge).await?;
        Ok(())
    }

    /// Counts a stored blob, until it is linked, where its space doesn't have it.
    pub(super) fn charge_needed(
        &self,
        space: usize,
        digest: &Digest,
        size: u64,
    ) -> Result<super::Charge, OverQuota> {
        let needed = self.inner.with(|index| index.needed(space, digest, size));
        self.charge(space, needed)
    }

    /// The sizes of stored blobs, and whether each is known to have its digest.
    pub fn stored_parts(&self, digests: &[Digest]) -> Vec<Option<(u64, bool)>> {
        self.inner.with(|index| index.stored_parts(digests))
    }

    /// Whether a hosted repository links a layer, or a manifest of it refers to the layer, as far as the index
    /// knows.
    pub fn needs_layer(&self, repo: &RepoName, digest: &Digest) -> bool {
        let link = (repo, LinkKind::Layer, digest);
        let needs = |index: &mut Index| index.has_link(link) || index.refers_to(repo, digest);
        self.inner.with(needs)
    }

    /// Removes a blob from a hosted repository, unless a manifest of it refers to the blob.
    pub async fn delete_hosted_blob(&self, repo: &RepoName, digest: &Digest) -> Deleted {
        let link = (repo, LinkKind::Layer, digest);
        let delete = |index: &mut Index| {
            if index.refers_to(repo, digest) {
                Deleted::Referenced
            } else if index.delete(link) {
                Deleted::Gone
            } else {
                Deleted::Missing
            }
        };
        let deleted = self.inner.with(delete);
        if deleted == Deleted::Gone {
            self.deleted(link).await;
        }
        deleted
    }
}
