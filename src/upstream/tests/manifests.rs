use super::*;
use crate::oci::ManifestType;
use crate::oci::manifest::{MAX_MANIFEST, media_type};

const DIGEST_HEADER: &str = "Docker-Content-Digest";

#[tokio::test]
async fn a_manifest_with_all_its_headers() {
    let digest = digest_of(MANIFEST);
    let server = Server::scripted(move |_| {
        Reply::ok(MANIFEST)
            .with(DIGEST_HEADER, digest)
            .with("Content-Type", "application/vnd.oci.image.index.v1+json")
    })
    .await;
    let upstream = client(&server);
    let fetched = get_tag(&upstream).await.unwrap();
    assert_eq!(
        (fetched.bytes, fetched.digest),
        (Bytes::from(MANIFEST), digest)
    );
    let kind = Some(ManifestType::OciIndex);
    assert_eq!(Some(fetched.manifest.media_type), kind);
    let head = upstream
        .head_manifest(&repo(), &tag(), &Accept::everything())
        .await
        .unwrap();
    let size = Some(MANIFEST.len() as u64);
    assert_eq!(
        head,
        ManifestHead {
            digest: Some(digest),
            media_type: kind,
            size
        }
    );

    let seen = &server.seen("")[0];
    assert_eq!(seen.header("accept-encoding"), Some("identity"));
    assert_eq!(
        seen.header("accept"),
        Accept::everything().header().to_str().ok()
    );
    assert!(seen.header("user-agent").unwrap().starts_with("millpond/"));
    assert_eq!(server.lines()[1], "HEAD /v2/library/app/manifests/latest");
}

#[tokio::test]
async fn a_path_in_the_upstreams_url_is_kept() {
    for base in ["/proxy/hub", "/proxy/hub/?x=1#y"] {
        let server = Server::scripted(|_| Reply::ok(MANIFEST)).await;
        let upstream = connect(settings(&(server.url() + base)));
        get_tag(&upstream).await.unwrap();
        assert_eq!(
            server.lines(),
            ["GET /proxy/hub/v2/library/app/manifests/latest"]
        );
    }
}

#[tokio::test]
async fn the_digest_is_of_the_bytes_by_the_algorithm_asked_for() {
    let server = Server::scripted(|_| Reply::ok(MANIFEST.as_bytes()).chunked()).await;
    let upstream = client(&server);
    assert_eq!(
        get_tag(&upstream).await.unwrap().digest,
        digest_of(MANIFEST)
    );
    let sha512 = Digest::of(Algorithm::Sha512, MANIFEST.as_bytes());
    let fetched = upstream
        .get_manifest(&repo(), &Reference::Digest(sha512), &Accept::everything())
        .await
        .unwrap();
    assert_eq!(fetched.verify().unwrap().digest, sha512);
    let wrong = Reference::Digest(digest_of("something else"));
    let error = upstream
        .get_manifest(&repo(), &wrong, &Accept::everything())
        .await
        .unwrap()
        .verify()
        .unwrap_err();
    let UpstreamError::Protocol {
        violation: Violation::Digest { actual, .. },
        ..
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!(*actual, digest_of(MANIFEST));
}

#[tokio::test]
async fn answers_that_break_the_rules_are_refused() {
    let other = digest_of("something else").to_string();
    let too_large = vec![b' '; usize::try_from(MAX_MANIFEST).unwrap() + 1];
    for (what, reply) in [
        (
            "wrong digest",
            Reply::ok(MANIFEST).with(DIGEST_HEADER, &other),
        ),
        (
            "no digest",
            Reply::ok(MANIFEST).with(DIGEST_HEADER, "md5:00"),
        ),
        ("gzip", Reply::ok(MANIFEST).with("Content-Encoding", "gzip")),
        (
            "announced too large",
            Reply::new(200, b"").announcing(too_large.len()),
        ),
        ("too large", Reply::ok(&too_large).chunked()),
    ] {
        let server = Server::scripted(move |_| reply.clone()).await;
        let error = get_tag(&client(&server)).await.unwrap_err();
        assert!(
            matches!(error, UpstreamError::Protocol { .. }),
            "{what}: {error}"
        );
        assert_eq!(server.lines().len(), 1, "{what}");
    }
    let partial = Server::scripted(|_| Reply::new(206, MANIFEST)).await;
    let error = get_tag(&client(&partial)).await.unwrap_err();
    assert!(
        matches!(error, UpstreamError::Unexpected { status: 206, .. }),
        "{error}"
    );
    let cut = Server::scripted(|_| Reply::new(200, b"{").announcing(100)).await;
    let error = get_tag(&client(&cut)).await.unwrap_err();
    assert!(
        matches!(error, UpstreamError::Broken { received: 1, .. }),
        "{error}"
    );
}

#[tokio::test]
async fn statuses_stay_apart() {
    let body = r#"{"errors":[{"code":"X","message":"because\u0007"}]}"#;
    for (status, class) in [
        (404, "not_found"),
        (403, "denied"),
        (401, "unauthorized"),
        (429, "rate_limited"),
        (500, "unavailable"),
        (400, "unexpected"),
        (304, "unexpected"),
    ] {
        let server = Server::scripted(move |_| Reply::new(status, body)).await;
        let error = get_tag(&client(&server)).await.unwrap_err();
        assert_eq!(error.class(), class, "{status}");
        if let UpstreamError::NotFound { message, .. } | UpstreamError::Denied { message, .. } =
            error
        {
            assert_eq!(message.as_str(), Some("X: because"));
        }
    }
}

#[tokio::test]
async fn an_upstream_that_knows_no_head_says_nothing() {
    let server = Server::scripted(|_| Reply::new(405, "")).await;
    let head = client(&server)
        .head_manifest(&repo(), &tag(), &Accept::everything())
        .await;
    assert_eq!(head.unwrap(), ManifestHead::default());
}

#[tokio::test]
async fn sent_and_received_bytes_are_counted() {
    let server = Server::scripted(|seen| {
        if seen.line.ends_with("/final") {
            return Reply::ok(MANIFEST);
        }
        Reply::redirect("/final").status(302)
    })
    .await;
    let metrics: Arc<Metrics> = Arc::default();
    let counted = Arc::clone(&metrics);
    let upstream = Upstream::new(settings(&server.url()), Clock::system(), counted).unwrap();
    get_tag(&upstream).await.unwrap();
    let text = metrics.render();
    let counts = text
        .lines()
        .filter(|line| line.starts_with("millpond_upstream_"));
    let series = |name: &str| {
        counts
            .clone()
            .filter_map(|line| line.strip_prefix(name))
            .collect::<Vec<_>>()
    };
    let mut requests = series("millpond_upstream_requests_total");
    requests.sort_unstable();
    let get =
        |status| format!(r#"{{upstream="test",kind="manifest",method="GET",status="{status}"}} 1"#);
    assert_eq!(requests, [get(200), get(302)]);
    let received = "elsewhere".len() + MANIFEST.len();
    let bytes = format!(r#"{{upstream="test",kind="manifest"}} {received}"#);
    assert_eq!(series("millpond_upstream_received_bytes_total"), [bytes]);
}

const SIGNED: &str = r#"{"schemaVersion":1,"name":"app","tag":"1","architecture":"amd64","fsLayers":[],"history":[],"signatures":[]}"#;

/// What a GET and a HEAD say of an answer with this body and type.
async fn classes(body: &'static str, content_type: &'static str) -> (String, String) {
    let server =
        Server::scripted(move |_| Reply::ok(body).with("Content-Type", content_type)).await;
    let upstream = client(&server);
    let get = get_tag(&upstream).await;
    let head = upstream
        .head_manifest(&repo(), &tag(), &Accept::everything())
        .await;
    let said = |error: UpstreamError| error.class().to_owned();
    (
        get.map_or_else(said, |fetched| {
            fetched.manifest.media_type.as_str().to_owned()
        }),
        head.map_or_else(said, |head| {
            head.media_type
                .map_or("nothing", ManifestType::as_str)
                .to_owned()
        }),
    )
}

#[tokio::test]
async fn the_body_decides_unless_another_manifest_type_is_announced() {
    let (index, nothing) = (media_type::OCI_INDEX, "nothing");
    let undeclared = r#"{"schemaVersion":2,"manifests":[]}"#;
    for (content_type, get, head) in [
        ("application/vnd.oci.image.index.v1+json", index, index),
        (
            "APPLICATION/vnd.oci.image.index.v1+json; charset=utf-8",
            index,
            index,
        ),
        ("application/json", index, nothing),
        ("application/octet-stream", index, nothing),
        ("text/html", index, nothing),
        ("", index, nothing),
        (
            media_type::OCI_MANIFEST,
            "manifest",
            media_type::OCI_MANIFEST,
        ),
        (media_type::DOCKER_LIST, "manifest", media_type::DOCKER_LIST),
        (media_type::DOCKER_SCHEMA1, "schema1", "schema1"),
    ] {
        for body in [MANIFEST, undeclared] {
            let said = classes(body, content_type).await;
            assert_eq!(said, (get.to_owned(), head.to_owned()), "{content_type}");
        }
    }
}

#[tokio::test]
async fn schema_1_is_known_by_its_type_and_by_its_body() {
    for (content_type, head) in [
        (media_type::DOCKER_SCHEMA1_SIGNED, "schema1"),
        (
            "application/vnd.docker.distribution.manifest.v1+json;x=y",
            "schema1",
        ),
        ("application/json", "nothing"),
        ("", "nothing"),
    ] {
        let said = classes(SIGNED, content_type).await;
        assert_eq!(
            said,
            ("schema1".to_owned(), head.to_owned()),
            "{content_type}"
        );
    }
    // The digest of a signed manifest is that of what was signed, not of the body.
    let other = digest_of("what was signed").to_string();
    let server = Server::scripted(move |_| Reply::ok(SIGNED).with(DIGEST_HEADER, &other)).await;
    let error = get_tag(&client(&server)).await.unwrap_err();
    assert_eq!(error.class(), "schema1", "{error}");
}
