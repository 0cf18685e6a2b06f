//! HTTP/2 clients, good ones and others.

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{self, SendRequest};
use h2::{Reason, RecvStream};
use http::{Method, Request, Response};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use crate::harness::{
    Gate, Mirror, Registry, advance, eventually, mirrored_with, put_blob, settle,
};

const SIZE: usize = 500_000;
const SENT: &str = r#"millpond_client_sent_bytes_total{route="blob"}"#;

/// A connection whose streams have this window.
struct Connection {
    sender: SendRequest<Bytes>,
    driver: JoinHandle<Result<(), h2::Error>>,
    address: String,
}

impl Connection {
    async fn new(m: &Mirror, window: u32) -> Self {
        let address = m.address();
        let stream = TcpStream::connect(&address).await.unwrap();
        let (sender, connection) = client::Builder::new()
            .initial_window_size(window)
            .initial_connection_window_size(1 << 24)
            .handshake(stream)
            .await
            .unwrap();
        let driver = TaskTracker::new().spawn(connection);
        Self {
            sender,
            driver,
            address,
        }
    }

    async fn ask(&self, method: Method, path: &str) -> Result<Response<RecvStream>, h2::Error> {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address))
            .body(())
            .unwrap();
        let mut sender = self.sender.clone().ready().await?;
        sender.send_request(request, true)?.0.await
    }

    async fn get(&self, path: &str) -> Response<RecvStream> {
        self.ask(Method::GET, path).await.unwrap()
    }

    /// The connection has ended: with this reason, if the server gave one.
    async fn ended(self) -> Option<Reason> {
        drop(self.sender);
        self.driver
            .await
            .unwrap()
            .err()
            .and_then(|error| error.reason())
    }
}

async fn read(response: Response<RecvStream>) -> Bytes {
    let mut body = response.into_body();
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        all.extend_from_slice(&data);
    }
    all.into()
}

/// An upstream, and a mirror that has its blob.
async fn cached(lines: &[&str]) -> (Registry, Mirror, Bytes, String) {
    let (up, m) = mirrored_with(lines).await;
    let (blob, path) = put_blob(&up, 1, SIZE);
    m.pull(&path, &blob).await;
    (up, m, blob, path)
}

#[tokio::test]
async fn answers_are_those_of_http_1() {
    let (_up, m, blob, path) = cached(&["http.headers: {Keep-Alive: ['5'], X-A: [b]}"]).await;
    let connection = Connection::new(&m, 1 << 20).await;
    let head = connection.ask(Method::HEAD, &path).await.unwrap();
    assert_eq!(head.headers()["content-length"], SIZE.to_string());
    assert!(head.headers().contains_key("date"));
    assert_eq!(head.headers()["x-a"], "b");
    assert!(!head.headers().contains_key("keep-alive"));
    assert!(read(head).await.is_empty());
    let invalid = connection.ask(Method::HEAD, "/v2/app/blobs/x").await;
    let invalid = invalid.unwrap();
    assert_eq!(invalid.status(), 400);
    assert!(read(invalid).await.is_empty(), "the answer to a HEAD");
    assert_eq!(read(connection.get("/v2/").await).await, "{}");
    let bodies = futures_util::future::join_all(
        (0..10).map(async |_| read(connection.get(&path).await).await),
    );
    assert!(bodies.await.iter().all(|body| *body == blob));
}

#[tokio::test]
async fn a_body_is_read_no_further_than_the_window() {
    let (up, m, blob, path) = cached(&[]).await;
    let before = m.metric(SENT);
    let connection = Connection::new(&m, 10).await;
    let mut body = connection.get(&path).await.into_body();
    let first = body.data().await.unwrap().unwrap();
    settle().await;
    assert_eq!((first.len() as u64, m.metric(SENT) - before), (10, 10));
    body.flow_control().release_capacity(10).unwrap();
    let next = body.data().await.unwrap().unwrap();
    assert_eq!(next, blob[10..20]);
    // The same while a download runs.
    let gate = up.hold_body("/blobs/", 1, 100_000);
    // Larger than a blob that is verified before its first byte is sent.
    let (cold, path) = put_blob(&up, 2, 1_500_000);
    let before = m.metric(SENT);
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(connection.get(&path).await);
    }
    for response in &mut streams {
        let data = response.body_mut().data().await.unwrap().unwrap();
        assert_eq!(data, cold[..10]);
    }
    settle().await;
    assert_eq!(m.metric(SENT) - before, 20 * 10);
    gate.open();
}

#[tokio::test]
async fn streams_that_wait_do_not_hold_the_connections_window() {
    let (up, m, blob, path) = cached(&[]).await;
    let gate = Gate::default();
    let connection = Connection::new(&m, 1 << 24).await;
    let mut waiting = Vec::new();
    for seed in 2..10 {
        // Small ones aren't answered before all of them has come.
        let (cold, path) = put_blob(&up, seed, 1_500_000);
        let closed = gate.clone();
        up.on("/blobs/", 1, move |_, usual| usual.gated(1000, &closed));
        waiting.push((connection.get(&path).await, cold));
    }
    for _ in 0..40 {
        assert_eq!(read(connection.get(&path).await).await, blob);
    }
    gate.open();
    for (response, cold) in waiting {
        assert_eq!(read(response).await, cold);
    }
}

#[tokio::test]
async fn a_connection_has_at_most_64_streams() {
    let (_up, m, _, path) = cached(&[]).await;
    let connection = Connection::new(&m, 10).await;
    let mut open = Vec::new();
    for _ in 0..64 {
        open.push(connection.get(&path).await);
    }
    assert_eq!(connection.sender.current_max_send_streams(), 64);
    let mut one_more = connection.sender.clone();
    let ready = poll_fn(|cx| one_more.poll_ready(cx));
    tokio::select! {
        biased;
        _ = ready => {
            let request = Request::get(format!("http://x{path}")).body(()).unwrap();
            let (response, _) = one_more.send_request(request, true).unwrap();
            tokio::select! {
                biased;
                () = settle() => {}
                response = response => panic!("a 65th: {response:?}"),
            }
        }
        () = settle() => {}
    }
    open.clear();
    read(connection.get("/v2/").await).await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_without_a_window_is_reset_and_others_are_not() {
    let (_up, m, blob, path) = cached(&[]).await;
    let connection = Connection::new(&m, 10_000).await;
    let (mut stalled, mut slow) = (connection.get(&path).await, connection.get(&path).await);
    stalled.body_mut().data().await.unwrap().unwrap();
    let mut taken = 0;
    for _ in 0..5 {
        // More than 16 KiB in ten minutes.
        advance(Duration::from_mins(2)).await;
        for _ in 0..2 {
            let data = slow.body_mut().data().await.unwrap().unwrap();
            let flow = slow.body_mut().flow_control();
            flow.release_capacity(data.len()).unwrap();
            taken += data.len();
        }
    }
    advance(Duration::from_secs(1)).await;
    let error = stalled.body_mut().data().await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(Reason::CANCEL));
    advance(Duration::from_mins(1)).await;
    let rest = read(slow).await;
    assert_eq!(rest, blob[taken..]);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_ends_after_75_seconds() {
    let (_up, m, _, path) = cached(&[]).await;
    let connection = Connection::new(&m, 10).await;
    let open = connection.get(&path).await;
    advance(Duration::from_secs(100)).await;
    read(connection.get("/v2/").await).await;
    drop(open);
    settle().await;
    advance(Duration::from_secs(70)).await;
    read(connection.get("/v2/").await).await;
    advance(Duration::from_secs(70)).await;
    assert!(!connection.driver.is_finished());
    advance(Duration::from_secs(6)).await;
    eventually("the end", || connection.driver.is_finished()).await;
    assert_eq!(connection.ended().await, None);
}

#[tokio::test]
async fn a_client_that_resets_every_stream_gets_enhance_your_calm() {
    let (_up, m, _, path) = cached(&[]).await;
    let connection = Connection::new(&m, 10).await;
    let mut refused = None;
    for n in 0..200 {
        match connection.ask(Method::GET, &path).await {
            Ok(mut response) => {
                // It has begun when it is taken back.
                response.body_mut().data().await.unwrap().unwrap();
                drop(response);
            }
            Err(error) => {
                refused = error.reason();
                assert!(n >= 100, "{n} resets are not too many");
                break;
            }
        }
    }
    assert_eq!(refused, Some(Reason::ENHANCE_YOUR_CALM));
    // Who finishes as many as it takes back may go on.
    let connection = Connection::new(&m, 10).await;
    for _ in 0..150 {
        drop(connection.get(&path).await);
        read(connection.get("/v2/").await).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_open_streams_and_for_nothing_else() {
    let (_up, m, blob, path) = cached(&["http.draintimeout: 30s"]).await;
    let idle = Connection::new(&m, 10).await;
    read(idle.get("/v2/").await).await;
    let busy = Connection::new(&m, 100_000).await;
    let response = busy.get(&path).await;
    let started = tokio::time::Instant::now();
    let client = async {
        eventually("the idle connection ends", || idle.driver.is_finished()).await;
        assert!(!busy.driver.is_finished());
        let body = read(response).await;
        // It could still have sent a request.
        advance(Duration::from_secs(2)).await;
        body
    };
    let (clean, body) = tokio::join!(m.app.stop(), client);
    assert!(clean && body == blob);
    assert!(
        started.elapsed().as_secs() < 10,
        "the drain time isn't waited for"
    );
    assert_eq!(busy.ended().await, None);
}
