//! Links and tags that are damaged, of another upstream, or of another algorithm.

use super::*;

#[tokio::test]
async fn a_damaged_link_reads_as_not_there_and_is_replaced() {
    let (_root, layout, store) = new_store().await;
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
    let linked = store.linked(&layer).await.unwrap();
    assert!(linked, "only white space follows");

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
        // An inspection removes nothing.
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

fn circle(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(path.file_name().unwrap(), path).unwrap();
}

#[tokio::test]
async fn unreadable_entries_are_left_out_and_can_be_removed() {
    let (_root, layout, store) = new_store().await;
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
    let link = link("a", LinkKind::Layer, long);
    assert!(store.linked(&link).await.unwrap());
    let read = read_all(&store, &long, 100).await.unwrap();
    assert_eq!(read.unwrap(), "content");
    // Each name goes by itself.
    store.remove(&stored).await.unwrap();
    assert_eq!(store.size(&long).await.unwrap(), Some(7));
    assert!(files(&layout.spool()).is_empty());
}

/// Sets the file's modification time to long ago.
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
    let (root, layout, store) = new_store().await;
    let upstreams = |url: &str| -> BTreeMap<String, String> {
        [("", url), ("x.y", "https://x.y")]
            .map(|(name, url)| (name.to_owned(), url.to_owned()))
            .into()
    };
    let [ours, named] = ["a/b", "x.y/a"].map(|name| link(name, LinkKind::Layer, digest("x")));
    let latest = tag("latest");
    let changes = store.set_upstreams(upstreams("https://one")).await.unwrap();
    assert_eq!(changes, []);
    let make = async |store: &FsStore, link: &Link| {
        let Link { repo, digest, .. } = link;
        store.link(link).await.unwrap();
        store.set_tag(repo, &latest, digest).await.unwrap();
    };
    for link in [&ours, &named] {
        make(&store, link).await;
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
    make(&store, &ours).await;
    later(&layout.link(&ours));
    later(&layout.tag_current(&ours.repo, &latest));
    assert!(store.linked(&ours).await.unwrap());
    assert_eq!(unproved(&store, &ours).await, []);
    let tagged = store.tag(&ours.repo, &latest).await.unwrap();
    assert_eq!(tagged, Some(ours.digest));
}

/// What clients have pushed doesn't depend on who the upstream is.
#[tokio::test]
async fn links_of_hosted_repositories_outlive_a_change_of_the_upstream() {
    let (_root, _layout, store) = new_store().await;
    store.set_hosted(vec!["ci/**".parse().unwrap()]);
    let upstream = |url: &str| BTreeMap::from([(String::new(), url.to_owned())]);
    store.set_upstreams(upstream("https://one")).await.unwrap();
    let (hosted, mirrored) = (repo("ci/app"), repo("library/x"));
    for repo in [&hosted, &mirrored] {
        let link = Link::new(repo, LinkKind::Revision, &digest("x"));
        store.link(&link).await.unwrap();
        store.set_tag(repo, &tag("v1"), &digest("x")).await.unwrap();
    }
    store.set_upstreams(upstream("https://two")).await.unwrap();
    for (repo, proved) in [(&hosted, true), (&mirrored, false)] {
        let link = Link::new(repo, LinkKind::Revision, &digest("x"));
        assert_eq!(store.linked(&link).await.unwrap(), proved, "{repo}");
        assert_eq!(store.tag(repo, &tag("v1")).await.unwrap().is_some(), proved);
        let unproved = store.unproved(repo, LinkKind::Revision).await.unwrap();
        assert_eq!(unproved.is_empty(), proved, "{repo}");
    }
}

/// The layout of uploads is the reference registry's; what it wrote beside the data goes with it.
#[tokio::test]
async fn uploads_have_the_reference_registrys_layout() {
    let (root, _layout, store) = new_store().await;
    let id: UploadId = "0f8fad5b-d9cb-469f-a165-70867728950e".parse().unwrap();
    let started = SystemTime::UNIX_EPOCH + std::time::Duration::from_hours(24);
    let repo = repo("ci/app");
    drop(store.start_upload(&repo, &id, started).await.unwrap());
    let directory = format!("docker/registry/v2/repositories/ci/app/_uploads/{id}");
    let below: Vec<_> = files(root.path())
        .into_iter()
        .filter(|(path, _)| path.contains("_uploads"))
        .collect();
    let file = |name: &str, content: &str| (format!("{directory}/{name}"), content.to_owned());
    let expected = [file("data", ""), file("startedat", "1970-01-02T00:00:00Z")];
    assert_eq!(below, expected);
    write(
        root.path().join(&directory).join("hashstates/sha256/0"),
        "state",
    );
    assert!(store.cancel_upload(&repo, &id).await.unwrap());
    assert!(
        !root
            .path()
            .join("docker/registry/v2/repositories/ci")
            .exists()
    );
}
