//! Space of the cache: reserved as bytes arrive, and never for what an upstream merely announces.

use std::time::Duration;

use bytes::Bytes;
use millpond::oci::Digest;

use crate::harness::{
    ALWAYS, Image, Mirror, Registry, Reply, Setup, advance, digest, eventually, freeze, mirrored,
    noise, passing, read,
};

const RESERVED: &str = "millpond_cache_reserved_bytes";

fn path(digest: &Digest) -> String {
    format!("/v2/app/blobs/{digest}")
}

async fn pull(m: &Mirror, up: &Registry, bytes: &Bytes) -> Digest {
    let digest = up.put_blob("app", bytes);
    m.pull(&path(&digest), bytes).await;
    digest
}

async fn stored(m: &Mirror, digest: &Digest) -> bool {
    m.store.size(digest).await.unwrap().is_some()
}

/// A gauge, as the metrics page shows it.
async fn gauge(m: &Mirror, name: &str) -> u64 {
    let address = m.app.debug_address().unwrap();
    let client = reqwest::Client::builder().tls_certs_only([]);
    let request = client
        .build()
        .unwrap()
        .get(format!("http://{address}/metrics"));
    let page = read(request.send().await.unwrap()).await.body;
    let page = String::from_utf8(page.to_vec()).unwrap();
    let value = page.lines().find_map(|line| line.strip_prefix(name));
    value.unwrap().trim().parse().unwrap()
}

#[tokio::test]
async fn an_announced_length_evicts_nothing_before_bytes_arrive() {
    let up = Registry::start().await;
    let m = Setup::new(&up).storage("maxsize: 8MB").start().await;
    let mut cached = Vec::new();
    for seed in 0..4 {
        cached.push(pull(&m, &up, &noise(seed, 1_600_000)).await);
    }
    let blob = noise(9, 4_000_000);
    let digest = up.put_blob("app", &blob);
    let gate = up.hold_body(&path(&digest), 1, 0);
    let response = m.open(&path(&digest)).await;
    assert_eq!(response.status(), 200, "{:?}", read(response).await);
    assert_eq!(gauge(&m, RESERVED).await, 0, "nothing has arrived");
    for digest in &cached {
        assert!(stored(&m, digest).await);
    }
    gate.open();
    read(response).await.expect(200, &blob);
    m.idle().await;
    assert!(stored(&m, &digest).await);
    assert!(!stored(&m, &cached[0]).await && !stored(&m, &cached[1]).await);
    assert!(stored(&m, &cached[2]).await && stored(&m, &cached[3]).await);
}

#[tokio::test]
async fn a_blob_larger_than_half_of_the_cache_evicts_nothing() {
    let up = Registry::start().await;
    let m = Setup::new(&up).storage("maxsize: 1MB").start().await;
    let small = pull(&m, &up, &noise(1, 300_000)).await;
    let fits = pull(&m, &up, &noise(2, 600_000)).await;
    assert!(stored(&m, &small).await && stored(&m, &fits).await);
    for _ in 0..2 {
        let large = pull(&m, &up, &noise(3, 500_001)).await;
        assert!(!stored(&m, &large).await, "it passes through");
        assert!(stored(&m, &small).await && stored(&m, &fits).await);
    }
}

#[tokio::test]
async fn a_blob_larger_than_maxblobsize_passes_through() {
    let up = Registry::start().await;
    let m = Setup::new(&up).proxy("maxblobsize: 100KB").start().await;
    let largest = pull(&m, &up, &noise(1, 100_000)).await;
    assert!(stored(&m, &largest).await);
    let large = pull(&m, &up, &noise(2, 100_001)).await;
    assert!(!stored(&m, &large).await);
    // Its length isn't announced.
    let blob = noise(3, 300_000);
    let digest = up.put_blob("app", &blob);
    up.on(&path(&digest), ALWAYS, |_, usual| usual.chunked());
    pull(&m, &up, &blob).await;
    assert!(!stored(&m, &digest).await);
    let small = noise(4, 90_000);
    let digest = up.put_blob("app", &small);
    up.on(&path(&digest), ALWAYS, |_, usual| usual.chunked());
    pull(&m, &up, &small).await;
    assert!(stored(&m, &digest).await);
}

#[tokio::test]
async fn a_length_that_contradicts_the_manifest_is_not_cached() {
    let up = Registry::start().await;
    let setup = Setup::new(&up).storage("maxsize: 1MB");
    let m = setup.proxy("prefetch: {downloads: 0}").start().await;
    let cached = pull(&m, &up, &noise(1, 900_000)).await;
    let image = Image::oci(2);
    up.push("app", "1", &image);
    m.serves("/v2/app/manifests/1", &image.manifest).await;
    let layer = digest(&image.layers[0]);
    let wrong = noise(3, 300_000);
    up.reply(&path(&layer), 1, Reply::new(200, wrong));
    let answer = m.get(&path(&layer)).await;
    let refused = answer.status == 502 || answer.broken;
    assert!(refused, "the digest is wrong: {}", answer.status);
    m.idle().await;
    assert!(stored(&m, &cached).await, "nothing was evicted for it");
    let again = m.get(&path(&layer)).await;
    again.expect(200, &image.layers[0]);
    m.idle().await;
    assert!(stored(&m, &layer).await);
}

#[tokio::test(start_paused = true)]
async fn a_paused_download_reserves_what_is_on_disk() {
    let up = Registry::start().await;
    let setup = Setup::new(&up).storage("maxsize: 10MB");
    let m = setup.proxy("onabandon: pause").start().await;
    let blob = noise(1, 4_000_000);
    let digest = up.put_blob("app", &blob);
    let _gate = up.hold_body(&path(&digest), 1, 300_000);
    let mut response = m.open(&path(&digest)).await;
    let mut seen = 0;
    while seen < 300_000 {
        seen += response.chunk().await.unwrap().unwrap().len();
    }
    assert_eq!(gauge(&m, RESERVED).await, 4_000_000);
    let _frozen = freeze();
    drop(response);
    eventually("the client's end is seen", || {
        m.metric("millpond_followers") == 0
    })
    .await;
    advance(Duration::from_secs(6)).await;
    passing(m.idle()).await;
    assert_eq!(gauge(&m, RESERVED).await, 300_000);
    passing(m.get(&path(&digest))).await.expect(200, &blob);
    m.idle().await;
    assert_eq!(gauge(&m, RESERVED).await, 0);
    assert!(stored(&m, &digest).await);
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
    let _frozen = freeze();
    let (up, m) = mirrored().await;
    let blob = noise(1, 1_500_000);
    let digest = up.put_blob("app", &blob);
    // Two bytes a second never stall, and take days.
    up.on(&path(&digest), ALWAYS, |_, usual| {
        usual.trickling(2, Duration::from_secs(1))
    });
    let answer = async {
        let response = m.open(&path(&digest)).await;
        read(response).await
    };
    let started = tokio::time::Instant::now();
    let answer = in_time(answer).await;
    assert!(answer.broken);
    // A minute for each of six attempts.
    assert!(started.elapsed() < Duration::from_mins(8));
}
