use super::*;
use crate::storage::faulty::Operation;
use std::sync::atomic::{AtomicU64, Ordering};

/// Distinct layers of 1000 bytes.
fn kilobyte(name: &str) -> String {
    format!("{name:x<1000}")
}

async fn pull(rig: &Rig, name: &str, layers: &[&str]) -> bool {
    let layers: Vec<_> = layers.iter().map(|layer| kilobyte(layer)).collect();
    let layers: Vec<_> = layers.iter().map(String::as_str).collect();
    let whole = rig.pull(name, "t", &layers).await.is_some();
    tokio::time::sleep(Duration::from_secs(1)).await;
    whole
}

#[tokio::test(start_paused = true)]
async fn the_least_recently_used_image_is_evicted_whole() {
    let rig = Rig::with(capped(10_000)).await;
    for name in ["a", "b", "c"] {
        assert!(pull(&rig, name, &["base", name, &format!("{name}2")]).await);
    }
    // The oldest is used again: only its manifest, as clients do that have the layers.
    pull(&rig, "a", &["base", "a", "a2"]).await;
    assert!(pull(&rig, "d", &["d", "d2", "d3", "d4"]).await);
    rig.cache.settled().await;
    for (name, there) in [
        ("a", true),
        ("b", false),
        ("base", true),
        ("b2", false),
        ("d4", true),
    ] {
        assert_eq!(rig.has(&kilobyte(name)).await, there, "{name}");
    }
    assert!(rig.cache.usage().used <= 10_000);
    check(&rig, &[]).await;
}

#[tokio::test(start_paused = true)]
async fn images_are_evicted_in_the_order_of_their_last_uses() {
    let rig = Rig::with(capped(4_000)).await;
    let mut links = Vec::new();
    for name in ["1", "2", "3", "4"] {
        links.push(rig.cache_layer("a", &kilobyte(name)).await);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // The first was used again after it was put into the LRU order; the second can't be evicted.
    rig.use_link(&links[0]).await;
    let _held = rig.cache.hold(&links[1].digest).await;
    for left in [&["1", "2", "4"][..], &["1", "2"], &["2"]] {
        let rest = 4_000 - 1_000 * left.len() as u64;
        let request = step(rest, 1_000);
        drop(rig.cache.reserve_step(request).await.unwrap());
        rig.cache.settled().await;
        for (name, link) in ["1", "2", "3", "4"].iter().zip(&links) {
            assert_eq!(rig.is_linked(link).await, left.contains(name), "{name}");
        }
        check(&rig, &[]).await;
    }
    let full = rig.cache.reserve_step(step(4_000, 1_000)).await;
    assert!(full.is_err());
}

#[tokio::test(start_paused = true)]
async fn an_index_is_evicted_with_its_children() {
    let rig = Rig::with(capped(20_000)).await;
    let child = manifest_of("child", &[&kilobyte("l")]);
    let index = index_of(&[&child, "a platform that nobody asked for"]);
    rig.cache_manifest("a", Some("t"), &index).await.unwrap();
    rig.cache_manifest("a", None, &child).await.unwrap();
    rig.cache_layer("a", &kilobyte("l")).await;
    assert_eq!(rig.images().len(), 1);
    tokio::time::sleep(MINUTE).await;
    rig.cache_layer("b", &"y".repeat(10_000)).await;
    rig.cache_layer("b", &"z".repeat(9_000)).await;
    rig.cache.settled().await;
    assert!(rig.store.tags(&repo("a")).await.unwrap().is_empty());
    assert!(!rig.has(&child).await && !rig.has(&kilobyte("l")).await);
    check(&rig, &[]).await;
}

#[tokio::test(start_paused = true)]
async fn held_and_pinned_images_are_not_evicted() {
    let mut settings = capped(7_000);
    settings.pins = vec!["a:t".parse().unwrap()];
    let rig = Rig::with(settings).await;
    assert!(pull(&rig, "a", &["a1", "a2"]).await);
    assert!(pull(&rig, "b", &["b1", "b2"]).await);
    let hold = rig.cache.hold(&digest(&kilobyte("b1"))).await;
    let full = rig.cache.reserve(3_000).await.unwrap_err();
    assert_eq!((full.bytes, rig.cache.counts().full), (3_000, 1));
    assert!(rig.cache.reserve(7_001).await.is_err());
    drop(hold);
    let space = rig.cache.reserve(3_000).await.unwrap();
    rig.cache.settled().await;
    assert!(rig.has(&kilobyte("a1")).await && !rig.has(&kilobyte("b1")).await);
    assert_eq!(rig.cache.usage().reserved, 3_000);
    drop(space);
    assert_eq!(rig.cache.usage().reserved, 0);
    check(&rig, &[]).await;
}

#[tokio::test(start_paused = true)]
async fn a_download_waits_for_deletions_in_flight() {
    let rig = Rig::with(capped(5_000)).await;
    rig.cache_layer("a", &"x".repeat(4_000)).await;
    let stall = rig.store.stall(Operation::Unlink, 1);
    let mut waiting = std::pin::pin!(rig.cache.reserve(2_000));
    tokio::select! {
        _ = &mut waiting => panic!("admitted before anything was deleted"),
        () = stall.reached() => {}
    }
    assert_eq!(rig.cache.usage().used, 4_000);
    stall.release();
    let mut space = waiting.await.unwrap();
    space.merge(rig.cache.reserve(1_000).await.unwrap());
    assert_eq!(space.bytes(), 3_000);
    assert!(rig.cache.reserve(2_001).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn space_stays_free_on_the_file_system() {
    let free = Arc::new(AtomicU64::new(10_000));
    let rig = Rig::with(min_free(&free, true)).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(rig.cache.usage().limit, Some(4_000));
    assert!(rig.cache.reserve(4_001).await.is_err());
    rig.cache_layer("a", &kilobyte("1")).await;
    // Somebody else fills the disk.
    free.store(5_500, Ordering::Relaxed);
    rig.pass(Duration::from_secs(6)).await;
    assert!(!rig.has(&kilobyte("1")).await);
}

#[tokio::test(start_paused = true)]
async fn a_lowered_limit_is_enforced_after_a_restart() {
    let rig = Rig::with(settings()).await;
    for n in 0..100 {
        rig.cache_layer("a", &kilobyte(&n.to_string())).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let next = rig.restart(capped(50_500)).await;
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
    let rig = Rig::with(capped(10_000)).await;
    for name in ["1", "2", "3", "4"] {
        rig.cache_layer("a", &kilobyte(name)).await;
    }
    // There is space for all of it, then for the steps of it, and then no more.
    let can_hold = |blob| rig.cache.inner.with(|index| index.space.can_hold(blob));
    assert!(can_hold(6_000) && !can_hold(6_001));
    let mut space = rig.cache.reserve_step(step(0, 6_000)).await.unwrap();
    space.merge(rig.cache.reserve_step(step(4_000, 6_000)).await.unwrap());
    rig.cache_layer("a", &kilobyte("5")).await;
    assert!(rig.cache.reserve_step(step(2_000, 6_000)).await.is_err());
    assert_eq!(rig.cache.usage().used, 5_000);
    // A small one evicts for each step.
    space.merge(rig.cache.reserve_step(step(2_000, 5_000)).await.unwrap());
    rig.cache.settled().await;
    assert_eq!(space.bytes(), 6_000);
    assert_eq!(rig.cache.usage().used, 4_000);
    // Nobody waits for this one.
    let ahead = SpaceRequest {
        evict: false,
        ..step(1, 1)
    };
    assert!(rig.cache.reserve_step(ahead).await.is_err());
    assert!(!rig.cache.has_idle_space(1));
    assert_eq!(rig.cache.counts().full, 1);
}

#[tokio::test(start_paused = true)]
async fn a_paused_download_reserves_only_what_is_on_disk() {
    let rig = Rig::with(capped(10_000)).await;
    let mut space = rig.cache.reserve(4_000).await.unwrap();
    space.shrink(1_500);
    assert_eq!(space.bytes(), 1_500);
    assert_eq!(rig.cache.usage().reserved, 1_500);
    drop(space);
    assert_eq!(rig.cache.usage().reserved, 0);
}

/// Settings that keep 6,000 bytes free of those that `free` has.
fn min_free(free: &Arc<AtomicU64>, evicts: bool) -> CacheSettings {
    let free = Arc::clone(free);
    CacheSettings {
        min_free: Some(MinFree {
            bytes: 6_000,
            evicts,
            free_space: Arc::new(move || Some(free.load(Ordering::Relaxed))),
        }),
        ..settings()
    }
}

#[tokio::test(start_paused = true)]
async fn a_default_minfree_ends_growth_and_evicts_nothing() {
    let free = Arc::new(AtomicU64::new(8_000));
    let rig = Rig::with(min_free(&free, false)).await;
    rig.pass(Duration::from_secs(6)).await;
    let mut space = rig.cache.reserve(2_000).await.unwrap();
    assert!(rig.cache.reserve(1).await.is_err());
    // What is written is no longer free, and counts once.
    space.fill(2_000);
    free.store(6_000, Ordering::Relaxed);
    rig.pass(Duration::from_secs(6)).await;
    assert_eq!(rig.cache.usage().limit, Some(2_000));
    drop(space);
    rig.cache_layer("a", &kilobyte("1")).await;
    // Somebody else fills the disk. The content was present at the next start, and stays.
    free.store(100, Ordering::Relaxed);
    let next = rig.restart(min_free(&free, false)).await;
    next.pass(MINUTE).await;
    assert!(next.has(&kilobyte("1")).await);
    assert!(next.cache.reserve(1).await.is_err());
    assert_eq!(next.cache.counts().full, 1);
    check(&next, &[]).await;
}

#[tokio::test(start_paused = true)]
async fn a_default_minfree_does_not_wait_for_the_listing() {
    let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
    let stall = store.stall(Operation::Blobs, 1);
    let free = Arc::new(AtomicU64::new(8_000));
    let settings = min_free(&free, false);
    let rig = Rig::over(store, settings, Clock::starting_at(today()));
    stall.reached().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let started = tokio::time::Instant::now();
    assert!(rig.cache.reserve(2_001).await.is_err());
    let _space = rig.cache.reserve(2_000).await.unwrap();
    assert!(started.elapsed().is_zero(), "nothing was waited for");
    stall.release();
    rig.cache.complete().await;
}
