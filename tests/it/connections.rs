//! What bounds clients' connections: deadlines, limits, and how they end at a stop.

use std::io::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use reqwest::Client;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::harness::{
    Mirror, advance, eventually, mirrored, mirrored_with, passing, put_blob, read, settle,
};

/// A whole request.
const BASE: &[u8] = b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n";
const SECOND: Duration = Duration::from_secs(1);

async fn connect(m: &Mirror) -> TcpStream {
    TcpStream::connect(m.address()).await.unwrap()
}

/// A connection on which these bytes were sent.
async fn sending(m: &Mirror, bytes: &[u8]) -> TcpStream {
    let mut stream = connect(m).await;
    stream.write_all(bytes).await.unwrap();
    stream
}

/// Everything that the server has sent, and whether it has closed the connection.
fn received(stream: &TcpStream) -> (String, bool) {
    let mut all = Vec::new();
    let mut some = [0; 4096];
    let closed = loop {
        match stream.try_read(&mut some) {
            Ok(0) => break true,
            Ok(n) => all.extend_from_slice(&some[..n]),
            Err(error) => break error.kind() != std::io::ErrorKind::WouldBlock,
        }
    };
    (String::from_utf8(all).unwrap(), closed)
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
    for lines in [&[][..], &["http.http2: {disabled: true}"]] {
        let (_up, m) = mirrored_with(lines).await;
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
    for start in ["GET /v2/ HT", "PRI * HT"] {
        let (_up, m) = mirrored().await;
        let mut slow = sending(&m, start.as_bytes()).await;
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
    let (_up, m) = mirrored().await;
    let mut idle = connect(&m).await;
    for round in 0..2 {
        idle.write_all(BASE).await.unwrap();
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
    let mut half = sending(&m, BASE).await;
    eventually("an answer", || !received(&half).0.is_empty()).await;
    half.write_all(b"GET /v2").await.unwrap();
    advance(16 * SECOND).await;
    is_closed(&half).await;
}

#[tokio::test(start_paused = true)]
async fn an_incomplete_request_head_does_not_delay_a_stop() {
    let (_up, m) = mirrored_with(&["http.draintimeout: 30s"]).await;
    let half = sending(&m, b"GET /v2/ HTTP/1.1\r\nHo").await;
    let second = sending(&m, &[BASE, b"GET /v2/ HTTP/1.1\r\nHo"].concat()).await;
    let preface = sending(&m, b"PRI * HTTP/2.0\r\n").await;
    let _handshake = sending(&m, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0").await;
    let silent = connect(&m).await;
    open(&m, 5).await;
    m.counted(r#"millpond_requests_total{route="base",result="hit"}"#, 1)
        .await;
    let started = tokio::time::Instant::now();
    assert!(passing(m.app.stop()).await);
    // Their requests could still have come.
    assert_eq!(started.elapsed().as_secs(), 1);
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
    let (_up, m) = mirrored_with(&["http.limits: {connections: 2}"]).await;
    let admitted = [connect(&m).await, connect(&m).await];
    open(&m, 2).await;
    let silent = connect(&m).await;
    let (rest, closed) = loop {
        match received(&silent) {
            (_, false) => settle().await,
            end => break end,
        }
    };
    let nothing = closed && rest.is_empty();
    assert!(nothing, "no answer before a request: {rest}");
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
    let length = format!("Content-Length: {}", body.len());
    assert!(head.contains(&length), "{head}");
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["errors"][0]["code"], "UNAVAILABLE");
    m.counted(r#"millpond_connections_refused_total{reason="total"}"#, 2)
        .await;
    assert_eq!(m.debug("/debug/health").await.status, 200);
    drop(admitted);
    // Only the operator's connection may be left.
    eventually("room", || m.metric("millpond_connections") <= 1).await;
    m.serves("/v2/", b"{}").await;
}

#[tokio::test]
async fn connections_from_one_address_may_be_limited() {
    let (_up, m) = mirrored_with(&["http.limits: {peraddress: 1}"]).await;
    let held = connect(&m).await;
    open(&m, 1).await;
    let client = || Client::builder().tls_certs_only([]);
    let other = client().local_address(IpAddr::from([127, 0, 0, 2]));
    let (client, other) = (client().build().unwrap(), other.build().unwrap());
    let url = format!("http://{}/v2/", m.address());
    assert!(client.get(&url).send().await.is_err());
    let served = read(other.get(&url).send().await.unwrap()).await;
    served.expect(200, b"{}");
    m.counted(r#"millpond_connections_refused_total{reason="address"}"#, 1)
        .await;
    drop((held, other));
    open(&m, 0).await;
    let served = read(client.get(&url).send().await.unwrap()).await;
    served.expect(200, b"{}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_may_take_longer_than_a_head() {
    let (up, m) = mirrored().await;
    let (blob, path) = put_blob(&up, 1, 2_000_000);
    let gate = up.hold_body("/blobs/", 1, 1000);
    let response = m.open(&path).await;
    advance(40 * SECOND).await;
    gate.open();
    read(response).await.expect(200, &blob);
}
