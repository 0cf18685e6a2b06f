//! A start over a store with unreadable entries, or with remains of a crash.

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

/// Two images on disk, and the end of the process that pulled them.
async fn filled() -> (tempfile::TempDir, Layout) {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::in_directory(&directory).await;
    rig.pull("a", "1", &["one", "two"]).await.unwrap();
    rig.pull("b", "1", &["three"]).await.unwrap();
    rig.cache.stop().await;
    let layout = Layout::new(directory.path());
    (directory, layout)
}

#[tokio::test]
async fn an_unreadable_entry_costs_only_that_entry() {
    let manifest = digest(&manifest_of("a:1", &["one", "two"]));
    let revision = link("a", LinkKind::Revision, manifest);
    let damaged = |case: &str, layout: &Layout| match case {
        "blob" => layout.blob(&digest("one")),
        "link" => layout.link(&layer("a", "one")),
        "revision" => layout.link(&revision),
        _ => layout.tag_current(&repo("a"), &tag("1")),
    };
    for case in ["blob", "link", "revision", "tag"] {
        let (directory, layout) = filled().await;
        circle(&damaged(case, &layout));
        let settings = CacheSettings {
            max_size: Some(100_000),
            ..on_disk(&directory)
        };
        let store = Arc::new(FsStore::open(directory.path()).await.unwrap());
        let rig = Rig::started(store, settings, today()).await;
        assert_eq!(rig.cache.counts().unreadable, 1, "{case}");
        // Nothing was taken for superfluous, and there is space for downloads.
        assert_eq!(rig.entries().len(), 7, "{case}");
        for content in ["two", "three"] {
            assert!(rig.has(content).await, "{case}");
        }
        assert!(rig.is_linked(&layer("a", "two")).await, "{case}");
        drop(rig.cache.reserve(1000).await.unwrap());
        let known = rig.knows(&layer("a", "one"));
        assert_eq!(known, !matches!(case, "blob" | "link"), "{case}");

        let found = rig.cache.scrub(ScrubSettings::default()).await.unwrap();
        let blobs = u64::from(case == "blob");
        assert_eq!(found.failed, blobs, "{case}");
        assert_eq!(found.unreadable.len() as u64, 1 - blobs, "{case}");
        let repaired = rig.cache.scrub(REPAIR).await.unwrap();
        let mut failures = repaired.unreadable.iter().map(|it| &it.failure);
        assert!(failures.all(Option::is_none), "{case}");
        assert_eq!(rig.store.unreadable().await.unwrap(), [], "{case}");
        check(&rig, &[]).await;
        let gone = match case {
            "blob" | "link" => !rig.is_linked(&layer("a", "one")).await && !rig.has("one").await,
            "revision" => rig.store.size(&manifest).await.unwrap().is_none(),
            _ => rig.store.tags(&repo("a")).await.unwrap().is_empty(),
        };
        assert!(gone, "{case}");
        let again = rig.cache.scrub(REPAIR).await.unwrap();
        assert_eq!((again.failed, again.unreadable), (0, Vec::new()), "{case}");
    }
}

#[tokio::test]
async fn an_unlistable_directory_is_not_taken_for_empty() {
    let (directory, layout) = filled().await;
    let links = layout.links(&repo("a"), LinkKind::Layer, Algorithm::Sha256);
    let aside = links.with_extension("aside");
    std::fs::rename(&links, &aside).unwrap();
    circle(&links);
    let rig = Rig::in_directory(&directory).await;
    let unreadable = rig.store.unreadable().await.unwrap();
    assert_eq!(unreadable[0].entry, UnreadableEntry::Repositories);
    assert!(rig.has("one").await && rig.has("two").await);
    rig.cache.stop().await;
    drop(rig);

    std::fs::remove_file(&links).unwrap();
    std::fs::rename(&aside, &links).unwrap();
    let rig = Rig::in_directory(&directory).await;
    assert!(rig.knows(&layer("a", "one")) && rig.knows(&layer("a", "two")));
    assert_eq!(rig.cache.counts().unreadable, 0);
}

#[tokio::test]
async fn an_unreadable_link_can_be_purged() {
    let (directory, layout) = filled().await;
    circle(&layout.link(&layer("a", "one")));
    let rig = Rig::in_directory(&directory).await;
    let purged = rig.purge("a").await;
    assert_eq!(purged.len(), 4);
    assert!(!rig.has("one").await);
    assert!(std::fs::symlink_metadata(layout.link(&layer("a", "one"))).is_err());
}

#[tokio::test]
async fn a_dangling_tag_does_not_outlive_a_start() {
    let (directory, layout) = filled().await;
    let manifest = digest(&manifest_of("a:1", &["one", "two"]));
    // The state still has the link's entry.
    std::fs::remove_file(layout.link(&link("a", LinkKind::Revision, manifest))).unwrap();
    let rig = Rig::in_directory(&directory).await;
    assert!(rig.store.tags(&repo("a")).await.unwrap().is_empty());
    assert_eq!(rig.store.tags(&repo("b")).await.unwrap(), [tag("1")]);
    check(&rig, &[]).await;
}

#[tokio::test]
async fn empty_links_are_removed_at_the_start() {
    let (directory, layout) = filled().await;
    let (blob, tagged) = (
        layout.link(&layer("a", "one")),
        layout.tag_current(&repo("b"), &tag("1")),
    );
    for path in [&blob, &tagged] {
        std::fs::write(path, "").unwrap();
    }
    let rig = Rig::in_directory(&directory).await;
    assert!(!blob.exists() && !tagged.exists() && !rig.has("one").await);
    assert_eq!(rig.cache.counts().unreadable, 0);
    check(&rig, &[]).await;
}

#[tokio::test]
async fn without_upkeep_only_the_selection_changes() {
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
                let children = std::fs::read_dir(&path).unwrap();
                unseen.extend(children.map(|child| child.unwrap().path()));
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
        Rig::started(store, settings, today() + WEEK * 52).await
    };
    let rig = look().await;
    assert_eq!(rig.entries().len(), 6);
    rig.cache.stop().await;
    drop(rig);
    assert_eq!(listed(), before);

    let rig = look().await;
    rig.purge("b").await;
    rig.cache.stop().await;
    assert!(!rig.has("three").await && orphan.exists());
    let after = listed();
    assert!(after.iter().all(|path| before.contains(path)), "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn an_unlistable_store_delays_no_request() {
    let rig = Rig::with(settings()).await;
    rig.cache_layer("a", "x").await;
    let kind = io::ErrorKind::PermissionDenied;
    rig.store.fail(storage::faulty::Operation::Blobs, 1, kind);
    let next = Rig::over(Arc::clone(&rig.store) as _, capped(10_000), rig.clock);
    let error = next.cache.ready().await.unwrap_err().to_string();
    assert!(error.starts_with("the store can't be listed: "), "{error}");
    let began = tokio::time::Instant::now();
    next.cache.reserve(10).await.unwrap_err();
    assert_eq!(began.elapsed(), Duration::ZERO);
    next.cache.complete().await;
    next.cache.ready().await.unwrap();
    drop(next.cache.reserve(10).await.unwrap());
}
