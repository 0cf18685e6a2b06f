//! `ls`, `du` and `purge`, with the server running and stopped: the program itself, on a real
//! data directory.
#![cfg(unix)]

use std::path::{Path, PathBuf};
use std::process::Output;

use millpond::app::App;
use millpond::config;
use millpond::oci::Digest;
use millpond::storage::Layout;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{Image, Registry, eventually, log, noise, read};

/// The cache status of a manifest that came from the upstream.
const STORED: &str = "millpond; fwd=uri-miss; fwd-status=200; stored";

struct Site {
    dir: TempDir,
    upstream: Registry,
}

impl Site {
    async fn new() -> Self {
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

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    async fn serve(&self) -> App {
        log::install();
        let file = self.path("config.yml");
        let loaded = config::load(Some(Path::new(&file)), std::iter::empty()).unwrap();
        App::start(&loaded.config).await.unwrap()
    }

    /// Pulls a blob of 1000 bytes through the server.
    async fn pull(&self, app: &App, repo: &str, seed: u64) {
        let digest = self.upstream.put_blob(repo, &noise(seed, 1000));
        let path = format!("/v2/{repo}/blobs/{digest}");
        self.get(app, &path).await;
        // The commit follows the last byte: the next answer comes from the store.
        eventually("the blob is stored", || {
            app.metrics()
                .render()
                .contains("millpond_downloads_in_flight 0")
        })
        .await;
    }

    /// Reads a response with status 200; its cache status.
    async fn get(&self, app: &App, path: &str) -> String {
        let client = reqwest::Client::builder().tls_certs_only([]);
        let url = format!("http://{}{path}", app.address());
        let response = client.build().unwrap().get(url).send().await.unwrap();
        let answer = read(response).await;
        assert_eq!((answer.status, answer.broken), (200, false));
        answer.header("cache-status").to_owned()
    }

    /// The file of a blob or a manifest.
    fn file(&self, digest: &Digest) -> PathBuf {
        Layout::new(self.dir.path().join("data")).blob(digest)
    }

    /// Runs the program beside the runtime, so that the server continues to answer.
    async fn run(&self, arguments: &[&str]) -> Output {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_millpond"));
        command
            .args(arguments)
            .args(["--config", &self.path("config.yml")]);
        tokio::task::spawn_blocking(move || command.output().unwrap())
            .await
            .unwrap()
    }

    async fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.text(arguments).await).unwrap()
    }

    async fn text(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_say_and_do_the_same_with_and_without_the_server() {
    let site = Site::new().await;
    let app = site.serve().await;
    site.pull(&app, "team/one", 1).await;
    site.pull(&app, "team/two", 1).await;
    site.pull(&app, "other", 2).await;

    let running = [
        site.json(&["ls", "--json"]).await,
        site.json(&["du", "--json"]).await,
    ];
    assert_eq!(running[1]["total"], 2000);
    assert_eq!(running[0]["images"].as_array().unwrap().len(), 2);
    assert!(app.stop().await);
    let stopped = [
        site.json(&["ls", "--json"]).await,
        site.json(&["du", "--json"]).await,
    ];
    assert_eq!(running[1], stopped[1]);
    let names = |listing: &Value| listing["images"][0]["names"].clone();
    assert_eq!(names(&running[0]), names(&stopped[0]));
    let table = site.text(&["du"]).await;
    let row = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let rows: Vec<String> = table.lines().map(row).collect();
    assert!(
        rows.contains(&"team/one 1000 B 1000 B".to_owned()),
        "{table}"
    );
    assert_eq!(rows.last().map(String::as_str), Some("total 1.9 KiB"));
}

#[tokio::test(flavor = "multi_thread")]
async fn purging_removes_what_is_named_and_nothing_else() {
    let site = Site::new().await;
    let app = site.serve().await;
    site.pull(&app, "team/one", 1).await;
    site.pull(&app, "team/two", 1).await;
    site.pull(&app, "other", 2).await;

    let shown = site.text(&["purge", "--dry-run", "team/**"]).await;
    assert!(shown.contains("2 links would be removed"), "{shown}");
    assert_eq!(site.json(&["du", "--json"]).await["total"], 2000);
    let done = site.text(&["purge", "team/one"]).await;
    assert!(done.contains("1 links removed"), "{done}");
    assert_eq!(
        site.json(&["du", "--json"]).await["total"],
        2000,
        "the other repository has it"
    );
    assert!(app.stop().await);
    site.text(&["purge", "team/two"]).await;
    let left = site.json(&["du", "--json"]).await;
    assert_eq!(left["total"], 1000);
    assert_eq!(left["repositories"][0]["repository"], "other");

    for (reference, complaint) in [
        ("nobody/here", "nothing that is cached matches"),
        ("a@b", "selects nothing"),
    ] {
        let output = site.run(&["purge", reference]).await;
        assert!(!output.status.success());
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains(complaint), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrub_finds_what_is_corrupt_and_the_next_pull_fetches_it_again() {
    let site = Site::new().await;
    let app = site.serve().await;
    site.pull(&app, "app", 1).await;
    site.pull(&app, "app", 2).await;
    let digest = site.upstream.put_blob("app", &noise(1, 1000));
    let file = site.file(&digest);
    let clean = site.text(&["scrub"]).await;
    assert!(clean.contains("2 blobs, 1.9 KiB: 0 corrupt"), "{clean}");
    std::fs::write(&file, vec![7; 1000]).unwrap();

    let output = site.run(&["scrub", "--rate", "1GiB"]).await;
    assert!(!output.status.success(), "a script must notice");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains(&digest.to_string()) && text.contains("1 corrupt, 0 set aside"),
        "{text}"
    );
    assert!(
        Path::new(&file).exists(),
        "without --repair nothing is touched"
    );
    let repaired = site.text(&["scrub", "--repair"]).await;
    assert!(repaired.contains("1 corrupt, 1 set aside"), "{repaired}");
    assert!(!Path::new(&file).exists());
    assert_eq!(
        std::fs::read_dir(site.path("data/millpond/quarantine"))
            .unwrap()
            .count(),
        1
    );

    site.pull(&app, "app", 1).await;
    assert_eq!(std::fs::read(&file).unwrap(), noise(1, 1000));
    assert!(app.stop().await);
    assert!(
        site.text(&["scrub"])
            .await
            .contains("2 blobs, 1.9 KiB: 0 corrupt")
    );
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
    assert_eq!(from().await, "millpond; hit");
    site.text(&["purge", &format!("app@{digest}")]).await;
    assert_eq!(from().await, STORED);
    assert_eq!(from().await, "millpond; hit");

    let file = site.file(&digest);
    std::fs::write(&file, "damaged").unwrap();
    assert_eq!(from().await, "millpond; hit", "memory isn't damaged");
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
    let app = site.serve().await;
    site.pull(&app, "both", 1).await;
    site.pull(&app, "one", 2).await;
    assert!(app.stop().await);

    let other = Registry::start().await;
    let file = site.path("config.yml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace(&site.upstream.url(), &other.url())).unwrap();
    let known = other.put_blob("both", &noise(1, 1000));
    let foreign = site.upstream.put_blob("one", &noise(2, 1000));
    let app = site.serve().await;
    let client = reqwest::Client::builder().tls_certs_only([]);
    let client = client.build().unwrap();
    let ask = async |repo: &str, digest| {
        let url = format!("http://{}/v2/{repo}/blobs/{digest}", app.address());
        let response = client.get(url).send().await.unwrap();
        let cache = response.headers().get("cache-status").cloned();
        let cache = cache.map(|cache| cache.to_str().unwrap().to_owned());
        (response.status().as_u16(), cache.unwrap_or_default())
    };
    assert_eq!(ask("one", foreign).await.0, 404);
    let (status, cache) = ask("both", known).await;
    assert_eq!(status, 200);
    assert!(cache.contains("revalidated"), "{cache}");
    assert_eq!(ask("both", known).await, (200, "millpond; hit".to_owned()));
    // The content stays until its time is up.
    assert_eq!(site.json(&["du", "--json"]).await["total"], 2000);
    assert!(app.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn read_only_commands_create_no_files() {
    let site = Site::new().await;
    let data = site.path("data");
    for command in ["ls", "du", "scrub"] {
        let output = site.run(&[command]).await;
        assert!(!output.status.success(), "{command}");
        let error = String::from_utf8(output.stderr).unwrap();
        let expected = format!("the data directory {data} doesn't exist");
        assert!(error.contains(&expected), "{error}");
    }
    assert!(!Path::new(&data).exists());

    let app = site.serve().await;
    site.pull(&app, "team/one", 1).await;
    site.pull(&app, "team/two", 2).await;
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
    let app = site.serve().await;
    site.pull(&app, "app", 1).await;
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
    let table = site.text(&["du"]).await;
    assert!(table.contains("(1 abandoned uploads)"), "{table}");
    let found = site.text(&["scrub"]).await;
    assert!(
        found.contains("1 abandoned uploads, 500 B: found"),
        "{found}"
    );
    assert!(app.stop().await);
    let removed = site.text(&["scrub", "--repair"]).await;
    assert!(
        removed.contains("1 abandoned uploads, 500 B: removed"),
        "{removed}"
    );
    assert_eq!(totals().await, [0, 0, 1000]);
    let left = paths(Path::new(&site.path(uploads)));
    assert_eq!(left.len(), 3, "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_unreadable_blob_neither_hangs_commands_nor_keeps_others_from_the_cache() {
    let site = Site::new().await;
    let app = site.serve().await;
    site.pull(&app, "app", 1).await;
    site.pull(&app, "app", 2).await;
    assert!(app.stop().await);
    let file = site.file(&site.upstream.put_blob("app", &noise(1, 1000)));
    std::fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink("data", &file).unwrap();

    for running in [false, true] {
        let app = if running {
            Some(site.serve().await)
        } else {
            None
        };
        assert_eq!(
            site.json(&["du", "--json"]).await["total"],
            1000 + 1000 * u64::from(running)
        );
        site.text(&["ls"]).await;
        let output = site.run(&["scrub"]).await;
        assert!(!output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("0 set aside, 1 unreadable"), "{text}");
        if let Some(app) = app {
            assert!(
                app.metrics()
                    .render()
                    .contains("millpond_downloads_in_flight 0")
            );
            assert!(app.stop().await);
        } else {
            let app = site.serve().await;
            site.pull(&app, "app", 3).await;
            assert!(app.stop().await);
        }
    }
    let repaired = site.text(&["scrub", "--repair"]).await;
    assert!(repaired.contains("1 set aside, 0 unreadable"), "{repaired}");
    let clean = site.text(&["scrub"]).await;
    assert!(clean.contains("2 blobs, 1.9 KiB: 0 corrupt"), "{clean}");
    let app = site.serve().await;
    site.pull(&app, "app", 1).await;
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
    assert_eq!(site.get(&app, &path).await, "millpond; hit");
    assert_eq!(std::fs::read(&file).unwrap(), image.manifest);
    // The index knows the new file's size.
    let total = site.json(&["du", "--json"]).await["total"].clone();
    assert_eq!(total, image.manifest.len());
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
    assert!(
        !Path::new(&socket).exists(),
        "the file goes with the server"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offline_scrub_or_purge_says_that_it_holds_the_lock() {
    let site = Site::new().await;
    let app = site.serve().await;
    site.pull(&app, "app", 1).await;
    let said = |output: Output| String::from_utf8(output.stderr).unwrap();
    assert_eq!(said(site.run(&["scrub"]).await), "", "the server does it");
    assert!(app.stop().await);
    for command in [&["scrub"][..], &["purge", "app"]] {
        let said = said(site.run(command).await);
        let expected = format!("{} holds the lock of the data directory", command[0]);
        assert!(said.contains(&expected), "{said}");
    }
}
