//! What goes and what stays, seen through the whole server.

use std::time::Duration;

use millpond::oci::Digest;

use crate::harness::{Mirror, Registry, Setup, advance, freeze, noise};

const MINUTE: Duration = Duration::from_mins(1);

fn path(repo: &str, digest: &Digest) -> String {
    format!("/v2/{repo}/blobs/{digest}")
}

async fn stored(m: &Mirror, digest: &Digest) -> bool {
    m.store.size(digest).await.unwrap().is_some()
}

/// The operators' page of metrics.
async fn page(m: &Mirror) -> String {
    let address = m.app.debug_address().unwrap();
    let client = reqwest::Client::builder()
        .tls_certs_only([])
        .build()
        .unwrap();
    let mut response = client
        .get(format!("http://{address}/metrics"))
        .send()
        .await
        .unwrap();
    let mut page = Vec::new();
    while let Some(chunk) = response.chunk().await.unwrap() {
        page.extend_from_slice(&chunk);
    }
    String::from_utf8(page).unwrap()
}

/// Pulls a blob and tells where it came from.
async fn pull(m: &Mirror, repo: &str, digest: &Digest, bytes: &[u8]) -> String {
    let answer = m.get(&path(repo, digest)).await;
    answer.expect(200, bytes);
    m.idle().await;
    answer.header("cache-status").to_owned()
}

#[tokio::test(start_paused = true)]
async fn use_extends_the_time_and_without_it_content_goes() {
    let up = Registry::start().await;
    let m = Setup::new(&up).proxy("ttl: 1h").start().await;
    let _frozen = freeze();
    let blob = noise(1, 1000);
    let digest = up.put_blob("app", &blob);
    assert_eq!(
        pull(&m, "app", &digest, &blob).await,
        "millpond; fwd=uri-miss; stored"
    );
    for _ in 0..3 {
        advance(50 * MINUTE).await;
        assert_eq!(pull(&m, "app", &digest, &blob).await, "millpond; hit");
    }
    advance(61 * MINUTE).await;
    assert!(!stored(&m, &digest).await);
    assert_eq!(
        pull(&m, "app", &digest, &blob).await,
        "millpond; fwd=uri-miss; stored"
    );
    assert_eq!(up.take().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn expiry_in_one_repository_keeps_the_link_of_another() {
    let up = Registry::start().await;
    let rules = "ttls: [{repository: 'short/**', ttl: 1h}]";
    let m = Setup::new(&up).proxy("ttl: 10h").proxy(rules).start().await;
    let _frozen = freeze();
    let blob = noise(2, 1000);
    let digest = up.put_blob("short/app", &blob);
    up.put_blob("long/app", &blob);
    pull(&m, "short/app", &digest, &blob).await;
    pull(&m, "long/app", &digest, &blob).await;
    advance(61 * MINUTE).await;
    assert_eq!(pull(&m, "long/app", &digest, &blob).await, "millpond; hit");
    let again = pull(&m, "short/app", &digest, &blob).await;
    assert_eq!(
        again, "millpond; fwd=uri-miss; fwd-status=200; detail=revalidated",
        "its link has gone, the file has not"
    );
    advance(600 * MINUTE).await;
    assert!(!stored(&m, &digest).await);
}

#[tokio::test]
async fn the_cap_holds_and_every_pull_is_whole() {
    let up = Registry::start().await;
    let m = Setup::new(&up).storage("maxsize: 1MB").start().await;
    let mut digests = Vec::new();
    for seed in 0..6 {
        let blob = noise(seed, 400_000);
        let digest = up.put_blob("app", &blob);
        pull(&m, "app", &digest, &blob).await;
        digests.push(digest);
        let mut kept = 0;
        for digest in &digests {
            kept += u64::from(stored(&m, digest).await) * 400_000;
        }
        assert!(kept <= 1_000_000, "{kept}");
        assert!(stored(&m, &digest).await, "the latest stays");
    }
    assert!(!stored(&m, &digests[0]).await, "the oldest goes first");
    assert!(page(&m).await.contains("\nmillpond_cache_full 0\n"));

    let huge = noise(9, 1_500_000);
    let digest = up.put_blob("app", &huge);
    for _ in 0..2 {
        let from = pull(&m, "app", &digest, &huge).await;
        assert_eq!(from, "millpond; fwd=uri-miss", "and isn't stored");
    }
    assert!(
        !stored(&m, &digest).await,
        "more than the cache can hold is passed through"
    );
    let page = page(&m).await;
    assert!(page.contains("\nmillpond_cache_full 2\n"), "{page}");
    assert!(
        page.contains("\nmillpond_cache_limit_bytes 1000000\n"),
        "{page}"
    );
    assert!(page.contains("\nmillpond_cache_bytes 800000\n"), "{page}");
}

#[tokio::test]
async fn pinned_images_are_not_evicted() {
    let up = Registry::start().await;
    let setup = Setup::new(&up)
        .storage("maxsize: 1MB")
        .proxy("pins: [keep/**]");
    let m = setup.start().await;
    let pinned = noise(100, 400_000);
    let keep = up.put_blob("keep/app", &pinned);
    pull(&m, "keep/app", &keep, &pinned).await;
    for seed in 0..4 {
        let blob = noise(seed, 400_000);
        let digest = up.put_blob("app", &blob);
        pull(&m, "app", &digest, &blob).await;
    }
    assert_eq!(pull(&m, "keep/app", &keep, &pinned).await, "millpond; hit");
}
