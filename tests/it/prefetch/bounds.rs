//! What bounds prefetching, and what ends it.

use super::*;
use crate::harness::{Reply, passing};

#[tokio::test(start_paused = true)]
async fn prefetching_respects_the_configured_number_of_downloads() {
    let (up, m) = mirrored_with(&["proxy.prefetch: {downloads: 1}"]).await;
    let (one, two) = (image(1, &[5_000; 4]), image(2, &[5_000; 3]));
    let mut gates = Vec::new();
    for image in [&one, &two] {
        up.push("app", "1", image);
        for layer in &image.layers[1..] {
            let gate = up.hold(&blob("app", layer), 1);
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
    m.counted(PREFETCHED, 25_000).await;
}

#[tokio::test(start_paused = true)]
async fn a_429_ends_the_prefetch() {
    let (up, m, image) = with_image(&["proxy.prefetch: {downloads: 1}"], &[5_000; 4]).await;
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
    told.refused(429, "TOOMANYREQUESTS");
    // No blob is asked for until then.
    advance(Duration::from_secs(7)).await;
    passing(m.get(&blob("app", third))).await.expect(200, third);
    assert_eq!(m.metric(PREFETCHED), 0);
}

#[tokio::test(start_paused = true)]
async fn an_image_is_prefetched_again_after_ten_minutes() {
    let (up, m) = mirrored_with(&["proxy.maxblobsize: 4KB"]).await;
    // The first layer is never cached, so that each pull begins with a miss.
    let content = vec![noise(1, 5_000), noise(2, 1_000), noise(3, 2_000)];
    let image = Image::layered(1, content, |_, _| ());
    up.push("app", "1", &image);
    let lost = blob("app", &image.layers[1]);
    up.reply(&lost, ALWAYS, Reply::error(404));
    begin_pull(&m, "app", &image).await;
    prefetched_only(&m, 2_000).await;
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
async fn more_images_than_the_bound_are_dropped() {
    let (up, m) = mirrored_with(&["proxy.prefetch: {downloads: 1}"]).await;
    let gate = Gate::default();
    let images: Vec<_> = (0..65).map(|seed| image(seed, &[5_000; 2])).collect();
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
    prefetched_only(&m, 64 * 5_000).await;
    // Its first layer is cached by now, and says nothing.
    pull_layer(&m, "app", &images[64].layers[1]).await;
    assert_eq!(m.metric(PREFETCHED), 64 * 5_000);
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_for_prefetches() {
    for started in [None, Some(1_000)] {
        let (up, m, image) = with_image(
            &["http.draintimeout: 30s", "proxy.prefetch: {downloads: 1}"],
            &[5_000; 3],
        )
        .await;
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
        let waits = self::image(2, &[5_000; 2]);
        up.push("app", "2", &waits);
        begin_pull(&m, "app", &waits).await;
        settle().await;
        let before = tokio::time::Instant::now();
        assert!(passing(m.app.stop()).await, "{started:?}");
        assert!(before.elapsed() < Duration::from_secs(5), "{started:?}");
        for layer in [&image.layers[2], &waits.layers[1]] {
            assert_eq!(up.count(&blob("app", layer)), 0, "{started:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn prefetching_respects_the_configured_size_of_an_image() {
    let (up, m) = mirrored_with(&["proxy.prefetch: {maxsize: 12KB}"]).await;
    // The third is too large for what is left, the fourth isn't.
    let image = image(1, &[5_000, 7_000, 6_000, 5_000]);
    up.push("app", "1", &image);
    begin_pull(&m, "app", &image).await;
    prefetched_only(&m, 12_000).await;
    assert!(!m.is_stored(&image.layers[2]).await);
    assert!(m.is_stored(&image.layers[3]).await);
}

/// A download ahead of clients continues while its image has clients, and ends with them.
#[tokio::test(start_paused = true)]
async fn a_prefetch_ends_when_the_clients_of_the_image_have_left() {
    let (up, m, image) = with_image(
        &["proxy.prefetch: {downloads: 1}", "proxy.onabandon: pause"],
        &[1_500_000, 1_500_000, 1_500_000],
    )
    .await;
    let never = Gate::default();
    for layer in &image.layers {
        let closed = never.clone();
        up.on(&blob("app", layer), ALWAYS, move |_, usual| {
            usual.gated(20_000, &closed)
        });
    }
    read_metadata(&m, "app", &image).await;
    let mut client = m.open(&blob("app", &image.layers[0])).await;
    client.chunk().await.unwrap().unwrap();
    let in_flight = || m.metric("millpond_downloads_in_flight");
    asked(&up, 1, &blob("app", &image.layers[1])).await;
    passing(tokio::time::sleep(Duration::from_secs(30))).await;
    assert_eq!(in_flight(), 2, "a client is there");
    drop(client);
    eventually("it leaves", || m.metric("millpond_followers") == 0).await;
    // Five seconds for the image, and five for its download.
    for _ in 0..12 {
        advance(Duration::from_secs(1)).await;
    }
    eventually("nothing is downloaded", || in_flight() == 0).await;
    assert_eq!(up.count(&blob("app", &image.layers[2])), 0);
    // The bytes that arrived are kept, and the next pull resumes from them.
    never.open();
    for layer in &image.layers {
        passing(pull_layer(&m, "app", layer)).await;
    }
    quiet(&m).await;
    let ranges = up.seen(&format!("GET {}", blob("app", &image.layers[1])));
    assert_eq!(ranges[1].header("range"), Some("bytes=20000-"));
}

#[tokio::test(start_paused = true)]
async fn layers_that_the_cache_cannot_hold_are_not_prefetched() {
    for line in ["storage.maxsize: 100KB", "storage.maxsize: 1MB"] {
        let (up, m, image) = with_image(
            &[line, "proxy.maxblobsize: 150KB"],
            &[5_000, 200_000, 6_000],
        )
        .await;
        begin_pull(&m, "app", &image).await;
        prefetched_only(&m, 6_000).await;
        assert_eq!(up.count(&blob("app", &image.layers[1])), 0, "{line}");
        pull_layer(&m, "app", &image.layers[1]).await;
        quiet(&m).await;
        assert_eq!(up.count(&blob("app", &image.layers[1])), 1, "{line}");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_evicted_for_a_prefetch() {
    let (up, m) = mirrored_with(&["storage.maxsize: 100KB"]).await;
    let cached = [noise(7, 45_000), noise(8, 45_000)];
    for blob in &cached {
        up.put_blob("app", blob);
        pull_layer(&m, "app", blob).await;
    }
    let image = image(1, &[5_000, 5_000, 2_000]);
    up.push("app", "1", &image);
    begin_pull(&m, "app", &image).await;
    quiet(&m).await;
    assert_eq!(up.count(&blob("app", &image.layers[1])), 0);
    for blob in &cached {
        assert!(m.is_stored(blob).await);
    }
}
