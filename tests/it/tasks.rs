//! A panic in a task that the server needs.

use std::sync::Arc;

use millpond::store::faulty::Operation;
use millpond::store::{FaultyStore, MemoryStore};

use crate::harness::{Mirror, Registry, Setup, noise};

#[tokio::test]
async fn a_panic_of_the_retention_is_told_and_the_server_can_still_stop() {
    let up = Registry::start().await;
    let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
    store.panic(Operation::Repositories, 1);
    let m = Setup::new(&up).store(store).start().await;
    let panicked = m.app.failed().await;
    assert_eq!(panicked.task, "retention");
    assert_eq!(panicked.reason, "a scripted panic of Repositories");
    m.get("/v2/").await.expect(200, b"{}");
    let Mirror { app, .. } = m;
    assert!(app.stop().await);
}

#[tokio::test]
async fn a_panic_of_the_sweeper_is_told() {
    let up = Registry::start().await;
    let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
    store.panic(Operation::Unlink, 1);
    let m = Setup::new(&up)
        .storage("maxsize: 1KiB")
        .store(store)
        .start()
        .await;
    let [first, second] = [1, 2].map(|seed| up.put_blob("app", &noise(seed, 1000)));
    let answer = m.get(&format!("/v2/app/blobs/{first}")).await;
    answer.expect(200, &noise(1, 1000));
    m.idle().await;
    // The second blob has no space until the first is evicted.
    let panicked = tokio::select! {
        panicked = m.app.failed() => panicked,
        () = async {
            m.get(&format!("/v2/app/blobs/{second}")).await;
            std::future::pending::<()>().await;
        } => unreachable!(),
    };
    assert_eq!(panicked.task, "sweeper");
}
