//! At most one stage, or one scrub, for each key.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The keys that are locked.
#[derive(Debug)]
pub(crate) struct KeyLocks<K> {
    locked: Mutex<BTreeSet<K>>,
    released: Notify,
}

/// Locks a key until it is dropped.
#[derive(Debug)]
pub(crate) struct KeyLock<K: Ord> {
    pub(super) key: K,
    locks: Arc<KeyLocks<K>>,
}

impl<K> Default for KeyLocks<K> {
    fn default() -> Self {
        Self {
            locked: Mutex::default(),
            released: Notify::new(),
        }
    }
}

impl<K: Ord + Clone> KeyLocks<K> {
    /// Locks the key once nothing else has it any more. Cancel safe.
    pub(crate) async fn lock(self: &Arc<Self>, key: K) -> KeyLock<K> {
        loop {
            // Created before the key is tried: it notices every release after that.
            let released = self.released.notified();
            if let Some(lock) = self.try_lock(&key) {
                return lock;
            }
            released.await;
        }
    }

    /// Locks the key; none while it is locked.
    pub(crate) fn try_lock(self: &Arc<Self>, key: &K) -> Option<KeyLock<K>> {
        let is_new = self.locked.lock().insert(key.clone());
        is_new.then(|| KeyLock {
            key: key.clone(),
            locks: Arc::clone(self),
        })
    }
}

impl<K: Ord> Drop for KeyLock<K> {
    fn drop(&mut self) {
        self.locks.locked.lock().remove(&self.key);
        self.locks.released.notify_waiters();
    }
}
