//! `proxy.tags`: when the upstream is asked what a tag names, and what is served meanwhile.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use millpond::oci::manifest::media_type;
use testkit::Seen;

use crate::harness::{
    ALWAYS, Answer, Image, Mirror, Registry, Reply, Setup, advance, digest, mirrored,
    mirrored_with, passing, settle,
};

const LATEST: &str = "/v2/app/manifests/latest";
const VERSION: &str = "/v2/app/manifests/v1.2.3";
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const UPDATING: &str = "hit; detail=stale-while-revalidate";

/// An upstream, a mirror with these `proxy.tags` that has just fetched `app:latest`, and the image.
async fn warm(tags: &str) -> (Registry, Mirror, Image) {
    let (up, m) = mirrored_with(&[&format!("proxy.tags: {tags}")]).await;
    let image = Image::oci(1);
    up.push("app", "latest", &image);
    m.serves(LATEST, &image.manifest).await;
    up.take();
    (up, m, image)
}

/// The same mirror after a restart, with these `proxy.tags`.
async fn restarted(m: &Mirror, up: &Registry, tags: &str) -> Mirror {
    let setup = Setup::new(up).with(&[&format!("proxy.tags: {tags}")]);
    setup.store(Arc::clone(&m.store)).start().await
}

/// Asks as a client that accepts these types.
async fn accepting(m: &Mirror, path: &str, types: &[&str]) -> Answer {
    let accept = types.join(", ");
    m.ask(&format!("GET {path}"), &[("accept", &accept)]).await
}

#[tokio::test(start_paused = true)]
async fn within_stalewhilerevalidate_no_client_waits() {
    let (up, m, old) = warm("{stalewhilerevalidate: 30s}").await;
    let new = Image::oci(2);
    up.push("app", "latest", &new);
    advance(61 * SECOND).await;
    let gate = up.hold("HEAD ", 1);
    for answer in join_all((0..20).map(|_| m.get(LATEST))).await {
        answer.expect(200, &old.manifest);
        assert_eq!(answer.source(), UPDATING);
        answer.has("warning", "110 millpond \"Response is Stale\"");
    }
    m.counted(
        r#"millpond_requests_total{route="manifest",result="updating"}"#,
        20,
    )
    .await;
    up.wait(1, "HEAD ").await;
    gate.open();
    up.wait(1, "GET ").await;
    settle().await;
    let answer = m.serves(LATEST, &new.manifest).await;
    assert_eq!(answer.source(), "hit");
    assert_eq!(up.take().len(), 2, "one HEAD, and the new manifest");
    // Later than that, the client waits.
    advance(91 * SECOND).await;
    let answer = m.serves(LATEST, &new.manifest).await;
    assert!(
        answer.source().ends_with("; detail=revalidated"),
        "{answer:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn within_stalewhilerevalidate_a_failing_upstream_is_asked_at_intervals() {
    let (up, m, image) = warm("{stalewhilerevalidate: 1h}").await;
    advance(61 * SECOND).await;
    up.reply("", ALWAYS, Reply::error(404).status(400));
    for minute in 1..=4 {
        for _ in 0..5 {
            m.serves(LATEST, &image.manifest).await;
            settle().await;
        }
        assert_eq!(up.count(""), minute, "asked once in 15 seconds");
        advance(16 * SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn staleiferror_limits_what_is_served_during_an_outage() {
    let (up, m, image) = warm("{staleiferror: 1h}").await;
    up.go_down();
    for _ in 0..4 {
        advance(15 * MINUTE).await;
        let answer = m.serves(LATEST, &image.manifest).await;
        assert!(answer.source().ends_with("; detail=stale"), "{answer:?}");
    }
    advance(MINUTE + SECOND).await;
    m.get(LATEST).await.refused(500, "UNAVAILABLE");
    // From the start of the process, where it isn't known when the upstream has said so.
    let m = restarted(&m, &up, "{staleiferror: 1h}").await;
    m.serves(LATEST, &image.manifest).await;
    advance(HOUR + MINUTE + SECOND).await;
    m.get(LATEST).await.refused(500, "UNAVAILABLE");
    up.behave();
    m.serves(LATEST, &image.manifest).await;
}

#[tokio::test(start_paused = true)]
async fn without_staleiferror_an_outage_is_an_error() {
    let (up, m, image) = warm("{staleiferror: 0}").await;
    up.reply("", ALWAYS, Reply::error(503));
    m.serves(LATEST, &image.manifest).await;
    advance(MINUTE + SECOND).await;
    passing(m.get(LATEST)).await.refused(503, "UNAVAILABLE");
    up.behave();
    m.serves(LATEST, &image.manifest).await;
}

#[tokio::test(start_paused = true)]
async fn the_first_rule_that_matches_decides() {
    let rules = "{rules: [{repository: app, tag: 'v*', semver: true, immutable: true}, \
                 {tag: 'v*', ttl: 10m}, {repository: 'other/**', ttl: 5m}]}";
    let (up, m, image) = warm(rules).await;
    let asked_again = async |path: &str, after: Duration| {
        m.serves(path, &image.manifest).await;
        up.take();
        advance(after).await;
        m.serves(path, &image.manifest).await;
        !up.take().is_empty()
    };
    let images = [
        ("app", "v1.2.3"),
        ("app", "v1"),
        ("other/app", "main"),
        ("app", "main"),
    ];
    for (repo, tag) in images {
        up.push(repo, tag, &image);
    }
    assert!(!asked_again(VERSION, 1000 * HOUR / 10).await);
    assert!(!asked_again("/v2/app/manifests/v1", 9 * MINUTE).await);
    assert!(asked_again("/v2/app/manifests/v1", 11 * MINUTE).await);
    assert!(!asked_again("/v2/other/app/manifests/main", 4 * MINUTE).await);
    assert!(asked_again("/v2/other/app/manifests/main", 6 * MINUTE).await);
    assert!(asked_again("/v2/app/manifests/main", 61 * SECOND).await);
}

const IMMUTABLE: &str = "{rules: [{semver: true, immutable: true}]}";

#[tokio::test(start_paused = true)]
async fn an_immutable_tag_is_never_asked_for_again() {
    let (up, m, image) = warm(IMMUTABLE).await;
    up.push("app", "v1.2.3", &image);
    m.serves(VERSION, &image.manifest).await;
    up.push("app", "v1.2.3", &Image::oci(2));
    up.take();
    advance(100 * HOUR).await;
    let answer = m.serves(VERSION, &image.manifest).await;
    assert_eq!(answer.source(), "hit");
    assert_eq!(m.head(VERSION).await.source(), "hit");
    // Nor after a restart, nor without an upstream.
    let m = restarted(&m, &up, IMMUTABLE).await;
    up.go_down();
    for _ in 0..2 {
        assert_eq!(m.head(VERSION).await.source(), "hit");
        let answer = m.serves(VERSION, &image.manifest).await;
        assert_eq!(answer.source(), "hit");
    }
    assert_eq!(up.count(""), 0);
    up.behave();
    // One that isn't known is.
    up.push("app", "v2.0.0", &image);
    m.serves("/v2/app/manifests/v2.0.0", &image.manifest).await;
}

#[tokio::test(start_paused = true)]
async fn an_immutable_tag_is_asked_for_when_its_manifest_is_gone() {
    let lines = [&*format!("proxy.tags: {IMMUTABLE}"), "proxy.ttl: 1h"];
    let (up, m) = mirrored_with(&lines).await;
    let (old, new) = (Image::oci(1), Image::oci(2));
    up.push("app", "v1.2.3", &old);
    m.serves(VERSION, &old.manifest).await;
    advance(2 * HOUR).await;
    assert!(!m.is_stored(&old.manifest).await, "it has expired");
    up.push("app", "v1.2.3", &new);
    m.serves(VERSION, &new.manifest).await;
}

#[tokio::test(start_paused = true)]
async fn an_immutable_tag_that_a_head_resolved_survives_a_restart() {
    let (up, m, _) = warm(IMMUTABLE).await;
    let image = Image::oci(2);
    let digest = up.push("app", "v1.2.3", &image);
    m.head(VERSION).await.has("docker-content-digest", digest);
    let by_digest = format!("/v2/app/manifests/{digest}");
    m.serves(&by_digest, &image.manifest).await;
    up.take();
    let m = restarted(&m, &up, IMMUTABLE).await;
    assert_eq!(m.head(VERSION).await.source(), "hit");
    assert_eq!(up.count(""), 0);
}

/// Platforms ask for an index with different Accept lists, and then for their manifest.
#[tokio::test(start_paused = true)]
async fn an_immutable_index_resolves_for_every_client_and_platform() {
    let (up, m, _) = warm(IMMUTABLE).await;
    let platforms = [Image::oci(2), Image::oci(3)];
    let index = Image::index(media_type::OCI_INDEX, &[&platforms[0], &platforms[1]]);
    up.tag("app", "v1.2.3", media_type::OCI_INDEX, &index);
    for image in &platforms {
        up.put_manifest("app", media_type::OCI_MANIFEST, &image.manifest);
        m.serves(
            &format!("/v2/app/manifests/{}", image.digest()),
            &image.manifest,
        )
        .await;
    }
    m.serves(VERSION, &index).await;
    up.go_down();
    up.take();
    for mirror in [&m, &restarted(&m, &up, IMMUTABLE).await] {
        for types in [
            &[media_type::OCI_INDEX][..],
            &[media_type::OCI_INDEX, media_type::OCI_MANIFEST],
            &[
                media_type::OCI_INDEX,
                media_type::DOCKER_LIST,
                media_type::DOCKER_SCHEMA1,
            ],
            &["*/*"],
        ] {
            let answer = accepting(mirror, VERSION, types).await;
            answer.expect(200, &index);
            assert_eq!(answer.source(), "hit");
        }
        for image in &platforms {
            let by_digest = format!("/v2/app/manifests/{}", image.digest());
            let answer = mirror.serves(&by_digest, &image.manifest).await;
            assert_eq!(answer.source(), "hit");
        }
    }
    assert_eq!(up.count(""), 0);
}

/// A registry may send one platform's manifest to a client that can't read an index.
#[tokio::test(start_paused = true)]
async fn an_old_clients_manifest_is_no_answer_for_others_although_the_tag_is_immutable() {
    let (up, m, _) = warm(IMMUTABLE).await;
    let old = Image::docker(2);
    let index = Image::index(media_type::OCI_INDEX, &[&Image::oci(3)]);
    up.tag("app", "v1.2.3", media_type::OCI_INDEX, &index);
    let (bytes, named) = (old.manifest.clone(), digest(&old.manifest));
    up.on(VERSION, ALWAYS, move |seen, usual| {
        if seen
            .header("accept")
            .unwrap()
            .contains(media_type::OCI_INDEX)
        {
            return usual;
        }
        Reply::new(200, bytes.clone())
            .with("Docker-Content-Digest", named)
            .with("Content-Type", media_type::DOCKER_MANIFEST)
    });
    for _ in 0..2 {
        let narrow = accepting(&m, VERSION, &[media_type::DOCKER_MANIFEST]).await;
        narrow.expect(200, &old.manifest);
    }
    let m = restarted(&m, &up, IMMUTABLE).await;
    m.serves(VERSION, &index).await;
}

#[tokio::test(start_paused = true)]
async fn an_offline_tag_is_answered_from_the_cache_or_not_at_all() {
    let (up, m, image) = warm("{}").await;
    let m = restarted(&m, &up, "{rules: [{repository: app, offline: true}]}").await;
    for _ in 0..2 {
        let answer = m.serves(LATEST, &image.manifest).await;
        assert_eq!(answer.source(), "hit");
        advance(100 * HOUR).await;
    }
    up.push("app", "other", &image);
    let answer = m.get("/v2/app/manifests/other").await;
    answer.refused(404, "MANIFEST_UNKNOWN");
    assert_eq!(answer.source(), "detail=failed");
    assert_eq!(m.head("/v2/app/manifests/other").await.status, 404);
    assert_eq!(up.count(""), 0);
    let by_digest = format!(
        "/v2/app/manifests/{}",
        up.push("app", "new", &Image::oci(2))
    );
    assert_eq!(m.get(&by_digest).await.status, 200, "only tags are offline");
}

#[tokio::test(start_paused = true)]
async fn one_head_confirms_a_tag_for_all_kinds_of_clients() {
    let (up, m, image) = warm("{}").await;
    advance(61 * SECOND).await;
    let gate = up.hold("HEAD ", 1);
    let docker = [
        media_type::DOCKER_MANIFEST,
        media_type::DOCKER_LIST,
        media_type::OCI_MANIFEST,
        media_type::OCI_INDEX,
        media_type::DOCKER_SCHEMA1,
        media_type::DOCKER_SCHEMA1_SIGNED,
    ];
    let (head, get, docker, ()) = tokio::join!(
        m.head(LATEST),
        m.get(LATEST),
        accepting(&m, LATEST, &docker),
        async {
            up.wait(1, "HEAD ").await;
            m.counted("millpond_connections", 3).await;
            settle().await;
            gate.open();
        }
    );
    assert_eq!(head.status, 200);
    get.expect(200, &image.manifest);
    docker.expect(200, &image.manifest);
    assert_eq!(up.take(), [format!("HEAD {LATEST}")]);
}

/// Answers with an ETag, and with 304 to a request that has it.
fn with_etags(seen: &Seen, usual: Reply) -> Reply {
    let etag = format!("\"{}\"", digest(&usual.body));
    if seen.header("if-none-match") == Some(&etag) {
        return Reply::new(304, "").with("ETag", etag);
    }
    usual.with("ETag", etag)
}

#[tokio::test(start_paused = true)]
async fn a_tag_is_confirmed_by_its_etag_where_the_upstream_gives_one() {
    let (up, m) = mirrored().await;
    let image = Image::oci(1);
    up.push("app", "latest", &image);
    up.on("/manifests/", ALWAYS, with_etags);
    m.serves(LATEST, &image.manifest).await;
    let confirmed = async |image: &Image, etags: &[bool]| {
        for has_etag in etags {
            advance(61 * SECOND).await;
            let before = up.count("HEAD ");
            m.serves(LATEST, &image.manifest).await;
            let heads = up.seen("HEAD ");
            assert_eq!(heads.len(), before + 1);
            assert_eq!(heads[before].header("if-none-match").is_some(), *has_etag);
        }
    };
    // The first HEAD brings the ETag.
    confirmed(&image, &[false, true, true]).await;
    let new = Image::oci(2);
    up.push("app", "latest", &new);
    confirmed(&new, &[true, true]).await;
    assert_eq!(up.count("GET "), 2);
}
