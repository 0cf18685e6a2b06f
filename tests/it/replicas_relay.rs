//! Requests that a replica relays to the writer of hosted repositories: failures, and bodies of any size.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::harness::replicas::{Relay, Replicas};
use crate::harness::{
    Answer, Mirror, advance, blob_path, digest, eventually, noise, passing, read, settle, to_end,
};

const MIB: usize = 1024 * 1024;
const START: &str = "POST /v2/ci/app/blobs/uploads/";

/// Pushes a blob with one request.
async fn push(mirror: &Mirror, blob: &Bytes) -> Answer {
    let line = format!("{START}?digest={}", digest(blob));
    let request = mirror.request(&line, &[]).body(blob.clone());
    read(request.send().await.unwrap()).await
}

fn relayed(mirror: &Mirror, result: &str) -> u64 {
    mirror.metric(&format!(
        "millpond_relayed_requests_total{{result=\"{result}\"}}"
    ))
}

fn unavailable(answer: &Answer) {
    answer.refused(503, "UNAVAILABLE");
    let wait: u64 = answer.header("retry-after").parse().unwrap();
    assert!((1..=5).contains(&wait), "{wait}");
    answer.has(
        "cache-status",
        "millpond; fwd=miss; detail=no-usable-response",
    );
}

async fn writer_is_away(stop: fn(&Relay)) {
    let replicas = Replicas::hosted(2, &[]).await;
    let (blob, other) = (noise(1, 100_000), &replicas.mirrors[1]);
    push(other, &blob).await.expect(201, b"");
    let started = other.ask(START, &[]).await;
    let at = started.header("location").to_owned();
    stop(&replicas.relays[0]);
    let lines = [
        START.to_owned(),
        format!("GET {at}"),
        format!("DELETE {at}"),
        "PUT /v2/ci/app/manifests/1".to_owned(),
        "DELETE /v2/ci/app/manifests/1".to_owned(),
        "GET /v2/ci/app/tags/list".to_owned(),
        "GET /v2/_catalog".to_owned(),
    ];
    for line in &lines {
        unavailable(&passing(other.ask(line, &[])).await);
    }
    unavailable(&passing(push(other, &noise(2, 8 * MIB))).await);
    assert_eq!(relayed(other, "unavailable"), 8);
    assert_eq!(other.metric("millpond_replicas_skipped"), 1);
    // The mirror works without it, and the writer without the others.
    let ready = other.debug("/readyz").await;
    assert_eq!(ready.status, 200);
    push(&replicas.mirrors[0], &noise(3, 1_000))
        .await
        .expect(201, b"");
    replicas.relays[0].resume();
    advance(Duration::from_secs(5)).await;
    let closed = format!("PUT {at}?digest={}", digest(&blob));
    let request = other.request(&closed, &[]).body(blob.clone());
    let closed = passing(async { read(request.send().await.unwrap()).await }).await;
    closed.expect(201, b"");
    other
        .serves(&blob_path("ci/app", &noise(3, 1_000)), &noise(3, 1_000))
        .await;
}

#[tokio::test(start_paused = true)]
async fn pushes_wait_for_a_writer_that_is_down() {
    writer_is_away(Relay::kill).await;
}

#[tokio::test(start_paused = true)]
async fn pushes_wait_for_a_writer_that_is_silent() {
    writer_is_away(Relay::silence).await;
}

/// What a client sends of a body of so many MiB, and how many of them it has been asked for.
fn counted_body(mib: usize) -> (reqwest::Body, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let pieces = stream::iter(0..mib).then(move |piece| {
        count.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Ok::<_, std::io::Error>(noise(piece as u64, MIB)))
    });
    (reqwest::Body::wrap_stream(pieces), asked)
}

fn whole(mib: usize) -> Bytes {
    let pieces = (0..mib).map(|piece| noise(piece as u64, MIB));
    pieces.collect::<Vec<_>>().concat().into()
}

/// Waits until a count doesn't change any more while all that can go on does, and returns it.
async fn stuck(count: impl Fn() -> usize) -> usize {
    let (mut last, mut rounds) = (count(), 0);
    while rounds < 500 {
        settle().await;
        rounds = if count() == last { rounds + 1 } else { 0 };
        last = count();
    }
    last
}

/// What the buffers of the sockets between a client and the writer may hold, and some chunks, in MiB.
const BUFFERS: usize = 40;

#[tokio::test(start_paused = true)]
async fn a_large_upload_is_passed_on_as_the_writer_takes_it() {
    let replicas = Replicas::hosted(2, &[]).await;
    let (other, blob) = (&replicas.mirrors[1], whole(64));
    let started = other.ask(START, &[]).await;
    let at = started.header("location").to_owned();
    // No time passes, so that the writer isn't taken for gone.
    replicas.relays[0].silence();
    let (body, asked) = counted_body(64);
    let patch = other.request(&format!("PATCH {at}"), &[]).body(body);
    let mut patching = pin!(async { read(patch.send().await.unwrap()).await });
    let taken = tokio::select! {
        biased;
        taken = stuck(|| asked.load(Ordering::SeqCst)) => taken,
        patched = &mut patching => panic!("{patched:?}"),
    };
    assert!((1..BUFFERS).contains(&taken), "{taken} MiB");
    replicas.relays[0].resume();
    let patched = patching.await;
    patched.expect(202, b"");
    patched.has("range", format!("0-{}", 64 * MIB - 1));
    let closed = format!("PUT {at}?digest={}", digest(&blob));
    other.ask(&closed, &[]).await.expect(201, b"");
    assert!(replicas.mirrors[0].is_stored(&blob).await);
}

#[tokio::test(start_paused = true)]
async fn a_large_blob_is_passed_on_as_the_client_takes_it() {
    let replicas = Replicas::hosted(2, &[]).await;
    let (writer, other) = (&replicas.mirrors[0], &replicas.mirrors[1]);
    let blob = whole(64);
    push(writer, &blob).await.expect(201, b"");
    let mut response = other.open(&blob_path("ci/app", &blob)).await;
    assert_eq!(response.content_length(), Some(blob.len() as u64));
    let sent = || writer.metric("millpond_client_sent_bytes_total{route=\"blob\"}");
    let sent = stuck(|| usize::try_from(sent()).unwrap() / MIB).await;
    assert!((1..BUFFERS).contains(&sent), "{sent} MiB");
    let (body, is_broken) = to_end(&mut response).await;
    assert!(!is_broken && body == blob);
    assert!(!other.is_stored(&blob).await);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_cut() {
    let replicas = Replicas::hosted(2, &[]).await;
    let (other, blob) = (&replicas.mirrors[1], whole(64));
    push(&replicas.mirrors[0], &blob).await.expect(201, b"");
    let mut response = other.open(&blob_path("ci/app", &blob)).await;
    replicas.relays[0].kill();
    let (body, is_broken) = to_end(&mut response).await;
    assert!(is_broken && blob.starts_with(&body) && body.len() < blob.len());
    eventually("the break is counted", || relayed(other, "broken") == 1).await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_falls_silent_is_cut() {
    let replicas = Replicas::hosted(2, &[]).await;
    let (other, blob) = (&replicas.mirrors[1], whole(64));
    push(&replicas.mirrors[0], &blob).await.expect(201, b"");
    let mut response = other.open(&blob_path("ci/app", &blob)).await;
    replicas.relays[0].silence();
    let (body, is_broken) = passing(to_end(&mut response)).await;
    assert!(is_broken && blob.starts_with(&body) && body.len() < blob.len());
    assert_eq!(relayed(other, "broken"), 1);
    assert_eq!(other.metric("millpond_replicas_skipped"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_ends_the_relay_and_what_it_sent_stays() {
    let replicas = Replicas::hosted(3, &[]).await;
    let started = replicas.mirrors[1].ask(START, &[]).await;
    let at = started.header("location").to_owned();
    let (pieces, receiver) = mpsc::channel::<Bytes>(1);
    let chunks = stream::unfold(receiver, |mut receiver| async {
        let piece = receiver.recv().await?;
        Some((Ok::<_, std::io::Error>(piece), receiver))
    });
    let patch = replicas.mirrors[1].request(&format!("PATCH {at}"), &[]);
    let patch = patch.body(reqwest::Body::wrap_stream(chunks)).send();
    let mut client = JoinSet::new();
    client.spawn(patch);
    pieces.send(noise(1, 100_000)).await.unwrap();
    let other = &replicas.mirrors[1];
    let status = format!("GET {at}");
    for tries in 0.. {
        let asked = passing(replicas.mirrors[0].ask(&status, &[])).await;
        if asked.header("range") == "0-99999" {
            break;
        }
        assert!(tries < 50, "{asked:?}");
    }
    client.abort_all();
    eventually("the end", || relayed(other, "abandoned") == 1).await;
    // It goes on at another replica, where the first one has ended.
    let asked = passing(replicas.mirrors[2].ask(&status, &[])).await;
    asked.has("range", "0-99999");
    let blob: Bytes = [noise(1, 100_000), noise(2, 50_000)].concat().into();
    let ranged = [("content-range", "100000-149999")];
    let patch = replicas.mirrors[2].request(&format!("PATCH {at}"), &ranged);
    let patched = read(patch.body(noise(2, 50_000)).send().await.unwrap()).await;
    patched.expect(202, b"");
    let closed = format!("PUT {at}?digest={}", digest(&blob));
    replicas.mirrors[1].ask(&closed, &[]).await.expect(201, b"");
}

/// The writer answers before it has read the body.
#[tokio::test(start_paused = true)]
async fn a_refusal_in_the_middle_of_a_body_arrives() {
    let replicas = Replicas::hosted(2, &[]).await;
    let other = &replicas.mirrors[1];
    let missing = "PATCH /v2/ci/app/blobs/uploads/0f8fad5b-d9cb-469f-a165-70867728950e";
    let blob = whole(8);
    for _ in 0..5 {
        let patch = other.request(missing, &[]).body(blob.clone());
        let refused = read(patch.send().await.unwrap()).await;
        refused.refused(404, "BLOB_UPLOAD_UNKNOWN");
    }
    let started = other.ask(START, &[]).await;
    let at = format!("PATCH {}", started.header("location"));
    let patch = other
        .request(&at, &[("content-range", "5-8388612")])
        .body(blob);
    let refused = read(patch.send().await.unwrap()).await;
    refused.refused(416, "BLOB_UPLOAD_INVALID");
    refused.has("location", started.header("location"));
    refused.has("range", "0-0");
}

#[tokio::test]
async fn what_the_head_says_wrongly_is_refused_before_the_body() {
    let replicas = Replicas::hosted(2, &[]).await;
    let other = &replicas.mirrors[1];
    let at = other.ask(START, &[]).await;
    let at = at.header("location").to_owned();
    for (line, length, range, expected) in [
        ("PUT /v2/ci/app/manifests/1", 5_000_000, "", "413"),
        (&format!("PATCH {at}"), 5, "Content-Range: 0-9\r\n", "400"),
    ] {
        let mut stream = TcpStream::connect(other.address()).await.unwrap();
        let request = format!(
            "{line} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{range}\
             Expect: 100-continue\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {expected} ")),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn clients_that_speak_http_2_push_and_pull_at_any_replica() {
    let replicas = Replicas::hosted(2, &[]).await;
    let (other, blob) = (&replicas.mirrors[1], noise(1, 3 * MIB));
    let client = reqwest::Client::builder().tls_certs_only([]);
    let client = client.http2_prior_knowledge().build().unwrap();
    let url = |path: &str| format!("http://{}{path}", other.address());
    let path = format!("/v2/ci/app/blobs/uploads/?digest={}", digest(&blob));
    let pushed = client.post(url(&path)).body(blob.clone()).send().await;
    read(pushed.unwrap()).await.expect(201, b"");
    let pulled = client.get(url(&blob_path("ci/app", &blob))).send().await;
    read(pulled.unwrap()).await.expect(200, &blob);
    eventually("the end", || relayed(other, "answered") == 2).await;
}

/// Sends the head of a push on a connection of its own, and returns what comes.
async fn raw(mirror: &Mirror, digest: impl std::fmt::Display) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(mirror.address()).await.unwrap();
    let request = format!(
        "{START}?digest={digest} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\
         Expect: 100-continue\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    (stream, String::from_utf8(head).unwrap())
}

#[tokio::test]
async fn a_client_that_waits_is_told_to_continue_once_the_writer_takes_the_body() {
    let replicas = Replicas::hosted(2, &[]).await;
    let other = &replicas.mirrors[1];
    let (mut stream, head) = raw(other, digest(b"12345")).await;
    assert_eq!(head, "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"12345").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    // Once the writer is known to be away, nobody is asked for a body.
    replicas.relays[0].kill();
    unavailable(&other.ask(START, &[]).await);
    let (_stream, head) = raw(other, digest(b"12345")).await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
}

/// A body without an announced length ends well only if the client's does.
#[tokio::test]
async fn a_body_that_breaks_off_at_the_client_breaks_off_at_the_writer() {
    let replicas = Replicas::hosted(2, &[]).await;
    let other = &replicas.mirrors[1];
    let mut stream = TcpStream::connect(other.address()).await.unwrap();
    let index = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
    let length = index.len();
    let request = format!(
        "PUT /v2/ci/app/manifests/1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\
         {length:x}\r\n{index}\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    // The end of the body is missing.
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(!answer.contains("201 Created"), "{answer}");
    eventually("the end", || {
        relayed(other, "abandoned") + relayed(other, "answered") == 1
    })
    .await;
    let missing = replicas.mirrors[0].get("/v2/ci/app/manifests/1").await;
    assert_eq!(missing.status, 404);
}
