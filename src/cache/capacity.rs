//! Holds, which keep content from being removed, and reservations of space.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::index::{Blob, Id, SpaceReply};
use super::{Cache, Inner, SpaceRequest};
use crate::oci::Digest;

/// The longest that a download waits for space.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// There is no space, and none can be made: the download is passed through without caching.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the cache has no space for {bytes} bytes, and nothing that may go")]
pub struct Full {
    pub bytes: u64,
}

/// Keeps the links and the file of a digest from being removed. Take it before the blob is opened or
/// linked, and keep it until it has been read, or the link is in the index.
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
        self.shared.with(|index| index.space.fill(before, filled));
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

impl Cache {
    /// Keeps a digest, cached or not, from being deleted. Waits for a deletion of it in flight.
    pub async fn hold(&self, digest: &Digest) -> Hold {
        let content = self.inner.until_freed(|index| index.hold(digest)).await;
        self.held(content)
    }

    /// Like [`hold`](Self::hold), without waiting: none while the digest is being deleted.
    pub fn try_hold(&self, digest: &Digest) -> Option<Hold> {
        let content = self.inner.with(|index| index.hold(digest))?;
        Some(self.held(content))
    }

    pub(super) fn held(&self, content: Id<Blob>) -> Hold {
        let shared = Arc::clone(&self.inner);
        Hold { shared, content }
    }

    /// Reserves space for content of `bytes` bytes, and makes it where there is none, which may take
    /// seconds.
    pub async fn reserve(&self, bytes: u64) -> Result<Reservation, Full> {
        let request = SpaceRequest {
            bytes,
            blob: bytes,
            evict: true,
        };
        self.try_reserve(request).await
    }

    /// Like [`reserve`](Self::reserve), for one step of a download. Where images may be evicted and
    /// that isn't enough, paused downloads are given up. A request for no bytes always succeeds.
    pub async fn reserve_step(&self, request: SpaceRequest) -> Result<Reservation, Full> {
        match self.try_reserve(request).await {
            Err(_full) if request.evict && self.clear_partials().await => {
                self.try_reserve(request).await
            }
            reserved => reserved,
        }
    }

    pub(super) async fn try_reserve(&self, request: SpaceRequest) -> Result<Reservation, Full> {
        if self.has_made_room(request).await {
            return Ok(Reservation {
                shared: Arc::clone(&self.inner),
                bytes: request.bytes,
                filled: 0,
            });
        }
        if request.evict {
            self.inner.counts.lock().full += 1;
        }
        Err(Full {
            bytes: request.bytes.max(request.blob),
        })
    }

    /// Counts the requested bytes as reserved, after making room for them. False when there is none.
    async fn has_made_room(&self, request: SpaceRequest) -> bool {
        let inner = &*self.inner;
        if request.bytes == 0 {
            return inner.with(|index| index.space.can_hold(request.blob));
        }
        let until = Instant::now() + MAX_WAIT;
        let mut looked_at = 0;
        loop {
            let mut freed = std::pin::pin!(inner.freed.notified());
            freed.as_mut().enable();
            let now = inner.now();
            match inner.with(|index| index.reserve_space(request, now, &mut looked_at)) {
                SpaceReply::Reserved => return true,
                SpaceReply::Again => tokio::task::yield_now().await,
                SpaceReply::Wait => {
                    if tokio::time::timeout_at(until, freed).await.is_err() {
                        return false;
                    }
                    looked_at = 0;
                }
                SpaceReply::Full => return false,
            }
        }
    }
}
