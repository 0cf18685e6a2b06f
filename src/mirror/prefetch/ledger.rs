//! How much of what was fetched ahead was then asked for.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use quick_cache::sync::Cache;

use crate::metrics::{Metrics, Outcome};
use crate::oci::Digest;

/// Blobs fetched ahead that are remembered until a client asks for them.
const MAX_FETCHED: usize = 10_000;

#[derive(Debug)]
pub(super) struct Ledger {
    /// Being fetched, and whether a client has asked meanwhile. No more than there are downloads
    /// ahead of clients.
    running: Mutex<HashMap<Digest, bool>>,
    /// How many those are: nearly always none, and then the lock is left alone.
    count: AtomicUsize,
    /// Fetched, not asked for yet: bytes.
    fetched: Cache<Digest, u64>,
    metrics: Arc<Metrics>,
}

/// A blob that is being fetched, until dropped.
#[derive(Debug)]
pub(super) struct Entry {
    ledger: Arc<Ledger>,
    digest: Digest,
}

impl Ledger {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            running: Mutex::default(),
            count: AtomicUsize::new(0),
            fetched: Cache::new(MAX_FETCHED),
            metrics,
        }
    }

    pub(super) fn begin(ledger: &Arc<Self>, digest: Digest) -> Entry {
        let mut running = ledger.running.lock();
        running.insert(digest, false);
        ledger.count.store(running.len(), Ordering::Release);
        drop(running);
        Entry {
            ledger: Arc::clone(ledger),
            digest,
        }
    }

    /// A client is given a blob. What was fetched ahead counts once.
    pub(super) fn asked(&self, digest: &Digest, outcome: Outcome) {
        // In this order: a blob that stops running is among the fetched before that.
        if self.count.load(Ordering::Acquire) > 0
            && let Some(asked) = self.running.lock().get_mut(digest)
        {
            *asked = true;
            return;
        }
        if self.fetched.is_empty() || self.fetched.peek(digest).is_none() {
            return;
        }
        // A miss is downloaded anew: what was fetched ahead has gone unused.
        if let Some((_, bytes)) = self.fetched.remove(digest)
            && outcome != Outcome::Miss
        {
            self.metrics.downloads.prefetched_used.inc_by(bytes);
        }
    }
}

impl Entry {
    /// It is there: so many bytes came ahead of clients, or none because somebody else fetched it.
    pub(super) fn fetched(&self, bytes: Option<u64>) {
        let Some(bytes) = bytes else { return };
        let ledger = &self.ledger;
        ledger.metrics.downloads.prefetched.inc_by(bytes);
        let running = ledger.running.lock();
        if running.get(&self.digest).is_some_and(|asked| *asked) {
            ledger.metrics.downloads.prefetched_used.inc_by(bytes);
        } else {
            ledger.fetched.insert(self.digest, bytes);
        }
        drop(running);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut running = self.ledger.running.lock();
        running.remove(&self.digest);
        self.ledger.count.store(running.len(), Ordering::Release);
    }
}
