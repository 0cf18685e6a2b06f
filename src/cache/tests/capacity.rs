use super::*;
use crate::storage::faulty::Operation;
use std::sync::atomic::{AtomicU64, Ordering};

fn capped(max_size: u64) -> CacheSettings {
    CacheSettings {
        max_size: Some(max_size),
        ..settings()
    }
}

/// Distinct layers of 1000 bytes.
fn kilobyte(name: &str) -> String {
    format!("{name:x<1000}")
}

async fn pull(house: &House, name: &str, layers: &[&str]) -> bool {
    let layers: Vec<_> = layers.iter().map(|layer| kilobyte(layer)).collect();
    let layers: Vec<_> = layers.iter().map(String::as_str).collect();
    let whole = house.pull(name, "t", &layers).await.is_some();
    tokio::time::sleep(Duration::from_secs(1)).await;
    whole
}

#[tokio::test(start_paused = true)]
async fn the_least_recently_used_image_goes_whole() {
    let house = House::with(capped(10_000)).await;
    for name in ["a", "b", "c"] {
        assert!(pull(&house, name, &["base", name, &format!("{name}2")]).await);
    }
    // The oldest is used again: only its manifest, as clients do that have the layers.
    pull(&house, "a", &["base", "a", "a2"]).await;
    assert!(pull(&house, "d", &["d", "d2", "d3", "d4"]).await);
    house.cache.settled().await;
    for (name, there) in [
        ("a", true),
        ("b", false),
        ("base", true),
        ("b2", false),
        ("d4", true),
    ] {
        assert_eq!(house.has(&kilobyte(name)).await, there, "{name}");
    }
    assert!(house.cache.usage().used <= 10_000);
    check(&house, &[]).await;
}

#[tokio::test(start_paused = true)]
async fn an_index_goes_with_its_children() {
    let house = House::with(capped(20_000)).await;
    let child = manifest_of("child", &[&kilobyte("l")]);
    let index = index_of(&[&child, "a platform that nobody asked for"]);
    house.cache_manifest("a", Some("t"), &index).await.unwrap();
    house.cache_manifest("a", None, &child).await.unwrap();
    house.cache_layer("a", &kilobyte("l")).await;
    assert_eq!(house.images().len(), 1);
    tokio::time::sleep(MINUTE).await;
    house.cache_layer("b", &"y".repeat(10_000)).await;
    house.cache_layer("b", &"z".repeat(9_000)).await;
    house.cache.settled().await;
    assert!(house.store.tags(&repo("a")).await.unwrap().is_empty());
    assert!(!house.has(&child).await && !house.has(&kilobyte("l")).await);
    check(&house, &[]).await;
}

#[tokio::test(start_paused = true)]
async fn held_and_pinned_images_stay_and_the_rest_is_full() {
    let mut settings = capped(7_000);
    settings.pins = vec!["a:t".parse().unwrap()];
    let house = House::with(settings).await;
    assert!(pull(&house, "a", &["a1", "a2"]).await);
    assert!(pull(&house, "b", &["b1", "b2"]).await);
    let hold = house.cache.hold(&digest(&kilobyte("b1"))).await;
    let full = house.cache.reserve(3_000).await.unwrap_err();
    assert_eq!((full.bytes, house.cache.counts().full), (3_000, 1));
    assert!(house.cache.reserve(7_001).await.is_err());
    drop(hold);
    let space = house.cache.reserve(3_000).await.unwrap();
    house.cache.settled().await;
    assert!(house.has(&kilobyte("a1")).await && !house.has(&kilobyte("b1")).await);
    assert_eq!(house.cache.usage().reserved, 3_000);
    drop(space);
    assert_eq!(house.cache.usage().reserved, 0);
    check(&house, &[]).await;
}

#[tokio::test(start_paused = true)]
async fn a_download_waits_for_what_is_being_deleted() {
    let house = House::with(capped(5_000)).await;
    house.cache_layer("a", &"x".repeat(4_000)).await;
    let stall = house.store.stall(Operation::Unlink, 1);
    let mut waiting = std::pin::pin!(house.cache.reserve(2_000));
    tokio::select! {
        _ = &mut waiting => panic!("admitted before anything was deleted"),
        () = stall.reached() => {}
    }
    assert_eq!(house.cache.usage().used, 4_000);
    stall.release();
    let mut space = waiting.await.unwrap();
    space.merge(house.cache.reserve(1_000).await.unwrap());
    assert_eq!(space.bytes(), 3_000);
    assert!(house.cache.reserve(2_001).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn space_stays_free_on_the_file_system() {
    let free = Arc::new(AtomicU64::new(10_000));
    let told = Arc::clone(&free);
    let free_space: FreeSpace = Arc::new(move || Some(told.load(Ordering::Relaxed)));
    let min_free = Some(MinFree {
        bytes: 6_000,
        evicts: true,
        free_space,
    });
    let house = House::with(CacheSettings {
        min_free,
        ..settings()
    })
    .await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(house.cache.usage().limit, Some(4_000));
    assert!(house.cache.reserve(4_001).await.is_err());
    house.cache_layer("a", &kilobyte("1")).await;
    // Somebody else fills the disk.
    free.store(5_500, Ordering::Relaxed);
    house.pass(Duration::from_secs(6)).await;
    assert!(!house.has(&kilobyte("1")).await);
}

#[tokio::test(start_paused = true)]
async fn a_lowered_limit_is_kept_after_the_next_start() {
    let house = House::with(settings()).await;
    for n in 0..100 {
        house.cache_layer("a", &kilobyte(&n.to_string())).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let next = House::over(Arc::clone(&house.store) as _, capped(50_500), house.clock);
    next.cache.complete().await;
    next.pass(MINUTE).await;
    assert_eq!(next.cache.usage().used, 50_000);
    check(&next, &[]).await;
}

fn step(bytes: u64, blob: u64) -> SpaceRequest {
    SpaceRequest {
        bytes,
        blob,
        evict: true,
    }
}

#[tokio::test(start_paused = true)]
async fn a_blob_larger_than_half_of_the_cache_evicts_nothing() {
    let house = House::with(capped(10_000)).await;
    for name in ["1", "2", "3", "4"] {
        house.cache_layer("a", &kilobyte(name)).await;
    }
    // There is space for all of it, then for the steps of it, and then no more.
    let can_hold = |blob| house.cache.inner.with(|index| index.space().can_hold(blob));
    assert!(can_hold(6_000) && !can_hold(6_001));
    let mut space = house.cache.reserve_step(step(0, 6_000)).await.unwrap();
    space.merge(house.cache.reserve_step(step(4_000, 6_000)).await.unwrap());
    house.cache_layer("a", &kilobyte("5")).await;
    assert!(house.cache.reserve_step(step(2_000, 6_000)).await.is_err());
    assert_eq!(house.cache.usage().used, 5_000);
    // A small one evicts for each step.
    space.merge(house.cache.reserve_step(step(2_000, 5_000)).await.unwrap());
    house.cache.settled().await;
    assert_eq!(space.bytes(), 6_000);
    assert_eq!(house.cache.usage().used, 4_000);
    // Nobody waits for this one.
    let ahead = SpaceRequest {
        evict: false,
        ..step(1, 1)
    };
    assert!(house.cache.reserve_step(ahead).await.is_err());
    assert!(!house.cache.has_idle_space(1));
    assert_eq!(house.cache.counts().full, 1);
}

#[tokio::test(start_paused = true)]
async fn a_paused_download_reserves_only_what_is_on_disk() {
    let house = House::with(capped(10_000)).await;
    let mut space = house.cache.reserve(4_000).await.unwrap();
    space.shrink(1_500);
    assert_eq!(space.bytes(), 1_500);
    assert_eq!(house.cache.usage().reserved, 1_500);
    drop(space);
    assert_eq!(house.cache.usage().reserved, 0);
}

fn default_min_free(free: &Arc<AtomicU64>) -> CacheSettings {
    let told = Arc::clone(free);
    CacheSettings {
        min_free: Some(MinFree {
            bytes: 6_000,
            evicts: false,
            free_space: Arc::new(move || Some(told.load(Ordering::Relaxed))),
        }),
        ..settings()
    }
}

#[tokio::test(start_paused = true)]
async fn a_default_minfree_ends_growth_and_evicts_nothing() {
    let free = Arc::new(AtomicU64::new(8_000));
    let house = House::with(default_min_free(&free)).await;
    house.pass(Duration::from_secs(6)).await;
    let mut space = house.cache.reserve(2_000).await.unwrap();
    assert!(house.cache.reserve(1).await.is_err());
    // What is written is no longer free, and counts once.
    space.fill(2_000);
    free.store(6_000, Ordering::Relaxed);
    house.pass(Duration::from_secs(6)).await;
    assert_eq!(house.cache.usage().limit, Some(2_000));
    drop(space);
    house.cache_layer("a", &kilobyte("1")).await;
    // Somebody else fills the disk. The content was present at the next start, and stays.
    free.store(100, Ordering::Relaxed);
    let next = House::over(
        Arc::clone(&house.store) as _,
        default_min_free(&free),
        house.clock,
    );
    next.cache.complete().await;
    next.pass(MINUTE).await;
    assert!(next.has(&kilobyte("1")).await);
    assert!(next.cache.reserve(1).await.is_err());
    assert_eq!(next.cache.counts().full, 1);
    check(&next, &[]).await;
}

#[tokio::test(start_paused = true)]
async fn a_default_minfree_needs_no_counted_files() {
    let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
    let stall = store.stall(Operation::Blobs, 1);
    let free = Arc::new(AtomicU64::new(8_000));
    let settings = default_min_free(&free);
    let house = House::over(store, settings, Clock::starting_at(today()));
    stall.reached().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let started = tokio::time::Instant::now();
    assert!(house.cache.reserve(2_001).await.is_err());
    let _space = house.cache.reserve(2_000).await.unwrap();
    assert!(started.elapsed().is_zero(), "nothing was waited for");
    stall.release();
    house.cache.complete().await;
}
