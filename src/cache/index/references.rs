//! What belongs together: which manifest refers to which blobs.
//!
//! An image is a manifest or index that nothing refers to, with what only it refers to; a blob that
//! no manifest refers to is an image of its own. So eviction frees whole images, and leaves what
//! another image shares.

use std::collections::hash_map::Entry as Slot;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::Index;
use super::slab::{Id, Slab};
use super::values::{Blob, Check, Entry, LinkState, ManifestRecord, Repo};
use crate::cache::state::timestamp::Timestamp;
use crate::oci::{Descriptor, Digest, Manifest, ManifestType, RepoName};
use crate::storage::LinkKind;

/// Entries that are looked through under one lock: some ten microseconds.
const PAGE: usize = 4096;
/// The most bytes that the list entry of a manifest takes in memory; a longer one is read again.
const MAX_LISTED: u64 = 4096;
/// Parts of the table of unknown digests, so that none of them grows in a large step.
const SHARDS: usize = 64;

/// The known manifests. Digests are 64-bit hashes here; how many manifests refer to a digest is in
/// its [`Blob`] where there is one, else here.
#[derive(Debug)]
pub(super) struct Graph {
    pub(super) manifests: Slab<ManifestRecord>,
    /// How many manifests refer to a digest without a blob.
    unknown: Vec<HashMap<u64, u32>>,
    /// Manifests that have a subject, by the subject: few manifests have one.
    referrers: HashMap<u64, Vec<Id<Blob>>>,
    /// The same the other way round.
    subjects: HashMap<Id<Blob>, u64>,
    /// Parts that a manifest's registry perhaps lacks; few manifests have some.
    foreign: HashMap<Id<ManifestRecord>, Box<[u64]>>,
    /// What is listed of manifests that have a subject, where hosted repositories may list them.
    listed: HashMap<Id<Blob>, Arc<Descriptor>>,
}

impl Graph {
    pub(super) fn new() -> Self {
        Self {
            manifests: Slab::new(ManifestRecord {
                media_type: ManifestType::OciManifest,
                references: Box::default(),
            }),
            unknown: (0..SHARDS).map(|_| HashMap::new()).collect(),
            referrers: HashMap::new(),
            subjects: HashMap::new(),
            foreign: HashMap::new(),
            listed: HashMap::new(),
        }
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
    fn count(&mut self, hash: u64, more: bool) {
        let before = self.take_count(hash);
        self.put_count(hash, counted(before, more));
    }

    fn set_subject(&mut self, manifest: Id<Blob>, subject: u64) {
        self.referrers.entry(subject).or_default().push(manifest);
        self.subjects.insert(manifest, subject);
    }

    /// The manifests whose subject has this hash.
    pub(super) fn referrers_of(&self, subject: u64) -> Vec<Id<Blob>> {
        self.referrers.get(&subject).cloned().unwrap_or_default()
    }

    pub(super) fn subject_of(&self, manifest: Id<Blob>) -> Option<u64> {
        self.subjects.get(&manifest).copied()
    }

    /// All that a manifest refers to, by the hashes of digests.
    pub(super) fn all_references(&self, manifest: Option<Id<ManifestRecord>>) -> Vec<u64> {
        let Some(id) = manifest else {
            return Vec::new();
        };
        let own = &self.manifests.get(id).references;
        let foreign = self.foreign.get(&id).into_iter().flatten();
        own.iter().chain(foreign).copied().collect()
    }

    fn remove_subject(&mut self, manifest: Id<Blob>) {
        self.listed.remove(&manifest);
        if let Some(subject) = self.subjects.remove(&manifest)
            && let Slot::Occupied(mut referrers) = self.referrers.entry(subject)
        {
            referrers.get_mut().retain(|other| *other != manifest);
            if referrers.get().is_empty() {
                referrers.remove();
            }
        }
    }

    #[cfg(test)]
    pub(super) fn unknown(&self) -> HashMap<u64, u32> {
        let all = self.unknown.iter().flatten();
        all.map(|(hash, count)| (*hash, *count)).collect()
    }
}

fn counted(count: u32, more: bool) -> u32 {
    debug_assert!(more || count > 0, "one reference too many is removed");
    if more {
        count.saturating_add(1)
    } else {
        count.saturating_sub(1)
    }
}

impl Index {
    /// Notes what a manifest is and refers to, if its file is there. It is remembered as long as the
    /// file is, and can't change, because the digest is the content's. Files of other sizes than the
    /// manifest gives are damaged, unless they have been verified; then the manifest is wrong.
    pub(crate) fn describe(&mut self, digest: &Digest, manifest: &Manifest) {
        let parts = manifest.config.iter().chain(&manifest.blobs);
        let parts = parts.chain(&manifest.manifests);
        if let Some(id) = self.find_blob(digest)
            && let blob = self.blobs.get(id)
            && blob.manifest.is_none()
            && blob.state.has_file()
        {
            let own = self.hash_digest(digest);
            // A registry may lack a foreign layer: that a manifest lists one proves nothing.
            let hashes_of = |foreign: bool| {
                let parts = parts.clone().filter(|part| part.is_foreign() == foreign);
                let hashes = parts.map(|part| self.hash_digest(&part.digest));
                let mut hashes: Vec<_> = hashes.filter(|hash| *hash != own).collect();
                hashes.sort_unstable();
                hashes.dedup();
                hashes
            };
            let (hashes, mut foreign) = (hashes_of(false), hashes_of(true));
            foreign.retain(|hash| hashes.binary_search(hash).is_err());
            for hash in &hashes {
                self.count_reference(*hash, true);
            }
            let record = self.graph.manifests.insert(ManifestRecord {
                media_type: manifest.media_type,
                references: hashes.into_boxed_slice(),
            });
            if self.has_hosted() && !foreign.is_empty() {
                self.graph
                    .foreign
                    .insert(record, foreign.into_boxed_slice());
            }
            self.blobs.get_mut(id).manifest = Some(record);
            if let Some(subject) = &manifest.subject {
                let subject = self.hash_digest(&subject.digest);
                self.graph.set_subject(id, subject);
                self.list(id, manifest);
            }
            self.count_manifest(id, true);
        }
        // Nobody vouches for what a client has pushed.
        if self.find_blob(digest).is_some_and(|id| self.is_pushed(id)) {
            return;
        }
        for part in parts {
            if let Some(id) = self.find_blob(&part.digest) {
                let blob = self.blobs.get_mut(id);
                let wrong = blob.file_size().is_some_and(|known| known != part.size);
                if wrong && blob.check == Check::UNKNOWN {
                    blob.check = Check::WRONG_SIZE;
                }
            }
        }
    }

    /// Keeps in memory what lists of referrers have of a manifest, unless that is large.
    fn list(&mut self, id: Id<Blob>, manifest: &Manifest) {
        let blob = self.blobs.get(id);
        let descriptor = manifest.descriptor(blob.digest(), blob.size);
        if self.has_hosted() && descriptor.memory() <= MAX_LISTED {
            self.graph.listed.insert(id, Arc::new(descriptor));
        }
    }

    pub(super) fn forget_references(&mut self, id: Id<Blob>) {
        if self.blobs.get(id).manifest.is_some() {
            self.count_manifest(id, false);
        }
        self.graph.remove_subject(id);
        let manifest = self.blobs.get_mut(id).manifest.take();
        if let Some(manifest) = manifest {
            self.graph.foreign.remove(&manifest);
        }
        if let Some(manifest) = manifest.and_then(|manifest| self.graph.manifests.remove(manifest))
        {
            for hash in &manifest.references {
                self.count_reference(*hash, false);
            }
        }
    }

    fn count_reference(&mut self, hash: u64, more: bool) {
        if let Some(id) = self.find_hashed(hash) {
            let blob = self.blobs.get_mut(id);
            blob.parents = counted(blob.parents, more);
            self.rank(id);
        } else {
            self.graph.count(hash, more);
        }
    }

    /// Whether a manifest on one page of all entries is linked by the repository and refers to the
    /// digest with this hash; and where the next page begins, if there is one to look at.
    pub(crate) fn find_reference(
        &self,
        repo: &RepoName,
        hash: u64,
        from: usize,
    ) -> (bool, Option<usize>) {
        let Some(repo) = self.find_repo(repo.as_str()) else {
            return (false, None);
        };
        let known = self.find_hashed(hash).map(|id| self.blobs.get(id));
        if known.is_some_and(|blob| blob.parents == 0) {
            return (false, None);
        }
        let (page, next) = self.entries.page(from, PAGE);
        let found = page.into_iter().any(|id| {
            let blob = self.live_revision(self.entries.get(id), repo);
            let manifest = blob.and_then(|blob| blob.manifest);
            let references = manifest.map(|id| &self.graph.manifests.get(id).references);
            references.is_some_and(|references| references.binary_search(&hash).is_ok())
        });
        (found, next.filter(|_| !found))
    }

    /// The manifests that the repository links and whose subject this is.
    pub(crate) fn referrers(&self, repo: &RepoName, subject: &Digest) -> Vec<Digest> {
        let Some(repo) = self.find_repo(repo.as_str()) else {
            return Vec::new();
        };
        let all = self.graph.referrers.get(&self.hash_digest(subject));
        let linked = all.into_iter().flatten().filter_map(|id| {
            let entry = self.find_entry(repo, LinkKind::Revision, *id)?;
            let blob = self.live_revision(self.entries.get(entry), repo)?;
            Some(blob.digest())
        });
        linked.collect()
    }

    /// The same with what lists have of each, where that is in memory.
    pub(crate) fn listed_referrers(
        &self,
        repo: &RepoName,
        subject: &Digest,
    ) -> Vec<(Digest, Option<Arc<Descriptor>>)> {
        let listed = |digest: Digest| {
            let id = self.find_blob(&digest);
            (
                digest,
                id.and_then(|id| self.graph.listed.get(&id).cloned()),
            )
        };
        self.referrers(repo, subject)
            .into_iter()
            .map(listed)
            .collect()
    }

    /// The manifest behind a link of this repository, where the link is kept and the file is there.
    fn live_revision(&self, entry: &Entry, repo: Id<Repo>) -> Option<&Blob> {
        let live = entry.kind == LinkKind::Revision
            && entry.repo == repo
            && entry.state == LinkState::Kept;
        let blob = live.then(|| self.blobs.get(entry.blob))?;
        blob.state.has_file().then_some(blob)
    }

    /// The blobs that a manifest refers to, where they are known.
    pub(super) fn references(&self, id: Id<Blob>) -> impl Iterator<Item = (Id<Blob>, &Blob)> {
        let manifest = self.blobs.get(id).manifest;
        let references = manifest.map_or(&[][..], |id| &self.graph.manifests.get(id).references);
        references.iter().filter_map(|hash| {
            let id = self.find_hashed(*hash)?;
            Some((id, self.blobs.get(id)))
        })
    }

    /// When an image was last used: its head, or a manifest that only the head refers to. Blobs
    /// don't count, because a client that has them doesn't ask for them.
    pub(super) fn image_use(&self, root: Id<Blob>) -> Timestamp {
        self.references(root)
            .filter(|(_, blob)| blob.manifest.is_some() && blob.parents == 1)
            .map(|(_, blob)| blob.last_use)
            .fold(self.blobs.get(root).last_use, Timestamp::max)
    }

    /// The head of an image and everything that nothing else refers to, the head first. A manifest
    /// for which `keep` holds isn't followed.
    pub(super) fn image(
        &self,
        root: Id<Blob>,
        mut keep: impl FnMut(Id<Blob>) -> bool,
    ) -> Vec<Id<Blob>> {
        let mut members = vec![root];
        let mut seen: HashMap<Id<Blob>, u32> = HashMap::new();
        let mut unread = vec![root];
        while let Some(manifest) = unread.pop() {
            for (id, blob) in self.references(manifest) {
                let times = seen.entry(id).or_default();
                *times += 1;
                let only_here = *times == blob.parents && blob.state.has_file();
                if only_here && !(blob.manifest.is_some() && keep(id)) {
                    members.push(id);
                    unread.push(id);
                }
            }
        }
        members
    }

    /// A manifest and all that is reached from it, once each.
    pub(super) fn everything_below(&self, root: Id<Blob>) -> Vec<Id<Blob>> {
        self.reach(root, |_manifest| Vec::new())
    }

    /// The same with what is attached to the manifest, and to each one that is reached, in a repository.
    pub(super) fn everything_attached(&self, repo: Id<Repo>, root: Id<Blob>) -> Vec<Id<Blob>> {
        let is_linked = |id: &Id<Blob>| self.find_entry(repo, LinkKind::Revision, *id).is_some();
        self.reach(root, |manifest| {
            let attached = self.graph.referrers.get(&self.hash_blob(manifest));
            attached
                .into_iter()
                .flatten()
                .copied()
                .filter(is_linked)
                .collect()
        })
    }

    /// What is reached from a manifest by references and by `further` steps, once each; the manifest first.
    fn reach(&self, root: Id<Blob>, further: impl Fn(Id<Blob>) -> Vec<Id<Blob>>) -> Vec<Id<Blob>> {
        let mut all = vec![root];
        let mut seen = HashSet::from([root]);
        let mut unread = vec![root];
        while let Some(id) = unread.pop() {
            let below = self.references(id).map(|(below, _)| below);
            for reached in below.chain(further(id)) {
                if seen.insert(reached) {
                    all.push(reached);
                    unread.push(reached);
                }
            }
        }
        all
    }
}
