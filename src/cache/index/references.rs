//! What belongs together: which manifest refers to which blobs.
//!
//! An image is a manifest or index that nothing refers to, with what only it refers to; a blob that
//! no manifest refers to is an image of its own. So eviction frees whole images, and leaves what
//! another image shares.

use std::collections::{HashMap, HashSet};

use super::Index;
use super::blob::Blob;
use super::entry::{Entry, LinkState, Repo};
use super::graph::{Manifest, References, counted};
use super::slab::Id;
use crate::cache::state::timestamp::Timestamp;
use crate::oci::{Digest, ManifestType, RepoName};
use crate::storage::LinkKind;

/// Entries that are looked through under one lock: some ten microseconds.
const PAGE: usize = 4096;

impl Index {
    /// Notes what a manifest is and refers to, if its file is there. It is remembered as long as the
    /// file is, and can't change, because the digest is the content's.
    pub(crate) fn set_references(
        &mut self,
        manifest: &Digest,
        media_type: ManifestType,
        References { parts, subject }: &References,
    ) {
        let Some(id) = self.find_blob(manifest) else {
            return;
        };
        let blob = self.blobs.get(id);
        if blob.manifest.is_some() || !blob.state.has_file() {
            return;
        }
        let own = self.hash_digest(manifest);
        let hashes = parts.iter().map(|digest| self.hash_digest(digest));
        let mut hashes: Vec<_> = hashes.filter(|hash| *hash != own).collect();
        hashes.sort_unstable();
        hashes.dedup();
        for hash in &hashes {
            self.count_reference(*hash, true);
        }
        let manifest = self.graph.insert(Manifest {
            media_type,
            references: hashes.into_boxed_slice(),
        });
        self.blobs.get_mut(id).manifest = Some(manifest);
        if let Some(subject) = subject {
            let subject = self.hash_digest(subject);
            self.graph.set_subject(id, subject);
        }
    }

    pub(super) fn forget_references(&mut self, id: Id<Blob>) {
        self.graph.remove_subject(id);
        let manifest = self.blobs.get_mut(id).manifest.take();
        if let Some(manifest) = manifest.and_then(|manifest| self.graph.remove(manifest)) {
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
            manifest.is_some_and(|id| self.graph.get(id).references.binary_search(&hash).is_ok())
        });
        (found, next.filter(|_| !found))
    }

    /// The manifests that the repository links and whose subject this is.
    pub(crate) fn referrers(&self, repo: &RepoName, subject: &Digest) -> Vec<Digest> {
        let Some(repo) = self.find_repo(repo.as_str()) else {
            return Vec::new();
        };
        let all = self.graph.referrers(self.hash_digest(subject)).iter();
        let linked = all.filter_map(|id| {
            let entry = self.find_entry(repo, LinkKind::Revision, *id)?;
            let blob = self.live_revision(self.entries.get(entry), repo)?;
            Some(blob.digest())
        });
        linked.collect()
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
    fn references(&self, id: Id<Blob>) -> impl Iterator<Item = (Id<Blob>, &Blob)> {
        let manifest = self.blobs.get(id).manifest;
        let references = manifest.map_or(&[][..], |id| &self.graph.get(id).references);
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
    pub(super) fn image(&self, root: Id<Blob>, keep: impl Fn(Id<Blob>) -> bool) -> Vec<Id<Blob>> {
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
        let mut all = vec![root];
        let mut seen = HashSet::from([root]);
        let mut unread = vec![root];
        while let Some(id) = unread.pop() {
            for (below, _) in self.references(id) {
                if seen.insert(below) {
                    all.push(below);
                    unread.push(below);
                }
            }
        }
        all
    }
}
