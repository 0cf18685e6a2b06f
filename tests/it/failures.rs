//! What the log says of an upstream that fails, with the access log off.

use std::time::Duration;

use crate::harness::log::Warnings;
use crate::harness::{
    ALWAYS, Image, Reply, advance, mirrored, mirrored_with, passing, put_blob, put_image,
};

#[track_caller]
fn assert_says(lines: &[String], parts: &[&str]) {
    assert_eq!(lines.len(), 1, "{lines:?}");
    for part in parts {
        assert!(lines[0].contains(part), "{part}: {lines:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_kind_of_failure_has_one_warning_a_minute() {
    let warnings = Warnings::collect();
    let (up, m) = mirrored().await;
    let url = format!("{}/v2/app/manifests/", up.url());
    up.reply("/manifests/", ALWAYS, Reply::error(500));
    for tag in 0..20 {
        let path = format!("/v2/app/manifests/{tag}?token=s3cret");
        assert_eq!(m.get(&path).await.status, 500);
    }
    let told = "instead=\"the client was told of the failure\"";
    let lines = warnings.take();
    assert_says(&lines, &["WARN", "status=500", &url, told, "unlogged=0"]);
    assert!(!lines[0].contains("s3cret"), "{lines:?}");
    // Another kind has its own line, with its causes.
    up.behave();
    up.reply("/manifests/", ALWAYS, Reply::hang_up());
    passing(m.get("/v2/app/manifests/x")).await;
    assert_says(&warnings.take(), &["connection was lost", ": ", &url, told]);
    advance(Duration::from_mins(1)).await;
    up.behave();
    up.reply("/manifests/", ALWAYS, Reply::error(500));
    m.get("/v2/app/manifests/y").await;
    assert_says(&warnings.take(), &["status=500", "unlogged=19"]);
    // What isn't there is no failure.
    up.behave();
    m.get("/v2/app/manifests/missing").await;
    assert_eq!(warnings.take(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_warning_says_what_was_served_instead() {
    let warnings = Warnings::collect();
    let (up, m) = mirrored().await;
    let (image, _) = put_image(&up, 1);
    m.get("/v2/app/manifests/1").await;
    up.go_down();
    advance(Duration::from_mins(2)).await;
    m.serves("/v2/app/manifests/1", &image.manifest).await;
    let instead = "instead=\"served the last known digest of the tag\"";
    assert_says(&warnings.take(), &["status=500", instead]);
}

#[tokio::test]
async fn for_a_wrong_password_the_log_says_so() {
    let warnings = Warnings::collect();
    let (up, m) = mirrored_with(&["proxy.username: user", "proxy.password: wr0ng"]).await;
    up.protect(Some(("user", "s3cret")));
    up.push("app", "1", &Image::oci(1));
    let (_, blob) = put_blob(&up, 1, 1000);
    for path in ["/v2/app/manifests/1", &blob] {
        assert_eq!(m.get(path).await.status, 401);
    }
    let lines = warnings.take();
    let mut about = lines.clone();
    about.retain(|line| line.contains("the upstream failed"));
    let refused = "the configured credentials were refused with status 401";
    assert_says(&about, &[refused, "/token", "status=401"]);
    let secret = lines.iter().any(|line| line.contains("wr0ng"));
    assert!(!secret, "{lines:?}");
}

#[tokio::test]
async fn cache_status_names_the_status_that_refused_the_credentials() {
    for status in [401, 403] {
        let (up, m) = mirrored_with(&["proxy.username: user", "proxy.password: wr0ng"]).await;
        up.protect(Some(("user", "s3cret")));
        up.push("app", "1", &Image::oci(1));
        up.reply("/token", ALWAYS, Reply::error(status));
        let answer = m.get("/v2/app/manifests/1").await;
        assert_eq!(answer.status, status);
        assert_eq!(answer.source(), format!("fwd=miss; fwd-status={status}"));
    }
}

#[tokio::test]
async fn downloads_that_fail_have_one_warning_for_all() {
    let warnings = Warnings::collect();
    let (up, m) = mirrored().await;
    up.reply("/blobs/", ALWAYS, Reply::error(403));
    for seed in 0..5 {
        let (_, path) = put_blob(&up, seed, 1000);
        assert_eq!(m.get(&path).await.status, 403);
    }
    let parts = ["status=403", "/v2/app/blobs/", "instead="];
    assert_says(&warnings.take(), &parts);
}
