//! `millpond warm`: images that are fetched before clients pull them.
#![cfg(unix)]

use bytes::Bytes;
use millpond::oci::manifest::media_type;
use serde_json::{Value, json};

use crate::harness::{ALWAYS, Image, Reply, digest, eventually, noise};
use crate::operate::Site;

impl Site {
    /// The exit code of a command, and what it prints.
    pub(crate) async fn code(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = self.run(arguments).await;
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let code = output.status.code().unwrap();
        (code, text(output.stdout), text(output.stderr))
    }
}

/// An index of images for two platforms, in the upstream's repository.
fn put_index(site: &Site, repo: &str, tag: &str) -> [Image; 2] {
    let images = [Image::oci(1), Image::oci(2)];
    let platforms = [
        json!({"os": "linux", "architecture": "amd64"}),
        json!({"os": "linux", "architecture": "arm64", "variant": "v8"}),
    ];
    let entries = images.iter().zip(platforms).map(|(image, platform)| {
        site.upstream
            .push(repo, &image.digest().replace(':', "-"), image);
        let mut descriptor = image.descriptor();
        descriptor["platform"] = platform;
        descriptor
    });
    let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": entries.collect::<Vec<_>>()});
    let index = Bytes::from(index.to_string());
    site.upstream.tag(repo, tag, media_type::OCI_INDEX, &index);
    images
}

/// Pulls everything of an image, and asserts that the upstream sends no blob.
async fn is_warm(site: &Site, app: &millpond::app::App, repo: &str, tag: &str, image: &Image) {
    let asked = site.upstream.count("/blobs/");
    site.get(app, &format!("/v2/{repo}/manifests/{tag}")).await;
    site.get(app, &format!("/v2/{repo}/manifests/{}", image.digest()))
        .await;
    for blob in image.blobs() {
        let path = format!("/v2/{repo}/blobs/{}", digest(blob));
        assert_eq!(site.get(app, &path).await, "hit");
    }
    assert_eq!(
        site.upstream.count("/blobs/"),
        asked,
        "a client waited for a blob"
    );
}

/// `warm` with the images of a manifest and of a list, and these further arguments.
async fn warm(site: &Site, more: &[&str]) -> (String, String) {
    let pod = "spec: {containers: [{image: team/other}]}";
    std::fs::write(site.path("pod.yml"), pod).unwrap();
    std::fs::write(site.path("list"), "team/app:1 # ours\n").unwrap();
    let (pod, list) = (site.path("pod.yml"), site.path("list"));
    let words = ["warm", "--from-k8s", &pod, "--from-file", &list];
    let words: Vec<_> = words.iter().chain(more).copied().collect();
    let (code, said, progress) = site.code(&words).await;
    assert_eq!(code, 0, "{said}{progress}");
    (said, progress)
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_fetched_with_and_without_the_server() {
    for is_running in [true, false] {
        let site = Site::new().await;
        let images = put_index(&site, "team/app", "1");
        let other = Image::oci(3);
        site.upstream.push("team/other", "latest", &other);
        let mut app = None;
        if is_running {
            app = Some(site.serve().await);
        }
        let (missing, _) = warm(&site, &["--check"]).await;
        let start = "2 of 2 images: 0 blobs, 0 B already cached; ";
        assert!(missing.starts_with(start), "{missing}");
        assert_eq!(site.upstream.count("GET /v2/team/app/blobs/"), 0);
        let (fetched, progress) = warm(&site, &["--pin", "--for", "1h"]).await;
        assert_eq!(fetched, missing.replace("to be fetched", "fetched"));
        assert!(progress.contains("fetched  team/app:1: "), "{progress}");
        let (again, _) = warm(&site, &["--json"]).await;
        let again: Value = serde_json::from_str(&again).unwrap();
        for image in again["images"].as_array().unwrap() {
            assert_eq!(image["fetched"]["blobs"], 0, "{again}");
        }
        let app = match app {
            Some(app) => app,
            None => site.serve().await,
        };
        for image in &images {
            is_warm(&site, &app, "team/app", "1", image).await;
        }
        is_warm(&site, &app, "team/other", "latest", &other).await;
        let pins = site.json(&["ls", "--json"]).await["pins"].clone();
        let pins = pins.as_array().unwrap().iter();
        let pins: Vec<_> = pins.map(|pin| pin["reference"].clone()).collect();
        assert_eq!(pins, ["team/app:1", "team/other:latest"]);
        assert!(app.stop().await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_platform_of_an_index_is_fetched_alone() {
    let site = Site::new().await;
    let [amd64, arm64] = put_index(&site, "team/app", "1");
    let app = site.serve().await;
    let (code, _, error) = site
        .code(&["warm", "team/app:1", "--platform", "linux/arm64"])
        .await;
    assert_eq!(code, 0, "{error}");
    is_warm(&site, &app, "team/app", "1", &arm64).await;
    for blob in amd64.blobs() {
        assert_eq!(site.upstream.count(&digest(blob).to_string()), 0);
    }
    let (code, _, error) = site
        .code(&["warm", "team/app:1", "--platform", "linux/riscv64"])
        .await;
    assert_eq!(code, 1);
    assert!(error.contains("no image of the platforms"), "{error}");
    assert!(app.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_told_and_fails_nothing_else() {
    let site = Site::new().await;
    let (good, broken) = (Image::oci(1), Image::oci(2));
    site.upstream.push("good", "1", &good);
    site.upstream.push("broken", "1", &broken);
    let layer = digest(&broken.layers[0]).to_string();
    site.upstream.reply(&layer, ALWAYS, Reply::error(500));
    let app = site.serve().await;
    let images = [
        "warm",
        "good:1",
        "broken:1",
        "absent:1",
        "elsewhere.example/a",
        "Not An Image",
    ];
    let (code, summary, _) = site.code(&images).await;
    assert_eq!(code, 4, "{summary}");
    assert!(summary.starts_with("1 of 5 images: "), "{summary}");
    for (image, reason) in [
        ("broken:1", &*layer),
        ("absent:1", "not found"),
        (
            "elsewhere.example/a",
            "no upstream is configured for the registry elsewhere.example",
        ),
        ("Not An Image", "isn't an image"),
    ] {
        let line = summary
            .lines()
            .find(|line| line.starts_with(&format!("failed: {image}: ")));
        assert!(
            line.is_some_and(|line| line.contains(reason)),
            "{image}: {summary}"
        );
    }
    is_warm(&site, &app, "good", "1", &good).await;
    assert_eq!(site.code(&["warm", "absent:1", "--pin"]).await.0, 1);
    assert_eq!(site.json(&["ls", "--json"]).await["pins"], json!([]));
    assert_eq!(site.code(&["warm"]).await.0, 2);
    assert_eq!(site.code(&["warm", "a", "--platform", "linux"]).await.0, 2);
    assert!(app.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_of_all_images_are_fetched_together() {
    let site = Site::new().await;
    for seed in 0..4 {
        let image = Image::layered(seed, vec![noise(seed + 100, 100_000)], |_, _| {});
        site.upstream.push("app", &seed.to_string(), &image);
    }
    let app = site.serve().await;
    let gate = site.upstream.hold("GET /v2/app/blobs/", 8);
    let images: Vec<String> = (0..4).map(|tag| format!("app:{tag}")).collect();
    let mut words = vec!["warm"];
    words.extend(images.iter().map(String::as_str));
    let released = async {
        // The configs and the layers of all of them wait at the same time.
        let asked = || site.upstream.count("GET /v2/app/blobs/") == 8;
        eventually("all blobs are asked for", asked).await;
        gate.open();
    };
    let ((code, ..), ()) = tokio::join!(site.code(&words), released);
    assert_eq!(code, 0);
    assert!(app.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_too_many_manifests_is_refused_before_they_are_fetched() {
    let site = Site::new().await;
    let entry = |n: u32| {
        let digest = digest(&n.to_le_bytes()).to_string();
        json!({"mediaType": media_type::OCI_MANIFEST, "digest": digest, "size": 2})
    };
    let entries: Vec<_> = (0..1000).map(entry).collect();
    let index =
        json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": entries});
    let index = Bytes::from(index.to_string());
    let upstream = &site.upstream;
    upstream.tag("big", "1", media_type::OCI_INDEX, &index);
    let (code, said, _) = site.code(&["warm", "big:1"]).await;
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("more than 1000 manifests"), "{said}");
    assert_eq!(upstream.count("GET /v2/big/manifests/sha256"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_that_no_blob_has_are_only_shown() {
    let site = Site::new().await;
    let blob =
        |n: u8| json!({"mediaType": "x/y", "digest": digest(&[n]).to_string(), "size": u64::MAX});
    let manifest = json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
        "config": blob(0), "layers": [blob(1), blob(2)]});
    let manifest = Bytes::from(manifest.to_string());
    let upstream = &site.upstream;
    upstream.tag("huge", "1", media_type::OCI_MANIFEST, &manifest);
    let (code, said, error) = site.code(&["warm", "--check", "huge:1", "huge:1"]).await;
    assert_eq!(code, 0, "{said}{error}");
    assert!(said.contains("3 blobs, "), "{said}");
}
