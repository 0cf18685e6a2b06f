//! Where a download's bytes go: a staged file, and space in the cache that grows with what arrives.
//!
//! An announced length reserves nothing. A step of space is reserved once bytes have arrived, and
//! the next one in time; while no space is granted, the upstream isn't read.

use futures_util::future::BoxFuture;

use super::storing::Stored;
use super::task::Transfer;
use super::{Download, DownloadError, Inner};
use crate::cache::Partial;
use crate::cache::StoreError;
use crate::cache::{AdmitError, Full, Reservation, SpaceRequest};
use crate::error_chain::on_one_line;

/// Bytes reserved at a time.
const STEP: u64 = 64 * 1024 * 1024;
/// Reserved bytes that are left when the next step is requested.
const AHEAD: u64 = STEP / 2;

/// The growth of a download's reservation.
#[derive(Default)]
pub(super) struct Space<'a> {
    /// Bytes that have arrived and are stored.
    pub(super) stored: u64,
    /// A step that has been requested.
    growing: Option<BoxFuture<'a, Grown>>,
}

/// A step of space, or why there is none.
pub(super) type Grown = Result<Reservation, Unfit>;

impl Space<'_> {
    /// The step that was requested; forever when there is none. Cancel safe.
    pub(super) async fn grown(&mut self) -> Grown {
        let Some(growing) = &mut self.growing else {
            return std::future::pending().await;
        };
        let grown = growing.await;
        self.growing = None;
        grown
    }
}

/// Why a blob is not cached.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unfit {
    #[error("it is larger than `proxy.maxblobsize` ({max} bytes)")]
    TooLarge { max: u64 },
    #[error("the upstream announces {announced} bytes, and the manifest {described}")]
    Contradicts { announced: u64, described: u64 },
    #[error(transparent)]
    Full(#[from] Full),
    #[error(transparent)]
    Store(StoreError),
}

impl From<AdmitError> for Unfit {
    fn from(error: AdmitError) -> Self {
        match error {
            AdmitError::Full(full) => Self::Full(full),
            AdmitError::Store(error) => Self::Store(error),
        }
    }
}

/// A staged file with an empty reservation; none where the blob is not to be cached. That costs the
/// cache, and not the clients.
pub(super) async fn place(
    shared: &Inner,
    download: &Download,
    total: Option<u64>,
    described: Option<u64>,
) -> Option<Stored> {
    let digest = download.digest;
    match admit(shared, download, total, described).await {
        Ok(stored) => Some(stored),
        Err(Unfit::Store(error)) => {
            shared.metrics.store_failed();
            tracing::error!(%digest, error = %on_one_line(&error), "can't store the download; passing it through");
            None
        }
        Err(unfit) => {
            tracing::warn!(%digest, reason = %unfit, "passing the download through without caching it");
            None
        }
    }
}

/// Stages a blob of this length, if it can be cached at all. Reserves nothing yet.
async fn admit(
    shared: &Inner,
    download: &Download,
    total: Option<u64>,
    described: Option<u64>,
) -> Result<Stored, Unfit> {
    if let (Some(announced), Some(described)) = (total, described)
        && announced != described
    {
        return Err(Unfit::Contradicts {
            announced,
            described,
        });
    }
    let blob = total.or(described).unwrap_or(0);
    let max = shared.settings.max_blob;
    if blob > max {
        return Err(Unfit::TooLarge { max });
    }
    let request = SpaceRequest {
        bytes: 0,
        blob,
        evict: download.urgency.get(),
    };
    let (digest, upstream) = (&download.digest, &download.upstream);
    let (admission, stage) = shared.cache.admit(digest, upstream, request).await?;
    Ok(Stored { stage, admission })
}

/// Reserves space. For a client, images are evicted and paused downloads given up.
async fn reserve(
    shared: &Inner,
    download: &Download,
    bytes: u64,
    blob: u64,
) -> Result<Reservation, Unfit> {
    let evict = download.urgency.get();
    let request = SpaceRequest { bytes, blob, evict };
    Ok(shared.cache.reserve_step(request).await?)
}

/// The partial that an earlier download from the same upstream has left.
pub(super) async fn resume(shared: &Inner, download: &Download) -> Option<(Stored, Partial)> {
    let Download {
        digest, upstream, ..
    } = download;
    let evict = download.urgency.get();
    let (admission, stage, partial) = shared.cache.resume(digest, upstream, evict).await?;
    Some((Stored { stage, admission }, partial))
}

impl Transfer<'_> {
    /// Whether what has arrived is within the reservation, but for the last chunks.
    pub(super) fn has_space(&mut self) -> bool {
        let stored = self.space.stored;
        let admission = self.storing.admission();
        admission.is_none_or(|admission| stored <= admission.reserved())
    }

    /// Requests the next step of space when the reservation is nearly used up.
    pub(super) fn reserve_ahead(&mut self) {
        let stored = self.space.stored;
        let Some(admission) = self.storing.admission() else {
            return;
        };
        let reserved = admission.reserved();
        if self.space.growing.is_some() {
            return;
        }
        let max = self.shared.settings.max_blob;
        if stored > max {
            // Its length was not announced.
            let too_large = std::future::ready(Err(Unfit::TooLarge { max }));
            self.space.growing = Some(Box::pin(too_large));
            return;
        }
        if stored.saturating_add(AHEAD) <= reserved {
            return;
        }
        let missing = |total: u64| total.saturating_sub(reserved);
        let bytes = self.plan.total.map_or(STEP, missing).min(STEP);
        if bytes == 0 {
            return;
        }
        let blob = self.plan.total.unwrap_or(reserved + bytes);
        let (shared, download) = (self.shared, self.download);
        self.space.growing = Some(Box::pin(reserve(shared, download, bytes, blob)));
    }

    /// A step of space has been granted, or not.
    pub(super) async fn on_space(&mut self, grown: Grown) -> Result<(), DownloadError> {
        let digest = self.download.digest;
        let unfit = match grown {
            Ok(step) => {
                if let Some(admission) = self.storing.admission() {
                    admission.grow(step);
                    admission.fill(self.space.stored);
                }
                self.reserve_ahead();
                return Ok(());
            }
            Err(unfit) => unfit,
        };
        tracing::warn!(%digest, reason = %unfit, "passing the rest of the download through");
        self.storing.give_up_place();
        self.hash_all().await?;
        let hashed = self.storing.idle().map_or(0, |writer| writer.hashed);
        self.pass_through(hashed);
        Ok(())
    }

    /// Waits for the space of what has arrived already.
    pub(super) async fn settle_space(&mut self) -> Result<(), DownloadError> {
        while self.space.growing.is_some() && self.storing.is_storing() {
            let grown = self.space.grown().await;
            self.on_space(grown).await?;
        }
        Ok(())
    }
}
