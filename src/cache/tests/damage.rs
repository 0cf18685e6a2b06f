//! A start over a store in which something can't be read, or is left from a crash.

use super::*;
use crate::storage::{FsStore, Layout, UnreadableEntry};

/// A name that leads to itself: reading it fails, whoever asks.
fn circle(path: &Path) {
    if let Ok(metadata) = std::fs::symlink_metadata(path) {
        assert!(metadata.is_file());
        std::fs::remove_file(path).unwrap();
    }
    std::os::unix::fs::symlink(path.file_name().unwrap(), path).unwrap();
}

async fn start(directory: &tempfile::TempDir, settings: CacheSettings) -> House {
    let store = Arc::new(FsStore::open(directory.path()).await.unwrap());
    let house = House::over(store, settings, Clock::starting_at(today()));
    house.cache.complete().await;
    house.cache.settled().await;
    house
}

/// Two images on disk, and the end of the process that pulled them.
async fn filled() -> (tempfile::TempDir, Layout) {
    let directory = tempfile::tempdir().unwrap();
    let house = start(&directory, on_disk(&directory)).await;
    house.pull("a", "1", &["one", "two"]).await.unwrap();
    house.pull("b", "1", &["three"]).await.unwrap();
    house.cache.stop().await;
    let layout = Layout::new(directory.path());
    (directory, layout)
}

#[tokio::test]
async fn one_unreadable_entry_costs_that_entry_and_no_more() {
    let manifest = digest(&manifest_of("a:1", &["one", "two"]));
    let revision = link("a", LinkKind::Revision, manifest);
    let damaged = |case: &str, layout: &Layout| match case {
        "blob" => layout.blob(&digest("one")),
        "link" => layout.link(&layer("a", "one")),
        "revision" => layout.link(&revision),
        _ => layout.tag_current(&repo("a"), &tag("1")),
    };
    let repair = ScrubSettings {
        rate: None,
        repair: true,
    };
    for case in ["blob", "link", "revision", "tag"] {
        let (directory, layout) = filled().await;
        circle(&damaged(case, &layout));
        let settings = CacheSettings {
            max_size: Some(100_000),
            ..on_disk(&directory)
        };
        let house = start(&directory, settings).await;
        assert_eq!(house.cache.counts().unreadable, 1, "{case}");
        // Nothing was taken for superfluous, and there is space for downloads.
        assert_eq!(house.entries().len(), 7, "{case}");
        for content in ["two", "three"] {
            assert!(house.has(content).await, "{case}");
        }
        assert!(house.is_linked(&layer("a", "two")).await, "{case}");
        drop(house.cache.reserve(1000).await.unwrap());
        let vouched = house.vouches(&layer("a", "one"));
        assert_eq!(vouched, !matches!(case, "blob" | "link"), "{case}");

        let found = house.cache.scrub(ScrubSettings::default()).await.unwrap();
        let (blobs, others) = (found.failed, found.unreadable.len());
        assert_eq!(
            (blobs, others),
            if case == "blob" { (1, 0) } else { (0, 1) },
            "{case}"
        );
        let repaired = house.cache.scrub(repair).await.unwrap();
        assert!(
            repaired.unreadable.iter().all(|it| it.failure.is_none()),
            "{case}"
        );
        assert_eq!(house.store.unreadable().await.unwrap(), [], "{case}");
        check(&house, &[]).await;
        let gone = match case {
            "blob" | "link" => {
                !house.is_linked(&layer("a", "one")).await && !house.has("one").await
            }
            "revision" => house.store.size(&manifest).await.unwrap().is_none(),
            _ => house.store.tags(&repo("a")).await.unwrap().is_empty(),
        };
        assert!(gone, "{case}");
        let again = house.cache.scrub(repair).await.unwrap();
        assert_eq!((again.failed, again.unreadable), (0, Vec::new()), "{case}");
    }
}

#[tokio::test]
async fn a_directory_that_can_not_be_listed_is_not_taken_for_empty() {
    let (directory, layout) = filled().await;
    let links = layout.links(&repo("a"), LinkKind::Layer, Algorithm::Sha256);
    let aside = links.with_extension("aside");
    std::fs::rename(&links, &aside).unwrap();
    circle(&links);
    let house = start(&directory, on_disk(&directory)).await;
    let unreadable = house.store.unreadable().await.unwrap();
    assert_eq!(unreadable[0].entry, UnreadableEntry::Repositories);
    assert!(house.has("one").await && house.has("two").await);
    house.cache.stop().await;
    drop(house);

    std::fs::remove_file(&links).unwrap();
    std::fs::rename(&aside, &links).unwrap();
    let house = start(&directory, on_disk(&directory)).await;
    assert!(house.vouches(&layer("a", "one")) && house.vouches(&layer("a", "two")));
    assert_eq!(house.cache.counts().unreadable, 0);
}

#[tokio::test]
async fn an_unreadable_link_goes_in_its_time() {
    let (directory, layout) = filled().await;
    circle(&layout.link(&layer("a", "one")));
    let house = start(&directory, on_disk(&directory)).await;
    let purged = house.cache.purge(&"a".parse().unwrap(), false).await;
    assert_eq!(purged.len(), 4);
    assert!(!house.has("one").await);
    assert!(std::fs::symlink_metadata(layout.link(&layer("a", "one"))).is_err());
}

#[tokio::test]
async fn a_dangling_tag_does_not_outlive_a_start() {
    let (directory, layout) = filled().await;
    let manifest = digest(&manifest_of("a:1", &["one", "two"]));
    // The state still has the link's entry.
    std::fs::remove_file(layout.link(&link("a", LinkKind::Revision, manifest))).unwrap();
    let house = start(&directory, on_disk(&directory)).await;
    assert!(house.store.tags(&repo("a")).await.unwrap().is_empty());
    assert_eq!(house.store.tags(&repo("b")).await.unwrap(), [tag("1")]);
    check(&house, &[]).await;
}

#[tokio::test]
async fn empty_links_go_at_the_start() {
    let (directory, layout) = filled().await;
    let (blob, tagged) = (
        layout.link(&layer("a", "one")),
        layout.tag_current(&repo("b"), &tag("1")),
    );
    for path in [&blob, &tagged] {
        std::fs::write(path, "").unwrap();
    }
    let house = start(&directory, on_disk(&directory)).await;
    assert!(!blob.exists() && !tagged.exists() && !house.has("one").await);
    assert_eq!(house.cache.counts().unreadable, 0);
    check(&house, &[]).await;
}

#[tokio::test]
async fn what_is_found_corrupt_in_use_is_set_aside_with_the_index_knowing() {
    let (directory, layout) = filled().await;
    let house = start(&directory, on_disk(&directory)).await;
    let (one, used) = (layer("a", "one"), house.cache.usage().used);
    // A false alarm changes nothing.
    house.cache.recheck(&one.digest).await;
    assert!(house.vouches(&one) && house.has("one").await);

    std::fs::write(layout.blob(&one.digest), "on!").unwrap();
    house.cache.recheck(&one.digest).await;
    assert!(!house.vouches(&one) && !house.has("one").await);
    house.cache.settled().await;
    assert_eq!(house.cache.usage().used, used - 3);
    check(&house, &[]).await;
}

#[tokio::test]
async fn without_upkeep_only_what_is_named_changes() {
    let (directory, layout) = filled().await;
    std::fs::write(directory.path().join("scheduler-state.json"), "broken").unwrap();
    std::fs::write(layout.link(&layer("a", "one")), "").unwrap();
    std::fs::remove_file(layout.blob(&digest("two"))).unwrap();
    let orphan = layout.blob(&digest("orphan"));
    std::fs::create_dir_all(orphan.parent().unwrap()).unwrap();
    std::fs::write(&orphan, "orphan").unwrap();
    let listed = || {
        let mut all = Vec::new();
        let mut unseen = vec![directory.path().to_owned()];
        while let Some(path) = unseen.pop() {
            if path.is_dir() {
                unseen.extend(
                    std::fs::read_dir(&path)
                        .unwrap()
                        .map(|it| it.unwrap().path()),
                );
            }
            all.push(path);
        }
        all.sort();
        all
    };
    let before = listed();
    let look = async || {
        let store = Arc::new(FsStore::inspect(directory.path()).await.unwrap());
        let settings = CacheSettings {
            ttl: TtlPolicy::sliding(Some(Duration::from_secs(1))),
            upkeep: Upkeep::None,
            ..on_disk(&directory)
        };
        // Everything is overdue.
        let clock = Clock::starting_at(today() + WEEK * 52);
        let house = House::over(store, settings, clock);
        house.cache.complete().await;
        house.cache.settled().await;
        house
    };
    let house = look().await;
    assert_eq!(house.entries().len(), 6);
    house.cache.stop().await;
    drop(house);
    assert_eq!(listed(), before);

    let house = look().await;
    house.cache.purge(&"b".parse().unwrap(), false).await;
    house.cache.stop().await;
    assert!(!house.has("three").await && orphan.exists());
    let after = listed();
    assert!(after.iter().all(|path| before.contains(path)), "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_can_not_be_listed_holds_nobody_up() {
    let house = House::with(settings()).await;
    house.cache_layer("a", "x").await;
    let settings = CacheSettings {
        max_size: Some(10_000),
        ..settings()
    };
    let kind = io::ErrorKind::PermissionDenied;
    house.store.fail(storage::faulty::Operation::Blobs, 1, kind);
    let next = House::over(Arc::clone(&house.store) as _, settings, house.clock);
    let error = next.cache.ready().await.unwrap_err().to_string();
    assert!(error.starts_with("the store can't be listed: "), "{error}");
    let began = tokio::time::Instant::now();
    next.cache.reserve(10).await.unwrap_err();
    assert_eq!(began.elapsed(), Duration::ZERO);
    next.cache.complete().await;
    next.cache.ready().await.unwrap();
    drop(next.cache.reserve(10).await.unwrap());
}
