mod links;
mod opening;
mod permissions;
mod publishing;

use tempfile::TempDir;

use super::*;
use crate::oci::Algorithm;
use crate::storage::contract::{digest, link, repo, tag};
use crate::storage::{UnreadableEntry, contract, put, read_all};

const MANIFEST: &str = "{}";

/// A new store, its directory, and the paths in it.
async fn new_store() -> (TempDir, Layout, FsStore) {
    let root = tempfile::tempdir().unwrap();
    let store = FsStore::open(root.path()).await.unwrap();
    let layout = Layout::new(root.path());
    (root, layout, store)
}

/// Where a blob's directory is, relative to the root.
fn blob_dir(digest: &Digest) -> String {
    let hex = digest.hex();
    let shard: String = hex.chars().take(2).collect();
    format!("docker/registry/v2/blobs/sha256/{shard}/{hex}")
}

fn write(path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
    let path = path.as_ref();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// A directory, and every file and directory below it.
fn paths(root: &Path) -> Vec<PathBuf> {
    let mut paths = vec![root.to_owned()];
    let mut at = 0;
    while let Some(path) = paths.get(at) {
        if path.is_dir() {
            let entries: Vec<_> = fs::read_dir(path).unwrap().collect();
            paths.extend(entries.into_iter().map(|entry| entry.unwrap().path()));
        }
        at += 1;
    }
    paths
}

/// Every file below a directory, as sorted relative paths, and its content.
fn files(root: &Path) -> Vec<(String, String)> {
    let files = paths(root).into_iter().filter(|path| !path.is_dir());
    let mut files: Vec<_> = files
        .map(|path| {
            let below = path.strip_prefix(root).unwrap().to_str().unwrap();
            (below.to_owned(), fs::read_to_string(&path).unwrap())
        })
        .collect();
    files.sort();
    files
}

#[tokio::test]
async fn keeps_the_contract() {
    contract::holds(async || {
        let root = tempfile::tempdir().unwrap();
        let store = FsStore::open(root.path().join("made/by/it")).await.unwrap();
        (Arc::new(store) as Arc<dyn Store>, Some(root))
    })
    .await;
}

#[tokio::test]
async fn writes_what_the_reference_registry_writes_and_nothing_else() {
    let (root, _, store) = new_store().await;
    let (manifest, layer) = (digest(MANIFEST), digest("layer"));
    put(&store, &manifest, MANIFEST.into()).await.unwrap();
    put(&store, &layer, "layer".into()).await.unwrap();
    let layer_link = link("library/debian", LinkKind::Layer, layer);
    let revision = link("library/debian", LinkKind::Revision, manifest);
    store.link(&layer_link).await.unwrap();
    store.link(&revision).await.unwrap();
    let (debian, latest) = (repo("library/debian"), tag("latest"));
    store.set_tag(&debian, &latest, &manifest).await.unwrap();
    drop(store.stage(&layer, "u").await.unwrap());

    let (m, l) = (manifest.hex(), layer.hex());
    let here = "docker/registry/v2/repositories/library/debian";
    let revisions = format!("{here}/_manifests/revisions");
    let tags = format!("{here}/_manifests/tags/latest");
    let (of_manifest, of_layer) = (manifest.to_string(), layer.to_string());
    let mut expected = [
        (format!("{}/data", blob_dir(&manifest)), MANIFEST),
        (format!("{}/data", blob_dir(&layer)), "layer"),
        (format!("{here}/_layers/sha256/{l}/link"), &*of_layer),
        (format!("{revisions}/sha256/{m}/link"), &*of_manifest),
        (format!("{tags}/current/link"), &*of_manifest),
        (format!("{tags}/index/sha256/{m}/link"), &*of_manifest),
        ("millpond/lock".to_owned(), &*held_by_us()),
    ]
    .map(|(path, content)| (path, content.to_owned()));
    expected.sort();
    assert_eq!(files(root.path()), expected);

    store.remove_tag(&debian, &latest).await.unwrap();
    store.unlink(&layer_link).await.unwrap();
    store.unlink(&revision).await.unwrap();
    store.remove(&manifest).await.unwrap();
    store.remove(&layer).await.unwrap();
    let lock = ("millpond/lock".to_owned(), held_by_us());
    assert_eq!(files(root.path()), [lock]);
    let below = |path: &str| root.path().join(path);
    assert!(!below("docker/registry/v2/repositories/library").exists());
    assert!(!below(&blob_dir(&layer)).exists());
}

/// What the lock file says while this process has the store open.
fn held_by_us() -> String {
    format!("{}\n", std::process::id())
}

/// A directory as the reference registry leaves it, with things in it that are no business of ours.
fn reference_directory(root: &Path) {
    let (manifest, layer) = (digest(MANIFEST), digest("layer"));
    let (m, l) = (manifest.hex(), layer.hex());
    let v2 = root.join("docker/registry/v2");
    let debian = v2.join("repositories/library/debian");
    for (digest, content) in [(manifest, MANIFEST), (layer, "layer")] {
        write(root.join(blob_dir(&digest)).join("data"), content);
    }
    let tags = debian.join("_manifests/tags");
    for (path, target) in [
        (debian.join(format!("_layers/sha256/{l}/link")), layer),
        (
            debian.join(format!("_manifests/revisions/sha256/{m}/link")),
            manifest,
        ),
        (tags.join("latest/current/link"), manifest),
        (tags.join(format!("latest/index/sha256/{m}/link")), manifest),
    ] {
        write(path, target.to_string());
    }
    write(tags.join("spaced/current/link"), format!("{manifest} \r\n"));
    write(debian.join("_uploads/0a1b/startedat"), "then");
    write(debian.join("_layers/sha256/short/link"), layer.to_string());
    write(debian.join("_layers/tarsum/x/link"), layer.to_string());
    write(tags.join(".hidden/current/link"), manifest.to_string());
    write(v2.join("repositories/Not A Name/_layers/x"), "");
    write(v2.join("repositories/README"), "hello");
    write(root.join("scheduler-state.json"), "{}");
}

#[tokio::test]
async fn reads_a_directory_of_the_reference_registry() {
    let root = tempfile::tempdir().unwrap();
    reference_directory(root.path());
    let before = files(root.path());
    let store = FsStore::open(root.path()).await.unwrap();
    let (debian, manifest, layer) = (repo("library/debian"), digest(MANIFEST), digest("layer"));

    let repositories = store.repositories().await.unwrap();
    assert_eq!(repositories, std::slice::from_ref(&debian));
    let tags = store.tags(&debian).await.unwrap();
    assert_eq!(tags, [tag("latest"), tag("spaced")]);
    for tag in &tags {
        assert_eq!(store.tag(&debian, tag).await.unwrap(), Some(manifest));
    }
    for (kind, target) in [(LinkKind::Layer, layer), (LinkKind::Revision, manifest)] {
        assert_eq!(store.links(&debian, kind).await.unwrap(), [target]);
        let link = link("library/debian", kind, target);
        assert!(store.linked(&link).await.unwrap());
    }
    let whole = read_all(&store, &manifest, 9).await.unwrap();
    assert_eq!(whole, Some(MANIFEST.into()));
    assert_eq!(store.size(&layer).await.unwrap(), Some(5));

    let mut after = files(root.path());
    after.retain(|(path, _)| path != "millpond/lock");
    assert_eq!(after, before, "reading changes nothing");
}

#[tokio::test]
async fn uploads_that_were_left_are_measured_and_removed() {
    let (_root, layout, store) = new_store().await;
    let layer = link("a/b", LinkKind::Layer, digest("x"));
    store.link(&layer).await.unwrap();
    let then = SystemTime::UNIX_EPOCH + std::time::Duration::from_hours(1000);
    // One beside content, one in a repository that has nothing else.
    for (name, id) in [("a/b", "1"), ("only/uploads", "2")] {
        let upload = layout.repository(&repo(name)).join("_uploads").join(id);
        write(upload.join("data"), "12345");
        write(upload.join("startedat"), "67");
        write(upload.join("hashstates/sha256/0"), "8");
        let times = fs::FileTimes::new().set_modified(then);
        let hashes = ["hashstates/sha256/0", "hashstates/sha256", "hashstates"];
        for path in ["data", "startedat", ""].into_iter().chain(hashes) {
            let file = File::open(upload.join(path)).unwrap();
            file.set_times(times).unwrap();
        }
    }
    let uploads = store.uploads().await.unwrap();
    assert_eq!(uploads.len(), 2);
    for upload in uploads {
        assert_eq!((upload.bytes, upload.modified), (8, then));
        assert!(store.remove_upload(&upload).await.unwrap());
    }
    assert_eq!(store.uploads().await.unwrap(), []);
    assert_eq!(store.repositories().await.unwrap(), [repo("a/b")]);
    assert!(!layout.repositories().join("only").exists());
}

#[tokio::test]
async fn an_inspection_creates_nothing() {
    let root = tempfile::tempdir().unwrap();
    let nowhere = root.path().join("nowhere");
    let error = FsStore::inspect(&nowhere).await.unwrap_err();
    assert!(matches!(error, StoreError::Missing { .. }), "{error:?}");
    assert!(!nowhere.exists());

    reference_directory(root.path());
    let layout = Layout::new(root.path());
    write(layout.staged(StageName::new(&digest("x"), "u")), "half");
    let before = files(root.path());
    let store = FsStore::inspect(root.path()).await.unwrap();
    let repositories = store.repositories().await.unwrap();
    assert_eq!(repositories, [repo("library/debian")]);
    drop(store);
    assert_eq!(files(root.path()), before);

    let server = FsStore::open(root.path()).await.unwrap();
    let error = FsStore::inspect(root.path()).await.unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error:?}");
    drop(server);
    FsStore::inspect(root.path()).await.unwrap();
}

#[tokio::test]
async fn a_damaged_blob_is_told_apart_and_replaced() {
    let (_root, layout, store) = new_store().await;
    let blob = digest("blob");
    let path = layout.blob(&blob);

    fs::create_dir_all(&path).unwrap();
    assert!(store.open(&blob).await.unwrap().is_none());
    assert_eq!(store.size(&blob).await.unwrap(), None);
    fs::remove_dir(&path).unwrap();

    // Cut off before it is opened: verification is the reader's task, but a new commit heals it.
    write(&path, "bl");
    assert_eq!(store.size(&blob).await.unwrap(), Some(2));
    put(&store, &blob, "blob".into()).await.unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"blob");

    // Cut off while it is open: the end comes before the size.
    let open = store.open(&blob).await.unwrap().unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(1).unwrap();
    assert_eq!(open.size, 4);
    assert_eq!(open.reader.read_at(0, 4).await.unwrap(), "b");
    assert!(open.reader.read_at(1, 3).await.unwrap().is_empty());
}

#[tokio::test]
async fn the_first_of_two_commits_keeps_its_file() {
    use std::os::unix::fs::MetadataExt as _;

    let (_root, layout, store) = new_store().await;
    let blob = digest("blob");
    let path = layout.blob(&blob);
    put(&store, &blob, "blob".into()).await.unwrap();
    let first = fs::metadata(&path).unwrap().ino();
    // Open, so that its number can't be given to another file.
    let open = store.open(&blob).await.unwrap();
    put(&store, &blob, "blob".into()).await.unwrap();
    assert_eq!(fs::metadata(&path).unwrap().ino(), first);
    drop(open);
    assert!(disk::list(&layout.spool()).unwrap().is_empty());
}
