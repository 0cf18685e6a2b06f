//! Bad input: each gets a 4xx and does no harm.

use bytes::Bytes;
use millpond::oci::manifest::media_type;
use serde_json::json;

use crate::harness::noise;
use crate::harness::push::{Pusher, SPACE};

#[tokio::test]
async fn malformed_requests_are_refused() {
    let p = Pusher::with(&[SPACE]).await;
    let at = p.begin("ci/app").await;
    let good = p.digest(b"x").to_string();
    let upper = good.to_uppercase().replace("SHA", "sha");
    for (line, status, code) in [
        ("POST /v2/ci/APP/blobs/uploads/", 400, "NAME_INVALID"),
        ("POST /v2/ci/a%2F..%2Fb/blobs/uploads/", 400, "NAME_INVALID"),
        (
            "POST /v2/ci/app/blobs/uploads/?digest=sha256:12",
            400,
            "DIGEST_INVALID",
        ),
        (
            "POST /v2/ci/app/blobs/uploads/?digest=md5:12",
            400,
            "DIGEST_INVALID",
        ),
        (
            &format!("POST /v2/ci/app/blobs/uploads/?digest={upper}"),
            400,
            "DIGEST_INVALID",
        ),
        (
            "POST /v2/ci/app/blobs/uploads/?digest-algorithm=sha384",
            400,
            "DIGEST_INVALID",
        ),
        (&format!("PUT {at}"), 400, "DIGEST_INVALID"),
        (&format!("PUT {at}?digest=sha256:zz"), 400, "DIGEST_INVALID"),
        ("PUT /v2/ci/app/manifests/sha256:12", 400, "DIGEST_INVALID"),
        (
            "DELETE /v2/ci/app/manifests/sha256:12",
            400,
            "DIGEST_INVALID",
        ),
        ("DELETE /v2/ci/app/blobs/sha256:12", 400, "DIGEST_INVALID"),
        ("GET /v2/ci/app/blobs/sha256:12", 400, "DIGEST_INVALID"),
        ("GET /v2/ci/app/manifests/sha256:12", 400, "DIGEST_INVALID"),
        ("GET /v2/ci/app/referrers/sha256:12", 400, "DIGEST_INVALID"),
        ("POST /v2/ci/app/manifests/1", 405, "UNSUPPORTED"),
        ("PATCH /v2/ci/app/manifests/1", 405, "UNSUPPORTED"),
        ("PUT /v2/ci/app/tags/list", 405, "UNSUPPORTED"),
    ] {
        p.ask(line).await.refused(status, code);
    }
    for tag in [".x", "-x", "a%20b", &"t".repeat(129)] {
        let refused = p.ask(&format!("PUT /v2/ci/app/manifests/{tag}")).await;
        assert_eq!(refused.status, 400, "{tag}");
    }
    // Nothing has happened to the upload.
    p.ask(&format!("GET {at}")).await.expect(204, b"");
}

#[tokio::test]
async fn ranges_and_lengths_that_lie_are_refused_and_the_session_survives() {
    let p = Pusher::with(&[SPACE]).await;
    let at = p.begin("ci/app").await;
    let body = noise(1, 10);
    for range in [
        "bytes=0-9",
        "bytes 0-9/10",
        "5-3",
        "0-18446744073709551616",
        "0-18446744073709551615",
        "18446744073709551615-18446744073709551615",
        "-1-9",
        "a-b",
        "0",
        "0-4",
        "0-99",
    ] {
        let fields = [("content-range", range)];
        for line in [
            format!("PATCH {at}"),
            format!("PUT {at}?digest={}", p.digest(&body)),
        ] {
            let refused = p.send(&line, &fields, body.clone()).await;
            assert!((400..417).contains(&refused.status), "{line} {range}");
        }
        p.ask(&format!("GET {at}")).await.expect(204, b"");
    }
    p.send(
        &format!("PATCH {at}"),
        &[("content-range", "0-9")],
        body.clone(),
    )
    .await
    .expect(202, b"");
    let line = format!("PUT {at}?digest={}", p.digest(&body));
    p.ask(&line).await.expect(201, b"");
}

#[tokio::test]
async fn manifests_that_are_none_are_refused() {
    let p = Pusher::with(&[SPACE]).await;
    let image = p.image(1);
    p.push("ci/app", "good", &image).await;
    let config = p.descriptor("application/vnd.oci.image.config.v1+json", &image.config);
    let layer = p.descriptor("application/vnd.oci.image.layer.v1.tar", &image.layers[0]);
    let mut negative = layer.clone();
    negative["size"] = json!(-1);
    let mut wrong_size = layer.clone();
    wrong_size["size"] = json!(1);
    let many: Vec<_> = (0..10_001).map(|_| layer.clone()).collect();
    let oci = |layers: serde_json::Value| {
        json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": layers})
            .to_string()
    };
    let mut both = serde_json::from_str::<serde_json::Value>(&oci(json!([layer]))).unwrap();
    both["manifests"] = json!([]);
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep = oci(json!([layer])).replacen('{', &format!("{{\"x\":{nested},"), 1);
    for (what, body) in [
        ("empty", String::new()),
        ("no JSON", "<html>".to_owned()),
        ("an array", "[]".to_owned()),
        ("nothing in it", "{}".to_owned()),
        ("deep", nested.clone()),
        ("deep within", deep),
        ("both kinds", both.to_string()),
        (
            "schema 1",
            json!({"schemaVersion": 1, "name": "ci/app", "tag": "1", "fsLayers": []}).to_string(),
        ),
        ("a negative size", oci(json!([negative]))),
        ("a wrong size", oci(json!([wrong_size]))),
        ("10,001 references", oci(json!(many))),
        (
            "a digest that is none",
            oci(json!([{"mediaType": "x/y", "digest": "sha256:1", "size": 1}])),
        ),
    ] {
        let body = Bytes::from(body);
        let fields = [("content-type", media_type::OCI_MANIFEST)];
        let refused = p.send("PUT /v2/ci/app/manifests/bad", &fields, body).await;
        assert_eq!(refused.status, 400, "{what}");
        let (_, code) = refused.error();
        assert!(code.starts_with("MANIFEST_"), "{what}: {code}");
        p.m.get("/v2/ci/app/manifests/bad")
            .await
            .refused(404, "MANIFEST_UNKNOWN");
    }
    p.serves("ci/app", "good", &image).await;
}

#[tokio::test]
async fn too_many_uploads_are_refused() {
    let few = "root.hosted: [{name: ci, repositories: ['ci/**'], uploads: {max: 2}}]";
    let p = Pusher::with(&[few]).await;
    let first = p.begin("ci/app").await;
    p.begin("ci/other").await;
    let refused = p.ask("POST /v2/ci/app/blobs/uploads/").await;
    refused.refused(429, "TOOMANYREQUESTS");
    p.ask(&format!("DELETE {first}")).await.expect(204, b"");
    p.begin("ci/app").await;
}
