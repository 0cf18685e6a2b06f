//! Blobs that clients push: each row of the specification's uploads, for both algorithms, in memory and
//! on disk.

use bytes::Bytes;
use futures_util::stream;
use millpond::oci::Digest;
use tokio::sync::mpsc;

use crate::harness::push::{Pusher, SPACE, everywhere};
use crate::harness::{Answer, noise, read};

/// Where a session is, as its answer says; it has no scheme and no host.
fn location(answer: &Answer) -> String {
    let location = answer.header("location").to_owned();
    assert!(
        location.starts_with("/v2/ci/app/blobs/uploads/"),
        "{location}"
    );
    assert!(location.ends_with(answer.header("docker-upload-uuid")));
    location
}

async fn has_blob(p: &Pusher, blob: &[u8]) -> Digest {
    let digest = p.digest(blob);
    let path = format!("/v2/ci/app/blobs/{digest}");
    let head = p.m.head(&path).await;
    assert_eq!(head.status, 200);
    head.has("content-length", blob.len());
    head.has("docker-content-digest", digest);
    p.m.serves(&path, blob).await;
    digest
}

#[tokio::test]
async fn a_blob_comes_with_one_post() {
    everywhere(async |p| {
        for blob in [noise(1, 100_000), Bytes::new()] {
            let digest = p.digest(&blob);
            let line = format!("POST /v2/ci/app/blobs/uploads/?digest={digest}");
            let pushed = p.send(&line, &[], blob.clone()).await;
            pushed.expect(201, b"");
            pushed.has("location", format!("/v2/ci/app/blobs/{digest}"));
            pushed.has("docker-content-digest", digest);
            has_blob(p, &blob).await;
        }
        let wrong = p.digest(b"other");
        let line = format!("POST /v2/ci/app/blobs/uploads/?digest={wrong}");
        let refused = p.send(&line, &[], noise(2, 10)).await;
        refused.refused(400, "DIGEST_INVALID");
    })
    .await;
}

#[tokio::test]
async fn a_blob_comes_with_one_put() {
    everywhere(async |p| {
        let blob = noise(1, 100_000);
        let digest = p.digest(&blob);
        for uploads in ["uploads", "uploads/"] {
            let started = p.ask(&format!("POST /v2/ci/app/blobs/{uploads}")).await;
            started.expect(202, b"");
            started.has("range", "0-0");
            let at = location(&started);
            let closed = p
                .send(&format!("PUT {at}?digest={digest}"), &[], blob.clone())
                .await;
            closed.expect(201, b"");
            p.ask(&format!("GET {at}"))
                .await
                .refused(404, "BLOB_UPLOAD_UNKNOWN");
        }
        has_blob(p, &blob).await;
    })
    .await;
}

#[tokio::test]
async fn a_blob_comes_in_chunks() {
    everywhere(async |p| {
        let blob = noise(1, 30_000);
        let digest = p.digest(&blob);
        let at = p.begin("ci/app").await;
        let (first, rest) = (blob.slice(..10_000), blob.slice(10_000..));
        // With and without a range; of known length and not.
        let range = [("content-range", "0-9999")];
        let patched = p.send(&format!("PATCH {at}"), &range, first).await;
        patched.expect(202, b"");
        patched.has("range", "0-9999");
        let at = location(&patched);
        for query in ["", &format!("?digest={digest}")] {
            let status = p.ask(&format!("GET {at}{query}")).await;
            status.expect(204, b"");
            status.has("range", "0-9999");
            location(&status);
        }
        let chunks = [Ok::<_, std::io::Error>(rest.slice(..15_000))];
        let chunked = reqwest::Body::wrap_stream(stream::iter(chunks));
        let patched = p.send(&format!("PATCH {at}"), &[], chunked).await;
        patched.expect(202, b"");
        patched.has("range", "0-24999");
        let range = [("content-range", "25000-29999")];
        let line = format!("PUT {at}?digest={digest}");
        let closed = p.send(&line, &range, rest.slice(15_000..)).await;
        closed.expect(201, b"");
        closed.has("location", format!("/v2/ci/app/blobs/{digest}"));
        has_blob(p, &blob).await;
        // A client that heard nothing of the answer closes the session again.
        p.ask(&line).await.expect(201, b"");
        let other = p.digest(b"another blob");
        p.ask(&format!("PUT {at}?digest={other}"))
            .await
            .refused(404, "BLOB_UPLOAD_UNKNOWN");
    })
    .await;
}

#[tokio::test]
async fn bytes_that_do_not_follow_are_refused_and_the_session_survives() {
    everywhere(async |p| {
        let blob = noise(1, 20_000);
        let digest = p.digest(&blob);
        let at = p.begin("ci/app").await;
        let patch = format!("PATCH {at}");
        let put = format!("PUT {at}?digest={digest}");
        let early = p
            .send(&patch, &[("content-range", "5-9")], blob.slice(5..10))
            .await;
        early.refused(416, "BLOB_UPLOAD_INVALID");
        early.has("range", "0-0");
        location(&early);
        let first = p
            .send(&patch, &[("content-range", "0-9999")], blob.slice(..10_000))
            .await;
        first.expect(202, b"");
        for (line, range) in [
            (&patch, "0-9999"),
            (&patch, "10001-20000"),
            (&put, "9999-19998"),
        ] {
            let wrong = p
                .send(line, &[("content-range", range)], blob.slice(10_000..))
                .await;
            wrong.refused(416, "BLOB_UPLOAD_INVALID");
            wrong.has("range", "0-9999");
            location(&wrong);
        }
        let contradiction = [("content-range", "10000-10004")];
        let short = p.send(&patch, &contradiction, blob.slice(10_000..)).await;
        short.refused(400, "SIZE_INVALID");
        // Old regctl's end is one too high.
        let end = [("content-range", "10000-15000")];
        let judged = p.send(&patch, &end, blob.slice(10_000..15_000)).await;
        judged.expect(202, b"");
        let closed = p.send(&put, &[], blob.slice(15_000..)).await;
        closed.expect(201, b"");
        has_blob(p, &blob).await;
    })
    .await;
}

#[tokio::test]
async fn a_wrong_digest_ends_the_session() {
    everywhere(async |p| {
        let at = p.begin("ci/app").await;
        let wrong = p.digest(b"something else");
        let line = format!("PUT {at}?digest={wrong}");
        let refused = p.send(&line, &[], noise(1, 5_000)).await;
        refused.refused(400, "DIGEST_INVALID");
        p.ask(&format!("GET {at}"))
            .await
            .refused(404, "BLOB_UPLOAD_UNKNOWN");
        let head = p.m.head(&format!("/v2/ci/app/blobs/{wrong}")).await;
        assert_eq!(head.status, 404);
    })
    .await;
}

#[tokio::test]
async fn a_session_is_cancelled_and_belongs_to_its_repository() {
    everywhere(async |p| {
        let at = p.begin("ci/app").await;
        let elsewhere = at.replace("ci/app", "ci/other");
        let digest = p.digest(b"");
        for line in [
            format!("GET {elsewhere}"),
            format!("PATCH {elsewhere}"),
            format!("PUT {elsewhere}?digest={digest}"),
            format!("DELETE {elsewhere}"),
            "GET /v2/ci/app/blobs/uploads/1".to_owned(),
            "PATCH /v2/ci/app/blobs/uploads/0f8fad5b-d9cb-469f-a165-70867728950e".to_owned(),
        ] {
            p.ask(&line).await.refused(404, "BLOB_UPLOAD_UNKNOWN");
        }
        p.ask(&format!("GET {at}")).await.expect(204, b"");
        p.ask(&format!("DELETE {at}")).await.expect(204, b"");
        for method in ["GET", "PATCH", "DELETE"] {
            let again = p.ask(&format!("{method} {at}")).await;
            again.refused(404, "BLOB_UPLOAD_UNKNOWN");
        }
    })
    .await;
}

#[tokio::test]
async fn what_arrived_before_a_patch_broke_off_is_kept() {
    everywhere(async |p| {
        let blob = noise(1, 60_000);
        let digest = p.digest(&blob);
        let at = p.begin("ci/app").await;
        let (send, mut receive) = mpsc::channel::<Result<Bytes, std::io::Error>>(1);
        let body = stream::poll_fn(move |cx| receive.poll_recv(cx));
        let request = p.m.request(&format!("PATCH {at}"), &[]);
        let request = request.body(reqwest::Body::wrap_stream(body)).send();
        let client = async {
            send.send(Ok(blob.slice(..40_000))).await.unwrap();
            let broken = std::io::Error::other("the cable is pulled");
            send.send(Err(broken)).await.unwrap();
        };
        let (answer, ()) = tokio::join!(request, client);
        assert!(answer.is_err(), "{answer:?}");
        // Waits for what still writes.
        let status = p.ask(&format!("GET {at}")).await;
        status.expect(204, b"");
        let received = status.header("range").strip_prefix("0-").unwrap();
        let received: usize = received.parse::<usize>().unwrap() + 1;
        let received = if received == 1 { 0 } else { received };
        let line = format!("PATCH {at}");
        let range = format!("{received}-59999");
        let rest = p
            .send(&line, &[("content-range", &range)], blob.slice(received..))
            .await;
        rest.expect(202, b"");
        p.ask(&format!("PUT {at}?digest={digest}"))
            .await
            .expect(201, b"");
        has_blob(p, &blob).await;
    })
    .await;
}

#[tokio::test]
async fn a_second_writer_is_refused_and_bytes_are_never_mixed() {
    everywhere(async |p| {
        let blob = noise(1, 50_000);
        let digest = p.digest(&blob);
        let at = p.begin("ci/app").await;
        let (send, mut receive) = mpsc::channel::<Result<Bytes, std::io::Error>>(1);
        let body = stream::poll_fn(move |cx| receive.poll_recv(cx));
        let request = p.m.request(&format!("PATCH {at}"), &[]);
        let request = request.body(reqwest::Body::wrap_stream(body)).send();
        let other = async {
            send.send(Ok(blob.slice(..10_000))).await.unwrap();
            let mut refused = None;
            // Until the first one has begun.
            for _ in 0..200 {
                let second = p
                    .send(&format!("PATCH {at}"), &[("content-range", "7-9")], "xyz")
                    .await;
                if second.status == 409 {
                    refused = Some(second);
                    break;
                }
                assert_eq!(second.status, 416);
            }
            refused.unwrap().refused(409, "BLOB_UPLOAD_INVALID");
            send.send(Ok(blob.slice(10_000..))).await.unwrap();
            drop(send);
        };
        let (answer, ()) = tokio::join!(request, other);
        read(answer.unwrap()).await.expect(202, b"");
        p.ask(&format!("PUT {at}?digest={digest}"))
            .await
            .expect(201, b"");
        has_blob(p, &blob).await;
    })
    .await;
}

#[tokio::test]
async fn a_blob_is_mounted_from_another_repository() {
    everywhere(async |p| {
        let blob = noise(1, 5_000);
        let digest = p.blob("ci/base", &blob).await;
        for (repo, query) in [
            ("ci/app", format!("mount={digest}&from=ci/base")),
            ("ci/any", format!("mount={digest}")),
            ("ci/crane", format!("mount={digest}&from=ci/base&origin=x")),
        ] {
            let line = format!("POST /v2/{repo}/blobs/uploads/?{query}");
            let mounted = p.ask(&line).await;
            mounted.expect(201, b"");
            mounted.has("location", format!("/v2/{repo}/blobs/{digest}"));
            mounted.has("docker-content-digest", digest);
            let path = format!("/v2/{repo}/blobs/{digest}");
            p.m.serves(&path, &blob).await;
        }
        let missing = p.digest(b"missing");
        for query in [
            format!("mount={missing}&from=ci/base"),
            format!("mount={digest}&from=ci/nobody"),
            format!("mount={digest}&from=library/debian"),
            format!("mount={digest}&from=.."),
            "mount=sha256:12&from=ci/base".to_owned(),
        ] {
            let line = format!("POST /v2/ci/third/blobs/uploads/?{query}");
            let started = p.ask(&line).await;
            started.expect(202, b"");
            let at = started.header("location");
            p.ask(&format!("DELETE {at}")).await.expect(204, b"");
        }
        assert_eq!(p.up.count(""), 0, "the upstream isn't asked");
    })
    .await;
}

#[tokio::test]
async fn a_deleted_blob_is_gone_at_once_here_and_nowhere_else() {
    everywhere(async |p| {
        let blob = noise(1, 5_000);
        let digest = p.blob("ci/app", &blob).await;
        p.blob("ci/other", &blob).await;
        let line = format!("DELETE /v2/ci/app/blobs/{digest}");
        p.ask(&line).await.expect(202, b"");
        let head = p.m.head(&format!("/v2/ci/app/blobs/{digest}")).await;
        assert_eq!(head.status, 404);
        p.m.get(&format!("/v2/ci/app/blobs/{digest}"))
            .await
            .refused(404, "BLOB_UNKNOWN");
        p.ask(&line).await.refused(404, "BLOB_UNKNOWN");
        let other = format!("/v2/ci/other/blobs/{digest}");
        p.m.serves(&other, &blob).await;
        let image = p.image(1);
        p.push("ci/app", "1", &image).await;
        let layer = p.digest(&image.layers[0]);
        let line = format!("DELETE /v2/ci/app/blobs/{layer}");
        p.ask(&line).await.refused(405, "UNSUPPORTED");
        p.serves("ci/app", "1", &image).await;
    })
    .await;
}

#[tokio::test]
async fn ranges_of_a_blob_are_served() {
    everywhere(async |p| {
        let blob = noise(1, 50_000);
        let digest = p.blob("ci/app", &blob).await;
        let path = format!("/v2/ci/app/blobs/{digest}");
        let range = p.m.range(&path, "bytes=10-19").await;
        range.expect(206, &blob[10..20]);
        range.has("content-range", "bytes 10-19/50000");
        p.m.range(&path, "bytes=49990-")
            .await
            .expect(206, &blob[49_990..]);
        for wrong in ["bytes=9-5", "bytes=50000-", "bytes=60000-70000"] {
            assert_eq!(p.m.range(&path, wrong).await.status, 416, "{wrong}");
        }
        let empty = p.blob("ci/app", &Bytes::new()).await;
        let head = p.m.head(&format!("/v2/ci/app/blobs/{empty}")).await;
        assert_eq!((head.status, head.header("content-length")), (200, "0"));
    })
    .await;
}

#[tokio::test]
async fn a_blob_above_the_limit_and_one_over_the_quota_are_refused_early() {
    let small = "root.hosted: [{name: ci, repositories: ['ci/**'], maxblob: 10KiB, quota: 15KiB}]";
    let p = Pusher::with(&[small]).await;
    let large = noise(1, 20_000);
    let digest = p.digest(&large);
    let at = p.begin("ci/app").await;
    let refused = p
        .send(&format!("PUT {at}?digest={digest}"), &[], large)
        .await;
    refused.refused(403, "DENIED");
    p.blob("ci/app", &noise(2, 10_000)).await;
    let at = p.begin("ci/app").await;
    let refused = p.send(&format!("PATCH {at}"), &[], noise(3, 10_000)).await;
    refused.refused(403, "DENIED");
    let message = refused.json()["errors"][0]["message"].to_string();
    assert!(message.contains("15360"), "{message}");
}

#[tokio::test]
async fn links_have_the_configured_host_and_prefix() {
    for (lines, base) in [
        (&["http.prefix: /some/"][..], "/some"),
        (
            &["http.host: 'https://mirror.example'"],
            "https://mirror.example",
        ),
        (
            &[
                "http.host: 'https://mirror.example'",
                "http.relativeurls: true",
            ],
            "",
        ),
    ] {
        let lines: Vec<_> = lines.iter().copied().chain([SPACE]).collect();
        let p = Pusher::with(&lines).await;
        let path = base.strip_prefix("https://mirror.example").unwrap_or(base);
        let started = p
            .ask(&format!("POST {path}/v2/ci/app/blobs/uploads/"))
            .await;
        let expected = format!("{base}/v2/ci/app/blobs/uploads/");
        let found = started.header("location");
        assert!(found.starts_with(&expected), "{found}");
        let digest = p.digest(b"x");
        let line = format!("POST {path}/v2/ci/app/blobs/uploads/?digest={digest}");
        let pushed = p.send(&line, &[], "x").await;
        pushed.has("location", format!("{base}/v2/ci/app/blobs/{digest}"));
    }
}
