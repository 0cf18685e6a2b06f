use std::ops::Range;

use super::*;

const BLOB: &[u8] = b"0123456789";

async fn get(upstream: &Upstream, offset: u64) -> Result<BlobStream, UpstreamError> {
    upstream
        .get_blob(&repo(), &digest_of(BLOB), offset, None)
        .await
}

async fn get_range(upstream: &Upstream, range: Range<u64>) -> Result<BlobStream, UpstreamError> {
    upstream
        .get_blob(&repo(), &digest_of(BLOB), range.start, Some(range.end))
        .await
}

/// Where a stream says that it starts and ends, and the blob's size.
fn place(blob: &BlobStream) -> (u64, Option<u64>, Option<u64>) {
    (blob.offset, blob.end, blob.total)
}

/// A part of the blob: what `Content-Range` says, and the body.
fn partial(range: &str, body: impl AsRef<[u8]>) -> Reply {
    Reply::new(206, body.as_ref()).with("Content-Range", range)
}

/// The same without a length of the body.
fn unmeasured(range: &str, body: &'static [u8]) -> Reply {
    Reply::ok(body)
        .chunked()
        .status(206)
        .with("Content-Range", range)
}

#[tokio::test]
async fn a_whole_blob_with_and_without_its_length() {
    for (reply, total) in [
        (Reply::ok(BLOB), Some(10)),
        (Reply::ok(BLOB).chunked(), None),
    ] {
        let server = Server::scripted(move |_| reply.clone()).await;
        let blob = get(&client(&server), 0).await.unwrap();
        assert_eq!(place(&blob), (0, total, total));
        let (bytes, end) = drink(blob.body).await;
        assert_eq!(bytes, BLOB);
        end.unwrap();
        assert_eq!(server.seen("")[0].header("range"), None);
        assert_eq!(
            server.lines(),
            [format!("GET /v2/library/app/blobs/{}", digest_of(BLOB))]
        );
    }
}

#[tokio::test]
async fn a_body_that_is_cut_off_never_ends_well() {
    let half_chunk = Reply::new(200, b"01234").announcing(10);
    let short_range = Reply::new(206, b"34").with("Content-Range", "bytes 3-4/10");
    for (reply, offset, came) in [(half_chunk, 0, "01234"), (short_range, 3, "34")] {
        let server = Server::scripted(move |_| reply.clone()).await;
        let blob = get(&client(&server), offset).await.unwrap();
        assert_eq!(place(&blob), (offset, Some(10), Some(10)));
        let (bytes, end) = drink(blob.body).await;
        assert_eq!(bytes, came.as_bytes());
        let error = end.unwrap_err();
        assert!(error.is_transient(), "{error}");
        let UpstreamError::Broken { received, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(received, came.len() as u64);
    }
}

#[tokio::test]
async fn a_range_is_taken_up_where_it_was_asked_for() {
    let server = Server::scripted(|seen| {
        assert_eq!(seen.header("range"), Some("bytes=4-"));
        Reply::new(206, &BLOB[4..]).with("Content-Range", "bytes 4-9/10")
    })
    .await;
    let blob = get(&client(&server), 4).await.unwrap();
    assert_eq!(place(&blob), (4, Some(10), Some(10)));
    let (bytes, end) = drink(blob.body).await;
    assert_eq!(bytes, &BLOB[4..]);
    end.unwrap();
}

#[tokio::test]
async fn an_upstream_without_ranges_starts_at_zero() {
    let server = Server::scripted(|_| Reply::ok(BLOB)).await;
    let blob = get(&client(&server), 4).await.unwrap();
    assert_eq!(place(&blob), (0, Some(10), Some(10)));
    assert_eq!(drink(blob.body).await.0, BLOB);
}

#[tokio::test]
async fn a_range_that_wasnt_asked_for_is_refused() {
    let range = |text| Reply::new(206, &BLOB[4..]).with("Content-Range", text);
    for (what, reply) in [
        ("another start", range("bytes 3-8/10")),
        ("another length", range("bytes 4-8/10")),
        ("no total", range("bytes 4-9")),
        ("outside", range("bytes 4-9/9")),
        ("missing", Reply::new(206, &BLOB[4..])),
        (
            "multipart",
            Reply::new(206, "--x").with("Content-Type", "multipart/byteranges"),
        ),
        ("gzip", Reply::ok(BLOB).with("Content-Encoding", "gzip")),
    ] {
        let server = Server::scripted(move |_| reply.clone()).await;
        let error = get(&client(&server), 4).await.unwrap_err();
        assert!(
            matches!(error, UpstreamError::Protocol { .. }),
            "{what}: {error}"
        );
    }
    let unasked = Server::scripted(move |_| range("bytes 0-5/10")).await;
    let error = get(&client(&unasked), 0).await.unwrap_err();
    assert!(
        matches!(error, UpstreamError::Unexpected { status: 206, .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_bounded_range_is_asked_for_and_taken() {
    for (range, header, reply, end, body) in [
        (
            3..7,
            "bytes=3-6",
            partial("bytes 3-6/10", "3456"),
            7,
            "3456",
        ),
        (0..1, "bytes=0-0", partial("bytes 0-0/10", "0"), 1, "0"),
        // The blob ends before the range does.
        (8..20, "bytes=8-19", partial("bytes 8-9/10", "89"), 10, "89"),
    ] {
        let server = Server::scripted(move |_| reply.clone()).await;
        let blob = get_range(&client(&server), range.clone()).await.unwrap();
        assert_eq!(place(&blob), (range.start, Some(end), Some(10)));
        let (bytes, ended) = drink(blob.body).await;
        assert_eq!(bytes, body.as_bytes());
        ended.unwrap();
        assert_eq!(server.seen("")[0].header("range"), Some(header));
    }
}

#[tokio::test]
async fn an_upstream_without_ranges_sends_the_whole_for_a_bounded_one() {
    for (reply, total) in [
        (Reply::ok(BLOB), Some(10)),
        (Reply::ok(BLOB).chunked(), None),
    ] {
        let server = Server::scripted(move |_| reply.clone()).await;
        let blob = get_range(&client(&server), 3..7).await.unwrap();
        assert_eq!(place(&blob), (0, total, total));
        let (bytes, ended) = drink(blob.body).await;
        assert_eq!(bytes, BLOB);
        ended.unwrap();
    }
}

#[tokio::test]
async fn less_than_the_bounded_range_is_told_as_broken_off() {
    for (reply, came) in [
        (partial("bytes 3-4/10", "34"), "34"),
        (unmeasured("bytes 3-4/10", b"34"), "34"),
        (unmeasured("bytes 3-6/10", b"345"), "345"),
        (unmeasured("bytes 3-6/*", b"345"), "345"),
    ] {
        let server = Server::scripted(move |_| reply.clone()).await;
        let blob = get_range(&client(&server), 3..7).await.unwrap();
        assert_eq!((blob.offset, blob.end), (3, Some(7)));
        let (bytes, ended) = drink(blob.body).await;
        assert_eq!(bytes, came.as_bytes());
        let error = ended.unwrap_err();
        assert!(error.is_transient(), "{error}");
        let UpstreamError::Broken { received, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(received, came.len() as u64);
    }
}

#[tokio::test]
async fn without_a_total_the_body_ends_where_its_range_does() {
    let ranges = [(Some(7), 5), (Some(5), 5), (None, 10)];
    for (asked, last) in ranges {
        let server = Server::scripted(move |_| {
            let range = format!("bytes 3-{}/*", last - 1);
            partial(&range, &BLOB[3..last])
        })
        .await;
        let upstream = client(&server);
        let blob = upstream.get_blob(&repo(), &digest_of(BLOB), 3, asked).await;
        let blob = blob.unwrap();
        assert_eq!(place(&blob), (3, Some(last as u64), None));
        let (bytes, ended) = drink(blob.body).await;
        assert_eq!(bytes, &BLOB[3..last]);
        ended.unwrap();
    }
}

#[tokio::test]
async fn more_than_the_bounded_range_is_refused() {
    for (what, reply) in [
        ("a later end", partial("bytes 3-7/10", "34567")),
        ("no end", partial("bytes 3-9/10", "3456789")),
        ("no total", partial("bytes 3-7/*", "34567")),
        ("another start", partial("bytes 4-6/10", "456")),
        ("an earlier start", partial("bytes 0-6/10", "0123456")),
        ("another length", partial("bytes 3-5/10", "3456")),
        ("missing", Reply::new(206, "3456")),
    ] {
        let server = Server::scripted(move |_| reply.clone()).await;
        let error = get_range(&client(&server), 3..7).await.unwrap_err();
        let UpstreamError::Protocol { violation, .. } = error else {
            panic!("{what}: {error}");
        };
        assert_eq!(violation, Violation::Range, "{what}");
    }
    // The header keeps to what was asked for; the body doesn't.
    let server = Server::scripted(|_| unmeasured("bytes 3-6/10", b"34567")).await;
    let blob = get_range(&client(&server), 3..7).await.unwrap();
    let (_, ended) = drink(blob.body).await;
    let error = ended.unwrap_err();
    let too_large = Violation::TooLarge { limit: 4 };
    assert!(
        matches!(&error, UpstreamError::Protocol { violation, .. } if *violation == too_large),
        "{error}"
    );
}

#[tokio::test]
async fn a_range_of_no_bytes_is_not_sent() {
    let server = Server::scripted(|_| Reply::ok(BLOB)).await;
    for range in [Range { start: 0, end: 0 }, Range { start: 7, end: 3 }] {
        let error = get_range(&client(&server), range).await.unwrap_err();
        assert_eq!(error.class(), "protocol", "{error}");
    }
    assert_eq!(server.lines(), Vec::<String>::new());
}

#[tokio::test]
async fn a_head_tells_the_size_and_falls_back_to_one_byte() {
    let server = Server::scripted(|_| Reply::ok("").announcing(10)).await;
    let upstream = client(&server);
    let head = upstream.head_blob(&repo(), &digest_of(BLOB)).await;
    assert_eq!(head.unwrap(), BlobHead { size: Some(10) });
    for knows_ranges in [true, false] {
        let server = Server::scripted(move |seen| {
            if seen.line.starts_with("HEAD") {
                return Reply::new(405, "");
            }
            assert_eq!(seen.header("range"), Some("bytes=0-0"));
            if knows_ranges {
                return Reply::new(206, "0").with("Content-Range", "bytes 0-0/10");
            }
            Reply::ok(BLOB)
        })
        .await;
        let head = client(&server).head_blob(&repo(), &digest_of(BLOB)).await;
        assert_eq!(head.unwrap(), BlobHead { size: Some(10) });
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
    let blob = get(&client(&registry), 0).await.unwrap();
    assert_eq!(drink(blob.body).await.0, BLOB);
    let seen = cdn.seen("");
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].line, "GET /signed?X-Signature=s3cret");
    assert_eq!(seen[0].header("authorization"), None);
    assert_eq!(counts(&registry), (1, 2));
}

#[tokio::test]
async fn back_at_its_own_host_the_authorization_is_there_again() {
    let registry = Server::scripted(|seen| match seen.header("authorization") {
        _ if seen.is_token() => Reply::ok(r#"{"token":"t1"}"#),
        None => Reply::challenge(seen, "s"),
        Some(_) if seen.line.ends_with("/moved") => Reply::ok(BLOB),
        Some(_) => Reply::redirect("/moved").status(308),
    })
    .await;
    assert!(get(&client(&registry), 0).await.is_ok());
}

#[tokio::test]
async fn another_hosts_refusal_is_the_upstreams_trouble() {
    for (status, class) in [
        (401, "unexpected"),
        (403, "unexpected"),
        (404, "not_found"),
        (429, "rate_limited"),
        (500, "unavailable"),
    ] {
        let cdn = Server::scripted(move |seen| Reply::challenge(seen, "s").status(status)).await;
        let registry = redirecting(&cdn).await;
        let error = get(&client(&registry), 0).await.unwrap_err();
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
async fn redirects_that_lead_nowhere_are_given_up() {
    let around = Server::scripted(|_| Reply::redirect("/again").status(302)).await;
    let error = get(&client(&around), 0).await.unwrap_err();
    let too_many = Violation::Redirect(RedirectError::TooMany);
    assert!(matches!(&error, UpstreamError::Protocol { violation, .. } if *violation == too_many));
    assert_eq!(around.lines().len(), 6);
    for to in ["ftp://cdn.example/", "http://u:p@cdn.example/", "http://["] {
        let server = Server::scripted(move |_| Reply::redirect(to).status(302)).await;
        let error = get(&client(&server), 0).await.unwrap_err();
        assert_eq!(error.class(), "protocol", "{to}");
    }
}
