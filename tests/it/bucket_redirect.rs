//! Redirects of clients to the bucket.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use millpond::config::{RedirectMode, SharedStorage};
use millpond::oci::manifest::media_type;
use serde_json::json;

use crate::bucket::{MIB, blob_key, link_key, put, registries, uploaded};
use crate::harness::push::{OPEN, Pusher, SPACE};
use crate::harness::replicas::{Relay, SECRET, section};
use crate::harness::{
    ALWAYS, Answer, Image, Mirror, Registry, Reply, Setup, advance, blob_path, digest, eventually,
    noise, put_blob, put_image, read,
};
use crate::private::{ANN, BOB, CALLER, Guard, guard};

const IN_FLIGHT: &str = "millpond_blob_bodies_in_flight";

fn always(shared: &mut SharedStorage) {
    shared.redirect = RedirectMode::Always;
}

async fn redirecting(up: &Registry, bucket: &Registry) -> Mirror {
    Setup::new(up).bucket_with(bucket, always).start().await
}

/// Puts a blob into the bucket, with the link of the repository `app`, and not into the upstream. Returns it
/// with its path.
fn put_shared(bucket: &Registry, seed: u64, size: usize) -> (Bytes, String) {
    let blob = noise(seed, size);
    put(bucket, "app", "_layers", &blob);
    let path = blob_path("app", &blob);
    (blob, path)
}

/// What a client gets that follows a redirect: without credentials, and with its `Range`.
async fn follow(answer: &Answer, range: Option<&str>) -> Answer {
    assert_eq!(answer.status, 307);
    let client = reqwest::Client::builder().tls_certs_only([]);
    let request = client.build().unwrap().get(answer.header("location"));
    let request = range
        .into_iter()
        .fold(request, |request, range| request.header("range", range));
    read(request.send().await.unwrap()).await
}

fn redirects(m: &Mirror) -> u64 {
    m.metric("millpond_bucket_redirects_total")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_get_of_a_blob_in_the_bucket_is_redirected() {
    let (up, bucket) = registries().await;
    let m = redirecting(&up, &bucket).await;
    let (blob, path) = put_shared(&bucket, 1, MIB);
    bucket.wait(1, "list-type").await;
    bucket.take();
    let answer = m.get(&path).await;
    answer.expect(307, b"");
    let start = format!("{}/shared/{}?", bucket.url(), blob_key(&blob));
    let location = answer.header("location");
    assert!(location.starts_with(&start), "{location}");
    answer.has("docker-content-digest", digest(&blob));
    answer.has("cache-control", "no-store");
    answer.has("content-length", 0);
    answer.has("cache-status", "millpond; detail=redirected");
    assert_eq!(bucket.take().len(), 2);
    let followed = follow(&answer, None).await;
    followed.expect(200, &blob);
    assert_eq!(digest(&followed.body), digest(&blob));
    assert_eq!(bucket.seen("")[0].header("authorization"), None);
    bucket.take();
    // Nothing passes through this machine, and nobody is asked again.
    follow(&m.get(&path).await, None).await.expect(200, &blob);
    assert_eq!(bucket.take().len(), 1);
    assert_eq!(up.lines(), [] as [&str; 0]);
    assert!(!m.is_stored(&blob).await);
    assert_eq!(redirects(&m), 2);
    let counted = "millpond_requests_total{route=\"blob\",status=\"307\",result=\"redirected\"}";
    m.counted(counted, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn by_default_nothing_is_redirected() {
    let (up, bucket) = registries().await;
    let m = Setup::new(&up).bucket(&bucket).start().await;
    let (blob, path) = put_shared(&bucket, 1, MIB);
    for _ in 0..2 {
        m.serves(&path, &blob).await;
    }
    assert_eq!((redirects(&m), m.metric(IN_FLIGHT)), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_uploaded_is_redirected_without_asking() {
    let (up, bucket) = registries().await;
    let m = redirecting(&up, &bucket).await;
    let (blob, path) = put_blob(&up, 1, MIB);
    m.serves(&path, &blob).await;
    uploaded(&m).await;
    bucket.take();
    let answer = m.get(&path).await;
    assert_eq!(bucket.take(), [] as [&str; 0]);
    follow(&answer, None).await.expect(200, &blob);
    // HEAD is answered here.
    let head = m.head(&path).await;
    assert_eq!(head.status, 200);
    head.has("content-length", blob.len());
    // Manifests are served.
    let (image, by_digest) = put_image(&up, 2);
    for _ in 0..2 {
        m.serves(&by_digest, &image.manifest).await;
        uploaded(&m).await;
    }
}

/// Waits until so many bodies of blobs are being sent.
async fn sends(m: &Mirror, count: u64) {
    eventually("another number of bodies", || m.metric(IN_FLIGHT) == count).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_redirected_while_many_bodies_are_sent() {
    let (up, bucket) = registries().await;
    let busy = |shared: &mut SharedStorage| {
        shared.redirect = RedirectMode::Busy;
        shared.redirect_above = 1;
    };
    let m = Setup::new(&up).bucket_with(&bucket, busy).start().await;
    let (shared, path) = put_shared(&bucket, 1, MIB);
    let slow = [2, 3, 4].map(|seed| put_blob(&up, seed, 3 * MIB));
    let gate = up.hold_body("GET /v2/app/blobs/", 3, MIB);
    let mut opened = vec![m.open(&slow[0].1).await];
    assert_eq!(m.metric(IN_FLIGHT), 1);
    m.serves(&path, &shared).await;
    sends(&m, 1).await;
    opened.push(m.open(&slow[1].1).await);
    assert_eq!(m.metric(IN_FLIGHT), 2);
    // It was read with its link before.
    bucket.take();
    let answer = m.get(&path).await;
    assert_eq!(bucket.take(), [] as [&str; 0]);
    follow(&answer, None).await.expect(200, &shared);
    // What the bucket doesn't have is served, and counts as well.
    opened.push(m.open(&slow[2].1).await);
    assert_eq!(m.metric(IN_FLIGHT), 3);
    gate.open();
    for (response, (blob, _)) in opened.into_iter().zip(&slow) {
        read(response).await.expect(200, blob);
    }
    sends(&m, 0).await;
    m.serves(&path, &shared).await;
    assert_eq!(redirects(&m), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_is_counted_no_more() {
    let (up, bucket) = registries().await;
    let busy = |shared: &mut SharedStorage| shared.redirect = RedirectMode::Busy;
    let m = Setup::new(&up).bucket_with(&bucket, busy).start().await;
    let (_, path) = put_blob(&up, 1, 3 * MIB);
    let _gate = up.hold_body(&path, 1, MIB);
    let response = m.open(&path).await;
    assert_eq!(m.metric(IN_FLIGHT), 1);
    drop(response);
    sends(&m, 0).await;
    // Neither is a head, nor what isn't sent.
    let (blob, path) = put_blob(&up, 2, MIB);
    m.head(&path).await;
    m.range(&path, "bytes=5-4").await;
    assert_eq!(m.metric(IN_FLIGHT), 0);
    m.serves(&path, &blob).await;
    sends(&m, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_is_redirected_and_what_the_bucket_may_answer_otherwise_is_not() {
    let (up, bucket) = registries().await;
    let m = redirecting(&up, &bucket).await;
    let (blob, path) = put_shared(&bucket, 1, MIB);
    for (range, expected) in [
        ("bytes=1000-1999", &blob[1000..2000]),
        ("bytes=1000000-", &blob[1_000_000..]),
        ("bytes=-10", &blob[MIB - 10..]),
    ] {
        let answer = m.range(&path, range).await;
        follow(&answer, Some(range)).await.expect(206, expected);
    }
    assert_eq!(redirects(&m), 3);
    let etag = format!("\"{}\"", digest(&blob));
    let get = format!("GET {path}");
    for (name, value, status) in [
        ("range", "bytes=0-9,20-29", 206),
        ("range", "bytes=5-4", 416),
        ("range", "bytes=2000000-", 416),
        ("if-none-match", &etag, 304),
        ("if-none-match", "\"other\"", 200),
        ("if-match", &etag, 200),
        ("if-match", "\"other\"", 412),
    ] {
        let answer = m.ask(&get, &[(name, value)]).await;
        assert_eq!(answer.status, status, "{name}: {value}");
    }
    let resumed = [("range", "bytes=10-19"), ("if-range", &etag)];
    m.ask(&get, &resumed).await.expect(206, &blob[10..20]);
    assert_eq!(redirects(&m), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn small_blobs_are_served() {
    let (up, bucket) = registries().await;
    let m = redirecting(&up, &bucket).await;
    let (small, small_path) = put_shared(&bucket, 1, 64 * 1024 - 1);
    let (least, least_path) = put_shared(&bucket, 2, 64 * 1024);
    m.serves(&small_path, &small).await;
    let answer = m.get(&least_path).await;
    follow(&answer, None).await.expect(200, &least);
    // Of one that a manifest describes, the bucket isn't asked whether it has it.
    let (image, by_digest) = put_image(&up, 3);
    m.serves(&by_digest, &image.manifest).await;
    uploaded(&m).await;
    bucket.take();
    let config = &image.config;
    assert!(config.len() < 64 * 1024);
    m.serves(&blob_path("app", config), config).await;
    uploaded(&m).await;
    m.serves(&blob_path("app", config), config).await;
    assert_eq!(redirects(&m), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_bucket_lacks_or_doesnt_link_is_served_with_proof() {
    let (up, bucket) = registries().await;
    let m = redirecting(&up, &bucket).await;
    let (blob, path) = put_blob(&up, 1, MIB);
    bucket.put_object(&blob_key(&blob), &blob);
    // Another repository's link is none.
    bucket.put_object(
        &link_key("other", "_layers", &blob),
        digest(&blob).to_string(),
    );
    m.serves(&path, &blob).await;
    uploaded(&m).await;
    assert_eq!(up.take(), [format!("HEAD {path}")]);
    follow(&m.get(&path).await, None).await.expect(200, &blob);
    let hidden = noise(2, MIB);
    bucket.put_object(&blob_key(&hidden), &hidden);
    m.get(&blob_path("app", &hidden))
        .await
        .refused(404, "BLOB_UNKNOWN");
    assert_eq!(redirects(&m), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_clients_get_from_the_bucket_is_not_prefetched() {
    let (up, bucket) = registries().await;
    let m = redirecting(&up, &bucket).await;
    let sizes = [(1, 5_000), (2, MIB), (3, 6_000), (4, MIB)];
    let layers = sizes.map(|(seed, size)| noise(seed, size));
    let image = Image::layered(1, layers.to_vec(), |_, _| ());
    let manifest = format!("/v2/app/manifests/{}", up.push("app", "1", &image));
    let [small, shared, ..] = &layers;
    put(&bucket, "app", "_layers", shared);
    m.serves(&manifest, &image.manifest).await;
    m.serves(&blob_path("app", small), small).await;
    // What the bucket lacks is served here.
    m.counted("millpond_prefetched_bytes_total", 6_000 + MIB as u64)
        .await;
    m.idle().await;
    assert!(!m.is_stored(shared).await);
    let answer = m.get(&blob_path("app", shared)).await;
    follow(&answer, None).await.expect(200, shared);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_come_together_cost_the_bucket_two_requests() {
    let (up, bucket) = registries().await;
    let m = redirecting(&up, &bucket).await;
    let (blob, path) = put_shared(&bucket, 1, MIB);
    bucket.wait(1, "list-type").await;
    bucket.take();
    let gate = bucket.hold("HEAD ", 1);
    let all = join_all((0..20).map(|_| m.get(&path)));
    let opening = async {
        bucket.wait(1, "HEAD ").await;
        gate.open();
    };
    let (answers, ()) = tokio::join!(all, opening);
    for answer in answers {
        assert_eq!(answer.status, 307);
    }
    assert_eq!(bucket.lines().len(), 2);
    assert_eq!(redirects(&m), 20);
    assert!(!m.is_stored(&blob).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_fails_gets_no_clients() {
    for failure in [Reply::error(403), Reply::error(503), Reply::hang_up()] {
        let (up, bucket) = registries().await;
        let m = redirecting(&up, &bucket).await;
        bucket.wait(1, "list-type").await;
        let (first, first_path) = put_blob(&up, 1, MIB);
        put(&bucket, "app", "_layers", &first);
        follow(&m.get(&first_path).await, None)
            .await
            .expect(200, &first);
        bucket.reply("", ALWAYS, failure);
        let (second, second_path) = put_blob(&up, 2, MIB);
        m.serves(&second_path, &second).await;
        // Nor for what it was known to have.
        m.serves(&first_path, &first).await;
        assert_eq!(redirects(&m), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_bucket_delays_a_pull_by_its_timeout() {
    let (up, bucket) = registries().await;
    let m = redirecting(&up, &bucket).await;
    bucket.wait(1, "list-type").await;
    let (blob, path) = put_blob(&up, 1, MIB);
    bucket.reply("/shared/docker", ALWAYS, Reply::silence());
    let waiting = async {
        bucket.wait(2, "/shared/docker").await;
        advance(Duration::from_secs(2)).await;
    };
    tokio::join!(m.serves(&path, &blob), waiting);
    assert_eq!(redirects(&m), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn content_of_another_size_is_served_from_the_upstream_and_set_aside() {
    let (up, bucket) = registries().await;
    let m = redirecting(&up, &bucket).await;
    let (blob, path) = put_blob(&up, 1, MIB);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": {"mediaType": "application/json", "digest": digest(b"{}").to_string(), "size": 2},
        "layers": [{"mediaType": "layer", "digest": digest(&blob).to_string(), "size": MIB}],
    });
    let manifest = Bytes::from(manifest.to_string());
    let described = up.put_manifest("app", media_type::OCI_MANIFEST, &manifest);
    let described = format!("/v2/app/manifests/{described}");
    m.serves(&described, &manifest).await;
    put(&bucket, "app", "_layers", &blob);
    bucket.put_object(&blob_key(&blob), &blob[..MIB / 2]);
    m.serves(&path, &blob).await;
    uploaded(&m).await;
    follow(&m.get(&path).await, None).await.expect(200, &blob);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_not_every_caller_may_pull_is_served_unless_that_is_permitted() {
    for redirect_private in [false, true] {
        let (up, bucket) = registries().await;
        let (blob, _) = put_blob(&up, 1, MIB);
        up.put_blob("private/app", &blob);
        guard(&up, Guard::Basic);
        put(&bucket, "private/app", "_layers", &blob);
        let shared = |shared: &mut SharedStorage| {
            shared.redirect = RedirectMode::Always;
            shared.redirect_private = redirect_private;
        };
        let m = Setup::new(&up).with(&[CALLER]);
        let m = m.bucket_with(&bucket, shared).start().await;
        let get = format!("GET {}", blob_path("private/app", &blob));
        for _ in 0..2 {
            let denied = m.ask(&get, &[("authorization", BOB)]).await;
            denied.refused(403, "DENIED");
            let answer = m.ask(&get, &[("authorization", ANN)]).await;
            if redirect_private {
                follow(&answer, None).await.expect(200, &blob);
                answer.has("cache-control", "no-store");
            } else {
                answer.expect(200, &blob);
            }
        }
        assert_eq!(redirects(&m), if redirect_private { 2 } else { 0 });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_and_the_deny_list_come_first() {
    let (up, bucket) = registries().await;
    let rules =
        "root.access: [{repositories: [secret/**], effect: deny}, {anyone: true, effect: allow}]";
    let shared = |shared: &mut SharedStorage| {
        shared.redirect = RedirectMode::Always;
        shared.redirect_private = true;
    };
    let m = Setup::new(&up).with(&[rules]);
    let m = m.bucket_with(&bucket, shared).start().await;
    let (blob, path) = put_shared(&bucket, 1, MIB);
    put(&bucket, "secret/app", "_layers", &blob);
    let secret = m.get(&blob_path("secret/app", &blob)).await;
    assert_eq!(secret.status, 403);
    assert_eq!(m.get(&path).await.status, 307);
    let denied = (digest(&blob).to_string(), "2026-01-01T00:00:00Z".to_owned());
    let denials = m.app.denials();
    denials.add(&denied.0, None, denied.1).await.unwrap();
    m.get(&path).await.refused(403, "DENIED");
    assert_eq!(redirects(&m), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_upstream_has_just_refused_isnt_redirected() {
    let (up, bucket) = registries().await;
    let m = redirecting(&up, &bucket).await;
    let (_, path) = put_shared(&bucket, 1, MIB);
    assert_eq!(m.head(&path).await.status, 404);
    let answer = m.get(&path).await;
    answer.refused(404, "BLOB_UNKNOWN");
    answer.has("cache-status", "millpond; hit; detail=negative");
    assert_eq!(up.lines().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_replica_is_never_redirected() {
    let (up, bucket) = registries().await;
    let relays = [Relay::start().await, Relay::start().await];
    let names: Vec<_> = relays
        .iter()
        .map(|relay| relay.address.to_string())
        .collect();
    let mut mirrors = Vec::new();
    for (relay, redirect) in relays
        .iter()
        .zip([RedirectMode::Always, RedirectMode::Never])
    {
        let section = section(&names, &relay.address.to_string(), SECRET);
        let m = Setup::new(&up).with(&[&section]);
        let m = m.bucket_with(&bucket, |shared| shared.redirect = redirect);
        let m = m.start().await;
        relay.lead_to(&m);
        mirrors.push(m);
    }
    let owned = |blob: &Bytes| {
        let members = names.iter().map(String::as_str);
        let members = millpond::replicas::Members::new(members, None);
        members.ahead(&digest(blob).to_string())[0].to_string() == names[0]
    };
    let seed = (1..100).find(|seed| owned(&noise(*seed, MIB))).unwrap();
    let (blob, path) = put_shared(&bucket, seed, MIB);
    let answer = mirrors[1].serves(&path, &blob).await;
    let hop = format!("\"{}\", millpond; fwd=uri-miss; stored", names[0]);
    answer.has("cache-status", hop);
    assert_eq!(redirects(&mirrors[0]), 0);
    assert_eq!(mirrors[0].get(&path).await.status, 307);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hosted_blob_is_redirected_while_it_is_there() {
    let (up, bucket) = registries().await;
    let shared = |shared: &mut SharedStorage| {
        shared.redirect = RedirectMode::Always;
        // Who may push, may not be everybody.
        shared.redirect_private = true;
    };
    let m = Setup::new(&up).with(&[SPACE, OPEN]);
    let m = m.bucket_with(&bucket, shared).start().await;
    let p = Pusher::over(m).await;
    let blob = noise(1, MIB);
    let path = blob_path("ci/app", &blob);
    p.m.get(&path).await.refused(404, "BLOB_UNKNOWN");
    p.blob("ci/app", &blob).await;
    uploaded(&p.m).await;
    follow(&p.m.get(&path).await, None).await.expect(200, &blob);
    p.ask(&format!("DELETE {path}")).await.expect(202, b"");
    p.m.get(&path).await.refused(404, "BLOB_UNKNOWN");
    assert_eq!(redirects(&p.m), 1);
}

#[tokio::test(start_paused = true)]
async fn a_redirect_keeps_the_cached_blob_from_eviction() {
    let (up, bucket) = registries().await;
    let m = Setup::new(&up).with(&["storage.maxsize: 5MiB"]);
    let m = m.bucket_with(&bucket, always).start().await;
    let [first, second] = [1, 2].map(|seed| put_blob(&up, seed, 2 * MIB));
    for (blob, path) in [&first, &second] {
        m.pull(path, blob).await;
        uploaded(&m).await;
        advance(Duration::from_secs(2)).await;
    }
    assert_eq!(m.get(&first.1).await.status, 307);
    advance(Duration::from_secs(2)).await;
    let (third, path) = put_blob(&up, 3, 2 * MIB);
    m.pull(&path, &third).await;
    m.counted("millpond_cache_evictions_total", 1).await;
    assert!(m.is_stored(&first.0).await && m.is_stored(&third).await);
    assert!(!m.is_stored(&second.0).await);
}
