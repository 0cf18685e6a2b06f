//! What becomes of a download that nobody waits for.

use std::time::Duration;

use tokio::time::Instant;

use super::Download;
use super::task::Transfer;
use crate::config::OnAbandon;
use crate::error_chain::on_one_line;

/// How long a download goes on for nobody before it is decided whether it goes on at all: clients
/// hang up between two ranges, and come back after a break.
const GRACE: Duration = Duration::from_secs(5);
/// Bytes of a blob below which an abandoned download is finished whatever is there.
const SMALL: u64 = 256 * 1024 * 1024;

impl Transfer<'_> {
    /// Looks who is there, and what has been asked for so far.
    pub(super) fn consider_clients(&mut self) {
        let Self {
            shared, download, ..
        } = self;
        let draining = shared.drain.is_cancelled();
        let abandoned = shared.running.is_abandoned(&download.digest, download.id);
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
            // Nobody is given anything of a small blob before all of it is there and verified.
            let small = total <= shared.settings.verified_first;
            self.plan.fill = enough || small || download.wants_fill();
        }
    }

    /// Ends the streams and notes what is there, unless the download is to go on for nobody, or
    /// somebody comes. Whether something has been noted; none when the download goes on.
    pub(super) async fn pause(&mut self) -> Option<bool> {
        let Download { digest, id, .. } = self.download;
        if !self.shared.running.is_abandoned(digest, *id) {
            self.grace = None;
            return None;
        }
        self.grace = None;
        let received = self.received_bytes();
        let draining = self.shared.drain.is_cancelled();
        let goes_on = match self.shared.settings.on_abandon {
            _ if draining => false,
            // The upstream hasn't answered: the request ends.
            _ if !self.opened => false,
            _ if !self.storing.is_storing() => true,
            OnAbandon::Finish | OnAbandon::Auto if self.plan.total.is_none() => {
                // Nobody knows how much is left.
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
            // Looked at again when somebody has come and gone.
            return None;
        }
        self.close().await
    }

    /// Ends a download of unknown length that goes on for nobody, once it has brought [`SMALL`]
    /// bytes. Whether something has been noted; none when the download goes on.
    pub(super) async fn end_if_overlong(&mut self) -> Option<bool> {
        let Download { digest, id, .. } = self.download;
        let overlong = self.opened && self.plan.total.is_none() && self.received >= SMALL;
        if overlong && self.shared.running.is_abandoned(digest, *id) {
            self.close().await
        } else {
            None
        }
    }

    async fn close(&mut self) -> Option<bool> {
        let Download { digest, id, .. } = self.download;
        let kept = self.keep().await;
        let closed = self.shared.running.close(digest, *id);
        closed.then_some(kept)
    }

    fn received_bytes(&self) -> u64 {
        self.download.progress.plan(|have, _| have.len())
    }

    /// Ends the streams, writes what has come, and notes on disk what is there. False when there is
    /// nothing that could be taken up.
    pub(super) async fn keep(&mut self) -> bool {
        self.stop_streams();
        while self.storing.idle().is_none() {
            let Ok(writer) = self.storing.written().await else {
                return false;
            };
            if self.take_back(writer).is_err() {
                return false;
            }
        }
        let (Some(writer), Some(total)) = (self.storing.idle(), self.plan.total) else {
            return false;
        };
        let Some(stage) = writer.stage().filter(|_| writer.is_writing()) else {
            return false;
        };
        let (keeper, partial) = (
            stage.keeper(),
            writer.partial(&self.download.upstream, total),
        );
        if partial.ranges.is_empty() {
            return false;
        }
        let kept = tokio::task::spawn_blocking(move || keeper.keep(&partial)).await;
        match kept {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::warn!(error = %on_one_line(&error), "a download can't be kept for later");
                false
            }
            Err(_panicked) => false,
        }
    }
}
