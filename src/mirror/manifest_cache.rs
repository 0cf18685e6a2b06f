//! Manifests in memory: those that were asked for last, verified and taken apart.
//!
//! A digest fixes the content, so there is one of each, whichever repository it came through. Being
//! here is no proof that a repository has it: whoever takes one out has the retention's word for
//! that first. So nothing here has to be taken back when a link or a file goes, either.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::HeaderMap;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};

use super::tags::ManifestMeta;
use crate::oci::Digest;

/// Bytes of all ordinary manifests in memory.
const MAX_BYTES: u64 = 16 * 1024 * 1024;
/// Parts with a lock each.
const SHARDS: usize = 16;
/// Bytes of all large manifests in memory: four of the largest that there are, less what they cost
/// beside their content.
const MAX_LARGE_BYTES: u64 = 16 * 1024 * 1024;
/// Content of more bytes than this makes a manifest large: a part holds many of the others.
const LARGE: usize = 128 * 1024;
/// Bytes of most ordinary manifests and indexes, for the size of tables.
const USUAL: usize = 4 * 1024;
/// Bytes that a manifest costs beside its content, about: its head, and the tables.
const OVERHEAD: u64 = 1024;

/// A manifest whose content has its digest. All who are given it share it.
#[derive(Debug)]
pub struct CachedManifest {
    pub known: ManifestMeta,
    pub content: Bytes,
    /// The head of the answer to most requests for it, made once by whoever answers.
    pub head: OnceLock<HeaderMap>,
}

impl CachedManifest {
    pub(super) fn new(known: ManifestMeta, content: Bytes) -> Arc<Self> {
        let head = OnceLock::new();
        Arc::new(Self {
            known,
            content,
            head,
        })
    }
}

#[derive(Debug, Clone)]
struct Weight;

impl Weighter<Digest, Arc<CachedManifest>> for Weight {
    fn weight(&self, _digest: &Digest, manifest: &Arc<CachedManifest>) -> u64 {
        manifest.content.len() as u64 + OVERHEAD
    }
}

type Manifests = Cache<Digest, Arc<CachedManifest>, Weight>;

/// The manifests that were asked for last. One part's share of the bytes is the largest manifest that
/// a cache keeps, so large ones have a cache of one part, where they don't displace ordinary ones.
#[derive(Debug)]
pub(super) struct ManifestCache {
    ordinary: Manifests,
    large: Manifests,
}

impl ManifestCache {
    pub(super) fn new() -> Self {
        Self {
            ordinary: cache(SHARDS, MAX_BYTES, USUAL),
            large: cache(1, MAX_LARGE_BYTES, LARGE),
        }
    }

    pub(super) fn get(&self, digest: &Digest) -> Option<Arc<CachedManifest>> {
        self.ordinary.get(digest).or_else(|| self.large.get(digest))
    }

    /// Its content must have been found to have its digest.
    pub(super) fn insert(&self, manifest: &Arc<CachedManifest>) {
        let cache = if manifest.content.len() > LARGE {
            &self.large
        } else {
            &self.ordinary
        };
        cache.insert(manifest.known.digest, Arc::clone(manifest));
    }
}

fn cache(shards: usize, bytes: u64, usual: usize) -> Manifests {
    let items = usize::try_from(bytes).unwrap_or(usize::MAX) / usual;
    let (hash, lifecycle) = (DefaultHashBuilder::default(), DefaultLifecycle::default());
    let options = OptionsBuilder::new()
        .shards(shards)
        .estimated_items_capacity(items)
        .weight_capacity(bytes)
        .build();
    match options {
        Ok(options) => Cache::with_options(options, Weight, hash, lifecycle),
        // Only a missing option is an error, and none is missing.
        Err(_incomplete) => Cache::with_weighter(items, bytes, Weight),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::manifest::MAX_MANIFEST;
    use crate::oci::{Algorithm, ManifestType};

    fn manifest(content: Vec<u8>) -> Arc<CachedManifest> {
        let known = ManifestMeta {
            digest: Digest::of(Algorithm::Sha256, &content),
            media_type: ManifestType::OciManifest,
            size: content.len() as u64,
        };
        CachedManifest::new(known, content.into())
    }

    #[test]
    fn the_bytes_are_bounded_and_what_is_used_stays() {
        let cached_manifests = ManifestCache::new();
        let used = manifest(vec![0; 100]);
        cached_manifests.insert(&used);
        for seed in 0..1000_u32 {
            let mut content = vec![1; 100_000];
            content.extend(seed.to_be_bytes());
            cached_manifests.insert(&manifest(content));
            assert!(
                cached_manifests.get(&used.known.digest).is_some(),
                "after {seed}"
            );
            assert!(cached_manifests.ordinary.weight() <= MAX_BYTES);
        }
        for seed in 0..10 {
            let large = manifest(vec![seed; usize::try_from(MAX_MANIFEST).unwrap()]);
            cached_manifests.insert(&large);
            assert!(
                cached_manifests.get(&large.known.digest).is_some(),
                "the largest, {seed}"
            );
            assert!(cached_manifests.large.weight() <= MAX_LARGE_BYTES);
        }
        assert!(cached_manifests.get(&used.known.digest).is_some());
    }
}
