//! Manifests by digest.

use millpond::oci::manifest::media_type;

use crate::harness::{Image, Registry, Setup};

#[tokio::test]
async fn every_type_is_served_as_it_is_by_tag_and_by_digest() {
    let up = Registry::start().await;
    let m = Setup::new(&up).start().await;
    let (oci, docker) = (Image::oci(1), Image::docker(2));
    let artifact = Image::artifact(3, &oci, "application/x");
    for (tag, kind, bytes) in [
        ("oci", media_type::OCI_MANIFEST, oci.manifest.clone()),
        (
            "docker",
            media_type::DOCKER_MANIFEST,
            docker.manifest.clone(),
        ),
        (
            "artifact",
            media_type::OCI_MANIFEST,
            artifact.manifest.clone(),
        ),
        (
            "index",
            media_type::OCI_INDEX,
            Image::index(media_type::OCI_INDEX, &[&oci]),
        ),
        (
            "list",
            media_type::DOCKER_LIST,
            Image::index(media_type::DOCKER_LIST, &[&docker]),
        ),
    ] {
        let digest = up.tag("app", tag, kind, &bytes);
        for reference in [tag.to_owned(), digest.to_string()] {
            let path = format!("/v2/app/manifests/{reference}");
            let answer = m.get(&path).await;
            answer.expect(200, &bytes);
            let head = m.head(&path).await;
            assert_eq!((head.status, head.body.len()), (200, 0));
            for answer in [answer, head] {
                assert_eq!(answer.header("content-type"), kind);
                assert_eq!(answer.header("content-length"), bytes.len().to_string());
                assert_eq!(answer.header("docker-content-digest"), digest.to_string());
                assert_eq!(answer.header("etag"), format!("\"{digest}\""));
            }
        }
        assert_eq!(up.take(), [format!("GET /v2/app/manifests/{tag}")]);
    }
}
