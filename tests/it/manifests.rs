//! Manifests by digest.

use std::sync::Arc;

use bytes::Bytes;
use millpond::oci::manifest::media_type;
use millpond::oci::{Algorithm, Digest, RepoName};
use millpond::storage::{self, Link, LinkKind, MemoryStore, Store};

use crate::harness::{
    ALWAYS, Image, Mirror, Registry, Reply, Setup, digest, mirrored, mirrored_with, passing,
    put_image,
};

#[tokio::test]
async fn every_type_is_served_as_it_is_by_tag_and_by_digest() {
    let (up, m) = mirrored().await;
    let (oci, docker) = (Image::oci(1), Image::docker(2));
    let artifact = Image::artifact(3, &oci, "application/x");
    let index = Image::index(media_type::OCI_INDEX, &[&oci]);
    let list = Image::index(media_type::DOCKER_LIST, &[&docker]);
    for (tag, kind, bytes) in [
        ("oci", media_type::OCI_MANIFEST, oci.manifest),
        ("docker", media_type::DOCKER_MANIFEST, docker.manifest),
        ("artifact", media_type::OCI_MANIFEST, artifact.manifest),
        ("index", media_type::OCI_INDEX, index),
        ("list", media_type::DOCKER_LIST, list),
    ] {
        let digest = up.tag("app", tag, kind, &bytes);
        for reference in [tag.to_owned(), digest.to_string()] {
            let path = format!("/v2/app/manifests/{reference}");
            let answer = m.serves(&path, &bytes).await;
            let head = m.head(&path).await;
            assert_eq!((head.status, head.body.len()), (200, 0));
            for answer in [answer, head] {
                assert_eq!(answer.header("content-type"), kind);
                answer.has("content-length", bytes.len());
                answer.has("docker-content-digest", digest);
                assert_eq!(answer.header("etag"), format!("\"{digest}\""));
            }
        }
        assert_eq!(up.take(), [format!("GET /v2/app/manifests/{tag}")]);
    }
}

#[tokio::test]
async fn a_sha512_digest_names_a_manifest_too() {
    let (up, m) = mirrored().await;
    let image = Image::oci(1);
    let digest = Digest::of(Algorithm::Sha512, &image.manifest);
    let reference = digest.to_string();
    up.put_at("app", &reference, image.media_type, &image.manifest);
    let path = format!("/v2/app/manifests/{digest}");
    for gets in [1, 1] {
        let answer = m.serves(&path, &image.manifest).await;
        answer.has("docker-content-digest", digest);
        assert_eq!(up.count(""), gets);
    }
}

#[tokio::test]
async fn a_head_by_digest_costs_no_get() {
    let (up, m) = mirrored().await;
    let (image, path) = put_image(&up, 1);
    let head = m.head(&path).await;
    assert_eq!(head.status, 200);
    head.has("content-length", image.manifest.len());
    assert_eq!(head.header("docker-content-digest"), image.digest());
    assert_eq!(head.header("content-type"), image.media_type);
    assert_eq!(up.take(), [format!("HEAD {path}")]);
}

#[tokio::test]
async fn an_upstream_without_head_is_asked_with_get() {
    let (up, m) = mirrored().await;
    let digest = up.push("app", "1", &Image::oci(1));
    up.reply("HEAD ", ALWAYS, Reply::error(405));
    for reference in ["1".to_owned(), digest.to_string()] {
        let head = m.head(&format!("/v2/app/manifests/{reference}")).await;
        assert_eq!(head.status, 200);
        head.has("docker-content-digest", digest);
    }
}

#[tokio::test]
async fn conditions_and_ranges() {
    let (up, m) = mirrored().await;
    let image = Image::oci(1);
    let digest = up.push("app", "1", &image);
    let (bytes, total) = (&image.manifest, image.manifest.len());
    let (quoted, other) = (format!("\"{digest}\""), "\"other\"".to_owned());
    let range = ("range", "bytes=2-5");
    for path in [
        format!("GET /v2/app/manifests/{digest}"),
        "GET /v2/app/manifests/1".to_owned(),
    ] {
        for (headers, status, expected) in [
            (vec![("if-none-match", &*quoted)], 304, &b""[..]),
            (vec![("if-none-match", &*other)], 200, bytes),
            (vec![("range", "bytes=0-")], 206, bytes),
            (vec![range], 206, &bytes[2..6]),
            (vec![("range", "bytes=-7")], 206, &bytes[total - 7..]),
            (vec![("range", "bytes=0-1,3-4")], 200, bytes),
            (vec![range, ("if-range", &quoted)], 206, &bytes[2..6]),
            (vec![range, ("if-range", &other)], 200, bytes),
        ] {
            let answer = m.ask(&path, &headers).await;
            answer.expect(status, expected);
            assert_eq!(answer.header("etag"), quoted, "{headers:?}");
            answer.has("docker-content-digest", digest);
        }
        let beyond = m.ask(&path, &[("range", &format!("bytes={total}-"))]).await;
        beyond.refused(416, "SIZE_INVALID");
        assert_eq!(beyond.header("content-range"), format!("bytes */{total}"));
        let placed = m.ask(&path, &[range]).await;
        assert_eq!(placed.header("content-range"), format!("bytes 2-5/{total}"));
        assert_eq!(placed.header("content-length"), "4");
    }
}

#[tokio::test]
async fn a_body_that_is_not_the_manifest_is_neither_served_nor_stored() {
    let (up, m) = mirrored().await;
    let image = Image::oci(1);
    let digest = up.push("app", "1", &image);
    let by_digest = format!("/v2/app/manifests/{digest}");
    let tag = "/v2/app/manifests/1";
    let too_large = Reply::new(200, vec![b' '; 4 * 1024 * 1024 + 1]);
    let forged = Reply::new(200, image.manifest.clone()).forged();
    let claimed = |reply: &Reply| reply.clone().with("Docker-Content-Digest", digest);
    for (path, reply) in [
        (by_digest.as_str(), forged.clone()),
        (&by_digest, too_large.clone()),
        (tag, claimed(&forged)),
        (tag, too_large.chunked()),
        (tag, Reply::ok("<html>hotel Wi-Fi</html>")),
        (
            tag,
            Reply::ok("{}").with("Docker-Content-Digest", "sha256:z"),
        ),
        (tag, Reply::ok("{}").with("Content-Encoding", "gzip")),
    ] {
        up.reply("GET ", 1, reply);
        m.get(path).await.refused(502, "UNKNOWN");
        assert!(m.store.repositories().await.unwrap().is_empty());
    }
    assert_eq!(m.store.size(&digest).await.unwrap(), None);
    m.serves(&by_digest, &image.manifest).await;
}

/// What an upstream may wrongly give for a manifest whose body is `body`.
fn sent_as(body: &Bytes, content_type: &str) -> Reply {
    Reply::new(200, body.clone()).with("Content-Type", content_type)
}

#[tokio::test]
async fn only_known_manifest_types_are_served_and_the_body_decides() {
    let (up, m) = mirrored().await;
    let (oci, docker) = (Image::oci(1), Image::docker(2));
    let (other_oci, other_docker) = (Image::oci(3), Image::docker(4));
    let text = String::from_utf8(oci.manifest.to_vec()).unwrap();
    let both = Bytes::from(text.replacen('{', r#"{"manifests":[],"#, 1));
    let custom = Bytes::from(text.replace(media_type::OCI_MANIFEST, "text/html"));
    let parameter = format!("{}; charset=utf-8", media_type::OCI_MANIFEST);
    let docker_type = media_type::DOCKER_MANIFEST;
    for (n, (body, content_type, expected)) in [
        (&oci.manifest, &*parameter, media_type::OCI_MANIFEST),
        (&oci.manifest, "application/json", media_type::OCI_MANIFEST),
        (&docker.manifest, "application/octet-stream", docker_type),
        (&docker.manifest, "text/html", docker_type),
        (&other_docker.manifest, media_type::OCI_MANIFEST, ""),
        (&other_oci.manifest, media_type::OCI_INDEX, ""),
        (&custom, "text/html", ""),
        (&both, media_type::OCI_MANIFEST, ""),
    ]
    .into_iter()
    .enumerate()
    {
        let digest = digest(body).to_string();
        for (repo, reference) in [("tag", "1"), ("digest", &digest)] {
            // Each in a repository of its own, so that none is there already.
            let path = format!("/v2/{repo}{n}/manifests/{reference}");
            up.reply(&path, ALWAYS, sent_as(body, content_type));
            let answer = m.get(&path).await;
            if expected.is_empty() {
                answer.refused(502, "UNKNOWN");
            } else {
                answer.expect(200, body);
                assert_eq!(answer.header("content-type"), expected);
                assert_eq!(m.head(&path).await.header("content-type"), expected);
            }
            assert_eq!(answer.header("x-content-type-options"), "nosniff");
        }
    }
}

/// A registry whose HEAD doesn't tell the type costs no GET for what is stored.
#[tokio::test]
async fn a_generic_type_costs_no_second_get() {
    let (up, m) = mirrored_with(&["proxy.tags: {ttl: 0s}"]).await;
    let image = Image::oci(1);
    let digest = up.tag("app", "1", "application/json", &image.manifest);
    let path = "/v2/app/manifests/1";
    for _ in 0..3 {
        let answer = m.serves(path, &image.manifest).await;
        assert_eq!(answer.header("content-type"), media_type::OCI_MANIFEST);
        let head = m.head(path).await;
        assert_eq!(head.header("content-type"), media_type::OCI_MANIFEST);
        head.has("docker-content-digest", digest);
    }
    assert_eq!(up.count("GET "), 1);
}

/// GET and HEAD are refused because the manifest is of schema 1.
async fn is_schema1(m: &Mirror, path: &str) {
    let answer = m.get(path).await;
    answer.refused(404, "MANIFEST_UNKNOWN");
    let message = answer.json()["errors"][0]["message"].to_string();
    assert!(message.contains("schema 1"), "{message}");
    assert_eq!(m.head(path).await.status, 404, "HEAD {path}");
}

#[tokio::test]
async fn schema_1_is_a_404_that_says_so() {
    let (up, m) = mirrored_with(&["proxy.tags: {ttl: 0s}"]).await;
    let signed = Bytes::from(
        r#"{"schemaVersion":1,"name":"app","tag":"1","fsLayers":[],"history":[],"signatures":[]}"#,
    );
    let payload = digest(b"what was signed");
    let replies = [
        sent_as(&signed, media_type::DOCKER_SCHEMA1_SIGNED).with("Docker-Content-Digest", payload),
        sent_as(&signed, media_type::DOCKER_SCHEMA1),
        sent_as(&signed, "application/json").with("Docker-Content-Digest", payload),
    ];
    for (n, reply) in replies.into_iter().enumerate() {
        let repo = format!("app{n}");
        let image = Image::oci(n as u64);
        let digest = up.push(&repo, "warm", &image);
        let warm = format!("/v2/{repo}/manifests/warm");
        m.serves(&warm, &image.manifest).await;
        up.reply("/manifests/", ALWAYS, reply);
        is_schema1(&m, &format!("/v2/{repo}/manifests/cold")).await;
        is_schema1(&m, &format!("/v2/{repo}/manifests/{payload}")).await;
        is_schema1(&m, &warm).await;
        // Nor is what the tag named before served while the upstream is down.
        up.go_down();
        assert_eq!(m.get(&warm).await.status, 500);
        up.behave();
        m.serves(&format!("/v2/{repo}/manifests/{digest}"), &image.manifest)
            .await;
    }
}

/// Another registry's proxy may have stored one, which is adopted with its directory.
#[tokio::test]
async fn a_stored_schema_1_manifest_is_the_same_404_while_the_upstream_is_down() {
    let up = Registry::start().await;
    let old =
        Bytes::from(r#"{"schemaVersion":1,"name":"app","tag":"old","fsLayers":[],"history":[]}"#);
    let digest = digest(&old);
    let repo: RepoName = "app".parse().unwrap();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    storage::put(&*store, &digest, old).await.unwrap();
    let link = Link {
        repo: repo.clone(),
        kind: LinkKind::Revision,
        digest,
    };
    store.link(&link).await.unwrap();
    let tag = "old".parse().unwrap();
    store.set_tag(&repo, &tag, &digest).await.unwrap();
    let m = Setup::new(&up).store(store).start().await;
    up.go_down();
    for reference in ["old".to_owned(), digest.to_string()] {
        let path = format!("/v2/app/manifests/{reference}");
        let answer = m.get(&path).await;
        assert!(answer.source().contains("; fwd-status=500"), "{answer:?}");
        is_schema1(&m, &path).await;
    }
    // Nothing is known of another one.
    let other = format!("/v2/app/manifests/{}", crate::harness::digest(b""));
    assert_eq!(m.get(&other).await.status, 500);
}

#[tokio::test]
async fn a_corrupt_stored_manifest_is_fetched_again() {
    let (up, m) = mirrored().await;
    let image = Image::oci(1);
    let digest = up.push("app", "1", &image);
    let path = format!("/v2/app/manifests/{digest}");
    let link = Link {
        repo: "app".parse().unwrap(),
        kind: LinkKind::Revision,
        digest,
    };
    storage::put(&*m.store, &digest, "{}".into()).await.unwrap();
    m.store.link(&link).await.unwrap();
    m.serves(&path, &image.manifest).await;
    m.serves(&path, &image.manifest).await;
    assert_eq!(up.take(), [format!("GET {path}")]);
}

#[tokio::test]
async fn refusals_of_the_upstream_stay_apart() {
    let error = |status, seconds| Reply::error(status).with("Retry-After", seconds);
    for (reply, status, code, retry_after) in [
        (Reply::error(401), 401, "UNAUTHORIZED", ""),
        (Reply::error(403), 403, "DENIED", ""),
        (Reply::error(404), 404, "MANIFEST_UNKNOWN", ""),
        (error(429, "17"), 429, "TOOMANYREQUESTS", "17"),
        (Reply::error(500), 500, "UNAVAILABLE", ""),
        (error(503, "30"), 503, "UNAVAILABLE", "30"),
        (Reply::error(418), 502, "UNKNOWN", ""),
        (Reply::new(204, ""), 502, "UNKNOWN", ""),
        (Reply::redirect("ftp://127.0.0.1/"), 502, "UNKNOWN", ""),
    ] {
        for reference in ["1".to_owned(), Image::oci(1).digest()] {
            let (up, m) = mirrored().await;
            put_image(&up, 1);
            up.reply("", ALWAYS, reply.clone());
            let path = format!("/v2/app/manifests/{reference}");
            let answer = m.get(&path).await;
            answer.refused(status, code);
            assert_eq!(answer.header("retry-after"), retry_after);
            answer.has("www-authenticate", "");
            assert_eq!(m.head(&path).await.status, status, "HEAD {path}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn trouble_that_passes_is_not_seen_and_trouble_that_stays_is_told() {
    let image = Image::oci(1);
    for (trouble, times, status) in [
        (Reply::error(503), 2, 200),
        (Reply::hang_up(), 2, 200),
        (Reply::error(502), 3, 502),
        (Reply::error(504), 3, 504),
        (Reply::hang_up(), 3, 502),
        (Reply::error(503).with("Retry-After", 4), 1, 200),
        (Reply::silence(), 1, 504),
    ] {
        let (up, m) = mirrored().await;
        up.push("app", "1", &image);
        up.reply("", times, trouble);
        assert_eq!(passing(m.get("/v2/app/manifests/1")).await.status, status);
    }
    let (up, m) = mirrored().await;
    drop(up);
    let answer = passing(m.get("/v2/app/manifests/1")).await;
    answer.refused(502, "UNAVAILABLE");
}
