//! What happens to a download that no client follows any more.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::Download;
use super::task::{Ended, Transfer};
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
        let draining = shared.options.drain.is_cancelled();
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
                >= total.saturating_mul(shared.settings().fill_after.into());
            // A small blob is verified as a whole before its first byte is sent.
            let small = total <= shared.settings().verified_first;
            self.plan.fill = enough || small || download.fill.load(Ordering::Relaxed);
        }
    }

    /// Ends the streams and writes a checkpoint, unless the policy lets the download continue or a
    /// client joins meanwhile. None when the download continues.
    pub(super) async fn pause(&mut self) -> Option<Ended> {
        self.grace = None;
        let Download { digest, id, .. } = self.download;
        if !self.shared.registry.is_abandoned(digest, *id) {
            return None;
        }
        let received = self.download.progress.plan(|have, _| have.len());
        let draining = self.shared.options.drain.is_cancelled();
        let continues = match (self.shared.settings().on_abandon, self.plan.total) {
            // When the upstream hasn't answered yet, the request is cancelled.
            _ if draining || !self.opened => false,
            _ if !self.storing.is_storing() => true,
            (OnAbandon::Pause, _) => false,
            (OnAbandon::Finish | OnAbandon::Auto, None) => {
                // The size is unknown, so it can't be compared with what has arrived.
                self.grace = Some(Instant::now() + GRACE);
                return self.end_if_overlong().await;
            }
            _ if !self.plan.fill => false,
            (OnAbandon::Finish, _) => true,
            (OnAbandon::Auto, Some(total)) => total < SMALL || received > total / 2,
        };
        if continues {
            // Decided again after the next client has left.
            return None;
        }
        self.close().await
    }

    /// Ends an abandoned download of unknown size once it has received [`SMALL`] bytes. None when the
    /// download continues.
    pub(super) async fn end_if_overlong(&mut self) -> Option<Ended> {
        let Download { digest, id, .. } = self.download;
        let overlong = self.opened && self.plan.total.is_none() && self.received >= SMALL;
        if overlong && self.shared.registry.is_abandoned(digest, *id) {
            self.close().await
        } else {
            None
        }
    }

    async fn close(&mut self) -> Option<Ended> {
        let Download { digest, id, .. } = self.download;
        let resumable = self.checkpoint().await;
        let closed = self.shared.registry.close(digest, *id);
        closed.then_some(Ended::Abandoned { resumable })
    }

    /// Ends the streams, writes the bytes that have arrived, and writes a checkpoint, which is synced
    /// when the mirror is stopping. False when there is nothing that a later download could resume.
    pub(super) async fn checkpoint(&mut self) -> bool {
        self.stop_streams();
        let hashed = self.hash_all().await;
        let Some(total) = self.plan.total.filter(|_| hashed.is_ok()) else {
            return false;
        };
        let sync =
            self.shared.options.drain.is_cancelled() || self.shared.options.stop.is_cancelled();
        self.storing.checkpoint(total, sync).await
    }
}
