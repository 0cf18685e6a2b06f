//! Request ids: from the client through the mirror to the upstream, and back.

use tokio_util::task::TaskTracker;

use crate::harness::{Reply, Setup, blob_path, eventually, mirrored, put_blob, put_image};

const ID: &str = "x-request-id";

/// Whether an id was generated here.
fn is_generated(id: &str) -> bool {
    id.len() == 28 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[tokio::test(start_paused = true)]
async fn a_clients_id_goes_to_the_upstream_and_comes_back() {
    let (up, m) = mirrored().await;
    up.protect(None);
    let (image, path) = put_image(&up, 1);
    let answer = m.ask(&format!("GET {path}"), &[(ID, "client/1")]).await;
    answer.expect(200, &image.manifest);
    answer.has(ID, "client/1");
    let seen = up.seen("");
    assert!(
        seen.iter().any(testkit::Seen::is_token),
        "a token was needed"
    );
    for seen in seen {
        assert_eq!(seen.header(ID), Some("client/1"), "{}", seen.line);
    }
    // The next one is a hit, with an id of its own.
    let next = m.ask(&format!("GET {path}"), &[(ID, "client/2")]).await;
    next.has(ID, "client/2");
}

#[tokio::test(start_paused = true)]
async fn ids_that_are_not_valid_are_replaced() {
    let (_up, m) = mirrored().await;
    let long = "x".repeat(129);
    let mut ids = Vec::new();
    for bad in ["", "a b", "a\tb", &long] {
        let answer = m.ask("GET /v2/", &[(ID, bad)]).await;
        let id = answer.header(ID);
        assert!(is_generated(id), "{bad:?}: {id}");
        ids.push(id.to_owned());
    }
    let twice = m.ask("GET /v2/", &[(ID, "a"), (ID, "b")]).await;
    ids.push(twice.header(ID).to_owned());
    ids.push(m.get("/v2/").await.header(ID).to_owned());
    assert!(ids.iter().all(|id| is_generated(id)), "{ids:?}");
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count, "each request has its own");
}

#[tokio::test(start_paused = true)]
async fn every_response_has_an_id() {
    let (up, m) = mirrored().await;
    let (_, path) = put_blob(&up, 1, 1000);
    m.get(&path).await;
    up.reply("/broken/", 9, Reply::error(403));
    for (line, status) in [
        ("GET /".to_owned(), 200),
        ("GET /v2/".to_owned(), 200),
        ("OPTIONS /v2/".to_owned(), 200),
        ("GET /v3".to_owned(), 404),
        ("PUT /v2/app/manifests/1".to_owned(), 405),
        (format!("GET {path}"), 200),
        (format!("HEAD {path}"), 200),
        (format!("GET {}", blob_path("app", b"nothing")), 404),
        (format!("GET {}", blob_path("broken", b"x")), 403),
        ("GET /v2/broken/tags/list".to_owned(), 403),
        ("GET /token/x".to_owned(), 404),
    ] {
        let answer = m.ask(&line, &[(ID, "mine")]).await;
        assert_eq!(
            (answer.status, answer.header(ID)),
            (status, "mine"),
            "{line}"
        );
    }
    let ranged = m
        .ask(
            &format!("GET {path}"),
            &[(ID, "mine"), ("range", "bytes=5000-")],
        )
        .await;
    assert_eq!((ranged.status, ranged.header(ID)), (416, "mine"));
}

#[tokio::test(start_paused = true)]
async fn a_shared_download_carries_the_id_of_the_request_that_started_it() {
    let (up, m) = mirrored().await;
    let (blob, path) = put_blob(&up, 1, 100_000);
    let gate = up.hold("/blobs/", 1);
    let (first, second) = (
        m.request(&format!("GET {path}"), &[(ID, "first")]),
        m.request(&format!("GET {path}"), &[(ID, "second")]),
    );
    let first = TaskTracker::new().spawn(first.send());
    up.wait(1, "/blobs/").await;
    let second = TaskTracker::new().spawn(second.send());
    eventually("two clients follow", || m.metric("millpond_followers") == 2).await;
    gate.open();
    for (client, id) in [(first, "first"), (second, "second")] {
        let answer = crate::harness::read(client.await.unwrap().unwrap()).await;
        answer.expect(200, &blob);
        answer.has(ID, id);
    }
    let seen = up.seen("/blobs/");
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].header(ID), Some("first"));
}

#[tokio::test(start_paused = true)]
async fn hosts_that_the_upstream_leads_to_get_no_id() {
    let (up, m) = mirrored().await;
    let cdn = crate::harness::Registry::at("127.0.0.2").await;
    let (blob, path) = put_blob(&up, 1, 1000);
    cdn.put_blob("app", &blob);
    let location = format!("{}{path}", cdn.url());
    let reply = Reply::new(307, "").with("Location", &location);
    up.reply("/blobs/", 1, reply);
    m.ask(&format!("GET {path}"), &[(ID, "mine")])
        .await
        .expect(200, &blob);
    assert_eq!(up.seen("/blobs/")[0].header(ID), Some("mine"));
    assert_eq!(cdn.seen("/blobs/")[0].header(ID), None);
}

#[tokio::test(start_paused = true)]
async fn configured_headers_do_not_replace_the_id() {
    let up = crate::harness::Registry::start().await;
    let m = Setup::new(&up)
        .with(&["http.headers: {X-Request-Id: [fixed]}"])
        .start()
        .await;
    m.ask("GET /v2/", &[(ID, "mine")]).await.has(ID, "mine");
}
