//! At most one stage for each key.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The keys that have a stage.
#[derive(Debug)]
pub(super) struct StageLocks<K> {
    locked: Mutex<BTreeSet<K>>,
    released: Notify,
}

/// Locks a key until it is dropped.
#[derive(Debug)]
pub(super) struct StageLock<K: Ord> {
    pub(super) key: K,
    locks: Arc<StageLocks<K>>,
}

impl<K> Default for StageLocks<K> {
    fn default() -> Self {
        Self {
            locked: Mutex::default(),
            released: Notify::new(),
        }
    }
}

impl<K: Ord + Clone> StageLocks<K> {
    /// Locks the key once no stage has it any more. Cancel safe.
    pub(super) async fn lock(self: &Arc<Self>, key: K) -> StageLock<K> {
        loop {
            // Created before the key is tried: it notices every release after that.
            let released = self.released.notified();
            if let Some(lock) = self.try_lock(&key) {
                return lock;
            }
            released.await;
        }
    }

    /// Locks the key; none while a stage has it.
    pub(super) fn try_lock(self: &Arc<Self>, key: &K) -> Option<StageLock<K>> {
        let is_new = self.locked.lock().insert(key.clone());
        is_new.then(|| StageLock {
            key: key.clone(),
            locks: Arc::clone(self),
        })
    }
}

impl<K: Ord> Drop for StageLock<K> {
    fn drop(&mut self) {
        self.locks.locked.lock().remove(&self.key);
        self.locks.released.notify_waiters();
    }
}
