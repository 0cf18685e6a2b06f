//! Hosted repositories of several replicas: the replica that a client asks decides what it may do.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use millpond::oci::manifest::media_type;
use serde_json::Value;

use crate::harness::replicas::Replicas;
use crate::harness::{Answer, Image, blob_path, digest, noise, read};
use crate::replicas_hosted::{client, manifest_of};

/// The users alice and bob, with the password `secret`.
struct Users {
    files: tempfile::TempDir,
    line: String,
    alice: String,
    bob: String,
}

impl Users {
    fn new() -> Self {
        let files = tempfile::tempdir().unwrap();
        let path = files.path().join("htpasswd");
        let hash = bcrypt::hash("secret", 4).unwrap();
        std::fs::write(&path, format!("alice:{hash}\nbob:{hash}\n")).unwrap();
        let header = |user: &str| format!("Basic {}", STANDARD.encode(format!("{user}:secret")));
        Self {
            line: format!("auth.htpasswd: {{path: '{}'}}", path.display()),
            alice: header("alice"),
            bob: header("bob"),
            files,
        }
    }
}

/// The lines of an audit log with this event.
fn audited(path: &Path, event: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines
        .filter(|line: &Value| line["event"] == event)
        .collect()
}

#[tokio::test]
async fn the_asked_replica_decides_and_the_writer_logs_for_whom() {
    let users = Users::new();
    let path = users.files.path().join("audit.log");
    let audit = format!("root.log: {{audit: {{file: '{}'}}}}", path.display());
    let rules = "root.access: [{users: [alice], repositories: ['ci/**'], effect: allow}, \
                 {anyone: true, actions: [pull, list], effect: allow}]";
    let replicas = Replicas::hosted(2, &[&users.line, rules, &audit]).await;
    let index = Bytes::from_static(
        br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#,
    );
    let put = async |mirror: usize, headers: &[(&str, &str)]| {
        let request = replicas.mirrors[mirror].request("PUT /v2/ci/app/manifests/1", headers);
        read(request.body(index.clone()).send().await.unwrap()).await
    };
    // Nobody becomes somebody else by a header, at no replica.
    let forged = "1.1800000000.00112233445566778899aabbccddeeff.00";
    let claims = [("millpond-caller", "user=alice"), ("millpond-peer", forged)];
    for mirror in 0..2 {
        put(mirror, &claims).await.refused(401, "UNAUTHORIZED");
        let as_bob = [claims[0], claims[1], ("authorization", &users.bob)];
        put(mirror, &as_bob).await.refused(403, "DENIED");
    }
    let as_alice = [
        ("millpond-caller", "user=root"),
        ("authorization", &users.alice),
    ];
    put(1, &as_alice).await.expect(201, b"");
    let delete = "DELETE /v2/ci/app/manifests/1";
    let deleted = replicas.mirrors[1].ask(delete, &as_alice).await;
    deleted.expect(202, b"");
    for mirror in &replicas.mirrors {
        mirror.app.denials().audit().flush().await;
    }
    for (event, action) in [("pushed", "push"), ("deleted", "delete")] {
        let lines = audited(&path, event);
        assert_eq!(lines.len(), 1, "{lines:?}");
        for (key, value) in [
            ("user", "alice"),
            ("address", "127.0.0.1"),
            ("action", action),
            ("upstream", "hosted"),
            ("repository", "ci/app"),
            ("reference", "1"),
        ] {
            assert_eq!(lines[0][key], value, "{lines:?}");
        }
    }
    let refused = audited(&path, "refused");
    assert!(
        refused.iter().all(|line| line["user"] != "alice"),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_blob_is_mounted_only_where_the_caller_may_pull_it() {
    let users = Users::new();
    let rules = "root.access: [{users: [alice], effect: allow}, \
                 {users: [bob], repositories: ['ci/bob/**'], effect: allow}]";
    let replicas = Replicas::hosted(2, &[&users.line, rules]).await;
    let layer = noise(1, 5_000);
    let writer = &replicas.mirrors[0];
    let alice = [("authorization", users.alice.as_str())];
    let bob = [("authorization", users.bob.as_str())];
    let put = format!("POST /v2/ci/base/blobs/uploads/?digest={}", digest(&layer));
    let pushed = writer.request(&put, &alice).body(layer.clone());
    read(pushed.send().await.unwrap()).await.expect(201, b"");
    for mirror in &replicas.mirrors {
        for from in ["&from=ci/base", ""] {
            let mount = |repo: &str| {
                format!(
                    "POST /v2/{repo}/blobs/uploads/?mount={}{from}",
                    digest(&layer)
                )
            };
            let refused = mirror.ask(&mount("ci/bob/app"), &bob).await;
            refused.expect(202, b"");
            assert!(refused.header("location").contains("/blobs/uploads/"));
            let mounted = mirror.ask(&mount("ci/app"), &alice).await;
            mounted.expect(201, b"");
            mounted.has("location", blob_path("ci/app", &layer));
            let delete = format!("DELETE {}", blob_path("ci/app", &layer));
            mirror.ask(&delete, &alice).await.expect(202, b"");
        }
        // Not by a name that can't be one either.
        let nowhere = format!(
            "POST /v2/ci/app/blobs/uploads/?mount={}&from=ci/none",
            digest(&layer)
        );
        mirror.ask(&nowhere, &alice).await.expect(202, b"");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_a_mirrored_image_needs_no_push_at_any_replica() {
    let users = Users::new();
    let rules = "root.access: [{users: [alice], effect: allow}, \
                 {users: [bob], repositories: ['ci/**'], effect: allow}]";
    let replicas = Replicas::hosted(2, &[&users.line, rules]).await;
    let (image, writer) = (Image::oci(1), &replicas.mirrors[0]);
    replicas.up.push("app", "1", &image);
    let (layer, alice) = (&image.layers[1], [("authorization", users.alice.as_str())]);
    // The writer has it, and has the question.
    let pull = format!("GET {}", blob_path("app", layer));
    writer.ask(&pull, &alice).await.expect(200, layer);
    replicas.idle().await;
    let other = &replicas.mirrors[1];
    let head = format!("HEAD {}", blob_path("ci/app", layer));
    let bob = [("authorization", users.bob.as_str())];
    assert_eq!(other.ask(&head, &bob).await.status, 404);
    assert_eq!(other.ask(&head, &alice).await.status, 200);
    let config = Bytes::from_static(b"{}");
    let put = format!("POST /v2/ci/app/blobs/uploads/?digest={}", digest(&config));
    let put = other.request(&put, &alice).body(config.clone());
    read(put.send().await.unwrap()).await.expect(201, b"");
    let manifest = manifest_of(&config, std::slice::from_ref(layer), None);
    let put = |user: [(&'static str, &str); 1]| {
        let headers = [user[0], ("content-type", media_type::OCI_MANIFEST)];
        let request = other.request("PUT /v2/ci/app/manifests/1", &headers);
        request.body(manifest.clone()).send()
    };
    let refused = read(put(bob).await.unwrap()).await;
    refused.refused(400, "MANIFEST_BLOB_UNKNOWN");
    read(put(alice).await.unwrap()).await.expect(201, b"");
    let get = format!("GET {}", blob_path("ci/app", layer));
    other.ask(&get, &bob).await.expect(200, layer);
}

#[tokio::test]
async fn a_hidden_repository_is_like_one_that_the_writer_lacks() {
    let rules = "root.access: [{repositories: ['ci/secret/**'], networks: [10.0.0.0/8], effect: allow}, \
                 {repositories: ['ci/secret/**'], effect: deny, hide: true}, {anyone: true, effect: allow}]";
    let replicas = Replicas::hosted(2, &[rules]).await;
    let other = &replicas.mirrors[1];
    let digest = digest(b"");
    for path in [
        "manifests/1".to_owned(),
        format!("blobs/{digest}"),
        "tags/list".to_owned(),
    ] {
        let hidden = other.get(&format!("/v2/ci/secret/app/{path}")).await;
        let missing = other.get(&format!("/v2/ci/nobody/app/{path}")).await;
        let text = |body: &Bytes| String::from_utf8_lossy(body).replace("ci/nobody", "ci/secret");
        assert_eq!((hidden.status, missing.status), (404, 404));
        assert_eq!(text(&hidden.body), text(&missing.body), "{path}");
        assert_eq!(
            hidden.header("cache-status"),
            missing.header("cache-status")
        );
    }
    let referrers = |repo: &str| format!("/v2/{repo}/referrers/{digest}?artifactType=a/b");
    let hidden = other.get(&referrers("ci/secret/app")).await;
    let missing = other.get(&referrers("ci/nobody/app")).await;
    hidden.expect(200, &missing.body);
    let names = |answer: &Answer| {
        let mut names: Vec<_> = answer.headers.keys().map(ToString::to_string).collect();
        names.sort();
        names
    };
    assert_eq!(names(&hidden), names(&missing));
    assert_eq!(
        hidden.header("cache-status"),
        missing.header("cache-status")
    );
}

#[tokio::test]
async fn the_deny_list_of_the_asked_replica_counts() {
    let replicas = Replicas::hosted(2, &[]).await;
    let manifest = client(&replicas, 0).push("ci/app", "1", 1).await;
    let other = &replicas.mirrors[1];
    let deny = async |reference: String| {
        let now = "2026-01-01T00:00:00Z".to_owned();
        other
            .app
            .denials()
            .add(&reference, None, now)
            .await
            .unwrap();
    };
    other.serves("/v2/ci/app/manifests/1", &manifest).await;
    deny(digest(&manifest).to_string()).await;
    for method in ["GET", "HEAD"] {
        let line = format!("{method} /v2/ci/app/manifests/1");
        assert_eq!(other.ask(&line, &[]).await.status, 403);
    }
    replicas.mirrors[0]
        .serves("/v2/ci/app/manifests/1", &manifest)
        .await;
}
