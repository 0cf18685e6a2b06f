//! What all parts of the cache share: the store, the index behind its lock, and the wake-ups.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::index::{DeletionEpoch, Index, RETRY};
use super::manifest_cache::ManifestCache;
use super::policy::Space;
use super::recent::Recent;
use super::state::timestamp::Timestamp;
use super::verify::Verifier;
use super::{CacheSettings, MinFree, Upkeep};
use crate::clock::Clock;
use crate::error_chain::on_one_line;
use crate::metrics::Metrics;
use crate::storage::{Store, StoreError};
use crate::tasks::Tasks;
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
    pub(super) min_free: Option<MinFree>,
    pub(super) upkeep: Upkeep,
    index: Mutex<Index>,
    /// A step panicked while it changed the index.
    inconsistent: AtomicBool,
    pub(super) recent: Recent,
    pub(super) epoch: Arc<DeletionEpoch>,
    /// Wakes the scheduler.
    pub(super) wake: Notify,
    /// Wakes the deletion task.
    pub(super) work: Notify,
    /// Wakes requests that wait for space, for a hold, or for the end of deleting.
    pub(super) freed: Notify,
    pub(super) complete: CancellationToken,
    pub(super) quit: CancellationToken,
    pub(super) ended: CancellationToken,
    pub(super) verifier: Verifier,
    pub(super) counters: Counters,
}

/// Notes in `inconsistent` that a panic began while this existed.
struct PanicWatch<'a> {
    inconsistent: &'a AtomicBool,
    panicking_before: bool,
}

impl Drop for PanicWatch<'_> {
    fn drop(&mut self) {
        if !self.panicking_before && std::thread::panicking() {
            self.inconsistent.store(true, Ordering::Relaxed);
        }
    }
}

impl Inner {
    /// Also returns the path of the state file, if there is one.
    pub(super) fn new(
        (store, metrics, clock): (Arc<dyn Store>, Arc<Metrics>, Clock),
        settings: CacheSettings,
        tasks: &Tasks,
        stop: &CancellationToken,
    ) -> (Self, Option<PathBuf>) {
        let CacheSettings {
            ttl,
            pins,
            max_size,
            min_free,
            state,
            upkeep,
        } = settings;
        let evicts = min_free.as_ref().is_some_and(|min_free| min_free.evicts);
        let space = Space::new(max_size, evicts);
        let started = Timestamp::of(clock.wall());
        let journaling = state.is_some() && upkeep == Upkeep::Full;
        let index = Index::new(ttl, pins, space, started, journaling);
        let inner = Self {
            store,
            metrics,
            manifests: ManifestCache::new(),
            workers: Workers::default(),
            clock,
            min_free,
            upkeep,
            recent: Recent::new(),
            epoch: Arc::clone(index.epoch()),
            index: Mutex::new(index),
            inconsistent: AtomicBool::new(false),
            wake: Notify::new(),
            work: Notify::new(),
            freed: Notify::new(),
            complete: CancellationToken::new(),
            quit: stop.child_token(),
            ended: CancellationToken::new(),
            verifier: Verifier::new(tasks.tracker().clone()),
            counters: Counters::default(),
        };
        (inner, state)
    }

    /// Runs a step under the index's lock, then wakes whom it concerns. After a panic the index is
    /// used further: its counts may be off, but nothing is deleted without a look at the store.
    pub(super) fn with<T>(&self, step: impl FnOnce(&mut Index) -> T) -> T {
        let mut index = self.index.lock();
        let watch = PanicWatch {
            inconsistent: &self.inconsistent,
            panicking_before: std::thread::panicking(),
        };
        let result = step(&mut index);
        let wake_ups = index.take_wake_ups();
        drop((watch, index));
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

    /// Whether the index works, or why not.
    pub(super) fn health(&self) -> Result<(), String> {
        if self.inconsistent.load(Ordering::Relaxed) {
            return Err("a panic while it was changed may have left it inconsistent".to_owned());
        }
        self.unlisted().map_or(Ok(()), Err)
    }

    /// Why the store couldn't be listed, if the last attempt failed.
    pub(super) fn unlisted(&self) -> Option<String> {
        self.with(|index| index.unlisted().map(str::to_owned))
    }

    pub(super) fn now(&self) -> Timestamp {
        Timestamp::of(self.clock.wall())
    }

    pub(super) fn is_complete(&self) -> bool {
        self.complete.is_cancelled()
    }

    /// Whether something was removed from the store; an error is logged and counted.
    pub(super) fn succeeded(&self, what: &'static str, result: Result<(), StoreError>) -> bool {
        let Err(error) = result else { return true };
        let failures = &self.counters.delete_failures;
        failures.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(what, error = %on_one_line(&error), "couldn't be removed; it is tried again");
        false
    }

    /// Measures what the file system has room for, where some has to stay free.
    pub(super) async fn measure(&self) {
        if let Some(min_free) = self.min_free.clone() {
            let measure = tokio::task::spawn_blocking(move || (min_free.free_space)());
            let free = measure.await.ok().flatten();
            let min_free = self.min_free.as_ref().map_or(0, |min_free| min_free.bytes);
            self.with(|index| index.measure(free, min_free));
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    delete_failures: AtomicU64,
    save_failures: AtomicU64,
    full: AtomicU64,
    unreadable: AtomicU64,
    /// Milliseconds since the Unix epoch.
    save_failed_at: AtomicU64,
    /// Microseconds.
    last_save: AtomicU64,
}

impl Counters {
    pub(super) fn full(&self) {
        self.full.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn unreadable(&self, entries: usize) {
        let entries = u64::try_from(entries).unwrap_or(u64::MAX);
        self.unreadable.store(entries, Ordering::Relaxed);
    }

    pub(super) fn saved(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.last_save.store(micros, Ordering::Relaxed);
    }

    pub(super) fn save_failed(&self, now: Timestamp) {
        self.save_failures.fetch_add(1, Ordering::Relaxed);
        self.save_failed_at.store(now.millis(), Ordering::Relaxed);
    }

    pub(super) fn may_retry_save(&self, now: Timestamp) -> bool {
        let failed = Timestamp::from_millis(self.save_failed_at.load(Ordering::Relaxed));
        now >= failed.after(RETRY)
    }

    pub(super) fn read(&self) -> Counts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            delete_failures: count(&self.delete_failures),
            save_failures: count(&self.save_failures),
            full: count(&self.full),
            unreadable: count(&self.unreadable),
            last_save: Duration::from_micros(count(&self.last_save)),
        }
    }
}
