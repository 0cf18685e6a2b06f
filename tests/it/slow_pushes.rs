//! Pushes whose bodies take long: the deadlines of connections and a stop are about heads of requests.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::push::{Pusher, SPACE};
use crate::harness::{noise, passing};

/// More than a head of a request may take, less than a client may be silent within a body.
const PAUSE: Duration = Duration::from_secs(50);
const PIECE: usize = 10_000;

/// The head of the next response on a connection. None where the server has closed it.
async fn head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

/// A connection on which the head of a PUT of this blob was sent, and the server has asked for the body.
async fn begun(p: &Pusher, blob: &Bytes) -> TcpStream {
    let at = p.begin("ci/app").await;
    let put = format!(
        "PUT {at}?digest={} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\nExpect: 100-continue\r\n\r\n",
        p.digest(blob),
        blob.len()
    );
    let mut stream = TcpStream::connect(p.m.address()).await.unwrap();
    stream.write_all(put.as_bytes()).await.unwrap();
    let asked = head(&mut stream).await.unwrap();
    assert!(asked.starts_with("HTTP/1.1 100 "), "{asked}");
    stream
}

#[tokio::test(start_paused = true)]
async fn a_body_has_no_deadline_while_bytes_come() {
    let p = Pusher::with(&[SPACE]).await;
    let blob = noise(1, 5 * PIECE);
    let mut stream = begun(&p, &blob).await;
    for piece in blob.chunks(PIECE) {
        passing(tokio::time::sleep(PAUSE)).await;
        stream.write_all(piece).await.unwrap();
    }
    let created = head(&mut stream).await.expect("a response");
    assert!(created.starts_with("HTTP/1.1 201 "), "{created}");
    p.m.serves(&format!("/v2/ci/app/blobs/{}", p.digest(&blob)), &blob)
        .await;
    // The body was no part of a next head: the connection is idle, and the next head is whole.
    passing(tokio::time::sleep(PAUSE)).await;
    let get = b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n";
    stream.write_all(get).await.unwrap();
    let answer = head(&mut stream).await.expect("a response");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_a_body_that_pauses() {
    let p = Pusher::with(&[SPACE, "http.draintimeout: 2m"]).await;
    let blob = noise(1, 2 * PIECE);
    let mut stream = begun(&p, &blob).await;
    stream.write_all(&blob[..PIECE]).await.unwrap();
    passing(tokio::time::sleep(Duration::from_secs(1))).await;
    let client = async {
        tokio::time::sleep(PAUSE).await;
        stream.write_all(&blob[PIECE..]).await.unwrap();
        head(&mut stream).await.expect("a response")
    };
    let (is_clean, created) = passing(async { tokio::join!(p.m.app.stop(), client) }).await;
    assert!(created.starts_with("HTTP/1.1 201 "), "{created}");
    assert!(is_clean);
}
