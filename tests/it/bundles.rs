//! `millpond export` and `import`: images that are carried to a mirror without a way to the upstreams.
#![cfg(unix)]

use std::path::Path;

use millpond::app::App;
use serde_json::json;

use crate::harness::{Image, digest, noise};
use crate::operate::Site;

/// The same upstream behind a mirror that never asks it.
async fn offline(site: &Site) -> Site {
    let other = Site::new().await;
    let text = std::fs::read_to_string(other.path("config.yml")).unwrap();
    let text = text.replace(&other.upstream.url(), &site.upstream.url());
    let text = text.replace("proxy: {", "proxy: {offline: true, ");
    std::fs::write(other.path("config.yml"), text).unwrap();
    other
}

/// The same upstream behind a mirror that hosts repositories, too.
async fn hosting(site: &Site) -> Site {
    let other = Site::new().await;
    let config = other.path("config.yml");
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace(&other.upstream.url(), &site.upstream.url());
    let hosted = "hosted: [{name: ci, repositories: ['ci/**']}]\n";
    let access = "access: [{anyone: true, effect: allow}]\n";
    std::fs::write(config, format!("{text}\n{hosted}{access}")).unwrap();
    other
}

/// Two images that share a layer, one of them with a signature.
fn put_images(site: &Site) -> [Image; 3] {
    let shared = noise(1, 200_000);
    let one = Image::layered(1, vec![shared.clone(), noise(2, 3_000_000)], |_, _| {});
    let two = Image::layered(2, vec![shared, noise(3, 1000)], |_, _| {});
    let signature = Image::artifact(4, &one, "application/vnd.test.signature");
    site.upstream.push("team/one", "1", &one);
    site.upstream.push("team/two", "latest", &two);
    site.upstream.push("team/one", "signature", &signature);
    let referrers = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [signature.descriptor()]});
    site.upstream.put_json(
        &format!("/v2/team/one/referrers/{}", one.digest()),
        &referrers,
    );
    [one, two, signature]
}

async fn has(site: &Site, app: &App, repo: &str, reference: &str, image: &Image) {
    let path = format!("/v2/{repo}/manifests/{reference}");
    let answer = site.ask(app, &path).await;
    answer.expect(200, &image.manifest);
    for blob in image.blobs() {
        let answer = site
            .ask(app, &format!("/v2/{repo}/blobs/{}", digest(blob)))
            .await;
        answer.expect(200, blob);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_carries_images_with_what_is_attached_to_them() {
    for is_running in [true, false] {
        let site = Site::new().await;
        let [one, two, signature] = put_images(&site);
        let bundle = site.path("bundle.tar");
        let source = if is_running {
            Some(site.serve().await)
        } else {
            None
        };
        let export = ["export", "team/one:1", "team/two", &bundle];
        let (code, written, error) = site.code(&export).await;
        assert_eq!(code, 0, "{error}");
        assert!(written.starts_with("2 images, "), "{written}");
        if let Some(source) = source {
            assert!(source.stop().await);
        }
        let asked = site.upstream.count("");

        let away = offline(&site).await;
        let app = if is_running {
            Some(away.serve().await)
        } else {
            None
        };
        let import = ["import", &bundle, "--pin", "--for", "1h"];
        let (code, imported, error) = away.code(&import).await;
        assert_eq!(code, 0, "{imported}{error}");
        assert!(imported.starts_with("2 of 2 images: "), "{imported}");
        let (code, again, error) = away.code(&["import", &bundle]).await;
        assert_eq!(code, 0, "{error}");
        assert!(again.contains("; 0 blobs, 0 B imported"), "{again}");
        let app = match app {
            Some(app) => app,
            None => away.serve().await,
        };
        has(&away, &app, "team/one", "1", &one).await;
        has(&away, &app, "team/two", "latest", &two).await;
        has(&away, &app, "team/one", &signature.digest(), &signature).await;
        let referrers = format!("/v2/team/one/referrers/{}", one.digest());
        let referrers = away.ask(&app, &referrers).await.json();
        assert_eq!(referrers["manifests"][0]["digest"], signature.digest());
        let pins = away.json(&["ls", "--json"]).await["pins"].clone();
        assert_eq!(pins.as_array().unwrap().len(), 2);
        assert_eq!(site.upstream.count(""), asked);
        assert!(app.stop().await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_that_follows_another_has_only_what_is_new() {
    let site = Site::new().await;
    let [one, two, _] = put_images(&site);
    let app = site.serve().await;
    let (first, second) = (site.path("first"), site.path("second"));
    site.text(&["export", "team/one:1", &first, "--max-size", "1MiB"])
        .await;
    let first = format!("{first}.001");
    site.text(&[
        "export",
        "team/one:1",
        "team/two",
        &second,
        "--since",
        &first,
    ])
    .await;
    assert!(app.stop().await);
    let bytes = std::fs::metadata(&second).unwrap().len();
    assert!(bytes < 100_000, "{bytes}");

    let away = offline(&site).await;
    let mirror = away.serve().await;
    let (code, said, _) = away.code(&["import", &second]).await;
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains("import the bundle first that this one was made to follow"),
        "{said}"
    );
    assert_eq!(
        away.ask(&mirror, "/v2/team/two/manifests/latest")
            .await
            .status,
        404
    );
    for bundle in [&first, &second] {
        away.text(&["import", bundle]).await;
    }
    has(&away, &mirror, "team/one", "1", &one).await;
    has(&away, &mirror, "team/two", "latest", &two).await;
    assert!(mirror.stop().await);
}

/// Changes one byte of what a bundle has of some content.
fn damage(bundle: &Path, content: &[u8]) {
    let mut bytes = std::fs::read(bundle).unwrap();
    let at = bytes
        .windows(32)
        .position(|window| *window == content[..32])
        .unwrap();
    bytes[at] ^= 1;
    std::fs::write(bundle, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_image_is_not_imported_and_the_others_are() {
    let site = Site::new().await;
    let [one, two, _] = put_images(&site);
    let bundle = site.path("bundle");
    site.text(&["export", "team/one:1", "team/two", &bundle])
        .await;
    let whole = std::fs::read(&bundle).unwrap();
    damage(Path::new(&bundle), &one.layers[1]);
    let away = offline(&site).await;
    let app = away.serve().await;
    let (code, said, _) = away.code(&["import", &bundle]).await;
    assert_eq!(code, 4, "{said}");
    assert!(said.starts_with("1 of 2 images: "), "{said}");
    assert!(said.contains(&digest(&one.layers[1]).to_string()), "{said}");
    has(&away, &app, "team/two", "latest", &two).await;
    assert_eq!(away.ask(&app, "/v2/team/one/manifests/1").await.status, 404);
    std::fs::write(&bundle, whole).unwrap();
    let (code, said, _) = away.code(&["import", &bundle]).await;
    assert_eq!(code, 0, "{said}");
    // What is small of it may have been imported before.
    assert!(said.contains(" blobs, 2.9 MiB imported"), "{said}");
    has(&away, &app, "team/one", "1", &one).await;
    assert!(app.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_exported_leaves_no_file() {
    let site = Site::new().await;
    put_images(&site);
    let bundle = site.path("bundle");
    let (_, error) = site.fails(&["export", "team/absent", &bundle]).await;
    assert!(error.contains("team/absent: "), "{error}");
    assert!(!Path::new(&bundle).exists());
    let (_, error) = site.fails(&["import", &bundle]).await;
    assert!(error.contains("can't be read"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_brought_into_a_hosted_repository() {
    let site = Site::new().await;
    site.upstream.push("ci/app", "1", &Image::oci(1));
    let bundle = site.path("bundle");
    site.text(&["export", "ci/app:1", &bundle]).await;
    let away = hosting(&site).await;
    let asked = site.upstream.count("");
    for words in [["warm", "ci/app:1"], ["import", &bundle]] {
        let (code, said, _) = away.code(&words).await;
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("ci/app is hosted here"), "{said}");
    }
    assert_eq!(site.upstream.count(""), asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_gives_nothing_away_that_only_hosted_repositories_have() {
    let site = Site::new().await;
    let [_, two, _] = put_images(&site);
    let (whole, without_blobs) = (site.path("whole"), site.path("without-blobs"));
    site.text(&["export", "team/two", &whole]).await;
    let since = ["export", "team/two", &without_blobs, "--since", &whole];
    site.text(&since).await;
    let away = hosting(&site).await;
    let app = away.serve().await;
    let client = reqwest::Client::builder().tls_certs_only([]);
    let client = client.build().unwrap();
    for blob in two.blobs() {
        let uploads = format!("http://{}/v2/ci/app/blobs/uploads/", app.address());
        let push = client.post(format!("{uploads}?digest={}", digest(blob)));
        let pushed = push.body(blob.clone()).send().await.unwrap();
        assert_eq!(pushed.status(), 201);
    }
    let (code, said, _) = away.code(&["import", &without_blobs]).await;
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("neither in the bundle nor cached"), "{said}");
    for bundle in [&whole, &without_blobs] {
        away.text(&["import", bundle]).await;
    }
    has(&away, &app, "team/two", "latest", &two).await;
    assert!(app.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_is_not_mistaken_for_an_earlier_one_of_its_name() {
    let site = Site::new().await;
    put_images(&site);
    let app = site.serve().await;
    let bundle = site.path("bundle");
    let split = ["export", "team/one:1", &bundle, "--max-size", "1MiB"];
    site.text(&split).await;
    let (_, error) = site.fails(&["export", "team/two", &bundle]).await;
    assert!(
        error.contains("bundle.001 is a part of another bundle"),
        "{error}"
    );
    assert!(!Path::new(&bundle).exists());
    // A shorter one takes the place of all parts.
    site.text(&["export", "team/two", &bundle, "--max-size", "1MiB"])
        .await;
    assert!(!Path::new(&format!("{bundle}.002")).exists());
    std::fs::remove_file(format!("{bundle}.001")).unwrap();
    site.text(&["export", "team/two", &bundle]).await;
    let (_, error) = site.fails(&split).await;
    assert!(error.contains("bundle is another bundle"), "{error}");
    assert!(app.stop().await);
}
