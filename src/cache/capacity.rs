//! Holds, which keep content from being removed, and reservations of space.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Inner;
use super::index::{Blob, Id, SpaceReply};
use super::policy::SpaceRequest;
use crate::oci::Digest;

/// The longest that a download waits for space.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// There is no space, and none can be made: the download is to be passed through without caching.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the cache has no space for {bytes} bytes, and nothing that may go")]
pub struct Full {
    pub bytes: u64,
}

/// Keeps the links and the file of a digest from being removed. Take it before the blob is opened or
/// linked, and keep it until it has been read, or the link has been noted.
#[derive(Debug)]
#[must_use = "nothing is held once this is dropped"]
pub struct Hold {
    pub(super) shared: Arc<Inner>,
    pub(super) content: Id<Blob>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.shared.with(|index| index.release(self.content));
    }
}

/// Space for a download that runs or is paused. Dropping it gives the space back.
#[derive(Debug)]
#[must_use = "the space is given back when this is dropped"]
pub struct Reservation {
    shared: Arc<Inner>,
    bytes: u64,
    /// Those of the bytes that are on disk already.
    filled: u64,
}

impl Reservation {
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds another reservation to this one.
    pub fn merge(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
        self.filled += std::mem::take(&mut other.filled);
    }

    /// So many bytes have been written to disk; at most the reserved ones count. The free space of
    /// the file system no longer contains them.
    pub fn fill(&mut self, bytes: u64) {
        let filled = bytes.min(self.bytes);
        let before = std::mem::replace(&mut self.filled, filled);
        self.shared.with(|index| index.fill(before, filled));
    }

    /// Keeps only the space of the `bytes` that are on disk, and gives the rest back.
    pub fn shrink(&mut self, bytes: u64) {
        self.fill(bytes);
        let unused = self.bytes.saturating_sub(self.filled);
        self.bytes = self.filled;
        self.shared.with(|index| index.give_back(unused, 0));
    }

    /// The file has been committed: what was reserved is now used. In one step, so that no space is
    /// counted twice or not at all.
    pub fn commit(mut self, hold: &Hold, size: u64) {
        let bytes = std::mem::take(&mut self.bytes);
        let filled = std::mem::take(&mut self.filled);
        self.shared.with(|index| {
            index.give_back(bytes, filled);
            index.file_present(hold.content, size);
        });
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.shared
                .with(|index| index.give_back(self.bytes, self.filled));
        }
    }
}

impl Inner {
    /// A hold, unless the content is being deleted right now.
    pub(super) fn try_hold(self: &Arc<Self>, digest: &Digest) -> Option<Hold> {
        let content = self.with(|index| index.hold(digest))?;
        Some(Hold {
            shared: Arc::clone(self),
            content,
        })
    }

    /// A hold. Waits while the content is being deleted, which one round of the store bounds.
    pub(super) async fn hold(self: &Arc<Self>, digest: &Digest) -> Hold {
        loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            freed.as_mut().enable();
            if let Some(hold) = self.try_hold(digest) {
                return hold;
            }
            freed.await;
        }
    }

    pub(super) async fn reserve(
        self: &Arc<Self>,
        request: SpaceRequest,
    ) -> Result<Reservation, Full> {
        if request.bytes > 0 {
            self.admit(request).await?;
        } else if !self.with(|index| index.space().can_hold(request.blob)) {
            return Err(self.full(request));
        }
        Ok(Reservation {
            shared: Arc::clone(self),
            bytes: request.bytes,
            filled: 0,
        })
    }

    /// Counts the requested bytes as reserved, after making room for them.
    async fn admit(&self, request: SpaceRequest) -> Result<(), Full> {
        let until = Instant::now() + MAX_WAIT;
        let mut looked_at = 0;
        loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            freed.as_mut().enable();
            let now = self.now();
            match self.with(|index| index.reserve_space(request, now, &mut looked_at)) {
                SpaceReply::Reserved => return Ok(()),
                SpaceReply::Again => tokio::task::yield_now().await,
                SpaceReply::Wait => {
                    if tokio::time::timeout_at(until, freed).await.is_err() {
                        break;
                    }
                    looked_at = 0;
                }
                SpaceReply::Full => break,
            }
        }
        Err(self.full(request))
    }

    fn full(&self, request: SpaceRequest) -> Full {
        if request.evict {
            self.counters.full();
        }
        Full {
            bytes: request.bytes.max(request.blob),
        }
    }
}
