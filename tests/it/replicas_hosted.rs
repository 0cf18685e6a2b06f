//! Hosted repositories of several replicas, of which one writes: what clients see, whichever replica they ask.

use std::cell::Cell;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::HeaderMap;
use millpond::oci::manifest::media_type;
use millpond::replicas::{Marks, Subject};
use serde_json::json;

use crate::harness::push::{LAYER, OPEN, SPACE};
use crate::harness::replicas::{Relay, Replicas, SECRET, section};
use crate::harness::{Answer, Image, Mirror, Registry, Setup, blob_path, digest, noise, read};

/// A client of several replicas, each request of which goes to the next one.
pub(crate) struct Client<'a> {
    replicas: &'a Replicas,
    next: Cell<usize>,
    /// The path before `/v2/`.
    prefix: &'a str,
}

/// The next replica's index is `first` at first.
pub(crate) fn client(replicas: &Replicas, first: usize) -> Client<'_> {
    Client {
        replicas,
        next: Cell::new(first),
        prefix: "",
    }
}

pub(crate) fn manifest_of(config: &Bytes, layers: &[Bytes], subject: Option<&Bytes>) -> Bytes {
    let descriptor = |kind: &str, bytes: &Bytes| json!({"mediaType": kind, "digest": digest(bytes).to_string(), "size": bytes.len()});
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| descriptor(LAYER, layer))
        .collect();
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", config),
        "layers": layers,
    });
    if let Some(subject) = subject {
        manifest["subject"] = descriptor(media_type::OCI_MANIFEST, subject);
    }
    manifest.to_string().into()
}

/// An index of image manifests.
pub(crate) fn index_of(manifests: &[&Bytes]) -> Bytes {
    let descriptor = |bytes: &&Bytes| json!({"mediaType": media_type::OCI_MANIFEST, "digest": digest(bytes).to_string(), "size": bytes.len()});
    let manifests: Vec<_> = manifests.iter().map(descriptor).collect();
    let index =
        json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests});
    index.to_string().into()
}

impl Client<'_> {
    fn mirror(&self) -> &Mirror {
        let index = self.next.get() % self.replicas.mirrors.len();
        self.next.set(index + 1);
        &self.replicas.mirrors[index]
    }

    async fn send(&self, line: &str, headers: &[(&str, &str)], body: Bytes) -> Answer {
        let request = self.mirror().request(line, headers).body(body);
        read(request.send().await.unwrap()).await
    }

    async fn ask(&self, line: &str) -> Answer {
        self.send(line, &[], Bytes::new()).await
    }

    /// Pushes a blob in two chunks, and asks in between how far it has come.
    async fn blob(&self, repo: &str, blob: &Bytes) {
        let prefix = self.prefix;
        let started = self
            .ask(&format!("POST {prefix}/v2/{repo}/blobs/uploads/"))
            .await;
        started.expect(202, b"");
        started.has("range", "0-0");
        let (half, end) = (blob.len() / 2, blob.len() - 1);
        let mut at = started.header("location").to_owned();
        for (range, part) in [
            (format!("0-{}", half - 1), blob.slice(..half)),
            (format!("{half}-{end}"), blob.slice(half..)),
        ] {
            assert!(
                at.starts_with(&format!("{prefix}/v2/{repo}/blobs/uploads/")),
                "{at}"
            );
            let ranged = [("content-range", range.as_str())];
            let patched = self.send(&format!("PATCH {at}"), &ranged, part).await;
            patched.expect(202, b"");
            patched.has("docker-upload-uuid", started.header("docker-upload-uuid"));
            let asked = self.ask(&format!("GET {at}")).await;
            asked.expect(204, b"");
            asked.has("range", format!("0-{}", range.rsplit_once('-').unwrap().1));
            asked.header("location").clone_into(&mut at);
        }
        let closed = self.ask(&format!("PUT {at}?digest={}", digest(blob))).await;
        closed.expect(201, b"");
        closed.has("docker-content-digest", digest(blob));
        closed.has("location", format!("{prefix}{}", blob_path(repo, blob)));
    }

    pub(crate) async fn push_blob(&self, repo: &str, blob: &Bytes) {
        self.blob(repo, blob).await;
    }

    pub(crate) async fn put_manifest(
        &self,
        repo: &str,
        reference: &str,
        manifest: &Bytes,
    ) -> Answer {
        self.manifest(repo, reference, manifest).await
    }

    async fn manifest(&self, repo: &str, reference: &str, manifest: &Bytes) -> Answer {
        self.put(repo, reference, media_type::OCI_MANIFEST, manifest)
            .await
    }

    pub(crate) async fn put_index(&self, repo: &str, reference: &str, index: &Bytes) -> Answer {
        self.put(repo, reference, media_type::OCI_INDEX, index)
            .await
    }

    async fn put(&self, repo: &str, reference: &str, kind: &str, manifest: &Bytes) -> Answer {
        let line = format!("PUT {}/v2/{repo}/manifests/{reference}", self.prefix);
        let kind = [("content-type", kind)];
        self.send(&line, &kind, manifest.clone()).await
    }

    /// Pushes an image with a tag, and returns its manifest.
    pub(crate) async fn push(&self, repo: &str, tag: &str, seed: u64) -> Bytes {
        let config = Bytes::from(format!(r#"{{"architecture":"amd64","seed":{seed}}}"#));
        let layers = [noise(seed, 100_000)];
        for blob in layers.iter().chain([&config]) {
            self.blob(repo, blob).await;
        }
        let manifest = manifest_of(&config, &layers, None);
        let pushed = self.manifest(repo, tag, &manifest).await;
        pushed.expect(201, b"");
        pushed.has("docker-content-digest", digest(&manifest));
        manifest
    }
}

/// What `Cache-Status` says of a request that was relayed.
fn hop(replicas: &Replicas, rest: &str) -> String {
    format!("\"{}\", millpond; fwd={rest}", replicas.relays[0].address)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_requests_of_one_push_go_to_different_replicas() {
    for prefix in ["", "/x"] {
        let http = format!("http.prefix: '{prefix}/'");
        let replicas = Replicas::hosted(3, &[&http]).await;
        for first in 0..3_u64 {
            let repo = format!("ci/app-{first}");
            let client = Client {
                prefix,
                ..client(&replicas, usize::try_from(first).unwrap())
            };
            let manifest = client.push(&repo, "1", first).await;
            // Right after the 201, from each of them.
            let layer = noise(first, 100_000);
            for mirror in &replicas.mirrors {
                for reference in ["1", &digest(&manifest).to_string()] {
                    let path = format!("{prefix}/v2/{repo}/manifests/{reference}");
                    let pulled = mirror.serves(&path, &manifest).await;
                    pulled.has("content-type", media_type::OCI_MANIFEST);
                    pulled.has("docker-content-digest", digest(&manifest));
                    let head = mirror.head(&path).await;
                    head.expect(200, b"");
                    head.has("content-length", manifest.len());
                }
                let path = format!("{prefix}{}", blob_path(&repo, &layer));
                mirror.serves(&path, &layer).await;
                let part = mirror.range(&path, "bytes=10-19").await;
                part.expect(206, &layer[10..20]);
                part.has("content-range", "bytes 10-19/100000");
                let tags = mirror.get(&format!("{prefix}/v2/{repo}/tags/list")).await;
                assert_eq!(tags.json(), json!({"name": repo, "tags": ["1"]}));
            }
        }
        let layer = noise(0, 100_000);
        let stored = replicas
            .mirrors
            .iter()
            .map(|mirror| mirror.is_stored(&layer));
        let stored = futures_util::future::join_all(stored).await;
        assert_eq!(stored, [true, false, false], "one replica writes");
    }
}

#[tokio::test]
async fn an_answer_that_was_relayed_names_the_hop_and_has_no_marks() {
    let replicas = Replicas::hosted(2, &[]).await;
    let manifest = client(&replicas, 0).push("ci/app", "1", 1).await;
    let other = &replicas.mirrors[1];
    let started = other.ask("POST /v2/ci/app/blobs/uploads/", &[]).await;
    started.has("cache-status", hop(&replicas, "method; fwd-status=202"));
    let tag = other.get("/v2/ci/app/manifests/1").await;
    tag.has("cache-status", hop(&replicas, "miss; fwd-status=200"));
    let by_digest = format!("/v2/ci/app/manifests/{}", digest(&manifest));
    let pulled = other.get(&by_digest).await;
    pulled.has("cache-status", hop(&replicas, "uri-miss; fwd-status=200"));
    let missing = other.get("/v2/ci/app/manifests/2").await;
    missing.refused(404, "MANIFEST_UNKNOWN");
    for answer in [&started, &tag, &pulled, &missing] {
        assert!(answer.headers.get("millpond-peer").is_none());
    }
    // Conditions are the writer's to decide.
    let etag = tag.header("etag").to_owned();
    let same = other
        .ask("GET /v2/ci/app/manifests/1", &[("if-none-match", &etag)])
        .await;
    same.expect(304, b"");
    other
        .counted("millpond_relayed_requests_total{result=\"answered\"}", {
            // The push's own: each second of its twelve requests.
            5 + 6
        })
        .await;
    assert_eq!(
        replicas.mirrors[0].metric("millpond_relayed_requests_total"),
        0
    );
}

#[tokio::test]
async fn lists_are_the_writers_and_their_pages_lead_back() {
    let replicas = Replicas::hosted(2, &[]).await;
    let client = client(&replicas, 1);
    let manifest = client.push("ci/app", "1", 1).await;
    for tag in ["2", "3"] {
        client
            .manifest("ci/app", tag, &manifest)
            .await
            .expect(201, b"");
    }
    let config = Bytes::from_static(b"{}");
    client.blob("ci/app", &config).await;
    let attached = manifest_of(&config, &[], Some(&manifest));
    let reference = digest(&attached).to_string();
    let pushed = client.manifest("ci/app", &reference, &attached).await;
    pushed.has("oci-subject", digest(&manifest));
    let other = &replicas.mirrors[1];
    let mut page = "/v2/ci/app/tags/list?n=2".to_owned();
    let mut tags = Vec::new();
    loop {
        let list = other.get(&page).await;
        tags.extend(list.json()["tags"].as_array().unwrap().clone());
        let link = list.header("link");
        let Some((next, _)) = link.split_once('>') else {
            break;
        };
        page = next.trim_start_matches('<').to_owned();
        assert!(page.starts_with("/v2/ci/app/tags/list?"), "{page}");
    }
    assert_eq!(tags, ["1", "2", "3"]);
    let referrers = format!("/v2/ci/app/referrers/{}", digest(&manifest));
    let listed = other.get(&referrers).await;
    assert_eq!(listed.json()["manifests"][0]["digest"], reference);
    let filtered = other.get(&format!("{referrers}?artifactType=a/b")).await;
    assert_eq!(filtered.json()["manifests"], json!([]));
    filtered.has("oci-filters-applied", "artifactType");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_catalog_has_what_is_hosted_at_the_writer_and_mirrored_here() {
    let rules = "root.access: [{repositories: ['ci/no/**'], actions: [pull, list], effect: deny}, \
                 {anyone: true, effect: allow}]";
    let replicas = Replicas::hosted(2, &[rules]).await;
    let client = client(&replicas, 1);
    for (seed, repo) in ["ci/a", "ci/c", "ci/no/b", "ci/d"].into_iter().enumerate() {
        client.push(repo, "1", seed as u64).await;
    }
    let image = Image::oci(1);
    for repo in ["bb", "ci-b"] {
        replicas.up.push(repo, "1", &image);
        let path = format!("/v2/{repo}/manifests/1");
        replicas.mirrors[1].get(&path).await;
    }
    replicas.idle().await;
    let all = ["bb", "ci-b", "ci/a", "ci/c", "ci/d"];
    for n in [1, 2, 3, 5, 100] {
        let mut page = format!("/v2/_catalog?n={n}");
        let mut found = Vec::new();
        loop {
            let list = replicas.mirrors[1].get(&page).await;
            let names = list.json()["repositories"].as_array().unwrap().clone();
            assert!(names.len() <= n);
            found.extend(names);
            let link = list.header("link");
            let Some((next, _)) = link.split_once('>') else {
                break;
            };
            page = next.trim_start_matches('<').to_owned();
        }
        assert_eq!(found, all, "{n}");
    }
}

#[tokio::test]
async fn what_is_deleted_at_one_replica_is_gone_at_all() {
    let replicas = Replicas::hosted(3, &[]).await;
    let client = client(&replicas, 1);
    let manifest = client.push("ci/app", "1", 1).await;
    client
        .manifest("ci/app", "2", &manifest)
        .await
        .expect(201, b"");
    let by_digest = format!("/v2/ci/app/manifests/{}", digest(&manifest));
    let layer = blob_path("ci/app", &noise(1, 100_000));
    let gone = async |path: &str, code: &str| {
        for mirror in &replicas.mirrors {
            mirror.get(path).await.refused(404, code);
        }
    };
    let refused = replicas.mirrors[1]
        .ask(&format!("DELETE {layer}"), &[])
        .await;
    refused.refused(405, "UNSUPPORTED");
    for (index, path, code) in [
        (1, "/v2/ci/app/manifests/2", "MANIFEST_UNKNOWN"),
        (2, &by_digest, "MANIFEST_UNKNOWN"),
        (1, &layer, "BLOB_UNKNOWN"),
    ] {
        let mirror = &replicas.mirrors[index];
        mirror
            .ask(&format!("DELETE {path}"), &[])
            .await
            .expect(202, b"");
        gone(path, code).await;
        mirror
            .ask(&format!("DELETE {path}"), &[])
            .await
            .refused(404, code);
    }
    gone("/v2/ci/app/manifests/1", "MANIFEST_UNKNOWN").await;
    // An upload is ended at another replica than it was started at.
    let started = client.ask("POST /v2/ci/app/blobs/uploads/").await;
    let at = started.header("location").to_owned();
    client.ask(&format!("DELETE {at}")).await.expect(204, b"");
    gone(&at, "BLOB_UPLOAD_UNKNOWN").await;
}

/// Two replicas that each take the other one for the writer.
async fn crossed() -> (Registry, [(Relay, Mirror); 2]) {
    let up = Registry::start().await;
    let relays = [Relay::start().await, Relay::start().await];
    let names: Vec<_> = relays
        .iter()
        .map(|relay| relay.address.to_string())
        .collect();
    let mut started = Vec::new();
    for (relay, other) in relays.into_iter().zip([1, 0]) {
        let section = section(&names, &relay.address.to_string(), SECRET);
        let writer = format!(", hostedwriter: '{}'}}", names[other]);
        let section = section.replace('}', &writer);
        let setup = Setup::new(&up).beside(&section).with(&[SPACE, OPEN]);
        let mirror = setup.start().await;
        relay.lead_to(&mirror);
        started.push((relay, mirror));
    }
    (up, started.try_into().ok().unwrap())
}

#[tokio::test]
async fn replicas_that_disagree_about_the_writer_write_nothing() {
    let (_up, replicas) = crossed().await;
    for (_, mirror) in &replicas {
        for line in [
            "POST /v2/ci/app/blobs/uploads/",
            "GET /v2/ci/app/manifests/1",
            "DELETE /v2/ci/app/manifests/1",
            "GET /v2/_catalog",
        ] {
            let answer = mirror.ask(line, &[]).await;
            answer.refused(503, "UNAVAILABLE");
            answer.has("retry-after", 5);
        }
        let count = |metric: &str| mirror.metric(metric);
        assert_eq!(
            count("millpond_relayed_requests_total{result=\"misdirected\"}"),
            4
        );
        // It is there, and asked again at once.
        assert_eq!(count("millpond_replicas_skipped"), 0);
    }
    for (_, mirror) in &replicas {
        assert_eq!(mirror.metric("millpond_replica_refused_total"), 4);
    }
}

#[tokio::test]
async fn a_relayed_request_is_for_hosted_repositories_only() {
    let replicas = Replicas::hosted(2, &[]).await;
    let (writer, marks) = (&replicas.mirrors[0], Marks::new(SECRET));
    let now = SystemTime::UNIX_EPOCH + Duration::from_hours(500_000);
    for (path, caller, status) in [
        ("/v2/ci/app/tags/list", "user=ann", 404),
        ("/v2/_catalog", "", 200),
        ("/v2/app/tags/list", "user=ann", 421),
        ("/v2/", "user=ann", 421),
        // It doesn't say for whom.
        ("/v2/app/tags/list", "admin=yes", 404),
    ] {
        let mut headers = HeaderMap::new();
        let subject = Subject::Relayed(caller);
        marks
            .mark(&mut headers, ("GET", path), subject, now)
            .unwrap();
        let fields = headers.iter();
        let fields = fields.map(|(name, value)| (name.as_str(), value.to_str().unwrap()));
        let fields: Vec<_> = fields.collect();
        let answer = writer.ask(&format!("GET {path}"), &fields).await;
        assert_eq!(answer.status, status, "{path}");
        let is_marked = answer.headers.contains_key("millpond-peer");
        assert_eq!(is_marked, caller != "admin=yes", "{path}");
    }
}

/// A mirrored repository may be called like a hosted one at its upstream.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_is_asked_about_an_upstream_and_not_about_what_is_hosted() {
    let second = Registry::start().await;
    let prepare = |setup: Setup| setup.upstream("second.example", &second, "");
    let replicas = Replicas::hosted_with(2, &[], prepare).await;
    let blob = noise(1, 100_000);
    second.put_blob("ci/app", &blob);
    let order = replicas.order(&digest(&blob).to_string());
    let path = format!("{}?ns=second.example", blob_path("ci/app", &blob));
    replicas.mirrors[order[1]].serves(&path, &blob).await;
    replicas.idle().await;
    assert_eq!(second.count("GET "), 1);
    assert!(replicas.mirrors[order[0]].is_stored(&blob).await);
    let asked = "millpond_source_requests_total{source=\"peer\"}";
    assert_eq!(replicas.mirrors[order[1]].metric(asked), 1);
}

#[tokio::test]
async fn a_writer_beside_a_dns_name_is_found_by_its_address() {
    let up = Registry::start().await;
    for is_writer in [true, false] {
        // Nobody else is at this address, while the test lasts.
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let own = socket.local_addr().unwrap();
        drop(socket);
        let writer = if is_writer { own.port() } else { 1 };
        let section = format!(
            "root.replicas: {{peers: 'localhost:{}', secret: {SECRET}, hostedwriter: '127.0.0.1:{writer}'}}",
            own.port()
        );
        let setup = Setup::new(&up).addr(own).beside(&section);
        let mirror = setup.with(&[SPACE, OPEN]).start().await;
        let started = mirror.ask("POST /v2/ci/app/blobs/uploads/", &[]).await;
        if is_writer {
            started.expect(202, b"");
        } else {
            started.refused(503, "UNAVAILABLE");
        }
    }
}
