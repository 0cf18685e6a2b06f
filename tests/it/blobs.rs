//! Blobs: one download for everybody, and what is in the store for nothing.

use futures_util::future::join_all;

use crate::harness::{
    ALWAYS, Gate, Operation, Reply, blob_path, digest, eventually, mirrored, mirrored_with, noise,
    over_faulty_store, put_blob, read, settle, to_end,
};

const SIZE: usize = 3_000_000;

/// Bytes that a client has by now: reads until `bytes` are there.
async fn read_some(response: &mut reqwest::Response, bytes: usize) -> Vec<u8> {
    let mut got = Vec::new();
    while got.len() < bytes {
        let chunk = response.chunk().await.unwrap();
        got.extend_from_slice(&chunk.unwrap());
    }
    got
}

#[tokio::test]
async fn many_cold_clients_share_one_get_and_warm_ones_need_none() {
    let (up, m) = mirrored().await;
    let (blob, path) = put_blob(&up, 1, SIZE);
    let digest = digest(&blob).to_string();
    for answer in join_all((0..20).map(|_| m.get(&path))).await {
        answer.expect(200, &blob);
        answer.has("content-length", SIZE);
        assert_eq!(answer.header("docker-content-digest"), digest);
        assert_eq!(answer.header("content-type"), "application/octet-stream");
    }
    m.idle().await;
    let warm = m.serves(&path, &blob).await;
    assert_eq!(warm.source(), "hit");
    assert_eq!(warm.header("etag"), format!("\"{digest}\""));
    assert_eq!(warm.header("cache-control"), "max-age=31536000");
    assert_eq!(up.take(), [format!("GET {path}")]);
    let requests = |result| format!(r#"millpond_requests_total{{route="blob",result="{result}"}}"#);
    m.counted(&requests("miss"), 1).await;
    m.counted(&requests("joined"), 19).await;
    m.counted(&requests("hit"), 1).await;
}

#[tokio::test]
async fn sizes_at_the_edges_and_the_other_algorithm() {
    let (up, m) = mirrored().await;
    for size in [0, 1, 100_000] {
        let blob = noise(2, size);
        let digest = match size {
            100_000 => up.put_blob_sha512("app", &blob),
            _ => up.put_blob("app", &blob),
        };
        let path = format!("/v2/app/blobs/{digest}");
        m.pull(&path, &blob).await;
        m.serves(&path, &blob).await;
        assert_eq!(up.take().len(), 1, "{size}");
    }
}

#[tokio::test]
async fn a_late_client_reads_a_running_download_from_the_beginning() {
    let (up, m) = mirrored().await;
    let (blob, path) = put_blob(&up, 1, SIZE);
    let half = SIZE / 2;
    let gate = up.hold_body("/blobs/", 1, half);
    let mut first = m.open(&path).await;
    let mut got = read_some(&mut first, half).await;
    assert_eq!(got, blob[..half]);
    let mut late = m.open(&path).await;
    let source = &late.headers()["cache-status"];
    assert_eq!(source, "millpond; fwd=uri-miss; collapsed");
    let mut late_got = read_some(&mut late, half).await;
    assert_eq!(late_got, blob[..half], "before the upstream went on");
    let range = m.range(&path, &format!("bytes=10-{}", half - 1)).await;
    range.expect(206, &blob[10..half]);
    assert!(!m.is_stored(&blob).await);
    gate.open();
    for (response, got) in [(&mut first, &mut got), (&mut late, &mut late_got)] {
        let (rest, broken) = to_end(response).await;
        assert!(!broken);
        got.extend_from_slice(&rest);
        assert!(*got == blob);
    }
    assert_eq!(up.count(""), 1);
}

#[tokio::test]
async fn a_client_that_leaves_stops_nothing() {
    let (up, m) = mirrored().await;
    let (blob, path) = put_blob(&up, 1, SIZE);
    let gate = up.hold_body("/blobs/", 1, 1000);
    let mut leaver = m.open(&path).await;
    read_some(&mut leaver, 1000).await;
    drop(leaver);
    eventually("it left", || m.metric("millpond_followers") == 0).await;
    gate.open();
    m.idle().await;
    assert!(m.is_stored(&blob).await);
    m.serves(&path, &blob).await;
    assert_eq!(up.count(""), 1);
}

#[tokio::test]
async fn a_slow_client_slows_nobody() {
    let (up, m) = mirrored().await;
    let (blob, path) = put_blob(&up, 1, 20_000_000);
    let mut slow = m.open(&path).await;
    m.serves(&path, &blob).await;
    let (rest, broken) = to_end(&mut slow).await;
    assert!(!broken && rest == blob);
    assert_eq!(up.count(""), 1);
}

#[tokio::test]
async fn a_cold_head_asks_with_head_only() {
    let (up, m) = mirrored().await;
    let (blob, path) = put_blob(&up, 1, 5000);
    let head = m.head(&path).await;
    assert_eq!((head.status, head.header("content-length")), (200, "5000"));
    head.has("docker-content-digest", digest(&blob));
    assert_eq!(up.take(), [format!("HEAD {path}")]);
    m.pull(&path, &blob).await;
    up.take();
    let head = m.head(&path).await;
    assert_eq!((head.status, head.header("content-length")), (200, "5000"));
    assert_eq!(head.header("accept-ranges"), "bytes");
    assert_eq!(up.count(""), 0);
}

#[tokio::test]
async fn without_a_length_only_a_verified_end_is_clean() {
    let (up, m) = mirrored().await;
    let (blob, path) = put_blob(&up, 1, SIZE);
    up.on("GET ", 1, |_, usual| usual.forged().chunked());
    let forged = m.get(&path).await;
    assert!(forged.broken || forged.status == 502, "{}", forged.status);
    m.idle().await;
    assert!(!m.is_stored(&blob).await);
    up.on("GET ", 1, |_, usual| usual.chunked());
    let answer = m.serves(&path, &blob).await;
    assert_eq!(answer.header("content-length"), "");
    m.idle().await;
    m.serves(&path, &blob).await;
    assert_eq!(up.count("GET "), 2);
}

#[tokio::test]
async fn wrong_content_breaks_the_body_and_is_not_kept() {
    let (up, m) = mirrored().await;
    let (blob, path) = put_blob(&up, 1, SIZE);
    up.on("GET ", 1, |_, usual| usual.forged());
    for answer in join_all((0..5).map(|_| m.get(&path))).await {
        assert!(answer.broken && answer.body.len() < SIZE, "a clean end");
    }
    m.idle().await;
    assert!(!m.is_stored(&blob).await);
    assert!(m.store.repositories().await.unwrap().is_empty());
    m.serves(&path, &blob).await;
}

#[tokio::test]
async fn the_last_bytes_wait_for_the_digest() {
    for forged in [true, false] {
        let (up, store, m) = over_faulty_store(&[]).await;
        let (blob, path) = put_blob(&up, 1, SIZE);
        let unverified = store.stall(Operation::Write, 1);
        if forged {
            up.on("GET ", 1, |_, usual| usual.forged());
        }
        let name = up.address;
        let received =
            format!(r#"millpond_upstream_received_bytes_total{{upstream="{name}",kind="blob"}}"#);
        let (answer, ()) = tokio::join!(m.get(&path), async {
            m.counted(&received, SIZE as u64).await;
            for _ in 0..20 {
                settle().await;
            }
            unverified.release();
        });
        if forged {
            assert!(answer.broken && answer.body.len() < SIZE, "a clean end");
        } else {
            answer.expect(200, &blob);
        }
    }
}

#[tokio::test]
async fn refusals_are_told_to_all_who_wait() {
    for (reply, status, code, retry_after) in [
        (Reply::error(401), 401, "UNAUTHORIZED", ""),
        (Reply::error(403), 403, "DENIED", ""),
        (Reply::error(404), 404, "BLOB_UNKNOWN", ""),
        (Reply::error(429), 429, "TOOMANYREQUESTS", "9"),
        (Reply::error(500), 500, "UNAVAILABLE", ""),
        (Reply::error(503), 503, "UNAVAILABLE", "77"),
        (Reply::error(302), 502, "UNKNOWN", ""),
    ] {
        let (up, m) = mirrored().await;
        let (blob, path) = put_blob(&up, 1, 5000);
        let gate = Gate::default();
        let reply = match retry_after {
            "" => reply,
            seconds => reply.with("Retry-After", seconds),
        };
        up.reply("", ALWAYS, reply.held(&gate));
        let waiters = join_all((0..5).map(|_| m.get(&path)));
        let (answers, ()) = tokio::join!(waiters, async {
            up.wait(1, "GET ").await;
            eventually("all wait", || m.metric("millpond_followers") == 5).await;
            gate.open();
        });
        for answer in answers {
            answer.refused(status, code);
            assert_eq!(answer.header("retry-after"), retry_after);
        }
        assert_eq!(up.count("GET "), 1);
        assert_eq!(m.head(&path).await.status, status);
        m.idle().await;
        assert!(!m.is_stored(&blob).await);
    }
}

#[tokio::test]
async fn another_repositorys_blob_is_proved_by_one_head_and_then_linked() {
    let (up, m) = mirrored_with(&["proxy.negativettl: 0"]).await;
    let blob = noise(1, 5000);
    up.put_blob("one", &blob);
    m.pull(&blob_path("one", &blob), &blob).await;
    let two = blob_path("two", &blob);
    up.take();
    m.get(&two).await.refused(404, "BLOB_UNKNOWN");
    assert_eq!(m.head(&two).await.status, 404);
    up.put_blob("two", &blob);
    up.take();
    let answer = m.serves(&two, &blob).await;
    assert_eq!(
        answer.source(),
        "fwd=uri-miss; fwd-status=200; detail=revalidated"
    );
    m.serves(&two, &blob).await;
    assert_eq!(up.take(), [format!("HEAD {two}")]);
    up.go_down();
    m.serves(&two, &blob).await;
}

#[tokio::test]
async fn another_repositorys_running_download_is_joined_after_one_head() {
    let (up, m) = mirrored().await;
    let blob = noise(1, SIZE);
    up.put_blob("one", &blob);
    up.put_blob("two", &blob);
    let gate = up.hold_body("GET ", 1, 1000);
    let first = m.open(&blob_path("one", &blob)).await;
    let second = m.open(&blob_path("two", &blob)).await;
    assert_eq!(m.get(&blob_path("three", &blob)).await.status, 404);
    gate.open();
    for response in [first, second] {
        read(response).await.expect(200, &blob);
    }
    m.idle().await;
    assert_eq!(up.count("GET "), 1);
    up.go_down();
    for repo in ["one", "two"] {
        m.serves(&blob_path(repo, &blob), &blob).await;
    }
}

#[tokio::test]
async fn an_upstream_without_head_proves_with_one_byte() {
    let (up, m) = mirrored().await;
    let (_, path) = put_blob(&up, 1, 5000);
    up.reply("HEAD ", ALWAYS, Reply::error(405));
    let head = m.head(&path).await;
    assert_eq!((head.status, head.header("content-length")), (200, "5000"));
    let gets = up.seen("GET ");
    assert_eq!(gets[0].header("range"), Some("bytes=0-0"));
    assert_eq!(gets.len(), 1);
}
