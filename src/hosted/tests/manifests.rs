//! Manifests, tags and referrers.

use super::*;
use crate::oci::Classified as _;

fn manifest_like(kind: &str, parts: &serde_json::Value) -> String {
    let mut document = serde_json::json!({"schemaVersion": 2, "mediaType": kind});
    let fields = document.as_object_mut().unwrap();
    fields.extend(parts.as_object().unwrap().clone());
    document.to_string()
}

fn child(kind: &str, text: &str) -> serde_json::Value {
    serde_json::json!({"mediaType": kind, "digest": sha256(text), "size": text.len()})
}

#[tokio::test]
async fn a_manifest_is_found_by_its_digest_and_its_tags() {
    on_both(async |rig| {
        for algorithm in Algorithm::ALL {
            let text = image("config", &["layer"]);
            rig.put("config").await;
            rig.put("layer").await;
            let digest = Digest::of(algorithm, text.as_bytes());
            let reference = Reference::Digest(digest);
            let (tags, body) = ([tag("a"), tag("b")], Bytes::from(text.clone()));
            let pushed = rig
                .hosted
                .put_manifest(&app(), &reference, &tags, Some(OCI), body, &nobody)
                .await;
            let expected = Pushed {
                digest,
                subject: None,
            };
            assert_eq!(pushed.unwrap(), expected);
            for reference in [reference, tagged("a"), tagged("b")] {
                let found = rig.hosted.manifest(&app(), &reference).await.unwrap();
                assert_eq!(
                    (&*found.content, found.meta.digest),
                    (text.as_bytes(), digest)
                );
            }
        }
        assert_eq!(rig.hosted.tags(&app()).await.unwrap(), [tag("a"), tag("b")]);
        assert_eq!(rig.hosted.repositories().await.unwrap(), [app()]);
        let unknown = rig.hosted.tags(&repo("ci/unknown")).await;
        assert!(matches!(unknown, Err(HostedError::UnknownRepository)));
        let rig = rig.restarted(space()).await;
        let found = rig.hosted.manifest(&app(), &tagged("b")).await.unwrap();
        assert_eq!(found.meta.digest.algorithm(), Algorithm::Sha512);
        rig.cache.check_index();
    })
    .await;
}

#[tokio::test]
async fn missing_parts_are_named() {
    on_both(async |rig| {
        rig.put("there").await;
        let foreign = serde_json::json!({
            "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "digest": sha256("foreign"), "size": 7,
        });
        let elsewhere = serde_json::json!({
            "mediaType": "x/y", "digest": sha256("elsewhere"), "size": 9, "urls": ["https://a/"],
        });
        let config = descriptor("no config");
        let layers = [
            descriptor("there"),
            foreign,
            descriptor("no layer"),
            elsewhere,
        ];
        let parts = serde_json::json!({"config": config, "layers": layers});
        let refused = rig
            .put_image("v1", &manifest_like(OCI, &parts))
            .await
            .unwrap_err();
        assert_eq!(
            refused.missing_parts(),
            [sha256("no config"), sha256("no layer")]
        );
        let unknown = rig.hosted.manifest(&app(), &tagged("v1")).await;
        assert!(matches!(unknown, Err(HostedError::NotFound)));
        let rig = rig
            .restarted(SpaceSettings {
                incomplete: Incomplete::Allow,
                ..space()
            })
            .await;
        rig.put_image("v1", &manifest_like(OCI, &parts))
            .await
            .unwrap();
        rig.cache.check_index();
    })
    .await;
}

#[tokio::test]
async fn children_of_an_index_are_manifests_or_blobs_by_their_type() {
    on_both(async |rig| {
        let text = image("one", &["layer"]);
        let cached = "application/vnd.oci.image.layer.v1.tar+gzip";
        let children = [child(OCI, &text), child(cached, "cached")];
        let index = manifest_like(INDEX, &serde_json::json!({"manifests": children}));
        let refused = rig.put_image("all", &index).await.unwrap_err();
        assert_eq!(refused.missing_parts(), [sha256(&text), sha256("cached")]);
        // The content of a manifest as a blob is no manifest.
        rig.put(&text).await;
        let refused = rig.put_image("all", &index).await.unwrap_err();
        assert_eq!(refused.missing_parts(), [sha256(&text), sha256("cached")]);
        rig.push("one", &["layer"]).await;
        rig.put("cached").await;
        rig.put_manifest(&tagged("all"), Some(INDEX), &index)
            .await
            .unwrap();
        rig.cache.check_index();
    })
    .await;
}

#[tokio::test]
async fn what_is_no_manifest_is_refused() {
    let rig = Rig::new().await;
    rig.put("config").await;
    let valid = image("config", &[]);
    let many: Vec<_> = (0..10_001).map(|n| descriptor(&n.to_string())).collect();
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let cases = [
        ("no JSON", Some(OCI), "{".to_owned()),
        ("too deep", Some(OCI), deep),
        ("another type", Some(INDEX), valid.clone()),
        ("a foreign type", Some("text/plain"), valid.clone()),
        (
            "schema 1",
            None,
            r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(),
        ),
        (
            "both",
            None,
            manifest_like(OCI, &serde_json::json!({"layers": [], "manifests": []})),
        ),
        (
            "a negative size",
            None,
            valid.replace(r#""size":6"#, r#""size":-6"#),
        ),
        (
            "a wrong size",
            None,
            valid.replace(r#""size":6"#, r#""size":7"#),
        ),
        (
            "too many",
            None,
            manifest_like(
                OCI,
                &serde_json::json!({"config": descriptor("config"), "layers": many}),
            ),
        ),
    ];
    for (what, kind, text) in cases {
        let refused = rig
            .put_manifest(&tagged("v1"), kind, &text)
            .await
            .unwrap_err();
        assert_eq!(
            refused.kind(),
            crate::oci::ErrorKind::ManifestInvalid,
            "{what}: {refused}"
        );
    }
    let other = Reference::Digest(sha256("other"));
    let refused = rig.put_manifest(&other, Some(OCI), &valid).await;
    assert!(matches!(refused, Err(HostedError::WrongDigest { .. })));
    // The blob is none the worse for the wrong size.
    assert!(rig.has("config").await);
    rig.put_manifest(&tagged("v1"), None, &valid).await.unwrap();
}

#[tokio::test]
async fn a_tag_and_a_manifest_are_deleted() {
    on_both(async |rig| {
        let first = rig.push("v1", &["layer"]).await;
        let second = rig.push("v2", &["layer"]).await;
        for name in ["a", "b"] {
            rig.put_image(name, &image("v2", &["layer"])).await.unwrap();
        }
        rig.hosted
            .delete_manifest(&app(), &tagged("v1"))
            .await
            .unwrap();
        let by_digest = rig.hosted.manifest(&app(), &Reference::Digest(first)).await;
        by_digest.unwrap();
        let again = rig.hosted.delete_manifest(&app(), &tagged("v1")).await;
        assert!(matches!(again, Err(HostedError::NotFound)));
        let reference = Reference::Digest(second);
        rig.hosted
            .delete_manifest(&app(), &reference)
            .await
            .unwrap();
        assert_eq!(rig.hosted.tags(&app()).await.unwrap(), [] as [Tag; 0]);
        for reference in [reference, tagged("a"), tagged("b"), tagged("v2")] {
            let gone = rig.hosted.manifest(&app(), &reference).await;
            assert!(matches!(gone, Err(HostedError::NotFound)));
        }
        let again = rig
            .hosted
            .delete_manifest(&app(), &reference_of(second))
            .await;
        assert!(matches!(again, Err(HostedError::NotFound)));
        assert!(rig.has("layer").await);
        let rig = rig.restarted(space()).await;
        assert_eq!(rig.hosted.tags(&app()).await.unwrap(), [] as [Tag; 0]);
        rig.cache.check_index();
    })
    .await;
}

fn reference_of(digest: Digest) -> Reference {
    Reference::Digest(digest)
}

#[tokio::test]
async fn an_immutable_tag_stays_what_it_is() {
    on_both(async |rig| {
        let rig = rig
            .restarted(SpaceSettings {
                immutable: vec!["v*".parse().unwrap()],
                mutable: vec!["v*-dev".parse().unwrap()],
                ..space()
            })
            .await;
        let first = rig.push("v1", &[]).await;
        rig.push("other", &[]).await;
        let other = image("other", &[]);
        for refused in [
            rig.put_image("v1", &other).await.map(drop),
            rig.hosted.delete_manifest(&app(), &tagged("v1")).await,
            rig.hosted
                .delete_manifest(&app(), &reference_of(first))
                .await,
        ] {
            let Err(HostedError::Immutable { digest, .. }) = refused else {
                panic!("{refused:?}");
            };
            assert_eq!(*digest, first);
        }
        rig.put_image("v1", &image("v1", &[])).await.unwrap();
        rig.put_image("v1-dev", &image("v1", &[])).await.unwrap();
        rig.put_image("v1-dev", &other).await.unwrap();
    })
    .await;
}

/// Of two pushes of an immutable tag at the same time, one succeeds.
#[tokio::test]
async fn an_immutable_tag_is_set_once() {
    let rig = Rig::with(SpaceSettings {
        immutable: vec!["v*".parse().unwrap()],
        ..space()
    })
    .await;
    rig.put("one").await;
    rig.put("two").await;
    let (one, two) = (image("one", &[]), image("two", &[]));
    let (one, two) = tokio::join!(rig.put_image("v1", &one), rig.put_image("v1", &two));
    assert_eq!(u32::from(one.is_ok()) + u32::from(two.is_ok()), 1);
}

/// A manifest that is attached to another one.
fn attached(to: &str, kind: Option<&str>, note: &str) -> String {
    let mut parts = serde_json::json!({
        "config": descriptor("{}"), "layers": [],
        "subject": child(OCI, to), "annotations": {"note": note},
    });
    if let Some(kind) = kind {
        parts["artifactType"] = kind.into();
    }
    manifest_like(OCI, &parts)
}

#[tokio::test]
async fn referrers_are_listed_with_all_they_say() {
    on_both(async |rig| {
        let subject = rig.push("v1", &[]).await;
        rig.put("{}").await;
        let (text, long) = (image("v1", &[]), "x".repeat(10_000));
        for text in [
            attached(&text, Some("a/b"), "one"),
            attached(&text, None, &long),
        ] {
            let digest = reference_of(sha256(&text));
            let (repo, text) = (app(), Bytes::from(text));
            let push = rig
                .hosted
                .put_manifest(&repo, &digest, &[], None, text, &nobody);
            assert_eq!(push.await.unwrap().subject, Some(subject));
        }
        let rig = rig.restarted(space()).await;
        let listed = rig.hosted.referrers(&app(), &subject).await.unwrap();
        let notes = listed.iter().map(|one| one.annotations["note"].clone());
        let mut notes: Vec<_> = notes.collect();
        notes.sort();
        assert_eq!(notes, ["one".to_owned(), long]);
        let kinds = listed.iter().map(|one| one.artifact_type.clone().unwrap());
        let mut kinds: Vec<_> = kinds.collect();
        kinds.sort();
        assert_eq!(kinds, ["a/b", "application/vnd.oci.image.layer.v1.tar"]);
        let elsewhere = rig.hosted.referrers(&repo("ci/other"), &subject).await;
        assert!(elsewhere.unwrap().is_empty());
        rig.cache.check_index();
    })
    .await;
}

#[tokio::test]
async fn referrers_come_before_their_subject_and_from_a_tag_and_go() {
    on_both(async |rig| {
        rig.put("{}").await;
        let later = image("later", &[]);
        let early = attached(&later, Some("a/b"), "early");
        let reference = reference_of(sha256(&early));
        rig.put_manifest(&reference, None, &early).await.unwrap();
        let (repo, subject) = (app(), sha256(&later));
        let count = async || rig.hosted.referrers(&repo, &subject).await.unwrap().len();
        assert_eq!(count().await, 1);
        assert_eq!(rig.push("later", &[]).await, subject);
        assert_eq!(count().await, 1);
        // Clients that don't know the API list them under a tag.
        rig.push("by-tag", &[]).await;
        let listed = [child(OCI, &image("by-tag", &[])), child(OCI, &early)];
        let index = manifest_like(INDEX, &serde_json::json!({"manifests": listed}));
        let name = subject.to_string().replace(':', "-");
        rig.put_manifest(&tagged(&name), Some(INDEX), &index)
            .await
            .unwrap();
        assert_eq!(count().await, 2);
        rig.hosted
            .delete_manifest(&repo, &tagged(&name))
            .await
            .unwrap();
        assert_eq!(count().await, 1);
        rig.hosted.delete_manifest(&repo, &reference).await.unwrap();
        assert_eq!(count().await, 0);
        rig.cache.check_index();
    })
    .await;
}
