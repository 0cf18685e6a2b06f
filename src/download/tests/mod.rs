//! Tests of downloads: the bench, and two upstreams. [`Script`] answers byte for byte as the test says;
//! [`Origin`] has a blob, and is slow or breaks off where the test says.

/// Asserts that a result is an error that matches the pattern.
macro_rules! fails_with {
    ($result:expr, $($error:tt)+) => {{
        let error = $result.unwrap_err();
        assert!(matches!(&error, $($error)+), "{error}");
    }};
}

mod abandoning;
mod interleavings;
mod joining;
mod origin;
mod plan;
mod ranges;
mod resuming;
mod schedules;
mod segments;
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
use tokio_util::task::TaskTracker;

use super::*;
use crate::cache;
use crate::clock::Clock;
use crate::oci::Algorithm;
use crate::storage::faulty::Operation;
use crate::storage::{FaultyStore, Link, LinkKind, MemoryStore, Store, read_all};

use crate::upstream::{BlobStream, Failure, UpstreamError};

use origin::{Act, Origin};

/// One answer of the scripted upstream.
#[derive(Debug)]
enum Opening {
    Fails(UpstreamError),
    /// Begins at this offset, announces this length, and sends what the test sends.
    Streams(
        u64,
        Option<u64>,
        mpsc::Receiver<Result<Bytes, UpstreamError>>,
    ),
    Panics,
    /// Never answers.
    Hangs,
}

/// An upstream that answers each request as the test says, and records the requested offsets.
#[derive(Debug)]
struct Script {
    openings: Mutex<VecDeque<Opening>>,
    asked: Mutex<Vec<u64>>,
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
        self.asked.lock().unwrap().clone()
    }
}

#[async_trait::async_trait]
impl Source for Script {
    async fn open(&self, offset: u64, _: Option<u64>) -> Result<BlobStream, UpstreamError> {
        self.asked.lock().unwrap().push(offset);
        let opening = self.openings.lock().unwrap().pop_front();
        match opening.expect("no more openings were scripted") {
            Opening::Fails(error) => Err(error),
            Opening::Panics => panic!("on purpose"),
            Opening::Hangs => std::future::pending().await,
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

/// An opening that announces this size, sends the content in pieces, and ends.
fn sends(offset: u64, total: Option<u64>, content: &Bytes, piece: usize) -> Opening {
    prepared(offset, total, content, piece, None)
}

/// An opening that announces this size, sends the content in pieces, and breaks off.
fn breaks(offset: u64, total: Option<u64>, content: &Bytes, piece: usize) -> Opening {
    prepared(offset, total, content, piece, Some(Err(broken())))
}

fn prepared(
    offset: u64,
    total: Option<u64>,
    content: &Bytes,
    piece: usize,
    end: Option<Result<Bytes, UpstreamError>>,
) -> Opening {
    let chunks = content
        .chunks(piece)
        .map(|chunk| Ok(content.slice_ref(chunk)));
    let (sender, receiver) = mpsc::channel(content.len() / piece + 2);
    for event in chunks.chain(end) {
        sender.try_send(event).unwrap();
    }
    Opening::Streams(offset, total, receiver)
}

fn upstream_error(failure: Failure) -> UpstreamError {
    UpstreamError::new(&"http://upstream.example/v2/".parse().unwrap(), failure)
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

fn unavailable(status: u16) -> UpstreamError {
    upstream_error(Failure::Unavailable {
        status,
        retry_after: None,
    })
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

/// Blobs of at least this many MiB are downloaded in segments.
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

/// A repository by the mirror's account.
fn party(repository: &str) -> Party {
    Party {
        repository: repository.parse().unwrap(),
        account: None,
    }
}

impl Bench {
    fn new() -> Self {
        Self::with(settings())
    }

    fn with(settings: DownloadSettings) -> Self {
        Self::over(Arc::new(MemoryStore::new()), settings, None)
    }

    /// `max_size`: of the cache.
    fn over(store: Arc<dyn Store>, settings: DownloadSettings, max_size: Option<u64>) -> Self {
        let keeping = cache::CacheSettings {
            max_size,
            ..cache::CacheSettings::unlimited()
        };
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
            tasks: Tasks::new().tracked_by(&tasks),
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
        let bench = Self::over(store, settings, None);
        bench.cache.complete().await;
        bench
    }

    /// From the `nth` operation of this kind on, they fail as on a full disk.
    fn fill_disk(&self, operation: Operation, nth: u64) {
        let full = io::ErrorKind::StorageFull;
        self.store.fail_from(operation, nth, full);
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
            Joined::Circular => panic!("no other replica asks"),
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
        let repo = party(repo);
        self.downloader
            .join(digest, &repo, source, wanted, proof)
            .await
    }

    fn follow(&self, digest: &Digest, repo: &str) -> Option<Follower> {
        let repo = party(repo);
        let downloader = &self.downloader;
        downloader.follow(UPSTREAM, digest, &repo, BlobRequest::WHOLE)
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

    /// Waits for all downloads to end: the store has the blob then.
    async fn stores(&self, digest: &Digest, content: &Bytes) {
        self.settled().await;
        assert!(self.stored(digest).await.unwrap() == *content);
    }

    /// A client reads a whole blob, which is stored then.
    async fn pulls<S: Source>(&self, digest: Digest, content: &Bytes, source: &Arc<S>) {
        let mut follower = self.join(digest, "a", source);
        assert!(read_to_end(&mut follower).await.unwrap() == *content);
        drop(follower);
        self.stores(&digest, content).await;
    }

    /// A download fails after this many bytes.
    async fn fails(&self, digest: Digest, content: &Bytes, after: u64) {
        let origin = Origin::new(content).acts([Act::Cut(after), Act::Fails(denied)]);
        let mut follower = self.join(digest, "a", &origin);
        read_to_end(&mut follower).await.unwrap_err();
        drop(follower);
        self.settled().await;
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

impl Follower {
    /// The size that the upstream has announced.
    async fn total(&mut self) -> Result<Option<u64>, DownloadError> {
        match self.opened().await? {
            Opened::Size(size) => Ok(size),
            Opened::Superseded => Err(DownloadError::Lost),
        }
    }

    /// A piece as bytes: at most 128 KiB when it is in the file.
    async fn read(&mut self, at: u64, end: Option<u64>) -> Result<Option<Bytes>, DownloadError> {
        match self.piece(at, end, false).await? {
            Some(cache::Piece::File { reader, start, end }) => {
                let length = usize::try_from(end - start).unwrap().min(128 * 1024);
                Ok(Some(reader.read_at(start, length).await.unwrap()))
            }
            Some(cache::Piece::Bytes(bytes)) => Ok(Some(bytes)),
            None => Ok(None),
        }
    }
}

/// Reads to `end` (none: the end of the blob), or to the end of the blob before it.
async fn read_from(
    follower: &mut Follower,
    start: u64,
    end: Option<u64>,
) -> Result<Vec<u8>, DownloadError> {
    let mut all = Vec::new();
    while end.is_none_or(|end| start + (all.len() as u64) < end) {
        let Some(bytes) = follower.read(start + all.len() as u64, end).await? else {
            break;
        };
        all.extend_from_slice(&bytes);
    }
    Ok(all)
}

async fn read_to_end(follower: &mut Follower) -> Result<Vec<u8>, DownloadError> {
    read_from(follower, 0, None).await
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
        sender.send(Ok(content.slice_ref(chunk))).await.unwrap();
    }
}

/// Reads a range of a blob that is longer.
async fn read_range(
    follower: &mut Follower,
    start: u64,
    end: u64,
) -> Result<Vec<u8>, DownloadError> {
    let read = read_from(follower, start, Some(end)).await?;
    assert_eq!(read.len() as u64, end - start, "the blob ends before {end}");
    Ok(read)
}

/// Reads a range, which has to be right.
async fn reads(follower: &mut Follower, content: &Bytes, start: u64, end: u64) {
    let read = read_range(follower, start, end).await.unwrap();
    assert!(read == part(content, start, end), "{start}..{end}");
}

/// A range, as a client asks for it.
const fn range(start: u64, end: u64, fill: bool) -> BlobRequest {
    BlobRequest {
        start,
        end: Some(end),
        fill,
        refetch: false,
        client: Client::UNKNOWN,
        from_peer: false,
    }
}

/// The bytes `start..end`.
fn part(content: &Bytes, start: u64, end: u64) -> Bytes {
    content.slice(usize::try_from(start).unwrap()..usize::try_from(end).unwrap())
}

const MIB: u64 = 1024 * 1024;

fn mebibytes(count: u64) -> (Bytes, Digest) {
    content(usize::try_from(count * MIB).unwrap())
}
