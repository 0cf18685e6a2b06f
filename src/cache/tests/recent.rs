//! The index's word for a link: it stands in for the store's, so it must never say too much.

use super::state::restart;
use super::*;
use crate::oci::ManifestType;
use crate::storage::FsStore;
use crate::storage::faulty::Operation;

impl House {
    pub(super) fn vouches(&self, link: &Link) -> bool {
        self.cache
            .used_if_linked(&link.repo, link.kind, &link.digest)
    }
}

#[tokio::test(start_paused = true)]
async fn a_link_is_vouched_for_in_its_own_repository_and_kind() {
    let house = House::with(settings()).await;
    assert!(!house.vouches(&layer("a", "x")));
    assert!(house.entries().is_empty(), "asking leaves nothing behind");
    let made = house.cache_layer("a", "x").await;
    for _ in 0..2 {
        assert!(house.vouches(&made));
        assert!(!house.vouches(&layer("b", "x")));
        assert!(!house.vouches(&link("a", LinkKind::Revision, made.digest)));
    }
}

#[tokio::test(start_paused = true)]
async fn vouching_is_a_use_and_what_expires_is_vouched_for_no_more() {
    let house = House::with(with_ttl(HOUR)).await;
    let used = house.cache_layer("a", "x").await;
    let idle = house.cache_layer("b", "x").await;
    for _ in 0..3 {
        house.pass(MINUTE * 50).await;
        assert!(house.vouches(&used));
    }
    assert!(!house.vouches(&idle));
    assert!(house.is_linked(&used).await && !house.is_linked(&idle).await);
    house.pass(HOUR).await;
    assert!(!house.vouches(&used) && !house.has("x").await);
}

#[tokio::test(start_paused = true)]
async fn what_is_purged_is_vouched_for_no_more_at_once() {
    let house = House::with(settings()).await;
    let purged = house.cache_layer("a", "x").await;
    let other = house.cache_layer("b", "x").await;
    assert!(house.vouches(&purged) && house.vouches(&other));
    house.cache.purge(&"a".parse().unwrap(), false).await;
    assert!(!house.vouches(&purged), "no time has passed");
    assert!(house.vouches(&other));
    let again = house.cache_layer("a", "x").await;
    assert!(house.vouches(&again));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_vouched_for_while_it_is_being_deleted_or_waits_for_that() {
    let house = House::with(settings()).await;
    let a = house.cache_layer("a", "x").await;
    assert!(house.vouches(&a));
    let stall = house.store.stall(Operation::Unlink, 1);
    let selection = "a".parse().unwrap();
    let looking = async {
        stall.reached().await;
        assert!(house.is_linked(&a).await && !house.vouches(&a));
        stall.release();
    };
    tokio::join!(house.cache.purge(&selection, false), looking);

    let b = house.cache_layer("b", "y").await;
    let hold = house.cache.hold(&b.digest).await;
    house.cache.purge(&"b".parse().unwrap(), false).await;
    assert!(house.is_linked(&b).await && !house.vouches(&b));
    drop(hold);
    house.cache.settled().await;
    assert!(!house.is_linked(&b).await);
}

#[tokio::test(start_paused = true)]
async fn what_is_evicted_is_vouched_for_no_more() {
    let settings = CacheSettings {
        max_size: Some(10),
        ..settings()
    };
    let house = House::with(settings).await;
    let first = house.cache_layer("a", "first").await;
    assert!(house.vouches(&first));
    tokio::time::sleep(Duration::from_secs(1)).await;
    house.cache_layer("a", "other").await;
    let third = house.cache_layer("a", "third").await;
    assert!(!house.has("first").await);
    assert!(!house.vouches(&first) && house.vouches(&third));
}

#[tokio::test]
async fn what_a_scrub_sets_aside_is_vouched_for_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(FsStore::open(directory.path()).await.unwrap());
    let house = House::over(store, on_disk(&directory), Clock::starting_at(today()));
    house.cache.complete().await;
    let bad = house.cache_layer("a", "bad").await;
    assert!(house.vouches(&bad));
    let path = storage::Layout::new(directory.path()).blob(&bad.digest);
    std::fs::write(path, "bat").unwrap();
    // A reader: the links stay until it is done.
    let hold = house.cache.hold(&bad.digest).await;
    let repair = ScrubSettings {
        rate: None,
        repair: true,
    };
    let looking = async {
        while house.has("bad").await {
            tokio::task::yield_now().await;
        }
        assert!(house.is_linked(&bad).await && !house.vouches(&bad));
        drop(hold);
    };
    let (report, ()) = tokio::join!(house.cache.scrub(repair), looking);
    assert_eq!(report.unwrap().quarantined, 1);
    assert!(!house.vouches(&bad));
    let again = house.cache_layer("a", "bad").await;
    assert!(house.vouches(&again));
}

#[tokio::test(start_paused = true)]
async fn after_a_start_only_what_has_been_seen_is_vouched_for() {
    let directory = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let house = House::over(
        Arc::clone(&store),
        on_disk(&directory),
        Clock::starting_at(today()),
    );
    house.cache.complete().await;
    let (kept, lost) = (
        house.cache_layer("a", "x").await,
        house.cache_layer("b", "y").await,
    );
    house.cache.stop().await;
    // The state file knows of both; one has gone while the mirror was off.
    store.unlink(&lost).await.unwrap();

    let house = House::over(store, on_disk(&directory), Clock::starting_at(today()));
    let stall = house.store.stall(Operation::Repositories, 1);
    stall.reached().await;
    assert_eq!(house.entries().len(), 2, "the state file has been read");
    assert!(!house.vouches(&kept) && !house.vouches(&lost));
    stall.release();
    house.cache.complete().await;
    assert!(house.vouches(&kept) && !house.vouches(&lost));
}

/// So that a HEAD reads no file.
#[tokio::test(start_paused = true)]
async fn what_a_manifest_is_is_known_for_its_repository_also_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let house = House::with(on_disk(&directory)).await;
    let (image, index) = (manifest_of("x", &["y"]), index_of(&["z"]));
    let image_link = house.cache_manifest("a", None, &image).await.unwrap();
    let index_link = house.cache_manifest("a", None, &index).await.unwrap();
    let next = restart(&house, on_disk(&directory)).await;
    let known = |house: &House, name: &str, link: &Link| {
        house.cache.linked_manifest(&repo(name), &link.digest)
    };
    for house in [&house, &next] {
        for (link, text, media_type) in [
            (&image_link, &image, ManifestType::OciManifest),
            (&index_link, &index, ManifestType::OciIndex),
        ] {
            let size = text.len() as u64;
            assert_eq!(known(house, "a", link), Some((size, media_type)));
            assert_eq!(known(house, "b", link), None);
        }
    }
    next.cache.purge(&"a".parse().unwrap(), false).await;
    assert_eq!(known(&next, "a", &image_link), None);
}
