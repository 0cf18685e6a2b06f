//! What the bucket has of hosted repositories becomes known to a server that didn't take it: a new writer, the old
//! one when it returns, and a server whose disk is a new one.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millpond::storage::FsStore;
use serde_json::json;

use crate::bucket_hosted::{V2, shared, tag_key};
use crate::harness::push::{OPEN, Pusher, SPACE};
use crate::harness::replicas::Replicas;
use crate::harness::{
    ALWAYS, Mirror, Registry, Reply, Setup, blob_path, digest, eventually, noise,
};
use crate::replicas_hosted::{client, index_of, manifest_of};

const WRITER: &str = "millpond/hosted/writer";

fn link(repo: &str, kind: &str, bytes: &Bytes) -> String {
    let hex = digest(bytes).hex();
    format!("{V2}/repositories/{repo}/{kind}/sha256/{hex}/link")
}

async fn tags(mirror: &Mirror, repo: &str) -> serde_json::Value {
    let list = mirror.get(&format!("/v2/{repo}/tags/list")).await;
    assert_eq!(list.status, 200);
    list.json()["tags"].clone()
}

async fn named(mirror: &Mirror, repo: &str, reference: impl std::fmt::Display) -> u16 {
    let path = format!("/v2/{repo}/manifests/{reference}");
    mirror.head(&path).await.status
}

/// A directory, and the store in it.
struct Disk {
    directory: tempfile::TempDir,
    store: Arc<FsStore>,
}

impl Disk {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(FsStore::open(directory.path()).await.unwrap());
        Self { directory, store }
    }

    /// The writer, with this disk and the bucket.
    async fn writer(&self, bucket: &Registry) -> Replicas {
        let on_disk = |setup: Setup| {
            let setup = setup.bucket(bucket).root(self.directory.path());
            setup.store(Arc::clone(&self.store) as _)
        };
        Replicas::hosted_with(1, &[], on_disk).await
    }

    /// A server that works alone, with this disk.
    async fn alone(&self, up: &Registry, bucket: Option<&Registry>) -> Pusher {
        let setup = Setup::new(up).with(&[SPACE, OPEN]);
        let setup = setup.root(self.directory.path());
        let setup = setup.store(Arc::clone(&self.store) as _);
        let setup = match bucket {
            Some(bucket) => setup.bucket(bucket),
            None => setup,
        };
        Pusher::over(setup.start().await).await
    }
}

async fn stop(replicas: Replicas) {
    for mirror in replicas.mirrors {
        assert!(mirror.app.stop().await);
    }
}

/// A client doesn't push what a HEAD has found, whoever the writer was that took it.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_writer_takes_manifests_of_what_only_the_bucket_has() {
    let (before, bucket) = shared(1, &[]).await;
    let base = noise(1, 100_000);
    let child = client(&before, 0).push("ci/app", "1", 1).await;
    let after = Replicas::hosted_with(1, &[], |setup| setup.bucket(&bucket)).await;
    let writer = &after.mirrors[0];
    let head = writer.head(&blob_path("ci/app", &base)).await;
    head.has("content-length", base.len());
    let config = noise(2, 100);
    let derived = manifest_of(&config, std::slice::from_ref(&base), None);
    let client = client(&after, 0);
    client.push_blob("ci/app", &config).await;
    let pushed = client.put_manifest("ci/app", "2", &derived).await;
    pushed.expect(201, b"");
    writer.serves("/v2/ci/app/manifests/2", &derived).await;
    writer.serves(&blob_path("ci/app", &base), &base).await;
    // The parts of an index are manifests.
    let index = index_of(&[&child, &derived]);
    let pushed = client.put_index("ci/app", "3", &index).await;
    pushed.expect(201, b"");
    // What no repository of this name has is missing, even though the bucket has it.
    let elsewhere = client.put_manifest("ci/other", "1", &derived).await;
    elsewhere.refused(400, "MANIFEST_BLOB_UNKNOWN");
}

/// The rules of a writer that didn't take a push must not remove it: all that it holds is a copy of a layer.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_writer_removes_nothing_that_a_manifest_in_the_bucket_needs() {
    let space = "root.hosted: [{name: ci, repositories: ['ci/**'], grace: 1s}]";
    let (before, bucket) = shared(1, &[space]).await;
    client(&before, 0).push("ci/app", "1", 1).await;
    let after = Replicas::hosted_with(1, &[space], |setup| setup.bucket(&bucket)).await;
    let writer = &after.mirrors[0];
    let (base, unused) = (noise(1, 100_000), noise(2, 1000));
    writer.serves(&blob_path("ci/app", &base), &base).await;
    // What no manifest needs goes, from the bucket, too.
    client(&after, 0).push_blob("ci/app", &unused).await;
    let link = |blob: &Bytes| {
        let digest = digest(blob);
        format!(
            "{V2}/repositories/ci/app/_layers/sha256/{}/link",
            digest.hex()
        )
    };
    eventually("the upload", || bucket.object(&link(&unused)).is_some()).await;
    eventually("the end of its time", || {
        bucket.object(&link(&unused)).is_none()
    })
    .await;
    assert!(bucket.object(&link(&base)).is_some());
    writer.serves(&blob_path("ci/app", &base), &base).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_writer_lists_what_others_have_taken() {
    let (before, bucket) = shared(1, &[]).await;
    let old = client(&before, 0);
    let manifest = old.push("ci/app", "1", 1).await;
    old.put_manifest("ci/app", "2", &manifest)
        .await
        .expect(201, b"");
    old.push("ci/other", "1", 2).await;
    let config = Bytes::from_static(b"{}");
    old.push_blob("ci/app", &config).await;
    let attached = manifest_of(&config, &[], Some(&manifest));
    let reference = digest(&attached).to_string();
    let pushed = old.put_manifest("ci/app", &reference, &attached).await;
    pushed.expect(201, b"");
    let after = Replicas::hosted_with(1, &[], |setup| setup.bucket(&bucket)).await;
    let writer = &after.mirrors[0];
    assert_eq!(tags(writer, "ci/app").await, json!(["1", "2"]));
    let catalog = writer.get("/v2/_catalog").await.json();
    assert_eq!(catalog["repositories"], json!(["ci/app", "ci/other"]));
    let referrers = format!("/v2/ci/app/referrers/{}", digest(&manifest));
    let listed = writer.get(&referrers).await.json();
    assert_eq!(listed["manifests"][0]["digest"], reference);
    // What it didn't take can be deleted there, and is needed as long as a manifest refers to it.
    let layer = noise(1, 100_000);
    let path = blob_path("ci/app", &layer);
    let refused = writer.ask(&format!("DELETE {path}"), &[]).await;
    refused.refused(405, "UNSUPPORTED");
    let line = format!("DELETE /v2/ci/app/manifests/{}", digest(&manifest));
    writer.ask(&line, &[]).await.expect(202, b"");
    assert_eq!(tags(writer, "ci/app").await, json!([]));
    assert_eq!(bucket.object(&tag_key("ci/app", "2")), None);
    writer
        .ask(&format!("DELETE {path}"), &[])
        .await
        .expect(202, b"");
    assert_eq!(bucket.object(&link("ci/app", "_layers", &layer)), None);
    writer.head(&path).await.expect(404, b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_returns_forgets_what_was_removed_meanwhile() {
    let bucket = Registry::start().await;
    bucket.be_bucket("shared");
    let (first, second) = (Disk::new().await, Disk::new().await);
    let replicas = first.writer(&bucket).await;
    let old = client(&replicas, 0);
    let moved = old.push("ci/app", "moves", 1).await;
    let gone = old.push("ci/app", "goes", 2).await;
    old.push("ci/app", "stays", 3).await;
    let last = old.push("ci/app", "last", 4).await;
    stop(replicas).await;

    let replicas = second.writer(&bucket).await;
    let new = client(&replicas, 0);
    let now = new.push("ci/app", "moves", 5).await;
    let writer = &replicas.mirrors[0];
    for reference in [digest(&gone).to_string(), "last".to_owned()] {
        let line = format!("DELETE /v2/ci/app/manifests/{reference}");
        writer.ask(&line, &[]).await.expect(202, b"");
    }
    stop(replicas).await;

    let replicas = first.writer(&bucket).await;
    let writer = &replicas.mirrors[0];
    assert_eq!(tags(writer, "ci/app").await, json!(["moves", "stays"]));
    writer.serves("/v2/ci/app/manifests/moves", &now).await;
    assert_eq!(named(writer, "ci/app", "goes").await, 404);
    assert_eq!(named(writer, "ci/app", digest(&gone)).await, 404);
    // Without its tag.
    assert_eq!(named(writer, "ci/app", digest(&last)).await, 200);
    assert_eq!(named(writer, "ci/app", digest(&moved)).await, 200);
    // Its memory of what it had uploaded is no more right.
    let path = format!("/v2/ci/app/manifests/{}", digest(&gone));
    client(&replicas, 0).push("ci/app", "goes", 2).await;
    writer.serves(&path, &gone).await;
    assert!(
        bucket
            .object(&link("ci/app", "_manifests/revisions", &gone))
            .is_some()
    );
}

/// Nobody else has it, whoever has written to the bucket.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_never_was_a_replica_keeps_what_it_hosts() {
    let up = Registry::start().await;
    let (other, bucket) = shared(1, &[]).await;
    let theirs = client(&other, 0).push("ci/app", "theirs", 1).await;
    eventually("the other's note", || bucket.object(WRITER).is_some()).await;
    stop(other).await;
    let disk = Disk::new().await;
    let server = disk.alone(&up, None).await;
    let image = server.image(1);
    server.push("ci/app", "mine", &image).await;
    assert!(server.m.app.stop().await);
    let noted = bucket.object(WRITER);
    let replicas = disk.writer(&bucket).await;
    let writer = &replicas.mirrors[0];
    assert_eq!(tags(writer, "ci/app").await, json!(["mine", "theirs"]));
    eventually("its note", || bucket.object(WRITER) != noted).await;
    let mine = bucket.object(&tag_key("ci/app", "mine")).unwrap();
    assert_eq!(mine, image.digest.to_string());
    writer
        .serves("/v2/ci/app/manifests/mine", &image.manifest)
        .await;
    writer.serves("/v2/ci/app/manifests/theirs", &theirs).await;
}

/// Its tags are older than those of the bucket.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_was_restored_from_a_backup_is_not_believed() {
    let bucket = Registry::start().await;
    bucket.be_bucket("shared");
    let disk = Disk::new().await;
    let own = disk.directory.path().join("millpond/writer.json");
    let (mut backup, mut noted) = (Vec::new(), None);
    for tag in ["1", "2"] {
        let replicas = disk.writer(&bucket).await;
        eventually("its note", || bucket.object(WRITER) != noted).await;
        noted = bucket.object(WRITER);
        client(&replicas, 0).push("ci/app", tag, 1).await;
        stop(replicas).await;
        if tag == "1" {
            backup = std::fs::read(&own).unwrap();
        }
    }
    std::fs::write(&own, &backup).unwrap();
    bucket.remove_object(&tag_key("ci/app", "1"));
    let replicas = disk.writer(&bucket).await;
    assert_eq!(tags(&replicas.mirrors[0], "ci/app").await, json!(["2"]));
}

/// A push whose tag didn't get to the bucket before the process ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_the_bucket_has_not_heard_of_moves_there_after_a_restart() {
    let bucket = Registry::start().await;
    bucket.be_bucket("shared");
    let disk = Disk::new().await;
    let replicas = disk.writer(&bucket).await;
    let old = client(&replicas, 0).push("ci/app", "2", 1).await;
    let new = client(&replicas, 0).push("ci/app", "1", 2).await;
    eventually("its note", || bucket.object(WRITER).is_some()).await;
    stop(replicas).await;
    bucket.put_object(&tag_key("ci/app", "1"), digest(&old).to_string());
    let replicas = disk.writer(&bucket).await;
    let named = digest(&new).to_string();
    let tag = || bucket.object(&tag_key("ci/app", "1")).unwrap();
    eventually("the upload", || tag() == named).await;
    replicas.mirrors[0]
        .serves("/v2/ci/app/manifests/1", &new)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_writer_takes_no_manifest_before_it_knows_what_there_is() {
    let (before, bucket) = shared(1, &[]).await;
    client(&before, 0).push("ci/app", "1", 1).await;
    let list = "GET /shared?list-type=2&prefix=docker";
    bucket.reply(list, ALWAYS, Reply::error(503));
    let after = Replicas::hosted_with(1, &[], |setup| setup.bucket(&bucket)).await;
    let writer = &after.mirrors[0];
    let new = client(&after, 0);
    let config = noise(7, 100);
    let manifest = manifest_of(&config, &[], None);
    new.push_blob("ci/app", &config).await;
    let refused = new.put_manifest("ci/app", "2", &manifest).await;
    refused.refused(503, "UNAVAILABLE");
    refused.has("retry-after", 5);
    let refused = writer.ask("DELETE /v2/ci/app/manifests/1", &[]).await;
    refused.refused(503, "UNAVAILABLE");
    assert_eq!(named(writer, "ci/app", "1").await, 200);
    let noted = bucket.object(WRITER);
    bucket.behave();
    eventually("the end of reading", || bucket.object(WRITER) != noted).await;
    let pushed = new.put_manifest("ci/app", "2", &manifest).await;
    pushed.expect(201, b"");
    assert_eq!(tags(writer, "ci/app").await, json!(["1", "2"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_hosts_survives_its_disk() {
    let (up, bucket) = (Registry::start().await, Registry::start().await);
    bucket.be_bucket("shared");
    let (lost, new) = (Disk::new().await, Disk::new().await);
    let server = lost.alone(&up, Some(&bucket)).await;
    let image = server.image(1);
    server.push("ci/app", "1", &image).await;
    eventually("the upload", || {
        bucket.object(&tag_key("ci/app", "1")).is_some()
    })
    .await;
    assert!(server.m.app.stop().await);

    let server = new.alone(&up, Some(&bucket)).await;
    server
        .m
        .serves("/v2/ci/app/manifests/1", &image.manifest)
        .await;
    for blob in image.blobs() {
        server.m.serves(&blob_path("ci/app", blob), blob).await;
    }
    assert_eq!(tags(&server.m, "ci/app").await, json!(["1"]));
    // What is deleted is gone, or not deleted.
    let line = format!("DELETE /v2/ci/app/manifests/{}", image.digest);
    bucket.reply("DELETE /shared", ALWAYS, Reply::error(503));
    server.ask(&line).await.refused(503, "UNAVAILABLE");
    bucket.behave();
    server.ask(&line).await.expect(202, b"");
    assert_eq!(bucket.object(&tag_key("ci/app", "1")), None);
    server
        .m
        .get("/v2/ci/app/manifests/1")
        .await
        .refused(404, "MANIFEST_UNKNOWN");
}

/// A server that works alone knows what it has.
#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_fails_refuses_no_push_to_a_server_that_works_alone() {
    let (up, bucket) = (Registry::start().await, Registry::start().await);
    bucket.be_bucket("shared");
    let space = "root.hosted: [{name: ci, repositories: ['ci/**'], immutable: ['v*']}]";
    let setup = Setup::new(&up).with(&[space, OPEN]).bucket(&bucket);
    let server = Pusher::over(setup.start().await).await;
    eventually("its note", || bucket.object(WRITER).is_some()).await;
    bucket.reply("", ALWAYS, Reply::error(503));
    let image = server.image(1);
    server.push("ci/app", "v1", &image).await;
    server
        .m
        .serves("/v2/ci/app/manifests/v1", &image.manifest)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_hosted_before_there_was_a_bucket_is_uploaded() {
    let (up, bucket) = (Registry::start().await, Registry::start().await);
    bucket.be_bucket("shared");
    let disk = Disk::new().await;
    let server = disk.alone(&up, None).await;
    let image = server.image(1);
    server.push("ci/app", "1", &image).await;
    assert!(server.m.app.stop().await);
    let server = disk.alone(&up, Some(&bucket)).await;
    eventually("the end of the upload", || bucket.object(WRITER).is_some()).await;
    let tag = bucket.object(&tag_key("ci/app", "1")).unwrap();
    assert_eq!(tag, image.digest.to_string());
    for blob in image.blobs() {
        assert!(bucket.object(&link("ci/app", "_layers", blob)).is_some());
    }
    assert!(server.m.app.stop().await);
}

/// Its process may have ended before it could tell the bucket, or it wasn't the writer.
#[tokio::test(flavor = "multi_thread")]
async fn layers_of_the_bucket_that_no_manifest_needs_are_removed() {
    let (before, bucket) = shared(1, &[]).await;
    let manifest = client(&before, 0).push("ci/app", "1", 1).await;
    let (old, new, foreign) = (noise(2, 10), noise(3, 10), noise(4, 10));
    for (repo, blob) in [("ci/app", &old), ("other", &foreign)] {
        bucket.put_object(&link(repo, "_layers", blob), digest(blob).to_string());
    }
    bucket.set_bucket_time(bucket.bucket_time() + Duration::from_hours(25));
    bucket.put_object(&link("ci/app", "_layers", &new), digest(&new).to_string());
    let after = Replicas::hosted_with(1, &[], |setup| setup.bucket(&bucket)).await;
    eventually("the removal", || {
        bucket.object(&link("ci/app", "_layers", &old)).is_none()
    })
    .await;
    assert!(bucket.object(&link("ci/app", "_layers", &new)).is_some());
    assert!(bucket.object(&link("other", "_layers", &foreign)).is_some());
    let layer = noise(1, 100_000);
    let writer = &after.mirrors[0];
    writer.serves(&blob_path("ci/app", &layer), &layer).await;
    writer.serves("/v2/ci/app/manifests/1", &manifest).await;
}
