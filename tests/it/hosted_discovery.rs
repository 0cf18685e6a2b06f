//! Tags, referrers and the catalog of hosted repositories.

use bytes::Bytes;
use millpond::oci::manifest::media_type;
use serde_json::{Value, json};

use crate::harness::Answer;
use crate::harness::push::{Pusher, SPACE, everywhere};

fn strings(answer: &Answer, key: &str) -> Vec<String> {
    serde_json::from_value(answer.json()[key].clone()).unwrap()
}

/// Follows `Link` from page to page.
async fn pages(p: &Pusher, first: &str) -> Vec<Answer> {
    let mut pages = Vec::new();
    let mut next = Some(first.to_owned());
    while let Some(path) = next {
        let answer = p.m.get(&path).await;
        assert_eq!(answer.status, 200, "{path}");
        next = match answer.header("link") {
            "" => None,
            link => {
                let link = link.strip_prefix('<').unwrap();
                Some(link.strip_suffix(">; rel=\"next\"").unwrap().to_owned())
            }
        };
        pages.push(answer);
        assert!(pages.len() < 20, "pages without end");
    }
    pages
}

#[tokio::test]
async fn tags_are_listed_in_order_and_in_pages() {
    everywhere(async |p| {
        let image = p.image(1);
        for tag in ["b", "A", "a", "_", "1"] {
            p.push("ci/app", tag, &image).await;
        }
        let path = "/v2/ci/app/tags/list";
        let all = p.m.get(path).await;
        assert_eq!(strings(&all, "tags"), ["1", "A", "_", "a", "b"]);
        assert_eq!(all.json()["name"], "ci/app");
        let two = pages(p, &format!("{path}?n=2")).await;
        let two: Vec<_> = two.iter().map(|page| strings(page, "tags")).collect();
        assert_eq!(two, [vec!["1", "A"], vec!["_", "a"], vec!["b"]]);
        let none = p.m.get(&format!("{path}?n=0")).await;
        assert_eq!(strings(&none, "tags"), [""; 0]);
        none.has("link", "");
        let after = p.m.get(&format!("{path}?last=_")).await;
        assert_eq!(strings(&after, "tags"), ["a", "b"]);
        p.m.get("/v2/ci/nobody/tags/list")
            .await
            .refused(404, "NAME_UNKNOWN");
    })
    .await;
}

#[tokio::test]
async fn referrers_are_found_whether_or_not_their_subject_exists() {
    everywhere(async |p| {
        let image = p.image(1);
        let path = format!("/v2/ci/app/referrers/{}", image.digest);
        let empty = p.m.get(&path).await;
        assert_eq!(empty.status, 200);
        empty.has("content-type", media_type::OCI_INDEX);
        assert_eq!(empty.json()["manifests"], json!([]));
        let subject = p.descriptor(media_type::OCI_MANIFEST, &image.manifest);
        let signature = p.image_with(
            2,
            &json!({"subject": subject, "artifactType": "sig/x", "annotations": {"k": "v"}}),
        );
        let sbom = p.image_with(3, &json!({"subject": subject}));
        for (tag, referrer) in [("sig", &signature), ("sbom", &sbom)] {
            for blob in referrer.blobs() {
                p.blob("ci/app", blob).await;
            }
            let pushed = p.manifest("ci/app", tag, &referrer.manifest).await;
            pushed.expect(201, b"");
            pushed.has("oci-subject", image.digest);
        }
        let found = p.m.get(&path).await.json()["manifests"].clone();
        let found = found.as_array().unwrap().clone();
        assert_eq!(found.len(), 2);
        let of = |manifest: &Bytes| {
            let digests = [p.digest(manifest), crate::harness::digest(manifest)];
            let mut all = found.iter();
            all.find(|entry| {
                digests
                    .iter()
                    .any(|digest| entry["digest"] == digest.to_string())
            })
            .unwrap()
            .clone()
        };
        let signed = of(&signature.manifest);
        assert_eq!(signed["artifactType"], "sig/x");
        assert_eq!(signed["annotations"], json!({"k": "v"}));
        assert_eq!(signed["size"], signature.manifest.len());
        let config = "application/vnd.oci.image.config.v1+json";
        assert_eq!(of(&sbom.manifest)["artifactType"], config);
        let filtered = p.m.get(&format!("{path}?artifactType=sig/x")).await;
        filtered.has("oci-filters-applied", "artifactType");
        assert_eq!(filtered.json()["manifests"], json!([signed]));
        // Gone with its manifest.
        let digest = signed["digest"].as_str().unwrap();
        p.ask(&format!("DELETE /v2/ci/app/manifests/{digest}"))
            .await
            .expect(202, b"");
        let left = p.m.get(&path).await.json()["manifests"].clone();
        assert_eq!(left.as_array().map(Vec::len), Some(1));
        let nobody = p.m.get(&path.replace("ci/app", "ci/nobody")).await;
        assert_eq!(nobody.json()["manifests"], json!([]));
    })
    .await;
}

#[tokio::test]
async fn the_entries_of_a_referrers_tag_are_included() {
    let p = Pusher::with(&[SPACE]).await;
    let image = p.image(1);
    p.push("ci/app", "1", &image).await;
    let other = p.image(2);
    p.push("ci/app", "sig", &other).await;
    let mut entry = p.descriptor(media_type::OCI_MANIFEST, &other.manifest);
    entry["artifactType"] = json!("sig/y");
    let index = json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [entry],
    });
    let tag = image.digest.to_string().replace(':', "-");
    let index: Bytes = index.to_string().into();
    p.manifest("ci/app", &tag, &index).await.expect(201, b"");
    let path = format!("/v2/ci/app/referrers/{}", image.digest);
    let found = p.m.get(&path).await.json()["manifests"].clone();
    assert_eq!(found[0]["digest"], other.digest.to_string());
}

#[tokio::test]
async fn many_referrers_come_in_pages() {
    let p = Pusher::with(&[SPACE]).await;
    let image = p.image(1);
    let subject = p.descriptor(media_type::OCI_MANIFEST, &image.manifest);
    let config = Bytes::from_static(b"{}");
    p.blob("ci/app", &config).await;
    let padding = "x".repeat(1_500_000);
    for number in 0..5 {
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "artifactType": "a/b",
            "config": p.descriptor("application/vnd.oci.empty.v1+json", &config),
            "layers": [p.descriptor("application/vnd.oci.empty.v1+json", &config)],
            "subject": subject,
            "annotations": {"padding": padding, "number": number.to_string()},
        });
        let manifest: Bytes = manifest.to_string().into();
        let digest = p.digest(&manifest).to_string();
        p.manifest("ci/app", &digest, &manifest)
            .await
            .expect(201, b"");
    }
    let path = format!("/v2/ci/app/referrers/{}?artifactType=a/b", image.digest);
    let pages = pages(&p, &path).await;
    let mut found: Vec<String> = Vec::new();
    for page in &pages {
        assert!(page.body.len() <= 4 << 20, "{}", page.body.len());
        page.has("oci-filters-applied", "artifactType");
        let entries = page.json()["manifests"].clone();
        let entries = entries.as_array().unwrap().clone();
        found.extend(
            entries
                .iter()
                .map(|entry: &Value| entry["digest"].to_string()),
        );
    }
    assert_eq!((pages.len(), found.len()), (3, 5));
    found.dedup();
    assert_eq!(found.len(), 5);
}

#[tokio::test]
async fn the_catalog_has_hosted_repositories_beside_mirrored_ones() {
    let p = Pusher::with(&[SPACE]).await;
    let mirrored = crate::harness::Image::oci(7);
    p.up.push("library/app", "1", &mirrored);
    p.m.serves("/v2/library/app/manifests/1", &mirrored.manifest)
        .await;
    p.push("ci/app", "1", &p.image(1)).await;
    let catalog = p.m.get("/v2/_catalog").await;
    assert_eq!(strings(&catalog, "repositories"), ["ci/app", "library/app"]);
    let none = p.m.get("/v2/_catalog?n=0").await;
    assert_eq!(strings(&none, "repositories"), [""; 0]);
}
