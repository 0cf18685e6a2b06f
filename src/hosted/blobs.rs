//! Blobs: read, found in other repositories, deleted.

use super::{Hosted, HostedError, MayPull, ReadMode, SpaceSettings};
use crate::cache::{CachedBlob, Deleted, LinkKind};
use crate::error_chain::on_one_line;
use crate::oci::{Digest, RepoName};

/// Smaller blobs of mirrored repositories, in bytes, aren't found for reuse: pushing them costs no more,
/// and their digests can be guessed.
const MIN_REUSE: u64 = 1024;
/// Repositories that link a blob which are looked through.
const MAX_SOURCES: usize = 100;

impl Hosted {
    /// A warm blob; none says nothing of whether there is one.
    pub fn warm_blob(&self, repo: &RepoName, digest: &Digest) -> Option<CachedBlob> {
        self.0.cache.open_warm(repo, digest)
    }

    /// A blob of the repository; where the space permits that, also one of 1 KiB or more of a mirrored
    /// repository for which `may_reuse` is true: then it is held for a manifest that will refer to it.
    pub async fn blob(
        &self,
        repo: &RepoName,
        digest: &Digest,
        mode: ReadMode,
        may_reuse: &MayPull<'_>,
    ) -> Result<CachedBlob, HostedError> {
        let (_, settings) = self.space(repo)?;
        match self.0.cache.open_hosted(repo, digest, mode).await {
            Ok(Some(blob)) => return Ok(blob),
            Ok(None) => {}
            // A client that pushes it again heals that.
            Err(_) if mode == ReadMode::Head => return Err(HostedError::NotFound),
            Err(damaged) => return Err(damaged.into()),
        }
        if !settings.reuse || !self.is_reusable(digest, may_reuse) {
            return Err(HostedError::NotFound);
        }
        let hold = self.0.cache.hold(digest).await;
        let blob = self.0.cache.open_verified(digest).await;
        let blob = blob.ok_or(HostedError::NotFound)?;
        self.0.leases.add(repo, digest, hold, settings.uploads_ttl);
        Ok(blob)
    }

    /// Whether a mirrored repository that the caller may pull has the blob.
    pub(super) fn is_reusable(&self, digest: &Digest, may_reuse: &MayPull<'_>) -> bool {
        let found = self.0.cache.repositories_with(digest, MAX_SOURCES);
        let Some((_, sources)) = found.filter(|(size, _)| *size >= MIN_REUSE) else {
            return false;
        };
        let mut sources = sources.iter();
        sources.any(|source| !self.is_hosted(source) && may_reuse(source))
    }

    /// Makes a blob of another repository one of this one. False when no repository that the caller
    /// may pull from has it, and where it can't be linked. `from` is a stored name; none looks through all.
    pub async fn mount(
        &self,
        repo: &RepoName,
        digest: &Digest,
        from: Option<&RepoName>,
        may_pull: &MayPull<'_>,
    ) -> Result<bool, HostedError> {
        let (index, settings) = self.writable(repo)?;
        if !self.has_source(settings, digest, from, may_pull) {
            return Ok(false);
        }
        let (hosted, target, blob) = (self.clone(), repo.clone(), *digest);
        let linking = async move { hosted.link((&target, index), &blob).await };
        let linked = self.detached(linking).await;
        // The client uploads it then, and is told of what is in its way.
        Ok(linked.unwrap_or_else(|error| {
            tracing::info!(%repo, %digest, error = %on_one_line(&error), "a blob can't be mounted");
            false
        }))
    }

    fn has_source(
        &self,
        settings: &SpaceSettings,
        digest: &Digest,
        from: Option<&RepoName>,
        may_pull: &MayPull<'_>,
    ) -> bool {
        let cache = &self.0.cache;
        let only = |from: &RepoName| {
            let size = cache.layer_size(from, digest)?;
            Some((size, vec![from.clone()]))
        };
        let found = match from {
            Some(from) => only(from),
            None => cache.repositories_with(digest, MAX_SOURCES),
        };
        let Some((size, sources)) = found else {
            return false;
        };
        let mut sources = sources.iter();
        sources.any(|source| {
            let reusable = self.is_hosted(source) || (settings.reuse && size >= MIN_REUSE);
            reusable && may_pull(source)
        })
    }

    /// Links a stored blob into a repository. False where it is damaged or has gone.
    pub(super) async fn link(
        &self,
        (repo, index): (&RepoName, usize),
        digest: &Digest,
    ) -> Result<bool, HostedError> {
        let Some(blob) = self.0.cache.open_verified(digest).await else {
            return Ok(false);
        };
        let mounted = self.0.cache.mount((repo, index), digest, &blob).await;
        mounted.map_err(|error| self.push_failed(index, error))?;
        self.share_later(repo, digest);
        Ok(true)
    }

    /// Removes a blob from the repository, which doesn't have it any more at once.
    pub async fn delete_blob(&self, repo: &RepoName, digest: &Digest) -> Result<(), HostedError> {
        self.deletable(repo).await?;
        match self.0.cache.delete_hosted_blob(repo, digest).await {
            // Only the one that is here decides whether a manifest needs it.
            Deleted::Gone => self.unshare(repo, LinkKind::Layer, digest).await,
            // It may be in the bucket only, also because an earlier attempt has failed there.
            Deleted::Missing => self.unshare_layer(repo, digest).await,
            Deleted::Referenced => Err(HostedError::Referenced),
        }
    }
}
