//! Manifests by tag: fresh for a while, then confirmed once for all, served stale while the upstream
//! can't answer, and to each client a type that it can read.

use std::time::Duration;

use futures_util::future::join_all;
use millpond::oci::manifest::media_type;

use crate::harness::{ALWAYS, Image, Mirror, Registry, Reply, advance, mirrored, passing, settle};

const PATH: &str = "/v2/app/manifests/latest";
const TTL: Duration = Duration::from_mins(1);
const SECOND: Duration = Duration::from_secs(1);
/// The source of a tag that the upstream has confirmed.
const REVALIDATED: &str = "fwd=stale; fwd-status=200; detail=revalidated";

/// An upstream, a mirror that has just fetched its tag, and the image that the tag names.
async fn warm() -> (Registry, Mirror, Image) {
    let (up, m) = mirrored().await;
    let image = Image::oci(1);
    up.push("app", "latest", &image);
    m.serves(PATH, &image.manifest).await;
    up.take();
    (up, m, image)
}

/// So many requests were answered from there.
async fn requests(m: &Mirror, result: &str, count: u64) {
    let series = format!(r#"millpond_requests_total{{route="manifest",result="{result}"}}"#);
    m.counted(&series, count).await;
}

/// The same when the tag has to be confirmed.
async fn expired() -> (Registry, Mirror, Image) {
    let all = warm().await;
    advance(TTL + SECOND).await;
    all
}

#[tokio::test(start_paused = true)]
async fn a_fresh_tag_costs_the_upstream_nothing() {
    let (up, m, image) = warm().await;
    advance(59 * SECOND).await;
    let answer = m.serves(PATH, &image.manifest).await;
    assert_eq!(answer.source(), "hit");
    assert_eq!(m.head(PATH).await.status, 200);
    assert_eq!(up.count(""), 0);
    requests(&m, "hit", 2).await;
}

#[tokio::test(start_paused = true)]
async fn an_expired_tag_costs_one_head_for_all_clients() {
    let (up, m, image) = expired().await;
    let gate = up.hold("HEAD ", 1);
    let (answers, ()) = tokio::join!(join_all((0..20).map(|_| m.get(PATH))), async {
        up.wait(1, "HEAD").await;
        m.counted("millpond_connections", 20).await;
        settle().await;
        gate.open();
    });
    for answer in answers {
        answer.expect(200, &image.manifest);
        assert_eq!(answer.source(), REVALIDATED);
    }
    assert_eq!(up.take(), [format!("HEAD {PATH}")]);
    requests(&m, "revalidated", 20).await;
    m.serves(PATH, &image.manifest).await;
    assert_eq!(up.count(""), 0, "fresh again");
}

#[tokio::test(start_paused = true)]
async fn a_moved_tag_costs_one_head_and_one_get_by_digest() {
    let (up, m, _) = warm().await;
    let new = Image::oci(2);
    let digest = up.push("app", "latest", &new);
    advance(TTL + SECOND).await;
    for answer in join_all((0..20).map(|_| m.get(PATH))).await {
        answer.expect(200, &new.manifest);
        answer.has("docker-content-digest", digest);
    }
    let get = format!("GET /v2/app/manifests/{digest}");
    assert_eq!(up.take(), [format!("HEAD {PATH}"), get]);
}

#[tokio::test(start_paused = true)]
async fn a_tag_is_served_stale_while_the_upstream_cannot_answer() {
    for (trouble, status) in [
        (Some(Reply::error(500)), "; fwd-status=500"),
        (Some(Reply::error(502)), "; fwd-status=502"),
        (Some(Reply::error(503)), "; fwd-status=503"),
        (Some(Reply::error(429)), "; fwd-status=429"),
        (Some(Reply::hang_up()), ""),
        (Some(Reply::silence()), ""),
        (None, ""),
    ] {
        let (up, m, image) = expired().await;
        match trouble {
            Some(trouble) => up.reply("", ALWAYS, trouble),
            None => drop(up),
        }
        settle().await;
        let started = tokio::time::Instant::now();
        let answer = passing(m.get(PATH)).await;
        answer.expect(200, &image.manifest);
        assert_eq!(answer.source(), format!("fwd=stale{status}; detail=stale"));
        answer.has("warning", "110 millpond \"Response is Stale\"");
        assert!(started.elapsed() < 11 * SECOND, "{:?}", started.elapsed());
        requests(&m, "stale", 1).await;
        let head = passing(m.head(PATH)).await;
        assert_eq!((head.status, head.source()), (200, "hit; detail=stale"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_failing_upstream_is_not_asked_again_for_a_while() {
    for (trouble, pause) in [
        (Reply::error(500), 15),
        (Reply::error(429).with("Retry-After", 120), 120),
        (Reply::error(503).with("Retry-After", 3000), 300),
    ] {
        let (up, m, _) = expired().await;
        up.reply("", ALWAYS, trouble);
        let first = m.get(PATH).await;
        let asked = first.source();
        assert!(asked.starts_with("fwd=stale; fwd-status="), "{asked}");
        for _ in 0..2 {
            assert_eq!(m.get(PATH).await.source(), "hit; detail=stale");
        }
        advance((pause - 1) * SECOND).await;
        assert_eq!(m.get(PATH).await.source(), "hit; detail=stale");
        assert_eq!(up.take().len(), 1, "asked once");
        advance(2 * SECOND).await;
        up.behave();
        assert_eq!(m.get(PATH).await.source(), REVALIDATED);
    }
}

#[tokio::test(start_paused = true)]
async fn a_404_removes_the_tag_from_memory_and_disk() {
    let (up, m, image) = warm().await;
    assert_eq!(m.get(PATH).await.source(), "hit");
    up.delete(PATH);
    advance(TTL + SECOND).await;
    m.get(PATH).await.refused(404, "MANIFEST_UNKNOWN");
    assert_eq!(m.head(PATH).await.status, 404);
    up.go_down();
    advance(10 * SECOND).await;
    m.get(PATH).await.refused(500, "UNAVAILABLE");
    let by_digest = format!("/v2/app/manifests/{}", image.digest());
    let answer = m.serves(&by_digest, &image.manifest).await;
    assert_eq!(answer.source(), "hit");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_not_answered_with_stale_content() {
    for (status, code) in [(401, "UNAUTHORIZED"), (403, "DENIED")] {
        let (up, m, _) = expired().await;
        up.reply("", ALWAYS, Reply::error(status));
        m.get(PATH).await.refused(status, code);
    }
}

#[tokio::test(start_paused = true)]
async fn a_restarted_mirror_asks_again_and_falls_back_on_its_disk() {
    let (up, m, image) = warm().await;
    let answer = m.restarted(&up).await.get(PATH).await;
    answer.expect(200, &image.manifest);
    assert_eq!(answer.source(), REVALIDATED);
    assert_eq!(up.take(), [format!("HEAD {PATH}")]);
    up.go_down();
    let answer = m.restarted(&up).await.get(PATH).await;
    answer.expect(200, &image.manifest);
    assert_eq!(answer.source(), "fwd=stale; fwd-status=500; detail=stale");
}

/// containerd and dockerd ask for a tag with HEAD and for the manifest by its digest.
#[tokio::test(start_paused = true)]
async fn a_digest_from_a_head_survives_a_restart_once_its_manifest_is_stored() {
    let (up, m, old) = warm().await;
    let restarted_and_alone = async || {
        up.go_down();
        let answer = m.restarted(&up).await.get(PATH).await;
        up.behave();
        answer
    };
    let new = Image::oci(2);
    let digest = up.push("app", "latest", &new);
    advance(TTL + SECOND).await;
    let head = m.head(PATH).await;
    head.has("docker-content-digest", digest);
    let meanwhile = restarted_and_alone().await;
    meanwhile.expect(200, &old.manifest);
    let by_digest = format!("/v2/app/manifests/{digest}");
    m.serves(&by_digest, &new.manifest).await;
    restarted_and_alone().await.expect(200, &new.manifest);

    let newest = Image::oci(3);
    up.push("app", "latest", &newest);
    advance(TTL + SECOND).await;
    m.serves(PATH, &newest.manifest).await;
    restarted_and_alone().await.expect(200, &newest.manifest);
}

#[tokio::test(start_paused = true)]
async fn a_manifest_that_comes_late_does_not_move_the_tag_back() {
    let (up, m, _) = warm().await;
    let (passed_over, newest) = (Image::oci(2), Image::oci(3));
    let digest = up.push("app", "latest", &passed_over);
    advance(TTL + SECOND).await;
    assert_eq!(m.head(PATH).await.status, 200);
    up.push("app", "latest", &newest);
    advance(TTL + SECOND).await;
    m.serves(PATH, &newest.manifest).await;
    let by_digest = format!("/v2/app/manifests/{digest}");
    m.serves(&by_digest, &passed_over.manifest).await;
    up.go_down();
    m.restarted(&up).await.serves(PATH, &newest.manifest).await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_request_continues_for_the_next_clients() {
    let (up, m, _) = warm().await;
    let new = Image::oci(2);
    up.push("app", "latest", &new);
    advance(TTL + SECOND).await;
    let gate = up.hold("HEAD ", 1);
    let stale = passing(m.get(PATH)).await;
    assert_eq!(stale.source(), "fwd=stale; detail=stale");
    gate.open();
    settle().await;
    m.serves(PATH, &new.manifest).await;
    assert_eq!(up.count("HEAD "), 1);
}

#[tokio::test]
async fn a_cold_head_costs_no_get() {
    let (up, m) = mirrored().await;
    let image = Image::oci(1);
    let digest = up.push("app", "latest", &image);
    for _ in 0..2 {
        let head = m.head(PATH).await;
        assert_eq!((head.status, head.body.len()), (200, 0));
        head.has("docker-content-digest", digest);
        head.has("content-length", image.manifest.len());
    }
    assert_eq!(up.take(), [format!("HEAD {PATH}")]);
    m.serves(PATH, &image.manifest).await;
    assert_eq!(up.take(), [format!("GET /v2/app/manifests/{digest}")]);
}

#[tokio::test]
async fn many_cold_clients_cost_one_get() {
    let (up, m) = mirrored().await;
    let image = Image::oci(1);
    up.push("app", "latest", &image);
    join_all((0..20).map(|_| m.serves(PATH, &image.manifest))).await;
    assert_eq!(up.take(), [format!("GET {PATH}")]);
}

/// All types that a new client reads.
const SIX: [&str; 6] = [
    media_type::OCI_MANIFEST,
    media_type::OCI_INDEX,
    media_type::DOCKER_MANIFEST,
    media_type::DOCKER_LIST,
    media_type::DOCKER_SCHEMA1,
    media_type::DOCKER_SCHEMA1_SIGNED,
];

type Headers<const N: usize> = [(&'static str, &'static str); N];

/// The headers of an old client, and of a new one.
fn accepting() -> (Headers<1>, Headers<6>) {
    let narrow = [("accept", media_type::DOCKER_MANIFEST)];
    (narrow, SIX.map(|kind| ("accept", kind)))
}

#[tokio::test]
async fn equal_accept_lists_share_one_request() {
    let (up, m) = mirrored().await;
    let image = Image::oci(1);
    up.push("app", "latest", &image);
    let line = format!("GET {PATH}");
    let joined = SIX.join(", ");
    let lines = SIX.map(|kind| ("accept", kind));
    let reversed: Vec<_> = lines.into_iter().rev().collect();
    for accept in [&[("accept", &*joined)][..], &lines, &reversed] {
        m.ask(&line, accept).await.expect(200, &image.manifest);
    }
    assert_eq!(up.count(""), 1);
    let sent = up.seen("")[0].header("accept").unwrap().to_owned();
    for kind in SIX {
        let is_served = !kind.contains("manifest.v1+");
        assert_eq!(
            sent.contains(kind),
            is_served || kind == media_type::OCI_MANIFEST,
            "{sent}"
        );
    }
}

/// Answers old clients with schema 2 and others with an index, as Docker Hub does.
fn by_accept(up: &Registry) -> (Image, bytes::Bytes) {
    let old = Image::docker(1);
    let index = Image::index(media_type::OCI_INDEX, &[&Image::oci(2)]);
    up.push("app", "latest", &old);
    up.put_manifest("app", media_type::OCI_INDEX, &index);
    let (bytes, digest) = (index.clone(), crate::harness::digest(&index));
    up.on("/manifests/latest", ALWAYS, move |seen, usual| {
        let accept = seen.header("accept").unwrap();
        if !accept.contains(media_type::OCI_INDEX) {
            return usual;
        }
        Reply::new(200, bytes.clone())
            .with("Docker-Content-Digest", digest)
            .with("Content-Type", media_type::OCI_INDEX)
    });
    (old, index)
}

#[tokio::test(start_paused = true)]
async fn old_and_new_clients_each_get_a_type_they_accept() {
    let line = format!("GET {PATH}");
    let (narrow, wide) = accepting();
    for old_first in [true, false] {
        let (up, m) = mirrored().await;
        let (old, index) = by_accept(&up);
        let mut clients: [(&[_], _); 2] = [(&narrow, &old.manifest), (&wide, &index)];
        if !old_first {
            clients.reverse();
        }
        for _ in 0..2 {
            for (accept, expected) in clients {
                m.ask(&line, accept).await.expect(200, expected);
            }
        }
        // GET, then HEAD and GET of what the HEAD named.
        assert_eq!(up.take().len(), 3);
        up.go_down();
        advance(TTL + SECOND).await;
        for (accept, expected) in clients {
            let answer = m.ask(&line, accept).await;
            answer.expect(200, expected);
            assert!(answer.source().ends_with("; detail=stale"), "{answer:?}");
        }
    }
}

#[tokio::test]
async fn an_unacceptable_manifest_is_not_served_stale() {
    let (up, m) = mirrored().await;
    by_accept(&up);
    let line = format!("GET {PATH}");
    let (narrow, wide) = accepting();
    assert_eq!(m.ask(&line, &wide).await.status, 200);
    up.go_down();
    let old = m.ask(&line, &narrow).await;
    old.refused(500, "UNAVAILABLE");
}

#[tokio::test]
async fn on_disk_an_old_clients_manifest_does_not_replace_the_index() {
    let (narrow, wide) = accepting();
    let line = format!("GET {PATH}");
    for order in [[true, false], [false, true]] {
        let (up, m) = mirrored().await;
        let (_, index) = by_accept(&up);
        for is_wide in order {
            let accept = if is_wide { &wide[..] } else { &narrow };
            assert_eq!(m.ask(&line, accept).await.status, 200);
        }
        up.go_down();
        let m = m.restarted(&up).await;
        m.ask(&line, &wide).await.expect(200, &index);
    }
}
