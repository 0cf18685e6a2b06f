//! What bounds clients' connections: deadlines, limits, and how they end at a stop.

use std::io::Write as _;
use std::time::Duration;

use reqwest::Client;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::harness::{
    Mirror, Registry, Setup, advance, eventually, freeze, mirrored, noise, read, settle,
};

const SECOND: Duration = Duration::from_secs(1);

async fn connect(m: &Mirror) -> TcpStream {
    TcpStream::connect(m.address()).await.unwrap()
}

/// Everything that the server has sent, and whether it has closed the connection.
fn received(stream: &TcpStream) -> (String, bool) {
    let mut all = Vec::new();
    let mut some = [0; 4096];
    loop {
        match stream.try_read(&mut some) {
            Ok(0) => break (String::from_utf8(all).unwrap(), true),
            Ok(n) => all.extend_from_slice(&some[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                break (String::from_utf8(all).unwrap(), false);
            }
            Err(_reset) => break (String::from_utf8(all).unwrap(), true),
        }
    }
}

async fn is_closed(stream: &TcpStream) {
    eventually("the server closes the connection", || received(stream).1).await;
}

async fn open(m: &Mirror, count: u64) {
    eventually("the server has taken the connections", || {
        m.metric("millpond_connections") == count
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn silent_connections_are_closed_after_ten_seconds() {
    let _frozen = freeze();
    let up = Registry::start().await;
    for http2 in ["", "http2: {disabled: true}"] {
        let m = Setup::new(&up).http(http2).start().await;
        let silent = connect(&m).await;
        open(&m, 1).await;
        advance(9 * SECOND).await;
        assert!(!received(&silent).1);
        advance(2 * SECOND).await;
        is_closed(&silent).await;
        open(&m, 0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_that_trickles_in_has_fifteen_seconds() {
    let _frozen = freeze();
    let up = Registry::start().await;
    for start in ["GET /v2/ HT", "PRI * HT"] {
        let m = Setup::new(&up).start().await;
        let mut slow = connect(&m).await;
        slow.write_all(start.as_bytes()).await.unwrap();
        open(&m, 1).await;
        for _ in 0..14 {
            advance(SECOND).await;
            assert!(!received(&slow).1);
            if start.starts_with("GET") {
                slow.write_all(b"x").await.unwrap();
            }
        }
        advance(2 * SECOND).await;
        is_closed(&slow).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_may_be_idle_for_75_seconds() {
    let _frozen = freeze();
    let (_up, m) = mirrored().await;
    let mut idle = connect(&m).await;
    for round in 0..2 {
        idle.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        eventually("an answer", || {
            answer += &received(&idle).0;
            answer.ends_with("{}")
        })
        .await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        advance(74 * SECOND).await;
        assert!(!received(&idle).1, "round {round}");
    }
    advance(2 * SECOND).await;
    is_closed(&idle).await;
    // A second head that isn't completed has no 75 seconds.
    let mut half = connect(&m).await;
    half.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    eventually("an answer", || !received(&half).0.is_empty()).await;
    half.write_all(b"GET /v2").await.unwrap();
    advance(16 * SECOND).await;
    is_closed(&half).await;
}

#[tokio::test(start_paused = true)]
async fn an_incomplete_request_head_does_not_delay_a_stop() {
    let _frozen = freeze();
    let up = Registry::start().await;
    let m = Setup::new(&up).http("draintimeout: 30s").start().await;
    let mut half = connect(&m).await;
    half.write_all(b"GET /v2/ HTTP/1.1\r\nHo").await.unwrap();
    let mut second = connect(&m).await;
    second
        .write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\nGET /v2/ HTTP/1.1\r\nHo")
        .await
        .unwrap();
    let mut preface = connect(&m).await;
    preface.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
    let mut handshake = connect(&m).await;
    handshake
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0")
        .await
        .unwrap();
    let silent = connect(&m).await;
    open(&m, 5).await;
    m.counted(r#"millpond_requests_total{kind="base",result="hit"}"#, 1)
        .await;
    let started = tokio::time::Instant::now();
    let Mirror { app, .. } = m;
    assert!(app.stop().await);
    assert_eq!(started.elapsed(), Duration::ZERO);
    let (answer, closed) = received(&second);
    assert!(
        closed && answer.starts_with("HTTP/1.1 200 OK\r\n"),
        "{answer}"
    );
    for stream in [&half, &preface, &silent] {
        assert_eq!(received(stream), (String::new(), true));
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_are_refused_and_operators_are_not() {
    let up = Registry::start().await;
    let m = Setup::new(&up)
        .http("limits: {connections: 2}")
        .start()
        .await;
    let admitted = [connect(&m).await, connect(&m).await];
    open(&m, 2).await;
    let silent = connect(&m).await;
    let (rest, closed) = loop {
        match received(&silent) {
            (_, false) => settle().await,
            end => break end,
        }
    };
    assert!(
        closed && rest.is_empty(),
        "no answer before a request: {rest}"
    );
    // The server runs on this thread, so the request is there when the connection is accepted.
    let mut refused = std::net::TcpStream::connect(m.address()).unwrap();
    write!(refused, "GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    refused.set_nonblocking(true).unwrap();
    let refused = TcpStream::from_std(refused).unwrap();
    let mut answer = String::new();
    eventually("a refusal", || {
        let (some, closed) = received(&refused);
        answer += &some;
        closed
    })
    .await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("\r\nRetry-After: 1\r\n"), "{answer}");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(
        head.contains(&format!("Content-Length: {}", body.len())),
        "{head}"
    );
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["errors"][0]["code"], "UNAVAILABLE");
    m.counted(r#"millpond_connections_refused_total{reason="total"}"#, 2)
        .await;
    let debug = m.app.debug_address().unwrap();
    let health = reqwest::get(format!("http://{debug}/debug/health")).await;
    assert_eq!(health.unwrap().status(), 200);
    drop(admitted);
    // Only the operator's connection may be left.
    eventually("room", || m.metric("millpond_connections") <= 1).await;
    m.get("/v2/").await.expect(200, b"{}");
}

#[tokio::test]
async fn connections_from_one_address_may_be_limited() {
    let up = Registry::start().await;
    let m = Setup::new(&up)
        .http("limits: {peraddress: 1}")
        .start()
        .await;
    let held = connect(&m).await;
    open(&m, 1).await;
    let other = Client::builder()
        .tls_certs_only([])
        .local_address(Some([127, 0, 0, 2].into()))
        .build()
        .unwrap();
    let url = format!("http://{}/v2/", m.address());
    let client = Client::builder().tls_certs_only([]).build().unwrap();
    assert!(client.get(&url).send().await.is_err());
    read(other.get(&url).send().await.unwrap())
        .await
        .expect(200, b"{}");
    m.counted(r#"millpond_connections_refused_total{reason="address"}"#, 1)
        .await;
    drop((held, other));
    open(&m, 0).await;
    read(client.get(&url).send().await.unwrap())
        .await
        .expect(200, b"{}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_may_take_longer_than_a_head() {
    let _frozen = freeze();
    let (up, m) = mirrored().await;
    let blob = noise(1, 2_000_000);
    let digest = up.put_blob("app", &blob);
    let gate = up.hold_body("/blobs/", 1, 1000);
    let mut response = m.open(&format!("/v2/app/blobs/{digest}")).await;
    advance(40 * SECOND).await;
    gate.open();
    let (body, broken) = crate::harness::to_end(&mut response).await;
    assert!(!broken && body == blob);
}
