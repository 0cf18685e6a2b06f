use super::*;

const BLOB: &[u8] = b"0123456789";

async fn get(upstream: &Upstream, offset: u64) -> Result<BlobStream, UpstreamError> {
    upstream.get_blob(&repo(), &digest_of(BLOB), offset).await
}

#[tokio::test]
async fn a_whole_blob_with_and_without_its_length() {
    for (reply, total) in [(Reply::ok(BLOB), Some(10)), (Reply::chunked(BLOB), None)] {
        let server = Server::start(move |_| reply.clone()).await;
        let blob = get(&client(&server), 0).await.unwrap();
        assert_eq!((blob.offset, blob.total), (0, total));
        let (bytes, end) = drink(blob.body).await;
        assert_eq!(bytes, BLOB);
        end.unwrap();
        assert_eq!(server.seen()[0].header("range"), None);
        assert_eq!(
            server.lines(),
            [format!("GET /v2/library/app/blobs/{}", digest_of(BLOB))]
        );
    }
}

#[tokio::test]
async fn a_body_that_is_cut_off_never_ends_well() {
    let half_chunk = Reply::promising(200, 10, b"01234");
    let short_range = Reply::new(206, b"34").with("Content-Range", "bytes 3-4/10");
    for (reply, offset, came) in [(half_chunk, 0, "01234"), (short_range, 3, "34")] {
        let server = Server::start(move |_| reply.clone()).await;
        let blob = get(&client(&server), offset).await.unwrap();
        assert_eq!((blob.offset, blob.total), (offset, Some(10)));
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
    let server = Server::start(|seen| {
        assert_eq!(seen.header("range"), Some("bytes=4-"));
        Reply::new(206, &BLOB[4..]).with("Content-Range", "bytes 4-9/10")
    })
    .await;
    let blob = get(&client(&server), 4).await.unwrap();
    assert_eq!((blob.offset, blob.total), (4, Some(10)));
    let (bytes, end) = drink(blob.body).await;
    assert_eq!(bytes, &BLOB[4..]);
    end.unwrap();
}

#[tokio::test]
async fn an_upstream_without_ranges_starts_at_zero() {
    let server = Server::start(|_| Reply::ok(BLOB)).await;
    let blob = get(&client(&server), 4).await.unwrap();
    assert_eq!((blob.offset, blob.total), (0, Some(10)));
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
        let server = Server::start(move |_| reply.clone()).await;
        let error = get(&client(&server), 4).await.unwrap_err();
        assert!(
            matches!(error, UpstreamError::Protocol { .. }),
            "{what}: {error}"
        );
    }
    let unasked = Server::start(move |_| range("bytes 0-5/10")).await;
    let error = get(&client(&unasked), 0).await.unwrap_err();
    assert!(
        matches!(error, UpstreamError::Unexpected { status: 206, .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_head_tells_the_size_and_falls_back_to_one_byte() {
    let server = Server::start(|_| Reply::head(10)).await;
    let upstream = client(&server);
    let head = upstream.head_blob(&repo(), &digest_of(BLOB)).await;
    assert_eq!(head.unwrap(), BlobHead { size: Some(10) });
    for knows_ranges in [true, false] {
        let server = Server::start(move |seen| {
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
    let target = cdn.url().join("/signed?X-Signature=s3cret").unwrap();
    Server::start(move |seen| match seen.header("authorization") {
        _ if seen.is_token() => Reply::ok(r#"{"token":"t1"}"#),
        None => Reply::challenge(seen, "s"),
        Some(_) => Reply::redirect(307, target.as_str()),
    })
    .await
}

#[tokio::test]
async fn another_host_is_given_no_authorization() {
    let cdn = Server::start(|_| Reply::ok(BLOB)).await;
    let registry = redirecting(&cdn).await;
    let blob = get(&client(&registry), 0).await.unwrap();
    assert_eq!(drink(blob.body).await.0, BLOB);
    let seen = cdn.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].line, "GET /signed?X-Signature=s3cret");
    assert_eq!(seen[0].header("authorization"), None);
    assert_eq!(registry.counts(), (1, 2));
}

#[tokio::test]
async fn back_at_its_own_host_the_authorization_is_there_again() {
    let registry = Server::start(|seen| match seen.header("authorization") {
        _ if seen.is_token() => Reply::ok(r#"{"token":"t1"}"#),
        None => Reply::challenge(seen, "s"),
        Some(_) if seen.line.ends_with("/moved") => Reply::ok(BLOB),
        Some(_) => Reply::redirect(308, "/moved"),
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
        let cdn = Server::start(move |seen| Reply::challenge(seen, "s").status(status)).await;
        let registry = redirecting(&cdn).await;
        let error = get(&client(&registry), 0).await.unwrap_err();
        assert_eq!(error.class(), class, "{status}");
        let shown = format!("{error} {error:?}");
        assert!(
            shown.contains("/signed") && !shown.contains("s3cret"),
            "{shown}"
        );
        assert_eq!(cdn.counts(), (0, 1), "its challenge is not answered");
    }
}

#[tokio::test]
async fn redirects_that_lead_nowhere_are_given_up() {
    let around = Server::start(|_| Reply::redirect(302, "/again")).await;
    let error = get(&client(&around), 0).await.unwrap_err();
    let too_many = Violation::Redirect(RedirectError::TooMany);
    assert!(matches!(&error, UpstreamError::Protocol { violation, .. } if *violation == too_many));
    assert_eq!(around.lines().len(), 6);
    for to in ["ftp://cdn.example/", "http://u:p@cdn.example/", "http://["] {
        let server = Server::start(move |_| Reply::redirect(302, to)).await;
        let error = get(&client(&server), 0).await.unwrap_err();
        assert_eq!(error.class(), "protocol", "{to}");
    }
}
