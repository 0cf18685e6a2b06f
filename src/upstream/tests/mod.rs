//! The room against a scripted registry on the loopback interface.
//!
//! Tests about time run under paused time, which tokio moves on by itself whenever every task
//! waits for a socket: a timeout would fire while the answer is on its way. [`freeze`] stops that,
//! and [`passing`] moves time on only after the sockets have had their turn.

mod auth;
mod blobs;
mod leading;
mod lists;
mod manifests;
mod ranges;
mod server;
mod setup;
mod time;

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::StreamExt as _;

use super::*;
use crate::oci::{Accept, Algorithm, Digest, Reference};
use server::{Reply, Seen, Server};

const MANIFEST: &str = r#"{"schemaVersion":2,"manifests":[]}"#;

/// Counts what it is told.
#[derive(Debug, Default)]
struct Counter {
    requests: Mutex<Vec<(Kind, &'static str, Outcome)>>,
    bytes: Mutex<u64>,
}

impl Meter for Counter {
    fn request(
        &self,
        upstream: &str,
        kind: Kind,
        method: &'static str,
        outcome: Outcome,
        _elapsed: Duration,
    ) {
        assert_eq!(upstream, "test");
        self.requests.lock().unwrap().push((kind, method, outcome));
    }

    fn bytes(&self, upstream: &str, _kind: Kind, n: u64) {
        assert_eq!(upstream, "test");
        *self.bytes.lock().unwrap() += n;
    }
}

fn settings(url: Url) -> UpstreamSettings {
    UpstreamSettings {
        name: "test".into(),
        url,
        credentials: None,
        ca_pem: None,
        insecure: false,
        plain_http: false,
        realm: None,
        scope: None,
        redirects: Vec::new(),
        timeouts: Timeouts::default(),
    }
}

/// Wall time at the start of each test.
fn wall() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

fn connect(settings: UpstreamSettings) -> Upstream {
    Upstream::new(
        settings,
        Clock::starting_at(wall()),
        Arc::new(Counter::default()),
    )
    .unwrap()
}

fn client(server: &Server) -> Upstream {
    connect(settings(server.url()))
}

fn repo() -> RepoName {
    "library/app".parse().unwrap()
}

fn tag() -> Reference {
    "latest".parse().unwrap()
}

fn digest_of(bytes: impl AsRef<[u8]>) -> Digest {
    Digest::of(Algorithm::Sha256, bytes.as_ref())
}

async fn get_tag(upstream: &Upstream) -> Result<FetchedManifest, UpstreamError> {
    upstream
        .get_manifest(&repo(), &tag(), &Accept::everything())
        .await?
        .verify()
}

/// Reads a blob's body to its end: what came, and how it ended.
async fn drink(mut body: BlobChunks) -> (Vec<u8>, Result<(), UpstreamError>) {
    let mut bytes = Vec::new();
    loop {
        match body.next().await {
            Some(Ok(chunk)) => bytes.extend_from_slice(&chunk),
            Some(Err(error)) => {
                assert!(body.next().await.is_none(), "an error is the end");
                return (bytes, Err(error));
            }
            None => return (bytes, Ok(())),
        }
    }
}

/// Keeps paused time from moving on by itself until dropped: tokio doesn't while a blocking task
/// runs.
struct Frozen(#[expect(dead_code, reason = "held for its drop")] std::sync::mpsc::Sender<()>);

fn freeze() -> Frozen {
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    drop(tokio::task::spawn_blocking(move || receiver.recv()));
    Frozen(sender)
}

/// Runs a future while frozen time passes in small steps, each after the sockets were served.
async fn passing<F: Future>(future: F) -> F::Output {
    const STEP: Duration = Duration::from_millis(100);
    let mut future = std::pin::pin!(future);
    for _ in 0..6000 {
        for _ in 0..20 {
            tokio::select! {
                biased;
                output = &mut future => return output,
                () = tokio::task::yield_now() => {}
            }
        }
        tokio::time::advance(STEP).await;
    }
    panic!("nothing happened within ten minutes");
}
