//! Partials: the resumable files of paused, failed and stopped downloads. Bounds their number and age,
//! and keeps their space reserved.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Cache, Reservation, SpaceRequest};
use crate::error_chain::on_one_line;
use crate::oci::Digest;
use crate::storage::Partial;

/// Partials at most. The oldest is removed when there is one more.
const MAX_PARTIALS: usize = 64;
/// Age at which a partial is removed that no download has resumed.
pub(super) const MAX_AGE: Duration = Duration::from_hours(24);
/// Time between two removals of expired partials.
const TRIM_INTERVAL: Duration = Duration::from_mins(10);

/// The oldest first.
pub(super) type Partials = Mutex<VecDeque<Parked>>;

#[derive(Debug)]
pub(super) struct Parked {
    digest: Digest,
    /// The upstream it was downloaded from. Never resumed from another one.
    upstream: Arc<str>,
    until: Instant,
    reservation: Reservation,
}

impl Parked {
    fn is_of(&self, digest: &Digest, upstream: &str) -> bool {
        self.digest == *digest && *self.upstream == *upstream
    }
}

impl Cache {
    /// Takes the reservation of a partial that is about to be resumed, if there is one.
    pub(super) fn take_partial(&self, digest: &Digest, upstream: &str) -> Option<Reservation> {
        let mut parked = self.partials.lock();
        let at = parked
            .iter()
            .position(|parked| parked.is_of(digest, upstream))?;
        let taken = parked.remove(at)?;
        self.count_partials(&parked);
        Some(taken.reservation)
    }

    /// Releases the space of a committed blob's partials, whose files the commit has removed.
    pub(super) fn forget_partials(&self, digest: &Digest) {
        let mut parked = self.partials.lock();
        parked.retain(|parked| parked.digest != *digest);
        self.count_partials(&parked);
    }

    /// Adds a partial, whose space stays reserved for `left`, [`MAX_AGE`] at most. The caller
    /// [trims](Self::trim_partials) afterwards.
    pub(super) fn park_partial(
        &self,
        digest: Digest,
        upstream: Arc<str>,
        left: Duration,
        reservation: Reservation,
    ) {
        let mut parked = self.partials.lock();
        parked.retain(|parked| !parked.is_of(&digest, &upstream));
        parked.push_back(Parked {
            digest,
            upstream,
            until: Instant::now() + left,
            reservation,
        });
        self.count_partials(&parked);
    }

    fn count_partials(&self, parked: &VecDeque<Parked>) {
        let bytes = parked.iter().map(|parked| parked.reservation.bytes()).sum();
        self.inner.metrics.partials(parked.len() as u64, bytes);
    }

    /// Removes partials that are too many or too old.
    pub(super) async fn trim_partials(&self) {
        let now = Instant::now();
        loop {
            let gone = {
                let mut parked = self.partials.lock();
                let many = parked.len() > MAX_PARTIALS;
                let gone = parked.pop_front_if(|oldest| many || oldest.until <= now);
                self.count_partials(&parked);
                gone
            };
            let Some(parked) = gone else { return };
            self.discard_partial(&parked.digest, &parked.upstream).await;
            drop(parked);
        }
    }

    /// Removes all partials to free space. Returns whether there were any.
    pub(super) async fn clear_partials(&self) -> bool {
        let gone = std::mem::take(&mut *self.partials.lock());
        let any = !gone.is_empty();
        for parked in gone {
            self.discard_partial(&parked.digest, &parked.upstream).await;
        }
        self.inner.metrics.partials(0, 0);
        any
    }

    async fn discard_partial(&self, digest: &Digest, upstream: &str) {
        match self.inner.store.discard(digest, upstream).await {
            Ok(true) => tracing::info!(%digest, "removed a partial download"),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%digest, error = %on_one_line(&error), "can't remove a partial download");
            }
        }
    }

    /// Adopts the partials that an earlier process has left, then removes expired ones. Never returns.
    pub async fn look_after_partials(&self) {
        self.adopt_partials().await;
        loop {
            tokio::time::sleep(TRIM_INTERVAL).await;
            self.trim_partials().await;
        }
    }

    /// Reserves the space of a partial that an earlier process has left. Evicts nothing.
    async fn reserve_existing(&self, partial: &Partial) -> Option<Reservation> {
        let bytes = partial.ranges.len();
        let request = SpaceRequest {
            bytes,
            blob: partial.total,
            evict: false,
        };
        let mut reservation = self.try_reserve(request).await.ok()?;
        reservation.fill(bytes);
        Some(reservation)
    }

    async fn adopt_partials(&self) {
        let mut partials = match self.inner.store.partials().await {
            Ok(partials) => partials,
            Err(error) => {
                tracing::warn!(error = %on_one_line(&error), "can't look for partial downloads");
                return;
            }
        };
        partials.sort_by_key(|(_, _, written)| *written);
        for (digest, partial, written) in partials {
            let age = self.inner.clock.wall().duration_since(written);
            let left = MAX_AGE.checked_sub(age.unwrap_or_default());
            let present = self.inner.store.size(&digest).await.ok().flatten();
            let reserved = match left.filter(|_| present.is_none()) {
                Some(left) => (self.reserve_existing(&partial).await).map(|space| (left, space)),
                None => None,
            };
            match reserved {
                Some((left, space)) => self.park_partial(digest, partial.upstream, left, space),
                None => self.discard_partial(&digest, &partial.upstream).await,
            }
        }
        self.trim_partials().await;
    }
}
