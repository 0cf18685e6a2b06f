//! Hosted repositories beside mirrored ones, at one address.

use millpond::oci::Digest;

use crate::harness::push::{OPEN, Pusher, SPACE};
use crate::harness::{Image, Registry, Setup};

#[tokio::test]
async fn a_hosted_name_is_never_requested_from_an_upstream() {
    let p = Pusher::with(&[SPACE]).await;
    let image = Image::oci(1);
    p.up.push("ci/app", "1", &image);
    let digest = image.digest();
    for path in [
        "/v2/ci/app/manifests/1".to_owned(),
        format!("/v2/ci/app/manifests/{digest}"),
        format!("/v2/ci/app/blobs/{}", p.digest(&image.layers[0])),
        "/v2/ci/app/tags/list".to_owned(),
    ] {
        assert_eq!(p.m.get(&path).await.status, 404, "{path}");
    }
    assert_eq!(p.up.count(""), 0);
    // Nor by the name of the upstream: what it has would have the same place in the store.
    let upstream = p.up.url().replace("http://", "");
    let ns = format!("/v2/ci/app/manifests/1?ns={upstream}");
    p.m.get(&ns).await.refused(404, "NAME_UNKNOWN");
    assert_eq!(p.up.count(""), 0);
}

#[tokio::test]
async fn everything_else_is_mirrored_and_read_only() {
    let p = Pusher::with(&[SPACE]).await;
    let image = Image::oci(1);
    p.up.push("app", "1", &image);
    p.m.serves("/v2/app/manifests/1", &image.manifest).await;
    let before = p.up.count("");
    for line in [
        "POST /v2/app/blobs/uploads/",
        "PUT /v2/app/manifests/1",
        "DELETE /v2/app/manifests/1",
        "POST /v2/cixx/blobs/uploads/",
        "POST /v2/ci/blobs/uploads/",
    ] {
        let refused = p.ask(line).await;
        refused.refused(405, "UNSUPPORTED");
        let message = refused.json()["errors"][0]["message"].to_string();
        assert!(message.contains("only ci/** can be pushed to"), "{message}");
    }
    assert_eq!(p.up.count(""), before);
}

#[tokio::test]
async fn ns_means_this_server_by_its_own_names() {
    let p = Pusher::with(&[
        SPACE,
        "http.host: 'https://mirror.example'",
        "http.aliases: ['other.example:5000']",
    ])
    .await;
    let image = p.image(1);
    let digest = p.digest(&image.config);
    for ns in ["mirror.example", "other.example%3A5000", "MIRROR.example"] {
        let line = format!("POST /v2/ci/app/blobs/uploads/?digest={digest}&ns={ns}");
        let pushed = p.send(&line, &[], image.config.clone()).await;
        pushed.expect(201, b"");
        pushed.has("oci-namespace", ns.replace("%3A", ":"));
        let path = format!("/v2/ci/app/blobs/{digest}?ns={ns}");
        let pulled = p.m.serves(&path, &image.config).await;
        pulled.has("oci-namespace", ns.replace("%3A", ":"));
    }
    let elsewhere = format!("/v2/ci/app/blobs/{digest}?ns=unknown.example");
    p.m.get(&elsewhere).await.refused(404, "NAME_UNKNOWN");
}

#[tokio::test]
async fn layers_of_a_mirrored_base_need_not_be_pushed() {
    for reuse in [true, false] {
        let space = format!("root.hosted: [{{name: ci, repositories: ['ci/**'], reuse: {reuse}}}]");
        let p = Pusher::with(&[&space]).await;
        let base = Image::oci(1);
        p.up.push("base", "1", &base);
        p.m.serves("/v2/base/manifests/1", &base.manifest).await;
        for blob in base.blobs() {
            p.m.pull(&format!("/v2/base/blobs/{}", p.digest(blob)), blob)
                .await;
        }
        let layer: Digest = p.digest(&base.layers[1]);
        let path = format!("/v2/ci/app/blobs/{layer}");
        assert_eq!(p.m.head(&path).await.status == 200, reuse);
        let line = format!("POST /v2/ci/app/blobs/uploads/?mount={layer}&from=base");
        assert_eq!(p.ask(&line).await.status == 201, reuse);
        if reuse {
            // Small blobs cost less than the risk.
            let small = p.digest(&base.config);
            assert_eq!(
                p.m.head(&format!("/v2/ci/app/blobs/{small}")).await.status,
                404
            );
            p.blob("ci/app", &base.config).await;
            p.m.head(&format!("/v2/ci/app/blobs/{}", p.digest(&base.layers[0])))
                .await;
            let pushed = p.manifest("ci/app", "1", &base.manifest).await;
            pushed.expect(201, b"");
            for blob in base.blobs() {
                p.m.serves(&format!("/v2/ci/app/blobs/{}", p.digest(blob)), blob)
                    .await;
            }
        }
    }
}

#[tokio::test]
async fn a_server_may_have_no_upstream() {
    let m = Setup::of("none").with(&[SPACE, OPEN]).start().await;
    let p = Pusher::over(m).await;
    let image = p.image(1);
    p.push("ci/app", "1", &image).await;
    p.serves("ci/app", "1", &image).await;
    for path in ["/v2/library/debian/manifests/1", "/v2/app/tags/list"] {
        p.m.get(path).await.refused(404, "NAME_UNKNOWN");
    }
    let catalog = p.m.get("/v2/_catalog").await;
    assert_eq!(
        catalog.json()["repositories"],
        serde_json::json!(["ci/app"])
    );
}

#[tokio::test]
async fn pushes_are_counted_as_pushes_and_not_as_an_upstreams() {
    let p = Pusher::with(&[SPACE]).await;
    let image = p.image(1);
    p.push("ci/app", "1", &image).await;
    // POST, PATCH and PUT of three blobs, and the manifest.
    let pushes = r#"millpond_requests_total{route="push",upstream="hosted"}"#;
    p.m.counted(pushes, 10).await;
    p.serves("ci/app", "1", &image).await;
    let pulls = r#"millpond_requests_total{route="blob",upstream="hosted"}"#;
    p.m.counted(pulls, 3).await;
}

#[tokio::test]
async fn settings_change_with_a_reload_and_names_with_a_restart() {
    let up = Registry::start().await;
    let space = |more: &str| {
        let space = format!("root.hosted: [{{name: ci, repositories: ['ci/**']{more}}}]");
        Setup::new(&up).with(&[&space, OPEN])
    };
    let p = Pusher::over(space("").start().await).await;
    p.begin("ci/app").await;
    let report =
        p.m.app
            .reload(Ok(space(", readonly: true").loaded()), |_| ())
            .await;
    assert!(report.restart.is_empty(), "{report:?}");
    let refused = p.ask("POST /v2/ci/app/blobs/uploads/").await;
    refused.refused(405, "UNSUPPORTED");
    let other = Setup::new(&up).with(&["root.hosted: [{name: ci, repositories: ['x/**']}]", OPEN]);
    let report = p.m.app.reload(Ok(other.loaded()), |_| ()).await;
    assert!(!report.restart.is_empty(), "{report:?}");
    let mirrored = p.ask("POST /v2/x/app/blobs/uploads/").await;
    mirrored.refused(405, "UNSUPPORTED");
}

#[tokio::test]
async fn what_was_pushed_is_no_upstreams_to_give() {
    let p = Pusher::with(&[SPACE]).await;
    let image = Image::oci(1);
    p.up.push("app", "1", &image);
    let layer = &image.layers[1];
    let digest = p.blob("ci/app", layer).await;
    let path = format!("/v2/app/blobs/{digest}");
    let head = p.m.head(&path).await;
    assert_eq!(head.status, 200);
    p.m.pull(&path, layer).await;
    let asked = format!("GET {path}");
    assert_eq!(p.up.count(&asked), 1, "the upstream's own bytes are served");
    // One that can't be pushed to learns nothing of it.
    let other = p.m.get(&format!("/v2/other/blobs/{digest}")).await;
    assert_eq!(other.status, 404);
}
