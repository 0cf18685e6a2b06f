//! Prefetching: which layers are fetched before a client asks for them, and which aren't.

mod bounds;

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use millpond::oci::manifest::media_type;

use crate::harness::{
    ALWAYS, Gate, Image, Mirror, Registry, advance, digest, eventually, mirrored, mirrored_with,
    noise, put_blob, put_image, read, settle,
};

const PREFETCHED: &str = "millpond_prefetched_bytes_total";
const USED: &str = "millpond_prefetched_used_bytes_total";

fn blob(repo: &str, bytes: &Bytes) -> String {
    format!("/v2/{repo}/blobs/{}", digest(bytes))
}

/// A client that pulls: the manifest, the config, and the first layer.
async fn begin_pull(m: &Mirror, repo: &str, image: &Image) {
    read_metadata(m, repo, image).await;
    pull_layer(m, repo, &image.layers[0]).await;
}

async fn pull_layer(m: &Mirror, repo: &str, layer: &Bytes) {
    m.serves(&blob(repo, layer), layer).await;
}

/// The manifest and the config.
async fn read_metadata(m: &Mirror, repo: &str, image: &Image) {
    let manifest = format!("/v2/{repo}/manifests/{}", image.digest());
    m.serves(&manifest, &image.manifest).await;
    m.serves(&blob(repo, &image.config), &image.config).await;
}

/// Waits until the upstream has been asked so often.
async fn asked(up: &Registry, n: usize, part: &str) {
    eventually(part, || up.count(part) >= n).await;
}

/// Waits until nothing is fetched any more.
async fn quiet(m: &Mirror) {
    for _ in 0..2 {
        for _ in 0..20 {
            settle().await;
        }
        m.idle().await;
    }
}

/// So many bytes are prefetched, and nothing else follows.
async fn prefetched_only(m: &Mirror, bytes: u64) {
    m.counted(PREFETCHED, bytes).await;
    quiet(m).await;
}

/// An image with layers of these sizes.
fn image(seed: u64, sizes: &[usize]) -> Image {
    let layer = |(n, size): (usize, &usize)| noise(seed * 1000 + n as u64, *size);
    let layers = sizes.iter().enumerate().map(layer).collect();
    Image::layered(seed, layers, |_, _| ())
}

/// A mirror whose upstream has this image.
async fn with_image(lines: &[&str], layers: &[usize]) -> (Registry, Mirror, Image) {
    let (up, m) = mirrored_with(lines).await;
    let image = image(1, layers);
    up.push("app", "1", &image);
    (up, m, image)
}

#[tokio::test(start_paused = true)]
async fn the_first_layer_starts_a_prefetch_of_the_others() {
    let (up, m) = mirrored().await;
    let (image, _) = put_image(&up, 1);
    m.head("/v2/app/manifests/1").await;
    read_metadata(&m, "app", &image).await;
    let first = blob("app", &image.layers[0]);
    assert_eq!(m.head(&first).await.status, 200);
    let same = format!("\"{}\"", digest(&image.layers[0]));
    let current = m
        .ask(&format!("GET {first}"), &[("if-none-match", &same)])
        .await;
    assert_eq!(current.status, 304, "who has the layer doesn't pull");
    quiet(&m).await;
    assert_eq!(up.count("GET /v2/app/blobs/"), 1, "only the config");
    up.take();
    m.serves(&first, &image.layers[0]).await;
    prefetched_only(&m, 70_000).await;
    let expected = image.layers.iter().map(|bytes| blob("app", bytes));
    let expected: Vec<_> = expected.map(|path| format!("GET {path}")).collect();
    assert_eq!(up.take(), expected);
    assert_eq!(m.metric(USED), 0);
    for _ in 0..2 {
        let answer = m
            .serves(&blob("app", &image.layers[1]), &image.layers[1])
            .await;
        assert_eq!(answer.source(), "hit");
        assert_eq!(m.metric(USED), 70_000);
    }
    assert_eq!(up.count(""), 0);
}

#[tokio::test(start_paused = true)]
async fn a_layer_before_its_manifest_starts_no_prefetch() {
    let (up, m, image) = with_image(&[], &[5_000; 3]).await;
    pull_layer(&m, "app", &image.layers[0]).await;
    quiet(&m).await;
    assert_eq!(up.count(""), 1);
    // One that is cached says nothing either; the first that isn't does.
    begin_pull(&m, "app", &image).await;
    quiet(&m).await;
    assert!(!m.is_stored(&image.layers[2]).await);
    pull_layer(&m, "app", &image.layers[1]).await;
    m.counted(PREFETCHED, 5_000).await;
    assert!(m.is_stored(&image.layers[2]).await);
}

#[tokio::test(start_paused = true)]
async fn a_request_during_a_prefetch_joins_it() {
    let (up, m, image) = with_image(&[], &[5_000; 3]).await;
    let ahead = &image.layers[1..];
    let gate = Gate::default();
    for layer in ahead {
        let closed = gate.clone();
        up.on(&blob("app", layer), ALWAYS, move |_, usual| {
            usual.gated(10, &closed)
        });
    }
    begin_pull(&m, "app", &image).await;
    for layer in ahead {
        asked(&up, 1, &blob("app", layer)).await;
    }
    let paths: Vec<_> = ahead.iter().map(|l| blob("app", l)).collect();
    let joined = async {
        let all = ahead.len() as u64;
        eventually("all have joined", || m.metric("millpond_followers") == all).await;
        gate.open();
    };
    let opening = join_all(paths.iter().map(|path| m.open(path)));
    let (opened, ()) = tokio::join!(opening, joined);
    for (response, layer) in opened.into_iter().zip(ahead) {
        let answer = read(response).await;
        answer.expect(200, layer);
        assert_eq!(answer.source(), "fwd=uri-miss; collapsed");
    }
    for path in &paths {
        assert_eq!(up.count(path), 1);
    }
    m.counted(USED, 10_000).await;
    assert_eq!(m.metric(PREFETCHED), 10_000);
    quiet(&m).await;
    m.serves(&paths[0], &ahead[0]).await;
    assert_eq!(m.metric(USED), 10_000);
}

#[tokio::test(start_paused = true)]
async fn stored_and_duplicate_layers_are_not_prefetched() {
    let (up, m) = mirrored().await;
    let sizes = [4_000, 5_000, 6_000, 7_000];
    let [first, shared, elsewhere, wanted] = sizes.map(|size| noise(1, size));
    let all = [&first, &shared, &elsewhere, &wanted, &wanted].map(Bytes::clone);
    let image = Image::layered(1, all.to_vec(), |_, _| ());
    up.push("app", "1", &image);
    up.put_blob("other", &elsewhere);
    pull_layer(&m, "app", &shared).await;
    m.pull(&blob("other", &elsewhere), &elsewhere).await;
    up.take();
    begin_pull(&m, "app", &image).await;
    prefetched_only(&m, 7_000).await;
    let mut layers = up.take();
    let config = blob("app", &image.config);
    layers.retain(|line| !line.contains("/manifests/") && !line.ends_with(&config));
    let expected = [&first, &wanted].map(|layer| format!("GET {}", blob("app", layer)));
    assert_eq!(layers, expected);
}

#[tokio::test(start_paused = true)]
async fn prefetching_is_off_with_no_downloads_and_where_ranges_pass_through() {
    for line in [
        "proxy.prefetch: {downloads: 0}",
        "proxy.ranges: passthrough",
    ] {
        let (up, m) = mirrored_with(&[line]).await;
        let (image, _) = put_image(&up, 1);
        begin_pull(&m, "app", &image).await;
        quiet(&m).await;
        assert_eq!(up.count("/blobs/"), 2, "{line}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_manifest_starts_prefetches_for_its_own_repository_only() {
    let (up, m) = mirrored().await;
    let image = image(1, &[5_000; 3]);
    up.push("mine", "1", &image);
    up.push("theirs", "1", &image);
    read_metadata(&m, "mine", &image).await;
    pull_layer(&m, "theirs", &image.layers[0]).await;
    quiet(&m).await;
    for layer in &image.layers[1..] {
        assert!(!m.is_stored(layer).await);
    }
    read_metadata(&m, "theirs", &image).await;
    pull_layer(&m, "theirs", &image.layers[1]).await;
    prefetched_only(&m, 5_000).await;
    assert_eq!(up.count("GET /v2/mine/blobs/"), 1, "its config");
    let path = blob("mine", &image.layers[2]);
    m.serves(&path, &image.layers[2]).await;
    assert_eq!(up.count(&format!("HEAD {path}")), 1, "proved on its own");
    up.take();
    let stranger = blob("strange", &image.layers[2]);
    assert_eq!(m.get(&stranger).await.status, 404);
}

#[tokio::test(start_paused = true)]
async fn foreign_layers_are_not_prefetched() {
    let (up, m) = mirrored().await;
    let image = Image::layered(1, image(1, &[5_000; 4]).layers, |n, layer| match n {
        1 => layer["urls"] = serde_json::json!(["http://127.0.0.1:1/layer"]),
        2 => {
            layer["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".into();
        }
        _ => {}
    });
    up.push("app", "1", &image);
    begin_pull(&m, "app", &image).await;
    prefetched_only(&m, 5_000).await;
    assert_eq!(up.count("/blobs/"), 3);
    assert!(m.is_stored(&image.layers[3]).await);
}

#[tokio::test(start_paused = true)]
async fn metadata_starts_no_prefetch_and_a_platforms_layer_only_its_own() {
    let (up, m) = mirrored().await;
    let (amd64, arm64) = (image(1, &[5_000; 3]), image(2, &[5_000; 3]));
    let index = Image::index(media_type::OCI_INDEX, &[&amd64, &arm64]);
    for platform in [&amd64, &arm64] {
        up.push("app", &digest(&platform.manifest).hex(), platform);
    }
    up.tag("app", "1", media_type::OCI_INDEX, &index);
    m.serves("/v2/app/manifests/1", &index).await;
    for platform in [&amd64, &arm64] {
        read_metadata(&m, "app", platform).await;
    }
    quiet(&m).await;
    assert_eq!(up.count("/blobs/"), 2, "the configs");
    pull_layer(&m, "app", &amd64.layers[0]).await;
    prefetched_only(&m, 10_000).await;
    assert_eq!(up.count("/blobs/"), 5);
    for layer in &arm64.layers {
        assert_eq!(up.count(&blob("app", layer)), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_layer_of_several_images_starts_no_prefetch() {
    let (up, m) = mirrored().await;
    let shared = noise(9, 5_000);
    let images = [10, 20].map(|seed| {
        let layers = vec![shared.clone(), noise(seed, 5_000), noise(seed + 1, 5_000)];
        Image::layered(seed, layers, |_, _| ())
    });
    for image in &images {
        up.push("app", &digest(&image.manifest).hex(), image);
        read_metadata(&m, "app", image).await;
    }
    pull_layer(&m, "app", &shared).await;
    quiet(&m).await;
    assert_eq!(up.count("/blobs/"), 3, "the configs and the layer");
    pull_layer(&m, "app", &images[0].layers[1]).await;
    prefetched_only(&m, 5_000).await;
    assert!(m.is_stored(&images[0].layers[2]).await);
    for layer in &images[1].layers[1..] {
        assert_eq!(up.count(&blob("app", layer)), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_downloads_nothing() {
    let (up, m) = mirrored_with(&["proxy.ranges: passthrough"]).await;
    let (layer, path) = put_blob(&up, 1, 3_000_000);
    let head_is_answered = async || {
        let head = m.head(&path).await;
        assert_eq!(head.status, 200);
        assert_eq!(head.header("content-length"), "3000000");
    };
    head_is_answered().await;
    assert_eq!(up.count("GET "), 0);
    for _ in 0..2 {
        let range = m.range(&path, "bytes=0-1").await;
        range.expect(206, &layer[..2]);
        head_is_answered().await;
        for _ in 0..10 {
            advance(Duration::from_secs(1)).await;
        }
    }
    for seen in up.seen("GET ") {
        assert!(seen.header("range").is_some(), "{seen:?}");
    }
    assert!(m.upstream_bytes() < 1_000_000, "{}", m.upstream_bytes());
}
