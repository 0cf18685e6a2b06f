//! What manifests say of the sizes of blobs.

use quick_cache::sync::Cache;

use crate::oci::{Digest, Manifest};

/// Blobs whose size is remembered; the least used go first.
const MAX_BLOBS: usize = 32_768;

/// Sizes of blobs by the descriptors of verified manifests.
#[derive(Debug)]
pub(super) struct BlobSizes(Cache<Digest, Described>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Described {
    Size(u64),
    /// Manifests contradict each other: anybody can publish a manifest with a wrong size for
    /// another publisher's blob.
    Disputed,
}

impl BlobSizes {
    pub(super) fn new() -> Self {
        Self(Cache::new(MAX_BLOBS))
    }

    /// Remembers the descriptors of a verified manifest.
    pub(super) fn note(&self, manifest: &Manifest) {
        for descriptor in manifest.config.iter().chain(&manifest.blobs) {
            let described = Described::Size(descriptor.size);
            match self.0.get(&descriptor.digest) {
                None => self.0.insert(descriptor.digest, described),
                Some(known) if known == described => {}
                Some(_) => self.0.insert(descriptor.digest, Described::Disputed),
            }
        }
    }

    /// Bytes of a blob; none where no manifest was seen, or several disagree.
    pub(super) fn get(&self, digest: &Digest) -> Option<u64> {
        match self.0.get(digest)? {
            Described::Size(size) => Some(size),
            Described::Disputed => None,
        }
    }
}
