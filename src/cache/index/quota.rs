//! Bytes of hosted repositories that count towards quotas.

use super::Index;
use super::slab::Id;
use super::values::{Blob, Repo};
use crate::cache::policy::OverQuota;
use crate::oci::Digest;

/// Bytes that count towards a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct SpaceBytes {
    /// Of distinct blobs.
    pub(crate) stored: u64,
    /// Of open uploads.
    pub(crate) uploading: u64,
}

impl Index {
    pub(super) fn is_in_space(&self, id: Id<Blob>, space: usize) -> bool {
        let mut entries = self.entries_of(id);
        entries.any(|(_, entry)| self.space(entry.repo) == Some(space))
    }

    /// A repository is about to get the first link of a blob, or has lost its last one.
    pub(super) fn count_in_space(&mut self, repo: Id<Repo>, id: Id<Blob>, more: bool) {
        let Some(space) = self
            .space(repo)
            .filter(|space| !self.is_in_space(id, *space))
        else {
            return;
        };
        let size = self.blobs.get(id).file_size().unwrap_or(0);
        self.change_stored(space, size, more);
    }

    /// The file of a blob has come or gone.
    pub(super) fn count_file_in_spaces(&mut self, id: Id<Blob>, size: u64, came: bool) {
        for space in 0..self.hosted.bytes.len() {
            if self.is_in_space(id, space) {
                self.change_stored(space, size, came);
            }
        }
    }

    fn change_stored(&mut self, space: usize, size: u64, more: bool) {
        if let Some(bytes) = self.hosted.bytes.get_mut(space) {
            debug_assert!(
                more || bytes.stored >= size,
                "too many bytes are taken away"
            );
            bytes.stored = if more {
                bytes.stored.saturating_add(size)
            } else {
                bytes.stored.saturating_sub(size)
            };
        }
    }

    /// Counts bytes of an upload towards the quota of a space, or refuses them.
    pub(crate) fn charge(&mut self, space: usize, bytes: u64) -> Result<(), OverQuota> {
        let quota = self.settings.hosted.get(space).and_then(|one| one.quota);
        let Some(counted) = self.hosted.bytes.get_mut(space) else {
            return Ok(());
        };
        let used = counted.stored.saturating_add(counted.uploading);
        if let Some(quota) = quota
            && used.saturating_add(bytes) > quota
        {
            return Err(OverQuota {
                needed: bytes,
                used,
                quota,
            });
        }
        counted.uploading = counted.uploading.saturating_add(bytes);
        Ok(())
    }

    /// Counts bytes of an upload that is there already, whatever the quota is.
    pub(crate) fn charge_anyway(&mut self, space: usize, bytes: u64) {
        if let Some(counted) = self.hosted.bytes.get_mut(space) {
            counted.uploading = counted.uploading.saturating_add(bytes);
        }
    }

    /// Takes bytes of an upload back: it has ended, or its blob counts now.
    pub(crate) fn discharge(&mut self, space: usize, bytes: u64) {
        if let Some(counted) = self.hosted.bytes.get_mut(space) {
            counted.uploading = counted.uploading.saturating_sub(bytes);
        }
    }

    /// How many more bytes a space has with a blob of this size.
    pub(crate) fn needed(&self, space: usize, digest: &Digest, size: u64) -> u64 {
        let known = self.find_blob(digest);
        let counts = known
            .is_some_and(|id| self.blobs.get(id).state.has_file() && self.is_in_space(id, space));
        if counts { 0 } else { size }
    }

    #[cfg(test)]
    pub(crate) fn space_bytes(&self) -> Vec<SpaceBytes> {
        self.hosted.bytes.clone()
    }
}
