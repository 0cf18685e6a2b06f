//! Partial files of paused and failed downloads: their reserved space, number and age.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::cache::{Cache, Reservation, SpaceRequest};
use crate::clock::Clock;
use crate::error_chain::on_one_line;
use crate::metrics::Metrics;
use crate::oci::Digest;
use crate::storage::{Partial, Store};

/// Partial files that are kept. The oldest is removed when there is one more.
const MAX_PARTIALS: usize = 64;
/// How long a partial file is kept that no download resumes.
const MAX_AGE: Duration = Duration::from_hours(24);
/// Interval between two searches for expired partial files.
const LOOK: Duration = Duration::from_mins(10);

/// Reserves the space of a partial file that an earlier process has left. Evicts nothing.
async fn reserve_existing(cache: &Cache, partial: &Partial) -> Option<Reservation> {
    let bytes = partial.ranges.len();
    let request = SpaceRequest {
        bytes,
        blob: partial.total,
        evict: false,
    };
    let mut reservation = cache.reserve_step(request).await.ok()?;
    reservation.fill(bytes);
    Some(reservation)
}

#[derive(Debug)]
pub(super) struct Partials {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    clock: Clock,
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
    pub(super) fn new(store: Arc<dyn Store>, metrics: Arc<Metrics>, clock: Clock) -> Self {
        Self {
            store,
            metrics,
            clock,
            parked: Mutex::default(),
        }
    }

    fn parked(&self) -> MutexGuard<'_, VecDeque<Parked>> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the reserved space of a partial file that is resumed, if there is one.
    pub(super) fn take(&self, digest: &Digest, upstream: &str) -> Option<Reservation> {
        let mut parked = self.parked();
        let at = parked
            .iter()
            .position(|parked| parked.is_of(digest, upstream))?;
        let taken = parked.remove(at)?;
        self.show(&parked);
        Some(taken.reservation)
    }

    /// Releases the space of a committed blob's partial files, which the commit has removed.
    pub(super) fn forget(&self, digest: &Digest) {
        let mut parked = self.parked();
        parked.retain(|parked| parked.digest != *digest);
        self.show(&parked);
    }

    /// Keeps the space of a partial file. Removes the oldest when there are too many.
    pub(super) async fn park(&self, digest: Digest, upstream: &Arc<str>, reservation: Reservation) {
        self.park_until(Parked {
            digest,
            upstream: Arc::clone(upstream),
            until: Instant::now() + MAX_AGE,
            reservation,
        });
        self.trim(Instant::now()).await;
    }

    fn park_until(&self, new: Parked) {
        let mut parked = self.parked();
        parked.retain(|parked| !parked.is_of(&new.digest, &new.upstream));
        parked.push_back(new);
        self.show(&parked);
    }

    fn show(&self, parked: &VecDeque<Parked>) {
        let bytes = parked.iter().map(|parked| parked.reservation.bytes()).sum();
        self.metrics.partials(parked.len() as u64, bytes);
    }

    /// Removes partial files that are too many or too old.
    async fn trim(&self, now: Instant) {
        loop {
            let gone = {
                let mut parked = self.parked();
                let many = parked.len() > MAX_PARTIALS;
                let gone = parked.pop_front_if(|oldest| many || oldest.until <= now);
                self.show(&parked);
                gone
            };
            let Some(parked) = gone else { return };
            self.discard(&parked.digest, &parked.upstream).await;
            drop(parked);
        }
    }

    /// Removes all partial files to free space. Returns whether there were any.
    pub(super) async fn clear(&self) -> bool {
        let gone = std::mem::take(&mut *self.parked());
        let any = !gone.is_empty();
        for parked in gone {
            self.discard(&parked.digest, &parked.upstream).await;
        }
        self.metrics.partials(0, 0);
        any
    }

    async fn discard(&self, digest: &Digest, upstream: &str) {
        match self.store.discard(digest, upstream).await {
            Ok(true) => tracing::info!(%digest, "removed a partial download"),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%digest, error = %on_one_line(&error), "can't remove a partial download");
            }
        }
    }

    /// Adopts the partial files of an earlier process, then removes expired ones. Never returns.
    pub(super) async fn look_after(&self, cache: &Cache) {
        self.adopt(cache).await;
        loop {
            tokio::time::sleep(LOOK).await;
            self.trim(Instant::now()).await;
        }
    }

    async fn adopt(&self, cache: &Cache) {
        let mut left = match self.store.partials().await {
            Ok(left) => left,
            Err(error) => {
                tracing::warn!(error = %on_one_line(&error), "can't look for partial downloads");
                return;
            }
        };
        left.sort_by_key(|(_, _, kept)| *kept);
        for (digest, partial, kept) in left {
            let age = self.clock.wall().duration_since(kept);
            let left = MAX_AGE.checked_sub(age.unwrap_or_default());
            let present = self.store.size(&digest).await.ok().flatten();
            let place = match left.filter(|_| present.is_none()) {
                Some(left) => reserve_existing(cache, &partial)
                    .await
                    .map(|reservation| (reservation, left)),
                None => None,
            };
            match place {
                Some((reservation, left)) => self.park_until(Parked {
                    digest,
                    upstream: partial.upstream,
                    until: Instant::now() + left,
                    reservation,
                }),
                None => self.discard(&digest, &partial.upstream).await,
            }
        }
        self.trim(Instant::now()).await;
    }
}
