//! What is cached, in memory: which repositories link which blobs, since when, and when each link was
//! last used.
//!
//! Everything is behind one lock that is held for microseconds: no method here does I/O, and those
//! that visit many values do it in pages. [`Index`] owns one structure for each question:
//!
//! ```text
//! Table<Repo>, Table<Blob>, Table<Entry>  the values, by id and by key; the entries of a blob are a list
//! Graph                                   what manifests refer to
//! Order (deadlines), Order (LRU)          what is due next, what is evicted next
//! DeleteQueue                             what the deletion task looks at
//! Pins                                    images that operators keep
//! Space                                   bytes: limits, used, reserved, being evicted
//! Changes                                 what the journal lacks
//! ```
//!
//! Three enums are the states of cached content. A use, `touch`, keeps a link that isn't marked; making
//! the link again, `link`, keeps any.
//!
//! ```text
//! BlobState   Absent --file found or committed--> Present <--> Evicting --file removed--> Absent
//!             Present --damaged--> Quarantined --new file committed--> Present
//! Turn        Idle --> Queued --> Deleting --> Idle       (Queued --> Held, while the blob is held)
//! LinkState   Unconfirmed --seen in the store--> Kept --TTL over--> Expired --> removed, or Failed
//!             any --purged, or its blob is missing--> Marked --> removed, or Failed
//! ```
//!
//! An id that names nothing, a sum below zero and the like are defects: a panic in tests, an error in
//! the log otherwise. `check_invariants` compares all of it, after each step of the model test.

mod build;
mod claims;
mod deletion;
mod eviction;
mod files;
mod hosted;
#[cfg(test)]
mod invariants;
mod links;
mod losses;
mod order;
mod pins;
mod quota;
mod references;
mod report;
mod selection;
mod settings;
mod slab;
mod time;
mod values;

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::policy::{GRACE, Space};
use super::state::file::Origin;
use super::state::timestamp::Timestamp;
use super::{CacheSettings, Upkeep};
use crate::oci::{Digest, RepoName};
use crate::storage::{Link, LinkKind};
pub(crate) use build::{Settled, Unreadables};
pub(crate) use claims::Claim;
pub use claims::ManifestPart;
use deletion::DeleteQueue;
pub(crate) use deletion::{DueLink, Job, RETRY};
pub(crate) use eviction::SpaceReply;
pub(crate) use files::Trust;
use hosted::HostedSpaces;
use order::Order;
pub(crate) use pins::Pins;
use references::Graph;
pub use report::{EntryView, ImageView, Usage};
pub use selection::{Selection, SelectionError};
pub(crate) use slab::Id;
use slab::{Keyed as _, Table};
use time::Changes;
pub(crate) use values::Blob;
use values::{Entry, Repo};

/// A link of a repository to a digest.
pub(crate) type LinkKey<'a> = (&'a RepoName, LinkKind, &'a Digest);

/// Links of one blob that are looked through before the table is asked.
const FEW: usize = 4;

/// The wake-ups that a step under the lock causes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct WakeUps {
    /// The scheduler: a new next deadline, the first change to save, or space that runs out.
    pub(crate) schedule: bool,
    /// The deletion task: there is something to delete.
    pub(crate) delete: bool,
    /// Waiting requests: for space, for a hold, or for the end of deleting.
    pub(crate) freed: bool,
}

/// How many deletions have begun. The index counts one under its lock before it removes anything;
/// then [`Recent`](super::recent::Recent) forgets all links.
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
    settings: Arc<CacheSettings>,
    started: Timestamp,
    /// What was due at the start waits this long.
    grace: Duration,
    repos: Table<Repo>,
    blobs: Table<Blob>,
    entries: Table<Entry>,
    graph: Graph,
    /// Entries by deadline, in seconds.
    deadlines: Order<u32, Entry>,
    /// Images by last use, in milliseconds.
    lru: Order<u64, Blob>,
    deletions: DeleteQueue,
    /// Those that were made at run time.
    pins: Pins,
    pub(crate) space: Space,
    changes: Changes,
    hosted: HostedSpaces,
    /// Content whose file may be stored before its links are, and the repository that its upstream gave
    /// it for.
    arriving: Vec<(Digest, RepoName)>,
    /// Everything in the store has been seen: from now on links and files may be deleted.
    pub(crate) complete: bool,
    /// Why the store couldn't be listed, if the last attempt failed.
    pub(crate) unlisted: Option<String>,
    pub(crate) epoch: Arc<DeletionEpoch>,
    wake_ups: WakeUps,
}

impl Index {
    pub(crate) fn new(settings: Arc<CacheSettings>, started: Timestamp) -> Self {
        let journaling = settings.state.is_some() && settings.upkeep == Upkeep::Full;
        let hasher = RandomState::new();
        // These stand in for values that should be there and aren't.
        let link = (Id::NONE, LinkKind::Layer, Id::NONE);
        let times = (Origin::Created(started), started);
        Self {
            space: Space::new(&settings),
            hosted: HostedSpaces::new(&settings),
            settings,
            started,
            grace: GRACE,
            repos: Table::new(Repo::vacant(), &hasher),
            blobs: Table::new(Blob::new(&Digest::Sha256([0; 32]), 0), &hasher),
            entries: Table::new(Entry::new(link, times), &hasher),
            hasher,
            graph: Graph::new(),
            deadlines: Order::default(),
            lru: Order::default(),
            deletions: DeleteQueue::default(),
            pins: Pins::default(),
            changes: Changes::new(journaling),
            arriving: Vec::new(),
            complete: false,
            unlisted: None,
            epoch: Arc::default(),
            wake_ups: WakeUps::default(),
        }
    }

    pub(crate) fn take_wake_ups(&mut self) -> WakeUps {
        std::mem::take(&mut self.wake_ups)
    }

    // --- Finding -------------------------------------------------------------------------------

    pub(crate) fn hash_digest(&self, digest: &Digest) -> u64 {
        self.hasher.hash_one(digest)
    }

    fn hash_blob(&self, id: Id<Blob>) -> u64 {
        self.blobs.get(id).hash(&self.hasher)
    }

    fn find_repo(&self, name: &str) -> Option<Id<Repo>> {
        let hash = self.hasher.hash_one(name);
        self.repos.lookup(hash, |repo| repo.name.as_str() == name)
    }

    fn find_blob(&self, digest: &Digest) -> Option<Id<Blob>> {
        let hash = self.hash_digest(digest);
        self.blobs.lookup(hash, |blob| blob.is(digest))
    }

    /// By hash alone: with 64 bits keyed by chance, two digests of one hash won't be met.
    fn find_hashed(&self, hash: u64) -> Option<Id<Blob>> {
        self.blobs
            .lookup(hash, |blob| blob.hash(&self.hasher) == hash)
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
        let hash = self.hasher.hash_one((repo, kind, blob));
        self.entries
            .lookup(hash, |entry| entry.is(repo, kind, blob))
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
        let repo = &self.repos.get(entry.repo).name;
        Link::new(repo, entry.kind, &self.blobs.get(entry.blob).digest())
    }

    pub(crate) fn has_file(&self, digest: &Digest) -> bool {
        let blob = self.find_blob(digest).map(|id| self.blobs.get(id));
        blob.is_some_and(|blob| blob.state.has_file())
    }

    /// Makes room for so many entries, before they are loaded.
    pub(crate) fn expect_entries(&mut self, entries: usize) {
        self.blobs.reserve(entries);
        self.entries.reserve(entries);
    }
}
