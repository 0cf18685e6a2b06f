//! Uploads: files of the store that become blobs of a repository.

use std::time::SystemTime;

use tokio::time::Instant;

use super::Charge;
use crate::cache::{Cache, Reservation, Trust};
use crate::oci::{Digest, RepoName, UploadId};
use crate::storage::{Link, LinkKind, Placing, StoreError, Upload, UploadFile};

/// A finished upload, whose content has the digest.
#[derive(Debug)]
pub struct PushedFile {
    pub digest: Digest,
    pub file: Box<dyn UploadFile>,
    pub charge: Charge,
    pub reservation: Option<Reservation>,
    /// Whether it has to be durable at once.
    pub sync: bool,
}

impl Cache {
    /// Starts an upload with an empty file.
    pub async fn start_upload(
        &self,
        repo: &RepoName,
        id: &UploadId,
    ) -> Result<Box<dyn UploadFile>, StoreError> {
        let now = self.inner.clock.wall();
        self.inner.store.start_upload(repo, id, now).await
    }

    /// Opens the file of an upload; none where there is none. At most one caller at a time.
    pub async fn open_upload(
        &self,
        repo: &RepoName,
        id: &UploadId,
    ) -> Result<Option<Box<dyn UploadFile>>, StoreError> {
        self.inner.store.open_upload(repo, id).await
    }

    /// Removes an upload. False when it wasn't there.
    pub async fn cancel_upload(&self, repo: &RepoName, id: &UploadId) -> Result<bool, StoreError> {
        self.inner.store.cancel_upload(repo, id).await
    }

    /// The uploads of all repositories, with when each was written last.
    pub async fn uploads(&self) -> Result<Vec<(RepoName, UploadId, SystemTime)>, StoreError> {
        let uploads = self.inner.store.uploads().await?.into_iter();
        let session = |upload: Upload| {
            let (repo, id) = upload.session?;
            Some((repo, id, upload.modified))
        };
        Ok(uploads.filter_map(session).collect())
    }

    /// Makes a finished upload a blob of a hosted repository. It replaces a blob of the same digest that
    /// isn't known to be right. After an error the upload is still there.
    pub async fn commit_upload(
        &self,
        repo: &RepoName,
        pushed: PushedFile,
    ) -> Result<(), StoreError> {
        let PushedFile {
            digest,
            file,
            charge,
            reservation,
            sync,
        } = pushed;
        let size = file.size();
        let hold = self.hold(&digest).await;
        let _arriving = self.arriving(&digest, repo);
        let placing = Placing {
            sync,
            replace: !self.is_known_right(&digest, size).await,
        };
        let started = Instant::now();
        let commit = tokio::task::spawn_blocking(move || file.commit(&digest, placing));
        let modified = commit
            .await
            .map_err(|source| StoreError::Lost { source })??;
        self.inner.metrics.store_committed(started.elapsed());
        match reservation {
            Some(reservation) => reservation.commit(&hold, size),
            None => self
                .inner
                .with(|index| index.file_present(hold.content, size)),
        }
        if let Some(modified) = modified {
            self.inner.with(|index| {
                index.set_synced_by_commit(hold.content, sync);
                index.set_verified(hold.content, size, modified);
            });
        }
        let link = Link::new(repo, LinkKind::Layer, &digest);
        let is_new = self.link_pushed(&link, size, charge).await?;
        if sync {
            let links = std::slice::from_ref(&link);
            let synced = self.make_durable(&[digest], links, None).await;
            let synced = synced.map_err(|(_, error)| error);
            return self.unless_failed(&link, is_new, synced);
        }
        Ok(())
    }

    /// Whether the store has this blob, of this size, and it is known to have its digest.
    async fn is_known_right(&self, digest: &Digest, size: u64) -> bool {
        if self.stored_parts(&[*digest]) == [None] {
            return false;
        }
        match self.inner.store.open(digest).await {
            Ok(Some(content)) => {
                content.size == size && self.trust(digest, &content) == Trust::Verified
            }
            Ok(None) | Err(_) => false,
        }
    }
}
