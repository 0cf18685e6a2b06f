//! Redirects to a scripted bucket.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use testkit::time::{advance, freeze};
use testkit::{ALWAYS, Reply, noise};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::bucket::holdings::{HELD_FOR, LACKED_FOR};
use crate::bucket::keys;
use crate::bucket::tests::config_of;
use crate::cache::{Cache, CacheSettings};
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::oci::Algorithm;
use crate::storage::MemoryStore;
use crate::tasks::Tasks;

type Server = testkit::Registry<Digest>;

const REPO: &str = "app";
/// The blobs of most tests, in bytes.
const SIZE: usize = 100_000;

fn shared(redirect: RedirectMode, redirect_above: usize) -> SharedStorage {
    SharedStorage {
        timeout: Duration::from_secs(2),
        redirect,
        redirect_above,
        redirect_private: false,
        ttl: None,
        max_size: None,
    }
}

fn redirects(redirect: RedirectMode, above: usize) -> Option<Redirects> {
    Redirects::new(&shared(redirect, above), &Metrics::new().bucket())
}

/// A bucket that always redirects, and its server.
async fn bucket() -> (Server, Arc<Bucket>) {
    let server = Server::start().await;
    server.be_bucket("shared");
    let config = config_of(&server.url(), shared(RedirectMode::Always, 1));
    let (clock, metrics) = (Clock::system(), Arc::new(Metrics::new()));
    let cache = Cache::start(
        Arc::new(MemoryStore::new()),
        Arc::clone(&metrics),
        clock,
        CacheSettings::unlimited(),
        &Tasks::new(),
        &CancellationToken::new(),
    );
    let bucket = Bucket::open(&config, None, cache, (clock, &metrics)).unwrap();
    (server, Arc::new(bucket))
}

fn repo() -> RepoName {
    REPO.parse().unwrap()
}

fn put_content(server: &Server, content: &Bytes) -> Digest {
    let digest = Digest::of(Algorithm::Sha256, content);
    server.put_object(&format!("below/{}", keys::blob(&digest)), content);
    digest
}

fn put_link(server: &Server, digest: &Digest) {
    let link = keys::link(&repo(), LinkKind::Layer, digest);
    server.put_object(&format!("below/{link}"), digest.to_string());
}

/// Puts content with its link.
fn put(server: &Server, seed: u64, size: usize) -> Digest {
    let digest = put_content(server, &noise(seed, size));
    put_link(server, &digest);
    digest
}

fn known(bucket: &Bucket, digest: &Digest) -> KnownRedirect {
    bucket.known_redirect(&repo(), digest)
}

async fn find(bucket: &Bucket, digest: &Digest) -> Option<Redirect> {
    bucket.find_redirect(&repo(), digest).await
}

#[test]
fn bodies_are_sent_until_more_than_the_limit_are() {
    let busy = redirects(RedirectMode::Busy, 2).unwrap();
    let mut sent: Vec<_> = (0..3).map(|_| busy.admit().unwrap()).collect();
    assert!(busy.admit().is_none());
    // Bodies that can't be redirected count as well.
    let counted = busy.count().unwrap();
    drop(sent.pop());
    assert!(busy.admit().is_none());
    drop(counted);
    drop(busy.admit().unwrap());
    sent.push(busy.admit().unwrap());
    assert!(busy.admit().is_none());
    drop(sent);
    assert!(busy.admit().is_some());
}

#[test]
fn threads_admit_no_more_than_the_limit_and_forget_none() {
    const ABOVE: usize = 3;
    let busy = redirects(RedirectMode::Busy, ABOVE).unwrap();
    let (sending, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..2_000 {
                    let Some(counted) = busy.admit() else {
                        refused.fetch_add(1, Ordering::SeqCst);
                        continue;
                    };
                    assert!(sending.fetch_add(1, Ordering::SeqCst) <= ABOVE);
                    std::thread::yield_now();
                    sending.fetch_sub(1, Ordering::SeqCst);
                    drop(counted);
                }
            });
        }
    });
    assert!(refused.into_inner() > 0);
    let admitted = (0..10).map_while(|_| busy.admit());
    assert_eq!(admitted.collect::<Vec<_>>().len(), ABOVE + 1);
}

#[test]
fn always_redirects_without_counting_and_never_has_nothing() {
    let always = redirects(RedirectMode::Always, 2).unwrap();
    assert!(always.admit().is_none() && always.count().is_none());
    assert!(redirects(RedirectMode::Never, 2).is_none());
}

#[tokio::test(start_paused = true)]
async fn the_bucket_is_asked_once_for_content_and_link() {
    let _frozen = freeze();
    let (server, bucket) = bucket().await;
    let digest = put(&server, 1, SIZE);
    assert!(matches!(known(&bucket, &digest), KnownRedirect::Unknown));
    let found = find(&bucket, &digest).await.unwrap();
    assert_eq!(found.size, SIZE as u64);
    let mut asked = server.take();
    asked.sort();
    let (link, data) = (
        keys::link(&repo(), LinkKind::Layer, &digest),
        keys::blob(&digest),
    );
    let expected = [
        format!("GET /shared/below/{link}"),
        format!("HEAD /shared/below/{data}"),
    ];
    assert_eq!(asked, expected);
    // For anybody, for 15 minutes, and in no log.
    let address = found.location.to_str().unwrap();
    let start = format!("{}/shared/below/{data}?", server.url());
    assert!(address.starts_with(&start), "{address}");
    assert!(address.contains("X-Amz-Expires=900&"), "{address}");
    assert!(!format!("{found:?}").contains("X-Amz"));
    let KnownRedirect::To(again) = known(&bucket, &digest) else {
        panic!("it isn't known");
    };
    assert_eq!((again.location, again.size), (found.location, found.size));
    // An address is signed again in time, and what the bucket has is asked again.
    advance(Duration::from_mins(4)).await;
    assert!(matches!(known(&bucket, &digest), KnownRedirect::Unknown));
    assert!(find(&bucket, &digest).await.is_some());
    assert!(matches!(known(&bucket, &digest), KnownRedirect::To(_)));
    assert_eq!(server.count(""), 0);
    advance(HELD_FOR.saturating_sub(Duration::from_mins(4))).await;
    assert!(matches!(known(&bucket, &digest), KnownRedirect::Unknown));
    assert!(find(&bucket, &digest).await.is_some());
    assert_eq!(server.count(""), 2);
}

#[tokio::test(start_paused = true)]
async fn what_isnt_linked_or_isnt_there_is_served() {
    let _frozen = freeze();
    let (server, bucket) = bucket().await;
    let unlinked = put_content(&server, &noise(1, SIZE));
    let dangling = Digest::of(Algorithm::Sha256, b"dangling");
    put_link(&server, &dangling);
    let mislinked = put_content(&server, &noise(2, SIZE));
    let link = keys::link(&repo(), LinkKind::Layer, &mislinked);
    server.put_object(&format!("below/{link}"), unlinked.to_string());
    for digest in [unlinked, dangling, mislinked] {
        assert!(find(&bucket, &digest).await.is_none());
        assert!(matches!(known(&bucket, &digest), KnownRedirect::Nowhere));
        assert_eq!(server.take().len(), 2);
        assert!(find(&bucket, &digest).await.is_none());
        assert_eq!(server.count(""), 0);
    }
    put_link(&server, &unlinked);
    advance(LACKED_FOR).await;
    assert!(matches!(known(&bucket, &unlinked), KnownRedirect::Unknown));
    assert!(find(&bucket, &unlinked).await.is_some());
    // Reading it shows that it is gone.
    let none = bucket.content_alone(&dangling, (0, None)).await.unwrap();
    assert!(none.is_none());
    bucket.on_missing(&unlinked);
    assert!(matches!(known(&bucket, &unlinked), KnownRedirect::Unknown));
}

#[tokio::test(start_paused = true)]
async fn small_blobs_are_served() {
    let _frozen = freeze();
    let (server, bucket) = bucket().await;
    let least = usize::try_from(MIN_REDIRECTED).unwrap();
    let (small, large) = (put(&server, 1, least - 1), put(&server, 2, least));
    assert!(find(&bucket, &small).await.is_none());
    assert!(matches!(known(&bucket, &small), KnownRedirect::Nowhere));
    assert!(find(&bucket, &large).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_bucket_that_fails_gets_no_clients() {
    let _frozen = freeze();
    let (server, bucket) = bucket().await;
    let (first, second) = (put(&server, 1, SIZE), put(&server, 2, SIZE));
    assert!(find(&bucket, &first).await.is_some());
    server.reply("", ALWAYS, Reply::error(503));
    assert!(find(&bucket, &second).await.is_none());
    server.behave();
    server.take();
    // Nor for what it is known to have, while it is left alone.
    for digest in [first, second] {
        assert!(matches!(known(&bucket, &digest), KnownRedirect::Nowhere));
    }
    assert!(find(&bucket, &second).await.is_none());
    assert_eq!(server.count(""), 0);
    advance(Duration::from_secs(15)).await;
    assert!(matches!(known(&bucket, &first), KnownRedirect::To(_)));
    assert!(find(&bucket, &second).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_silent_bucket_costs_a_client_the_timeout_once() {
    let _frozen = freeze();
    let (server, bucket) = bucket().await;
    let digest = put(&server, 1, SIZE);
    // The head of the link comes, and its body doesn't.
    server.on("GET ", 1, |_, usual| usual.cut(3).then_stall());
    let asking = async {
        server.wait(2, "").await;
        advance(Duration::from_secs(2)).await;
    };
    let (found, ()) = tokio::join!(find(&bucket, &digest), asking);
    assert!(found.is_none());
    assert!(bucket.is_missing());
    assert!(matches!(known(&bucket, &digest), KnownRedirect::Nowhere));
}

#[tokio::test(start_paused = true)]
async fn what_was_read_with_its_link_is_known_until_it_is_found_to_be_wrong() {
    let _frozen = freeze();
    let (server, bucket) = bucket().await;
    let digest = put(&server, 1, SIZE);
    let layer = (&repo(), LinkKind::Layer);
    let read = bucket.content(layer, &digest, (0, None)).await.unwrap();
    assert!(read.unwrap().is_linked);
    server.take();
    assert!(find(&bucket, &digest).await.is_some());
    assert_eq!(server.count(""), 0);
    bucket.distrust(&digest).await;
    assert!(matches!(known(&bucket, &digest), KnownRedirect::Unknown));
    assert!(find(&bucket, &digest).await.is_none());
}

#[tokio::test]
async fn a_redirect_is_counted_and_is_a_use() {
    let (_server, bucket) = bucket().await;
    let digest = Digest::of(Algorithm::Sha256, b"");
    assert!(!bucket.uses.has(&digest));
    bucket.on_redirect(&digest);
    assert!(bucket.uses.has(&digest));
}
