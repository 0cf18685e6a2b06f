//! Downloads under every order of joining, leaving, breaking and committing: the bench, and two
//! upstreams. [`Script`] answers as the test says, byte for byte; [`Origin`] has a blob, and is slow
//! or breaks where the test says.

mod abandoning;
mod interleavings;
mod joining;
mod origin;
mod plan;
mod ranges;
mod resuming;
mod schedules;
mod segments;
mod several;
mod sources;
mod unstored;
mod world;
mod writing;

use std::collections::VecDeque;
use std::io;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::mpsc;

use super::*;
use crate::cache;
use crate::clock::Clock;
use crate::oci::Algorithm;
use crate::storage::faulty::Operation;
use crate::storage::{FaultyStore, Link, LinkKind, MemoryStore, Store, read_all};
use crate::tasks::Tasks;
use crate::upstream::{BlobStream, Failure, ShownUrl, UpstreamError};

use origin::{Act, Origin};

/// One answer of the scripted upstream.
enum Opening {
    Fails(UpstreamError),
    /// Begins at this offset, announces this length, and sends what the test sends.
    Streams(
        u64,
        Option<u64>,
        mpsc::Receiver<Result<Bytes, UpstreamError>>,
    ),
    Panics,
}

/// An upstream that answers each opening as the test says, and notes the offsets asked for.
struct Script {
    openings: Mutex<VecDeque<Opening>>,
    asked: Mutex<Vec<(u64, Option<u64>)>>,
}

impl Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Script")
    }
}

impl Script {
    fn new(openings: impl IntoIterator<Item = Opening>) -> Arc<Self> {
        let openings = Mutex::new(openings.into_iter().collect());
        Arc::new(Self {
            openings,
            asked: Mutex::default(),
        })
    }

    /// The offsets that were asked for.
    fn asked(&self) -> Vec<u64> {
        let asked = self.asked.lock().unwrap();
        asked.iter().map(|(offset, _)| *offset).collect()
    }
}

#[async_trait::async_trait]
impl Source for Script {
    async fn open(&self, offset: u64, end: Option<u64>) -> Result<BlobStream, UpstreamError> {
        self.asked.lock().unwrap().push((offset, end));
        let opening = self.openings.lock().unwrap().pop_front();
        match opening.expect("no more openings were scripted") {
            Opening::Fails(error) => Err(error),
            Opening::Panics => panic!("on purpose"),
            Opening::Streams(offset, total, receiver) => {
                let next = |mut receiver: mpsc::Receiver<_>| async move {
                    receiver.recv().await.map(|chunk| (chunk, receiver))
                };
                let body = futures_util::stream::unfold(receiver, next).boxed();
                Ok(BlobStream {
                    offset,
                    end: total,
                    total,
                    body,
                })
            }
        }
    }

    fn upstream(&self) -> &'static str {
        UPSTREAM
    }
}

const UPSTREAM: &str = "upstream.example";

type Sender = mpsc::Sender<Result<Bytes, UpstreamError>>;

fn streams(offset: u64, total: Option<u64>) -> (Sender, Opening) {
    let (sender, receiver) = mpsc::channel(64);
    (sender, Opening::Streams(offset, total, receiver))
}

fn upstream_error(failure: Failure) -> UpstreamError {
    let url = ShownUrl::from(&"http://upstream.example/v2/".parse().unwrap());
    UpstreamError { url, failure }
}

fn failure(error: &DownloadError) -> Option<&Failure> {
    match error {
        DownloadError::Upstream(error) => Some(&error.failure),
        _ => None,
    }
}

fn is_denied(error: &DownloadError) -> bool {
    matches!(failure(error), Some(Failure::Denied(_)))
}

fn broken() -> UpstreamError {
    upstream_error(Failure::Broken {
        received: 0,
        source: None,
    })
}

fn denied() -> UpstreamError {
    upstream_error(Failure::Denied(None))
}

fn unexpected(status: u16) -> UpstreamError {
    upstream_error(Failure::Unexpected(status))
}

fn failed_with(status: u16) -> UpstreamError {
    upstream_error(Failure::Unavailable {
        status,
        retry_after: None,
    })
}

fn unavailable() -> UpstreamError {
    failed_with(500)
}

fn overloaded() -> UpstreamError {
    failed_with(503)
}

fn rate_limited() -> UpstreamError {
    upstream_error(Failure::RateLimited {
        retry_after: Some(Duration::from_secs(7)),
    })
}

fn stalled() -> UpstreamError {
    upstream_error(Failure::Timeout {
        phase: crate::upstream::Phase::Stall,
        after: Duration::from_mins(1),
    })
}

fn settings() -> DownloadSettings {
    DownloadSettings {
        segments: Segments {
            min_size: 64 << 20,
            count: 4,
            per_blob: 16,
        },
        streams: Streams {
            total: 8,
            per_upstream: 8,
        },
        on_abandon: OnAbandon::Auto,
        fill_after: 50,
        max_blob: u64::MAX,
        verified_first: 0,
    }
}

/// Blobs of at least so many MiB come in segments.
fn of_segments(min_size: u64) -> DownloadSettings {
    let mut settings = settings();
    settings.segments.min_size = min_size * MIB;
    settings
}

struct Bench {
    downloader: Downloader,
    store: Arc<FaultyStore>,
    cache: Cache,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Bench {
    fn new() -> Self {
        Self::with(settings())
    }

    fn with(settings: DownloadSettings) -> Self {
        Self::over(
            Arc::new(MemoryStore::new()),
            settings,
            cache::CacheSettings::unlimited(),
        )
    }

    fn over(
        store: Arc<dyn Store>,
        settings: DownloadSettings,
        keeping: cache::CacheSettings,
    ) -> Self {
        let clock = Clock::starting_at(std::time::SystemTime::UNIX_EPOCH);
        let store = Arc::new(FaultyStore::new(store));
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let metrics = Arc::new(Metrics::new());
        // The cache has tasks of its own, so that tests can wait for the downloads.
        let cache = Cache::start(
            Arc::clone(&store) as Arc<dyn Store>,
            Arc::clone(&metrics),
            clock,
            keeping,
            &Tasks::new(),
            &stop,
        );
        let downloader = Downloader::new(DownloaderOptions {
            settings,
            cache: cache.clone(),
            metrics,
            tasks: tasks.clone(),
            drain: CancellationToken::new(),
            stop: stop.clone(),
        });
        Self {
            downloader,
            store,
            cache,
            stop,
            tasks,
        }
    }

    /// The process ends, and another one starts over the same store.
    async fn restarted(self, settings: DownloadSettings) -> Self {
        self.stop.cancel();
        self.settled().await;
        let store = Arc::clone(&self.store) as Arc<dyn Store>;
        drop(self);
        let bench = Self::over(store, settings, cache::CacheSettings::unlimited());
        bench.cache.complete().await;
        bench
    }

    fn join<S: Source>(&self, digest: Digest, repo: &str, source: &Arc<S>) -> Follower {
        self.join_at(digest, repo, source, BlobRequest::WHOLE)
    }

    fn join_at<S: Source>(
        &self,
        digest: Digest,
        repo: &str,
        source: &Arc<S>,
        wanted: BlobRequest,
    ) -> Follower {
        // Every repository has the blob, and proves it at once.
        let proof = std::future::ready(Ok::<_, DownloadError>(()));
        let joined = self.try_join(digest, repo, source, wanted, proof);
        match joined.now_or_never().unwrap().unwrap() {
            Joined::Leader(follower) | Joined::Follower(follower) => follower,
            Joined::Committed => panic!("committed already"),
        }
    }

    async fn try_join<S: Source>(
        &self,
        digest: Digest,
        repo: &str,
        source: &Arc<S>,
        wanted: BlobRequest,
        proof: impl Future<Output = Result<(), DownloadError>>,
    ) -> Result<Joined, DownloadError> {
        let source = Arc::clone(source) as _;
        let repo = repo.parse().unwrap();
        self.downloader
            .join(digest, &repo, source, wanted, proof)
            .await
    }

    fn is_running(&self, digest: &Digest) -> bool {
        self.downloader.is_running(UPSTREAM, digest)
    }

    /// Waits for all downloads to end.
    async fn settled(&self) {
        self.tasks.close();
        self.tasks.wait().await;
        self.tasks.reopen();
    }

    async fn stored(&self, digest: &Digest) -> Option<Bytes> {
        read_all(&*self.store, digest, u64::MAX).await.unwrap()
    }

    async fn linked(&self, repo: &str, digest: Digest) -> bool {
        let link = Link {
            repo: repo.parse().unwrap(),
            kind: LinkKind::Layer,
            digest,
        };
        self.store.linked(&link).await.unwrap()
    }
}

async fn read_to_end(follower: &mut Follower) -> Result<Vec<u8>, DownloadError> {
    let mut all = Vec::new();
    while let Some(bytes) = follower.read(all.len() as u64, None).await? {
        all.extend_from_slice(&bytes);
    }
    Ok(all)
}

fn content(length: usize) -> (Bytes, Digest) {
    let block: Vec<u8> = (0..=u8::MAX).cycle().step_by(7).take(1000).collect();
    let mut bytes = Vec::with_capacity(length + block.len());
    // No two blocks are the same, so that bytes of another place are seen.
    while bytes.len() < length {
        bytes.extend_from_slice(&bytes.len().to_le_bytes());
        bytes.extend_from_slice(&block);
    }
    bytes.truncate(length);
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    (bytes.into(), digest)
}

async fn send_all(sender: &Sender, content: &Bytes, piece: usize) {
    for chunk in content.chunks(piece) {
        sender
            .send(Ok(Bytes::copy_from_slice(chunk)))
            .await
            .unwrap();
    }
}

/// Reads a range to its end.
async fn read_range(
    follower: &mut Follower,
    start: u64,
    end: u64,
) -> Result<Vec<u8>, DownloadError> {
    let mut part = Vec::new();
    while start + (part.len() as u64) < end {
        let read = follower.read(start + part.len() as u64, Some(end)).await?;
        part.extend_from_slice(&read.expect("the blob is longer"));
    }
    Ok(part)
}

/// A range, as a client asks for it.
const fn range(start: u64, end: u64, fill: bool) -> BlobRequest {
    BlobRequest {
        start,
        end: Some(end),
        fill,
        refetch: false,
        client: Client::UNKNOWN,
    }
}

/// What lies at `start..end`.
fn part(content: &Bytes, start: u64, end: u64) -> Bytes {
    content.slice(usize::try_from(start).unwrap()..usize::try_from(end).unwrap())
}

const MIB: u64 = 1024 * 1024;

fn mebibytes(count: u64) -> (Bytes, Digest) {
    content(usize::try_from(count * MIB).unwrap())
}
