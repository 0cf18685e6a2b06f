//! Copies from and to files, and from and to the server of a configuration.

use std::path::Path;

use serde_json::json;

use super::{User, at, put_index, registries};
use crate::harness::{Image, Registry, Reply, Setup, digest};

#[tokio::test]
async fn a_layout_holds_everything_and_comes_back_the_same() {
    let (source, target) = registries().await;
    let (index, _) = put_index(&source, "a", "1");
    let user = User::new();
    let layout = format!("oci:{}", user.path("layout"));
    source.on("GET /v2/a/blobs/", 1, |_, usual| usual.cut(10));
    user.copy(&[&at(&source, "a:1"), &layout]).await;
    let marker = std::fs::read_to_string(user.path("layout/oci-layout")).unwrap();
    assert_eq!(marker, r#"{"imageLayoutVersion":"1.0.0"}"#);
    let parts = walk(Path::new(&user.path("layout")));
    assert!(
        parts.iter().all(|path| !path.contains(".part")),
        "{parts:?}"
    );
    let out = user
        .copy(&[&format!("{layout}:1"), &at(&target, "b")])
        .await;
    assert!(out.contains("1 attached"), "{out}");
    assert_eq!(target.content("/v2/b/manifests/1"), Some(index));
    let again = user.copy(&[&at(&source, "a:1"), &layout]).await;
    assert!(again.contains("0 of 12 blobs"), "{again}");
}

fn walk(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let found = entries.flat_map(|path| {
        if path.is_dir() {
            walk(&path)
        } else {
            vec![path.display().to_string()]
        }
    });
    found.collect()
}

#[tokio::test]
async fn an_archive_is_written_when_all_is_there_and_comes_back_the_same() {
    let (source, target) = registries().await;
    let (index, _) = put_index(&source, "a", "1");
    source.push("a", "2", &Image::oci(7));
    source.put_json("/v2/a/tags/list", &json!({"name": "a", "tags": ["1", "2"]}));
    let user = User::new();
    let file = user.path("images.tar");
    let archive = format!("oci-archive:{file}");
    let broken = Image::oci(7).config;
    let broken = format!("GET /v2/a/blobs/{}", digest(&broken));
    source.reply(&broken, 1, Reply::error(403));
    let from = at(&source, "a");
    let failed = user.run(&["--all-tags", &from, &archive]).await;
    assert_eq!(failed.code, 4, "{}", failed.err);
    let out = user
        .copy(&[&format!("{archive}:1"), &at(&target, "b")])
        .await;
    assert!(out.contains("1 attached"), "{out}");
    // What has arrived isn't fetched again.
    source.take();
    user.copy(&["--all-tags", &from, &archive]).await;
    assert_eq!(source.count("GET /v2/a/blobs/"), 1);
    assert!(!Path::new(&format!("{file}.unpacked")).exists());
    let out = user
        .copy(&["--all-tags", &archive, &at(&target, "c")])
        .await;
    assert_eq!(out.lines().count(), 2, "{out}");
    for repository in ["b", "c"] {
        let stored = target.content(&format!("/v2/{repository}/manifests/1"));
        assert_eq!(stored.as_ref(), Some(&index), "{repository}");
    }
    let again = user
        .copy(&["--no-clobber", &at(&source, "a:1"), &archive])
        .await;
    assert!(again.contains("left alone"), "{again}");
    // Another image takes the place of both.
    user.copy(&[&at(&source, "a:1"), &format!("{archive}:3")])
        .await;
    let missing = user
        .run(&[&format!("{archive}:2"), &at(&target, "d")])
        .await;
    assert!(
        missing.err.contains("no image is called 2"),
        "{}",
        missing.err
    );
}

#[tokio::test]
async fn images_of_docker_save_get_manifests() {
    let (_, target) = registries().await;
    let user = User::new();
    let layer = b"an uncompressed layer";
    let config = json!({"architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [digest(layer).to_string()]}});
    let list = json!([{"Config": "c.json", "RepoTags": ["debian:12"], "Layers": ["l.tar"]}]);
    let file = std::fs::File::create(user.path("saved.tar")).unwrap();
    let mut tar = tar::Builder::new(file);
    let (config, list) = (config.to_string(), list.to_string());
    for (name, bytes) in [
        ("c.json", config.as_bytes()),
        ("l.tar", layer),
        ("manifest.json", list.as_bytes()),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes).unwrap();
    }
    tar.finish().unwrap();
    let archive = format!("docker-archive:{}", user.path("saved.tar"));
    user.copy(&[&archive, &at(&target, "a:1")]).await;
    user.copy(&["--all-tags", &archive, &at(&target, "below/")])
        .await;
    let manifest = target.content("/v2/a/manifests/1").unwrap();
    let below = target.content("/v2/below/library/debian/manifests/12");
    assert_eq!(below, Some(manifest.clone()));
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["layers"][0]["digest"], digest(layer).to_string());
    let stored = target.content(&format!("/v2/a/blobs/{}", digest(layer)));
    assert_eq!(stored.unwrap(), layer.as_slice());
}

#[tokio::test]
async fn the_server_of_a_configuration_caches_sources_and_has_hosted_repositories() {
    let upstream = Registry::start().await;
    upstream.push("a", "1", &Image::oci(1));
    let hosted = "root.hosted: [{name: ci, repositories: ['ci/**', tool]}]";
    let open = "root.access: [{anyone: true, effect: allow}]";
    let mirror = Setup::new(&upstream).with(&[hosted, open]).start().await;
    let user = User::new();
    let config = user.path("config.yml");
    let address = mirror.app.address().to_string();
    let text = json!({
        "version": 0.1, "storage": {"inmemory": {}}, "http": {"addr": address},
        "proxy": {"remoteurl": upstream.url()}, "hosted": [{"name": "ci", "repositories": ["ci/**", "tool"]}],
        "access": [{"anyone": true, "effect": "allow"}],
    });
    std::fs::write(&config, text.to_string()).unwrap();
    let options = ["--config", &config];
    let copy = async |from: &str, to: &str| user.copy(&[&options[..], &[from, to]].concat()).await;
    copy(&at(&upstream, "a:1"), "ci/app").await;
    upstream.take();
    // It is cached now, and what is hosted can be copied like anything else.
    copy(
        &at(&upstream, "a:1"),
        &format!("oci:{}", user.path("layout")),
    )
    .await;
    assert_eq!(upstream.count("GET"), 0);
    let within = copy("ci/app:1", "tool:2").await;
    assert!(within.contains("copied, 0 of 3 blobs"), "{within}");
    let (_, other) = registries().await;
    copy("tool:2", &at(&other, "b")).await;
    assert_eq!(
        other.content("/v2/b/manifests/2"),
        Some(Image::oci(1).manifest)
    );
    mirror.app.stop().await;
    let refused = user
        .run(&["--config", &config, "tool:2", &at(&other, "c")])
        .await;
    assert_eq!(refused.code, 1, "{}", refused.err);
    assert!(refused.err.contains("doesn't run"), "{}", refused.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_runs_never_write_to_the_same_files() {
    for form in ["oci", "oci-archive"] {
        let (source, target) = registries().await;
        source.push("a", "1", &Image::oci(1));
        source.push("b", "1", &Image::oci(2));
        let user = User::new();
        let (from, files) = (at(&source, "a:1"), format!("{form}:{}", user.path(form)));
        let gate = source.hold("GET /v2/a/blobs/", 3);
        let second = async {
            source.wait(1, "GET /v2/a/blobs/").await;
            let refused = user.run(&[&at(&source, "b:1"), &files]).await;
            gate.open();
            refused
        };
        let arguments = [&*from, &*files];
        let (_, refused) = tokio::join!(user.copy(&arguments), second);
        assert_eq!(refused.code, 1, "{}", refused.err);
        assert!(refused.err.contains("another run"), "{}", refused.err);
        user.copy(&[&files, &at(&target, "c:1")]).await;
        let copied = target.content("/v2/c/manifests/1");
        assert_eq!(copied, Some(Image::oci(1).manifest), "{form}");
    }
}

#[tokio::test]
async fn a_source_that_cannot_be_read_fails_alone() {
    let (source, target) = registries().await;
    source.push("a", "1", &Image::oci(1));
    source.reply("/v2/b/tags/list", 9, Reply::error(403));
    let user = User::new();
    let missing = format!("docker-archive:{}", user.path("missing.tar"));
    let (from, to) = (at(&source, "a:1"), at(&target, "below/"));
    let ran = user.run(&[&missing, &from, &to]).await;
    assert_eq!(ran.code, 4, "{}", ran.err);
    let reason = "missing.tar: it can't be read";
    assert!(
        ran.err.contains("FAILED") && ran.err.contains(reason),
        "{}",
        ran.err
    );
    let copied = target.content("/v2/below/a/manifests/1");
    assert_eq!(copied, Some(Image::oci(1).manifest));
    let listed = ["--json", "--all-tags", &at(&source, "b"), &to];
    for (arguments, code) in [(&[&*missing, &*to][..], 1), (&listed[..], 3)] {
        let ran = user.run(arguments).await;
        assert_eq!(ran.code, code, "{}", ran.err);
    }
    // The tag is for one image, also if that isn't the only one that is meant.
    let tagged = user.run(&[&missing, &from, &at(&target, "c:1")]).await;
    assert_eq!(tagged.code, 2, "{}", tagged.err);
}
