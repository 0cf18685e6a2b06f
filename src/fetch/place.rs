//! Where a download's bytes go: space in the cache, and a staged file.

use super::Shared;
use super::storing::Stored;
use crate::oci::Digest;
use crate::store::Partial;

/// Bytes reserved at a time for a blob whose length the upstream doesn't tell.
pub(super) const UNTOLD: u64 = 64 * 1024 * 1024;

/// A place for the bytes; none when the cache has none to give. That costs the cache, and not the
/// clients.
pub(super) async fn place(shared: &Shared, digest: Digest, total: Option<u64>) -> Option<Stored> {
    let hold = shared.retention.hold(&digest).await;
    let bytes = total.unwrap_or(UNTOLD);
    let mut reserved = shared.retention.reserve(bytes).await;
    if reserved.is_err() && shared.partials.clear().await {
        reserved = shared.retention.reserve(bytes).await;
    }
    let reservation = reserved
        .inspect_err(|full| tracing::warn!(%digest, %full, "passing the download through"))
        .ok()?;
    let staged = shared.store.stage(&digest).await;
    let stage = staged
        .inspect_err(|error| {
            shared.metrics.store_failed();
            tracing::error!(%digest, %error, "can't store the download; passing it through");
        })
        .ok()?;
    Some(Stored {
        stage,
        reservation,
        hold,
    })
}

/// What an earlier download has left, with its place.
pub(super) async fn take_up(shared: &Shared, digest: Digest) -> Option<(Stored, Partial)> {
    let parked = shared.partials.take(&digest);
    let resumed = shared.store.resume(&digest).await;
    let (stage, partial) = resumed
        .inspect_err(|error| tracing::warn!(%digest, %error, "can't take up a partial download"))
        .ok()??;
    let reservation = match parked {
        Some(reservation) => reservation,
        None => shared.retention.reserve(partial.total).await.ok()?,
    };
    let hold = shared.retention.hold(&digest).await;
    let stored = Stored {
        stage,
        reservation,
        hold,
    };
    Some((stored, partial))
}
