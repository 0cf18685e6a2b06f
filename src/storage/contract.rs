//! What every store must do, as one suite that each of them runs.

use std::sync::Arc;

use bytes::Bytes;
use tempfile::TempDir;

use super::{
    Content, Link, LinkKind, Partial, Reader, Stage, Store, StoreError, blocking, put, read_all,
};
use crate::oci::{Algorithm, Digest, RangeSet, RepoName, Tag};

mod staging;
mod uploads;

/// Runs the suite. Each part gets a new, empty store; the directory lives as long as the part.
pub async fn holds(make: impl AsyncFn() -> (Arc<dyn Store>, Option<TempDir>)) {
    macro_rules! parts {
        ($($part:path),* $(,)?) => {$(
            let (store, directory) = make().await;
            $part(store.as_ref()).await;
            drop((store, directory));
        )*};
    }
    parts!(
        an_empty_store_has_nothing,
        a_committed_blob_is_read_back,
        an_empty_blob_can_be_stored,
        a_commit_replaces_a_blob_of_another_size,
        a_removed_blob_is_read_to_its_end,
        a_quarantined_blob_is_gone_and_may_come_back,
        whole_reads_are_bounded,
        links_belong_to_a_repository_and_a_kind,
        tags_name_one_digest_at_a_time,
        listings_are_sorted,
        blobs_are_listed_by_their_first_byte,
        repositories_nest_and_go_with_their_last_entry,
        staging::a_stage_is_read_while_it_grows,
        staging::a_dropped_stage_leaves_nothing,
        staging::stages_of_two_upstreams_are_apart,
        staging::there_is_one_stage_for_a_digest_and_upstream,
        staging::a_second_commit_changes_nothing,
        staging::parts_are_written_in_any_order,
        staging::a_write_past_every_offset_ends_the_stage,
        staging::a_left_stage_is_resumed,
        staging::a_stage_without_a_checkpoint_is_not_left,
        staging::a_new_stage_takes_the_place_of_a_partial,
        staging::a_commit_removes_every_partial,
        staging::a_partial_belongs_to_one_upstream,
        staging::partials_are_listed_in_order_and_discarded,
        uploads::an_upload_grows_and_becomes_a_blob,
        uploads::a_blob_is_replaced_where_that_is_asked,
        uploads::uploads_are_listed_and_cancelled,
        uploads::tags_name_what_is_published,
    );
}

pub(super) fn digest(content: &str) -> Digest {
    Digest::of(Algorithm::Sha256, content.as_bytes())
}

pub(super) fn repo(name: &str) -> RepoName {
    name.parse().unwrap()
}

pub(super) fn tag(name: &str) -> Tag {
    name.parse().unwrap()
}

pub(super) fn link(name: &str, kind: LinkKind, digest: Digest) -> Link {
    Link::new(&repo(name), kind, &digest)
}

/// What was downloaded from the upstream `u` of a blob of `total` bytes.
pub(super) fn partial(total: u64, ranges: &[(u64, u64)]) -> Partial {
    let mut set = RangeSet::new();
    for (start, end) in ranges {
        set.insert(*start, *end);
    }
    Partial {
        upstream: "u".into(),
        total,
        ranges: set,
    }
}

/// A stage of the upstream `u` that begins with `content`.
async fn staged(store: &dyn Store, digest: &Digest, content: &'static str) -> Box<dyn Stage> {
    write(store.stage(digest, "u").await.unwrap(), 0, &[content]).await
}

/// Writes on the blocking pool, as callers do.
async fn write(mut stage: Box<dyn Stage>, offset: u64, chunks: &[&'static str]) -> Box<dyn Stage> {
    let chunks: Vec<_> = chunks.iter().map(|chunk| Bytes::from(*chunk)).collect();
    blocking(move || {
        stage.write_at(offset, &chunks)?;
        Ok(stage)
    })
    .await
    .unwrap()
}

async fn commit(stage: Box<dyn Stage>) {
    blocking(move || stage.commit()).await.unwrap();
}

async fn text(reader: &Reader, offset: u64, max: usize) -> String {
    let bytes = reader.read_at(offset, max).await.unwrap();
    assert!(bytes.len() <= max);
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn an_empty_store_has_nothing(store: &dyn Store) {
    let nothing = digest("nothing");
    let nobody = repo("nobody");
    assert!(store.open(&nothing).await.unwrap().is_none());
    assert_eq!(store.size(&nothing).await.unwrap(), None);
    assert_eq!(read_all(store, &nothing, 9).await.unwrap(), None);
    assert!(!store.remove(&nothing).await.unwrap());
    assert_eq!(store.tag(&nobody, &tag("t")).await.unwrap(), None);
    assert!(!store.remove_tag(&nobody, &tag("t")).await.unwrap());
    assert!(store.tags(&nobody).await.unwrap().is_empty());
    for kind in [LinkKind::Layer, LinkKind::Revision] {
        let link = link("nobody", kind, nothing);
        assert!(!store.linked(&link).await.unwrap());
        assert!(!store.unlink(&link).await.unwrap());
        assert!(store.links(&nobody, kind).await.unwrap().is_empty());
    }
    assert!(store.repositories().await.unwrap().is_empty());
}

async fn a_committed_blob_is_read_back(store: &dyn Store) {
    for algorithm in Algorithm::ALL {
        let digest = Digest::of(algorithm, b"0123456789");
        let stage = store.stage(&digest, "u").await.unwrap();
        let stage = write(stage, 0, &["0123", "", "45"]).await;
        let stage = write(stage, 6, &[]).await;
        let stage = write(stage, 6, &["6789"]).await;
        assert!(store.open(&digest).await.unwrap().is_none());
        assert_eq!(store.size(&digest).await.unwrap(), None);
        commit(stage).await;

        assert_eq!(store.size(&digest).await.unwrap(), Some(10));
        let Content { size, reader, .. } = store.open(&digest).await.unwrap().unwrap();
        assert_eq!(size, 10);
        for (offset, max, expected) in [
            (0, 10, "0123456789"),
            (3, 4, "3456"),
            (8, 100, "89"),
            (10, 1, ""),
            (u64::MAX, 1, ""),
            (0, 0, ""),
        ] {
            assert_eq!(text(&reader, offset, max).await, expected);
        }
        assert!(store.remove(&digest).await.unwrap());
        assert!(!store.remove(&digest).await.unwrap());
        assert_eq!(store.size(&digest).await.unwrap(), None);
    }
}

async fn an_empty_blob_can_be_stored(store: &dyn Store) {
    put(store, &digest(""), Bytes::new()).await.unwrap();
    assert_eq!(store.size(&digest("")).await.unwrap(), Some(0));
    let whole = read_all(store, &digest(""), 0).await.unwrap();
    assert_eq!(whole, Some(Bytes::new()));
}

async fn a_commit_replaces_a_blob_of_another_size(store: &dyn Store) {
    let digest = digest("abc");
    commit(staged(store, &digest, "ab").await).await;
    let damaged = store.open(&digest).await.unwrap().unwrap();
    commit(staged(store, &digest, "abc").await).await;
    let Content { size, reader, .. } = store.open(&digest).await.unwrap().unwrap();
    assert_eq!((size, &*text(&reader, 0, 9).await), (3, "abc"));
    assert_eq!(text(&damaged.reader, 0, 9).await, "ab");
}

async fn a_quarantined_blob_is_gone_and_may_come_back(store: &dyn Store) {
    let digest = digest("whole");
    assert!(!store.quarantine(&digest).await.unwrap());
    let link = link("a", LinkKind::Layer, digest);
    store.link(&link).await.unwrap();
    for _ in 0..2 {
        // The store doesn't hash: what is committed may be anything.
        put(store, &digest, "holed".into()).await.unwrap();
        let Content { reader, .. } = store.open(&digest).await.unwrap().unwrap();
        assert!(store.quarantine(&digest).await.unwrap());
        assert!(!store.quarantine(&digest).await.unwrap());
        assert!(store.open(&digest).await.unwrap().is_none());
        assert_eq!(store.size(&digest).await.unwrap(), None);
        assert!(store.blobs(digest.first_byte()).await.unwrap().is_empty());
        assert_eq!(text(&reader, 0, 9).await, "holed");
    }
    assert!(store.linked(&link).await.unwrap());
    put(store, &digest, "whole".into()).await.unwrap();
    assert_eq!(read_all(store, &digest, 9).await.unwrap().unwrap(), "whole");
}

async fn a_removed_blob_is_read_to_its_end(store: &dyn Store) {
    let digest = digest("abc");
    put(store, &digest, "abc".into()).await.unwrap();
    let open = store.open(&digest).await.unwrap().unwrap();
    assert!(store.remove(&digest).await.unwrap());
    assert_eq!(text(&open.reader, 0, 9).await, "abc");
    // And it can come back.
    put(store, &digest, "abc".into()).await.unwrap();
    assert_eq!(store.size(&digest).await.unwrap(), Some(3));
}

async fn whole_reads_are_bounded(store: &dyn Store) {
    // Longer than one read returns, so that it takes several.
    let content = Bytes::from(vec![b'x'; super::MAX_READ * 2 + 1]);
    let size = content.len() as u64;
    let digest = Digest::of(Algorithm::Sha256, &content);
    put(store, &digest, content.clone()).await.unwrap();
    let whole = read_all(store, &digest, size).await.unwrap();
    assert!(whole == Some(content));
    let error = read_all(store, &digest, size - 1).await.unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error:?}");
}

async fn links_belong_to_a_repository_and_a_kind(store: &dyn Store) {
    let blob = digest("blob");
    let mine = link("a", LinkKind::Layer, blob);
    store.link(&mine).await.unwrap();
    store.link(&mine).await.unwrap();
    assert!(store.linked(&mine).await.unwrap());
    for other in [
        link("a", LinkKind::Revision, blob),
        link("b", LinkKind::Layer, blob),
        link("a/a", LinkKind::Layer, blob),
        link("a", LinkKind::Layer, digest("other")),
    ] {
        assert!(!store.linked(&other).await.unwrap(), "{other:?}");
        assert!(!store.unlink(&other).await.unwrap(), "{other:?}");
    }
    assert_eq!(store.size(&blob).await.unwrap(), None);

    // A blob goes without its links, and links without their blob.
    put(store, &blob, "blob".into()).await.unwrap();
    store.remove(&blob).await.unwrap();
    assert!(store.linked(&mine).await.unwrap());
    put(store, &blob, "blob".into()).await.unwrap();
    assert!(store.unlink(&mine).await.unwrap());
    assert!(!store.unlink(&mine).await.unwrap());
    assert!(!store.linked(&mine).await.unwrap());
    assert_eq!(store.size(&blob).await.unwrap(), Some(4));
}

async fn tags_name_one_digest_at_a_time(store: &dyn Store) {
    let (old, new) = (digest("old"), digest("new"));
    let (a, latest) = (repo("a"), tag("latest"));
    for digest in [old, old, new] {
        store.set_tag(&a, &latest, &digest).await.unwrap();
        assert_eq!(store.tag(&a, &latest).await.unwrap(), Some(digest));
    }
    store.set_tag(&a, &tag("Latest.1"), &old).await.unwrap();
    assert_eq!(store.tag(&a, &latest).await.unwrap(), Some(new));
    assert_eq!(store.tag(&repo("b"), &latest).await.unwrap(), None);

    assert!(store.remove_tag(&a, &latest).await.unwrap());
    assert!(!store.remove_tag(&a, &latest).await.unwrap());
    assert_eq!(store.tag(&a, &latest).await.unwrap(), None);
    assert_eq!(store.tags(&a).await.unwrap(), [tag("Latest.1")]);
    store.set_tag(&a, &latest, &old).await.unwrap();
    assert_eq!(store.tag(&a, &latest).await.unwrap(), Some(old));
}

async fn listings_are_sorted(store: &dyn Store) {
    let a = repo("a");
    let mut digests: Vec<_> = (0..20).map(|n| digest(&n.to_string())).collect();
    digests.push(Digest::of(Algorithm::Sha512, b""));
    for digest in &digests {
        let layer = link("a", LinkKind::Layer, *digest);
        store.link(&layer).await.unwrap();
    }
    let revision = link("a", LinkKind::Revision, digest("m"));
    store.link(&revision).await.unwrap();
    digests.sort_unstable();
    assert_eq!(store.links(&a, LinkKind::Layer).await.unwrap(), digests);
    let revisions = store.links(&a, LinkKind::Revision).await.unwrap();
    assert_eq!(revisions, [digest("m")]);

    for name in ["b", "10", "a", "9", "_x", "Z"] {
        store.set_tag(&a, &tag(name), &digest("m")).await.unwrap();
    }
    let sorted = ["10", "9", "Z", "_x", "a", "b"].map(tag);
    assert_eq!(store.tags(&a).await.unwrap(), sorted);
}

async fn blobs_are_listed_by_their_first_byte(store: &dyn Store) {
    let contents: Vec<_> = (0..40).map(|n: u32| "x".repeat(n as usize)).collect();
    let mut expected: Vec<_> = Vec::new();
    for (content, algorithm) in contents.iter().zip(Algorithm::ALL.into_iter().cycle()) {
        let digest = Digest::of(algorithm, content.as_bytes());
        put(store, &digest, content.clone().into()).await.unwrap();
        expected.push((digest, content.len() as u64));
    }
    let gone = expected.pop().unwrap().0;
    store.remove(&gone).await.unwrap();
    // A link makes no blob, and a stage is none yet.
    let linked = link("a", LinkKind::Layer, digest("elsewhere"));
    store.link(&linked).await.unwrap();
    let stage = staged(store, &digest("staged"), "staged").await;
    let mut listed = Vec::new();
    for first in 0..=u8::MAX {
        let blobs = store.blobs(first).await.unwrap();
        assert!(blobs.is_sorted());
        assert!(blobs.iter().all(|(digest, _)| digest.first_byte() == first));
        listed.extend(blobs);
    }
    drop(stage);
    listed.sort_unstable();
    expected.sort_unstable();
    assert_eq!(listed, expected);
}

async fn repositories_nest_and_go_with_their_last_entry(store: &dyn Store) {
    let blob = digest("blob");
    let entries = [
        link("ghcr.io/owner/app", LinkKind::Layer, blob),
        link("a", LinkKind::Revision, blob),
        link("a/b", LinkKind::Layer, blob),
        link("a/b", LinkKind::Revision, blob),
    ];
    for entry in &entries {
        store.link(entry).await.unwrap();
    }
    // Stored names may be longer than those a client may send.
    let long = repo(&["x"; 120].join("/")).below(&repo(&"y".repeat(250)));
    for repo in [&repo("a/b/c"), &long] {
        store.set_tag(repo, &tag("t"), &blob).await.unwrap();
    }
    let [a, b, c, d] = ["a", "a/b", "a/b/c", "ghcr.io/owner/app"].map(repo);
    let expected = [a, b, c, d, long.clone()];
    assert_eq!(store.repositories().await.unwrap(), expected);

    store.remove_tag(&long, &tag("t")).await.unwrap();
    for entry in &entries {
        store.unlink(entry).await.unwrap();
    }
    assert_eq!(store.repositories().await.unwrap(), [repo("a/b/c")]);
    store.remove_tag(&repo("a/b/c"), &tag("t")).await.unwrap();
    assert!(store.repositories().await.unwrap().is_empty());
}
