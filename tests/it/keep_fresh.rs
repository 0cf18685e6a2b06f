//! Tags that are kept fresh: revalidated before clients ask, and their new images fetched ahead.

use std::time::Duration;

use bytes::Bytes;
use millpond::oci::manifest::media_type;
use serde_json::json;

use crate::harness::{
    ALWAYS, Image, Mirror, Registry, Reply, Setup, advance, blob_path, mirrored_with, settle,
};
use crate::private::CALLER;

const MAIN: &str = "/v2/app/manifests/main";
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const PATTERN: &str = "proxy.keepfresh: {images: ['app:*']}";

/// An upstream, a mirror that keeps the tags of `app` fresh and has just fetched the image of one.
async fn warm(lines: &[&str]) -> (Registry, Mirror, Image) {
    let (up, m) = mirrored_with(&[&[PATTERN], lines].concat()).await;
    let image = Image::oci(1);
    up.push("app", "main", &image);
    pull(&m, &image).await;
    up.take();
    (up, m, image)
}

/// Pulls the tag's image; returns the sources of the answers.
async fn pull(m: &Mirror, image: &Image) -> Vec<String> {
    let mut sources = vec![m.serves(MAIN, &image.manifest).await.source().to_owned()];
    for blob in image.blobs() {
        let answer = m.pull(&blob_path("app", blob), blob).await;
        sources.push(answer.source().to_owned());
    }
    sources
}

/// Time passes in which the mirror can do what it does in the background.
async fn pass(m: &Mirror, time: Duration) {
    let mut left = time;
    while !left.is_zero() {
        let step = left.min(5 * SECOND);
        advance(step).await;
        m.idle().await;
        settle().await;
        left -= step;
    }
}

fn revalidated(m: &Mirror, result: &str) -> u64 {
    m.metric(&format!(
        "millpond_keepfresh_revalidations_total{{result=\"{result}\"}}"
    ))
}

#[tokio::test(start_paused = true)]
async fn a_tag_is_revalidated_before_its_time_is_over() {
    let (up, m, image) = warm(&[]).await;
    pass(&m, 90 * SECOND).await;
    let head = format!("HEAD {MAIN}");
    for _ in 0..20 {
        up.take();
        pass(&m, MINUTE).await;
        assert_eq!(m.serves(MAIN, &image.manifest).await.source(), "hit");
        let asked = up.take();
        assert!((1..=2).contains(&asked.len()), "{asked:?}");
        assert!(asked.iter().all(|line| *line == head), "{asked:?}");
    }
    assert!(revalidated(&m, "unchanged") >= 20);
    assert_eq!(m.metric("millpond_keepfresh_received_bytes_total"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_moved_tags_image_is_there_before_clients_ask() {
    let (up, m, _) = warm(&[]).await;
    let new = Image::oci(2);
    up.push("app", "main", &new);
    pass(&m, 3 * MINUTE).await;
    up.take();
    assert_eq!(pull(&m, &new).await, ["hit"; 4]);
    assert_eq!(up.count(""), 0);
    assert_eq!(revalidated(&m, "moved"), 1);
    let bytes: usize = new.blobs().map(Bytes::len).sum();
    let fetched = m.metric("millpond_keepfresh_received_bytes_total");
    assert_eq!(fetched, bytes as u64);
}

#[tokio::test(start_paused = true)]
async fn a_named_tag_is_fetched_although_nobody_has_pulled_it() {
    let up = Registry::start().await;
    let image = Image::oci(1);
    up.push("app", "main", &image);
    up.push("app", "other", &Image::oci(2));
    let line = "proxy.keepfresh: {images: ['app:main', 'app:o*', 'missing:1']}";
    let m = Setup::new(&up).with(&[line]).start().await;
    pass(&m, 10 * SECOND).await;
    up.take();
    assert_eq!(pull(&m, &image).await, ["hit"; 4]);
    assert_eq!(up.count(""), 0);
    assert_eq!(up.count("other"), 0, "a pattern fetches only what is known");
    // What isn't there is asked for once a minute.
    pass(&m, 4 * MINUTE).await;
    assert!((3..=5).contains(&up.count("/v2/missing/")));
    assert!(revalidated(&m, "failed") >= 4);
}

#[tokio::test(start_paused = true)]
async fn nothing_happens_outside_of_the_windows() {
    // It is 8:00 UTC.
    let line =
        "proxy.keepfresh: {images: ['app:main'], windows: ['11:00-12:00'], utcoffset: '+02:00'}";
    let (up, m) = mirrored_with(&[line]).await;
    up.push("app", "main", &Image::oci(1));
    pass(&m, 58 * MINUTE).await;
    assert_eq!(up.count(""), 0);
    pass(&m, 4 * MINUTE).await;
    assert!(up.count("HEAD ") + up.count("GET ") > 3);
    pass(&m, HOUR).await;
    up.take();
    pass(&m, HOUR).await;
    assert_eq!(up.count(""), 0);
}

#[tokio::test(start_paused = true)]
async fn the_bytes_of_a_day_are_limited() {
    let line = "proxy.keepfresh: {images: ['app:main'], daily: 5KB}";
    let (up, m) = mirrored_with(&[line]).await;
    let image = Image::oci(1);
    up.push("app", "main", &image);
    pass(&m, 10 * MINUTE).await;
    // The config and the first layer are small.
    assert_eq!(up.count("GET /v2/app/blobs/"), 2);
    assert!(m.is_stored(&image.layers[0]).await);
    assert!(!m.is_stored(&image.layers[1]).await);
    assert!(revalidated(&m, "deferred") > 0);
}

#[tokio::test(start_paused = true)]
async fn a_low_rate_limit_is_left_to_clients() {
    let (up, m, _) = warm(&[]).await;
    up.on("/manifests/", ALWAYS, |_, usual| {
        usual
            .with("RateLimit-Limit", "100;w=21600")
            .with("RateLimit-Remaining", "9;w=21600")
    });
    up.push("app", "main", &Image::oci(2));
    pass(&m, 2 * MINUTE).await;
    let asked = up.take();
    assert_eq!(
        asked
            .iter()
            .filter(|line| line.starts_with("HEAD "))
            .count(),
        1,
        "{asked:?}"
    );
    pass(&m, 5 * MINUTE).await;
    assert_eq!(up.take(), Vec::<String>::new());
    assert!(revalidated(&m, "deferred") > 0);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_fails_is_asked_once_a_minute() {
    let (up, m, image) = warm(&[]).await;
    up.reply("", ALWAYS, Reply::error(500));
    pass(&m, 10 * MINUTE).await;
    let asked = up.take().len();
    assert!((8..=11).contains(&asked), "{asked}");
    let answer = m.serves(MAIN, &image.manifest).await;
    assert!(answer.source().contains("detail=stale"));
}

#[tokio::test(start_paused = true)]
async fn tags_that_nobody_uses_are_left_alone() {
    let line = "proxy.keepfresh: {images: ['app:*'], usedwithin: 1h}";
    let (up, m) = mirrored_with(&[line]).await;
    let image = Image::oci(1);
    up.push("app", "main", &image);
    pull(&m, &image).await;
    pass(&m, 59 * MINUTE).await;
    assert!(up.count("HEAD ") > 50);
    pass(&m, 5 * MINUTE).await;
    up.take();
    pass(&m, HOUR).await;
    assert_eq!(up.count(""), 0);
}

#[tokio::test(start_paused = true)]
async fn upstreams_of_callers_are_left_alone() {
    let line = "proxy.keepfresh: {images: ['app:main']}";
    let (up, m) = mirrored_with(&[line, CALLER]).await;
    up.push("app", "main", &Image::oci(1));
    pass(&m, 5 * MINUTE).await;
    assert_eq!(up.count(""), 0);
}

/// An index of an image for each of these platforms.
fn index(images: &[(&Image, &str)]) -> Bytes {
    let entries = images.iter().map(|(image, architecture)| {
        let mut entry = image.descriptor();
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        entry
    });
    let manifests: Vec<_> = entries.collect();
    let index =
        json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests});
    index.to_string().into()
}

fn push_index(up: &Registry, images: &[(&Image, &str)]) -> Bytes {
    for (image, _) in images {
        up.push("app", image.digest().get(7..20).unwrap(), image);
    }
    let index = index(images);
    up.tag("app", "main", media_type::OCI_INDEX, &index);
    index
}

#[tokio::test(start_paused = true)]
async fn only_the_platforms_that_clients_pull_are_fetched() {
    let (up, m) = mirrored_with(&[PATTERN]).await;
    let [amd, arm, next_amd, next_arm] = [1, 2, 3, 4].map(Image::oci);
    let old = push_index(&up, &[(&amd, "amd64"), (&arm, "arm64")]);
    m.serves(MAIN, &old).await;
    // Both manifests are read, as some clients do, and the layers of one.
    for image in [&amd, &arm] {
        let path = format!("/v2/app/manifests/{}", image.digest());
        m.serves(&path, &image.manifest).await;
    }
    for blob in arm.blobs() {
        m.pull(&blob_path("app", blob), blob).await;
    }
    let new = push_index(&up, &[(&next_amd, "amd64"), (&next_arm, "arm64")]);
    pass(&m, 3 * MINUTE).await;
    assert_eq!(m.serves(MAIN, &new).await.source(), "hit");
    for (image, expected) in [(&next_arm, true), (&next_amd, false)] {
        for blob in image.blobs() {
            assert_eq!(m.is_stored(blob).await, expected);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn of_a_named_index_the_configured_platforms_are_fetched() {
    let up = Registry::start().await;
    let (amd, arm) = (Image::oci(1), Image::oci(2));
    push_index(&up, &[(&amd, "amd64"), (&arm, "arm64")]);
    let line = "proxy.keepfresh: {images: ['app:main'], platforms: [linux/arm64]}";
    let m = Setup::new(&up).with(&[line]).start().await;
    pass(&m, 10 * SECOND).await;
    for (image, expected) in [(&arm, true), (&amd, false)] {
        for blob in image.blobs() {
            assert_eq!(m.is_stored(blob).await, expected);
        }
    }
}
