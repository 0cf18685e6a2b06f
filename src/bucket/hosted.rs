//! What a push promises: its content is in the bucket before its success is answered.

use bytes::Bytes;

use super::error::BucketError;
use super::queue::Upload;
use super::reading::Pointer;
use super::uploads::Ended;
use super::{Bucket, keys};
use crate::cache::LinkKind;
use crate::oci::{Digest, RepoName, Tag};

impl Bucket {
    /// Uploads content that is stored here, with the repository's link, unless it is known to be there.
    /// Waits for an upload of the same that runs.
    pub async fn share(
        &self,
        repo: &RepoName,
        kind: LinkKind,
        digest: &Digest,
    ) -> Result<(), BucketError> {
        let upload = Upload {
            repo: repo.clone(),
            kind,
            digest: *digest,
            tag: None,
        };
        if self.shared.get(&upload).is_some() {
            return Ok(());
        }
        let claim = self.queue.claim(&upload).await;
        if let Ended::Gone = self.upload_one(claim.entry()).await? {
            return Err(BucketError::Gone);
        }
        self.shared.insert(upload, ());
        Ok(())
    }

    /// Uploads a manifest with the repository's link.
    pub async fn share_manifest(
        &self,
        repo: &RepoName,
        digest: &Digest,
        content: Bytes,
    ) -> Result<(), BucketError> {
        let link = keys::link(repo, LinkKind::Revision, digest);
        self.objects.put(&keys::blob(digest), vec![content]).await?;
        self.put_pointer(&link, digest).await
    }

    /// Makes a tag name a manifest whose link is in the bucket.
    pub async fn share_tag(
        &self,
        repo: &RepoName,
        tag: &Tag,
        digest: &Digest,
    ) -> Result<(), BucketError> {
        self.put_pointer(&keys::tag_index(repo, tag, digest), digest)
            .await?;
        self.put_pointer(&keys::tag_current(repo, tag), digest).await
    }

    /// Removes a repository's link. The sweep removes the content, unless other links need it.
    pub async fn unshare(
        &self,
        repo: &RepoName,
        kind: LinkKind,
        digest: &Digest,
    ) -> Result<(), BucketError> {
        self.shared.remove(&Upload {
            repo: repo.clone(),
            kind,
            digest: *digest,
            tag: None,
        });
        self.objects.delete(&keys::link(repo, kind, digest)).await
    }

    /// Removes a tag; with `named`, only while it names that.
    pub async fn unshare_tag(
        &self,
        repo: &RepoName,
        tag: &Tag,
        named: Option<&Digest>,
    ) -> Result<(), BucketError> {
        let current = keys::tag_current(repo, tag);
        if let Some(named) = named {
            match self.ask_pointer(&current, None).await? {
                Pointer::To(digest, _) if digest == *named => {}
                _ => return Ok(()),
            }
        }
        self.objects.delete(&current).await
    }

    pub(super) async fn put_pointer(&self, key: &str, to: &Digest) -> Result<(), BucketError> {
        let text = Bytes::from(to.to_string());
        self.objects.put(key, vec![text]).await
    }
}
