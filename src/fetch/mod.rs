//! ONE upstream download of a digest for everybody who asks.
//!
//! The first to ask starts a detached task, which streams the upstream into a staged file of the
//! store and publishes how far it is. Every client, the first included, is a [`Follower`]: a reader
//! behind the published mark. So a slow client slows nobody, one that leaves stops nothing, and one
//! that joins late starts at byte 0, at the speed of the disk.
//!
//! ```text
//! upstream -> task -+-> recent chunks in memory --> followers at the mark
//!                   +-> hash + write (blocking) --> file --> followers behind it
//! ```
//!
//! When the file can't be written the download is passed through: what followers have not read stays
//! in memory, and the upstream is read no faster than the slowest of them. The cache goes without.
//!
//! What must never happen: bytes that don't have the digest are committed or end a body cleanly.
//! The last chunk is therefore held back until the digest has been checked, and the end of a body is
//! only ever said by [`Phase::Verified`](progress::Phase).

mod follower;
mod progress;
mod sink;
mod task;
#[cfg(test)]
mod tests;

use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::{InFlight, Metrics};
use crate::oci::{Digest, RepoName};
use crate::store::{Store, StoreError};
use crate::upstream::{BlobStream, UpstreamError};

pub use follower::Follower;
use progress::Progress;

/// Where a download gets its bytes.
#[async_trait::async_trait]
pub trait Source: Debug + Send + Sync + 'static {
    /// Opens the blob at `offset`. The stream may begin earlier, and says so.
    async fn open(&self, offset: u64) -> Result<BlobStream, UpstreamError>;
}

/// Why a download failed. Cloned to everybody who follows it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error("the download could not be stored: {0}")]
    Store(Arc<StoreError>),
    #[error("the upstream sent content of digest {got} for {expected}")]
    Digest {
        expected: Box<Digest>,
        got: Box<Digest>,
    },
    #[error("the upstream announced {announced} bytes of {digest} and sent {sent}")]
    Length {
        digest: Box<Digest>,
        announced: u64,
        sent: u64,
    },
    #[error("the download ended without saying how")]
    Lost,
    #[error("nobody reads the download any more, and it can't be stored")]
    Abandoned,
    #[error("the mirror is stopping")]
    Stopping,
}

impl From<StoreError> for FetchError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

/// All downloads that are running, by digest.
#[derive(Debug, Clone)]
pub struct Fetcher(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    running: DashMap<Digest, Arc<Download>>,
    next_id: AtomicU64,
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// One running download.
#[derive(Debug)]
struct Download {
    /// Tells this download from a later one of the same digest.
    id: u64,
    digest: Digest,
    progress: Progress,
    /// The repositories that are linked to the blob when it is committed; none once that has begun.
    repositories: Mutex<Option<Vec<RepoName>>>,
    _counted: InFlight,
}

/// What came of asking for a download.
#[derive(Debug)]
pub enum Joined {
    /// This request started it.
    Leader(Follower),
    /// It was running already.
    Follower(Follower),
    /// It has just been committed: the store has it.
    Committed,
}

impl Fetcher {
    /// `tasks` owns the downloads; `stop` ends them, failed, at the latest moment of a shutdown.
    pub fn new(
        store: Arc<dyn Store>,
        metrics: Arc<Metrics>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        Self(Arc::new(Shared {
            running: DashMap::new(),
            next_id: AtomicU64::new(0),
            store,
            metrics,
            tasks,
            stop,
        }))
    }

    /// Whether `digest` is being downloaded on behalf of some repository.
    pub fn is_running(&self, digest: &Digest) -> bool {
        self.0.running.contains_key(digest)
    }

    /// Follows the download of `digest` if it runs and is for `repository` already.
    pub fn follow(&self, digest: &Digest, repository: &RepoName) -> Option<Follower> {
        let download = Arc::clone(&*self.0.running.get(digest)?);
        let ours = download
            .repositories()
            .as_ref()
            .is_some_and(|all| all.contains(repository));
        if ours {
            self.0.follower(&download)
        } else {
            None
        }
    }

    /// Joins the download of `digest`, or starts it from `source`. The caller has proved that
    /// `repository` may have the blob, or `source` will: the blob is linked there when committed.
    pub fn join(&self, digest: Digest, repository: &RepoName, source: Arc<dyn Source>) -> Joined {
        let (download, follower) = match self.0.running.entry(digest) {
            Entry::Occupied(mut entry) => {
                if !entry.get().add(repository) {
                    return Joined::Committed;
                }
                if let Some(follower) = self.0.follower(entry.get()) {
                    return Joined::Follower(follower);
                }
                // It isn't stored, and its first bytes are gone: a second one takes its place.
                let (download, follower) = self.0.start(digest, repository);
                entry.insert(Arc::clone(&download));
                (download, follower)
            }
            Entry::Vacant(entry) => {
                let (download, follower) = self.0.start(digest, repository);
                entry.insert(Arc::clone(&download));
                (download, follower)
            }
        };
        self.0
            .tasks
            .spawn(task::run(Arc::clone(&self.0), download, source));
        Joined::Leader(follower)
    }
}

impl Shared {
    /// A new download with its first follower; its task is the caller's to spawn.
    fn start(&self, digest: Digest, repository: &RepoName) -> (Arc<Download>, Follower) {
        let download = Arc::new(Download {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            digest,
            progress: Progress::new(),
            repositories: Mutex::new(Some(vec![repository.clone()])),
            _counted: self.metrics.download(),
        });
        let id = download.progress.enter_first();
        let follower = Follower::new(Arc::clone(&download), id, self.metrics.follower());
        (download, follower)
    }

    /// A follower of a running download, unless its first bytes can't be had any more.
    fn follower(&self, download: &Arc<Download>) -> Option<Follower> {
        let id = download.progress.enter()?;
        Some(Follower::new(
            Arc::clone(download),
            id,
            self.metrics.follower(),
        ))
    }

    /// Forgets a download, unless another one has taken its place.
    fn forget(&self, download: &Download) {
        self.running
            .remove_if(&download.digest, |_, running| running.id == download.id);
    }
}

impl Download {
    fn repositories(&self) -> std::sync::MutexGuard<'_, Option<Vec<RepoName>>> {
        self.repositories
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a repository to those that are linked at the end. False when that has begun.
    fn add(&self, repository: &RepoName) -> bool {
        let mut repositories = self.repositories();
        let Some(all) = repositories.as_mut() else {
            return false;
        };
        if !all.contains(repository) {
            all.push(repository.clone());
        }
        true
    }
}
