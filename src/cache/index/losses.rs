//! Content of hosted repositories that isn't durable yet, is lost, or can't be read.

use super::Index;
use super::slab::Id;
use super::values::{Blob, Entry};
use crate::oci::Digest;
use crate::storage::LinkKind;

impl Index {
    /// The file of a blob was committed, durable or not.
    pub(crate) fn set_synced_by_commit(&mut self, id: Id<Blob>, synced: bool) {
        if synced {
            self.hosted.unsynced.remove(&id);
        } else {
            self.hosted.unsynced.insert(id);
        }
    }

    /// Those of some blobs whose file isn't durable.
    pub(crate) fn unsynced(&self, digests: &[Digest]) -> Vec<Digest> {
        let is_unsynced = |digest: &&Digest| {
            let id = self.find_blob(digest);
            id.is_some_and(|id| self.hosted.unsynced.contains(&id))
        };
        digests.iter().filter(is_unsynced).copied().collect()
    }

    /// The files of blobs are durable: what is known of them may be saved.
    pub(crate) fn set_synced(&mut self, digests: &[Digest]) {
        for digest in digests {
            if let Some(id) = self.find_blob(digest)
                && self.hosted.unsynced.remove(&id)
            {
                let entries: Vec<_> = self.entries_of(id).map(|(id, _)| id).collect();
                for entry in entries {
                    self.mark_dirty(entry);
                }
            }
        }
    }

    /// A blob's file is missing or damaged: a hosted repository that links it has lost it.
    pub(super) fn note_loss(&mut self, id: Id<Blob>) {
        if self.is_lost(id) {
            self.hosted.lost.insert(id);
        }
    }

    fn is_lost(&self, id: Id<Blob>) -> bool {
        let gone = self
            .blobs
            .find(id)
            .is_some_and(|blob| !blob.state.has_file());
        let mut entries = self.entries_of(id);
        gone && entries.any(|(_, entry)| !entry.state.is_marked() && self.is_hosted(entry))
    }

    /// A page of manifests after everything was read: notes those of hosted repositories that couldn't be.
    pub(super) fn note_opaque(&mut self, id: Id<Entry>) {
        let entry = self.entries.get(id);
        if entry.kind == LinkKind::Revision
            && self.is_hosted(entry)
            && self.blobs.get(entry.blob).manifest.is_none()
        {
            let blob = entry.blob;
            self.hosted.opaque.insert(blob);
        }
    }

    /// The blobs that hosted repositories have lost, at most `max`, and how many there are.
    pub(crate) fn lost(&self, max: usize) -> (Vec<Digest>, usize) {
        let lost = self.hosted.lost.iter().filter(|id| self.is_lost(**id));
        let lost: Vec<_> = lost.map(|id| self.blobs.get(*id).digest()).collect();
        let count = lost.len();
        (lost.into_iter().take(max).collect(), count)
    }
}
