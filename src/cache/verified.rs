//! Which files are known to have their digest: those that this mirror has written or verified, as
//! long as their size and modification time stay the same. The index has that in memory, and the
//! state files keep it across restarts.

use super::work::reconcile::sizes;
use super::{Cache, Hold, Trust};
use crate::oci::{Digest, Manifest};
use crate::storage::{self, Modified};

impl Hold {
    /// The file in the store has the digest, because its writer has hashed it, or a later reader.
    pub fn verified(&self, size: u64, modified: Modified) {
        self.shared
            .with(|index| index.set_verified(self.content, size, modified));
    }
}

impl Cache {
    /// What is known of a blob that was opened.
    pub(super) fn trust(&self, digest: &Digest, content: &storage::Content) -> Trust {
        let storage::Content { size, modified, .. } = *content;
        let known = self.inner.with(|index| index.trust(digest, size, modified));
        match known {
            // What failed since has to be verified again.
            Trust::Verified if content.reader.is_suspect() => Trust::Unknown,
            known => known,
        }
    }

    /// The sizes that a manifest gives for what it refers to.
    pub(super) fn expect_sizes(&self, manifest: &Manifest) {
        let sizes = sizes(manifest);
        self.inner.with(|index| index.expect_sizes(&sizes));
    }
}
