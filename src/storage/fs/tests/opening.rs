//! Opening a store: its lock, its leftovers, and a root that can't be used.

use super::*;

#[tokio::test]
async fn one_process_at_a_time() {
    let (root, layout, store) = new_store().await;
    let stage = store.stage(&digest("x"), "u").await.unwrap();
    // Locks belong to open files, so a second one here is like one in another process.
    let error = FsStore::open(root.path()).await.unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error:?}");
    let named = error.to_string();
    assert!(named.contains(&root.path().display().to_string()));
    let left = files(&layout.spool()).len();
    assert_eq!(left, 1, "nothing of the first is swept");
    drop(store);
    assert!(FsStore::open(root.path()).await.is_err(), "a stage is use");
    drop(stage);
    FsStore::open(root.path()).await.unwrap();
}

#[tokio::test]
async fn a_root_that_cannot_be_written_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    write(&file, "");
    for root in [file.join("root"), file] {
        let error = FsStore::open(&root).await.unwrap_err();
        assert!(matches!(error, StoreError::NotWritable { .. }), "{error:?}");
        assert!(error.to_string().contains(&root.display().to_string()));
    }
    // The directories are there, but no file can be made: something is in the way of the probe.
    let root = directory.path().join("root");
    let probe = Layout::new(&root).draft(0);
    fs::create_dir_all(&probe).unwrap();
    let error = FsStore::open(&root).await.unwrap_err();
    assert!(matches!(error, StoreError::NotWritable { .. }), "{error:?}");
    assert!(error.to_string().contains(&probe.display().to_string()));
}

#[tokio::test]
async fn symbolic_links_are_followed_at_the_root_only() {
    use std::os::unix::fs::symlink;

    let directory = tempfile::tempdir().unwrap();
    let (real, root) = (directory.path().join("real"), directory.path().join("root"));
    symlink(&real, &root).unwrap();
    let error = FsStore::open(&root).await.unwrap_err();
    assert!(matches!(error, StoreError::NotWritable { .. }), "dangling");

    fs::create_dir(&real).unwrap();
    let store = FsStore::open(&root).await.unwrap();
    let layer = link("a", LinkKind::Layer, digest("blob"));
    store.link(&layer).await.unwrap();
    let repositories = Layout::new(&real).repositories();
    symlink(&repositories, repositories.join("a/circle")).unwrap();
    assert_eq!(store.repositories().await.unwrap(), [repo("a")]);
}
