//! Files and holds: which files the store has, which of them are known to have their digest, and which
//! are damaged.

use super::Index;
use super::slab::Id;
use super::values::{Blob, BlobState, Check, Turn};
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
    /// has in a manifest; or it was found to be damaged, and couldn't be moved to quarantine.
    Damaged,
}

impl Index {
    // --- Files ---------------------------------------------------------------------------------

    /// Changes a blob's state, and with it the sums and the LRU order.
    pub(super) fn set_state(&mut self, id: Id<Blob>, state: BlobState) {
        let blob = self.blobs.get_mut(id);
        let (before, size) = (std::mem::replace(&mut blob.state, state), blob.size);
        if before.has_file() != state.has_file() {
            self.space.count_file(size, state.has_file());
            self.count_file_in_spaces(id, size, state.has_file());
        }
        let evicting = |state| state == BlobState::Evicting;
        if evicting(before) != evicting(state) {
            self.space.count_eviction(size, evicting(state));
        }
        self.rank(id);
    }

    /// The store has the file of a digest, of so many bytes.
    pub(crate) fn file_found(&mut self, digest: &Digest, size: u64) {
        let id = self.intern_blob(digest);
        self.file_present(id, size);
    }

    /// The store has the file of this blob, of so many bytes.
    pub(crate) fn file_present(&mut self, id: Id<Blob>, size: u64) {
        let blob = self.blobs.get_mut(id);
        if blob.state.has_file() && blob.size == size {
            return;
        }
        if blob.check.modified().is_some() && blob.size != size {
            blob.check = Check::WRONG_SIZE;
        }
        self.set_state(id, BlobState::Absent);
        self.blobs.get_mut(id).size = size;
        self.set_state(id, BlobState::Present);
    }

    /// The store no longer has the file.
    pub(super) fn file_removed(&mut self, id: Id<Blob>) {
        let blob = self.blobs.get_mut(id);
        blob.check = Check::UNKNOWN;
        self.hosted.unsynced.remove(&id);
        if self.blobs.get(id).state.has_file() {
            self.set_state(id, BlobState::Absent);
            self.forget_references(id);
        }
    }

    // --- Holds and space -----------------------------------------------------------------------

    /// Keeps links and file of a digest, cached or not. None while it is being deleted.
    pub(crate) fn hold(&mut self, digest: &Digest) -> Option<Id<Blob>> {
        let id = self.intern_blob(digest);
        let blob = self.blobs.get_mut(id);
        if blob.turn.is_deleting() {
            return None;
        }
        blob.holds += 1;
        Some(id)
    }

    pub(crate) fn release(&mut self, id: Id<Blob>) {
        let blob = self.blobs.get_mut(id);
        debug_assert!(blob.holds > 0, "a hold too many is released");
        blob.holds = blob.holds.saturating_sub(1);
        if blob.holds > 0 {
            return;
        }
        self.wake_ups.freed = true;
        if blob.turn == Turn::Held || blob.is_orphan() || blob.state == BlobState::Quarantined {
            self.enqueue(id);
        } else {
            self.forget_unneeded(id);
        }
    }

    /// Reserved bytes, of which some are on disk, are given back.
    pub(crate) fn give_back(&mut self, bytes: u64, filled: u64) {
        self.space.give_back(bytes, filled);
        self.wake_ups.freed = true;
    }

    pub(crate) fn measure(&mut self, free: Option<u64>, min_free: u64) {
        self.space.measure(free, min_free);
        self.wake_ups.freed = true;
    }

    // --- Integrity -----------------------------------------------------------------------------

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

    /// The size of the file, if there is one as far as is known.
    pub(crate) fn file_size(&self, id: Id<Blob>) -> Option<u64> {
        self.blobs.get(id).file_size()
    }

    /// The file of a blob that the caller holds is being moved to quarantine. Its links are
    /// removed when nothing holds it, unless a new file has been committed by then.
    pub(crate) fn quarantine(&mut self, id: Id<Blob>) {
        self.file_removed(id);
        self.set_state(id, BlobState::Quarantined);
        self.note_loss(id);
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
