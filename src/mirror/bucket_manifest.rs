//! Manifests and tags of the bucket.

use std::sync::Arc;

use bytes::Bytes;

use super::tags::TagKey;
use super::{Mirror, MirrorError, Target};
use crate::bucket::{Bucket, BucketError, Upload};
use crate::cache::{CachedManifest, LinkKind};
use crate::error_chain::on_one_line;
use crate::oci::manifest::MAX_MANIFEST;
use crate::oci::{Accept, Digest, Manifest, Reference, RepoName, Tag};

impl Mirror {
    /// A manifest of the bucket, which is stored and linked here from then on. None: the upstream is to be
    /// asked. The error is the upstream's, which doesn't let the repository have the manifest.
    pub(super) async fn bucket_manifest(
        &self,
        target: &Target,
        digest: &Digest,
    ) -> Result<Option<Arc<CachedManifest>>, MirrorError> {
        let Some(bucket) = &self.bucket else {
            return Ok(None);
        };
        let read = self.verified(bucket, &target.stored, digest).await;
        let Some((bytes, parsed, is_linked)) = read else {
            return Ok(None);
        };
        if !is_linked && !self.may_share(target, digest).await {
            return Ok(None);
        }
        if !is_linked {
            let (repo, reference) = (&target.repo, Reference::Digest(*digest));
            let (upstream, accept) = (target.upstream.direct(), Accept::everything());
            upstream
                .head_manifest(repo, &reference, &accept, None)
                .await?;
        }
        let put = self
            .cache
            .put_manifest(&target.stored, *digest, bytes, parsed);
        let (manifest, stored) = put.await;
        self.note_manifest(&manifest);
        if stored && !is_linked {
            self.share_manifest(&target.stored, digest, None, false);
        }
        Ok(Some(manifest))
    }

    /// The manifest, if it has its digest and can be served, and whether the repository links it. One that is
    /// wrong is read once more, and then set aside.
    pub(super) async fn verified(
        &self,
        bucket: &Arc<Bucket>,
        repo: &RepoName,
        digest: &Digest,
    ) -> Option<(Bytes, Manifest, bool)> {
        for _attempt in 0..2 {
            let read = read_manifest(bucket, repo, digest).await;
            let read = read.inspect_err(|error| {
                tracing::debug!(%digest, error = %on_one_line(error), "the bucket has no answer; asking the upstream");
            });
            let (bytes, is_linked) = read.ok()??;
            let leave = self.cache.workers().admit(bytes.len() as u64).await.ok()?;
            let (expected, document) = (*digest, bytes.clone());
            let check = move || {
                let is_right = Digest::of(expected.algorithm(), &document) == expected;
                is_right.then(|| Manifest::parse(&document))
            };
            if let Some(parsed) = leave.run(check).await.ok()? {
                return Some((bytes, parsed.ok()?, is_linked));
            }
            tracing::warn!(%digest, "the bucket sent a wrong manifest");
        }
        bucket.distrust(digest).await;
        None
    }

    /// What the bucket says that a tag named last: its manifest is stored here from then on.
    pub(super) async fn bucket_tag(
        &self,
        target: &Target,
        key: &TagKey,
    ) -> Option<Arc<CachedManifest>> {
        let bucket = self.bucket.as_ref()?;
        let named = bucket.tag(&key.repo, &key.tag).await;
        let named = named.inspect_err(|error| {
            tracing::debug!(repo = %key.repo, tag = %key.tag, error = %on_one_line(error), "the bucket has no answer");
        });
        let manifest = self.bucket_manifest(target, &named.ok()??).await.ok()??;
        key.accept
            .allows(manifest.meta.media_type)
            .then_some(manifest)
    }

    /// A manifest of the upstream is stored here, or a tag that names it: sees to it that it is in the bucket.
    pub(super) fn share_manifest(
        &self,
        repo: &RepoName,
        digest: &Digest,
        tag: Option<&Tag>,
        is_absent: bool,
    ) {
        let Some(bucket) = &self.bucket else { return };
        let upload = Upload::new(repo, LinkKind::Revision, digest, tag);
        bucket.upload(upload, is_absent);
    }
}

async fn read_manifest(
    bucket: &Arc<Bucket>,
    repo: &RepoName,
    digest: &Digest,
) -> Result<Option<(Bytes, bool)>, BucketError> {
    let link = (repo, LinkKind::Revision);
    let Some(content) = bucket.content(link, digest, (0, None)).await? else {
        return Ok(None);
    };
    let is_linked = content.is_linked;
    let bytes = Bucket::read_all(content, MAX_MANIFEST).await?;
    Ok(Some((bytes, is_linked)))
}
