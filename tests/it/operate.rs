//! `ls`, `du` and `purge`, with the server running and stopped: the program itself, on a real
//! data directory.
#![cfg(unix)]

use std::path::Path;
use std::process::Output;

use millpond::app::App;
use millpond::config;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{Image, Registry, noise};

struct Site {
    dir: TempDir,
    upstream: Registry,
}

impl Site {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let upstream = Registry::start().await;
        let text = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: '{}'}}}}\n\
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
        let file = self.path("config.yml");
        let loaded = config::load(Some(Path::new(&file)), std::iter::empty()).unwrap();
        App::start(&loaded.config).await.unwrap()
    }

    /// Pulls a blob of 1000 bytes through the server.
    async fn pull(&self, app: &App, repo: &str, seed: u64) {
        let digest = self.upstream.put_blob(repo, &noise(seed, 1000));
        let client = reqwest::Client::builder()
            .tls_certs_only([])
            .build()
            .unwrap();
        let url = format!("http://{}/v2/{repo}/blobs/{digest}", app.address());
        let mut response = client.get(url).send().await.unwrap();
        assert_eq!(response.status(), 200);
        while response.chunk().await.unwrap().is_some() {}
        // The commit follows the last byte: the next answer comes from the store.
        crate::harness::eventually("the blob is stored", || {
            app.metrics()
                .render()
                .contains("millpond_downloads_in_flight 0")
        })
        .await;
    }

    /// Runs the program beside the runtime, so that the server goes on answering.
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
        let output = self.run(arguments).await;
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).unwrap()
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
    let hex = digest.hex();
    let file = site.path(&format!(
        "data/docker/registry/v2/blobs/sha256/{}/{hex}/data",
        hex.get(..2).unwrap()
    ));
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
async fn what_is_purged_or_set_aside_is_not_served_from_memory() {
    let site = Site::new().await;
    let app = site.serve().await;
    let image = Image::oci(1);
    let digest = site.upstream.push("app", "1", &image);
    let client = reqwest::Client::builder().tls_certs_only([]);
    let client = client.build().unwrap();
    let url = format!("http://{}/v2/app/manifests/{digest}", app.address());
    let from = async || {
        let response = client.get(&url).send().await.unwrap();
        assert_eq!(response.status(), 200);
        response.headers()["cache-status"]
            .to_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(from().await, "millpond; fwd=miss");
    assert_eq!(from().await, "millpond; hit");
    site.text(&["purge", &format!("app@{digest}")]).await;
    assert_eq!(from().await, "millpond; fwd=miss");
    assert_eq!(from().await, "millpond; hit");

    let hex = digest.hex();
    let file = site.path(&format!(
        "data/docker/registry/v2/blobs/sha256/{}/{hex}/data",
        hex.get(..2).unwrap()
    ));
    std::fs::write(&file, "damaged").unwrap();
    assert_eq!(from().await, "millpond; hit", "memory isn't damaged");
    site.text(&["scrub", "--repair"]).await;
    assert_eq!(from().await, "millpond; fwd=miss");
    assert_eq!(std::fs::read(&file).unwrap(), image.manifest);
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
