//! What is not fetched ahead: images that nobody pulls, and what the cache has no space for.

use std::time::Duration;

use bytes::Bytes;
use millpond::oci::manifest::media_type;

use crate::harness::{
    ALWAYS, Gate, Image, Mirror, Registry, Setup, advance, digest, eventually, freeze, mirrored,
    noise, passing, settle,
};

fn blob(bytes: &Bytes) -> String {
    format!("/v2/app/blobs/{}", digest(bytes))
}

fn image(seed: u64, sizes: &[usize]) -> Image {
    let layer = |(n, size): (usize, &usize)| noise(seed * 1000 + n as u64, *size);
    let layers = sizes.iter().enumerate().map(layer).collect();
    Image::layered(seed, layers, |_, _| ())
}

async fn read_metadata(m: &Mirror, image: &Image) {
    let manifest = format!("/v2/app/manifests/{}", image.digest());
    m.get(&manifest).await.expect(200, &image.manifest);
    m.get(&blob(&image.config)).await.expect(200, &image.config);
}

async fn pull_layer(m: &Mirror, layer: &Bytes) {
    m.get(&blob(layer)).await.expect(200, layer);
}

async fn is_stored(m: &Mirror, bytes: &Bytes) -> bool {
    m.store.size(&digest(bytes)).await.unwrap().is_some()
}

/// What is fetched ahead has been, and nothing else follows.
async fn quiet(m: &Mirror) {
    for _ in 0..20 {
        settle().await;
    }
    m.idle().await;
    for _ in 0..20 {
        settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn metadata_alone_fetches_no_layer_and_one_platform_not_the_other() {
    let _frozen = freeze();
    let (up, m) = mirrored().await;
    let (amd64, arm64) = (image(1, &[5_000; 3]), image(2, &[5_000; 3]));
    let index = Image::index(media_type::OCI_INDEX, &[&amd64, &arm64]);
    for platform in [&amd64, &arm64] {
        up.push("app", &digest(&platform.manifest).hex(), platform);
    }
    up.tag("app", "1", media_type::OCI_INDEX, &index);
    m.get("/v2/app/manifests/1").await.expect(200, &index);
    for platform in [&amd64, &arm64] {
        read_metadata(&m, platform).await;
    }
    quiet(&m).await;
    assert_eq!(up.count("/blobs/"), 2, "the configs");
    pull_layer(&m, &amd64.layers[0]).await;
    m.counted("millpond_prefetched_bytes_total", 10_000).await;
    quiet(&m).await;
    assert_eq!(up.count("/blobs/"), 5);
    for layer in &arm64.layers {
        assert_eq!(up.count(&blob(layer)), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_shared_layer_does_not_tell_which_image_is_pulled() {
    let _frozen = freeze();
    let (up, m) = mirrored().await;
    let shared = noise(9, 5_000);
    let images = [10, 20].map(|seed| {
        let layers = vec![shared.clone(), noise(seed, 5_000), noise(seed + 1, 5_000)];
        Image::layered(seed, layers, |_, _| ())
    });
    for image in &images {
        up.push("app", &digest(&image.manifest).hex(), image);
        read_metadata(&m, image).await;
    }
    pull_layer(&m, &shared).await;
    quiet(&m).await;
    assert_eq!(up.count("/blobs/"), 3, "the configs and the layer");
    pull_layer(&m, &images[0].layers[1]).await;
    m.counted("millpond_prefetched_bytes_total", 5_000).await;
    quiet(&m).await;
    assert!(is_stored(&m, &images[0].layers[2]).await);
    for layer in &images[1].layers[1..] {
        assert_eq!(up.count(&blob(layer)), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_bytes_of_an_image_than_configured() {
    let _frozen = freeze();
    let up = Registry::start().await;
    let setup = Setup::new(&up).proxy("prefetch: {maxsize: 12KB}");
    let m = setup.start().await;
    // The third is too large for what is left, the fourth isn't.
    let image = image(1, &[5_000, 7_000, 6_000, 5_000]);
    up.push("app", "1", &image);
    read_metadata(&m, &image).await;
    pull_layer(&m, &image.layers[0]).await;
    m.counted("millpond_prefetched_bytes_total", 12_000).await;
    quiet(&m).await;
    assert!(!is_stored(&m, &image.layers[2]).await);
    assert!(is_stored(&m, &image.layers[3]).await);
}

/// A download ahead of clients continues while its image has clients, and ends with them.
#[tokio::test(start_paused = true)]
async fn it_ends_when_the_clients_of_the_image_have_left() {
    let _frozen = freeze();
    let up = Registry::start().await;
    let m = Setup::new(&up)
        .proxy("prefetch: {downloads: 1}")
        .proxy("onabandon: pause")
        .start()
        .await;
    let image = image(1, &[1_500_000, 1_500_000, 1_500_000]);
    up.push("app", "1", &image);
    let never = Gate::default();
    for layer in &image.layers {
        let closed = never.clone();
        up.on(&blob(layer), ALWAYS, move |_, usual| {
            usual.gated(20_000, &closed)
        });
    }
    read_metadata(&m, &image).await;
    let mut client = m.open(&blob(&image.layers[0])).await;
    client.chunk().await.unwrap().unwrap();
    let in_flight = || m.metric("millpond_downloads_in_flight");
    eventually("the second layer", || {
        up.count(&blob(&image.layers[1])) == 1
    })
    .await;
    passing(async { tokio::time::sleep(Duration::from_secs(30)).await }).await;
    assert_eq!(in_flight(), 2, "a client is there");
    drop(client);
    eventually("it leaves", || m.metric("millpond_followers") == 0).await;
    // Five seconds for the image, and five for its download.
    for _ in 0..12 {
        advance(Duration::from_secs(1)).await;
    }
    eventually("nothing is downloaded", || in_flight() == 0).await;
    assert_eq!(up.count(&blob(&image.layers[2])), 0);
    // The bytes that arrived are kept, and the next pull resumes from them.
    never.open();
    for layer in &image.layers {
        passing(pull_layer(&m, layer)).await;
    }
    quiet(&m).await;
    let ranges = up.seen(&format!("GET {}", blob(&image.layers[1])));
    assert_eq!(ranges[1].header("range"), Some("bytes=20000-"));
}

#[tokio::test(start_paused = true)]
async fn layers_that_the_cache_cannot_hold_are_not_prefetched() {
    for line in ["maxsize: 100KB", "maxsize: 1MB"] {
        let _frozen = freeze();
        let up = Registry::start().await;
        let setup = Setup::new(&up).storage(line).proxy("maxblobsize: 150KB");
        let m = setup.start().await;
        let image = image(1, &[5_000, 200_000, 6_000]);
        up.push("app", "1", &image);
        read_metadata(&m, &image).await;
        pull_layer(&m, &image.layers[0]).await;
        m.counted("millpond_prefetched_bytes_total", 6_000).await;
        quiet(&m).await;
        assert_eq!(up.count(&blob(&image.layers[1])), 0, "{line}");
        pull_layer(&m, &image.layers[1]).await;
        quiet(&m).await;
        assert_eq!(up.count(&blob(&image.layers[1])), 1, "{line}");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_evicted_for_it() {
    let _frozen = freeze();
    let up = Registry::start().await;
    let m = Setup::new(&up).storage("maxsize: 100KB").start().await;
    let cached = [noise(7, 45_000), noise(8, 45_000)];
    for blob in &cached {
        up.put_blob("app", blob);
        pull_layer(&m, blob).await;
    }
    let image = image(1, &[5_000, 5_000, 2_000]);
    up.push("app", "1", &image);
    read_metadata(&m, &image).await;
    pull_layer(&m, &image.layers[0]).await;
    quiet(&m).await;
    assert_eq!(up.count(&blob(&image.layers[1])), 0);
    for blob in &cached {
        assert!(is_stored(&m, blob).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_adds_no_demand() {
    let _frozen = freeze();
    let up = Registry::start().await;
    let m = Setup::new(&up).proxy("ranges: passthrough").start().await;
    let layer = noise(1, 3_000_000);
    up.put_blob("app", &layer);
    let cold = m.head(&blob(&layer)).await;
    assert_eq!(
        (cold.status, cold.header("content-length")),
        (200, "3000000")
    );
    assert_eq!(up.count("GET "), 0);
    let line = format!("GET {}", blob(&layer));
    for _ in 0..2 {
        let range = m.ask(&line, &[("range", "bytes=0-1")]).await;
        range.expect(206, &layer[..2]);
        let head = m.head(&blob(&layer)).await;
        assert_eq!(
            (head.status, head.header("content-length")),
            (200, "3000000")
        );
        for _ in 0..10 {
            advance(Duration::from_secs(1)).await;
        }
    }
    for seen in up.seen("GET ") {
        assert!(seen.header("range").is_some(), "{seen:?}");
    }
    assert!(m.upstream_bytes() < 1_000_000, "{}", m.upstream_bytes());
}
