//! Manifests by tag: believed for a while, then asked after once for all, and served stale while
//! the upstream can't answer.

use std::time::Duration;

use futures_util::future::join_all;
use millpond::oci::manifest::media_type;

use crate::harness::{
    ALWAYS, Gate, Image, Mirror, Registry, Reply, Setup, advance, freeze, passing, settle,
};

const PATH: &str = "/v2/app/manifests/latest";
const TTL: Duration = Duration::from_mins(1);
const SECOND: Duration = Duration::from_secs(1);

/// A mirror that has just fetched the tag, which names `image`.
async fn warm(up: &Registry, image: &Image) -> Mirror {
    up.push("app", "latest", image);
    let m = Setup::new(up).start().await;
    m.get(PATH).await.expect(200, &image.manifest);
    up.take();
    m
}

fn from(answer: &crate::harness::Answer) -> &str {
    answer
        .header("cache-status")
        .trim_start_matches("millpond; ")
}

#[tokio::test(start_paused = true)]
async fn a_fresh_tag_costs_the_upstream_nothing() {
    let _frozen = freeze();
    let up = Registry::start().await;
    let image = Image::oci(1);
    let m = warm(&up, &image).await;
    advance(59 * SECOND).await;
    let answer = m.get(PATH).await;
    answer.expect(200, &image.manifest);
    assert_eq!(from(&answer), "hit");
    assert_eq!(m.head(PATH).await.status, 200);
    assert_eq!(up.count(""), 0);
    m.counted(
        r#"millpond_requests_total{kind="manifest",result="hit"}"#,
        2,
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_old_tag_is_one_head_for_all() {
    let _frozen = freeze();
    let up = Registry::start().await;
    let image = Image::oci(1);
    let m = warm(&up, &image).await;
    advance(TTL + SECOND).await;
    let gate = Gate::default();
    let held = gate.clone();
    up.on("HEAD ", 1, move |_, usual| usual.held(&held));
    let (answers, ()) = tokio::join!(join_all((0..20).map(|_| m.get(PATH))), async {
        up.wait(1, "HEAD").await;
        m.counted("millpond_connections", 20).await;
        settle().await;
        gate.open();
    });
    for answer in answers {
        answer.expect(200, &image.manifest);
        assert_eq!(from(&answer), "hit; detail=revalidated");
    }
    assert_eq!(up.take(), [format!("HEAD {PATH}")]);
    m.counted(
        r#"millpond_requests_total{kind="manifest",result="revalidated"}"#,
        20,
    )
    .await;
    m.get(PATH).await.expect(200, &image.manifest);
    assert_eq!(up.count(""), 0, "fresh again");
}

#[tokio::test(start_paused = true)]
async fn a_moved_tag_is_one_head_and_one_get_by_digest() {
    let _frozen = freeze();
    let up = Registry::start().await;
    let m = warm(&up, &Image::oci(1)).await;
    let new = Image::oci(2);
    let digest = up.push("app", "latest", &new);
    advance(TTL + SECOND).await;
    for answer in join_all((0..20).map(|_| m.get(PATH))).await {
        answer.expect(200, &new.manifest);
        assert_eq!(answer.header("docker-content-digest"), digest.to_string());
    }
    let get = format!("GET /v2/app/manifests/{digest}");
    assert_eq!(up.take(), [format!("HEAD {PATH}"), get]);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_cannot_answer_is_stood_in_for() {
    let _frozen = freeze();
    let image = Image::oci(1);
    for trouble in [
        Reply::error(500),
        Reply::error(502),
        Reply::error(503),
        Reply::error(429),
        Reply::hang_up(),
        Reply::silence(),
    ] {
        let up = Registry::start().await;
        let m = warm(&up, &image).await;
        advance(TTL + SECOND).await;
        up.reply("", ALWAYS, trouble);
        let started = tokio::time::Instant::now();
        let answer = passing(m.get(PATH)).await;
        answer.expect(200, &image.manifest);
        assert_eq!(from(&answer), "hit; detail=stale");
        assert_eq!(
            answer.header("warning"),
            "110 millpond \"Response is Stale\""
        );
        assert!(started.elapsed() < 11 * SECOND, "{:?}", started.elapsed());
        m.counted(
            r#"millpond_requests_total{kind="manifest",result="stale"}"#,
            1,
        )
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_is_gone_is_stood_in_for() {
    let _frozen = freeze();
    let up = Registry::start().await;
    let image = Image::oci(1);
    let m = warm(&up, &image).await;
    advance(TTL + SECOND).await;
    drop(up);
    settle().await;
    let answer = passing(m.get(PATH)).await;
    answer.expect(200, &image.manifest);
    assert_eq!(from(&answer), "hit; detail=stale");
    let head = passing(m.head(PATH)).await;
    assert_eq!((head.status, from(&head)), (200, "hit; detail=stale"));
}

#[tokio::test(start_paused = true)]
async fn a_failing_upstream_is_left_alone_for_a_while() {
    let _frozen = freeze();
    for (trouble, pause) in [
        (Reply::error(500), 15),
        (Reply::error(429).with("Retry-After", 120), 120),
        (Reply::error(429).with("Retry-After", 3000), 300),
    ] {
        let up = Registry::start().await;
        let image = Image::oci(1);
        let m = warm(&up, &image).await;
        advance(TTL + SECOND).await;
        up.reply("", ALWAYS, trouble);
        for _ in 0..3 {
            assert_eq!(from(&m.get(PATH).await), "hit; detail=stale");
        }
        advance((pause - 1) * SECOND).await;
        assert_eq!(from(&m.get(PATH).await), "hit; detail=stale");
        assert_eq!(up.take().len(), 1, "asked once");
        advance(2 * SECOND).await;
        up.behave();
        assert_eq!(from(&m.get(PATH).await), "hit; detail=revalidated");
    }
}

#[tokio::test(start_paused = true)]
async fn a_tag_that_is_gone_is_gone_for_good() {
    let _frozen = freeze();
    let up = Registry::start().await;
    let image = Image::oci(1);
    let m = warm(&up, &image).await;
    up.delete(PATH);
    advance(TTL + SECOND).await;
    assert_eq!(
        m.get(PATH).await.error(),
        (404, "MANIFEST_UNKNOWN".to_owned())
    );
    assert_eq!(m.head(PATH).await.status, 404);
    up.go_down();
    assert_eq!(m.get(PATH).await.error(), (500, "UNAVAILABLE".to_owned()));
    let digest = image.digest();
    m.get(&format!("/v2/app/manifests/{digest}"))
        .await
        .expect(200, &image.manifest);
}

#[tokio::test(start_paused = true)]
async fn access_that_is_taken_away_is_not_papered_over() {
    let _frozen = freeze();
    for (status, code) in [(401, "UNAUTHORIZED"), (403, "DENIED")] {
        let up = Registry::start().await;
        let m = warm(&up, &Image::oci(1)).await;
        advance(TTL + SECOND).await;
        up.reply("", ALWAYS, Reply::error(status));
        assert_eq!(m.get(PATH).await.error(), (status, code.to_owned()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_restarted_mirror_asks_again_and_falls_back_on_its_disk() {
    let _frozen = freeze();
    let up = Registry::start().await;
    let image = Image::oci(1);
    let store = warm(&up, &image).await.store;
    let again = || Setup::new(&up).store(std::sync::Arc::clone(&store)).start();
    let answer = again().await.get(PATH).await;
    answer.expect(200, &image.manifest);
    assert_eq!(from(&answer), "hit; detail=revalidated");
    assert_eq!(up.take(), [format!("HEAD {PATH}")]);
    up.go_down();
    let answer = again().await.get(PATH).await;
    answer.expect(200, &image.manifest);
    assert_eq!(from(&answer), "hit; detail=stale");
}

#[tokio::test(start_paused = true)]
async fn a_silent_upstream_is_asked_on_for_the_next_clients() {
    let _frozen = freeze();
    let up = Registry::start().await;
    let m = warm(&up, &Image::oci(1)).await;
    let new = Image::oci(2);
    up.push("app", "latest", &new);
    advance(TTL + SECOND).await;
    let gate = Gate::default();
    let held = gate.clone();
    up.on("HEAD ", 1, move |_, usual| usual.held(&held));
    assert_eq!(from(&passing(m.get(PATH)).await), "hit; detail=stale");
    gate.open();
    settle().await;
    m.get(PATH).await.expect(200, &new.manifest);
    assert_eq!(up.count("HEAD "), 1);
}

#[tokio::test]
async fn a_cold_head_costs_no_get() {
    let up = Registry::start().await;
    let m = Setup::new(&up).start().await;
    let image = Image::oci(1);
    let digest = up.push("app", "latest", &image);
    for _ in 0..2 {
        let head = m.head(PATH).await;
        assert_eq!((head.status, head.body.len()), (200, 0));
        assert_eq!(head.header("docker-content-digest"), digest.to_string());
        assert_eq!(
            head.header("content-length"),
            image.manifest.len().to_string()
        );
    }
    assert_eq!(up.take(), [format!("HEAD {PATH}")]);
    m.get(PATH).await.expect(200, &image.manifest);
    assert_eq!(up.take(), [format!("GET /v2/app/manifests/{digest}")]);
}

#[tokio::test]
async fn many_cold_clients_cost_one_get() {
    let up = Registry::start().await;
    let m = Setup::new(&up).start().await;
    let image = Image::oci(1);
    up.push("app", "latest", &image);
    for answer in join_all((0..20).map(|_| m.get(PATH))).await {
        answer.expect(200, &image.manifest);
    }
    assert_eq!(up.take(), [format!("GET {PATH}")]);
}

const SIX: [&str; 6] = [
    media_type::OCI_MANIFEST,
    media_type::OCI_INDEX,
    media_type::DOCKER_MANIFEST,
    media_type::DOCKER_LIST,
    media_type::DOCKER_SCHEMA1,
    media_type::DOCKER_SCHEMA1_SIGNED,
];

#[tokio::test]
async fn one_accept_list_in_any_shape_is_one_question() {
    let up = Registry::start().await;
    let m = Setup::new(&up).start().await;
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
        assert!(sent.contains(kind), "{sent}");
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
        if !seen
            .header("accept")
            .unwrap()
            .contains(media_type::OCI_INDEX)
        {
            return usual;
        }
        Reply::new(200, bytes.clone())
            .with("Docker-Content-Digest", digest)
            .with("Content-Type", media_type::OCI_INDEX)
    });
    (old, index)
}

#[tokio::test(start_paused = true)]
async fn old_and_new_clients_get_each_their_own_manifest() {
    let _frozen = freeze();
    let line = format!("GET {PATH}");
    let (narrow, wide) = (
        [("accept", media_type::DOCKER_MANIFEST)],
        SIX.map(|kind| ("accept", kind)),
    );
    for old_first in [true, false] {
        let up = Registry::start().await;
        let m = Setup::new(&up).start().await;
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
        assert_eq!(
            up.take().len(),
            3,
            "GET, then HEAD and GET of what the HEAD named"
        );
        up.go_down();
        advance(TTL + SECOND).await;
        for (accept, expected) in clients {
            let answer = m.ask(&line, accept).await;
            answer.expect(200, expected);
            assert_eq!(from(&answer), "hit; detail=stale");
        }
    }
}

#[tokio::test]
async fn what_a_client_cannot_read_is_not_served_stale_either() {
    let up = Registry::start().await;
    let m = Setup::new(&up).start().await;
    by_accept(&up);
    let line = format!("GET {PATH}");
    assert_eq!(
        m.ask(&line, &SIX.map(|kind| ("accept", kind))).await.status,
        200
    );
    up.go_down();
    let old = m
        .ask(&line, &[("accept", media_type::DOCKER_MANIFEST)])
        .await;
    assert_eq!(old.error(), (500, "UNAVAILABLE".to_owned()));
}
