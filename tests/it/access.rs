//! What callers may do: rules, hidden repositories, the deny list and the audit log.

use millpond::oci::Digest;
use serde_json::Value;

use crate::harness::{
    ALWAYS, Answer, Mirror, Registry, Reply, blob_path, digest, mirrored, mirrored_with, put_blob,
    put_image, read, to_end,
};

/// Denies one team's repositories, and permits everything else.
const DENY: &str =
    "root.access: [{repositories: [secret/**], effect: deny}, {anyone: true, effect: allow}]";
const HIDE: &str = "root.access: [{repositories: [secret/**], effect: deny, hide: true}, {anyone: true, \
     effect: allow}]";
const NOW: &str = "2026-01-01T00:00:00Z";

/// Requests of every kind for a repository; `DIGEST` and `BLOB` stand for digests.
const REQUESTS: [&str; 12] = [
    "GET /v2/REPO/manifests/1",
    "HEAD /v2/REPO/manifests/1",
    "GET /v2/REPO/manifests/none",
    "GET /v2/REPO/manifests/DIGEST",
    "HEAD /v2/REPO/manifests/DIGEST",
    "GET /v2/REPO/blobs/BLOB",
    "HEAD /v2/REPO/blobs/BLOB",
    "GET /v2/REPO/tags/list",
    "GET /v2/REPO/tags/list?n=1&last=0",
    "GET /v2/REPO/referrers/DIGEST",
    "GET /v2/REPO/referrers/DIGEST?artifactType=a/b",
    "GET /v2/REPO/referrers/BLOB",
];

/// An image in the repository `secret/app`, whose digests the requests name.
struct Secret {
    manifest: String,
    blob: String,
}

impl Secret {
    fn put(up: &Registry) -> Self {
        let (image, path) = put_image(up, 1);
        let manifest = path.rsplit('/').next().unwrap().to_owned();
        up.push("secret/app", "1", &image);
        let blob = image.blobs().next().unwrap();
        Self {
            manifest,
            blob: digest(blob).to_string(),
        }
    }

    fn line(&self, line: &str, repository: &str) -> String {
        line.replace("REPO", repository)
            .replace("DIGEST", &self.manifest)
            .replace("BLOB", &self.blob)
    }
}

#[tokio::test]
async fn a_denied_name_never_reaches_the_upstream() {
    let (up, m) = mirrored_with(&[DENY]).await;
    let secret = Secret::put(&up);
    for line in REQUESTS {
        for headers in [
            [].as_slice(),
            &[("range", "bytes=0-1")],
            &[("if-none-match", "*")],
        ] {
            let answer = m.ask(&secret.line(line, "secret/app"), headers).await;
            assert_eq!(answer.status, 403, "{line}");
            if line.starts_with("GET") {
                answer.refused(403, "DENIED");
            }
            assert_eq!(answer.header("www-authenticate"), "", "no users exist");
        }
    }
    assert_eq!(up.lines(), [] as [&str; 0]);
    // The others are as ever.
    assert_eq!(m.get("/v2/app/manifests/1").await.status, 200);
}

#[tokio::test]
async fn cached_content_is_denied_as_well() {
    let (up, m) = mirrored().await;
    let secret = Secret::put(&up);
    let path = secret.line("/v2/REPO/blobs/BLOB", "secret/app");
    assert_eq!(m.get(&path).await.status, 200);
    m.idle().await;
    let denied = crate::harness::Setup::new(&up)
        .with(&[DENY])
        .store(std::sync::Arc::clone(&m.store))
        .start()
        .await;
    denied.get(&path).await.refused(403, "DENIED");
    // The same bytes of another repository.
    let path = secret.line("/v2/app/blobs/BLOB", "");
    assert_eq!(denied.get(&path).await.status, 200);
}

#[tokio::test]
async fn networks_decide_from_where() {
    for (network, status) in [("127.0.0.0/8", 200), ("10.0.0.0/8", 403)] {
        let rule = format!("root.access: [{{networks: [{network}], effect: allow}}]");
        let (up, m) = mirrored_with(&[&rule]).await;
        put_image(&up, 1);
        assert_eq!(
            m.get("/v2/app/manifests/1").await.status,
            status,
            "{network}"
        );
    }
}

#[tokio::test]
async fn pulling_is_not_listing() {
    let rule = "root.access: [{anyone: true, actions: [pull], effect: allow}]";
    let (up, m) = mirrored_with(&[rule]).await;
    put_image(&up, 1);
    assert_eq!(m.get("/v2/app/manifests/1").await.status, 200);
    m.get("/v2/app/tags/list").await.refused(403, "DENIED");
    let write = m.ask("PUT /v2/app/manifests/1", &[]).await;
    write.refused(405, "UNSUPPORTED");
}

/// What a client can compare of an answer, with the repository's name left out.
fn comparable(answer: &Answer, repository: &str) -> (u16, Vec<(String, String)>, String) {
    let headers = answer.headers.iter();
    let headers = headers.filter(|(name, _)| *name != "date" && *name != "x-request-id");
    let headers =
        headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
    let body = String::from_utf8(answer.body.to_vec()).unwrap();
    (
        answer.status,
        headers.collect(),
        body.replace(repository, "REPO"),
    )
}

/// Names of the same length.
const HIDDEN: &str = "secret/app";
const MISSING: &str = "public/non";

async fn compare(up: &Registry, m: &Mirror, secret: &Secret) {
    for line in REQUESTS {
        for headers in [
            [].as_slice(),
            &[("range", "bytes=0-1")],
            &[("if-none-match", "*")],
            &[("if-match", "\"x\"")],
            &[("accept", "application/vnd.oci.image.index.v1+json")],
        ] {
            // Twice: a mirror may remember what an upstream doesn't have.
            for _ in 0..2 {
                let missing = m.ask(&secret.line(line, MISSING), headers).await;
                let hidden = m.ask(&secret.line(line, HIDDEN), headers).await;
                assert_eq!(
                    comparable(&hidden, HIDDEN),
                    comparable(&missing, MISSING),
                    "{line} {headers:?}"
                );
            }
        }
    }
    assert_eq!(up.count("secret"), 0, "{:?}", up.lines());
}

#[tokio::test]
async fn a_hidden_repository_is_like_one_that_does_not_exist() {
    let (up, m) = mirrored_with(&[HIDE]).await;
    let secret = Secret::put(&up);
    compare(&up, &m, &secret).await;
    let answer = m.get("/v2/secret/app/manifests/1").await;
    answer.refused(404, "MANIFEST_UNKNOWN");
}

/// Docker Hub answers 401 for a repository that doesn't exist, others 403.
#[tokio::test]
async fn a_hidden_repository_is_like_a_missing_one_of_an_upstream_that_denies_those() {
    for status in [401, 403] {
        let (up, m) = mirrored_with(&[HIDE]).await;
        let secret = Secret::put(&up);
        up.reply("/v2/public/non/", ALWAYS, Reply::error(status));
        compare(&up, &m, &secret).await;
    }
}

#[tokio::test]
async fn the_catalog_shows_what_a_caller_may_see_in_full_pages() {
    let rules = "root.access: [{repositories: ['*/hidden*'], effect: deny}, {anyone: true, actions: \
                 [pull], effect: allow}]";
    let (up, m) = mirrored().await;
    let names = [
        "a/a",
        "a/hidden1",
        "a/hidden2",
        "a/z",
        "b/b",
        "b/hidden3",
        "c/c",
        "d/hidden4",
    ];
    for (seed, repo) in (1..).zip(names) {
        let blob = crate::harness::noise(seed, 100);
        up.put_blob(repo, &blob);
        m.pull(&blob_path(repo, &blob), &blob).await;
    }
    let m = crate::harness::Setup::new(&up)
        .with(&[rules])
        .store(std::sync::Arc::clone(&m.store))
        .start()
        .await;
    let (mut path, mut pages) = ("/v2/_catalog?n=2".to_owned(), Vec::new());
    loop {
        let answer = m.get(&path).await;
        let page = answer.json()["repositories"].as_array().unwrap().clone();
        pages.push(
            page.iter()
                .map(|name| name.as_str().unwrap().to_owned())
                .collect::<Vec<_>>(),
        );
        let link = answer.header("link");
        let Some((next, _)) = link.strip_prefix('<').and_then(|link| link.split_once('>')) else {
            break;
        };
        path = next.to_owned();
    }
    assert_eq!(pages, [vec!["a/a", "a/z"], vec!["b/b", "c/c"]]);
    // A hidden name as the last one leads on like any other.
    let rest = m.get("/v2/_catalog?last=a/hidden1").await.json();
    assert_eq!(
        rest["repositories"],
        serde_json::json!(["a/z", "b/b", "c/c"])
    );
    let none = m.get("/v2/_catalog?n=0").await;
    assert_eq!(
        (
            none.json()["repositories"].as_array().unwrap().len(),
            none.header("link")
        ),
        (0, "")
    );
}

async fn deny(m: &Mirror, reference: impl ToString) {
    let (reference, reason) = (reference.to_string(), Some("CVE-1".to_owned()));
    let denials = m.app.denials();
    denials
        .add(&reference, reason, NOW.to_owned())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_denied_digest_is_refused_by_every_way_to_it() {
    let (up, m) = mirrored().await;
    let (image, path) = put_image(&up, 1);
    let manifest: Digest = path.rsplit('/').next().unwrap().parse().unwrap();
    m.serves("/v2/app/manifests/1", &image.manifest).await;
    deny(&m, manifest).await;
    let known = format!("\"{manifest}\"");
    let referrers = format!("/v2/app/referrers/{manifest}");
    for path in ["/v2/app/manifests/1", &path, &referrers] {
        for headers in [
            [].as_slice(),
            &[("if-none-match", known.as_str())],
            &[("range", "bytes=0-1")],
        ] {
            let answer = m.ask(&format!("GET {path}"), headers).await;
            answer.refused(403, "DENIED");
            let text = String::from_utf8(answer.body.to_vec()).unwrap();
            assert!(text.contains("is denied: CVE-1"), "{text}");
        }
        assert_eq!(m.head(path).await.status, 403, "{path}");
    }
    // Another repository's tag, which nothing is known of yet.
    up.push("other", "2", &image);
    m.get("/v2/other/manifests/2").await.refused(403, "DENIED");
    m.app.denials().remove(&manifest.to_string()).await.unwrap();
    m.serves("/v2/app/manifests/1", &image.manifest).await;
}

#[tokio::test]
async fn denied_images_are_refused_without_a_request() {
    let (up, m) = mirrored().await;
    let (image, path) = put_image(&up, 1);
    deny(&m, "app:1*").await;
    m.get("/v2/app/manifests/1").await.refused(403, "DENIED");
    assert_eq!(up.lines(), [] as [&str; 0]);
    // By its digest, it isn't denied.
    m.serves(&path, &image.manifest).await;
    deny(&m, "app").await;
    for path in [
        &path,
        "/v2/app/tags/list",
        &blob_path("app", image.blobs().next().unwrap()),
    ] {
        m.get(path).await.refused(403, "DENIED");
    }
}

#[tokio::test]
async fn a_running_download_is_broken_off() {
    const SIZE: usize = 4 << 20;
    let (up, m) = mirrored().await;
    let (blob, path) = put_blob(&up, 1, SIZE);
    let gate = up.hold_body("/blobs/", 1, SIZE / 2);
    let mut leader = m.open(&path).await;
    let first = leader.chunk().await.unwrap().unwrap();
    let mut joined = m.open(&path).await;
    assert!(joined.chunk().await.unwrap().is_some());
    deny(&m, digest(&blob)).await;
    gate.open();
    for (response, got) in [(&mut leader, first.len()), (&mut joined, 0)] {
        let (rest, broken) = to_end(response).await;
        assert!(broken && got + rest.len() < SIZE, "{broken} {}", rest.len());
    }
    m.get(&path).await.refused(403, "DENIED");
    m.range(&path, "bytes=0-9").await.refused(403, "DENIED");
    assert_eq!(m.head(&path).await.status, 403);
}

#[tokio::test]
async fn a_response_from_the_cache_is_broken_off() {
    const SIZE: usize = 64 << 20;
    let (up, m) = mirrored().await;
    let (blob, path) = put_blob(&up, 1, SIZE);
    m.pull(&path, &blob).await;
    // The client doesn't read: the socket takes a part.
    let response = m.open(&path).await;
    deny(&m, digest(&blob)).await;
    let answer = read(response).await;
    assert!(
        answer.broken && answer.body.len() < SIZE,
        "{}",
        answer.body.len()
    );
}

#[tokio::test]
async fn refusals_are_in_the_audit_log() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    let audit = format!("root.log: {{audit: {{file: '{}'}}}}", path.display());
    let (up, m) = mirrored_with(&[DENY, &audit]).await;
    put_image(&up, 1);
    m.get("/v2/secret/app/manifests/1")
        .await
        .refused(403, "DENIED");
    assert_eq!(m.get("/v2/app/manifests/1").await.status, 200);
    m.app.denials().audit().flush().await;
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    let line: Value = serde_json::from_str(&text).unwrap();
    for (key, value) in [
        ("event", "refused"),
        ("address", "127.0.0.1"),
        ("action", "pull"),
        ("repository", "secret/app"),
        ("reference", "1"),
    ] {
        assert_eq!(line[key], value, "{text}");
    }
    assert!(
        line["rule"].as_str().unwrap().starts_with("the test:"),
        "{text}"
    );
}
