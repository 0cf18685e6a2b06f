use super::*;
use crate::storage::faulty::Operation;
use std::io::ErrorKind;

#[tokio::test(start_paused = true)]
async fn failed_removals_are_retried() {
    for operation in [
        Operation::Unlink,
        Operation::Remove,
        Operation::Tag,
        Operation::RemoveTag,
    ] {
        let rig = Rig::with(with_ttl(HOUR)).await;
        let text = manifest_of("1", &[]);
        let link = rig.cache_manifest("a", Some("t"), &text).await.unwrap();
        rig.store.fail(operation, 1, ErrorKind::PermissionDenied);
        rig.store.fail(operation, 1, ErrorKind::PermissionDenied);
        rig.pass(HOUR).await;
        assert_eq!(rig.cache.counts().delete_failures, 1, "{operation:?}");
        assert!(rig.has(&text).await, "{operation:?}");
        rig.pass(MINUTE * 2).await;
        assert!(
            !rig.has(&text).await && !rig.is_linked(&link).await,
            "{operation:?}"
        );
        check(&rig, &[]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_hold_waits_for_a_deletion_in_flight_and_then_keeps_the_link() {
    let rig = Rig::with(with_ttl(HOUR)).await;
    let a = rig.cache_layer("a", "x").await;
    let stall = rig.store.stall(Operation::Remove, 1);
    tokio::time::sleep(HOUR + MINUTE).await;
    stall.reached().await;
    assert!(rig.cache.try_hold(&a.digest).is_none());
    let again = async { rig.cache_layer("a", "x").await };
    let release = async {
        tokio::time::sleep(MINUTE).await;
        stall.release();
    };
    let (again, ()) = tokio::join!(again, release);
    assert!(rig.is_linked(&again).await && rig.has("x").await);
    check(&rig, &[]).await;
}

#[tokio::test(start_paused = true)]
async fn a_file_without_a_link_is_removed_when_its_hold_ends() {
    let rig = Rig::with(settings()).await;
    let space = rig.cache.reserve(1).await.unwrap();
    let hold = rig.cache.hold(&digest("x")).await;
    put(&*rig.store, &digest("x"), "x").await;
    space.commit(&hold, 1);
    rig.pass(HOUR).await;
    assert!(rig.has("x").await);
    drop(hold);
    rig.cache.settled().await;
    assert!(!rig.has("x").await);
    // A hold on what isn't there leaves nothing behind.
    drop(rig.cache.hold(&digest("y")).await);
    assert_eq!(rig.cache.usage().blobs, 0);
}

#[tokio::test(start_paused = true)]
async fn purging_a_tag_leaves_shared_blobs() {
    let rig = Rig::with(settings()).await;
    rig.pull("a", "1", &["base", "one"]).await.unwrap();
    rig.pull("a", "2", &["base", "two"]).await.unwrap();
    rig.pull("b", "1", &["base", "three"]).await.unwrap();
    let selection: Selection = "a:1".parse().unwrap();
    let planned = rig.cache.purge(&selection, true).await;
    assert_eq!(planned.len(), 3, "{planned:?}");
    assert!(rig.has("one").await);
    let purged = rig.cache.purge(&selection, false).await;
    assert_eq!(purged.len(), 3);
    assert!(!rig.has("one").await && rig.has("base").await && rig.has("two").await);
    assert_eq!(rig.store.tags(&repo("a")).await.unwrap(), [tag("2")]);
    check(&rig, &[]).await;

    let held = rig.cache.hold(&digest("three")).await;
    rig.purge("b").await;
    assert!(rig.has("three").await && rig.has("base").await);
    drop(held);
    rig.cache.settled().await;
    assert!(!rig.has("three").await);
    assert_eq!(rig.store.repositories().await.unwrap(), [repo("a")]);
    check(&rig, &[]).await;
}

#[tokio::test(start_paused = true)]
async fn images_are_listed_with_their_shared_bytes() {
    let rig = Rig::with(settings()).await;
    let first = rig.pull("a", "1", &["base", "one"]).await.unwrap();
    rig.pull("a", "2", &["base", "two"]).await.unwrap();
    rig.cache_layer("b", "lonely").await;
    let images = rig.images();
    assert_eq!(images.len(), 3);
    let mut found = images.iter().filter(|image| image.digest == first.digest);
    let image = found.next().unwrap();
    assert_eq!(image.shared, 4);
    assert_eq!(image.repositories, [(repo("a"), vec![tag("1")])]);
    assert!(image.is_manifest && image.expiry.is_some());
    let lonely = images.iter().find(|image| !image.is_manifest).unwrap();
    assert_eq!((lonely.size, lonely.shared), (6, 0));
}

/// Both ways in which a link is marked for deletion while a download holds its content.
#[tokio::test(start_paused = true)]
async fn making_a_marked_link_again_unmarks_it() {
    for purged in [false, true] {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let healed = layer("a", "x");
        store.link(&healed).await.unwrap();
        if purged {
            put(&*store, &healed.digest, "x").await;
        }
        let rig = Rig::over(store, with_ttl(HOUR), Clock::starting_at(today()));
        // Before the start finds the link without a file.
        let hold = rig.cache.hold(&healed.digest).await;
        rig.cache.complete().await;
        if purged {
            rig.purge("a").await;
        }
        rig.cache.settled().await;
        assert!(rig.cache(&healed, "x").await);
        drop(hold);
        rig.cache.settled().await;
        assert!(rig.is_linked(&healed).await && rig.has("x").await);
        check(&rig, &[]).await;
        rig.pass(HOUR).await;
        assert!(!rig.is_linked(&healed).await && !rig.has("x").await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_use_does_not_unmark_a_link() {
    let rig = Rig::with(settings()).await;
    let link = rig.cache_layer("a", "x").await;
    let hold = rig.cache.hold(&link.digest).await;
    rig.purge("a").await;
    rig.use_link(&link).await;
    drop(hold);
    rig.cache.settled().await;
    assert!(!rig.is_linked(&link).await && !rig.has("x").await);
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_index_is_reported_and_the_cache_continues() {
    let rig = Rig::with(settings()).await;
    let link = rig.cache_layer("a", "x").await;
    let shared = Arc::clone(&rig.cache.inner);
    let step = || shared.with(|_| panic!("on purpose"));
    // A hold that is dropped by an unrelated panic is no reason.
    let hold = rig.cache.hold(&link.digest).await;
    let unrelated = move || -> () {
        let _hold = hold;
        panic!("on purpose")
    };
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(unrelated)).is_err());
    assert_eq!(rig.cache.health(), Ok(()));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(step)).is_err());
    let reason = rig.cache.health().unwrap_err();
    assert!(reason.contains("panic"), "{reason}");
    rig.purge("a").await;
    assert!(!rig.is_linked(&link).await);
    check(&rig, &[]).await;
}
