//! Hosted repositories: pushes and deletions beside the queue of uploads.

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::store::{Failure, Kind};
use super::*;
use crate::bucket::queue::Entry;
use crate::bucket::{BucketError, Upload};
use crate::cache::HostedPolicy;
use crate::oci::Tag;

/// A cache of which the repositories below `hosted/` are hosted.
fn hosting() -> Cache {
    let policy = HostedPolicy {
        repositories: vec!["hosted/**".parse().unwrap()],
        quota: None,
        grace: DAY,
        untagged: None,
        ttl: None,
        keep_newest: 0,
        keep_tags: Vec::new(),
        evictable: false,
    };
    let settings = CacheSettings {
        hosted: vec![policy],
        ..CacheSettings::unlimited()
    };
    cache_with(epoch(), settings)
}

fn entry(repo: &RepoName, digest: &Digest, tag: Option<&Tag>) -> Entry {
    Entry {
        upload: Upload::new(repo, LinkKind::Revision, digest, tag),
        is_absent: false,
    }
}

#[tokio::test(start_paused = true)]
async fn a_push_does_not_wait_for_uploads_that_pause() {
    let (world, cache, stop) = (World::new(), cache(epoch()), CancellationToken::new());
    let bucket = Arc::new(bucket(world.seen(), &cache, None));
    let digest = put_image(&cache, &repo("a"), "x").await;
    world.fail(|request| (request.kind == Kind::Put).then_some(Failure::Unavailable));
    bucket.upload(entry(&repo("a"), &digest, None).upload, false);
    let (uploader, end) = (Arc::clone(&bucket), stop.clone());
    Tasks::new().spawn_restarted("uploads", stop.clone(), move || {
        Arc::clone(&uploader).upload_all(end.clone())
    });
    // The pauses have grown to minutes.
    tokio::time::sleep(HOUR).await;
    let began = Instant::now();
    let pushed = bucket.share(&repo("a"), LinkKind::Revision, &digest).await;
    assert!(matches!(pushed, Err(BucketError::Failed(_))), "{pushed:?}");
    assert_eq!(began.elapsed(), Duration::ZERO);
    stop.cancel();
}

/// An upload that was late, or was left over from an earlier process.
#[tokio::test(start_paused = true)]
async fn an_upload_leaves_a_hosted_tag_that_has_moved_or_gone() {
    let (world, cache) = (World::new(), hosting());
    cache.complete().await;
    let bucket = bucket(world.seen(), &cache, None);
    let tag = "1".parse().unwrap();
    for (name, is_written) in [("hosted/a", false), ("mirrored", true)] {
        let repo = repo(name);
        let digest = put_image(&cache, &repo, name).await;
        let entry = entry(&repo, &digest, Some(&tag));
        bucket.upload_one(&entry).await.unwrap();
        bucket.share_tag(&repo, &tag, &digest).await.unwrap();
        assert!(world.has_link(name, &digest));
        assert_eq!(world.has(&keys::tag_current(&repo, &tag)), is_written);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_deleted_is_not_uploaded_any_more() {
    let (world, cache) = (World::new(), cache(epoch()));
    let bucket = Arc::new(bucket(world.seen(), &cache, None));
    let (repo, tag) = (repo("a"), "1".parse().unwrap());
    let digests = [
        put_image(&cache, &repo, "x").await,
        put_image(&cache, &repo, "y").await,
    ];
    for digest in &digests {
        for tag in [None, Some(&tag)] {
            bucket.upload(entry(&repo, digest, tag).upload, false);
        }
    }
    let deleted = &digests[0];
    bucket
        .unshare(&repo, LinkKind::Revision, deleted)
        .await
        .unwrap();
    let untagged = (&digests[1], false);
    bucket.unshare_tag(&repo, &tag, untagged).await.unwrap();
    let drained = CancellationToken::new();
    drained.cancel();
    Arc::clone(&bucket).upload_all(drained).await;
    assert!(!world.has_link("a", deleted));
    assert!(world.has_link("a", &digests[1]));
    assert!(!world.has(&keys::tag_current(&repo, &tag)));
}
