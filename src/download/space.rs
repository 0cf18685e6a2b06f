//! Reserves a download's space in the cache in steps as bytes arrive.
//!
//! An announced length reserves nothing. A step is reserved once bytes have arrived, and the next one
//! in time; while no space is granted, the upstream isn't read.

use super::DownloadError;
use super::admission::{Grown, Unfit, finished, reserve};
use super::task::Transfer;

/// Bytes reserved at a time.
const STEP: u64 = 64 * 1024 * 1024;
/// Reserved bytes that are left when the next step is requested.
const AHEAD: u64 = STEP / 2;

impl Transfer<'_> {
    /// Whether the bytes that have arrived are within the reservation, except for the last chunks.
    pub(super) fn has_space(&self) -> bool {
        let admission = self.storing.admission.as_ref();
        admission.is_none_or(|admission| self.space.stored <= admission.reservation.bytes())
    }

    /// Requests the next step of space when the reservation is nearly used up.
    pub(super) fn reserve_ahead(&mut self) {
        let (stored, max) = (self.space.stored, self.shared.settings().max_blob);
        let Some(admission) = &self.storing.admission else {
            return;
        };
        let reserved = admission.reservation.bytes();
        if self.space.growing.is_some() {
            return;
        }
        if stored > max {
            // The length wasn't announced.
            let too_large = std::future::ready(Err(Unfit::TooLarge { max }));
            self.space.growing = Some(Box::pin(too_large));
            return;
        }
        let missing = |total: u64| total.saturating_sub(reserved);
        let bytes = self.plan.total.map_or(STEP, missing).min(STEP);
        if bytes == 0 || stored.saturating_add(AHEAD) <= reserved {
            return;
        }
        let blob = self.plan.total.unwrap_or(reserved + bytes);
        let reserved = reserve(self.shared, self.download, bytes, blob);
        self.space.growing = Some(Box::pin(reserved));
    }

    /// Takes a step of space. Passes the rest of the download through when it isn't granted.
    pub(super) async fn on_space(&mut self, grown: Grown) -> Result<(), DownloadError> {
        let unfit = match grown {
            Ok(step) => {
                if let Some(admission) = &mut self.storing.admission {
                    admission.reservation.merge(step);
                    admission.reservation.fill(self.space.stored);
                }
                self.reserve_ahead();
                return Ok(());
            }
            Err(unfit) => unfit,
        };
        let digest = self.download.digest;
        tracing::warn!(%digest, reason = %unfit, "passing the rest of the download through");
        self.storing.release();
        self.hash_all().await?;
        let hashed = self.storing.idle.as_ref().map_or(0, |writer| writer.hashed);
        self.pass_through(hashed);
        Ok(())
    }

    /// Waits for the space of the bytes that have arrived.
    pub(super) async fn settle_space(&mut self) -> Result<(), DownloadError> {
        while self.space.growing.is_some() && self.storing.is_storing() {
            let grown = finished(&mut self.space.growing).await;
            self.on_space(grown).await?;
        }
        Ok(())
    }
}
