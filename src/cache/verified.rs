//! Which files are known to have their digest: those that this mirror has written or verified, as
//! long as their size and modification time stay the same. The index has that in memory, and the
//! state files keep it across restarts.

use super::index::Index;
use super::index::entry::{Content, Stamp, content_flag};
use super::index::slab::Id;
use super::work::reconcile::sizes;
use super::{Cache, Hold};
use crate::oci::{Digest, Manifest};
use crate::storage::{self, Modified};

/// What the index knows of a file that was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// It has its digest.
    Verified,
    /// Nothing: it is to be verified.
    Unknown,
    /// It can't have its digest: it has another size than it was verified with, was listed with, or
    /// has in a manifest; or it was found to be damaged, and couldn't be set aside.
    Damaged,
}

impl Index {
    pub(super) fn trust(&self, digest: &Digest, size: u64, modified: Modified) -> Trust {
        let known = self
            .find_content(digest)
            .and_then(|id| self.contents.get(id));
        let Some(content) = known else {
            return Trust::Unknown;
        };
        let wrong = content_flag::LOST | content_flag::WRONG_SIZE;
        let has_size = content.flags.has(content_flag::FILE) || content.verified != Stamp::NONE;
        if content.flags.has(wrong) || (has_size && content.size != size) {
            Trust::Damaged
        } else if content.verified == Stamp::from(modified) {
            Trust::Verified
        } else {
            Trust::Unknown
        }
    }

    /// A file of this size and modification time was found to have the digest.
    pub(super) fn set_verified(&mut self, id: Id<Content>, size: u64, modified: Modified) {
        let stamp = Stamp::from(modified);
        let Some(content) = self.contents.get_mut(id) else {
            return;
        };
        content.flags.clear(content_flag::WRONG_SIZE);
        if content.verified == stamp && content.size == size {
            return;
        }
        // Without this `file_present` would take the new size for a wrong one.
        content.verified = Stamp::NONE;
        if content.flags.has(content_flag::FILE) {
            self.file_present(id, size);
        }
        if let Some(content) = self.contents.get_mut(id) {
            content.size = size;
            content.verified = stamp;
        }
        let entries: Vec<_> = self.entries_of(id).map(|(id, _)| id).collect();
        for entry in entries {
            self.mark_dirty(entry);
        }
    }

    /// What the state file says of a file, before the store has been listed.
    pub(super) fn restore_verified(&mut self, id: Id<Content>, (size, modified): (u64, Modified)) {
        if let Some(content) = self.contents.get_mut(id)
            && (!content.flags.has(content_flag::FILE) || content.size == size)
        {
            content.size = size;
            content.verified = modified.into();
        }
    }

    /// The size and the modification time with which the content of an entry was verified.
    pub(super) fn verified_as(&self, id: Id<Content>) -> Option<(u64, Modified)> {
        let content = self.contents.get(id)?;
        Some((content.size, content.verified.get()?))
    }

    /// A manifest gives the sizes of what it refers to: files of other sizes are damaged, unless they
    /// have been verified; then it is the manifest that is wrong.
    pub(super) fn expect_sizes(&mut self, sizes: &[(Digest, u64)]) {
        for (digest, size) in sizes {
            if let Some(id) = self.find_content(digest)
                && let Some(content) = self.contents.get_mut(id)
                && content.flags.has(content_flag::FILE)
                && content.verified == Stamp::NONE
                && content.size != *size
            {
                content.flags.set(content_flag::WRONG_SIZE);
            }
        }
    }
}

impl Hold {
    /// The file in the store has the digest, because its writer has hashed it, or somebody since.
    pub fn verified(&self, size: u64, modified: Modified) {
        self.shared
            .with(|index| index.set_verified(self.content, size, modified));
    }
}

impl Cache {
    /// What is known of a blob that was opened.
    pub fn trust(&self, digest: &Digest, content: &storage::Content) -> Trust {
        let storage::Content { size, modified, .. } = *content;
        let known = self.0.with(|index| index.trust(digest, size, modified));
        match known {
            // What failed since has to be verified again.
            Trust::Verified if content.reader.is_suspect() => Trust::Unknown,
            known => known,
        }
    }

    /// The sizes that a manifest gives for what it refers to.
    pub(super) fn expect_sizes(&self, manifest: &Manifest) {
        let sizes = sizes(manifest);
        self.0.with(|index| index.expect_sizes(&sizes));
    }
}
