//! The record of uses: which content the replicas have served.

use std::collections::HashSet;

use parking_lot::Mutex;

use super::Bucket;
use crate::oci::Digest;

/// Noted digests at most.
const MAX_NOTED: usize = 100_000;

/// The uses that this replica has yet to record.
#[derive(Debug, Default)]
pub(super) struct Uses {
    noted: Mutex<Noted>,
}

#[derive(Debug, Default)]
struct Noted {
    digests: HashSet<Digest>,
}

impl Noted {
    fn add(&mut self, digest: Digest) {
        if self.digests.len() < MAX_NOTED {
            self.digests.insert(digest);
        }
    }
}

impl Uses {
    /// Content was used that may not be cached here.
    pub(super) fn note(&self, digest: &Digest) {
        self.noted.lock().add(*digest);
    }

    /// Whether a use was noted.
    #[cfg(test)]
    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.noted.lock().digests.contains(digest)
    }
}

impl Bucket {
    /// Content was used that may not be cached here: a client was sent to the bucket for it.
    pub fn note_use(&self, digest: &Digest) {
        self.uses.note(digest);
    }
}
