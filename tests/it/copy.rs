//! `millpond copy`: the program itself, between scripted registries that break at each step.
#![cfg(unix)]

mod broken;
mod files;

use std::process::{Command, Output, Stdio};

use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{ALWAYS, Image, Registry, Reply, digest, noise};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The home of who copies.
struct User(TempDir);

struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl User {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
        command.env_clear().env("HOME", self.0.path());
        command.arg("copy").args(arguments).stdin(Stdio::null());
        command
    }

    async fn run(&self, arguments: &[&str]) -> Ran {
        let mut command = self.command(arguments);
        let ran = tokio::task::spawn_blocking(move || command.output());
        let Output {
            status,
            stdout,
            stderr,
        } = ran.await.unwrap().unwrap();
        Ran {
            code: status.code().unwrap(),
            out: String::from_utf8(stdout).unwrap(),
            err: String::from_utf8(stderr).unwrap(),
        }
    }

    /// It has to succeed. Returns what it prints.
    async fn copy(&self, arguments: &[&str]) -> String {
        let ran = self.run(arguments).await;
        assert_eq!(ran.code, 0, "{}\n{}", ran.out, ran.err);
        ran.out
    }
}

async fn registries() -> (Registry, Registry) {
    let (source, target) = (Registry::start().await, Registry::start().await);
    target.accept_pushes(true);
    (source, target)
}

fn at(registry: &Registry, name: &str) -> String {
    format!("{}/{name}", registry.address)
}

fn received(registry: &Registry) -> usize {
    usize::try_from(registry.received_bytes()).unwrap()
}

/// An index of three platforms, one of them signed.
fn put_index(registry: &Registry, repo: &str, tag: &str) -> (Bytes, Image) {
    let images = [Image::oci(1), Image::docker(2), Image::oci(4)];
    let mut entries = Vec::new();
    for (image, architecture) in images.iter().zip(["amd64", "arm64", "riscv64"]) {
        for blob in image.blobs() {
            registry.put_blob(repo, blob);
        }
        registry.put_manifest(repo, image.media_type, &image.manifest);
        let mut entry = image.descriptor();
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        entries.push(entry);
    }
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
    let index = Bytes::from(index.to_string());
    registry.tag(repo, tag, INDEX, &index);
    let signature = Image::artifact(3, &images[0], "application/signature");
    for blob in signature.blobs() {
        registry.put_blob(repo, blob);
    }
    registry.put_manifest(repo, signature.media_type, &signature.manifest);
    let listed =
        json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [signature.descriptor()]});
    registry.put_json(
        &format!("/v2/{repo}/referrers/{}", images[0].digest()),
        &listed,
    );
    (index, signature)
}

#[tokio::test]
async fn all_platforms_and_what_is_attached_arrive_unchanged_and_the_tag_comes_last() {
    let (source, target) = registries().await;
    let (index, signature) = put_index(&source, "a/b", "1");
    let user = User::new();
    let out = user.copy(&[&at(&source, "a/b:1"), &at(&target, "c")]).await;
    assert!(
        out.contains("copied") && out.contains("1 attached"),
        "{out}"
    );
    assert_eq!(target.content("/v2/c/manifests/1"), Some(index.clone()));
    for manifest in [
        &signature.manifest,
        &Image::oci(1).manifest,
        &Image::docker(2).manifest,
    ] {
        let path = format!("/v2/c/manifests/{}", digest(manifest));
        assert_eq!(target.content(&path).as_ref(), Some(manifest));
    }
    let lines = target.take();
    let first = lines
        .iter()
        .position(|line| line.starts_with("PUT") && line.contains("/manifests/"));
    let last_blob = lines
        .iter()
        .rposition(|line| line.starts_with("PUT") && line.contains("/blobs/"));
    assert!(last_blob < first, "{lines:?}");
    assert_eq!(
        lines.last().map(String::as_str),
        Some("PUT /v2/c/manifests/1")
    );
    let again = user.copy(&[&at(&source, "a/b:1"), &at(&target, "c")]).await;
    assert!(again.contains("unchanged"), "{again}");
    let lines = target.take();
    assert!(
        lines.iter().all(|line| line.starts_with("HEAD ")),
        "{lines:?}"
    );
}

#[tokio::test]
async fn a_second_copy_of_forty_layers_takes_42_requests_and_no_blob_of_the_source() {
    let (source, target) = registries().await;
    let layers = (0..40)
        .map(|n| noise(n, 300 + usize::try_from(n).unwrap()))
        .collect();
    source.push("a", "1", &Image::layered(1, layers, |_, _| ()));
    let user = User::new();
    user.copy(&[&at(&source, "a:1"), &at(&target, "a")]).await;
    let lines = target.take();
    // A HEAD, a POST and a PUT for each blob; the tag is looked up and written.
    assert_eq!(lines.len(), 3 * 41 + 2, "{lines:?}");
    source.take();
    user.copy(&[&at(&source, "a:1"), &at(&target, "a")]).await;
    assert_eq!(target.take().len(), 42);
    assert_eq!(source.count("/blobs/"), 0);
}

#[tokio::test]
async fn both_sides_are_resumed_where_they_broke_off() {
    let (source, target) = registries().await;
    let layer = noise(1, 3_000_000);
    source.push("a", "1", &Image::layered(1, vec![layer.clone()], |_, _| ()));
    let path = format!("GET /v2/a/blobs/{}", digest(&layer));
    source.on(&path, 1, |_, usual| usual.cut(1_000_000));
    target.cut_upload(500_000);
    let user = User::new();
    user.copy(&[&at(&source, "a:1"), &at(&target, "a")]).await;
    let stored = target.content(&format!("/v2/a/blobs/{}", digest(&layer)));
    assert_eq!(stored, Some(layer.clone()));
    let patches = target.seen("PATCH");
    assert_eq!(patches.len(), 2);
    assert_eq!(patches[1].header("content-range"), Some("500000-2999999"));
    let ranges: Vec<_> = source
        .seen(&path)
        .iter()
        .map(|seen| seen.header("range").map(str::to_owned))
        .collect();
    assert!(
        ranges.contains(&Some("bytes=1000000-".to_owned()))
            || ranges.contains(&Some("bytes=500000-".to_owned())),
        "{ranges:?}"
    );
}

#[tokio::test]
async fn a_registry_that_takes_only_small_parts_gets_those() {
    let (source, target) = registries().await;
    let layer = noise(1, 20_000_000);
    source.push("a", "1", &Image::layered(1, vec![layer.clone()], |_, _| ()));
    // Of 16 MiB or more.
    target.on("PATCH", ALWAYS, |seen, usual| {
        let is_large = seen.bytes.len() >= 16 << 20;
        if is_large { Reply::error(413) } else { usual }
    });
    let user = User::new();
    user.copy(&[&at(&source, "a:1"), &at(&target, "a")]).await;
    let stored = target.content(&format!("/v2/a/blobs/{}", digest(&layer)));
    assert!(stored == Some(layer), "the blob is whole");
    // One that wants chunks of a size gets those.
    let (_, third) = registries().await;
    third.on("POST", ALWAYS, |_, usual| {
        usual.with("OCI-Chunk-Min-Length", 17 << 20)
    });
    third.on("PATCH", ALWAYS, |seen, usual| {
        let is_chunk = seen.header("content-range").is_some();
        if is_chunk { usual } else { Reply::error(416) }
    });
    user.copy(&[&at(&source, "a:1"), &at(&third, "a")]).await;
    let chunks = third.seen("PATCH");
    let chunks = chunks.iter().filter_map(|seen| {
        let range = seen.header("content-range")?;
        Some((range, seen.bytes.len()))
    });
    let expected = [("0-17825791", 17_825_792), ("17825792-19999999", 2_174_208)];
    assert_eq!(chunks.collect::<Vec<_>>(), expected);
    // One that knows no PATCH gets everything at once.
    let (_, other) = registries().await;
    other.reply("PATCH", ALWAYS, Reply::error(405));
    user.copy(&[&at(&source, "a:1"), &at(&other, "a")]).await;
    let whole = other
        .seen("PUT /v2/a/blobs/")
        .into_iter()
        .filter(|seen| seen.bytes.len() == 20_000_000);
    assert_eq!(whole.count(), 1);
}

#[tokio::test]
async fn pauses_that_a_registry_asks_for_are_made() {
    let (source, target) = registries().await;
    source.push("a", "1", &Image::oci(1));
    source.reply("GET /v2/a/blobs/", 1, Reply::error(503));
    let limited = Reply::error(429).with("Retry-After", "1");
    target.reply("POST", 1, limited);
    let ran = User::new()
        .run(&[&at(&source, "a:1"), &at(&target, "a")])
        .await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.contains("trying again in"), "{}", ran.err);
}

#[tokio::test]
async fn within_a_registry_blobs_are_mounted() {
    let registry = Registry::start().await;
    registry.accept_pushes(true);
    registry.push("a", "1", &Image::oci(1));
    let out = User::new()
        .copy(&[&at(&registry, "a:1"), &at(&registry, "b/c:2")])
        .await;
    assert!(out.contains("3 mounted"), "{out}");
    assert_eq!(
        registry.count("PATCH") + registry.count("GET /v2/a/blobs"),
        0
    );
    assert!(registry.content("/v2/b/c/manifests/2").is_some());
}

#[tokio::test]
async fn a_destination_without_the_referrers_api_gets_the_tag_instead() {
    let (source, target) = registries().await;
    target.accept_pushes(false);
    let (_, signature) = put_index(&source, "a", "1");
    let user = User::new();
    user.copy(&[&at(&source, "a:1"), &at(&target, "a")]).await;
    let subject = Image::oci(1).digest().replace(':', "-");
    let listed = target
        .content(&format!("/v2/a/manifests/{subject}"))
        .unwrap();
    let listed: Value = serde_json::from_slice(&listed).unwrap();
    assert_eq!(listed["manifests"][0]["digest"], signature.digest());
    assert_eq!(
        listed["manifests"][0]["artifactType"],
        "application/signature"
    );
    // From there it is found again.
    let (_, third) = registries().await;
    let out = user.copy(&[&at(&target, "a:1"), &at(&third, "a")]).await;
    assert!(out.contains("1 attached"), "{out}");
    // Old tags of cosign, and nothing of all this where it isn't wanted.
    let (cosigned, fourth) = registries().await;
    cosigned.push("a", "1", &Image::oci(1));
    cosigned.push("a", &format!("{subject}.sig"), &Image::oci(9));
    user.copy(&[&at(&cosigned, "a:1"), &at(&fourth, "a")]).await;
    assert!(
        fourth
            .content(&format!("/v2/a/manifests/{subject}.sig"))
            .is_some()
    );
    let (_, fifth) = registries().await;
    user.copy(&["--no-referrers", &at(&cosigned, "a:1"), &at(&fifth, "a")])
        .await;
    assert!(
        fifth
            .content(&format!("/v2/a/manifests/{subject}.sig"))
            .is_none()
    );
}

#[tokio::test]
async fn credentials_are_those_of_docker_and_refusals_have_their_exit_code() {
    let (source, target) = registries().await;
    source.push("a", "1", &Image::oci(1));
    target.protect(Some(("user", "secret")));
    let user = User::new();
    let (from, to) = (at(&source, "a:1"), at(&target, "a"));
    let refused = user.run(&[&from, &to]).await;
    assert_eq!(refused.code, 3, "{}", refused.err);
    assert!(refused.err.contains("FAILED"), "{}", refused.err);
    std::fs::create_dir(user.0.path().join(".docker")).unwrap();
    let auths = json!({"auths": {target.address.to_string(): {"auth": "dXNlcjpzZWNyZXQ="}}});
    std::fs::write(user.path(".docker/config.json"), auths.to_string()).unwrap();
    target.take();
    user.copy(&[&from, &to]).await;
    let token = target.seen("/token").remove(0);
    assert!(
        token.line.contains("scope=repository%3Aa%3Apull%2Cpush"),
        "{}",
        token.line
    );
    std::fs::write(user.path("password"), "wrong\n").unwrap();
    let password = user.path("password");
    let options = ["--dst-username", "user", "--dst-password-file", &password];
    let refused = user
        .run(&[&options[..], &[from.as_str(), &to]].concat())
        .await;
    assert_eq!(refused.code, 3, "{}", refused.err);
}

#[tokio::test]
async fn tags_are_selected_and_some_may_fail() {
    let (source, target) = registries().await;
    for (n, tag) in (1..).zip(["v1", "v2", "w1"]) {
        source.push("a", tag, &Image::oci(n));
    }
    source.put_json(
        "/v2/a/tags/list",
        &json!({"name": "a", "tags": ["v1", "v2", "w1"]}),
    );
    let user = User::new();
    let (from, to) = (at(&source, "a"), at(&target, "below/"));
    user.copy(&["--tags", "v*", &from, &to]).await;
    let has = |tag: &str| {
        target
            .content(&format!("/v2/below/a/manifests/{tag}"))
            .is_some()
    };
    assert!(has("v1") && has("v2") && !has("w1"));
    // A tag that is there stays as it is.
    source.push("a", "v1", &Image::oci(7));
    let out = user.copy(&["--all-tags", "--no-clobber", &from, &to]).await;
    assert_eq!(out.matches("left alone").count(), 2, "{out}");
    assert!(has("w1"));
    assert_eq!(
        target.content("/v2/below/a/manifests/v1"),
        Some(Image::oci(1).manifest)
    );
    // Schema 1 is told as what it is, and the rest is copied.
    let schema1 = json!({"schemaVersion": 1, "name": "a", "fsLayers": []}).to_string();
    source.tag(
        "a",
        "v2",
        "application/vnd.docker.distribution.manifest.v1+json",
        &schema1.into(),
    );
    let ran = user.run(&["--all-tags", &from, &to]).await;
    assert_eq!(ran.code, 4, "{}", ran.err);
    assert!(
        ran.err.contains("schema 1") && ran.err.contains("a:v2"),
        "{}",
        ran.err
    );
    let ran = user.run(&[&at(&source, "a:v2"), &to]).await;
    assert_eq!(ran.code, 1);
}

#[tokio::test]
async fn wrong_command_lines_are_told_apart_from_failures() {
    let user = User::new();
    for arguments in [
        &["a"][..],
        &["localhost:1/a:1", "localhost:1/b:1", "localhost:1/c:1"],
        &["localhost:1/a:1", "localhost:1/b:1", "localhost:1/c"],
        &["localhost:1/a:1", "b"],
        &["localhost:1/a/", "localhost:1/b"],
        &["--all-tags", "localhost:1/a:1", "localhost:1/b"],
        &["oci:layout", "localhost:1/b/"],
        &["localhost:1/a", "docker-archive:file"],
        &[
            "localhost:1/a",
            "localhost:1/b@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        ],
        &["https://a", "localhost:1/b"],
        &["--platform", "linux", "localhost:1/a", "localhost:1/b"],
        &["--dst-username", "a", "localhost:1/a", "localhost:1/b"],
    ] {
        let ran = user.run(arguments).await;
        assert_eq!(ran.code, 2, "{arguments:?} {}", ran.err);
    }
}

#[tokio::test]
async fn platforms_are_selected() {
    let (source, target) = registries().await;
    put_index(&source, "a", "1");
    let user = User::new();
    let (from, to) = (at(&source, "a:1"), at(&target, "a"));
    let one = ["--platform", "linux/amd64"];
    user.copy(&[&one[..], &[from.as_str(), &to]].concat()).await;
    assert_eq!(
        target.content("/v2/a/manifests/1"),
        Some(Image::oci(1).manifest)
    );
    let both = ["--platform", "linux/arm64", "--platform", "linux/amd64"];
    let out = user
        .copy(&[&both[..], &[from.as_str(), &to]].concat())
        .await;
    assert!(out.contains("the digest isn't the source's"), "{out}");
    let missing = user.run(&["--platform", "linux/s390x", &from, &to]).await;
    assert_eq!(missing.code, 1);
    assert!(missing.err.contains("linux/s390x"), "{}", missing.err);
}

#[tokio::test]
async fn a_dry_run_writes_nothing_and_events_are_json() {
    let (source, target) = registries().await;
    source.push("a", "1", &Image::oci(1));
    let user = User::new();
    let (from, to) = (at(&source, "a:1"), at(&target, "a"));
    let out = user.copy(&["--dry-run", &from, &to]).await;
    assert!(out.contains("would be copied, 3 of 3 blobs"), "{out}");
    let lines = target.take();
    assert!(
        lines.iter().all(|line| line.starts_with("HEAD ")),
        "{lines:?}"
    );
    let out = user.copy(&["--json", &from, &to]).await;
    let events: Vec<Value> = out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let named = |name: &str| events.iter().filter(|event| event["event"] == name).count();
    assert_eq!(
        (named("planned"), named("done"), named("failed")),
        (1, 1, 0)
    );
    let ended = events.iter().filter(|event| event["state"] == "copied");
    assert_eq!(ended.count(), 3);
    let quiet = user.run(&["--quiet", &from, &to]).await;
    assert_eq!((quiet.code, &*quiet.out, &*quiet.err), (0, "", ""));
}

#[tokio::test]
async fn wrong_bytes_of_the_source_reach_no_repository() {
    let (source, target) = registries().await;
    let image = Image::oci(1);
    source.push("a", "1", &image);
    let blob = digest(&image.layers[1]);
    source.on(&format!("GET /v2/a/blobs/{blob}"), ALWAYS, |_, usual| {
        usual.forged()
    });
    let ran = User::new()
        .run(&[&at(&source, "a:1"), &at(&target, "a")])
        .await;
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("bytes of another digest"), "{}", ran.err);
    assert!(target.content(&format!("/v2/a/blobs/{blob}")).is_none());
    assert!(target.content("/v2/a/manifests/1").is_none());
}

#[tokio::test]
async fn no_tag_of_the_destination_is_replaced_where_that_is_not_wanted() {
    let (source, target) = registries().await;
    let image = Image::oci(1);
    let signature = format!("{}.sig", image.digest().replace(':', "-"));
    source.push("a", "1", &image);
    source.push("a", &signature, &Image::oci(8));
    target.push("a", &signature, &Image::oci(9));
    let signature = || target.content(&format!("/v2/a/manifests/{signature}"));
    let user = User::new();
    let (from, to) = (at(&source, "a:1"), at(&target, "a"));
    user.copy(&["--no-clobber", &from, &to]).await;
    assert_eq!(target.content("/v2/a/manifests/1"), Some(image.manifest));
    assert_eq!(signature(), Some(Image::oci(9).manifest));
    user.copy(&[&from, &to]).await;
    assert_eq!(signature(), Some(Image::oci(8).manifest));
}

#[tokio::test]
async fn referrers_that_are_gone_or_refer_to_something_else_are_passed_over() {
    let (source, target) = registries().await;
    let (index, signature) = put_index(&source, "a", "1");
    let gone = Image::artifact(5, &Image::oci(1), "application/gone");
    let other = Image::oci(6);
    source.push("a", "other", &other);
    let manifests = [&gone, &signature, &other].map(Image::descriptor);
    let listed = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    let path = format!("/v2/a/referrers/{}", Image::oci(1).digest());
    source.put_json(&path, &listed);
    let out = User::new()
        .copy(&[&at(&source, "a:1"), &at(&target, "a")])
        .await;
    assert!(out.contains("1 attached"), "{out}");
    assert_eq!(target.content("/v2/a/manifests/1"), Some(index));
    let other = format!("/v2/a/manifests/{}", other.digest());
    assert_eq!(target.content(&other), None);
}

#[tokio::test]
async fn uploads_at_another_host_get_no_credentials() {
    let (source, target) = registries().await;
    let other = Registry::start().await;
    source.push("a", "1", &Image::oci(1));
    target.protect(Some(("user", "secret")));
    let elsewhere = format!("{}/v2/a/blobs/uploads/1", other.url());
    target.on("POST", ALWAYS, move |_, usual| {
        if usual.status == 202 {
            Reply::new(202, "").with("Location", &elsewhere)
        } else {
            usual
        }
    });
    let user = User::new();
    std::fs::write(user.path("password"), "secret").unwrap();
    let password = user.path("password");
    let options = ["--dst-username", "user", "--dst-password-file", &password];
    let (from, to) = (at(&source, "a:1"), at(&target, "a"));
    user.run(&[&options[..], &[from.as_str(), &to]].concat())
        .await;
    let asked = other.seen("/v2/a/blobs/uploads/1");
    assert!(!asked.is_empty());
    for seen in asked {
        assert_eq!(seen.header("authorization"), None, "{}", seen.line);
    }
}
