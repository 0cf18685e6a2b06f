//! Hosted repositories: what their manifests refer to, and how long their links are kept.
//!
//! A manifest counts, for its repository, from when its link and its content are known until the link is
//! marked or removed. While the count of a digest isn't 0, the repository's link to it stays. Every
//! event that can make a deadline earlier (a count reaches 0, a tag or a subject goes) puts the
//! link at its new deadline.

use std::collections::HashSet;
use std::time::Duration;

use super::Index;
use super::quota::SpaceBytes;
use super::slab::Id;
use super::values::{Blob, Entry, HostedRepo, LinkState, Repo, counted};
use crate::cache::CacheSettings;
use crate::cache::policy::{HostedPolicy, HostedRole};
use crate::cache::state::timestamp::Timestamp;
use crate::oci::RepoName;
use crate::storage::LinkKind;

/// How long an entry is left alone that is due, and that a rule keeps.
const KEPT: Duration = Duration::from_hours(1);
/// Added to the place of evictable hosted images in the LRU order: mirrored ones go first.
const AFTER_MIRRORED: u64 = 1 << 62;

/// What is known of all hosted repositories together.
#[derive(Debug, Default)]
pub(super) struct HostedSpaces {
    /// By the position of the policy.
    pub(super) bytes: Vec<SpaceBytes>,
    /// Blobs whose file isn't durable yet.
    pub(super) unsynced: HashSet<Id<Blob>>,
    /// Blobs that hosted repositories may have lost.
    pub(super) lost: HashSet<Id<Blob>>,
    /// Manifests of hosted repositories that couldn't be read: what they refer to isn't known.
    pub(super) opaque: HashSet<Id<Blob>>,
    role: HostedRole,
}

impl HostedSpaces {
    pub(super) fn new(settings: &CacheSettings) -> Self {
        Self {
            bytes: vec![SpaceBytes::default(); settings.hosted.len()],
            role: settings.hosted_role,
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

    pub(super) fn space(&self, repo: Id<Repo>) -> Option<usize> {
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

    /// Who decides which hosted content stays.
    pub(crate) fn hosted_role(&self) -> HostedRole {
        self.hosted.role
    }

    /// False where it doesn't change. The entries are at their old deadlines until
    /// [`renew_deadlines`](Self::renew_deadlines) has seen them.
    pub(crate) fn set_hosted_role(&mut self, role: HostedRole) -> bool {
        std::mem::replace(&mut self.hosted.role, role) != role
    }

    /// When a due link is looked at again, in seconds, if a rule keeps it.
    pub(super) fn kept_until(&self, id: Id<Entry>, now: u32) -> Option<u32> {
        let entry = self.entries.get(id);
        let policy = self.policy(entry.repo)?;
        let keeps = self.hosted.role != HostedRole::Decides
            || match entry.kind {
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
            let Some(policy) = self.policy(entry.repo) else {
                continue;
            };
            match self.hosted.role {
                HostedRole::Decides if policy.evictable => order = AFTER_MIRRORED,
                HostedRole::Decides | HostedRole::Learns => return None,
                // Another replica keeps it in the bucket.
                HostedRole::Copies => {}
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
}
