//! Manifests and tags that only the bucket has become this server's, and what only this server has goes to the
//! bucket, or is forgotten. `knowledge` says when.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::try_join_all;

use super::sharing::Shared;
use super::{Hosted, HostedError};
use crate::bucket::{Bucket, BucketError, Inventories, REQUESTS_AT_A_TIME, Upload};
use crate::cache::{LinkKind, ManifestPush};
use crate::error_chain::on_one_line;
use crate::oci::manifest::MAX_MANIFEST;
use crate::oci::{Digest, Reference, RepoName, Tag};

/// Who has written hosted repositories before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Before {
    /// No server that this one has copies of.
    Nobody,
    This,
    /// What differs here is older than what the bucket has.
    Another,
}

/// Why what the bucket has isn't known.
#[derive(Debug, thiserror::Error)]
pub(super) enum AdoptionError {
    #[error(transparent)]
    Bucket(#[from] BucketError),
    #[error(transparent)]
    Hosted(#[from] HostedError),
    #[error("the file with this server's name can't be read or written")]
    Name(#[source] std::io::Error),
    #[error("{0} manifests of the bucket can't be read; see the lines before")]
    Unreadable(usize),
    #[error("it took too long")]
    Late,
    #[error("copies are still being removed")]
    Busy,
}

/// How the adoption of one manifest has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Adopted {
    Done,
    /// The bucket doesn't have it, or not any more.
    Gone,
    Unreadable,
}

/// A manifest that is in the bucket and not here.
type Lacking = (RepoName, Digest);

impl Hosted {
    // --- What is in the bucket only ------------------------------------------------------------

    /// Adds manifests and tags that only the bucket has; how many manifests it couldn't read.
    pub(super) async fn learn_manifests(
        &self,
        bucket: &Arc<Bucket>,
        before: Before,
        there: &Inventories,
    ) -> Result<usize, AdoptionError> {
        let cache = &self.0.cache;
        let (mut lacking, mut unreadable) = (Vec::<Lacking>::new(), 0);
        for (repo, found) in there {
            let digests = found.manifests.iter();
            let missing = digests.filter(|digest| !cache.has_hosted_manifest(repo, digest));
            lacking.extend(missing.map(|digest| (repo.clone(), *digest)));
        }
        for page in lacking.chunks(REQUESTS_AT_A_TIME) {
            let adopting = page
                .iter()
                .map(|(repo, digest)| self.adopt_manifest(bucket, repo, digest));
            let adopted = try_join_all(adopting).await?;
            let failed = adopted
                .into_iter()
                .filter(|adopted| *adopted == Adopted::Unreadable);
            unreadable += failed.count();
        }
        let tags = there.iter().flat_map(|(repo, found)| {
            let tags = found.tags.iter();
            tags.map(move |(tag, digest)| (repo, tag, digest))
        });
        let tags: Vec<_> = tags.collect();
        for page in tags.chunks(REQUESTS_AT_A_TIME) {
            let adopting = page
                .iter()
                .map(|(repo, tag, digest)| self.adopt_tag(bucket, before, (repo, tag), digest));
            try_join_all(adopting).await?;
        }
        Ok(unreadable)
    }

    async fn adopt_manifest(
        &self,
        bucket: &Arc<Bucket>,
        repo: &RepoName,
        digest: &Digest,
    ) -> Result<Adopted, AdoptionError> {
        // Nobody deletes it meanwhile.
        let _claim = bucket.claim(repo, LinkKind::Revision, digest).await;
        let link = (repo, LinkKind::Revision);
        let content = match self.0.cache.any_manifest(digest).await {
            Some(manifest) if bucket.links(repo, LinkKind::Revision, digest).await? => {
                manifest.content.clone()
            }
            Some(_) => return Ok(Adopted::Gone),
            None => match bucket.content(link, digest, (0, None)).await? {
                Some(content) if content.is_linked => {
                    Bucket::read_all(content, MAX_MANIFEST).await?
                }
                _ => return Ok(Adopted::Gone),
            },
        };
        match self.put_adopted(repo, digest, content, None).await {
            Ok(()) => Ok(Adopted::Done),
            Err(
                error @ (HostedError::WrongDigest { .. }
                | HostedError::Manifest(_)
                | HostedError::InvalidManifest(_)),
            ) => {
                tracing::error!(%repo, %digest, error = %on_one_line(&error), "a manifest of a hosted repository can't be read from the bucket; pushing or deleting it mends that");
                Ok(Adopted::Unreadable)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn adopt_tag(
        &self,
        bucket: &Bucket,
        before: Before,
        (repo, tag): (&RepoName, &Tag),
        digest: &Digest,
    ) -> Result<(), AdoptionError> {
        let cache = &self.0.cache;
        let bucket_is_right = before == Before::Another;
        match cache.hosted_tag(repo, tag).await {
            Some(named) if named == *digest => return Ok(()),
            Some(named) if !bucket_is_right => {
                // A push that the bucket hasn't noticed to its end. Rules go by what the tag names here.
                bucket.upload(
                    Upload::new(repo, LinkKind::Revision, &named, Some(tag)),
                    false,
                );
                return Ok(());
            }
            _ => {}
        }
        if !cache.has_hosted_manifest(repo, digest) {
            return Ok(());
        }
        // Nobody removes it meanwhile.
        let _lock = bucket.lock_tag(repo, tag).await;
        if bucket.tag(repo, tag).await? != Some(*digest) {
            return Ok(());
        }
        let Some(manifest) = cache.any_manifest(digest).await else {
            return Ok(());
        };
        let content = manifest.content.clone();
        // Here, a client may have made it name another one.
        let tag = Some((tag, !bucket_is_right));
        match self.put_adopted(repo, digest, content, tag).await {
            Ok(()) | Err(HostedError::Immutable { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Stores a manifest, and a tag of it, which may have to be a new one.
    async fn put_adopted(
        &self,
        repo: &RepoName,
        digest: &Digest,
        content: Bytes,
        tag: Option<(&Tag, bool)>,
    ) -> Result<(), HostedError> {
        let (index, _) = self.space(repo)?;
        let reference = Reference::Digest(*digest);
        let (_, parsed) = self.read(&reference, None, content.clone()).await?;
        let (parts, holds) = self.parts_here(repo, &parsed).await;
        let push = ManifestPush {
            digest: *digest,
            bytes: content,
            parsed,
            parts,
            tags: tag
                .map(|(tag, is_new)| (tag.clone(), is_new))
                .into_iter()
                .collect(),
            ignores_quota: true,
        };
        let (hosted, repo) = (self.clone(), repo.clone());
        let pushing = async move {
            let _holds = holds;
            let pushed = hosted.0.cache.push_manifest((&repo, index), push).await;
            pushed.map_err(|error| hosted.push_failed(index, error))
        };
        self.detached(pushing).await
    }

    // --- What is here only ---------------------------------------------------------------------

    /// Forgets manifests and tags that another writer has removed.
    pub(super) async fn forget(&self, there: &Inventories) -> Result<(), AdoptionError> {
        let cache = &self.0.cache;
        let repositories = cache.hosted_repositories().await;
        for repo in repositories.map_err(HostedError::from)? {
            for tag in cache.hosted_tags(&repo).await.unwrap_or_default() {
                let found = there.get(&repo);
                if found.is_none_or(|found| !found.tags.contains_key(&tag)) {
                    let (cache, repo) = (cache.clone(), repo.clone());
                    let removing =
                        async move { Ok(cache.remove_hosted_tag(&repo, &tag, None).await?) };
                    self.detached(removing).await?;
                }
            }
        }
        for (repo, digest) in self.only_here(there) {
            cache.delete_hosted_manifest(&repo, &digest).await;
        }
        Ok(())
    }

    /// Uploads what was pushed before there was a bucket.
    pub(super) async fn share_all(&self, there: &Inventories) -> Result<(), AdoptionError> {
        let cache = &self.0.cache;
        for (repo, digest) in self.only_here(there) {
            let Some(manifest) = cache.any_manifest(&digest).await else {
                continue;
            };
            let (parts, _holds) = self.parts_here(&repo, &manifest.parsed).await;
            let shared = Shared {
                digest,
                content: manifest.content.clone(),
                parts,
                elsewhere: Vec::new(),
                tags: cache.tags_naming(&repo, &digest),
            };
            match self.share_now(&repo, shared).await {
                // Its damage has been reported.
                Ok(()) | Err(HostedError::Bucket(BucketError::Gone)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The manifests of hosted repositories that the bucket doesn't link.
    fn only_here(&self, there: &Inventories) -> Vec<Lacking> {
        let mut all = Vec::new();
        let mut next = Some(0);
        while let Some(at) = next {
            let (page, after) = self.0.cache.entries(at);
            let links = page.into_iter().map(|entry| entry.link);
            let lacking = links.filter(|link| {
                let found = there.get(&link.repo);
                link.kind == LinkKind::Revision
                    && self.is_hosted(&link.repo)
                    && found.is_none_or(|found| !found.manifests.contains(&link.digest))
            });
            all.extend(lacking.map(|link| (link.repo, link.digest)));
            next = after;
        }
        all
    }
}
