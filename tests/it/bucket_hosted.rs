//! Hosted repositories of several replicas with a bucket: what a success promises, and what others read.

use crate::harness::replicas::Replicas;
use crate::harness::{ALWAYS, Registry, Reply, blob_path, digest, eventually, noise};
use crate::replicas_hosted::{client, manifest_of};

pub(crate) const V2: &str = "docker/registry/v2";

/// Replicas of hosted repositories, of which the first is the writer, and their bucket.
pub(crate) async fn shared(count: usize, lines: &[&str]) -> (Replicas, Registry) {
    let bucket = Registry::start().await;
    bucket.be_bucket("shared");
    let replicas = Replicas::hosted_with(count, lines, |setup| setup.bucket(&bucket)).await;
    (replicas, bucket)
}

pub(crate) fn tag_key(repo: &str, tag: &str) -> String {
    format!("{V2}/repositories/{repo}/_manifests/tags/{tag}/current/link")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pushed_can_be_pulled_without_the_writer() {
    let (replicas, bucket) = shared(3, &[]).await;
    let manifest = client(&replicas, 1).push("ci/app", "1", 1).await;
    // Right after the 201.
    let named = bucket.object(&tag_key("ci/app", "1")).unwrap();
    assert_eq!(named, digest(&manifest).to_string());
    replicas.relays[0].kill();
    let layer = noise(1, 100_000);
    let path = blob_path("ci/app", &layer);
    for mirror in &replicas.mirrors[1..] {
        for reference in ["1", &digest(&manifest).to_string()] {
            let path = format!("/v2/ci/app/manifests/{reference}");
            mirror.serves(&path, &manifest).await;
            mirror.head(&path).await.expect(200, b"");
        }
        mirror.head(&path).await.has("content-length", layer.len());
        mirror.serves(&path, &layer).await;
        mirror
            .range(&path, "bytes=10-19")
            .await
            .expect(206, &layer[10..20]);
        // What the bucket lacks is the writer's to say.
        mirror
            .get("/v2/ci/app/manifests/2")
            .await
            .refused(503, "UNAVAILABLE");
    }
    replicas.idle().await;
    bucket.take();
    let last = &replicas.mirrors[2];
    last.serves(&path, &layer).await;
    last.serves("/v2/ci/app/manifests/1", &manifest).await;
    // The content is cached; the link and the tag are asked for, without their bodies.
    let asked = bucket.seen("GET ");
    assert_eq!(asked.len(), 2, "{:?}", bucket.lines());
    assert!(
        asked
            .iter()
            .all(|seen| seen.header("if-none-match").is_some())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moves_is_seen_by_the_next_request() {
    let (replicas, _bucket) = shared(2, &[]).await;
    let other = &replicas.mirrors[1];
    for seed in 1..4 {
        let manifest = client(&replicas, 0).push("ci/app", "1", seed).await;
        other.serves("/v2/ci/app/manifests/1", &manifest).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_writer_reads_what_it_lacks_from_the_bucket() {
    let space = "root.hosted: [{name: ci, repositories: ['ci/**'], immutable: ['v*']}]";
    let (before, bucket) = shared(1, &[space]).await;
    let manifest = client(&before, 0).push("ci/app", "v1", 1).await;
    let after = Replicas::hosted_with(1, &[space], |setup| setup.bucket(&bucket)).await;
    let writer = &after.mirrors[0];
    for reference in ["v1", &digest(&manifest).to_string()] {
        writer
            .serves(&format!("/v2/ci/app/manifests/{reference}"), &manifest)
            .await;
    }
    let layer = noise(1, 100_000);
    writer.serves(&blob_path("ci/app", &layer), &layer).await;
    // A tag that moved meanwhile is the bucket's, and an immutable one stays.
    let moved = client(&before, 0).push("ci/app", "1", 2).await;
    client(&after, 0).push("ci/app", "1", 3).await;
    writer.head("/v2/ci/app/manifests/1").await.expect(200, b"");
    bucket.put_object(&tag_key("ci/app", "1"), digest(&moved).to_string());
    writer.serves("/v2/ci/app/manifests/1", &moved).await;
    let other = manifest_of(&layer, &[], None);
    let refused = client(&after, 0).put_manifest("ci/app", "v1", &other).await;
    refused.refused(409, "DENIED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_the_bucket_does_not_take_has_no_success() {
    let (replicas, bucket) = shared(2, &[]).await;
    let first = client(&replicas, 0).push("ci/app", "1", 1).await;
    bucket.reply(
        &format!("PUT /shared/{V2}/repositories"),
        ALWAYS,
        Reply::error(503),
    );
    let config = noise(7, 100);
    let blob = client(&replicas, 1);
    let manifest = manifest_of(&config, &[], None);
    blob.push_blob("ci/app", &config).await;
    let refused = blob.put_manifest("ci/app", "1", &manifest).await;
    assert_eq!(refused.status, 503);
    replicas.mirrors[1]
        .serves("/v2/ci/app/manifests/1", &first)
        .await;
    bucket.behave();
    blob.put_manifest("ci/app", "1", &manifest)
        .await
        .expect(201, b"");
    replicas.mirrors[1]
        .serves("/v2/ci/app/manifests/1", &manifest)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_is_gone_for_all_replicas() {
    let (replicas, bucket) = shared(3, &[]).await;
    let client = client(&replicas, 0);
    let manifest = client.push("ci/app", "1", 1).await;
    let again = client.push("ci/app", "2", 2).await;
    let by_digest = format!("/v2/ci/app/manifests/{}", digest(&again));
    for mirror in &replicas.mirrors {
        mirror.serves("/v2/ci/app/manifests/1", &manifest).await;
        mirror.serves(&by_digest, &again).await;
    }
    let deleted = replicas.mirrors[1].ask("DELETE /v2/ci/app/manifests/1", &[]);
    deleted.await.expect(202, b"");
    let line = format!("DELETE {by_digest}");
    let deleted = replicas.mirrors[2].ask(&line, &[]);
    deleted.await.expect(202, b"");
    for mirror in &replicas.mirrors {
        for path in [
            "/v2/ci/app/manifests/1",
            "/v2/ci/app/manifests/2",
            &by_digest,
        ] {
            mirror.get(path).await.refused(404, "MANIFEST_UNKNOWN");
        }
    }
    assert_eq!(bucket.object(&tag_key("ci/app", "1")), None);
    assert_eq!(bucket.object(&tag_key("ci/app", "2")), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_other_replicas_remove_stays_in_the_bucket() {
    let (replicas, bucket) = shared(2, &["storage.maxsize: 1MiB"]).await;
    let client = client(&replicas, 0);
    let mut pushed = Vec::new();
    for seed in 0..5 {
        pushed.push(client.push(&format!("ci/app-{seed}"), "1", seed).await);
    }
    let other = &replicas.mirrors[1];
    for (seed, manifest) in pushed.iter().enumerate() {
        let repo = format!("ci/app-{seed}");
        other
            .serves(&format!("/v2/{repo}/manifests/1"), manifest)
            .await;
        let layer = noise(seed as u64, 100_000);
        other.serves(&blob_path(&repo, &layer), &layer).await;
    }
    other.idle().await;
    let keys = bucket.keys().len();
    let removed = "millpond_cache_evictions_total{reason=\"maxsize\"}";
    // More than there is room for: copies go.
    for seed in 0..30 {
        let (blob, path) = crate::harness::put_blob(&replicas.up, 100 + seed, 100_000);
        other.pull(&path, &blob).await;
    }
    eventually("an eviction", || other.metric(removed) > 0).await;
    let links = |bucket: &Registry| {
        let keys = bucket.keys().into_iter();
        keys.filter(|key| key.contains("/ci/")).count()
    };
    assert!(bucket.keys().len() >= keys);
    assert_eq!(links(&bucket), 5 * 5);
    for (seed, manifest) in pushed.iter().enumerate() {
        other
            .serves(&format!("/v2/ci/app-{seed}/manifests/1"), manifest)
            .await;
    }
}
