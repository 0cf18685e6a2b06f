use std::path::Path;

use super::*;
use crate::oci::Algorithm;
use crate::storage::contract::{digest, link, repo, tag};
use crate::storage::{UnreadableEntry, contract, put, read_all};

const MANIFEST: &str = "{}";

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

/// Every file below a directory, as sorted relative paths with `/`, and its content.
fn files(root: &Path) -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut unseen = vec![root.to_owned()];
    while let Some(directory) = unseen.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                unseen.push(path);
                continue;
            }
            let parts = path.strip_prefix(root).unwrap().iter();
            let parts: Vec<_> = parts.map(|part| part.to_str().unwrap()).collect();
            files.push((parts.join("/"), fs::read_to_string(&path).unwrap()));
        }
    }
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
    let root = tempfile::tempdir().unwrap();
    let store = FsStore::open(root.path()).await.unwrap();
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
    let tags = format!("{here}/_manifests/tags/latest");
    let mut expected = [
        (format!("{}/data", blob_dir(&manifest)), MANIFEST.to_owned()),
        (format!("{}/data", blob_dir(&layer)), "layer".to_owned()),
        (
            format!("{here}/_layers/sha256/{l}/link"),
            format!("sha256:{l}"),
        ),
        (
            format!("{here}/_manifests/revisions/sha256/{m}/link"),
            format!("sha256:{m}"),
        ),
        (format!("{tags}/current/link"), format!("sha256:{m}")),
        (
            format!("{tags}/index/sha256/{m}/link"),
            format!("sha256:{m}"),
        ),
        ("millpond/lock".to_owned(), held_by_us()),
    ];
    expected.sort();
    assert_eq!(files(root.path()), expected);

    store.remove_tag(&debian, &latest).await.unwrap();
    store.unlink(&layer_link).await.unwrap();
    store.unlink(&revision).await.unwrap();
    store.remove(&manifest).await.unwrap();
    store.remove(&layer).await.unwrap();
    assert_eq!(
        files(root.path()),
        [("millpond/lock".to_owned(), held_by_us())]
    );
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
async fn a_damaged_link_reads_as_not_there_and_is_replaced() {
    let root = tempfile::tempdir().unwrap();
    let store = FsStore::open(root.path()).await.unwrap();
    let layout = Layout::new(root.path());
    let (a, latest, blob) = (repo("a"), tag("latest"), digest("blob"));
    let layer = link("a", LinkKind::Layer, blob);
    let other = digest("other").to_string();
    let long = format!("{blob}{}", " ".repeat(1000));
    let damaged: [&[u8]; 6] = [
        b"",
        b"sha256:12",
        b"\0\0\0\0",
        b"\xff\xfe",
        b" \n",
        &blob.to_string().into_bytes()[..70],
    ];
    for content in damaged {
        write(layout.link(&layer), content);
        write(layout.tag_current(&a, &latest), content);
        assert!(!store.linked(&layer).await.unwrap());
        assert!(store.links(&a, LinkKind::Layer).await.unwrap().is_empty());
        assert_eq!(store.tag(&a, &latest).await.unwrap(), None);
        assert!(store.tags(&a).await.unwrap().is_empty());

        store.link(&layer).await.unwrap();
        store.set_tag(&a, &latest, &blob).await.unwrap();
        assert!(store.linked(&layer).await.unwrap());
        assert_eq!(store.tag(&a, &latest).await.unwrap(), Some(blob));
    }
    write(layout.link(&layer), other);
    assert!(!store.linked(&layer).await.unwrap());
    write(layout.link(&layer), long);
    assert!(
        store.linked(&layer).await.unwrap(),
        "only white space follows"
    );

    // Directories and files in each other's place.
    fs::remove_file(layout.link(&layer)).unwrap();
    fs::create_dir(layout.link(&layer)).unwrap();
    assert!(!store.linked(&layer).await.unwrap());
    fs::remove_dir_all(layout.repository(&a)).unwrap();
    write(layout.repository(&a), "a file");
    assert!(!store.linked(&layer).await.unwrap());
    assert!(store.tags(&a).await.unwrap().is_empty());
    assert!(store.repositories().await.unwrap().is_empty());
    let error = store.link(&layer).await.unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error:?}");
    assert!(disk::list(&layout.spool()).unwrap().is_empty());
}

#[tokio::test]
async fn a_link_that_a_crash_left_empty_is_removed_when_it_is_listed() {
    let root = tempfile::tempdir().unwrap();
    let layout = Layout::new(root.path());
    let (a, latest) = (repo("a"), tag("latest"));
    let layer = link("a", LinkKind::Layer, digest("x"));
    for content in ["", "\0\0\0"] {
        write(layout.link(&layer), content);
        write(layout.tag_current(&a, &latest), content);
        // Who only looks leaves it alone.
        let store = FsStore::inspect(root.path()).await.unwrap();
        assert!(store.links(&a, LinkKind::Layer).await.unwrap().is_empty());
        assert!(store.tags(&a).await.unwrap().is_empty());
        assert!(layout.link(&layer).exists());
        drop(store);

        let store = FsStore::open(root.path()).await.unwrap();
        assert!(store.links(&a, LinkKind::Layer).await.unwrap().is_empty());
        assert!(store.tags(&a).await.unwrap().is_empty());
        assert!(store.repositories().await.unwrap().is_empty());
        assert!(!layout.repository(&a).exists());
        assert!(files(&layout.spool()).is_empty());
        drop(store);
        fs::remove_file(layout.lock()).unwrap();
    }
}

#[cfg(unix)]
fn circle(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(path.file_name().unwrap(), path).unwrap();
}

#[cfg(unix)]
#[tokio::test]
async fn what_can_not_be_read_is_left_out_and_can_be_removed() {
    let root = tempfile::tempdir().unwrap();
    let layout = Layout::new(root.path());
    let store = FsStore::open(root.path()).await.unwrap();
    let (a, good) = (repo("a"), digest("good"));
    put(&store, &good, "good".into()).await.unwrap();
    store.link(&link("a", LinkKind::Layer, good)).await.unwrap();
    store.set_tag(&a, &tag("good"), &good).await.unwrap();

    let (file, directory) = (digest("file"), digest("directory"));
    let in_circle = link("a", LinkKind::Layer, digest("link"));
    circle(&layout.blob(&file));
    circle(&layout.blob_dir(&directory));
    circle(&layout.link(&in_circle));
    circle(&layout.tag_current(&a, &tag("bad")));

    let mut blobs = Vec::new();
    for first in 0..=u8::MAX {
        blobs.extend(store.blobs(first).await.unwrap());
    }
    assert_eq!(blobs, [(good, 4)]);
    assert_eq!(store.links(&a, LinkKind::Layer).await.unwrap(), [good]);
    assert_eq!(store.tags(&a).await.unwrap(), [tag("good")]);
    let unreadable = store.unreadable().await.unwrap();
    let mut entries: Vec<_> = unreadable.iter().map(|it| it.entry.clone()).collect();
    for entry in [
        UnreadableEntry::Blob(file),
        UnreadableEntry::Blob(directory),
        UnreadableEntry::Link(in_circle.clone()),
        UnreadableEntry::Tag(a.clone(), tag("bad")),
    ] {
        let known = entries.iter().position(|known| *known == entry);
        entries.remove(known.unwrap());
    }
    assert_eq!(entries, []);

    // A link that is made anew takes its place, and is readable from then on.
    store.link(&in_circle).await.unwrap();
    assert!(store.linked(&in_circle).await.unwrap());
    assert_eq!(store.links(&a, LinkKind::Layer).await.unwrap().len(), 2);
    assert_eq!(store.unreadable().await.unwrap().len(), 3);

    for unreadable in unreadable {
        let removed = store.remove_unreadable(&unreadable).await.unwrap();
        match &unreadable.entry {
            UnreadableEntry::Blob(digest) => {
                assert!(!removed && store.quarantine(digest).await.unwrap());
            }
            _ => assert!(removed),
        }
    }
    assert_eq!(store.unreadable().await.unwrap(), []);
    assert_eq!(store.tags(&a).await.unwrap(), [tag("good")]);
    assert!(fs::symlink_metadata(layout.blob_dir(&directory)).is_err());
}

/// The reference registry stores by SHA-256 what is pushed by SHA-512, and links it so.
#[tokio::test]
async fn a_sha512_link_of_the_reference_registry_is_read() {
    let root = tempfile::tempdir().unwrap();
    let layout = Layout::new(root.path());
    let stored = digest("content");
    let long = Digest::of(Algorithm::Sha512, b"content");
    let wrong = Digest::of(Algorithm::Sha512, b"other");
    write(layout.blob(&stored), "content");
    for named in [long, wrong, stored] {
        let link = link("a", LinkKind::Layer, named);
        write(layout.link(&link), stored.to_string());
    }
    let store = FsStore::open(root.path()).await.unwrap();
    let links = store.links(&repo("a"), LinkKind::Layer).await.unwrap();
    assert_eq!(links, [stored, long]);
    assert!(
        store
            .linked(&link("a", LinkKind::Layer, long))
            .await
            .unwrap()
    );
    let read = read_all(&store, &long, 100).await.unwrap();
    assert_eq!(read.unwrap(), "content");
    // Each name goes by itself.
    store.remove(&stored).await.unwrap();
    assert_eq!(store.size(&long).await.unwrap(), Some(7));
    assert!(files(&layout.spool()).is_empty());
}

#[tokio::test]
async fn uploads_that_were_left_are_measured_and_removed() {
    let root = tempfile::tempdir().unwrap();
    let layout = Layout::new(root.path());
    let store = FsStore::open(root.path()).await.unwrap();
    store
        .link(&link("a/b", LinkKind::Layer, digest("x")))
        .await
        .unwrap();
    let then = SystemTime::UNIX_EPOCH + std::time::Duration::from_hours(1000);
    // One beside content, one in a repository that has nothing else.
    for (name, id) in [("a/b", "1"), ("only/uploads", "2")] {
        let upload = layout.repository(&repo(name)).join("_uploads").join(id);
        write(upload.join("data"), "12345");
        write(upload.join("startedat"), "67");
        write(upload.join("hashstates/sha256/0"), "8");
        let times = fs::FileTimes::new().set_modified(then);
        for path in [
            "data",
            "startedat",
            "hashstates/sha256/0",
            "hashstates/sha256",
            "hashstates",
            "",
        ] {
            let file = File::open(upload.join(path)).unwrap();
            file.set_times(times).unwrap();
        }
    }
    let uploads = store.uploads().await.unwrap();
    assert_eq!(uploads.len(), 2);
    assert!(
        uploads
            .iter()
            .all(|upload| upload.bytes == 8 && upload.modified == then)
    );
    for upload in uploads {
        assert!(store.remove_upload(&upload).await.unwrap());
    }
    assert_eq!(store.uploads().await.unwrap(), []);
    assert_eq!(store.repositories().await.unwrap(), [repo("a/b")]);
    assert!(!layout.repositories().join("only").exists());
}

#[tokio::test]
async fn an_inspection_creates_nothing() {
    let root = tempfile::tempdir().unwrap();
    let error = FsStore::inspect(root.path().join("nowhere"))
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Missing { .. }), "{error:?}");
    assert!(!root.path().join("nowhere").exists());

    reference_directory(root.path());
    let layout = Layout::new(root.path());
    write(layout.staged(StageName::new(&digest("x"), "u")), "half");
    let before = files(root.path());
    let store = FsStore::inspect(root.path()).await.unwrap();
    assert_eq!(
        store.repositories().await.unwrap(),
        [repo("library/debian")]
    );
    drop(store);
    assert_eq!(files(root.path()), before);

    let server = FsStore::open(root.path()).await.unwrap();
    let error = FsStore::inspect(root.path()).await.unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error:?}");
    drop(server);
    FsStore::inspect(root.path()).await.unwrap();
}

#[cfg(unix)]
mod permissions {
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
        let mut unseen = vec![root.to_owned()];
        while let Some(path) = unseen.pop() {
            let mode = fs::metadata(&path).unwrap().mode() & 0o7777;
            if path.is_dir() {
                unseen.extend(fs::read_dir(&path).unwrap().map(|it| it.unwrap().path()));
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
        let above = [
            root.path().to_owned(),
            root.path().join("docker"),
            root.path().join("docker/registry"),
        ];
        above.iter().chain([&v2]).for_each(|path| set(path, 0o2775));
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
}

/// An hour that is long over, for whoever compares times of files.
fn age(path: &Path) {
    let then = SystemTime::UNIX_EPOCH + std::time::Duration::from_hours(1);
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(then).unwrap();
}

/// The file has been written anew. Its time may be in the same tick of the clock as the change.
fn later(path: &Path) {
    let file = File::options().write(true).open(path).unwrap();
    let written = file.metadata().unwrap().modified().unwrap();
    assert!(written > SystemTime::UNIX_EPOCH + std::time::Duration::from_hours(2));
    let tick = std::time::Duration::from_secs(1);
    file.set_modified(written + tick).unwrap();
}

#[tokio::test]
async fn links_of_another_upstream_count_when_they_are_made_anew() {
    let root = tempfile::tempdir().unwrap();
    let layout = Layout::new(root.path());
    let upstreams = |url: &str| -> BTreeMap<String, String> {
        [("", url), ("x.y", "https://x.y")]
            .map(|(name, url)| (name.to_owned(), url.to_owned()))
            .into()
    };
    let (ours, named) = (
        link("a/b", LinkKind::Layer, digest("x")),
        link("x.y/a", LinkKind::Layer, digest("x")),
    );
    let latest = tag("latest");
    let store = FsStore::open(root.path()).await.unwrap();
    let changes = store.set_upstreams(upstreams("https://one")).await.unwrap();
    assert_eq!(changes, []);
    for link in [&ours, &named] {
        store.link(link).await.unwrap();
        store
            .set_tag(&link.repo, &latest, &link.digest)
            .await
            .unwrap();
        age(&layout.link(link));
        age(&layout.tag_current(&link.repo, &latest));
    }
    let unproved =
        async |store: &FsStore, link: &Link| store.unproved(&link.repo, link.kind).await.unwrap();
    assert_eq!(unproved(&store, &ours).await, []);
    drop(store);

    // It stays so over more than one start.
    for start in 0..2 {
        let store = FsStore::open(root.path()).await.unwrap();
        let changes = store.set_upstreams(upstreams("https://two")).await.unwrap();
        assert_eq!(changes.len(), usize::from(start == 0));
        assert!(!store.linked(&ours).await.unwrap() && store.linked(&named).await.unwrap());
        assert_eq!(unproved(&store, &ours).await, [ours.digest]);
        assert_eq!(unproved(&store, &named).await, []);
        let known = store.links(&ours.repo, LinkKind::Layer).await.unwrap();
        assert_eq!(known, [ours.digest]);
        assert_eq!(store.tag(&ours.repo, &latest).await.unwrap(), None);
        assert!(store.tags(&ours.repo).await.unwrap().is_empty());
        let tags = store.tags(&named.repo).await.unwrap();
        assert_eq!(tags, std::slice::from_ref(&latest));
    }
    let store = FsStore::open(root.path()).await.unwrap();
    store.set_upstreams(upstreams("https://two")).await.unwrap();
    store.link(&ours).await.unwrap();
    store
        .set_tag(&ours.repo, &latest, &ours.digest)
        .await
        .unwrap();
    later(&layout.link(&ours));
    later(&layout.tag_current(&ours.repo, &latest));
    assert!(store.linked(&ours).await.unwrap());
    assert_eq!(unproved(&store, &ours).await, []);
    assert_eq!(
        store.tag(&ours.repo, &latest).await.unwrap(),
        Some(ours.digest)
    );
}

#[tokio::test]
async fn a_damaged_blob_is_told_apart_and_replaced() {
    let root = tempfile::tempdir().unwrap();
    let store = FsStore::open(root.path()).await.unwrap();
    let blob = digest("blob");
    let path = Layout::new(root.path()).blob(&blob);

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
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(1)
        .unwrap();
    assert_eq!(open.size, 4);
    assert_eq!(open.reader.read_at(0, 4).await.unwrap(), "b");
    assert!(open.reader.read_at(1, 3).await.unwrap().is_empty());
}

#[tokio::test]
async fn leftovers_in_the_spool_are_swept_at_the_start() {
    let root = tempfile::tempdir().unwrap();
    let layout = Layout::new(root.path());
    write(layout.staged(StageName::new(&digest("x"), "u")), "half");
    write(layout.draft(4), "sha2");
    write(layout.draft(0), "");
    write(layout.spool().join("notes.txt"), "keep");
    let store = FsStore::open(root.path()).await.unwrap();
    let left = files(&layout.spool());
    assert_eq!(left, [("notes.txt".to_owned(), "keep".to_owned())]);
    assert!(store.open(&digest("x")).await.unwrap().is_none());
}

#[tokio::test]
async fn one_process_at_a_time() {
    let root = tempfile::tempdir().unwrap();
    let layout = Layout::new(root.path());
    let store = FsStore::open(root.path()).await.unwrap();
    let stage = store.stage(&digest("x"), "u").await.unwrap();
    // Locks belong to open files, so a second one here is like one in another process.
    let error = FsStore::open(root.path()).await.unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error:?}");
    assert!(
        error
            .to_string()
            .contains(&root.path().display().to_string())
    );
    assert_eq!(
        files(&layout.spool()).len(),
        1,
        "nothing of the first is swept"
    );
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
    let cases = [file.join("root"), file.clone()];
    for root in cases {
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

#[cfg(unix)]
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

#[cfg(unix)]
#[tokio::test]
async fn the_umask_restricts_what_a_new_directory_gets() {
    use std::os::unix::fs::PermissionsExt as _;

    let root = tempfile::tempdir().unwrap();
    let store = FsStore::open(root.path()).await.unwrap();
    let blob = digest("blob");
    put(&store, &blob, "blob".into()).await.unwrap();
    // What the umask of this process makes of a plain file.
    write(root.path().join("plain"), "");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        mode(&Layout::new(root.path()).blob(&blob)),
        mode(&root.path().join("plain")) & 0o640
    );
}

#[cfg(unix)]
#[tokio::test]
async fn the_first_of_two_commits_keeps_its_file() {
    use std::os::unix::fs::MetadataExt as _;

    let root = tempfile::tempdir().unwrap();
    let store = FsStore::open(root.path()).await.unwrap();
    let blob = digest("blob");
    let path = Layout::new(root.path()).blob(&blob);
    put(&store, &blob, "blob".into()).await.unwrap();
    let first = fs::metadata(&path).unwrap().ino();
    // Open, so that its number can't be given to another file.
    let open = store.open(&blob).await.unwrap();
    put(&store, &blob, "blob".into()).await.unwrap();
    assert_eq!(fs::metadata(&path).unwrap().ino(), first);
    drop(open);
    assert!(
        disk::list(&Layout::new(root.path()).spool())
            .unwrap()
            .is_empty()
    );
}
