//! Space of the cache: reserved as bytes arrive, and never for what an upstream merely announces.

use std::time::Duration;

use bytes::Bytes;

use crate::harness::{
    ALWAYS, Mirror, Registry, Reply, advance, blob_path, eventually, mirrored, mirrored_with,
    noise, passing, put_blob, put_image, read,
};

const RESERVED: &str = "millpond_cache_reserved_bytes";

/// Pulls a new blob.
async fn pull(m: &Mirror, up: &Registry, seed: u64, size: usize) -> Bytes {
    let (blob, path) = put_blob(up, seed, size);
    m.pull(&path, &blob).await;
    blob
}

/// Bytes that are reserved, as the metrics page says.
async fn reserved(m: &Mirror) -> u64 {
    let page = String::from_utf8(m.debug("/metrics").await.body.to_vec()).unwrap();
    let value = page.lines().find_map(|line| line.strip_prefix(RESERVED));
    value.unwrap().trim().parse().unwrap()
}

#[tokio::test]
async fn an_announced_length_evicts_nothing_before_bytes_arrive() {
    let (up, m) = mirrored_with(&["storage.maxsize: 8MB"]).await;
    let mut cached = Vec::new();
    for seed in 0..4 {
        cached.push(pull(&m, &up, seed, 1_600_000).await);
    }
    let (blob, path) = put_blob(&up, 9, 4_000_000);
    let gate = up.hold_body(&path, 1, 0);
    let response = m.open(&path).await;
    assert_eq!(response.status(), 200, "{:?}", read(response).await);
    assert_eq!(reserved(&m).await, 0, "nothing has arrived");
    for blob in &cached {
        assert!(m.is_stored(blob).await);
    }
    gate.open();
    read(response).await.expect(200, &blob);
    m.idle().await;
    assert!(m.is_stored(&blob).await);
    assert!(!m.is_stored(&cached[0]).await && !m.is_stored(&cached[1]).await);
    assert!(m.is_stored(&cached[2]).await && m.is_stored(&cached[3]).await);
}

#[tokio::test]
async fn a_blob_larger_than_half_of_the_cache_evicts_nothing() {
    let (up, m) = mirrored_with(&["storage.maxsize: 1MB"]).await;
    let small = pull(&m, &up, 1, 300_000).await;
    let fits = pull(&m, &up, 2, 600_000).await;
    assert!(m.is_stored(&small).await && m.is_stored(&fits).await);
    for _ in 0..2 {
        let large = pull(&m, &up, 3, 500_001).await;
        assert!(!m.is_stored(&large).await, "it passes through");
        assert!(m.is_stored(&small).await && m.is_stored(&fits).await);
    }
}

#[tokio::test]
async fn a_blob_larger_than_maxblobsize_passes_through() {
    let (up, m) = mirrored_with(&["proxy.maxblobsize: 100KB"]).await;
    let largest = pull(&m, &up, 1, 100_000).await;
    assert!(m.is_stored(&largest).await);
    let large = pull(&m, &up, 2, 100_001).await;
    assert!(!m.is_stored(&large).await);
    // Lengths that aren't announced.
    up.on("/blobs/", ALWAYS, |_, usual| usual.chunked());
    let large = pull(&m, &up, 3, 300_000).await;
    assert!(!m.is_stored(&large).await);
    let small = pull(&m, &up, 4, 90_000).await;
    assert!(m.is_stored(&small).await);
}

#[tokio::test]
async fn a_length_that_contradicts_the_manifest_is_not_cached() {
    let (up, m) = mirrored_with(&["storage.maxsize: 1MB", "proxy.prefetch: {downloads: 0}"]).await;
    let cached = pull(&m, &up, 1, 900_000).await;
    let (image, _) = put_image(&up, 2);
    m.serves("/v2/app/manifests/1", &image.manifest).await;
    let layer = &image.layers[0];
    let path = blob_path("app", layer);
    up.reply(&path, 1, Reply::new(200, noise(3, 300_000)));
    let answer = m.get(&path).await;
    let refused = answer.status == 502 || answer.broken;
    assert!(refused, "the digest is wrong: {}", answer.status);
    m.idle().await;
    assert!(m.is_stored(&cached).await, "nothing was evicted for it");
    m.pull(&path, layer).await;
    assert!(m.is_stored(layer).await);
}

#[tokio::test(start_paused = true)]
async fn a_paused_download_reserves_what_is_on_disk() {
    let (up, m) = mirrored_with(&["storage.maxsize: 10MB", "proxy.onabandon: pause"]).await;
    let (blob, path) = put_blob(&up, 1, 4_000_000);
    let _gate = up.hold_body(&path, 1, 300_000);
    let mut response = m.open(&path).await;
    let mut seen = 0;
    while seen < 300_000 {
        seen += response.chunk().await.unwrap().unwrap().len();
    }
    assert_eq!(reserved(&m).await, 4_000_000);
    drop(response);
    eventually("the client's end is seen", || {
        m.metric("millpond_followers") == 0
    })
    .await;
    advance(Duration::from_secs(6)).await;
    passing(m.idle()).await;
    assert_eq!(reserved(&m).await, 300_000);
    passing(m.get(&path)).await.expect(200, &blob);
    m.idle().await;
    assert_eq!(reserved(&m).await, 0);
    assert!(m.is_stored(&blob).await);
}

/// Runs a future while frozen time passes in seconds, at most fifteen minutes.
async fn in_time<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    for _ in 0..900 {
        tokio::select! {
            biased;
            output = &mut future => return output,
            () = advance(Duration::from_secs(1)) => {}
        }
    }
    panic!("nothing happened within fifteen minutes");
}

#[tokio::test(start_paused = true)]
async fn a_transfer_that_trickles_ends() {
    let (up, m) = mirrored().await;
    let (_, path) = put_blob(&up, 1, 1_500_000);
    // Two bytes a second never stall, and take days.
    up.on(&path, ALWAYS, |_, usual| {
        usual.trickling(2, Duration::from_secs(1))
    });
    let started = tokio::time::Instant::now();
    let answer = in_time(m.get(&path)).await;
    assert!(answer.broken);
    // A minute for each of six attempts.
    assert!(started.elapsed() < Duration::from_mins(8));
}
