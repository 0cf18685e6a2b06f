//! A panic in a task that the server needs.

use std::sync::Arc;

use millpond::storage::MemoryStore;

use crate::harness::{FaultyStore, Mirror, Operation, Registry, Setup, noise};

#[tokio::test]
async fn a_panic_of_the_cache_is_reported_and_the_server_can_still_stop() {
    let up = Registry::start().await;
    let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
    store.panic(Operation::Repositories, 1);
    let m = Setup::new(&up).store(store).start().await;
    let panicked = m.app.failed().await;
    assert_eq!(panicked.task, "cache");
    assert_eq!(panicked.reason, "a scripted panic of Repositories");
    m.get("/v2/").await.expect(200, b"{}");
    let Mirror { app, .. } = m;
    assert!(app.stop().await);
}

#[tokio::test]
async fn a_panic_of_the_deletion_task_is_reported() {
    let up = Registry::start().await;
    let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
    store.panic(Operation::Unlink, 1);
    let m = Setup::new(&up)
        .storage("maxsize: 1MiB")
        .store(store)
        .start()
        .await;
    // None is larger than half of the cache; the fourth has no space until the first is evicted.
    let pulls = async {
        for seed in 1..=4 {
            let digest = up.put_blob("app", &noise(seed, 300_000));
            m.get(&format!("/v2/app/blobs/{digest}")).await;
            m.idle().await;
        }
        std::future::pending::<()>().await;
    };
    let panicked = tokio::select! {
        panicked = m.app.failed() => panicked,
        () = pulls => unreachable!(),
    };
    assert_eq!(panicked.task, "deletion");
}
