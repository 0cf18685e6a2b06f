use super::*;

const BLOB: &[u8] = b"0123456789";

async fn get(upstream: &Upstream) -> Result<BlobStream, UpstreamError> {
    upstream
        .get_blob(&repo(), &digest_of(BLOB), 0, None, &Arc::default())
        .await
}

/// A part of the blob: the range and the total in `Content-Range`, and the body.
fn partial(range: &str, body: impl AsRef<[u8]>) -> Reply {
    Reply::new(206, body).with("Content-Range", format!("bytes {range}"))
}

/// The same without a length of the body.
fn unmeasured(range: &str, body: impl AsRef<[u8]>) -> Reply {
    partial(range, body).chunked()
}

/// Requests the blob from `asked.0` to `asked.1`, or to its end. Returns where the stream says that it
/// starts and ends, and the blob's size; then what arrived, and how it ended.
async fn fetch(
    server: &Server,
    (start, end): (u64, Option<u64>),
) -> (
    (u64, Option<u64>, Option<u64>),
    Vec<u8>,
    Result<(), UpstreamError>,
) {
    let blob = client(server)
        .get_blob(&repo(), &digest_of(BLOB), start, end, &Arc::default())
        .await
        .unwrap();
    let place = (blob.offset, blob.end, blob.total);
    let (bytes, ended) = read_blob(blob.body).await;
    (place, bytes, ended)
}

#[tokio::test]
async fn the_whole_blob_also_when_the_upstream_ignores_ranges() {
    let whole = Reply::ok(BLOB);
    for (reply, total) in [(whole.clone(), Some(10)), (whole.chunked(), None)] {
        for asked in [(0, None), (4, None), (3, Some(7))] {
            let server = replying(reply.clone()).await;
            let (place, bytes, end) = fetch(&server, asked).await;
            assert_eq!((place, &*bytes), ((0, total, total), BLOB), "{asked:?}");
            end.unwrap();
            let line = format!("GET /v2/library/app/blobs/{}", digest_of(BLOB));
            assert_eq!(server.lines(), [line]);
            let is_range = server.seen("")[0].header("range").is_some();
            assert_eq!(is_range, asked != (0, None));
        }
    }
}

#[tokio::test]
async fn a_range_is_requested_and_received() {
    for (start, end, header, range, received_to) in [
        (4, None, "bytes=4-", "4-9/10", 10),
        (3, Some(7), "bytes=3-6", "3-6/10", 7),
        (0, Some(1), "bytes=0-0", "0-0/10", 1),
        // The blob ends before the range does.
        (8, Some(20), "bytes=8-19", "8-9/10", 10),
        // Without a total, the body ends where its range does.
        (3, Some(7), "bytes=3-6", "3-4/*", 5),
        (3, Some(5), "bytes=3-4", "3-4/*", 5),
        (3, None, "bytes=3-", "3-9/*", 10),
    ] {
        let body = &BLOB[start..received_to];
        let server = replying(partial(range, body)).await;
        let (place, bytes, ended) = fetch(&server, (start as u64, end)).await;
        let total = range.ends_with("10").then_some(10);
        let expected = (start as u64, Some(received_to as u64), total);
        assert_eq!((place, &*bytes), (expected, body), "{range}");
        ended.unwrap();
        assert_eq!(server.seen("")[0].header("range"), Some(header));
    }
}

#[tokio::test]
async fn a_body_that_is_cut_off_ends_with_an_error() {
    let bounded = (3, Some(7));
    for (reply, asked, end, arrived) in [
        (Reply::ok("01234").announcing(10), (0, None), 10, "01234"),
        (partial("3-4/10", "34"), (3, None), 10, "34"),
        (partial("3-4/10", "34"), bounded, 7, "34"),
        (unmeasured("3-4/10", "34"), bounded, 7, "34"),
        (unmeasured("3-6/10", "345"), bounded, 7, "345"),
        (unmeasured("3-6/*", "345"), bounded, 7, "345"),
    ] {
        let server = replying(reply).await;
        let (place, bytes, ended) = fetch(&server, asked).await;
        assert_eq!((place.0, place.1), (asked.0, Some(end)));
        assert_eq!(bytes, arrived.as_bytes());
        let error = ended.unwrap_err();
        assert!(error.is_transient(), "{error}");
        let Failure::Broken { received, .. } = error.failure else {
            panic!("{error}");
        };
        assert_eq!(received, arrived.len() as u64);
    }
}

#[tokio::test]
async fn a_range_that_contradicts_the_request_is_refused() {
    let (open, bounded) = ((4, None), (3, Some(7)));
    let refused = async |(start, end), reply| {
        let server = replying(reply).await;
        let (upstream, repo, digest) = (client(&server), repo(), digest_of(BLOB));
        let blob = upstream
            .get_blob(&repo, &digest, start, end, &Arc::default())
            .await;
        match blob.unwrap_err() {
            UpstreamError {
                failure: Failure::Protocol(violation),
                ..
            } => violation,
            error => panic!("{error}"),
        }
    };
    for (what, asked, range, length) in [
        ("another start", open, "3-8/10", 6),
        ("another length", open, "4-8/10", 6),
        ("no total", open, "4-9", 6),
        ("outside", open, "4-9/9", 6),
        ("a later end", bounded, "3-7/10", 5),
        ("no end", bounded, "3-9/10", 7),
        ("any total", bounded, "3-7/*", 5),
        ("a later start", bounded, "4-6/10", 3),
        ("an earlier start", bounded, "0-6/10", 7),
        ("a longer body", bounded, "3-5/10", 4),
    ] {
        let violation = refused(asked, partial(range, &BLOB[..length])).await;
        assert_eq!(violation, Violation::Range, "{what}");
    }
    let multipart = Reply::new(206, "--x").with("Content-Type", "multipart/byteranges");
    let missing = Reply::new(206, &BLOB[4..]);
    for (asked, reply) in [
        (open, multipart),
        (open, missing.clone()),
        (bounded, missing),
    ] {
        assert_eq!(refused(asked, reply).await, Violation::Range);
    }
    let gzip = Reply::ok(BLOB).with("Content-Encoding", "gzip");
    assert_eq!(refused(open, gzip).await, Violation::Encoding);
    let unasked = replying(partial("0-5/10", &BLOB[4..])).await;
    let error = get(&client(&unasked)).await.unwrap_err();
    assert!(matches!(error.failure, Failure::Unexpected(206)), "{error}");
    // The header keeps to what was asked for; the body doesn't.
    let server = replying(unmeasured("3-6/10", "34567")).await;
    let (_, _, ended) = fetch(&server, bounded).await;
    let error = ended.unwrap_err();
    let too_large = Violation::TooLarge { limit: 4 };
    let is_too_large = matches!(&error.failure, Failure::Protocol(found) if *found == too_large);
    assert!(is_too_large, "{error}");
}

#[tokio::test]
async fn a_range_of_no_bytes_is_not_sent() {
    let server = replying(Reply::ok(BLOB)).await;
    let upstream = client(&server);
    for (start, end) in [(0, Some(0)), (7, Some(3))] {
        let (repo, digest) = (repo(), digest_of(BLOB));
        let blob = upstream
            .get_blob(&repo, &digest, start, end, &Arc::default())
            .await;
        let error = blob.unwrap_err();
        assert_eq!(error.class(), "protocol", "{error}");
    }
    assert_eq!(server.lines(), Vec::<String>::new());
}

#[tokio::test]
async fn a_head_tells_the_size_and_falls_back_to_one_byte() {
    let server = replying(Reply::ok("").announcing(10)).await;
    let upstream = client(&server);
    let head = upstream.head_blob(&repo(), &digest_of(BLOB)).await;
    assert_eq!(head.unwrap(), Some(10));
    for knows_ranges in [true, false] {
        let server = Server::scripted(move |seen| {
            if seen.line.starts_with("HEAD") {
                return Reply::new(405, "");
            }
            assert_eq!(seen.header("range"), Some("bytes=0-0"));
            if knows_ranges {
                return partial("0-0/10", "0");
            }
            Reply::ok(BLOB)
        })
        .await;
        let head = client(&server).head_blob(&repo(), &digest_of(BLOB)).await;
        assert_eq!(head.unwrap(), Some(10));
    }
}

/// A registry with tokens that sends the reader to `cdn` for blobs.
async fn redirecting(cdn: &Server) -> Server {
    let target = cdn.url() + "/signed?X-Signature=s3cret";
    Server::scripted(move |seen| match seen.header("authorization") {
        _ if seen.is_token() => Reply::ok(r#"{"token":"t1"}"#),
        None => Reply::challenge(seen, "s"),
        Some(_) => Reply::redirect(target.as_str()).status(307),
    })
    .await
}

#[tokio::test]
async fn another_host_is_given_no_authorization() {
    let cdn = Server::scripted(|_| Reply::ok(BLOB)).await;
    let registry = redirecting(&cdn).await;
    let blob = get(&client(&registry)).await.unwrap();
    assert_eq!(read_blob(blob.body).await.0, BLOB);
    let seen = cdn.seen("");
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].line, "GET /signed?X-Signature=s3cret");
    assert_eq!(seen[0].header("authorization"), None);
    assert_eq!(counts(&registry), (1, 2));
}

#[tokio::test]
async fn a_redirect_within_the_upstream_keeps_the_authorization() {
    let registry = Server::scripted(|seen| match seen.header("authorization") {
        _ if seen.is_token() => Reply::ok(r#"{"token":"t1"}"#),
        None => Reply::challenge(seen, "s"),
        Some(_) if seen.line.ends_with("/moved") => Reply::ok(BLOB),
        Some(_) => Reply::redirect("/moved").status(308),
    })
    .await;
    assert!(get(&client(&registry)).await.is_ok());
}

#[tokio::test]
async fn another_hosts_refusal_is_no_refusal_of_the_registry() {
    for (status, class) in [
        (401, "unexpected"),
        (403, "unexpected"),
        (404, "not_found"),
        (429, "rate_limited"),
        (500, "unavailable"),
    ] {
        let cdn = Server::scripted(move |seen| Reply::challenge(seen, "s").status(status)).await;
        let registry = redirecting(&cdn).await;
        let error = get(&client(&registry)).await.unwrap_err();
        assert_eq!(error.class(), class, "{status}");
        let shown = format!("{error} {error:?}");
        assert!(
            shown.contains("/signed") && !shown.contains("s3cret"),
            "{shown}"
        );
        assert_eq!(counts(&cdn), (0, 1), "its challenge is not answered");
    }
}

#[tokio::test]
async fn endless_and_unusable_redirects_are_refused() {
    let around = replying(Reply::redirect("/again").status(302)).await;
    let error = get(&client(&around)).await.unwrap_err();
    let too_many = Violation::Redirect(RedirectError::TooMany);
    let is_too_many = matches!(&error.failure, Failure::Protocol(found) if *found == too_many);
    assert!(is_too_many, "{error}");
    assert_eq!(around.lines().len(), 6);
    for to in ["ftp://cdn.example/", "http://u:p@cdn.example/", "http://["] {
        let server = replying(Reply::redirect(to).status(302)).await;
        let error = get(&client(&server)).await.unwrap_err();
        assert_eq!(error.class(), "protocol", "{to}");
    }
}
