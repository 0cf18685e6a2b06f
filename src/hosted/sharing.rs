//! The bucket that replicas share: what is pushed is in it, too.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::timeout;

use super::{Hosted, HostedError};
use crate::bucket::{Bucket, BucketError, Upload};
use crate::cache::{LinkKind, ManifestPart};
use crate::error_chain::on_one_line;
use crate::oci::{Digest, RepoName, Tag};

/// How long the success of a push or a deletion waits for the bucket.
const PATIENCE: Duration = Duration::from_mins(10);

/// The bucket of hosted repositories.
#[derive(Debug, Clone)]
pub struct Sharing {
    pub bucket: Arc<Bucket>,
    /// Whether other replicas read from it, so that a success promises that it has the content. Otherwise
    /// the content is uploaded afterwards.
    pub is_promised: bool,
    /// Whether this server is the one that writes what is hosted.
    pub is_writer: watch::Receiver<bool>,
    /// Where this server's name is kept; none for a store that doesn't outlive the process.
    pub name_file: Option<PathBuf>,
}

/// A manifest that was pushed.
pub(super) struct Shared {
    pub(super) digest: Digest,
    pub(super) content: Bytes,
    /// Parts that are stored here.
    pub(super) parts: Vec<ManifestPart>,
    /// Parts that are in the bucket only.
    pub(super) elsewhere: Vec<ManifestPart>,
    pub(super) tags: Vec<Tag>,
}

impl Hosted {
    /// Whether a bucket may have content of the repositories that isn't here.
    pub fn has_bucket(&self) -> bool {
        self.0.sharing.is_some()
    }

    /// Whether other replicas have the same repositories, by a bucket.
    pub fn is_shared(&self) -> bool {
        self.0
            .sharing
            .as_ref()
            .is_some_and(|sharing| sharing.is_promised)
    }

    /// What a tag names: by the bucket, where another replica may have been the writer before, or where it isn't
    /// known yet what the bucket has.
    pub(super) async fn named(
        &self,
        repo: &RepoName,
        tag: &Tag,
    ) -> Result<Option<Digest>, HostedError> {
        let here = self.0.cache.hosted_tag(repo, tag).await;
        let Some(Sharing { bucket, .. }) = &self.0.sharing else {
            return Ok(here);
        };
        if !self.is_shared() && (here.is_some() || self.knows_all()) {
            return Ok(here);
        }
        Ok(bucket.tag(repo, tag).await?.or(here))
    }

    /// A blob is stored: it is to be in the bucket before its manifest is.
    pub(super) fn share_later(&self, repo: &RepoName, digest: &Digest) {
        if let Some(sharing) = &self.0.sharing {
            let upload = Upload::new(repo, LinkKind::Layer, digest, None);
            sharing.bucket.upload(upload, false);
        }
    }

    /// Sees to it that a manifest that is stored, its parts and its tags are in the bucket.
    pub(super) async fn share(&self, repo: &RepoName, pushed: Shared) -> Result<(), HostedError> {
        let Some(Sharing {
            bucket,
            is_promised,
            ..
        }) = &self.0.sharing
        else {
            return Ok(());
        };
        if !is_promised {
            let later = |tag| {
                let manifest = Upload::new(repo, LinkKind::Revision, &pushed.digest, tag);
                bucket.upload(manifest, false);
            };
            if pushed.tags.is_empty() {
                later(None);
            }
            pushed.tags.iter().map(Some).for_each(later);
            return Ok(());
        }
        self.share_now(repo, pushed).await
    }

    /// Uploads a manifest that is stored, its parts and its tags.
    pub(super) async fn share_now(
        &self,
        repo: &RepoName,
        pushed: Shared,
    ) -> Result<(), HostedError> {
        let Some(Sharing { bucket, .. }) = &self.0.sharing else {
            return Ok(());
        };
        let sharing = async {
            for (kind, digest) in &pushed.elsewhere {
                bucket.check_linked(repo, *kind, digest).await?;
            }
            for (kind, digest) in &pushed.parts {
                bucket.share(repo, *kind, digest).await?;
            }
            bucket
                .share_manifest(repo, &pushed.digest, pushed.content)
                .await?;
            for tag in &pushed.tags {
                bucket.share_tag(repo, tag, &pushed.digest).await?;
            }
            Ok(())
        };
        report(repo, &pushed.digest, sharing).await
    }

    /// Removes the link of a layer that isn't here from the bucket. No manifest refers to it.
    pub(super) async fn unshare_layer(
        &self,
        repo: &RepoName,
        digest: &Digest,
    ) -> Result<(), HostedError> {
        let Some(Sharing { bucket, .. }) = &self.0.sharing else {
            return Err(HostedError::NotFound);
        };
        let layer = (LinkKind::Layer, digest);
        let is_needed = || self.0.cache.needs_layer(repo, digest);
        let removing = bucket.unshare_unneeded(repo, layer, is_needed);
        let was_there = timeout(PATIENCE, removing).await;
        let was_there = was_there.unwrap_or(Err(BucketError::Late(PATIENCE)))?;
        was_there.then_some(()).ok_or(HostedError::NotFound)
    }

    /// Removes a link from the bucket.
    pub(super) async fn unshare(
        &self,
        repo: &RepoName,
        kind: LinkKind,
        digest: &Digest,
    ) -> Result<(), HostedError> {
        let Some(Sharing { bucket, .. }) = &self.0.sharing else {
            return Ok(());
        };
        let removing = bucket.unshare(repo, kind, digest);
        report(repo, digest, removing).await
    }

    /// Removes a tag that names this digest from the bucket.
    pub(super) async fn unshare_tag(
        &self,
        repo: &RepoName,
        tag: &Tag,
        named: &Digest,
    ) -> Result<(), HostedError> {
        let Some(Sharing { bucket, .. }) = &self.0.sharing else {
            return Ok(());
        };
        let removing = bucket.unshare_tag(repo, tag, (named, false));
        report(repo, named, removing).await
    }
}

/// What a change of the bucket results in, within [`PATIENCE`].
async fn report(
    repo: &RepoName,
    digest: &Digest,
    changing: impl Future<Output = Result<(), BucketError>>,
) -> Result<(), HostedError> {
    let late = |_elapsed| Err(BucketError::Late(PATIENCE));
    let result = timeout(PATIENCE, changing).await.unwrap_or_else(late);
    if let Err(error) = &result {
        tracing::error!(%repo, %digest, error = %on_one_line(error), "the bucket doesn't have a change of a hosted repository");
    }
    Ok(result?)
}
