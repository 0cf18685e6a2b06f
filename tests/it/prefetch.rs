//! Layers that are fetched before a client asks for them, and when they aren't.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;

use crate::harness::{
    ALWAYS, Gate, Image, Mirror, Registry, Reply, Setup, advance, digest, eventually, freeze,
    mirrored, noise, passing, read, settle,
};

fn blob(repo: &str, bytes: &Bytes) -> String {
    format!("/v2/{repo}/blobs/{}", digest(bytes))
}

/// A client that pulls: the manifest, the config, and the first layer.
async fn begin_pull(m: &Mirror, repo: &str, image: &Image) {
    read_metadata(m, repo, image).await;
    pull_layer(m, repo, &image.layers[0]).await;
}

async fn pull_layer(m: &Mirror, repo: &str, layer: &Bytes) {
    m.get(&blob(repo, layer)).await.expect(200, layer);
}

/// The manifest and the config.
async fn read_metadata(m: &Mirror, repo: &str, image: &Image) {
    let manifest = format!("/v2/{repo}/manifests/{}", image.digest());
    m.get(&manifest).await.expect(200, &image.manifest);
    let config = m.get(&blob(repo, &image.config)).await;
    config.expect(200, &image.config);
}

async fn is_stored(m: &Mirror, bytes: &Bytes) -> bool {
    m.store.size(&digest(bytes)).await.unwrap().is_some()
}

/// Waits until the upstream has been asked so often.
async fn asked(up: &Registry, n: usize, part: &str) {
    eventually(part, || up.count(part) >= n).await;
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

/// Some layers, small ones.
fn layers(seed: u64, n: u64) -> Vec<Bytes> {
    (0..n).map(|i| noise(seed * 1000 + i, 5_000)).collect()
}

#[tokio::test(start_paused = true)]
async fn the_first_layer_brings_the_others() {
    let _frozen = freeze();
    let (up, m) = mirrored().await;
    let image = Image::oci(1);
    up.push("app", "1", &image);
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
    m.get(&first).await.expect(200, &image.layers[0]);
    m.counted("millpond_prefetched_bytes_total", 70_000).await;
    quiet(&m).await;
    let expected = image.layers.iter().map(|bytes| blob("app", bytes));
    let expected: Vec<_> = expected.map(|path| format!("GET {path}")).collect();
    assert_eq!(up.take(), expected);
    assert_eq!(m.metric("millpond_prefetched_used_bytes_total"), 0);
    for _ in 0..2 {
        let answer = m.get(&blob("app", &image.layers[1])).await;
        answer.expect(200, &image.layers[1]);
        assert_eq!(answer.header("cache-status"), "millpond; hit");
        assert_eq!(m.metric("millpond_prefetched_used_bytes_total"), 70_000);
    }
    assert_eq!(up.count(""), 0);
}

#[tokio::test(start_paused = true)]
async fn a_layer_before_its_manifest_starts_no_prefetch() {
    let _frozen = freeze();
    let (up, m) = mirrored().await;
    let image = Image::layered(1, layers(1, 3), |_, _| ());
    up.push("app", "1", &image);
    pull_layer(&m, "app", &image.layers[0]).await;
    quiet(&m).await;
    assert_eq!(up.count(""), 1);
    // One that is cached says nothing either; the first that isn't does.
    begin_pull(&m, "app", &image).await;
    quiet(&m).await;
    assert!(!is_stored(&m, &image.layers[2]).await);
    pull_layer(&m, "app", &image.layers[1]).await;
    m.counted("millpond_prefetched_bytes_total", 5_000).await;
    assert!(is_stored(&m, &image.layers[2]).await);
}

#[tokio::test(start_paused = true)]
async fn a_request_during_a_prefetch_joins_it() {
    let _frozen = freeze();
    let (up, m) = mirrored().await;
    let image = Image::layered(1, layers(1, 3), |_, _| ());
    let ahead = &image.layers[1..];
    up.push("app", "1", &image);
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
        assert_eq!(
            response.headers()["cache-status"],
            "millpond; fwd=uri-miss; collapsed"
        );
        read(response).await.expect(200, layer);
    }
    for path in &paths {
        assert_eq!(up.count(path), 1);
    }
    m.counted("millpond_prefetched_used_bytes_total", 10_000)
        .await;
    assert_eq!(m.metric("millpond_prefetched_bytes_total"), 10_000);
    quiet(&m).await;
    m.get(&paths[0]).await.expect(200, &ahead[0]);
    assert_eq!(m.metric("millpond_prefetched_used_bytes_total"), 10_000);
}

#[tokio::test(start_paused = true)]
async fn stored_and_duplicate_layers_are_not_prefetched() {
    let _frozen = freeze();
    let (up, m) = mirrored().await;
    let shared = noise(7, 5_000);
    let elsewhere = noise(8, 6_000);
    let wanted = noise(9, 7_000);
    let all = vec![
        noise(6, 4_000),
        shared.clone(),
        elsewhere.clone(),
        wanted.clone(),
        wanted.clone(),
    ];
    let image = Image::layered(1, all, |_, _| ());
    up.push("app", "1", &image);
    up.put_blob("other", &elsewhere);
    m.get(&blob("app", &shared)).await.expect(200, &shared);
    m.pull(&blob("other", &elsewhere), &elsewhere).await;
    up.take();
    begin_pull(&m, "app", &image).await;
    m.counted("millpond_prefetched_bytes_total", 7_000).await;
    quiet(&m).await;
    let asked = up.take();
    let layers: Vec<_> = asked
        .iter()
        .filter(|line| {
            !line.contains("/manifests/") && !line.ends_with(&blob("app", &image.config))
        })
        .collect();
    let expected = [&image.layers[0], &wanted].map(|layer| format!("GET {}", blob("app", layer)));
    assert_eq!(layers, expected.iter().collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn no_more_at_a_time_than_configured() {
    let _frozen = freeze();
    let up = Registry::start().await;
    let m = Setup::new(&up)
        .proxy("prefetch: {downloads: 1}")
        .start()
        .await;
    let (one, two) = (
        Image::layered(1, layers(1, 4), |_, _| ()),
        Image::layered(2, layers(2, 3), |_, _| ()),
    );
    let mut gates = Vec::new();
    for image in [&one, &two] {
        up.push("app", "1", image);
        for layer in &image.layers[1..] {
            let gate = Gate::default();
            let closed = gate.clone();
            up.on(&blob("app", layer), 1, move |_, usual| usual.held(&closed));
            gates.push((blob("app", layer), gate));
        }
    }
    begin_pull(&m, "app", &one).await;
    asked(&up, 1, &gates[0].0).await;
    begin_pull(&m, "app", &two).await;
    let asked = || {
        let asked = gates.iter().filter(|(path, _)| up.count(path) > 0);
        asked.count()
    };
    for n in 1..=gates.len() {
        eventually("the next layer", || asked() == n).await;
        for _ in 0..10 {
            settle().await;
        }
        assert_eq!(asked(), n, "one at a time");
        for (_, gate) in gates.iter().filter(|(path, _)| up.count(path) > 0) {
            gate.open();
        }
    }
    m.counted("millpond_prefetched_bytes_total", 25_000).await;
}

#[tokio::test(start_paused = true)]
async fn off_with_no_downloads_and_where_ranges_pass_through() {
    let _frozen = freeze();
    for line in ["prefetch: {downloads: 0}", "ranges: passthrough"] {
        let up = Registry::start().await;
        let m = Setup::new(&up).proxy(line).start().await;
        let image = Image::oci(1);
        up.push("app", "1", &image);
        begin_pull(&m, "app", &image).await;
        quiet(&m).await;
        assert_eq!(up.count("/blobs/"), 2, "{line}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_manifest_counts_for_its_repository_only() {
    let _frozen = freeze();
    let (up, m) = mirrored().await;
    let image = Image::layered(1, layers(1, 3), |_, _| ());
    up.push("mine", "1", &image);
    up.push("theirs", "1", &image);
    read_metadata(&m, "mine", &image).await;
    pull_layer(&m, "theirs", &image.layers[0]).await;
    quiet(&m).await;
    for layer in &image.layers[1..] {
        assert!(!is_stored(&m, layer).await);
    }
    read_metadata(&m, "theirs", &image).await;
    pull_layer(&m, "theirs", &image.layers[1]).await;
    m.counted("millpond_prefetched_bytes_total", 5_000).await;
    quiet(&m).await;
    assert_eq!(up.count("GET /v2/mine/blobs/"), 1, "its config");
    let path = blob("mine", &image.layers[2]);
    m.get(&path).await.expect(200, &image.layers[2]);
    assert_eq!(up.count(&format!("HEAD {path}")), 1, "proved on its own");
    up.take();
    let stranger = blob("strange", &image.layers[2]);
    assert_eq!(m.get(&stranger).await.status, 404);
}

#[tokio::test(start_paused = true)]
async fn layers_from_elsewhere_are_left_alone() {
    let _frozen = freeze();
    let (up, m) = mirrored().await;
    let image = Image::layered(1, layers(1, 4), |n, layer| match n {
        1 => layer["urls"] = serde_json::json!(["http://127.0.0.1:1/layer"]),
        2 => {
            layer["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".into();
        }
        _ => {}
    });
    up.push("app", "1", &image);
    begin_pull(&m, "app", &image).await;
    m.counted("millpond_prefetched_bytes_total", 5_000).await;
    quiet(&m).await;
    assert_eq!(up.count("/blobs/"), 3);
    assert!(is_stored(&m, &image.layers[3]).await);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_pushes_back_is_left_alone() {
    let _frozen = freeze();
    let up = Registry::start().await;
    let m = Setup::new(&up)
        .proxy("prefetch: {downloads: 1}")
        .start()
        .await;
    let image = Image::layered(1, layers(1, 4), |_, _| ());
    up.push("app", "1", &image);
    let [_, first, second, third] = &image.layers[..] else {
        panic!()
    };
    up.reply(&blob("app", first), ALWAYS, Reply::error(404));
    up.reply(&blob("app", second), ALWAYS, Reply::error(429));
    begin_pull(&m, "app", &image).await;
    passing(asked(&up, 1, &blob("app", second))).await;
    passing(quiet(&m)).await;
    assert_eq!(up.count(&blob("app", third)), 0);
    let told = passing(m.get(&blob("app", second))).await;
    assert_eq!(told.error(), (429, "TOOMANYREQUESTS".to_owned()));
    passing(m.get(&blob("app", third))).await.expect(200, third);
    assert_eq!(m.metric("millpond_prefetched_bytes_total"), 0);
}

#[tokio::test(start_paused = true)]
async fn an_image_is_looked_at_again_after_ten_minutes() {
    let _frozen = freeze();
    let up = Registry::start().await;
    // The first layer is never cached, so that each pull begins with a miss.
    let m = Setup::new(&up).proxy("maxblobsize: 4KB").start().await;
    let content = vec![noise(1, 5_000), noise(2, 1_000), noise(3, 2_000)];
    let image = Image::layered(1, content, |_, _| ());
    up.push("app", "1", &image);
    let lost = blob("app", &image.layers[1]);
    up.reply(&lost, ALWAYS, Reply::error(404));
    begin_pull(&m, "app", &image).await;
    m.counted("millpond_prefetched_bytes_total", 2_000).await;
    quiet(&m).await;
    let before = up.count(&lost);
    assert!(before > 0);
    advance(Duration::from_secs(599)).await;
    begin_pull(&m, "app", &image).await;
    quiet(&m).await;
    assert_eq!(up.count(&lost), before);
    advance(Duration::from_secs(1)).await;
    begin_pull(&m, "app", &image).await;
    asked(&up, before + 1, &lost).await;
}

#[tokio::test(start_paused = true)]
async fn too_many_images_at_once_are_not_waited_for() {
    let _frozen = freeze();
    let up = Registry::start().await;
    let m = Setup::new(&up)
        .proxy("prefetch: {downloads: 1}")
        .start()
        .await;
    let gate = Gate::default();
    let images: Vec<_> = (0..65)
        .map(|seed| Image::layered(seed, layers(seed, 2), |_, _| ()))
        .collect();
    for image in &images {
        up.push("app", "1", image);
        let closed = gate.clone();
        up.on(&blob("app", &image.layers[1]), 1, move |_, usual| {
            usual.held(&closed)
        });
    }
    for (image, dropped) in images.iter().zip((0..64).map(|_| 0).chain([1])) {
        begin_pull(&m, "app", image).await;
        assert_eq!(m.metric("millpond_prefetch_dropped_total"), dropped);
    }
    gate.open();
    m.counted("millpond_prefetched_bytes_total", 64 * 5_000)
        .await;
    quiet(&m).await;
    // Its first layer is cached by now, and says nothing.
    pull_layer(&m, "app", &images[64].layers[1]).await;
    assert_eq!(m.metric("millpond_prefetched_bytes_total"), 64 * 5_000);
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_nothing_that_nobody_waits_for() {
    let _frozen = freeze();
    for started in [None, Some(1_000)] {
        let up = Registry::start().await;
        let m = Setup::new(&up)
            .http("draintimeout: 30s")
            .proxy("prefetch: {downloads: 1}")
            .start()
            .await;
        let image = Image::layered(1, layers(1, 3), |_, _| ());
        up.push("app", "1", &image);
        let never = Gate::default();
        up.on(
            &blob("app", &image.layers[1]),
            ALWAYS,
            move |_, usual| match started {
                None => usual.held(&never),
                Some(at) => usual.gated(at, &never),
            },
        );
        begin_pull(&m, "app", &image).await;
        asked(&up, 1, &blob("app", &image.layers[1])).await;
        let waits = Image::layered(2, layers(2, 2), |_, _| ());
        up.push("app", "2", &waits);
        begin_pull(&m, "app", &waits).await;
        settle().await;
        let Mirror { app, .. } = m;
        let before = tokio::time::Instant::now();
        assert!(passing(app.stop()).await, "{started:?}");
        assert!(before.elapsed() < Duration::from_secs(5), "{started:?}");
        for layer in [&image.layers[2], &waits.layers[1]] {
            assert_eq!(up.count(&blob("app", layer)), 0, "{started:?}");
        }
    }
}
