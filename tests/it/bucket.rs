//! The bucket that replicas share: what is read of it, and what is written.

use std::time::Duration;

use bytes::Bytes;

use crate::harness::{
    ALWAYS, Gate, Image, Mirror, Registry, Reply, Setup, advance, digest, eventually, noise,
    put_blob, put_image,
};

pub(crate) const MIB: usize = 1024 * 1024;
const V2: &str = "docker/registry/v2";

/// An upstream and a bucket without content.
pub(crate) async fn registries() -> (Registry, Registry) {
    let (up, bucket) = (Registry::start().await, Registry::start().await);
    bucket.be_bucket("shared");
    (up, bucket)
}

pub(crate) fn blob_key(content: &[u8]) -> String {
    let digest = digest(content).to_string();
    let hex = digest.strip_prefix("sha256:").unwrap();
    format!("{V2}/blobs/sha256/{}/{hex}/data", hex.get(..2).unwrap())
}

pub(crate) fn link_key(repo: &str, kind: &str, content: &[u8]) -> String {
    let digest = digest(content).to_string();
    let hex = digest.strip_prefix("sha256:").unwrap();
    format!("{V2}/repositories/{repo}/{kind}/sha256/{hex}/link")
}

/// Puts content into the bucket with the link of a repository.
pub(crate) fn put(bucket: &Registry, repo: &str, kind: &str, content: &Bytes) {
    bucket.put_object(&blob_key(content), content);
    bucket.put_object(&link_key(repo, kind, content), digest(content).to_string());
}

/// Waits until everything is uploaded.
pub(crate) async fn uploaded(mirror: &Mirror) {
    mirror.idle().await;
    eventually("no uploads", || {
        mirror.metric("millpond_bucket_uploads_queued") == 0
    })
    .await;
}

fn done(mirror: &Mirror) -> u64 {
    mirror.metric("millpond_bucket_uploads_total{result=\"done\"}")
}

/// The methods and keys of the requests since the last call.
fn taken(bucket: &Registry) -> Vec<String> {
    let lines = bucket.take().into_iter();
    lines.map(|line| line.replace("/shared/", "")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pulled_is_uploaded_and_read_by_an_empty_replica() {
    let (up, bucket) = registries().await;
    let (blob, path) = put_blob(&up, 1, MIB);
    let first = Setup::new(&up).bucket(&bucket).start().await;
    first.serves(&path, &blob).await;
    uploaded(&first).await;
    assert_eq!(bucket.object(&blob_key(&blob)), Some(blob.clone()));
    let link = link_key("app", "_layers", &blob);
    assert_eq!(bucket.object(&link).unwrap(), digest(&blob).to_string());
    let mut requests = taken(&bucket);
    requests.retain(|line| !line.contains("list-type"));
    requests[..2].sort();
    let (data, link) = (blob_key(&blob), link_key("app", "_layers", &blob));
    let read = [format!("GET {data}"), format!("GET {link}")];
    let written = [format!("PUT {data}"), format!("PUT {link}")];
    assert_eq!(requests, [read, written].concat());
    up.go_down();
    up.take();
    let second = Setup::new(&up).bucket(&bucket).start().await;
    second.serves(&path, &blob).await;
    uploaded(&second).await;
    assert_eq!(up.lines(), [] as [&str; 0]);
    assert_eq!(done(&second), 0);
    let received = "millpond_source_received_bytes_total{source=\"bucket\"}";
    assert_eq!(second.metric(received), blob.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_can_be_pulled_when_all_disks_and_the_upstream_are_lost() {
    let (up, bucket) = registries().await;
    let (image, by_digest) = put_image(&up, 2);
    let first = Setup::new(&up).bucket(&bucket).start().await;
    first.serves("/v2/app/manifests/1", &image.manifest).await;
    for blob in image.blobs() {
        first
            .serves(&format!("/v2/app/blobs/{}", digest(blob)), blob)
            .await;
    }
    uploaded(&first).await;
    up.go_down();
    let second = Setup::new(&up).bucket(&bucket).start().await;
    let head = second.head("/v2/app/manifests/1").await;
    assert_eq!(head.status, 200);
    head.has("docker-content-digest", digest(&image.manifest));
    second.serves("/v2/app/manifests/1", &image.manifest).await;
    second.serves(&by_digest, &image.manifest).await;
    for blob in image.blobs() {
        second
            .serves(&format!("/v2/app/blobs/{}", digest(blob)), blob)
            .await;
    }
    let third = Setup::new(&up).bucket(&bucket).start().await;
    assert_eq!(third.head(&by_digest).await.status, 200);
    third.serves(&by_digest, &image.manifest).await;
    third
        .get("/v2/app/manifests/2")
        .await
        .refused(500, "UNAVAILABLE");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_link_the_upstream_proves_access_and_the_link_is_written() {
    let (up, bucket) = registries().await;
    let (blob, path) = put_blob(&up, 3, MIB);
    let (image, by_digest) = put_image(&up, 3);
    for content in [&blob, &image.manifest] {
        bucket.put_object(&blob_key(content), content);
    }
    let hidden = noise(4, MIB);
    bucket.put_object(&blob_key(&hidden), &hidden);
    let m = Setup::new(&up).bucket(&bucket).start().await;
    m.serves(&path, &blob).await;
    m.serves(&by_digest, &image.manifest).await;
    uploaded(&m).await;
    assert_eq!(
        up.take(),
        [format!("HEAD {path}"), format!("HEAD {by_digest}")]
    );
    let link = bucket.object(&link_key("app", "_layers", &blob));
    assert_eq!(link.unwrap(), digest(&blob).to_string());
    let link = bucket.object(&link_key("app", "_manifests/revisions", &image.manifest));
    assert_eq!(link.unwrap(), digest(&image.manifest).to_string());
    // The upstream doesn't have it, so nobody gets it.
    let path = format!("/v2/app/blobs/{}", digest(&hidden));
    m.get(&path).await.refused(404, "BLOB_UNKNOWN");
    // A link that holds no digest proves nothing.
    bucket.put_object(&link_key("app", "_layers", &hidden), "no digest");
    let fresh = Setup::new(&up).bucket(&bucket).start().await;
    fresh.get(&path).await.refused(404, "BLOB_UNKNOWN");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_claims_to_have_everything_is_given_nothing_of_others() {
    let (up, bucket) = registries().await;
    let (liar, secret) = (Registry::start().await, noise(40, MIB));
    let (image, by_digest) = put_image(&up, 40);
    put(&bucket, "app", "_layers", &secret);
    put(&bucket, "app", "_manifests/revisions", &image.manifest);
    liar.on("HEAD ", ALWAYS, |_, _| {
        Reply::ok("").with("Content-Type", testkit::media_type::OCI_MANIFEST)
    });
    let setup = Setup::new(&up).with(&["proxy.username: u", "proxy.password: p"]);
    let m = setup
        .upstream("liar", &liar, "")
        .bucket(&bucket)
        .start()
        .await;
    let path = format!("/v2/liar/app/blobs/{}", digest(&secret));
    m.get(&path).await.refused(404, "BLOB_UNKNOWN");
    let path = by_digest.replace("/v2/", "/v2/liar/");
    m.get(&path).await.refused(404, "MANIFEST_UNKNOWN");
    // Its own repositories link it.
    let path = format!("/v2/app/blobs/{}", digest(&secret));
    m.serves(&path, &secret).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_fails_costs_no_pull_and_is_left_alone() {
    let failures = [
        Reply::error(403),
        Reply::error(503),
        Reply::new(404, "<Error><Code>NoSuchBucket</Code></Error>"),
        Reply::hang_up(),
        Reply::ok("<html>").with("Content-Encoding", "gzip"),
    ];
    for (seed, failure) in failures.into_iter().enumerate() {
        let (up, bucket) = registries().await;
        bucket.reply("/docker/", ALWAYS, failure);
        let m = Setup::new(&up).bucket(&bucket).start().await;
        let (blob, path) = put_blob(&up, seed as u64, MIB);
        m.serves(&path, &blob).await;
        let (image, by_digest) = put_image(&up, seed as u64);
        m.serves(&by_digest, &image.manifest).await;
        m.serves("/v2/app/manifests/1", &image.manifest).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_bucket_the_mirror_starts_and_says_so() {
    for (status, code) in [(403, "AccessDenied"), (404, "NoSuchBucket")] {
        let (up, bucket) = registries().await;
        let refusal = Reply::new(status, format!("<Error><Code>{code}</Code></Error>"));
        bucket.reply("", ALWAYS, refusal);
        let m = Setup::new(&up).bucket(&bucket).start().await;
        bucket.wait(1, "list-type").await;
        eventually("a failure", || {
            m.metric("millpond_bucket_requests_total{kind=\"list\"}") > 0
        })
        .await;
        let (blob, path) = put_blob(&up, 30, MIB);
        m.serves(&path, &blob).await;
        let ready = m.debug("/readyz").await;
        assert_eq!(ready.status, 200);
        assert!(ready.json()["checks"]["bucket"]["error"].is_string());
        assert_eq!(
            m.metric("millpond_degraded{condition=\"bucket_missing\"}"),
            1
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_bucket_is_waited_for_once_in_15_seconds() {
    let (up, bucket) = registries().await;
    let m = Setup::new(&up).bucket(&bucket).start().await;
    bucket.wait(1, "list-type").await;
    bucket.reply("GET /shared/docker", ALWAYS, Reply::silence());
    let pull = async |seed: u64| {
        let (blob, path) = put_blob(&up, seed, MIB);
        m.serves(&path, &blob).await;
    };
    let late = async |seed: u64, asked: usize| {
        tokio::join!(pull(seed), async {
            bucket.wait(asked, "GET /shared/docker").await;
            advance(Duration::from_secs(2)).await;
        });
    };
    late(1, 2).await;
    pull(2).await;
    pull(3).await;
    assert_eq!(bucket.count("GET /shared/docker"), 2);
    advance(Duration::from_secs(16)).await;
    late(4, 4).await;
    bucket.behave();
    advance(Duration::from_secs(16)).await;
    pull(5).await;
    assert_eq!(bucket.count("GET /shared/docker"), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_goes_on_where_the_bucket_breaks_off() {
    let (up, bucket) = registries().await;
    let (blob, path) = put_blob(&up, 5, 4 * MIB);
    put(&bucket, "app", "_layers", &blob);
    bucket.on("/data", 1, |_, usual| usual.cut(MIB));
    let m = Setup::new(&up).bucket(&bucket).start().await;
    m.serves(&path, &blob).await;
    m.idle().await;
    let asked = up.seen("GET ");
    assert_eq!(asked.len(), 1, "{:?}", up.lines());
    assert_eq!(asked[0].header("range"), Some(&*format!("bytes={MIB}-")));
    assert!(up.blob_bytes() <= 3 * MIB as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_content_is_read_once_more_and_set_aside() {
    // A wrong byte on the way.
    let (up, bucket) = registries().await;
    let (blob, path) = put_blob(&up, 6, MIB);
    put(&bucket, "app", "_layers", &blob);
    bucket.on("/data", 1, |_, usual| usual.forged());
    let m = Setup::new(&up).bucket(&bucket).start().await;
    m.serves(&path, &blob).await;
    assert_eq!(up.lines(), [] as [&str; 0]);
    // A wrong object.
    let (blob, path) = put_blob(&up, 7, MIB);
    put(&bucket, "app", "_layers", &blob);
    let wrong = noise(8, MIB);
    bucket.put_object(&blob_key(&blob), &wrong);
    m.serves(&path, &blob).await;
    uploaded(&m).await;
    assert_eq!(bucket.object(&blob_key(&blob)), Some(blob.clone()));
    let quarantined =
        format!("millpond/quarantine/{}", digest(&blob)).replace("sha256:", "sha256-");
    assert_eq!(bucket.object(&quarantined), Some(wrong));
    assert_eq!(m.metric("millpond_bucket_quarantined_total"), 1);
    // A wrong manifest.
    let (image, by_digest) = put_image(&up, 9);
    put(&bucket, "app", "_manifests/revisions", &image.manifest);
    bucket.put_object(&blob_key(&image.manifest), b"{}");
    m.serves(&by_digest, &image.manifest).await;
    uploaded(&m).await;
    assert_eq!(
        bucket.object(&blob_key(&image.manifest)),
        Some(image.manifest.clone())
    );
    assert_eq!(m.metric("millpond_bucket_quarantined_total"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn content_of_another_size_is_set_aside() {
    let (up, bucket) = registries().await;
    let m = Setup::new(&up).bucket(&bucket).start().await;
    // Smaller and larger than what is verified before its first byte.
    for (seed, size, wrong) in [(20, MIB, 6), (21, MIB, 3 * MIB), (22, 3 * MIB, 6)] {
        let (blob, path) = put_blob(&up, seed, size);
        put(&bucket, "app", "_layers", &blob);
        bucket.put_object(&blob_key(&blob), noise(seed + 100, wrong));
        if wrong > MIB {
            // Its head is sent already: the body breaks off, and the next request is served.
            assert!(m.get(&path).await.broken);
        }
        m.serves(&path, &blob).await;
        uploaded(&m).await;
        assert_eq!(bucket.object(&blob_key(&blob)), Some(blob));
    }
    // Where a manifest tells the size, it is noticed before the head.
    let (image, by_digest) = put_image(&up, 23);
    m.serves(&by_digest, &image.manifest).await;
    let layer = image.blobs().last().unwrap();
    put(&bucket, "app", "_layers", layer);
    bucket.put_object(&blob_key(layer), noise(24, 4 * MIB));
    m.serves(&format!("/v2/app/blobs/{}", digest(layer)), layer)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_blobs_are_uploaded_in_parts() {
    let (up, bucket) = registries().await;
    let (blob, path) = put_blob(&up, 10, 23 * MIB);
    let m = Setup::new(&up).bucket(&bucket).start().await;
    m.serves(&path, &blob).await;
    uploaded(&m).await;
    assert_eq!(bucket.object(&blob_key(&blob)), Some(blob.clone()));
    assert_eq!(bucket.count("partNumber="), 5);
    // Of one that fails, nothing stays.
    let (blob, path) = put_blob(&up, 11, 12 * MIB);
    bucket.reply("partNumber=2", 1, Reply::error(507));
    m.serves(&path, &blob).await;
    uploaded(&m).await;
    assert_eq!(bucket.object(&blob_key(&blob)), Some(blob));
    assert_eq!(bucket.count("DELETE "), 1);
    assert_eq!(
        m.metric("millpond_bucket_uploads_total{result=\"failed\"}"),
        1
    );
}

#[tokio::test(start_paused = true)]
async fn uploads_are_tried_again_with_longer_pauses() {
    let (up, bucket) = registries().await;
    let m = Setup::new(&up).bucket(&bucket).start().await;
    bucket.reply("PUT ", 1, Reply::error(507));
    bucket.reply("HEAD ", 3, Reply::error(503));
    let (blob, path) = put_blob(&up, 12, MIB);
    m.serves(&path, &blob).await;
    for (attempt, pause) in [(1_u64, 1), (2, 2), (3, 4), (4, 8)] {
        m.counted("millpond_bucket_uploads_total{result=\"failed\"}", attempt)
            .await;
        let attempts = bucket.count("PUT ") + bucket.count("HEAD ");
        assert_eq!(attempts as u64, attempt);
        // Timers fire at whole milliseconds.
        advance(Duration::from_millis(pause * 1000 + 10)).await;
    }
    uploaded(&m).await;
    assert_eq!(bucket.object(&blob_key(&blob)), Some(blob));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_uploaded_after_a_restart() {
    let (up, bucket) = registries().await;
    let root = tempfile::tempdir().unwrap();
    let (blob, path) = put_blob(&up, 13, MIB);
    bucket.reply("PUT ", ALWAYS, Reply::error(503));
    let m = Setup::new(&up)
        .bucket(&bucket)
        .root(root.path())
        .start()
        .await;
    m.serves(&path, &blob).await;
    m.idle().await;
    bucket.wait(1, "PUT ").await;
    let store = m.store.clone();
    assert!(m.app.stop().await);
    bucket.behave();
    let m = Setup::new(&up)
        .bucket(&bucket)
        .root(root.path())
        .store(store)
        .start()
        .await;
    uploaded(&m).await;
    assert_eq!(bucket.object(&blob_key(&blob)), Some(blob));
    assert_eq!(
        bucket.count(&format!(
            "PUT /shared/{}",
            link_key("app", "_layers", &path_blob(&up, &path))
        )),
        1
    );
}

fn path_blob(up: &Registry, path: &str) -> Bytes {
    up.content(path).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_for_uploads() {
    let (up, bucket) = registries().await;
    let (blob, path) = put_blob(&up, 14, MIB);
    let gate: Gate = bucket.hold("PUT ", 1);
    let m = Setup::new(&up).bucket(&bucket).start().await;
    m.serves(&path, &blob).await;
    bucket.wait(1, "PUT ").await;
    let opened = async {
        tokio::task::yield_now().await;
        gate.open();
    };
    let (clean, ()) = tokio::join!(m.app.stop(), opened);
    assert!(clean);
    assert!(bucket.object(&link_key("app", "_layers", &blob)).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_and_indexes_are_uploaded() {
    let (up, bucket) = registries().await;
    let (image, _) = put_image(&up, 15);
    let m = Setup::new(&up).bucket(&bucket).start().await;
    // As containerd does.
    m.head("/v2/app/manifests/1").await;
    let by_digest = format!("/v2/app/manifests/{}", digest(&image.manifest));
    m.serves(&by_digest, &image.manifest).await;
    uploaded(&m).await;
    let tags = format!("{V2}/repositories/app/_manifests/tags/1");
    let hex = digest(&image.manifest).hex();
    for key in [
        format!("{tags}/current/link"),
        format!("{tags}/index/sha256/{hex}/link"),
    ] {
        assert_eq!(
            bucket.object(&key).unwrap(),
            digest(&image.manifest).to_string()
        );
    }
    // A replica that learns the tag later asks the bucket for it first.
    let second = Setup::new(&up).bucket(&bucket).start().await;
    bucket.take();
    second.serves("/v2/app/manifests/1", &image.manifest).await;
    uploaded(&second).await;
    // Its link is written again, which tells the sweep that it is relied on; the tag isn't.
    let written = bucket.seen("PUT ");
    let is_link = |line: &str| line.contains("/_manifests/revisions/");
    assert!(!written.is_empty() && written.iter().all(|seen| is_link(&seen.line)));
    // The tag moves.
    let image = Image::oci(16);
    up.push("app", "1", &image);
    let third = Setup::new(&up).bucket(&bucket).start().await;
    third.serves("/v2/app/manifests/1", &image.manifest).await;
    uploaded(&third).await;
    let current = bucket.object(&format!("{tags}/current/link"));
    assert_eq!(current.unwrap(), digest(&image.manifest).to_string());
}
