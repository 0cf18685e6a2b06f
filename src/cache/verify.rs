//! Verifies cached blobs that haven't been verified yet: one background job for each.
//!
//! A job reads the file in pieces and hashes them on the blocking pool. The index and the open file
//! keep the result. A damaged or unreadable blob is moved to quarantine before the result is
//! published, so that the next request finds it missing.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::task::TaskTracker;

use super::work::scrub::{Pace, hash};
use super::{Cache, Hold, Trust};
use crate::error_chain::on_one_line;
use crate::oci::Digest;
use crate::storage::{Content, Modified, StoreError};
use crate::telemetry;

/// Blobs up to this size, in bytes, are verified before their first byte is sent.
pub const VERIFIED_FIRST: u64 = 1024 * 1024;
/// The end of an unverified blob, in bytes, that is withheld from readers of the whole blob, until the
/// digest is known to be right. No complete body is ever wrong.
pub const WITHHELD: u64 = 16 * 1024;
/// Verifications that run or wait. Further requests wait for one to end.
const MAX_JOBS: usize = 256;
/// Verifications of blobs above [`VERIFIED_FIRST`] that run at one time.
const MAX_LARGE: usize = 4;
/// Verifications of smaller blobs that run at one time, so that these don't wait for large ones.
const MAX_SMALL: usize = 8;

/// The result of a verification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Integrity {
    /// The blob has its digest.
    Right,
    /// It hasn't, or can't be read any more. It has been moved to quarantine.
    Damaged,
    /// It couldn't be verified, for a reason that may pass.
    Unknown,
}

/// A verification in flight, or its result.
#[derive(Debug, Clone)]
pub struct Verification(watch::Receiver<Option<Integrity>>);

impl Verification {
    /// The result, once there is one.
    pub fn integrity(&self) -> Option<Integrity> {
        let integrity = *self.0.borrow();
        // The task was dropped without a result: the process is about to end.
        integrity.or_else(|| self.0.has_changed().is_err().then_some(Integrity::Unknown))
    }

    /// Waits for the result. Cancel safe.
    pub async fn ended(&mut self) -> Integrity {
        let integrity = self.0.wait_for(Option::is_some).await;
        integrity
            .ok()
            .and_then(|integrity| *integrity)
            .unwrap_or(Integrity::Unknown)
    }
}

type Key = (Digest, Modified);

impl Hold {
    /// The file in the store has the digest: its writer has hashed it, or a later reader. That is known
    /// as long as its size and modification time stay the same, also after a restart.
    pub fn verified(&self, size: u64, modified: Modified) {
        self.shared
            .with(|index| index.set_verified(self.content, size, modified));
    }
}

/// All verifications.
#[derive(Debug)]
pub(super) struct Verifier {
    jobs: Mutex<HashMap<Key, Verification>>,
    places: Arc<Semaphore>,
    large: Semaphore,
    small: Semaphore,
    /// One blob at a time is moved to quarantine, so that no file is taken for another that came since.
    pub(super) aside: Semaphore,
    tasks: TaskTracker,
}

impl Verifier {
    pub(super) fn new(tasks: TaskTracker) -> Self {
        Self {
            jobs: Mutex::default(),
            places: Arc::new(Semaphore::new(MAX_JOBS)),
            large: Semaphore::new(MAX_LARGE),
            small: Semaphore::new(MAX_SMALL),
            aside: Semaphore::new(1),
            tasks,
        }
    }

    fn running(&self, key: &Key) -> Option<Verification> {
        self.jobs.lock().get(key).cloned()
    }
}

/// Forgets a job, also when its task is dropped or panics.
struct Forget {
    cache: Cache,
    key: Key,
    _place: OwnedSemaphorePermit,
}

impl Drop for Forget {
    fn drop(&mut self) {
        let Self { cache, key, .. } = self;
        cache.verifier.jobs.lock().remove(key);
    }
}

impl Cache {
    /// What is known of a blob that was opened.
    pub(super) fn trust(&self, digest: &Digest, content: &Content) -> Trust {
        if content.reader.is_verified() {
            return Trust::Verified;
        }
        let Content { size, modified, .. } = *content;
        let known = self.inner.with(|index| index.trust(digest, size, modified));
        if known == Trust::Verified {
            // What failed since has to be verified again.
            if content.reader.is_suspect() {
                return Trust::Unknown;
            }
            content.reader.set_verified();
        }
        known
    }

    /// Starts to verify a blob, or joins its verification in flight. Waits while there are too many.
    /// `hold` keeps the file meanwhile.
    pub async fn verify(&self, digest: &Digest, content: &Content, hold: Hold) -> Verification {
        let verifier = &self.verifier;
        let key = (*digest, content.modified);
        if let Some(running) = verifier.running(&key) {
            return running;
        }
        let Ok(place) = Arc::clone(&verifier.places).acquire_owned().await else {
            return Verification(watch::channel(Some(Integrity::Unknown)).1);
        };
        let mut jobs = verifier.jobs.lock();
        if let Some(running) = jobs.get(&key) {
            return running.clone();
        }
        let (sender, receiver) = watch::channel(None);
        let verification = Verification(receiver);
        jobs.insert(key, verification.clone());
        drop(jobs);
        let forget = Forget {
            cache: self.clone(),
            key,
            _place: place,
        };
        let (cache, content) = (self.clone(), content.clone());
        let work = async move {
            let work = cache.verify_held(&key.0, content, &hold);
            let integrity = cache.inner.quit.run_until_cancelled(work).await;
            // Forgotten first: later requests look at the store again.
            drop((forget, hold));
            sender.send_replace(Some(integrity.unwrap_or(Integrity::Unknown)));
        };
        verifier
            .tasks
            .spawn(telemetry::caused("verify a blob", work).0);
        verification
    }

    /// Moves a blob to quarantine: only if its file is still `content`, where that is given. False
    /// when it stays.
    pub async fn quarantine(&self, digest: &Digest, content: Option<&Content>) -> bool {
        let hold = self.hold(digest).await;
        let moved = self.quarantine_held(digest, content, &hold).await;
        moved.unwrap_or_else(|error| {
            let error = on_one_line(&error);
            tracing::error!(%digest, error, "a damaged blob can't be moved to quarantine; it isn't served");
            false
        })
    }

    async fn verify_held(&self, digest: &Digest, content: Content, hold: &Hold) -> Integrity {
        let permits = if content.size <= VERIFIED_FIRST {
            &self.verifier.small
        } else {
            &self.verifier.large
        };
        let Ok(_permit) = permits.acquire().await else {
            return Integrity::Unknown;
        };
        let (mut pace, mut bytes) = (Pace::new(None), 0);
        let reason = match hash(digest, &content, hold, &mut pace, &mut bytes).await {
            Ok(found) if found == *digest => return Integrity::Right,
            Ok(found) => format!("it has the digest {found} and {bytes} bytes"),
            Err(error) if error.is_damage() => on_one_line(&error),
            Err(error) => {
                let error = on_one_line(&error);
                tracing::warn!(%digest, error, "a cached blob can't be verified");
                return Integrity::Unknown;
            }
        };
        content.reader.suspect();
        tracing::error!(%digest, %reason, "a cached blob is damaged; it is quarantined and fetched again");
        self.quarantine(digest, Some(&content)).await;
        Integrity::Damaged
    }

    /// Moves a held blob to quarantine, if it is still the file that was found to be damaged. After an
    /// error the file stays, and the index has it as damaged until another one is committed; when
    /// nothing holds it, the deletion task tries to remove it.
    pub(super) async fn quarantine_held(
        &self,
        digest: &Digest,
        damaged: Option<&Content>,
        hold: &Hold,
    ) -> Result<bool, StoreError> {
        // Closed never: without a permit nothing is at risk but a file that came meanwhile.
        let _one_at_a_time = self.verifier.aside.acquire().await;
        if let Some(damaged) = damaged {
            match self.inner.store.open(digest).await {
                Ok(Some(current)) if !current.is_same(damaged) => return Ok(false),
                Ok(None) => return Ok(false),
                // A file that can't be opened is no better.
                Ok(Some(_)) | Err(_) => {}
            }
        }
        // Marked first: a download can only begin, and so commit a new file, after the rename.
        self.inner.with(|index| index.quarantine(hold.content));
        let moved = self.inner.store.quarantine(digest).await?;
        if moved {
            self.inner.metrics.quarantined();
        }
        Ok(moved)
    }
}
