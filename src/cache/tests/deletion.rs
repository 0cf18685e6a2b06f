use super::*;
use crate::storage::faulty::Operation;
use std::io::ErrorKind;

#[tokio::test(start_paused = true)]
async fn what_cannot_be_removed_is_tried_again() {
    for operation in [
        Operation::Unlink,
        Operation::Remove,
        Operation::Tag,
        Operation::RemoveTag,
    ] {
        let house = House::with(with_ttl(HOUR)).await;
        let text = manifest_of("1", &[]);
        let link = house.cache_manifest("a", Some("t"), &text).await.unwrap();
        house.store.fail(operation, 1, ErrorKind::PermissionDenied);
        house.store.fail(operation, 1, ErrorKind::PermissionDenied);
        house.pass(HOUR).await;
        assert_eq!(house.cache.counts().delete_failures, 1, "{operation:?}");
        assert!(house.has(&text).await, "{operation:?}");
        house.pass(MINUTE * 2).await;
        assert!(
            !house.has(&text).await && !house.is_linked(&link).await,
            "{operation:?}"
        );
        check(&house, &[]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_hold_waits_for_the_deletion_and_then_keeps_what_is_linked() {
    let house = House::with(with_ttl(HOUR)).await;
    let a = house.cache_layer("a", "x").await;
    let stall = house.store.stall(Operation::Remove, 1);
    tokio::time::sleep(HOUR + MINUTE).await;
    stall.reached().await;
    assert!(house.cache.try_hold(&a.digest).is_none());
    let again = async { house.cache_layer("a", "x").await };
    let release = async {
        tokio::time::sleep(MINUTE).await;
        stall.release();
    };
    let (again, ()) = tokio::join!(again, release);
    assert!(house.is_linked(&again).await && house.has("x").await);
    check(&house, &[]).await;
}

#[tokio::test(start_paused = true)]
async fn a_file_that_never_gets_its_link_goes_when_it_is_let_go() {
    let house = House::with(settings()).await;
    let space = house.cache.reserve(1).await.unwrap();
    let hold = house.cache.hold(&digest("x")).await;
    storage::put(&*house.store, &digest("x"), "x".into())
        .await
        .unwrap();
    space.commit(&hold, 1);
    house.pass(HOUR).await;
    assert!(house.has("x").await);
    drop(hold);
    house.cache.settled().await;
    assert!(!house.has("x").await);
    // A hold on what isn't there leaves nothing behind.
    drop(house.cache.hold(&digest("y")).await);
    assert_eq!(house.cache.usage().blobs, 0);
}

#[tokio::test(start_paused = true)]
async fn purging_a_tag_leaves_what_others_need() {
    let house = House::with(settings()).await;
    house.pull("a", "1", &["base", "one"]).await.unwrap();
    house.pull("a", "2", &["base", "two"]).await.unwrap();
    house.pull("b", "1", &["base", "three"]).await.unwrap();
    let selection: Selection = "a:1".parse().unwrap();
    let planned = house.cache.purge(&selection, true).await;
    assert_eq!(planned.len(), 3, "{planned:?}");
    assert!(house.has("one").await);
    let purged = house.cache.purge(&selection, false).await;
    assert_eq!(purged.len(), 3);
    assert!(!house.has("one").await && house.has("base").await && house.has("two").await);
    assert_eq!(house.store.tags(&repo("a")).await.unwrap(), [tag("2")]);
    check(&house, &[]).await;

    let held = house.cache.hold(&digest("three")).await;
    house.cache.purge(&"b".parse().unwrap(), false).await;
    assert!(house.has("three").await && house.has("base").await);
    drop(held);
    house.cache.settled().await;
    assert!(!house.has("three").await);
    assert_eq!(house.store.repositories().await.unwrap(), [repo("a")]);
    check(&house, &[]).await;
}

#[tokio::test(start_paused = true)]
async fn images_are_listed_with_what_they_share() {
    let house = House::with(settings()).await;
    let first = house.pull("a", "1", &["base", "one"]).await.unwrap();
    house.pull("a", "2", &["base", "two"]).await.unwrap();
    house.cache_layer("b", "lonely").await;
    let images = house.images();
    assert_eq!(images.len(), 3);
    let image = images
        .iter()
        .find(|image| image.digest == first.digest)
        .unwrap();
    assert_eq!(image.shared, 4);
    assert_eq!(image.repositories, [(repo("a"), vec![tag("1")])]);
    assert!(image.is_manifest && image.expiry.is_some());
    let lonely = images.iter().find(|image| !image.is_manifest).unwrap();
    assert_eq!((lonely.size, lonely.shared), (6, 0));
}

/// Both ways in which a link is condemned while a download holds its content.
#[tokio::test(start_paused = true)]
async fn a_link_that_is_made_anew_stays_although_the_old_one_was_to_go() {
    for purged in [false, true] {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let healed = layer("a", "x");
        store.link(&healed).await.unwrap();
        if purged {
            let there = Bytes::from_static(b"x");
            storage::put(&*store, &healed.digest, there).await.unwrap();
        }
        let house = House::over(store, with_ttl(HOUR), Clock::starting_at(today()));
        // Before the start finds the link without a file.
        let hold = house.cache.hold(&healed.digest).await;
        house.cache.complete().await;
        if purged {
            house.cache.purge(&"a".parse().unwrap(), false).await;
        }
        house.cache.settled().await;
        assert!(house.cache(&healed, "x").await);
        drop(hold);
        house.cache.settled().await;
        assert!(house.is_linked(&healed).await && house.has("x").await);
        check(&house, &[]).await;
        house.pass(HOUR).await;
        assert!(!house.is_linked(&healed).await && !house.has("x").await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_condemned_link_that_is_only_used_goes() {
    let house = House::with(settings()).await;
    let link = house.cache_layer("a", "x").await;
    let hold = house.cache.hold(&link.digest).await;
    house.cache.purge(&"a".parse().unwrap(), false).await;
    house.use_link(&link).await;
    drop(hold);
    house.cache.settled().await;
    assert!(!house.is_linked(&link).await && !house.has("x").await);
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_the_index_is_changed_is_reported_and_the_rest_goes_on() {
    let house = House::with(settings()).await;
    let link = house.cache_layer("a", "x").await;
    let shared = Arc::clone(&house.cache.inner);
    let step = || shared.with(|_| panic!("on purpose"));
    // A hold that is dropped by an unrelated panic is no reason.
    let hold = house.cache.hold(&link.digest).await;
    let unrelated = move || -> () {
        let _hold = hold;
        panic!("on purpose")
    };
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(unrelated)).is_err());
    assert_eq!(house.cache.health(), Ok(()));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(step)).is_err());
    let reason = house.cache.health().unwrap_err();
    assert!(reason.contains("panic"), "{reason}");
    house.cache.purge(&"a".parse().unwrap(), false).await;
    assert!(!house.is_linked(&link).await);
    check(&house, &[]).await;
}
