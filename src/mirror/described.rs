//! What manifests say of blobs.

use quick_cache::sync::Cache;

use crate::oci::Digest;

/// Blobs that are remembered; the least used go first.
const MAX_BLOBS: usize = 32_768;

/// What verified manifests say of blobs, as far as they agree: none where they contradict each other.
/// Anybody can publish a manifest that names another publisher's blob.
#[derive(Debug)]
pub(super) struct Described<V>(Cache<Digest, Option<V>>);

impl<V: Copy + Eq> Described<V> {
    pub(super) fn new() -> Self {
        Self(Cache::new(MAX_BLOBS))
    }

    pub(super) fn note(&self, blob: Digest, value: V) {
        match self.0.get(&blob) {
            None => self.0.insert(blob, Some(value)),
            Some(Some(known)) if known != value => self.0.insert(blob, None),
            Some(_) => {}
        }
    }

    /// None where no manifest was seen, or several disagree.
    pub(super) fn get(&self, blob: &Digest) -> Option<V> {
        self.0.get(blob)?
    }
}
