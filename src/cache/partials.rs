//! Partials: the resumable files of paused, failed and stopped downloads. Bounds their number and age,
//! and keeps their space reserved.
//!
//! They aren't part of [`Inner`]: the reservations refer to it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Inner, Reservation, SpaceRequest};
use crate::error_chain::on_one_line;
use crate::oci::Digest;
use crate::storage::Partial;

/// Partials at most. The oldest is removed when there is one more.
const MAX_PARTIALS: usize = 64;
/// Age at which a partial is removed that no download has resumed.
const MAX_AGE: Duration = Duration::from_hours(24);
/// Time between two removals of expired partials.
const TRIM_INTERVAL: Duration = Duration::from_mins(10);

#[derive(Debug)]
pub(super) struct Partials {
    inner: Arc<Inner>,
    /// The oldest first.
    parked: Mutex<VecDeque<Parked>>,
}

#[derive(Debug)]
struct Parked {
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

impl Partials {
    pub(super) fn new(inner: Arc<Inner>) -> Self {
        Self {
            inner,
            parked: Mutex::default(),
        }
    }

    /// Takes the reservation of a partial that is about to be resumed, if there is one.
    pub(super) fn take(&self, digest: &Digest, upstream: &str) -> Option<Reservation> {
        let mut parked = self.parked.lock();
        let at = parked
            .iter()
            .position(|parked| parked.is_of(digest, upstream))?;
        let taken = parked.remove(at)?;
        self.update_metrics(&parked);
        Some(taken.reservation)
    }

    /// Releases the space of a committed blob's partials, whose files the commit has removed.
    pub(super) fn forget(&self, digest: &Digest) {
        let mut parked = self.parked.lock();
        parked.retain(|parked| parked.digest != *digest);
        self.update_metrics(&parked);
    }

    /// Adds a partial, whose space stays reserved. The caller [trims](Self::trim) afterwards.
    pub(super) fn park(&self, digest: Digest, upstream: &Arc<str>, reservation: Reservation) {
        self.park_until(Parked {
            digest,
            upstream: Arc::clone(upstream),
            until: Instant::now() + MAX_AGE,
            reservation,
        });
    }

    fn park_until(&self, new: Parked) {
        let mut parked = self.parked.lock();
        parked.retain(|parked| !parked.is_of(&new.digest, &new.upstream));
        parked.push_back(new);
        self.update_metrics(&parked);
    }

    fn update_metrics(&self, parked: &VecDeque<Parked>) {
        let bytes = parked.iter().map(|parked| parked.reservation.bytes()).sum();
        self.inner.metrics.partials(parked.len() as u64, bytes);
    }

    /// Removes partials that are too many or too old.
    pub(super) async fn trim(&self) {
        let now = Instant::now();
        loop {
            let gone = {
                let mut parked = self.parked.lock();
                let many = parked.len() > MAX_PARTIALS;
                let gone = parked.pop_front_if(|oldest| many || oldest.until <= now);
                self.update_metrics(&parked);
                gone
            };
            let Some(parked) = gone else { return };
            self.discard(&parked.digest, &parked.upstream).await;
            drop(parked);
        }
    }

    /// Removes all partials to free space. Returns whether there were any.
    pub(super) async fn clear(&self) -> bool {
        let gone = std::mem::take(&mut *self.parked.lock());
        let any = !gone.is_empty();
        for parked in gone {
            self.discard(&parked.digest, &parked.upstream).await;
        }
        self.inner.metrics.partials(0, 0);
        any
    }

    async fn discard(&self, digest: &Digest, upstream: &str) {
        match self.inner.store.discard(digest, upstream).await {
            Ok(true) => tracing::info!(%digest, "removed a partial download"),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%digest, error = %on_one_line(&error), "can't remove a partial download");
            }
        }
    }

    /// Adopts the partials of an earlier process, then removes expired ones. Never returns.
    pub(super) async fn look_after(&self) {
        self.adopt().await;
        loop {
            tokio::time::sleep(TRIM_INTERVAL).await;
            self.trim().await;
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
        let mut reservation = self.inner.reserve(request).await.ok()?;
        reservation.fill(bytes);
        Some(reservation)
    }

    async fn adopt(&self) {
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
                Some(left) => self
                    .reserve_existing(&partial)
                    .await
                    .map(|reservation| (reservation, left)),
                None => None,
            };
            match reserved {
                Some((reservation, left)) => self.park_until(Parked {
                    digest,
                    upstream: partial.upstream,
                    until: Instant::now() + left,
                    reservation,
                }),
                None => self.discard(&digest, &partial.upstream).await,
            }
        }
        self.trim().await;
    }
}
