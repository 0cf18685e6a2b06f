//! What belongs together: which manifest refers to which content.
//!
//! An image is a manifest or index that nothing refers to, with what only it refers to; a blob that
//! no manifest refers to is an image of its own. So eviction frees whole images, and leaves what
//! another image shares.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::Index;
use super::entry::{Content, Manifest, Repo, content_flag, entry_flag};
use super::slab::Id;
use crate::cache::state::timestamp::Timestamp;
use crate::oci::{Digest, ManifestType, RepoName};
use crate::storage::LinkKind;

/// Entries that are looked through under one lock: some ten microseconds.
const PAGE: usize = 4096;

/// Parts of the table of awaited content, so that none of them grows in a large step.
const AWAITED_SHARDS: usize = 64;

/// What a manifest names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct References {
    /// What it needs: config, layers or blobs, and children.
    pub parts: Vec<Digest>,
    /// What it is about.
    pub subject: Option<Digest>,
}

pub(in crate::cache) fn no_awaited() -> Vec<HashMap<u64, u32>> {
    (0..AWAITED_SHARDS).map(|_| HashMap::new()).collect()
}

impl Index {
    fn awaited(&mut self, hash: u64) -> Option<&mut HashMap<u64, u32>> {
        self.awaited.get_mut((hash >> 40) as usize % AWAITED_SHARDS)
    }

    /// How many manifests refer to content that has just become known.
    pub(in crate::cache) fn take_awaited(&mut self, hash: u64) -> u32 {
        self.awaited(hash)
            .and_then(|awaited| awaited.remove(&hash))
            .unwrap_or(0)
    }

    /// Remembers how many manifests refer to content that isn't known any more.
    pub(in crate::cache) fn await_content(&mut self, hash: u64, parents: u32) {
        if parents > 0
            && let Some(awaited) = self.awaited(hash)
        {
            awaited.insert(hash, parents);
        }
    }

    /// Notes what a manifest is and refers to. It is remembered as long as the manifest's file is there,
    /// and can't change, because the digest is the content's.
    pub(in crate::cache) fn set_references(
        &mut self,
        manifest: &Digest,
        media_type: ManifestType,
        References { parts, subject }: &References,
    ) -> Option<()> {
        let id = self.find_content(manifest)?;
        let content = self.contents.get(id)?;
        if content.manifest.is_some() || !content.flags.has(content_flag::FILE) {
            return None;
        }
        let own = self.hash_digest(manifest);
        let mut hashes: Vec<u64> = parts
            .iter()
            .map(|digest| self.hash_digest(digest))
            .collect();
        hashes.sort_unstable();
        hashes.dedup();
        hashes.retain(|hash| *hash != own);
        for hash in &hashes {
            self.refer(*hash, true);
        }
        let references = hashes.into_boxed_slice();
        let noted = self.manifests.insert(Manifest {
            media_type,
            references,
        });
        self.contents.get_mut(id)?.manifest = noted;
        if let Some(subject) = subject {
            let hash = self.hash_digest(subject);
            self.referrers.entry(hash).or_default().push(id);
            self.subjects.insert(id, hash);
        }
        Some(())
    }

    pub(in crate::cache) fn forget_references(&mut self, id: Id<Content>) {
        if let Some(hash) = self.subjects.remove(&id)
            && let Entry::Occupied(mut referrers) = self.referrers.entry(hash)
        {
            referrers.get_mut().retain(|other| *other != id);
            if referrers.get().is_empty() {
                referrers.remove();
            }
        }
        let noted = self
            .contents
            .get_mut(id)
            .and_then(|content| content.manifest.take());
        if let Some(manifest) = noted.and_then(|manifest| self.manifests.remove(manifest)) {
            for hash in &manifest.references {
                self.refer(*hash, false);
            }
        }
    }

    fn refer(&mut self, hash: u64, more: bool) {
        let change = |count: u32| {
            if more {
                count + 1
            } else {
                count.saturating_sub(1)
            }
        };
        if let Some(id) = self.find_hashed(hash) {
            if let Some(content) = self.contents.get_mut(id) {
                content.parents = change(content.parents);
            }
            self.rank(id);
        } else if let Some(awaited) = self.awaited(hash) {
            let count = change(awaited.get(&hash).copied().unwrap_or(0));
            if count == 0 {
                awaited.remove(&hash);
            } else {
                awaited.insert(hash, count);
            }
        }
    }

    /// Whether a manifest on one page of all entries is linked by the repository and refers to the
    /// content with this hash; and where the next page begins, if there is one to look at.
    pub(in crate::cache) fn find_reference(
        &self,
        repo: &RepoName,
        hash: u64,
        from: usize,
    ) -> (bool, Option<usize>) {
        let Some(repo) = self.find_repo(repo.as_str()) else {
            return (false, None);
        };
        if self
            .find_hashed(hash)
            .and_then(|id| self.contents.get(id))
            .is_some_and(|content| content.parents == 0)
        {
            return (false, None);
        }
        let (page, next) = self.entries.page(from, PAGE);
        let found = page.into_iter().any(|id| {
            let Some(content) = self.live_revision(id, repo) else {
                return false;
            };
            let manifest = content
                .manifest
                .and_then(|manifest| self.manifests.get(manifest));
            manifest.is_some_and(|manifest| manifest.references.binary_search(&hash).is_ok())
        });
        (found, next.filter(|_| !found))
    }

    /// The manifests that the repository links and whose subject this is.
    pub(in crate::cache) fn referrers(&self, repo: &RepoName, subject: &Digest) -> Vec<Digest> {
        let Some(repo) = self.find_repo(repo.as_str()) else {
            return Vec::new();
        };
        let all = self.referrers.get(&self.hash_digest(subject));
        let linked = all.into_iter().flatten().filter_map(|id| {
            let entry = self.find_entry(repo, LinkKind::Revision, *id)?;
            Some(self.live_revision(entry, repo)?.digest())
        });
        linked.collect()
    }

    /// The manifest behind a link of this repository, where link and file are there.
    fn live_revision(&self, id: Id<super::entry::Entry>, repo: Id<Repo>) -> Option<&Content> {
        let entry = self.entries.get(id)?;
        let live = entry.kind == LinkKind::Revision
            && entry.repo == repo
            && entry.flags.has(entry_flag::SEEN);
        let content = self.contents.get(entry.content).filter(|_| live)?;
        content.flags.has(content_flag::FILE).then_some(content)
    }

    /// The content that a manifest refers to, where it is known.
    pub(in crate::cache) fn references(
        &self,
        id: Id<Content>,
    ) -> impl Iterator<Item = (Id<Content>, &Content)> {
        let manifest = self.contents.get(id).and_then(|content| content.manifest);
        let references = manifest
            .and_then(|manifest| self.manifests.get(manifest))
            .map_or(&[][..], |manifest| &manifest.references);
        references.iter().filter_map(|hash| {
            let id = self.find_hashed(*hash)?;
            Some((id, self.contents.get(id)?))
        })
    }

    /// Whether content is the head of an image.
    pub(in crate::cache) fn is_root(content: &Content) -> bool {
        content.parents == 0 && content.flags.has(content_flag::FILE)
    }

    /// When an image was last used: its head, or a manifest that only the head refers to. Blobs
    /// don't count, because a client that has them doesn't ask for them.
    pub(in crate::cache) fn image_use(&self, root: Id<Content>) -> Timestamp {
        let own = self
            .contents
            .get(root)
            .map(|content| content.last_use)
            .unwrap_or_default();
        self.references(root)
            .filter(|(_, content)| content.manifest.is_some() && content.parents == 1)
            .map(|(_, content)| content.last_use)
            .fold(own, Timestamp::max)
    }

    /// The head of an image and everything that nothing else refers to, the head first. A manifest
    /// for which `keep` holds isn't followed.
    pub(in crate::cache) fn image(
        &self,
        root: Id<Content>,
        keep: impl Fn(Id<Content>) -> bool,
    ) -> Vec<Id<Content>> {
        let mut members = vec![root];
        let mut seen: HashMap<Id<Content>, u32> = HashMap::new();
        let mut unread = vec![root];
        while let Some(manifest) = unread.pop() {
            for (id, content) in self.references(manifest) {
                let times = seen.entry(id).or_default();
                *times += 1;
                let only_here = *times == content.parents && content.flags.has(content_flag::FILE);
                if only_here && !(content.manifest.is_some() && keep(id)) {
                    members.push(id);
                    unread.push(id);
                }
            }
        }
        members
    }
}
