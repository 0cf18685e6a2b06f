//! Admitting new blobs: a staged file with reserved space, which becomes a blob with links, or goes.

use super::{Cache, Full, Hold, Reservation, SpaceRequest};
use crate::oci::{Digest, RepoName};
use crate::storage::{Link, LinkKind, Stage, StoreError};

/// Why a blob isn't stored. It can be passed through to clients all the same.
#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    #[error(transparent)]
    Full(#[from] Full),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Leave to store a blob. Holds its digest, so that nothing removes the committed file before it is
/// linked. Dropping it gives the reserved space back; the stage goes when it is dropped itself.
#[derive(Debug)]
#[must_use = "the reserved space is given back when this is dropped"]
pub struct Admission {
    cache: Cache,
    digest: Digest,
    reservation: Reservation,
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
        let stage = self.0.store.stage(digest, upstream).await?;
        let admission = Admission {
            cache: self.clone(),
            digest: *digest,
            reservation,
            hold,
        };
        Ok((admission, stage))
    }

    /// The admission of a partial download that is resumed: `reservation` has the space of what is
    /// on disk.
    pub async fn readmit(&self, digest: &Digest, reservation: Reservation) -> Admission {
        Admission {
            cache: self.clone(),
            digest: *digest,
            reservation,
            hold: self.hold(digest).await,
        }
    }
}

impl Admission {
    /// Bytes of reserved space.
    pub fn reserved(&self) -> u64 {
        self.reservation.bytes()
    }

    /// Adds space.
    pub fn grow(&mut self, step: Reservation) {
        self.reservation.merge(step);
    }

    /// So many bytes have been written to disk.
    pub fn fill(&mut self, bytes: u64) {
        self.reservation.fill(bytes);
    }

    /// Ends the admission of a download that is paused: keeps the space of the `bytes` that are on
    /// disk, and gives the rest back.
    pub fn into_reservation(mut self, bytes: u64) -> Reservation {
        self.reservation.shrink(bytes);
        self.reservation
    }

    /// Commits the stage, whose digest the caller has verified, as a blob of `size` bytes, then links
    /// it. `repositories` is called once the commit has ended, however it ended. A link that can't be
    /// written is logged, and costs its own repository a proof at the next request.
    pub async fn commit(
        self,
        stage: Box<dyn Stage>,
        size: u64,
        repositories: impl FnOnce() -> Vec<RepoName>,
    ) -> Result<(), StoreError> {
        let committed = tokio::task::spawn_blocking(move || stage.commit()).await;
        let repositories = repositories();
        let modified = committed.map_err(|source| StoreError::Lost { source })??;
        let Self {
            cache,
            digest,
            reservation,
            hold,
        } = self;
        reservation.commit(&hold, size);
        if let Some(modified) = modified {
            hold.verified(size, modified);
        }
        for repo in repositories {
            let link = Link {
                repo,
                kind: LinkKind::Layer,
                digest,
            };
            cache.link_stored(&link, size).await;
        }
        Ok(())
    }
}
