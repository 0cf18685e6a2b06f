//! What manifests refer to.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;

use super::blob::Blob;
use super::slab::{Id, Slab};
use crate::oci::{Digest, ManifestType};

/// Parts of the table of unknown digests, so that none of them grows in a large step.
const SHARDS: usize = 64;

/// What a manifest names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct References {
    /// What it needs: config, layers or blobs, and children.
    pub parts: Vec<Digest>,
    /// What it is about.
    pub subject: Option<Digest>,
}

/// What a manifest is, and what it refers to, as sorted hashes of digests: most platforms of an index
/// are never cached.
#[derive(Debug)]
pub(super) struct Manifest {
    pub(super) media_type: ManifestType,
    pub(super) references: Box<[u64]>,
}

/// The known manifests. Digests are 64-bit hashes here; how many manifests refer to a digest is in
/// its [`Blob`] where there is one, else here.
#[derive(Debug)]
pub(super) struct Graph {
    manifests: Slab<Manifest>,
    /// How many manifests refer to a digest without a blob.
    unknown: Vec<HashMap<u64, u32>>,
    /// Manifests that have a subject, by the subject: few manifests have one.
    referrers: HashMap<u64, Vec<Id<Blob>>>,
    /// The same the other way round.
    subjects: HashMap<Id<Blob>, u64>,
}

impl Graph {
    pub(super) fn new() -> Self {
        Self {
            manifests: Slab::new(Manifest {
                media_type: ManifestType::OciManifest,
                references: Box::default(),
            }),
            unknown: (0..SHARDS).map(|_| HashMap::new()).collect(),
            referrers: HashMap::new(),
            subjects: HashMap::new(),
        }
    }

    pub(super) fn insert(&mut self, manifest: Manifest) -> Id<Manifest> {
        self.manifests.insert(manifest)
    }

    pub(super) fn get(&self, id: Id<Manifest>) -> &Manifest {
        self.manifests.get(id)
    }

    pub(super) fn remove(&mut self, id: Id<Manifest>) -> Option<Manifest> {
        self.manifests.remove(id)
    }

    fn shard(&mut self, hash: u64) -> Option<&mut HashMap<u64, u32>> {
        self.unknown.get_mut((hash >> 40) as usize % SHARDS)
    }

    /// How many manifests refer to a digest that gets a blob, which has the number from now on.
    pub(super) fn take_count(&mut self, hash: u64) -> u32 {
        let shard = self.shard(hash);
        shard.and_then(|shard| shard.remove(&hash)).unwrap_or(0)
    }

    /// The blob that had this number is forgotten.
    pub(super) fn put_count(&mut self, hash: u64, count: u32) {
        if count > 0
            && let Some(shard) = self.shard(hash)
        {
            shard.insert(hash, count);
        }
    }

    /// One manifest more or less refers to a digest without a blob.
    pub(super) fn count(&mut self, hash: u64, more: bool) {
        let before = self.take_count(hash);
        self.put_count(hash, counted(before, more));
    }

    pub(super) fn set_subject(&mut self, manifest: Id<Blob>, subject: u64) {
        self.referrers.entry(subject).or_default().push(manifest);
        self.subjects.insert(manifest, subject);
    }

    pub(super) fn remove_subject(&mut self, manifest: Id<Blob>) {
        if let Some(subject) = self.subjects.remove(&manifest)
            && let Slot::Occupied(mut referrers) = self.referrers.entry(subject)
        {
            referrers.get_mut().retain(|other| *other != manifest);
            if referrers.get().is_empty() {
                referrers.remove();
            }
        }
    }

    /// The manifests with this subject.
    pub(super) fn referrers(&self, subject: u64) -> &[Id<Blob>] {
        self.referrers.get(&subject).map_or(&[], Vec::as_slice)
    }

    #[cfg(test)]
    pub(super) fn unknown(&self) -> HashMap<u64, u32> {
        let all = self.unknown.iter().flatten();
        all.map(|(hash, count)| (*hash, *count)).collect()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.manifests.len()
    }
}

pub(super) fn counted(count: u32, more: bool) -> u32 {
    debug_assert!(more || count > 0, "one reference too many is removed");
    if more {
        count.saturating_add(1)
    } else {
        count.saturating_sub(1)
    }
}
