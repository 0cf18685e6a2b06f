//! What is cached, in memory: who links which content, since when, and when it was last used.
//!
//! Everything is behind one lock that is held for microseconds: no method here does I/O, and those
//! that visit much do it in pages. The parts that only one task needs are beside it, as more methods
//! of [`Index`]: deadlines in [`expiry`](super::work::expiry), what a manifest refers to in
//! [`graph`](graph), what goes first in [`eviction`](super::eviction), and what is being
//! deleted in [`sweeper`](super::work::sweeper).

pub(in crate::cache) mod entry;
pub(in crate::cache) mod graph;
pub(in crate::cache) mod slab;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use crate::cache::policy::{Pin, TtlPolicy};
use crate::cache::recent::DeletionEpoch;
use crate::cache::record::GRACE;
use crate::cache::state::timestamp::Timestamp;
use crate::oci::{Digest, RepoName, Tag};
use crate::storage::{Link, LinkKind};
use entry::{Content, Entry, Flags, Manifest, Origin, Repo, Stamp, content_flag, entry_flag};
use slab::{Id, Slab, Table};

/// Links of one content that are looked through before the table is asked.
const FEW: usize = 4;

/// What happened under the lock that somebody waits for.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::cache) struct WakeUps {
    /// For the scheduler: a new next deadline, the first change to save, or space that runs out.
    pub(in crate::cache) schedule: bool,
    /// For the sweeper: there is something to delete.
    pub(in crate::cache) work: bool,
    /// For whoever waits for space, for a hold, or for the end of deleting.
    pub(in crate::cache) freed: bool,
}

#[derive(Debug)]
pub(in crate::cache) struct Index {
    hasher: RandomState,
    pub(in crate::cache) policy: TtlPolicy,
    pub(in crate::cache) pins: Vec<Pin>,
    pub(in crate::cache) started: Timestamp,
    pub(in crate::cache) grace: Duration,
    /// Whether changes are collected for the journal.
    pub(in crate::cache) journaling: bool,
    pub(in crate::cache) repos: Slab<Repo>,
    by_name: Table<Repo>,
    pub(in crate::cache) contents: Slab<Content>,
    by_digest: Table<Content>,
    pub(in crate::cache) entries: Slab<Entry>,
    by_link: Table<Entry>,
    pub(in crate::cache) manifests: Slab<Manifest>,
    /// References to content that isn't known, by the hash of its digest.
    pub(in crate::cache) awaited: Vec<HashMap<u64, u32>>,
    /// Manifests that have a subject, by the hash of its digest: few manifests have one.
    pub(in crate::cache) referrers: HashMap<u64, Vec<Id<Content>>>,
    /// The same the other way round.
    pub(in crate::cache) subjects: HashMap<Id<Content>, u64>,
    /// Deadlines with their entries; see `expiry`.
    pub(in crate::cache) deadlines: BTreeSet<u64>,
    /// Images by last use; see `eviction`.
    pub(in crate::cache) ranking: BTreeSet<(u64, u32)>,
    /// What the sweeper has to look at; each content is in it once.
    pub(in crate::cache) sweep: VecDeque<Id<Content>>,
    /// Files whose removal failed, with the second when it is tried again.
    pub(in crate::cache) retries: VecDeque<(u32, Id<Content>)>,
    pub(in crate::cache) capacity: crate::cache::eviction::Capacity,
    /// Bytes of all files.
    pub(in crate::cache) used: u64,
    /// Bytes of the files that are chosen to go.
    pub(in crate::cache) evicting: u64,
    /// Contents that the sweeper is at work on.
    pub(in crate::cache) deleting: usize,
    /// Everything in the store has been seen: from now on things may be deleted.
    pub(in crate::cache) complete: bool,
    /// The sizes of all files are known.
    pub(in crate::cache) sized: bool,
    /// Why the store couldn't be listed, if the last attempt failed.
    pub(in crate::cache) unlisted: Option<String>,
    /// What makes answers of a moment ago void.
    pub(in crate::cache) going: Arc<DeletionEpoch>,
    /// Who has to be told, when the lock is given back.
    pub(in crate::cache) news: WakeUps,
    /// At most two for an entry.
    pub(in crate::cache) dirty: Vec<Id<Entry>>,
    /// At most one for each entry there was since the last save.
    pub(in crate::cache) removed: Vec<Link>,
}

impl Index {
    pub(in crate::cache) fn new(
        policy: TtlPolicy,
        pins: Vec<Pin>,
        capacity: crate::cache::eviction::Capacity,
        started: Timestamp,
        journaling: bool,
    ) -> Self {
        Self {
            hasher: RandomState::new(),
            policy,
            pins,
            started,
            grace: GRACE,
            journaling,
            repos: Slab::default(),
            by_name: Table::default(),
            contents: Slab::default(),
            by_digest: Table::default(),
            entries: Slab::default(),
            by_link: Table::default(),
            manifests: Slab::default(),
            awaited: graph::no_awaited(),
            referrers: HashMap::new(),
            subjects: HashMap::new(),
            deadlines: BTreeSet::new(),
            ranking: BTreeSet::new(),
            sweep: VecDeque::new(),
            retries: VecDeque::new(),
            capacity,
            used: 0,
            evicting: 0,
            deleting: 0,
            complete: false,
            sized: false,
            unlisted: None,
            going: Arc::default(),
            news: WakeUps::default(),
            dirty: Vec::new(),
            removed: Vec::new(),
        }
    }

    // --- Finding -------------------------------------------------------------------------------

    pub(in crate::cache) fn hash_digest(&self, digest: &Digest) -> u64 {
        self.hasher.hash_one(digest)
    }

    pub(in crate::cache) fn hash_content(&self, content: Id<Content>) -> u64 {
        let content = self.contents.get(content);
        content.map_or(0, |content| self.hash_digest(&content.digest()))
    }

    fn hash_entry(&self, entry: &Entry) -> u64 {
        self.hash_link(entry.repo, entry.kind, entry.content)
    }

    fn hash_link(&self, repo: Id<Repo>, kind: LinkKind, content: Id<Content>) -> u64 {
        self.hasher.hash_one((repo, kind, content))
    }

    pub(in crate::cache) fn find_repo(&self, name: &str) -> Option<Id<Repo>> {
        let is = |id| {
            self.repos
                .get(id)
                .is_some_and(|repo| repo.name.as_str() == name)
        };
        self.by_name.find(self.hasher.hash_one(name), is)
    }

    pub(in crate::cache) fn find_content(&self, digest: &Digest) -> Option<Id<Content>> {
        let is = |id| {
            self.contents
                .get(id)
                .is_some_and(|content| content.is(digest))
        };
        self.by_digest.find(self.hash_digest(digest), is)
    }

    /// By hash alone: with 64 bits keyed by chance, two digests of one hash won't be met.
    pub(in crate::cache) fn find_hashed(&self, hash: u64) -> Option<Id<Content>> {
        self.by_digest
            .find(hash, |id| self.hash_content(id) == hash)
    }

    pub(in crate::cache) fn find_entry(
        &self,
        repo: Id<Repo>,
        kind: LinkKind,
        content: Id<Content>,
    ) -> Option<Id<Entry>> {
        let is =
            |entry: &Entry| entry.repo == repo && entry.kind == kind && entry.content == content;
        // Most content has few links: that saves two reads of cold memory.
        let mut few = self.entries_of(content);
        for _ in 0..FEW {
            match few.next() {
                None => return None,
                Some((id, entry)) if is(entry) => return Some(id),
                Some(_) => {}
            }
        }
        self.by_link
            .find(self.hash_link(repo, kind, content), |id| {
                self.entries.get(id).is_some_and(is)
            })
    }

    pub(in crate::cache) fn find_link(&self, link: &Link) -> Option<Id<Entry>> {
        let repo = self.find_repo(link.repo.as_str())?;
        self.find_entry(repo, link.kind, self.find_content(&link.digest)?)
    }

    /// The entries of a content.
    pub(in crate::cache) fn entries_of(
        &self,
        content: Id<Content>,
    ) -> impl Iterator<Item = (Id<Entry>, &Entry)> {
        let mut next = self.contents.get(content).and_then(|content| content.first);
        std::iter::from_fn(move || {
            let id = next?;
            let entry = self.entries.get(id)?;
            next = entry.next;
            Some((id, entry))
        })
    }

    pub(in crate::cache) fn link_of(&self, entry: &Entry) -> Option<Link> {
        Some(Link {
            repo: self.repos.get(entry.repo)?.name.clone(),
            kind: entry.kind,
            digest: self.contents.get(entry.content)?.digest(),
        })
    }

    /// Makes room for so many entries, before they are loaded.
    pub(in crate::cache) fn reserve(&mut self, entries: usize) {
        let Self {
            hasher,
            contents,
            entries: known,
            by_digest,
            by_link,
            ..
        } = self;
        by_digest.reserve(entries, |id| {
            let content = contents.get(id);
            content.map_or(0, |content| hasher.hash_one(content.digest()))
        });
        by_link.reserve(entries, |id| {
            let entry = known.get(id);
            entry.map_or(0, |entry| {
                hasher.hash_one((entry.repo, entry.kind, entry.content))
            })
        });
    }

    // --- Adding and using ----------------------------------------------------------------------

    pub(in crate::cache) fn intern_repo(&mut self, name: &RepoName) -> Option<Id<Repo>> {
        if let Some(known) = self.find_repo(name.as_str()) {
            return Some(known);
        }
        // Part of a second is a second: never early.
        let seconds = |ttl: Duration| {
            let whole = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
            u32::try_from(whole).unwrap_or(u32::MAX)
        };
        let id = self.repos.insert(Repo {
            name: name.clone(),
            ttl: self.policy.ttl(name).map(seconds),
            entries: 0,
            tags: BTreeMap::new(),
        })?;
        let (hasher, repos) = (&self.hasher, &self.repos);
        self.by_name
            .insert(hasher.hash_one(name.as_str()), id, |id| {
                repos
                    .get(id)
                    .map_or(0, |repo| hasher.hash_one(repo.name.as_str()))
            });
        Some(id)
    }

    pub(in crate::cache) fn intern_content(&mut self, digest: &Digest) -> Option<Id<Content>> {
        if let Some(known) = self.find_content(digest) {
            return Some(known);
        }
        let hash = self.hash_digest(digest);
        let parents = self.take_awaited(hash);
        let id = self.contents.insert(Content {
            digest: digest.into(),
            size: 0,
            last_use: Timestamp::default(),
            ranked: 0,
            first: None,
            parents,
            holds: 0,
            manifest: None,
            verified: Stamp::NONE,
            flags: Flags::default(),
        })?;
        let (hasher, contents) = (&self.hasher, &self.contents);
        self.by_digest.insert(hash, id, |id| {
            let content: Option<&Content> = contents.get(id);
            content.map_or(0, |content| hasher.hash_one(content.digest()))
        });
        Some(id)
    }

    pub(in crate::cache) fn insert_entry(
        &mut self,
        repo: Id<Repo>,
        kind: LinkKind,
        content: Id<Content>,
        times: (Origin, Timestamp),
    ) -> Option<Id<Entry>> {
        let first = self.contents.get(content)?.first;
        let entry = Entry::new((repo, kind, content), first, times);
        let id = self.entries.insert(entry)?;
        self.contents.get_mut(content)?.first = Some(id);
        self.repos.get_mut(repo)?.entries += 1;
        let (hasher, entries) = (&self.hasher, &self.entries);
        let hash = self.hash_link(repo, kind, content);
        self.by_link.insert(hash, id, |id| {
            let entry: Option<&Entry> = entries.get(id);
            entry.map_or(0, |entry| {
                hasher.hash_one((entry.repo, entry.kind, entry.content))
            })
        });
        if let Some(deadline) = self.deadline(id) {
            self.schedule(id, deadline);
        }
        Some(id)
    }

    /// A link has been made or used, and its file is there. Nothing is noted of content that is
    /// being deleted.
    pub(in crate::cache) fn touch(
        &mut self,
        repo: &RepoName,
        kind: LinkKind,
        digest: &Digest,
        size: u64,
        now: Timestamp,
    ) -> Option<()> {
        let content = self.intern_content(digest)?;
        if self
            .contents
            .get(content)?
            .flags
            .has(content_flag::DELETING)
        {
            return None;
        }
        let repo = self.intern_repo(repo)?;
        let entry = match self.find_entry(repo, kind, content) {
            Some(known) => known,
            None => self.insert_entry(repo, kind, content, (Origin::Created(now), now))?,
        };
        let known = self.entries.get_mut(entry)?;
        known.last_use = known.last_use.max(now);
        known.flags.set(entry_flag::SEEN);
        // It should have gone and couldn't; now somebody has made or used it again.
        if known.flags.has(entry_flag::FAILED) {
            known
                .flags
                .clear(entry_flag::FAILED | entry_flag::CONDEMNED);
        }
        self.mark_dirty(entry);
        let used = self.contents.get_mut(content)?;
        used.last_use = used.last_use.max(now);
        // Whoever was served from a file that has been set aside since doesn't bring it back: a
        // commit does.
        if !used.flags.has(content_flag::LOST) {
            self.file_present(content, size);
        }
        Some(())
    }

    /// A link that was to go has been made anew.
    pub(in crate::cache) fn pardon(
        &mut self,
        repo: &RepoName,
        kind: LinkKind,
        digest: &Digest,
    ) -> Option<()> {
        let content = self.find_content(digest)?;
        let entry = self.find_entry(self.find_repo(repo.as_str())?, kind, content)?;
        let deleting = self
            .contents
            .get(content)?
            .flags
            .has(content_flag::DELETING);
        let known = self.entries.get_mut(entry).filter(|_| !deleting)?;
        known.flags.clear(entry_flag::CONDEMNED);
        // One that was due while it was condemned stands in no queue.
        if known.queued == 0
            && let Some(deadline) = self.deadline(entry)
        {
            self.schedule(entry, deadline);
        }
        Some(())
    }

    /// The store has the file of this content, of so many bytes.
    pub(in crate::cache) fn file_present(&mut self, id: Id<Content>, size: u64) {
        let Some(content) = self.contents.get_mut(id) else {
            return;
        };
        if content.flags.has(content_flag::FILE) {
            if content.size == size {
                return;
            }
            self.used = self.used.saturating_sub(content.size);
            self.spare(id);
        }
        let Some(content) = self.contents.get_mut(id) else {
            return;
        };
        if content.verified != Stamp::NONE && content.size != size {
            content.verified = Stamp::NONE;
            content.flags.set(content_flag::WRONG_SIZE);
        }
        content.flags.set(content_flag::FILE);
        content.flags.clear(content_flag::LOST);
        content.size = size;
        self.used = self.used.saturating_add(size);
        self.rank(id);
    }

    /// The store has the file no more.
    pub(in crate::cache) fn file_removed(&mut self, id: Id<Content>) {
        let Some(content) = self.contents.get_mut(id) else {
            return;
        };
        content.verified = Stamp::NONE;
        content.flags.clear(content_flag::WRONG_SIZE);
        if content.flags.has(content_flag::FILE) {
            content.flags.clear(content_flag::FILE);
            self.used = self.used.saturating_sub(content.size);
            self.spare(id);
            self.forget_references(id);
            self.rank(id);
        }
    }

    // --- Removing ------------------------------------------------------------------------------

    /// Forgets an entry whose link is gone.
    pub(in crate::cache) fn remove_entry(&mut self, id: Id<Entry>) -> Option<()> {
        self.unschedule(id);
        let entry = self.entries.get(id)?;
        if self.journaling
            && let Some(link) = self.link_of(entry)
        {
            self.news.schedule |= self.removed.is_empty();
            self.removed.push(link);
        }
        self.by_link.remove(self.hash_entry(entry), id);
        let Entry {
            repo,
            content,
            next,
            ..
        } = self.entries.remove(id)?;
        let head = self.contents.get_mut(content)?;
        if head.first == Some(id) {
            head.first = next;
        } else {
            let mut at = head.first;
            while let Some(entry) = at.and_then(|at| self.entries.get_mut(at)) {
                if entry.next == Some(id) {
                    entry.next = next;
                    break;
                }
                at = entry.next;
            }
        }
        let owner = self.repos.get_mut(repo)?;
        owner.entries -= 1;
        if owner.entries == 0 {
            let hash = self.hasher.hash_one(owner.name.as_str());
            self.by_name.remove(hash, repo);
            self.repos.remove(repo);
        }
        Some(())
    }

    /// Forgets content that nothing is known of any more.
    pub(in crate::cache) fn release_content(&mut self, id: Id<Content>) {
        let Some(content) = self.contents.get(id) else {
            return;
        };
        let busy = content_flag::FILE | content_flag::DELETING;
        if content.first.is_some() || content.holds > 0 || content.flags.has(busy) {
            return;
        }
        let (hash, parents) = (self.hash_content(id), content.parents);
        self.unrank(id);
        self.by_digest.remove(hash, id);
        self.contents.remove(id);
        self.await_content(hash, parents);
    }

    // --- Tags ----------------------------------------------------------------------------------

    /// A tag names a manifest that the repository links; otherwise nothing is noted.
    pub(in crate::cache) fn set_tag(
        &mut self,
        repo: &RepoName,
        tag: &Tag,
        digest: &Digest,
    ) -> Option<()> {
        let hash = self.hash_digest(digest);
        let id = self.find_repo(repo.as_str())?;
        self.repos.get_mut(id)?.tags.insert(tag.clone(), hash);
        Some(())
    }

    pub(in crate::cache) fn remove_tag(&mut self, repo: &RepoName, tag: &Tag) -> Option<()> {
        let id = self.find_repo(repo.as_str())?;
        self.repos.get_mut(id)?.tags.remove(tag).map(drop)
    }
}
