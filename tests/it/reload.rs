//! The configuration changes while the mirror runs.

use std::time::Duration;

use millpond::admin::reload::ReloadReport;
use millpond::config;
use testkit::time::{advance, settle};

use crate::harness::{
    Image, Mirror, Registry, Setup, eventually, mirrored, put_blob, put_image, to_end,
};

const RELOADS: usize = 300;
const CLIENTS: usize = 6;

impl Mirror {
    /// Applies another configuration.
    async fn reload(&self, setup: Setup) -> ReloadReport {
        self.app.reload(Ok(setup.loaded()), |_| ()).await
    }

    /// The same, whose keys are all applied.
    async fn applies(&self, setup: Setup) {
        let report = self.reload(setup).await;
        assert!(
            report.problems.is_empty() && report.restart.is_empty(),
            "{report:?}"
        );
        assert!(!report.applied.is_empty(), "{report:?}");
    }
}

/// Asserts that the report warns of something.
#[track_caller]
fn warns(report: &ReloadReport, text: &str) {
    let found = report.warnings.iter().any(|warning| warning.contains(text));
    assert!(found, "{report:?}");
}

fn keys(differences: &[config::Difference]) -> Vec<&str> {
    differences
        .iter()
        .map(|difference| difference.key.as_str())
        .collect()
}

#[tokio::test]
async fn reloads_under_load_lose_no_request() {
    let (up, other) = (Registry::start().await, Registry::start().await);
    let (image, by_digest) = put_image(&up, 1);
    let (large, large_path) = put_blob(&up, 2, 300_000);
    let m = Setup::new(&up).start().await;
    m.serves(&by_digest, &image.manifest).await;
    let client = async |number: usize, done: &std::cell::Cell<bool>| {
        let mut served = 0;
        while !done.get() || served < 10 {
            match (served + number) % 3 {
                0 => drop(m.serves("/v2/app/manifests/1", &image.manifest).await),
                1 => drop(m.serves(&by_digest, &image.manifest).await),
                _ => drop(m.serves(&large_path, &large).await),
            }
            served += 1;
        }
        served
    };
    let done = std::cell::Cell::new(false);
    let reloads = async {
        for round in 0..RELOADS {
            let ttl = format!("proxy.ttl: {}h", 1 + round % 7);
            let header = format!("http.headers: {{X-Round: ['{round}']}}");
            let lines = [ttl.as_str(), &header, "proxy.tags: {ttl: 0}"];
            let setup = Setup::new(&up).with(&lines[..2 + round % 2]);
            let setup = match round % 4 {
                0 => setup,
                1 => setup.upstream("other.example", &other, ""),
                2 => setup.upstream("other.example", &other, ", accessttl: 2m"),
                _ => setup.with(&["root.access: [{anyone: true, effect: allow}]"]),
            };
            m.applies(setup).await;
            tokio::task::yield_now().await;
        }
        done.set(true);
    };
    let clients = futures_util::future::join_all((0..CLIENTS).map(|number| client(number, &done)));
    let ((), served) = tokio::join!(reloads, clients);
    assert!(served.iter().all(|served| *served >= 10), "{served:?}");
    m.idle().await;
    let gets = up.count(&format!("GET {large_path}"));
    assert_eq!(gets, 1, "the blob is downloaded once");
}

#[tokio::test]
async fn a_broken_file_changes_nothing() {
    let (up, m) = mirrored().await;
    let broken =
        "version: 0.1\nhttp: {addr: x, haeders: {}}\nproxy: {remoteurl: 'http://a', ttl: y}\n";
    let loaded = config::parse(broken, "c.yml", std::iter::empty());
    let report = m.app.reload(loaded, |_| panic!("it is applied")).await;
    assert_eq!(report.problems.len(), 3, "{report:?}");
    assert!(
        report.problems[0].starts_with("c.yml:2: `http.addr` is \"x\""),
        "{report:?}"
    );
    m.serves("/v2/", b"{}").await;
    // Files are read before anything changes, too.
    let lines = ["http.headers: {X-A: [b]}", "proxy.ca: Cargo.toml"];
    let report = m.reload(Setup::new(&up).with(&lines)).await;
    assert!(report.problems[0].contains("`proxy.ca`"), "{report:?}");
    assert_eq!(m.get("/v2/").await.header("x-a"), "");
}

#[tokio::test]
async fn what_cannot_change_is_named_and_stays() {
    let (up, m) = mirrored().await;
    let elsewhere = Registry::start().await;
    let (image, _) = put_image(&up, 1);
    let lines = ["http.headers: {X-A: [b]}", "http.http2: {disabled: true}"];
    let setup = || Setup::new(&up).with(&lines).addr("127.0.0.2:0");
    for _ in 0..2 {
        let report = m.reload(setup()).await;
        assert_eq!(keys(&report.restart), ["http.addr", "http.http2.disabled"]);
    }
    m.serves("/v2/app/manifests/1", &image.manifest)
        .await
        .has("x-a", "b");
    // Another URL would make what is cached another registry's; what belongs to it stays with it.
    let setup = Setup::new(&elsewhere).with(&["proxy.anonymous: true"]);
    let report = m.reload(setup).await;
    assert_eq!(
        keys(&report.restart),
        ["proxy.anonymous", "proxy.remoteurl"]
    );
    assert_eq!(keys(&report.applied), ["http.headers.x-a"]);
    warns(&report, "until a restart");
    m.serves("/v2/app/manifests/1", &image.manifest).await;
    assert_eq!(elsewhere.count(""), 0);
}

#[tokio::test]
async fn rules_headers_and_denials_apply_to_the_next_request() {
    let (up, m) = mirrored().await;
    let (image, by_digest) = put_image(&up, 1);
    m.serves(&by_digest, &image.manifest).await;
    let rules = "root.access: [{repositories: [other/**], anyone: true, effect: allow}]";
    m.applies(Setup::new(&up).with(&[rules])).await;
    assert_eq!(m.get(&by_digest).await.status, 403);
    m.applies(Setup::new(&up)).await;
    m.serves(&by_digest, &image.manifest).await;
    m.applies(Setup::new(&up).with(&["root.deny: {images: [app]}"]))
        .await;
    assert_eq!(m.get(&by_digest).await.status, 403);
    m.applies(Setup::new(&up).with(&["http.prefix: /mirror"]))
        .await;
    assert_eq!(m.get(&by_digest).await.status, 404);
    m.serves(&format!("/mirror{by_digest}"), &image.manifest)
        .await;
    let lines = ["http.limits: {connections: 1}"];
    m.applies(Setup::new(&up).with(&lines)).await;
    let beyond = tokio::net::TcpStream::connect(m.address()).await.unwrap();
    eventually("one too many is refused", || {
        matches!(beyond.try_read(&mut [0]), Ok(0) | Err(_)) && m.metric("millpond_connections") == 1
    })
    .await;
}

#[tokio::test]
async fn a_download_goes_on_and_new_requests_join_it() {
    let (up, m) = mirrored().await;
    let (blob, path) = put_blob(&up, 1, 2_000_000);
    let gate = up.hold_body("/blobs/", 1, 1000);
    let mut first = m.open(&path).await;
    assert!(first.chunk().await.unwrap().is_some());
    // Another client of the same upstream, and other limits.
    let lines = ["proxy.connecttimeout: 5s", "proxy.streams: {total: 3}"];
    m.applies(Setup::new(&up).with(&lines)).await;
    let mut second = m.open(&path).await;
    assert!(second.chunk().await.unwrap().is_some());
    assert_eq!(up.count("GET /v2/app/blobs/"), 1);
    gate.open();
    let ((_, broken), (_, broken_second)) = tokio::join!(to_end(&mut first), to_end(&mut second));
    assert!(!broken && !broken_second);
    m.pull(&path, &blob).await;
    assert_eq!(up.count("GET /v2/app/blobs/"), 1);
}

#[tokio::test]
async fn upstreams_come_and_go() {
    let (up, m) = mirrored().await;
    let other = Registry::start().await;
    let image = Image::oci(3);
    other.push("app", "1", &image);
    let path = "/v2/other.example/app/manifests/1";
    assert_eq!(m.get(path).await.status, 404);
    let with_other = || Setup::new(&up).upstream("other.example", &other, "");
    m.applies(with_other()).await;
    m.serves(path, &image.manifest).await;

    // Its last download goes on; the name isn't the default upstream's meanwhile.
    let (blob, _) = put_blob(&other, 4, 3_000_000);
    let blob_path = format!(
        "/v2/other.example/app/blobs/{}",
        crate::harness::digest(&blob)
    );
    let gate = other.hold_body("/blobs/", 1, 1000);
    let mut running = m.open(&blob_path).await;
    assert!(running.chunk().await.unwrap().is_some());
    m.applies(Setup::new(&up)).await;
    up.push("other.example/app", "1", &Image::oci(5));
    m.get(path).await.refused(404, "NAME_UNKNOWN");
    m.get(&blob_path).await.refused(404, "NAME_UNKNOWN");
    assert_eq!(
        m.get("/v2/_catalog").await.json()["repositories"],
        serde_json::json!([])
    );
    gate.open();
    assert!(!to_end(&mut running).await.1);
    m.idle().await;
    m.get(&blob_path).await.refused(404, "NAME_UNKNOWN");

    // The same upstream again has its content; one at another URL has to wait.
    m.applies(with_other()).await;
    other.go_down();
    m.serves(&blob_path, &blob).await;
    m.applies(Setup::new(&up)).await;
    let report = m
        .reload(Setup::new(&up).upstream("other.example", &up, ""))
        .await;
    assert!(!report.restart.is_empty());
    warns(&report, "other.example");
    m.get(path).await.refused(404, "NAME_UNKNOWN");
}

#[tokio::test]
async fn a_name_under_which_the_default_upstream_is_cached_waits_for_a_restart() {
    let (up, m) = mirrored().await;
    let image = Image::oci(1);
    up.push("q.example/app", "1", &image);
    let path = "/v2/q.example/app/manifests/1";
    m.serves(path, &image.manifest).await;
    let report = m
        .reload(Setup::new(&up).upstream("q.example", &up, ""))
        .await;
    assert!(
        keys(&report.restart).contains(&"proxy.upstreams[q.example].remoteurl"),
        "{report:?}"
    );
    m.serves(path, &image.manifest).await;
}

#[tokio::test(start_paused = true)]
async fn times_to_live_apply_to_what_is_cached() {
    let (up, m) = mirrored().await;
    let (blob, path) = put_blob(&up, 1, 1000);
    m.pull(&path, &blob).await;
    m.app
        .reload(Ok(Setup::new(&up).with(&["proxy.ttl: 0"]).loaded()), |_| ())
        .await;
    advance(Duration::from_hours(24 * 30)).await;
    settle().await;
    assert!(m.is_stored(&blob).await, "it is kept for ever");
    m.applies(Setup::new(&up).with(&["proxy.ttl: 1h"])).await;
    for _ in 0..1000 {
        if !m.is_stored(&blob).await {
            return;
        }
        settle().await;
    }
    panic!("its time is over");
}

#[tokio::test]
async fn an_account_is_not_lent_until_the_restart() {
    let up = Registry::start().await;
    let m = Setup::new(&up)
        .with(&["proxy.anonymous: false"])
        .addr("0.0.0.0:0")
        .start()
        .await;
    let lends = [
        "proxy.username: u",
        "proxy.password: p",
        "proxy.plainhttp: true",
    ];
    // The new file is fine: it listens on this machine only. But that takes a restart.
    let report = m.reload(Setup::new(&up).with(&lends)).await;
    assert!(
        report.problems[0].contains("until a restart, everyone"),
        "{report:?}"
    );
}
