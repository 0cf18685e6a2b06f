//! Permissions and owners of what the store creates.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};

use super::*;

/// Puts a blob, a link and a tag into the store.
async fn fill(store: &FsStore) {
    let blob = digest("blob");
    put(store, &blob, "blob".into()).await.unwrap();
    store.link(&link("a", LinkKind::Layer, blob)).await.unwrap();
    store.set_tag(&repo("a"), &tag("t"), &blob).await.unwrap();
}

/// The permissions of every file and of every directory below the root, each once.
fn modes(root: &Path) -> (Vec<u32>, Vec<u32>) {
    let (mut of_files, mut of_directories) = (Vec::new(), Vec::new());
    for path in paths(root) {
        let mode = fs::metadata(&path).unwrap().mode() & 0o7777;
        if path.is_dir() {
            of_directories.push(mode);
        } else if path.file_name().unwrap() == "lock" {
            assert_eq!(mode, 0o600);
        } else {
            of_files.push(mode);
        }
    }
    for modes in [&mut of_files, &mut of_directories] {
        modes.sort_unstable();
        modes.dedup();
    }
    (of_files, of_directories)
}

fn set(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn a_new_directory_is_closed_to_others() {
    let above = tempfile::tempdir().unwrap();
    for (mode, expected) in [(None, (0o640, 0o750)), (Some(0o600), (0o600, 0o700))] {
        let root = above.path().join(expected.0.to_string());
        let store = FsStore::open_with(&root, mode).await.unwrap();
        fill(&store).await;
        assert_eq!(modes(&root), (vec![expected.0], vec![expected.1]));
    }
}

#[tokio::test]
async fn a_directory_that_has_data_keeps_its_permissions() {
    let root = tempfile::tempdir().unwrap();
    let v2 = root.path().join("docker/registry/v2");
    fs::create_dir_all(&v2).unwrap();
    let all = v2.ancestors().take(4);
    all.for_each(|path| set(path, 0o2775));
    // Files given to somebody else: possible for root alone.
    let given = chown(&v2, Some(1234), Some(4321)).is_ok();
    let lock = Layout::new(root.path()).lock();
    write(&lock, "");
    set(&lock, 0o644);
    set(lock.parent().unwrap(), 0o2775);
    let store = FsStore::open(root.path()).await.unwrap();
    fill(&store).await;
    assert_eq!(modes(root.path()), (vec![0o664], vec![0o2775]));
    let blob = fs::metadata(Layout::new(root.path()).blob(&digest("blob"))).unwrap();
    assert_eq!((blob.uid(), blob.gid()) == (1234, 4321), given);
}

#[tokio::test]
async fn the_umask_restricts_what_a_new_directory_gets() {
    let (root, layout, store) = new_store().await;
    let blob = digest("blob");
    put(&store, &blob, "blob".into()).await.unwrap();
    // What the umask of this process makes of a plain file.
    write(root.path().join("plain"), "");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let plain = mode(&root.path().join("plain"));
    assert_eq!(mode(&layout.blob(&blob)), plain & 0o640);
}
