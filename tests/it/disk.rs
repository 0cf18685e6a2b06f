//! The reference registry's directory: read as that registry wrote it, and written as it would.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use millpond::oci::Digest;
use millpond::oci::manifest::media_type;
use millpond::storage::FsStore;

use crate::harness::{Image, Registry, Setup, digest};

const REGISTRY: &str = "docker/registry/v2";

fn write(root: &Path, path: &str, content: impl AsRef<[u8]>) {
    let path = root.join(REGISTRY).join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// Where a blob is, below the registry's directory.
fn data(digest: &Digest) -> String {
    let hex = digest.hex();
    let shared: String = hex.chars().take(2).collect();
    format!("blobs/sha256/{shared}/{hex}/data")
}

fn write_blob(root: &Path, bytes: &[u8]) -> Digest {
    let digest = digest(bytes);
    write(root, &data(&digest), bytes);
    digest
}

/// What a reference registry that mirrors has on disk after a pull of an index and its one image.
fn reference_directory(root: &Path, image: &Image, index: &[u8]) {
    let repository = "repositories/team/app";
    for bytes in image.blobs() {
        let digest = write_blob(root, bytes);
        write(
            root,
            &format!("{repository}/_layers/sha256/{}/link", digest.hex()),
            digest.to_string(),
        );
    }
    let child = write_blob(root, &image.manifest);
    let parent = write_blob(root, index);
    let manifests = format!("{repository}/_manifests");
    for digest in [child, parent] {
        write(
            root,
            &format!("{manifests}/revisions/sha256/{}/link", digest.hex()),
            digest.to_string(),
        );
    }
    let parent_hex = parent.hex();
    write(
        root,
        &format!("{manifests}/tags/1.0/current/link"),
        parent.to_string(),
    );
    write(
        root,
        &format!("{manifests}/tags/1.0/index/sha256/{parent_hex}/link"),
        parent.to_string(),
    );
}

#[tokio::test]
async fn a_directory_of_the_reference_registry_is_served_with_the_upstream_down() {
    let root = tempfile::tempdir().unwrap();
    let image = Image::docker(1);
    let index = Image::index(media_type::DOCKER_LIST, &[&image]);
    reference_directory(root.path(), &image, &index);
    let state = r#"{"team/app@sha256:0":{"Key":"team/app@sha256:0","ExpiryData":"2030-01-01T00:00:00Z","EntryType":0}}"#;
    fs::write(root.path().join("scheduler-state.json"), state).unwrap();
    let up = Registry::start().await;
    up.go_down();
    let store = Arc::new(FsStore::open(root.path()).await.unwrap());
    let m = Setup::new(&up).store(store).start().await;

    let by_tag = m.get("/v2/team/app/manifests/1.0").await;
    by_tag.expect(200, &index);
    assert_eq!(by_tag.header("content-type"), media_type::DOCKER_LIST);
    assert_eq!(
        by_tag.header("docker-content-digest"),
        digest(&index).to_string()
    );
    assert!(up.take().len() == 1, "only the tag is asked after");
    for manifest in [&index, &image.manifest] {
        let path = format!("/v2/team/app/manifests/{}", digest(manifest));
        m.get(&path).await.expect(200, manifest);
    }
    for blob in image.blobs() {
        let path = format!("/v2/team/app/blobs/{}", digest(blob));
        let answer = m.get(&path).await;
        answer.expect(200, blob);
        assert_eq!(answer.header("cache-status"), "millpond; hit");
    }
    assert_eq!(up.count(""), 0);
    m.serves("/v2/_catalog", br#"{"repositories":["team/app"]}"#)
        .await;
    let tags = m.get("/v2/team/app/tags/list").await;
    tags.expect(200, br#"{"name":"team/app","tags":["1.0"]}"#);
}

/// All files below a directory, with their contents.
fn files(root: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                let name = path
                    .strip_prefix(root)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned();
                found.push((name, fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn a_pull_leaves_the_files_of_the_reference_registry() {
    let (expected, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let image = Image::docker(1);
    let index = Image::index(media_type::DOCKER_LIST, &[&image]);
    reference_directory(expected.path(), &image, &index);
    let up = Registry::start().await;
    let child = up.push("team/app", "amd64", &image);
    up.tag("team/app", "1.0", media_type::DOCKER_LIST, &index);
    let store = Arc::new(FsStore::open(root.path()).await.unwrap());
    let m = Setup::new(&up).store(store).start().await;
    m.serves("/v2/team/app/manifests/1.0", &index).await;
    m.serves(&format!("/v2/team/app/manifests/{child}"), &image.manifest)
        .await;
    for blob in image.blobs() {
        m.serves(&format!("/v2/team/app/blobs/{}", digest(blob)), blob)
            .await;
    }
    m.idle().await;
    let (expected, got) = (
        files(&expected.path().join("docker")),
        files(&root.path().join("docker")),
    );
    let names = |files: &[(String, Vec<u8>)]| {
        files
            .iter()
            .map(|(name, _)| name.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&got), names(&expected));
    assert!(got == expected, "the contents differ");
    assert!(
        files(&root.path().join("millpond/spool")).is_empty(),
        "nothing is left unfinished"
    );
}

#[tokio::test]
async fn a_broken_directory_is_healed_from_the_upstream() {
    let root = tempfile::tempdir().unwrap();
    let image = Image::oci(1);
    let index = Image::index(media_type::OCI_INDEX, &[&image]);
    reference_directory(root.path(), &image, &index);
    write(root.path(), &data(&digest(&image.manifest)), "");
    let layer = digest(&image.layers[0]);
    fs::remove_file(root.path().join(REGISTRY).join(data(&layer))).unwrap();
    write(
        root.path(),
        "repositories/team/app/_manifests/tags/1.0/current/link",
        "sha256:nonsense",
    );
    let up = Registry::start().await;
    up.push("team/app", "amd64", &image);
    up.tag("team/app", "1.0", media_type::OCI_INDEX, &index);
    let store = Arc::new(FsStore::open(root.path()).await.unwrap());
    let m = Setup::new(&up).store(store).start().await;
    for _ in 0..2 {
        m.serves("/v2/team/app/manifests/1.0", &index).await;
        let path = format!("/v2/team/app/manifests/{}", image.digest());
        m.get(&path).await.expect(200, &image.manifest);
        m.pull(&format!("/v2/team/app/blobs/{layer}"), &image.layers[0])
            .await;
    }
    assert_eq!(up.count("GET "), 3, "{:?}", up.take());
}
