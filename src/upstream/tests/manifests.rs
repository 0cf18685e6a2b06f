use super::*;
use crate::oci::ManifestType;
use crate::oci::manifest::{MAX_MANIFEST, media_type};

async fn head_tag(upstream: &Upstream) -> Result<ManifestHead, UpstreamError> {
    let accept = Accept::everything();
    upstream.head_manifest(&repo(), &tag(), &accept, None).await
}

const DIGEST_HEADER: &str = "Docker-Content-Digest";

#[tokio::test]
async fn a_manifest_with_all_its_headers() {
    let digest = digest_of(MANIFEST);
    let reply = Reply::ok(MANIFEST).with(DIGEST_HEADER, digest);
    let server = replying(reply.with("Content-Type", media_type::OCI_INDEX)).await;
    let upstream = client(&server);
    let fetched = get_tag(&upstream).await.unwrap();
    assert_eq!(
        (&*fetched.bytes, fetched.digest),
        (MANIFEST.as_bytes(), digest)
    );
    assert_eq!(fetched.manifest.media_type, ManifestType::OciIndex);
    let expected = ManifestHead {
        digest: Some(digest),
        media_type: Some(ManifestType::OciIndex),
        size: Some(MANIFEST.len() as u64),
        ..ManifestHead::default()
    };
    assert_eq!(head_tag(&upstream).await.unwrap(), expected);

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
async fn a_known_answer_is_asked_for_by_its_etag_where_it_came_from() {
    let etag = r#""one""#;
    let server = replying(Reply::ok(MANIFEST).with("ETag", etag)).await;
    let upstream = client(&server);
    let known = head_tag(&upstream).await.unwrap().validator;
    assert!(known.is_some());
    let (repo, tag, accept) = (repo(), tag(), Accept::everything());
    server.behave();
    server.reply("", ALWAYS, Reply::new(304, ""));
    let head = upstream
        .head_manifest(&repo, &tag, &accept, known.as_ref())
        .await
        .unwrap();
    assert!(head.is_unchanged && head.digest.is_none());
    assert_eq!(server.seen("")[1].header("if-none-match"), Some(etag));
    // Nobody asked whether anything has changed.
    let error = head_tag(&upstream).await.unwrap_err();
    assert!(matches!(error.failure, Failure::Unexpected(304)), "{error}");

    let other = replying(Reply::ok(MANIFEST)).await;
    let head = client(&other)
        .head_manifest(&repo, &tag, &accept, known.as_ref())
        .await;
    assert!(!head.unwrap().is_unchanged);
    assert_eq!(other.seen("")[0].header("if-none-match"), None);

    let long = replying(Reply::ok(MANIFEST).with("ETag", "x".repeat(257))).await;
    assert_eq!(head_tag(&client(&long)).await.unwrap().validator, None);
}

#[tokio::test]
async fn a_path_in_the_upstreams_url_is_kept() {
    for base in ["/proxy/hub", "/proxy/hub/"] {
        let server = replying(Reply::ok(MANIFEST)).await;
        let upstream = connect(config(&(server.url() + base)));
        get_tag(&upstream).await.unwrap();
        let line = "GET /proxy/hub/v2/library/app/manifests/latest";
        assert_eq!(server.lines(), [line]);
    }
}

#[tokio::test]
async fn the_digest_is_of_the_bytes_by_the_algorithm_asked_for() {
    let server = replying(Reply::ok(MANIFEST).chunked()).await;
    let upstream = client(&server);
    let by_tag = get_tag(&upstream).await.unwrap();
    assert_eq!(by_tag.digest, digest_of(MANIFEST));
    let get = async |digest| {
        let (repo, accept) = (repo(), Accept::everything());
        let reference = Reference::Digest(digest);
        let fetched = upstream.get_manifest(&repo, &reference, &accept).await;
        fetched.unwrap().verify()
    };
    let sha512 = Digest::of(Algorithm::Sha512, MANIFEST.as_bytes());
    assert_eq!(get(sha512).await.unwrap().digest, sha512);
    let error = get(digest_of("something else")).await.unwrap_err();
    let Failure::Protocol(Violation::Digest { actual, .. }) = error.failure else {
        panic!("{error}");
    };
    assert_eq!(*actual, digest_of(MANIFEST));
}

#[tokio::test]
async fn answers_that_break_the_rules_are_refused() {
    let other = digest_of("something else").to_string();
    let too_large = vec![b' '; usize::try_from(MAX_MANIFEST).unwrap() + 1];
    let with = |name, value| Reply::ok(MANIFEST).with(name, value);
    let announced = Reply::new(200, "").announcing(too_large.len());
    for (what, reply) in [
        ("wrong digest", with(DIGEST_HEADER, &*other)),
        ("no digest", with(DIGEST_HEADER, "md5:00")),
        ("gzip", with("Content-Encoding", "gzip")),
        ("announced too large", announced),
        ("too large", Reply::ok(&too_large).chunked()),
    ] {
        let server = replying(reply).await;
        let error = get_tag(&client(&server)).await.unwrap_err();
        assert_eq!(error.class(), "protocol", "{what}: {error}");
        assert_eq!(server.lines().len(), 1, "{what}");
    }
    let partial = replying(Reply::new(206, MANIFEST)).await;
    let error = get_tag(&client(&partial)).await.unwrap_err();
    assert!(matches!(error.failure, Failure::Unexpected(206)), "{error}");
    let cut = replying(Reply::new(200, "{").announcing(100)).await;
    let error = get_tag(&client(&cut)).await.unwrap_err();
    let is_cut = matches!(error.failure, Failure::Broken { received: 1, .. });
    assert!(is_cut, "{error}");
}

#[tokio::test]
async fn each_status_has_its_own_error() {
    let body = r#"{"errors":[{"code":"X","message":"because\u0007"}]}"#;
    for (status, class) in [
        (404, "not_found"),
        (403, "denied"),
        (401, "unauthorized"),
        (429, "rate_limited"),
        (500, "unavailable"),
        (400, "rejected"),
        (406, "rejected"),
        (451, "rejected"),
        (405, "unexpected"),
        (304, "unexpected"),
    ] {
        let server = replying(Reply::new(status, body)).await;
        let error = get_tag(&client(&server)).await.unwrap_err();
        assert_eq!(error.class(), class, "{status}");
        if let Failure::NotFound(message) | Failure::Denied(message) = error.failure {
            assert_eq!(message.as_deref(), Some("X: because"));
        }
    }
}

#[tokio::test]
async fn an_upstream_without_head_gives_an_empty_head() {
    let server = replying(Reply::new(405, "")).await;
    let head = head_tag(&client(&server)).await;
    assert_eq!(head.unwrap(), ManifestHead::default());
}

#[tokio::test]
async fn requests_and_received_bytes_are_counted() {
    let redirect = Reply::redirect("/final").status(302);
    let server = Server::in_turn([redirect, Reply::ok(MANIFEST)]).await;
    let metrics = Metrics::new();
    let (config, timeouts) = (config(&server.url()), Timeouts::default());
    let upstream = Upstream::new(
        config,
        &TlsFiles::default(),
        timeouts,
        Clock::system(),
        &metrics,
    );
    get_tag(&upstream.unwrap()).await.unwrap();
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
async fn classes(body: &str, content_type: &str) -> (&'static str, &'static str) {
    let server = replying(Reply::ok(body).with("Content-Type", content_type)).await;
    let upstream = client(&server);
    let get = get_tag(&upstream).await.map(|got| got.manifest.media_type);
    let head = head_tag(&upstream).await.map(|head| head.media_type);
    let class = |error: UpstreamError| error.class();
    (
        get.map_or_else(class, ManifestType::as_str),
        head.map_or_else(class, |kind| kind.map_or("nothing", ManifestType::as_str)),
    )
}

#[tokio::test]
async fn the_body_decides_unless_another_manifest_type_is_announced() {
    let (index, nothing) = (media_type::OCI_INDEX, "nothing");
    let (image, list) = (media_type::OCI_MANIFEST, media_type::DOCKER_LIST);
    let odd = index.replacen('a', "A", 2) + "; charset=utf-8";
    let with_parameter = format!("{};x=y", media_type::DOCKER_SCHEMA1);
    for (body, content_type, get, head) in [
        (MANIFEST, index, index, index),
        (MANIFEST, &odd, index, index),
        (MANIFEST, "application/json", index, nothing),
        (MANIFEST, "application/octet-stream", index, nothing),
        (MANIFEST, "text/html", index, nothing),
        (MANIFEST, "", index, nothing),
        (MANIFEST, image, "manifest", image),
        (MANIFEST, list, "manifest", list),
        (MANIFEST, media_type::DOCKER_SCHEMA1, "schema1", "schema1"),
        (
            SIGNED,
            media_type::DOCKER_SCHEMA1_SIGNED,
            "schema1",
            "schema1",
        ),
        (SIGNED, &with_parameter, "schema1", "schema1"),
        (SIGNED, "application/json", "schema1", nothing),
        (SIGNED, "", "schema1", nothing),
    ] {
        let classes = classes(body, content_type).await;
        assert_eq!(classes, (get, head), "{content_type}");
    }
}

#[tokio::test]
async fn schema_1_is_refused_whatever_digest_is_announced() {
    // The digest of a signed manifest is that of what was signed, not of the body.
    let other = digest_of("what was signed").to_string();
    let server = replying(Reply::ok(SIGNED).with(DIGEST_HEADER, other)).await;
    let error = get_tag(&client(&server)).await.unwrap_err();
    assert_eq!(error.class(), "schema1", "{error}");
}
