//! Verifying cached blobs that haven't been verified yet: one background job for each.
//!
//! A job reads the file in pieces and hashes them on the blocking pool. The result is remembered in
//! the index and with the open file. A blob that is damaged, or can't be read any more, is moved
//! to quarantine before its result is known, so that the next request finds it missing.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::task::TaskTracker;

use super::work::scrub::{Pace, hash};
use super::{Cache, Hold, Inner};
use crate::error_chain::on_one_line;
use crate::oci::Digest;
use crate::storage::{Content, Modified, StoreError};

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

/// What a verification found out about a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Integrity {
    /// The blob has its digest.
    Right,
    /// It hasn't, or can't be read any more. It has been moved to quarantine.
    Damaged,
    /// It couldn't be verified, for a reason that may pass.
    Unknown,
}

/// A verification that runs, or has ended.
#[derive(Debug, Clone)]
pub struct Verification(watch::Receiver<Option<Integrity>>);

impl Verification {
    /// What was found out, once it was.
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
type Jobs = HashMap<Key, watch::Receiver<Option<Integrity>>>;

/// All verifications.
#[derive(Debug)]
pub(super) struct Verifier {
    jobs: Arc<Mutex<Jobs>>,
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
            jobs: Arc::default(),
            places: Arc::new(Semaphore::new(MAX_JOBS)),
            large: Semaphore::new(MAX_LARGE),
            small: Semaphore::new(MAX_SMALL),
            aside: Semaphore::new(1),
            tasks,
        }
    }

    fn running(&self, key: &Key) -> Option<Verification> {
        self.jobs.lock().get(key).cloned().map(Verification)
    }
}

/// Forgets a job, also when its task is dropped or panics.
struct Forget {
    jobs: Arc<Mutex<Jobs>>,
    key: Key,
    _place: OwnedSemaphorePermit,
}

impl Drop for Forget {
    fn drop(&mut self) {
        self.jobs.lock().remove(&self.key);
    }
}

impl Cache {
    /// Starts to verify a blob, or joins the verification of it that runs. Waits while too many
    /// do. `hold` keeps the file meanwhile.
    pub async fn verify(&self, digest: &Digest, content: &Content, hold: Hold) -> Verification {
        let verifier = &self.inner.verifier;
        let key = (*digest, content.modified);
        if let Some(running) = verifier.running(&key) {
            return running;
        }
        let Ok(place) = Arc::clone(&verifier.places).acquire_owned().await else {
            return Verification(watch::channel(Some(Integrity::Unknown)).1);
        };
        let mut jobs = verifier.jobs.lock();
        if let Some(running) = jobs.get(&key) {
            return Verification(running.clone());
        }
        let (sender, receiver) = watch::channel(None);
        jobs.insert(key, receiver.clone());
        drop(jobs);
        let forget = Forget {
            jobs: Arc::clone(&verifier.jobs),
            key,
            _place: place,
        };
        let (shared, content) = (Arc::clone(&self.inner), content.clone());
        verifier.tasks.spawn(async move {
            let quit = shared.quit.clone();
            let work = shared.verify(&key.0, content, &hold);
            let integrity = quit.run_until_cancelled(work).await;
            // Forgotten first: later requests look at the store again.
            drop((forget, hold));
            sender.send_replace(Some(integrity.unwrap_or(Integrity::Unknown)));
        });
        Verification(receiver)
    }

    /// Sets a blob aside that can't be read any more: its file if `content` is given and still the
    /// one in the store, else whatever is there. False when it stays.
    pub async fn quarantine(&self, digest: &Digest, content: Option<&Content>) -> bool {
        let hold = self.inner.hold(digest).await;
        match self.inner.quarantine_held(digest, content, &hold).await {
            Ok(done) => done,
            Err(error) => {
                let error = on_one_line(&error);
                tracing::error!(%digest, error, "a damaged blob can't be moved to quarantine; it isn't served");
                false
            }
        }
    }
}

impl Inner {
    async fn verify(&self, digest: &Digest, content: Content, hold: &Hold) -> Integrity {
        let permits = if content.size <= VERIFIED_FIRST {
            &self.verifier.small
        } else {
            &self.verifier.large
        };
        let Ok(_permit) = permits.acquire().await else {
            return Integrity::Unknown;
        };
        let (mut pace, mut bytes) = (Pace::new(None), 0);
        let found = hash(digest, content.clone(), &mut pace, &mut bytes).await;
        let reason = match found {
            Ok(found) if found == *digest => {
                if content.is_unchanged() {
                    content.reader.set_verified();
                    hold.verified(content.size, content.modified);
                }
                return Integrity::Right;
            }
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
        if let Err(error) = self.quarantine_held(digest, Some(&content), hold).await {
            let error = on_one_line(&error);
            tracing::error!(%digest, error, "a damaged blob can't be moved to quarantine; it isn't served");
        }
        Integrity::Damaged
    }

    /// Sets a held blob aside, if it is still the file that was found to be damaged. After an error
    /// the file stays, and the index knows that it is damaged until another one is committed; when
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
            match self.store.open(digest).await {
                Ok(Some(current)) if !current.is_same(damaged) => return Ok(false),
                Ok(None) => return Ok(false),
                // A file that can't be opened is no better.
                Ok(Some(_)) | Err(_) => {}
            }
        }
        // Marked first: a download can only begin, and so commit a new file, after the rename.
        self.with(|index| index.quarantine(hold.content));
        self.store.quarantine(digest).await
    }
}
