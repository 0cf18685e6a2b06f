//! What requests for hosted repositories ask of the index.

use super::slab::Id;
use super::values::{Blob, Entry, LinkState};
use super::{Index, LinkKey};
use crate::cache::state::timestamp::Timestamp;
use crate::oci::{Digest, Manifest, RepoName, Tag};
use crate::storage::LinkKind;

/// A part of a manifest, as its repository links it.
pub type ManifestPart = (LinkKind, Digest);

/// The holds on the parts of a manifest that a repository has, and the parts that it lacks.
#[derive(Debug, Default)]
pub(crate) struct Claim {
    pub(crate) held: Vec<Id<Blob>>,
    pub(crate) missing: Vec<ManifestPart>,
}

impl Index {
    /// Whether a link of a hosted repository serves requests: it is there, with its file, and nobody
    /// wants it removed. One whose time is over counts.
    fn usable(&self, (repo, kind, digest): LinkKey<'_>) -> Option<(Id<Entry>, Id<Blob>)> {
        let id = self.find_link((repo, kind, digest))?;
        let entry = self.entries.get(id);
        let stays = !entry.state.is_marked() && entry.state != LinkState::Unconfirmed;
        let blob = self.blobs.get(entry.blob);
        let has_file = blob.state.has_file() && !blob.turn.is_deleting();
        (stays && has_file).then_some((id, entry.blob))
    }

    /// Notes a use of a link, and keeps it although its time is over. False when there is none.
    pub(crate) fn revive(&mut self, link: LinkKey<'_>, now: Timestamp) -> bool {
        let Some((entry, blob)) = self.usable(link) else {
            return false;
        };
        self.note_use(entry, blob, now);
        self.keep(entry);
        true
    }

    /// Holds the parts of a manifest that its repository has. None while one of them is being deleted:
    /// ask again after that.
    pub(crate) fn claim(&mut self, repo: &RepoName, parts: &[ManifestPart]) -> Option<Claim> {
        let is_deleting = |(_, digest): &ManifestPart| {
            let id = self.find_blob(digest);
            id.is_some_and(|id| self.blobs.get(id).turn.is_deleting())
        };
        if parts.iter().any(is_deleting) {
            return None;
        }
        let mut claim = Claim::default();
        for (kind, digest) in parts {
            if let Some((_, blob)) = self.usable((repo, *kind, digest)) {
                self.blobs.get_mut(blob).holds += 1;
                claim.held.push(blob);
            } else {
                claim.missing.push((*kind, *digest));
            }
        }
        Some(claim)
    }

    /// A manifest of `size` bytes has been stored and linked by the repository, which keeps its parts from
    /// now on, also those that were to be removed. The caller holds all of them.
    pub(crate) fn keep_manifest(
        &mut self,
        (repo, digest, size): (&RepoName, &Digest, u64),
        manifest: &Manifest,
        parts: &[ManifestPart],
        now: Timestamp,
    ) {
        self.link((repo, LinkKind::Revision, digest), size, now);
        self.describe(digest, manifest);
        for (kind, part) in parts {
            if let Some(id) = self.find_link((repo, *kind, part)) {
                self.keep(id);
            }
        }
    }

    /// Whether there is a link that nobody wants removed.
    pub(crate) fn has_link(&self, link: LinkKey<'_>) -> bool {
        let id = self.find_link(link);
        id.is_some_and(|id| !self.entries.get(id).state.is_marked())
    }

    /// Whether there is a link that somebody wants removed.
    pub(crate) fn is_marked(&self, link: LinkKey<'_>) -> bool {
        let id = self.find_link(link);
        id.is_some_and(|id| self.entries.get(id).state.is_marked())
    }

    /// Marks a link that a client deletes. False when there is none.
    pub(crate) fn delete(&mut self, link: LinkKey<'_>) -> bool {
        let id = self.find_link(link).filter(|_| self.has_link(link));
        if let Some(id) = id {
            self.mark(id);
        }
        id.is_some()
    }

    /// The sizes of stored blobs, and whether each is known to have its digest.
    pub(crate) fn stored_parts(&self, digests: &[Digest]) -> Vec<Option<(u64, bool)>> {
        let stored = |digest: &Digest| {
            let blob = self.blobs.get(self.find_blob(digest)?);
            Some((blob.file_size()?, blob.check.modified().is_some()))
        };
        digests.iter().map(stored).collect()
    }

    /// Whether a manifest of the repository refers to a digest.
    pub(crate) fn refers_to(&self, repo: &RepoName, digest: &Digest) -> bool {
        let hash = self.hash_digest(digest);
        let repo = self.find_repo(repo.as_str());
        let hosted = repo.and_then(|id| self.repos.get(id).hosted.as_ref());
        hosted.is_some_and(|hosted| hosted.references.contains_key(&hash))
    }

    /// Whether a link has gone, or is kept for now because its blob is held.
    pub(crate) fn is_gone_or_held(&self, link: LinkKey<'_>) -> bool {
        let id = self.find_link(link);
        let entry = id.map(|id| self.entries.get(id));
        entry.is_none_or(|entry| !entry.state.is_marked() || self.blobs.get(entry.blob).holds > 0)
    }

    /// The digest that a tag names.
    pub(crate) fn tagged(&self, repo: &RepoName, tag: &Tag) -> Option<Digest> {
        let repo = self.repos.get(self.find_repo(repo.as_str())?);
        let id = self.find_hashed(*repo.tags.get(tag)?)?;
        Some(self.blobs.get(id).digest())
    }

    /// The tags of a repository, sorted; none where it has nothing.
    pub(crate) fn tags(&self, repo: &RepoName) -> Option<Vec<Tag>> {
        let repo = self.repos.get(self.find_repo(repo.as_str())?);
        Some(repo.tags.keys().cloned().collect())
    }

    /// The tags that name a manifest.
    pub(crate) fn tags_naming(&self, repo: &RepoName, digest: &Digest) -> Vec<Tag> {
        let Some(id) = self.find_repo(repo.as_str()) else {
            return Vec::new();
        };
        let hash = self.hash_digest(digest);
        self.repos.get(id).tags_of(hash).cloned().collect()
    }

    /// A page of all repositories, each with whether it is hosted, and where the next page begins.
    pub(crate) fn repositories(
        &self,
        from: usize,
        max: usize,
    ) -> (Vec<(RepoName, bool)>, Option<usize>) {
        let (page, next) = self.repos.page(from, max);
        let repos = page.into_iter().map(|id| self.repos.get(id));
        let named = repos.map(|repo| (repo.name.clone(), repo.hosted.is_some()));
        (named.collect(), next)
    }

    /// The size of what a repository links.
    pub(crate) fn link_size(&self, link: LinkKey<'_>) -> Option<u64> {
        let (_, blob) = self.usable(link)?;
        self.file_size(blob)
    }

    /// Repositories that link a blob, at most `max`, and the size of its file.
    pub(crate) fn repositories_with(
        &self,
        digest: &Digest,
        max: usize,
    ) -> Option<(u64, Vec<RepoName>)> {
        let id = self.find_blob(digest)?;
        let size = self.blobs.get(id).file_size()?;
        // One whose time is over is there as long as the blob is held.
        let is_there = |entry: &Entry| {
            entry.kind == LinkKind::Layer
                && !entry.state.is_marked()
                && entry.state != LinkState::Unconfirmed
        };
        let layers = self.entries_of(id).filter(|(_, entry)| is_there(entry));
        let names = layers.map(|(_, entry)| self.repos.get(entry.repo).name.clone());
        Some((size, names.take(max).collect()))
    }
}
