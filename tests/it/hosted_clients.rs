//! The request sequences of clients that can't run here: regctl, oras, crane, jib, containerd and BuildKit's
//! caches in both forms.

use bytes::Bytes;
use millpond::oci::manifest::media_type;
use serde_json::json;

use crate::harness::noise;
use crate::harness::push::{LAYER, Pusher, SPACE};

async fn pusher() -> Pusher {
    Pusher::with(&[SPACE]).await
}

/// The path of a location that a client follows, with a query appended.
fn at(location: &str, query: &str) -> String {
    let mark = if location.contains('?') { '&' } else { '?' };
    format!("{location}{mark}{query}")
}

/// Large blobs in chunks, whose end old versions send one too high.
#[tokio::test]
async fn regctl() {
    let p = pusher().await;
    let image = p.image(1);
    for blob in image.blobs() {
        let digest = p.digest(blob);
        let mount = format!("POST /v2/ci/app/blobs/uploads/?mount={digest}");
        let started = p.ask(&mount).await;
        started.expect(202, b"");
        let mut location = started.header("location").to_owned();
        let mut start = 0;
        for chunk in blob.chunks(20_000) {
            let range = format!("{start}-{}", start + chunk.len());
            let fields = [
                ("content-range", range.as_str()),
                ("content-type", "application/octet-stream"),
            ];
            let sent = p
                .send(&format!("PATCH {location}"), &fields, chunk.to_vec())
                .await;
            sent.expect(202, b"");
            start += chunk.len();
            sent.has("range", format!("0-{}", start - 1));
            location = sent.header("location").to_owned();
        }
        let line = format!("PUT {}", at(&location, &format!("digest={digest}")));
        p.send(&line, &[("content-type", "application/octet-stream")], "")
            .await
            .expect(201, b"");
    }
    p.manifest("ci/app", "1", &image.manifest)
        .await
        .expect(201, b"");
    p.serves("ci/app", "1", &image).await;
}

/// HEAD, POST, PUT of the whole; a probe of the referrers API.
#[tokio::test]
async fn oras() {
    let p = pusher().await;
    let zeros = "0".repeat(64);
    let probe =
        p.m.get(&format!("/v2/ci/app/referrers/sha256:{zeros}"))
            .await;
    assert_eq!(probe.status, 200);
    probe.has("content-type", media_type::OCI_INDEX);
    let image = p.image(1);
    for blob in image.blobs() {
        let digest = p.digest(blob);
        let path = format!("/v2/ci/app/blobs/{digest}");
        assert_eq!(p.m.head(&path).await.status, 404);
        let started = p.ask("POST /v2/ci/app/blobs/uploads/").await;
        let query = format!("digest={digest}").replace(':', "%3A");
        let line = format!("PUT {}", at(started.header("location"), &query));
        p.send(&line, &[], blob.clone()).await.expect(201, b"");
        let head = p.m.head(&path).await;
        assert_eq!(head.status, 200);
        head.has("content-length", blob.len());
    }
    let by_digest = image.digest.to_string();
    assert_eq!(
        p.m.head(&format!("/v2/ci/app/manifests/{by_digest}"))
            .await
            .status,
        404
    );
    for reference in [&by_digest, "1"] {
        let pushed = p.manifest("ci/app", reference, &image.manifest).await;
        pushed.expect(201, b"");
    }
    p.serves("ci/app", "1", &image).await;
}

/// POST with mount, from, origin and a JSON type; one PATCH; PUT.
#[tokio::test]
async fn crane() {
    let p = pusher().await;
    p.ask("GET /v2/").await.expect(200, b"{}");
    let image = p.image(1);
    for blob in image.blobs() {
        let digest = p.digest(blob);
        assert_eq!(
            p.m.head(&format!("/v2/ci/app/blobs/{digest}")).await.status,
            404
        );
        let line = format!(
            "POST /v2/ci/app/blobs/uploads/?from=library%2Fdebian&mount={digest}&origin=docker.io"
        );
        let started = p
            .send(&line, &[("content-type", "application/json")], "")
            .await;
        started.expect(202, b"");
        let pieces = blob
            .chunks(7_000)
            .map(|piece| Ok::<_, std::io::Error>(piece.to_vec()));
        let pieces: Vec<_> = pieces.collect();
        let body = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
        let line = format!("PATCH {}", started.header("location"));
        let sent = p.send(&line, &[], body).await;
        sent.expect(202, b"");
        let query = format!("digest={digest}");
        let line = format!("PUT {}", at(sent.header("location"), &query));
        p.ask(&line).await.expect(201, b"");
    }
    p.manifest("ci/app", "1", &image.manifest)
        .await
        .expect(201, b"");
    p.serves("ci/app", "1", &image).await;
}

/// The closing PUT is repeated after a timeout.
#[tokio::test]
async fn jib() {
    let p = pusher().await;
    let blob = noise(1, 40_000);
    let digest = p.digest(&blob);
    let line = format!("POST /v2/ci/app/blobs/uploads/?mount={digest}&from=ci/base");
    let started = p.ask(&line).await;
    started.expect(202, b"");
    let sent = p
        .send(
            &format!("PATCH {}", started.header("location")),
            &[],
            blob.clone(),
        )
        .await;
    sent.expect(202, b"");
    let query = format!("digest={digest}");
    let line = format!("PUT {}", at(sent.header("location"), &query));
    let (one, other) = tokio::join!(p.ask(&line), p.ask(&line));
    for closed in [one, other, p.ask(&line).await] {
        closed.expect(201, b"");
        closed.has("docker-content-digest", digest);
    }
    p.m.serves(&format!("/v2/ci/app/blobs/{digest}"), &blob)
        .await;
}

/// The PUT has the whole body and further parameters; everything is looked for first.
#[tokio::test]
async fn containerd() {
    let p = pusher().await;
    let image = p.image(1);
    let blobs = image.blobs();
    for blob in blobs.chain([image.blobs().next().unwrap()]) {
        let digest = p.digest(blob);
        let path = format!("/v2/ci/app/blobs/{digest}");
        if p.m.head(&path).await.status == 200 {
            continue;
        }
        let line = format!("POST /v2/ci/app/blobs/uploads/?mount={digest}&from=ci/base");
        let started = p.ask(&line).await;
        started.expect(202, b"");
        let query = format!("digest={digest}");
        let line = format!("PUT {}", at(started.header("location"), &query));
        let pushed = p
            .send(
                &line,
                &[("content-type", "application/octet-stream")],
                blob.clone(),
            )
            .await;
        pushed.expect(201, b"");
        pushed.has("docker-content-digest", digest);
    }
    assert_eq!(p.m.head("/v2/ci/app/manifests/1").await.status, 404);
    let pushed = p.manifest("ci/app", "1", &image.manifest).await;
    pushed.expect(201, b"");
    pushed.has("docker-content-digest", image.digest);
    assert_eq!(p.m.head("/v2/ci/app/manifests/1").await.status, 200);
    p.serves("ci/app", "1", &image).await;
}

/// The old form is an index of layers, the new one (`image-manifest=true`) an image without an image's
/// config.
#[tokio::test]
async fn caches_of_buildkit() {
    let p = pusher().await;
    let layers = [noise(1, 9_000), noise(2, 4_000)];
    let kind = "application/vnd.buildkit.cacheconfig.v0";
    let config = Bytes::from_static(br#"{"layers":[],"records":[]}"#);
    let layer = |bytes: &Bytes| p.descriptor(LAYER, bytes);
    let entries: Vec<_> = layers.iter().map(layer).collect();
    let config_entry = p.descriptor(kind, &config);
    let mut all = entries.clone();
    all.push(config_entry.clone());
    let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": all});
    let index: Bytes = index.to_string().into();
    let refused = p.manifest("ci/cache", "old", &index).await;
    refused.refused(400, "MANIFEST_BLOB_UNKNOWN");
    assert_eq!(refused.json()["errors"].as_array().map(Vec::len), Some(3));
    for blob in layers.iter().chain([&config]) {
        p.blob("ci/cache", blob).await;
    }
    p.manifest("ci/cache", "old", &index).await.expect(201, b"");
    let image = json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
        "config": config_entry, "layers": entries,
    });
    let image: Bytes = image.to_string().into();
    p.manifest("ci/cache", "new", &image).await.expect(201, b"");
    for (tag, manifest) in [("old", &index), ("new", &image)] {
        p.m.serves(&format!("/v2/ci/cache/manifests/{tag}"), manifest)
            .await;
    }
    for blob in layers.iter().chain([&config]) {
        let digest = p.digest(blob);
        p.m.serves(&format!("/v2/ci/cache/blobs/{digest}"), blob)
            .await;
        let line = format!("DELETE /v2/ci/cache/blobs/{digest}");
        p.ask(&line).await.refused(405, "UNSUPPORTED");
    }
}

/// crane and oras speak HTTP/2 where they may.
#[tokio::test]
async fn a_push_over_http2() {
    let p = pusher().await;
    let client = reqwest::Client::builder()
        .tls_certs_only([])
        .http2_prior_knowledge()
        .build()
        .unwrap();
    let base = format!("http://{}", p.m.address());
    let blob = noise(1, 3 << 20);
    let digest = p.digest(&blob);
    let started = client.post(format!("{base}/v2/ci/app/blobs/uploads/"));
    let started = started.send().await.unwrap();
    assert_eq!(started.version(), http::Version::HTTP_2);
    let location = started.headers()["location"].to_str().unwrap();
    let sent = client.patch(format!("{base}{location}")).body(blob.clone());
    assert_eq!(sent.send().await.unwrap().status(), 202);
    let closed = client.put(format!("{base}{location}?digest={digest}"));
    assert_eq!(closed.send().await.unwrap().status(), 201);
    p.m.serves(&format!("/v2/ci/app/blobs/{digest}"), &blob)
        .await;
    // A refused body costs neither the response nor the connection.
    let refused = client.put(format!("{base}/v2/ci/app/blobs/uploads/1?digest={digest}"));
    let refused = refused.body(blob).send().await.unwrap();
    assert_eq!(refused.status(), 404);
    let again = client.get(format!("{base}/v2/")).send().await.unwrap();
    assert_eq!(again.status(), 200);
}
