//! The reference registry's directory: read as that registry wrote it, and written as it would.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use millpond::oci::Digest;
use millpond::oci::manifest::media_type;
use millpond::storage::FsStore;

use crate::harness::{Image, Mirror, Registry, Setup, blob_path, digest};

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
    let link = |path: &str, digest: Digest| {
        let path = format!("repositories/team/app/{path}/link");
        write(root, &path, digest.to_string());
    };
    for bytes in image.blobs() {
        let digest = write_blob(root, bytes);
        link(&format!("_layers/sha256/{}", digest.hex()), digest);
    }
    let (child, parent) = (write_blob(root, &image.manifest), write_blob(root, index));
    for digest in [child, parent] {
        let revision = format!("_manifests/revisions/sha256/{}", digest.hex());
        link(&revision, digest);
    }
    link("_manifests/tags/1.0/current", parent);
    let entry = format!("_manifests/tags/1.0/index/sha256/{}", parent.hex());
    link(&entry, parent);
}

/// A mirror over this directory.
async fn mirror(up: &Registry, root: &Path) -> Mirror {
    let store = Arc::new(FsStore::open(root).await.unwrap());
    Setup::new(up).store(store).start().await
}

/// An upstream that has the index and its image.
async fn upstream(image: &Image, kind: &str, index: &Bytes) -> Registry {
    let up = Registry::start().await;
    up.push("team/app", "amd64", image);
    up.tag("team/app", "1.0", kind, index);
    up
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
    let m = mirror(&up, root.path()).await;

    let by_tag = m.serves("/v2/team/app/manifests/1.0", &index).await;
    assert_eq!(by_tag.header("content-type"), media_type::DOCKER_LIST);
    by_tag.has("docker-content-digest", digest(&index));
    assert!(up.take().len() == 1, "only the tag is asked after");
    for manifest in [&index, &image.manifest] {
        let path = format!("/v2/team/app/manifests/{}", digest(manifest));
        m.serves(&path, manifest).await;
    }
    for blob in image.blobs() {
        let answer = m.serves(&blob_path("team/app", blob), blob).await;
        assert_eq!(answer.source(), "hit");
    }
    assert_eq!(up.count(""), 0);
    m.serves("/v2/_catalog", br#"{"repositories":["team/app"]}"#)
        .await;
    let tags = br#"{"name":"team/app","tags":["1.0"]}"#;
    m.serves("/v2/team/app/tags/list", tags).await;
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
                let name = path.strip_prefix(root).unwrap().to_str().unwrap();
                found.push((name.to_owned(), fs::read(&path).unwrap()));
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
    let up = upstream(&image, media_type::DOCKER_LIST, &index).await;
    let m = mirror(&up, root.path()).await;
    m.serves("/v2/team/app/manifests/1.0", &index).await;
    let child = format!("/v2/team/app/manifests/{}", image.digest());
    m.serves(&child, &image.manifest).await;
    for blob in image.blobs() {
        m.serves(&blob_path("team/app", blob), blob).await;
    }
    m.idle().await;
    let expected = files(&expected.path().join("docker"));
    let got = files(&root.path().join("docker"));
    let names = |files: &[(String, Vec<u8>)]| -> Vec<String> {
        files.iter().map(|(name, _)| name.clone()).collect()
    };
    assert_eq!(names(&got), names(&expected));
    assert!(got == expected, "the contents differ");
    let unfinished = files(&root.path().join("millpond/spool"));
    assert!(unfinished.is_empty(), "{unfinished:?}");
}

#[tokio::test]
async fn a_broken_directory_is_healed_from_the_upstream() {
    let root = tempfile::tempdir().unwrap();
    let image = Image::oci(1);
    let index = Image::index(media_type::OCI_INDEX, &[&image]);
    reference_directory(root.path(), &image, &index);
    write(root.path(), &data(&digest(&image.manifest)), "");
    let layer = &image.layers[0];
    let file = root.path().join(REGISTRY).join(data(&digest(layer)));
    fs::remove_file(file).unwrap();
    let current = "repositories/team/app/_manifests/tags/1.0/current/link";
    write(root.path(), current, "sha256:nonsense");
    let up = upstream(&image, media_type::OCI_INDEX, &index).await;
    let m = mirror(&up, root.path()).await;
    for _ in 0..2 {
        m.serves("/v2/team/app/manifests/1.0", &index).await;
        let path = format!("/v2/team/app/manifests/{}", image.digest());
        m.serves(&path, &image.manifest).await;
        m.pull(&blob_path("team/app", layer), layer).await;
    }
    assert_eq!(up.count("GET "), 3, "{:?}", up.take());
}
