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
mod files;
mod graph;
#[cfg(test)]
mod invariants;
mod links;
mod order;
mod queue;
mod references;
mod report;
mod slab;
mod time;

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::policy::{GRACE, Space, TtlPolicy};
use super::state::timestamp::Timestamp;
use crate::oci::{Digest, ImagePattern, RepoName};
use crate::storage::{Link, LinkKind};
pub(crate) use blob::Blob;
pub(crate) use build::{Settled, Unreadables};
use changes::Changes;
pub(crate) use deletion::{DueLink, Job, RETRY};
use entry::{Entry, Repo};
pub(crate) use eviction::SpaceReply;
pub(crate) use files::Trust;
use graph::Graph;
pub use graph::References;
use order::Order;
use queue::DeleteQueue;
pub use report::{EntryView, ImageView, Selection, SelectionError, Usage};
pub(crate) use slab::Id;
use slab::{Slab, Table};

/// A link of a repository to a digest.
pub(crate) type LinkKey<'a> = (&'a RepoName, LinkKind, &'a Digest);

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
    pins: Vec<ImagePattern>,
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
    deadlines: Order<u32, Entry>,
    /// Images by last use, in milliseconds.
    lru: Order<u64, Blob>,
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
        pins: Vec<ImagePattern>,
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

    fn find_link(&self, (repo, kind, digest): LinkKey<'_>) -> Option<Id<Entry>> {
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

    /// Makes room for so many entries, before they are loaded.
    pub(crate) fn expect_entries(&mut self, entries: usize) {
        let (hasher, blobs, known) = (&self.hasher, &self.blobs, &self.entries);
        let rehash = |id| hasher.hash_one(blobs.get(id).digest());
        self.by_digest.reserve(entries, rehash);
        let rehash = |id| hash_entry(hasher, known.get(id));
        self.by_link.reserve(entries, rehash);
    }
}

fn hash_entry(hasher: &RandomState, entry: &Entry) -> u64 {
    hasher.hash_one((entry.repo, entry.kind, entry.blob))
}
