//! ONE upstream download of a digest for everybody who asks.
//!
//! The first to ask starts a detached task, which streams the upstream into a staged file of the
//! store and publishes what is there. Every client, the first included, is a [`Follower`]: a reader
//! of what is there. So a slow client slows nobody, one that leaves stops nothing, and one that
//! joins late starts at its first byte, at the speed of the disk.
//!
//! ```text
//!                                 plan: who brings which bytes
//!                                  |
//! upstream ===> streams ==> task -+-> recent chunks in memory --> followers at a mark
//!        (1 to N, in lanes)        +-> hash + write (blocking) --> sparse file --> followers behind
//! ```
//!
//! A download has one stream; more where a client waits for bytes far ahead of it, and where a large
//! blob comes slowly. `plan` decides that and keeps their lanes apart; `slots` says how many streams
//! there may be in all, and whose turn it is; `running` puts joining, leaving, pausing and committing
//! in order. The hash follows the contiguous bytes, reading back what came early.
//!
//! A download that fails, or that nobody wants any more, leaves what is there as a partial file, and
//! the next one takes it up; so does the next process. What is taken up is hashed like all the rest,
//! never believed; and the upstream is asked for at least one byte, which proves that it has the blob.
//!
//! When the file can't be written the download is passed through: what followers have not read stays
//! in memory, and the upstream is read no faster than the slowest of them. The cache goes without.
//!
//! What must never happen: bytes that don't have the digest are committed, or end a whole body
//! cleanly. The end of the blob is therefore held back from who reads all of it until the digest has
//! been checked, and small blobs are given to nobody before that. A range of a larger one is given as
//! it comes: only who asked for it can tell whether it is right.

mod abandon;
mod batch;
mod client;
mod commit;
mod events;
mod failover;
mod follower;
mod join;
mod lane;
mod memory;
mod opening;
mod partials;
mod permits;
mod place;
mod plan;
mod position;
mod progress;
mod registry;
mod several;
mod storing;
mod streams;
mod suspect;
mod task;
#[cfg(test)]
mod tests;
mod throughput;
mod writer;

/// The locks of `running`; its test puts others in their place.
mod sync {
    pub(super) use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
}

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::config::{OnAbandon, Segments, Streams};
use crate::metrics::{InFlight, Metrics};
use crate::oci::{ByteRange, Digest};
use crate::retention::Retention;
use crate::storage::{Store, StoreError};
use crate::upstream::{BlobRanges, BlobStream, UpstreamError};

pub use client::Client;
pub use follower::Follower;
use partials::Partials;
use permits::{Permits, Urgency};
use progress::Progress;
use registry::Registry;

/// Where a download gets its bytes.
#[async_trait::async_trait]
pub trait Source: Debug + Send + Sync + 'static {
    /// Opens the blob at `offset`, up to `end` (none: the end of the blob). The stream may begin
    /// earlier, and says so.
    async fn open(&self, offset: u64, end: Option<u64>) -> Result<BlobStream, UpstreamError>;

    /// Opens several ranges of a blob with one request. The blob has `total` bytes. None when the
    /// source serves only one range at a time, which
    /// [`supports_multi_range`](Self::supports_multi_range) then says, too.
    async fn open_ranges(
        &self,
        _ranges: &[ByteRange],
        _total: u64,
    ) -> Result<Option<BlobRanges>, UpstreamError> {
        Ok(None)
    }

    /// Whether [`open_ranges`](Self::open_ranges) is worth a request.
    fn supports_multi_range(&self) -> bool {
        false
    }

    /// Whose streams are counted together.
    fn upstream(&self) -> &str;

    /// Bytes of the blob by the descriptor of a verified manifest, where one is known.
    fn described_size(&self) -> Option<u64> {
        None
    }
}

/// How downloads are made.
#[derive(Debug, Clone)]
pub struct DownloadSettings {
    pub segments: Segments,
    pub streams: Streams,
    pub on_abandon: OnAbandon,
    /// Per cent of a blob that have to have been asked for by ranges before all of it is fetched,
    /// where ranges alone don't cause that.
    pub fill_after: u8,
    /// Bytes of the largest blob that is cached.
    pub max_blob: u64,
    /// Blobs of at most so many bytes are verified before anybody is given a byte of them.
    pub verified_first: u64,
}

/// What a client wants of a blob, as far as it is known before the blob's length is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobRequest {
    /// The first byte.
    pub start: u64,
    /// Where it ends; none: at the end of the blob, or not known.
    pub end: Option<u64>,
    /// Whether the whole blob is to be fetched.
    pub fill: bool,
    /// Whether the blob is fetched although the store has a file of it, which turned out to be
    /// unusable more than once.
    pub refetch: bool,
    /// Who asks.
    pub client: Client,
}

impl BlobRequest {
    /// The whole blob, for nobody in particular.
    pub const WHOLE: Self = Self {
        start: 0,
        end: None,
        fill: true,
        refetch: false,
        client: Client::UNKNOWN,
    };
}

/// Why a download failed. Cloned to everybody who follows it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DownloadError {
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
    #[error("byte {at} of {digest} came a second time as another one")]
    Changed { digest: Box<Digest>, at: u64 },
    #[error("the store has the blob already")]
    Present,
    #[error("the download ended without saying how")]
    Lost,
    #[error("no source brings bytes that a client waits for")]
    Stuck,
    #[error("nobody reads the download any more, and it can't be stored")]
    Abandoned,
    #[error("the mirror is stopping")]
    Stopping,
    #[error("too many downloads wait for the upstream")]
    Busy,
}

impl DownloadError {
    /// Whether the download ended for a reason of its own, which says nothing about the blob: whoever
    /// joined it asks again.
    pub const fn is_of_this_download(&self) -> bool {
        match self {
            Self::Present | Self::Lost | Self::Abandoned => true,
            Self::Upstream(_)
            | Self::Store(_)
            | Self::Digest { .. }
            | Self::Length { .. }
            | Self::Changed { .. }
            | Self::Stuck
            | Self::Stopping
            | Self::Busy => false,
        }
    }

    /// Whether what has come may be right: then the next download takes it up.
    const fn leaves_partial(&self) -> bool {
        match self {
            Self::Upstream(_) | Self::Abandoned | Self::Stopping | Self::Busy => true,
            Self::Store(_)
            | Self::Digest { .. }
            | Self::Length { .. }
            | Self::Changed { .. }
            | Self::Present
            | Self::Stuck
            | Self::Lost => false,
        }
    }
}

impl From<StoreError> for DownloadError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

/// All downloads.
#[derive(Debug, Clone)]
pub struct Downloader(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    running: Registry<Arc<Download>, Arc<dyn Source>>,
    partials: Partials,
    slots: Permits,
    settings: DownloadSettings,
    store: Arc<dyn Store>,
    retention: Retention,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    drain: CancellationToken,
    stop: CancellationToken,
}

/// One running download.
#[derive(Debug)]
struct Download {
    /// Tells this download from a later one of the same digest.
    id: u64,
    digest: Digest,
    upstream: Arc<str>,
    progress: Progress,
    /// Whether a client waits for it.
    urgency: Urgency,
    /// Somebody has joined who wants the whole blob.
    fill: AtomicBool,
    /// Somebody has joined who can't use the file in the store.
    refetch: AtomicBool,
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

/// What a fetcher is made of.
#[derive(Debug)]
pub struct DownloaderOptions {
    pub settings: DownloadSettings,
    pub store: Arc<dyn Store>,
    pub retention: Retention,
    pub metrics: Arc<Metrics>,
    /// Owns the downloads.
    pub tasks: TaskTracker,
    /// Ends those that no client waits for: the process is to stop.
    pub drain: CancellationToken,
    /// Ends them, failed, at the latest moment of a shutdown.
    pub stop: CancellationToken,
    pub clock: Clock,
}

impl Downloader {
    pub fn new(parts: DownloaderOptions) -> Self {
        let DownloaderOptions {
            settings,
            store,
            retention,
            metrics,
            tasks,
            drain,
            stop,
            clock,
        } = parts;
        Self(Arc::new(Inner {
            running: Registry::new(),
            partials: Partials::new(Arc::clone(&store), Arc::clone(&metrics), clock),
            slots: Permits::new(settings.streams, Arc::clone(&metrics)),
            settings,
            store,
            retention,
            metrics,
            tasks,
            drain,
            stop,
        }))
    }

    /// Takes charge of the partial downloads that an earlier process left, and removes those that
    /// nobody takes up. Never ends.
    pub async fn look_after_partials(&self) {
        self.0.partials.look_after(&self.0.retention).await;
    }
}

impl Download {
    fn wants_fill(&self) -> bool {
        self.fill.load(Ordering::Relaxed)
    }
}
