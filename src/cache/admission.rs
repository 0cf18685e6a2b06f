//! Admitting new blobs: a staged file with reserved space, which becomes a blob with links, or a
//! partial, or is removed.

use std::sync::Arc;

use tokio::time::Instant;

use super::partials::MAX_AGE;
use super::{Cache, Full, Hold, Reservation, SpaceRequest};
use crate::error_chain::on_one_line;
use crate::oci::{Digest, RepoName};
use crate::storage::{Link, LinkKind, Partial, Stage, StoreError};

/// Why a blob isn't stored. It can be passed through to clients all the same.
#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    #[error(transparent)]
    Full(#[from] Full),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Permission to store a blob. Holds its digest, so that nothing removes the committed file before it
/// is linked. Dropping it gives the reserved space back; dropping the stage removes its file.
#[derive(Debug)]
#[must_use = "the reserved space is given back when this is dropped"]
pub struct Admission {
    cache: Cache,
    digest: Digest,
    pub reservation: Reservation,
    hold: Hold,
}

impl Cache {
    /// Stages a blob from an upstream, and reserves the requested space, which may evict images. The
    /// stage is for the thread that writes.
    pub async fn admit(
        &self,
        digest: &Digest,
        upstream: &str,
        request: SpaceRequest,
    ) -> Result<(Admission, Box<dyn Stage>), AdmitError> {
        let hold = self.hold(digest).await;
        let reservation = self.reserve_step(request).await?;
        let stage = self.inner.store.stage(digest, upstream).await?;
        let admission = Admission {
            cache: self.clone(),
            digest: *digest,
            reservation,
            hold,
        };
        Ok((admission, stage))
    }

    /// Resumes the partial of an earlier download from the same upstream. None without a partial, or
    /// without space for it.
    pub async fn resume(
        &self,
        digest: &Digest,
        upstream: &str,
        evict: bool,
    ) -> Option<(Admission, Box<dyn Stage>, Partial)> {
        let resumed = self.inner.store.resume(digest, upstream).await;
        let resumed = resumed.inspect_err(|error| {
            tracing::warn!(%digest, error = %on_one_line(error), "can't resume a partial download");
        });
        let (stage, partial) = resumed.ok()??;
        // A download that has just been paused has parked it before it gave the stage up.
        let reservation = if let Some(parked) = self.take_partial(digest, upstream) {
            parked
        } else {
            let request = SpaceRequest {
                bytes: partial.ranges.len(),
                blob: partial.total,
                evict,
            };
            self.reserve_step(request).await.ok()?
        };
        let admission = Admission {
            cache: self.clone(),
            digest: *digest,
            reservation,
            hold: self.hold(digest).await,
        };
        Some((admission, stage, partial))
    }

    /// Notes that the upstream of `repo` has given content that is being committed and linked: other
    /// requests see the file before its links. To be kept until the links are written.
    pub(super) fn arriving(&self, digest: &Digest, repo: &RepoName) -> Arriving {
        self.inner.with(|index| index.arrives(digest, repo));
        Arriving {
            cache: self.clone(),
            digest: *digest,
            repo: repo.clone(),
        }
    }
}

/// A note that content is being committed and linked; dropping it removes the note.
#[must_use = "the note is removed when this is dropped"]
pub(super) struct Arriving {
    cache: Cache,
    digest: Digest,
    repo: RepoName,
}

impl Drop for Arriving {
    fn drop(&mut self) {
        let Self {
            cache,
            digest,
            repo,
        } = self;
        cache.inner.with(|index| index.arrived(digest, repo));
    }
}

impl Admission {
    /// Leaves the stage, with its last checkpoint, for a later download from the same upstream. Keeps
    /// the space of the `bytes` that are on disk, and gives the rest back.
    pub async fn pause(mut self, stage: Box<dyn Stage>, upstream: &Arc<str>, bytes: u64) {
        self.reservation.shrink(bytes);
        let Self {
            cache,
            digest,
            reservation,
            ..
        } = self;
        cache.park_partial(digest, Arc::clone(upstream), MAX_AGE, reservation);
        if let Err(panicked) = tokio::task::spawn_blocking(move || stage.leave()).await {
            tracing::error!(%digest, error = %on_one_line(&panicked), "leaving a partial download panicked");
            drop(cache.take_partial(&digest, upstream));
        }
        cache.trim_partials().await;
    }

    /// Commits the stage, whose digest the caller has verified, as a blob of `size` bytes, then links
    /// it. `origin` is a repository that the upstream gave the blob for; none if no repository will be
    /// linked. `repositories` is called once the commit has ended, however it ended. A link that can't be
    /// written is logged, and costs its own repository a proof at the next request.
    pub async fn commit(
        self,
        stage: Box<dyn Stage>,
        size: u64,
        origin: Option<RepoName>,
        repositories: impl FnOnce() -> Vec<RepoName>,
    ) -> Result<(), StoreError> {
        let _arriving = origin.map(|repo| self.cache.arriving(&self.digest, &repo));
        let started = Instant::now();
        let committed = tokio::task::spawn_blocking(move || stage.commit()).await;
        let took = started.elapsed();
        let repositories = repositories();
        let modified = committed.map_err(|source| StoreError::Lost { source })??;
        let Self {
            cache,
            digest,
            reservation,
            hold,
        } = self;
        cache.inner.metrics.store_committed(took);
        reservation.commit(&hold, size);
        // The commit has removed the partials of this digest, of all upstreams.
        cache.forget_partials(&digest);
        if let Some(modified) = modified {
            hold.verified(size, modified);
        }
        for repo in repositories {
            let link = Link::new(&repo, LinkKind::Layer, &digest);
            cache.link_stored(&link, size).await;
        }
        Ok(())
    }
}
