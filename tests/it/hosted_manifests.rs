//! Manifests that clients push, tag and delete.

use bytes::Bytes;
use millpond::oci::manifest::media_type;
use serde_json::json;

use crate::harness::push::{LAYER, Pusher, everywhere};
use crate::harness::{digest, noise};

#[tokio::test]
async fn an_image_is_pushed_and_pulled_byte_for_byte() {
    everywhere(async |p| {
        let image = p.image(1);
        for blob in image.blobs() {
            p.blob("ci/app", blob).await;
        }
        let pushed = p.manifest("ci/app", "1", &image.manifest).await;
        pushed.expect(201, b"");
        let by_digest = format!(
            "/v2/ci/app/manifests/{}",
            pushed.header("docker-content-digest")
        );
        pushed.has("location", &by_digest);
        p.m.serves(&by_digest, &image.manifest).await;
        let by_name = p
            .manifest("ci/app", &image.digest.to_string(), &image.manifest)
            .await;
        by_name.expect(201, b"");
        by_name.has("docker-content-digest", image.digest);
        by_name.has("location", format!("/v2/ci/app/manifests/{}", image.digest));
        p.serves("ci/app", "1", &image).await;
        let path = format!("/v2/ci/app/manifests/{}", image.digest);
        let head = p.m.head(&path).await;
        assert_eq!(head.status, 200);
        head.has("content-length", image.manifest.len());
        head.has("content-type", media_type::OCI_MANIFEST);
        head.has("docker-content-digest", image.digest);
        assert_eq!(p.up.count(""), 0, "the upstream isn't asked");
    })
    .await;
}

#[tokio::test]
async fn a_manifest_by_digest_gets_tags() {
    everywhere(async |p| {
        let image = p.image(1);
        p.push("ci/app", "first", &image).await;
        let reference = format!("{}?tag=a&tag=b", image.digest);
        let pushed = p.manifest("ci/app", &reference, &image.manifest).await;
        pushed.expect(201, b"");
        let tags = pushed.headers.get_all("oci-tag").iter();
        assert!(tags.eq(["a", "b"]));
        for tag in ["first", "a", "b"] {
            p.m.serves(&format!("/v2/ci/app/manifests/{tag}"), &image.manifest)
                .await;
        }
        let many = (0..33).map(|n| format!("tag=t{n}")).collect::<Vec<_>>();
        let reference = format!("{}?{}", image.digest, many.join("&"));
        let refused = p.manifest("ci/app", &reference, &image.manifest).await;
        refused.refused(414, "UNSUPPORTED");
        let refused = p.manifest("ci/app", "first?tag=a", &image.manifest).await;
        assert_eq!(refused.status, 400);
        let wrong = p.digest(b"wrong").to_string();
        let refused = p.manifest("ci/app", &wrong, &image.manifest).await;
        refused.refused(400, "DIGEST_INVALID");
    })
    .await;
}

#[tokio::test]
async fn every_missing_part_is_named() {
    everywhere(async |p| {
        let image = p.image(1);
        p.blob("ci/app", &image.layers[0]).await;
        // Of another repository, which proves nothing.
        p.blob("ci/other", &image.layers[1]).await;
        let refused = p.manifest("ci/app", "1", &image.manifest).await;
        refused.refused(400, "MANIFEST_BLOB_UNKNOWN");
        let errors = refused.json()["errors"].clone();
        let mut named: Vec<_> = errors
            .as_array()
            .unwrap()
            .iter()
            .map(|error| {
                assert_eq!(error["code"], "MANIFEST_BLOB_UNKNOWN");
                error["detail"]["digest"].as_str().unwrap().to_owned()
            })
            .collect();
        named.sort();
        let missing = [&image.config, &image.layers[1]];
        let mut missing = missing.map(|blob| p.digest(blob).to_string());
        missing.sort();
        assert_eq!(named, missing);
        p.m.get("/v2/ci/app/manifests/1")
            .await
            .refused(404, "MANIFEST_UNKNOWN");
        let index = p.index(&[&image.manifest]);
        let refused = p.manifest("ci/app", "index", &index).await;
        refused.refused(400, "MANIFEST_BLOB_UNKNOWN");
        let detail = &refused.json()["errors"][0]["detail"]["digest"];
        assert_eq!(*detail, image.digest.to_string());
    })
    .await;
}

#[tokio::test]
async fn layers_with_urls_of_their_own_may_be_missing() {
    everywhere(async |p| {
        let config = Bytes::from_static(b"{}");
        p.blob("ci/app", &config).await;
        let mut with_urls = p.descriptor(LAYER, b"elsewhere");
        with_urls["urls"] = json!(["https://elsewhere.example/layer"]);
        let kind = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "config": p.descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [with_urls, p.descriptor(kind, b"private")],
        });
        let manifest: Bytes = manifest.to_string().into();
        let pushed = p.manifest("ci/app", "foreign", &manifest).await;
        pushed.expect(201, b"");
    })
    .await;
}

#[tokio::test]
async fn sparse_images_are_accepted_where_they_are_allowed() {
    let sparse = "root.hosted: [{name: ci, repositories: ['ci/**'], incomplete: allow}]";
    let p = Pusher::with(&[sparse]).await;
    let image = p.image(1);
    let index = p.index(&[&image.manifest]);
    for (tag, manifest) in [("index", &index), ("image", &image.manifest)] {
        let pushed = p.manifest("ci/app", tag, manifest).await;
        pushed.expect(201, b"");
        p.m.serves(&format!("/v2/ci/app/manifests/{tag}"), manifest)
            .await;
    }
}

#[tokio::test]
async fn all_types_of_manifests_are_accepted() {
    everywhere(async |p| {
        let image = p.image(1);
        p.push("ci/app", "1", &image).await;
        let index = p.index(&[&image.manifest]);
        p.manifest("ci/app", "index", &index).await.expect(201, b"");
        let config = p.descriptor("application/vnd.docker.container.image.v1+json", &image.config);
        let docker = json!({
            "schemaVersion": 2,
            "mediaType": media_type::DOCKER_MANIFEST,
            "config": config,
            "layers": [p.descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip", &image.layers[0])],
        });
        let docker: Bytes = docker.to_string().into();
        let by_digest = format!("{}?tag=docker", p.digest(&docker));
        p.manifest("ci/app", &by_digest, &docker)
            .await
            .expect(201, b"");
        let list = json!({
            "schemaVersion": 2,
            "mediaType": media_type::DOCKER_LIST,
            "manifests": [p.descriptor(media_type::DOCKER_MANIFEST, &docker)],
        });
        let list: Bytes = list.to_string().into();
        p.manifest("ci/app", "list", &list).await.expect(201, b"");
        let artifact = json!({
            "mediaType": media_type::OCI_ARTIFACT,
            "artifactType": "a/b",
            "blobs": [p.descriptor("x/y", &image.layers[1])],
        });
        let artifact: Bytes = artifact.to_string().into();
        p.manifest("ci/app", "artifact", &artifact)
            .await
            .expect(201, b"");
        for (tag, manifest) in [
            ("index", &index),
            ("docker", &docker),
            ("list", &list),
            ("artifact", &artifact),
        ] {
            p.m.serves(&format!("/v2/ci/app/manifests/{tag}"), manifest)
                .await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_type_that_contradicts_the_manifest_is_refused() {
    let p = Pusher::with(&[crate::harness::push::SPACE]).await;
    let image = p.image(1);
    p.push("ci/app", "1", &image).await;
    for (kind, status) in [
        (media_type::OCI_MANIFEST, 201),
        (
            "application/vnd.oci.image.manifest.v1+json; charset=utf-8",
            201,
        ),
        (media_type::OCI_INDEX, 400),
        (media_type::DOCKER_MANIFEST, 400),
        (media_type::DOCKER_SCHEMA1, 400),
    ] {
        let fields = [("content-type", kind)];
        let pushed = p
            .send(
                "PUT /v2/ci/app/manifests/2",
                &fields,
                image.manifest.clone(),
            )
            .await;
        assert_eq!(pushed.status, status, "{kind}");
        if status == 400 {
            pushed.refused(400, "MANIFEST_INVALID");
        }
    }
}

#[tokio::test]
async fn a_manifest_of_more_than_four_mebibytes_is_refused() {
    let p = Pusher::with(&[crate::harness::push::SPACE]).await;
    let padded = |length: usize| {
        let start = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[],"annotations":{"a":""#;
        let padding = "x".repeat(length - start.len() - 3);
        Bytes::from(format!("{start}{padding}\"}}}}"))
    };
    let most = padded(4 << 20);
    assert_eq!(most.len(), 4 << 20);
    p.manifest("ci/app", "most", &most).await.expect(201, b"");
    let more = padded((4 << 20) + 1);
    let refused = p.manifest("ci/app", "more", &more).await;
    assert_eq!(refused.status, 413);
    let pieces = more
        .chunks(100_000)
        .map(|piece| Ok::<_, std::io::Error>(piece.to_vec()));
    let pieces: Vec<_> = pieces.collect();
    let chunked = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
    let refused = p.send("PUT /v2/ci/app/manifests/more", &[], chunked).await;
    assert_eq!(refused.status, 413);
}

#[tokio::test]
async fn deleting_a_tag_leaves_the_manifest_and_deleting_the_manifest_its_tags() {
    everywhere(async |p| {
        let image = p.image(1);
        p.push("ci/app", "1", &image).await;
        p.tag("ci/app", "2", &image).await;
        p.ask("DELETE /v2/ci/app/manifests/1")
            .await
            .expect(202, b"");
        p.m.get("/v2/ci/app/manifests/1")
            .await
            .refused(404, "MANIFEST_UNKNOWN");
        p.ask("DELETE /v2/ci/app/manifests/1")
            .await
            .refused(404, "MANIFEST_UNKNOWN");
        p.serves("ci/app", "2", &image).await;
        let digest = p.m.head("/v2/ci/app/manifests/2").await;
        let digest = digest.header("docker-content-digest").to_owned();
        let line = format!("DELETE /v2/ci/app/manifests/{digest}");
        p.ask(&line).await.expect(202, b"");
        for reference in ["2", &digest] {
            p.m.get(&format!("/v2/ci/app/manifests/{reference}"))
                .await
                .refused(404, "MANIFEST_UNKNOWN");
        }
        // Its blobs can be deleted now.
        let layer = p.digest(&image.layers[0]);
        p.ask(&format!("DELETE /v2/ci/app/blobs/{layer}"))
            .await
            .expect(202, b"");
    })
    .await;
}

#[tokio::test]
async fn an_immutable_tag_keeps_its_digest() {
    let space =
        "root.hosted: [{name: ci, repositories: ['ci/**'], immutable: ['v*'], mutable: [v0]}]";
    let p = Pusher::with(&[space]).await;
    let (one, two) = (p.image(1), p.image(2));
    for tag in ["v0", "v1", "main"] {
        p.push("ci/app", tag, &one).await;
    }
    for (tag, status) in [("v0", 201), ("v1", 409), ("main", 201)] {
        for blob in two.blobs() {
            p.blob("ci/app", blob).await;
        }
        let pushed = p.manifest("ci/app", tag, &two.manifest).await;
        assert_eq!(pushed.status, status, "{tag}");
        if status == 409 {
            pushed.refused(409, "DENIED");
            let message = pushed.json()["errors"][0]["message"].to_string();
            assert!(message.contains(&one.digest.to_string()), "{message}");
        }
    }
    // The same manifest again changes nothing.
    p.manifest("ci/app", "v1", &one.manifest)
        .await
        .expect(201, b"");
    let digest = one.digest;
    for line in [
        "DELETE /v2/ci/app/manifests/v1".to_owned(),
        format!("DELETE /v2/ci/app/manifests/{digest}"),
    ] {
        p.ask(&line).await.refused(409, "DENIED");
    }
    p.serves("ci/app", "v1", &one).await;
}

#[tokio::test]
async fn a_space_may_be_read_only_or_keep_everything() {
    let p = Pusher::with(&[
        "root.hosted: [{name: old, repositories: ['old/**'], readonly: true}, {name: ci, repositories: ['ci/**'], delete: false}]",
    ])
    .await;
    let image = p.image(1);
    let blob = digest(b"");
    for line in [
        "POST /v2/old/app/blobs/uploads/".to_owned(),
        "PUT /v2/old/app/manifests/1".to_owned(),
        "DELETE /v2/old/app/manifests/1".to_owned(),
        format!("DELETE /v2/old/app/blobs/{blob}"),
    ] {
        let refused = p.send(&line, &[], image.manifest.clone()).await;
        refused.refused(405, "UNSUPPORTED");
    }
    p.push("ci/app", "1", &image).await;
    for line in [
        "DELETE /v2/ci/app/manifests/1".to_owned(),
        format!("DELETE /v2/ci/app/blobs/{blob}"),
    ] {
        p.ask(&line).await.refused(405, "UNSUPPORTED");
    }
    let at = p.begin("ci/app").await;
    p.ask(&format!("DELETE {at}")).await.expect(204, b"");
}

#[tokio::test]
async fn what_was_pushed_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let up = crate::harness::Registry::start().await;
    let store = millpond::storage::FsStore::open(directory.path()).await;
    let store = std::sync::Arc::new(store.unwrap());
    let start = async || {
        crate::harness::Setup::new(&up)
            .with(&[crate::harness::push::SPACE, crate::harness::push::OPEN])
            .store(std::sync::Arc::clone(&store) as _)
            .start()
            .await
    };
    let p = Pusher::with(&[crate::harness::push::SPACE]).await;
    let image = p.image(1);
    let first = Pusher::over(start().await).await;
    first.push("ci/app", "1", &image).await;
    let at = first.begin("ci/app").await;
    let half = noise(9, 20_000);
    first
        .send(&format!("PATCH {at}"), &[], half.slice(..10_000))
        .await
        .expect(202, b"");
    assert!(first.m.app.stop().await);
    let second = Pusher::over(start().await).await;
    second.serves("ci/app", "1", &image).await;
    let status = second.ask(&format!("GET {at}")).await;
    status.expect(204, b"");
    status.has("range", "0-9999");
    let line = format!("PUT {at}?digest={}", digest(&half));
    let closed = second.send(&line, &[], half.slice(10_000..)).await;
    closed.expect(201, b"");
}
