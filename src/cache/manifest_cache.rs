//! The most recently used manifests in memory: verified and parsed.
//!
//! A digest fixes the content, so there is one copy, whichever repository it came through. It proves
//! nothing about a repository: callers check the index before they serve one. So nothing is removed
//! here when a link or a file is removed.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::HeaderMap;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};

use crate::oci::{Digest, Manifest, ManifestType};

/// Bytes of all ordinary manifests in memory.
const MAX_BYTES: u64 = 16 * 1024 * 1024;
/// Parts with a lock each.
const SHARDS: usize = 16;
/// Bytes of all large manifests in memory: one or two of the largest that are accepted.
const MAX_LARGE_BYTES: u64 = 16 * 1024 * 1024;
/// Content of more bytes than this makes a manifest large: a part holds many of the others.
const LARGE: usize = 128 * 1024;
/// Bytes of most ordinary manifests and indexes, for the size of tables.
const USUAL: usize = 4 * 1024;
/// Bytes of a manifest's headers and of its place in the tables, about.
const OVERHEAD: u64 = 1024;

/// What the headers of a response say of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestMeta {
    pub digest: Digest,
    pub media_type: ManifestType,
    /// Bytes.
    pub size: u64,
}

/// A manifest whose content has its digest, with what was parsed of it. Everybody shares it.
#[derive(Debug)]
pub struct CachedManifest {
    pub meta: ManifestMeta,
    pub content: Bytes,
    pub parsed: Manifest,
    headers: OnceLock<HeaderMap>,
}

impl CachedManifest {
    /// `content` has this digest, and `parsed` is what it says.
    pub(super) fn new(digest: Digest, content: Bytes, parsed: Manifest) -> Arc<Self> {
        let meta = ManifestMeta {
            digest,
            media_type: parsed.media_type,
            size: content.len() as u64,
        };
        Arc::new(Self {
            meta,
            content,
            parsed,
            headers: OnceLock::new(),
        })
    }

    /// The headers of most responses with this manifest, made once by `make`.
    pub fn headers(&self, make: impl FnOnce(&ManifestMeta) -> HeaderMap) -> &HeaderMap {
        self.headers.get_or_init(|| make(&self.meta))
    }
}

#[derive(Debug, Clone)]
struct Weight;

impl Weighter<Digest, Arc<CachedManifest>> for Weight {
    fn weight(&self, _digest: &Digest, manifest: &Arc<CachedManifest>) -> u64 {
        manifest.meta.size + manifest.parsed.memory() + OVERHEAD
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
        cache.insert(manifest.meta.digest, Arc::clone(manifest));
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
    use crate::oci::Algorithm;
    use crate::oci::manifest::MAX_MANIFEST;

    /// An image manifest of about `bytes` bytes.
    fn manifest(seed: u32, bytes: usize) -> Arc<CachedManifest> {
        let blob = serde_json::json!({
            "mediaType": "x/y", "digest": Digest::of(Algorithm::Sha256, &seed.to_be_bytes()), "size": 1,
        });
        let blobs = vec![&blob; bytes / (blob.to_string().len() + 1)];
        let content = serde_json::json!({"schemaVersion": 2, "config": blob, "layers": blobs});
        let content = content.to_string();
        let parsed = Manifest::parse(content.as_bytes()).unwrap();
        let digest = Digest::of(Algorithm::Sha256, content.as_bytes());
        CachedManifest::new(digest, content.into(), parsed)
    }

    #[test]
    fn the_bytes_are_bounded_and_what_is_used_stays() {
        let cached = ManifestCache::new();
        let has = |one: &CachedManifest| cached.get(&one.meta.digest).is_some();
        let used = manifest(u32::MAX, 100);
        cached.insert(&used);
        for seed in 0..200 {
            cached.insert(&manifest(seed, LARGE - 1000));
            assert!(has(&used), "after {seed}");
            assert!(cached.ordinary.weight() <= MAX_BYTES);
        }
        for seed in 0..4 {
            let large = manifest(seed, usize::try_from(MAX_MANIFEST).unwrap());
            cached.insert(&large);
            assert!(has(&large), "the largest, {seed}");
            assert!(cached.large.weight() <= MAX_LARGE_BYTES);
        }
        assert!(has(&used));
    }
}
