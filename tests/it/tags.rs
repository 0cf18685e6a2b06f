//! Manifests by tag: believed for a while, then asked after once for all, and served stale while
//! the upstream can't answer.

use std::time::Duration;

use futures_util::future::join_all;

use crate::harness::{
    ALWAYS, Image, Mirror, Registry, Reply, Setup, advance, freeze, mirrored, passing, settle,
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
    let gate = up.hold("HEAD ", 1);
    let (answers, ()) = tokio::join!(join_all((0..20).map(|_| m.get(PATH))), async {
        up.wait(1, "HEAD").await;
        m.counted("millpond_connections", 20).await;
        settle().await;
        gate.open();
    });
    for answer in answers {
        answer.expect(200, &image.manifest);
        assert_eq!(
            from(&answer),
            "fwd=stale; fwd-status=200; detail=revalidated"
        );
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
    for (trouble, status) in [
        (Reply::error(500), "; fwd-status=500"),
        (Reply::error(502), "; fwd-status=502"),
        (Reply::error(503), "; fwd-status=503"),
        (Reply::error(429), "; fwd-status=429"),
        (Reply::hang_up(), ""),
        (Reply::silence(), ""),
    ] {
        let up = Registry::start().await;
        let m = warm(&up, &image).await;
        advance(TTL + SECOND).await;
        up.reply("", ALWAYS, trouble);
        let started = tokio::time::Instant::now();
        let answer = passing(m.get(PATH)).await;
        answer.expect(200, &image.manifest);
        assert_eq!(from(&answer), format!("fwd=stale{status}; detail=stale"));
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
    assert_eq!(from(&answer), "fwd=stale; detail=stale");
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
        let first = m.get(PATH).await;
        let asked = from(&first);
        assert!(asked.starts_with("fwd=stale; fwd-status="), "{asked}");
        for _ in 0..2 {
            assert_eq!(from(&m.get(PATH).await), "hit; detail=stale");
        }
        advance((pause - 1) * SECOND).await;
        assert_eq!(from(&m.get(PATH).await), "hit; detail=stale");
        assert_eq!(up.take().len(), 1, "asked once");
        advance(2 * SECOND).await;
        up.behave();
        assert_eq!(
            from(&m.get(PATH).await),
            "fwd=stale; fwd-status=200; detail=revalidated"
        );
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
    m.serves(&format!("/v2/app/manifests/{digest}"), &image.manifest)
        .await;
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
    assert_eq!(
        from(&answer),
        "fwd=stale; fwd-status=200; detail=revalidated"
    );
    assert_eq!(up.take(), [format!("HEAD {PATH}")]);
    up.go_down();
    let answer = again().await.get(PATH).await;
    answer.expect(200, &image.manifest);
    let expected = "fwd=stale; fwd-status=500; detail=stale";
    assert_eq!(from(&answer), expected);
}

/// containerd and dockerd ask for a tag with HEAD and for the manifest by its digest.
#[tokio::test(start_paused = true)]
async fn a_digest_from_a_head_survives_a_restart_once_its_manifest_is_stored() {
    let _frozen = freeze();
    let up = Registry::start().await;
    let old = Image::oci(1);
    let m = warm(&up, &old).await;
    let restarted_and_alone = async || {
        up.go_down();
        let again = Setup::new(&up).store(std::sync::Arc::clone(&m.store));
        let answer = again.start().await.get(PATH).await;
        up.behave();
        answer
    };
    let new = Image::oci(2);
    let digest = up.push("app", "latest", &new);
    advance(TTL + SECOND).await;
    let head = m.head(PATH).await;
    assert_eq!(head.header("docker-content-digest"), digest.to_string());
    let meanwhile = restarted_and_alone().await;
    meanwhile.expect(200, &old.manifest);
    let by_digest = format!("/v2/app/manifests/{digest}");
    m.get(&by_digest).await.expect(200, &new.manifest);
    restarted_and_alone().await.expect(200, &new.manifest);

    let newest = Image::oci(3);
    up.push("app", "latest", &newest);
    advance(TTL + SECOND).await;
    m.get(PATH).await.expect(200, &newest.manifest);
    restarted_and_alone().await.expect(200, &newest.manifest);
}

#[tokio::test(start_paused = true)]
async fn a_manifest_that_comes_late_does_not_move_the_tag_back() {
    let _frozen = freeze();
    let up = Registry::start().await;
    let m = warm(&up, &Image::oci(1)).await;
    let (passed_over, newest) = (Image::oci(2), Image::oci(3));
    let digest = up.push("app", "latest", &passed_over);
    advance(TTL + SECOND).await;
    assert_eq!(m.head(PATH).await.status, 200);
    up.push("app", "latest", &newest);
    advance(TTL + SECOND).await;
    m.get(PATH).await.expect(200, &newest.manifest);
    let by_digest = format!("/v2/app/manifests/{digest}");
    m.get(&by_digest).await.expect(200, &passed_over.manifest);
    up.go_down();
    let again = Setup::new(&up).store(std::sync::Arc::clone(&m.store));
    again
        .start()
        .await
        .get(PATH)
        .await
        .expect(200, &newest.manifest);
}

#[tokio::test(start_paused = true)]
async fn a_silent_upstream_is_asked_on_for_the_next_clients() {
    let _frozen = freeze();
    let up = Registry::start().await;
    let m = warm(&up, &Image::oci(1)).await;
    let new = Image::oci(2);
    up.push("app", "latest", &new);
    advance(TTL + SECOND).await;
    let gate = up.hold("HEAD ", 1);
    let stale = passing(m.get(PATH)).await;
    assert_eq!(from(&stale), "fwd=stale; detail=stale");
    gate.open();
    settle().await;
    m.get(PATH).await.expect(200, &new.manifest);
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
    let (up, m) = mirrored().await;
    let image = Image::oci(1);
    up.push("app", "latest", &image);
    for answer in join_all((0..20).map(|_| m.get(PATH))).await {
        answer.expect(200, &image.manifest);
    }
    assert_eq!(up.take(), [format!("GET {PATH}")]);
}
