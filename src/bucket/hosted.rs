//! What a push promises: its content is in the bucket before its success is answered.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::error::BucketError;
use super::queue::{Claim, Upload};
use super::uploads::{Ended, SWEPT_PAUSE};
use super::{Bucket, keys};
use crate::cache::{KeyLock, Link, LinkKind, Loss};
use crate::error_chain::on_one_line;
use crate::oci::{Digest, RepoName, Tag};

/// How often the bucket is asked to remove something.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_secs(1);

impl Bucket {
    /// Uploads content that is stored here, with the repository's link, unless it is known to be there.
    /// Waits for an upload of the same that runs.
    pub async fn share(
        &self,
        repo: &RepoName,
        kind: LinkKind,
        digest: &Digest,
    ) -> Result<(), BucketError> {
        let upload = Upload::new(repo, kind, digest, None);
        if self.shared.get(&upload).is_some() {
            return Ok(());
        }
        for _attempt in 0..ATTEMPTS {
            let claim = self.queue.claim(&upload).await;
            match self.upload_one(claim.entry()).await? {
                Ended::Done => {
                    claim.done();
                    self.shared.insert(upload, ());
                    return Ok(());
                }
                Ended::Gone => return Err(BucketError::Gone),
                Ended::Swept => drop(claim),
            }
            sleep(SWEPT_PAUSE).await;
        }
        Err(BucketError::Swept)
    }

    /// Nobody else uploads this content, or removes its link, while the claim is held. Waits for who does.
    pub async fn claim(&self, repo: &RepoName, kind: LinkKind, digest: &Digest) -> Claim<'_> {
        let upload = Upload::new(repo, kind, digest, None);
        self.queue.claim(&upload).await
    }

    /// Checks that the repository links content in the bucket that isn't stored here.
    pub async fn check_linked(
        &self,
        repo: &RepoName,
        kind: LinkKind,
        digest: &Digest,
    ) -> Result<(), BucketError> {
        let _claim = self.claim(repo, kind, digest).await;
        let linked = self.links(repo, kind, digest).await?;
        linked.then_some(()).ok_or(BucketError::Gone)
    }

    /// Another server may have removed what this one has uploaded.
    pub fn forget_shared(&self) {
        self.shared.clear();
    }

    /// Uploads a manifest with the repository's link.
    pub async fn share_manifest(
        &self,
        repo: &RepoName,
        digest: &Digest,
        content: Bytes,
    ) -> Result<(), BucketError> {
        let link = keys::link(repo, LinkKind::Revision, digest);
        let upload = Upload::new(repo, LinkKind::Revision, digest, None);
        for _attempt in 0..ATTEMPTS {
            let claim = self.queue.claim(&upload).await;
            // Mirrored repositories may have had the same manifest, and a sweep may be deleting it.
            if let Some(guard) = self.announced.guard(&self.objects, digest).await? {
                let content = vec![content.clone()];
                self.objects.put(&keys::blob(digest), content).await?;
                self.objects.put_pointer(&link, digest).await?;
                if guard.holds(&self.objects) {
                    claim.done();
                    return Ok(());
                }
            }
            drop(claim);
            sleep(SWEPT_PAUSE).await;
        }
        Err(BucketError::Swept)
    }

    /// Makes a tag name a manifest whose link is in the bucket, unless a hosted repository's tag names another one
    /// here by now: the push of that one does the same, and may have been faster.
    pub async fn share_tag(
        &self,
        repo: &RepoName,
        tag: &Tag,
        digest: &Digest,
    ) -> Result<(), BucketError> {
        let _lock = self.lock_tag(repo, tag).await;
        if self.cache.hosts(repo) && self.cache.hosted_tag(repo, tag).await != Some(*digest) {
            return Ok(());
        }
        let current = keys::tag_current(repo, tag);
        if self.objects.names(&current, digest).await? {
            return Ok(());
        }
        // The sweep finds a tag by this.
        let index = keys::tag_index(repo, tag, digest);
        self.objects.put_pointer(&index, digest).await?;
        self.objects.put_pointer(&current, digest).await
    }

    /// Removes a repository's link. The sweep removes the content, unless other links need it.
    pub async fn unshare(
        &self,
        repo: &RepoName,
        kind: LinkKind,
        digest: &Digest,
    ) -> Result<(), BucketError> {
        let claim = self.claim(repo, kind, digest).await;
        self.remove_link(claim).await
    }

    async fn remove_link(&self, claim: Claim<'_>) -> Result<(), BucketError> {
        let upload = &claim.entry().upload;
        let Upload {
            repo, kind, digest, ..
        } = upload;
        self.queue.withdraw(|waiting| {
            (&waiting.repo, waiting.kind, &waiting.digest) == (repo, *kind, digest)
        });
        self.shared.remove(upload);
        let removed = self.objects.delete(&keys::link(repo, *kind, digest)).await;
        claim.done();
        removed
    }

    /// Removes a repository's link, unless it turns out to be needed. False where there was none to remove.
    pub async fn unshare_unneeded(
        &self,
        repo: &RepoName,
        (kind, digest): (LinkKind, &Digest),
        is_needed: impl Fn() -> bool,
    ) -> Result<bool, BucketError> {
        let claim = self.claim(repo, kind, digest).await;
        if is_needed() || !self.links(repo, kind, digest).await? {
            return Ok(false);
        }
        self.remove_link(claim).await?;
        Ok(true)
    }

    /// Nobody else changes the tag in the bucket while this is held. Waits for who does.
    pub(crate) async fn lock_tag(&self, repo: &RepoName, tag: &Tag) -> KeyLock<(RepoName, Tag)> {
        self.tags.lock((repo.clone(), tag.clone())).await
    }

    /// Removes a tag that names this manifest here; where `only_then` is true, only while it does so in the
    /// bucket, too.
    pub async fn unshare_tag(
        &self,
        repo: &RepoName,
        tag: &Tag,
        (named, only_then): (&Digest, bool),
    ) -> Result<(), BucketError> {
        // An upload of the manifest may be about to write the tag.
        let _claim = self.claim(repo, LinkKind::Revision, named).await;
        let current = keys::tag_current(repo, tag);
        let _lock = self.lock_tag(repo, tag).await;
        self.queue.withdraw(|waiting| {
            waiting.repo == *repo && waiting.digest == *named && waiting.tag.as_ref() == Some(tag)
        });
        if only_then && !self.objects.names(&current, named).await? {
            return Ok(());
        }
        self.objects.delete(&current).await
    }

    /// Removes what hosted repositories lose here from the bucket, too, while `is_writer` is true: what other
    /// replicas have of them are copies. Ends with the cache.
    pub async fn follow_losses(
        self: Arc<Self>,
        mut losses: mpsc::Receiver<Loss>,
        is_writer: impl Fn() -> bool + Send,
    ) {
        while let Some(Loss { link, tags }) = losses.recv().await {
            if !is_writer() {
                continue;
            }
            let mut pause = FIRST_PAUSE;
            for _attempt in 0..ATTEMPTS {
                let Err(error) = self.lose(&link, &tags).await else {
                    break;
                };
                tracing::warn!(repo = %link.repo, digest = %link.digest, error = %on_one_line(&error), "can't remove from the bucket what was removed from a hosted repository");
                sleep(pause).await;
                pause *= 4;
            }
        }
    }

    async fn lose(&self, link: &Link, tags: &[Tag]) -> Result<(), BucketError> {
        let Link { repo, kind, digest } = link;
        for tag in tags {
            self.unshare_tag(repo, tag, (digest, true)).await?;
        }
        let claim = self.claim(repo, *kind, digest).await;
        // It may have been pushed again.
        if self.cache.has_link(link).await {
            return Ok(());
        }
        self.remove_link(claim).await
    }
}
