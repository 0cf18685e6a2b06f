//! What goes and what stays, seen through the whole server.

use std::time::Duration;

use crate::harness::{Image, Mirror, advance, blob_path, mirrored_with, noise, put_blob};

const MINUTE: Duration = Duration::from_mins(1);

/// The operators' page of metrics.
async fn page(m: &Mirror) -> String {
    String::from_utf8(m.debug("/metrics").await.body.to_vec()).unwrap()
}

/// Pulls a blob and tells where it came from.
async fn pull(m: &Mirror, repo: &str, blob: &[u8]) -> String {
    let answer = m.pull(&blob_path(repo, blob), blob).await;
    answer.source().to_owned()
}

#[tokio::test(start_paused = true)]
async fn use_extends_the_time_and_without_it_content_goes() {
    let (up, m) = mirrored_with(&["proxy.ttl: 1h"]).await;
    let (blob, path) = put_blob(&up, 1, 1000);
    let image = Image::oci(1);
    let manifest = format!("/v2/app/manifests/{}", up.push("app", "1", &image));
    let missed = |status| format!("fwd=uri-miss{status}; stored");
    for (path, content, missed) in [
        (path, blob, missed("")),
        (manifest, image.manifest, missed("; fwd-status=200")),
    ] {
        assert_eq!(m.pull(&path, &content).await.source(), missed);
        for _ in 0..3 {
            advance(50 * MINUTE).await;
            for _ in 0..2 {
                assert_eq!(m.pull(&path, &content).await.source(), "hit");
            }
        }
        advance(61 * MINUTE).await;
        assert!(!m.is_stored(&content).await);
        assert_eq!(m.pull(&path, &content).await.source(), missed);
        assert_eq!(up.take().len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn expiry_in_one_repository_keeps_the_link_of_another() {
    let rules = "proxy.ttls: [{repository: 'short/**', ttl: 1h}]";
    let (up, m) = mirrored_with(&["proxy.ttl: 10h", rules]).await;
    let blob = noise(2, 1000);
    up.put_blob("short/app", &blob);
    up.put_blob("long/app", &blob);
    pull(&m, "short/app", &blob).await;
    pull(&m, "long/app", &blob).await;
    advance(61 * MINUTE).await;
    assert_eq!(pull(&m, "long/app", &blob).await, "hit");
    let again = pull(&m, "short/app", &blob).await;
    // Its link has gone, the file has not.
    assert_eq!(again, "fwd=uri-miss; fwd-status=200; detail=revalidated");
    advance(600 * MINUTE).await;
    assert!(!m.is_stored(&blob).await);
}

#[tokio::test]
async fn the_cap_holds_and_every_pull_is_whole() {
    let (up, m) = mirrored_with(&["storage.maxsize: 1MB"]).await;
    let mut blobs = Vec::new();
    for seed in 0..6 {
        let (blob, path) = put_blob(&up, seed, 400_000);
        m.pull(&path, &blob).await;
        assert!(m.is_stored(&blob).await, "the latest stays");
        blobs.push(blob);
        let mut kept = 0;
        for blob in &blobs {
            kept += u64::from(m.is_stored(blob).await) * 400_000;
        }
        assert!(kept <= 1_000_000, "{kept}");
    }
    assert!(!m.is_stored(&blobs[0]).await, "the oldest goes first");
    assert!(page(&m).await.contains("\nmillpond_cache_full_total 0\n"));

    for (series, value) in [
        ("evictions_total{reason=\"maxsize\"}", 4),
        ("evictions_total", 4),
        ("evicted_bytes_total{reason=\"maxsize\"}", 1_600_000),
        ("evicted_recently_used_bytes_total", 1_600_000),
    ] {
        m.counted(&format!("millpond_cache_{series}"), value).await;
    }

    let (huge, _) = put_blob(&up, 9, 1_500_000);
    for _ in 0..2 {
        let from = pull(&m, "app", &huge).await;
        assert_eq!(from, "fwd=uri-miss", "and isn't stored");
    }
    assert!(!m.is_stored(&huge).await, "it passes through");
    let page = page(&m).await;
    for line in ["full_total 2", "limit_bytes 1000000", "bytes 800000"] {
        let line = format!("\nmillpond_cache_{line}\n");
        assert!(page.contains(&line), "{line} is not in {page}");
    }
}

#[tokio::test]
async fn pinned_images_are_not_evicted() {
    let (up, m) = mirrored_with(&["storage.maxsize: 1MB", "proxy.pins: [keep/**]"]).await;
    let pinned = noise(100, 400_000);
    up.put_blob("keep/app", &pinned);
    pull(&m, "keep/app", &pinned).await;
    for seed in 0..4 {
        let (blob, path) = put_blob(&up, seed, 400_000);
        m.pull(&path, &blob).await;
    }
    assert_eq!(pull(&m, "keep/app", &pinned).await, "hit");
}
