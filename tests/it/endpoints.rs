//! Upstreams with several endpoints, as clients see them.

use std::time::Duration;

use tokio::time::Instant;

use crate::harness::{
    ALWAYS, Mirror, Registry, Reply, Setup, digest, noise, passing, put_blob, put_image, read,
};

const MIB: usize = 1 << 20;
/// Requests after which a slow one is sent a second time: there is a 99th percentile, and a budget.
const USUAL: usize = 60;

/// A mirror of a registry with another endpoint before it, whose keys `more` continues.
async fn with_two(more: &str) -> (Registry, Registry, Mirror) {
    let (first, registry) = (Registry::start().await, Registry::start().await);
    let endpoints = format!("proxy.endpoints: [{{url: '{}'{more}}}, {{}}]", first.url());
    let lines = [&*endpoints, "proxy.tags: {ttl: 0}"];
    let m = Setup::new(&registry).with(&lines).start().await;
    (first, registry, m)
}

/// A series of an endpoint.
fn series(name: &str, endpoint: &Registry, registry: &Registry) -> String {
    let (upstream, endpoint) = (registry.address, endpoint.address);
    format!("millpond_endpoint_{name}{{upstream=\"{upstream}\",endpoint=\"{endpoint}\"}}")
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_dies_in_the_middle_of_a_blob_is_not_noticed() {
    const SIZE: usize = 8 * MIB;
    const CUT: usize = 3 * MIB;
    let (first, registry, m) = with_two("").await;
    let (blob, path) = put_blob(&first, 1, SIZE);
    put_blob(&registry, 1, SIZE);
    first.on("GET ", 1, |_, usual| usual.cut(CUT));
    first.reply("GET ", ALWAYS, Reply::hang_up());
    passing(m.get(&path)).await.expect(200, &blob);
    passing(m.idle()).await;
    assert!(m.is_stored(&blob).await);
    let bytes = m.upstream_bytes();
    assert!(bytes * 100 <= 102 * SIZE as u64, "{bytes}");
    assert_eq!((first.count("GET "), registry.count("GET ")), (1, 1));
    let rest = registry.seen("GET ")[0].header("range").map(str::to_owned);
    assert_eq!(rest, Some(format!("bytes={CUT}-")));
    assert_eq!(m.metric(&series("failures_total", &first, &registry)), 1);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_stalls_in_the_middle_of_a_blob_is_left() {
    const SIZE: usize = 3 * MIB;
    let (first, registry, m) = with_two("").await;
    let (blob, path) = put_blob(&first, 1, SIZE);
    put_blob(&registry, 1, SIZE);
    first.on("GET ", ALWAYS, |_, usual| usual.cut(MIB).then_stall());
    passing(m.get(&path)).await.expect(200, &blob);
    assert_eq!((first.count("GET "), registry.count("GET ")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_blob_that_one_endpoint_serves_wrongly_comes_from_the_registry_itself() {
    let (first, registry, m) = with_two("").await;
    let (blob, path) = put_blob(&registry, 1, MIB / 2);
    first.reply("GET ", ALWAYS, Reply::ok(noise(2, MIB / 2)));
    passing(m.get(&path)).await.expect(200, &blob);
    passing(m.idle()).await;
    assert!(m.is_stored(&blob).await);
    assert_eq!((first.count("GET "), registry.count("GET ")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_slow_endpoint_does_not_delay_manifests() {
    let (first, registry, m) = with_two("").await;
    let (image, _) = put_image(&first, 1);
    put_image(&registry, 1);
    let tag = "/v2/app/manifests/1";
    m.serves(tag, &image.manifest).await;
    for _ in 0..USUAL {
        m.serves(tag, &image.manifest).await;
    }
    assert_eq!(registry.count(""), 0);
    let gate = first.hold("HEAD ", 1);
    let started = Instant::now();
    let answer = passing(m.get(tag)).await;
    answer.expect(200, &image.manifest);
    assert!(started.elapsed() < Duration::from_secs(1));
    assert_eq!(registry.count("HEAD "), 1);
    assert_eq!(m.metric(&series("hedges_total", &registry, &registry)), 1);
    assert_eq!(m.metric(&series("failures_total", &first, &registry)), 0);
    gate.open();
    m.serves(tag, &image.manifest).await;
    assert_eq!(registry.count(""), 1, "it isn't slow any more");
}

#[tokio::test(start_paused = true)]
async fn a_mirror_that_is_being_filled_is_asked_first_and_the_registry_for_the_rest() {
    let (filling, registry, m) = with_two(", fallbackon404: true").await;
    let (image, manifest) = put_image(&registry, 1);
    m.serves("/v2/app/manifests/1", &image.manifest).await;
    let (blob, path) = put_blob(&registry, 7, 1000);
    m.pull(&path, &blob).await;
    assert!(filling.count("") >= 2, "it was asked first");
    // Later it has another one.
    let (filled, path) = put_blob(&filling, 8, 1000);
    m.pull(&path, &filled).await;
    assert_eq!(registry.count(&path), 0);
    m.get("/v2/app/manifests/none")
        .await
        .refused(404, "MANIFEST_UNKNOWN");
    // A registry that doesn't answer says nothing about the tag: the cached one is served.
    registry.go_down();
    let answer = passing(m.get("/v2/app/manifests/1")).await;
    answer.expect(200, &image.manifest);
    m.serves(&manifest, &image.manifest).await;
}

#[tokio::test(start_paused = true)]
async fn the_404_of_an_endpoint_is_the_upstreams_unless_configured_otherwise() {
    let (first, registry, m) = with_two("").await;
    put_image(&registry, 1);
    m.get("/v2/app/manifests/1")
        .await
        .refused(404, "MANIFEST_UNKNOWN");
    assert_eq!((first.count(""), registry.count("")), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_with_a_rate_limit_is_left_alone() {
    let (first, registry, m) = with_two("").await;
    let (image, _) = put_image(&registry, 1);
    let limited = Reply::error(429).with("Retry-After", "30");
    first.reply("", ALWAYS, limited);
    for _ in 0..10 {
        m.serves("/v2/app/manifests/1", &image.manifest).await;
    }
    assert_eq!(first.count(""), 1);
    assert_eq!(m.metric(&series("circuit", &first, &registry)), 2);
    assert_eq!(m.metric(&series("circuit", &registry, &registry)), 0);
}

#[tokio::test(start_paused = true)]
async fn errors_of_all_endpoints_reach_the_client_as_they_are() {
    let limited = || Reply::error(429).with("Retry-After", "17");
    for (one, other, status, retry_after) in [
        (Reply::hang_up(), Reply::hang_up(), 502, ""),
        (Reply::error(503), Reply::error(503), 503, ""),
        (limited(), Reply::hang_up(), 429, "17"),
        (Reply::hang_up(), limited(), 429, "17"),
        (Reply::silence(), Reply::silence(), 504, ""),
    ] {
        let blob = format!("/v2/app/blobs/{}", digest(b"x"));
        for path in ["/v2/app/manifests/1", &blob] {
            let (first, registry, m) = with_two("").await;
            first.reply("", ALWAYS, one.clone());
            registry.reply("", ALWAYS, other.clone());
            let answer = passing(m.get(path)).await;
            assert_eq!(answer.status, status, "{path}");
            answer.has("retry-after", retry_after);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_streams_of_a_large_blob_are_spread_by_weight() {
    const SIZE: usize = 20 * MIB;
    let (first, registry, m) = {
        let (first, registry) = (Registry::start().await, Registry::start().await);
        let endpoints = format!("[{{url: '{}', weight: 1}}, {{weight: 1}}]", first.url());
        let lines = [&*format!("proxy.endpoints: {endpoints}")];
        let m = Setup::new(&registry).with(&lines).start().await;
        (first, registry, m)
    };
    let (blob, path) = put_blob(&first, 1, SIZE);
    put_blob(&registry, 1, SIZE);
    // A client far ahead of the first stream makes the download open another one.
    let gate = first.hold_body("GET ", 1, MIB);
    let whole = m.open(&path).await;
    let far = passing(m.range(&path, &format!("bytes={}-{}", SIZE - 10, SIZE - 1))).await;
    far.expect(206, &blob[SIZE - 10..]);
    assert_eq!((first.count("GET "), registry.count("GET ")), (1, 1));
    gate.open();
    passing(read(whole)).await.expect(200, &blob);
}
