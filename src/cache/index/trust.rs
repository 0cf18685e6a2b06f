//! Which files are known to have their digest, and which are damaged.

use super::Index;
use super::blob::{Blob, BlobState, Check};
use super::slab::Id;
use crate::oci::Digest;
use crate::storage::Modified;

/// What the index knows of a file that was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// It has its digest.
    Verified,
    /// Nothing: it is to be verified.
    Unknown,
    /// It can't have its digest: it has another size than it was verified with, was listed with, or
    /// has in a manifest; or it was found to be damaged, and couldn't be set aside.
    Damaged,
}

impl Index {
    pub(crate) fn trust(&self, digest: &Digest, size: u64, modified: Modified) -> Trust {
        let Some(id) = self.find_blob(digest) else {
            return Trust::Unknown;
        };
        let blob = self.blobs.get(id);
        let verified = blob.check.modified();
        let has_size = blob.state.has_file() || verified.is_some();
        let wrong = blob.state == BlobState::Quarantined || blob.check == Check::WRONG_SIZE;
        if wrong || (has_size && blob.size != size) {
            Trust::Damaged
        } else if verified == Some(modified) {
            Trust::Verified
        } else {
            Trust::Unknown
        }
    }

    /// A file of this size and modification time was found to have the digest.
    pub(crate) fn set_verified(&mut self, id: Id<Blob>, size: u64, modified: Modified) {
        let check = Check::verified(modified);
        let blob = self.blobs.get_mut(id);
        if blob.check == check && blob.size == size {
            return;
        }
        // Without this `file_present` would take the new size for a wrong one.
        blob.check = Check::UNKNOWN;
        if blob.state.has_file() {
            self.file_present(id, size);
        }
        let blob = self.blobs.get_mut(id);
        blob.size = size;
        blob.check = check;
        let entries: Vec<_> = self.entries_of(id).map(|(id, _)| id).collect();
        for entry in entries {
            self.mark_dirty(entry);
        }
    }

    /// What the state file says of a file, before the store has been listed.
    pub(super) fn restore_verified(&mut self, id: Id<Blob>, (size, modified): (u64, Modified)) {
        let blob = self.blobs.get_mut(id);
        if blob.check != Check::WRONG_SIZE && blob.file_size().is_none_or(|known| known == size) {
            blob.size = size;
            blob.check = Check::verified(modified);
        }
    }

    /// A manifest gives the sizes of what it refers to: files of other sizes are damaged, unless they
    /// have been verified; then it is the manifest that is wrong.
    pub(crate) fn expect_sizes(&mut self, sizes: &[(Digest, u64)]) {
        for (digest, size) in sizes {
            if let Some(id) = self.find_blob(digest) {
                let blob = self.blobs.get_mut(id);
                let wrong = blob.file_size().is_some_and(|known| known != *size);
                if wrong && blob.check == Check::UNKNOWN {
                    blob.check = Check::WRONG_SIZE;
                }
            }
        }
    }

    /// False when another scrub is reading the blob. The caller holds it.
    pub(crate) fn begin_scrub(&mut self, id: Id<Blob>) -> bool {
        self.scrubbing.insert(id)
    }

    pub(crate) fn end_scrub(&mut self, id: Id<Blob>) {
        self.scrubbing.remove(&id);
    }

    /// The size of the file, if there is one as far as is known.
    pub(crate) fn file_size(&self, id: Id<Blob>) -> Option<u64> {
        self.blobs.get(id).file_size()
    }

    /// The file of a blob that the caller holds is being moved to quarantine. Its links go when
    /// nothing holds it, unless a new file has come by then.
    pub(crate) fn quarantine(&mut self, id: Id<Blob>) {
        self.file_removed(id);
        self.set_state(id, BlobState::Quarantined);
        self.epoch.begin();
        self.wake_ups.freed = true;
    }

    /// The file couldn't be moved. `size` is that of the file that was known before.
    pub(crate) fn cancel_quarantine(&mut self, id: Id<Blob>, size: Option<u64>) {
        if let Some(size) = size {
            self.file_present(id, size);
        } else if self.blobs.get(id).state == BlobState::Quarantined {
            self.set_state(id, BlobState::Absent);
        }
    }
}
