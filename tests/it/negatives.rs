//! What an upstream doesn't have, or doesn't give, is remembered for a few seconds.

use std::time::Duration;

use millpond::oci::manifest::media_type;
use serde_json::json;

use crate::harness::{
    ALWAYS, Image, Mirror, Registry, Reply, advance, mirrored, mirrored_with, passing,
};
use crate::private::{ANN, BOB, Guard, private};

const TAG: &str = "/v2/app/manifests/1";
const TAGS: &str = "/v2/app/tags/list";
const SECOND: Duration = Duration::from_secs(1);
const REMEMBERED: &str = "hit; detail=negative";

/// Paths of a manifest, a tag, a blob and a list of tags.
fn paths() -> [String; 4] {
    let image = Image::oci(1);
    let blob = crate::harness::blob_path("app", &image.layers[0]);
    let manifest = format!("/v2/app/manifests/{}", image.digest());
    [manifest, TAG.to_owned(), blob, TAGS.to_owned()]
}

/// Asks twice; returns how often the upstream was asked.
async fn twice(up: &Registry, m: &Mirror, path: &str, status: u16) -> usize {
    up.take();
    for method in ["GET", "HEAD"] {
        let answer = passing(m.ask(&format!("{method} {path}"), &[])).await;
        assert_eq!(answer.status, status, "{method} {path}");
    }
    up.take().len()
}

#[tokio::test(start_paused = true)]
async fn a_404_and_a_403_are_remembered_and_nothing_else() {
    for status in [404, 403] {
        let (up, m) = mirrored().await;
        up.reply("", ALWAYS, Reply::error(status));
        for path in paths() {
            assert_eq!(twice(&up, &m, &path, status).await, 1, "{status} {path}");
            let answer = m.get(&path).await;
            assert_eq!(answer.source(), REMEMBERED);
            assert_eq!(up.count(""), 0);
            advance(10 * SECOND).await;
            assert_eq!(twice(&up, &m, &path, status).await, 1, "after 10 seconds");
        }
        let remembered = m.metric("millpond_negative_answers_total");
        assert_eq!(remembered, 12);
    }
    for status in [401, 500] {
        let (up, m) = mirrored().await;
        up.reply("", ALWAYS, Reply::error(status));
        for path in paths() {
            assert!(twice(&up, &m, &path, status).await >= 2, "{status} {path}");
        }
        assert_eq!(m.metric("millpond_negative_answers_total"), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn with_0_nothing_is_remembered() {
    let (up, m) = mirrored_with(&["proxy.negativettl: 0"]).await;
    for path in paths() {
        assert_eq!(twice(&up, &m, &path, 404).await, 2, "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_arrives_of_the_repository_ends_what_is_remembered() {
    let (up, m) = mirrored().await;
    let image = Image::oci(1);
    let missing = async || {
        for path in paths() {
            m.get(&path).await;
        }
    };
    // Pulled by digest.
    missing().await;
    let digest = up.push("app", "1", &image);
    m.get(TAG).await.refused(404, "MANIFEST_UNKNOWN");
    let other = Image::oci(2);
    up.push("app", "other", &other);
    let by_digest = format!("/v2/app/manifests/{}", other.digest());
    m.serves(&by_digest, &other.manifest).await;
    m.serves(TAG, &image.manifest).await;
    m.serves(&format!("/v2/app/manifests/{digest}"), &image.manifest)
        .await;
    // By a client with another Accept list.
    let (up, m) = mirrored().await;
    assert_eq!(m.get(TAG).await.status, 404);
    up.push("app", "1", &image);
    let narrow = [("accept", media_type::OCI_MANIFEST)];
    assert_eq!(m.ask(&format!("GET {TAG}"), &narrow).await.status, 200);
    m.serves(TAG, &image.manifest).await;
}

/// An upstream that is still being filled.
#[tokio::test(start_paused = true)]
async fn what_appears_is_found_within_the_time() {
    let (up, m) = mirrored().await;
    let image = Image::oci(1);
    for path in paths() {
        assert_eq!(m.get(&path).await.status, 404);
    }
    up.push("app", "1", &image);
    up.put_json(TAGS, &json!({"tags": ["1"]}));
    advance(10 * SECOND).await;
    for path in paths() {
        assert_eq!(m.get(&path).await.status, 200, "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_callers_answer_is_never_anothers() {
    for guard in [Guard::Basic, Guard::Hiding] {
        let (up, m, image) = private(guard, &[]).await;
        let path = "/v2/private/app/manifests/1";
        let asked_as = async |login: &str| {
            let answer = m
                .ask(&format!("GET {path}"), &[("authorization", login)])
                .await;
            (answer.status, up.take().len())
        };
        let refused = if guard == Guard::Basic { 403 } else { 404 };
        assert_eq!(asked_as(BOB).await.0, refused);
        assert_eq!(asked_as(BOB).await, (refused, 0));
        assert_eq!(asked_as(ANN).await.0, 200);
        assert_eq!(asked_as(BOB).await.0, refused);
        assert_eq!(asked_as(ANN).await, (200, 0), "{}", image.digest());
    }
}
