//! Downloads under every order of joining, leaving, breaking and committing.

use std::collections::VecDeque;
use std::io;
use std::sync::Mutex;

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::mpsc;

use super::*;
use crate::clock::Clock;
use crate::oci::Algorithm;
use crate::retention;
use crate::store::faulty::Operation;
use crate::store::{FaultyStore, Link, LinkKind, MemoryStore, read_all};
use crate::upstream::{BlobStream, ShownUrl, UpstreamError};

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
        "upstream.example"
    }
}

type Sender = mpsc::Sender<Result<Bytes, UpstreamError>>;

fn streams(offset: u64, total: Option<u64>) -> (Sender, Opening) {
    let (sender, receiver) = mpsc::channel(64);
    (sender, Opening::Streams(offset, total, receiver))
}

fn broken() -> UpstreamError {
    let url = ShownUrl::from(&"http://upstream.example/v2/".parse().unwrap());
    UpstreamError::Broken {
        url,
        received: 0,
        source: None,
    }
}

fn denied() -> UpstreamError {
    let url = ShownUrl::from(&"http://upstream.example/v2/".parse().unwrap());
    UpstreamError::Denied {
        url,
        message: crate::upstream::Message::default(),
    }
}

fn settings() -> Settings {
    Settings {
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
    }
}

struct Bench {
    fetcher: Fetcher,
    store: Arc<FaultyStore>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Bench {
    fn new() -> Self {
        Self::with(settings())
    }

    fn with(settings: Settings) -> Self {
        let clock = Clock::starting_at(std::time::SystemTime::UNIX_EPOCH);
        let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let shared = Arc::clone(&store) as Arc<dyn Store>;
        // Tasks of its own keep the retention, so that the tests can wait for the downloads.
        let retention = Retention::start(
            Arc::clone(&shared),
            clock,
            retention::Settings::unlimited(),
            &TaskTracker::new(),
            &stop,
        );
        let fetcher = Fetcher::new(Parts {
            settings,
            store: shared,
            retention,
            metrics: Arc::new(Metrics::new()),
            tasks: tasks.clone(),
            drain: CancellationToken::new(),
            stop: stop.clone(),
            clock,
        });
        Self {
            fetcher,
            store,
            stop,
            tasks,
        }
    }

    fn join(&self, digest: Digest, repo: &str, source: &Arc<Script>) -> Follower {
        self.join_at(digest, repo, source, Wanted::WHOLE)
    }

    fn join_at(
        &self,
        digest: Digest,
        repo: &str,
        source: &Arc<Script>,
        wanted: Wanted,
    ) -> Follower {
        match self.fetcher.join(
            digest,
            &repo.parse().unwrap(),
            Arc::clone(source) as _,
            wanted,
        ) {
            Joined::Leader(follower) | Joined::Follower(follower) => follower,
            Joined::Committed => panic!("committed already"),
        }
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

async fn read_to_end(follower: &mut Follower) -> Result<Vec<u8>, FetchError> {
    let mut all = Vec::new();
    while let Some(bytes) = follower.read(all.len() as u64, None).await? {
        all.extend_from_slice(&bytes);
    }
    Ok(all)
}

fn content(length: usize) -> (Bytes, Digest) {
    let bytes: Vec<u8> = (0..length)
        .map(|n| u8::try_from((n * 7 + n / 251) % 256).unwrap())
        .collect();
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

#[tokio::test(start_paused = true)]
async fn one_download_for_early_and_late_and_leaving_clients() {
    let bench = Bench::new();
    let (content, digest) = content(3_000_000);
    let (sender, opening) = streams(0, Some(3_000_000));
    let source = Script::new([opening]);
    let mut first = bench.join(digest, "a", &source);
    let leaver = bench.join(digest, "a", &source);
    assert_eq!(first.total().await.unwrap(), Some(3_000_000));
    send_all(&sender, &content.slice(..2_000_000), 100_000).await;
    assert!(first.read(1_999_999, None).await.unwrap().is_some());
    drop((leaver, first));
    let mut late = bench.join(digest, "b", &source);
    assert!(
        late.read(0, None).await.unwrap().is_some(),
        "a late client starts at once"
    );
    send_all(&sender, &content.slice(2_000_000..), 100_000).await;
    drop(sender);
    assert_eq!(read_to_end(&mut late).await.unwrap(), content);
    bench.settled().await;
    assert_eq!(source.asked(), [0]);
    assert_eq!(bench.stored(&digest).await.unwrap(), content);
    assert!(bench.linked("a", digest).await && bench.linked("b", digest).await);
    assert!(!bench.linked("c", digest).await);
    assert!(!bench.fetcher.is_running(&digest));
}

#[tokio::test(start_paused = true)]
async fn nobody_reads_the_end_of_a_blob_that_has_another_digest() {
    for total in [Some(300), None] {
        let bench = Bench::new();
        let (_, digest) = content(300);
        let (sender, opening) = streams(0, total);
        let mut follower = bench.join(digest, "a", &Script::new([opening]));
        send_all(&sender, &Bytes::from(vec![0; 300]), 100).await;
        drop(sender);
        let error = read_to_end(&mut follower).await.unwrap_err();
        assert!(
            matches!(&error, FetchError::Digest { expected, .. } if **expected == digest),
            "{error}"
        );
        bench.settled().await;
        assert_eq!(bench.stored(&digest).await, None);
        assert!(!bench.linked("a", digest).await);
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_whole_blob_waits_for_the_digest() {
    let bench = Bench::new();
    let (content, digest) = content(100_000);
    let (sender, opening) = streams(0, Some(100_000));
    let source = Script::new([opening]);
    let mut whole = bench.join(digest, "a", &source);
    let mut part = bench.join(digest, "a", &source);
    let stall = bench.store.stall(Operation::Write, 1);
    send_all(&sender, &content, 100_000).await;
    stall.reached().await;
    // Everything has come. The hash is behind, so it can't be known to be right.
    let first = whole.read(0, None).await.unwrap().unwrap();
    assert!(first.len() < 100_000 && content.starts_with(&first));
    let next = first.len() as u64;
    assert!(whole.read(next, None).now_or_never().is_none());
    // Who has asked for no more than the end gets it.
    let end = part.read(99_000, None).await.unwrap().unwrap();
    assert_eq!(end, content.slice(99_000..));
    stall.release();
    let rest = whole.read(next, None).await.unwrap().unwrap();
    assert_eq!(rest, content.slice(first.len()..));
    assert!(whole.read(100_000, None).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_broken_stream_is_taken_up_where_it_broke() {
    for honours_range in [true, false] {
        let bench = Bench::new();
        let (content, digest) = content(1000);
        let (first, broken_off) = streams(0, Some(1000));
        let begins = if honours_range { 600 } else { 0 };
        let (second, resumed) = streams(begins, Some(1000));
        let source = Script::new([broken_off, Opening::Fails(broken()), resumed]);
        let mut follower = bench.join(digest, "a", &source);
        send_all(&first, &content.slice(..600), 60).await;
        first.send(Err(broken())).await.unwrap();
        send_all(
            &second,
            &content.slice(usize::try_from(begins).unwrap()..),
            70,
        )
        .await;
        drop((first, second));
        assert_eq!(read_to_end(&mut follower).await.unwrap(), content);
        assert_eq!(source.asked(), [0, 600, 600]);
    }
}

#[tokio::test(start_paused = true)]
async fn resuming_ends_when_there_is_no_progress() {
    let bench = Bench::new();
    let (_, digest) = content(1000);
    let (sender, opening) = streams(0, Some(1000));
    let fails = std::iter::repeat_with(|| Opening::Fails(broken())).take(5);
    let source = Script::new(std::iter::once(opening).chain(fails));
    let mut follower = bench.join(digest, "a", &source);
    sender.send(Err(broken())).await.unwrap();
    let error = read_to_end(&mut follower).await.unwrap_err();
    assert!(
        matches!(error, FetchError::Upstream(UpstreamError::Broken { .. })),
        "{error}"
    );
    assert_eq!(source.asked().len(), 6);
}

#[tokio::test(start_paused = true)]
async fn another_length_when_resuming_is_another_blob() {
    let bench = Bench::new();
    let (content, digest) = content(1000);
    let (first, broken_off) = streams(0, Some(1000));
    let (_second, resumed) = streams(500, Some(900));
    let mut follower = bench.join(digest, "a", &Script::new([broken_off, resumed]));
    send_all(&first, &content.slice(..500), 500).await;
    first.send(Err(broken())).await.unwrap();
    let error = read_to_end(&mut follower).await.unwrap_err();
    assert!(
        matches!(
            error,
            FetchError::Length {
                announced: 1000,
                sent: 900,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn more_or_fewer_bytes_than_announced_are_an_error() {
    for sent in [299, 301] {
        let bench = Bench::new();
        let (content, digest) = content(sent);
        let (sender, opening) = streams(0, Some(300));
        let mut follower = bench.join(digest, "a", &Script::new([opening]));
        send_all(&sender, &content, sent).await;
        drop(sender);
        let error = read_to_end(&mut follower).await.unwrap_err();
        assert!(
            matches!(error, FetchError::Length { announced: 300, .. }),
            "{error}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_does_not_tell_the_length() {
    let bench = Bench::new();
    let (content, digest) = content(500);
    let (sender, opening) = streams(0, None);
    let mut follower = bench.join(digest, "a", &Script::new([opening]));
    assert_eq!(follower.total().await.unwrap(), None);
    send_all(&sender, &content, 90).await;
    drop(sender);
    assert_eq!(read_to_end(&mut follower).await.unwrap(), content);
    assert_eq!(follower.total().await.unwrap(), Some(500));
}

#[tokio::test(start_paused = true)]
async fn an_empty_blob() {
    let bench = Bench::new();
    let (_, digest) = content(0);
    let (sender, opening) = streams(0, Some(0));
    drop(sender);
    let mut follower = bench.join(digest, "a", &Script::new([opening]));
    assert_eq!(read_to_end(&mut follower).await.unwrap(), b"");
    bench.settled().await;
    assert_eq!(bench.stored(&digest).await.unwrap(), Bytes::new());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_told_to_all_who_wait_and_to_nobody_after() {
    let bench = Bench::new();
    let (content, digest) = content(10);
    let (sender, opening) = streams(0, Some(10));
    let source = Script::new([Opening::Fails(denied()), opening]);
    let (mut one, mut two) = (
        bench.join(digest, "a", &source),
        bench.join(digest, "b", &source),
    );
    for follower in [&mut one, &mut two] {
        let error = follower.total().await.unwrap_err();
        assert!(
            matches!(error, FetchError::Upstream(UpstreamError::Denied { .. })),
            "{error}"
        );
    }
    let mut next = bench.join(digest, "a", &source);
    send_all(&sender, &content, 10).await;
    drop(sender);
    assert_eq!(read_to_end(&mut next).await.unwrap(), content);
}

#[tokio::test(start_paused = true)]
async fn a_lost_task_is_an_error_and_not_an_end() {
    let bench = Bench::new();
    let (_, digest) = content(10);
    let mut follower = bench.join(digest, "a", &Script::new([Opening::Panics]));
    assert!(matches!(
        follower.read(0, None).await,
        Err(FetchError::Lost)
    ));
    assert!(!bench.fetcher.is_running(&digest));
}

#[tokio::test(start_paused = true)]
async fn stopping_breaks_what_is_still_running() {
    let bench = Bench::new();
    let (content, digest) = content(100_000);
    let (sender, opening) = streams(0, Some(100_000));
    let mut follower = bench.join(digest, "a", &Script::new([opening]));
    send_all(&sender, &content.slice(..50), 50).await;
    assert!(follower.read(0, None).await.unwrap().is_some());
    bench.stop.cancel();
    assert!(matches!(
        follower.read(50, None).await,
        Err(FetchError::Stopping)
    ));
    bench.settled().await;
    assert_eq!(bench.stored(&digest).await, None);
}

#[tokio::test]
async fn who_comes_while_it_is_committed_misses_nothing() {
    let bench = Bench::new();
    let (content, digest) = content(100);
    let (sender, opening) = streams(0, Some(100));
    let source = Script::new([opening]);
    let committing = bench.store.stall(Operation::Commit, 1);
    let linking = bench.store.stall(Operation::Link, 1);
    let mut first = bench.join(digest, "a", &source);
    send_all(&sender, &content, 100).await;
    drop(sender);
    assert_eq!(
        read_to_end(&mut first).await.unwrap(),
        content,
        "clients don't wait for the disk"
    );
    committing.reached().await;
    let mut second = bench.join(digest, "b", &source);
    assert_eq!(read_to_end(&mut second).await.unwrap(), content);
    committing.release();
    linking.reached().await;
    let third = bench.fetcher.join(
        digest,
        &"c".parse().unwrap(),
        Arc::clone(&source) as _,
        Wanted::WHOLE,
    );
    assert!(matches!(third, Joined::Committed), "{third:?}");
    assert_eq!(bench.stored(&digest).await.unwrap(), content);
    linking.release();
    bench.settled().await;
    assert!(bench.linked("a", digest).await && bench.linked("b", digest).await);
    assert_eq!(source.asked(), [0]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_commit_costs_the_cache_and_not_the_client() {
    let bench = Bench::new();
    let (content, digest) = content(100);
    let (sender, opening) = streams(0, Some(100));
    bench
        .store
        .fail(Operation::Commit, 1, io::ErrorKind::StorageFull);
    let mut follower = bench.join(digest, "a", &Script::new([opening]));
    send_all(&sender, &content, 30).await;
    drop(sender);
    assert_eq!(read_to_end(&mut follower).await.unwrap(), content);
    bench.settled().await;
    assert_eq!(bench.stored(&digest).await, None);
    assert!(!bench.linked("a", digest).await);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_written_is_passed_through() {
    for (operation, nth) in [
        (Operation::Stage, 1),
        (Operation::Write, 1),
        (Operation::Write, 3),
    ] {
        let bench = Bench::new();
        let (content, digest) = content(12_000_000);
        let (sender, opening) = streams(0, Some(12_000_000));
        bench
            .store
            .fail_from(operation, nth, io::ErrorKind::StorageFull);
        let source = Script::new([opening]);
        let mut followers = [
            bench.join(digest, "a", &source),
            bench.join(digest, "b", &source),
        ];
        let feed = async {
            send_all(&sender, &content, 100_000).await;
            drop(sender);
        };
        let [one, two] = &mut followers;
        let ((), one, two) = tokio::join!(feed, read_to_end(one), read_to_end(two));
        assert_eq!(one.unwrap(), content, "{operation:?}");
        assert_eq!(two.unwrap(), content, "{operation:?}");
        bench.settled().await;
        assert_eq!(bench.stored(&digest).await, None);
        assert!(!bench.linked("a", digest).await);
        assert!(!bench.fetcher.is_running(&digest));
    }
}

#[tokio::test(start_paused = true)]
async fn a_passed_through_blob_must_have_its_digest_too() {
    let bench = Bench::new();
    let (_, digest) = content(300);
    let (sender, opening) = streams(0, Some(300));
    bench
        .store
        .fail(Operation::Stage, 1, io::ErrorKind::ReadOnlyFilesystem);
    let mut follower = bench.join(digest, "a", &Script::new([opening]));
    send_all(&sender, &Bytes::from(vec![0; 300]), 100).await;
    drop(sender);
    let error = read_to_end(&mut follower).await.unwrap_err();
    assert!(matches!(error, FetchError::Digest { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn who_comes_too_late_for_a_passed_through_blob_gets_one_of_its_own() {
    let bench = Bench::new();
    let (content, digest) = content(100_000);
    let (first_sender, first) = streams(0, Some(100_000));
    let (second_sender, second) = streams(0, Some(100_000));
    bench
        .store
        .fail_from(Operation::Stage, 1, io::ErrorKind::StorageFull);
    let source = Script::new([first, second]);
    let mut early = bench.join(digest, "a", &source);
    send_all(&first_sender, &content.slice(..60_000), 30_000).await;
    assert!(early.read(0, None).await.unwrap().is_some());
    assert!(early.read(30_000, None).await.unwrap().is_some());
    assert!(
        bench
            .fetcher
            .follow(&digest, &"a".parse().unwrap(), Wanted::WHOLE)
            .is_none()
    );
    let mut late = bench.join(digest, "a", &source);
    send_all(&second_sender, &content, 50_000).await;
    send_all(&first_sender, &content.slice(60_000..), 40_000).await;
    drop((first_sender, second_sender));
    assert_eq!(read_to_end(&mut late).await.unwrap(), content);
    let mut rest = Vec::new();
    while let Some(bytes) = early.read(60_000 + rest.len() as u64, None).await.unwrap() {
        rest.extend_from_slice(&bytes);
    }
    assert_eq!(rest, content.slice(60_000..));
    assert_eq!(source.asked(), [0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_passed_through_download_ends_with_its_last_client() {
    let bench = Bench::new();
    let (content, digest) = content(100_000);
    let (sender, opening) = streams(0, Some(100_000));
    bench
        .store
        .fail(Operation::Stage, 1, io::ErrorKind::StorageFull);
    let mut follower = bench.join(digest, "a", &Script::new([opening]));
    send_all(&sender, &content.slice(..500), 500).await;
    assert!(follower.read(0, None).await.unwrap().is_some());
    drop(follower);
    bench.settled().await;
    assert!(sender.is_closed());
}
