//! A mirror that never asks an upstream (`proxy.offline`).

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::harness::log::Warnings;
use crate::harness::{
    Image, Mirror, Registry, Setup, advance, blob_path, mirrored_with, passing, put_blob,
    put_image, settle,
};

const OFFLINE: &str = "proxy.offline: true";
/// More than the time to live, and than what a start gives content that is due.
const LONG: Duration = Duration::from_hours(2);

/// The mirror stops; the next one over the same content is offline.
async fn go_offline(up: &Registry, m: Mirror) -> Mirror {
    let store = Arc::clone(&m.store);
    assert!(passing(m.app.stop()).await);
    Setup::new(up).with(&[OFFLINE]).store(store).start().await
}

#[tokio::test(start_paused = true)]
async fn cached_content_is_served_and_never_expires() {
    let warnings = Warnings::collect();
    let (up, m) = mirrored_with(&["proxy.ttl: 1h"]).await;
    let (image, by_digest) = put_image(&up, 1);
    m.serves("/v2/app/manifests/1", &image.manifest).await;
    for blob in image.blobs() {
        m.pull(&blob_path("app", blob), blob).await;
    }
    let m = go_offline(&up, m).await;
    let asked = up.count("");
    for _ in 0..2 {
        for path in ["/v2/app/manifests/1", &by_digest] {
            let answer = m.serves(path, &image.manifest).await;
            assert_eq!(answer.source(), "hit", "{path}");
            assert_eq!(m.head(path).await.source(), "hit", "{path}");
        }
        for blob in image.blobs() {
            let path = blob_path("app", blob);
            assert_eq!(m.serves(&path, blob).await.source(), "hit");
            assert_eq!(m.head(&path).await.status, 200);
        }
        let tags = m.get("/v2/app/tags/list").await;
        assert_eq!(
            (tags.source(), &tags.json()["tags"]),
            ("hit", &json!(["1"]))
        );
        let referrers = by_digest.replace("manifests", "referrers");
        let referrers = m.get(&referrers).await;
        assert_eq!(
            (referrers.status, &referrers.json()["manifests"]),
            (200, &json!([]))
        );
        assert_eq!(
            m.get("/v2/_catalog").await.json()["repositories"],
            json!(["app"])
        );
        advance(LONG).await;
        settle().await;
    }
    assert_eq!(up.count(""), asked, "the upstream was asked");
    assert_eq!(warnings.take(), [] as [&str; 0]);
}

#[tokio::test]
async fn what_is_not_cached_is_a_404_that_says_why() {
    let warnings = Warnings::collect();
    let (up, other) = (Registry::start().await, Registry::start().await);
    let endpoints = format!("proxy.endpoints: [{{}}, {{url: '{}'}}]", other.url());
    let m = Setup::new(&up).with(&[OFFLINE, &endpoints]).start().await;
    let (_, by_digest) = put_image(&up, 1);
    let (_, blob) = put_blob(&up, 2, 1000);
    for (path, code) in [
        ("/v2/app/manifests/1", "MANIFEST_UNKNOWN"),
        (&*by_digest, "MANIFEST_UNKNOWN"),
        (&*blob, "BLOB_UNKNOWN"),
        ("/v2/app/tags/list", "NAME_UNKNOWN"),
    ] {
        let answer = m.get(path).await;
        answer.refused(404, code);
        let document = answer.json();
        let message = document["errors"][0]["message"].as_str().unwrap();
        assert!(message.contains("this mirror is offline"), "{message}");
    }
    assert_eq!(m.head(&blob).await.status, 404);
    assert_eq!(m.head(&by_digest).await.status, 404);
    assert_eq!((up.count(""), other.count("")), (0, 0));
    assert_eq!(m.metric("millpond_endpoint_failures_total"), 0);
    assert_eq!(m.metric("millpond_upstream_degraded"), 0);
    assert_eq!(warnings.take(), [] as [&str; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_blob_of_another_repository_is_served_where_a_manifest_refers_to_it() {
    let (up, m) = mirrored_with(&[]).await;
    let image = Image::oci(1);
    let layer = image.layers.last().unwrap();
    up.push("app", "1", &image);
    up.push("other", "1", &image);
    m.serves("/v2/other/manifests/1", &image.manifest).await;
    m.pull(&blob_path("app", layer), layer).await;
    let m = go_offline(&up, m).await;
    assert_eq!(
        m.serves(&blob_path("other", layer), layer).await.source(),
        "hit"
    );
    assert_eq!(m.get(&blob_path("third", layer)).await.status, 404);
}
