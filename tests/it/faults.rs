//! A store that fails: it costs the cache and not the pull, as far as the upstream can serve.

use std::io::ErrorKind;
use std::sync::Arc;

use millpond::storage::MemoryStore;

use crate::harness::{FaultyStore, Image, Mirror, Operation, Registry, Setup, digest};

async fn faulty(up: &Registry) -> (Arc<FaultyStore>, Mirror) {
    let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
    let shared = Arc::clone(&store);
    (store, Setup::new(up).store(shared).start().await)
}

async fn pull(m: &Mirror, image: &Image) {
    m.serves("/v2/app/manifests/1", &image.manifest).await;
    let by_digest = format!("/v2/app/manifests/{}", image.digest());
    m.get(&by_digest).await.expect(200, &image.manifest);
    for blob in image.blobs() {
        m.pull(&format!("/v2/app/blobs/{}", digest(blob)), blob)
            .await;
    }
}

#[tokio::test]
async fn a_pull_survives_a_store_that_cannot_keep_or_find() {
    for operation in [
        Operation::Commit,
        Operation::Link,
        Operation::SetTag,
        Operation::Open,
        Operation::Linked,
        Operation::Tag,
    ] {
        for warm in [false, true] {
            let up = Registry::start().await;
            let image = Image::oci(1);
            up.push("app", "1", &image);
            let (store, m) = faulty(&up).await;
            if warm {
                pull(&m, &image).await;
            }
            store.fail_from(operation, 1, ErrorKind::StorageFull);
            pull(&m, &image).await;
            pull(&m, &image).await;
            let failed = m.metric("millpond_store_failures_total") > 0;
            let written = matches!(
                operation,
                Operation::Commit | Operation::Link | Operation::SetTag
            );
            // What is there already isn't written again; its link, and a believed tag, aren't
            // looked up.
            let looked_up = matches!(operation, Operation::Linked | Operation::Tag);
            let untouched = warm && (written || looked_up);
            assert_eq!(failed, !untouched, "{operation:?}, warm: {warm}");
        }
    }
}

#[tokio::test]
async fn one_failure_is_forgotten() {
    for operation in [
        Operation::Commit,
        Operation::Link,
        Operation::Stage,
        Operation::Write,
    ] {
        let up = Registry::start().await;
        let image = Image::oci(1);
        up.push("app", "1", &image);
        let (store, m) = faulty(&up).await;
        store.fail(operation, 1, ErrorKind::StorageFull);
        pull(&m, &image).await;
        pull(&m, &image).await;
        up.go_down();
        pull(&m, &image).await;
    }
}

/// The rest of the house may learn to serve such a blob; what it must never do is to end it well
/// without having it.
#[tokio::test]
async fn a_blob_that_cannot_be_staged_is_whole_or_an_error() {
    for operation in [Operation::Stage, Operation::Write] {
        let up = Registry::start().await;
        let blob = crate::harness::noise(1, 3_000_000);
        let digest = up.put_blob("app", &blob);
        let (store, m) = faulty(&up).await;
        store.fail(operation, 1, ErrorKind::StorageFull);
        let path = format!("/v2/app/blobs/{digest}");
        let answer = m.get(&path).await;
        let refused = answer.status == 500 && answer.error().1 == "UNKNOWN";
        let cut = answer.status == 200 && answer.broken;
        let whole = answer.status == 200 && !answer.broken && answer.body == blob;
        assert!(refused || cut || whole, "{operation:?}: {}", answer.status);
        m.idle().await;
        assert_eq!(m.metric("millpond_store_failures_total"), 1);
        m.pull(&path, &blob).await;
        up.go_down();
        m.get(&path).await.expect(200, &blob);
    }
}

#[tokio::test]
async fn only_what_the_store_alone_knows_fails_with_it() {
    let up = Registry::start().await;
    let (store, m) = faulty(&up).await;
    // From now on: the index of the cache is built from the same listing at the start.
    store.fail_from(Operation::Repositories, 1, ErrorKind::PermissionDenied);
    let answer = m.get("/v2/_catalog").await;
    assert_eq!(answer.error(), (500, "UNKNOWN".to_owned()));
    let text = answer.json()["errors"][0]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        !text.contains("faulty store"),
        "no paths for clients: {text}"
    );
}
