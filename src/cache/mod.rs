//! The one owner of cached content: opens it, admits it, links it, and decides what is removed.
//!
//! ```text
//! open, manifest        --> store, index (the use)         work, in tasks of its own:
//! admit, put_manifest   --> store, index (space, links)      reconcile   state files and store --> index
//! hold, reserve         --> index                            expiry      links whose time is over  --+
//! purge                 --> index                            eviction    images, when space is short |
//!                                                            scrub       damaged blobs               |
//!                                                            deletion    the delete queue <----------+
//! ```
//!
//! [`index`] knows every link of every repository: when it was made and last used. [`policy`] says
//! how long a link is kept and how much may be stored. [`state`] keeps the index across restarts.
//! [`work`] has the background tasks. Expiry, eviction and purging only queue; [`work::deletion`] is
//! the only deleter. It removes links, and a blob's file when no link in any repository and no hold
//! needs it.
//!
//! What must never happen: the file of something that is held or linked is removed; a save or a
//! deletion delays a request; a broken state file prevents the start; the limit is passed.
//!
//! Operations take a [`Hold`] before they link content or return it to be read, and note a link before
//! they drop the hold. Only a small warm blob is returned without one: it may be removed while it is
//! sent, and its open file stays readable.

mod admission;
mod capacity;
mod hosted;
mod index;
mod inner;
mod manifest_cache;
mod manifests;
mod open;
mod partials;
mod pins;
pub mod policy;
mod recent;
mod state;
#[cfg(test)]
mod tests;
mod verify;
mod work;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::oci::{Digest, ImagePattern, Manifest, RepoName, Tag};
use crate::storage::Store;
pub use crate::storage::{
    Content, Link, LinkKind, MAX_READ, Partial, Piece, Reader, Stage, StoreError, UploadFile,
};
pub(crate) use crate::storage::{KeyLock, KeyLocks};
use crate::tasks::Tasks;

pub use admission::{Admission, AdmitError};
pub use capacity::{Full, Hold, Reservation};
pub use hosted::{Charge, Damaged, Deleted, ManifestPush, PushError, PushedFile};
pub use index::ManifestPart;
pub use index::{EntryView, ImageView, Selection, SelectionError, Usage};
use index::{Index, Trust};
pub use inner::Counts;
use inner::Inner;
pub use inner::Loss;
pub use manifest_cache::{CachedManifest, ManifestMeta};
pub use open::{CachedBlob, Opened, ReadMode};
use partials::Partials;
pub use pins::{Pin, PinError};
pub use policy::{HostedPolicy, HostedRole, OverQuota, SpaceRequest, TtlPolicy};
use state::timestamp::Timestamp;
use verify::Verifier;
use work::deletion;
pub use work::scrub::{
    ABANDONED_AFTER, Finding, MAX_REPORTED, Removal, ScrubReport, ScrubSettings, Verdict,
};

pub use verify::{Integrity, VERIFIED_FIRST, Verification, WITHHELD};

/// How long a client waits for the index to be complete.
const PATIENCE: Duration = Duration::from_secs(10);
/// Entries or images in one page of a listing.
pub const MAX_PAGE: usize = 512;

/// Why the state couldn't be saved. It costs uses, not entries, and is tried again.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error("couldn't {operation} {}: {source}", path.display())]
    Io {
        /// A verb in the infinitive.
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("a blocking step was lost: {source}")]
    Lost { source: tokio::task::JoinError },
}

impl CacheError {
    fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            operation,
            path: path.to_owned(),
            source,
        }
    }
}

/// The store couldn't be listed, so that it isn't known what is cached. It is tried again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the store can't be listed: {reason}")]
pub struct NotReady {
    /// On one line.
    reason: String,
}

/// Returns how many bytes the file system has left; none when that is unknown. May block.
pub type FreeSpace = Arc<dyn Fn() -> Option<u64> + Send + Sync>;

/// Space that is to stay free on the file system.
#[derive(Clone)]
pub struct MinFree {
    pub bytes: u64,
    /// Whether images are evicted for it. Otherwise only the cache's growth ends.
    pub evicts: bool,
    pub free_space: FreeSpace,
}

impl fmt::Debug for MinFree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MinFree({} bytes)", self.bytes)
    }
}

/// The operator's settings of a cache.
#[derive(Debug, Clone)]
pub struct CacheSettings {
    pub ttl: TtlPolicy,
    /// Of hosted repositories: the first one that has a repository counts. Names don't change while the
    /// cache runs.
    pub hosted: Vec<HostedPolicy>,
    /// Images that are never evicted. They still expire, unless their repository has no TTL. For those
    /// that operators pin at run time, see [`Cache::pin`].
    pub pins: Vec<ImagePattern>,
    /// Bytes that all blobs together may have; none is no limit.
    pub max_size: Option<u64>,
    pub min_free: Option<MinFree>,
    /// Where the expiry state is kept ([`Layout::scheduler_state`](crate::storage::Layout)); none for
    /// a store that doesn't outlive the process either.
    pub state: Option<PathBuf>,
    pub upkeep: Upkeep,
    /// At first; see [`Cache::set_hosted_role`].
    pub hosted_role: HostedRole,
}

/// What the cache does to the store on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Upkeep {
    /// Removes expired, dangling and unlinked content, and saves the state.
    #[default]
    Full,
    /// Nothing: reads the state without writing it, and removes only what is purged. For commands that
    /// list or purge the cache while no server runs.
    None,
}

impl CacheSettings {
    /// Whether images are evicted to keep space free on the file system.
    fn evicts_for_free(&self) -> bool {
        let min_free = self.min_free.as_ref();
        min_free.is_some_and(|min_free| min_free.evicts)
    }

    /// Keeps everything for ever, without a state file.
    pub fn unlimited() -> Self {
        Self {
            ttl: TtlPolicy::sliding(None),
            hosted: Vec::new(),
            pins: Vec::new(),
            max_size: None,
            min_free: None,
            state: None,
            upkeep: Upkeep::Full,
            hosted_role: HostedRole::Decides,
        }
    }
}

/// The cache over one store. Clones share it.
#[derive(Debug, Clone)]
pub struct Cache {
    inner: Arc<Inner>,
    // Not part of `Inner`: reservations and verifications refer to it.
    partials: Arc<Partials>,
    verifier: Arc<Verifier>,
}

impl Cache {
    /// Starts. The index is built in the background, and until it is complete nothing is deleted;
    /// everything else can be called at once. `tasks` owns the tasks, `stop` ends them.
    pub fn start(
        store: Arc<dyn Store>,
        metrics: Arc<Metrics>,
        clock: Clock,
        settings: CacheSettings,
        tasks: &Tasks,
        stop: &CancellationToken,
    ) -> Self {
        store.measure_reads(metrics.store_reads());
        let hosted = settings.hosted.iter();
        store.set_hosted(
            hosted
                .flat_map(|policy| policy.repositories.clone())
                .collect(),
        );
        let inner = Arc::new(Inner::new((store, metrics, clock), settings, stop));
        tasks.spawn_required("cache", work::run(Arc::clone(&inner)));
        tasks.spawn_required("deletion", deletion::run(Arc::clone(&inner)));
        Self {
            inner,
            partials: Arc::default(),
            verifier: Arc::new(Verifier::new(tasks.tracker().clone())),
        }
    }

    /// Applies other limits, times to live and pins from now on; `state` and `upkeep` stay as they are.
    /// Returns once the deadline of each entry is the new one.
    pub async fn configure(&self, settings: CacheSettings) {
        let kept = &self.inner.settings;
        let settings = Arc::new(CacheSettings {
            state: kept.state.clone(),
            upkeep: kept.upkeep,
            ..settings
        });
        self.inner.with(|index| index.configure(settings));
        self.inner.measure().await;
        let inner = &self.inner;
        inner
            .pages(|index, at| index.renew_ttls(at, MAX_PAGE))
            .await;
        inner
            .pages(|index, at| index.renew_deadlines(at, MAX_PAGE))
            .await;
    }

    /// Changes who decides which hosted content stays. [`configure`](Self::configure) doesn't change it.
    /// Returns once the deadline and the order of eviction of each entry are right again.
    pub async fn set_hosted_role(&self, role: HostedRole) {
        if self.inner.with(|index| index.set_hosted_role(role)) {
            let renew = |index: &mut Index, at| index.renew_deadlines(at, MAX_PAGE);
            self.inner.pages(renew).await;
        }
    }

    /// Whether something is cached under a first component of repositories' names. Waits for the index
    /// to be complete.
    pub async fn has_repositories_under(&self, name: &str) -> Result<bool, NotReady> {
        self.ready().await?;
        let mut found = false;
        let look = |index: &mut Index, at| {
            let (here, next) = index.has_repositories_under(name, at, MAX_PAGE);
            found |= here;
            next
        };
        self.inner.pages(look).await;
        Ok(found)
    }

    /// Stops, and saves everything into the snapshot, which the reference registry can read.
    pub async fn stop(&self) {
        self.inner.quit.cancel();
        self.inner.ended.cancelled().await;
    }

    /// Waits until the whole store has been listed.
    pub async fn complete(&self) {
        self.inner.complete.cancelled().await;
    }

    /// Waits until the whole store has been listed, or listing it has failed.
    pub async fn ready(&self) -> Result<(), NotReady> {
        let is_ready = |index: &mut Index| match &index.unlisted {
            _ if index.complete => Some(Ok(())),
            Some(reason) => Some(Err(NotReady {
                reason: reason.clone(),
            })),
            None => None,
        };
        self.inner.until_freed(is_ready).await
    }

    /// Whether the store works: tries what pulls need, reading and writing.
    pub async fn check_store(&self) -> Result<(), StoreError> {
        self.inner.store.check().await
    }

    /// What hosted repositories lose from now on. None from the second call on.
    pub fn losses(&self) -> Option<mpsc::Receiver<Loss>> {
        self.inner.losses()
    }

    /// Bytes that the file system of the store has left; none where that is unknown.
    pub async fn free_space(&self) -> Option<u64> {
        self.inner.store.free_space().await
    }

    /// Whether the index works, or why not: it can't be built, or a panic has left it inconsistent.
    pub fn health(&self) -> Result<(), String> {
        if self.inner.index.is_poisoned() {
            return Err("a panic while it was changed may have left it inconsistent".to_owned());
        }
        let unlisted = self.inner.with(|index| index.unlisted.clone());
        unlisted.map_or(Ok(()), Err)
    }

    /// A client was served from this link; its blob has `size` bytes. Takes well under a
    /// microsecond.
    pub fn used(&self, repo: &RepoName, kind: LinkKind, digest: &Digest, size: u64) {
        let now = self.inner.now();
        let link = (repo, kind, digest);
        self.inner.with(|index| index.touch(link, size, now));
    }

    /// A link to a stored blob of `size` bytes has been made in the store. It stays, even if the
    /// previous one was marked for deletion.
    pub fn linked(&self, repo: &RepoName, kind: LinkKind, digest: &Digest, size: u64) {
        let now = self.inner.now();
        self.inner
            .with(|index| index.link((repo, kind, digest), size, now));
    }

    /// Adds a linked manifest's type, references and the sizes it gives for them to the index.
    pub fn describe(&self, digest: &Digest, manifest: &Manifest) {
        self.inner.with(|index| index.describe(digest, manifest));
    }

    /// Whether a manifest that the repository links refers to a blob, cached or not. Reads the index,
    /// page by page: some 10 ms for a million entries.
    pub async fn is_referenced(&self, repo: &RepoName, digest: &Digest) -> bool {
        self.patiently_complete().await;
        let hash = self.inner.with(|index| index.hash_digest(digest));
        let mut found = false;
        let look = |index: &mut Index, at| {
            let (here, next) = index.find_reference(repo, hash, at);
            found = here;
            next
        };
        self.inner.pages(look).await;
        found
    }

    /// The manifests that the repository links and whose subject is this digest.
    pub async fn referrers(&self, repo: &RepoName, subject: &Digest) -> Vec<Digest> {
        self.patiently_complete().await;
        self.inner.with(|index| index.referrers(repo, subject))
    }

    /// Waits a while for the index to be complete.
    async fn patiently_complete(&self) {
        let wait = tokio::time::timeout(PATIENCE, self.ready());
        if !matches!(wait.await, Ok(Ok(()))) {
            tracing::debug!(
                "the index of the cache isn't complete; what it lacks counts as absent"
            );
        }
    }

    /// Whether so many bytes can be stored without evicting anything, and nothing is being evicted.
    pub fn has_idle_space(&self, bytes: u64) -> bool {
        self.inner.with(|index| index.space.has_idle(bytes))
    }

    pub fn usage(&self) -> Usage {
        self.inner.with(|index| index.usage())
    }

    pub fn counts(&self) -> Counts {
        *self.inner.counts.lock()
    }

    /// A page of all entries, from a position on (0 at first), and the position of the next page.
    pub fn entries(&self, from: usize) -> (Vec<EntryView>, Option<usize>) {
        self.inner.with(|index| index.view_entries(from, MAX_PAGE))
    }

    /// A page of all images, like [`entries`](Self::entries). A page may be empty.
    pub fn images(&self, from: usize) -> (Vec<ImageView>, Option<usize>) {
        self.inner.with(|index| index.view_images(from, MAX_PAGE))
    }

    /// The tags whose manifests were used since a time, as far as the index is complete.
    pub async fn tags_used_since(&self, since: SystemTime) -> Vec<(RepoName, Tag)> {
        let (since, mut tags) = (Timestamp::of(since), Vec::new());
        let page = |index: &mut Index, at| {
            let (page, next) = index.tags_used_since(since, at, MAX_PAGE);
            tags.extend(page);
            next
        };
        self.inner.pages(page).await;
        tags
    }

    /// Calls `each` with the content, blobs and manifests, whose links were used in the last `span`, as far
    /// as the index is complete; a digest that several repositories link comes several times. That counts as
    /// no use.
    pub async fn used_within(&self, span: Duration, mut each: impl FnMut(Digest)) {
        let since = self.inner.now().before(span);
        let page = |index: &mut Index, at| {
            let (page, next) = index.used_since(since, at, MAX_PAGE);
            page.into_iter().for_each(&mut each);
            next
        };
        self.inner.pages(page).await;
    }

    /// Removes the selected links, and the files that nothing else needs; with `dry_run` only lists
    /// them. Waits for the index to be complete and for the removal. Held content is removed when it
    /// is released.
    pub async fn purge(&self, selection: &Selection, dry_run: bool) -> Vec<EntryView> {
        self.complete().await;
        // Selects all before deleting any: a deletion changes which blobs belong to an image.
        let mut selected = Vec::new();
        let select = |index: &mut Index, at| {
            let (page, next) = index.select(selection, at, MAX_PAGE);
            selected.extend(page);
            next
        };
        self.inner.pages(select).await;
        let mut purged: Vec<_> = Vec::new();
        for id in selected {
            purged.extend(self.inner.with(|index| index.purge(id, !dry_run)));
        }
        if !dry_run {
            self.settled().await;
        }
        purged.sort_unstable_by(|a, b| a.link.cmp(&b.link));
        purged.dedup_by(|a, b| a.link == b.link);
        purged
    }

    /// Waits until nothing is left that can be deleted now.
    pub async fn settled(&self) {
        let is_settled = |index: &mut Index| index.is_settled().then_some(());
        self.inner.until_freed(is_settled).await;
    }
}
