//! Holds and reservations: what keeps content and space from going to somebody else.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Inner;
use super::eviction::Admission;
use super::index::Index;
use super::index::entry::{Content, content_flag};
use super::index::slab::Id;
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
    pub(super) content: Id<Content>,
}

impl Hold {
    /// The file is in the store, with so many bytes. Said after a commit that no link follows yet,
    /// so that a file that never gets one is removed again.
    pub fn committed(&self, size: u64) {
        self.shared
            .with(|index| index.file_present(self.content, size));
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.shared.with(|index| index.let_go(self.content));
    }
}

/// Space that a download asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpaceRequest {
    /// Bytes to reserve now.
    pub bytes: u64,
    /// Bytes of the whole blob, as far as they are known. Nothing is evicted for a blob that is
    /// larger than half of what may be stored.
    pub blob: u64,
    /// Whether images may be evicted to make room.
    pub evict: bool,
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
        self.shared.with(|index| {
            let all = &mut index.capacity.filled;
            *all = all.saturating_sub(before).saturating_add(filled);
        });
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

impl Index {
    fn give_back(&mut self, bytes: u64, filled: u64) {
        let capacity = &mut self.capacity;
        capacity.reserved = capacity.reserved.saturating_sub(bytes);
        capacity.filled = capacity.filled.saturating_sub(filled);
        self.news.freed = true;
    }

    /// `None` while the content is being deleted.
    fn take_hold(&mut self, digest: &Digest) -> Option<Id<Content>> {
        let id = self.intern_content(digest)?;
        let content = self.contents.get_mut(id)?;
        if content.flags.has(content_flag::DELETING) {
            return None;
        }
        content.holds += 1;
        Some(id)
    }

    fn let_go(&mut self, id: Id<Content>) {
        let Some(content) = self.contents.get_mut(id) else {
            return;
        };
        content.holds = content.holds.saturating_sub(1);
        if content.holds > 0 {
            return;
        }
        self.news.freed = true;
        let orphan = content.first.is_none() && content.flags.has(content_flag::FILE);
        let going = content_flag::CONDEMNED | content_flag::LOST;
        if orphan || content.flags.has(going) {
            self.enqueue(id);
        } else {
            self.release_content(id);
        }
    }
}

impl Inner {
    /// A hold, unless the content is being deleted right now.
    pub(super) fn try_hold(self: &Arc<Self>, digest: &Digest) -> Option<Hold> {
        let content = self.with(|index| index.take_hold(digest))?;
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
        } else if !self.with(|index| index.can_hold(request.blob)) {
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
            let admission = self.with(|index| {
                let admission = index.admit(request, self.now(), &mut looked_at);
                // While the store can't be listed nobody will soon know what fits.
                let unknown = !index.sized && index.unlisted.is_some();
                match admission {
                    Admission::Wait if unknown => Admission::Full,
                    admission => admission,
                }
            });
            match admission {
                Admission::Admitted => return Ok(()),
                Admission::Again => tokio::task::yield_now().await,
                Admission::Wait => {
                    if tokio::time::timeout_at(until, freed).await.is_err() {
                        break;
                    }
                    looked_at = 0;
                }
                Admission::Full => break,
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
