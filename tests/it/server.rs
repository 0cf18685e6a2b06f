//! The listeners: how the API presents itself, where it listens, and how it stops.

use std::os::unix::net::UnixListener;

use reqwest::Client;

use crate::harness::{
    Image, Mirror, Registry, Setup, advance, digest, eventually, mirrored, mirrored_with, passing,
    put_blob, put_image, read, settle, to_end,
};

fn with_tags(up: &Registry) {
    for repo in ["a", "b", "c"] {
        up.push(repo, "1", &Image::oci(1));
    }
}

#[tokio::test]
async fn the_api_below_a_prefix() {
    let (up, m) = mirrored_with(&["http.prefix: /some/mirror/"]).await;
    with_tags(&up);
    m.serves("/some/mirror/v2/", b"{}").await;
    for path in ["/v2/", "/some/mirrorv2/", "/some/mirror", "/other/v2/"] {
        m.get(path).await.refused(404, "UNSUPPORTED");
    }
    for repo in ["a", "b"] {
        let path = format!("/some/mirror/v2/{repo}/manifests/1");
        m.serves(&path, &Image::oci(1).manifest).await;
    }
    let page = m.get("/some/mirror/v2/_catalog?n=1").await;
    let next = "</some/mirror/v2/_catalog?last=a&n=1>; rel=\"next\"";
    page.has("link", next);
}

#[tokio::test]
async fn links_name_the_host_that_clients_know() {
    let host = "http.host: 'https://m.example'";
    let slash = "http.host: 'https://m.example/'";
    for (lines, prefix, link) in [
        (&[slash][..], "", "https://m.example/v2/"),
        (&[host, "http.relativeurls: true"], "", "/v2/"),
        (&[host, "http.prefix: /x"], "/x", "https://m.example/x/v2/"),
    ] {
        let (up, m) = mirrored_with(lines).await;
        with_tags(&up);
        for repo in ["a", "b"] {
            let path = format!("{prefix}/v2/{repo}/manifests/1");
            m.serves(&path, &Image::oci(1).manifest).await;
        }
        let page = m.get(&format!("{prefix}/v2/_catalog?n=1")).await;
        page.has("link", format!("<{link}_catalog?last=a&n=1>; rel=\"next\""));
    }
}

#[tokio::test]
async fn configured_headers_are_on_every_answer() {
    let headers = "http.headers: {X-Content-Type-Options: [nosniff], X-Two: [a, b]}";
    let (up, m) = mirrored_with(&[headers]).await;
    let (_, blob) = put_blob(&up, 1, 10);
    for path in ["/", "/v2/", "/nothing", "/v2/App/tags/list", &blob] {
        let answer = m.get(path).await;
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(answer.headers.get_all("x-two").iter().count(), 2, "{path}");
    }
}

#[tokio::test]
async fn http_2_by_prior_knowledge_unless_it_is_disabled() {
    let client = Client::builder().tls_certs_only([]).http2_prior_knowledge();
    let client = client.build().unwrap();
    let (up, m) = mirrored().await;
    let (blob, path) = put_blob(&up, 1, 1_000_000);
    for _ in 0..2 {
        let url = format!("http://{}{path}", m.address());
        let response = client.get(url).send().await.unwrap();
        assert_eq!(response.version(), http::Version::HTTP_2);
        read(response).await.expect(200, &blob);
        m.idle().await;
    }
    let (_up, m) = mirrored_with(&["http.http2: {disabled: true}"]).await;
    let url = format!("http://{}/v2/", m.address());
    assert!(client.get(url).send().await.is_err());
    m.serves("/v2/", b"{}").await;
}

#[tokio::test]
async fn the_operators_listener_is_apart() {
    let (_up, m) = mirrored().await;
    m.debug("/debug/health").await.expect(200, b"{}");
    m.serves("/v2/", b"{}").await;
    m.counted(r#"millpond_requests_total{route="base",result="hit"}"#, 1)
        .await;
    let metrics = m.debug("/metrics").await;
    assert_eq!(metrics.status, 200);
    let kind = metrics.header("content-type");
    assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
    let text = String::from_utf8(metrics.body.to_vec()).unwrap();
    let labels = r#"{route="base",upstream="none",status="200",result="hit"}"#;
    let counted = format!("\nmillpond_requests_total{labels} 1\n");
    assert!(text.contains(&counted), "{text}");
    assert_eq!(m.debug("/v2/").await.status, 404);
    for path in ["/metrics", "/debug/health"] {
        assert_eq!(m.get(path).await.status, 404, "{path} is not for clients");
    }
}

/// Why a mirror doesn't start.
async fn start_error(setup: Setup) -> String {
    setup.try_start().await.err().unwrap().to_string()
}

#[tokio::test]
async fn a_port_in_use_is_said_with_its_address() {
    let up = Registry::start().await;
    let taken = up.address;
    let error = start_error(Setup::new(&up).addr(taken)).await;
    let expected = format!("can't listen on {taken}: ");
    assert!(error.starts_with(&expected), "{error}");
    assert!(error.contains("is another program"), "{error}");
}

fn on_socket(up: &Registry, path: &std::path::Path) -> Setup {
    Setup::new(up)
        .addr(path.display())
        .with(&["http.net: unix"])
}

#[tokio::test]
async fn a_unix_socket() {
    let up = Registry::start().await;
    let (image, _) = put_image(&up, 1);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    // What a killed process leaves.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let m = on_socket(&up, &path).start().await;
    m.serves("/v2/app/manifests/1", &image.manifest).await;
    let error = start_error(on_socket(&up, &path)).await;
    assert!(error.contains("another program answers there"), "{error}");
    m.serves("/v2/", b"{}").await;
    assert!(m.app.stop().await);
    assert!(!path.exists(), "it goes with the server");
    std::fs::write(&path, "a file of somebody's").unwrap();
    let error = start_error(on_socket(&up, &path)).await;
    assert!(error.contains(&path.display().to_string()), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"a file of somebody's");
}

#[tokio::test(start_paused = true)]
async fn responses_finish_within_the_drain_time() {
    let (up, m) = mirrored_with(&["http.draintimeout: 30s"]).await;
    let (blob, path) = put_blob(&up, 1, 2_000_000);
    let gate = up.hold_body("/blobs/", 1, 1000);
    m.serves("/v2/", b"{}").await;
    let mut running = m.open(&path).await;
    let address = m.address();
    let client = async {
        advance(std::time::Duration::from_secs(29)).await;
        let new = tokio::net::TcpStream::connect(address).await;
        assert!(new.is_err(), "no new connections");
        gate.open();
        to_end(&mut running).await
    };
    let (clean, (body, broken)) = tokio::join!(m.app.stop(), client);
    assert!(clean && !broken && body == blob);
    let stored = m.store.size(&digest(&blob)).await.unwrap();
    assert_eq!(stored, Some(2_000_000), "and is kept");
}

#[tokio::test(start_paused = true)]
async fn unfinished_responses_are_cut_after_the_drain_time() {
    let (up, m) = mirrored_with(&["http.draintimeout: 30s"]).await;
    let (blob, path) = put_blob(&up, 1, 2_000_000);
    let _never = up.hold_body("/blobs/", 1, 1000);
    let mut stuck = m.open(&path).await;
    assert!(stuck.chunk().await.unwrap().is_some());
    let Mirror { app, store, .. } = m;
    let started = tokio::time::Instant::now();
    let (clean, (_, broken)) =
        passing(async { tokio::join!(app.stop(), to_end(&mut stuck)) }).await;
    assert!(!clean && broken);
    let waited = started.elapsed().as_secs();
    assert!((30..32).contains(&waited), "{waited}");
    let stored = store.size(&digest(&blob)).await.unwrap();
    assert_eq!(stored, None);
}

/// Idle connections are no unfinished work, however little time a stop gives to that.
#[tokio::test(start_paused = true)]
async fn idle_connections_are_no_unfinished_work() {
    let (up, m) = mirrored_with(&["http.draintimeout: 0"]).await;
    m.serves("/v2/", b"{}").await;
    let raw = tokio::net::TcpStream::connect(m.address()).await.unwrap();
    eventually("both are open", || m.metric("millpond_connections") == 2).await;
    settle().await;
    assert!(passing(m.app.stop()).await);
    drop(raw);

    let m = Setup::new(&up)
        .with(&["http.draintimeout: 0"])
        .start()
        .await;
    let (_, path) = put_blob(&up, 1, 2_000_000);
    let _never = up.hold_body("/blobs/", 1, 1000);
    let mut stuck = m.open(&path).await;
    assert!(stuck.chunk().await.unwrap().is_some());
    assert!(!passing(m.app.stop()).await);
}

#[tokio::test]
async fn idle_connections_do_not_hold_up_a_stop() {
    let (_up, m) = mirrored().await;
    m.serves("/v2/", b"{}").await;
    let raw = tokio::net::TcpStream::connect(m.address()).await.unwrap();
    eventually("both are open", || m.metric("millpond_connections") == 2).await;
    settle().await;
    assert!(m.app.stop().await);
    drop(raw);
}
