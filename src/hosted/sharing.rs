//! The bucket that replicas share: what is pushed is in it, too.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
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
}

/// A manifest that was pushed.
pub(super) struct Shared {
    pub(super) digest: Digest,
    pub(super) content: Bytes,
    pub(super) parts: Vec<ManifestPart>,
    pub(super) tags: Vec<Tag>,
}

impl Hosted {
    /// Whether other replicas have the same repositories, by a bucket.
    pub fn is_shared(&self) -> bool {
        self.0
            .sharing
            .as_ref()
            .is_some_and(|sharing| sharing.is_promised)
    }

    /// What a tag names: by the bucket, where another replica may have been the writer before.
    pub(super) async fn named(
        &self,
        repo: &RepoName,
        tag: &Tag,
    ) -> Result<Option<Digest>, HostedError> {
        if let Some(sharing) = self.0.sharing.as_ref().filter(|_| self.is_shared())
            && let Some(named) = sharing.bucket.tag(repo, tag).await?
        {
            return Ok(Some(named));
        }
        Ok(self.0.cache.hosted_tag(repo, tag).await)
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
        let sharing = async {
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

    /// Removes a link from the bucket.
    pub(super) async fn unshare(
        &self,
        repo: &RepoName,
        kind: LinkKind,
        digest: &Digest,
    ) -> Result<(), HostedError> {
        match &self.0.sharing {
            None => Ok(()),
            Some(sharing) => {
                let removing = sharing.bucket.unshare(repo, kind, digest);
                sharing.ends(report(repo, digest, removing).await)
            }
        }
    }

    /// Removes a tag that names this digest from the bucket.
    pub(super) async fn unshare_tag(
        &self,
        repo: &RepoName,
        tag: &Tag,
        named: &Digest,
    ) -> Result<(), HostedError> {
        match &self.0.sharing {
            None => Ok(()),
            Some(sharing) => {
                let removing = sharing.bucket.unshare_tag(repo, tag, None);
                sharing.ends(report(repo, named, removing).await)
            }
        }
    }
}

impl Sharing {
    /// A failure is the client's only where other replicas rely on the bucket.
    fn ends(&self, result: Result<(), HostedError>) -> Result<(), HostedError> {
        if self.is_promised { result } else { Ok(()) }
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
