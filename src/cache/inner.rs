//! What all parts of the cache share: the store, the index behind its lock, and the wake-ups.

use std::sync::{Arc, OnceLock, PoisonError};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::index::{DeletionEpoch, Index};
use super::manifest_cache::ManifestCache;
use super::pins::PinList;
use super::policy::HostedRole;
use super::recent::Recent;
use super::state::timestamp::Timestamp;
use super::{CacheSettings, Upkeep};
use crate::clock::Clock;
use crate::error_chain::on_one_line;
use crate::metrics::Metrics;
use crate::oci::{Digest, RepoName, Tag};
use crate::storage::{KeyLocks, Link, Store, StoreError};
use crate::workers::Workers;

/// Counts since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Links, tags or files that couldn't be removed; each is tried again.
    pub delete_failures: u64,
    pub save_failures: u64,
    /// Downloads for which there was no space.
    pub full: u64,
    /// Entries of the store that couldn't be read at the start.
    pub unreadable: u64,
    /// How long the last save took that appended changes.
    pub last_save: Duration,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) store: Arc<dyn Store>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) manifests: ManifestCache,
    pub(super) workers: Workers,
    pub(super) clock: Clock,
    /// Those of the start: `state` and `upkeep` never change, the index has the others.
    pub(super) settings: Arc<CacheSettings>,
    /// Poisoned when a step panicked while it changed the index.
    pub(super) index: std::sync::Mutex<Index>,
    pub(super) recent: Recent,
    pub(super) epoch: Arc<DeletionEpoch>,
    /// Wakes the scheduler.
    pub(super) wake: Notify,
    /// Wakes the deletion task.
    pub(super) work: Notify,
    /// Wakes requests that wait for space, for a hold, or for the end of deleting.
    pub(super) freed: Notify,
    /// Those that were made at run time.
    pub(super) pins: PinList,
    pub(super) complete: CancellationToken,
    pub(super) quit: CancellationToken,
    pub(super) ended: CancellationToken,
    /// Tags that are being changed.
    pub(super) tags: Arc<KeyLocks<(RepoName, Tag)>>,
    /// Blobs that a scrub is reading.
    pub(super) scrubbing: Arc<KeyLocks<Digest>>,
    pub(super) counts: Mutex<Counts>,
    /// Who is told of what hosted repositories lose.
    pub(super) losses: OnceLock<mpsc::Sender<Loss>>,
}

/// Hosted repositories' losses that wait to be noticed at most. More are lost to whoever follows them.
const MAX_LOSSES: usize = 10_000;

/// A hosted repository has lost a link, by the rules or by a request, and the tags that named it.
#[derive(Debug, Clone)]
pub struct Loss {
    pub link: Link,
    pub tags: Vec<Tag>,
}

impl Inner {
    /// From now on the losses of hosted repositories are told. None from the second call on.
    pub(super) fn losses(&self) -> Option<mpsc::Receiver<Loss>> {
        let (sender, receiver) = mpsc::channel(MAX_LOSSES);
        self.losses.set(sender).ok().map(|()| receiver)
    }

    pub(super) fn tell_loss(&self, link: &Link, tags: &[Tag]) {
        let Some(losses) = self.losses.get() else {
            return;
        };
        let mut hosted = self.settings.hosted.iter();
        // What is removed before this server decides is a copy.
        let decides = self.with(|index| index.hosted_role()) == HostedRole::Decides;
        if !decides || !hosted.any(|policy| policy.has(&link.repo)) {
            return;
        }
        let (link, tags) = (link.clone(), tags.to_vec());
        if losses.try_send(Loss { link, tags }).is_err() {
            tracing::warn!(
                "too much is removed from hosted repositories at a time; the bucket keeps some of it"
            );
        }
    }

    pub(super) fn new(
        (store, metrics, clock): (Arc<dyn Store>, Arc<Metrics>, Clock),
        settings: CacheSettings,
        stop: &CancellationToken,
    ) -> Self {
        let settings = Arc::new(settings);
        let index = Index::new(Arc::clone(&settings), Timestamp::of(clock.wall()));
        Self {
            store,
            metrics,
            manifests: ManifestCache::new(),
            workers: Workers::default(),
            clock,
            pins: PinList::beside(settings.state.as_ref()),
            settings,
            recent: Recent::new(),
            epoch: Arc::clone(&index.epoch),
            index: std::sync::Mutex::new(index),
            wake: Notify::new(),
            work: Notify::new(),
            freed: Notify::new(),
            complete: CancellationToken::new(),
            quit: stop.child_token(),
            ended: CancellationToken::new(),
            tags: Arc::default(),
            scrubbing: Arc::default(),
            counts: Mutex::default(),
            losses: OnceLock::new(),
        }
    }

    /// Runs a step under the index's lock, then sends its wake-ups. The index stays in use after a
    /// panic: its counts may be off, but nothing is deleted without a look at the store.
    pub(super) fn with<T>(&self, step: impl FnOnce(&mut Index) -> T) -> T {
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let result = step(&mut index);
        let wake_ups = index.take_wake_ups();
        drop(index);
        if wake_ups.schedule {
            self.wake.notify_one();
        }
        if wake_ups.delete {
            self.work.notify_one();
        }
        if wake_ups.freed {
            self.freed.notify_waiters();
        }
        result
    }

    /// Runs a step now and after each `freed` wake-up, until it returns something.
    pub(super) async fn until_freed<T>(&self, mut step: impl FnMut(&mut Index) -> Option<T>) -> T {
        loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            freed.as_mut().enable();
            if let Some(result) = self.with(&mut step) {
                return result;
            }
            freed.await;
        }
    }

    /// Runs a step with the position of each page: 0, then the one it returned, until it returns none.
    /// Releases the lock in between.
    pub(super) async fn pages(&self, mut step: impl FnMut(&mut Index, usize) -> Option<usize>) {
        let mut from = Some(0);
        while let Some(at) = from {
            from = self.with(|index| step(index, at));
            tokio::task::yield_now().await;
        }
    }

    pub(super) fn now(&self) -> Timestamp {
        Timestamp::of(self.clock.wall())
    }

    /// Whether expired and excess content may be removed now.
    pub(super) fn may_remove(&self) -> bool {
        self.complete.is_cancelled() && self.settings.upkeep == Upkeep::Full
    }

    /// Whether something was removed from the store; an error is logged and counted.
    pub(super) fn succeeded(&self, what: &'static str, result: Result<(), StoreError>) -> bool {
        let Err(error) = result else { return true };
        self.counts.lock().delete_failures += 1;
        tracing::warn!(what, error = %on_one_line(&error), "couldn't be removed; it is tried again");
        false
    }

    /// Measures the free space of the file system, where some has to stay free.
    pub(super) async fn measure(&self) {
        let min_free = self.with(|index| index.settings().min_free.clone());
        if let Some(min_free) = min_free {
            let bytes = min_free.bytes;
            let measure = tokio::task::spawn_blocking(move || (min_free.free_space)());
            let free = measure.await.ok().flatten();
            self.with(|index| index.measure(free, bytes));
        }
    }
}
