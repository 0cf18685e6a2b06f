//! The listeners: how the API presents itself, where it listens, and how it stops.

use std::os::unix::net::UnixListener;

use millpond::app::App;
use millpond::config;
use reqwest::Client;

use crate::harness::{
    Gate, Image, Mirror, Registry, Setup, advance, eventually, freeze, log, mirrored, noise,
    passing, read, settle, to_end,
};

fn with_tags(up: &Registry) {
    for repo in ["a", "b", "c"] {
        up.push(repo, "1", &Image::oci(1));
    }
}

#[tokio::test]
async fn the_api_below_a_prefix() {
    let up = Registry::start().await;
    with_tags(&up);
    let m = Setup::new(&up).http("prefix: /some/mirror/").start().await;
    m.get("/some/mirror/v2/").await.expect(200, b"{}");
    for path in ["/v2/", "/some/mirrorv2/", "/some/mirror", "/other/v2/"] {
        assert_eq!(
            m.get(path).await.error(),
            (404, "UNSUPPORTED".to_owned()),
            "{path}"
        );
    }
    for repo in ["a", "b"] {
        let path = format!("/some/mirror/v2/{repo}/manifests/1");
        m.get(&path).await.expect(200, &Image::oci(1).manifest);
    }
    let page = m.get("/some/mirror/v2/_catalog?n=1").await;
    assert_eq!(
        page.header("link"),
        "</some/mirror/v2/_catalog?last=a&n=1>; rel=\"next\""
    );
}

#[tokio::test]
async fn links_name_the_host_that_clients_know() {
    for (lines, link) in [
        (
            &["host: 'https://m.example/'"][..],
            "<https://m.example/v2/_catalog?last=a&n=1>",
        ),
        (
            &["host: 'https://m.example'", "relativeurls: true"],
            "</v2/_catalog?last=a&n=1>",
        ),
        (
            &["host: 'https://m.example'", "prefix: /x"],
            "<https://m.example/x/v2/_catalog?last=a&n=1>",
        ),
    ] {
        let up = Registry::start().await;
        with_tags(&up);
        let m = lines
            .iter()
            .fold(Setup::new(&up), |setup, line| setup.http(line))
            .start()
            .await;
        let prefix = if lines.contains(&"prefix: /x") {
            "/x"
        } else {
            ""
        };
        for repo in ["a", "b"] {
            assert_eq!(
                m.get(&format!("{prefix}/v2/{repo}/manifests/1"))
                    .await
                    .status,
                200
            );
        }
        let page = m.get(&format!("{prefix}/v2/_catalog?n=1")).await;
        assert_eq!(page.header("link"), format!("{link}; rel=\"next\""));
    }
}

#[tokio::test]
async fn configured_headers_are_on_every_answer() {
    let up = Registry::start().await;
    let m = Setup::new(&up)
        .http("headers: {X-Content-Type-Options: [nosniff], X-Two: [a, b]}")
        .start()
        .await;
    let digest = up.put_blob("app", &noise(1, 10));
    for path in [
        "/",
        "/v2/",
        "/nothing",
        "/v2/App/tags/list",
        &format!("/v2/app/blobs/{digest}"),
    ] {
        let answer = m.get(path).await;
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(answer.headers.get_all("x-two").iter().count(), 2, "{path}");
    }
}

#[tokio::test]
async fn http_2_by_prior_knowledge_unless_it_is_disabled() {
    let up = Registry::start().await;
    let blob = noise(1, 1_000_000);
    let digest = up.put_blob("app", &blob);
    let client = Client::builder()
        .tls_certs_only([])
        .http2_prior_knowledge()
        .build()
        .unwrap();
    let m = Setup::new(&up).start().await;
    for _ in 0..2 {
        let url = format!("http://{}/v2/app/blobs/{digest}", m.address());
        let response = client.get(url).send().await.unwrap();
        assert_eq!(response.version(), http::Version::HTTP_2);
        read(response).await.expect(200, &blob);
        m.idle().await;
    }
    let m = Setup::new(&up)
        .http("http2: {disabled: true}")
        .start()
        .await;
    assert!(
        client
            .get(format!("http://{}/v2/", m.address()))
            .send()
            .await
            .is_err()
    );
    m.get("/v2/").await.expect(200, b"{}");
}

#[tokio::test]
async fn the_operators_listener_is_apart() {
    let (_up, m) = mirrored().await;
    let debug = m.app.debug_address().unwrap().to_string();
    let client = Client::builder().tls_certs_only([]).build().unwrap();
    let get = async |path: &str| {
        read(
            client
                .get(format!("http://{debug}{path}"))
                .send()
                .await
                .unwrap(),
        )
        .await
    };
    get("/debug/health").await.expect(200, b"{}");
    m.get("/v2/").await.expect(200, b"{}");
    m.counted(r#"millpond_requests_total{kind="base",result="hit"}"#, 1)
        .await;
    let metrics = get("/metrics").await;
    assert_eq!(metrics.status, 200);
    assert!(
        metrics
            .header("content-type")
            .starts_with("application/openmetrics-text")
    );
    let text = String::from_utf8(metrics.body.to_vec()).unwrap();
    assert!(
        text.contains(r#"millpond_responses_total{kind="base",status="200"} 1"#),
        "{text}"
    );
    assert!(text.ends_with("# EOF\n"), "{text}");
    assert_eq!(get("/v2/").await.status, 404);
    for path in ["/metrics", "/debug/health"] {
        assert_eq!(m.get(path).await.status, 404, "{path} is not for clients");
    }
}

#[tokio::test]
async fn a_port_in_use_is_said_with_its_address() {
    let up = Registry::start().await;
    let taken = up.address;
    let error = Setup::new(&up).addr(taken).try_start().await.err().unwrap();
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("can't listen on {taken}: ")),
        "{text}"
    );
    assert!(text.contains("is another program"), "{text}");
}

#[tokio::test]
async fn a_data_directory_is_one_processes_own() {
    log::install();
    let up = Registry::start().await;
    let root = tempfile::tempdir().unwrap();
    let yaml = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: '{}'}}, minfree: 0}}\nhttp: {{addr: '127.0.0.1:0'}}\nproxy: {{remoteurl: '{}'}}\n",
        root.path().display(),
        up.url()
    );
    let config = config::parse(&yaml, "the test", std::iter::empty())
        .unwrap()
        .config;
    let first = App::start(&config).await.unwrap();
    let error = App::start(&config).await.unwrap_err().to_string();
    let holder = format!("in use by process {}", std::process::id());
    assert!(error.contains(&holder), "{error}");
    assert!(
        error.contains(&root.path().display().to_string()),
        "{error}"
    );
    assert!(first.debug_address().is_none());
    assert!(first.stop().await);
    assert!(App::start(&config).await.is_ok(), "free again");
}

fn on_socket(up: &Registry, path: &std::path::Path) -> Setup {
    Setup::new(up).addr(path.display()).http("net: unix")
}

#[tokio::test]
async fn a_unix_socket() {
    let up = Registry::start().await;
    let image = Image::oci(1);
    up.push("app", "1", &image);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    // What a killed process leaves.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let m = on_socket(&up, &path).start().await;
    m.serves("/v2/app/manifests/1", &image.manifest).await;
    let error = on_socket(&up, &path)
        .try_start()
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("another program answers there"), "{error}");
    m.get("/v2/").await.expect(200, b"{}");
    let Mirror { app, .. } = m;
    assert!(app.stop().await);
    assert!(!path.exists(), "it goes with the server");
    std::fs::write(&path, "a file of somebody's").unwrap();
    let error = on_socket(&up, &path)
        .try_start()
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains(&path.display().to_string()), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"a file of somebody's");
}

#[tokio::test(start_paused = true)]
async fn responses_finish_within_the_drain_time() {
    let _frozen = freeze();
    let up = Registry::start().await;
    let m = Setup::new(&up).http("draintimeout: 30s").start().await;
    let blob = noise(1, 2_000_000);
    let digest = up.put_blob("app", &blob);
    let gate = up.hold_body("/blobs/", 1, 1000);
    m.get("/v2/").await.expect(200, b"{}");
    let mut running = m.open(&format!("/v2/app/blobs/{digest}")).await;
    let (address, store) = (m.address(), std::sync::Arc::clone(&m.store));
    let Mirror { app, .. } = m;
    let client = async {
        advance(std::time::Duration::from_secs(29)).await;
        assert!(
            tokio::net::TcpStream::connect(address).await.is_err(),
            "no new connections"
        );
        gate.open();
        to_end(&mut running).await
    };
    let (clean, (body, broken)) = tokio::join!(app.stop(), client);
    assert!(clean && !broken && body == blob);
    assert_eq!(
        store.size(&digest).await.unwrap(),
        Some(2_000_000),
        "and is kept"
    );
}

#[tokio::test(start_paused = true)]
async fn unfinished_responses_are_cut_after_the_drain_time() {
    let _frozen = freeze();
    let up = Registry::start().await;
    let m = Setup::new(&up).http("draintimeout: 30s").start().await;
    let digest = up.put_blob("app", &noise(1, 2_000_000));
    let never = Gate::default();
    up.on("/blobs/", 1, move |_, usual| usual.gated(1000, &never));
    let mut stuck = m.open(&format!("/v2/app/blobs/{digest}")).await;
    assert!(stuck.chunk().await.unwrap().is_some());
    let Mirror { app, store, .. } = m;
    let started = tokio::time::Instant::now();
    let (clean, (_, broken)) =
        passing(async { tokio::join!(app.stop(), to_end(&mut stuck)) }).await;
    assert!(!clean && broken);
    let waited = started.elapsed().as_secs();
    assert!((30..32).contains(&waited), "{waited}");
    assert_eq!(store.size(&digest).await.unwrap(), None);
}

#[tokio::test]
async fn idle_connections_do_not_hold_up_a_stop() {
    let (_up, m) = mirrored().await;
    m.get("/v2/").await.expect(200, b"{}");
    let raw = tokio::net::TcpStream::connect(m.address()).await.unwrap();
    eventually("both are open", || m.metric("millpond_connections") == 2).await;
    settle().await;
    let Mirror { app, .. } = m;
    assert!(app.stop().await);
    drop(raw);
}
