//! What outlives the process.

use super::*;
use crate::cache::work::expiry::SAVE_AFTER;
use crate::storage::faulty::Operation;
use std::io::ErrorKind;

pub(super) async fn restart(house: &House, settings: CacheSettings) -> House {
    let clock = Clock::starting_at(house.clock.wall());
    let next = House::over(Arc::clone(&house.store) as _, settings, clock);
    next.cache.complete().await;
    next.cache.settled().await;
    next
}

fn last_use(house: &House, link: &Link) -> SystemTime {
    let entries = house.entries();
    entries
        .iter()
        .find(|entry| entry.link == *link)
        .unwrap()
        .last_use
}

#[tokio::test(start_paused = true)]
async fn uses_are_saved_within_seconds_and_together() {
    let directory = tempfile::tempdir().unwrap();
    let journal = state_file(&directory).with_extension("journal");
    let house = House::with(on_disk(&directory)).await;
    for n in 0..50 {
        house.cache_layer("a", &n.to_string()).await;
    }
    assert!(!journal.exists());
    house.pass(SAVE_AFTER).await;
    let lines = std::fs::read_to_string(&journal).unwrap();
    assert_eq!(lines.lines().count(), 50);
    let a = layer("a", "7");
    house.use_link(&a).await;
    house.use_link(&a).await;
    house.pass(SAVE_AFTER).await;
    let lines = std::fs::read_to_string(&journal).unwrap();
    assert_eq!(lines.lines().count(), 51);
    assert!(
        lines
            .lines()
            .last()
            .unwrap()
            .contains(&a.digest.to_string())
    );

    // Without a stop: what was used and saved is known.
    let used = last_use(&house, &a);
    house.pass(HOUR).await;
    let next = restart(&house, on_disk(&directory)).await;
    assert_eq!(last_use(&next, &a), used);
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_no_save_has_seen_is_found_in_the_store() {
    let directory = tempfile::tempdir().unwrap();
    let house = House::with(on_disk(&directory)).await;
    let a = house.cache_layer("a", "x").await;
    let next = restart(&house, on_disk(&directory)).await;
    assert_eq!(next.entries().len(), 1);
    assert!(next.is_linked(&a).await && next.has("x").await);
}

#[tokio::test(start_paused = true)]
async fn a_changed_ttl_applies_to_what_is_cached() {
    let directory = tempfile::tempdir().unwrap();
    let house = House::with(on_disk(&directory)).await;
    let a = house.cache_layer("a", "x").await;
    house.pass(HOUR * 3).await;
    house.cache.stop().await;
    let settings = |ttl| CacheSettings {
        ttl: TtlPolicy::sliding(ttl),
        ..on_disk(&directory)
    };
    let never = restart(&house, settings(None)).await;
    assert_eq!(never.entries()[0].expiry, None);
    never.cache.stop().await;
    let text = std::fs::read_to_string(state_file(&directory)).unwrap();
    assert!(
        text.contains(r#""ExpiryData":"2200-01-01T00:00:00Z""#),
        "{text}"
    );

    let short = restart(&never, settings(Some(HOUR * 5))).await;
    let expiry = short.entries()[0].expiry.unwrap();
    let left = expiry.duration_since(short.clock.wall()).unwrap();
    assert!(left < HOUR * 2 && left > HOUR, "{left:?}");
    short.pass(left).await;
    assert!(!short.is_linked(&a).await);
}

#[tokio::test(start_paused = true)]
async fn the_journal_is_folded_when_it_has_outgrown_the_snapshot() {
    let directory = tempfile::tempdir().unwrap();
    let journal = state_file(&directory).with_extension("journal");
    let house = House::with(on_disk(&directory)).await;
    let uses = |n: usize| digest(&n.to_string());
    let mut longest = 0;
    for _ in 0..6 {
        for n in 0..5000 {
            house.cache.used(&repo("a"), LinkKind::Layer, &uses(n), 1);
        }
        house.pass(SAVE_AFTER * 2).await;
        longest = longest.max(std::fs::metadata(&journal).map_or(0, |file| file.len()));
    }
    assert!(longest < 6 * 1024 * 1024, "{longest}");
    let text = std::fs::read_to_string(state_file(&directory)).unwrap();
    let snapshot: serde_json::Map<_, _> = serde_json::from_str(&text).unwrap();
    assert_eq!(snapshot.len(), 5000);
}

#[tokio::test(start_paused = true)]
async fn a_digest_that_is_linked_in_both_ways_is_one_line_and_two_entries() {
    let directory = tempfile::tempdir().unwrap();
    let house = House::with(on_disk(&directory)).await;
    let text = manifest_of("m", &[]);
    house.cache_manifest("a", None, &text).await.unwrap();
    house.cache_layer("a", &text).await;
    house.pass(HOUR).await;
    house.cache.stop().await;
    let written = std::fs::read_to_string(state_file(&directory)).unwrap();
    assert_eq!(written.matches("EntryType\":1").count(), 1);
    assert_eq!(written.matches("EntryType").count(), 1);
    let next = restart(&house, on_disk(&directory)).await;
    let entries = next.entries();
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[0].last_use, entries[1].last_use);
}

#[tokio::test(start_paused = true)]
async fn a_state_that_cannot_be_saved_costs_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let house = House::with(on_disk(&directory)).await;
    // A directory where the journal would be.
    let journal = state_file(&directory).with_extension("journal");
    std::fs::create_dir(&journal).unwrap();
    let a = house.cache_layer("a", "x").await;
    house.pass(MINUTE).await;
    assert!(house.cache.counts().save_failures > 0);
    std::fs::remove_dir(&journal).unwrap();
    house.pass(MINUTE * 2).await;
    let next = restart(&house, on_disk(&directory)).await;
    assert!(last_use(&next, &a) <= house.clock.wall() - MINUTE * 2);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_deleted_before_the_store_has_been_seen() {
    let house = House::with(with_ttl(HOUR)).await;
    let a = house.cache_layer("a", "x").await;
    house.pull("b", "t", &["base"]).await.unwrap();
    house
        .store
        .fail(Operation::Links, 1, ErrorKind::PermissionDenied);
    let settings = CacheSettings {
        max_size: Some(10_000),
        ..with_ttl(MINUTE)
    };
    let next = House::over(Arc::clone(&house.store) as _, settings, house.clock);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(!next.cache.usage().complete);
    assert!(next.cache.reserve(9_900).await.is_err());
    assert!(next.is_linked(&a).await);
    next.cache.complete().await;
    assert_eq!(next.images().len(), 2);
    next.pass(MINUTE * 2).await;
    assert!(!next.is_linked(&a).await);
    check(&next, &[]).await;
}
