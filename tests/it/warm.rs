//! What is served from memory, by the word of the index: nothing that has gone, and nothing to a
//! repository that doesn't have it.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millpond::oci::Digest;
use millpond::oci::manifest::media_type;
use millpond::storage::{FsStore, MemoryStore, Store};

use crate::harness::{
    FaultyStore, Image, Mirror, Operation, Registry, Setup, advance, digest, freeze, mirrored,
    noise,
};

const MINUTE: Duration = Duration::from_mins(1);

fn manifest(repo: &str, digest: &Digest) -> String {
    format!("/v2/{repo}/manifests/{digest}")
}

/// Where an answer came from: `hit`, or why the upstream was asked, for a tag as for a digest.
async fn from(m: &Mirror, path: &str) -> String {
    let answer = m.get(path).await;
    assert_eq!(answer.status, 200, "{path}");
    m.idle().await;
    let status = answer.header("cache-status").strip_prefix("millpond; ");
    let first = status.unwrap().split(';').next().unwrap();
    first.replace("uri-miss", "miss")
}

#[tokio::test]
async fn the_warm_answer_is_the_cold_one() {
    let (up, m) = mirrored().await;
    let image = Image::docker(1);
    let digest = up.push("app", "1", &image);
    for path in [manifest("app", &digest), "/v2/app/manifests/1".to_owned()] {
        let first = m.get(&path).await;
        for _ in 0..2 {
            let warm = m.get(&path).await;
            warm.expect(200, &image.manifest);
            assert_eq!(warm.header("cache-status"), "millpond; hit");
            let head = m.head(&path).await;
            head.expect(200, b"");
            for name in [
                "content-type",
                "content-length",
                "docker-content-digest",
                "docker-distribution-api-version",
                "etag",
                "accept-ranges",
            ] {
                assert_eq!(first.header(name), warm.header(name), "{name}");
                assert_eq!(first.header(name), head.header(name), "{name}");
                assert!(!warm.header(name).is_empty(), "{name}");
            }
        }
        let part = m
            .ask(&format!("GET {path}"), &[("range", "bytes=1-3")])
            .await;
        part.expect(206, &image.manifest[1..4]);
        assert_eq!(part.header("content-length"), "3");
        let known = [("if-none-match", first.header("etag"))];
        assert_eq!(m.ask(&format!("GET {path}"), &known).await.status, 304);
        m.get(&path).await.expect(200, &image.manifest);
    }
}

#[tokio::test(start_paused = true)]
async fn a_warm_image_lives_as_long_as_it_is_used() {
    let up = Registry::start().await;
    let m = Setup::new(&up).proxy("ttl: 1h").start().await;
    let _frozen = freeze();
    let image = Image::oci(1);
    let path = manifest("app", &up.push("app", "1", &image));
    assert_eq!(from(&m, &path).await, "fwd=miss");
    for _ in 0..3 {
        advance(50 * MINUTE).await;
        assert_eq!(from(&m, &path).await, "hit");
        assert_eq!(from(&m, &path).await, "hit");
    }
    advance(61 * MINUTE).await;
    assert_eq!(from(&m, &path).await, "fwd=miss");
}

#[tokio::test]
async fn evicted_blobs_are_fetched_again() {
    let up = Registry::start().await;
    let m = Setup::new(&up).storage("maxsize: 100kB").start().await;
    let image = Image::oci(1);
    let path = manifest("app", &up.push("app", "1", &image));
    let small = noise(1, 1000);
    let blob = format!("/v2/app/blobs/{}", up.put_blob("app", &small));
    for path in [&path, &blob] {
        assert_eq!(from(&m, path).await, "fwd=miss");
        assert_eq!(from(&m, path).await, "hit");
    }
    for seed in [2, 3] {
        let large = noise(seed, 50_000);
        let large = format!("/v2/app/blobs/{}", up.put_blob("app", &large));
        assert_eq!(from(&m, &large).await, "fwd=miss");
        m.idle().await;
    }
    up.take();
    for path in [&path, &blob] {
        assert_eq!(from(&m, path).await, "fwd=miss");
    }
    assert_eq!(up.take(), [format!("GET {path}"), format!("GET {blob}")]);
}

#[tokio::test(start_paused = true)]
async fn a_tag_that_is_gone_is_gone_from_memory_too() {
    let (up, m) = mirrored().await;
    let _frozen = freeze();
    let image = Image::oci(1);
    let digest = up.push("app", "1", &image);
    let path = "/v2/app/manifests/1";
    assert_eq!(from(&m, path).await, "fwd=miss");
    assert_eq!(from(&m, path).await, "hit");
    up.delete(path);
    advance(2 * MINUTE).await;
    assert_eq!(m.get(path).await.status, 404);
    assert_eq!(m.head(path).await.status, 404);
    assert_eq!(from(&m, &manifest("app", &digest)).await, "hit");
}

#[tokio::test]
async fn memory_is_no_proof_for_another_repository() {
    let (up, m) = mirrored().await;
    let image = Image::oci(1);
    let digest = up.push("one", "1", &image);
    let (one, two) = (manifest("one", &digest), manifest("two", &digest));
    assert_eq!(from(&m, &one).await, "fwd=miss");
    assert_eq!(from(&m, &one).await, "hit");
    for line in ["GET", "HEAD"] {
        assert_eq!(m.ask(&format!("{line} {two}"), &[]).await.status, 404);
    }
    up.push("two", "1", &image);
    up.take();
    assert_eq!(from(&m, &two).await, "fwd=miss");
    assert_eq!(up.take(), [format!("HEAD {two}")]);
    assert_eq!(from(&m, &two).await, "hit");
    let blob = format!("/v2/two/blobs/{}", up.put_blob("one", &noise(1, 1000)));
    let linked = blob.replace("two", "one");
    assert_eq!(from(&m, &linked).await, "fwd=miss");
    assert_eq!(from(&m, &linked).await, "hit");
    assert_eq!(m.get(&blob).await.status, 404);
}

#[tokio::test]
async fn after_a_restart_it_comes_from_the_store() {
    let up = Registry::start().await;
    let directory = tempfile::tempdir().unwrap();
    let open = || async { Arc::new(FsStore::open(directory.path()).await.unwrap()) };
    let image = Image::oci(1);
    let path = manifest("app", &up.push("app", "1", &image));
    let blob = format!("/v2/app/blobs/{}", digest(&image.config));
    let m = Setup::new(&up).store(open().await).start().await;
    for path in [&path, &blob] {
        assert_eq!(from(&m, path).await, "fwd=miss");
        assert_eq!(from(&m, path).await, "hit");
    }
    let Mirror { app, store, .. } = m;
    assert!(app.stop().await);
    drop(store);
    up.go_down();
    let store: Arc<dyn Store> = open().await;
    let m = Setup::new(&up).store(store).start().await;
    for _ in 0..2 {
        assert_eq!(from(&m, &path).await, "hit");
        assert_eq!(from(&m, &blob).await, "hit");
    }
}

/// A manifest of the largest size there is.
fn largest(seed: u64) -> Bytes {
    let mut bytes = Image::oci(seed).manifest.to_vec();
    bytes.resize(4 * 1024 * 1024, b' ');
    bytes.into()
}

#[tokio::test]
async fn a_head_of_a_linked_manifest_reads_no_file() {
    let up = Registry::start().await;
    let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
    let shared: Arc<dyn Store> = Arc::<FaultyStore>::clone(&store);
    let m = Setup::new(&up)
        .proxy("tags: {ttl: 0s}")
        .store(shared)
        .start()
        .await;
    let size = (4 * 1024 * 1024).to_string();
    // More than there is memory for.
    let digests: Vec<Digest> = (0..6)
        .map(|seed| {
            up.tag(
                "app",
                &format!("t{seed}"),
                media_type::OCI_MANIFEST,
                &largest(seed),
            )
        })
        .collect();
    for seed in 0..6 {
        let answer = m.get(&format!("/v2/app/manifests/t{seed}")).await;
        assert_eq!(answer.status, 200);
    }
    store.fail_from(Operation::Open, 1, ErrorKind::Other);
    up.take();
    for digest in &digests {
        let head = m.head(&manifest("app", digest)).await;
        head.expect(200, b"");
        assert_eq!(head.header("cache-status"), "millpond; hit");
        assert_eq!(head.header("content-length"), size);
        assert_eq!(head.header("content-type"), media_type::OCI_MANIFEST);
        assert_eq!(head.header("docker-content-digest"), digest.to_string());
    }
    assert_eq!(up.take(), [""; 0]);
    for (seed, digest) in digests.iter().enumerate() {
        let head = m.head(&format!("/v2/app/manifests/t{seed}")).await;
        head.expect(200, b"");
        assert_eq!(head.header("docker-content-digest"), digest.to_string());
    }
    assert_eq!(
        (up.count("HEAD "), up.take().len()),
        (6, 6),
        "asked, not fetched"
    );
    // Not all of them were in memory.
    for digest in &digests {
        assert_eq!(m.get(&manifest("app", digest)).await.status, 200);
    }
    assert!(up.count("GET ") > 0);
    up.go_down();
    for (seed, digest) in digests.iter().enumerate() {
        let head = m.head(&format!("/v2/app/manifests/t{seed}")).await;
        head.expect(200, b"");
        assert_eq!(
            head.header("cache-status"),
            "millpond; fwd=stale; fwd-status=500; detail=stale"
        );
        assert_eq!(head.header("docker-content-digest"), digest.to_string());
    }
}

#[tokio::test]
async fn the_largest_manifest_is_served_from_memory() {
    let up = Registry::start().await;
    let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
    let shared: Arc<dyn Store> = Arc::<FaultyStore>::clone(&store);
    let m = Setup::new(&up).store(shared).start().await;
    let bytes = largest(1);
    let path = manifest("app", &up.tag("app", "1", media_type::OCI_MANIFEST, &bytes));
    assert_eq!(from(&m, &path).await, "fwd=miss");
    store.fail_from(Operation::Open, 1, ErrorKind::Other);
    for path in [&*path, "/v2/app/manifests/1"] {
        m.get(path).await.expect(200, &bytes);
    }
    assert_eq!(up.count(&path), 1);
}
