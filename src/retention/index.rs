//! What is cached, in memory: who links which content, since when, and when it was last used.
//!
//! Everything is behind one lock that is held for microseconds: no method here does I/O, and those
//! that visit much do it in pages. The parts that only one task needs are beside it, as more methods
//! of [`Index`]: deadlines in [`expiry`](super::expiry), what a manifest refers to in
//! [`graph`](super::graph), what goes first in [`eviction`](super::eviction), and what is being
//! deleted in [`sweeper`](super::sweeper).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use super::moment::Moment;
use super::policy::{Pin, TtlMode, TtlPolicy};
use super::slab::{Id, Slab, Table};
use crate::oci::{Digest, RepoName, Tag};
use crate::store::{Link, LinkKind};

/// What was due while the mirror was stopped gets this long from the start on, or its TTL when that
/// is shorter: nobody could use it meanwhile, and a wrong clock shows before it has deleted anything.
pub(super) const GRACE: Duration = Duration::from_hours(1);
/// The same when most of the cache was due: then the machine was off for long, or the clock is
/// wrong, and somebody should have the time to notice.
pub(super) const MASS_GRACE: Duration = Duration::from_hours(24);

/// A digest in 40 bytes: the long ones are rare.
#[derive(Debug)]
enum Compact {
    Sha256([u8; 32]),
    Sha512(Box<[u8; 64]>),
}

impl From<&Digest> for Compact {
    fn from(digest: &Digest) -> Self {
        match digest {
            Digest::Sha256(bytes) => Self::Sha256(*bytes),
            Digest::Sha512(bytes) => Self::Sha512(Box::new(*bytes)),
        }
    }
}

/// A set of marks.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Flags(u8);

impl Flags {
    pub(super) const fn has(self, flag: u8) -> bool {
        self.0 & flag != 0
    }

    pub(super) const fn set(&mut self, flag: u8) {
        self.0 |= flag;
    }

    pub(super) const fn clear(&mut self, flag: u8) {
        self.0 &= !flag;
    }
}

/// Marks of an [`Entry`].
pub(super) mod entry_flag {
    /// Changed since the last save.
    pub(in super::super) const DIRTY: u8 = 1;
    /// Its link has been seen in the store, or made, in this run.
    pub(in super::super) const SEEN: u8 = 2;
    /// Its time is up.
    pub(in super::super) const EXPIRED: u8 = 4;
    /// It is to go, whatever its time.
    pub(in super::super) const CONDEMNED: u8 = 8;
}

/// Marks of a [`Content`].
pub(super) mod content_flag {
    /// The store has the blob's file.
    pub(in super::super) const FILE: u8 = 1;
    /// The sweeper is deleting links or the file right now.
    pub(in super::super) const DELETING: u8 = 2;
    /// In the sweeper's queue.
    pub(in super::super) const QUEUED: u8 = 4;
    /// To be evicted.
    pub(in super::super) const EVICTED: u8 = 8;
    /// Some entry is condemned.
    pub(in super::super) const CONDEMNED: u8 = 16;
}

/// A repository, as it is stored.
#[derive(Debug)]
pub(super) struct Repo {
    pub(super) name: RepoName,
    /// Seconds; none is for ever.
    ttl: Option<u32>,
    entries: u32,
    /// Tags, with the hash of the digest they name.
    pub(super) tags: BTreeMap<Tag, u64>,
}

/// A link of a repository to content. A million of them are expected: 32 bytes.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) repo: Id<Repo>,
    pub(super) content: Id<Content>,
    /// The next entry of the same content.
    pub(super) next: Option<Id<Entry>>,
    /// Where it stands in the ordered set of deadlines, in seconds; 0 when it isn't in it. Never
    /// later than its true deadline.
    pub(super) queued: u32,
    /// Seconds.
    pub(super) created: u32,
    pub(super) last_use: Moment,
    pub(super) kind: LinkKind,
    pub(super) flags: Flags,
}

/// What has a digest. A million of them are expected: 88 bytes.
#[derive(Debug)]
pub(super) struct Content {
    digest: Compact,
    /// Bytes; 0 until the file is known.
    pub(super) size: u64,
    pub(super) last_use: Moment,
    /// Its time in the order of eviction; 0 when it isn't in it. Never later than the true one.
    pub(super) ranked: u64,
    pub(super) first: Option<Id<Entry>>,
    /// How many manifests refer to it.
    pub(super) parents: u32,
    pub(super) holds: u32,
    pub(super) manifest: Option<Id<Manifest>>,
    pub(super) flags: Flags,
}

/// What a manifest refers to, as hashes of digests: most platforms of an index are never cached.
#[derive(Debug)]
pub(super) struct Manifest {
    pub(super) references: Box<[u64]>,
}

impl Content {
    pub(super) fn digest(&self) -> Digest {
        match &self.digest {
            Compact::Sha256(bytes) => Digest::Sha256(*bytes),
            Compact::Sha512(bytes) => Digest::Sha512(**bytes),
        }
    }

    fn is(&self, digest: &Digest) -> bool {
        match (&self.digest, digest) {
            (Compact::Sha256(own), Digest::Sha256(other)) => own == other,
            (Compact::Sha512(own), Digest::Sha512(other)) => **own == *other,
            _ => false,
        }
    }
}

/// How an entry stands in the state file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) link: Link,
    pub(super) created: Moment,
    pub(super) last_use: Moment,
    /// None is never.
    pub(super) expiry: Option<Moment>,
}

/// What has changed since the last save, in the order in which it is to be replayed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) removed: Vec<Link>,
    pub(super) put: Vec<Record>,
}

/// What happened under the lock that somebody waits for.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct News {
    /// For the scheduler: a new next deadline, the first change to save, or space that runs out.
    pub(super) schedule: bool,
    /// For the sweeper: there is something to delete.
    pub(super) work: bool,
    /// For whoever waits for space, for a hold, or for the end of deleting.
    pub(super) freed: bool,
}

#[derive(Debug)]
pub(super) struct Index {
    hasher: RandomState,
    policy: TtlPolicy,
    pub(super) pins: Vec<Pin>,
    started: Moment,
    grace: Duration,
    /// Whether changes are collected for the journal.
    journaling: bool,
    pub(super) repos: Slab<Repo>,
    by_name: Table<Repo>,
    pub(super) contents: Slab<Content>,
    by_digest: Table<Content>,
    pub(super) entries: Slab<Entry>,
    by_link: Table<Entry>,
    pub(super) manifests: Slab<Manifest>,
    /// References to content that isn't known, by the hash of its digest.
    pub(super) awaited: Vec<HashMap<u64, u32>>,
    /// Deadlines with their entries; see `expiry`.
    pub(super) deadlines: BTreeSet<u64>,
    /// Images by last use; see `eviction`.
    pub(super) ranking: BTreeSet<(u64, u32)>,
    /// What the sweeper has to look at; each content is in it once.
    pub(super) sweep: VecDeque<Id<Content>>,
    /// Files whose removal failed, with the second when it is tried again.
    pub(super) retries: VecDeque<(u32, Id<Content>)>,
    pub(super) capacity: super::eviction::Capacity,
    /// Bytes of all files.
    pub(super) used: u64,
    /// Bytes of the files that are chosen to go.
    pub(super) evicting: u64,
    /// Contents that the sweeper is at work on.
    pub(super) deleting: usize,
    /// Everything in the store has been seen: from now on things may be deleted.
    pub(super) complete: bool,
    /// The sizes of all files are known.
    pub(super) sized: bool,
    /// Who has to be told, when the lock is given back.
    pub(super) news: News,
    /// At most two for an entry.
    dirty: Vec<Id<Entry>>,
    /// At most one for each entry there was since the last save.
    removed: Vec<Link>,
}

impl Index {
    pub(super) fn new(
        policy: TtlPolicy,
        pins: Vec<Pin>,
        capacity: super::eviction::Capacity,
        started: Moment,
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
            awaited: super::graph::no_awaited(),
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
            news: News::default(),
            dirty: Vec::new(),
            removed: Vec::new(),
        }
    }

    // --- Finding -------------------------------------------------------------------------------

    pub(super) fn hash_digest(&self, digest: &Digest) -> u64 {
        self.hasher.hash_one(digest)
    }

    pub(super) fn hash_content(&self, content: Id<Content>) -> u64 {
        let content = self.contents.get(content);
        content.map_or(0, |content| self.hash_digest(&content.digest()))
    }

    fn hash_entry(&self, entry: &Entry) -> u64 {
        self.hash_link(entry.repo, entry.kind, entry.content)
    }

    fn hash_link(&self, repo: Id<Repo>, kind: LinkKind, content: Id<Content>) -> u64 {
        self.hasher.hash_one((repo, kind, content))
    }

    pub(super) fn find_repo(&self, name: &str) -> Option<Id<Repo>> {
        let is = |id| {
            self.repos
                .get(id)
                .is_some_and(|repo| repo.name.as_str() == name)
        };
        self.by_name.find(self.hasher.hash_one(name), is)
    }

    pub(super) fn find_content(&self, digest: &Digest) -> Option<Id<Content>> {
        let is = |id| {
            self.contents
                .get(id)
                .is_some_and(|content| content.is(digest))
        };
        self.by_digest.find(self.hash_digest(digest), is)
    }

    /// By hash alone: with 64 bits keyed by chance, two digests of one hash won't be met.
    pub(super) fn find_hashed(&self, hash: u64) -> Option<Id<Content>> {
        self.by_digest
            .find(hash, |id| self.hash_content(id) == hash)
    }

    pub(super) fn find_entry(
        &self,
        repo: Id<Repo>,
        kind: LinkKind,
        content: Id<Content>,
    ) -> Option<Id<Entry>> {
        let is =
            |entry: &Entry| entry.repo == repo && entry.kind == kind && entry.content == content;
        self.by_link
            .find(self.hash_link(repo, kind, content), |id| {
                self.entries.get(id).is_some_and(is)
            })
    }

    pub(super) fn find_link(&self, link: &Link) -> Option<Id<Entry>> {
        let repo = self.find_repo(link.repo.as_str())?;
        self.find_entry(repo, link.kind, self.find_content(&link.digest)?)
    }

    /// The entries of a content.
    pub(super) fn entries_of(
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

    pub(super) fn link_of(&self, entry: &Entry) -> Option<Link> {
        Some(Link {
            repo: self.repos.get(entry.repo)?.name.clone(),
            kind: entry.kind,
            digest: self.contents.get(entry.content)?.digest(),
        })
    }

    // --- Adding and using ----------------------------------------------------------------------

    pub(super) fn intern_repo(&mut self, name: &RepoName) -> Option<Id<Repo>> {
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

    pub(super) fn intern_content(&mut self, digest: &Digest) -> Option<Id<Content>> {
        if let Some(known) = self.find_content(digest) {
            return Some(known);
        }
        let hash = self.hash_digest(digest);
        let parents = self.take_awaited(hash);
        let id = self.contents.insert(Content {
            digest: digest.into(),
            size: 0,
            last_use: Moment::default(),
            ranked: 0,
            first: None,
            parents,
            holds: 0,
            manifest: None,
            flags: Flags::default(),
        })?;
        let (hasher, contents) = (&self.hasher, &self.contents);
        self.by_digest.insert(hash, id, |id| {
            let content: Option<&Content> = contents.get(id);
            content.map_or(0, |content| hasher.hash_one(content.digest()))
        });
        Some(id)
    }

    fn insert_entry(
        &mut self,
        repo: Id<Repo>,
        kind: LinkKind,
        content: Id<Content>,
        (created, last_use): (Moment, Moment),
    ) -> Option<Id<Entry>> {
        let first = self.contents.get(content)?.first;
        let id = self.entries.insert(Entry {
            repo,
            content,
            next: first,
            queued: 0,
            created: created.seconds(),
            last_use,
            kind,
            flags: Flags::default(),
        })?;
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
    pub(super) fn touch(
        &mut self,
        repo: &RepoName,
        kind: LinkKind,
        digest: &Digest,
        size: u64,
        now: Moment,
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
            None => self.insert_entry(repo, kind, content, (now, now))?,
        };
        let known = self.entries.get_mut(entry)?;
        known.last_use = known.last_use.max(now);
        known.flags.set(entry_flag::SEEN);
        self.mark_dirty(entry);
        let used = self.contents.get_mut(content)?;
        used.last_use = used.last_use.max(now);
        self.file_present(content, size);
        Some(())
    }

    /// The store has the file of this content, of so many bytes.
    pub(super) fn file_present(&mut self, id: Id<Content>, size: u64) {
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
        content.flags.set(content_flag::FILE);
        content.size = size;
        self.used = self.used.saturating_add(size);
        self.rank(id);
    }

    /// The store has the file no more.
    pub(super) fn file_removed(&mut self, id: Id<Content>) {
        let Some(content) = self.contents.get_mut(id) else {
            return;
        };
        if content.flags.has(content_flag::FILE) {
            content.flags.clear(content_flag::FILE);
            self.used = self.used.saturating_sub(content.size);
            self.spare(id);
            self.forget_references(id);
            self.rank(id);
        }
    }

    /// Puts an entry of the state file in. One that is known already keeps the wider span of times.
    pub(super) fn restore(
        &mut self,
        repo: Id<Repo>,
        kind: LinkKind,
        digest: &Digest,
        (created, last_use): (Moment, Moment),
    ) -> Option<()> {
        let content = self.intern_content(digest)?;
        let known = self.contents.get_mut(content)?;
        known.last_use = known.last_use.max(last_use);
        let Some(entry) = self.find_entry(repo, kind, content) else {
            self.insert_entry(repo, kind, content, (created, last_use))?;
            return Some(());
        };
        let known = self.entries.get_mut(entry)?;
        known.created = known.created.min(created.seconds());
        known.last_use = known.last_use.max(last_use);
        Some(())
    }

    /// A link was seen in the store. One that no state knows starts its time now, or has that of
    /// the same content linked in the other way, which share one entry in the file.
    pub(super) fn confirm(&mut self, link: &Link, now: Moment) -> Option<()> {
        let (repo, content) = (
            self.intern_repo(&link.repo)?,
            self.intern_content(&link.digest)?,
        );
        if let Some(known) = self.find_entry(repo, link.kind, content) {
            self.entries.get_mut(known)?.flags.set(entry_flag::SEEN);
            return Some(());
        }
        let other = match link.kind {
            LinkKind::Layer => LinkKind::Revision,
            LinkKind::Revision => LinkKind::Layer,
        };
        let sibling = self.find_entry(repo, other, content);
        let times = sibling
            .and_then(|id| self.entries.get(id))
            .map_or((now, now), |entry| {
                (Moment::from_seconds(entry.created), entry.last_use)
            });
        let entry = self.insert_entry(repo, link.kind, content, times)?;
        let known = self.contents.get_mut(content)?;
        known.last_use = known.last_use.max(times.1);
        self.entries.get_mut(entry)?.flags.set(entry_flag::SEEN);
        self.mark_dirty(entry);
        Some(())
    }

    // --- Removing ------------------------------------------------------------------------------

    /// Forgets an entry whose link is gone.
    pub(super) fn remove_entry(&mut self, id: Id<Entry>) -> Option<()> {
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
    pub(super) fn release_content(&mut self, id: Id<Content>) {
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

    // --- Time ----------------------------------------------------------------------------------

    /// What was due at the start waits this long.
    pub(super) fn set_grace(&mut self, grace: Duration) {
        self.grace = grace;
    }

    /// When an entry expires, in whole seconds, rounded up; none is never.
    pub(super) fn deadline(&self, id: Id<Entry>) -> Option<u32> {
        let entry = self.entries.get(id)?;
        let ttl = self.repos.get(entry.repo)?.ttl?;
        let created = Moment::from_seconds(entry.created);
        let base = match self.policy.mode {
            TtlMode::Sliding => entry.last_use,
            TtlMode::Fixed => created,
        };
        let ttl = Duration::from_secs(ttl.into());
        let mut deadline = base.after(ttl);
        if base < self.started {
            deadline = deadline.max(self.started.after(ttl.min(self.grace)));
        }
        Some(deadline.after(Duration::from_millis(999)).seconds())
    }

    /// Whether an entry's time was up when the mirror started.
    pub(super) fn is_overdue(&self, id: Id<Entry>) -> bool {
        self.entries.get(id).is_some_and(|entry| {
            let ttl = self.repos.get(entry.repo).and_then(|repo| repo.ttl);
            let base = match self.policy.mode {
                TtlMode::Sliding => entry.last_use,
                TtlMode::Fixed => Moment::from_seconds(entry.created),
            };
            ttl.is_some_and(|ttl| base.after(Duration::from_secs(ttl.into())) <= self.started)
        })
    }

    // --- Tags ----------------------------------------------------------------------------------

    /// A tag names a manifest that the repository links; otherwise nothing is noted.
    pub(super) fn set_tag(&mut self, repo: &RepoName, tag: &Tag, digest: &Digest) -> Option<()> {
        let hash = self.hash_digest(digest);
        let id = self.find_repo(repo.as_str())?;
        self.repos.get_mut(id)?.tags.insert(tag.clone(), hash);
        Some(())
    }

    pub(super) fn remove_tag(&mut self, repo: &RepoName, tag: &Tag) -> Option<()> {
        let id = self.find_repo(repo.as_str())?;
        self.repos.get_mut(id)?.tags.remove(tag).map(drop)
    }

    // --- Saving --------------------------------------------------------------------------------

    fn mark_dirty(&mut self, id: Id<Entry>) {
        if self.journaling
            && let Some(entry) = self.entries.get_mut(id)
            && !entry.flags.has(entry_flag::DIRTY)
        {
            entry.flags.set(entry_flag::DIRTY);
            self.news.schedule |= self.dirty.is_empty();
            self.dirty.push(id);
        }
    }

    pub(super) fn has_changes(&self) -> bool {
        !self.dirty.is_empty() || !self.removed.is_empty()
    }

    /// Takes at most `max` changes of each kind.
    pub(super) fn take_changes(&mut self, max: usize) -> Changes {
        let removed = if self.removed.len() > max {
            self.removed.drain(..max).collect()
        } else {
            std::mem::take(&mut self.removed)
        };
        // What is put may have been removed before, so removals are all written first.
        if !self.removed.is_empty() {
            return Changes {
                removed,
                put: Vec::new(),
            };
        }
        let from = self.dirty.len().saturating_sub(max);
        let mut put = Vec::with_capacity(self.dirty.len() - from);
        for id in self.dirty.split_off(from) {
            let Some(entry) = self.entries.get_mut(id) else {
                continue;
            };
            // An id that was used again may be here twice.
            if entry.flags.has(entry_flag::DIRTY) {
                entry.flags.clear(entry_flag::DIRTY);
                put.extend(self.record(id));
            }
        }
        Changes { removed, put }
    }

    /// How an entry is written down.
    pub(super) fn record(&self, id: Id<Entry>) -> Option<Record> {
        let entry = self.entries.get(id)?;
        Some(Record {
            link: self.link_of(entry)?,
            created: Moment::from_seconds(entry.created),
            last_use: entry.last_use,
            expiry: self.deadline(id).map(Moment::from_seconds),
        })
    }

    /// A page of everything, for the snapshot; and where the next one begins.
    pub(super) fn records(&self, from: usize, max: usize) -> (Vec<Record>, Option<usize>) {
        let (page, next) = self.entries.page(from, max);
        let own = page.into_iter().filter(|id| !self.is_shadowed(*id));
        (own.filter_map(|id| self.record(id)).collect(), next)
    }

    /// Whether the entry has no line of its own in the snapshot: the file has one for each
    /// repository and digest, which is the manifest's.
    fn is_shadowed(&self, id: Id<Entry>) -> bool {
        self.entries.get(id).is_some_and(|entry| {
            entry.kind == LinkKind::Layer
                && self
                    .find_entry(entry.repo, LinkKind::Revision, entry.content)
                    .is_some()
        })
    }
}
