//! What happens to a download that no client follows any more.

use std::time::Duration;

use tokio::time::Instant;

use super::Download;
use super::task::Transfer;
use crate::config::OnAbandon;

/// How long a download without clients continues before it may be paused. Clients hang up between
/// two ranges and reconnect after a lost connection.
const GRACE: Duration = Duration::from_secs(5);
/// Blobs below this many bytes are finished by an abandoned download, however little has arrived.
const SMALL: u64 = 256 * 1024 * 1024;

impl Transfer<'_> {
    /// Updates the grace period and the fill mode from the clients that follow now.
    pub(super) fn consider_clients(&mut self) {
        let Self {
            shared, download, ..
        } = self;
        let draining = shared.drain.is_cancelled();
        let abandoned = shared.registry.is_abandoned(&download.digest, download.id);
        let newest = download.progress.newest();
        let came = std::mem::replace(&mut self.newest, newest) != newest;
        if !abandoned {
            self.grace = None;
        } else if draining || came || self.grace.is_none() {
            let grace = if draining { Duration::ZERO } else { GRACE };
            self.grace = Some(Instant::now() + grace);
        }
        if !self.plan.fill
            && let Some(total) = self.plan.total
        {
            let enough = download.progress.given().saturating_mul(100)
                >= total.saturating_mul(shared.settings.fill_after.into());
            // A small blob is verified as a whole before its first byte is sent.
            let small = total <= shared.settings.verified_first;
            self.plan.fill = enough || small || download.wants_fill();
        }
    }

    /// Ends the streams and writes a checkpoint, unless the policy lets the download continue or a
    /// client joins meanwhile. Returns whether a checkpoint was written; none when the download
    /// continues.
    pub(super) async fn pause(&mut self) -> Option<bool> {
        let Download { digest, id, .. } = self.download;
        if !self.shared.registry.is_abandoned(digest, *id) {
            self.grace = None;
            return None;
        }
        self.grace = None;
        let received = self.received_bytes();
        let draining = self.shared.drain.is_cancelled();
        let goes_on = match self.shared.settings.on_abandon {
            _ if draining => false,
            // The upstream hasn't answered yet: cancel the request.
            _ if !self.opened => false,
            _ if !self.storing.is_storing() => true,
            OnAbandon::Finish | OnAbandon::Auto if self.plan.total.is_none() => {
                // The size is unknown, so it can't be compared with what has arrived.
                self.grace = Some(Instant::now() + GRACE);
                return self.end_if_overlong().await;
            }
            _ if !self.plan.fill => false,
            OnAbandon::Finish => true,
            OnAbandon::Pause => false,
            OnAbandon::Auto => self
                .plan
                .total
                .is_none_or(|total| total < SMALL || received > total / 2),
        };
        if goes_on {
            // Decided again after the next client has left.
            return None;
        }
        self.close().await
    }

    /// Ends an abandoned download of unknown size once it has received [`SMALL`] bytes. Returns
    /// whether a checkpoint was written; none when the download continues.
    pub(super) async fn end_if_overlong(&mut self) -> Option<bool> {
        let Download { digest, id, .. } = self.download;
        let overlong = self.opened && self.plan.total.is_none() && self.received >= SMALL;
        if overlong && self.shared.registry.is_abandoned(digest, *id) {
            self.close().await
        } else {
            None
        }
    }

    async fn close(&mut self) -> Option<bool> {
        let Download { digest, id, .. } = self.download;
        let resumable = self.checkpoint().await;
        let closed = self.shared.registry.close(digest, *id);
        closed.then_some(resumable)
    }

    fn received_bytes(&self) -> u64 {
        self.download.progress.plan(|have, _| have.len())
    }

    /// Ends the streams, writes the bytes that have arrived, and writes a checkpoint, which is synced
    /// when the mirror is stopping. False when there is nothing that a later download could resume.
    pub(super) async fn checkpoint(&mut self) -> bool {
        self.stop_streams();
        while self.storing.is_busy() {
            let Ok(writer) = self.storing.written().await else {
                return false;
            };
            if self.take_back(writer).is_err() {
                return false;
            }
        }
        let Some(total) = self.plan.total else {
            return false;
        };
        let sync = self.shared.drain.is_cancelled() || self.shared.stop.is_cancelled();
        self.storing.checkpoint(total, sync).await
    }
}
