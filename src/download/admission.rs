//! Admission of a download's bytes to the cache: a staged file, and space that grows as bytes arrive.

use futures_util::future::BoxFuture;

use super::storing::Stored;
use super::{Download, Inner};
use crate::cache::{AdmitError, Partial, Reservation, SpaceRequest};
use crate::error_chain::on_one_line;

/// The growth of a download's reservation.
#[derive(Default)]
pub(super) struct Space<'a> {
    /// Bytes that have arrived and are stored.
    pub(super) stored: u64,
    /// A step that has been requested.
    pub(super) growing: Option<BoxFuture<'a, Grown>>,
}

/// A step of space, or why there is none.
pub(super) type Grown = Result<Reservation, Unfit>;

/// Waits for a future and removes it; forever when there is none. Cancel safe.
pub(super) async fn finished<T>(pending: &mut Option<BoxFuture<'_, T>>) -> T {
    let Some(future) = pending else {
        return std::future::pending().await;
    };
    let output = future.await;
    *pending = None;
    output
}

/// Why a blob is not cached.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unfit {
    #[error("it is larger than `proxy.maxblobsize` ({max} bytes)")]
    TooLarge { max: u64 },
    #[error("the upstream announces {announced} bytes, and the manifest {described}")]
    Contradicts { announced: u64, described: u64 },
    #[error(transparent)]
    Refused(#[from] AdmitError),
}

/// A staged file with an empty reservation; none when the blob can't be cached, which fails no client.
pub(super) async fn admit(
    shared: &Inner,
    download: &Download,
    total: Option<u64>,
    described: Option<u64>,
) -> Option<Stored> {
    let digest = download.digest;
    match try_admit(shared, download, total, described).await {
        Ok(stored) => Some(stored),
        Err(Unfit::Refused(AdmitError::Store(error))) => {
            shared.options.metrics.store_failed();
            tracing::error!(%digest, error = %on_one_line(&error), "can't store the download; passing it through");
            None
        }
        Err(unfit) => {
            tracing::warn!(%digest, reason = %unfit, "passing the download through without caching it");
            None
        }
    }
}

/// Stages a blob of this length, if it can be cached. Reserves nothing yet.
async fn try_admit(
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
    let max = shared.settings().max_blob;
    if blob > max {
        return Err(Unfit::TooLarge { max });
    }
    let (bytes, evict) = (0, download.urgency.get());
    let request = SpaceRequest { bytes, blob, evict };
    let (digest, upstream) = (&download.digest, &download.upstream);
    let admitted = shared.options.cache.admit(digest, upstream, request);
    let (admission, stage) = admitted.await?;
    Ok(Stored { stage, admission })
}

/// Reserves space. For a client, images are evicted and paused downloads given up.
pub(super) async fn reserve(
    shared: &Inner,
    download: &Download,
    bytes: u64,
    blob: u64,
) -> Result<Reservation, Unfit> {
    let evict = download.urgency.get();
    let request = SpaceRequest { bytes, blob, evict };
    let reserved = shared.options.cache.reserve_step(request).await;
    Ok(reserved.map_err(AdmitError::Full)?)
}

/// The partial that an earlier download from the same upstream has left.
pub(super) async fn resume(shared: &Inner, download: &Download) -> Option<(Stored, Partial)> {
    let Download {
        digest, upstream, ..
    } = download;
    let evict = download.urgency.get();
    let (admission, stage, partial) = shared.options.cache.resume(digest, upstream, evict).await?;
    Some((Stored { stage, admission }, partial))
}
