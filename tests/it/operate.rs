//! `ls`, `du` and `purge`, with the server running and stopped: the program itself, on a real
//! data directory.
#![cfg(unix)]

use std::path::{Path, PathBuf};
use std::process::Output;

use millpond::app::{App, StartError};
use millpond::config;
use millpond::oci::Digest;
use millpond::storage::Layout;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{Answer, Image, Registry, eventually, log, noise, read};

/// The cache status of a manifest that came from the upstream.
const STORED: &str = "fwd=uri-miss; fwd-status=200; stored";

/// Whether no download runs.
fn is_idle(app: &App) -> bool {
    let metrics = app.metrics().render();
    metrics.contains("millpond_downloads_in_flight 0")
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

pub(crate) struct Site {
    pub(crate) dir: TempDir,
    pub(crate) upstream: Registry,
}

impl Site {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let upstream = Registry::start().await;
        let text = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: '{}'}}, minfree: 0}}\n\
             http: {{addr: '127.0.0.1:0'}}\nproxy: {{remoteurl: '{}'}}\n",
            dir.path().join("data").display(),
            upstream.url(),
        );
        std::fs::write(dir.path().join("config.yml"), text).unwrap();
        Self { dir, upstream }
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    pub(crate) async fn serve(&self) -> App {
        self.try_serve().await.unwrap()
    }

    pub(crate) async fn try_serve(&self) -> Result<App, StartError> {
        log::install();
        let file = self.path("config.yml");
        let loaded = config::load(Some(Path::new(&file)), std::iter::empty()).unwrap();
        App::start(&loaded.config).await
    }

    /// A server that has pulled these blobs.
    pub(crate) async fn serve_with(&self, blobs: &[(&str, u64)]) -> App {
        let app = self.serve().await;
        for (repo, seed) in blobs {
            self.pull(&app, repo, *seed).await;
        }
        app
    }

    /// Pulls a blob of 1000 bytes through the server.
    pub(crate) async fn pull(&self, app: &App, repo: &str, seed: u64) {
        let digest = self.upstream.put_blob(repo, &noise(seed, 1000));
        let path = format!("/v2/{repo}/blobs/{digest}");
        self.get(app, &path).await;
        // The commit follows the last byte: the next answer comes from the store.
        eventually("the blob is stored", || is_idle(app)).await;
    }

    /// Reads a response with status 200; its cache status.
    pub(crate) async fn get(&self, app: &App, path: &str) -> String {
        let answer = self.ask(app, path).await;
        assert_eq!((answer.status, answer.broken), (200, false));
        answer.source().to_owned()
    }

    pub(crate) async fn ask(&self, app: &App, path: &str) -> Answer {
        let client = reqwest::Client::builder().tls_certs_only([]);
        let url = format!("http://{}{path}", app.address());
        read(client.build().unwrap().get(url).send().await.unwrap()).await
    }

    /// The file of a blob or a manifest.
    pub(crate) fn file(&self, digest: &Digest) -> PathBuf {
        Layout::new(self.dir.path().join("data")).blob(digest)
    }

    /// All bytes that `du` counts.
    pub(crate) async fn total(&self) -> u64 {
        self.json(&["du", "--json"]).await["total"]
            .as_u64()
            .unwrap()
    }

    /// What a command prints that fails: on its standard output, and its standard error.
    pub(crate) async fn fails(&self, arguments: &[&str]) -> (String, String) {
        let output = self.run(arguments).await;
        assert!(!output.status.success(), "{arguments:?}");
        (text(output.stdout), text(output.stderr))
    }

    /// Asserts that a command succeeds and prints this part.
    pub(crate) async fn prints(&self, arguments: &[&str], part: &str) {
        let printed = self.text(arguments).await;
        assert!(printed.contains(part), "{part} is not in {printed}");
    }

    /// Runs the program beside the runtime, so that the server continues to answer.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Output {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_millpond"));
        command
            .args(arguments)
            .args(["--config", &self.path("config.yml")]);
        tokio::task::spawn_blocking(move || command.output().unwrap())
            .await
            .unwrap()
    }

    pub(crate) async fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.text(arguments).await).unwrap()
    }

    pub(crate) async fn text(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        assert!(output.status.success(), "{}", text(output.stderr));
        text(output.stdout)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_say_and_do_the_same_with_and_without_the_server() {
    let site = Site::new().await;
    let blobs = [("team/one", 1), ("team/two", 1), ("other", 2)];
    let app = site.serve_with(&blobs).await;

    let listings = async || {
        let ls = site.json(&["ls", "--json"]).await;
        [ls, site.json(&["du", "--json"]).await]
    };
    let running = listings().await;
    assert_eq!(running[1]["total"], 2000);
    assert_eq!(running[0]["images"].as_array().unwrap().len(), 2);
    assert!(app.stop().await);
    let stopped = listings().await;
    assert_eq!(running[1], stopped[1]);
    let names = |listing: &Value| listing["images"][0]["names"].clone();
    assert_eq!(names(&running[0]), names(&stopped[0]));
    let table = site.text(&["du"]).await;
    let row = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let rows: Vec<String> = table.lines().map(row).collect();
    let row = "team/one 1000 B 1000 B".to_owned();
    assert!(rows.contains(&row), "{table}");
    assert_eq!(rows.last().map(String::as_str), Some("total 1.9 KiB"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_running_server_says_how_its_endpoints_answer() {
    let site = Site::new().await;
    let file = site.path("config.yml");
    let config = std::fs::read_to_string(&file).unwrap();
    // Nothing listens there.
    let endpoints = "proxy: {endpoints: [{url: 'http://127.0.0.1:1', prefix: hub}, {}], ";
    std::fs::write(&file, config.replace("proxy: {", endpoints)).unwrap();
    let app = site.serve().await;
    for seed in 0..3 {
        site.pull(&app, "team/one", seed).await;
    }
    let registry = site.upstream.address.to_string();
    let status = site.json(&["upstreams", "--json"]).await;
    let [failing, healthy] = status["endpoints"].as_array().unwrap().as_slice() else {
        panic!("{status}");
    };
    assert_eq!(failing["endpoint"], "127.0.0.1:1/hub");
    assert_eq!(failing["circuit"], "open");
    let error = failing["last_error"]["error"].as_str().unwrap();
    assert!(error.contains("can't connect"), "{error}");
    assert_eq!(healthy["endpoint"], *registry);
    assert_eq!(healthy["circuit"], "closed");
    assert_eq!(healthy["last_error"], Value::Null);
    let table = site.text(&["upstreams"]).await;
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(lines.len(), 3, "{table}");
    assert!(lines[1].contains("127.0.0.1:1/hub  open"), "{table}");
    assert!(app.stop().await);
    let (_, error) = site.fails(&["upstreams"]).await;
    assert!(error.contains("no server is running"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bytes_of_the_month_count_on_after_a_restart() {
    let site = Site::new().await;
    let file = site.path("config.yml");
    let config = std::fs::read_to_string(&file).unwrap();
    let limit = "proxy: {ratelimit: {monthly: 1500}, ";
    std::fs::write(&file, config.replace("proxy: {", limit)).unwrap();
    let app = site.serve_with(&[("team/one", 1)]).await;
    assert!(app.stop().await);
    let app = site.serve_with(&[("team/one", 2)]).await;
    let status = site.json(&["upstreams", "--json"]).await;
    assert_eq!(status["endpoints"][0]["month_bytes"], 2000);
    site.prints(&["upstreams"], "1.9 KiB of 1.4 KiB this month")
        .await;
    let digest = site.upstream.put_blob("team/one", &noise(3, 1000));
    let path = format!("/v2/team/one/blobs/{digest}");
    let answer = site.ask(&app, &path).await;
    answer.refused(429, "TOOMANYREQUESTS");
    answer.has("retry-after", 3600);
    assert_eq!(site.upstream.count(&path), 0);
    assert!(app.stop().await);
    // What can't be read counts as nothing.
    let usage = Layout::new(site.dir.path().join("data")).usage();
    std::fs::write(usage, "{").unwrap();
    let app = site.serve_with(&[("team/one", 3)]).await;
    let status = site.json(&["upstreams", "--json"]).await;
    assert_eq!(status["endpoints"][0]["month_bytes"], 1000);
    assert!(app.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn purging_removes_what_is_named_and_nothing_else() {
    let site = Site::new().await;
    let blobs = [("team/one", 1), ("team/two", 1), ("other", 2)];
    let app = site.serve_with(&blobs).await;

    let dry_run = ["purge", "--dry-run", "team/**"];
    site.prints(&dry_run, "2 links would be removed").await;
    assert_eq!(site.total().await, 2000);
    let purged = "1 links removed";
    site.prints(&["purge", "team/one"], purged).await;
    assert_eq!(site.total().await, 2000, "the other repository has it");
    assert!(app.stop().await);
    site.text(&["purge", "team/two"]).await;
    let left = site.json(&["du", "--json"]).await;
    assert_eq!(left["total"], 1000);
    assert_eq!(left["repositories"][0]["repository"], "other");

    for (reference, complaint) in [
        ("nobody/here", "nothing that is cached matches"),
        ("a@b", "selects nothing"),
    ] {
        let (_, error) = site.fails(&["purge", reference]).await;
        assert!(error.contains(complaint), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pins_are_made_and_ended_with_and_without_the_server() {
    let site = Site::new().await;
    let app = site.serve().await;
    let digest = site.upstream.push("team/app", "1", &Image::oci(1));
    site.get(&app, "/v2/team/app/manifests/1").await;
    let pinned = site.text(&["pin", "team/app:1", "--for", "30d"]).await;
    assert!(pinned.starts_with("pinned until 20"), "{pinned}");
    assert!(pinned.ends_with(": team/app:1\n"), "{pinned}");
    let shown = async || {
        let images = site.json(&["ls", "--json"]).await;
        let end = images["images"][0]["pinned_until"].clone();
        assert_eq!(images["images"][0]["expiry"], end);
        assert_eq!(images["pins"][0]["until"], end);
        end
    };
    let end = shown().await;
    site.prints(&["ls"], &format!("pinned until {}", end.as_str().unwrap()))
        .await;
    assert!(app.stop().await);
    assert_eq!(shown().await, end);

    let by_digest = format!("team/app@{digest}");
    site.text(&["pin", &by_digest, "later/**"]).await;
    let app = site.serve().await;
    let ls = site.text(&["ls"]).await;
    let rows = ls
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    let rows: Vec<_> = rows.collect();
    assert!(rows[1].ends_with(" never pinned"), "{ls}");
    assert!(rows.contains(&"later/** unpinned".to_owned()), "{ls}");
    site.text(&["unpin", "team/app:1", &by_digest]).await;
    assert!(app.stop().await);
    site.text(&["unpin", "later/**"]).await;
    let images = site.json(&["ls", "--json"]).await;
    assert_eq!(images["pins"], serde_json::json!([]));
    assert_eq!(images["images"][0]["pinned"], false);
    for (arguments, complaint) in [
        (["unpin", "team/app"], "team/app isn't pinned"),
        (["pin", "team/app:1:2"], "can't be pinned"),
    ] {
        let (_, error) = site.fails(&arguments).await;
        assert!(error.contains(complaint), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrub_finds_what_is_corrupt_and_the_next_pull_fetches_it_again() {
    let site = Site::new().await;
    let app = site.serve_with(&[("app", 1), ("app", 2)]).await;
    let digest = site.upstream.put_blob("app", &noise(1, 1000));
    let file = site.file(&digest);
    let clean = "2 blobs, 1.9 KiB: 0 corrupt";
    site.prints(&["scrub"], clean).await;
    std::fs::write(&file, vec![7; 1000]).unwrap();

    let (found, _) = site.fails(&["scrub", "--rate", "1GiB"]).await;
    for part in [&*digest.to_string(), "1 corrupt, 0 set aside"] {
        assert!(found.contains(part), "{found}");
    }
    assert!(file.exists(), "without --repair nothing is touched");
    let repair = ["scrub", "--repair"];
    site.prints(&repair, "1 corrupt, 1 set aside").await;
    assert!(!file.exists());
    let aside = std::fs::read_dir(site.path("data/millpond/quarantine"));
    assert_eq!(aside.unwrap().count(), 1);

    site.pull(&app, "app", 1).await;
    assert_eq!(std::fs::read(&file).unwrap(), noise(1, 1000));
    assert!(app.stop().await);
    site.prints(&["scrub"], clean).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn purged_and_quarantined_manifests_are_not_served_from_memory() {
    let site = Site::new().await;
    let app = site.serve().await;
    let image = Image::oci(1);
    let digest = site.upstream.push("app", "1", &image);
    let path = format!("/v2/app/manifests/{digest}");
    let from = async || site.get(&app, &path).await;
    assert_eq!(from().await, STORED);
    assert_eq!(from().await, "hit");
    site.text(&["purge", &format!("app@{digest}")]).await;
    assert_eq!(from().await, STORED);
    assert_eq!(from().await, "hit");

    let file = site.file(&digest);
    std::fs::write(&file, "damaged").unwrap();
    assert_eq!(from().await, "hit", "memory isn't damaged");
    site.text(&["scrub", "--repair"]).await;
    assert_eq!(from().await, STORED);
    assert_eq!(std::fs::read(&file).unwrap(), image.manifest);
    assert!(app.stop().await);
}

/// Every path below a directory.
fn paths(root: &Path) -> Vec<PathBuf> {
    let (mut all, mut unseen) = (Vec::new(), vec![root.to_owned()]);
    while let Some(path) = unseen.pop() {
        if path.is_dir() {
            let entries = std::fs::read_dir(&path).unwrap();
            unseen.extend(entries.map(|entry| entry.unwrap().path()));
        }
        all.push(path);
    }
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_change_of_upstream_everything_is_proved_again() {
    let site = Site::new().await;
    let app = site.serve_with(&[("both", 1), ("one", 2)]).await;
    assert!(app.stop().await);

    let other = Registry::start().await;
    let file = site.path("config.yml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace(&site.upstream.url(), &other.url())).unwrap();
    let known = other.put_blob("both", &noise(1, 1000));
    let foreign = site.upstream.put_blob("one", &noise(2, 1000));
    let app = site.serve().await;
    let path = format!("/v2/one/blobs/{foreign}");
    assert_eq!(site.ask(&app, &path).await.status, 404);
    let path = format!("/v2/both/blobs/{known}");
    // Another upstream's word alone would share what the one before gave in confidence.
    let before = other.blob_bytes();
    let source = site.get(&app, &path).await;
    assert!(source.contains("fwd=uri-miss"), "{source}");
    assert_eq!(other.blob_bytes() - before, 1000);
    eventually("the blob is stored", || is_idle(&app)).await;
    assert_eq!(site.get(&app, &path).await, "hit");
    // The content stays until its time is up, and is stored once.
    assert_eq!(site.total().await, 2000);
    assert!(app.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn read_only_commands_create_no_files() {
    let site = Site::new().await;
    let data = site.path("data");
    for command in ["ls", "du", "scrub"] {
        let (_, error) = site.fails(&[command]).await;
        let expected = format!("the data directory {data} doesn't exist");
        assert!(error.contains(&expected), "{error}");
    }
    assert!(!Path::new(&data).exists());

    let app = site.serve_with(&[("team/one", 1), ("team/two", 2)]).await;
    assert!(app.stop().await);
    let data = Path::new(&data);
    std::fs::remove_dir_all(data.join("millpond")).unwrap();
    std::fs::remove_file(data.join("scheduler-state.json")).unwrap();
    let before = paths(data);
    site.text(&["ls"]).await;
    site.text(&["du"]).await;
    site.text(&["scrub"]).await;
    site.text(&["purge", "--dry-run", "team/one"]).await;
    assert_eq!(paths(data), before);
    site.text(&["purge", "team/one"]).await;
    let after = paths(data);
    assert!(after.len() < before.len());
    assert!(after.iter().all(|path| before.contains(path)), "{after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_a_registry_left_are_counted_and_removed_after_a_week() {
    let site = Site::new().await;
    let app = site.serve_with(&[("app", 1)]).await;
    let uploads = "data/docker/registry/v2/repositories/app/_uploads";
    let now = millpond::clock::Clock::system().wall();
    for (id, days) in [("old", 8), ("young", 6)] {
        let directory = PathBuf::from(site.path(&format!("{uploads}/{id}")));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("data"), noise(3, 500)).unwrap();
        let then = now - std::time::Duration::from_hours(24 * days);
        let times = std::fs::FileTimes::new().set_modified(then);
        for path in [directory.join("data"), directory] {
            std::fs::File::open(path).unwrap().set_times(times).unwrap();
        }
    }
    let totals = async || {
        let du = site.json(&["du", "--json"]).await;
        let of = &du["abandoned_uploads"];
        [&of["uploads"], &of["bytes"], &du["total"]].map(|n| n.as_u64().unwrap())
    };
    assert_eq!(totals().await, [1, 500, 1500]);
    site.prints(&["du"], "(1 abandoned uploads)").await;
    let uploads_are = "1 abandoned uploads, 500 B: ";
    site.prints(&["scrub"], &format!("{uploads_are}found"))
        .await;
    assert!(app.stop().await);
    let removed = format!("{uploads_are}removed");
    site.prints(&["scrub", "--repair"], &removed).await;
    assert_eq!(totals().await, [0, 0, 1000]);
    let left = paths(Path::new(&site.path(uploads)));
    assert_eq!(left.len(), 3, "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_unreadable_blob_neither_hangs_commands_nor_keeps_others_from_the_cache() {
    let site = Site::new().await;
    let app = site.serve_with(&[("app", 1), ("app", 2)]).await;
    assert!(app.stop().await);
    let file = site.file(&site.upstream.put_blob("app", &noise(1, 1000)));
    std::fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink("data", &file).unwrap();

    let commands = async |total| {
        assert_eq!(site.total().await, total);
        site.text(&["ls"]).await;
        let (found, _) = site.fails(&["scrub"]).await;
        assert!(found.contains("0 set aside, 1 unreadable"), "{found}");
    };
    commands(1000).await;
    let app = site.serve_with(&[("app", 3)]).await;
    assert!(app.stop().await);
    let app = site.serve().await;
    commands(2000).await;
    assert!(is_idle(&app));
    assert!(app.stop().await);
    let repair = ["scrub", "--repair"];
    site.prints(&repair, "1 set aside, 0 unreadable").await;
    site.prints(&["scrub"], "2 blobs, 1.9 KiB: 0 corrupt").await;
    let app = site.serve_with(&[("app", 1)]).await;
    assert!(app.stop().await);
    assert_eq!(std::fs::read(&file).unwrap(), noise(1, 1000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_manifest_is_set_aside_and_fetched_again() {
    let site = Site::new().await;
    let app = site.serve().await;
    let image = Image::oci(1);
    let digest = site.upstream.push("app", "1", &image);
    let path = format!("/v2/app/manifests/{digest}");
    site.get(&app, &path).await;
    assert!(app.stop().await);
    let file = site.file(&digest);
    std::fs::write(&file, vec![b' '; image.manifest.len() + 7]).unwrap();

    let app = site.serve().await;
    assert_eq!(site.get(&app, &path).await, STORED);
    assert_eq!(site.get(&app, &path).await, "hit");
    assert_eq!(std::fs::read(&file).unwrap(), image.manifest);
    // The index knows the new file's size.
    assert_eq!(site.total().await, image.manifest.len() as u64);
    assert!(app.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_socket_is_the_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let site = Site::new().await;
    let app = site.serve().await;
    let socket = site.path("data/millpond/admin.sock");
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(app.stop().await);
    let exists = Path::new(&socket).exists();
    assert!(!exists, "the file goes with the server");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offline_scrub_or_purge_says_that_it_holds_the_lock() {
    let site = Site::new().await;
    let app = site.serve_with(&[("app", 1)]).await;
    let said = |output: Output| text(output.stderr);
    assert_eq!(said(site.run(&["scrub"]).await), "", "the server does it");
    assert!(app.stop().await);
    for command in [&["scrub"][..], &["purge", "app"]] {
        let said = said(site.run(command).await);
        let expected = format!("{} holds the lock of the data directory", command[0]);
        assert!(said.contains(&expected), "{said}");
    }
}

#[tokio::test]
async fn a_data_directory_is_one_processes_own() {
    let site = Site::new().await;
    let first = site.serve().await;
    let error = site.try_serve().await.unwrap_err().to_string();
    let holder = format!("in use by process {}", std::process::id());
    for part in [&*holder, &site.path("data")] {
        assert!(error.contains(part), "{error}");
    }
    assert!(first.debug_address().is_none());
    assert!(first.stop().await);
    assert!(site.try_serve().await.is_ok(), "free again");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_denied_stays_denied_until_it_is_removed() {
    let site = Site::new().await;
    let app = site.serve_with(&[("app", 1), ("app", 2)]).await;
    let path = |seed| {
        format!(
            "/v2/app/blobs/{}",
            site.upstream.put_blob("app", &noise(seed, 1000))
        )
    };
    let (one, two) = (path(1), path(2));
    let digest = one.rsplit('/').next().unwrap().to_owned();
    site.prints(&["deny", "list"], "DENIED").await;
    let add = ["deny", "add", &digest, "--reason", "CVE-2026-1"];
    site.prints(&add, &format!("denied: {digest}")).await;
    let refused = site.ask(&app, &one).await;
    refused.refused(403, "DENIED");
    let told = refused.json()["errors"][0]["message"].to_string();
    assert!(told.contains("is denied: CVE-2026-1"), "{told}");
    site.get(&app, &two).await;
    // The upstream's own name is left out, as in the store.
    let named = format!(
        "{}/x/y:1",
        site.upstream.url().trim_start_matches("http://")
    );
    site.prints(&["deny", "add", &named], "denied: x/y:1\n")
        .await;
    for (reference, complaint) in [("A", "is no digest"), ("a b", "is no digest")] {
        let (_, error) = site.fails(&["deny", "add", reference]).await;
        assert!(error.contains(complaint), "{error}");
    }
    assert!(app.stop().await);

    // While no server runs.
    let denied = site.json(&["deny", "list", "--json"]).await;
    assert_eq!(denied["denied"][0]["reference"], digest);
    assert_eq!(denied["denied"][0]["reason"], "CVE-2026-1");
    assert_eq!(denied["denied"][1]["reference"], "x/y:1");
    site.prints(&["deny", "remove", "x/y:1"], "no longer denied: x/y:1\n")
        .await;
    let (_, error) = site.fails(&["deny", "remove", "x/y:1"]).await;
    assert!(error.contains("isn't on the deny list"), "{error}");

    let app = site.serve().await;
    site.ask(&app, &one).await.refused(403, "DENIED");
    site.text(&["deny", "remove", &digest]).await;
    site.get(&app, &one).await;
    assert!(app.stop().await);

    // A list that can't be read must not be taken for an empty one.
    std::fs::write(site.path("data/millpond/denied.json"), "{").unwrap();
    let error = site.try_serve().await.unwrap_err().to_string();
    assert!(error.contains("denied.json isn't valid"), "{error}");
}
