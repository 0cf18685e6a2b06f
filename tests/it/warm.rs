//! What is served from memory, by the word of the index: nothing that has gone, and nothing to a
//! repository that doesn't have it.

use std::io::ErrorKind;
use std::sync::Arc;

use bytes::Bytes;
use millpond::oci::Digest;
use millpond::oci::manifest::media_type;
use millpond::storage::{FsStore, Store};

use crate::harness::{
    Image, Mirror, Operation, Registry, Setup, blob_path, mirrored, mirrored_with, noise,
    over_faulty_store, put_blob,
};

fn manifest(repo: &str, digest: &Digest) -> String {
    format!("/v2/{repo}/manifests/{digest}")
}

/// Where an answer came from: `hit`, or why the upstream was asked, for a tag as for a digest.
async fn from(m: &Mirror, path: &str) -> String {
    let answer = m.get(path).await;
    assert_eq!(answer.status, 200, "{path}");
    m.idle().await;
    let first = answer.source().split(';').next().unwrap();
    first.replace("uri-miss", "miss")
}

/// The answer comes from the upstream, and from then on from memory.
async fn is_cached(m: &Mirror, path: &str) {
    assert_eq!(from(m, path).await, "fwd=miss");
    assert_eq!(from(m, path).await, "hit");
}

#[tokio::test]
async fn the_warm_answer_is_the_cold_one() {
    let (up, m) = mirrored().await;
    let image = Image::docker(1);
    let digest = up.push("app", "1", &image);
    for path in [manifest("app", &digest), "/v2/app/manifests/1".to_owned()] {
        let first = m.get(&path).await;
        for _ in 0..2 {
            let warm = m.serves(&path, &image.manifest).await;
            assert_eq!(warm.source(), "hit");
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
        let part = m.range(&path, "bytes=1-3").await;
        part.expect(206, &image.manifest[1..4]);
        assert_eq!(part.header("content-length"), "3");
        let known = [("if-none-match", first.header("etag"))];
        assert_eq!(m.ask(&format!("GET {path}"), &known).await.status, 304);
        m.serves(&path, &image.manifest).await;
    }
}

#[tokio::test]
async fn evicted_blobs_are_fetched_again() {
    let (up, m) = mirrored_with(&["storage.maxsize: 100kB"]).await;
    let image = Image::oci(1);
    let path = manifest("app", &up.push("app", "1", &image));
    let (_, blob) = put_blob(&up, 1, 1000);
    for path in [&path, &blob] {
        is_cached(&m, path).await;
    }
    for seed in [2, 3] {
        let (large, path) = put_blob(&up, seed, 50_000);
        let source = m.pull(&path, &large).await.source().to_owned();
        assert!(source.starts_with("fwd=uri-miss"), "{source}");
    }
    up.take();
    for path in [&path, &blob] {
        assert_eq!(from(&m, path).await, "fwd=miss");
    }
    assert_eq!(up.take(), [format!("GET {path}"), format!("GET {blob}")]);
}

#[tokio::test]
async fn memory_is_no_proof_for_another_repository() {
    let (up, m) = mirrored_with(&["proxy.negativettl: 0"]).await;
    let image = Image::oci(1);
    let digest = up.push("one", "1", &image);
    let (one, two) = (manifest("one", &digest), manifest("two", &digest));
    is_cached(&m, &one).await;
    for line in ["GET", "HEAD"] {
        assert_eq!(m.ask(&format!("{line} {two}"), &[]).await.status, 404);
    }
    up.push("two", "1", &image);
    up.take();
    let proved = m.serves(&two, &image.manifest).await;
    let expected = "fwd=uri-miss; fwd-status=200; detail=revalidated";
    assert_eq!(proved.source(), expected);
    assert_eq!(m.serves(&two, &image.manifest).await.source(), "hit");
    assert_eq!(up.take(), [format!("HEAD {two}")], "proved once");
    let blob = format!("/v2/two/blobs/{}", up.put_blob("one", &noise(1, 1000)));
    let linked = blob.replace("two", "one");
    is_cached(&m, &linked).await;
    assert_eq!(m.get(&blob).await.status, 404);
}

#[tokio::test]
async fn after_a_restart_it_comes_from_the_store() {
    let up = Registry::start().await;
    let directory = tempfile::tempdir().unwrap();
    let open = || async { Arc::new(FsStore::open(directory.path()).await.unwrap()) };
    let image = Image::oci(1);
    let path = manifest("app", &up.push("app", "1", &image));
    let blob = blob_path("app", &image.config);
    let m = Setup::new(&up).store(open().await).start().await;
    for path in [&path, &blob] {
        is_cached(&m, path).await;
    }
    assert!(m.app.stop().await);
    drop(m.store);
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

/// Tags it `t<seed>`.
fn put_largest(up: &Registry, seed: u64) -> Digest {
    let bytes = largest(seed);
    up.tag("app", &format!("t{seed}"), media_type::OCI_MANIFEST, &bytes)
}

#[tokio::test]
async fn a_head_of_a_linked_manifest_reads_no_file() {
    let (up, store, m) = over_faulty_store(&["proxy.tags: {ttl: 0s}"]).await;
    let size = (4 * 1024 * 1024).to_string();
    // More than there is memory for.
    let digests: Vec<Digest> = (0..6).map(|seed| put_largest(&up, seed)).collect();
    for seed in 0..6 {
        let answer = m.get(&format!("/v2/app/manifests/t{seed}")).await;
        assert_eq!(answer.status, 200);
    }
    store.fail_from(Operation::Open, 1, ErrorKind::Other);
    up.take();
    for digest in &digests {
        let head = m.head(&manifest("app", digest)).await;
        head.expect(200, b"");
        assert_eq!(head.source(), "hit");
        assert_eq!(head.header("content-length"), size);
        assert_eq!(head.header("content-type"), media_type::OCI_MANIFEST);
        head.has("docker-content-digest", digest);
    }
    assert_eq!(up.take(), [""; 0]);
    for (seed, digest) in digests.iter().enumerate() {
        let head = m.head(&format!("/v2/app/manifests/t{seed}")).await;
        head.expect(200, b"");
        head.has("docker-content-digest", digest);
    }
    // Asked, not fetched.
    assert_eq!((up.count("HEAD "), up.take().len()), (6, 6));
    // Not all of them were in memory.
    for digest in &digests {
        assert_eq!(m.get(&manifest("app", digest)).await.status, 200);
    }
    assert!(up.count("GET ") > 0);
    up.go_down();
    for (seed, digest) in digests.iter().enumerate() {
        let head = m.head(&format!("/v2/app/manifests/t{seed}")).await;
        head.expect(200, b"");
        assert_eq!(head.source(), "fwd=stale; fwd-status=500; detail=stale");
        head.has("docker-content-digest", digest);
    }
}

#[tokio::test]
async fn the_largest_manifest_is_served_from_memory() {
    for by_tag in [false, true] {
        let (up, store, m) = over_faulty_store(&[]).await;
        let (bytes, tag) = (largest(1), "/v2/app/manifests/t1");
        let path = manifest("app", &put_largest(&up, 1));
        m.serves(if by_tag { tag } else { &path }, &bytes).await;
        store.fail_from(Operation::Open, 1, ErrorKind::Other);
        m.serves(&path, &bytes).await;
        m.serves(tag, &bytes).await;
        assert_eq!((up.count(tag), up.count(&path)), (1, usize::from(!by_tag)));
    }
}
