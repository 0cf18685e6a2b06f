//! Registries that break, are slow, or let tokens expire; and a process that is killed.

use std::process::Child;
use std::time::Duration;

use bytes::Bytes;
use testkit::poll;

use super::{INDEX, User, at, put_index, received, registries};
use crate::harness::{ALWAYS, Image, Registry, Reply, digest, noise};

const MIB: usize = 1 << 20;

/// One image with one large layer, in a repository `a`.
fn push_layer(source: &Registry, size: usize) -> Bytes {
    let layer = noise(1, size);
    source.push("a", "1", &Image::layered(1, vec![layer.clone()], |_, _| ()));
    layer
}

fn stored(target: &Registry, layer: &[u8]) -> Option<Bytes> {
    target.content(&format!("/v2/a/blobs/{}", digest(layer)))
}

/// Waits for another process.
fn wait_until(what: &str, happened: impl FnMut() -> bool) {
    tokio::task::block_in_place(|| poll(what, happened));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_may_break_once_at_each_step() {
    type Break = fn() -> Reply;
    let breaks: [(&str, Break); 3] = [
        ("hangs up", Reply::hang_up),
        ("503", || Reply::error(503)),
        ("429", || Reply::error(429)),
    ];
    let steps = [
        (true, "GET /v2/a/manifests/"),
        (true, "GET /v2/a/manifests/sha256"),
        (true, "/referrers/"),
        (true, "GET /v2/a/blobs/"),
        (false, "HEAD /v2/a/manifests/"),
        (false, "HEAD /v2/a/blobs/"),
        (false, "POST"),
        (false, "PATCH"),
        (false, "PUT /v2/a/blobs/"),
        (false, "PUT /v2/a/manifests/sha256"),
        (false, "PUT /v2/a/manifests/1"),
    ];
    let runs = steps
        .iter()
        .flat_map(|step| breaks.iter().map(move |broken| (step, broken)));
    let runs = runs.map(async |((is_source, step), (name, broken))| {
        let (source, target) = registries().await;
        let (index, signature) = put_index(&source, "a", "1");
        let large = noise(1, MIB);
        let image = Image::layered(1, vec![large.clone()], |_, _| ());
        source.push("a", "2", &image);
        source.put_json(
            "/v2/a/tags/list",
            &serde_json::json!({"name": "a", "tags": ["1", "2"]}),
        );
        let registry = if *is_source { &source } else { &target };
        registry.reply(step, 1, broken());
        let user = User::new();
        let (from, to) = (at(&source, "a"), at(&target, "a"));
        let ran = user.run(&["--all-tags", &from, &to]).await;
        assert_eq!(ran.code, 0, "{step} {name}: {}", ran.err);
        assert!(registry.count(step) > 0, "{step} {name}");
        assert_eq!(target.content("/v2/a/manifests/1"), Some(index));
        assert_eq!(target.content("/v2/a/manifests/2"), Some(image.manifest));
        let signature = target.content(&format!("/v2/a/manifests/{}", signature.digest()));
        assert!(signature.is_some(), "{step} {name}");
        assert!(stored(&target, &large) == Some(large), "{step} {name}");
    });
    futures_util::future::join_all(runs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_stays_broken_never_shows_an_incomplete_image() {
    let steps = [
        "HEAD /v2/a/blobs/",
        "POST",
        "PATCH",
        "PUT /v2/a/blobs/",
        "PUT /v2/a/manifests/sha256",
    ];
    let runs = steps.map(async |step| {
        let (source, target) = registries().await;
        put_index(&source, "a", "1");
        let large = Image::layered(1, vec![noise(1, MIB)], |_, _| ());
        let index = serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [large.descriptor()]});
        source.push("a", "2", &large);
        source.tag("a", "1", INDEX, &index.to_string().into());
        target.reply(step, ALWAYS, Reply::error(403));
        let ran = User::new().run(&[&at(&source, "a:1"), &at(&target, "a")]).await;
        assert_eq!(ran.code, 3, "{step}: {}", ran.err);
        assert!(ran.err.contains("FAILED"), "{}", ran.err);
        assert_eq!(target.content("/v2/a/manifests/1"), None, "{step}");
    });
    futures_util::future::join_all(runs).await;
}

/// Runs a copy of a large layer, kills it once so many bytes have arrived, and returns how many did.
async fn killed_at(user: &User, source: &Registry, target: &Registry, bytes: usize) -> usize {
    let mut command = user.command(&[&at(source, "a:1"), &at(target, "a")]);
    let mut child: Child = command.args(["--quiet"]).spawn().unwrap();
    wait_until("so much has arrived", || received(target) >= bytes);
    child.kill().unwrap();
    tokio::task::spawn_blocking(move || child.wait())
        .await
        .unwrap()
        .unwrap();
    received(target)
}

#[tokio::test(flavor = "multi_thread")]
async fn after_kill_9_at_any_point_the_next_run_goes_on() {
    const SIZE: usize = 32 * MIB;
    let points = [SIZE / 20, SIZE / 2, SIZE - SIZE / 20];
    let random = std::iter::repeat_with(|| fastrand::usize(1..SIZE)).take(3);
    for point in points.into_iter().chain(random) {
        let (source, target) = registries().await;
        let layer = push_layer(&source, SIZE);
        let path = format!("GET /v2/a/blobs/{}", digest(&layer));
        let gate = source.hold_body(&path, 1, point);
        let user = User::new();
        // The configuration is small and arrives, too.
        killed_at(&user, &source, &target, point).await;
        target.wait(1, "PATCH").await;
        gate.open();
        user.copy(&[&at(&source, "a:1"), &at(&target, "a")]).await;
        assert!(stored(&target, &layer) == Some(layer), "the blob is whole");
        let received = received(&target);
        assert!(
            received <= SIZE + SIZE / 20,
            "{received} bytes were sent of {SIZE}, killed at {point}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_live_five_seconds_are_renewed_on_the_way() {
    let (source, target) = registries().await;
    let layers = (1..4).map(|n| noise(n, 3 * MIB)).collect();
    let image = Image::layered(1, layers, |_, _| ());
    source.push("a", "1", &image);
    target.protect_for(Some(("user", "secret")), Duration::from_secs(5));
    // Each layer takes 3 s.
    target.receive_slowly(MIB as u64);
    let user = User::new();
    std::fs::write(user.path("password"), "secret\n").unwrap();
    let password = user.path("password");
    let account = [
        "--dst-username",
        "user",
        "--dst-password-file",
        &password,
        "--jobs",
        "1",
    ];
    user.copy(&[&account[..], &[&at(&source, "a:1"), &at(&target, "a")]].concat())
        .await;
    assert!(target.count("/token") > 1);
    assert_eq!(target.content("/v2/a/manifests/1"), Some(image.manifest));
    // No layer was sent twice.
    assert!(received(&target) < 10 * MIB, "{}", received(&target));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_may_expire_before_a_body_is_sent() {
    let (source, target) = registries().await;
    let layer = push_layer(&source, MIB);
    target.protect(None);
    target.on("PATCH", 1, |seen, _| {
        Reply::challenge(seen, "repository:a:pull,push")
    });
    User::new()
        .copy(&[&at(&source, "a:1"), &at(&target, "a")])
        .await;
    assert!(stored(&target, &layer) == Some(layer), "the blob is whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_goes_on_for_a_while_when_the_destination_stands_still() {
    const SIZE: usize = 64 * MIB;
    // Of a blob, 1/32 may be in the file, and 1 MiB in memory.
    const SPOOL: usize = SIZE / 32 + MIB;
    // With a rate, it counts what it has sent of a body in small steps.
    let source = Registry::with(testkit::Options::default().rate(1 << 30)).await;
    let (_, target) = registries().await;
    let layer = push_layer(&source, SIZE);
    let gate = target.hold_receiving(MIB as u64);
    let user = User::new();
    let mut command = user.command(&[&at(&source, "a:1"), &at(&target, "a")]);
    let mut child: Child = command.args(["--quiet"]).spawn().unwrap();
    let sent = || usize::try_from(source.blob_bytes()).unwrap();
    wait_until("the source is ahead", || sent() > MIB + SPOOL);
    gate.open();
    let ended = tokio::task::spawn_blocking(move || child.wait());
    assert!(ended.await.unwrap().unwrap().success());
    assert!(stored(&target, &layer) == Some(layer), "the blob is whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_source_costs_the_destination_no_further_requests() {
    let source = Registry::with(testkit::Options::default().rate(2 << 20)).await;
    let (_, target) = registries().await;
    let layer = push_layer(&source, 4 * MIB);
    User::new()
        .copy(&[&at(&source, "a:1"), &at(&target, "a")])
        .await;
    assert_eq!((target.count("PATCH"), target.count("POST")), (1, 2));
    assert!(stored(&target, &layer) == Some(layer), "the blob is whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_place_for_the_spool_memory_is_used() {
    let (source, target) = registries().await;
    let layer = push_layer(&source, 8 * MIB);
    target.receive_slowly(8 << 20);
    let options = ["--spool", "/proc/there-is-no-room"];
    let ran = User::new()
        .run(&[&options[..], &[&at(&source, "a:1"), &at(&target, "a")]].concat())
        .await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.contains("won't resume"), "{}", ran.err);
    assert!(stored(&target, &layer) == Some(layer), "the blob is whole");
}
