//! `used_if_linked`: the index answers for the store, so it must never have a link that may be gone.

use super::*;
use crate::oci::ManifestType;
use crate::storage::faulty::Operation;

#[tokio::test(start_paused = true)]
async fn a_link_is_known_in_its_own_repository_and_kind_only() {
    let rig = Rig::with(settings()).await;
    assert!(!rig.knows(&layer("a", "x")));
    assert!(rig.entries().is_empty(), "asking leaves nothing behind");
    let made = rig.cache_layer("a", "x").await;
    for _ in 0..2 {
        assert!(rig.knows(&made));
        assert!(!rig.knows(&layer("b", "x")));
        assert!(!rig.knows(&link("a", LinkKind::Revision, made.digest)));
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_counts_as_a_use_and_an_expired_link_is_unknown() {
    let rig = Rig::with(with_ttl(HOUR)).await;
    let used = rig.cache_layer("a", "x").await;
    let idle = rig.cache_layer("b", "x").await;
    for _ in 0..3 {
        rig.pass(MINUTE * 50).await;
        assert!(rig.knows(&used));
    }
    assert!(!rig.knows(&idle));
    assert!(rig.is_linked(&used).await && !rig.is_linked(&idle).await);
    rig.pass(HOUR).await;
    assert!(!rig.knows(&used) && !rig.has("x").await);
}

#[tokio::test(start_paused = true)]
async fn a_purged_link_is_unknown_at_once() {
    let rig = Rig::with(settings()).await;
    let purged = rig.cache_layer("a", "x").await;
    let other = rig.cache_layer("b", "x").await;
    assert!(rig.knows(&purged) && rig.knows(&other));
    rig.purge("a").await;
    assert!(!rig.knows(&purged), "no time has passed");
    assert!(rig.knows(&other));
    let again = rig.cache_layer("a", "x").await;
    assert!(rig.knows(&again));
}

#[tokio::test(start_paused = true)]
async fn a_link_is_unknown_while_it_is_queued_or_being_deleted() {
    let rig = Rig::with(settings()).await;
    let a = rig.cache_layer("a", "x").await;
    assert!(rig.knows(&a));
    let stall = rig.store.stall(Operation::Unlink, 1);
    let selection = "a".parse().unwrap();
    let looking = async {
        stall.reached().await;
        assert!(rig.is_linked(&a).await && !rig.knows(&a));
        stall.release();
    };
    tokio::join!(rig.cache.purge(&selection, false), looking);

    let b = rig.cache_layer("b", "y").await;
    let hold = rig.cache.hold(&b.digest).await;
    rig.purge("b").await;
    assert!(rig.is_linked(&b).await && !rig.knows(&b));
    drop(hold);
    rig.cache.settled().await;
    assert!(!rig.is_linked(&b).await);
}

#[tokio::test(start_paused = true)]
async fn an_evicted_link_is_unknown() {
    let rig = Rig::with(capped(10)).await;
    let first = rig.cache_layer("a", "first").await;
    assert!(rig.knows(&first));
    tokio::time::sleep(Duration::from_secs(1)).await;
    rig.cache_layer("a", "other").await;
    let third = rig.cache_layer("a", "third").await;
    assert!(!rig.has("first").await);
    assert!(!rig.knows(&first) && rig.knows(&third));
}

#[tokio::test]
async fn a_link_to_a_quarantined_blob_is_unknown() {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::in_directory(&directory).await;
    let bad = rig.cache_layer("a", "bad").await;
    assert!(rig.knows(&bad));
    let path = storage::Layout::new(directory.path()).blob(&bad.digest);
    std::fs::write(path, "bat").unwrap();
    // A reader: the links stay until it is done.
    let hold = rig.cache.hold(&bad.digest).await;
    let looking = async {
        while rig.has("bad").await {
            tokio::task::yield_now().await;
        }
        assert!(rig.is_linked(&bad).await && !rig.knows(&bad));
        drop(hold);
    };
    let (report, ()) = tokio::join!(rig.cache.scrub(REPAIR), looking);
    assert_eq!(report.unwrap().quarantined, 1);
    assert!(!rig.knows(&bad));
    let again = rig.cache_layer("a", "bad").await;
    assert!(rig.knows(&again));
}

#[tokio::test(start_paused = true)]
async fn after_a_start_only_links_seen_in_the_store_are_known() {
    let directory = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let rig = Rig::started(Arc::clone(&store), on_disk(&directory), today()).await;
    let (kept, lost) = (
        rig.cache_layer("a", "x").await,
        rig.cache_layer("b", "y").await,
    );
    rig.cache.stop().await;
    // The state file knows of both; one has gone while the mirror was off.
    store.unlink(&lost).await.unwrap();

    let rig = Rig::over(store, on_disk(&directory), Clock::starting_at(today()));
    let stall = rig.store.stall(Operation::Repositories, 1);
    stall.reached().await;
    assert_eq!(rig.entries().len(), 2, "the state file has been read");
    assert!(!rig.knows(&kept) && !rig.knows(&lost));
    stall.release();
    rig.cache.complete().await;
    assert!(rig.knows(&kept) && !rig.knows(&lost));
}

/// A HEAD then reads no file.
#[tokio::test(start_paused = true)]
async fn manifest_metadata_is_known_per_repository_and_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::with(on_disk(&directory)).await;
    let (image, index) = (manifest_of("x", &["y"]), index_of(&["z"]));
    let image_link = rig.cache_manifest("a", None, &image).await.unwrap();
    let index_link = rig.cache_manifest("a", None, &index).await.unwrap();
    let next = rig.restart(on_disk(&directory)).await;
    let known = |rig: &Rig, name: &str, link: &Link| {
        let meta = rig.cache.manifest_meta(&repo(name), &link.digest)?;
        Some((meta.size, meta.media_type))
    };
    for rig in [&rig, &next] {
        for (link, text, media_type) in [
            (&image_link, &image, ManifestType::OciManifest),
            (&index_link, &index, ManifestType::OciIndex),
        ] {
            let size = text.len() as u64;
            assert_eq!(known(rig, "a", link), Some((size, media_type)));
            assert_eq!(known(rig, "b", link), None);
        }
    }
    next.purge("a").await;
    assert_eq!(known(&next, "a", &image_link), None);
}
