//! Uploads: files that grow at their end, and become blobs.

use bytes::Bytes;

use super::*;
use crate::oci::UploadId;
use crate::storage::{Modified, Placing, Tagging, UploadFile};

const KEEP: Placing = Placing {
    sync: false,
    replace: false,
};

fn id(number: u8) -> UploadId {
    UploadId::from_random([number; 16])
}

async fn start(store: &dyn Store, number: u8) -> Box<dyn UploadFile> {
    let started = std::time::SystemTime::UNIX_EPOCH;
    let (repo, id) = (repo("ci/app"), id(number));
    store.start_upload(&repo, &id, started).await.unwrap()
}

async fn append(mut upload: Box<dyn UploadFile>, text: &'static str) -> Box<dyn UploadFile> {
    let append = move || {
        let (one, two) = text.split_at(text.len() / 2);
        let chunks = [one, "", two].map(|text| Bytes::from_static(text.as_bytes()));
        upload.append(&chunks).map(|()| upload)
    };
    blocking(append).await.unwrap()
}

async fn commit(upload: Box<dyn UploadFile>, digest: Digest, placing: Placing) -> Option<Modified> {
    let commit = move || upload.commit(&digest, placing);
    blocking(commit).await.unwrap()
}

pub(super) async fn an_upload_grows_and_becomes_a_blob(store: &dyn Store) {
    for placing in [KEEP, Placing { sync: true, ..KEEP }] {
        let upload = append(start(store, 1).await, "hello ").await;
        drop(upload);
        let opened = store.open_upload(&repo("ci/app"), &id(1)).await.unwrap();
        let opened = opened.unwrap();
        assert_eq!(opened.size(), 6);
        let opened = append(opened, "world").await;
        let content = opened.content();
        assert_eq!(content.read_at(0, 100).await.unwrap(), "hello world");
        let digest = digest("hello world");
        assert!(commit(opened, digest, placing).await.is_some());
        store.publish(&[digest], &[], None).await.unwrap();
        let read = read_all(store, &digest, 100).await.unwrap().unwrap();
        assert_eq!(read, "hello world");
        assert_eq!(content.read_at(0, 100).await.unwrap(), "hello world");
        let gone = store.open_upload(&repo("ci/app"), &id(1)).await.unwrap();
        assert!(gone.is_none());
        assert_eq!(store.uploads().await.unwrap(), []);
        assert!(store.remove(&digest).await.unwrap());
    }
}

pub(super) async fn a_blob_is_replaced_where_that_is_asked(store: &dyn Store) {
    let digest = digest("right");
    put(store, &digest, Bytes::from_static(b"wrong"))
        .await
        .unwrap();
    let upload = append(start(store, 1).await, "right").await;
    assert_eq!(commit(upload, digest, KEEP).await, None);
    let read = || async { read_all(store, &digest, 100).await.unwrap().unwrap() };
    assert_eq!(read().await, "wrong");
    let upload = append(start(store, 1).await, "right").await;
    let placing = Placing {
        replace: true,
        ..KEEP
    };
    assert!(commit(upload, digest, placing).await.is_some());
    assert_eq!(read().await, "right");
    // One of another size can't be right.
    put(store, &digest, Bytes::from_static(b"longer"))
        .await
        .unwrap();
    let upload = append(start(store, 1).await, "right").await;
    assert!(commit(upload, digest, KEEP).await.is_some());
    assert_eq!(read().await, "right");
}

pub(super) async fn uploads_are_listed_and_cancelled(store: &dyn Store) {
    let one = append(start(store, 1).await, "four").await;
    let two = start(store, 2).await;
    let mut listed = store.uploads().await.unwrap();
    listed.sort_by_key(|upload| upload.session.clone());
    let sessions: Vec<_> = listed.iter().map(|upload| upload.session.clone()).collect();
    assert_eq!(sessions, [1, 2].map(|n| Some((repo("ci/app"), id(n)))));
    assert!(listed[0].bytes >= 4);
    assert_eq!(store.repositories().await.unwrap(), []);
    drop((one, two));
    assert!(store.cancel_upload(&repo("ci/app"), &id(1)).await.unwrap());
    assert!(!store.cancel_upload(&repo("ci/app"), &id(1)).await.unwrap());
    assert!(!store.cancel_upload(&repo("ci"), &id(2)).await.unwrap());
    assert!(store.remove_upload(&listed[1]).await.unwrap());
    assert!(!store.remove_upload(&listed[1]).await.unwrap());
    assert_eq!(store.uploads().await.unwrap(), []);
}

pub(super) async fn tags_name_what_is_published(store: &dyn Store) {
    let (repo, text) = (repo("ci/app"), "a manifest");
    let content = Bytes::from_static(text.as_bytes());
    let [digest, before] = [text, "another one"].map(digest);
    assert!(store.write_blob(&digest, content.clone()).await.unwrap());
    assert!(!store.write_blob(&digest, content).await.unwrap());
    let link = Link::new(&repo, LinkKind::Revision, &digest);
    store.link(&link).await.unwrap();
    let [new, old]: [Tag; 2] = ["new", "old"].map(|tag| tag.parse().unwrap());
    store.set_tag(&repo, &old, &before).await.unwrap();
    let tagging = Tagging {
        repo: repo.clone(),
        tags: vec![new.clone(), old.clone()],
        digest,
    };
    // The second time nothing is left to do.
    for _ in 0..2 {
        let (blobs, links) = ([digest], [link.clone()]);
        let published = store.publish(&blobs, &links, Some(&tagging));
        published.await.unwrap();
        for tag in [&new, &old] {
            assert_eq!(store.tag(&repo, tag).await.unwrap(), Some(digest));
        }
    }
    let read = read_all(store, &digest, 100).await.unwrap().unwrap();
    assert_eq!(read, text);
    for tag in [&new, &old] {
        assert!(store.remove_tag(&repo, tag).await.unwrap());
    }
}
