//! What the log says of an upstream that fails, with the access log off.

use std::time::Duration;

use crate::harness::log::Warnings;
use crate::harness::{
    ALWAYS, Image, Registry, Reply, Setup, advance, freeze, mirrored, noise, passing,
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
    let _frozen = freeze();
    let warnings = Warnings::collect();
    let (up, m) = mirrored().await;
    let url = format!("{}/v2/app/manifests/", up.url());
    up.reply("/manifests/", ALWAYS, Reply::error(500));
    for tag in 0..20 {
        let answer = m
            .get(&format!("/v2/app/manifests/{tag}?token=s3cret"))
            .await;
        assert_eq!(answer.status, 500);
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
    let _frozen = freeze();
    let warnings = Warnings::collect();
    let up = Registry::start().await;
    let image = Image::oci(1);
    up.push("app", "1", &image);
    let m = Setup::new(&up).start().await;
    m.get("/v2/app/manifests/1").await;
    up.go_down();
    advance(Duration::from_mins(2)).await;
    m.serves("/v2/app/manifests/1", &image.manifest).await;
    assert_says(
        &warnings.take(),
        &[
            "status=500",
            "instead=\"served the last known digest of the tag\"",
        ],
    );
}

#[tokio::test]
async fn for_a_wrong_password_the_log_says_so() {
    let warnings = Warnings::collect();
    let up = Registry::start().await;
    up.protect(Some(("user", "s3cret")));
    up.push("app", "1", &Image::oci(1));
    let m = Setup::new(&up)
        .proxy("username: user")
        .proxy("password: wr0ng")
        .start()
        .await;
    let digest = up.put_blob("app", &noise(1, 1000));
    for path in ["manifests/1".to_owned(), format!("blobs/{digest}")] {
        assert_eq!(m.get(&format!("/v2/app/{path}")).await.status, 401);
    }
    let lines = warnings.take();
    let about: Vec<String> = lines
        .iter()
        .filter(|line| line.contains("the upstream failed"))
        .cloned()
        .collect();
    let refused = "the configured credentials were refused with status 401";
    assert_says(&about, &[refused, "/token", "status=401"]);
    assert!(
        lines.iter().all(|line| !line.contains("wr0ng")),
        "{lines:?}"
    );
}

#[tokio::test]
async fn downloads_that_fail_have_one_warning_for_all() {
    let warnings = Warnings::collect();
    let (up, m) = mirrored().await;
    let digests: Vec<_> = (0..5)
        .map(|seed| up.put_blob("app", &noise(seed, 1000)))
        .collect();
    up.reply("/blobs/", ALWAYS, Reply::error(403));
    for digest in digests {
        assert_eq!(m.get(&format!("/v2/app/blobs/{digest}")).await.status, 403);
    }
    assert_says(
        &warnings.take(),
        &["status=403", "/v2/app/blobs/", "instead="],
    );
}
