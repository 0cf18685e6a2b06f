//! One upstream download of a blob for every client that requests it.
//!
//! The first client to request a blob starts a detached task. The task streams the blob from the
//! upstream into a staged file of the store and publishes each chunk. Every client, the first one
//! included, reads through a [`Follower`]. Clients therefore don't depend on each other: a slow one
//! slows no other, one that leaves stops nothing, and one that joins late starts at its first byte.
//!
//! ```text
//!                                 plan: which stream brings which bytes
//!                                  |
//! upstream ===> streams ==> task -+-> recent chunks in memory --> followers at the write position
//!        (1 to N, in segments)     +-> hash + write (blocking) --> sparse file --> followers behind it
//! ```
//!
//! A download has one stream. It gets more when a client waits for bytes far ahead of that stream, and
//! when a large blob arrives slowly. `plan` decides this and keeps the byte ranges ("segments") of the
//! streams disjoint; `permits` bounds the streams of all downloads and orders those that wait;
//! `registry` orders joining, leaving, pausing and committing. The hash covers contiguous bytes only:
//! bytes that arrived out of order are read back from the file.
//!
//! A download belongs to one upstream. Each repository that joins it brings a [`Source`] of its own;
//! when one source fails, `failover` continues with the next.
//!
//! A download that fails, or that no client wants any more, leaves a partial file that the next
//! download (or the next process) resumes. Resumed bytes are hashed like all others, and the upstream
//! is asked for at least one byte, which proves that it has the blob.
//!
//! When the file can't be written, the download switches to pass-through: bytes stay in memory until
//! all followers have read them, the upstream is read at the speed of the slowest follower, and
//! nothing is cached.
//!
//! Bytes that don't have the digest must never be committed nor end a whole body cleanly. The end of
//! a whole body is therefore withheld until the digest is verified, and small blobs are verified
//! before their first byte. A range of a larger blob is sent as it arrives, unverified.

mod abandon;
mod admission;
mod batch;
mod checkpoints;
mod client;
mod commit;
mod error;
mod events;
mod failover;
mod follower;
mod join;
mod memory;
mod opening;
mod permits;
mod plan;
mod position;
mod progress;
mod registry;
mod segment;
mod space;
mod storing;
mod streams;
mod suspect;
mod task;
#[cfg(test)]
mod tests;
mod throughput;
mod writer;

/// The locks of `registry`. `tests/interleavings` replaces them.
mod sync {
    pub(super) use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
}

use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

use crate::cache::Cache;
use crate::config::{OnAbandon, Segments, Streams};
use crate::metrics::{InFlight, Metrics};
use crate::oci::{ByteRange, Digest, RepoName};
use crate::tasks::Tasks;
use crate::telemetry::Link;
use crate::upstream::{BlobRanges, BlobStream, CallerId, UpstreamError};

pub use client::Client;
pub use error::DownloadError;
pub use follower::Follower;
use permits::{Permits, Urgency};
pub use position::Opened;
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

    /// Tells that the bytes that it brought weren't the blob's. True where the blob may come from
    /// another place now, so that another attempt may succeed. The source logs the error.
    fn distrust(&self, _error: &DownloadError) -> bool {
        false
    }

    /// The blob is stored, and these repositories link it.
    fn on_stored(&self, _repositories: &[RepoName]) {}

    /// Whether bytes come, or may come, from another replica, which waits for this one in turn where it asks
    /// for the same. Once false, it stays false.
    fn reads_from_peer(&self) -> bool {
        false
    }

    /// From now on no other replica is asked.
    fn avoid_peers(&self) {}

    /// The replica that sends the bytes, if one does.
    fn peer(&self) -> Option<SocketAddr> {
        None
    }

    /// Whether a client waits for the download from now on. Others are throttled first.
    fn set_urgent(&self, _urgent: bool) {}

    /// Name of the upstream. Streams of one upstream share its limits.
    fn upstream(&self) -> &str;

    /// Size of the blob in bytes by the descriptor of a verified manifest, if one is known.
    fn described_size(&self) -> Option<u64> {
        None
    }
}

/// Who takes part in a download.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Party {
    /// Its name in the store.
    pub repository: RepoName,
    /// The caller's account, with which the upstream is asked. None: the mirror's.
    pub account: Option<CallerId>,
}

/// Limits and policies of all downloads.
#[derive(Debug, Clone, Copy)]
pub struct DownloadSettings {
    pub segments: Segments,
    pub streams: Streams,
    pub on_abandon: OnAbandon,
    /// Percentage of a blob that clients have to request by ranges before the whole blob is fetched.
    /// Applies to repositories whose ranges are passed through.
    pub fill_after: u8,
    /// Size in bytes of the largest blob that is cached. Larger ones are passed through.
    pub max_blob: u64,
    /// Blobs of at most this many bytes are verified before the first byte is sent.
    pub verified_first: u64,
}

/// The bytes of a blob that a client requests, as far as they are known before its size is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobRequest {
    /// The first byte.
    pub start: u64,
    /// End, exclusive. None: the end of the blob, or not known yet.
    pub end: Option<u64>,
    /// Whether the download fetches the whole blob, and not only the requested bytes.
    pub fill: bool,
    /// Whether to download the blob although the store has a file for it. Set after the file turned
    /// out to be unusable more than once.
    pub refetch: bool,
    /// The client, for fairness.
    pub client: Client,
    /// Whether another replica asks, which must not wait for a third.
    pub from_peer: bool,
}

impl BlobRequest {
    /// The whole blob, for no particular client.
    pub const WHOLE: Self = Self {
        start: 0,
        end: None,
        fill: true,
        refetch: false,
        client: Client::UNKNOWN,
        from_peer: false,
    };
}

/// All downloads.
#[derive(Debug, Clone)]
pub struct Downloader(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry<Arc<Download>, Arc<dyn Source>, Party>,
    permits: Permits,
    settings: RwLock<DownloadSettings>,
    options: DownloaderOptions,
}

impl Inner {
    fn settings(&self) -> DownloadSettings {
        *self.settings.read()
    }
}

/// One running download.
#[derive(Debug)]
struct Download {
    /// Distinguishes this download from a later one of the same digest.
    id: u64,
    digest: Digest,
    upstream: Arc<str>,
    progress: Progress,
    /// Whether a client waits for it.
    urgency: Urgency,
    /// Whether a client has joined that wants the whole blob.
    fill: AtomicBool,
    /// Whether a client has joined that can't use the file in the store.
    refetch: AtomicBool,
    /// The span of its task, if the request that started it is traced.
    span: OnceLock<Link>,
    /// The source in use.
    source: RwLock<Arc<dyn Source>>,
    _counted: InFlight,
}

/// The result of joining a download.
#[derive(Debug)]
pub enum Joined {
    /// This request started it.
    Leader(Follower),
    /// It was running already.
    Follower(Follower),
    /// It is being committed: the store has the blob.
    Committed,
    /// It reads from another replica, and so does this request.
    Circular,
}

/// What a [`Downloader`] needs.
#[derive(Debug)]
pub struct DownloaderOptions {
    /// Those of the start; see [`Downloader::configure`].
    pub settings: DownloadSettings,
    pub cache: Cache,
    pub metrics: Arc<Metrics>,
    /// Owns the downloads.
    pub tasks: Tasks,
    /// Ends downloads without clients, because the process drains.
    pub drain: CancellationToken,
    /// Fails all downloads at the deadline of a shutdown.
    pub stop: CancellationToken,
}

impl Downloader {
    pub fn new(options: DownloaderOptions) -> Self {
        let metrics = Arc::clone(&options.metrics);
        Self(Arc::new(Inner {
            registry: Registry::new(),
            permits: Permits::new(options.settings.streams, metrics),
            settings: RwLock::new(options.settings),
            options,
        }))
    }

    /// Applies other limits and policies: to new downloads, and to the decisions that running ones
    /// have yet to make.
    pub fn configure(&self, settings: DownloadSettings) {
        *self.0.settings.write() = settings;
        self.0.permits.configure(settings.streams);
    }
}
