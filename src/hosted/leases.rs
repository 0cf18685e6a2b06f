//! Blobs of mirrored repositories that were found for reuse: held until a manifest refers to them.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::cache::Hold;
use crate::oci::{Digest, RepoName};

/// Blobs that are held; the one whose time is over first goes when there is one more.
const MAX_LEASES: usize = 16_384;

#[derive(Debug, Default)]
pub(super) struct Leases(Mutex<HashMap<(RepoName, Digest), (Instant, Hold)>>);

impl Leases {
    /// Holds a blob for a repository from now on.
    pub(super) fn add(&self, repo: &RepoName, digest: &Digest, hold: Hold, time: Duration) {
        let until = Instant::now() + time;
        let mut leases = self.0.lock();
        let key = (repo.clone(), *digest);
        let mut gone = Vec::from_iter(leases.insert(key, (until, hold)));
        if leases.len() > MAX_LEASES {
            let first = leases.iter().min_by_key(|(_, (until, _))| *until);
            let first = first.map(|(key, _)| key.clone());
            gone.extend(first.and_then(|key| leases.remove(&key)));
        }
        // Releasing a hold takes the lock of the index.
        drop(leases);
        drop(gone);
    }

    /// Releases what was held for long enough.
    pub(super) fn expire(&self) {
        let now = Instant::now();
        let over: Vec<_> = {
            let mut leases = self.0.lock();
            leases.extract_if(|_, (until, _)| *until <= now).collect()
        };
        drop(over);
    }
}
