//! The state files across restarts.

use super::*;
use crate::cache::work::expiry::{SAVE_AFTER, SAVE_RATE};
use crate::storage::faulty::Operation;
use std::io::ErrorKind;
use std::path::Path;

fn last_use(rig: &Rig, link: &Link) -> SystemTime {
    let mut entries = rig.entries().into_iter();
    entries.find(|entry| entry.link == *link).unwrap().last_use
}

#[tokio::test(start_paused = true)]
async fn uses_are_saved_within_seconds_and_together() {
    let directory = tempfile::tempdir().unwrap();
    let journal = state_file(&directory).with_extension("journal");
    let rig = Rig::with(on_disk(&directory)).await;
    for n in 0..50 {
        rig.cache_layer("a", &n.to_string()).await;
    }
    assert!(!journal.exists());
    rig.pass(SAVE_AFTER).await;
    let lines = std::fs::read_to_string(&journal).unwrap();
    assert_eq!(lines.lines().count(), 50);
    let a = layer("a", "7");
    rig.use_link(&a).await;
    rig.use_link(&a).await;
    rig.pass(SAVE_AFTER).await;
    let lines = std::fs::read_to_string(&journal).unwrap();
    assert_eq!(lines.lines().count(), 51);
    let last = lines.lines().last().unwrap();
    assert!(last.contains(&a.digest.to_string()));

    // Without a stop: what was used and saved is known.
    let used = last_use(&rig, &a);
    rig.pass(HOUR).await;
    let next = rig.restart(on_disk(&directory)).await;
    assert_eq!(last_use(&next, &a), used);
}

#[tokio::test(start_paused = true)]
async fn an_unsaved_entry_is_found_in_the_store() {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::with(on_disk(&directory)).await;
    let a = rig.cache_layer("a", "x").await;
    let next = rig.restart(on_disk(&directory)).await;
    assert_eq!(next.entries().len(), 1);
    assert!(next.is_linked(&a).await && next.has("x").await);
}

#[tokio::test(start_paused = true)]
async fn a_changed_ttl_applies_to_existing_entries() {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::with(on_disk(&directory)).await;
    let a = rig.cache_layer("a", "x").await;
    rig.pass(HOUR * 3).await;
    rig.cache.stop().await;
    let settings = |ttl| CacheSettings {
        ttl: TtlPolicy::sliding(ttl),
        ..on_disk(&directory)
    };
    let never = rig.restart(settings(None)).await;
    assert_eq!(never.entries()[0].expiry, None);
    never.cache.stop().await;
    let text = std::fs::read_to_string(state_file(&directory)).unwrap();
    assert!(
        text.contains(r#""ExpiryData":"2200-01-01T00:00:00Z""#),
        "{text}"
    );

    let short = never.restart(settings(Some(HOUR * 5))).await;
    let expiry = short.entries()[0].expiry.unwrap();
    let left = expiry.duration_since(short.clock.wall()).unwrap();
    assert!(left < HOUR * 2 && left > HOUR, "{left:?}");
    short.pass(left).await;
    assert!(!short.is_linked(&a).await);
}

#[tokio::test(start_paused = true)]
async fn a_journal_that_outgrew_the_snapshot_is_folded() {
    let directory = tempfile::tempdir().unwrap();
    let journal = state_file(&directory).with_extension("journal");
    let rig = Rig::with(on_disk(&directory)).await;
    let uses = |n: usize| digest(&n.to_string());
    let mut longest = 0;
    for _ in 0..6 {
        for n in 0..5000 {
            rig.cache.used(&repo("a"), LinkKind::Layer, &uses(n), 1);
        }
        // As long as saves of so many entries pause.
        rig.pass(SAVE_AFTER * 10).await;
        longest = longest.max(std::fs::metadata(&journal).map_or(0, |file| file.len()));
    }
    assert!(longest < 6 * 1024 * 1024, "{longest}");
    let text = std::fs::read_to_string(state_file(&directory)).unwrap();
    let snapshot: serde_json::Map<_, _> = serde_json::from_str(&text).unwrap();
    assert_eq!(snapshot.len(), 5000);
}

/// How long a file is; none is empty.
fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |file| file.len())
}

#[tokio::test(start_paused = true)]
async fn many_uses_write_a_bounded_number_of_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let snapshot = state_file(&directory);
    let journal = snapshot.with_extension("journal");
    let rig = Rig::with(on_disk(&directory)).await;
    let entries: Vec<_> = (0..5000).map(|n| digest(&n.to_string())).collect();
    let (mut written, mut last) = (0, (0, 0));
    let started = rig.clock.wall();
    for _ in 0..60 {
        for entry in &entries {
            rig.cache.used(&repo("a"), LinkKind::Layer, entry, 1);
        }
        rig.pass(SAVE_AFTER).await;
        let now = (length(&journal), length(&snapshot));
        // A journal that has become shorter went into a new snapshot.
        written += if now.0 >= last.0 {
            now.0 - last.0
        } else {
            now.0 + now.1
        };
        last = now;
    }
    let one_save = 2 * 1024 * 1024;
    let time = rig.clock.wall().duration_since(started).unwrap();
    let most = 2 * u64::from(SAVE_RATE) * time.as_secs() + one_save;
    assert!(written > one_save && written < most, "{written} of {most}");
}

#[tokio::test(start_paused = true)]
async fn a_digest_linked_as_layer_and_revision_has_one_line_and_two_entries() {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::with(on_disk(&directory)).await;
    let text = manifest_of("m", &[]);
    rig.cache_manifest("a", None, &text).await.unwrap();
    rig.cache_layer("a", &text).await;
    rig.pass(HOUR).await;
    rig.cache.stop().await;
    let written = std::fs::read_to_string(state_file(&directory)).unwrap();
    assert_eq!(written.matches("EntryType\":1").count(), 1);
    assert_eq!(written.matches("EntryType").count(), 1);
    let next = rig.restart(on_disk(&directory)).await;
    let entries = next.entries();
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[0].last_use, entries[1].last_use);
}

#[tokio::test(start_paused = true)]
async fn a_failed_save_is_retried_and_costs_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::with(on_disk(&directory)).await;
    // A directory where the journal would be.
    let journal = state_file(&directory).with_extension("journal");
    std::fs::create_dir(&journal).unwrap();
    let a = rig.cache_layer("a", "x").await;
    rig.pass(MINUTE).await;
    assert!(rig.cache.counts().save_failures > 0);
    std::fs::remove_dir(&journal).unwrap();
    rig.pass(MINUTE * 2).await;
    let next = rig.restart(on_disk(&directory)).await;
    assert!(last_use(&next, &a) <= rig.clock.wall() - MINUTE * 2);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_deleted_before_the_store_was_listed() {
    let rig = Rig::with(with_ttl(HOUR)).await;
    let a = rig.cache_layer("a", "x").await;
    rig.pull("b", "t", &["base"]).await.unwrap();
    rig.store
        .fail(Operation::Links, 1, ErrorKind::PermissionDenied);
    let settings = CacheSettings {
        max_size: Some(10_000),
        ..with_ttl(MINUTE)
    };
    let next = Rig::over(Arc::clone(&rig.store) as _, settings, rig.clock);
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
