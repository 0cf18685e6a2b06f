//! What is cached, in memory: which repositories link which blobs, since when, and when each link was
//! last used.
//!
//! Everything is behind one lock that is held for microseconds: no method here does I/O, and those
//! that visit much do it in pages. [`Index`] owns one structure for each question, and each of them
//! keeps its own invariants:
//!
//! ```text
//! Slab<Repo>, Slab<Blob>, Slab<Entry>   the values, by id; the entries of a blob are a list
//! Table                                 ids by name, by digest, by link
//! Graph                                 what manifests refer to
//! Order (deadlines), Order (LRU)        what is due next, what is evicted next
//! DeleteQueue                           what the deletion task looks at
//! Space                                 bytes: limits, used, reserved, being evicted
//! Changes                               what the journal lacks
//! ```
//!
//! Two enums are the lives of what is cached. A use, `touch`, keeps a link that isn't marked; making
//! the link again, `link`, keeps any.
//!
//! ```text
//! BlobState   Absent --file found or committed--> Present <--> Evicting --file removed--> Absent
//!             Present --damaged--> Quarantined --new file committed--> Present
//! Turn        Idle --> Queued --> Deleting --> Idle       (Queued --> Held, while somebody holds it)
//! LinkState   Unconfirmed --seen in the store--> Kept --TTL over--> Expired --> removed, or Failed
//!             any --purged, or its blob is missing--> Marked --> removed, or Failed
//! ```
//!
//! An id that names nothing, a sum below zero and the like are defects: a panic in tests, an error in
//! the log otherwise. `check_invariants` compares all of it, after each step of the model test.

mod blob;
mod build;
mod changes;
mod deletion;
mod entry;
mod eviction;
mod graph;
#[cfg(test)]
mod invariants;
mod order;
mod queue;
mod references;
mod report;
mod slab;
mod time;
mod trust;

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::policy::{GRACE, Pin, Space, TtlPolicy};
use super::state::record::Origin;
use super::state::timestamp::Timestamp;
use crate::oci::{Digest, ManifestType, RepoName, Tag};
use crate::storage::{Link, LinkKind};
pub(crate) use blob::Blob;
use blob::BlobState;
pub(crate) use build::{Settled, Unreadables};
use changes::Changes;
pub(crate) use deletion::{DueLink, Job, RETRY};
use entry::{Entry, LinkState, Repo};
pub(crate) use eviction::Admission;
use graph::Graph;
pub use graph::References;
use order::Order;
use queue::DeleteQueue;
pub use report::{EntryView, ImageView, Selection, SelectionError, Usage};
pub(crate) use slab::Id;
use slab::{Slab, Table};
pub(crate) use trust::Trust;

/// Links of one blob that are looked through before the table is asked.
const FEW: usize = 4;

/// Whom a step under the lock has to wake.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct WakeUps {
    /// The scheduler: a new next deadline, the first change to save, or space that runs out.
    pub(crate) schedule: bool,
    /// The deletion task: there is something to delete.
    pub(crate) delete: bool,
    /// Waiting requests: for space, for a hold, or for the end of deleting.
    pub(crate) freed: bool,
}

/// How many deletions have begun. The index counts them under its lock, before anything is removed;
/// whatever was known of links before is void then.
#[derive(Debug, Default)]
pub(crate) struct DeletionEpoch(AtomicU64);

impl DeletionEpoch {
    pub(crate) fn begin(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn current(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

#[derive(Debug)]
pub(crate) struct Index {
    hasher: RandomState,
    ttl: TtlPolicy,
    pins: Vec<Pin>,
    started: Timestamp,
    /// What was due at the start waits this long.
    grace: Duration,
    repos: Slab<Repo>,
    by_name: Table<Repo>,
    blobs: Slab<Blob>,
    by_digest: Table<Blob>,
    entries: Slab<Entry>,
    by_link: Table<Entry>,
    graph: Graph,
    /// Entries by deadline, in seconds.
    deadlines: Order<u64, Entry>,
    /// Images by last use, in milliseconds.
    lru: Order<(u64, u32), Blob>,
    deletions: DeleteQueue,
    space: Space,
    changes: Changes,
    /// Blobs that a scrub is reading.
    scrubbing: HashSet<Id<Blob>>,
    /// Everything in the store has been seen: from now on links and files may be deleted.
    complete: bool,
    /// Why the store couldn't be listed, if the last attempt failed.
    unlisted: Option<String>,
    epoch: Arc<DeletionEpoch>,
    wake_ups: WakeUps,
}

impl Index {
    pub(crate) fn new(
        ttl: TtlPolicy,
        pins: Vec<Pin>,
        space: Space,
        started: Timestamp,
        journaling: bool,
    ) -> Self {
        Self {
            hasher: RandomState::new(),
            ttl,
            pins,
            started,
            grace: GRACE,
            repos: Slab::new(Repo::vacant()),
            by_name: Table::default(),
            blobs: Slab::new(Blob::vacant()),
            by_digest: Table::default(),
            entries: Slab::new(Entry::vacant()),
            by_link: Table::default(),
            graph: Graph::new(),
            deadlines: Order::default(),
            lru: Order::default(),
            deletions: DeleteQueue::default(),
            space,
            changes: Changes::new(journaling),
            scrubbing: HashSet::new(),
            complete: false,
            unlisted: None,
            epoch: Arc::default(),
            wake_ups: WakeUps::default(),
        }
    }

    pub(crate) fn epoch(&self) -> &Arc<DeletionEpoch> {
        &self.epoch
    }

    pub(crate) fn take_wake_ups(&mut self) -> WakeUps {
        std::mem::take(&mut self.wake_ups)
    }

    // --- Finding -------------------------------------------------------------------------------

    pub(crate) fn hash_digest(&self, digest: &Digest) -> u64 {
        self.hasher.hash_one(digest)
    }

    fn hash_blob(&self, id: Id<Blob>) -> u64 {
        self.hash_digest(&self.blobs.get(id).digest())
    }

    fn hash_link(&self, repo: Id<Repo>, kind: LinkKind, blob: Id<Blob>) -> u64 {
        self.hasher.hash_one((repo, kind, blob))
    }

    fn find_repo(&self, name: &str) -> Option<Id<Repo>> {
        let is = |id| self.repos.get(id).name.as_str() == name;
        self.by_name.find(self.hasher.hash_one(name), is)
    }

    fn find_blob(&self, digest: &Digest) -> Option<Id<Blob>> {
        let is = |id| self.blobs.get(id).is(digest);
        self.by_digest.find(self.hash_digest(digest), is)
    }

    /// By hash alone: with 64 bits keyed by chance, two digests of one hash won't be met.
    fn find_hashed(&self, hash: u64) -> Option<Id<Blob>> {
        self.by_digest.find(hash, |id| self.hash_blob(id) == hash)
    }

    fn find_entry(&self, repo: Id<Repo>, kind: LinkKind, blob: Id<Blob>) -> Option<Id<Entry>> {
        // Most blobs have few links: that saves two reads of cold memory.
        let mut few = self.entries_of(blob);
        for _ in 0..FEW {
            match few.next() {
                None => return None,
                Some((id, entry)) if entry.is(repo, kind, blob) => return Some(id),
                Some(_) => {}
            }
        }
        let is = |id| self.entries.get(id).is(repo, kind, blob);
        self.by_link.find(self.hash_link(repo, kind, blob), is)
    }

    fn find_link(&self, repo: &RepoName, kind: LinkKind, digest: &Digest) -> Option<Id<Entry>> {
        let blob = self.find_blob(digest)?;
        self.find_entry(self.find_repo(repo.as_str())?, kind, blob)
    }

    /// The entries of a blob.
    fn entries_of(&self, blob: Id<Blob>) -> impl Iterator<Item = (Id<Entry>, &Entry)> {
        let mut next = self.blobs.get(blob).first;
        std::iter::from_fn(move || {
            let id = next?;
            let entry = self.entries.get(id);
            next = entry.next;
            Some((id, entry))
        })
    }

    fn link_of(&self, entry: &Entry) -> Link {
        Link {
            repo: self.repos.get(entry.repo).name.clone(),
            kind: entry.kind,
            digest: self.blobs.get(entry.blob).digest(),
        }
    }

    pub(crate) fn has_file(&self, digest: &Digest) -> bool {
        let blob = self.find_blob(digest).map(|id| self.blobs.get(id));
        blob.is_some_and(|blob| blob.state.has_file())
    }

    /// The number of entries.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    // --- Adding and using ----------------------------------------------------------------------

    /// Makes room for so many entries, before they are loaded.
    pub(crate) fn reserve(&mut self, entries: usize) {
        let (hasher, blobs, known) = (&self.hasher, &self.blobs, &self.entries);
        let rehash = |id| hasher.hash_one(blobs.get(id).digest());
        self.by_digest.reserve(entries, rehash);
        let rehash = |id| hash_entry(hasher, known.get(id));
        self.by_link.reserve(entries, rehash);
    }

    fn intern_repo(&mut self, name: &RepoName) -> Id<Repo> {
        if let Some(known) = self.find_repo(name.as_str()) {
            return known;
        }
        let repo = Repo::new(name.clone(), self.ttl.ttl(name));
        let id = self.repos.insert(repo);
        let (hasher, repos) = (&self.hasher, &self.repos);
        let rehash = |id| hasher.hash_one(repos.get(id).name.as_str());
        self.by_name.insert(rehash(id), id, rehash);
        id
    }

    fn intern_blob(&mut self, digest: &Digest) -> Id<Blob> {
        if let Some(known) = self.find_blob(digest) {
            return known;
        }
        let hash = self.hash_digest(digest);
        let blob = Blob::new(digest, self.graph.take_count(hash));
        let id = self.blobs.insert(blob);
        let (hasher, blobs) = (&self.hasher, &self.blobs);
        let rehash = |id| hasher.hash_one(blobs.get(id).digest());
        self.by_digest.insert(hash, id, rehash);
        id
    }

    /// Adds an entry that isn't there.
    fn insert_entry(
        &mut self,
        (repo, kind, blob): (Id<Repo>, LinkKind, Id<Blob>),
        times: (Origin, Timestamp),
    ) -> Id<Entry> {
        let mut entry = Entry::new((repo, kind, blob), times);
        entry.next = self.blobs.get(blob).first;
        let id = self.entries.insert(entry);
        self.blobs.get_mut(blob).first = Some(id);
        self.repos.get_mut(repo).entries += 1;
        let (hasher, entries) = (&self.hasher, &self.entries);
        let rehash = |id| hash_entry(hasher, entries.get(id));
        self.by_link.insert(rehash(id), id, rehash);
        self.schedule_deadline(id);
        id
    }

    /// A link was used, and its file is there, with `size` bytes. Nothing is noted of a blob that is
    /// being deleted.
    pub(crate) fn touch(
        &mut self,
        repo: &RepoName,
        kind: LinkKind,
        digest: &Digest,
        size: u64,
        now: Timestamp,
    ) {
        self.use_stored(repo, kind, digest, size, now);
    }

    /// A link was made in the store, and its file is there, with `size` bytes: it stays, even if the
    /// one that was there before was marked.
    pub(crate) fn link(
        &mut self,
        repo: &RepoName,
        kind: LinkKind,
        digest: &Digest,
        size: u64,
        now: Timestamp,
    ) {
        if let Some(entry) = self.use_stored(repo, kind, digest, size, now) {
            self.keep(entry);
        }
    }

    fn use_stored(
        &mut self,
        repo: &RepoName,
        kind: LinkKind,
        digest: &Digest,
        size: u64,
        now: Timestamp,
    ) -> Option<Id<Entry>> {
        let blob = self.intern_blob(digest);
        if self.blobs.get(blob).turn.is_deleting() {
            return None;
        }
        let repo = self.intern_repo(repo);
        let entry = match self.find_entry(repo, kind, blob) {
            Some(known) => known,
            None => self.insert_entry((repo, kind, blob), (Origin::Created(now), now)),
        };
        self.note_use(entry, blob, now);
        self.confirm(entry);
        // A late use of a file that has been quarantined since doesn't bring it back: a commit does.
        if self.blobs.get(blob).state != BlobState::Quarantined {
            self.file_present(blob, size);
        }
        Some(entry)
    }

    /// Notes a use of a link that the store has, whose file is there, and that nothing is about to
    /// remove. False, and nothing is noted, when it isn't one.
    pub(crate) fn touch_kept(
        &mut self,
        repo: &RepoName,
        kind: LinkKind,
        digest: &Digest,
        now: Timestamp,
    ) -> bool {
        self.find_kept(repo, kind, digest)
            .map(|(entry, blob)| self.note_use(entry, blob, now))
            .is_some()
    }

    /// Like [`touch_kept`](Self::touch_kept) for a manifest, with its size and type; none also when
    /// the manifest hasn't been read.
    pub(crate) fn touch_manifest(
        &mut self,
        repo: &RepoName,
        digest: &Digest,
        now: Timestamp,
    ) -> Option<(u64, ManifestType)> {
        let (entry, id) = self.find_kept(repo, LinkKind::Revision, digest)?;
        let blob = self.blobs.get(id);
        let found = (blob.size, self.graph.get(blob.manifest?).media_type);
        self.note_use(entry, id, now);
        Some(found)
    }

    fn find_kept(
        &self,
        repo: &RepoName,
        kind: LinkKind,
        digest: &Digest,
    ) -> Option<(Id<Entry>, Id<Blob>)> {
        let id = self.find_blob(digest)?;
        let entry = self.find_entry(self.find_repo(repo.as_str())?, kind, id)?;
        let blob = self.blobs.get(id);
        let kept = blob.state == BlobState::Present
            && !blob.turn.is_deleting()
            && self.entries.get(entry).state == LinkState::Kept;
        kept.then_some((entry, id))
    }

    fn note_use(&mut self, id: Id<Entry>, blob: Id<Blob>, now: Timestamp) {
        let entry = self.entries.get_mut(id);
        entry.last_use = entry.last_use.max(now);
        self.wake_ups.schedule |= self.changes.mark(id, &mut entry.dirty);
        self.blobs.get_mut(blob).was_used(now);
    }

    fn mark_dirty(&mut self, id: Id<Entry>) {
        let entry = self.entries.get_mut(id);
        self.wake_ups.schedule |= self.changes.mark(id, &mut entry.dirty);
    }

    /// The store has the link: it is kept, unless it is marked.
    fn confirm(&mut self, id: Id<Entry>) {
        match self.entries.get(id).state {
            LinkState::Kept | LinkState::Marked => {}
            LinkState::Unconfirmed | LinkState::Expired | LinkState::Failed { .. } => self.keep(id),
        }
    }

    /// Nothing removes the link before its time is over.
    fn keep(&mut self, id: Id<Entry>) {
        let entry = self.entries.get_mut(id);
        entry.state = LinkState::Kept;
        // One that was due is in no order.
        if entry.deadline.time().is_none() {
            self.schedule_deadline(id);
        }
    }

    // --- Files ---------------------------------------------------------------------------------

    /// Changes a blob's state, and with it the sums and the LRU order.
    fn set_state(&mut self, id: Id<Blob>, state: BlobState) {
        let blob = self.blobs.get_mut(id);
        let (before, size) = (std::mem::replace(&mut blob.state, state), blob.size);
        if before.has_file() != state.has_file() {
            self.space.count_file(size, state.has_file());
        }
        let evicting = |state| state == BlobState::Evicting;
        if evicting(before) != evicting(state) {
            self.space.count_eviction(size, evicting(state));
        }
        self.rank(id);
    }

    /// The store has the file of a digest, of so many bytes.
    pub(crate) fn file_found(&mut self, digest: &Digest, size: u64) {
        let id = self.intern_blob(digest);
        self.file_present(id, size);
    }

    /// The store has the file of this blob, of so many bytes.
    pub(crate) fn file_present(&mut self, id: Id<Blob>, size: u64) {
        let blob = self.blobs.get_mut(id);
        if blob.state.has_file() && blob.size == size {
            return;
        }
        if blob.check.modified().is_some() && blob.size != size {
            blob.check = blob::Check::WRONG_SIZE;
        }
        self.set_state(id, BlobState::Absent);
        self.blobs.get_mut(id).size = size;
        self.set_state(id, BlobState::Present);
    }

    /// The store no longer has the file.
    fn file_removed(&mut self, id: Id<Blob>) {
        let blob = self.blobs.get_mut(id);
        blob.check = blob::Check::UNKNOWN;
        if blob.state.has_file() {
            self.set_state(id, BlobState::Absent);
            self.forget_references(id);
        }
    }

    // --- Holds and space -----------------------------------------------------------------------

    /// Keeps links and file of a digest, cached or not. None while it is being deleted.
    pub(crate) fn hold(&mut self, digest: &Digest) -> Option<Id<Blob>> {
        let id = self.intern_blob(digest);
        let blob = self.blobs.get_mut(id);
        if blob.turn.is_deleting() {
            return None;
        }
        blob.holds += 1;
        Some(id)
    }

    pub(crate) fn release(&mut self, id: Id<Blob>) {
        let blob = self.blobs.get_mut(id);
        debug_assert!(blob.holds > 0, "a hold too many is released");
        blob.holds = blob.holds.saturating_sub(1);
        if blob.holds > 0 {
            return;
        }
        self.wake_ups.freed = true;
        if blob.turn == queue::Turn::Held
            || blob.is_orphan()
            || blob.state == BlobState::Quarantined
        {
            self.enqueue(id);
        } else {
            self.forget_unneeded(id);
        }
    }

    /// Reserved bytes, of which some are on disk, are given back.
    pub(crate) fn give_back(&mut self, bytes: u64, filled: u64) {
        self.space.give_back(bytes, filled);
        self.wake_ups.freed = true;
    }

    pub(crate) fn space(&self) -> &Space {
        &self.space
    }

    /// For a reservation that writes.
    pub(crate) fn fill(&mut self, before: u64, after: u64) {
        self.space.fill(before, after);
    }

    pub(crate) fn measure(&mut self, free: Option<u64>, min_free: u64) {
        self.space.measure(free, min_free);
        self.wake_ups.freed = true;
    }

    // --- Removing ------------------------------------------------------------------------------

    /// Forgets an entry whose link is gone.
    fn remove_entry(&mut self, id: Id<Entry>) {
        let entry = self.entries.get_mut(id);
        self.deadlines.remove(id, &mut entry.deadline);
        let (repo, blob, next) = (entry.repo, entry.blob, entry.next);
        let entry = self.entries.get(id);
        let (hash, link) = (hash_entry(&self.hasher, entry), self.link_of(entry));
        self.wake_ups.schedule |= self.changes.remove(link);
        self.by_link.remove(hash, id);
        self.unchain(id, blob, next);
        self.entries.remove(id);
        let owner = self.repos.get_mut(repo);
        owner.entries = owner.entries.saturating_sub(1);
        if owner.entries == 0 {
            let hash = self.hasher.hash_one(owner.name.as_str());
            self.by_name.remove(hash, repo);
            self.repos.remove(repo);
        }
    }

    /// Takes an entry out of its blob's list.
    fn unchain(&mut self, id: Id<Entry>, blob: Id<Blob>, next: Option<Id<Entry>>) {
        let head = &mut self.blobs.get_mut(blob).first;
        if *head == Some(id) {
            *head = next;
            return;
        }
        let mut at = *head;
        while let Some(before) = at {
            let entry = self.entries.get_mut(before);
            at = entry.next;
            if at == Some(id) {
                entry.next = next;
                return;
            }
        }
        slab::broken("an entry isn't in its blob's list");
    }

    /// Forgets a blob of which nothing is known any more.
    fn forget_unneeded(&mut self, id: Id<Blob>) {
        let blob = self.blobs.get(id);
        let needed = blob.first.is_some()
            || blob.holds > 0
            || blob.state.has_file()
            || blob.turn != queue::Turn::Idle;
        if !needed {
            let (hash, parents) = (self.hash_blob(id), blob.parents);
            self.by_digest.remove(hash, id);
            self.blobs.remove(id);
            self.graph.put_count(hash, parents);
        }
    }

    // --- Tags ----------------------------------------------------------------------------------

    /// A tag names a manifest that the repository links; otherwise nothing is noted.
    pub(crate) fn set_tag(&mut self, repo: &RepoName, tag: &Tag, digest: &Digest) {
        let hash = self.hash_digest(digest);
        if let Some(id) = self.find_repo(repo.as_str()) {
            self.repos.get_mut(id).tags.insert(tag.clone(), hash);
        }
    }

    pub(crate) fn remove_tag(&mut self, repo: &RepoName, tag: &Tag) {
        if let Some(id) = self.find_repo(repo.as_str()) {
            self.repos.get_mut(id).tags.remove(tag);
        }
    }
}

fn hash_entry(hasher: &RandomState, entry: &Entry) -> u64 {
    hasher.hash_one((entry.repo, entry.kind, entry.blob))
}
