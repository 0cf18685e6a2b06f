//! Hosted repositories: what their manifests refer to, how long their links are kept, and what counts
//! towards quotas.
//!
//! A manifest counts, for its repository, from when its link and its content are known until the link is
//! marked or removed. While the count of a digest isn't 0, the repository's link to it stays. Every
//! event that can make a deadline earlier (a count reaches 0, a tag or a subject goes) puts the
//! link at its new deadline.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::slab::Id;
use super::values::{Blob, Entry, LinkState, Repo};
use super::{Index, LinkKey};
use crate::cache::policy::{HostedPolicy, OverQuota};
use crate::cache::state::timestamp::Timestamp;
use crate::oci::{Digest, Manifest, RepoName, Tag};
use crate::storage::LinkKind;

/// How long an entry is left alone that is due, and that a rule keeps.
const KEPT: Duration = Duration::from_hours(1);
/// Added to the place of evictable hosted images in the LRU order: mirrored ones go first.
const AFTER_MIRRORED: u64 = 1 << 62;

/// What is known of a hosted repository beside its entries.
#[derive(Debug, Default)]
pub(super) struct HostedRepo {
    /// The position of its policy.
    pub(super) space: usize,
    /// How many manifests of the repository refer to a digest, by its hash.
    pub(super) references: HashMap<u64, u32>,
    /// How many tags name a digest, by its hash.
    pub(super) tagged: HashMap<u64, u32>,
}

/// What is known of all hosted repositories together.
#[derive(Debug, Default)]
pub(super) struct HostedSpaces {
    /// By the position of the policy.
    pub(super) bytes: Vec<SpaceBytes>,
    /// Blobs whose file isn't durable yet.
    pub(super) unsynced: HashSet<Id<Blob>>,
    /// Blobs that hosted repositories may have lost.
    lost: HashSet<Id<Blob>>,
    /// Manifests of hosted repositories that couldn't be read: what they refer to isn't known.
    opaque: HashSet<Id<Blob>>,
}

/// Bytes that count towards a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct SpaceBytes {
    /// Of distinct blobs.
    pub(crate) stored: u64,
    /// Of open uploads.
    pub(crate) uploading: u64,
}

/// A part of a manifest, as its repository links it.
pub type Part = (LinkKind, Digest);

/// The holds on the parts of a manifest that a repository has, and the parts that it lacks.
#[derive(Debug, Default)]
pub(crate) struct Claim {
    pub(crate) held: Vec<Id<Blob>>,
    pub(crate) missing: Vec<Part>,
}

pub(super) fn counted(counts: &mut HashMap<u64, u32>, hash: u64, more: bool) -> bool {
    let count = counts.entry(hash).or_default();
    debug_assert!(more || *count > 0, "one reference too many is removed");
    *count = if more {
        count.saturating_add(1)
    } else {
        count.saturating_sub(1)
    };
    let is_zero = *count == 0;
    if is_zero {
        counts.remove(&hash);
    }
    is_zero
}

impl HostedSpaces {
    pub(super) fn new(policies: usize) -> Self {
        Self {
            bytes: vec![SpaceBytes::default(); policies],
            ..Self::default()
        }
    }

    pub(super) fn forget(&mut self, id: Id<Blob>) {
        self.unsynced.remove(&id);
        self.lost.remove(&id);
        self.opaque.remove(&id);
    }
}

impl Index {
    // --- Repositories --------------------------------------------------------------------------

    pub(super) fn new_repo(&self, name: &RepoName) -> Repo {
        let mut policies = self.settings.hosted.iter();
        match policies.position(|policy| policy.has(name)) {
            Some(space) => Repo::hosted(name.clone(), space),
            None => Repo::new(name.clone(), self.settings.ttl.ttl(name)),
        }
    }

    pub(super) fn has_hosted(&self) -> bool {
        !self.hosted.bytes.is_empty()
    }

    /// Whether a hosted repository has a blob.
    pub(super) fn is_pushed(&self, id: Id<Blob>) -> bool {
        self.has_hosted() && self.entries_of(id).any(|(_, entry)| self.is_hosted(entry))
    }

    /// Whether a repository is hosted, whether or not it has anything.
    pub(crate) fn hosts(&self, repo: &RepoName) -> bool {
        self.settings.hosted.iter().any(|policy| policy.has(repo))
    }

    fn space(&self, repo: Id<Repo>) -> Option<usize> {
        let hosted = self.repos.get(repo).hosted.as_ref();
        hosted.map(|hosted| hosted.space)
    }

    pub(super) fn is_hosted(&self, entry: &Entry) -> bool {
        self.repos.get(entry.repo).hosted.is_some()
    }

    fn policy(&self, repo: Id<Repo>) -> Option<&HostedPolicy> {
        self.settings.hosted.get(self.space(repo)?)
    }

    // --- References ----------------------------------------------------------------------------

    /// Changes the state of a link. A manifest's parts aren't needed for a link that is marked.
    pub(super) fn set_link_state(&mut self, id: Id<Entry>, state: LinkState) {
        let entry = self.entries.get_mut(id);
        let before = std::mem::replace(&mut entry.state, state);
        let (repo, kind, blob) = (entry.repo, entry.kind, entry.blob);
        if before.is_marked() != state.is_marked() && kind == LinkKind::Revision {
            self.count_parts(repo, blob, !state.is_marked());
        }
    }

    /// The links that count of a manifest, by their repositories.
    fn repos_counting(&self, manifest: Id<Blob>) -> Vec<Id<Repo>> {
        if !self.has_hosted() {
            return Vec::new();
        }
        let links = self.entries_of(manifest).filter(|(_, entry)| {
            entry.kind == LinkKind::Revision && !entry.state.is_marked() && self.is_hosted(entry)
        });
        links.map(|(_, entry)| entry.repo).collect()
    }

    /// What a manifest refers to has become known, or is about to be forgotten.
    pub(super) fn count_manifest(&mut self, manifest: Id<Blob>, more: bool) {
        for repo in self.repos_counting(manifest) {
            self.count_parts(repo, manifest, more);
        }
    }

    /// A manifest begins or ends to count for a repository.
    pub(super) fn count_parts(&mut self, repo: Id<Repo>, manifest: Id<Blob>, more: bool) {
        if self.space(repo).is_none() {
            return;
        }
        let mut freed = Vec::new();
        for hash in self.graph.all_references(self.blobs.get(manifest).manifest) {
            if let Some(hosted) = &mut self.repos.get_mut(repo).hosted
                && counted(&mut hosted.references, hash, more)
            {
                freed.push(hash);
            }
        }
        if more {
            return;
        }
        for hash in freed {
            self.reschedule(repo, hash);
        }
        let own = self.hash_blob(manifest);
        for referrer in self.graph.referrers_of(own) {
            let entry = self.find_entry(repo, LinkKind::Revision, referrer);
            if let Some(entry) = entry {
                self.schedule_deadline(entry);
            }
        }
    }

    /// Puts a repository's links to a digest at their deadlines.
    pub(super) fn reschedule(&mut self, repo: Id<Repo>, hash: u64) {
        let Some(blob) = self.find_hashed(hash) else {
            return;
        };
        for kind in [LinkKind::Layer, LinkKind::Revision] {
            if let Some(entry) = self.find_entry(repo, kind, blob) {
                self.schedule_deadline(entry);
            }
        }
    }

    /// Whether the subject of a manifest is in the same repository: then the manifest stays with it.
    fn is_attached(&self, repo: Id<Repo>, manifest: Id<Blob>) -> bool {
        let subject = self.graph.subject_of(manifest);
        let subject = subject.and_then(|hash| self.find_hashed(hash));
        let entry = subject.and_then(|id| self.find_entry(repo, LinkKind::Revision, id));
        entry.is_some_and(|id| {
            let entry = self.entries.get(id);
            !entry.state.is_marked() && self.blobs.get(entry.blob).state.has_file()
        })
    }

    // --- Deadlines -----------------------------------------------------------------------------

    /// When a link of a hosted repository expires, in whole seconds, rounded up; none is never.
    pub(super) fn hosted_deadline(&self, entry: &Entry, hosted: &HostedRepo) -> Option<u32> {
        let (used, span) = self.lifetime(entry, hosted)?;
        let mut deadline = used.after(span);
        if used < self.started {
            deadline = deadline.max(self.started.after(span.min(self.grace)));
        }
        Some(deadline.rounded_up())
    }

    /// The last use of what an entry links, and how long it is kept after that.
    fn lifetime(&self, entry: &Entry, hosted: &HostedRepo) -> Option<(Timestamp, Duration)> {
        let policy = self.settings.hosted.get(hosted.space)?;
        let hash = self.hash_blob(entry.blob);
        if hosted.references.contains_key(&hash) {
            return None;
        }
        if entry.kind == LinkKind::Layer {
            return Some((entry.last_use, policy.grace));
        }
        if self.is_attached(entry.repo, entry.blob) {
            return None;
        }
        let untagged = policy.untagged;
        let untagged = untagged.filter(|_| !hosted.tagged.contains_key(&hash));
        let span = policy.ttl.into_iter().chain(untagged).min()?;
        // A client that knows an image's platform asks for that alone.
        let children = self.references(entry.blob).filter_map(|(id, blob)| {
            blob.manifest?;
            let child = self.find_entry(entry.repo, LinkKind::Revision, id)?;
            Some(self.entries.get(child).last_use)
        });
        Some((children.fold(entry.last_use, Timestamp::max), span))
    }

    /// When a due link is looked at again, in seconds, if a rule keeps it.
    pub(super) fn kept_until(&self, id: Id<Entry>, now: u32) -> Option<u32> {
        let entry = self.entries.get(id);
        let policy = self.policy(entry.repo)?;
        let keeps = match entry.kind {
            LinkKind::Layer => self.has_unknown_references(entry.repo),
            LinkKind::Revision => self.is_kept_by_rule(entry, policy),
        };
        keeps.then(|| Timestamp::from_seconds(now).after(KEPT).seconds())
    }

    /// Whether some manifest of the repository is lost, or can't be read.
    fn has_unknown_references(&self, repo: Id<Repo>) -> bool {
        let mut unknown = self.hosted.lost.iter().chain(&self.hosted.opaque);
        unknown.any(|id| {
            let is_linked = |id| self.find_entry(repo, LinkKind::Revision, id).is_some();
            let blob = self.blobs.find(*id);
            blob.is_some_and(|blob| blob.manifest.is_none()) && is_linked(*id)
        })
    }

    fn is_kept_by_rule(&self, entry: &Entry, policy: &HostedPolicy) -> bool {
        let (repo, hash) = (self.repos.get(entry.repo), self.hash_blob(entry.blob));
        if repo.tags_of(hash).any(|tag| policy.keeps_tag(tag)) {
            return true;
        }
        let is_tagged = repo.tags_of(hash).next().is_some();
        if policy.keep_newest == 0 || !is_tagged {
            return false;
        }
        let named: HashSet<u64> = repo.tags.values().copied().collect();
        let newer = named.into_iter().filter(|other| {
            let other = self.find_hashed(*other);
            let other = other.and_then(|id| self.find_entry(entry.repo, LinkKind::Revision, id));
            other.is_some_and(|id| {
                let other = self.entries.get(id);
                other.origin().created(other.last_use) > entry.origin().created(entry.last_use)
            })
        });
        newer.count() < policy.keep_newest
    }

    // --- Eviction ------------------------------------------------------------------------------

    /// What is added to the last use of an image in the LRU order; none for one that is never evicted.
    pub(super) fn eviction_order(&self, id: Id<Blob>) -> Option<u64> {
        if !self.has_hosted() {
            return Some(0);
        }
        let mut order = 0;
        for (_, entry) in self.entries_of(id) {
            if let Some(policy) = self.policy(entry.repo) {
                if !policy.evictable {
                    return None;
                }
                order = AFTER_MIRRORED;
            }
        }
        Some(order)
    }

    /// A repository's link to a blob has been added or removed, or its policy is another one.
    pub(super) fn rank_again(&mut self, id: Id<Blob>) {
        let blob = self.blobs.get_mut(id);
        self.lru.remove(id, &mut blob.ranked);
        self.rank(id);
    }

    // --- Bytes ---------------------------------------------------------------------------------

    fn is_in_space(&self, id: Id<Blob>, space: usize) -> bool {
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

    // --- Durability and damage -----------------------------------------------------------------

    /// The file of a blob was committed, durable or not.
    pub(crate) fn set_synced_by_commit(&mut self, id: Id<Blob>, synced: bool) {
        if synced {
            self.hosted.unsynced.remove(&id);
        } else {
            self.hosted.unsynced.insert(id);
        }
    }

    /// Those of some blobs whose file isn't durable.
    pub(crate) fn unsynced(&self, digests: &[Digest]) -> Vec<Digest> {
        let is_unsynced = |digest: &&Digest| {
            let id = self.find_blob(digest);
            id.is_some_and(|id| self.hosted.unsynced.contains(&id))
        };
        digests.iter().filter(is_unsynced).copied().collect()
    }

    /// The files of blobs are durable: what is known of them may be saved.
    pub(crate) fn set_synced(&mut self, digests: &[Digest]) {
        for digest in digests {
            if let Some(id) = self.find_blob(digest)
                && self.hosted.unsynced.remove(&id)
            {
                let entries: Vec<_> = self.entries_of(id).map(|(id, _)| id).collect();
                for entry in entries {
                    self.mark_dirty(entry);
                }
            }
        }
    }

    /// A blob's file is missing or damaged: a hosted repository that links it has lost it.
    pub(super) fn note_loss(&mut self, id: Id<Blob>) {
        if self.is_lost(id) {
            self.hosted.lost.insert(id);
        }
    }

    fn is_lost(&self, id: Id<Blob>) -> bool {
        let gone = self
            .blobs
            .find(id)
            .is_some_and(|blob| !blob.state.has_file());
        let mut entries = self.entries_of(id);
        gone && entries.any(|(_, entry)| !entry.state.is_marked() && self.is_hosted(entry))
    }

    /// A page of manifests after everything was read: notes those of hosted repositories that couldn't be.
    pub(super) fn note_opaque(&mut self, id: Id<Entry>) {
        let entry = self.entries.get(id);
        if entry.kind == LinkKind::Revision
            && self.is_hosted(entry)
            && self.blobs.get(entry.blob).manifest.is_none()
        {
            let blob = entry.blob;
            self.hosted.opaque.insert(blob);
        }
    }

    /// The blobs that hosted repositories have lost, at most `max`, and how many there are.
    pub(crate) fn lost(&self, max: usize) -> (Vec<Digest>, usize) {
        let lost = self.hosted.lost.iter().filter(|id| self.is_lost(**id));
        let lost: Vec<_> = lost.map(|id| self.blobs.get(*id).digest()).collect();
        let count = lost.len();
        (lost.into_iter().take(max).collect(), count)
    }

    // --- Requests ------------------------------------------------------------------------------

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
    pub(crate) fn claim(&mut self, repo: &RepoName, parts: &[Part]) -> Option<Claim> {
        let is_deleting = |(_, digest): &Part| {
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
        parts: &[Part],
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

    /// The hosted repositories on a page of all, and where the next page begins.
    pub(crate) fn hosted_repositories(
        &self,
        from: usize,
        max: usize,
    ) -> (Vec<RepoName>, Option<usize>) {
        let (page, next) = self.repos.page(from, max);
        let repos = page.into_iter().map(|id| self.repos.get(id));
        let hosted = repos.filter(|repo| repo.hosted.is_some());
        (hosted.map(|repo| repo.name.clone()).collect(), next)
    }

    /// Repositories that link a blob, at most `max`, and the size of its file.
    pub(crate) fn repositories_with(
        &self,
        digest: &Digest,
        max: usize,
    ) -> Option<(u64, Vec<RepoName>)> {
        let id = self.find_blob(digest)?;
        let size = self.blobs.get(id).file_size()?;
        let is_kept =
            |entry: &Entry| entry.kind == LinkKind::Layer && entry.state == LinkState::Kept;
        let layers = self.entries_of(id).filter(|(_, entry)| is_kept(entry));
        let names = layers.map(|(_, entry)| self.repos.get(entry.repo).name.clone());
        Some((size, names.take(max).collect()))
    }
}
