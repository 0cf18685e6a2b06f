//! A store that fails costs the cache and not the pull, as far as the upstream can serve; and tasks
//! that panic.

use std::io::ErrorKind;
use std::sync::Arc;

use millpond::storage::MemoryStore;

use crate::harness::{
    FaultyStore, Image, Mirror, Operation, Registry, Setup, blob_path, over_faulty_store, put_blob,
    put_image,
};

async fn pull(m: &Mirror, image: &Image) {
    m.serves("/v2/app/manifests/1", &image.manifest).await;
    let by_digest = format!("/v2/app/manifests/{}", image.digest());
    m.serves(&by_digest, &image.manifest).await;
    for blob in image.blobs() {
        m.pull(&blob_path("app", blob), blob).await;
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
            let (up, store, m) = over_faulty_store(&[]).await;
            let (image, _) = put_image(&up, 1);
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
        let (up, store, m) = over_faulty_store(&[]).await;
        let (image, _) = put_image(&up, 1);
        store.fail(operation, 1, ErrorKind::StorageFull);
        pull(&m, &image).await;
        pull(&m, &image).await;
        up.go_down();
        pull(&m, &image).await;
    }
}

/// It may be served without being stored. It must never end well without being whole.
#[tokio::test]
async fn a_blob_that_cannot_be_staged_is_whole_or_an_error() {
    for operation in [Operation::Stage, Operation::Write] {
        let (up, store, m) = over_faulty_store(&[]).await;
        let (blob, path) = put_blob(&up, 1, 3_000_000);
        store.fail(operation, 1, ErrorKind::StorageFull);
        let answer = m.get(&path).await;
        let refused = answer.status == 500 && answer.error().1 == "UNKNOWN";
        let cut_or_whole = answer.status == 200 && (answer.broken || answer.body == blob);
        assert!(refused || cut_or_whole, "{operation:?}: {}", answer.status);
        m.idle().await;
        assert_eq!(m.metric("millpond_store_failures_total"), 1);
        m.pull(&path, &blob).await;
        up.go_down();
        m.serves(&path, &blob).await;
    }
}

#[tokio::test]
async fn only_what_the_store_alone_knows_fails_with_it() {
    let (_up, store, m) = over_faulty_store(&[]).await;
    // From now on: the index of the cache is built from the same listing at the start.
    store.fail_from(Operation::Repositories, 1, ErrorKind::PermissionDenied);
    let answer = m.get("/v2/_catalog").await;
    answer.refused(500, "UNKNOWN");
    let text = answer.json()["errors"][0]["message"].to_string();
    assert!(!text.contains("faulty store"), "no paths: {text}");
}

#[tokio::test]
async fn a_panic_of_the_cache_is_reported_and_the_server_can_still_stop() {
    let up = Registry::start().await;
    let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
    store.panic(Operation::Repositories, 1);
    let m = Setup::new(&up).store(store).start().await;
    let panicked = m.app.failed().await;
    assert_eq!(panicked.task, "cache");
    assert_eq!(panicked.reason, "a scripted panic of Repositories");
    m.serves("/v2/", b"{}").await;
    assert!(m.app.stop().await);
}

#[tokio::test]
async fn a_panic_of_the_deletion_task_is_reported() {
    let (up, store, m) = over_faulty_store(&["storage.maxsize: 1MiB"]).await;
    store.panic(Operation::Unlink, 1);
    // None is larger than half of the cache; the fourth has no space until the first is evicted.
    let pulls = async {
        for seed in 1..=4 {
            let (blob, path) = put_blob(&up, seed, 300_000);
            m.pull(&path, &blob).await;
        }
        std::future::pending::<()>().await;
    };
    let panicked = tokio::select! {
        panicked = m.app.failed() => panicked,
        () = pulls => unreachable!(),
    };
    assert_eq!(panicked.task, "deletion");
}
